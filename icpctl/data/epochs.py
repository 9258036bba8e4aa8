"""The order and the augmentation of the training images in every epoch, their companions, and their batches."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from icpctl.data.augment import Augmentation, draw
from icpctl.seeds import derived_seed

OF_COMPANIONS, OF_AUGMENTATION = 1, 2
"""What is drawn beside the order and the augmentation of the images themselves."""


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
    companion: str = ""
    """Of `icpctl.config.catalogue.MethodRow`."""
    labels: Tensor | None = field(default=None, compare=False)
    """(N,) of the images, where companions are of one class."""

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

    def companions(self, epoch: int) -> Tensor:
        """(N,): the image that comes with the one at each place of the epoch.

        The first batch of a run has no batch before it, so that what is replayed with it is itself.
        """
        order = self.order(epoch)
        if self.companion == "view":
            return order
        if self.companion == "replay":
            before = self.order(epoch - 1)[self.rows(self.batches - 1)] if epoch else order[: self.batch_size]
            return torch.cat([before, order])[: len(order)]
        assert self.labels is not None
        classes = self.labels[order]
        counts = self.labels.bincount()
        firsts = counts.cumsum(0) - counts
        drawn = torch.rand(len(order), generator=self._generator(epoch, OF_COMPANIONS), dtype=torch.float64)
        return self.labels.argsort(stable=True)[firsts[classes] + (drawn * counts[classes]).long()]

    def draw(self, epoch: int) -> list[tuple[Tensor, Augmentation]]:
        """The `order` of an epoch and the augmentation of the images in that order; and the same of the companions, if there are any."""
        generator = self._generator(epoch)
        count, _, height, width = self.images
        order = torch.randperm(count, generator=generator)
        drawn = [(order, draw(self.augmentation, count, height, width, generator))]
        if self.companion:
            generator = self._generator(epoch, OF_AUGMENTATION)
            drawn.append((self.companions(epoch), draw(self.augmentation, count, height, width, generator)))
        return drawn

    def _generator(self, epoch: int, of: int = 0) -> torch.Generator:
        # 0 stands where the steps of an epoch have their numbers, from 1 on.
        return torch.Generator().manual_seed(derived_seed(self.seed, epoch, 0, of))
