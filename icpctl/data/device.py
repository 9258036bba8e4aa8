"""A data set on the device, uint8 in memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from icpctl.data import Split


class DeviceSplit:
    """Images (N, 3, H, W) uint8 and labels (N,) int64 on the device; `part` are the indices to take."""

    def __init__(self, split: Split, device: torch.device, part: np.ndarray[Any, Any] | None = None) -> None:
        images, labels = (split.images, split.labels) if part is None else (split.images[part], split.labels[part])
        self.images = torch.from_numpy(np.array(images)).to(device)
        self.labels = torch.from_numpy(np.array(labels)).to(device)

    def __len__(self) -> int:
        return len(self.labels)

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each channel in [0, 1], (3, 1, 1) each, exact to float64."""
        counts = torch.stack([torch.bincount(c.flatten(), minlength=256) for c in self.images.unbind(1)]).double()
        levels = torch.arange(256, dtype=torch.float64, device=self.images.device) / 255
        mean = (counts @ levels) / counts.sum(1)
        variance = (counts * (levels - mean[:, None]) ** 2).sum(1) / counts.sum(1)
        # A channel without any variation stays as it is instead of being divided by 0.
        std = torch.where(variance > 0, variance.sqrt(), 1.0)
        return mean.float().view(-1, 1, 1), std.float().view(-1, 1, 1)
