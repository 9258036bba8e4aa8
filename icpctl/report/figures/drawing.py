"""What the figures of a report share: the runs that they are about, means over their seeds, colours, lines and axes."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from icpctl.config.catalogue import PLAIN, Live, Variant, controls, variants
from icpctl.report import Report
from icpctl.report.figures.style import BLUE, DPI, GREEN, SKY, VERMILION, Drawing
from icpctl.report.groups import TOLD_BY_OPTIMIZER, short_dataset
from icpctl.runs.folder import RunRecord
from icpctl.runs.measures import MARK, Measure, feature_letters, measure_of
from icpctl.runs.table import metric_columns
from icpctl.statistics import LEAST_SEEDS
from icpctl.statistics.paired import describe
from icpctl.text import value_text

Values = NDArray[np.float64]

WIDTH = 7.2  # inches: 9 pt stay readable where a page shows it 700 pixels wide
BLACK = "#000000"
MOST_PARTS = 6
LOG_FROM = 20
"""An axis of positive values is logarithmic where the largest is more than so many times the smallest."""
POOLED = "pooled"
"""Stands for the variant where a row of the report is of several."""
DRAWN = Live(lambda: {key: control for key, control in controls().items() if control.line})
"""The controls that have a line of their own."""
DIRECTIONS = Live(
    lambda: {"descend": ("-", "full")} | {key: (control.line, control.filling) for key, control in DRAWN.items()}
)
"""Line, and filling of the marker, of a method and of its controls, which the directions of ICP are."""
ROLES = Live(
    lambda: (
        {"baseline": (BLACK, "-."), "descend": (BLUE, "-")}
        | {key: (GREEN if control.line == ":" else VERMILION, control.line) for key, control in DRAWN.items()}
    )
)
"""Colour and line where lines are told apart by these alone."""
FEW_SEEDS = f"none of fewer than {LEAST_SEEDS} seeds"
INTERVALS = f"95 % intervals of the mean by t, {FEW_SEEDS}"


@dataclass(frozen=True)
class Part:
    """The runs of a report that one axis can show: those of a task, model, data set and version of the data."""

    report: Report
    metric: str
    runs: pd.DataFrame
    """Of `Report.runs`, those that count, in the order of their rows in the report, with the columns row, role and label;
    variant, as of `RunConfig.variant`, or POOLED where rows pool it; the direction of a baseline is empty."""
    where: str
    """What the part is of, where there are several."""
    suffix: str
    """The same for the name of a file."""
    lacking: str
    """A sentence on the rows whose means are of a part of their seeds; empty where there is none."""

    @property
    def settings(self) -> list[str]:
        return self.report.grouping.settings

    @property
    def letters(self) -> dict[str, str]:
        """As the tables have them, for `measure_of`."""
        return feature_letters(metric_columns(self.report.runs))

    @property
    def measure(self) -> Measure:
        return measure_of(self.metric, self.letters)

    @property
    def axis_label(self) -> str:
        return axis_label(self.measure)

    @property
    def when(self) -> str:
        return "at the best epoch" if self.metric.endswith("_best") else "at the last epoch"

    @property
    def constructive(self) -> pd.Series:
        """Which of the runs are of the method or of a control of it."""
        return self.runs["role"].isin(["method", "control"])

    def records(self, runs: pd.DataFrame) -> list[RunRecord]:
        return [self.report.records[run_id] for run_id in runs["run_id"]]

    def named(self, setting: str) -> str:
        """A setting by its own name; the variant by that of what tells the variants of the part apart."""
        if setting != "variant":
            return setting
        return "optimizer" if set(self.runs["method"]) <= TOLD_BY_OPTIMIZER else "method"

    def drawing(
        self, by: str, title: str, text: str, figure: Figure, data: pd.DataFrame, spots: pd.DataFrame | None = None
    ) -> Drawing:
        """A drawing of the part; `by` ends its name."""
        if "variant" in data:
            data = data.rename(columns=self.named)
            if "optimizer" in data:
                data["optimizer"] = data["optimizer"].replace(PLAIN, "none")  # its value in a baseline
        title = f"{title[0].upper()}{title[1:]}{self.where}"
        return Drawing(f"{slug(by)}{self.suffix}", title, text + self.lacking, figure, data, spots=spots)


def parts(report: Report) -> tuple[list[Part], str]:
    """The parts of a report that have its metric; and a sentence on those that are too many."""
    table, member = report.grouping.table, report.grouping.member
    summary = report.summary
    summary = summary[(summary["metric"] == summary["task"].map(report.metrics)) & (summary["lacking"] > 0)]
    lacking = summary.set_index("group_id")
    runs = report.runs[report.runs["run_id"].isin(list(report.records))]
    runs = runs.assign(row=runs["group_id"].map(member))
    marked = set(lacking.index)
    labels = {row: f"{label} {MARK}" if row in marked else label for row, label in table["label"].items()}
    runs = runs.assign(role=runs["row"].map(table["role"]), label=runs["row"].map(labels))
    runs = runs.assign(data=runs["row"].map(table["data"]).astype(object).where(lambda versions: versions.notna(), ""))
    place = {row: number for number, row in enumerate(table.index)}
    runs = runs.sort_values("row", key=lambda rows: rows.map(place), kind="stable")
    constructive = runs["role"].isin(["method", "control"])
    which = [report.records[run_id].config.control for run_id in runs["run_id"]]
    runs["direction"] = pd.Series(which, runs.index).replace("", "descend").where(constructive, "")
    runs["variant"] = [report.records[run_id].config.variant for run_id in runs["run_id"]]
    told = {"method", "optimizer"} & set(report.grouping.settings)
    if not told and runs["variant"][constructive].nunique() > 1:
        runs["variant"] = runs["variant"].mask(constructive, POOLED)
    for name in report.grouping.settings:  # a value that is not given is one too
        if runs[name].isna().any():
            runs[name] = runs[name].map(value_text)

    apart = ["task"] if report.sides else ["task", "model", "dataset", "data"]  # the sides may differ in the others
    found = [of_part for _, of_part in runs.groupby(apart, sort=False)]
    several = len(found) > 1
    made: list[Part] = []
    for of_part in found:
        task, model, dataset, version = of_part[["task", "model", "dataset", "data"]].iloc[0]
        metric = report.metrics[task]
        if metric not in of_part or not np.isfinite(of_part[metric].to_numpy(float, na_value=np.nan)).any():
            continue
        where = f" – {task if report.sides else f'{model} on {short_dataset(dataset)}'}" if several else ""
        where += f", data {version}" if version and not report.sides else ""
        suffix = f"-{slug(where)}" if several else ""
        if any((part.metric, part.suffix) == (metric, suffix) for part in made):  # folders of the same name
            suffix += f"-{len(made) + 1}"
        listed = lacking[lacking.index.isin(of_part["row"])]
        lack, failed = listed[["lacking", "failed"]].sum().astype(int)
        sentence = (
            f" {MARK}: a mean of a part of the seeds; {lack} have no finite {measure_of(metric).name}, {failed} of them as they "
            "failed."
        )
        sentence = sentence if lack else ""
        made.append(Part(report, metric, of_part, where, suffix, sentence))
    left_out = left_out_text(len(made), MOST_PARTS, "pairs of a model and a data set")
    return made[:MOST_PARTS], left_out


def left_out_text(number: int, most: int, things: str, which: str = "") -> str:
    """A sentence on what is too much for a figure; empty where nothing is."""
    return f" Of {number} {things}, {most} are drawn{which}; --where chooses others." if number > most else ""


def over_seeds(values: pd.DataFrame, keys: pd.DataFrame, seeds: pd.Series) -> pd.DataFrame:
    """Means over seeds with their 95 % intervals. The runs of a seed are one observation, their mean.

    Args:
        values: a row a run, a column a metric; what is not finite is left out.
        keys: what tells the groups apart, of each run.
        seeds: of each run.

    Returns:
        A row a group and column of `values`, in the order of the runs: the keys; metric, the column; seeds, mean, low, high, as `describe` has them.
    """
    keys = keys.reset_index(drop=True)
    group = keys.groupby(list(keys), sort=False, dropna=False).ngroup()
    numbers = values.to_numpy(float, na_value=np.nan)
    frame = pd.DataFrame(np.where(np.isfinite(numbers), numbers, np.nan), columns=values.columns)
    by_seed = frame.groupby([group, seeds.to_numpy()]).mean()
    table = describe(by_seed, by_seed.index.get_level_values(0).to_series()).reset_index()
    table = table[table["seeds"] > 0]
    first = keys.loc[~group.duplicated()].set_axis(group.unique())
    described = table[["metric", "seeds", "mean", "low", "high"]].reset_index(drop=True)
    return pd.concat([first.loc[table["group_id"]].reset_index(drop=True), described], axis=1)


def by_epoch(
    records: Sequence[RunRecord], curve: Callable[[RunRecord], Values | None], group: pd.Series
) -> pd.DataFrame:
    """A row a run, a column an epoch. Of runs of a group, the shortest sets its end: else a mean would jump where it ends.

    Args:
        records: of the runs.
        curve: the values of a run, one for each of its epochs, if it has any.
        group: of each run.
    """
    epochs = np.unique(np.concatenate([record.epochs for record in records]))
    values = np.full((len(records), len(epochs)), np.nan)
    place = place_of = None
    for row, record in zip(values, records, strict=True):
        if place_of is not record.epochs:  # many runs share theirs
            place, place_of = np.searchsorted(epochs, record.epochs), record.epochs
        found = curve(record)
        if found is not None:
            row[place] = found
    last = pd.Series([record.epochs[-1] for record in records]).groupby(group.to_numpy()).transform("min").to_numpy()
    return pd.DataFrame(np.where(epochs <= last[:, None], values, np.nan), columns=epochs)


def panels(number: int, across: int, panel_height: float, xlabel: str, **options: Any) -> tuple[Figure, list[Axes]]:
    """A figure of panels, as wide as a page."""
    down = -(-number // across)
    # without a background, for pages of any colour
    figure = Figure((WIDTH, panel_height * down + 0.9), DPI, facecolor="none", layout="constrained")
    grid = figure.subplots(down, min(across, number), squeeze=False, **options).flat
    axes = list(grid)
    for one in axes:
        one.set_facecolor("none")
        one.grid(axis="y", color=BLACK, alpha=0.15, linewidth=0.5)
        one.set_axisbelow(True)
    for empty in axes[number:]:
        empty.remove()
    for one in axes[max(0, number - across) : number]:  # also above a place that is empty
        one.tick_params(labelbottom=True)
        one.set_xlabel(plain(xlabel))
    return figure, axes[:number]


def legend(figure: Figure, entries: Mapping[str, Line2D], columns: int = 3) -> None:
    """Below the panels."""
    figure.legend(
        list(entries.values()),
        list(entries),
        loc="outside lower center",
        ncols=min(columns, len(entries)),
        handlelength=3,
    )


def line_style(variant: str, direction: str) -> dict[str, Any]:
    """How matplotlib draws the line of a variant and direction; of a baseline too."""
    _, colour, marker = (variants() | {POOLED: Variant("", SKY, "v")})[variant]
    if variant == PLAIN:
        line = ROLES["baseline"][1]
        return {"color": colour, "linestyle": line, "marker": marker, "markersize": 6, "linewidth": 1.5}
    line, filling = DIRECTIONS[direction]
    shape = {"marker": marker, "fillstyle": filling, "markersize": 5.5}
    return {"color": colour, "linestyle": line, "linewidth": 1.5, **shape}


def series_label(variant: str, direction: str) -> str:
    """What the line of a variant and direction is called."""
    name = "ICP" if variant == POOLED else variants()[variant].label
    return name if direction in ("", "descend") else f"{name} {direction}"


def series(data: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """The rows of each variant and direction, in the order of the legend: as in the catalogue, the baseline first."""
    found = dict(list(data.groupby(["variant", "direction"], sort=False)))
    for variant in (*variants(), POOLED):
        for direction in ("", *DIRECTIONS):
            if (variant, direction) in found:
                yield variant, direction, found[variant, direction]


def error_bars(axes: Axes, x: Values, data: pd.DataFrame, scale: float, style: Mapping[str, Any]) -> None:
    """Means at x, with bars for their intervals."""
    low, mean, high = (data[name].to_numpy(float) * scale for name in ("low", "mean", "high"))
    axes.errorbar(x, mean, np.array([mean - low, high - mean]), elinewidth=1, capsize=0, **style)


def limit(axes: Axes, measure: Measure) -> None:
    """No axis of percent beyond 0 and 100, where intervals of few seeds reach."""
    if measure.unit == "%":
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, 0), min(high, 100))


def label_ticks(axis: Axis, places: Values, words: Sequence[str]) -> None:
    """A tick at each place of a horizontal axis, a label where there is room for it."""
    room = (np.ptp(places) or 1.0) / 85 * (1 + max(map(len, words)))  # about 85 characters are as wide as a page
    shown, last = [], -np.inf
    for place, word in sorted(zip(places, words, strict=True)):
        has_room = place - last >= room
        shown.append(word if has_room else "")
        last = place if has_room else last
    axis.set_ticks(np.sort(places), shown)


def is_wide(values: Values) -> bool:
    """Whether an axis of these values has to be logarithmic to show them all, and can be."""
    return bool(len(values) and values.min() > 0 and values.max() > LOG_FROM * values.min())


def axis_label(measure: Measure) -> str:
    return folded(f"test {measure.name}" + (f" ({measure.unit})" if measure.unit else ""), 30)


def folded(text: str, width: int) -> str:
    """A text in up to three lines, for matplotlib."""
    return plain(textwrap.fill(text, width, max_lines=3, placeholder=" …"))


def plain(text: str) -> str:
    """A text that matplotlib does not read as mathematics."""
    return text.replace("$", r"\$")


def slug(text: str) -> str:
    """A text as a part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
