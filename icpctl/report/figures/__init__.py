"""The figures: of a report, from its metrics; and the paper's Figures 1 and 3, which need networks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd

from icpctl.data.download import no_downloads
from icpctl.files import not_writable, write_atomic
from icpctl.report import Report
from icpctl.report.figures.study import study_figures
from icpctl.report.figures.style import KINDS, Drawing, encode
from icpctl.runs.folder import FIGURES
from icpctl.text import csv_text


def draw(report: Report, paper: bool = False) -> tuple[list[Drawing], list[str]]:
    """All figures of a report, and Figure 3 of its VAE runs; the same runs give the same figures.

    Args:
        report: what they are of.
        paper: whether to draw the paper's Figure 1 too, which is a small problem of its own.

    Returns:
        The figures; and sentences on the runs that Figure 3 leaves out.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # of numbers that no metric has
        drawings = study_figures(report)
    notes: list[str] = []
    generative = [record for record in report.records.values() if record.config.task == "generation"]
    if generative or paper:
        with _one_thread(), no_downloads():
            if generative:
                from icpctl.report.figures.reconstruction import reconstruction_figures

                reconstructed, notes = reconstruction_figures(generative)
                text = "Rows: what each network makes of the same test images. Columns: the image, its reconstruction, and those from four draws of the latent."
                drawings += [
                    Drawing(name, "Reconstructions (the paper’s Figure 3)", text, figure, pd.DataFrame(), plate=True)
                    for name, figure in reconstructed.items()
                ]
            if paper:
                from icpctl.report.figures.perturbation import perturbation_figure

                title = "How perturbations move points (the paper’s Figure 1)"
                text = "A small problem of its own, the same in every report: points moved against and along the gradient of their loss, and how probable their class becomes."
                drawings.append(Drawing("figure1", title, text, *perturbation_figure(), plate=True))
    return drawings, notes


def write(drawings: Sequence[Drawing], folder: Path) -> list[Path]:
    """Write each figure as PNG, SVG and PDF, and its data as CSV, to figures/ in a folder.

    Raises:
        UserError: a file cannot be written.
    """
    target = folder / FIGURES
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise not_writable(target, error) from error
    contents: dict[str, bytes] = {}
    for drawing in drawings:
        contents |= {f"{drawing.name}.{kind}": encode(drawing.figure, kind) for kind in KINDS}
        if len(drawing.data):
            contents[f"{drawing.name}.csv"] = csv_text(drawing.data).encode()
    for name, content in contents.items():
        write_atomic(target / name, content)
    return [target / name for name in contents]


@contextmanager
def _one_thread() -> Iterator[None]:
    """For networks this small more threads only wait for each other; and sums come out the same on every machine."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
