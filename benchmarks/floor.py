"""The least work that the method needs, as bare pieces: what the engine's step is measured against.

- one train step of the task alone: forward, backward, update of the weights;
- T times a pass of the perturbation: forward and gradient of the input, of the network in eval mode with batch norm folded
  into the convolutions and parameters that need no gradient;
- one forward pass of the teacher in train mode, without a graph.

The feature loss is work that the method needs, too: with it the train step is one of the whole objective, whose targets are there already.

On a GPU each piece is a CUDA graph. Nothing is logged, no gradient is clipped, the folding and the update of the input are not counted.
Layout and optimizer are the fastest ones of torch: channels last, fused.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from icpctl.methods import taps
from icpctl.methods.icp import distillation as distill
from icpctl.methods.icp import perturbation as icp
from icpctl.methods.icp.folding import fold

Criterion = Callable[[Any, Tensor], Tensor]


class Floor:
    """The pieces for a model in channels last and a batch.

    Args:
        model: the network; the folded copy is of its weights now.
        criterion: (outputs, targets) → the batch mean of the task loss.
        x: (B, 3, H, W), channels last.
        y: targets.
        lr: of AdamW.
    """

    def __init__(self, model: nn.Module, criterion: Criterion, x: Tensor, y: Tensor, lr: float = 3e-4) -> None:
        self.model, self.criterion, self.x, self.y = model.train(), criterion, x, y
        self.folded = self._frozen()
        self.folded(x)  # tried before a graph is captured
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=lr, weight_decay=0.0, fused=True, capturable=x.is_cuda
        )

    def _frozen(self) -> Callable[[Tensor], Any]:
        """The network as it is now, in eval mode, folded, with parameters that need no gradient."""
        frozen = copy.deepcopy(self.model).eval().requires_grad_(False)
        folded = fold(frozen)
        return frozen if folded is None else folded.now()

    def train_step(self) -> None:
        """Forward, backward and update, of the task alone."""
        self.optimizer.zero_grad(set_to_none=True)
        self.criterion(self.model(self.x), self.y).backward()
        self.optimizer.step()

    def distilling_step(self, layers: Sequence[str], task_weight: float) -> Callable[[], None]:
        """Forward, backward and update, of the task and the feature loss; the targets are of the network as it is now."""
        with torch.no_grad(), taps.tap(self.model, layers) as targets:
            self.model(self.x)
        weights = distill.layer_weights(len(layers))

        def step() -> None:
            self.optimizer.zero_grad(set_to_none=True)
            with taps.tap(self.model, layers) as features:
                output = self.model(self.x)
            loss = task_weight * self.criterion(output, self.y)
            (loss + (1 - task_weight) * distill.feature_loss(features, targets, weights)).backward()
            self.optimizer.step()

        return step

    def perturbation_pass(self) -> None:
        """The gradient of the input, once."""
        self.gradient(self.x)

    def teacher_pass(self) -> None:
        """The teacher's forward pass."""
        with torch.no_grad():
            self.model(self.x)

    def gradient(self, x_t: Tensor, network: Callable[[Tensor], Any] | None = None) -> Tensor:
        """∂ L_task / ∂x_t, by the folded network."""
        x_t = x_t.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(self.criterion((network or self.folded)(x_t), self.y), x_t)
        return gradient

    def backward(
        self, layers: tuple[str, ...], optimizer: str, steps: int, icp_lr: float, task_weight: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The pieces put together to the method's gradients, left in `.grad`; x_T, the feature loss, the task loss."""
        same_numbers = distill.random_numbers_from_here(self.x.device)
        with taps.tap(self.model, layers) as student:
            output = self.model(self.x)
        task_loss = self.criterion(output, self.y)
        frozen = self._frozen()  # on the running statistics as the student's pass has moved them
        x_t, update = self.x, icp.make_optimizer(optimizer)
        for _ in range(steps):
            x_t = x_t - icp_lr * update(self.gradient(x_t, frozen), x_t)
        with same_numbers(), torch.no_grad(), taps.tap(self.model, layers) as teacher:
            self.model(x_t)
        features = distill.feature_loss(student, teacher, distill.layer_weights(len(layers)))
        self.optimizer.zero_grad(set_to_none=True)
        (task_weight * task_loss + (1 - task_weight) * features).backward()
        return x_t, features, task_loss
