"""CS-KD against its definition, and the images that it compares."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from small_methods import (
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
from torch import Tensor

from icpctl.methods.base import Batch, Companion


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("weight", "temperature"), [(1.0, 4.0), (0.5, 1.0), (3.0, 2.5)])
def test_a_step_equals_its_definition(seed: int, weight: float, temperature: float) -> None:
    def naive(other: Any, given: Batch) -> Tensor:
        assert given.companion is not None
        logits = other.model(given.x)
        teacher = other.model(given.companion.x).detach()  # in train mode, after the student
        return cross_entropy(logits, given.y) + weight * temperature**2 * divergence(teacher, logits, temperature)

    at_work = method("cs-kd", network(seed), cs_kd_weight=weight, cs_kd_temperature=temperature)
    log = assert_as_defined(at_work, batch(seed), naive)
    assert float(log["divergence"]) > 1e-3


def test_no_gradient_goes_into_the_other_image() -> None:
    at_work, given = method("cs-kd", network()), batch()
    assert given.companion is not None
    x = given.companion.x.requires_grad_()
    graphs: list[bool] = []
    at_work.model.register_forward_hook(lambda module, inputs, output: graphs.append(output.requires_grad))
    loss, _ = at_work.objective(given)
    assert graphs == [True, False]
    assert loss.requires_grad
    assert not any(gradient is not None for gradient in torch.autograd.grad(loss, x, allow_unused=True))


def test_an_image_that_is_its_own_companion_adds_nothing() -> None:
    at_work, given = method("cs-kd", network()), batch()
    plain = copy.deepcopy(at_work.model)
    loss, log = at_work.objective(replace(given, companion=Companion(given.x, given.y)))
    expected = cross_entropy(plain(given.x), given.y)
    assert_equal(loss, expected)
    assert_equal(gradients(at_work.model, loss), gradients(plain, expected))
    assert float(log["divergence"]) == pytest.approx(0, abs=1e-12)


def test_every_companion_is_of_the_class_of_its_image() -> None:
    """Through shuffled batches of a run: a batch halved by its order alone would compare images across classes."""
    run = trainer("cs-kd", count=30, classes=7)
    seen: dict[int, set[int]] = {}
    own = total = 0
    for epoch in range(4):
        for images in run.epoch_batches(epoch):
            assert images.companions is not None
            assert torch.equal(images.labels, images.companions.labels)
            assert torch.equal(images.companions.labels, run.train_set.labels[images.companions.index])
            for one, other in zip(images.index.tolist(), images.companions.index.tolist(), strict=True):
                seen.setdefault(one, set()).add(other)
                own, total = own + (one == other), total + 1
    assert 0 < own < total / 2  # an image can be its own
    assert max(map(len, seen.values())) >= 3  # another one in another epoch


def test_the_pixels_are_those_of_the_companion() -> None:
    """Without augmentation, so that they can be told."""
    run = trainer("cs-kd", augmentation="none")
    for images in run.epoch_batches(1):
        assert images.companions is not None
        assert torch.equal(images.companions.pixels, run.train_set.images[images.companions.index])
        assert torch.equal(images.pixels, run.train_set.images[images.index])


def test_both_passes_of_a_run_move_the_statistics() -> None:
    run = trainer("cs-kd")
    steps(run, [0])
    assert int(run.model.state_dict()["stage1.1.num_batches_tracked"]) == 2 * run.batches
