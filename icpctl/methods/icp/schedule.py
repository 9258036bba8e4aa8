"""ICP's schedule without its feature loss: what the falling weight of the task loss does by itself."""

from __future__ import annotations

from icpctl.methods.base import Batch, Loss
from icpctl.methods.icp.distillation import task_weight
from icpctl.methods.plain import Plain


class Schedule(Plain):
    """Plain training for the warm-up, then a_e · L_task. Methods that add a feature loss have the same schedule."""

    def objective(self, batch: Batch) -> Loss:
        """a_e · L_task; L_task in the warm-up."""
        loss, log = super().objective(batch)
        return (batch.weight * loss if self.active(batch.epoch) else loss), log

    def active(self, epoch: int) -> bool:
        return epoch >= self.config.warmup_epochs

    def task_weight(self, epoch: int) -> float:
        """a_e."""
        return task_weight(epoch, self.config.warmup_epochs, self.config.epochs)
