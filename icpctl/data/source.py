"""What every source of images hands to the cache: a cheap description, and a way to read it."""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Encoded:
    """An image file that is kept in a table."""

    place: str
    """Its row, for messages."""
    content: bytes

    def open(self, mode: Literal["rb"]) -> BinaryIO:
        return io.BytesIO(self.content)

    def __str__(self) -> str:
        return self.place


Item = Path | Encoded | NDArray[np.uint8]
"""One undecoded image: a file, or its pixels as (H, W) or (H, W, 3)."""

Stamp = tuple[str, int, int, int, int]
"""A file: its name, size in bytes, times of the last change of its content and of its inode in nanoseconds, and inode.

The time of the inode cannot be set: it tells a file that was overwritten by one of equal size and time. The number of
the inode tells files that changed places. Both are those of the file that a link leads to.
"""

Box = tuple[float, float, float, float]
"""The part of an image that shows the object: left, top, width, height, in pixels."""


@dataclass(frozen=True)
class RawSplit:
    """The undecoded images of one split, their class indices and, if there are any, their boxes, in the same order."""

    images: Sequence[Path | Encoded] | NDArray[np.uint8]
    labels: Sequence[int] | NDArray[np.int64]
    boxes: Sequence[Box] | None = None


@dataclass(frozen=True)
class Raw:
    """An undecoded data set."""

    classes: tuple[str, ...]
    train: RawSplit
    test: RawSplit
    notes: tuple[str, ...] = ()
    """Sentences for the user on what only reading shows; kept with the decoded images."""


@dataclass(frozen=True)
class Source:
    """A data set that was found but not read yet.

    `origin` and `stamps` identify its content without opening a file: as long as they stay the same, so do the
    decoded images. `stamps` looks at the files anew at each call. `read` opens them. Both raise UserError if that fails.
    """

    origin: str
    stamps: Callable[[], Sequence[Stamp]]
    read: Callable[[], Raw]
    boxes: bool = False
    """Whether its images have bounding boxes."""
    notes: tuple[str, ...] = ()
    """Sentences for the user: what was found beside the images, and is not used."""


def stamp(name: str, path: str | Path) -> Stamp:
    """The stamp of the file at `path`, under a name that stays the same when its data set is moved.

    Raises:
        OSError: there is no such file, or it is none that ends, such as a named pipe, which would be waited for.
    """
    status = os.stat(path)  # noqa: PTH116, called for each of a million files
    if not stat.S_ISREG(status.st_mode):
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        raise OSError(errno.EINVAL, "It is a named pipe, a socket or a device, not a file", str(path))
    return name, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino
