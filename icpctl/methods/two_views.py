"""ICP's distillation without its perturbation: the teacher sees a second augmented view of the input.

    L = a_e · L_task(x) + (1 − a_e) · Σ_i w_i · MSE(F_i(x), sg F_i(x′))

Stages, weights, warm-up, task weight and statistics are those of ICP (arXiv 2505.14751), so that a difference between the two is
one of the perturbation. The method is ours, a control.
"""

from __future__ import annotations

from typing import Any

from icpctl.methods.base import Batch, Loss
from icpctl.methods.icp.distillation import (
    feature_loss,
    layer_weights,
    random_numbers_from_here,
    teacher_features,
)
from icpctl.methods.icp.schedule import Schedule
from icpctl.methods.taps import buffers_kept, detached, tap


class TwoViews(Schedule):
    """Plain training for the warm-up, then the features of a second view as targets."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.taps = self.config.layers
        self.weights = layer_weights(len(self.taps), self.config.layer_weights)

    def objective(self, batch: Batch) -> Loss:
        """a_e · L_task + (1 − a_e) · L_feat; L_task in the warm-up."""
        if not self.active(batch.epoch):
            return super().objective(batch)
        assert batch.companion is not None
        same_numbers = random_numbers_from_here(batch.x.device)
        with buffers_kept(self.model), tap(self.model, self.taps) as student:
            output = self.trained(batch.x)
        task_loss = batch.criterion(output, batch.y)
        with same_numbers():
            teacher = teacher_features(self.model, self.taps, batch.companion.x, self.config.teacher_statistics)
        features = feature_loss(student, teacher, self.weights)
        loss = batch.weight * task_loss + (1 - batch.weight) * features
        return loss, {"output": detached(output), "task_loss": task_loss.detach(), "feature_loss": features.detach()}
