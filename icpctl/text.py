"""Values and tables as text; nothing in them is obeyed by the program that reads them."""

from __future__ import annotations

import re
from typing import Any

import pandas as pd

from icpctl.terminal import printable

_FORMULA = re.compile(r"\s*[=+\-@＝＋－＠]")
"""How a cell begins that a spreadsheet computes."""


def value_text(value: Any) -> str:
    """A value of a table or of a setting, for people."""
    if isinstance(value, tuple):
        return printable("+".join(value))
    if value is None or pd.isna(value):
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    return printable(f"{value:.12g}" if isinstance(value, float) else str(value))


def csv_cell(text: str) -> str:
    """A cell of text that a spreadsheet takes for text: an apostrophe stands before what it would compute.

    A number stays as it is, also one that is given as text.
    """
    text = "\n".join(map(printable, text.split("\n")))  # a line break is in quotes
    return f"'{text}" if _FORMULA.match(text) and not _is_number(text) else text


def csv_text(table: pd.DataFrame) -> str:
    """A table as CSV, its headings and cells of text as `csv_cell` makes them."""
    safe = table.rename(columns=lambda name: csv_cell(str(name)))
    for place, column in enumerate(table.dtypes):
        if pd.api.types.is_object_dtype(column) or pd.api.types.is_string_dtype(column):
            values = table.iloc[:, place]
            changed = {
                value: cell
                for value in values.dropna().unique()
                if isinstance(value, str) and (cell := csv_cell(value)) != value
            }
            if changed:
                safe.isetitem(place, [changed.get(value, value) for value in values])
    return safe.to_csv(index=False)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
