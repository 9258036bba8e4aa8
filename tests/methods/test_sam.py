"""SAM against two passes written by hand."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from doubled import float64
from small_methods import assert_equal, batch, cross_entropy, logged, method, network, steps, trainer
from torch import Tensor

from icpctl.methods.base import Loss

LR, MOMENTUM = 0.05, 0.9


def two_passes(model: Any, x: Tensor, y: Tensor, rho: float) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """The loss at the weights, its gradient and the gradient at the weights a step uphill; statistics are those of the first pass."""
    parameters = list(model.parameters())
    loss = cross_entropy(model(x), y)
    first = torch.autograd.grad(loss, parameters)
    square = 0.0
    for gradient in first:
        for g in gradient.flatten().tolist():
            square += g * g
    uphill = copy.deepcopy(model)
    with torch.no_grad():
        for parameter, gradient in zip(uphill.parameters(), first, strict=True):
            parameter += rho * gradient / square**0.5
    second = torch.autograd.grad(cross_entropy(uphill(x), y), list(uphill.parameters()))
    return loss.detach(), list(first), list(second)


@pytest.mark.parametrize(("rho", "clip"), [(0.1, 0.0), (0.5, 0.0), (0.1, 0.05), (2.0, 0.1), (0.1, 100.0)])
def test_a_step_equals_the_one_by_hand(rho: float, clip: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss, weights and statistics of two steps; it is the second gradient that is clipped."""
    float64(monkeypatch.setattr)
    run = trainer("sam", lr=LR, sam_rho=rho, clip_grad_norm=clip, weight_decay=0.0, lr_schedule="constant")
    model = copy.deepcopy(run.model)
    momenta = [torch.zeros_like(p) for p in model.parameters()]
    for (step, given), _ in zip(enumerate(run.epoch_batches(0)), range(2), strict=False):
        x = run.network.normalise(given.pixels)
        loss, log = logged(run.step(0, step, given))
        expected, first, second = two_passes(model, x, given.labels, rho)
        assert_equal(loss, expected)
        assert_equal(log["task_loss"], expected)
        norms = [torch.cat([g.flatten() for g in found]).norm() for found in (first, second)]
        assert_equal(log["gradient_norm"], norms[0])
        scale = min(1.0, clip / (float(norms[1]) + 1e-6)) if clip else 1.0
        with torch.no_grad():
            for i, (parameter, gradient) in enumerate(zip(model.parameters(), second, strict=True)):
                clipped = gradient * scale
                momenta[i] = MOMENTUM * momenta[i] + clipped
                parameter.sub_(LR * (clipped + MOMENTUM * momenta[i]))
        assert_equal(dict(run.model.state_dict()), dict(model.state_dict()))


def test_the_weights_come_back_to_the_bit_and_the_statistics_move_once() -> None:
    """Between the two passes and after them, in float32, where taking a step back would leave rounding."""
    model = network().float()
    found, given = method("sam", model, sam_rho=0.3).float(), batch()
    x = given.x.float()
    at_first = copy.deepcopy(model.state_dict())
    seen: list[dict[str, Tensor]] = []

    def compute() -> Loss:
        seen.append({name: parameter.detach().clone() for name, parameter in model.named_parameters()})
        found.zero_grad()
        loss = given.criterion(model(x), given.y)
        loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        return loss.detach(), {"task_loss": loss.detach()}

    def apply(log: dict[str, Any]) -> None:
        applied.append(log)
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, at_first[name]), name
        for parameter, gradient in zip(model.parameters(), gradients[1], strict=True):
            assert parameter.grad is not None
            assert torch.equal(parameter.grad, gradient)

    gradients: list[list[Tensor]] = []
    applied: list[dict[str, Any]] = []
    loss, _ = found.update(compute, apply)
    assert (len(seen), len(applied)) == (2, 1)
    assert torch.equal(loss, applied[0]["task_loss"])
    moved = torch.cat([(seen[1][name] - seen[0][name]).flatten() for name in seen[0]])
    assert float(moved.norm()) == pytest.approx(0.3, rel=1e-5)
    along = torch.cat([g.flatten() for g in gradients[0]])
    assert float(moved @ along / along.norm()) == pytest.approx(0.3, rel=1e-5)  # uphill

    plain = network().float()
    plain(x)
    for name, buffer in plain.named_buffers():
        assert torch.equal(model.state_dict()[name], buffer), name
    assert int(model.state_dict()["stage1.1.num_batches_tracked"]) == 2  # one of them before


def test_the_statistics_of_a_run_are_those_of_the_first_passes() -> None:
    run = trainer("sam")
    before = copy.deepcopy(run.model)
    given = next(iter(run.epoch_batches(0)))
    run.step(0, 0, given)
    before.train()(run.network.normalise(given.pixels))
    assert_equal(dict(run.model.named_buffers()), dict(before.named_buffers()))
    steps(run, [1])
    assert int(run.model.state_dict()["stage1.1.num_batches_tracked"]) == 1 + run.batches


def test_what_is_frozen_and_where_the_gradient_is_zero_stays() -> None:
    model = network()
    model.fc.requires_grad_(False)
    found, given = method("sam", model), batch()

    def compute(factor: float) -> Loss:
        found.zero_grad()
        loss = factor * given.criterion(model(given.x), given.y)
        loss.backward()
        return loss.detach(), {}

    before = copy.deepcopy(dict(model.named_parameters()))
    for factor in (1.0, 0.0):
        _, log = found.update(lambda factor=factor: compute(factor), lambda log: None)  # type: ignore[misc]
        assert_equal(dict(model.named_parameters()), before, 0.0)
        assert torch.isfinite(log["gradient_norm"])
    assert model.fc.weight.grad is None
