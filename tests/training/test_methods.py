"""Every method in the engine: stopped, killed and resumed, streamed, in several processes, stacked."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import assert_same_run

import icpctl
from icpctl.config.catalogue import METHODS, PLAIN
from icpctl.runs import checkpoint
from icpctl.training.engine import Interrupted

RIVALS = [name for name in METHODS if name not in (PLAIN, "icp")]
REMEMBERED = {"ps-kd": "predictions", "dlb": "previous", "byot": "heads_of_stages.0.classifier.weight"}
"""The methods with a memory or with heads, and a tensor of it in their checkpoints."""


def small(**settings: Any) -> icpctl.RunConfig:
    """Three epochs of three batches of 32 digits; the methods with a warm-up are at work in the last two."""
    values: dict[str, Any] = {
        "dataset": "digits",
        "train_size": 120,
        "val_fraction": 0.2,
        "epochs": 3,
        "warmup_epochs": 1,
    }
    return icpctl.RunConfig(
        **(values | {"batch_size": 32, "augmentation": "pad-crop-flip", "device": "cpu"} | settings)
    )


def train_until(config: icpctl.RunConfig, folder: Path, batches: int) -> None:
    """Train so many batches, and end as a machine does that loses its power."""
    asked = itertools.count(1)

    def stop() -> bool:
        if next(asked) >= batches:
            os.kill(os.getpid(), signal.SIGKILL)
        return False

    icpctl.train(config, folder, should_stop=stop)


@pytest.mark.parametrize("method", RIVALS)
def test_stopped_within_an_epoch_and_resumed_it_ends_the_same(method: str, tmp_path: Path) -> None:
    config = small(method=method)
    straight = icpctl.train(config, tmp_path / "straight")
    for batches in (1, 3, 2):
        asked = itertools.count(1)
        with pytest.raises(Interrupted):
            icpctl.train(config, tmp_path / "stopped", should_stop=lambda n=batches, a=asked: next(a) >= n)  # type: ignore[misc]
    resumed = icpctl.train(config, tmp_path / "stopped")
    assert_same_run(straight.path, resumed.path)


@pytest.mark.parametrize("method", REMEMBERED)
def test_killed_and_resumed_it_ends_the_same_with_its_memory(method: str, tmp_path: Path) -> None:
    config = small(method=method)
    straight = icpctl.train(config, tmp_path / "straight").path
    process = multiprocessing.get_context("fork").Process(target=train_until, args=(config, tmp_path / "killed", 5))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    killed = tmp_path / "killed" / config.run_id
    assert checkpoint.load(killed / "checkpoints" / "last.pt")["epoch"] == 1
    icpctl.train(config, tmp_path / "killed")
    assert_same_run(straight, killed)
    saved = [checkpoint.load(path / "checkpoints" / "last.pt") for path in (straight, killed)]
    memories = [each["icp_state"] | each["heads"] for each in saved]
    assert REMEMBERED[method] in memories[0]
    for name, value in memories[0].items():
        assert torch.equal(memories[1][name], value)


@pytest.mark.parametrize("method", ["cs-kd", "dlb", "ddgsd"])  # one of each kind of companion
def test_streamed_images_give_the_same_run(method: str, tmp_path: Path) -> None:
    config = small(method=method, epochs=2)
    held = icpctl.train(config, tmp_path / "held")
    streamed = icpctl.train(config.altered(data_memory=1e-9), tmp_path / "streamed")
    assert_same_run(held.path, streamed.path)


@pytest.mark.parametrize("method", RIVALS)
def test_what_cannot_be_stacked_says_so(method: str) -> None:
    assert (small(method=method).stack_id is None) == (method not in ("schedule", "label-smoothing", "mixup", "cutmix"))


def test_of_a_mixed_run_no_accuracy_of_the_training_is_recorded(tmp_path: Path) -> None:
    metrics = icpctl.train(small(method="mixup", epochs=1, warmup_epochs=0), tmp_path).metrics
    of_split = {split: set(part["metric"]) for split, part in metrics.groupby("split")}
    assert "accuracy" in of_split["test"]
    assert "loss" in of_split["train"]
    assert not of_split["train"] & {"accuracy", "f1_macro", "ece"}


def test_the_vae_takes_three_methods_and_the_others_say_why_not(tmp_path: Path) -> None:
    for method in RIVALS:
        settings = {"model": "vae", "method": method, "epochs": 1, "warmup_epochs": 0, "fid_features": tmp_path}
        if "generation" in METHODS[method].tasks:
            run = icpctl.train(small(**(settings | {"fid_features": None})), tmp_path)
            assert run.metrics["value"].notna().all()
        else:
            with pytest.raises(
                icpctl.UserError, match=f"{method}, which cannot train vae: .* needs the labels of classes"
            ):
                small(**settings)
