"""Tests that may be looked at after every seed: the group-sequential t test with alpha spending, and the anytime-valid one.

Of n differences x₁ … xₙ, a = Σx / √Σx² says the same as their t statistic: t = a √((n − 1) / (n − a²)). If the mean is zero,
a is a Markov chain, whatever the standard deviation: aₙ₊₁ = aₙ cos φ + sin φ, where the angle φ is independent of what came
before and has a density in proportion to cosⁿ⁻¹ φ. So the chance of crossing a boundary at any look is computed without a
normal approximation, for three seeds as for forty.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from scipy.special import betainc
from scipy.stats import t as student

Floats = np.ndarray[Any, np.dtype[np.float64]]

CELLS_PER_SEED, LEAST_CELLS = 3, 120
"""Pieces of the range of a, in each of which its density is taken to be a straight line: so many for each of the most seeds."""
TINY = 1e-300
BOUNDS = 400
"""Places between which a boundary is interpolated."""
ALPHAS = 0.05 * np.array([0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 1 / 3, 0.5, 1, 2, 5, 10])
"""Levels of which the boundaries are computed for p values; in between the logarithms are interpolated."""
PRIOR_SEEDS = 1.0
"""Of the anytime-valid test: the prior of the effect size is normal with a variance of 1 / PRIOR_SEEDS."""


def spent(alpha: float, seeds: int, most: int) -> float:
    """The part of alpha that may be spent by the time of so many seeds: in proportion to them."""
    return alpha * seeds / most


@lru_cache(maxsize=512)
def nominal_levels(alpha: float, first: int, most: int, two_sided: bool = True) -> tuple[float, ...]:
    """The level at which the t test of n seeds is done, for n = first … most, so that all looks together err with alpha.

    By alpha spending (Lan and DeMets, 1983), with `spent`. Looks that are left out, or an end before the last one, lower the
    chance of an error.

    Args:
        alpha: the chance of any rejection, if the mean is zero.
        first: seeds at the first look, 2 or more.
        most: seeds at the last one.
        two_sided: whether values of t far below zero reject, too.
    """
    cells = max(LEAST_CELLS, CELLS_PER_SEED * most)
    before, levels = 0.0, []
    places, mass = np.array([]), np.array([])
    for n in range(first, most + 1):
        reach = math.sqrt(n)

        def above(bounds: Floats, n: int = n, places: Floats = places, mass: Floats = mass) -> Floats:
            """The chance that no boundary was crossed before, and that a is above each of these."""
            if n == first:
                return 1 - _cdf(bounds, n)
            chance: Floats = mass @ _above(places, bounds, n - 1)
            return chance

        bounds = reach * np.sin(np.linspace(0 if two_sided else -math.pi / 2, math.pi / 2, BOUNDS))
        crossing = above(bounds) * (2 if two_sided else 1)
        now = spent(alpha, n, most)
        budget = max(now - before, TINY)
        before = now
        bound = float(np.interp(-math.log(budget), -np.log(np.maximum(crossing, TINY)), bounds))
        levels.append(float(student.sf(_t(bound, n), n - 1)) * (2 if two_sided else 1))
        start = -bound if two_sided else -reach
        edges = (start + bound + (bound - start) * np.sin(np.linspace(-math.pi / 2, math.pi / 2, cells + 1))) / 2
        places, mass = _points(edges, -np.diff(above(edges)))
    return tuple(levels)


def running_p(
    differences: Floats,
    first: int,
    most: int,
    alternative: Literal["two-sided", "greater"] = "two-sided",
    rounding: float = 0.0,
) -> list[float]:
    """The p value at each look so far, of a mean of zero, or of zero or less: valid however many looks there are.

    Args:
        differences: (seeds,) in the order of the seeds.
        first, most: as of `nominal_levels`; if they are equal, there is one look, and this is the t test.
        alternative: what small values speak for: a mean that is not zero, or one above zero.
        rounding: differences that vary by no more than this have no spread, and so no test: p is 1.
    """
    two_sided = alternative == "two-sided"
    found: list[float] = []
    for n in range(first, len(differences) + 1):
        x = differences[:n]
        spread = float(x.std(ddof=1)) if n > 1 else 0.0
        nominal = 1.0
        if spread > rounding:
            t = float(x.mean()) / spread * math.sqrt(n)
            nominal = float(student.sf(abs(t) if two_sided else t, n - 1)) * (2 if two_sided else 1)
        p = nominal if first == most else _over_looks(nominal, n, first, most, two_sided)
        found.append(min(p, found[-1]) if found else p)
    return found


def _over_looks(nominal: float, n: int, first: int, most: int, two_sided: bool) -> float:
    """The least level of the sequential test that rejects where the t test of n seeds has this p value."""

    def level(place: int) -> float:
        return nominal_levels(float(ALPHAS[place]), first, most, two_sided)[n - first]

    place = bisect_left(range(len(ALPHAS)), nominal, key=level)  # so that few of them are computed
    if place in (0, len(ALPHAS)):
        return 1.0 if place else float(ALPHAS[0])
    ends = [place - 1, place]
    return float(math.exp(np.interp(math.log(nominal), np.log([*map(level, ends)]), np.log(ALPHAS[ends]))))


def e_value(t: float, seeds: int, prior: float = PRIOR_SEEDS) -> float:
    """Evidence against a mean of zero: under it, the chance that this ever exceeds 1/α is at most α, whenever one stops.

    The Bayes factor of the t statistic with a normal prior for the effect size: Lindon, Ham, Tingley and Bojinov,
    arXiv 2210.08589.

    Args:
        t: the statistic of all seeds so far.
        seeds: how many these are; of one, the value is 1.
        prior: as `PRIOR_SEEDS`.
    """
    if seeds < 2:
        return 1.0
    ratio, squared = prior / (prior + seeds), t * t / (seeds - 1)
    gain = math.log1p(squared) - math.log1p(ratio * squared) if math.isfinite(t) else -math.log(ratio)
    return math.exp(min(math.log(ratio) / 2 + seeds / 2 * gain, 700.0))


def _points(edges: Floats, masses: Floats) -> tuple[Floats, Floats]:
    """Two points for each cell between these edges, with half of its mass, that keep its mean and its variance.

    The density in a cell is taken to be a straight line, with the slope of its neighbours.
    """
    widths, middles = np.diff(edges), (edges[:-1] + edges[1:]) / 2
    density = masses / widths
    slope = np.gradient(density, middles) / np.maximum(density, TINY)
    means = middles + widths * np.clip(widths * slope / 12, -1 / 6, 1 / 6)
    apart = widths / math.sqrt(12)
    return np.concatenate([means - apart, means + apart]), np.concatenate([masses, masses]) / 2


def _t(a: float, n: int) -> float:
    rest = n - a * a
    return math.inf if rest <= 0 else a * math.sqrt((n - 1) / rest)


def _cdf(a: Floats, n: int) -> Floats:
    """Of a, of n differences with a mean of zero: a² / n has a beta distribution."""
    chance: Floats = (1 + np.sign(a) * betainc(0.5, (n - 1) / 2, np.minimum(a * a / n, 1))) / 2
    return chance


def _above(a: Floats, bounds: Floats, n: int) -> Floats:
    """(a, bounds): the chance that the next a is above a bound, from each a of n differences.

    The next one is √(1 + a²) sin(φ + atan a), which is above where φ + atan a lies between β and π − β, or below −π − β,
    if the bound is √(1 + a²) sin β.
    """
    angles, cdf = _of_angle(n)
    turn = np.arctan(a)[:, None]
    beta = np.arcsin(np.clip(bounds / np.sqrt(1 + a * a)[:, None], -1, 1))

    def below(angle: Floats) -> Floats:
        return np.asarray(np.interp(angle, angles, cdf), np.float64)  # outside of ±π/2: 0 and 1

    chance: Floats = below(math.pi - beta - turn) - below(beta - turn) + below(-math.pi - beta - turn)
    return chance


@lru_cache(maxsize=128)
def _of_angle(n: int) -> tuple[Floats, Floats]:
    """The distribution of φ, after n differences: its places and the chance of less."""
    angles = np.linspace(-math.pi / 2, math.pi / 2, 4001)
    return angles, (1 + np.sign(angles) * betainc(0.5, n / 2, np.sin(angles) ** 2)) / 2
