"""The paper's Figure 3 for any VAE runs: what the trained networks make of the same test images.

A row is a method. Its columns are the input, the reconstruction from the mean of the posterior, and those from latents drawn
from the posterior, z = μ + σ·ε_k.
"""

from __future__ import annotations

import re
import textwrap
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from icpctl import data
from icpctl.config import RunConfig, choices, declaration
from icpctl.config.catalogue import variants
from icpctl.errors import UserError, count
from icpctl.methods.evalmode import eval_mode
from icpctl.models.network import Network, load_trained
from icpctl.models.vae import VAE
from icpctl.report.figures.style import DPI, styled
from icpctl.report.groups import short_dataset
from icpctl.runs.fingerprints import data_source
from icpctl.runs.folder import RunRecord
from icpctl.runs.table import METHOD
from icpctl.text import value_text

IMAGES = 4  # of the test split
NOISES = (1, 2, 3, 4)  # the seeds of ε
COLUMNS = ("input", "z = μ", "μ + σ·ε₁", "μ + σ·ε₂", "μ + σ·ε₃", "μ + σ·ε₄")
MOST_ROWS = 12

# Lengths in inches. They are whole hundredths, so that every pixel of an image is the same number of dots.
CELL, GAP, BLOCK_GAP = 0.64, 0.04, 0.3
MARGIN, LINE = 0.1, 0.2
CHARACTER = 0.085  # a mean one, at the size of the labels
LABEL_LINES = 3


def reconstruction_figures(records: Sequence[RunRecord]) -> tuple[dict[str, Figure], list[str]]:
    """A figure for every group of finished VAE runs that differ in their method alone.

    Args:
        records: the runs of a results folder; those of other tasks are passed over.

    Returns:
        The figures, by the names of their files without the suffix; and notes on the runs that are left out.
    """
    groups: dict[str, dict[str, RunRecord]] = defaultdict(dict)
    # Of two copies of a run the one in the run's own folder counts.
    for record in sorted(records, key=lambda record: record.path.name == record.run_id):
        if record.config.task == "generation" and record.status.get("state") == "finished":
            groups[record.config.baseline().group_id][record.run_id] = record
    figures, notes = {}, []
    for group_id, runs in groups.items():
        name = f"figure3-{_slug(next(iter(runs.values())).config.dataset)}-{group_id}"
        figure, left_out = reconstruction_figure(runs)
        if figure is not None:
            figures[name] = figure
        notes += [f"Left out of {name}: {', '.join(run_ids)}. {why}" for why, run_ids in left_out.items()]
    return figures, notes


def reconstruction_figure(runs: Mapping[str, RunRecord]) -> tuple[Figure | None, dict[str, list[str]]]:
    """The figure of one group of runs, by their ids, at the seed that most of its configurations have.

    Returns:
        The figure, or none if no run can be shown; and sentences that say why runs are left out, with their ids.
    """
    seeds = Counter(record.config.seed for record in runs.values())
    seed = min(seeds, key=lambda seed: (-seeds[seed], seed))
    labels = row_labels([record.config for record in runs.values() if record.config.seed == seed])
    of_seed = {runs[run_id].config.group_id for run_id in labels}
    left_out: dict[str, list[str]] = defaultdict(list)
    for run_id, record in runs.items():
        if record.config.group_id not in of_seed:
            left_out[f"The figure is of seed {seed}, which they lack."].append(run_id)

    rows: list[tuple[str, NDArray[np.uint8]]] = []
    indices: list[int] = []
    load = cache(_load)
    for run_id, label in labels.items():
        config = runs[run_id].config
        try:
            if len(rows) == MOST_ROWS:
                raise UserError(f"The figure has room for {MOST_ROWS} rows.")
            images = load(*data_source(config))
            if isinstance(images, UserError):
                raise images
            trained = load_trained(runs[run_id].path, "last", "cpu")
            if trained.fingerprint != images.fingerprint:
                raise UserError(f"The data set {config.dataset} is not what they were trained on. Restore it.")
        except UserError as error:
            left_out[str(error)].append(run_id)
        else:
            indices = _spread(len(images.test.images))
            chosen = torch.from_numpy(np.array(images.test.images[indices]))
            rows.append((label, reconstructions(trained.network, chosen)))
    header = _header(next(iter(runs.values())).config, seed)
    return (draw(header, indices, rows) if rows else None), left_out


def row_labels(configs: Sequence[RunConfig]) -> dict[str, str]:
    """The rows in their order: run ids, and what tells each from the others.

    A setting that differs between the methods is named where it means something: α is none of Adam-ICP's.
    """
    named = [name for name in RunConfig.model_fields if name in METHOD and name != "direction"]
    readers = {name: [config for config in configs if config.uses(name)] for name in named}
    apart = [name for name, of in readers.items() if len({getattr(config, name) for config in of}) > 1]

    def parts(config: RunConfig) -> list[str]:
        parts = [variants()[config.variant].label]
        if config.direction != "descend":
            parts.append(config.direction)
        shown = [name for name in apart if config in readers[name] and _means(config, name, readers[name])]
        return parts + [f"{name} {value_text(getattr(config, name))}" for name in shown]

    def rank(config: RunConfig) -> tuple[Any, ...]:
        return (
            list(variants()).index(config.variant),
            choices("direction").index(config.direction),
            *(getattr(config, name) for name in apart),
        )

    return {config.run_id: ", ".join(parts(config)) for config in sorted(configs, key=rank)}


def reconstructions(network: Network, images: Tensor) -> NDArray[np.uint8]:
    """What is shown of one network: (B, 6, S, S, 3), the columns of the figure for images (B, 3, S, S) uint8.

    ε_k is drawn from the seed k alone: it is the same for all images and networks.
    """
    model = network.model
    assert isinstance(model, VAE)
    with torch.no_grad(), eval_mode(network.model), network.autocast():
        mean, log_variance = model.encode(network.normalise(images))
        latents = [mean]
        for seed in NOISES:
            noise = torch.randn(model.latent_dim, generator=torch.Generator().manual_seed(seed))
            latents.append(mean + (log_variance / 2).exp() * noise)
        decoded = [network.pixels(model.decode(z)) for z in latents]
    return np.asarray(torch.stack([images, *decoded], dim=1).permute(0, 1, 3, 4, 2).numpy())


def draw(header: str, indices: Sequence[int], rows: Sequence[tuple[str, NDArray[np.uint8]]]) -> Figure:
    """A block for each test image, two side by side; in it the rows, one below the other.

    The axes come block by block, row by row.

    Args:
        header: says what the figure is of.
        indices: of the images in the test split.
        rows: label and pixels, as `reconstructions` makes them, of each; B is the number of indices.
    """
    labels, label_width = _fold([label for label, _ in rows])
    across = min(2, len(indices))
    block_width = len(COLUMNS) * (CELL + GAP) - GAP
    block_height = len(rows) * (CELL + GAP) - GAP
    heading = 2.2 * LINE  # the block's and its columns'
    width = MARGIN + label_width + across * (block_width + BLOCK_GAP) - BLOCK_GAP + MARGIN
    title = textwrap.wrap(header, int((width - 2 * MARGIN) / (1.2 * CHARACTER)))  # in the larger size
    top = MARGIN + (1.2 * len(title) + 0.8) * LINE
    blocks_down = -(-len(indices) // across)
    height = top + blocks_down * (heading + block_height + BLOCK_GAP) + MARGIN

    side = rows[0][1].shape[2]
    dots = -(-round(DPI * CELL) // side)  # of the paper for a pixel of an image
    with styled():
        figure = Figure(figsize=(width, height), dpi=round(dots * side / CELL))

        def text(x: float, y: float, words: str, **options: Any) -> None:
            """x and y in inches from the top left."""
            figure.text(x / width, 1 - y / height, words, **options)

        text(MARGIN, MARGIN, "\n".join(title), va="top", fontsize="large")
        for block, index in enumerate(indices):
            left = MARGIN + label_width + block % across * (block_width + BLOCK_GAP)
            above = top + block // across * (heading + block_height + BLOCK_GAP)
            text(left, above, f"test image {index}", va="top", weight="bold")
            for column, name in enumerate(COLUMNS):
                middle = left + column * (CELL + GAP) + CELL / 2
                text(middle, above + heading - GAP, name, va="bottom", ha="center", fontsize="small")
            for row, (_, pixels) in enumerate(rows):
                y = above + heading + row * (CELL + GAP)
                if block % across == 0:
                    text(left - 2 * GAP, y + CELL / 2, labels[row], va="center", ha="right")
                for column, image in enumerate(pixels[block]):
                    x = left + column * (CELL + GAP)
                    cell = (x / width, 1 - (y + CELL) / height, CELL / width, CELL / height)
                    axes = figure.add_axes(cell)
                    axes.imshow(image, interpolation="nearest")
                    axes.set_axis_off()
        text(
            MARGIN,
            height - MARGIN,
            "μ, σ: of the posterior of z. ε₁ … ε₄: drawn once from N(0, 1), the same everywhere.",
            fontsize="small",
        )
    return figure


def _load(*source: Any) -> data.ImageData | UserError:
    """The data set, or what is wrong with it."""
    try:
        return data.load(*source)
    except UserError as error:
        return error


def _spread(number: int) -> list[int]:
    """The indices of a few of so many test images, from the first to the last."""
    return [int(index) for index in np.linspace(0, number - 1, min(IMAGES, number)).round()]


def _means(config: RunConfig, name: str, others: Sequence[RunConfig]) -> bool:
    """Whether a setting that is not the same in all others has a meaning in this one; else it cannot be changed."""
    other = next(value for each in others if (value := getattr(each, name)) != getattr(config, name))
    return bool(getattr(config.altered(**{name: other}), name) == other)


def _header(config: RunConfig, seed: int) -> str:
    """What the runs of a figure share: data set, size, seed, epochs, and what of the training is not the default."""
    shared = []
    for name in RunConfig.model_fields:
        if (
            name in {"model", "dataset", "image_size", "seed", "epochs", "method", "optimizer"} | METHOD
            or not declaration(name).identity
        ):
            continue
        if not config.is_default(name):
            shared.append(f"{name} {value_text(getattr(config, name))}")
    size = f"{config.image_size} × {config.image_size} pixels"
    return ", ".join([short_dataset(config.dataset), size, f"seed {seed}", count(config.epochs, "epoch"), *shared])


def _slug(dataset: str) -> str:
    """The same as a part of a file's name."""
    return re.sub(r"[^A-Za-z0-9]+", "-", short_dataset(dataset)).strip("-")


def _fold(labels: Sequence[str]) -> tuple[list[str], float]:
    """The labels in as many lines as fit beside a row, broken after commas alone, and the width of their column."""
    width = 0
    while True:
        width += 1
        folded = ["\n".join(_lines(label, width)) for label in labels]
        if all(text.count("\n") < LABEL_LINES for text in folded):
            longest = max(len(line) for text in folded for line in text.split("\n"))
            return folded, round(longest * CHARACTER + 3 * GAP, 2)


def _lines(label: str, width: int) -> list[str]:
    joined = re.sub("(?<!,) ", "\u00a0", label)  # a no-break space
    lines = textwrap.wrap(joined, width, break_long_words=False, break_on_hyphens=False)
    return [line.replace("\u00a0", " ") for line in lines]
