"""DDGSD against its definition, and the two views of a run."""

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
    trainer,
)
from torch import Tensor

import icpctl
from icpctl.config import RunConfig
from icpctl.methods.base import Batch, Companion


def pooled(feature: Tensor) -> list[list[Tensor]]:
    """The mean over the pixels of each channel of each image."""
    return [[sum(channel.flatten(), torch.zeros(())) / channel.numel() for channel in image] for image in feature]


def discrepancy(a: Tensor, b: Tensor) -> Tensor:
    """‖mean f_a − mean f_b‖² of features (B, C, H, W)."""
    total = torch.zeros((), dtype=torch.float64)
    first, second = pooled(a), pooled(b)
    for c in range(a.shape[1]):
        means = [sum((image[c] for image in half), torch.zeros(())) / len(half) for half in (first, second)]
        total = total + (means[0] - means[1]) ** 2
    return total


@pytest.mark.parametrize(
    ("weight", "temperature", "mmd"), [(1.0, 3.0, 5e-4), (0.5, 1.0, 0.0), (2.0, 4.5, 3.0), (0.0, 3.0, 1.0)]
)
def test_a_step_equals_its_definition(weight: float, temperature: float, mmd: float) -> None:
    """Each view is a target for the other, of which neither gets a gradient as the target."""

    def naive(other: Any, given: Batch) -> Tensor:
        assert given.companion is not None
        _, features, logits = other.model.features(torch.cat([given.x, given.companion.x]))
        a, b = logits[:6], logits[6:]
        both = (cross_entropy(a, given.y) + cross_entropy(b, given.companion.y)) / 2
        mutual = divergence(a, b, temperature) + divergence(b, a, temperature)
        return both + weight * temperature**2 * mutual + mmd * discrepancy(features[:6], features[6:])

    found = method("ddgsd", network(), ddgsd_weight=weight, ddgsd_temperature=temperature, ddgsd_mmd=mmd)
    given = batch()
    log = assert_as_defined(found, given, naive)
    assert log["task_loss"] == pytest.approx(cross_entropy(log["output"], given.y).item())
    assert float(log["discrepancy"]) > 1e-6


def test_the_two_views_are_worth_the_same() -> None:
    """Exchanged, they give the same loss; a view that is twice the same, that of plain training."""
    found, given = method("ddgsd", network(), ddgsd_mmd=2.0), batch()
    assert given.companion is not None
    exchanged = replace(given, x=given.companion.x, companion=Companion(given.x, given.y))
    one, other = (found.objective(views)[0] for views in (given, exchanged))
    assert_equal(one, other)
    assert_equal(gradients(found, one), gradients(found, other))

    plain = copy.deepcopy(found.model)
    twice, _ = found.objective(replace(given, companion=Companion(given.x, given.y)))
    assert_equal(twice, cross_entropy(plain(given.x), given.y))
    assert_equal(gradients(found.model, twice), gradients(plain, cross_entropy(plain(given.x), given.y)))


def test_the_last_stage_is_the_one_whose_features_are_compared() -> None:
    assert method("ddgsd", network()).taps == ("stage2",)
    found = method("ddgsd", network(), layers=("stage2", "stage1"), ddgsd_weight=0.0, ddgsd_mmd=1.0)
    given = batch()
    assert given.companion is not None
    first, _, _ = copy.deepcopy(found.model).features(torch.cat([given.x, given.companion.x]))  # type: ignore[operator]
    assert_equal(found.objective(given)[1]["discrepancy"], discrepancy(first[:6], first[6:]).detach())


def test_a_run_compares_two_views_of_the_same_images() -> None:
    run = trainer("ddgsd")
    for images in run.epoch_batches(0):
        assert images.companions is not None
        assert torch.equal(images.index, images.companions.index)
        assert torch.equal(images.labels, images.companions.labels)
        assert not torch.equal(images.pixels, images.companions.pixels)
    with pytest.raises(icpctl.UserError, match="compares two views of an image, but --augmentation is none"):
        RunConfig(method="ddgsd", augmentation="none")
