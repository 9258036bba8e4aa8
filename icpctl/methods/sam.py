"""SAM, sharpness-aware minimisation: the weights move by the gradient that they would have a step uphill.

    w ← w − lr · ∇L(w + ρ·g/‖g‖),    g = ∇L(w)

The first pass alone moves the batch-norm statistics. What is clipped is the second gradient: the length of the first does not
matter.

Source: Foret et al., arXiv 2010.01412, equations 2 and 3; ρ for CIFAR-100 is of the ASAM repository.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from icpctl.methods.base import Batch, Loss, Method
from icpctl.methods.plain import plain_objective

SMALLEST_NORM = 1e-12


class SAM(Method):
    """The task loss, of which the gradient is taken at other weights."""

    def objective(self, batch: Batch) -> Loss:
        """L_task(x)."""
        return plain_objective(self, batch)

    def update(self, compute: Callable[[], Loss], apply: Callable[[dict[str, Any]], None]) -> Loss:
        """Two passes, and one change of the weights."""
        loss, log = compute()
        moved: list[Tensor] = [parameter for parameter in self.parameters() if parameter.grad is not None]
        gradients = [parameter.grad for parameter in moved if parameter.grad is not None]
        weights = [parameter.detach().clone() for parameter in moved]
        buffers = [buffer.clone() for buffer in self.buffers()]
        with torch.no_grad():
            norm = torch.nn.utils.get_total_norm(gradients)
            length = self.config.sam_rho / (norm + SMALLEST_NORM)
            for weight, gradient in zip(moved, gradients, strict=True):
                weight.add_(gradient * length)
        compute()
        with torch.no_grad():
            for place, before in zip([*moved, *self.buffers()], [*weights, *buffers], strict=True):
                place.copy_(before)
        log["gradient_norm"] = norm
        apply(log)
        return loss, log
