"""PS-KD, progressive self-knowledge distillation: a run's own earlier predictions become a part of the targets.

    L = CE(p(x_i), (1 − α_e)·y_i + α_e·q_i),    α_e = α·(e + 1)/E

q_i is the softmax of image i when the run trained on it last, in train mode and with its augmentation of then; at first it is y_i,
which it also stays for images that an epoch leaves out.

Source: Kim et al., arXiv 2006.12000, equations 2 and 5.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from icpctl.methods.base import Batch, Loss, Method
from icpctl.methods.soft import log_softmax


class PSKD(Method):
    """Cross-entropy against labels and the predictions of the epoch before."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.predictions = F.one_hot(self.data.labels, self.data.classes).float()
        """(N, K): q_i of each training image."""

    def objective(self, batch: Batch) -> Loss:
        """CE(p(x), (1 − α_e)·y + α_e·q)."""
        output = self.trained(batch.x)
        weight = self.config.ps_kd_alpha * (batch.epoch + 1) / self.config.epochs
        targets = F.one_hot(batch.y, self.data.classes).float().lerp(self.predictions[batch.index], weight)
        loss = batch.criterion(output, targets)
        probabilities = log_softmax(output.detach()).exp()
        task_loss = batch.criterion(output.detach(), batch.y)
        return loss, {"output": output.detach(), "task_loss": task_loss, "probabilities": probabilities}

    def after(self, batch: Batch, log: dict[str, Any]) -> None:
        """Store the predictions."""
        probabilities = batch.gather(log.pop("probabilities"))
        self.predictions[batch.gather(batch.index)] = probabilities.to(self.predictions.dtype)

    def state(self) -> dict[str, Any]:
        return {"predictions": self.predictions}

    def restore(self, state: Mapping[str, Any], shape: torch.Size) -> None:
        predictions: Tensor = state["predictions"]
        if predictions.shape != self.predictions.shape:
            raise ValueError(
                f"predictions of {tuple(predictions.shape)} in the place of {tuple(self.predictions.shape)}"
            )
        self.predictions = predictions
