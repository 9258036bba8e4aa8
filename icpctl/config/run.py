"""Every hyper-parameter, declared once.

A field of `RunConfig` is the single declaration of a hyper-parameter: its type, range, default, unit, help and
source. The command-line option, the key of a grid or of a TOML file, the entry in `config.json` and the row of the
documentation table are all made from it. This module imports neither torch nor the data.

Sources: P is the paper (arXiv 2505.14751), S a public summary of it, A the authors' released code.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic.fields import FieldInfo

from icpctl.config.catalogue import METHODS, PLAIN
from icpctl.config.fields import Declared, default_of, field, known_method, of_recipe, split_names
from icpctl.config.names import HUGGING_FACE, expanded, located, short_name
from icpctl.config.recipes import (
    DATASETS,
    dataset_row,
    default_image_size,
    default_layers,
    model_row,
)
from icpctl.errors import UserError, abbreviated, unknown

RECORDED = "recorded"
"""The context in which a configuration is read as a run recorded it: nothing is resolved, and a missing setting has the value
that runs had before the setting existed."""

SELECTION = {"classification": "accuracy", "generation": "ssim"}
"""The tasks, and the metric on held-out images whose largest value chooses a run's best epoch."""


_WORD = "[A-Za-z_][A-Za-z0-9_]*"
MODEL_NAME = rf"^([A-Za-z0-9_]+|timm/[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*|{_WORD}(\.{_WORD})*:{_WORD}(\.{_WORD})*)$"
"""A built-in name, timm/NAME, or package.module:factory. Part of it names the run's folder, so it has no path in it."""
LONGEST_IN_ID = 80
"""Characters of a model's name in the id of a run."""


_BY_OPTIMIZER = (PLAIN, "icp")
"""The methods of version 0.1, which had no names: the input optimizer tells them apart, also in the id of a run."""


class RunConfig(BaseModel):
    """One run: every hyper-parameter, resolved and checked.

    What is not given is filled from the recipe, the model and the number of epochs, so two configurations that mean
    the same are equal. Settings that mean nothing are put at their defaults: those of other methods, so that a baseline is one
    run however they were set; α with Adam; those of the VAE with a classifier. `optimizer="none"` is `method="plain"`.

    Raises:
        UserError: an unknown name (with the nearest one), a value of the wrong type or out of range, a contradiction.
    """

    # Built when first used: the options and their help need the fields alone.
    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=(), defer_build=True
    )

    # ── run
    model: str = field(
        "resnet20",
        "resnet20/32/44/56/110 for CIFAR, any torchvision classifier, timm/NAME, vae, or your own package.module:factory.",
        "run", pattern=MODEL_NAME, max_length=200,
    )  # fmt: skip
    dataset: str = field(
        "cifar100",
        "cifar100, cifar10, fashion-mnist, digits, cub, photos, folder:PATH with train/ and test/ class folders, or "
        "hf:OWNER/NAME or hf:PATH, a Hugging Face data set.",
        "run",
    )
    columns: str | None = field(
        None, "The columns IMAGE,LABEL of a data set hf:…; without it they are found by their types.", "run",
        pattern="^[^,]+,[^,]+$",
    )  # fmt: skip
    method: Annotated[str, AfterValidator(known_method)] = field(
        "icp", "The method; plain: the baseline, without perturbation and distillation.", "run", listed=METHODS,
    )  # fmt: skip
    seed: int = field(
        0, "Seed of the weights, the order of the images, the augmentation.", "run", ge=0, lt=2**31, stacks=True
    )
    epochs: int = field(100, "Epochs of training, E.", "run", source="S", unit="epochs", ge=1, le=1_000_000)
    train_size: int | None = field(
        None, "Size of a class-balanced part of the training split to use, held-out images included; without it, all.", "run",
        unit="images", ge=2, lt=2**31,
    )  # fmt: skip
    val_fraction: float = field(
        0.1,
        "Share of the training split held out to choose the best epoch; 0: none, and no best epoch.",
        "run",
        ge=0,
        lt=1,
    )
    image_size: int | None = field(
        lambda data: default_image_size(data["model"], data["dataset"]),
        "Resize the images to this side; the VAE takes powers of two.", "run",
        default_text="as they are; cub: 64; vae: 16 on digits, 32 on cifar and fashion-mnist, else 64",
        unit="pixels", ge=4, le=1024,
    )  # fmt: skip
    crop: Literal["none", "box"] = field(
        "none", "box: the square around the bounding box of each bird; cub alone has them.", "run"
    )
    stem: Literal["imagenet", "cifar"] = field(
        "imagenet",
        "First layers of a torchvision ResNet; cifar: a 3×3 convolution, no pooling, for 32 pixels.",
        "run",
    )
    weights: Path | None = field(
        None, "Start from the weights in this file: safetensors, or a state dict that torch saved.", "run", identity=False,
    )  # fmt: skip
    weights_hash: str | None = field(
        None, "The first 16 hex digits of the SHA-256 of --weights, which are part of the run id; by default those of the file.", "run",
        pattern="^[0-9a-f]{16}$",
    )  # fmt: skip

    # ── perturbation (the paper's ICP)
    optimizer: Literal["sgd", "adam", "ademamix", "none"] = field(
        "ademamix", "Input optimizer of the perturbation; none: the same as --method plain.",
        "perturbation", source="P",
    )  # fmt: skip
    steps: int = field(
        lambda data: 5 if "perturbation" in METHODS[data["method"]].groups else 0, "Steps of the perturbation, T.", "perturbation",
        default_text="5", source="S", unit="steps", ge=0, le=10_000,
    )  # fmt: skip
    icp_lr: float = field(
        2e-3,
        "Step size of the perturbation, η.",
        "perturbation",
        source="P Fig. 1, A",
        unit="normalised input",
        gt=0,
        stacks=True,
    )
    icp_reduction: Literal["mean", "sum"] = field(
        "mean",
        "Gradient of the batch-mean loss (published; shrinks with the batch) or of each sample's own loss (sum).",
        "perturbation", source="A",
    )  # fmt: skip
    direction: Literal["descend", "ascend", "random"] = field(
        "descend", "descend lowers the loss; ascend (iterative FGSM) and random (same norm) are controls.",
        "perturbation", source="P Fig. 1",
    )  # fmt: skip
    beta1: float = field(
        0.9, "β₁ of Adam and AdEMAMix: fast first moment.", "perturbation", source="A", ge=0, lt=1, stacks=True
    )
    beta2: float = field(
        0.999, "β₂ of Adam and AdEMAMix: second moment.", "perturbation", source="A", ge=0, lt=1, stacks=True
    )
    beta3: float = field(
        0.9999, "β₃ of AdEMAMix: slow first moment.", "perturbation", source="A", ge=0, lt=1, stacks=True
    )
    alpha: float = field(
        5.0, "α of AdEMAMix: weight of the slow moment.", "perturbation", source="A", ge=0, stacks=True
    )
    eps: float = field(1e-8, "ε of Adam and AdEMAMix.", "perturbation", source="A", gt=0, stacks=True)
    icp_weight_decay: float = field(0.0, "λ of AdEMAMix.", "perturbation", source="A", ge=0, stacks=True)
    icp_state: Literal["fresh", "carry"] = field(
        "fresh",
        "State of the input optimizer: fresh for every batch, or carried over to the next.",
        "perturbation",
        source="A",
    )

    # ── self-distillation
    layers: Annotated[tuple[str, ...], BeforeValidator(split_names)] = field(
        lambda data: default_layers(data["model"], data["image_size"]), "Module paths of the stages F_1 … F_L, parted by commas.", "distillation",
        default_text="the model's stages",
    )  # fmt: skip
    layer_weights: Literal["cosine", "cosine-inverse", "uniform"] = field(
        "cosine", "Weights w_i of the stages.", "distillation", source="A"
    )
    warmup_epochs: int = field(
        lambda data: data["epochs"] // 4, "Epochs of plain training before the method starts, k.", "distillation",
        default_text="a quarter of the epochs: 25 of 100", source="S", unit="epochs", ge=0, le=1_000_000,
    )  # fmt: skip
    pass_order: Literal["student-first", "student-last"] = field(
        "student-first",
        "student-first: the student's pass, the perturbation, the teacher's pass. student-last: as icpctl 0.1 did it, "
        "perturbation, teacher, student.",
        "distillation", source="A", earlier="student-last",
    )  # fmt: skip
    teacher_statistics: bool = field(
        True,
        "The teacher's pass, too, updates the running batch-norm statistics; --no-teacher-statistics: only the student's.",
        "distillation",
        source="A",
    )
    extra_task_grad: bool = field(
        False, "Add the gradient of the eval-mode task loss to every step, as the released code does by accident.",
        "distillation", source="A",
    )  # fmt: skip

    # ── training
    recipe: Literal["paper", "strong"] = field(
        "paper",
        "Defaults of the settings below: the paper's, or those of a strong CIFAR baseline.",
        "training",
    )
    model_optimizer: Literal["adamw", "sgd"] = of_recipe(
        "model_optimizer", "Optimizer of the weights; sgd has Nesterov momentum 0.9.", source="A"
    )
    lr: float = of_recipe("lr", "Learning rate of the weights.", source="A", gt=0, stacks=True)
    weight_decay: float = of_recipe("weight_decay", "Weight decay.", source="A", ge=0, stacks=True)
    lr_schedule: Literal["constant", "cosine"] = of_recipe(
        "lr_schedule", "Learning rate over the run: constant, or a cosine to 0.", source="A"
    )
    batch_size: int = of_recipe("batch_size", "Images a step.", source="A", unit="images", ge=2, le=1_000_000)
    augmentation: Literal["crop-randaugment", "pad-crop-flip", "none"] = of_recipe(
        "augmentation",
        "crop-randaugment: crop 0.78 of the side, resize, RandAugment(2, 9); pad-crop-flip: pad 4, crop, flip.",
        source="A",
    )
    clip_grad_norm: float = of_recipe(
        "clip_grad_norm", "Clip the gradient's global norm; 0: no clipping.", source="A", ge=0, stacks=True
    )

    # ── generation
    latent_dim: int = field(128, "Dimensions of the latent z.", "generation", ge=1, le=65536)
    beta: float = field(1.0, "β, the weight of the KL divergence in the VAE's loss.", "generation", ge=0)
    fid_weights: Path | None = field(
        None, "File with the Inception weights of FID and KID; without it they are downloaded once.", "generation",
        identity=False,
    )  # fmt: skip
    fid_features: Path | None = field(
        None, "A run of a classifier whose features stand in for Inception's; the metrics carry its name.", "generation",
        identity=False,
    )  # fmt: skip

    # ── machine
    precision: Literal["float32", "tf32", "bf16"] = field(
        "float32",
        "Precision of the network's passes; bf16 drowns the feature shift of small perturbations.",
        "machine",
    )
    fast: bool = field(
        True,
        "Fold batch norm for the perturbation; CUDA graphs. The same up to rounding, and the same run id.",
        "machine",
        identity=False,
    )
    device: str = field(
        "auto", "cpu, cuda, cuda:N, or auto: CUDA where there is one.", "machine", identity=False,
        pattern=r"^(auto|cpu|cuda(:\d{1,3})?)$",
    )  # fmt: skip
    data_dir: Path | None = field(
        None, "Where the data sets are; without it ICPCTL_DATA_DIR, else the platform's cache folder.", "machine",
        identity=False,
    )  # fmt: skip
    data_memory: float | None = field(
        None, "GiB of the device's memory that the images may take; more are streamed from the disk; without it, half of what is free.",
        "machine", unit="GiB", identity=False, gt=0,
    )  # fmt: skip

    @model_validator(mode="before")
    @classmethod
    def _as_meant(cls, values: Any, info: ValidationInfo) -> Any:
        values = dict(values)
        for name, value in values.items():
            if message := truth_for_number(name, value):
                raise ValueError(message)
        if values.get("optimizer") == "none":
            values = {"method": PLAIN} | values
        if info.context == RECORDED:
            return earlier_settings() | values
        return values | {"dataset": located(values["dataset"])} if "dataset" in values else values

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name in _unused(self.method, self.optimizer, self.task):
            field = type(self).model_fields[name]
            object.__setattr__(self, name, default_of(field, self.__dict__))
        if len(set(self.layers)) < len(self.layers):
            raise ValueError(f"--layers names a module twice: {','.join(self.layers)}")
        if self.task not in METHODS[self.method].tasks:
            raise ValueError(
                f"method is {self.method}, which cannot train {self.model}: it is for {METHODS[self.method].tasks[0]}"
            )
        if "perturbation" not in METHODS[self.method].groups:
            object.__setattr__(self, "optimizer", "none")
            object.__setattr__(self, "steps", 0)
        elif self.optimizer == "none":
            raise ValueError(
                "method is icp, which needs an input optimizer: give one, or method plain for the baseline"
            )
        elif self.steps == 0:
            raise ValueError("steps is 0, which perturbs nothing: give steps ≥ 1, or method plain for the baseline")
        if self.fid_weights and self.fid_features:
            raise ValueError(
                "fid_weights and fid_features both say where the features of FID come from: give one of them"
            )
        for name in ("weights", "fid_weights", "fid_features"):  # found again from another working directory
            if path := getattr(self, name):
                object.__setattr__(self, name, expanded(path).absolute())
        if self.crop == "box" and not dataset_row(self.dataset).boxes:
            with_boxes = ", ".join(name for name, row in DATASETS.items() if row.boxes)
            raise ValueError(f"crop is box, but {self.dataset} has no bounding boxes: only {with_boxes} has them")
        if self.columns and not self.dataset.startswith(HUGGING_FACE):
            raise ValueError(f"columns is given, but {self.dataset} has no columns: only the data sets hf:… have them")
        sizes = model_row(self.model).sizes
        if sizes and self.image_size not in sizes:
            raise ValueError(
                f"image_size is {self.image_size}, but {self.model} takes images of other sizes: give one of "
                f"{', '.join(map(str, sizes))}"
            )
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs is {self.warmup_epochs} of {self.epochs} epochs, so the method would never start: "
                f"give warmup_epochs < {self.epochs}, or more epochs"
            )
        return self

    @model_validator(mode="wrap")
    @classmethod
    def _faults_in_words(cls, values: Any, validate: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return validate(values)
        except ValidationError as error:
            faults = error.errors(include_url=False)
        # Where a setting is at fault, the defaults that depend on others are not computed; that is no fault of theirs.
        raise UserError(
            " ".join(fault_in_words(fault) for fault in faults if fault["type"] != "default_factory_not_called")
        )

    @property
    def task(self) -> str:
        """classification or generation: what the model is for."""
        return model_row(self.model).task

    @property
    def selection(self) -> str:
        """The metric on held-out images whose largest value chooses the best epoch."""
        return SELECTION[self.task]

    @property
    def variant(self) -> str:
        """The method by its own name, or the input optimizer where that makes variants of it; see `catalogue.variants`."""
        return self.optimizer if self.optimizer in METHODS[self.method].variants else self.method

    def uses(self, name: str) -> bool:
        """Whether a setting is of the run's method, or of no method; in a baseline, those of methods mean nothing."""
        return name not in settings_of_methods() or declaration(name).group in METHODS[self.method].groups

    @property
    def run_id(self) -> str:
        """Readable, and derived from the configuration: the same configuration is the same run."""
        steps = f"-T{self.steps}" if self.steps else ""
        dataset = re.sub(r"[^A-Za-z0-9]+", "-", short_name(self.dataset))
        method = self.optimizer if self.method in _BY_OPTIMIZER else self.method
        model = re.sub(r"[^A-Za-z0-9_]+", "-", self.model)[:LONGEST_IN_ID]
        return f"{model}-{dataset}-{method}{steps}-s{self.seed}-{self._digest()}"

    @property
    def group_id(self) -> str:
        """The same for runs that differ in their seed alone."""
        return self._digest(without=("seed",))

    @property
    def stack_id(self) -> str | None:
        """Equal for runs that can be trained together, as `icpctl.training.stack` does; None for one that cannot.

        Those that draw random numbers in a step would draw others than alone: the noise of a VAE, a random direction. A
        state that is carried over is of one run. Autocast (bf16) reaches other operations in a mapped function.
        """
        alone = self.task == "generation" or self.direction == "random" or self.icp_state == "carry"
        if alone or not METHODS[self.method].stacked or self.precision == "bf16":
            return None
        stacks = [name for name in RunConfig.model_fields if declaration(name).stacks]
        return self.model_dump_json(exclude=set(stacks))

    def baseline(self) -> RunConfig:
        """The plain training that this run is compared with: the same in all but the method."""
        return self.altered(method=PLAIN)

    def altered(self, **settings: object) -> RunConfig:
        """The same but for these settings; checked anew.

        Raises:
            UserError: as `RunConfig`.
        """
        before = self.model_dump()
        if "optimizer" in settings:
            del before["method"]  # the input optimizer says it, as in version 0.1
        return RunConfig.recorded(before | settings)

    @classmethod
    def recorded(cls, values: Mapping[str, object]) -> Self:
        """A configuration as a run recorded it, maybe of an earlier version: its id is the one that it had.

        Raises:
            UserError: as `RunConfig`.
        """
        return cls.model_validate(dict(values), context=RECORDED)

    def _digest(self, without: Iterable[str] = ()) -> str:
        # A value that runs had before there was the hyper-parameter is left out, so that their ids stay as they are.
        unused = _unused(self.method, self.optimizer, self.task)
        left_out = {*without, *(name for name in unused if name in earlier_settings())}
        if self.method in _BY_OPTIMIZER:
            left_out.add("method")
        fixed = _identity()
        values = {
            name: value
            for name, value in self.model_dump(mode="json").items()
            if value is not None and name in fixed and name not in left_out and value != fixed[name]
        }
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


def truth_for_number(name: str, value: object) -> str:
    """What is wrong with `steps = true`, which is a slip, though Python counts it as 1; empty where nothing is."""
    if not isinstance(value, bool) or not (field := RunConfig.model_fields.get(name)) or field.annotation is bool:
        return ""
    return f"{option(name)} got {str(value).lower()}, which is no value for it"


@cache
def _identity() -> dict[str, Any]:
    """The hyper-parameters that make a run what it is, with the fixed values that its id leaves out."""
    defaults = {name: field.default for name, field in RunConfig.model_fields.items() if declaration(field).identity}
    return defaults | earlier_settings()


@cache
def earlier_settings() -> dict[str, str]:
    """The values of hyper-parameters in runs of versions that did not have them yet, where these are not the defaults."""
    return {name: declaration(name).earlier for name in RunConfig.model_fields if declaration(name).earlier}


@cache
def settings_of_methods() -> list[str]:
    """The settings that mean something with a method of which they are, and not in a baseline."""
    groups = {group for row in METHODS.values() for group in row.groups}
    return [n for n in RunConfig.model_fields if declaration(n).group in groups and n != "optimizer"]


@cache
def _unused(method: str, optimizer: str, task: str) -> list[str]:
    """The settings that mean nothing with this method and input optimizer, or for this task."""
    names = [name for name in settings_of_methods() if declaration(name).group not in METHODS[method].groups]
    if task != "generation":
        names += [name for name in RunConfig.model_fields if declaration(name).group == "generation"]
    ademamix = ["beta3", "alpha", "icp_weight_decay"]
    names += {"sgd": ["beta1", "beta2", "eps", "icp_state", *ademamix], "adam": ademamix}.get(optimizer, [])
    return [name for name in dict.fromkeys(names) if name != "steps"]


def declaration(field: FieldInfo | str) -> Declared:
    """What `RunConfig` declares of a hyper-parameter beside its type, range and default."""
    info = RunConfig.model_fields[field] if isinstance(field, str) else field
    assert isinstance(info.json_schema_extra, dict)
    declared = info.json_schema_extra["declared"]
    assert isinstance(declared, Declared)
    return declared


def choices(name: str) -> tuple[str, ...]:
    """The values a hyper-parameter can take, where they are a fixed list; else empty."""
    annotation = RunConfig.model_fields[name].annotation
    listed = get_args(annotation) if getattr(annotation, "__origin__", None) is Literal else ()
    return (*listed, *declaration(name).listed)


def default_text(name: str) -> str:
    """A hyper-parameter's default, in words where it depends on other settings."""
    default = RunConfig.model_fields[name].default
    text = declaration(name).default or ("" if default is None else str(default))
    return text.lower() if isinstance(default, bool) else text


def option(name: str) -> str:
    """The command-line option of a hyper-parameter."""
    return "--" + name.replace("_", "-")


def resolve(values: Mapping[str, object], where: str = "", context: str | None = None) -> RunConfig:
    """A checked configuration from what was given by name.

    Args:
        values: hyper-parameters by name, as text or as values.
        where: the place they come from, for the message.
        context: RECORDED for those that a run recorded; see `RunConfig.recorded`.

    Raises:
        UserError: as `RunConfig`, with the place.
    """
    try:
        return RunConfig.model_validate(dict(values), context=context)
    except UserError as error:
        raise UserError(f"{where}: {error}" if where else str(error)) from None


def fault_in_words(fault: Any) -> str:
    """What pydantic says of a fault, for the person at the keyboard."""
    if not fault["loc"]:
        return f"{fault['ctx']['error']}."
    name = str(fault["loc"][0])
    if fault["type"] == "extra_forbidden":
        return str(unknown("hyper-parameter", name, RunConfig.model_fields))
    if fault["type"] == "literal_error":
        return str(unknown(f"value for {option(name)}:", abbreviated(fault["input"]), choices(name)))
    message = "it is not valid" if "pattern" in fault["type"] else fault["msg"][0].lower() + fault["msg"][1:]
    return f"{option(name)} got '{abbreviated(fault['input'])}': {message}. {RunConfig.model_fields[name].description}"
