"""The report in the terminal: tables that fit its width, and sentences."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence

import pandas as pd
from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from icpctl.errors import count
from icpctl.report import Report, tuning
from icpctl.report.cells import (
    INTERVAL,
    MOST_ROWS,
    SHORT,
    at_best_epoch,
    claims_lead,
    compared,
    counted_role,
    difference_text,
    effect_text,
    explanation,
    heading_of,
    interval_text,
    needed_text,
    of_rivals,
    planned_text,
    scorecard,
    sentences,
    setting_columns,
    summary_cells,
    texts,
)
from icpctl.report.comparison import EXPLORATORY
from icpctl.runs.measures import (
    Measure,
    measure_of,
    p_text,
)
from icpctl.runs.references import AGAINST
from icpctl.runs.table import records

SENTENCES = 8
"""Comparisons of which the terminal shows all the sentences; of more it shows those that claim something."""
GAP = 2
OUTCOME_STYLES = {"supported": "green", "refuted": "red", "undecided": ""}


def terminal(report: Report, width: int) -> Iterator[RenderableType]:
    """What is printed, `width` columns wide: the verdicts first; then of each task its differences and its groups."""
    if report.claims:
        yield Text("Planned claims", "bold")
        yield Text(claims_lead(report))
        for row in records(report.claims.table):
            yield Text(f"• {row['sentence']}", OUTCOME_STYLES[row["outcome"]])
        yield Text("")
    for task in report.metrics:
        table = compared(report, task)
        measure = measure_of(report.metrics[task])
        if len(table):
            yield from _verdicts(report, task, table)
            unit = f" ({'points' if measure.unit == '%' else measure.unit})" if measure.unit else ""
            yield Text(f"Differences in {measure.name}{unit}, paired by seed", "bold")
            yield rich_comparisons(table, measure, width)
            yield Text(_explained(report, table) + "\n", "dim")
        yield rich_table(report, task, width)
        yield Text(explanation(report, task) + "\n", "dim")
    if len(report.tuning):
        yield Text("Tuning", "bold")
        yield rich_tuning(report.tuning)
        yield Text(f"{tuning.explanation(report.tuning)}\n", "dim")
    yield Text(report.common)


def _verdicts(report: Report, task: str, table: pd.DataFrame) -> Iterator[RenderableType]:
    """The verdicts of a task. Of a study with claims, only these have any."""
    if report.claims:
        return
    yield Text(f"Comparisons of {counted_role(table)} in {measure_of(report.metrics[task]).name}, by verdict", "bold")
    yield rich_scorecard(scorecard(table))
    yield from (Text(f"• {sentence}") for sentence in sentences(table, SENTENCES))
    changed = at_best_epoch(report, task)
    if len(changed):
        yield Text("\nAt the best epoch, these have another verdict", "bold")
        yield from (Text(f"• {sentence}") for sentence in sentences(changed, SENTENCES))
    yield Text("")


def _explained(report: Report, table: pd.DataFrame) -> str:
    """What the columns of the differences are."""
    said = f"d: mean difference in standard deviations of the differences.{planned_text(report)}"
    if not report.claims:
        said = (
            f"p: two-sided paired t test, corrected for the number of comparisons (Holm); the intervals are not. {said} "
            "Needs: how many seeds would show a difference as large as this"
            + (", or that it is smaller than the margin." if table["margin"].notna().any() else ".")
        )
    return said + (" Other methods are compared at equal epochs, whatever their passes." if of_rivals(table) else "")


def rich_tuning(table: pd.DataFrame) -> Table:
    """What each arm was given, what was chosen for it, and what that cost."""
    people = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="")
    for heading in ("group", "trials", "ranges", "chosen", "passes"):
        people.add_column(heading, justify="right" if heading in ("trials", "passes") else "left", overflow="fold")
    for row in records(table):
        lines = [row[name].replace(", ", "\n") for name in ("ranges", "chosen")]
        people.add_row(*map(Text, (_fold(row["label"], 22), str(row["trials"]), *lines, f"{row['passes']:g}")))
    return people


def rich_scorecard(card: pd.DataFrame) -> Table:
    """How many comparisons say what."""
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="")
    table.add_column("compared with", min_width=len(max(AGAINST.values(), key=len)))
    for verdict in card:
        table.add_column(str(verdict), justify="right")
    for against, row in card.iterrows():
        table.add_row(AGAINST[str(against)], *map(str, row))
    return table


def rich_table(report: Report, task: str, width: int) -> Table:
    """The groups of a task. What all rows share stands above; the settings are in the groups' names.

    Where the room is short, headings and deviations are broken, and at last columns are left out, which is said.
    """
    cells, above = summary_cells(report, task)
    people = texts({name: cells[name] for name in cells if name not in setting_columns(report)}, report, task)
    chosen = heading_of(report, task, report.metrics[task])
    rows = len(people)
    people = people.head(MOST_ROWS)

    def too_wide() -> bool:
        cells = [*people.itertuples(index=False), people.columns]
        widths = [max(len(line) for cell in column for line in cell.split("\n")) for column in zip(*cells, strict=True)]
        return sum(widths) + GAP * (len(widths) - 1) > width

    if too_wide():
        people["group"] = people["group"].map(_fold)
    if folded := too_wide():
        people = people.map(lambda text: text.replace(" ± ", "\n± ").replace(" to ", "\nto "))
    if too_wide():
        people = people.rename(columns=_stacked)
    left_out: list[str] = []
    for words in ("images/s", "KID", "time", "95", "passes", "macro"):
        if too_wide():
            plain = {heading: heading.replace("\n", " ") for heading in map(str, people)}
            dropped = [each for each, text in plain.items() if text.startswith(words) and text != chosen]
            short = words in ("images/s", "KID", "time")
            left_out += [words] * bool(dropped) if short else [plain[each] for each in dropped]
            people = people.drop(columns=dropped)
    captions = [f"No room for {', '.join(left_out)}: see summary.csv."] if left_out else []
    if rows > len(people):
        captions.append(
            f"summary.csv and report.html have {count(rows - len(people), 'more row')}; --where and --by choose."
        )
    table = Table(
        title=Text(above, "bold"),
        title_justify="left",
        caption=Text(" ".join(captions)) if captions else None,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        show_lines=folded,
        show_edge=False,
        pad_edge=False,
        padding=(0, GAP - 1, 0, 0),  # and one of the box
    )
    for heading in map(str, people):
        table.add_column(Text(heading), justify="left" if heading == "group" else "right", overflow="fold")
    for row in people.itertuples(index=False):
        table.add_row(*map(Text, row))
    return table


def rich_comparisons(table: pd.DataFrame, measure: Measure, width: int) -> RenderableType:
    """Each group's name, and below it a line for each comparison; where the room is short, without the effect size."""
    shown = table.head(MOST_ROWS)
    heading = ["minus", "", INTERVAL, "p", "d", "verdict", "needs"]
    cells = {group_id: _comparison_cells(rows, measure) for group_id, rows in shown.groupby("group_id", sort=False)}
    lines = [heading, *(line for rows in cells.values() for line in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    left_out = []
    for name in ("d", "needs", INTERVAL):
        if 2 + sum(widths) + GAP * (len(widths) - 1) > width:
            left_out.append(name)
            place = heading.index(name)
            for line in (*lines, widths):
                del line[place]  # type: ignore[attr-defined]

    def block(rows: Sequence[list[str]]) -> Padding:
        grid = Table.grid(padding=(0, GAP, 0, 0), pad_edge=False)
        for across, name in zip(widths, heading, strict=True):
            grid.add_column(width=across, justify="left" if name in ("minus", "verdict") else "right", no_wrap=True)
        for row in rows:
            style = {"better": "green", "worse": "red", "level": "blue"}.get(row[heading.index("verdict")], "")
            grid.add_row(*(Text(cell, style) for cell in row))
        return Padding(grid, (0, 0, 0, 2))

    parts: list[RenderableType] = [block([heading])]
    labels = shown.drop_duplicates("group_id").set_index("group_id")["label"]
    for group_id, rows in cells.items():
        parts += [Text(labels[group_id]), block(rows)]
    if left_out:
        parts.append(Text(f"No room for {', '.join(left_out)}: see comparisons.csv."))
    if more := len(table) - len(shown):
        parts.append(
            Text(f"comparisons.csv and report.html have {count(more, 'more comparison')}; --where and --by choose.")
        )
    return Group(*parts)


def _comparison_cells(rows: pd.DataFrame, measure: Measure) -> list[list[str]]:
    return [
        [
            f"− {SHORT[row['against']]}",
            difference_text(row, measure),
            interval_text(row, measure, signed=True),
            p_text(row["p_holm"]),
            effect_text(row),
            "" if row["verdict"] == EXPLORATORY else row["verdict"],
            needed_text(row),
        ]
        for row in records(rows)
    ]


def _stacked(heading: str) -> str:
    """A heading in short lines, its unit beside the word before it."""
    glued = re.sub(r" (\S{1,4})$", "\u00a0\\1", heading)
    lines = (line for part in re.split("(?<=,) ", glued) for line in textwrap.wrap(part, 12))
    return "\n".join(lines).replace("\u00a0", " ")


def _fold(label: str, width: int = 26) -> str:
    """Broken after commas alone, where it can be."""
    return "\n".join(textwrap.wrap(label.replace(", ", ",\0").replace(" ", "\u00a0").replace("\0", " "), width))
