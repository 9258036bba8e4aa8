"""The procedure of the authors' released code, re-expressed plainly: the peer that the engine is measured against.

What it does, and the engine does otherwise:

- float32 in torch's default layout (NCHW), the network as it is, its parameters not frozen;
- a garbage collection and a flush of the device's cache on every batch;
- a clean forward and full backward in eval mode before the loop, whose parameter gradients stay in `.grad`;
- in the loop, T full backward passes, through the parameters too, with a kept graph; x_t is not detached from x_{t−1}, and
  all losses are kept, so the graphs of all steps are alive at its end;
- AdamW as torch makes it by default.

Its defects that change numbers are left out, as they are in the engine: the AdEMAMix update, which returns nothing there, is
the published one; and the gradients of the clean pass are dropped before the step unless `extra_task_grad` asks for them.
"""

from __future__ import annotations

import copy
import gc
import math
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from icpctl.trainer import Trainer

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
        clean_pass: whether there is one.
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

    def step(self, x: Tensor, y: Tensor, task_weight: float) -> dict[str, Tensor]:
        """Update the weights for one batch; x_icp and the losses."""
        x_icp, feature_loss, task_loss = self.backward(x, y, task_weight)
        nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_grad_norm)
        self.adamw.step()
        return {"x_icp": x_icp, "feature_loss": feature_loss.detach(), "task_loss": task_loss.detach()}

    def backward(self, x: Tensor, y: Tensor, task_weight: float) -> tuple[Tensor, Tensor, Tensor]:
        """The same up to the gradients, which are left in `.grad`."""
        if self.collect:
            gc.collect()
            if x.is_cuda:
                torch.cuda.empty_cache()
        self.model.zero_grad()
        self.model.eval()
        if self.clean_pass:
            self.criterion(self.model(x), y).backward()
        clean = [None if p.grad is None else p.grad.clone() for p in self.model.parameters()]
        x_icp = self._perturb(x, y)
        for parameter, gradient in zip(self.model.parameters(), clean, strict=True):
            parameter.grad = gradient if self.extra_task_grad else None
        self.model.train()
        noise = torch.get_rng_state()
        with torch.no_grad():
            teacher, _ = self._features(x_icp)
        torch.set_rng_state(noise)
        student, output = self._features(x)
        task_loss = self.criterion(output, y)
        feature_loss = torch.zeros((), dtype=x.dtype, device=x.device)
        for i, (of_student, of_teacher) in enumerate(zip(student, teacher, strict=True)):
            weight = math.cos(i / max(len(self.layers) - 1, 1) * math.pi / 4)
            feature_loss = feature_loss + weight * ((of_student - of_teacher) ** 2).mean()
        loss = task_weight * task_loss + (1 - task_weight) * feature_loss
        loss.backward()
        return x_icp, feature_loss, task_loss

    def _perturb(self, x: Tensor, y: Tensor) -> Tensor:
        beta1, beta2, beta3, alpha, eps = 0.9, 0.999, 0.9999, 5.0, 1e-8
        m, v, slow = torch.zeros_like(x), torch.zeros_like(x), torch.zeros_like(x)
        x_t = x.clone().requires_grad_()
        losses = []
        for t in range(1, self.steps + 1):
            x_t.retain_grad()
            loss = self.criterion(self.model(x_t), y)
            losses.append(loss)
            loss.backward(retain_graph=True)
            assert x_t.grad is not None
            g = x_t.grad.clone()
            if self.optimizer == "sgd":
                update = g
            else:
                m = beta1 * m + (1 - beta1) * g
                v = beta2 * v + (1 - beta2) * g**2
                m_hat, v_hat = m / (1 - beta1**t), v / (1 - beta2**t)
                slow = beta3 * slow + (1 - beta3) * g
                first = m_hat + alpha * slow if self.optimizer == "ademamix" else m_hat
                update = first / (v_hat.sqrt() + eps)
            x_t = x_t - self.icp_lr * update
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
