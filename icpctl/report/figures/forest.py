"""The forest plot of a report: every paired difference with its interval, by what it is taken from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.transforms import blended_transform_factory

from icpctl.config.catalogue import METHODS, controls
from icpctl.report.cells import planned_text
from icpctl.report.comparison import EXPLORATORY, VERDICTS
from icpctl.report.figures.drawing import (
    BLACK,
    FEW_SEEDS,
    Part,
    left_out_text,
    legend,
    panels,
    plain,
)
from icpctl.report.figures.style import BLUE, GREEN, SPOTS, VERMILION, Drawing, at
from icpctl.runs.references import AGAINST, COUNTERPART
from icpctl.runs.table import records
from icpctl.statistics import ALPHA

MOST_ROWS = 60
ROW, ABOVE = 0.19, 0.9
"""Inches of a row, and of what is around them all."""
OTHER_METHODS = "other methods"
"""Of which each is compared with ICP alone."""
COLOURS = {"better": BLUE, "worse": VERMILION, "level": GREEN}
MARKERS = {"better": "o", "worse": "s", "level": "D"}


def _less(row: Mapping[str, Any], kind: str) -> str:
    """What a row is taken less of, where the heading above it does not say it."""
    if kind == OTHER_METHODS:
        return f" − {AGAINST[row['against']]}"
    return f" − {row[COUNTERPART]}" if kind == COUNTERPART and row[COUNTERPART] != "that in B" else ""


def forest(part: Part) -> list[Drawing]:
    """The comparisons of a part of a report; none where nothing is compared.

    Of more than `MOST_ROWS`, those that claim a difference come first, then those of a method with a baseline.
    """
    table = part.report.comparisons
    here = table["group_id"].isin(part.runs["row"]) & (table["metric"] == part.metric) & table["difference"].notna()
    table = table[here]
    number = len(table)
    if not number:
        return []
    claims = table["verdict"].isin(COLOURS).to_numpy(bool)
    others = (table["role"] != "method").to_numpy(bool)
    baselines = table["against"].isin(["baseline", "compute-matched"]).to_numpy(bool)
    rank = pd.Series(4.0 * ~claims + 2.0 * others + ~baselines, table.index).sort_values(kind="stable")
    table = table.loc[table.index.isin(rank.index[:MOST_ROWS])]
    order = {against: place for place, against in enumerate(AGAINST)}
    table = table.sort_values("against", key=lambda column: column.map(order), kind="stable")

    measure = part.measure
    others_alone = [name for name in METHODS if name not in controls()]  # and no controls, too
    kinds = table["against"].mask(table["against"].isin(others_alone), OTHER_METHODS)
    rows = len(table) + 1.4 * kinds.nunique()
    unit = "points" if measure.unit == "%" else measure.unit
    xlabel = (
        f"difference in {measure.name}{f', {unit}' if unit else ''}; right: {'worse' if measure.falls else 'better'}"
    )
    figure, (axes,) = panels(1, 1, ROW * rows, xlabel)
    figure.set_size_inches(figure.get_size_inches()[0], ROW * rows + ABOVE)
    axes.grid(visible=False)
    axes.axvline(0, color=BLACK, linewidth=1)
    margin = measure.scale * table["margin"].max()
    if pd.notna(margin):
        axes.axvspan(-margin, margin, color=BLACK, alpha=0.08, linewidth=0)
    places: list[float] = []
    place = 0.0
    beside = blended_transform_factory(axes.transAxes, axes.transData)
    labels: list[str] = []
    for kind, of_kind in table.groupby(kinds, sort=False):
        place += 1.0
        heading = f"minus {AGAINST.get(str(kind), kind)}"
        axes.text(-0.01, place, plain(heading), transform=beside, ha="right", va="center", style="italic", fontsize=9)
        for row in records(of_kind):
            labels.append(row["label"] + _less(row, str(kind)))
            place += 1.0
            places.append(place)
            colour = COLOURS.get(row["verdict"], BLACK)
            low, middle, high = (measure.scale * row[name] for name in ("low", "difference", "high"))
            if pd.notna(low):
                axes.plot([low, high], [place, place], color=colour, linewidth=1.5, solid_capstyle="butt")
            face = colour if row["verdict"] in COLOURS else "none"
            axes.plot(middle, place, MARKERS.get(row["verdict"], "o"), color=colour, markerfacecolor=face, markersize=5)
        place += 0.4
    axes.set_ylim(place + 0.6, 0.2)
    axes.set_yticks(places, [plain(label) for label in labels], fontsize=9)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    verdicts = [verdict for verdict in COLOURS if (table["verdict"] == verdict).any()]
    entries = {v: Line2D([], [], color=COLOURS[v], marker=MARKERS[v], linewidth=1.5) for v in verdicts}
    rest = [
        verdict
        for verdict in (*VERDICTS, EXPLORATORY)
        if verdict not in COLOURS and (table["verdict"] == verdict).any()
    ]
    if rest:
        entries[", ".join(rest)] = Line2D([], [], color=BLACK, marker="o", markerfacecolor="none", linewidth=1.5)
    legend(figure, entries)
    tested = int(table["comparisons"].max())
    filled = (
        "the verdicts of the planned claims"
        if part.report.claims
        else f"p ≤ {ALPHA:g}" + (f" among the {tested} comparisons of the report (Holm)" if tested > 1 else "")
    )
    text = (
        f"Each row {part.when} minus what it is compared with, paired by seed, on the test split; bars: 95 % intervals by t, {FEW_SEEDS}. "
        f"Filled: {filled}.{planned_text(part.report)}"
    )
    if pd.notna(margin):
        text += f" Shaded: differences within the margin of {measure.difference(margin / measure.scale).lstrip('+')}, which do not matter."
    text += left_out_text(number, MOST_ROWS, "comparisons", ", those that claim a difference first")
    columns = [
        "against",
        "label",
        "group_id",
        "role",
        "seeds",
        "difference",
        "low",
        "high",
        "p",
        "p_holm",
        "margin",
        "p_level",
        "verdict",
    ]
    columns += [name for name in ("counterpart", "counterpart_id") if name in table]
    data = table[columns].reset_index(drop=True)
    spots = at(data, axes, measure.scale * data["difference"], places)[SPOTS]
    title = f"differences in {measure.name}"
    drawing = part.drawing(f"{part.metric}-differences", title, text, figure, data, spots)
    return [replace(drawing, verdicts=True, rows=True)]
