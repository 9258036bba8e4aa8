"""The step of the authors' released code, operation by operation: the peer that the engine is measured against.

1. train mode: the student's pass on x, and the task loss, whose value is read on the host;
2. eval mode: a clean pass on x and one full backward with a kept graph, whose parameter gradients stay in `.grad`;
3. eval mode, T times: the gradient of the loss with respect to the latest image alone, the update, a forward pass. The loss
   of the step before is dropped, so the memory does not grow with T;
4. train mode: the teacher's pass on x_T, with a graph that is never used;
5. the total loss, its backward with a kept graph, clipping, AdamW as torch makes it by default, `zero_grad`, and three
   values read on the host;
6. a garbage collection and a flush of the device's cache.

All of it in float32 and torch's default layout (NCHW), by the network as it is.

Two of its defects change numbers and are left out, as they are in the engine: its AdEMAMix update returns nothing, and is the
published one here; and the gradients of the clean pass are dropped before the step unless `extra_task_grad` asks for them.
"""

from __future__ import annotations

import copy
import gc
import math
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from icpctl.methods.icp.distillation import random_numbers_from_here
from icpctl.training.trainer import Trainer

Criterion = Callable[[Any, Tensor], Tensor]


class Reference:
    """One step of the procedure on a batch.

    Args:
        model: the network, in NCHW.
        layers: the paths of its stages.
        criterion: (outputs, targets) → the batch mean of the task loss.
        optimizer: sgd, adam or ademamix.
        steps, icp_lr: T and η.
        lr, clip_grad_norm: of AdamW; the bound of the gradient's global norm.
        extra_task_grad: keep the gradients of the clean pass.
        collect: whether to collect garbage and to flush the cache on every batch.
        clean_pass: whether the clean pass has its full backward.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: tuple[str, ...],
        criterion: Criterion,
        optimizer: str,
        steps: int,
        icp_lr: float = 2e-3,
        lr: float = 3e-4,
        clip_grad_norm: float = 5.0,
        extra_task_grad: bool = False,
        collect: bool = True,
        clean_pass: bool = True,
    ) -> None:
        self.model, self.layers, self.criterion = model, layers, criterion
        self.optimizer, self.steps, self.icp_lr = optimizer, steps, icp_lr
        self.clip_grad_norm, self.extra_task_grad, self.collect = clip_grad_norm, extra_task_grad, collect
        self.clean_pass = clean_pass
        self.adamw = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)

    @classmethod
    def of(cls, trainer: Trainer, collect: bool = True, clean_pass: bool = True) -> Self:
        """The procedure for a run of the engine: its settings, and a copy of its weights."""
        config = trainer.config
        return cls(
            copy.deepcopy(trainer.model).to(memory_format=torch.contiguous_format),
            config.layers,
            trainer.task.loss,
            config.optimizer,
            config.steps,
            config.icp_lr,
            config.lr,
            config.clip_grad_norm,
            collect=collect,
            clean_pass=clean_pass,
        )

    def step(self, x: Tensor, y: Tensor, task_weight: float) -> dict[str, float]:
        """Update the weights for one batch; the values that are read on the host."""
        _, feature_loss, task_loss = self.backward(x, y, task_weight)
        nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_grad_norm)
        self.adamw.step()
        self.adamw.zero_grad()
        total = task_weight * task_loss + (1 - task_weight) * feature_loss
        values = {"loss": float(total), "task_loss": float(task_loss), "feature_loss": float(feature_loss)}
        if self.collect:
            if x.is_cuda:
                torch.cuda.empty_cache()
            gc.collect()
        return values

    def backward(self, x: Tensor, y: Tensor, task_weight: float) -> tuple[Tensor, Tensor, Tensor]:
        """The same up to the gradients, which are left in `.grad`; x_T, the feature loss and the task loss."""
        same_numbers = random_numbers_from_here(x.device)
        self.model.train()
        student, output = self._features(x)
        task_loss = self.criterion(output, y)
        task_loss.item()
        self.model.eval()
        x_t = x.clone().requires_grad_()
        loss = self.criterion(self.model(x_t), y)
        if self.clean_pass:
            loss.backward(retain_graph=True)
        x_icp = self._perturb(x_t, loss, y)
        if not self.extra_task_grad:
            self.model.zero_grad()
        self.model.train()
        with same_numbers():
            teacher, _ = self._features(x_icp)
        feature_loss = torch.zeros((), dtype=x.dtype, device=x.device)
        for i, (of_student, of_teacher) in enumerate(zip(student, teacher, strict=True)):
            weight = math.cos(i / max(len(self.layers) - 1, 1) * math.pi / 4)
            feature_loss = feature_loss + weight * ((of_student - of_teacher.detach()) ** 2).mean()
        (task_weight * task_loss + (1 - task_weight) * feature_loss).backward(retain_graph=True)
        return x_icp, feature_loss.detach(), task_loss.detach()

    def _perturb(self, x_t: Tensor, loss: Tensor, y: Tensor) -> Tensor:
        """x_T from x_0 and its loss."""
        beta1, beta2, beta3, alpha, eps = 0.9, 0.999, 0.9999, 5.0, 1e-8
        m, v, slow = torch.zeros_like(x_t), torch.zeros_like(x_t), torch.zeros_like(x_t)
        for t in range(1, self.steps + 1):
            (g,) = torch.autograd.grad(loss, x_t)
            if self.optimizer == "sgd":
                update = g
            else:
                m = beta1 * m + (1 - beta1) * g
                v = beta2 * v + (1 - beta2) * g**2
                m_hat, v_hat = m / (1 - beta1**t), v / (1 - beta2**t)
                slow = beta3 * slow + (1 - beta3) * g
                first = m_hat + alpha * slow if self.optimizer == "ademamix" else m_hat
                update = first / (v_hat.sqrt() + eps)
            x_t = (x_t.detach() - self.icp_lr * update).requires_grad_()
            loss = self.criterion(self.model(x_t), y)
        return x_t.detach()

    def _features(self, x: Tensor) -> tuple[list[Tensor], Any]:
        features: list[Tensor] = []
        hooks = [
            self.model.get_submodule(layer).register_forward_hook(lambda _, __, output: features.append(output))
            for layer in self.layers
        ]
        output = self.model(x)
        for hook in hooks:
            hook.remove()
        return features, output
