"""How the figures look, and how they become files."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

ORANGE, SKY, GREEN = "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILION, PURPLE = "#0072B2", "#D55E00", "#CC79A7"
"""Colours that the colour-blind can tell apart (Okabe and Ito, 2008)."""

KINDS: dict[str, dict[str, Any]] = {
    "png": {"facecolor": "white"},
    "svg": {"metadata": {"Date": None}},
    "pdf": {"metadata": {"CreationDate": None}},
}
"""The kinds of files, and what matplotlib is told of each: no date, so that the same figure is the same file."""
DPI = 300  # of printed matter

_RC: Any = {
    "font.family": "DejaVu Sans",  # matplotlib brings it along
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "svg.hashsalt": "icpctl",  # else the ids in an SVG are random
    "pdf.fonttype": 42,  # TrueType, which journals ask for, and whose text can be searched
}


@dataclass(frozen=True)
class Drawing:
    """A figure with what belongs to it."""

    name: str
    """Of its files, without the suffix."""
    title: str
    text: str
    """What is drawn, in sentences; also for those who cannot see it."""
    figure: Figure
    data: pd.DataFrame
    """The numbers that are drawn, tidy; empty where it shows pictures."""
    plate: bool = False
    """Whether it has colours of its own, and stays on white in a dark page."""
    verdicts: bool = False
    """Whether it belongs beside the verdicts."""


@contextmanager
def styled() -> Iterator[None]:
    """Draw in the style of the figures, whatever the settings of the user; they are as they were afterwards."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_RC)
        yield


def encode(figure: Figure, kind: str) -> bytes:
    """A figure as the bytes of a file, one of `KINDS`; the same for the same figure.

    A figure without a background is on white as PNG, and has none as SVG and PDF.
    """
    buffer = io.BytesIO()
    with styled():
        figure.savefig(buffer, format=kind, dpi="figure", **KINDS[kind])
    if kind != "svg":
        return buffer.getvalue()
    # matplotlib names no black that is filled, as it is the default: a page could not give text another colour.
    return buffer.getvalue().replace(b"<svg ", b'<svg fill="#000000" ', 1)
