"""What every source of images hands to the cache: a cheap description, and a way to read it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Item = Path | NDArray[np.uint8]
"""One undecoded image: a file, or its pixels as (H, W) or (H, W, 3)."""

Stamp = tuple[str, int, int]
"""One source file: relative path, size in bytes, time of the last change in nanoseconds."""

Box = tuple[float, float, float, float]
"""The part of an image that shows the object: left, top, width, height, in pixels."""


@dataclass(frozen=True)
class RawSplit:
    """The undecoded images of one split, their class indices and, if there are any, their boxes, in the same order."""

    images: Sequence[Path] | NDArray[np.uint8]
    labels: Sequence[int] | NDArray[np.int64]
    boxes: Sequence[Box] | None = None


@dataclass(frozen=True)
class Raw:
    """An undecoded data set."""

    classes: tuple[str, ...]
    train: RawSplit
    test: RawSplit


@dataclass(frozen=True)
class Source:
    """A data set that was found but not read yet.

    `origin` and `stamps` identify its content without opening a file: as long as they stay the same, so do the
    decoded images. `read` opens the files and raises UserError if they are damaged.
    """

    origin: str
    stamps: Sequence[Stamp]
    read: Callable[[], Raw]
    boxes: bool = False
    """Whether its images have bounding boxes."""


def stamp(relative: str, status: os.stat_result) -> Stamp:
    """The stamp of the file at path `relative` to its source's origin."""
    return relative, status.st_size, status.st_mtime_ns
