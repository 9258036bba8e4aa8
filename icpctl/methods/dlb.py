"""DLB, self-distillation from the last mini-batch: each image is trained on again in the next step, beside its old prediction.

    L = CE(B_t and B_{t−1}) + α·τ²·KL(sg p^τ_old(B_{t−1}, view 1) ‖ p^τ_now(B_{t−1}, view 2))

Both batches pass through the network as one, and the cross-entropy is the mean over both. The first step of a run has no batch
before it. An epoch of n images costs as much as two of plain training.

Source: Shen et al., arXiv 2203.16172, equations 2 to 4. Its code has no defaults for τ and α; 3 and 1 are what others use for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from icpctl.methods.base import Batch, Loss, Method
from icpctl.methods.plain import plain_objective
from icpctl.methods.soft import divergence


class DLB(Method):
    """The task loss on this batch and the last one, and the divergence of the last one's predictions from its earlier ones."""

    previous: Tensor | None = None
    """(B, K): the logits of the whole batch before this one."""

    def objective(self, batch: Batch) -> Loss:
        """CE over both + α·τ²·KL; in the first step of a run CE alone."""
        assert batch.companion is not None
        if self.previous is None:
            loss, log = plain_objective(self, batch)
            return loss, log | {"logits": log["output"]}
        outputs = self.trained(torch.cat([batch.x, batch.companion.x]))
        now, again = outputs.chunk(2)
        both = batch.criterion(outputs, torch.cat([batch.y, batch.companion.y]))
        distance = divergence(batch.part(self.previous), again, self.config.dlb_temperature)
        loss = both + self.config.dlb_weight * distance
        task_loss = batch.criterion(now.detach(), batch.y)
        log = {"output": now, "logits": now, "task_loss": task_loss, "divergence": distance}
        return loss, {name: value.detach() for name, value in log.items()}

    def after(self, batch: Batch, log: dict[str, Any]) -> None:
        """Store the logits of this batch."""
        self.previous = batch.gather(log.pop("logits"))

    def state(self) -> dict[str, Any]:
        return {} if self.previous is None else {"previous": self.previous}

    def restore(self, state: Mapping[str, Any], shape: torch.Size) -> None:
        self.previous = state.get("previous")
        if self.previous is not None and len(self.previous) != shape[0]:
            raise ValueError(f"predictions of {len(self.previous)} images in the place of {shape[0]}")
