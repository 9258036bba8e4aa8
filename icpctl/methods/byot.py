"""BYOT, be your own teacher: classifiers on the stages of the network learn from the last one.

    L = CE_C + Σ_i [(1 − α)·CE_i + α·H(sg p^τ_C, p^τ_i) + λ·‖h_i − sg f_C‖]

for the stages i before the last one, C, which is the network itself. A head brings the features of its stage to the size of the
last ones, h_i, and classifies them. Neither the teacher's predictions nor its features get a gradient. The norm is that of each
image, averaged over the batch. Heads are trained with the network and left out in evaluation.

Source: Zhang et al., arXiv 1905.08094, and the constants of the code of the journal version (IEEE TPAMI 44, 4388). The heads are
ours: convolutions of stride 2, as many as lie between the stage and the last one.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from icpctl.config import RunConfig
from icpctl.methods.base import Batch, Loss, Method
from icpctl.methods.evalmode import eval_mode
from icpctl.methods.icp.perturbation import at_least_float32
from icpctl.methods.soft import log_softmax
from icpctl.methods.taps import channels_first, pooled, tap

SIDES = (32, 64, 224)
"""Of the images for which the operations of the heads are counted, where the run does not resize them: the first that the model takes.
The share is about the same for other sizes, as both are in proportion to the pixels."""


class BYOT(Method):
    """The task loss of the network and of the heads on its stages, and the heads' distance from the network."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.taps = self.config.layers
        first = next(self.model.parameters())
        self.heads_of_stages = make_heads(
            self.model, self.taps, first.new_zeros(2, *self.data.shape), self.data.classes
        )

    def objective(self, batch: Batch) -> Loss:
        """CE_C + Σ_i [(1 − α)·CE_i + α·H + λ·‖h_i − sg f_C‖]."""
        config = self.config
        with tap(self.model, self.taps) as features:
            output = self.trained(batch.x)
        task_loss = batch.criterion(output, batch.y)
        target = log_softmax(output.detach(), config.byot_temperature).exp()
        last = pooled(at_least_float32(features[-1].detach()))
        loss = task_loss
        log = {"output": output, "task_loss": task_loss}
        for i, (head, stage) in enumerate(zip(self.heads_of_stages, features[:-1], strict=True), start=1):
            logits, matched = head(stage)
            own = batch.criterion(logits, batch.y)
            soft = -(target * log_softmax(logits, config.byot_temperature)).sum(dim=1).mean()
            distance = (at_least_float32(matched) - last).norm(dim=1).mean()
            loss = loss + (1 - config.byot_alpha) * own + config.byot_alpha * soft + config.byot_lambda * distance
            log |= {f"head_loss_{i}": own, f"head_distance_{i}": distance}
        return loss, {name: value.detach() for name, value in log.items()}

    @classmethod
    def measure(cls, config: RunConfig, model: nn.Module) -> dict[str, object]:
        """How many operations the heads have, as a share of the network's, in a forward pass; nothing where there are no heads."""
        for side in (config.image_size,) if config.image_size else SIDES:
            x = torch.zeros(2, 3, side, side)
            if heads := make_heads(model, config.layers, x, 10):
                break
        else:
            return {}
        with torch.no_grad(), eval_mode(model), tap(model, config.layers) as features, _counting() as of_network:
            model(x)
        with torch.no_grad(), _counting() as of_heads:
            for head, stage in zip(heads, features[:-1], strict=True):
                head(stage)
        share = of_heads.get_total_flops() / of_network.get_total_flops()
        return {"byot_share": round(share, 3)}


def make_heads(model: nn.Module, layers: Sequence[str], x: Tensor, classes: int) -> nn.ModuleList:
    """A head for each stage but the last; none where the model cannot take such images.

    Args:
        model: the network.
        layers: its stages.
        x: (2, 3, H, W), images of the size that it will get.
        classes: K.
    """
    try:
        with torch.no_grad(), eval_mode(model), tap(model, layers) as features:
            model(x)
    except Exception:  # the check of the run says it in words
        return nn.ModuleList()
    *stages, last = map(channels_first, features)
    return nn.ModuleList(Head(stage, last, classes) for stage in stages)


class Head(nn.Module):
    """Maps the features of a stage to logits (B, K), and to features of the size of the last stage's, averaged over pixels."""

    def __init__(self, stage: Tensor, last: Tensor, classes: int) -> None:
        super().__init__()
        width = pooled(last).shape[1]
        self.body = _convolutions(stage, last, width) if stage.dim() == 4 else _linear(pooled(stage).shape[1], width)
        self.classifier = nn.Linear(width, classes)
        self.to(stage.device)

    def forward(self, stage: Tensor) -> tuple[Tensor, Tensor]:
        matched = pooled(self.body(channels_first(stage) if stage.dim() == 4 else pooled(stage)))
        return self.classifier(matched), matched


def _convolutions(stage: Tensor, last: Tensor, width: int) -> nn.Sequential:
    """3×3 convolutions with batch norm and ReLU: each halves the side until it is that of the last stage, and the last has its width."""
    side, smallest = stage.shape[-1], last.shape[-1] if last.dim() == 4 else 1
    strides = [2] * max(0, (side // max(smallest, 1)).bit_length() - 1) or [1]
    doubled = [min(stage.shape[1] * 2**i, width) for i in range(1, len(strides))]
    widths = [stage.shape[1], *doubled, width]
    return nn.Sequential(
        *itertools.chain.from_iterable(
            (nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU())
            for before, after, stride in zip(widths, widths[1:], strides, strict=False)
        )
    )


def _linear(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(before, after), nn.BatchNorm1d(after), nn.ReLU())


def _counting() -> FlopCounterMode:
    return FlopCounterMode(display=False)
