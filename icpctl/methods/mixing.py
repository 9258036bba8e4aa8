"""Images that are mixed in pairs, with their labels, before any method sees them: mixup and CutMix.

    mixup:  x̃ = λ·x + (1 − λ)·x_π
    CutMix: x̃ = x, but for a box of area 1 − λ, which is that of x_π
    both:   ỹ = λ·y + (1 − λ)·y_π

for one λ ~ Beta(α, α) and one permutation π of the batch. The cross-entropy of ỹ is that of y and of y_π, weighted by λ and 1 − λ.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from icpctl.config import RunConfig


def mix(config: RunConfig, x: Tensor, y: Tensor, classes: int, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
    """A batch mixed as a run says, or with the probability that it says left as it is.

    Args:
        config: of the run; `mix` is mixup or cutmix.
        x: (B, C, H, W).
        y: (B,) class indices.
        classes: K.
        generator: of λ, π and the box.

    Returns:
        x̃ (B, C, H, W) and ỹ (B, K).
    """
    targets = F.one_hot(y, classes).to(x.dtype)
    if generator.random() >= config.mix_probability:
        return x, targets
    share = generator.beta(config.mix_alpha, config.mix_alpha)
    order = torch.from_numpy(generator.permutation(len(x))).to(x.device, non_blocking=True)  # else it waits for the GPU
    match config.mix:
        case "mixup":
            return mixup(x, targets, share, order)
        case "cutmix":
            height, width = x.shape[2:]
            centre = int(generator.integers(height)), int(generator.integers(width))
            return cutmix(x, targets, share, order, centre)
    raise ValueError(f"mix is {config.mix!r}, which mixes nothing")


def mixup(x: Tensor, y: Tensor, share: float, order: Tensor) -> tuple[Tensor, Tensor]:
    """The weighted means of images and labels (Zhang et al., arXiv 1710.09412).

    Args:
        x: (B, C, H, W).
        y: (B, K), probabilities.
        share: λ.
        order: π, (B,).
    """
    return x.lerp(x[order], 1 - share), y.lerp(y[order], 1 - share)


def cutmix(x: Tensor, y: Tensor, share: float, order: Tensor, centre: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Images with a box of others (Yun et al., arXiv 1905.04899).

    λ becomes the share of the image that is left of it, as the border may cut the box.

    Args:
        x, y, share, order: as for `mixup`.
        centre: row and column of the box's.
    """
    box = [
        slice(max(0, place - half), min(side, place + half))
        for place, side in zip(centre, x.shape[2:], strict=True)
        for half in [int(0.5 * math.sqrt(1 - share) * side)]
    ]
    rows, columns = box
    mixed = x.clone()
    mixed[:, :, rows, columns] = x[order][:, :, rows, columns]
    area = (rows.stop - rows.start) * (columns.stop - columns.start)
    return mixed, y.lerp(y[order], area / math.prod(x.shape[2:]))
