"""How the figures look, and how they become files."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.figure import Figure

ORANGE, SKY, BLUE, VERMILION, PURPLE = "#E69F00", "#56B4E9", "#0072B2", "#D55E00", "#CC79A7"
"""Colours that the colour-blind can tell apart (Okabe and Ito, 2008)."""

KINDS = ("png", "svg")
DPI = 300  # of printed matter

_RC: Any = {
    "font.family": "DejaVu Sans",  # matplotlib brings it along
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "svg.hashsalt": "icpctl",  # else the ids in an SVG are random
}


@contextmanager
def styled() -> Iterator[None]:
    """Draw in the style of the figures, whatever the settings of the user; they are as they were afterwards."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_RC)
        yield


def encode(figure: Figure, kind: str) -> bytes:
    """A figure as the bytes of a file, png or svg; the same for the same figure, as they hold no date."""
    buffer = io.BytesIO()
    with styled():
        figure.savefig(buffer, format=kind, dpi="figure", metadata={"Date": None} if kind == "svg" else {})
    return buffer.getvalue()
