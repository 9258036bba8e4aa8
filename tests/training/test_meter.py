"""The meter: means over the steps that have a figure, the first loss that is not finite, and where it goes on."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from icpctl.training.meter import Figures, Meter

NUMBERS = st.floats(-100, 100, width=32)


def figures(loss: float, **log: float) -> Figures:
    values: dict[str, Tensor] = {name: torch.tensor(value) for name, value in log.items()}
    return Figures.of(torch.tensor(loss), {"record": torch.ones(2), **values})


@given(st.lists(st.tuples(NUMBERS, st.none() | NUMBERS), min_size=1, max_size=20))
def test_a_mean_is_over_the_steps_that_have_the_figure(steps: list[tuple[float, float | None]]) -> None:
    meter = Meter()
    for task_loss, after in steps:
        meter.add(figures(task_loss, task_loss=task_loss, **({} if after is None else {"loss_after": after})))
    wanted = {"task_loss": [each for each, _ in steps], "loss_after": [each for _, each in steps if each is not None]}
    means = meter.means()
    assert means.keys() == {name for name, values in wanted.items() if values}
    for name, mean in means.items():
        assert mean == pytest.approx(math.fsum(wanted[name]) / len(wanted[name]), rel=1e-5, abs=1e-4)


def test_it_goes_on_from_its_state_to_the_bit() -> None:
    steps = [figures(1 / (i + 3), task_loss=1 / (i + 3), **({"after": i / 7} if i % 3 else {})) for i in range(12)]
    whole, first, second = Meter(), Meter(), Meter()
    for step in steps:
        whole.add(step)
    for step in steps[:5]:
        first.add(step)
    second.restore(first.state(), lambda record: record)
    for step in steps[5:]:
        second.add(step)
    assert second.means() == whole.means()
    assert len(second.records) == 12
    assert int(second.first_bad()) == -1
    second.add(figures(math.nan, task_loss=1.0))
    second.add(figures(math.inf, task_loss=1.0))
    assert int(second.first_bad()) == 12  # counted from the start of the epoch


def test_it_goes_on_from_a_state_of_version_0_1() -> None:
    meter = Meter()
    meter.restore(
        {
            "sums": {"task_loss": torch.tensor(3.0), "delta_l2": torch.tensor(8.0)},
            "counts": {"task_loss": 2, "delta_l2": 2},
            "outputs": [torch.ones(2)] * 2,
            "first_bad": torch.tensor(-1),
        },
        lambda record: record,
    )
    meter.add(figures(1.0, task_loss=6.0, delta_l2=1.0))
    assert meter.means() == {"task_loss": 3.0, "delta_l2": 3.0}


def test_what_is_not_finite_in_the_part_of_one_process_is_not_finite_in_the_whole() -> None:
    meter = Meter()
    for loss in (1.0, 2.0, 3.0):
        meter.add(figures(loss, task_loss=loss))

    def gather(tensor: Tensor) -> Tensor:
        """Of another process, whose losses are 1 larger, but for the second one."""
        other = tensor + 1
        if tensor.shape == (3,):
            other[1] = math.nan
        return torch.stack([tensor, other])

    whole = meter.whole(gather)
    assert int(whole.first_bad()) == 1
    assert whole.means() == {"task_loss": pytest.approx((6 + 7) / 2 / 3)}
    assert [record.tolist() for record in whole.records] == [[1.0, 1.0, 2.0, 2.0]] * 3
