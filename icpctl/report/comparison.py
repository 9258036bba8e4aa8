"""The numbers of a report: each group over its seeds, each comparison of two groups, and what a comparison says."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd

from icpctl.report.groups import Grouping, twin_places
from icpctl.runs.measures import EFFECT, Measure, falls, interval_half, measure_of, p_equal, p_text
from icpctl.runs.metrics import FloatArray
from icpctl.runs.references import AGAINST, COUNTERPART
from icpctl.runs.table import COSTS, metric_columns, records
from icpctl.statistics import ALPHA, LEAST_SEEDS, MOST_SEEDS
from icpctl.statistics.paired import compare, describe, holm, level_p, seeds_needed, seeds_to_settle

VERDICTS = ("better", "worse", "cannot tell", "level", "equal", "no test")
"""What a comparison can say. Level: the difference is smaller than the margin. Equal: the same in all seeds. No test: one
seed, or differences without any spread."""
EXPLORATORY = "exploratory"
"""In the place of a verdict: the study has claims, and this is none of them."""

COLUMNS = (
    *(
        "against",
        "metric",
        "seeds",
        "lacking",
        "failed",
        "difference",
        "std",
        "low",
        "high",
        "p",
        "p_holm",
        "comparisons",
        "margin",
        "p_level",
    ),
    *("effect", "verdict", "seeds_needed", "sentence"),
)
"""Of the table of comparisons, beside those of the group."""


def summary_table(runs: pd.DataFrame, grouping: Grouping) -> pd.DataFrame:
    """One row a group and metric, in the order of the groups.

    Columns: group_id; task, role, label, model, dataset, data and the settings that tell the groups apart, as in `Grouping`;
    metric, of the test split at the last epoch, with the suffix _best at the epoch that is best on the held-out images, or one
    of `COSTS`; seeds, how many have a value; lacking, how many others there are; failed, how many of these failed; mean, std
    (of a sample), low and high, the 95 % confidence interval of the mean by t.

    Args:
        runs: the rows of `runs_table` that count, those of failed runs without a value.
        grouping: of these runs.
    """
    metrics = [*metric_columns(runs), *COSTS]
    values = runs[metrics].to_numpy(float)
    means, lacks = _by_seed(runs, values, _lacks(runs, values), metrics, grouping)
    group_id = means.index.to_frame()["group_id"]
    table = describe(means, group_id)
    table = _with_lacking(table, lacks, _has_failed(runs, runs["state"] == "failed", grouping), group_id)
    return _joined(grouping, table[table["seeds"] + table["lacking"] > 0].reset_index("metric"))


def comparison_table(
    runs: pd.DataFrame,
    grouping: Grouping,
    margins: Mapping[str, float] = MappingProxyType({}),
    exploratory: bool = False,
) -> pd.DataFrame:
    """One row a group, what it is compared with, and metric: paired by seed, each run with its own twin.

    Columns: those of the group, as in `summary_table`; against, a key of `AGAINST`; metric; seeds, that both have a value of;
    lacking, the seeds that both have runs of, but one of them no value; failed, how many of these failed; difference, std, low, high, p, effect, as in
    `statistics.paired.compare`; p_holm, corrected over the comparisons of the metric in this table; comparisons, how many these
    are; margin, the smallest difference that matters, and p_level of `statistics.paired.level_p`, corrected likewise; verdict, one of `VERDICTS`; seeds_needed, for a difference as large as the one that was measured, where the verdict
    is that the seeds cannot tell; sentence, which says all this.

    Args:
        runs: the rows of `runs_table` that count, those of failed runs without a value.
        grouping: of these runs.
        margins: of metrics, in their own size.
        exploratory: whether the study has claims. The comparisons then have no corrected p, no margin and no verdict; those that a
            claim was planned of are put in by `icpctl.report.claims.Claims.into`.
    """
    table = _joined(grouping, _paired(runs, grouping))
    of_metric = table.groupby(["task", "metric"])["p"]
    table["p_holm"] = of_metric.transform(holm)
    table["comparisons"] = of_metric.transform("count")
    table["margin"] = table["metric"].map(margins).astype(float)
    table["p_level"] = level_p(table, table["margin"])
    table["p_level"] = table.groupby(["task", "metric"])["p_level"].transform(holm)
    table["verdict"] = _verdicts(table)
    if exploratory:
        table["verdict"] = EXPLORATORY
        table[["p_holm", "p_level", "margin"]] = np.nan
    undecided = table["effect"].where((table["verdict"] == "cannot tell") & (table["lacking"] == 0))
    number = table["comparisons"].clip(lower=1)
    table["seeds_needed"] = seeds_needed(undecided, number)
    either = undecided.notna() & table["margin"].notna()
    table.loc[either, "seeds_needed"] = [
        seeds_to_settle(effect, margin / std, ALPHA / family) or pd.NA
        for effect, margin, std, family in zip(
            *(column[either] for column in (undecided, table["margin"], table["std"], number)), strict=True
        )
    ]
    measures = {name: measure_of(name) for name in table["metric"].unique()}
    said_of = table[["label", *({COUNTERPART} & {*table}), *COLUMNS[:-1]]]
    table["sentence"] = [_sentence(row, measures[row["metric"]]) for row in records(said_of)]
    return table[[*(name for name in table if name not in COLUMNS), *COLUMNS]]


def _paired(runs: pd.DataFrame, grouping: Grouping) -> pd.DataFrame:
    """The statistics of all comparisons, indexed by group, with the columns against and metric."""
    metrics = metric_columns(runs)
    values = runs[metrics].to_numpy(float)
    lacks = _lacks(runs, values)
    failed = (runs["state"] == "failed").to_numpy(bool)
    parts = []
    for against in grouping.kinds:
        place = twin_places(runs, grouping, against)
        there = place >= 0
        rows, ours, theirs = runs[there], values[there], values[place[there]]
        unpaired = np.isnan(ours) | np.isnan(theirs)  # a value that one of two lacks is none of a pair
        lacking = (
            (lacks[there] | lacks[place[there]]) & unpaired & _anywhere(~(np.isnan(ours) & np.isnan(theirs)), rows)
        )
        (first, lacking_seeds), (second, _) = (
            _by_seed(rows, np.where(unpaired, np.nan, each), lacking, metrics, grouping) for each in (ours, theirs)
        )
        group_id = first.index.to_frame()["group_id"]
        of_seed = _has_failed(rows, pd.Series(failed[there] | failed[place[there]], index=rows.index), grouping)
        table = _with_lacking(compare(first, second, group_id), lacking_seeds, of_seed, group_id)
        parts.append(table.reset_index("metric").assign(against=against))
    every = pd.concat(parts)
    return every[every["seeds"] + every["lacking"] > 0]


def _lacks(runs: pd.DataFrame, values: FloatArray) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """(runs, metrics): whether a run has no value of a metric that it should have, as it failed or the value is not finite.

    It should have those that others of its group have; where none of the group has any, those that any run of the task has.
    """
    measured = ~np.isnan(values)
    of_group = _anywhere(measured, runs)
    nothing = ~of_group.any(axis=1, keepdims=True)
    return ~measured & (of_group | (nothing & _anywhere(measured, runs, "task")))


def _anywhere(
    truth: np.ndarray[Any, np.dtype[np.bool_]], runs: pd.DataFrame, by: str = "group_id"
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """(runs, metrics): whether something is true of any run of the same group."""
    return pd.DataFrame(truth).groupby(runs[by].to_numpy()).transform("max").to_numpy(bool)


def _by_seed(
    runs: pd.DataFrame,
    values: FloatArray,
    lacks: np.ndarray[Any, np.dtype[np.bool_]],
    metrics: list[str],
    grouping: Grouping,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A row a group and seed: its values, and whether it lacks them.

    Where settings are pooled, the runs of a seed are one observation, their mean; where one of them lacks a value, so does
    the seed.
    """
    index = _seeds(runs, grouping)
    frame, lacking = (pd.DataFrame(each, index=index, columns=metrics) for each in (values, lacks))
    if index.is_unique:
        return frame, lacking
    lacking = lacking.groupby(level=[0, 1], sort=False).max()
    return frame.groupby(level=[0, 1], sort=False).mean().mask(lacking), lacking


def _has_failed(runs: pd.DataFrame, failed: pd.Series, grouping: Grouping) -> pd.Series:
    """Whether any run of a group and seed failed, in the order of `_by_seed`."""
    by_seed: pd.Series = failed.set_axis(_seeds(runs, grouping)).groupby(level=[0, 1], sort=False).max()
    return by_seed


def _seeds(runs: pd.DataFrame, grouping: Grouping) -> pd.MultiIndex:
    rows = runs["group_id"].map(grouping.member)
    return pd.MultiIndex.from_arrays([rows, runs["seed"]], names=["group_id", "seed"])


def _with_lacking(table: pd.DataFrame, lacks: pd.DataFrame, failed: pd.Series, by: pd.Series) -> pd.DataFrame:
    """The statistics by group and metric, with how many seeds lack the value, and how many of these failed."""
    counts = {"lacking": lacks, "failed": lacks.mul(failed.to_numpy(bool), axis=0)}
    for name, each in counts.items():
        summed = each.groupby(by.to_numpy(), sort=False).sum().rename_axis(index="group_id", columns="metric")
        table[name] = summed.stack().reindex(table.index).astype(int)
    return table


def _joined(grouping: Grouping, statistics: pd.DataFrame) -> pd.DataFrame:
    """The statistics with the columns of their groups, in the order of the groups."""
    return grouping.table.join(statistics, how="inner").reset_index()


def _verdicts(table: pd.DataFrame) -> pd.Series:
    better = np.where(table["metric"].map(falls), table["difference"] < 0, table["difference"] > 0)
    claimed = (table["p_holm"] <= ALPHA) & (table["seeds"] >= LEAST_SEEDS) & (table["lacking"] == 0)
    equal = table["constant"] & (table["difference"] == 0) & (table["lacking"] == 0)
    level = (table["p_level"] <= ALPHA) & (table["seeds"] >= LEAST_SEEDS) & (table["lacking"] == 0)
    return pd.Series(
        np.select(
            [equal, table["p"].isna(), level, claimed & better, claimed],
            ["equal", "no test", "level", "better", "worse"],
            default="cannot tell",
        ),
        index=table.index,
    )


def _sentence(row: Mapping[str, Any], measure: Measure) -> str:
    """What the data support of one comparison, in words."""
    label, other, seeds = row["label"], row.get(COUNTERPART) or AGAINST[row["against"]], row["seeds"]
    name = f"{measure.name} (less is better)" if measure.falls else measure.name
    spread = interval_half(row)
    verdict, size = row["verdict"], f"{name} {measure.difference(row['difference'], beside=spread)}"
    number, survivors = seeds + row["lacking"], _survivors(row)
    which = f"{seeds} seeds" if seeds == number else f"{seeds} of {number} seeds"
    interval = ""
    if pd.notna(row["low"]):
        low, high = (measure.value(row[end], signed=True, beside=spread) for end in ("low", "high"))
        interval = f", 95 % interval {low} to {high}"
    if seeds == 0:
        return (
            f"Nothing can be said about {label} and {other}: no seed has a value of {measure.name} for both.{survivors}"
        )
    if verdict == "equal":
        return f"{label} is equal to {other} in {measure.name}, in all {seeds} seeds."
    if verdict == EXPLORATORY and seeds > 1:
        return f"{label} minus {other}: {size}{interval}, {which}. Exploratory: no claim was planned about it."
    if seeds == 1:
        one = "One seed" if number == 1 else f"One seed of {number}"
        return f"{one} cannot tell {label} from {other}: {size}. One seed gives no interval and no test.{survivors}"
    if verdict == "no test":
        which = f"all {seeds} seeds" if seeds == number else which
        return f"{label} has the same difference from {other} in {which}: {size}. Without any spread there is no test.{survivors}"
    p, corrected = p_text(row["p"]), p_text(row["p_holm"])
    tested = f"p {p_equal(row['p_holm'])}"
    if row["comparisons"] > 1:
        tested += f" among {row['comparisons']} comparisons" + (f", {p} by itself" if p != corrected else "")
    numbers = f"{size}{interval}, {tested}"
    if verdict == "level":
        margin = measure.difference(row["margin"]).lstrip("+")
        return f"{label} is level with {other}, as the difference is smaller than {margin} (p {p_equal(row['p_level'])}): {numbers}, {seeds} seeds."
    if verdict != "cannot tell":
        effect = EFFECT.value(row["effect"], signed=True)
        return f"{label} is {verdict} than {other}: {numbers}, effect size {effect}, {seeds} seeds."
    needed = row["seeds_needed"]
    if row["lacking"]:
        way_on = survivors
    elif row["p_holm"] <= ALPHA:
        way_on = f" A claim takes {LEAST_SEEDS} seeds or more: the spread of fewer says little."
    elif pd.notna(needed) and pd.notna(row["margin"]):
        way_on = f" If difference and spread are as measured, about {needed:,} seeds settle it either way."
    elif pd.notna(needed):
        way_on = f" If the difference is that large, {needed:,} seeds would show it."
    else:
        way_on = f" If the difference is that small, it takes more than {MOST_SEEDS:,} seeds to show it."
    return f"{which} cannot tell {label} from {other}: {numbers}.{way_on}"


def _survivors(row: Mapping[str, Any]) -> str:
    """Why nothing is claimed of the seeds that have a value: failure is an outcome too."""
    number, failed = row["seeds"] + row["lacking"], row["failed"]
    parts = [f"{failed} of {number} failed"] if failed else []
    if others := row["lacking"] - failed:
        parts.append(f"{others} of {number} {'has' if others == 1 else 'have'} no finite value")
    return f" Nothing is claimed from the seeds that remain: {', and '.join(parts)}." if parts else ""
