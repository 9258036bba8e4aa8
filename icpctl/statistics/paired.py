"""What the noise of the seeds allows to say: intervals, paired t tests, Holm's correction, effect size, seeds needed.

Every function takes whole columns. The distributions are scipy's; Holm's correction is statsmodels'.
"""

from __future__ import annotations

import gc
import math
from bisect import bisect_left
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.stats import chi2, f, ncf, norm
from scipy.stats import t as student
from statsmodels.stats.multitest import multipletests

from icpctl.statistics import ALPHA, LEAST_SEEDS, MOST_SEEDS, POWER

LARGEST_EFFECT = 50.0
"""Of larger ones the power, which is 1, cannot be computed."""
ROUNDING = 2.0**-22
"""Relative: metrics are computed in float32, so a spread below this is rounding."""


def describe(values: pd.DataFrame, by: pd.Series) -> pd.DataFrame:
    """Each column over the rows of each group: seeds, mean, std, low and high, its 95 % confidence interval by t.

    Args:
        values: a row a seed of a group, a column a metric; nan is a value that is not there.
        by: the group of each row.

    Returns:
        Indexed by group and metric, in the order of their first appearance; std of one seed, and low and high of fewer than
        `LEAST_SEEDS` seeds, are missing: the interval of two seeds is 13 times as wide as their standard error.
    """
    groups = values.groupby(by.to_numpy(), sort=False)
    columns = {"seeds": groups.count(), "mean": groups.mean(), "std": groups.std()}
    stacked = {name: frame.rename_axis(index="group_id", columns="metric").stack() for name, frame in columns.items()}
    table = pd.DataFrame(stacked)
    half = _standard_error(table) * student.ppf(1 - ALPHA / 2, table["seeds"] - 1)
    half = half.where(table["seeds"] >= LEAST_SEEDS)
    return table.assign(low=table["mean"] - half, high=table["mean"] + half)


def compare(ours: pd.DataFrame, theirs: pd.DataFrame, by: pd.Series) -> pd.DataFrame:
    """Paired differences, ours less theirs, over the rows of each group; a row is a seed that both have.

    Args:
        ours: a row a seed of a group, a column a metric; nan is a value that is not there.
        theirs: the same of what each row is compared with.
        by: the group of each row.

    Returns:
        Indexed by group and metric: seeds, difference (the mean), std, low and high of `describe`; p of the two-sided paired
        t test; effect, Cohen's d of paired differences (their mean in units of their standard deviation); constant, whether
        the differences are the same but for rounding. Then, and of one seed, p and effect are missing.
    """
    differences = ours - theirs
    table = describe(differences, by).rename(columns={"mean": "difference"})
    size = ours.abs().where(ours.abs() > theirs.abs(), theirs.abs())
    size = size.where(differences.notna()).groupby(by.to_numpy(), sort=False).max()
    rounding = ROUNDING * size.rename_axis(index="group_id", columns="metric").stack().reindex(table.index)
    table["difference"] = table["difference"].mask(table["difference"].abs() <= rounding, 0.0)
    table["constant"] = (table["seeds"] > 1) & (table["std"] <= rounding)
    spread = table["std"].mask(table["constant"])
    table["std"] = table["std"].mask(table["constant"], 0.0)
    for end in ("low", "high"):
        table[end] = table[end].mask(table["constant"] & table[end].notna(), table["difference"])
    t = table["difference"] / _standard_error(table.assign(std=spread))
    table["p"] = 2 * student.sf(t.abs(), table["seeds"] - 1)
    table["effect"] = table["difference"] / spread
    return table


def holm(p: pd.Series) -> pd.Series:
    """p values corrected over all that there are (Holm, 1979), so that all claims together err with at most ALPHA."""
    corrected = pd.Series(np.nan, index=p.index)
    tested = p.notna()
    if tested.any():
        frozen = gc.get_freeze_count()
        gc.freeze()  # multipletests collects garbage, which takes long beside many runs
        corrected[tested] = multipletests(p[tested].to_numpy(float), method="holm")[1]
        if not frozen:
            gc.unfreeze()
    return corrected


def seeds_needed(effect: pd.Series, comparisons: pd.Series) -> pd.Series:
    """The least number of seeds with which differences of this effect size would be found with a chance of POWER.

    By the power of the paired t test at ALPHA over the number of comparisons. Missing where the effect is, where it is
    nothing, and where more than MOST_SEEDS would be needed.
    """
    size, alpha = effect.to_numpy(float), ALPHA / comparisons.to_numpy(float)
    low, high = np.full(len(size), LEAST_SEEDS), np.full(len(size), MOST_SEEDS)
    possible = (size != 0) & (_power(size, high, alpha) >= POWER)
    while (low < high).any():
        middle = (low + high) // 2
        enough = _power(size, middle, alpha) >= POWER
        low, high = np.where(enough, low, middle + 1), np.where(enough, middle, high)
    return pd.Series(high, index=effect.index, dtype="Int64").where(possible)


def least_effect(seeds: int, alpha: float) -> float:
    """The smallest effect size that so many seeds find with a chance of POWER, by the test of `seeds_needed`; inf above LARGEST_EFFECT."""
    if seeds < LEAST_SEEDS or _power(LARGEST_EFFECT, seeds, alpha) < POWER:
        return math.inf
    return float(brentq(lambda effect: _power(effect, seeds, alpha) - POWER, 0, LARGEST_EFFECT))


def _power(effect: Any, seeds: Any, alpha: Any) -> Any:
    """Of the t test as the F test of its square: scipy's noncentral t is not a number in places."""
    size = np.minimum(np.abs(effect), LARGEST_EFFECT)
    return ncf.sf(f.isf(alpha, 1, seeds - 1), 1, seeds - 1, seeds * size**2)


def level_p(table: pd.DataFrame, margin: pd.Series) -> pd.Series:
    """p values of two one-sided t tests: small where the mean difference is nearer to zero than the margin (Schuirmann, 1987).

    A p of α or less says that the interval of 1 − 2α lies within ± margin.

    Args:
        table: as `compare` makes it.
        margin: of each row, in the size of its metric; nan for none.
    """
    spread = table["std"].mask(table["constant"])
    t = (margin - table["difference"].abs()) / _standard_error(table.assign(std=spread))
    return pd.Series(student.sf(t, table["seeds"] - 1), index=table.index)


def seeds_to_settle(effect: float, margin: float, alpha: float) -> int | None:
    """The least number of seeds that decide a comparison with a chance of POWER: as a difference, or as level.

    Args:
        effect: the true difference in units of the standard deviation of the differences.
        margin: the same of the smallest difference that matters; nan for none, which cannot be level.
        alpha: of each test.

    Returns:
        The number; None if it is more than MOST_SEEDS.
    """

    def is_enough(seeds: int) -> bool:
        root = math.sqrt(seeds)
        found = float(_power(effect, seeds, alpha))
        if not math.isnan(margin):
            spread = np.sqrt(chi2.ppf((np.arange(400) + 0.5) / 400, seeds - 1) / (seeds - 1))
            room = root * margin - student.isf(alpha, seeds - 1) * spread  # for the mean, in its standard errors
            level = norm.cdf(room - root * effect) - norm.cdf(-room - root * effect)
            found = max(found, float(np.maximum(level, 0).mean()))
        return found >= POWER

    if not is_enough(MOST_SEEDS):
        return None
    return bisect_left(range(MOST_SEEDS), True, LEAST_SEEDS, key=is_enough)


def _standard_error(table: pd.DataFrame) -> pd.Series:
    error: pd.Series = table["std"] / np.sqrt(table["seeds"])
    return error
