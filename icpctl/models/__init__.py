"""Models by name: the CIFAR ResNets, every classifier of torchvision, and the VAE."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import torch
from torch import nn

from icpctl.config.recipes import CIFAR_RESNETS, VAE_SIZES, default_layers
from icpctl.errors import UserError, unknown
from icpctl.models.cifar_resnet import CifarResNet
from icpctl.models.vae import VAE, VAEOutput

__all__ = ["VAE", "CifarResNet", "VAEOutput", "build", "check_name", "module_paths"]

_STEM_FAMILIES = ("resnet", "resnext", "wide_resnet")


def check_name(name: str) -> None:
    """Raises UserError, with the nearest name, if no model has this one."""
    names = [*CIFAR_RESNETS, "vae", *_torchvision_names()]
    if name not in names:
        raise unknown("model", name, names)


def build(
    name: str, num_classes: int = 1000, stem: str = "imagenet", image_size: int | None = None, latent_dim: int = 128
) -> nn.Module:
    """A model with fresh weights, from torch's global random numbers.

    Args:
        name: resnet20, 32, 44, 56 or 110 (for CIFAR), a torchvision classifier, or vae.
        num_classes: outputs of a classifier, which maps (B, 3, H, W) to (B, num_classes).
        stem: "cifar" gives a torchvision ResNet a 3×3 first convolution without pooling, for images of 32 pixels.
        image_size, latent_dim: of the VAE, which maps (B, 3, image_size, image_size) to a `VAEOutput`; 64 by default.

    Raises:
        UserError: an unknown name, a stem for a model that is no torchvision ResNet, or a size that the VAE cannot take.
    """
    check_name(name)
    if stem == "cifar" and (name in (*CIFAR_RESNETS, "vae") or not name.startswith(_STEM_FAMILIES)):
        raise UserError(f"--stem cifar is for torchvision's ResNets (resnet18, …); {name} takes its own first layers.")
    if name in CIFAR_RESNETS:
        return CifarResNet(CIFAR_RESNETS[name], num_classes)
    if name == "vae":
        if image_size not in (None, *VAE_SIZES):
            raise UserError(f"The VAE takes images of {', '.join(map(str, VAE_SIZES))} pixels, not {image_size}.")
        return VAE(image_size or 64, latent_dim)

    import torchvision

    # The auxiliary classifiers of these two would make the output a tuple.
    options = {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
    model: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **options)
    if stem == "cifar":
        model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
        model.maxpool = nn.Identity()
    return model


def listed() -> Iterator[tuple[str, str]]:
    """Every model's name, and what it is."""
    for name, depth in CIFAR_RESNETS.items():
        yield name, f"ResNet of {depth} layers for CIFAR (He et al., arXiv 1512.03385, section 4.2)"
    yield "vae", "convolutional variational autoencoder, for generation"
    for name in _torchvision_names():
        stages = len(default_layers(name))
        yield name, f"torchvision classifier, {stages} stages" if stages else "torchvision classifier; needs --layers"


@cache
def module_paths(name: str, stem: str = "imagenet", image_size: int | None = None) -> tuple[str, ...]:
    """The paths of all modules of a model: what --layers can name.

    Raises:
        UserError: as `build`.
    """
    with torch.random.fork_rng(devices=[]):
        return tuple(path for path, _ in build(name, 10, stem, image_size).named_modules() if path)


@cache
def _torchvision_names() -> list[str]:
    import torchvision

    return torchvision.models.list_models(module=torchvision.models)  # type: ignore[no-any-return]
