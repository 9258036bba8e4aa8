"""The order and the augmentation of the training images in every epoch, and their batches."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from icpctl.data.augment import Augmentation, draw
from icpctl.seeds import derived_seed


@dataclass(frozen=True)
class Plan:
    """How the batches of every epoch are made of the training images.

    All is drawn from the seed and the epoch, so that each batch is the same wherever, whenever and after whichever
    others it is made.
    """

    seed: int
    augmentation: str
    """One of `icpctl.data.augment.AUGMENTATIONS`."""
    batch_size: int
    images: tuple[int, ...]
    """The shape (N, 3, H, W) of all of them."""
    rank: int = 0
    processes: int = 1
    """Each of them takes its rows of every batch."""

    @property
    def batches(self) -> int:
        """In an epoch. The rest that does not fill a batch is left out: another one each time, as the order is random."""
        return self.images[0] // self.batch_size

    def rows(self, batch: int) -> slice:
        """The places of a batch in the epoch."""
        return slice(batch * self.batch_size, (batch + 1) * self.batch_size)

    def own_rows(self) -> slice:
        """The rows of a batch that are this process's."""
        size = self.batch_size // self.processes
        return slice(self.rank * size, (self.rank + 1) * size)

    def order(self, epoch: int) -> Tensor:
        """(N,): the image at each place of the epoch."""
        return torch.randperm(self.images[0], generator=self._generator(epoch))

    def draw(self, epoch: int) -> tuple[Tensor, Augmentation]:
        """The `order` of an epoch, and the augmentation of the images in that order."""
        generator = self._generator(epoch)
        count, _, height, width = self.images
        order = torch.randperm(count, generator=generator)
        return order, draw(self.augmentation, count, height, width, generator)

    def _generator(self, epoch: int) -> torch.Generator:
        return torch.Generator().manual_seed(derived_seed(self.seed, epoch))
