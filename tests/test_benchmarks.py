"""The benchmarks see what they are about: steps as training takes them, the same random numbers, all of the memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import measure
import pytest
import step
import torch
from torch import Tensor

import icpctl
from icpctl.ablate import estimate
from icpctl.methods.icp import distillation
from icpctl.models import network
from icpctl.training.graphs import CapturedSteps
from icpctl.training.meter import Figures
from icpctl.training.trainer import Trainer

CUDA = torch.device("cuda")


class Replayed:
    """Stands in for `CudaGraphs` on a CPU, and counts the replays."""

    def __init__(self) -> None:
        self.number = 0

    def __call__(self, function: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        return function(), self.replay

    def replay(self) -> None:
        self.number += 1


def test_a_graph_takes_over_when_it_is_said_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("icpctl.training.graphs._largest_difference", lambda found, expected: ("", 0.0))
    capture, computed = Replayed(), []
    model = torch.nn.Linear(1, 1)
    captured = CapturedSteps(model, torch.optim.SGD(model.parameters()), capture, pytest.fail)

    def compute(x: Tensor) -> Figures:
        computed.append(x)
        return Figures.of(x.sum(), {"record": x, "loss": x.sum()})

    for _ in range(CapturedSteps.BEFORE_USE):
        captured("kind", compute, torch.ones(1))
    before = len(computed), capture.number
    captured("kind", compute, torch.ones(1))
    assert (len(computed), capture.number) == (before[0], before[1] + 1)


def test_pieces_on_cuda_are_timed_once_their_graph_is_in_use_and_without_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: list[str] = []
    monkeypatch.setattr(measure, "synchronise", lambda device: done.append("wait"))
    measure.interleaved({"piece": lambda: done.append("piece")}, 2, CUDA)
    before = done.index("wait")
    assert before >= CapturedSteps.BEFORE_USE
    turn = ["wait", *["piece"] * measure.TURN, "wait"]
    assert done[before:] == 2 * turn


def test_the_estimate_times_steps_whose_graph_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "MEASURED_SECONDS", 0.0)
    taken: list[int] = []

    class Captured(Trainer):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            self.captured = CapturedSteps(self.method, self.optimizer, Replayed(), lambda said: None)

        def step(self, epoch: int, step: int, images: Any) -> Any:
            taken.append(epoch)
            return super().step(epoch, step, images)

    monkeypatch.setattr(estimate, "Trainer", Captured)
    estimate.seconds([icpctl.RunConfig(dataset="digits", batch_size=2, steps=1, optimizer="adam", device="cpu")], 1)
    assert taken == [epoch for epoch in (0, 1, 1) for _ in range(CapturedSteps.BEFORE_USE + 1)]


@pytest.mark.parametrize("of", [network, measure])
def test_the_memory_that_a_graph_holds_counts(of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda device: 1)
    monkeypatch.setattr("torch.cuda.max_memory_reserved", lambda device: 3)
    assert of.peak_memory(CUDA) == 3


def test_engine_reference_and_floor_agree_on_a_vae_whose_noise_is_drawn_on_its_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[torch.device] = []
    again = distillation.random_numbers_from_here

    def noted(device: torch.device) -> Any:
        asked.append(device)
        return again(device)

    monkeypatch.setattr("reference.random_numbers_from_here", noted)
    monkeypatch.setattr(distillation, "random_numbers_from_here", noted)
    cpu = torch.device("cpu")
    assert step.check("vae", "ademamix", 1, 2, cpu) < step.TOLERANCE
    assert asked == 3 * [cpu]  # the engine asks in distillation itself, as the floor does
