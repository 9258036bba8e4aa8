"""FID and KID of given features against their formulas in float64."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from icpctl.tasks import fidelity


def sets(seed: int, n: int, m: int, dimensions: int) -> tuple[Tensor, Tensor]:
    """Two sets of features, correlated, of different means and scales."""
    rng = np.random.default_rng(seed)
    mixed = [rng.normal(size=(k, dimensions)) @ rng.normal(size=(dimensions, dimensions)) for k in (n, m)]
    return torch.from_numpy(mixed[0]), torch.from_numpy(mixed[1] * rng.uniform(0.3, 3) + rng.normal(size=dimensions))


def frechet(a: Tensor, b: Tensor) -> float:
    covariances = [np.cov(features.numpy(), rowvar=False) for features in (a, b)]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1])
    difference = (a.mean(0) - b.mean(0)).numpy()
    return float(difference @ difference + np.trace(covariances[0] + covariances[1] - 2 * root.real))


def mmd2(a: Tensor, b: Tensor) -> float:
    """Means over pairs: within a set without those of a point and itself, between the sets over all."""
    kernels = [(x @ y.T / x.shape[1] + 1) ** 3 for x, y in ((a, a), (b, b), (a, b))]
    within = [(kernel.sum() - kernel.trace()) / (len(kernel) * (len(kernel) - 1)) for kernel in kernels[:2]]
    return float(sum(within) - 2 * kernels[2].mean())


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**16), st.integers(30, 90), st.integers(30, 90), st.integers(2, 20))
def test_fid_is_the_closed_formula(seed: int, n: int, m: int, dimensions: int) -> None:
    a, b = sets(seed, n, m, dimensions)
    expected = frechet(a, b)
    assert fidelity._fid(a, b) == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert fidelity._fid(b, a) == pytest.approx(expected, rel=1e-6, abs=1e-6)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**16), st.integers(2, 12), st.integers(2, 20))
def test_kid_is_the_unbiased_mmd_where_a_subset_is_all(seed: int, n: int, dimensions: int) -> None:
    a, b = sets(seed, n, n, dimensions)
    assert fidelity._kid(a, b) == pytest.approx(mmd2(a, b), rel=1e-9, abs=1e-9)


def test_kid_takes_the_same_subsets_each_time() -> None:
    a, b = sets(0, 12, 30, 3)
    rng = np.random.RandomState(2020)  # torch-fidelity's
    expected = [mmd2(a[rng.choice(12, 12, replace=False)], b[rng.choice(30, 12, replace=False)]) for _ in range(100)]
    assert fidelity._kid(a, b) == pytest.approx(np.mean(expected), rel=1e-9)
