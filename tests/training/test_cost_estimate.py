"""The estimate of the time that is left."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from small_runs import small

import icpctl
from icpctl.tasks.classification import Classification
from icpctl.training.display import CostEstimate


def test_the_time_left_counts_plain_and_icp_epochs_apart() -> None:
    estimate = CostEstimate(small(epochs=10, warmup_epochs=4, steps=5), batches=100)
    estimate.measured(False, 1.0)
    assert estimate.seconds_left(0, 50) == pytest.approx(350 + 600 * 14 / 3)
    estimate.measured(True, 4.0)
    assert estimate.seconds_left(4, 0) == pytest.approx(2400)


def test_the_time_left_counts_what_is_done_between_epochs() -> None:
    estimate = CostEstimate(small(epochs=10, warmup_epochs=4, steps=5), batches=100, evaluated=60)
    estimate.measured(False, 1.0)
    estimate.measured(True, 4.0)
    assert estimate.seconds_left(4, 0) == pytest.approx(
        2400 + 6 * 60 / 3
    )  # a forward pass of each, until it is measured
    estimate.measured_between(50.0)
    assert estimate.seconds_left(9, 90) == pytest.approx(40 + 50)


def test_a_run_measures_what_it_does_between_epochs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[float] = []
    evaluate = Classification.evaluate

    def slow(*given: Any) -> dict[str, float]:
        time.sleep(0.05)
        return evaluate(*given)

    monkeypatch.setattr(Classification, "evaluate", slow)
    monkeypatch.setattr(CostEstimate, "measured_between", lambda _, seconds: measured.append(seconds))
    icpctl.train(small(optimizer="none", epochs=2, train_size=60, val_fraction=0.2), tmp_path)
    assert len(measured) == 2
    assert min(measured) >= 3 * 0.05  # fit, val, test
