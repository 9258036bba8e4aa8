"""Self-distillation by iterative constructive perturbations, as the method of a run (arXiv 2505.14751)."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from icpctl.config import RunConfig
from icpctl.config.catalogue import INPUT_OPTIMIZERS
from icpctl.methods.base import Batch, Data, Fault, Loss
from icpctl.methods.icp.diagnosis import diagnose
from icpctl.methods.icp.distillation import SelfDistiller, feature_shift_errors
from icpctl.methods.icp.perturbation import (
    SGD,
    GradientOf,
    autograd_gradient,
    func_gradient,
    make_optimizer,
)
from icpctl.methods.icp.schedule import Schedule

LOSSES_EVERY = 10  # steps; the loss after the perturbation costs a forward pass
SHIFT_ERROR_IMAGES = 32  # of the first batch of each epoch with the method; float64 is slow


class ICP(Schedule):
    """Plain training for the warm-up, then the objective of `SelfDistiller`."""

    def __init__(
        self,
        config: RunConfig,
        model: nn.Module,
        trained: nn.Module,
        data: Data,
        say: Callable[[str], None] = warnings.warn,
    ) -> None:
        super().__init__(config, model, trained, data, say)
        self.distiller = make_distiller(config, trained)
        self.taps = config.layers
        if self.distiller.folded is not None:
            self.distiller.folded.say = say

    def objective(self, batch: Batch) -> Loss:
        """a_e · L_task + (1 − a_e) · L_feat; L_task in the warm-up."""
        if not self.active(batch.epoch):
            return super().objective(batch)
        measured = batch.step % LOSSES_EVERY == 0
        return self.distiller(batch.x, batch.y, batch.weight, batch.criterion, icp_losses=measured)

    def after(self, batch: Batch, log: dict[str, Any]) -> None:
        """Measure the rounding of the feature shifts, in the first step of an epoch."""
        x_icp = log.pop("x_icp", None)
        if batch.step == 0 and x_icp is not None:
            x, x_icp = (batch.gather(part)[:SHIFT_ERROR_IMAGES] for part in (batch.x, x_icp))
            errors = feature_shift_errors(self.model, self.taps, x, x_icp)
            log |= {f"feature_shift_error_{i}": error for i, error in enumerate(errors, start=1)}

    def kind(self, epoch: int, step: int) -> Hashable:
        if not self.active(epoch):
            return "plain"
        return None if step == 0 else ("measured" if step % LOSSES_EVERY == 0 else "icp")

    def state(self) -> dict[str, Any]:
        """The state of the input optimizer, where it is carried from batch to batch."""
        return self.distiller.optimizer.state if self.distiller.carry_state else {}

    def restore(self, state: Mapping[str, Any], shape: torch.Size) -> None:
        if any(isinstance(value, Tensor) and value.shape != shape for value in state.values()):
            raise ValueError("the state of the input optimizer is of another batch")
        if self.distiller.carry_state:
            self.distiller.optimizer.state = dict(state)

    def diagnose(self, means: Mapping[str, float], settled: bool) -> list[Fault]:
        return diagnose(self.config, means, settled)

    def mapped(self) -> ICP:
        other = copy.copy(self)
        other.distiller = make_distiller(self.config, self.model, func_gradient)
        other.distiller.folded = self.distiller.folded
        return other

    def take(self, numbers: Mapping[str, Tensor]) -> None:
        self.distiller.perturbation["lr"] = numbers["icp_lr"]
        self.distiller.optimizer = input_optimizer(self.config.model_copy(update=dict(numbers)))


def make_distiller(config: RunConfig, model: nn.Module, gradient_of: GradientOf = autograd_gradient) -> SelfDistiller:
    """The objective of a run for its model; `gradient_of` as of `icpctl.perturb`."""
    return SelfDistiller(
        model,
        config.layers,
        input_optimizer(config),
        config.steps,
        config.icp_lr,
        config.direction,
        reduction=config.icp_reduction,
        carry_state=config.icp_state == "carry",
        weights=config.layer_weights,
        teacher_statistics=config.teacher_statistics,
        extra_task_grad=config.extra_task_grad,
        pass_order=config.pass_order,
        fold_batch_norm=config.fast,
        gradient_of=gradient_of,
    )


def input_optimizer(config: RunConfig) -> SGD:
    """The input optimizer of a run, with a fresh state.

    Raises:
        ValueError: the catalogue has it, and `OPTIMIZERS` does not.
    """
    arguments = {
        name: getattr(config, given) if isinstance(given, str) else tuple(getattr(config, each) for each in given)
        for name, given in INPUT_OPTIMIZERS[config.optimizer].arguments.items()
    }
    return make_optimizer(config.optimizer, **arguments)
