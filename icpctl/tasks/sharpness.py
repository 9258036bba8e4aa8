"""How sharp the minimum is that a run has found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from icpctl.data.device import DeviceSplit
from icpctl.methods.evalmode import eval_mode
from icpctl.models.network import Network, evaluation_batch

RHO = 0.05
"""Length of the step; that of SAM's first experiments."""


def sharpness(
    network: Network,
    split: DeviceSplit,
    targets: Callable[[Tensor, Tensor], Tensor],
    loss: Callable[[Any, Tensor], Tensor],
    rho: float = RHO,
) -> float:
    """How much the loss rises a step up its gradient: L(θ + ρ·g/‖g‖) − L(θ), with g = ∇L(θ), in eval mode.

    Args:
        network: of the weights θ, which are left as they are.
        split: over whose images L is the mean.
        targets: maps normalised inputs and labels to what `loss` compares the outputs with.
        loss: maps outputs and targets to their mean loss, a scalar.
        rho: ρ.

    Source: Foret et al., arXiv 2010.01412, equation 2, without the division by the loss.
    """
    parameters = [parameter for parameter in network.model.parameters() if parameter.requires_grad]
    size = evaluation_batch(*split.shape[-2:])

    def mean_loss(gradients: list[Tensor] | None = None) -> Tensor:
        """L, whose gradients are added to those given."""
        total = torch.zeros((), dtype=torch.float64, device=network.device)
        for start in range(0, len(split), size):
            x = network.normalise(split[start : start + size])
            y = targets(x, split.labels[start : start + size])
            # In float32, as it is a small difference.
            with torch.set_grad_enabled(gradients is not None), torch.autocast(x.device.type, enabled=False):
                part = loss(network.model(x), y) * (len(x) / len(split))
            total += part.detach()
            if gradients is not None:
                found = torch.autograd.grad(part, parameters, allow_unused=True)
                for gradient, of_part in zip(gradients, found, strict=True):
                    if of_part is not None:
                        gradient += of_part
        return total

    weights = [parameter.detach().clone() for parameter in parameters]
    with eval_mode(network.model):
        gradients = [torch.zeros_like(weight) for weight in weights]
        before = mean_loss(gradients)
        length = torch.nn.utils.get_total_norm(gradients).clamp(min=torch.finfo(torch.float32).tiny)
        try:
            with torch.no_grad():
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter.add_(gradient * (rho / length))
            return float(mean_loss() - before)
        finally:
            with torch.no_grad():
                for parameter, weight in zip(parameters, weights, strict=True):
                    parameter.copy_(weight)
