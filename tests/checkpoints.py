"""A checkpoint for tests that need no training."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch


class MakesFolder:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.folder),)


def checkpoint_entries(**entries: Any) -> dict[str, Any]:
    """What a checkpoint holds, as of a run that has just begun; `entries` replace or add some."""
    meter: dict[str, Any] = {"sums": {}, "counts": {}, "records": [], "first_bad": None}
    return {
        "config": {},
        "fingerprint": "",
        "classes": ["a", "b"],
        "mean": torch.zeros(3, 1, 1),
        "std": torch.ones(3, 1, 1),
        "image_size": [8, 8],
        "epoch": 0,
        "batch": 0,
        "best": {},
        "meter": meter,
        "seconds": 0.0,
        "rows": 0,
        "model": {},
        "optimizer": {"state": {}, "param_groups": []},
        "icp_state": {},
    } | entries
