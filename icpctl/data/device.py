"""A split of a data set that is on the device, uint8 in memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from icpctl.data import Split
from icpctl.data.epochs import Plan

CHUNK_BYTES = 64 * 2**20
"""Images that are counted at once."""


class DeviceSplit:
    """Images (N, 3, H, W) uint8 and labels (N,) int64 on the device; `part` are the indices to take.

    `split[start:stop]` are some of the images.
    """

    def __init__(self, split: Split, device: torch.device, part: np.ndarray[Any, Any] | None = None) -> None:
        self.device = device
        labels = split.labels if part is None else split.labels[part]
        self.labels = torch.from_numpy(np.array(labels)).to(device)
        self.shape = torch.Size((len(labels), *split.images.shape[1:]))
        self._keep(split, part)

    def _keep(self, split: Split, part: np.ndarray[Any, Any] | None) -> None:
        images = split.images if part is None else split.images[part]
        self._images = torch.from_numpy(np.array(images)).to(self.device)
        split.check()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, part: slice) -> Tensor:
        return self._images[part]

    @property
    def images(self) -> Tensor:
        """All of them at once."""
        return self[:]

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each channel in [0, 1], (3, 1, 1) each, exact to float64."""
        counts = torch.zeros(3, 256, dtype=torch.int64, device=self.device)
        size = max(1, CHUNK_BYTES // self.shape[1:].numel())
        for start in range(0, len(self), size):
            channels = self[start : start + size].unbind(1)
            counts += torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in channels])
        levels = torch.arange(256, dtype=torch.float64, device=self.device) / 255
        number = counts.sum(1).double()
        mean = (counts.double() @ levels) / number
        variance = (counts * (levels - mean[:, None]) ** 2).sum(1) / number
        # A channel without any variation stays as it is instead of being divided by 0.
        std = torch.where((counts > 0).sum(1) > 1, variance.sqrt(), 1.0)
        return mean.float().view(-1, 1, 1), std.float().view(-1, 1, 1)

    def batches(self, plan: Plan, epoch: int, start: int) -> Iterator[tuple[Tensor, ...]]:
        """The images (B, 3, H, W) of each batch of an epoch from batch `start` on, augmented; and their companions, if the plan has any.

        The whole epoch is prepared at once: operations on many images cost little more than on few.
        """
        prepared = [augmentation(self._images[order.to(self.device)]) for order, augmentation in plan.draw(epoch)]
        for batch in range(start, plan.batches):
            yield tuple(images[plan.rows(batch)] for images in prepared)

    def close(self) -> None:
        """End what `batches` started; it can be called again."""
