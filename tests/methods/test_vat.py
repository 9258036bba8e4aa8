"""VAT against its definition: the perturbation, its length and its direction, and what it leaves alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from small_methods import (
    SIZE,
    assert_as_defined,
    assert_equal,
    batch,
    cross_entropy,
    divergence,
    images,
    method,
    network,
    steps,
    trainer,
)
from torch import Tensor, nn

from icpctl.methods.base import Batch
from icpctl.methods.vat import VAT, _unit


def at_work(seed: int = 0, **settings: Any) -> VAT:
    found = method("vat", network(seed), **settings)
    assert isinstance(found, VAT)
    return found


def length(image: Tensor) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for value in image.flatten():
        total = total + value**2
    return total.sqrt()


def without_statistics(model: Any, x: Tensor) -> Tensor:
    """A train-mode pass, after which the statistics are as before."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 0.0
    logits: Tensor = model(x)
    for norm in norms:
        norm.momentum = 0.1
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked -= 1
    return logits


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("weight", "xi", "epsilon"), [(1.0, 0.1, 1.0), (0.5, 10.0, 0.2), (2.0, 0.02, 4.0)])
def test_a_step_equals_its_definition(seed: int, weight: float, xi: float, epsilon: float) -> None:
    def naive(other: Any, given: Batch) -> Tensor:
        logits = other.model(given.x)
        direction = torch.randn_like(given.x)
        start = torch.stack([xi * d / length(d) for d in direction]).requires_grad_()
        (gradient,) = torch.autograd.grad(divergence(logits, without_statistics(other.model, given.x + start)), start)
        r = torch.stack([epsilon * g / length(g) for g in gradient])
        distance = divergence(logits, without_statistics(other.model, given.x + r))
        return cross_entropy(logits, given.y) + weight * distance

    torch.manual_seed(seed)
    found = at_work(seed, vat_weight=weight, vat_xi=xi, vat_epsilon=epsilon)
    log = assert_as_defined(found, batch(seed), naive)
    assert float(log["divergence"]) > 0


@pytest.mark.parametrize("epsilon", [0.3, 2.0])
def test_the_perturbation_has_its_length_for_each_image(epsilon: float) -> None:
    found, (x, _) = at_work(vat_epsilon=epsilon), images(0)
    x = x * torch.tensor([1e-3, 0.1, 1.0, 2.0, 10.0, 100.0]).view(-1, 1, 1, 1)  # gradients of all sizes
    torch.manual_seed(0)
    r = found.perturbation(x, found.model(x))
    assert_equal(r.flatten(1).norm(dim=1), torch.full((SIZE,), epsilon, dtype=torch.float64))
    assert not r.requires_grad


def test_its_direction_is_that_of_a_step_of_the_power_iteration() -> None:
    """H·d for the Hessian H of the divergence at r = 0, where its gradient is zero."""
    x, _ = images(3, 2)
    found = at_work(vat_xi=1e-4, vat_epsilon=1.0)
    logits = found.model(x)

    def around(r: Tensor) -> Tensor:
        return divergence(logits, without_statistics(found.model, x + r))

    hessian: Any = torch.autograd.functional.hessian(around, torch.zeros_like(x))
    torch.manual_seed(5)
    r = found.perturbation(x, logits)
    torch.manual_seed(5)
    d = torch.randn_like(x)
    d = torch.stack([one / length(one) for one in d])
    step = (hessian.reshape(x.numel(), x.numel()) @ d.flatten()).view_as(x)
    expected = torch.stack([one / length(one) for one in step])
    torch.testing.assert_close(r, expected, rtol=1e-3, atol=1e-3)
    # It changes the predictions more than the random direction of the same length.
    assert float(around(r).detach()) > 1.5 * float(around(d).detach())


def test_no_gradient_goes_into_the_prediction_that_is_kept() -> None:
    """Nor through the perturbation: with r as it is, the divergence is one of the second pass alone."""
    found, given = at_work(vat_weight=1.0), batch()
    torch.manual_seed(2)
    loss, _ = found.objective(given)
    own: Any = found.model
    parts = torch.autograd.grad(loss, own.fc.weight)

    model: Any = network()
    logits = model(given.x)
    torch.manual_seed(2)
    r = found.perturbation(given.x, logits)
    plain = torch.autograd.grad(cross_entropy(logits, given.y), model.fc.weight)
    again = divergence(logits.detach(), without_statistics(model, given.x + r))
    expected = plain[0] + torch.autograd.grad(again, model.fc.weight)[0]
    assert_equal(parts[0], expected)


def test_the_first_pass_alone_moves_the_statistics() -> None:
    found, given = at_work(), batch()
    plain = copy.deepcopy(found.model)
    plain(given.x)
    found.objective(given)
    assert_equal(dict(found.model.named_buffers()), dict(plain.named_buffers()), 0.0)
    run = trainer("vat")
    steps(run, [0])
    assert int(run.model.state_dict()["stage1.1.num_batches_tracked"]) == run.batches


def test_the_passes_are_in_train_mode() -> None:
    found, given = at_work(), batch()
    modes: list[bool] = []
    found.model.get_submodule("stage1").register_forward_hook(lambda module, *_: modes.append(module.training))
    found.objective(given)
    assert modes == [True] * 3


def test_a_direction_without_a_gradient_stays_zero_and_the_smallest_is_no_zero() -> None:
    """The gradient of a sure prediction is so small that its square is none in float32."""
    gradients = torch.ones(6, 3, 4, 4) * torch.tensor([0.0, 1e-42, 1e-30, 1e-22, 1.0, 1e30]).view(-1, 1, 1, 1)
    lengths = _unit(gradients).flatten(1).norm(dim=1)
    assert float(lengths[0]) == 0
    torch.testing.assert_close(lengths[1:], torch.ones(5))
