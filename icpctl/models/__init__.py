"""Models by name: the CIFAR ResNets, every classifier of torchvision and of timm, the VAE, and the user's own."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import torch
from torch import nn

from icpctl.config import RunConfig, as_factory
from icpctl.config.catalogue import METHODS
from icpctl.config.recipes import CIFAR_RESNETS, VAE_SIZES, default_layers
from icpctl.errors import UserError, unknown
from icpctl.methods.base import find
from icpctl.models import own, timm, weights
from icpctl.models.cifar_resnet import CifarResNet
from icpctl.models.vae import VAE, VAEOutput

__all__ = ["VAE", "CifarResNet", "VAEOutput", "build", "check_name", "complete", "module_paths"]

_STEM_FAMILIES = ("resnet", "resnext", "wide_resnet")


def check_name(name: str) -> None:
    """Raises UserError, with the nearest name, if no model has this one."""
    if own.is_own(name):
        own.find(name)
        return
    if name.startswith(timm.PREFIX):
        timm.check_name(name)
        return
    names = [*CIFAR_RESNETS, "vae", *_torchvision_names()]
    if name not in names:
        if written := as_factory(name):
            raise UserError(
                f"Unknown model '{name}', but there is a file of that name. For its function NAME, write {written}."
            )
        raise unknown("model", name, names)


def build(
    name: str, num_classes: int = 1000, stem: str = "imagenet", image_size: int | None = None, latent_dim: int = 128
) -> nn.Module:
    """A model with fresh weights, from torch's global random numbers.

    Args:
        name: resnet20, 32, 44, 56 or 110 (for CIFAR), a torchvision classifier, timm/NAME, vae, or package.module:factory.
        num_classes: outputs of a classifier, which maps (B, 3, H, W) to (B, num_classes).
        stem: "cifar" gives a torchvision ResNet a 3×3 first convolution without pooling, for images of 32 pixels.
        image_size: side of the images in pixels, for the VAE, which maps (B, 3, image_size, image_size) to a `VAEOutput`
            (64 by default), and for models of timm that are built for one size.
        latent_dim: size of the VAE's latent.

    Raises:
        UserError: an unknown name, a stem for a model that is no torchvision ResNet, or a size that the model cannot take; a
            factory that fails.
    """
    check_name(name)
    of_torchvision = name.isidentifier() and name not in (*CIFAR_RESNETS, "vae")
    if stem == "cifar" and not (of_torchvision and name.startswith(_STEM_FAMILIES)):
        raise UserError(f"--stem cifar is for torchvision's ResNets (resnet18, …); {name} takes its own first layers.")
    if own.is_own(name):
        return own.build(name, num_classes)
    if name.startswith(timm.PREFIX):
        return timm.build(name, num_classes, image_size)
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


def complete(config: RunConfig) -> RunConfig:
    """A configuration with all that makes the run what it is, so that it has the run's id, and its cost.

    The stages of timm's and of the user's models are known once they are built, and the content of --weights once it is read.
    What a method adds to the cost of a model is measured.

    Raises:
        UserError: as `build`; the file of weights is not there, or not the one that `weights_hash` says.
    """
    found: dict[str, object] = {}
    if config.uses("layers") and not config.layers:
        found["layers"] = _outline(config.model, config.stem, config.image_size)[1]
    if config.weights:
        found["weights_hash"] = weights.digest(config.weights)
        if config.weights_hash not in (None, found["weights_hash"]):
            raise weights.changed(config.weights, config.weights_hash, str(found["weights_hash"]))
    elif config.weights_hash:
        raise UserError(f"--weights-hash {config.weights_hash} says which content --weights has. Give that file, too.")
    config = config.altered(**found) if found else config
    if config.layers and any(getattr(config, name) is None for name in METHODS[config.method].measured):
        measured = _measured(config.method, config.model, config.stem, config.image_size, config.layers)
        return config.altered(**measured)
    return config


@cache
def _measured(method: str, name: str, stem: str, image_size: int | None, layers: tuple[str, ...]) -> dict[str, object]:
    """What the method says of such a model."""
    config = RunConfig(method=method, model=name, stem=stem, image_size=image_size, layers=layers)
    with torch.random.fork_rng(devices=[]):
        return find(config).measure(config, build(name, 10, stem, image_size))


def listed() -> Iterator[tuple[str, str]]:
    """Every model's name, and what it is; one row for all of timm."""
    for name, depth in CIFAR_RESNETS.items():
        yield name, f"ResNet of {depth} layers for CIFAR (He et al., arXiv 1512.03385, section 4.2)"
    yield "vae", "convolutional variational autoencoder, for generation"
    for name in _torchvision_names():
        stages = len(default_layers(name))
        yield name, f"torchvision classifier, {stages} stages" if stages else "torchvision classifier; needs --layers"
    yield "timm/NAME", "any classifier of timm (`icpctl list models timm/`); needs icpctl[timm]"
    yield "package.module:factory", "your own function of the number of classes, which returns a torch.nn.Module"


@cache
def module_paths(name: str, stem: str = "imagenet", image_size: int | None = None) -> tuple[str, ...]:
    """The paths of all modules of a model: what --layers can name.

    Raises:
        UserError: as `build`.
    """
    return _outline(name, stem, image_size)[0]


@cache
def _outline(name: str, stem: str, image_size: int | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The paths of all modules of a model, and of its stages."""
    with torch.random.fork_rng(devices=[]):
        model = build(name, 10, stem, image_size)
    if own.is_own(name):
        stages = own.stages(model)
    elif name.startswith(timm.PREFIX):
        stages = timm.stages(model)
    else:
        stages = default_layers(name, image_size)
    return tuple(path for path, _ in model.named_modules() if path), stages


@cache
def _torchvision_names() -> list[str]:
    import torchvision

    return torchvision.models.list_models(module=torchvision.models)  # type: ignore[no-any-return]
