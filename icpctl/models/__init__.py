"""Models by name: the CIFAR ResNets, and every classifier of torchvision."""

from __future__ import annotations

from functools import cache

import torch
from torch import nn

from icpctl.config import CIFAR_RESNETS
from icpctl.errors import UserError, unknown
from icpctl.models.cifar_resnet import CifarResNet

__all__ = ["CifarResNet", "build", "check_name", "module_paths"]

_STEM_FAMILIES = ("resnet", "resnext", "wide_resnet")


def check_name(name: str) -> None:
    """Raises UserError, with the nearest name, if no model has this one."""
    if name not in CIFAR_RESNETS and name not in _torchvision_names():
        raise unknown("model", name, [*CIFAR_RESNETS, *_torchvision_names()])


def build(name: str, num_classes: int, stem: str = "imagenet") -> nn.Module:
    """A model with fresh weights, from torch's global random numbers.

    Args:
        name: resnet20, 32, 44, 56 or 110 (for CIFAR), or a torchvision classifier.
        num_classes: outputs; the model maps (B, 3, H, W) to (B, num_classes).
        stem: "cifar" gives a torchvision ResNet a 3×3 first convolution without pooling, for images of 32 pixels.

    Raises:
        UserError: an unknown name, or a stem for a model that is no torchvision ResNet.
    """
    check_name(name)
    if stem == "cifar" and (name in CIFAR_RESNETS or not name.startswith(_STEM_FAMILIES)):
        raise UserError(f"--stem cifar is for torchvision's ResNets (resnet18, …); {name} takes its own first layers.")
    if name in CIFAR_RESNETS:
        return CifarResNet(CIFAR_RESNETS[name], num_classes)

    import torchvision

    # The auxiliary classifiers of these two would make the output a tuple.
    options = {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
    model: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **options)
    if stem == "cifar":
        model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
        model.maxpool = nn.Identity()
    return model


@cache
def module_paths(name: str, stem: str = "imagenet") -> tuple[str, ...]:
    """The paths of all modules of a model: what --layers can name.

    Raises:
        UserError: as `build`.
    """
    with torch.random.fork_rng(devices=[]):
        return tuple(path for path, _ in build(name, 10, stem).named_modules() if path)


@cache
def _torchvision_names() -> list[str]:
    import torchvision

    return torchvision.models.list_models(module=torchvision.models)  # type: ignore[no-any-return]
