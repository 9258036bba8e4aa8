"""Two views against their definition, and against ICP's distillation of which they are the control."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from small_methods import (
    EPOCHS,
    STAGES,
    SmallNet,
    assert_as_defined,
    assert_equal,
    batch,
    cross_entropy,
    divergence,
    gradients,
    method,
    network,
    steps,
    trainer,
)
from torch import Tensor, nn

import icpctl
from icpctl.config import RunConfig
from icpctl.methods.base import Batch, Companion
from icpctl.methods.two_views import TwoViews


def at_work(model: nn.Module, **settings: Any) -> TwoViews:
    found = method("two-views", model, **({"warmup_epochs": 1} | settings))
    assert isinstance(found, TwoViews)
    return found


class Noisy(SmallNet):
    """Dropout between the stages."""

    def __init__(self) -> None:
        super().__init__()
        self.stage2.insert(0, nn.Dropout(0.4))


class Scaled(SmallNet):
    """A layer of its own whose buffer moves in train mode before it is used."""

    def __init__(self) -> None:
        super().__init__()
        self.stage1.append(Scale())


class Scale(nn.Module):
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                self.scale.lerp_(x.detach().square().mean().sqrt(), 0.1)
        return x / self.scale


def noisy() -> Noisy:
    torch.manual_seed(0)
    return Noisy().double()


def mean_square(one: Tensor, other: Tensor) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for a, b in zip(one.flatten(), other.flatten(), strict=True):
        total = total + (a - b) ** 2
    return total / one.numel()


@pytest.mark.parametrize("epoch", [1, 2, 3])
@pytest.mark.parametrize(("kind", "second"), [("cosine", math.cos(math.pi / 4)), ("uniform", 1.0)])
def test_a_step_equals_its_definition(epoch: int, kind: str, second: float) -> None:
    weight = math.cos(math.pi / 2 * (epoch - 1) / (EPOCHS - 1))

    def naive(other: Any, given: Batch) -> Tensor:
        assert given.companion is not None
        first, last, logits = other.model.features(given.x)
        targets = [feature.detach() for feature in other.model.features(given.companion.x)[:2]]
        distance = mean_square(first, targets[0]) + second * mean_square(last, targets[1])
        return weight * cross_entropy(logits, given.y) + (1 - weight) * distance

    found = at_work(network(), layer_weights=kind)
    given = batch(epoch=epoch)
    log = assert_as_defined(found, replace(given, weight=found.task_weight(epoch)), naive)
    assert found.task_weight(epoch) == pytest.approx(weight)
    assert float(log["feature_loss"]) > 0.1


@pytest.mark.parametrize("statistics", [True, False])
@pytest.mark.parametrize("kind", ["cosine", "cosine-inverse"])
@pytest.mark.parametrize("make", [network, noisy])
def test_of_the_perturbed_input_it_is_the_distillation(make: Any, kind: str, statistics: bool) -> None:
    """With x_T in the place of the second view: loss, gradients, statistics, and where the random numbers go on."""
    given, theirs = batch(epoch=2), make()
    distiller = icpctl.SelfDistiller(
        theirs, STAGES, "sgd", 2, 1.0, weights=kind, teacher_statistics=statistics, pass_order="student-first"
    )
    torch.manual_seed(3)
    expected, log = distiller(given.x, given.y, 0.6, given.criterion)
    state = torch.get_rng_state()

    found = at_work(make(), layer_weights=kind, teacher_statistics=statistics)
    torch.manual_seed(3)
    loss, own = found.objective(replace(given, weight=0.6, companion=Companion(log["x_icp"], given.y)))
    assert torch.equal(torch.get_rng_state(), state)
    assert_equal(loss, expected)
    assert_equal(gradients(found.model, loss), gradients(theirs, expected))
    assert_equal(dict(found.model.named_buffers()), dict(theirs.named_buffers()))
    assert_equal(own, {name: log[name] for name in ("output", "task_loss", "feature_loss")})
    assert float(own["feature_loss"]) > 1e-12


def test_both_passes_draw_the_same_random_numbers() -> None:
    """A view that is the image itself differs in nothing, its dropout included; the masks of the next step are others."""
    found, given = at_work(noisy()), batch(epoch=3)
    masks: list[Tensor] = []
    found.model.get_submodule("stage2.0").register_forward_hook(lambda *call: masks.append(call[2] == 0))
    same = replace(given, weight=0.5, companion=Companion(given.x, given.y))
    _, log = found.objective(same)
    assert float(log["feature_loss"]) == 0
    found.objective(same)
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


def test_the_second_view_gets_no_gradient() -> None:
    found, given = at_work(network()), batch(epoch=3)
    assert given.companion is not None
    x = given.companion.x.requires_grad_()
    loss, _ = found.objective(replace(given, weight=0.0))
    assert not any(gradient is not None for gradient in torch.autograd.grad(loss, x, allow_unused=True))


def test_the_warm_up_is_plain_training_in_one_pass() -> None:
    def naive(other: Any, given: Batch) -> Tensor:
        return cross_entropy(other.model(given.x), given.y)

    found = at_work(network(), warmup_epochs=2)
    assert [found.active(epoch) for epoch in range(EPOCHS)] == [False, False, True, True]
    log = assert_as_defined(found, batch(epoch=1), naive)
    assert "feature_loss" not in log
    run, plain = trainer("two-views", warmup_epochs=1), trainer("plain")
    for one, other in zip(steps(run, [0]), steps(plain, [0]), strict=True):
        assert torch.equal(one[3], other[3])
    for name, value in plain.model.state_dict().items():
        assert torch.equal(run.model.state_dict()[name], value), name
    steps(run, [1])
    assert int(run.model.state_dict()["stage1.1.num_batches_tracked"]) == 3 * run.batches


@pytest.mark.parametrize("name", ["two-views", "cs-kd"])
def test_a_model_may_move_buffers_of_its_own_in_both_passes(name: str) -> None:
    """The student's gradients are those at the buffers of its own pass."""
    torch.manual_seed(0)
    model = Scaled().double()
    student, given = copy.deepcopy(model), replace(batch(epoch=3), weight=0.5)
    assert given.companion is not None
    first, last, logits = student.features(given.x)
    teacher = copy.deepcopy(student)
    with torch.no_grad():
        targets = teacher.features(given.companion.x)
    expected = cross_entropy(logits, given.y)
    if name == "two-views":
        distance = mean_square(first, targets[0]) + math.cos(math.pi / 4) * mean_square(last, targets[1])
        expected = 0.5 * expected + 0.5 * distance
    else:
        expected = expected + 16 * divergence(targets[2], logits, 4)
    found = method(name, model, warmup_epochs=0)
    loss, _ = found.objective(given)
    assert_equal(loss, expected)
    assert_equal(gradients(model, loss), gradients(student, expected))
    assert_equal(dict(model.named_buffers()), dict(teacher.named_buffers()))


def test_the_two_views_of_a_run_are_of_the_same_images() -> None:
    run = trainer("two-views")
    for given in run.epoch_batches(3):
        assert given.companions is not None
        assert torch.equal(given.index, given.companions.index)
        assert not torch.equal(given.pixels, given.companions.pixels)
    with pytest.raises(icpctl.UserError, match="compares two views of an image, but --augmentation is none"):
        RunConfig(method="two-views", augmentation="none")
