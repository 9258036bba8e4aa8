"""How the metric of a report depends on the settings: by one of them, and as heat maps by two."""

from __future__ import annotations

from itertools import combinations
from numbers import Real
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.colors import Normalize
from matplotlib.lines import Line2D

from icpctl.config.catalogue import PLAIN, variants
from icpctl.report.figures.drawing import (
    BLACK,
    INTERVALS,
    POOLED,
    Part,
    Values,
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
    plain,
    series,
    series_label,
)
from icpctl.report.figures.style import SPOTS, Drawing, at
from icpctl.report.groups import SIGNS
from icpctl.runs.measures import Measure
from icpctl.runs.table import METHOD
from icpctl.statistics import LEAST_SEEDS
from icpctl.text import value_text

MOST_PAIRS = 6
MOST_NUMBERED = 12
"""Columns of a heat map whose cells have room for a number."""
ON_PALE, ON_DARK = "#111111", "#f7f7f7"
"""Text in cells; not black, which pages give another colour."""


def axis_drawings(part: Part) -> list[Drawing]:
    """The metric against each setting that varies among the runs of the method, a line for each optimizer and direction."""
    return [drawing for name in _settings(part) for drawing in _axis_drawing(part, name)]


def heat_maps(part: Part) -> list[Drawing]:
    """The difference from the baseline for each pair of settings; the input optimizer counts as one."""
    runs = part.runs[(part.runs["role"] == "method")]
    axes = [name for name in ("variant", *_settings(part)) if runs[name].nunique() > 1]
    differences = _differences(part, runs)
    pairs = [
        (a, b, table)
        for a, b in combinations(axes, 2)
        if len(table := _cells(differences, runs, a, b)) and _fills(table, a, b)
    ]
    left_out = left_out_text(len(pairs), MOST_PAIRS, "pairs of settings")
    return [_heat_map(part, a, b, table, left_out) for a, b, table in pairs[:MOST_PAIRS]]


def _settings(part: Part) -> list[str]:
    """The settings that vary among the runs of the method and its controls, but for optimizer and direction."""
    runs = part.runs[part.constructive]
    named = [name for name in part.settings if name not in ("method", "optimizer", "direction")]
    return [name for name in named if runs[name].nunique(dropna=False) > 1]


def _axis_drawing(part: Part, name: str) -> list[Drawing]:
    measure = part.measure
    runs = part.runs[part.constructive | (part.runs["role"] == "baseline")]
    runs = runs.assign(value=runs[name].mask(~part.constructive, pd.NA) if name in METHOD else runs[name])
    # A line of one value shows nothing: an optimizer that has no such setting, or controls of one value alone.
    values = runs.groupby(["variant", "direction"])["value"].transform("nunique")
    runs = runs[(values > 1) | (runs["variant"] == PLAIN)]
    lines = runs[runs["variant"] != PLAIN]
    if lines.empty:
        return []
    table = over_seeds(runs[[part.metric]], runs[["variant", "direction", "value"]], runs["seed"])
    if table.empty:
        return []

    shown = _ordered(runs["value"])
    places = _places(shown)
    span, gap = np.ptp(places), np.diff(np.sort(places)).min()
    figure, (axes,) = panels(1, 1, 3.2, _setting_label(name))
    entries: dict[str, Line2D] = {}
    found = list(series(table))
    spots = []
    step = min(0.014 * span, 0.6 * gap / len(found))
    for number, (variant, direction, data) in enumerate(found):
        style = line_style(variant, direction)
        if data["value"].isna().all():  # of the baseline, which has no such setting
            low, mean, high = (data[end].iloc[0] * measure.scale for end in ("low", "mean", "high"))
            spots.append(at(data, axes, places.mean(), mean))
            line = axes.axhline(mean, color=BLACK, linestyle=style["linestyle"], linewidth=style["linewidth"])
            if np.isfinite(low):
                axes.axhspan(low, high, color=BLACK, alpha=0.12, linewidth=0)
        else:
            data = (
                data.assign(number=data.index)
                .set_index("value")
                .reindex([value for value in shown if value in set(data["value"])])
            )
            x = places[[shown.index(value) for value in data.index]] + (number - (len(found) - 1) / 2) * step
            error_bars(axes, x, data, measure.scale, style)
            spots.append(at(data.set_index("number"), axes, x, data["mean"].to_numpy(float) * measure.scale))
            line = Line2D([], [], **style)
        entries[series_label(variant, direction)] = line
    label_ticks(axes.xaxis, places, _texts(shown, name))
    limit(axes, measure)
    axes.set_ylabel(part.axis_label)
    legend(figure, entries)
    text = (
        f"Mean over the seeds {part.when}, on the test split; bars, and the band of the baseline: {INTERVALS}. The runs of a seed "
        "that differ in other settings are averaged first. Points of the same value stand side by side."
    )
    if not _balanced(lines, part.settings, name):
        text += " Not all values have the same runs, so their means may differ for that alone."
    placed = pd.concat(spots)[SPOTS].reindex(table.index)
    table = table.drop(columns="metric").rename(columns={"value": name})
    return [part.drawing(f"{part.metric}-by-{name}", f"{measure.name} by {name}", text, figure, table, placed)]


def _balanced(runs: pd.DataFrame, settings: list[str], name: str) -> bool:
    """Whether each value of the setting was run with the same other settings and seeds."""
    others = [other for other in settings if other not in (name, "method", "optimizer", "direction")]
    line = ["variant", "direction"]
    number = runs.groupby(line)["value"].transform("nunique")
    there = runs.groupby([*line, "seed", *others], dropna=False)["value"].transform("nunique")
    return bool((number == there).all())


def _differences(part: Part, runs: pd.DataFrame) -> pd.DataFrame:
    """The metric of each run less that of its baseline on the same seed."""
    place = pd.MultiIndex.from_frame(part.runs[["group_id", "seed"]])
    values = part.runs[part.metric].to_numpy(float, na_value=np.nan)
    baselines = pd.Series(values, index=place).reindex(pd.MultiIndex.from_frame(runs[["baseline_id", "seed"]]))
    return runs[[part.metric]].astype(float) - baselines.to_numpy()[:, None]


def _cells(differences: pd.DataFrame, runs: pd.DataFrame, a: str, b: str) -> pd.DataFrame:
    """The mean of each cell over the seeds. An optimizer that has one value alone of the other setting is left out."""
    table = over_seeds(differences, runs[[a, b]], runs["seed"])
    return table[table.groupby(a)[b].transform("nunique") > 1] if a == "variant" else table


def _fills(table: pd.DataFrame, a: str, b: str) -> bool:
    """Whether it is a map: of two values each way or more, and half of its cells there."""
    rows, columns = table[a].nunique(), table[b].nunique()
    return bool(min(rows, columns) > 1 and 2 * len(table) >= rows * columns)


def _heat_map(part: Part, a: str, b: str, table: pd.DataFrame, left_out: str) -> Drawing:
    measure = part.measure
    down, across = (a, b) if table[a].nunique() >= table[b].nunique() else (b, a)  # a figure can grow downwards
    rows, columns = _ordered(table[down]), _ordered(table[across])
    cells = table.assign(mean=table["mean"] * measure.scale, half=(table["high"] - table["mean"]) * measure.scale)
    grid = {
        name: cells.pivot(index=down, columns=across, values=name).reindex(index=rows, columns=columns).to_numpy(float)
        for name in ("mean", "half")
    }
    figure, (axes,) = panels(1, 1, 0.8 + max(0.42 * len(rows), 1.2), _setting_label(part.named(across)))
    axes.grid(False)
    most = float(np.nanmax(np.abs(grid["mean"]))) or 1.0
    norm, colours = Normalize(-most, most), matplotlib.colormaps["PuOr_r" if measure.falls else "PuOr"]
    mesh = axes.pcolormesh(
        np.ma.masked_invalid(grid["mean"]), norm=norm, cmap=colours, edgecolors="face", linewidth=0.2
    )
    axes.invert_yaxis()
    if numbered := len(columns) <= MOST_NUMBERED:
        for (row, column), mean in np.ndenumerate(grid["mean"]):
            if np.isfinite(mean):
                red, green, blue, _ = colours(norm(mean))
                pale = 0.299 * red + 0.587 * green + 0.114 * blue > 0.5
                words = _number(mean, float(grid["half"][row, column]), measure, len(columns))
                colour = ON_PALE if pale else ON_DARK
                axes.text(column + 0.5, row + 0.5, words, ha="center", va="center", fontsize=9, color=colour)
    axes.set_xticks(np.arange(len(columns)) + 0.5, _texts(columns, across))
    axes.set_yticks(np.arange(len(rows)) + 0.5, _texts(rows, down))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_ylabel(plain(_setting_label(part.named(down))))
    unit = "points" if measure.unit == "%" else measure.unit
    bar = figure.colorbar(mesh, ax=axes, label=folded(f"difference{f', {unit}' if unit else ''}", 30))
    bar.outline.set_visible(False)
    bar.ax.set_facecolor("none")
    text = (
        f"Of {measure.name} {part.when}, on the test split, less that of the baseline of the same seed: the mean over the seeds of "
        "descending runs. The runs of a seed that differ in other settings are averaged first. Purple is better than the baseline."
    )
    if numbered:
        text += f" ±: half of the 95 % interval by t, where there are {LEAST_SEEDS} seeds or more, and room."
    else:
        text += f" There is no room for the numbers of {len(columns)} columns; the data have them."
    data = table.drop(columns="metric").rename(columns={"mean": "difference"})
    words = f"by {part.named(a)} and {part.named(b)}"
    title = f"Difference from the baseline in {measure.name} {words}"
    x, y = ([listed.index(value) + 0.5 for value in table[name]] for listed, name in ((columns, across), (rows, down)))
    spots = at(data, axes, x, y)[SPOTS]
    return part.drawing(f"{part.metric} {words}", title, text + left_out, figure, data, spots)


def _number(mean: float, half: float, measure: Measure, columns: int) -> str:
    """A cell's text, of numbers in the unit of the measure."""
    shown = Measure("", decimals=1 if measure.unit == "%" else measure.decimals)
    text = shown.value(mean, signed=True, beside=half)
    return f"{text} ± {shown.value(half)}" if np.isfinite(half) and columns <= MOST_NUMBERED // 2 else text


def _ordered(values: pd.Series) -> list[Any]:
    """The values that there are: numbers and switches by size, others in the order of the report."""
    found = values.dropna().unique().tolist()
    return sorted(found) if pd.api.types.is_numeric_dtype(values) else found


def _places(values: list[Any]) -> Values:
    """Where values stand on an axis: by size, or by its logarithm; what is not a number, one after the other."""
    if all(isinstance(value, Real) and not isinstance(value, bool) for value in values):
        numbers = np.array(values, float)
        return np.log10(numbers) if is_wide(numbers) else numbers
    return np.arange(len(values), dtype=float)


def _texts(values: list[Any], name: str) -> list[str]:
    """Values for the ticks of an axis."""
    names = {variant: series_label(variant, "") for variant in (*variants(), POOLED)} if name == "variant" else {}
    return [folded(names.get(value, value_text(value)), 18) for value in values]


def _setting_label(name: str) -> str:
    return f"{SIGNS[name]} ({name})" if name in SIGNS else name
