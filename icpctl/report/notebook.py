"""A report as a notebook shows it: what is claimed, the tables, the notes."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

import pandas as pd

from icpctl.errors import count
from icpctl.report import Report
from icpctl.report.cells import (
    claims_lead,
    compared,
    comparison_cells,
    explanation,
    lead,
    planned_text,
    summary_cells,
    texts,
)

MOST_ROWS = 60
"""Of a table; the data frames have all."""


def html(report: Report) -> str:
    """The report as HTML, all that comes from a file escaped."""
    parts = [_claims(report)] if report.claims else []
    parts += [part for task in report.metrics for part in _of_task(report, task)]
    parts += [_paragraph(report.common)] if report.common else []
    parts += [f"<ul>{''.join(f'<li>{escape(note)}</li>' for note in report.notes)}</ul>"] if report.notes else []
    return f"<div>{''.join(parts)}</div>"


def _claims(report: Report) -> str:
    sentences = "".join(f"<li>{escape(sentence)}</li>" for sentence in report.claims.table["sentence"])
    return f"<p><b>{escape(claims_lead(report))}</b></p><ul>{sentences}</ul>"


def _of_task(report: Report, task: str) -> Iterator[str]:
    if said := lead(report, task):
        yield f"<p><b>{escape(said)}</b></p>"
    cells, above = summary_cells(report, task)
    yield _table(texts(cells, report, task), above)
    table = compared(report, task)
    if len(table):
        columns = {heading: [text for text, _ in column] for heading, column in comparison_cells(table).items()}
        yield _table(pd.DataFrame(columns), "Differences, paired by seed")
    yield _paragraph(explanation(report, task) + planned_text(report))


def _table(people: pd.DataFrame, caption: str) -> str:
    left_out = len(people) - MOST_ROWS
    more = _paragraph(f"The data frames have {count(left_out, 'more row')}.") if left_out > 0 else ""
    return _paragraph(caption) + str(people.head(MOST_ROWS).to_html(index=False, border=0)) + more


def _paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"
