"""DLB against its definition, and its memory of the batch before."""

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
    logged,
    method,
    network,
    softmax,
    steps,
    trainer,
)
from torch import Tensor

from icpctl.methods.base import Batch
from icpctl.methods.dlb import DLB


def at_work(seed: int = 0, **settings: Any) -> DLB:
    found = method("dlb", network(seed), **settings)
    assert isinstance(found, DLB)
    return found


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("weight", "temperature"), [(1.0, 3.0), (0.5, 1.0), (2.0, 4.5)])
def test_a_step_equals_its_definition(seed: int, weight: float, temperature: float) -> None:
    """Both batches in one pass; the cross-entropy is the mean over both."""
    found = at_work(seed, dlb_weight=weight, dlb_temperature=temperature)
    before = batch(seed + 50)
    _, log = found.objective(before)
    old = log["output"].clone()
    found.after(before, log)

    def naive(other: Any, given: Batch) -> Tensor:
        assert given.companion is not None
        logits = other.model(torch.cat([given.x, given.companion.x]))
        now, again = logits[: len(given.x)], logits[len(given.x) :]
        both = (cross_entropy(now, given.y) + cross_entropy(again, given.companion.y)) / 2
        return both + weight * temperature**2 * divergence(old, again, temperature)

    given = batch(seed, other_labels=True)
    log = assert_as_defined(found, given, naive)
    assert float(log["divergence"]) > 1e-3
    assert log["task_loss"] == pytest.approx(cross_entropy(log["output"], given.y).item())  # of the fresh images
    assert len(log["output"]) == len(given.y)
    found.after(given, log)
    assert torch.equal(found.state()["previous"], log["output"])


def test_the_first_step_is_plain() -> None:
    found = at_work()
    assert found.state() == {}

    def naive(other: Any, given: Batch) -> Tensor:
        return cross_entropy(other.model(given.x), given.y)

    log = assert_as_defined(found, given := batch(other_labels=True), naive)
    assert "divergence" not in log
    found.after(given, log)
    assert "logits" not in log
    assert torch.equal(found.state()["previous"], log["output"])


def test_the_earlier_prediction_has_no_graph() -> None:
    found = at_work()
    for seed in range(3):
        loss, log = found.objective(given := batch(seed))
        found.after(given, log)
        assert found.previous is not None
        assert not found.previous.requires_grad
        loss.backward()  # the graph of the step before is gone


def test_a_run_replays_each_batch_in_the_next_step_across_epochs_too() -> None:
    run = trainer("dlb", count=22)
    last: Any = None
    for epoch in range(3):
        for step, given in enumerate(run.epoch_batches(epoch)):
            model = copy.deepcopy(run.model)
            loss, log = logged(run.step(epoch, step, given))
            x = run.network.normalise(given.pixels)
            assert given.companions is not None
            if last is None:
                expected = cross_entropy(model(x), given.labels)
            else:
                images, record = last
                assert torch.equal(given.companions.index, images.index)
                assert torch.equal(given.companions.labels, images.labels)
                assert not torch.equal(given.companions.pixels, images.pixels)  # a second view
                logits = model(torch.cat([x, run.network.normalise(given.companions.pixels)]))
                labels = torch.cat([given.labels, images.labels])
                expected = cross_entropy(logits, labels) + 9 * divergence(record, logits[4:], 3)
            assert loss.item() == pytest.approx(expected.item(), rel=1e-4), (epoch, step)
            assert ("divergence" in log) == (last is not None)
            last = given, log["record"]
    assert len(softmax(last[1])) == 4


def test_it_goes_on_with_the_predictions_of_a_checkpoint() -> None:
    run, other = trainer("dlb"), trainer("dlb")
    assert run.state()["icp_state"] == {}
    other.restore(copy.deepcopy(run.state()))
    steps(run, [0])
    other.restore(copy.deepcopy(run.state()))
    for one, another in zip(steps(run, [1]), steps(other, [1]), strict=True):
        assert torch.equal(one[3], another[3])


def test_predictions_of_another_batch_are_refused() -> None:
    with pytest.raises(ValueError, match="predictions of 2 images in the place of 6"):
        at_work().restore({"previous": torch.zeros(2, 5)}, torch.Size((6, 3, 6, 6)))


def test_each_process_takes_its_part_of_the_earlier_predictions() -> None:
    found, whole = at_work(), torch.randn(12, 5, dtype=torch.float64)
    found.previous = whole
    given = replace(batch(), part=lambda tensor: tensor[6:])
    _, log = found.objective(given)
    model = network()
    assert given.companion is not None
    again = model(torch.cat([given.x, given.companion.x]))[6:]
    assert_equal(log["divergence"], 9 * divergence(whole[6:], again, 3).detach())
