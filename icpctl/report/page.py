"""report.html: the report as one file, which opens without a network."""

from __future__ import annotations

import base64
import json
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from pandas.api.types import is_bool_dtype, is_numeric_dtype

from icpctl.report import Report, tuning
from icpctl.report.cells import (
    Columns,
    at_best_epoch,
    claims_lead,
    compared,
    comparison_cells,
    counted_role,
    explanation,
    lead,
    planned_text,
    scorecard,
    summary_cells,
)
from icpctl.report.comparison import EXPLORATORY
from icpctl.report.figures.style import Drawing, encode
from icpctl.report.pair_view import pair_cells
from icpctl.runs.measures import measure_of
from icpctl.runs.references import AGAINST, COUNTERPART
from icpctl.runs.table import records
from icpctl.text import csv_text, value_text

PAGE = "report.html"
OPEN = 12
"""Comparisons of which all sentences are in sight; of more, those that claim nothing are folded away."""
UNSAID = ("group_id", "counterpart_id", "role", "panel")
"""Columns of the data of a figure that a pointer on it does not show."""
MOST_DATA = 200
"""Rows of a figure's data that are shown; the file that can be saved has all."""

_INK = """<style>
svg { color: #1f2328; --page: #ffffff; fill: currentColor }
@media screen and (prefers-color-scheme: dark) { svg { color: #e6edf3; --page: #0d1117 } }
</style>"""


def page(report: Report, drawings: Sequence[Drawing], folders: Sequence[Path], options: Sequence[str]) -> str:
    """The page: verdicts, tables, figures, runs.

    Args:
        report: what it says.
        drawings: the figures.
        folders: where the runs are.
        options: those of the command that makes the page.
    """
    sides = report.sides
    named = [] if sides and sides.folders else folders  # the options name them
    command = shlex.join(["icpctl", "report", *map(str, named), *options])
    environment = Environment(
        loader=PackageLoader("icpctl.report", "html"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"breakable": _breakable, "with_code": _with_code}
    loaded = environment.loader
    assert loaded is not None
    started = sorted(
        session["started"][:10]
        for record in report.records.values()
        for session in record.sessions
        if isinstance(session.get("started"), str)
    )
    text = environment.get_template("report.html.j2").render(
        css=Markup(loaded.get_source(environment, "report.css")[0]),
        js=Markup(loaded.get_source(environment, "report.js")[0]),
        folders=", ".join(map(str, folders)),
        command=command,
        version=version("icpctl"),
        dates=" to ".join(dict.fromkeys([*started[:1], *started[-1:]])),
        number=len(report.records),
        notes=report.notes,
        claims=records(report.claims.table),
        claims_lead=claims_lead(report) if report.claims else "",
        common=report.common,
        sides=sides and {"names": sides.names, "about": sides.about},
        tasks=[_task(report, task) for task in report.metrics],
        tuning=_tuning(report),
        drawings=[_drawn(drawing, command) for drawing in drawings],
        runs=_table(_runs(report)),
    )
    return text.encode(errors="replace").decode()  # a name that is not UTF-8 has a question mark


def _tuning(report: Report) -> Mapping[str, Any] | None:
    """What was tuned; None where nothing was."""
    if report.tuning.empty:
        return None
    columns: Columns = {
        heading: [(str(value), "") for value in report.tuning[name]]
        for heading, name in (("group", "label"), ("ranges", "ranges"), ("chosen", "chosen"))
    }
    for name in ("trials", "passes"):
        columns[name] = [(f"{value:g}", value) for value in report.tuning[name]]
    return {"explanation": tuning.explanation(report.tuning), "table": _table(columns)}


def _breakable(name: str) -> Markup:
    """A heading that may be broken after each part of the name of a setting."""
    return Markup("_<wbr>").join(name.split("_"))


def _with_code(text: str) -> Markup:
    """A sentence whose commands stand between backticks; what else has backticks is a name of a file."""
    parts = re.split("`(icpctl [^`]*)`", text)
    return Markup("").join(Markup("<code>{}</code>").format(part) if i % 2 else part for i, part in enumerate(parts))


def _task(report: Report, task: str) -> Mapping[str, Any]:
    table = compared(report, task)
    measure = measure_of(report.metrics[task])
    cells, above = summary_cells(report, task)
    card = scorecard(table)
    decided = table["verdict"].isin(["better", "worse"])
    differences = pair_cells(report, task) if report.sides else comparison_cells(table)
    said = records(table[["verdict", "sentence"]])
    first = [each for each, claims in zip(said, decided, strict=True) if claims or len(said) <= OPEN]
    rest = [each for each, claims in zip(said, decided, strict=True) if not claims and len(said) > OPEN]
    if report.claims:
        first, rest = [], [each for each in said if each["verdict"] == EXPLORATORY]
    return {
        "name": task,
        "metric": measure.name,
        "unit": "points" if measure.unit == "%" else measure.unit,
        "explanation": explanation(report, task),
        "lead": lead(report, task),
        "who": counted_role(table),
        "verdicts": [str(verdict) for verdict in card],
        "card": [[AGAINST[str(against)], *row] for against, row in card.iterrows()],
        "compared": len(table),
        "planned": planned_text(report).strip(),
        "exploratory": bool(report.claims),
        "tested": int(table["comparisons"].max()) if len(table) else 0,
        "changed": at_best_epoch(report, task)[["verdict", "sentence"]].to_dict("records"),
        "first": first,
        "rest": rest,
        "comparisons": _table(differences) if differences else None,
        "above": above,
        "groups": _table(cells),
    }


def _table(columns: Columns) -> Mapping[str, Any]:
    """Headings, which of them are of numbers, and rows of cells: what is shown, and what it is sorted by."""
    numbers = [
        heading for heading, column in columns.items() if any(not isinstance(number, str) for _, number in column)
    ]
    cells = [
        [_cell(text, number, heading in numbers) for text, number in column] for heading, column in columns.items()
    ]
    return {"headings": list(columns), "numbers": numbers, "rows": list(zip(*cells, strict=True))}


def _cell(text: str, number: Any, of_numbers: bool) -> tuple[str, str]:
    """What is shown, and the number, as JavaScript reads it, NaN where there is none; a column of text has none."""
    if not of_numbers:
        return text, ""
    text = text.replace(" ± ", " ±\u00a0").replace(
        " to ", " to\u00a0"
    )  # where the room is short, it is broken before these
    value = math.nan if isinstance(number, str) or pd.isna(number) else float(number)
    return text, str(value).replace("nan", "NaN").replace("inf", "Infinity")


def _runs(report: Report) -> Columns:
    """All runs, those that do not count included."""
    runs = report.runs
    member = report.grouping.member
    labels = runs["group_id"].map(member).map(report.grouping.table["label"])
    columns: dict[str, list[tuple[str, Any]]] = {
        "run": [(text, "") for text in runs["run_id"]],
        "group": [(value_text(text), "") for text in labels],
        "seed": [(str(seed), seed) for seed in runs["seed"]],
        "state": [(state, "") for state in runs["state"]],
    }
    numbers = [name for metric in report.metrics.values() for name in dict.fromkeys([metric, f"{metric}_best"])]
    for name in (*numbers, "best_epoch", "passes", "seconds"):
        if name in runs:
            measure = measure_of(name)
            heading = "best epoch" if name == "best_epoch" else measure.heading
            values = runs[name].astype("Float64").to_numpy(float, na_value=float("nan"))
            if name == "best_epoch":
                columns[heading] = [("–" if pd.isna(value) else f"{value:.0f}", value) for value in values]
            else:
                columns[heading] = [(measure.value(float(value)), value) for value in values]
    return columns


def _drawn(drawing: Drawing, command: str) -> Mapping[str, Any]:
    data = drawing.data
    image = image_uri(drawing)  # which lays the figure out
    return {
        "name": drawing.name,
        "title": drawing.title,
        "text": drawing.text,
        "image": image,
        "marks": _marks(drawing),
        "by_row": drawing.rows,
        "plate": drawing.plate,
        "verdicts": drawing.verdicts,
        "command": f"{command} --figures",
        "csv": _uri(csv_text(data).encode(), "text/csv"),
        "rows": len(data),
        "data": _table({str(name): _data_cells(column.head(MOST_DATA)) for name, column in data.items()}),
    }


def _marks(drawing: Drawing) -> str:
    """What a pointer on the figure shows, as JSON: of each spot where it is, in ten-thousandths of the width and the height, the
    number of its words, and the cells of its numbers; the words, each once; the headings of the numbers. Empty without spots.
    """
    places = drawing.places()
    there = np.isfinite(places).all(axis=1)
    if not there.any():
        return ""
    data = drawing.data[there]
    cells = {str(name): _data_cells(column) for name, column in data.items() if name not in UNSAID}
    of_numbers = [name for name in cells if is_numeric_dtype(data[name]) and not is_bool_dtype(data[name])]
    texts = {name: [text for text, _ in column] for name, column in cells.items()}
    words: dict[tuple[str, ...], int] = {}
    named = [name for name in texts if name not in of_numbers]
    number = [words.setdefault(each, len(words)) for each in zip(*(texts[name] for name in named), strict=True)]
    number = number or [0] * len(data)
    of_places = np.rint(10_000 * places[there]).astype(int).tolist()
    marks = [
        [*place, which, *shown]
        for place, which, shown in zip(
            of_places, number, zip(*(texts[name] for name in of_numbers), strict=True), strict=True
        )
    ]
    said = [
        [f"{name}: {text}" for name, text in zip(named, each, strict=True) if text not in ("", "–", COUNTERPART)]
        for each in words
    ]
    return json.dumps(
        {"headings": of_numbers, "words": said or [[]], "marks": marks}, separators=(",", ":"), ensure_ascii=False
    )


def _data_cells(column: pd.Series) -> list[tuple[str, Any]]:
    are_numbers = is_numeric_dtype(column) and not is_bool_dtype(column)
    texts = [
        f"{value:.5g}" if isinstance(value, float) and not math.isnan(value) else value_text(value) for value in column
    ]
    return [(text, value if are_numbers else "") for text, value in zip(texts, column, strict=True)]


def image_uri(drawing: Drawing) -> str:
    """The figure as an address that holds it: SVG in the ink and on the ground of the page; or PNG, where it has photographs."""
    if drawing.plate:
        return _uri(encode(drawing.figure, "png"), "image/png")
    svg = encode(drawing.figure, "svg").decode().replace("#000000", "currentColor").replace("#ffffff", "var(--page)")
    start = svg.index(">", svg.index("<svg")) + 1
    return _uri((svg[:start] + _INK + svg[start:]).encode(), "image/svg+xml")


def _uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
