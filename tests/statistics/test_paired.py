"""The statistics of the report equal scipy's and statsmodels', and err no more often than they say."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from statsmodels.stats.weightstats import DescrStatsW

from icpctl.config import RunConfig, resolve
from icpctl.report.comparison import comparison_table
from icpctl.report.groups import Grouping, group
from icpctl.runs.table import COSTS
from icpctl.statistics.paired import compare, describe, holm, least_effect, seeds_needed

Array = np.ndarray[Any, np.dtype[Any]]


def row_of(table: pd.DataFrame, group_id: str, metric: str = "x") -> dict[str, Any]:
    return {str(name): value for name, value in table.loc[[(group_id, metric)]].iloc[0].items()}


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_means_and_intervals_are_those_of_scipy(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 8), min_size=1, max_size=4))
    seed = data.draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    samples = {f"g{number}": rng.normal(rng.normal(), rng.uniform(0.01, 10), size) for number, size in enumerate(sizes)}
    order = rng.permutation(sum(sizes))
    frame = pd.DataFrame({"x": np.concatenate(list(samples.values()))[order]})
    by = pd.Series(np.repeat(list(samples), sizes)[order])
    table = describe(frame, by)
    for name, sample in samples.items():
        row = row_of(table, name)
        assert row["seeds"] == len(sample)
        assert row["mean"] == pytest.approx(sample.mean())
        if len(sample) == 1:
            assert all(math.isnan(row[name]) for name in ("std", "low", "high"))
            continue
        assert row["std"] == pytest.approx(sample.std(ddof=1))
        if len(sample) == 2:
            assert math.isnan(row["low"])
            assert math.isnan(row["high"])
            continue
        assert (row["low"], row["high"]) == pytest.approx(DescrStatsW(sample).tconfint_mean(0.05))
        low, high = stats.t.interval(0.95, len(sample) - 1, sample.mean(), stats.sem(sample))
        assert (row["low"], row["high"]) == pytest.approx((low, high))


@pytest.mark.parametrize("seeds", [2, 3, 5, 20])
def test_paired_tests_are_those_of_scipy(seeds: int) -> None:
    rng = np.random.default_rng(seeds)
    theirs = pd.DataFrame(rng.normal(size=(3 * seeds, 2)), columns=["x", "y"])
    ours = theirs + rng.normal(0.3, 0.5, size=(3 * seeds, 2))
    by = pd.Series(np.tile(list("abc"), seeds))
    ours.iloc[0, 1] = math.nan  # a seed whose metric is missing is no pair
    table = compare(ours, theirs, by)
    for name in "abc":
        for metric in ("x", "y"):
            rows = (by == name) & ours[metric].notna()
            row = row_of(table, name, metric)
            assert row["seeds"] == rows.sum()
            if rows.sum() < 2:
                assert math.isnan(row["p"])
                continue
            result = stats.ttest_rel(ours[metric][rows], theirs[metric][rows])
            interval = result.confidence_interval()
            difference = (ours[metric] - theirs[metric])[rows]
            assert row["p"] == pytest.approx(result.pvalue)
            assert row["difference"] == pytest.approx(difference.mean())
            ends = (interval.low, interval.high) if rows.sum() > 2 else (math.nan, math.nan)
            assert (row["low"], row["high"]) == pytest.approx(ends, nan_ok=True)
            assert row["effect"] == pytest.approx(difference.mean() / difference.std())
            assert not row["constant"]


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_rounding_is_no_spread(dtype: type) -> None:
    """0.61 − 0.6 and 0.31 − 0.3 differ by rounding; a t test of that would claim anything."""
    ours = pd.DataFrame({"x": np.array([0.61, 0.31, 0.91], dtype).astype(float)})
    theirs = pd.DataFrame({"x": np.array([0.6, 0.3, 0.9], dtype).astype(float)})
    by = pd.Series(["a"] * 3)
    row = row_of(compare(ours, theirs, by), "a")
    assert row["constant"]
    assert math.isnan(row["p"])
    assert math.isnan(row["effect"])
    assert row["difference"] == pytest.approx(0.01, abs=1e-6)
    assert row_of(compare(ours, ours, by), "a")["difference"] == 0


@settings(deadline=None, max_examples=10)
@given(st.lists(st.one_of(st.floats(0, 1), st.just(math.nan)), max_size=12))
def test_holm_is_that_of_statsmodels(values: list[float]) -> None:
    p = pd.Series(values, dtype=float)
    corrected = holm(p)
    assert (corrected.isna() == p.isna()).all()
    tested = p.dropna()
    if len(tested):
        np.testing.assert_allclose(corrected.dropna(), multipletests(tested, method="holm")[1])


@pytest.mark.parametrize("effect", [0.05, 0.2, 0.5, 0.8, 1.5, 2.0])
@pytest.mark.parametrize("comparisons", [1, 18])
def test_so_many_seeds_are_needed_and_no_fewer(effect: float, comparisons: int) -> None:
    number = int(seeds_needed(pd.Series([-effect]), pd.Series([comparisons])).iloc[0])
    power = TTestPower()
    assert power.power(effect, number, 0.05 / comparisons) >= 0.8
    assert number == 3 or power.power(effect, number - 1, 0.05 / comparisons) < 0.8


def test_no_number_of_seeds_is_named_where_none_helps() -> None:
    needed = seeds_needed(pd.Series([0.0, math.nan, 1e-4, 1e9]), pd.Series([1, 1, 1, 1]))
    assert needed.isna().tolist() == [True, True, True, False]
    assert needed.iloc[3] == 3


@pytest.mark.parametrize(("seeds", "comparisons"), [(3, 1), (3, 19), (5, 6), (40, 3), (1000, 1)])
def test_the_least_effect_is_found_with_the_chance_that_is_said(seeds: int, comparisons: int) -> None:
    effect = least_effect(seeds, 0.05 / comparisons)
    drawn = np.random.default_rng(0).normal(
        effect, 1, (10_000, seeds)
    )  # as scipy's noncentral t is not a number in places
    assert (stats.ttest_1samp(drawn, 0, axis=1).pvalue <= 0.05 / comparisons).mean() == pytest.approx(0.8, abs=0.015)
    assert int(seeds_needed(pd.Series([effect * 1.0001]), pd.Series([comparisons])).iloc[0]) == seeds


def test_too_few_seeds_show_nothing_however_large() -> None:
    assert least_effect(2, 0.05) == least_effect(3, 0.05 / 1000) == math.inf


def study(names: int, seeds: int) -> tuple[pd.DataFrame, Grouping, Array]:
    """A table of runs without values: a baseline and one method under several names; and which of them are the method."""
    methods = [resolve({"optimizer": "adam", "icp_lr": (number + 1) / 1000}) for number in range(names)]
    table = pd.DataFrame(
        {
            "group_id": config.group_id,
            "seed": seed,
            "task": config.task,
            "state": "finished",
            **dict.fromkeys(COSTS, 1.0),
        }
        for config in (methods[0].baseline(), *methods)
        for seed in range(seeds)
    )
    configs: dict[str, RunConfig] = {config.group_id: config for config in (methods[0].baseline(), *methods)}
    return table, group(configs), (table["group_id"] != methods[0].baseline().group_id).to_numpy()


def studies(table: pd.DataFrame, grouping: Grouping, values: Array) -> pd.DataFrame:
    """The comparisons of many studies of the same runs, values (studies, runs), at once.

    Each study is a metric of one table, as the correction is over the comparisons of a metric.
    """
    metrics = pd.DataFrame(values.T, columns=[f"m{number}" for number in range(len(values))], index=table.index)
    return comparison_table(pd.concat([table, metrics], axis=1), grouping)


@pytest.mark.parametrize(("seeds", "images"), [(3, math.inf), (3, 360), (5, math.inf)])
def test_pure_noise_is_claimed_to_be_a_difference_in_no_more_than_5_percent_of_studies(
    seeds: int, images: float
) -> None:
    """One method under six names, 200 studies; also with an accuracy that is a count of few test images."""
    table, grouping, _ = study(6, seeds)
    accuracy = np.random.default_rng(2505).normal(0.7, 0.02, (200, len(table)))
    if math.isfinite(images):
        accuracy = np.round(accuracy * images) / images
    comparisons = studies(table, grouping, accuracy)
    assert comparisons["metric"].nunique() == 200
    claimed = comparisons["verdict"].isin(["better", "worse"])
    assert claimed.groupby(comparisons["metric"]).any().sum() <= 10


def test_without_the_correction_noise_would_be_claimed_more_often() -> None:
    table, grouping, _ = study(6, 5)
    comparisons = studies(table, grouping, np.random.default_rng(2505).normal(0.7, 0.02, (200, len(table))))
    assert (comparisons["p"] <= 0.05).groupby(comparisons["metric"]).any().sum() > 20


@pytest.mark.parametrize(("names", "found"), [(1, 0.8), (3, 0.6)])
def test_a_true_difference_of_one_standard_deviation_is_found_with_20_seeds(names: int, found: float) -> None:
    """One standard deviation of the seeds, baseline and method independent: the hardest case of a pairing."""
    table, grouping, method = study(names, 20)
    accuracy = np.random.default_rng(14751).normal(0.7, 0.02, (100, len(table))) + 0.02 * method
    comparisons = studies(table, grouping, accuracy)
    assert comparisons["verdict"].isin(["better", "worse"]).mean() >= found


def test_a_pairing_by_seed_finds_what_is_small_beside_the_spread_of_the_seeds() -> None:
    rng = np.random.default_rng(1)
    table, grouping, method = study(3, 20)
    luck = rng.normal(0, 0.1, 20)[table["seed"]]
    accuracy = 0.7 + luck + rng.normal(0, 0.005, len(table)) + 0.01 * method
    comparisons = comparison_table(table.assign(accuracy=accuracy), grouping)
    assert comparisons["verdict"].tolist() == ["better"] * 3
