"""VAT, virtual adversarial training: ICP's mirror, a perturbation that changes the prediction most.

    L = CE(p(x), y) + α·KL(sg p(x) ‖ p(x + r)),    r = ε·g/‖g‖,    g = ∇_r KL(sg p(x) ‖ p(x + r)) at r = ξ·d

for each image, with d a random direction of length 1: one step of the power iteration. All passes are in train mode; the first
alone moves the batch-norm statistics.

Source: Miyato et al., arXiv 1704.03976, algorithm 1 and section 3.3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from icpctl.methods.base import Batch, Loss, Method
from icpctl.methods.icp.perturbation import at_least_float32, per_sample
from icpctl.methods.soft import divergence
from icpctl.methods.taps import unmoved


class VAT(Method):
    """The task loss, and the divergence of the predictions around each image."""

    def objective(self, batch: Batch) -> Loss:
        """CE + α·KL."""
        output = self.trained(batch.x)
        task_loss = batch.criterion(output, batch.y)
        distance = divergence(output, unmoved(self.model, batch.x + self.perturbation(batch.x, output)))
        loss = task_loss + self.config.vat_weight * distance
        log = {"output": output, "task_loss": task_loss, "divergence": distance}
        return loss, {name: value.detach() for name, value in log.items()}

    def perturbation(self, x: Tensor, output: Tensor) -> Tensor:
        """r, (B, …), of norm ε for each image.

        Args:
            x: (B, …).
            output: the logits of x, (B, K).
        """
        start = (self.config.vat_xi * _unit(torch.randn_like(x))).requires_grad_()
        (gradient,) = torch.autograd.grad(divergence(output, unmoved(self.model, x + start)), start)
        return self.config.vat_epsilon * _unit(gradient)


def _unit(vectors: Tensor) -> Tensor:
    """Each sample (B, …) divided by its norm; one of zeros stays as it is."""
    samples = per_sample(at_least_float32(vectors))
    smallest = torch.finfo(torch.float32).tiny
    # By the largest entry first: the gradient of a prediction that is sure is so small that its square is zero in float32.
    samples = samples / samples.abs().amax(dim=1, keepdim=True).clamp(min=smallest)
    unit: Tensor = samples / samples.norm(dim=1, keepdim=True).clamp(min=smallest)
    return unit.reshape(vectors.shape).to(vectors.dtype)
