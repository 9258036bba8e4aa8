"""How the figures look, and how they become files."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

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
    spots: pd.DataFrame | None = None
    """Where each row of the data is drawn, as `at` makes it; None where that is nowhere."""
    rows: bool = False
    """Whether a spot stands for all of its height, as in a list, so that a pointer beside it is on it too."""

    def places(self) -> NDArray[np.float64]:
        """(rows, 2): the spots in shares of the figure's width and height, from the top left; nan for none. To be asked once the
        figure has been encoded, which lays it out.
        """
        found = np.full((len(self.data), 2), np.nan)
        if self.spots is not None:
            width, height = self.figure.bbox.size
            for axes in self.spots[AXES].unique():
                here = (self.spots[AXES] == axes).to_numpy(bool)
                found[here] = axes.transData.transform(self.spots.loc[here, [X, Y]].to_numpy(float)) / (width, height)
            found[:, 1] = 1 - found[:, 1]
        return found


AXES, X, Y = SPOTS = ["axes of the spot", "x of the spot", "y of the spot"]


def at(data: pd.DataFrame, axes: Axes, x: Any, y: Any) -> pd.DataFrame:
    """Data with the spots where they are drawn: the axes, and x and y on these."""
    spots: dict[str, Any] = {AXES: axes, X: x, Y: y}
    return data.assign(**spots)


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
