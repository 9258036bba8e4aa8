"""Runs of seconds, and whether two of them are one and the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import torch
from PIL import Image

import icpctl
from icpctl.runs import checkpoint
from icpctl.runs.folder import TIMINGS
from icpctl.training.display import Display


class Recorder(Display):
    """Keeps what a run says and warns of."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def say(self, message: str) -> None:
        self.messages.append(message)

    warn = say


def small(**settings: Any) -> icpctl.RunConfig:
    """Three epochs of four batches of digits, the last two with the method."""
    values: dict[str, Any] = {"dataset": "digits", "epochs": 3, "warmup_epochs": 1, "train_size": 160, "steps": 2}
    return icpctl.RunConfig(**(values | {"val_fraction": 0.2, "model": "resnet20"} | settings))


def weights(run: Path) -> dict[str, torch.Tensor]:
    saved = checkpoint.load(run / "checkpoints" / "last.pt")
    model: dict[str, torch.Tensor] = saved["model"]
    return model


def untimed(metrics: pd.DataFrame) -> pd.DataFrame:
    return metrics[~metrics["metric"].isin(TIMINGS)].reset_index(drop=True)


def assert_same_run(one: Path, other: Path) -> None:
    """Equal to the bit: weights, the best epoch's too, and the CSV but for the timings."""
    for name in ("last", "best"):
        first = checkpoint.load(one / "checkpoints" / f"{name}.pt")
        second = checkpoint.load(other / "checkpoints" / f"{name}.pt")
        assert first["epoch"] == second["epoch"]
        assert first["best"] == second["best"]
        for key, value in first["model"].items():
            assert torch.equal(value, second["model"][key]), f"{name}: {key}"
    texts = [(path / "metrics.csv").read_text().splitlines() for path in (one, other)]
    kept = [[line for line in lines if line.split(",")[3] not in TIMINGS] for lines in texts]
    assert kept[0] == kept[1]


def write_photos(folder: Path) -> None:
    """Class folders: four noisy cats and dogs of 16 pixels in each split."""
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (folder / split / name).mkdir(parents=True)
            for i in range(4):
                Image.effect_noise((16, 16), 50 + i).save(folder / split / name / f"{i}.png")
