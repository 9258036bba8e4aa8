"""What a task is: its loss, its metrics, and which of them chooses the best epoch. The engine asks for no more."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Task(Protocol):
    """A task; see `icpctl.tasks.classification`."""

    selection: str
    """The metric, computed on the held-out part of the training split, whose largest value chooses the best epoch."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The batch mean of the task loss, a scalar."""

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """The metrics of a whole split as scalars on the device; `loss` is one of them."""
