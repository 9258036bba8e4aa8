"""Folding in the library's own models and in the steps of distillation."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from folded import float64, folded, images, trained
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import icpctl
from icpctl import models
from icpctl.models import CifarResNet

FAMILIES = {"resnet20": 32, "vae": 64, "resnet18": 64, "googlenet": 64, "densenet121": 64, "mobilenet_v3_small": 64}
FAMILIES |= {"shufflenet_v2_x0_5": 64, "regnet_y_400mf": 64, "efficientnet_b0": 64, "mnasnet0_5": 64}


LARGE = {"vgg11_bn": 64}
"""More of the same: convolutions with a bias, as in a small model of the tests of folding, and 128 million weights."""


@pytest.mark.parametrize("name", [*FAMILIES, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)])
def test_a_folded_network_is_the_model_in_eval_mode(name: str) -> None:
    torch.manual_seed(0)
    with float64():
        model = trained(models.build(name, 10)).eval()
        network = folded(model)
        with torch.no_grad():
            x = images(side=(FAMILIES | LARGE)[name])
            pairs = zip(tree_leaves(network.now()(x)), tree_leaves(model(x)), strict=True)
            assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-9) for a, b in pairs)
    norms = sum(isinstance(module, _BatchNorm) for module in model.modules())
    assert network.norms == (59 if name == "densenet121" else norms)  # where others come before the convolution


def test_the_last_weights_are_used_in_every_step() -> None:
    torch.manual_seed(0)
    model = trained(CifarResNet(20, 10)).double()
    x, y = images(4, 32), torch.arange(4)
    distiller = icpctl.SelfDistiller(model, ["layer1"], "sgd", 2, 1.0, reduction="sum", fold_batch_norm=True)
    plain = icpctl.SelfDistiller(copy.deepcopy(model), ["layer1"], "sgd", 2, 1.0, reduction="sum")
    for _ in range(3):
        deltas = []
        for each in (distiller, plain):
            loss, log = each(x, y, 0.5)
            loss.backward()
            with torch.no_grad():
                for parameter in each.model.parameters():
                    if parameter.grad is not None:
                        parameter.sub_(0.1 * parameter.grad)
                    parameter.grad = None
            deltas.append(log["x_icp"] - x)
        torch.testing.assert_close(*deltas, rtol=1e-6, atol=1e-9)
    assert distiller.folded is not None
    assert distiller.folded.norms == 21


class Operations(TorchDispatchMode):
    """Counts what is launched; views of a tensor are not."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += not func.is_view
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["resnet20", "vae", "vgg"])
def test_all_batch_norms_are_folded_at_once_and_as_one_by_one(name: str) -> None:
    torch.manual_seed(0)
    vgg = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, affine=False))
    model = trained(vgg if name == "vgg" else models.build(name, 10)).eval()  # a bias, and no scale
    network, x = folded(model), images(side=64).float()
    network.now()(x)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.mul_(1.01)
    with Operations() as counted:
        network.now()
    places = dict(network._folding.weights)
    assert len(places) == (1 if name == "vgg" else network.norms)
    assert counted.number <= len(places) + 8
    one_by_one = folded(model)
    assert torch.equal(tree_leaves(network(x))[0], tree_leaves(one_by_one.now()(x))[0])
    for place, (*_, kernel, shift) in places.items():
        *_, expected_kernel, expected_shift = one_by_one._folding.weights[place]
        assert torch.equal(kernel, expected_kernel)
        assert torch.equal(shift, expected_shift)
        assert network._folding.weights[place][3] is kernel  # it was used


def test_what_a_model_does_not_pass_any_more_is_not_folded_again() -> None:
    model = trained(CifarResNet(20, 10)).eval()
    network = folded(model)
    network.now()(images().float())
    network.now()
    assert len(network._folding.weights) == 21
    network.now()
    assert not network._folding.weights


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-2)])
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "ademamix"])
def test_distillation_with_and_without_folding_is_the_same(
    optimizer: str, dtype: torch.dtype, tolerance: float
) -> None:
    """‖a − b‖ / ‖b‖ of x_T − x and of the gradients; Adam magnifies the rounding of entries whose gradient is tiny."""
    results = []
    for fast in (True, False):
        torch.manual_seed(0)
        model = trained(CifarResNet(20, 10)).to(dtype)
        x, y = torch.randn(8, 3, 32, 32, dtype=dtype), torch.arange(8)
        distiller = icpctl.SelfDistiller(
            model, ["layer1", "layer2", "layer3"], optimizer, steps=3, lr=2e-3, fold_batch_norm=fast
        )
        loss, log = distiller(x, y, 0.5, icp_losses=True)
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        results.append([log["x_icp"] - x, log["icp_loss_before"], log["icp_loss_after"], loss.detach(), gradient])
    for fast_value, plain in zip(*results, strict=True):
        assert (fast_value - plain).norm() <= tolerance * plain.norm()
        assert not torch.equal(fast_value, plain) or plain.dim() == 0
