"""Shared by the tests of FID and KID: images, the run of a classifier, and a caller that keeps all messages."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from checkpoints import checkpoint_entries
from torch import Tensor, nn

from icpctl import RunConfig
from icpctl.models.network import build_model
from icpctl.runs import checkpoint
from icpctl.tasks import fidelity

CPU = torch.device("cpu")


class Asked:
    """Calls `distances`, and keeps what was said and what was warned of."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.warned: list[str] = []
        self.told: Any = {"say": self.said.append, "warn": self.warned.append}

    def __call__(
        self, real: Tensor, weights: Path | None = None, classifier: Path | None = None, **generated: Tensor
    ) -> dict[str, float]:
        made: dict[str, Callable[[], Tensor]] = {name: partial(torch.clone, x) for name, x in generated.items()}
        return fidelity.distances(real, made, weights=weights, classifier=classifier, **self.told)


def images(number: int, seed: int = 0, size: int = 8) -> Tensor:
    """(N, 3, S, S) uint8; fewer are the first ones of more."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randint(256, (3, size, size), generator=generator) for _ in range(number)]).byte()


def files() -> list[Path]:
    """The cached features."""
    return sorted((Path(os.environ["XDG_CACHE_HOME"]) / "icpctl" / "features").glob("*"))


def run(folder: Path, seed: int = 0, image_size: int = 8, mean: float = 0.4, **values: Any) -> Path:
    """A run folder with a checkpoint of fresh weights."""
    config = RunConfig(**({"model": "resnet20", "dataset": "digits", "image_size": 32} | values))
    torch.manual_seed(seed)
    model = build_model(config, 10, CPU)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0  # so that one pass scales the features as training would
    model(torch.randn(16, 3, 32, 32))
    content = {
        "config": config.model_dump(mode="json"),
        "classes": list("0123456789"),
        "mean": mean + torch.tensor([-0.1, 0.0, 0.1]).view(3, 1, 1),
        "std": torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1),
        "image_size": [image_size, image_size],
        "model": model.state_dict(),
    }
    (folder / "checkpoints").mkdir(parents=True)
    checkpoint.save(folder / "checkpoints", "last", checkpoint_entries(**content))
    return folder
