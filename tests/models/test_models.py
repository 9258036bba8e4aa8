"""Models by name, their sizes, and the stages that are tapped by default."""

from __future__ import annotations

import pytest
import torch
import torchvision

from icpctl import models
from icpctl.config import RunConfig
from icpctl.config.recipes import CIFAR_RESNETS, default_layers
from icpctl.errors import UserError
from icpctl.methods.taps import tap


@pytest.mark.parametrize(
    ("name", "classes", "parameters"),
    [
        ("resnet20", 100, 278_324),
        ("resnet20", 10, 272_474),
        ("resnet56", 10, 855_770),
    ],
)
def test_parameter_counts(name: str, classes: int, parameters: int) -> None:
    assert sum(p.numel() for p in models.build(name, classes).parameters()) == parameters


@pytest.mark.parametrize("name", [*CIFAR_RESNETS, "resnet18", "vgg11_bn", "mobilenet_v3_small", "shufflenet_v2_x0_5"])
@pytest.mark.parametrize("side", [32, 64])
def test_stages_become_smaller_and_outputs_are_logits(name: str, side: int) -> None:
    model = models.build(name, 7).eval()
    with torch.no_grad(), tap(model, default_layers(name)) as features:
        output = model(torch.randn(2, 3, side, side))
    assert output.shape == (2, 7)
    sides = [feature.shape[-1] for feature in features]
    assert sides == sorted(sides, reverse=True)
    assert len(features) >= 3


def test_the_three_stages_have_16_32_and_64_channels() -> None:
    model = models.build("resnet32", 10)
    with torch.no_grad(), tap(model, default_layers("resnet32")) as features:
        model(torch.randn(2, 3, 32, 32))
    assert [tuple(f.shape[1:]) for f in features] == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]


def test_every_classifier_of_torchvision_has_stages_that_exist() -> None:
    seen = set()
    for name in torchvision.models.list_models(module=torchvision.models):
        layers = default_layers(name)
        assert layers, name
        try:
            with torch.device("meta"):  # no memory, so the largest can be built too
                modules = dict(models.build(name, 10).named_modules())
        except NotImplementedError:  # some compute their shape with tensors; one of the small ones will do
            if "400mf" not in name:
                continue
            modules = dict(models.build(name, 10).named_modules())
        assert set(layers) <= modules.keys(), name
        seen.add(name)
    assert {"regnet_y_400mf", "swin_t", "vit_b_16", "maxvit_t", "densenet121", "inception_v3"} <= seen


def test_the_cifar_stem_keeps_the_resolution() -> None:
    model = models.build("resnet18", 10, stem="cifar")
    with torch.no_grad(), tap(model, ["layer1"]) as features:
        model(torch.randn(2, 3, 32, 32))
    assert features[0].shape == (2, 64, 32, 32)
    for name in ("resnet20", "vgg11"):
        with pytest.raises(UserError, match="--stem cifar"):
            models.build(name, 10, stem="cifar")


def test_an_unknown_model_names_the_nearest() -> None:
    with pytest.raises(UserError, match="Did you mean 'resnet20'"):
        models.build("resnet-20", 10)


def test_weights_follow_the_seed() -> None:
    built = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        built.append(models.build("resnet20", 10).state_dict()["layer3.2.conv2.weight"])
    assert torch.equal(built[0], built[1])
    assert not torch.equal(built[0], built[2])


def test_the_default_layers_are_part_of_the_configuration() -> None:
    assert RunConfig(model="resnet50").layers == ("layer1", "layer2", "layer3", "layer4")
