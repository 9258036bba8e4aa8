"""The numbers of a report: each group over its seeds, each comparison of two groups, and what a comparison says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from icpctl.report.groups import AGAINST, Grouping, twin_places
from icpctl.report.measures import falls, measure_of, p_text
from icpctl.report.runs import COSTS, metric_columns, records
from icpctl.report.statistics import ALPHA, LEAST_SEEDS, MOST_SEEDS, compare, describe, holm, seeds_needed
from icpctl.results import FloatArray

VERDICTS = ("better", "worse", "cannot tell", "equal", "no test")
"""What a comparison can say. Equal: the same in all seeds. No test: one seed, or differences without any spread."""


COLUMNS = (
    *("against", "metric", "seeds", "lacking", "difference", "std", "low", "high", "p", "p_holm", "comparisons"),
    *("effect", "verdict", "seeds_needed", "sentence"),
)
"""Of the table of comparisons, beside those of the group."""


def summary_table(runs: pd.DataFrame, grouping: Grouping) -> pd.DataFrame:
    """One row a group and metric, in the order of the groups.

    Columns: group_id; task, role, label, model, dataset and the settings that tell the groups apart, as in `Grouping`; metric,
    of the test split at the last epoch, with the suffix _best at the epoch that is best on the held-out images, or one of
    `COSTS`; seeds, how many; mean, std (of a sample), low and high, the 95 % confidence interval of the mean by t.

    Args:
        runs: the rows of `runs_table` that count.
        grouping: of these runs.
    """
    metrics = [*metric_columns(runs), *COSTS]
    values = _by_seed(runs, runs[metrics].to_numpy(float), metrics, grouping)
    table = describe(values, values.index.to_frame()["group_id"]).reset_index("metric")
    return _joined(grouping, table[table["seeds"] > 0])


def comparison_table(runs: pd.DataFrame, grouping: Grouping) -> pd.DataFrame:
    """One row a group, what it is compared with, and metric: paired by seed, each run with its own twin.

    Columns: those of the group, as in `summary_table`; against, a key of `AGAINST`; metric; seeds, that both have a value of;
    lacking, the seeds that both have runs of, but one of them no value; difference, std, low, high, p, effect, as in
    `statistics.compare`; p_holm, corrected over the comparisons of the metric in this table; comparisons, how many these
    are; verdict, one of `VERDICTS`; seeds_needed, for a difference as large as the one that was measured, where the verdict
    is that the seeds cannot tell; sentence, which says all this.

    Args:
        runs: the rows of `runs_table` that count.
        grouping: of these runs.
    """
    table = _joined(grouping, _paired(runs, grouping))
    of_metric = table.groupby(["task", "metric"])["p"]
    table["p_holm"] = of_metric.transform(holm)
    table["comparisons"] = of_metric.transform("count")
    table["verdict"] = _verdicts(table)
    undecided = table["effect"].where(table["verdict"] == "cannot tell")
    table["seeds_needed"] = seeds_needed(undecided, table["comparisons"].clip(lower=1))
    table["sentence"] = [_sentence(row) for row in records(table)]
    return table[[*(name for name in table if name not in COLUMNS), *COLUMNS]]


def _paired(runs: pd.DataFrame, grouping: Grouping) -> pd.DataFrame:
    """The statistics of all comparisons, indexed by group, with the columns against and metric."""
    metrics = metric_columns(runs)
    values = runs[metrics].to_numpy(float)
    parts = []
    for against in AGAINST:
        place = twin_places(runs, grouping, against)
        there = place >= 0
        rows, ours, theirs = runs[there], values[there], values[place[there]]
        lacking = np.isnan(ours) | np.isnan(theirs)  # a value that one of two lacks is none of a pair
        first, second = (_by_seed(rows, np.where(lacking, np.nan, each), metrics, grouping) for each in (ours, theirs))
        group_id = first.index.to_frame()["group_id"]
        table = compare(first, second, group_id)
        with_twins = group_id.groupby(group_id.to_numpy()).size().reindex(table.index.get_level_values("group_id"))
        table["lacking"] = with_twins.to_numpy() - table["seeds"]
        parts.append(table.reset_index("metric").assign(against=against))
    every = pd.concat(parts)
    return every[every["seeds"] > 0]


def _by_seed(runs: pd.DataFrame, values: FloatArray, metrics: list[str], grouping: Grouping) -> pd.DataFrame:
    """A row a group and seed: where settings are pooled, the runs of a seed are one observation, their mean."""
    index = pd.MultiIndex.from_arrays([runs["group_id"].map(grouping.member), runs["seed"]], names=["group_id", "seed"])
    frame = pd.DataFrame(values, index=index, columns=metrics)
    return frame if index.is_unique else frame.groupby(level=[0, 1], sort=False).mean()


def _joined(grouping: Grouping, statistics: pd.DataFrame) -> pd.DataFrame:
    """The statistics with the columns of their groups, in the order of the groups."""
    return grouping.table.join(statistics, how="inner").reset_index()


def _verdicts(table: pd.DataFrame) -> pd.Series:
    better = np.where(table["metric"].map(falls), table["difference"] < 0, table["difference"] > 0)
    claimed = (table["p_holm"] <= ALPHA) & (table["seeds"] >= LEAST_SEEDS) & (table["lacking"] == 0)
    equal = table["constant"] & (table["difference"] == 0)
    return pd.Series(
        np.select(
            [equal, table["p"].isna(), claimed & better, claimed],
            ["equal", "no test", "better", "worse"],
            default="cannot tell",
        ),
        index=table.index,
    )


def _sentence(row: Mapping[str, Any]) -> str:
    """What the data support of one comparison, in words."""
    measure = measure_of(row["metric"])
    label, other, seeds = row["label"], AGAINST[row["against"]], row["seeds"]
    name = f"{measure.name} (less is better)" if measure.falls else measure.name
    verdict, size = row["verdict"], f"{name} {measure.difference(row['difference'])}"
    if verdict == "equal":
        return f"{label} is equal to {other} in all {seeds} seeds: {measure.name}."
    if seeds == 1:
        return f"One seed cannot tell {label} from {other}: {size}. Of one seed there is no interval and no test."
    if verdict == "no test":
        return f"{label} has the same difference from {other} in all {seeds} seeds: {size}. Without any spread there is no test."
    p, corrected = p_text(row["p"]), p_text(row["p_holm"])
    low, high = (measure.value(row[end], signed=True) for end in ("low", "high"))
    tested = f"p {_equal(corrected)}"
    if row["comparisons"] > 1:
        tested += f" among {row['comparisons']} comparisons" + (f", {p} by itself" if p != corrected else "")
    numbers = f"{size}, 95 % interval {low} to {high}, {tested}"
    if verdict != "cannot tell":
        effect = f"{row['effect']:+.1f}".replace("-", "−")
        return f"{label} is {verdict} than {other}: {numbers}, effect size {effect}, {seeds} seeds."
    needed = row["seeds_needed"]
    if row["lacking"]:
        way_on = (
            f" No claim is made where a value is missing: {row['lacking']} of {seeds + row['lacking']} seeds lack it."
        )
    elif row["p_holm"] <= ALPHA:
        way_on = f" No claim is made of less than {LEAST_SEEDS} seeds: the spread of so few says little."
    elif pd.notna(needed):
        way_on = f" If the difference is that large, {needed:,} seeds would show it."
    else:
        way_on = f" If the difference is that small, it takes more than {MOST_SEEDS:,} seeds to show it."
    return f"{seeds} seeds cannot tell {label} from {other}: {numbers}.{way_on}"


def _equal(p: str) -> str:
    return p if p.startswith("<") else f"= {p}"
