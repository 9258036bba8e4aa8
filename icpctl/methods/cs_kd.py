"""CS-KD, class-wise self-knowledge distillation: the prediction of another image of the class is a soft target.

    L = CE(p(x), y) + λ·τ²·KL(sg p^τ(x′) ‖ p^τ(x))

x′ is drawn anew in every epoch from the images of x's class, x itself among them. Its pass is in train mode, without gradient,
after that of x.

Source: Yun et al., arXiv 2003.13964, equations 3 and 4.
"""

from __future__ import annotations

import torch

from icpctl.methods.base import Batch, Loss, Method
from icpctl.methods.soft import divergence
from icpctl.methods.taps import buffers_kept


class CSKD(Method):
    """The task loss, and the divergence from the prediction of another image of the class."""

    def objective(self, batch: Batch) -> Loss:
        """CE + λ·τ²·KL."""
        assert batch.companion is not None
        with buffers_kept(self.model):
            output = self.trained(batch.x)
        task_loss = batch.criterion(output, batch.y)
        with torch.no_grad():
            teacher = self.model(batch.companion.x)
        distance = divergence(teacher, output, self.config.cs_kd_temperature)
        loss = task_loss + self.config.cs_kd_weight * distance
        log = {"output": output, "task_loss": task_loss, "divergence": distance}
        return loss, {name: value.detach() for name, value in log.items()}
