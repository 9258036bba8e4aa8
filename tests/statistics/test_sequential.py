"""The sequential tests: held against simulation, integrals, a published table, and the fixed t test."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import nct, norm, ttest_1samp
from scipy.stats import t as student

from icpctl.statistics import ALPHA, sequential
from icpctl.statistics.sequential import ALPHAS, e_value, nominal_levels, running_p


def crossing(levels: tuple[float, ...], first: int, two_sided: bool, studies: int = 100_000) -> list[float]:
    """How often simulated studies without a difference have rejected by each look."""
    most = first + len(levels) - 1
    x = np.random.default_rng(5).standard_normal((studies, most))
    n = np.arange(1, most + 1)
    mean = np.cumsum(x, 1) / n
    with np.errstate(divide="ignore", invalid="ignore"):
        t = (mean / np.sqrt((np.cumsum(x * x, 1) - n * mean**2) / (n - 1) / n))[:, first - 1 :]
    p = student.sf(np.abs(t) if two_sided else t, n[first - 1 :] - 1) * (2 if two_sided else 1)
    hit = np.maximum.accumulate(p <= np.array(levels), axis=1)
    return [float(share) for share in hit.mean(0)]


@pytest.mark.parametrize("two_sided", [True, False])
@pytest.mark.parametrize(("first", "most"), [(3, 20), (5, 12)])
def test_by_each_look_the_share_of_alpha_is_spent_that_was_to_be(first: int, most: int, two_sided: bool) -> None:
    """In simulated studies, whose standard deviation is not known to the test."""
    alpha = 0.2  # large, so that the early looks can be told from none
    shares = crossing(nominal_levels(alpha, first, most, two_sided), first, two_sided)
    expected = alpha * np.arange(first, most + 1) / most
    assert np.abs(np.array(shares) - expected).max() < 4 * math.sqrt(alpha / 100_000) + 0.001


def test_the_first_look_is_the_t_test_of_what_may_be_spent_by_then() -> None:
    assert nominal_levels(0.05, 4, 20)[0] == pytest.approx(0.05 * 4 / 20, rel=1e-3)
    assert nominal_levels(0.05, 7, 7)[0] == pytest.approx(0.05, rel=1e-3)


@pytest.mark.parametrize(
    ("spending", "published"),
    [
        (lambda share: 0.05 * math.log(1 + (math.e - 1) * share), [2.4380, 2.4268, 2.4101, 2.3966, 2.3859]),
        (lambda share: 4 * norm.sf(norm.isf(0.05 / 4) / math.sqrt(share)), [4.8769, 3.3569, 2.6803, 2.2898, 2.0310]),
    ],
)
def test_with_many_seeds_between_looks_the_boundaries_are_the_published_ones(
    spending: Callable[[float], float], published: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five looks, α 0.05 on two sides, spending of the types of Pocock and of O'Brien and Fleming: Reboussin, DeMets, Kim and
    Lan (Controlled Clinical Trials 21, 2000), the standard output of their program, for normal statistics.
    """
    every = 20  # seeds between two looks: t is nearly normal, and the rest of the difference is of the order of 1 / 20
    monkeypatch.setattr(sequential, "spent", lambda alpha, n, most: spending(n // every / 5))
    levels = nominal_levels.__wrapped__(0.05, every, 5 * every)
    z = [float(norm.isf(levels[n - every] / 2)) for n in range(every, 5 * every + 1, every)]
    np.testing.assert_allclose(z, published, atol=0.011)
    assert all(level < 1e-9 for n, level in enumerate(levels, start=every) if n % every)  # no look in between


@pytest.mark.parametrize("seeds", [2, 3, 7, 40])
@pytest.mark.parametrize("t", [0.0, -0.7, 2.5, 12.0])
def test_the_e_value_is_the_bayes_factor_by_numerical_integration(t: float, seeds: int) -> None:
    """Of the noncentral t density, over a normal prior of the effect size, against the central one."""
    for prior in (0.5, 1.0, 4.0):
        scale = 1 / math.sqrt(prior)
        alternative, _ = quad(
            lambda d: nct.pdf(t, seeds - 1, d * math.sqrt(seeds)) * norm.pdf(d, scale=scale),  # noqa: B023
            -9 * scale, 9 * scale, points=[0, t / math.sqrt(seeds)], limit=400, epsabs=1e-13,
        )  # fmt: skip
        assert e_value(t, seeds, prior) == pytest.approx(alternative / student.pdf(t, seeds - 1), rel=1e-4)


def test_the_e_value_of_one_seed_and_of_no_spread_is_a_number() -> None:
    assert e_value(3.0, 1) == 1.0
    assert 1 < e_value(math.inf, 5) < math.inf


def test_under_no_difference_the_e_value_ever_exceeds_twenty_in_less_than_one_study_in_twenty() -> None:
    x = np.random.default_rng(3).standard_normal((2_000, 30))
    n = np.arange(1, 31)
    mean = np.cumsum(x, 1) / n
    spread = np.sqrt((np.cumsum(x * x, 1) - n * mean**2)[:, 1:] / (n - 1)[1:])
    t = mean[:, 1:] / spread * np.sqrt(n[1:])
    found = [any(e_value(float(each), seeds) >= 20 for seeds, each in enumerate(row, start=2)) for row in t]
    assert np.mean(found) <= 0.05


@settings(max_examples=30, deadline=None)
@given(st.integers(3, 9), st.integers(0, 2**31), st.floats(-3, 3))
def test_one_look_is_the_t_test(seeds: int, seed: int, shift: float) -> None:
    x = np.random.default_rng(seed).standard_normal(seeds) + shift
    for alternative in ("two-sided", "greater"):
        (p,) = running_p(x, seeds, seeds, alternative)
        assert p == pytest.approx(ttest_1samp(x, 0, alternative=alternative).pvalue, rel=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.floats(0, 2), st.sampled_from(["two-sided", "greater"]))
def test_p_is_at_most_alpha_just_when_a_look_so_far_crosses_the_boundary(
    seed: int, shift: float, alternative: str
) -> None:
    x = np.random.default_rng(seed).standard_normal(12) + shift
    p = running_p(x, 3, 12, alternative)  # type: ignore[arg-type]
    levels = nominal_levels(ALPHA, 3, 12, alternative == "two-sided")
    nominal = [ttest_1samp(x[:n], 0, alternative=alternative).pvalue for n in range(3, 13)]
    crossed = np.maximum.accumulate([one <= level for one, level in zip(nominal, levels, strict=True)])
    assert [each <= ALPHA for each in p] == list(crossed)
    assert p == sorted(p, reverse=True)
    assert len(running_p(x[:2], 3, 12)) == 0


def test_the_levels_rise_with_alpha_so_that_p_values_are_ordered() -> None:
    for look in (0, 5, 17):
        at_look = [nominal_levels(float(alpha), 3, 20)[look] for alpha in ALPHAS]
        assert at_look == sorted(at_look)


def test_differences_without_any_spread_have_no_test() -> None:
    assert running_p(np.full(6, 0.25), 3, 6) == [1.0] * 4
    assert running_p(np.array([0.25, 0.25 + 1e-9, 0.25]), 3, 3, rounding=1e-8) == [1.0]
