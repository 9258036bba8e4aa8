"""Divergence of softened predictions, which methods of distillation share."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from icpctl.methods.icp.perturbation import at_least_float32


def log_softmax(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """log p^τ of logits (B, K), in float32 or better."""
    return F.log_softmax(at_least_float32(logits) / temperature, dim=1)


def divergence(teacher: Tensor, student: Tensor, temperature: float = 1.0) -> Tensor:
    """τ² · KL(p^τ of the teacher ‖ p^τ of the student), the mean over the batch, a scalar; no gradient goes into the teacher.

    The factor keeps the size of the gradient as τ grows (Hinton et al., arXiv 1503.02531, section 2).

    Args:
        teacher, student: logits (B, K).
        temperature: τ.
    """
    targets, predictions = log_softmax(teacher.detach(), temperature), log_softmax(student, temperature)
    return temperature**2 * F.kl_div(predictions, targets, reduction="batchmean", log_target=True)
