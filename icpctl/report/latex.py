"""The report as a LaTeX table, in the shape of those in papers; it needs booktabs, graphicx and longtable."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

import pandas as pd

from icpctl.report import Report
from icpctl.report.cells import (
    INTERVAL,
    SHORT,
    claims_lead,
    compared,
    difference_text,
    explanation,
    groups_of,
    heading_of,
    setting_columns,
    summary_cells,
    texts,
)
from icpctl.runs.measures import MARK, Measure, interval_half, measure_of
from icpctl.runs.references import AGAINST

LONG = 40
"""Rows of a table that still fit a page."""


def latex(report: Report, task: str) -> str:
    """A table as papers have it: the measures, and the differences with an asterisk where one is claimed."""
    cells, above = summary_cells(report, task)
    long = len(groups_of(report, task)) > LONG
    beside = setting_columns(report)  # the group's name says them
    measure, chosen = measure_of(report.metrics[task]), heading_of(report, task, report.metrics[task])
    no_room = (INTERVAL, "KID", "images/s", "time")
    shown = [
        heading for heading in cells if heading == chosen or (heading not in beside and not heading.startswith(no_room))
    ]
    if long:  # it cannot be scaled
        shown = [heading for heading in shown if heading in ("group", "seeds", chosen)]
    people = texts(cells, report, task)[shown]
    table = compared(report, task)
    for against in AGAINST:
        rows = table[table["against"] == against].set_index("group_id")
        if len(rows):
            differences = {group_id: latex_difference(row, measure) for group_id, row in rows.to_dict("index").items()}
            people[f"− {SHORT[against]}"] = [differences.get(str(group_id), "–") for group_id in people.index]
    columns = explanation(report, task, interval=False)
    caption = f"{above[0].upper()}{above[1:]}. {columns}" if above else columns
    if len(table):
        caption += f" Differences in {measure.name}, paired by seed"
        caption += ", with their 95 % interval in brackets" if table["low"].notna().any() else ""
        tested = 0 if report.claims else int(table["comparisons"].max())
        caption += f"; *: p ≤ 0.05 among {tested} comparisons (paired t tests, Holm)." if tested else "."
    if report.claims:
        caption += f" *: a planned claim found a difference. {' '.join([claims_lead(report), *report.claims.table['sentence']])}"
    name = re.sub("[^a-z0-9]+", "-", f"{task} {above}".lower()).strip("-")
    return latex_table(people, f"{caption} {report.common}", name, report.notes)


def latex_table(people: pd.DataFrame, caption: str, name: str, notes: Sequence[str], words: int = 1) -> str:
    """Cells as text in a table with a caption.

    Args:
        people: the cells.
        caption: as plain text.
        name: of its label, after tab:icp-.
        notes: comments above it.
        words: how many of the first columns are of text; the others are of numbers.
    """
    long = len(people) > LONG
    comments = "".join(f"% Note: {' '.join(note.split())}\n" for note in notes)
    caption = _latex_text(caption)
    style = people.style.hide(axis="index").format(_latex_text)
    style = style.format(_latex_number, subset=list(people.columns[words:])).format_index(_latex_text, axis="columns")
    text = str(
        style.to_latex(
            hrules=True,
            column_format=("p{0.4\\linewidth}" if long else "l")
            + "l" * (words - 1)
            + "r" * (len(people.columns) - words),
            caption=caption,
            label=f"tab:icp-{name}",
            environment="longtable" if long else "table",
            position=None if long else "t",
            position_float=None if long else "centering",
        )
    )
    if long:  # it says what it is once
        text = text.replace(f"\\caption[]{{{caption}}}", r"\caption[]{Continued.}")
        wide = "".join(
            f"\\setlength{{\\LT{side}}}{{-1in plus 1fill}}" for side in ("left", "right")
        )  # into both margins
        text = f"{{\\scriptsize\\setlength{{\\tabcolsep}}{{3pt}}{wide}%\n{text}}}\n"
    else:  # as wide as the page
        text = text.replace(r"\begin{tabular}", "\\smallskip\n\\resizebox{\\linewidth}{!}{%\n\\begin{tabular}")
        text = text.replace(r"\end{tabular}", r"\end{tabular}}")
    return "% \\usepackage{booktabs,graphicx,longtable}\n" + comments + text


def latex_difference(row: Any, measure: Measure) -> str:
    text = difference_text(row, measure)
    if pd.notna(row["low"]):
        low, high = (measure.value(row[end], signed=True, beside=interval_half(row)) for end in ("low", "high"))
        text = f"{text.removesuffix(MARK)} [{low}, {high}]{text[len(text.removesuffix(MARK)) :]}"
    return text + ("*" if row["verdict"] in ("better", "worse") else "")


_LATEX = str.maketrans(
    {
        **{character: f"\\{character}" for character in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        '"': r"\char34{}",
        "*": r"$^{*}$",
        "’": "'",
        "–": "--",
        "−": r"$-$",
        "±": r"$\pm$",
        "≤": r"$\leq$",
        MARK: r"$^{\dagger}$",
        "α": r"$\alpha$",
        "β": r"$\beta$",
        "ε": r"$\epsilon$",
        "η": r"$\eta$",
        "₁": "$_1$",
        "₂": "$_2$",
        "₃": "$_3$",
    }
)


_NO_GLYPH = frozenset("«»ÐÞðþĄąĐđĘęĦħĮįĸĿŀŉŊŋŦŧŲųſ")
"""Letters below U+0180 that the fonts which a document has by itself lack."""


def _latex_text(text: object) -> str:
    """Escaped; what LaTeX has no character for becomes a question mark."""

    def is_known(character: str) -> bool:
        plain = character < "\u0180" and character.isprintable() and character not in _NO_GLYPH
        return plain or ord(character) in _LATEX

    composed = unicodedata.normalize("NFC", str(text))
    return "".join(character if is_known(character) else "?" for character in composed).translate(_LATEX)


def _latex_number(cell: object) -> str:
    text = str(cell)
    if text == "–":
        return "--"
    number = text.rstrip(f"*{MARK}")
    raised = text[len(number) :].replace(MARK, r"\dagger")
    number = re.sub(r"e([+−-])0*(\d+)", lambda power: rf" \times 10^{{{power[1].strip('+')}{power[2]}}}", number)
    number = number.replace("−", "-").replace("±", r"\pm").replace("inf", r"\infty")
    return f"${number}{f'^{{{raised}}}' if raised else ''}$"
