"""Label smoothing: the loss, and what it leaves alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_methods import (
    CLASSES,
    assert_as_defined,
    assert_equal,
    batch,
    cross_entropy,
    method,
    network,
    steps,
    trainer,
)
from torch import Tensor, nn

from icpctl.config import RunConfig
from icpctl.methods.base import Batch
from icpctl.tasks.classification import Classification


def smoothed(labels: Tensor, epsilon: float) -> list[list[float]]:
    """(1 − ε)·y + ε/K."""
    return [[(1 - epsilon) * (k == label) + epsilon / CLASSES for k in range(CLASSES)] for label in labels.tolist()]


@pytest.mark.parametrize("epsilon", [0.1, 0.3, 0.9])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_step_equals_its_definition(seed: int, epsilon: float) -> None:
    def naive(other: Any, given: Batch) -> Tensor:
        return cross_entropy(other.model(given.x), smoothed(given.y, epsilon))

    at_work = method("label-smoothing", network(seed), label_smoothing=epsilon)
    assert_as_defined(at_work, batch(seed, smoothing=at_work.config.label_smoothing), naive)


def test_it_is_that_of_torch() -> None:
    logits, labels = torch.randn(7, CLASSES, dtype=torch.float64), torch.randint(CLASSES, (7,))
    expected = nn.CrossEntropyLoss(label_smoothing=0.2)(logits, labels)
    assert_equal(Classification(CLASSES, 0.2).loss(logits, labels), expected)
    soft = torch.tensor(smoothed(labels, 0.2), dtype=torch.float64)
    assert_equal(Classification(CLASSES).loss(logits, soft), expected)


def test_the_published_share_is_the_default() -> None:
    assert RunConfig(method="label-smoothing").label_smoothing == 0.1
    assert RunConfig(method="plain").label_smoothing == 0.0
    assert RunConfig(method="label-smoothing").baseline().label_smoothing == 0.0


def test_a_run_trains_on_smoothed_labels_and_is_measured_by_plain_ones() -> None:
    run = trainer("label-smoothing", label_smoothing=0.4)
    plain = trainer("plain")
    (_, _, images, loss, log), *_ = steps(run, [0])
    (_, _, _, plain_loss, plain_log), *_ = steps(plain, [0])
    assert torch.equal(log["record"], plain_log["record"])  # the first step: the same weights
    expected = nn.functional.cross_entropy(log["record"], images.labels, label_smoothing=0.4)
    torch.testing.assert_close(loss, expected)
    assert loss.item() != pytest.approx(plain_loss.item(), rel=1e-5)

    test = run.evaluation_sets["test"]
    logits = torch.cat([output for _, output in run.network.batches(test)])
    measured = run.task.evaluate(run.network, test)
    assert measured["loss"] == pytest.approx(float(nn.functional.cross_entropy(logits, test.labels)), rel=1e-6)
    assert measured["accuracy"] == pytest.approx(float((logits.argmax(1) == test.labels).float().mean()))
    records = torch.cat([log["record"]])
    assert run.task.metrics(records, images.labels) == plain.task.metrics(records, images.labels)
