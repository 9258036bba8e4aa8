"""The report as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd

from icpctl.report import Report, tuning
from icpctl.report.cells import (
    MOST_ROWS,
    at_best_epoch,
    claims_lead,
    compared,
    comparison_cells,
    counted_role,
    explanation,
    planned_text,
    scorecard,
    sentences,
    setting_columns,
    summary_cells,
    texts,
)
from icpctl.runs.measures import (
    Measure,
    measure_of,
)
from icpctl.runs.references import AGAINST


def markdown_claims(report: Report) -> Iterator[str]:
    """The planned claims, where there are any."""
    if report.claims:
        yield f"{escaped(claims_lead(report))}\n"
        yield "".join(f"- {escaped(sentence)}\n" for sentence in report.claims.table["sentence"])


def markdown(report: Report, task: str) -> Iterator[str]:
    cells, above = summary_cells(report, task)
    yield f"{escaped(above)}\n" if above else ""
    yield pipe_table(
        texts(cells, report, task), [name for name in cells if name not in ("group", *setting_columns(report))]
    )
    yield f"\n{explanation(report, task)}\n"
    table = compared(report, task)
    if len(table):
        yield pipe_table(*_differences(table, measure_of(report.metrics[task])))
        if report.claims:
            yield f"\n{planned_text(report).strip()}\n"
            return
        card = scorecard(table)
        people = (
            card.astype(str).rename(index=AGAINST).rename_axis(f"{counted_role(table)} compared with").reset_index()
        )
        yield "\n" + pipe_table(people, list(people.columns[1:])) + "\n"
        yield "".join(f"- {escaped(sentence)}\n" for sentence in sentences(table, MOST_ROWS))
        if len(changed := at_best_epoch(report, task)):
            yield "At the best epoch, these have another verdict:\n"
            yield "".join(f"- {escaped(sentence)}\n" for sentence in sentences(changed, MOST_ROWS))


def tuning_markdown(report: Report) -> str:
    """What was tuned: a table, and what it is."""
    people = report.tuning[["label", "trials", "ranges", "chosen", "passes"]].rename(columns={"label": "group"})
    people = people.assign(trials=people["trials"].astype(str), passes=people["passes"].map("{:g}".format))
    return f"{pipe_table(people, ['trials', 'passes'])}\n\n{tuning.explanation(report.tuning)}\n"


def _differences(table: pd.DataFrame, measure: Measure) -> tuple[pd.DataFrame, list[str]]:
    """Each comparison as a row of text; and the headings of numbers."""
    cells = comparison_cells(table)
    people = pd.DataFrame({heading: [text for text, _ in column] for heading, column in cells.items()})
    people = people.rename(columns={"difference": f"difference in {measure.name}"})
    return people, [str(heading) for heading in people if heading not in ("group", "minus", "verdict")]


def pipe_table(people: pd.DataFrame, numbers: Sequence[str]) -> str:
    align = ["right" if heading in numbers else "left" for heading in people]
    people = people.map(escaped).rename(columns=escaped)
    return people.to_markdown(index=False, disable_numparse=True, colalign=align)


def escaped(text: str) -> str:
    """A text for Markdown, whatever is in it."""
    return text.translate(_MARKDOWN)


_MARKDOWN = str.maketrans(
    {**{character: f"\\{character}" for character in "\\`*[]|$~"}, "&": "&amp;", "<": "&lt;", ">": "&gt;"}
)
