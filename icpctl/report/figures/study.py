"""The figures of a report, from metrics alone: by epoch, by compute, by the settings, and the method's diagnostics."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from icpctl.config.catalogue import PLAIN, Live
from icpctl.report import Report
from icpctl.report.figures.drawing import (
    BLACK,
    DRAWN,
    INTERVALS,
    ROLES,
    Part,
    Values,
    axis_label,
    by_epoch,
    error_bars,
    folded,
    is_wide,
    label_ticks,
    left_out_text,
    legend,
    limit,
    line_style,
    over_seeds,
    panels,
    parts,
    plain,
    series,
    series_label,
)
from icpctl.report.figures.evidence import evidence_figures
from icpctl.report.figures.forest import forest
from icpctl.report.figures.sensitivity import axis_drawings, heat_maps
from icpctl.report.figures.style import BLUE, SPOTS, Drawing, at, styled
from icpctl.runs.folder import RunRecord
from icpctl.runs.measures import Measure, measure_of
from icpctl.runs.references import METHOD_RUN
from icpctl.runs.table import METHOD
from icpctl.text import value_text

__all__ = ["Drawing", "study_figures"]

MOST_PANELS, MOST_LINES, MOST_FAMILIES, MOST_TICKS, MOST_BARS = 12, 8, 6, 8, 90
OF_A, OF_B = (BLUE, "-"), (BLACK, "-.")
FITTED = ("baseline", "method", "A", "B")
"""The lines, by their names in the legend, of which the fit is drawn."""
EPOCH, PASSES = "epoch, from 0", "passes of an image through the network"
ROLE_NAMES = Live(
    lambda: {"baseline": "baseline", "descend": "method"} | {key: control.name for key, control in DRAWN.items()}
)


def study_figures(report: Report) -> list[Drawing]:
    """All figures that the runs of a report allow. The same report gives the same figures.

    Args:
        report: of `icpctl.report.build`, also with `by`.

    Returns:
        For each task, model and data set: the differences; the metric by epoch, also on training images; by passes, by each setting that varies, by each pair of
        these, and the diagnostics. None where no run is finished.
    """
    drawings: list[Drawing] = []
    with styled():
        drawings += evidence_figures(report)
        found, left_out = parts(report)
        for part in found:
            drawings += [*forest(part), *_curves(part), *_fit_and_test(part)]
            if report.sides:
                continue
            drawings += [
                *_compute(part),
                *axis_drawings(part),
                *heat_maps(part),
                *_diagnostics(part),
            ]
    return [replace(drawing, text=drawing.text + left_out) for drawing in drawings]


@dataclass(frozen=True)
class _Line:
    """A row of the report in a panel."""

    row: str
    name: str
    """In the legend."""
    colour: str
    style: str


def _curves(part: Part) -> list[Drawing]:
    """The metric by epoch: each row of the method with what it is compared with."""
    metric = part.metric.removesuffix("_best")
    measure = measure_of(metric, part.letters)
    shown, explained = _panels(part)
    runs = part.runs[part.runs["row"].isin([line.row for _, lines in shown for line in lines])]
    of_row = _of_rows(part, runs, "test", metric) if len(runs) else {}
    if not of_row:
        return []

    figure, entries, drawn = _line_panels(shown, measure, lambda line: [(line, of_row.get(line.row))])
    figure.supylabel(axis_label(measure), fontsize=10)
    legend(figure, entries, 2 if len(shown) == 1 else min(4, max(3, 8 - len(entries))))
    text = f"Mean over the seeds at the end of each epoch, on the test split; bands: {INTERVALS}. {explained}"
    if runs.groupby("row")["epochs_recorded"].nunique().max() > 1:
        text += " A line that pools runs of several lengths ends with the shortest."
    columns = ["panel", "label", "group_id", "role", "epoch", "seeds", "mean", "low", "high"]
    return [part.drawing(f"{metric}-by-epoch", f"{measure.name} by epoch", text, figure, drawn[columns], drawn[SPOTS])]


def _of_rows(part: Part, runs: pd.DataFrame, split: str, metric: str) -> dict[str, pd.DataFrame]:
    """The means of a metric over the seeds by epoch, of each row that has it."""
    curves = by_epoch(part.records(runs), lambda record: record.curves.get((split, metric)), runs["row"])
    table = over_seeds(curves, runs[["row", "label", "role"]], runs["seed"])
    table = table.rename(columns={"row": "group_id", "metric": "epoch"})
    return {str(row): of_row for row, of_row in table.groupby("group_id")}


def _fit_and_test(part: Part) -> list[Drawing]:
    """The metric by epoch on training images as they are and on the test images: each row of the method with its baseline."""
    metric = part.metric.removesuffix("_best")
    measure = measure_of(metric, part.letters)
    shown = [(title, [line for line in lines if line.name in FITTED]) for title, lines in _panels(part)[0]]
    runs = part.runs[part.runs["row"].isin([line.row for _, lines in shown for line in lines])]
    splits = {split: _of_rows(part, runs, split, metric) for split in ("fit", "test") if len(runs)}
    if not splits.get("fit"):
        return []

    def both(line: _Line) -> Iterator[tuple[_Line, pd.DataFrame | None]]:
        for split, images, style in (("fit", "training", ":"), ("test", "test", "-")):
            data = splits[split].get(line.row)
            named = replace(line, name=f"{line.name}, {images} images", style=style)
            yield named, None if data is None else data.assign(split=split)

    figure, entries, drawn = _line_panels(shown, measure, both)
    figure.supylabel(plain(f"{measure.name} ({measure.unit})" if measure.unit else measure.name), fontsize=10)
    legend(figure, entries, 2)
    text = (
        f"Mean over the seeds at the end of each epoch, on training images without augmentation and on the test images; bands: {INTERVALS}. "
        "The distance between the two lines of a colour is the gap between fitting and generalisation."
    )
    columns = ["panel", "split", "label", "group_id", "role", "epoch", "seeds", "mean", "low", "high"]
    title = f"{measure.name} on training and on test images"
    return [part.drawing(f"{metric}-fit-and-test", title, text, figure, drawn[columns], drawn[SPOTS])]


def _line_panels(
    shown: Sequence[tuple[str, Sequence[_Line]]],
    measure: Measure,
    curves: Callable[[_Line], Iterable[tuple[_Line, pd.DataFrame | None]]],
) -> tuple[Figure, dict[str, Line2D], pd.DataFrame]:
    """Panels of curves by epoch: the figure, its legend, and what is drawn.

    Args:
        shown: the title and the lines of each panel.
        measure: of the values.
        curves: maps a line of a panel to those that are drawn for it, each with its data, if there are any.
    """
    alone = len(shown) == 1
    figure, axes = panels(len(shown), 1 if alone else 3, 3.0 if alone else 1.7, EPOCH, sharex=True, sharey=True)
    entries: dict[str, Line2D] = {}
    drawn = []
    for one, (title, lines) in zip(axes, shown, strict=True):
        one.set_title(folded(title, 80 if alone else 30), fontsize=9)
        for line, data in itertools.chain.from_iterable(map(curves, lines)):
            if data is not None:
                entries[plain(line.name)] = _draw_curve(one, data, measure.scale, line)
                drawn.append(at(data.assign(panel=title), one, data["epoch"], data["mean"] * measure.scale))
        one.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    limit(axes[0], measure)
    return figure, entries, pd.concat(drawn, ignore_index=True)


def _panels(part: Part) -> tuple[list[tuple[str, list[_Line]]], str]:
    """The title and the lines of each panel, the leading one last, over the others; and a sentence or two on them."""
    if part.report.sides:
        return _panels_of_sides(part)
    member, rows = part.report.grouping.member, part.runs.drop_duplicates("row").set_index("row")
    twins: dict[str, dict[str, str]] = defaultdict(dict)
    for group_id, of in part.report.grouping.twins.items():
        for kind, twin in of.items():
            if member[twin] in rows.index:  # not where all its runs failed
                twins[member[group_id]].setdefault(kind, member[twin])
    alone = np.array([METHOD_RUN not in twins[row] for row in rows.index])
    leading = rows[(rows["role"] == "method") | ((rows["role"] == "control") & alone)]
    if leading.empty:
        listed = enumerate(rows["label"].iloc[:MOST_LINES].items())
        colours, styles = zip(*ROLES.values(), strict=True)
        # Neighbours differ in both; the second four have other pairs.
        lines = [_Line(str(row), name, colours[(i + i // 4) % 4], styles[i % 4]) for i, (row, name) in listed]
        return [("", lines)], "There are baselines alone." + left_out_text(len(rows), MOST_LINES, "baselines")
    # As many of each optimizer, so that none is left out whole; then in the order of the report.
    turn = leading.groupby("variant").cumcount().sort_values(kind="stable")
    chosen = leading[leading.index.isin(turn.index[:MOST_PANELS])]
    shown = []
    for row, label, direction in chosen[["label", "direction"]].itertuples():
        roles = [kind for kind in ("baseline", *reversed([*DRAWN])) if kind in twins[row]]
        lines = [_Line(twins[row][kind], ROLE_NAMES[kind], *ROLES[kind]) for kind in roles]
        shown.append((label, [*lines, _Line(row, ROLE_NAMES[direction], *ROLES[direction])]))
    text = "A panel is a row of the table, beside its baseline and its controls, where they are there."
    return shown, text + left_out_text(len(leading), MOST_PANELS, "rows", ", in turn of each optimizer")


def _panels_of_sides(part: Part) -> tuple[list[tuple[str, list[_Line]]], str]:
    """As `_panels`: a panel is a pair of groups, A and B."""
    table, there = part.report.comparisons, set(part.runs["row"])
    pairs = table[table["metric"] == part.metric].drop_duplicates(["group_id", "counterpart_id"])
    shown = []
    for label, a, counterpart, b in pairs[["label", "group_id", "counterpart", "counterpart_id"]].itertuples(
        index=False
    ):
        title = (
            label.removesuffix(" in A")
            if part.report.sides and part.report.sides.folders
            else f"{label} − {counterpart}"
        )
        lines = [_Line(row, name, *style) for row, name, style in ((b, "B", OF_B), (a, "A", OF_A)) if row in there]
        shown.append((title, lines))
    return shown[:MOST_PANELS], "A panel is a pair of groups." + left_out_text(len(shown), MOST_PANELS, "pairs")


def _draw_curve(axes: Axes, data: pd.DataFrame, scale: float, line: _Line) -> Line2D:
    epochs = data["epoch"].to_numpy(float)
    low, mean, high = (data[name].to_numpy(float) * scale for name in ("low", "mean", "high"))
    axes.fill_between(epochs, low, high, color=line.colour, alpha=0.15, linewidth=0)
    marker = "o" if len(epochs) == 1 else None  # a line of one point is none
    (drawn,) = axes.plot(epochs, mean, color=line.colour, linestyle=line.style, linewidth=1.5, marker=marker)
    return drawn


def _compute(part: Part) -> list[Drawing]:
    """The metric against what a run costs: whether a method is above the line of the baselines."""
    runs, measure = part.runs, part.measure
    plain_settings = [
        name for name in part.settings if name not in METHOD | {"method", "optimizer", "direction", "epochs"}
    ]
    keys = runs[["row", "label", "role", "variant", "direction", *plain_settings]]
    table = over_seeds(runs[[part.metric]], keys, runs["seed"])
    table["passes"] = table["row"].map(runs.groupby("row")["passes"].mean())
    families = list(table.groupby(plain_settings, sort=False, dropna=False)) if plain_settings else [((), table)]
    shown = families[:MOST_FAMILIES]
    crowded = max(len(family) for _, family in shown) > MOST_BARS

    alone = len(shown) == 1
    figure, axes = panels(len(shown), 1 if alone else 2, 3.6 if alone else 2.6, PASSES, sharex=True, sharey=True)
    entries: dict[str, Line2D] = {}
    drawn = []
    for one, (values, family) in zip(axes, shown, strict=True):
        title = ", ".join(f"{name}={value_text(value)}" for name, value in zip(plain_settings, values, strict=True))
        one.set_title(folded(title, 50), fontsize=9)
        methods = [data for variant, _, data in series(family) if variant != PLAIN]
        data = pd.concat([family[family["variant"] == PLAIN].sort_values("passes"), *methods])
        data["x"] = _side_by_side(data)
        for variant, direction, of_series in series(data):
            style = line_style(variant, direction)
            if variant != PLAIN:
                style["linestyle"] = "none"
                if crowded:
                    of_series = of_series.assign(low=np.nan, high=np.nan)
            entries[series_label(variant, direction)] = Line2D([], [], **style)
            error_bars(one, of_series["x"].to_numpy(float), of_series, measure.scale, style)
        drawn.append(at(data, one, data["x"], data["mean"] * measure.scale))
    passes = table["passes"].unique()
    if len(passes) <= MOST_TICKS:
        label_ticks(axes[0].xaxis, passes, [f"{number:.0f}" for number in passes])
    limit(axes[0], measure)
    figure.supylabel(part.axis_label, fontsize=10)
    legend(figure, entries)
    side = "below" if measure.falls else "above"
    text = (
        f"Each row of the table {part.when}, on the test split, against its compute: the mean over the seeds; bars: {INTERVALS}. "
        f"A point {side} the line of the baselines is better than compute-matched plain training. Points of equal passes stand "
        "side by side."
    )
    if crowded:
        text += " Of so many, the bars of the method and its controls are left out; the data have them."
    text += left_out_text(len(families), MOST_FAMILIES, "panels")
    columns = ["label", "row", "role", *keys.columns[3:], "passes", "seeds", "mean", "low", "high"]
    every = pd.concat(drawn, ignore_index=True)
    data = every[columns].rename(columns={"row": "group_id"})
    title = f"{measure.name} by compute"
    return [part.drawing(f"{part.metric}-by-passes", title, text, figure, data, every[SPOTS])]


def _side_by_side(data: pd.DataFrame) -> Values:
    """The passes of each row; those of methods that have the same, a little apart around them."""
    x = data["passes"].to_numpy(float)
    distinct = np.unique(x)
    span = np.ptp(distinct) or 1.0
    room = min(0.25 * span, 0.7 * np.diff(distinct).min(initial=span))
    moved = data[data["variant"] != PLAIN].groupby("passes")["passes"]
    place, number = moved.cumcount(), moved.transform("size")
    offset = ((place + 0.5) / number - 0.5) * np.minimum(room, 0.02 * span * number)
    return np.asarray(x + offset.reindex(data.index, fill_value=0.0).to_numpy(float))


def _diagnostics(part: Part) -> list[Drawing]:
    """What the method did, epoch by epoch: a line for each variant and direction."""
    runs = part.runs[part.constructive]
    if runs.empty:
        return []
    records = part.records(runs)
    keys = runs[["variant", "direction"]]
    group = keys.groupby(list(keys), sort=False).ngroup()
    tables = {}
    for name, curve in DIAGNOSTICS.items():
        table = over_seeds(by_epoch(records, curve, group), keys, runs["seed"])
        if len(table):
            tables[name] = table.rename(columns={"metric": "epoch"})
    shown = [name for name in tables if name != SMALLEST]
    if not shown:
        return []

    across = min(2, len(shown))
    figure, axes = panels(len(shown), across, 2.1, EPOCH, sharex=True)
    entries: dict[str, Line2D] = {}
    for one, name in zip(axes, shown, strict=True):
        values = tables[name]["mean"].to_numpy(float)
        one.set_title(name, fontsize=10)
        one.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        if is_wide(values):
            one.set_yscale("log")
        there: list[str] = []
        for variant, direction, data in series(tables[name]):
            there += [variant] * (variant not in there)
            number = len(there) - 1
            # Two that do the same show both: the later is narrower, and has its markers elsewhere.
            apart = {
                "linewidth": 3.0 - 0.8 * number,
                "markevery": (number % len(data), max(3, len(data) // 4)),
            }
            line = _line(one, data, line_style(variant, direction) | apart)
            entries[series_label(variant, direction)] = line
        if name == SHIFT:
            for variant, direction, data in series(tables[SMALLEST]):
                _line(one, data, line_style(variant, direction) | {"marker": None, "linewidth": 0.7})
        if name == CHANGE:
            one.axhline(0, color=BLACK, linewidth=0.8)
        if name == NOISE:
            one.set_yscale("log")
            one.axhline(1, color=BLACK, linewidth=0.8)
    legend(figure, entries)
    text = (
        "Means over the seeds on the training batches of each epoch with the method; what else differs between the runs is "
        "pooled, and intervals are left out. The perturbation is to make the loss smaller, or larger where it ascends. Thin: the "
        "stage that shifts least. A feature shift whose error is at the line at 1 is rounding alone."
    )
    of_name = dict(zip(shown, axes, strict=True))
    placed = {
        name: at(table, of_name[SHIFT if name == SMALLEST else name], table["epoch"], table["mean"])
        for name, table in tables.items()
        if name != SMALLEST or SHIFT in of_name
    }
    every = pd.concat(placed, names=["diagnostic"]).reset_index("diagnostic").reset_index(drop=True)
    title = "Diagnostics of the method"
    return [part.drawing("diagnostics", title, text, figure, every.drop(columns=SPOTS), every[SPOTS])]


def _line(axes: Axes, data: pd.DataFrame, style: Mapping[str, Any]) -> Line2D:
    (line,) = axes.plot(data["epoch"].to_numpy(float), data["mean"].to_numpy(float), **style)
    return line


def _train(name: str) -> Callable[[RunRecord], Values | None]:
    return lambda record: record.curves.get(("train", name))


def _change(record: RunRecord) -> Values | None:
    """By how much the perturbation changes the loss."""
    before, after = (record.curves.get(("train", f"icp_loss_{when}")) for when in ("before", "after"))
    return None if before is None or after is None else after - before


def _of_stages(name: str, pick: Callable[[list[Values]], Values]) -> Callable[[RunRecord], Values | None]:
    """The largest or smallest of a diagnostic that each stage has."""

    start = f"{name}_"

    def picked(record: RunRecord) -> Values | None:
        stages = [
            curve
            for (split, metric), curve in record.curves.items()
            if split == "train" and metric.removeprefix(start).isdigit()
        ]
        return pick(stages) if stages else None

    return picked


CHANGE, SHIFT, SMALLEST = (
    "loss after − before the perturbation",
    "feature shift, largest stage",
    "feature shift, smallest stage",
)
NOISE = "error of the feature shift, largest"
DIAGNOSTICS: dict[str, Callable[[RunRecord], Values | None]] = {
    CHANGE: _change,
    "largest change of an input": _train("delta_linf"),
    "feature loss": _train("feature_loss"),
    "weight of the task loss": _train("task_weight"),
    SHIFT: _of_stages("feature_shift", np.fmax.reduce),
    SMALLEST: _of_stages("feature_shift", np.fmin.reduce),
    NOISE: _of_stages("feature_shift_error", np.fmax.reduce),
}
"""The panels and the curve that each shows."""
