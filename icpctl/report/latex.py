"""The report as LaTeX tables, in the shape of those in papers: the means of the groups, and the differences between them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import pandas as pd

from icpctl.report import Report
from icpctl.report.cells import (
    INTERVAL,
    Columns,
    claims_lead,
    compared,
    comparison_cells,
    explanation,
    groups_of,
    heading_of,
    planned_text,
    setting_columns,
    summary_cells,
    texts,
)
from icpctl.runs.measures import MARK, measure_of

LONG = 40
"""Rows of a table that still fit a page."""
WORDS = ("group", "minus", "verdict")
"""The columns of text."""
FITTED = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"
"""Scales what is wider than the page, and nothing else."""


def latex(report: Report, task: str) -> str:
    """A table of the means of the groups, and one of the differences where there are any."""
    cells, above = summary_cells(report, task)
    chosen = heading_of(report, task, report.metrics[task])
    beside = setting_columns(report)  # the group's name has them
    no_room = (INTERVAL, "KID", "images/s", "time")
    shown = [
        heading for heading in cells if heading == chosen or (heading not in beside and not heading.startswith(no_room))
    ]
    if len(groups_of(report, task)) > LONG:  # it cannot be scaled
        shown = [heading for heading in shown if heading in ("group", "seeds", chosen)]
    columns = explanation(report, task, interval=False)
    caption = f"{above[0].upper()}{above[1:]}. {columns}" if above else columns
    name = re.sub("[^a-z0-9]+", "-", f"{task} {above}".lower()).strip("-")
    means = latex_table(texts(cells, report, task)[shown], caption, name, WORDS)
    table = compared(report, task)
    if table.empty:
        return means
    measure = measure_of(report.metrics[task])
    people = difference_columns(
        comparison_cells(table), ("group", "minus", "seeds", "difference", INTERVAL, "p (Holm)", "verdict")
    )
    unit = f" ({'points' if measure.unit == '%' else measure.unit})" if measure.unit else ""
    caption = f"Differences in {measure.name}{unit}, paired by seed.{planned_text(report)}"
    if not report.claims:
        caption += tests_text(int(table["comparisons"].max()))
    if (table["lacking"] > 0).any():
        caption += f" {MARK}: of only some of the seeds."
    return f"{means}\n{latex_table(people, caption, f'{name}-differences', WORDS)}"


def tests_text(comparisons: int) -> str:
    """What the p values are, for the end of a caption; empty without a test."""
    corrected = f", corrected for {comparisons} comparisons (Holm)" if comparisons > 1 else ""
    return f" p: two-sided paired t tests{corrected}." if comparisons else ""


def difference_columns(cells: Columns, headings: Sequence[str]) -> pd.DataFrame:
    """These columns as text, with intervals in brackets; without those that have nothing in them."""
    people = pd.DataFrame({heading: [text for text, _ in cells[heading]] for heading in headings if heading in cells})
    people[INTERVAL] = [text if text == "–" else f"[{text.replace(' to ', ', ')}]" for text in people[INTERVAL]]
    return people.loc[:, ~people.isin(["", "–"]).all()]


def latex_text(tables: Sequence[str], report: Report) -> str:
    """The tables, with comments: the packages that they need, and what the report says beside them."""
    text = "\n".join(tables)
    needed = {"booktabs": r"\toprule", "graphicx": r"\resizebox", "longtable": r"\begin{longtable}"}
    packages = ",".join(package for package, command in needed.items() if command in text)
    said = [report.common, *([claims_lead(report), *report.claims.table["sentence"]] if report.claims else [])]
    said += [f"Note: {note}" for note in report.notes]
    comments = "".join(f"% {' '.join(each.split())}\n" for each in said if each)
    return (f"% \\usepackage{{{packages}}}\n" if packages else "") + text + comments


def latex_table(people: pd.DataFrame, caption: str, name: str, words: Sequence[str]) -> str:
    """Cells as text in a table with a caption.

    Args:
        people: the cells.
        caption: as plain text.
        name: of its label, after tab:icp-.
        words: the columns of text; the others are of numbers.
    """
    long = len(people) > LONG
    caption = _latex_text(caption)
    style = people.style.hide(axis="index").format(_latex_text)
    numbers = [heading for heading in people if heading not in words]
    style = style.format(_latex_number, subset=numbers).format_index(_latex_text, axis="columns")
    align = ["r" if heading in numbers else "l" for heading in people]
    text = str(
        style.to_latex(
            hrules=True,
            column_format="".join(["p{0.4\\linewidth}" if long else "l", *align[1:]]),
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
        return f"{{\\scriptsize\\setlength{{\\tabcolsep}}{{3pt}}{wide}%\n{text}}}\n"
    text = text.replace(r"\begin{tabular}", f"\\smallskip\n{FITTED}\n\\begin{{tabular}}")
    return text.replace(r"\end{tabular}", r"\end{tabular}}")


def _greek(letter: str) -> str:
    name = unicodedata.name(letter).split()[-1].lower().replace("lamda", "lambda")
    return f"$\\{name.title() if letter.isupper() else name}$"


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
        "‘": "`",
        "’": "'",
        "“": "``",
        "”": "''",
        "–": "--",
        "—": "---",
        "…": r"\ldots{}",
        "−": "$-$",
        "±": r"$\pm$",
        "×": r"$\times$",
        "→": r"$\to$",
        "≤": r"$\leq$",
        "≥": r"$\geq$",
        "≠": r"$\neq$",
        "≈": r"$\approx$",
        MARK: r"$^{\dagger}$",
        **{letter: _greek(letter) for letter in "αβγδεζηθικλμνξπρστυφχψωΓΔΘΛΞΠΣΥΦΨΩ"},
        **{digit: f"$_{number}$" for number, digit in enumerate("₀₁₂₃₄₅₆₇₈₉")},
    }
)


_NO_GLYPH = frozenset("«»ÐÞðþĄąĐđĘęĦħĮįĸĿŀŉŊŋŦŧŲųſ")
"""Letters below U+0180 that the fonts which a document has by itself lack."""


def _latex_text(text: object) -> str:
    """Escaped; a letter that LaTeX lacks loses its accents, and what is then no letter becomes a question mark."""

    def known(character: str) -> str:
        if ord(character) in _LATEX or (
            character < "\u0180" and character.isprintable() and character not in _NO_GLYPH
        ):
            return character
        bare = "".join(each for each in unicodedata.normalize("NFKD", character) if not unicodedata.combining(each))
        return bare if bare.isascii() and bare.isprintable() and bare else "?"

    return "".join(map(known, unicodedata.normalize("NFC", str(text)))).translate(_LATEX)


def _latex_number(cell: object) -> str:
    text = str(cell)
    if text == "–":
        return "--"
    number = text.removesuffix(MARK)
    raised = r"^{\dagger}" if text.endswith(MARK) else ""
    number = re.sub(r"e([+−-])0*(\d+)", lambda power: rf" \times 10^{{{power[1].strip('+')}{power[2]}}}", number)
    number = number.replace("−", "-").replace("±", r"\pm").replace("inf", r"\infty")
    return f"${number}{raised}$"
