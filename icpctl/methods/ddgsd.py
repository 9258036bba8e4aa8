"""DDGSD, data-distortion guided self-distillation: two views of an image teach each other.

    L = ½(CE_a + CE_b) + λ·τ²·(KL(sg p_a ‖ p_b) + KL(sg p_b ‖ p_a)) + μ·‖mean f_a − mean f_b‖²

a and b are two augmentations of the same images, which pass through the network as one batch. f are the outputs of the last
stage that is tapped, averaged over their pixels, and the means are over the batch.

Source: Xu and Liu, arXiv 1901.05620, equations 4 to 8.
"""

from __future__ import annotations

from typing import Any

import torch

from icpctl.methods.base import Batch, Loss, Method
from icpctl.methods.icp.perturbation import at_least_float32
from icpctl.methods.soft import divergence
from icpctl.methods.taps import pooled, tap


class DDGSD(Method):
    """The task loss of two views, the divergences of their predictions, and the distance of their mean features."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.taps = self.config.layers[-1:]

    def objective(self, batch: Batch) -> Loss:
        """½(CE_a + CE_b) + λ·τ²·(KL + KL) + μ·MMD²."""
        assert batch.companion is not None
        config = self.config
        with tap(self.model, self.taps) as features:
            outputs = self.trained(torch.cat([batch.x, batch.companion.x]))
        a, b = outputs.chunk(2)
        task_loss = batch.criterion(a, batch.y)
        both = (task_loss + batch.criterion(b, batch.companion.y)) / 2
        distance = divergence(a, b, config.ddgsd_temperature) + divergence(b, a, config.ddgsd_temperature)
        means = [half.mean(dim=0) for half in pooled(at_least_float32(features[0])).chunk(2)]
        discrepancy = (means[0] - means[1]).square().sum()
        loss = both + config.ddgsd_weight * distance + config.ddgsd_mmd * discrepancy
        log = {"output": a, "task_loss": task_loss, "divergence": distance, "discrepancy": discrepancy}
        return loss, {name: value.detach() for name, value in log.items()}
