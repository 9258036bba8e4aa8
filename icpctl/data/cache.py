"""Decoded images, kept as memory-mapped arrays so that only the first load of a data set decodes it.

A decoded data set is a folder `decoded/NAME-KEY` of the user's cache, with `{train,test}_{images,labels}.npy`
and `meta.json`. KEY is a hash of what it was made from, so a changed source file leads to a new folder. Old
folders stay until the user removes them, which is always safe.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import platformdirs
from filelock import FileLock
from numpy.typing import NDArray
from PIL import Image

from icpctl.data.folders import decode
from icpctl.data.source import RawSplit, Source
from icpctl.errors import UserError

FORMAT = 1
"""Goes up when the files or the decoding change, so that older decodes are not taken for current ones."""

BATCH = 256
"""Images that one thread decodes at a stretch; a task for each image would cost more than a small image."""

SMALL_FILE = 4096
"""Bytes of an image file below which more threads only make it slower: they wait for the interpreter's lock."""

_DAMAGED = (OSError, EOFError, ValueError, KeyError, TypeError)


@dataclass(frozen=True)
class Split:
    """One split of a data set, in a fixed order."""

    images: NDArray[np.uint8]
    """(N, 3, H, W), RGB, memory-mapped and read-only; grey images are repeated over the channels."""

    labels: NDArray[np.int64]
    """(N,), indices into the classes."""


@dataclass(frozen=True)
class ImageData:
    """A decoded data set."""

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    fingerprint: str
    """16 hex digits of the SHA-256 of classes, images and labels: equal exactly if the data are."""

    def without_classes(self) -> ImageData:
        """The same images, all of one class "" with label 0, for a task that needs no labels."""
        train, test = (replace(split, labels=np.zeros_like(split.labels)) for split in (self.train, self.test))
        return replace(self, train=train, test=test, classes=("",))


def decoded(name: str, source: Source, image_size: int | None, crop: str) -> ImageData:
    """The images of `source`, from the cache if they were decoded before; `crop` as of `icpctl.data.load`.

    Raises:
        UserError: a source file is damaged, images differ in size, or the cache folder cannot be written.
    """
    cache = platformdirs.user_cache_path("icpctl") / "decoded"
    made_from = [FORMAT, name, source.origin, image_size, sorted(source.stamps)]
    if crop != "none":  # else as before there were crops, so that older decodes stay valid
        made_from.append(crop)
    key = hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:16]
    folder = cache / f"{name.partition(':')[0]}-{key}"
    with suppress(*_DAMAGED):
        return _open(name, folder)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            with suppress(*_DAMAGED):  # another process may have decoded it while this one waited
                return _open(name, folder)
            _decode_into(folder, source, image_size, crop)
            return _open(name, folder)
    except OSError as problem:  # those of the source files are UserErrors already
        raise UserError(
            f"Cannot write the decoded images of {name} to '{cache}': {problem.strerror or problem}. "
            "Free space there, or set XDG_CACHE_HOME to a writable folder with enough of it."
        ) from problem


def _open(name: str, folder: Path) -> ImageData:
    """The decoded data set in `folder`; raises one of `_DAMAGED` if it is missing or incomplete."""
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    train, test = _open_split(folder, "train"), _open_split(folder, "test")
    if [train.images.shape, test.images.shape] != [tuple(shape) for shape in meta["shapes"]]:
        raise ValueError(f"{folder}: other shapes than were written")
    return ImageData(name, train, test, tuple(meta["classes"]), str(meta["fingerprint"]))


def _open_split(folder: Path, split: str) -> Split:
    images = np.load(folder / f"{split}_images.npy", mmap_mode="r")
    labels = np.load(folder / f"{split}_labels.npy")
    if images.dtype != np.uint8 or labels.dtype != np.int64 or labels.shape != images.shape[:1]:
        raise ValueError(f"{folder}: images and labels of {split} do not fit")
    return Split(images, labels)


def _decode_into(folder: Path, source: Source, image_size: int | None, crop: str) -> None:
    """Decode all images; `folder` appears complete or not at all."""
    raw = source.read()
    train, test = (raw.train, raw.test) if crop == "box" else (replace(s, boxes=None) for s in (raw.train, raw.test))
    scratch = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(scratch, ignore_errors=True)  # a process that was killed may have left it
    scratch.mkdir()
    try:
        width, height = _image(train, 0, image_size).size
        digest = hashlib.sha256(json.dumps(raw.classes).encode())
        shapes = []
        for name, split in (("train", train), ("test", test)):
            images = _allocate(scratch / f"{name}_images.npy", (len(split.images), 3, height, width))
            _decode_split(split, train, image_size, images)
            images.flush()
            labels = np.asarray(split.labels, dtype=np.int64)
            np.save(scratch / f"{name}_labels.npy", labels)
            digest.update(json.dumps(images.shape).encode())
            digest.update(images.data)
            digest.update(labels.data)
            shapes.append(images.shape)
        meta = {"classes": raw.classes, "fingerprint": digest.hexdigest()[:16], "shapes": shapes}
        (scratch / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)  # a damaged decode
        scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _image(split: RawSplit, index: int, image_size: int | None) -> Image.Image:
    return decode(split.images[index], image_size, None if split.boxes is None else split.boxes[index])


def _allocate(path: Path, shape: tuple[int, ...]) -> np.memmap[tuple[int, ...], np.dtype[np.uint8]]:
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    if hasattr(os, "posix_fallocate"):
        # Without this a full disk shows when a page is written, as a SIGBUS that ends the process.
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def _decode_split(split: RawSplit, train: RawSplit, image_size: int | None, out: NDArray[np.uint8]) -> None:
    """Fill `out` (N, 3, H, W); every image must have its height and width."""
    height, width = out.shape[2:]

    def decode_batch(start: int) -> None:
        for index in range(start, min(start + BATCH, len(out))):
            image = _image(split, index, image_size)
            if image.size != (width, height):
                raise UserError(
                    f"The images differ in size: '{split.images[index]}' has {image.width}×{image.height} "
                    f"pixels, '{train.images[0]}' has {width}×{height}. Bring them to one size with --image-size."
                )
            out[index] = np.asarray(image).transpose(2, 0, 1)

    first = split.images[0]
    small = not isinstance(first, Path) or first.stat().st_size < SMALL_FILE
    with ThreadPoolExecutor(max_workers=1 if small else None) as pool:
        for _ in pool.map(decode_batch, range(0, len(out), BATCH)):
            pass  # in order, so that the first bad image is the one reported
