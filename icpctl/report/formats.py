"""The report as text, in each of the formats that --format can name."""

from __future__ import annotations

import json
from typing import Any, Literal, assert_never

from icpctl.report import Report
from icpctl.report.latex import latex, latex_text
from icpctl.report.markdown import escaped, markdown, markdown_claims, tuning_markdown
from icpctl.report.pair_view import pair_latex, pair_markdown
from icpctl.text import csv_text

Format = Literal["csv", "markdown", "latex", "json"]


def render(report: Report, format: Format) -> str:
    """The report as text: csv, the summary as it is, or the comparisons of two sides; json, all of it; markdown and latex
    (booktabs) for people.
    """
    match format:
        case "csv":
            return csv_text(report.comparisons if report.sides else report.summary)
        case "json":
            return _json(report)
        case "markdown":
            of_task = pair_markdown if report.sides else markdown
            parts = [*markdown_claims(report), *(part for task in report.metrics for part in of_task(report, task))]
            if len(report.tuning):
                parts += [tuning_markdown(report)]
            notes = "".join(f"- {escaped(note)}\n" for note in report.notes)
            return "\n".join([*parts, escaped(report.common), "", *(["Notes:", "", notes] if notes else [])])
        case "latex":
            return latex_text(
                [(pair_latex if report.sides else latex)(report, task) for task in report.metrics], report
            )
        case _:
            assert_never(format)


def _json(report: Report) -> str:
    tables = {"runs": report.runs, "summary": report.summary, "comparisons": report.comparisons}
    tables |= {"claims": report.claims.table} if report.claims else {}
    tables |= {"tuning": report.tuning} if len(report.tuning) else {}
    content: dict[str, Any] = {"metrics": dict(report.metrics), "settings": report.common, "notes": report.notes}
    if report.sides:
        content["sides"] = dict(zip("AB", report.sides.names, strict=True)) | {"about": report.sides.about}
    content |= {
        name: json.loads(table.to_json(orient="records", double_precision=15)) for name, table in tables.items()
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
