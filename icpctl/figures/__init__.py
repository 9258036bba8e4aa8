"""The paper's Figures 1 and 3, drawn anew from a results folder, as PNG and as SVG."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from icpctl.figures.perturbation import perturbation_figure
from icpctl.figures.reconstruction import reconstruction_figures
from icpctl.figures.style import KINDS, encode
from icpctl.results import FIGURES, not_writable, read_runs, write_atomic


def write(folder: Path) -> tuple[list[Path], list[str]]:
    """Draw all figures that can be drawn: Figure 1, with its data, and Figure 3 for each group of finished VAE runs.

    The same runs give the same files.

    Args:
        folder: a results folder, or the folder of one run.

    Returns:
        The files that were written; and sentences on the runs that are left out.

    Raises:
        UserError: the folder does not exist, or a file cannot be written.
    """
    records, _ = read_runs(folder)  # the report names what is damaged
    with _one_thread():
        figure1, moved = perturbation_figure()
        reconstructed, notes = reconstruction_figures(records)
    contents = {"figure1.csv": moved.to_csv(index=False).encode()}
    for name, figure in {"figure1": figure1, **reconstructed}.items():
        contents |= {f"{name}.{kind}": encode(figure, kind) for kind in KINDS}
    target = folder / FIGURES
    try:
        target.mkdir(exist_ok=True)
    except OSError as error:
        raise not_writable(target, error) from error
    for name, content in contents.items():
        write_atomic(target / name, content)
    return [target / name for name in contents], notes


@contextmanager
def _one_thread() -> Iterator[None]:
    """For networks this small more threads only wait for each other; and sums come out the same on every machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
