"""Plain training: the baseline of every other method."""

from __future__ import annotations

from torch import Tensor
from torch.utils._pytree import tree_map_only

from icpctl.methods.base import Batch, Loss, Method


class Plain(Method):
    """The task loss of the train-mode pass."""

    def objective(self, batch: Batch) -> Loss:
        """L_task(x)."""
        return plain_objective(self, batch)

    def active(self, epoch: int) -> bool:
        return False


def plain_objective(method: Method, batch: Batch) -> Loss:
    """L_task(x), as the objective of a method."""
    output = method.trained(batch.x)
    loss = batch.criterion(output, batch.y)
    return loss, {"output": tree_map_only(Tensor, Tensor.detach, output), "task_loss": loss.detach()}
