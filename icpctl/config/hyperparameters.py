"""Every hyper-parameter, declared once.

A field is the single declaration of a hyper-parameter: its type, range, default, unit, help and source. The command-line
option, the key of a grid or of a TOML file, the entry in `config.json` and the row of the documentation table are all made
from it. `icpctl.config.RunConfig` resolves and checks them. This module imports neither torch nor the data.

Sources: P is the paper (arXiv 2505.14751), S a public summary of it, A the authors' released code. Those of the other methods
are in docs/methods.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict

from icpctl.config.catalogue import INPUT_OPTIMIZERS, METHODS
from icpctl.config.fields import NO_OPTIMIZER, field, known_method, known_optimizer, of_method, of_recipe, split_names
from icpctl.config.recipes import default_image_size, default_layers

_WORD = "[A-Za-z_][A-Za-z0-9_]*"
MODEL_NAME = rf"^([A-Za-z0-9_]+|timm/[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*|{_WORD}(\.{_WORD})*:{_WORD}(\.{_WORD})*)$"
"""A built-in name, timm/NAME, or package.module:factory. Part of it names the run's folder, so it has no path in it."""


class Hyperparameters(BaseModel):
    """The settings of a run, each by itself."""

    # Built when first used: the options and their help need the fields alone.
    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=(), defer_build=True
    )

    # ── run
    model: str = field(
        "resnet20",
        "resnet20/32/44/56/110 for CIFAR, any torchvision classifier, timm/NAME, vae, or your own package.module:factory.",
        "run", common=True, pattern=MODEL_NAME, max_length=200,
    )  # fmt: skip
    dataset: str = field(
        "cifar100",
        "cifar100, cifar10, fashion-mnist, digits, cub or photos; folder:PATH, with class folders in train/ and test/ (or val/), or not split; "
        "hf:OWNER/NAME or hf:PATH, a Hugging Face data set.",
        "run",
        common=True,
    )
    columns: str | None = field(
        None, "The columns of the images and labels of a data set hf:…, as IMAGE,LABEL. Without it, they are found by their types.", "run",
        pattern="^[^,]+,[^,]+$",
    )  # fmt: skip
    split: float | None = field(
        None, "Share of the images that are for training, in a data set folder:PATH that is not split into train/ and test/. The "
        "split is the same for every seed.", "run", default_text="0.8", gt=0, lt=1,
    )  # fmt: skip
    method: Annotated[str, AfterValidator(known_method)] = field(
        "icp", "The training method; plain is the baseline. `icpctl list methods` describes each one.", "run", common=True, listed=lambda: METHODS,
    )  # fmt: skip
    seed: int = field(
        0,
        "Seed of the initial weights, the order of the images, and the augmentation.",
        "run",
        common=True,
        ge=0,
        lt=2**31,
        stacks=True,
    )
    epochs: int = field(
        100, "Number of training epochs, E.", "run", common=True, source="S", unit="epochs", ge=1, le=1_000_000
    )
    train_size: int | None = field(
        None, "Use only this many images of the training split, balanced over the classes, held-out images included. Without it, all.", "run",
        common=True, unit="images", ge=2, lt=2**31,
    )  # fmt: skip
    val_fraction: float = field(
        0.1,
        "Share of the training split held out to choose the best epoch; 0: none, and no best epoch.",
        "run",
        ge=0,
        lt=1,
    )
    fit_images: int | None = field(
        None, "Training images, without augmentation, on which the metrics are also measured after every epoch; 0: none, and then no "
        "generalization gap and no sharpness.", "run", default_text="a tenth of the training images, at most 5,000", unit="images",
        identity=False, ge=0, lt=2**31,
    )  # fmt: skip
    robustness: bool = field(
        False, "After the last epoch, also measure the accuracy on test images that are attacked (FGSM, PGD-20), noisy or blurred.",
        "run", identity=False,
    )  # fmt: skip
    keep_predictions: bool = field(
        False, "After the last epoch, also keep what the network makes of each test image, so that an interval can cover the sampling of "
        "the test images.", "run", identity=False,
    )  # fmt: skip
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
    optimizer: Annotated[str, AfterValidator(known_optimizer)] = field(
        "ademamix", "Input optimizer of the perturbation; none is the same as --method plain.",
        "perturbation", common=True, source="P", listed=lambda: (*INPUT_OPTIMIZERS, NO_OPTIMIZER),
    )  # fmt: skip
    steps: int = field(
        lambda data: 5 if "perturbation" in METHODS[data["method"]].groups else 0, "Steps of the perturbation, T.", "perturbation",
        common=True, default_text="5", source="S", unit="steps", ge=0, le=10_000,
    )  # fmt: skip
    icp_lr: float = field(
        2e-3,
        "Step size of the perturbation, η.",
        "perturbation",
        common=True,
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
    pass_order: Literal["student-first", "student-last"] = field(
        "student-first",
        "student-first: the student's pass, the perturbation, the teacher's pass. student-last: as icpctl 0.1 did it, "
        "perturbation, teacher, student.",
        "perturbation", source="A", earlier="student-last",
    )  # fmt: skip
    extra_task_grad: bool = field(
        False, "Add the gradient of the eval-mode task loss to every step, as the released code does by accident.",
        "perturbation", source="A",
    )  # fmt: skip

    # ── features
    layers: Annotated[tuple[str, ...], BeforeValidator(split_names)] = field(
        lambda data: default_layers(data["model"], data["image_size"]), "Module paths of the stages F_1 … F_L, separated by commas.", "features",
        default_text="the model's stages",
    )  # fmt: skip

    # ── self-distillation
    layer_weights: Literal["cosine", "cosine-inverse", "uniform"] = field(
        "cosine", "Weights w_i of the stages.", "distillation", source="A"
    )
    warmup_epochs: int = field(
        lambda data: data["epochs"] // 4, "Epochs of plain training before the method starts, k.", "schedule",
        default_text="a quarter of the epochs: 25 of 100", source="S", unit="epochs", ge=0, le=1_000_000,
    )  # fmt: skip
    teacher_statistics: bool = field(
        True,
        "The teacher's pass, too, updates the running batch-norm statistics; --no-teacher-statistics: only the student's.",
        "distillation",
        source="A",
    )

    # ── training
    recipe: Literal["paper", "strong"] = field(
        "paper",
        "Defaults for the settings of training: the paper's, or those of a strong CIFAR baseline.",
        "training",
        common=True,
    )
    model_optimizer: Literal["adamw", "sgd"] = of_recipe(
        "model_optimizer", "Optimizer of the weights; sgd has Nesterov momentum 0.9.", source="A"
    )
    lr: float = of_recipe("lr", "Learning rate of the weights.", common=True, source="A", gt=0, stacks=True)
    weight_decay: float = of_recipe("weight_decay", "Weight decay.", source="A", ge=0, stacks=True)
    lr_schedule: Literal["constant", "cosine"] = of_recipe(
        "lr_schedule", "Learning rate over the run: constant, or a cosine to 0.", common=True, source="A"
    )
    batch_size: int = of_recipe(
        "batch_size", "Images per step.", common=True, source="A", unit="images", ge=2, le=1_000_000
    )
    augmentation: Literal["crop-randaugment", "pad-crop-flip", "none"] = of_recipe(
        "augmentation",
        "crop-randaugment: crop 0.78 of the side, resize, RandAugment(2, 9); pad-crop-flip: pad 4, crop, flip.",
        source="A",
    )
    clip_grad_norm: float = of_recipe(
        "clip_grad_norm", "Clip the gradient's global norm; 0: no clipping.", source="A", ge=0, stacks=True
    )

    # ── labels and mixing
    label_smoothing: float = of_method(
        "label_smoothing", 0.0, "ε of label smoothing: the targets are (1 − ε)·y + ε/K.", "0; label-smoothing: 0.1",
        source="Szegedy et al., arXiv 1512.00567", ge=0, lt=1,
    )  # fmt: skip
    mix: Literal["none", "mixup", "cutmix"] = of_method(
        "mix", "none", "Mix the images of a batch and their labels in pairs: mixup by weights, cutmix by a box.", "none; mixup, cutmix: themselves",
    )  # fmt: skip
    mix_alpha: float = field(
        1.0, "α of mixing: the share λ of the first image is drawn from Beta(α, α), once a batch.", "labels", gt=0
    )
    mix_probability: float = field(
        lambda data: 0.5 if data["mix"] == "cutmix" else 1.0, "Share of the batches that are mixed.", "labels",
        default_text="1; cutmix: 0.5", usual=1.0, gt=0, le=1,
    )  # fmt: skip

    # ── other methods
    ps_kd_alpha: float = field(
        0.8,
        "Weight of the stored predictions in the targets, at the last epoch; it grows linearly.",
        "ps-kd",
        ge=0,
        le=1,
    )
    cs_kd_weight: float = field(1.0, "λ, the weight of the divergence from another image of the class.", "cs-kd", ge=0)
    cs_kd_temperature: float = field(4.0, "τ of both softmaxes.", "cs-kd", gt=0)
    dlb_weight: float = field(1.0, "α, the weight of the divergence from the last batch's predictions.", "dlb", ge=0)
    dlb_temperature: float = field(3.0, "τ of both softmaxes.", "dlb", gt=0)
    ddgsd_weight: float = field(1.0, "λ, the weight of the divergences between two views.", "ddgsd", ge=0)
    ddgsd_temperature: float = field(3.0, "τ of both softmaxes.", "ddgsd", gt=0)
    ddgsd_mmd: float = field(
        5e-4, "μ, the weight of the discrepancy between the mean features of two views.", "ddgsd", ge=0
    )
    byot_alpha: float = field(
        0.3, "α, the share of the last classifier's predictions in the targets of the heads.", "byot", ge=0, le=1
    )
    byot_lambda: float = field(0.03, "λ, the weight of the distance from the last features.", "byot", ge=0)
    byot_temperature: float = field(3.0, "τ of both softmaxes.", "byot", gt=0)
    byot_share: float | None = field(
        None, "Operations of the heads as a share of the network's, for the cost; without it, they are counted.", "byot",
        identity=False, ge=0,
    )  # fmt: skip
    sam_rho: float = field(0.1, "ρ, how far uphill in the weights the gradient is taken.", "sam", gt=0)
    vat_weight: float = field(1.0, "α, the weight of the divergence.", "vat", ge=0)
    vat_xi: float = field(
        0.01, "ξ, the length of the step from which the direction is found.", "vat", unit="normalised input", gt=0
    )
    vat_epsilon: float = field(
        0.3, "ε, the length of the perturbation of an image.", "vat", unit="normalised input", gt=0
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
        "auto", "cpu, cuda, cuda:N, or auto, which takes CUDA if there is one.", "machine", common=True, identity=False,
        pattern=r"^(auto|cpu|cuda(:\d{1,3})?)$",
    )  # fmt: skip
    data_dir: Path | None = field(
        None, "The folder of the data sets. Without it, ICPCTL_DATA_DIR, or else the platform's cache folder.", "machine",
        identity=False,
    )  # fmt: skip
    data_memory: float | None = field(
        None, "GiB of the device's memory that the images may take; more are streamed from the disk; without it, half of what is free.",
        "machine", unit="GiB", identity=False, gt=0,
    )  # fmt: skip
