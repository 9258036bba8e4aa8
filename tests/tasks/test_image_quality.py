"""SSIM and PSNR are scikit-image's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from icpctl.tasks.image_quality import CHUNK_PIXELS, image_quality


def drawn(number: int, height: int, width: int, seed: int, noise: float) -> tuple[Tensor, Tensor]:
    """Images, and the same with noise; some plain ones among them, whose variances are 0."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (number, 3, height, width), generator=generator)
    images[::3] = images[::3, :, :1, :1]
    others = images + noise * torch.randn(images.shape, generator=generator)
    return images.byte(), others.clamp(0, 255).round().byte()


@settings(max_examples=30, deadline=None)
@given(
    number=st.integers(1, 5),
    height=st.integers(7, 20),
    width=st.integers(7, 20),
    seed=st.integers(0, 2**20),
    noise=st.sampled_from([0.0, 1.0, 30.0, 300.0]),
)
def test_they_are_those_of_scikit_image(number: int, height: int, width: int, seed: int, noise: float) -> None:
    images, others = drawn(number, height, width, seed, noise)
    ssim, psnr = image_quality(images, others)
    assert ssim.dtype == psnr.dtype == torch.float64
    for i, (a, b) in enumerate(zip(images.numpy(), others.numpy(), strict=True)):
        expected = structural_similarity(a, b, channel_axis=0, data_range=255)
        assert float(ssim[i]) == pytest.approx(expected, abs=1e-12)
        with np.errstate(divide="ignore"):
            assert float(psnr[i]) == pytest.approx(peak_signal_noise_ratio(a, b, data_range=255), rel=1e-12)


def test_the_largest_sums_are_whole() -> None:
    white = torch.full((1, 3, 64, 64), 255, dtype=torch.uint8)
    nearly = white.clone()
    nearly[0, 0, 30, 30] = 254
    ssim, _ = image_quality(white, nearly)
    expected = structural_similarity(white[0].numpy(), nearly[0].numpy(), channel_axis=0, data_range=255)
    assert float(ssim) == pytest.approx(expected, abs=1e-13)


def test_many_images_are_compared_in_chunks() -> None:
    images, others = drawn(CHUNK_PIXELS // 64 + 3, 8, 8, seed=1, noise=20.0)
    together = torch.stack(image_quality(images, others))
    alone = torch.stack(
        [torch.cat(image_quality(a[None], b[None])) for a, b in zip(images, others, strict=True)], dim=1
    )
    assert torch.equal(together, alone)


def test_equal_images_are_perfect() -> None:
    images, _ = drawn(4, 16, 16, seed=0, noise=0.0)
    ssim, psnr = image_quality(images, images)
    assert ssim.tolist() == [1.0] * 4
    assert psnr.tolist() == [float("inf")] * 4
