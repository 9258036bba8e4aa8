"""A checkpoint for tests that need no training."""

from __future__ import annotations

from typing import Any

import torch


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
