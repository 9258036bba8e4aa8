"""SSIM and PSNR of 8-bit images, on their device.

The numbers are scikit-image's, `structural_similarity` and `peak_signal_noise_ratio`. Sums over windows of 8-bit values are whole
numbers, which float32 has exactly, and float64 their products: so nothing is lost to rounding before the last division.
"""

from __future__ import annotations

import torch
from torch import Tensor

WINDOW = 7
"""Pixels of a side; all have the same weight."""
AREA = WINDOW**2
RANGE = 255
C1, C2 = (0.01 * RANGE) ** 2, (0.03 * RANGE) ** 2
"""Wang et al., IEEE TIP 13 (2004) 600, section III.B."""

CHUNK_PIXELS = 2**15
"""Of images that are compared at once, so that the sums stay in the cache of a processor."""


def image_quality(images: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """SSIM and PSNR in dB, (N,) float64 each.

    Args:
        images: (N, C, H, W) uint8, of 7 pixels a side or more.
        others: their counterparts.

    Returns:
        SSIM: the mean over the channels and over all windows of 7×7 pixels that are inside of the image, with sample covariances.
        PSNR: 10·log10(255² / MSE), infinite for equal images.
    """
    number = max(1, CHUNK_PIXELS // images[0, 0].numel())
    pairs = zip(images.split(number), others.split(number), strict=True)
    ssim, psnr = zip(*(_of_chunk(a.float(), b.float()) for a, b in pairs), strict=True)
    return torch.cat(ssim), torch.cat(psnr)


def _of_chunk(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    sum_a, sum_b = _window_sums(a), _window_sums(b)
    products = sum_a * sum_b
    squares = sum_a.square_().add_(sum_b.square_())
    # The formula for means, variances and covariance, times the squares of their denominators.
    covariance = _window_sums(a * b).mul_(AREA).sub_(products)
    variances = _window_sums(a.square() + b.square()).mul_(AREA).sub_(squares)
    c1, c2 = C1 * AREA**2, C2 * AREA * (AREA - 1)
    above = products.mul_(2).add_(c1).mul_(covariance.mul_(2).add_(c2))
    below = squares.add_(c1).mul_(variances.add_(c2))
    error = (a - b).square_().flatten(1).double().mean(dim=1)
    return above.div_(below).flatten(1).mean(dim=1), 10 * torch.log10(RANGE**2 / error)


def _window_sums(values: Tensor) -> Tensor:
    """(…, H, W) float32 to (…, H − 6, W − 6) float64: the sums over all windows, of whole numbers that stay below 2²⁴."""
    for axis in (-2, -1):
        size = values.shape[axis] - WINDOW + 1
        pairs = values.narrow(axis, 0, size + 5) + values.narrow(axis, 1, size + 5)
        sums = pairs.narrow(axis, 0, size) + pairs.narrow(axis, 2, size)
        values = sums.add_(pairs.narrow(axis, 4, size)).add_(values.narrow(axis, 6, size))
    return values.double()
