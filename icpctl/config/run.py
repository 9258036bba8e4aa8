"""The configuration of a run: its hyper-parameters, resolved and checked, and what is made of them.

This module imports neither torch nor the data.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, Literal, Self, get_args

from pydantic import ModelWrapValidatorHandler, ValidationError, ValidationInfo, model_validator
from pydantic.fields import FieldInfo

from icpctl.config.catalogue import INPUT_OPTIMIZERS, METHODS, PLAIN
from icpctl.config.fields import NO_OPTIMIZER, Declared, default_of
from icpctl.config.hyperparameters import Hyperparameters
from icpctl.config.names import FOLDER, HUGGING_FACE, as_factory, expanded, located, short_name
from icpctl.config.recipes import CIFAR_RESNETS, DATASETS, dataset_row, model_row
from icpctl.errors import UserError, abbreviated, nearest, unknown

RECORDED = "recorded"
"""The context in which a configuration is read as a run recorded it: nothing is resolved, and a missing setting has the value
that runs had before the setting existed."""

SELECTION = {"classification": "accuracy", "generation": "ssim"}
"""The tasks, and the metric on held-out images whose largest value chooses a run's best epoch."""


SHAPED_LABELS = {"label_smoothing": 0.0, "mix": "none"}
"""The settings that change labels, and their values that do not."""

POSITIONAL = ("model", "dataset")
"""The settings that are arguments of the commands, in this order, and no options."""

LONGEST_IN_ID = 80
"""Characters of a model's name in the id of a run."""


_BY_OPTIMIZER = (PLAIN, "icp")
"""The methods of version 0.1, which had no names: the input optimizer tells them apart, also in the id of a run."""


class RunConfig(Hyperparameters):
    """One run: every hyper-parameter, resolved and checked.

    The recipe, the model and the number of epochs give the values of settings that are left out, so two configurations that
    mean the same are equal. Settings that the run does not use are put at their defaults: settings of other methods, α if
    the input optimizer is Adam, settings of the VAE if the model is a classifier. So a baseline is one run, however these were set.
    `optimizer="none"` is `method="plain"`.

    Raises:
        UserError: an unknown name (with the nearest one), a value of the wrong type or out of range, a contradiction.
    """

    @model_validator(mode="before")
    @classmethod
    def _as_meant(cls, values: Any, info: ValidationInfo) -> Any:
        values = dict(values)
        for name, value in values.items():
            if message := truth_for_number(name, value):
                raise ValueError(message)
        if values.get("optimizer") == NO_OPTIMIZER:
            values = {"method": PLAIN} | values
        if info.context == RECORDED:
            return earlier_settings() | values
        return values | {"dataset": located(values["dataset"])} if "dataset" in values else values

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name in _unused(self.method, self.optimizer, self.task, self.mix):
            field = type(self).model_fields[name]
            object.__setattr__(self, name, default_of(field, self.__dict__))
        if len(set(self.layers)) < len(self.layers):
            raise ValueError(f"--layers names a module twice: {','.join(self.layers)}")
        self._check_method()
        if "perturbation" not in METHODS[self.method].groups:
            object.__setattr__(self, "optimizer", NO_OPTIMIZER)
            object.__setattr__(self, "steps", 0)
        elif self.optimizer == NO_OPTIMIZER:
            raise ValueError(
                f"--method is {self.method}, which needs an input optimizer: give one with --optimizer, or --method plain for the baseline"
            )
        elif self.steps == 0:
            raise ValueError(
                "--steps is 0, which perturbs nothing: give --steps ≥ 1, or --method plain for the baseline"
            )
        if self.fid_weights and self.fid_features:
            raise ValueError(
                "--fid-weights and --fid-features both say where the features of FID come from: give one of them"
            )
        for name in ("weights", "fid_weights", "fid_features"):  # found again from another working directory
            if path := getattr(self, name):
                object.__setattr__(self, name, expanded(path).absolute())
        if self.crop == "box" and not dataset_row(self.dataset).boxes:
            with_boxes = ", ".join(name for name, row in DATASETS.items() if row.boxes)
            raise ValueError(f"--crop is box, but {self.dataset} has no bounding boxes: only {with_boxes} has them")
        if self.columns and not self.dataset.startswith(HUGGING_FACE):
            raise ValueError(
                f"--columns is given, but {self.dataset} has no columns: only the data sets hf:… have them"
            )
        if self.split is not None and not self.dataset.startswith(FOLDER):
            raise ValueError(
                f"--split is given, but {self.dataset} is split already: only data sets folder:PATH may not be"
            )
        sizes = model_row(self.model).sizes
        if sizes and self.image_size not in sizes:
            raise ValueError(
                f"--image-size is {self.image_size}, but {self.model} takes images of other sizes: give one of "
                f"{', '.join(map(str, sizes))}"
            )
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"--warmup-epochs is {self.warmup_epochs} of {self.epochs} epochs, so the method would never start: "
                f"give --warmup-epochs < {self.epochs}, or more --epochs"
            )
        return self

    def _check_method(self) -> None:
        """Refuse a method for another task, and what makes no sense beside it."""
        row = METHODS[self.method]
        if self.task not in row.tasks:
            why = f", as {row.needs}" if row.needs else ""
            raise ValueError(
                f"--method is {self.method}, which cannot train {self.model}: it is for {' and '.join(row.tasks)}{why}. Give another "
                "method; `icpctl list methods` shows them"
            )
        for name, own in row.sets.items():
            value = getattr(self, name)
            if value == SHAPED_LABELS[name] or (isinstance(own, str) and value != own):
                raise ValueError(
                    f"--method is {self.method}, but {option(name)} is {value}: leave it out, or give another method"
                )
        for name, off in SHAPED_LABELS.items():
            value = getattr(self, name)
            if value == off or name in row.sets:
                continue
            if self.task == "generation":
                raise ValueError(f"{option(name)} is {value}, but {self.model} is not trained on labels: leave it out")
            if reason := row.refuses.get(name):
                raise ValueError(
                    f"{option(name)} is {value}, which makes no sense with --method {self.method}, as {reason}: leave it out"
                )
        if self.robustness and self.task != "classification":
            raise ValueError(f"--robustness is for classifiers, and {self.model} is none: leave it out")
        if row.companion == "view" and self.augmentation == "none":
            raise ValueError(
                f"--method is {self.method}, which compares two views of an image, but --augmentation is none, so both are the "
                "same: give another augmentation"
            )

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
        return self.method if self.method in METHODS[self.method].variants else self.optimizer

    @property
    def control(self) -> str:
        """Which control of its method the run is, by the keys of `MethodRow.controls`; empty for none."""
        for key, control in METHODS[self.method].controls.items():
            if "method" not in control.settings and all(getattr(self, n) == v for n, v in control.settings.items()):
                return key
        return ""

    def uses(self, name: str) -> bool:
        """Whether a setting is of the run's method, or of no method; in a baseline, those of methods mean nothing."""
        return name not in settings_of_methods() or declaration(name).group in METHODS[self.method].groups

    def is_default(self, name: str) -> bool:
        """Whether a setting has the value that it has when it is not given."""
        field = type(self).model_fields[name]
        return bool(getattr(self, name) == default_of(field, self.__dict__))

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
        if "method" not in before | settings or settings.get("method", self.method) != self.method:
            new = METHODS.get(str(settings.get("method", "icp")))
            for name in {*METHODS[self.method].sets, *(new.sets if new else ())}:
                before.pop(name)  # of the one method or the other
        if before.get("mix") != settings.get("mix", before.get("mix")) or "mix" not in before:
            before.pop("mix_probability")  # whose default depends on it
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
        unused = _unused(self.method, self.optimizer, self.task, self.mix)
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
    fields = {name: field for name, field in RunConfig.model_fields.items() if declaration(field).identity}
    defaults = {
        name: declaration(field).usual if field.default_factory else field.default for name, field in fields.items()
    }
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
def _unused(method: str, optimizer: str, task: str, mix: str) -> list[str]:
    """The settings that mean nothing with this method and input optimizer, for this task, or where nothing is mixed."""
    names = [name for name in settings_of_methods() if declaration(name).group not in METHODS[method].groups]
    if task != "generation":
        names += [name for name in RunConfig.model_fields if declaration(name).group == "generation"]
    if mix == "none":
        names += ["mix_alpha", "mix_probability"]
    if optimizer != NO_OPTIMIZER:
        read = INPUT_OPTIMIZERS[optimizer].settings
        names += [name for row in INPUT_OPTIMIZERS.values() for name in row.settings if name not in read]
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
    return (*listed, *declaration(name).listed())


def default_text(name: str) -> str:
    """A hyper-parameter's default, in words where it depends on other settings."""
    default = RunConfig.model_fields[name].default
    text = declaration(name).default or ("" if default is None else str(default))
    return text.lower() if isinstance(default, bool) else text


def option(name: str) -> str:
    """The command-line option of a hyper-parameter, or its argument."""
    return name.upper() if name in POSITIONAL else "--" + name.replace("_", "-")


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


FAULTS = {
    "int_parsing": "it must be a whole number",
    "int_from_float": "it must be a whole number",
    "float_parsing": "it must be a number",
    "greater_than": "it must be above {gt}",
    "greater_than_equal": "it must be at least {ge}",
    "less_than": "it must be below {lt}",
    "less_than_equal": "it must be at most {le}",
    "finite_number": "it must be a finite number",
    "string_pattern_mismatch": "it is not valid",
}
"""pydantic's types of fault, in words; of others it says itself what is wrong."""


def fault_in_words(fault: Any) -> str:
    """What pydantic says of a fault, for the person at the keyboard."""
    if not fault["loc"]:
        return f"{fault['ctx']['error']}."
    name = str(fault["loc"][0])
    if fault["type"] == "extra_forbidden":
        return str(unknown("hyper-parameter", name, RunConfig.model_fields))
    if fault["type"] == "literal_error":
        value = abbreviated(fault["input"])
        others = [option(other) for other in RunConfig.model_fields if value in choices(other)]
        if others and value != NO_OPTIMIZER:
            return (
                f"Unknown value for {option(name)}: '{value}'. It can be one of: {', '.join(choices(name))}. "
                f"{RunConfig.model_fields[name].description} '{value}' is a value of {' and of '.join(others)}."
            )
        return str(unknown(f"value for {option(name)}:", value, choices(name)))
    if name == "model" and (written := as_factory(str(fault["input"]))):
        return f"{option(name)} got '{fault['input']}': a model of your own is package.module:factory. Write {written}."
    if fault["type"] in FAULTS:
        message = FAULTS[fault["type"]].format(**fault.get("ctx", {}))
    else:
        message = fault["msg"][0].lower() + fault["msg"][1:]
    if name == "model" and (near := nearest(str(fault["input"]), CIFAR_RESNETS)):
        message += f"; did you mean {near[0]}?"
    end = "" if message.endswith("?") else "."
    return (
        f"{option(name)} got '{abbreviated(fault['input'])}': {message}{end} {RunConfig.model_fields[name].description}"
    )
