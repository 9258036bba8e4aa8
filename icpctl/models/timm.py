"""Classifiers of timm, by `timm/NAME`; the package is imported when one is asked for."""

from __future__ import annotations

from typing import Any

from torch import nn

from icpctl.errors import UserError, unknown

PREFIX = "timm/"
MOST_STAGES = 6
"""A model that lists more modules, such as a vision transformer with each of its blocks, is tapped at four of them."""

CACHE = "attention_bias_cache"
"""The attribute in which LeViT, TinyViT and EfficientFormer keep tensors that they compute from their weights."""


def check_name(name: str) -> None:
    """Raises UserError, with the nearest name, if timm has no such model, or is not installed."""
    timm = _import_timm(name)
    base = name.removeprefix(PREFIX).partition(".")[0]  # a tag that follows says whose weights; no weights are loaded
    if not timm.is_model(base):
        raise unknown("model", name, [PREFIX + known for known in timm.list_models()])


def names() -> list[str]:
    """Every model that timm has; none where it is not installed."""
    try:
        import timm
    except ImportError:
        return []
    return [PREFIX + name for name in timm.list_models()]


def build(name: str, num_classes: int, image_size: int | None) -> nn.Module:
    """A model with fresh weights, built for images of this side if it is one that has to be told.

    A model with a distillation token gives the mean of its two heads, in training too: timm's own default.

    Raises:
        UserError: timm cannot build it so.
    """
    timm = _import_timm(name)

    def create(**options: int) -> nn.Module:
        model: nn.Module = timm.create_model(
            name.removeprefix(PREFIX), pretrained=False, num_classes=num_classes, **options
        )
        if any(hasattr(module, CACHE) for module in model.modules()):
            raise UserError(
                f"{name} keeps its attention biases from one pass in eval mode to the next. The perturbation makes such passes while "
                "the weights change, so they would be old. Take another model, such as timm/vit_tiny_patch16_224."
            )
        return model

    try:
        if image_size is None:
            return create()
        try:
            return create(img_size=image_size)
        except TypeError as error:
            if "img_size" not in str(error):
                raise
            return create()  # a convolutional network, which takes images of any size
    except (RuntimeError, AssertionError, ValueError, TypeError, ZeroDivisionError) as error:
        size = f" for images of {image_size} pixels" if image_size else ""
        fixed = timm.get_pretrained_cfg(name.removeprefix(PREFIX).partition(".")[0])
        said = " ".join(str(error).split()).rstrip(".")
        usual = f" Its own size is --image-size {fixed.input_size[-1]}." if fixed else ""
        raise UserError(f"timm cannot build {name}{size}: {type(error).__name__}: {said}.{usual}") from None


def stages(model: nn.Module) -> tuple[str, ...]:
    """The modules that timm lists as those of a model's features, the first to the last; four of them if they are many."""
    info: Any = getattr(model, "feature_info", [])
    modules = dict(model.named_modules())
    listed = [stage["module"] for stage in info if stage["module"] in modules]
    number = len(listed)
    return tuple(listed if number <= MOST_STAGES else (listed[number * part // 4 - 1] for part in range(1, 5)))


def _import_timm(name: str) -> Any:
    try:
        import timm
    except ImportError:
        raise UserError(
            f"The model {name} needs the package timm, which is not installed: pip install 'icpctl[timm]'."
        ) from None
    return timm
