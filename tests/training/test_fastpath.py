"""Fast paths give the same numbers as the plain code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from doubled import float64
from measure import random_images
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import icpctl
from icpctl.training.graphs import CapturedSteps
from icpctl.training.trainer import Trainer


@pytest.mark.parametrize(("model", "dtype"), [("resnet20", "float64"), ("vae", "float64"), ("resnet20", "float32")])
def test_a_run_with_and_without_fast_paths_is_the_same(
    model: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if dtype == "float64":
        float64(monkeypatch.setattr)
    metrics = []
    for fast in (True, False):
        config = icpctl.RunConfig(
            model=model,
            dataset="digits",
            optimizer="adam",
            epochs=2 if dtype == "float64" else 1,
            warmup_epochs=0,
            steps=2,
            train_size=200,
            fast=fast,
        )
        run = icpctl.train(config, tmp_path / str(fast))
        rows = run.metrics.set_index(["epoch", "split", "metric"])["value"]
        metrics.append(
            rows[~rows.index.get_level_values("metric").isin(["seconds", "images_per_second", "peak_memory"])]
        )
    fast_run, plain_run = metrics
    assert fast_run.index.equals(plain_run.index)
    learned = ["loss", "task_loss", "feature_loss", "icp_loss_before", "icp_loss_after", "delta_l2", "feature_shift_1"]
    # In float64 what differs is below 1e-14, and 6e-8 where a metric is kept in float32: it is one training. In float32 the
    # two steps of an epoch make up to 1e-4 of the 1e-7 of rounding, which is another one on each kind of processor.
    bound = 1e-6 if dtype == "float64" else 1e-3
    for name in learned:
        fast_values, plain_values = (rows.xs(name, level="metric") for rows in metrics)
        assert fast_values.to_numpy() == pytest.approx(plain_values.to_numpy(), rel=bound), name
    # Rounding differs, so what is equal to the last bit everywhere is the same code.
    assert not fast_run.equals(plain_run)


class FakeGraphs:
    """Stands in for `cuda_graph` on a CPU: captures without effect, and replays into the same places in memory."""

    def __init__(self, model: nn.Module, wrong_by: float = 1.0) -> None:
        self.model, self.wrong_by = model, wrong_by
        self.captured = self.replayed = 0

    def __call__(self, function: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        self.captured += 1
        buffers = [buffer.clone() for buffer in self.model.buffers()]
        places = function()
        for buffer, value in zip(self.model.buffers(), buffers, strict=True):
            buffer.copy_(value)
        gradients = [p.grad for p in self.model.parameters()]
        for tensor in [*tree_leaves(places), *gradients]:
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                tensor.fill_(torch.nan)  # nothing is there before the first replay

        def replay() -> None:
            self.replayed += 1
            for place, value in zip(tree_leaves(places), tree_leaves(function()), strict=True):
                place.copy_(value)
            for gradient, parameter in zip(gradients, self.model.parameters(), strict=True):
                if gradient is not None and parameter.grad is not None:
                    gradient.copy_(parameter.grad * self.wrong_by)

        return places, replay


def captured_trainer(said: list[str], wrong_by: float = 1.0, **settings: Any) -> tuple[Trainer, FakeGraphs]:
    given = {"optimizer": "adam", "steps": 2, "epochs": 4, "warmup_epochs": 1, "val_fraction": 0, "batch_size": 4}
    config = icpctl.RunConfig.model_validate({**given, "augmentation": "none", **settings})
    trainer = Trainer(config, random_images(4 * 12, 12, 5), torch.device("cpu"))
    trainer.model.train()
    graphs = FakeGraphs(trainer.model, wrong_by)
    trainer.captured = CapturedSteps(trainer.model, graphs, said.append)
    return trainer, graphs


def train(trainer: Trainer, epochs: int = 3) -> list[tuple[Tensor, dict[str, Tensor]]]:
    return [
        trainer.step(epoch, batch, part)
        for epoch in range(epochs)
        for batch, part in enumerate(trainer.epoch_batches(epoch))
    ]


@pytest.mark.parametrize("recipe", ["paper", "strong"])
def test_captured_steps_are_the_steps(recipe: str) -> None:
    said: list[str] = []
    trainer, graphs = captured_trainer(said, recipe=recipe)
    results = train(trainer)
    plain, _ = captured_trainer(said, recipe=recipe)
    plain.captured = None
    expected = train(plain)
    assert said == []
    assert graphs.captured == 3  # plain steps, steps of the method, those that measure the loss afterwards
    assert graphs.replayed == 36 - 3 * CapturedSteps.WARM_UP  # the last one to warm up is computed both ways
    for (loss, log), (expected_loss, expected_log) in zip(results, expected, strict=True):
        torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=1e-6)
        assert log.keys() == expected_log.keys()
        torch.testing.assert_close(log["record"], expected_log["record"], rtol=1e-3, atol=1e-4)
    expected_state = plain.model.state_dict()
    for name, value in trainer.model.state_dict().items():
        torch.testing.assert_close(value, expected_state[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("how", ["wrong", "not a number", "refused", "random"])
def test_steps_that_cannot_be_captured_stay_as_they_are(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    trainer, _ = captured_trainer(said, wrong_by={"wrong": 1.1, "not a number": float("nan")}.get(how, 1.0))
    assert trainer.captured is not None
    if how == "refused":

        def refuse(function: Callable[[], Any]) -> Any:
            for _ in range(2):  # it may have changed the buffers by then
                function()
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore lines")

        monkeypatch.setattr(trainer.captured, "_capture", refuse)
    if how == "random":
        offsets = iter(range(1000))
        monkeypatch.setattr("icpctl.training.graphs._random_offset", lambda device: next(offsets))
    results = train(trainer)
    plain, _ = captured_trainer([])
    plain.captured = None
    for (loss, _), (expected, _) in zip(results, train(plain), strict=True):
        torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-7)
    (message,) = said
    reasons = {"wrong": "differs by 1.0e-01", "not a number": "differs by inf", "random": "random numbers"}
    assert (
        reasons.get(how, "cannot be captured (CUDA error: operation not permitted when stream is capturing)") in message
    )


def test_only_one_gpu_without_a_carried_state_captures_steps() -> None:
    config = icpctl.RunConfig(val_fraction=0, batch_size=4)
    assert Trainer(config, random_images(8, 12, 5), torch.device("cpu")).captured is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_captured_steps_on_a_gpu_are_the_steps(tmp_path: Path) -> None:
    said: list[str] = []
    results = []
    for fast in (True, False):
        given = {"optimizer": "adam", "steps": 2, "epochs": 4, "warmup_epochs": 1, "val_fraction": 0, "batch_size": 4}
        config = icpctl.RunConfig.model_validate({**given, "augmentation": "none", "fast": fast})
        trainer = Trainer(config, random_images(4 * 12, 12, 5), torch.device("cuda"), say=said.append)
        trainer.model.train()
        results.append([float(loss) for loss, _ in train(trainer)])
    assert said == []
    assert results[0] == pytest.approx(results[1], rel=1e-2)
