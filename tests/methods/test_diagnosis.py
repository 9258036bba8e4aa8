"""What is said of a perturbation that does nothing, or that rounding drowns: in words that help."""

from __future__ import annotations

import math
from typing import Any

import pytest

from icpctl.config import RunConfig
from icpctl.methods.base import Fault
from icpctl.methods.icp.diagnosis import diagnose
from icpctl.training.display import speed

FINE = {
    "icp_loss_before": 2.0,
    "icp_loss_after": 1.8,
    "delta_linf": 0.01,
    "feature_shift_1": 0.02,
    "feature_shift_2": 0.03,
}
NOTHING = FINE | {"icp_loss_after": 2.0, "feature_shift_1": 1e-5, "feature_shift_2": 1e-5, "delta_linf": 2e-3}
NOISY = FINE | {"feature_shift_error_1": 0.3, "feature_shift_error_2": 0.01}


def faults(means: dict[str, float], settled: bool = True, **settings: Any) -> list[Fault]:
    return diagnose(RunConfig(**{"optimizer": "adam", **settings}), means, settled)


def test_a_perturbation_that_works_has_no_fault() -> None:
    assert not faults(FINE)
    assert not faults(FINE | {"feature_shift_error_1": 0.05})
    assert not faults({"task_loss": 1.0}, optimizer="none")  # a baseline, or the warm-up


def test_one_that_does_nothing_is_named_with_what_raises_it() -> None:
    (fault,) = faults(NOTHING)
    assert fault.kind == "no-op"
    assert fault.message.endswith("Raise --icp-lr or --steps.")  # a sum in the place of the mean: Adam divides it out
    assert "--teacher-statistics" in fault.note
    (fault,) = faults(NOTHING, optimizer="sgd")
    assert "Raise --icp-lr or --steps, or use --icp-reduction sum." in fault.message
    (fault,) = faults(NOTHING, optimizer="sgd", icp_reduction="sum")
    assert "sum" not in fault.message


def test_a_dead_network_is_not_told_to_raise_the_step_size() -> None:
    dead = NOTHING | {"delta_linf": 0.0, "feature_shift_1": math.nan, "feature_shift_2": 0.0}
    (fault,) = faults(dead, icp_lr=2e-3)
    assert "has vanished" in fault.message
    assert "Raise" not in fault.message
    # The steps of SGD are as small as its gradient: there a larger step size helps.
    (fault,) = faults(dead, optimizer="sgd")
    assert "Raise --icp-lr" in fault.message


@pytest.mark.parametrize(("error", "said"), [(0.3, "rounding makes up 30% of it"), (1e9, "more than the shift itself")])
def test_rounding_that_drowns_the_shift_is_said_in_a_number_that_can_be(error: float, said: str) -> None:
    (fault,) = faults(NOISY | {"feature_shift_error_1": error, "feature_shift_error_2": math.nan})
    assert fault.kind == "noise"
    assert said in fault.message
    assert "--precision" not in fault.message
    (fault,) = faults(NOISY, precision="bf16")
    assert "noise floor of bf16" in fault.message
    assert "use --precision float32" in fault.message


@pytest.mark.parametrize("means", [NOTHING, NOISY])
def test_in_the_first_epoch_the_statistics_have_not_settled(means: dict[str, float]) -> None:
    (fault,) = faults(means, settled=False)
    assert fault.kind == "unsettled"
    assert "--warmup-epochs" in fault.message
    assert not fault.note  # it passes with the epoch


def test_a_slow_run_has_a_speed() -> None:
    assert [speed(value) for value in (1234.5, 10.4, 3.14, 0.0123)] == ["1,234", "10", "3.1", "0.012"]
