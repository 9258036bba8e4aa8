"""What the tables of a report have in common, whatever they are made for: columns, cells, sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from icpctl.config import SELECTION
from icpctl.config.catalogue import METHODS, Live
from icpctl.errors import count
from icpctl.report import Report
from icpctl.report.comparison import EXPLORATORY, VERDICTS
from icpctl.report.groups import short_dataset
from icpctl.report.images import WIDENED
from icpctl.runs.measures import (
    EFFECT,
    MARK,
    Measure,
    feature_letters,
    interval_half,
    measure_of,
    p_text,
    shown_metrics,
)
from icpctl.runs.references import AGAINST, COUNTERPART
from icpctl.runs.table import COSTS, records
from icpctl.statistics import LEAST_SEEDS, MOST_SEEDS
from icpctl.statistics.paired import ROUNDING
from icpctl.text import value_text

MOST_ROWS = 100
"""Rows of a table in the terminal; and sentences in Markdown."""
SHORT = Live(lambda: {key: METHODS[key].label if key in METHODS else key for key in AGAINST} | {COUNTERPART: "B"})
"""What a difference is taken from, for the heading of a column."""
MOST_CLAIMS = 4
"""In the sentence for a reader in a hurry."""
INTERVAL = "95 % interval"
Columns = dict[str, list[tuple[str, Any]]]
"""Headings, and the cells below: what is shown, and what it is sorted by, which of text is empty."""


def explanation(report: Report, task: str, interval: bool = True) -> str:
    """What the columns of the tables of a task are; `interval`, whether that of the mean may be one."""
    measure = measure_of(report.metrics[task])
    held_out = measure_of(SELECTION[task]).name
    less = " FID and KID: less is better." if task == "generation" else ""
    marked = (
        f" {MARK}: over only the seeds that have a value; the others failed, or have no finite value."
        if lacks(report, task)
        else ""
    )
    summary = report.summary[report.summary["metric"] == report.metrics[task]]
    by_t = f"; 95 % interval of the mean {measure.name} by t" if interval and summary["low"].notna().any() else ""
    return (
        f"Test split, last epoch; best epoch: the epoch with the best {held_out} on the held-out images. Mean ± standard deviation "
        f"over the seeds{by_t}.{less} Passes: of a training image through the network.{marked}"
    )


def lead(report: Report, task: str) -> str:
    """The verdicts of a task, for a reader in a hurry; empty where there is none."""
    table = compared(report, task)
    tested = int(table["p"].notna().sum())
    if not tested or report.claims:
        return ""
    measure = measure_of(report.metrics[task])
    seeds = table["seeds"]
    number = str(seeds.min()) if seeds.min() == seeds.max() else f"{seeds.min()} to {seeds.max()}"
    claims = [
        f"{row['label']} is {row['verdict']} than {AGAINST[row['against']]}, by {measure.difference(abs(row['difference'])).lstrip('+')}"
        for row in records(table[table["verdict"].isin(["better", "worse"])])
    ]
    said = f"In {measure.name}, {len(claims) or 'none'} of {count(tested, 'comparison')} of {number} seeds show{'s' if len(claims) < 2 else ''} a difference"
    if claims:
        more = f"; and {len(claims) - MOST_CLAIMS} more" if len(claims) > MOST_CLAIMS else ""
        said += f": {'; '.join(claims[:MOST_CLAIMS])}{more}"
    if level := int((table["verdict"] == "level").sum()):
        said += f". {level} {'are' if level > 1 else 'is'} level: the difference is smaller than the margin"
    undecided = int((table["verdict"] == "cannot tell").sum())
    if undecided:
        said += f". {undecided} cannot be decided with these seeds, which does not show that there is no difference"
    return f"{said}."


def claims_lead(report: Report) -> str:
    """How many planned claims came to what, for a reader in a hurry."""
    counts = report.claims.table["outcome"].value_counts()
    number = len(report.claims.table)
    parts = [f"{counts[outcome]} {outcome}" for outcome in ("supported", "refuted", "undecided") if outcome in counts]
    these = "The one planned claim is" if number == 1 else f"Of {number} planned claims,"
    said = f"{these} {parts[0].split(' ', 1)[1] if number == 1 else ', '.join(parts)}."
    late = int((report.claims.table["measured_before"] > 0).sum())
    if late:
        said += f" {late} {'was' if late == 1 else 'were'} added when runs had been measured already."
    return f"{said} All other comparisons are exploratory: they have intervals, and no verdicts."


def planned_text(report: Report) -> str:
    """A sentence on the numbers of planned claims, for the end of an explanation; empty without claims."""
    return " The interval and p of a planned claim hold for all its looks together." if report.claims else ""


def of_rivals(table: pd.DataFrame) -> bool:
    """Whether ICP is compared with other methods."""
    return bool(table["against"].isin(METHODS).any())


def of_sides(table: pd.DataFrame) -> bool:
    """Whether the comparisons are of two sides, A and B."""
    return bool((table["against"] == COUNTERPART).any())


def lacks(report: Report, task: str) -> bool:
    """Whether a number of the tables of a task is of a part of the seeds."""
    summary = report.summary
    return bool((summary["lacking"][summary["task"] == task] > 0).any())


def compared(report: Report, task: str) -> pd.DataFrame:
    """The comparisons in the metric that the report is about."""
    table = report.comparisons
    return table[(table["task"] == task) & (table["metric"] == report.metrics[task])]


def scorecard(table: pd.DataFrame) -> pd.DataFrame:
    """How many runs of the method are better and worse than what they are compared with: a row for each of `AGAINST`. What is
    exploratory is not counted.

    Controls are counted only if there is no run of the method; of two sides, all groups are.
    """
    table = table[table["verdict"] != EXPLORATORY]
    method = table[table["role"] == "method"]
    counted = table if of_sides(table) or method.empty else method
    counts = pd.crosstab(counted["against"], counted["verdict"])
    kinds = [against for against in AGAINST if against in counts.index]
    there = [verdict for verdict in VERDICTS if verdict in counts or verdict in VERDICTS[:3]]
    return counts.reindex(index=kinds, columns=there, fill_value=0)


def counted_role(table: pd.DataFrame) -> str:
    """Whose comparisons the score card counts."""
    if of_sides(table):
        return "A"
    return "the method" if (table["role"] == "method").any() else "controls"


def heading_of(report: Report, task: str, metric: str) -> str:
    """The heading of the column of a metric, which no other column has."""
    letters = feature_letters(report.summary["metric"][report.summary["task"] == task])
    heading = measure_of(metric, letters).heading
    return f"metric {heading}" if heading in ("group", "seeds", INTERVAL, *setting_columns(report)) else heading


def setting_columns(report: Report) -> tuple[str, ...]:
    """The columns of `summary_cells` that are settings."""
    return ("model", "dataset", "data", *report.grouping.settings)


def sentences(table: pd.DataFrame, limit: int) -> list[str]:
    """The sentences of all comparisons. Of more than `limit` so many, and how many others there are: those that claim a
    difference, then those of the method with its baselines.
    """
    if len(table) <= limit:
        return table["sentence"].tolist()
    baselines = table["against"].isin(["baseline", "compute-matched"]).astype(int)
    rank = 3 - table["role"].eq("method").astype(int) - baselines
    rank = rank.mask(table["verdict"].isin(["better", "worse"]), 0)
    said = table.loc[rank.sort_values(kind="stable").index[:limit].sort_values(), "sentence"].tolist()
    return [*said, f"{len(table) - len(said)} more are in comparisons.csv and report.html."]


def at_best_epoch(report: Report, task: str) -> pd.DataFrame:
    """The comparisons at the best epoch that say something else than those at the last: is it the last epoch, or luck? None
    in a study with claims, where these alone have verdicts.
    """
    last, best = report.metrics[task], f"{report.metrics[task]}_best"
    keys = ["group_id", "against", *({"counterpart_id"} & {*report.comparisons})]
    table = report.comparisons
    table = table[table["task"] == task]
    said = table[table["metric"] == last].set_index(keys)["verdict"]
    there = table[table["metric"] == best]
    other = said.reindex(pd.MultiIndex.from_frame(there[keys])).to_numpy()
    changed: pd.DataFrame = there[(there["verdict"].to_numpy() != other) & (not report.claims)]
    return changed


def needed_text(row: Any) -> str:
    """How many seeds would show a difference that these cannot; empty where that is no question."""
    if row["verdict"] != "cannot tell" or row["lacking"]:
        return ""
    return f"> {MOST_SEEDS:,}" if pd.isna(row["seeds_needed"]) else f"{row['seeds_needed']:,}"


def difference_text(row: Any, measure: Measure) -> str:
    """The difference of a comparison, marked where it is of a part of the seeds; a dash where there is none."""
    text = measure.value(row["difference"], signed=True, beside=interval_half(row))
    return text + MARK if row["lacking"] and row["seeds"] else text


def interval_text(row: Any, measure: Measure, signed: bool = False, ends: Sequence[str] = ("low", "high")) -> str:
    """The ends of an interval; a dash where there is none."""
    if pd.isna(row[ends[0]]):
        return "–"
    low, high = (measure.value(row[end], signed, interval_half(row)) for end in ends)
    return f"{low} to {high}"


def effect_text(row: Any) -> str:
    """Cohen's d; a dash where there is none, or so few seeds that it says nothing."""
    if pd.isna(row["effect"]) or row["seeds"] < LEAST_SEEDS:
        return "–"
    return EFFECT.value(row["effect"], signed=True)


def texts(cells: Columns, report: Report, task: str) -> pd.DataFrame:
    """The cells as text, a row a group."""
    columns = {heading: [text for text, _ in column] for heading, column in cells.items()}
    return pd.DataFrame(columns, index=groups_of(report, task).index)


def groups_of(report: Report, task: str) -> pd.DataFrame:
    """The rows of the groups of a task."""
    groups = report.grouping.table
    return groups[groups["task"] == task]


def summary_cells(report: Report, task: str) -> tuple[Columns, str]:
    """The columns of the table of the groups of a task, each cell as text and as what it is sorted by.

    The name of the group; seeds; the metrics that are shown, the chosen one first, with its interval; costs; and model, data
    set and settings, which the name says too, so that they can be sorted by. A metric that no group has is left out. What is
    the same in all rows is no column: it is returned beside them, in words.
    """
    summary = report.summary[report.summary["task"] == task]
    rows = groups_of(report, task)
    chosen = report.metrics[task]
    by_metric = {
        str(metric): part.set_index("group_id").reindex(rows.index) for metric, part in summary.groupby("metric")
    }
    described = rows[list(setting_columns(report))].dropna(axis="columns", how="all")
    short = described["dataset"].map(short_dataset)
    if short.nunique() == described["dataset"].nunique():
        described = described.assign(dataset=short)
    settings: Columns = {
        str(name): [(value_text(value), _sorted_by(value)) for value in column.astype(object)]
        for name, column in described.items()
    }
    counts = by_metric[chosen][["seeds", "lacking"]].fillna(0).astype(int)
    settings["seeds"] = [
        (f"{number}/{number + lacking}" if lacking else str(number), number)
        for number, lacking in counts.itertuples(index=False)
    ]
    same = [name for name, column in settings.items() if len(set(column)) == 1]
    words = ", ".join(f"{name} {settings.pop(name)[0][0]}" for name in same)
    cells: Columns = {"group": [(label, "") for label in rows["label"]]}
    if "seeds" in settings:
        cells["seeds"] = settings.pop("seeds")
    for metric in (*shown_metrics(task, by_metric, chosen), *COSTS):
        part = by_metric.get(metric)
        if part is None or part["mean"].isna().all():
            continue
        measure, heading = measure_of(metric), heading_of(report, task, metric)
        of_groups = records(part)
        cells[heading] = [(mean_text(row, measure, metric not in COSTS), row["mean"]) for row in of_groups]
        if metric == chosen and part["low"].notna().any():
            cells[INTERVAL] = [(interval_text(row, measure), row["low"]) for row in of_groups]
    return cells | settings, words


def _sorted_by(value: Any) -> Any:
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else ""


def mean_text(row: Any, measure: Measure, spread: bool = True) -> str:
    """Mean ± standard deviation, marked where it is of a part of the seeds."""
    std = row["std"] if spread and abs(row["std"]) > ROUNDING * abs(row["mean"]) else 0.0 * row["std"]
    text = measure.value(row["mean"], beside=std if spread else math.nan)
    if spread and not pd.isna(std):
        text += f" ± {measure.value(std)}"
    return text + MARK if row["lacking"] > 0 and not pd.isna(row["mean"]) else text


def comparison_cells(table: pd.DataFrame) -> Columns:
    """The columns of the table of the comparisons, as `summary_cells` has those of the groups."""
    columns: Columns = {}
    for row in records(table):
        measure = measure_of(row["metric"])
        needed = needed_text(row)
        cells = {
            "group": (row["label"], ""),
            "minus": (SHORT[row["against"]], ""),
            "seeds": (str(row["seeds"]), row["seeds"]),
            "difference": (difference_text(row, measure), row["difference"]),
            INTERVAL: (interval_text(row, measure, signed=True), row["low"]),
            "p": (p_text(row["p"]), row["p"]),
            "p (Holm)": (p_text(row["p_holm"]), row["p_holm"]),
            "d": (effect_text(row), row["effect"]),
            "verdict": ("" if row["verdict"] == EXPLORATORY else row["verdict"], ""),
            "with test images": (interval_text(row, measure, True, WIDENED), row["low_images"]),
            "seeds needed": (needed, math.inf if needed.startswith(">") else row["seeds_needed"]),
        }
        for heading, cell in cells.items():
            columns.setdefault(heading, []).append(cell)
    if table["low_images"].isna().all():
        columns.pop("with test images", None)
    return columns
