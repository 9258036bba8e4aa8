"""Decoded images, kept as memory-mapped arrays so that only the first load of a data set decodes it.

A decoded data set is a folder `decoded/NAME-KEY` of the user's cache, with `{train,test}_{images,labels}.npy`
and `meta.json`. KEY is a hash of what it was made from, so a changed source file leads to a new folder. Old
folders stay until the user removes them, which is always safe.

The content of the cache is compared with the fingerprint whenever the stamps of its files differ from those in
`verified.json`, which were taken at the last comparison. A cache that fails the comparison is decoded anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
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
from icpctl.data.pixels import PEAK
from icpctl.data.source import Encoded, Raw, RawSplit, Source, Stamp, stamp
from icpctl.errors import UserError

FORMAT = 2
"""Goes up when the files or the decoding change, so that older decodes are not taken for current ones."""

FILES = ("train_images.npy", "train_labels.npy", "test_images.npy", "test_labels.npy", "meta.json")
VERIFIED = "verified.json"

BATCH = 256
"""Images that one thread decodes at a stretch; a task for each image would cost more than a small image."""

SMALL_FILE = 4096
"""Bytes of an image file below which more threads only make it slower: they wait for the interpreter's lock."""

DIM = 16
"""Grey level, of 255, that the brightest pixel of all 16-bit images has to reach. Cameras of 12 bits whose values are
stored in 16 do not: only 16 levels of theirs would be left."""

ATTEMPTS = 2
"""To decode files that change meanwhile. Damaged files of a named data set are replaced at the first."""


@dataclass(frozen=True)
class Split:
    """One split of a data set, in a fixed order."""

    images: NDArray[np.uint8]
    """(N, 3, H, W), RGB, memory-mapped and read-only; grey images are repeated over the channels."""

    labels: NDArray[np.int64]
    """(N,), indices into the classes."""

    stamp: Stamp | None = None
    """Of the file that `images` maps, when its content was verified."""

    def check(self) -> None:
        """Raise UserError if the file that `images` maps is not what was verified any more."""
        if self.stamp is not None:
            assert isinstance(self.images, np.memmap)
            check_unchanged(str(self.images.filename), self.stamp)


@dataclass(frozen=True)
class ImageData:
    """A decoded data set."""

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    fingerprint: str
    """16 hex digits of the SHA-256 of classes, images and labels: equal exactly if the data are."""

    notes: tuple[str, ...] = ()
    """Sentences for the user: what was left out, or decoded anew."""

    def summary(self) -> str:
        """How many images and classes there are, and the notes, for the user."""
        train, test, classes = len(self.train.labels), len(self.test.labels), len(self.classes)
        counts = (
            f"{self.name}: {train:,} training and {test:,} test images of {classes:,} class{'es' * (classes != 1)}."
        )
        return " ".join([counts, *self.notes])

    def without_classes(self) -> ImageData:
        """The same images, all of one class "" with label 0, for a task that needs no labels."""
        train, test = (replace(split, labels=np.zeros_like(split.labels)) for split in (self.train, self.test))
        return replace(self, train=train, test=test, classes=("",))


def user_cache() -> Path:
    """The folder of the user's cache that is icpctl's.

    Raises:
        UserError: there is no home folder that it could be in.
    """
    folder = platformdirs.user_cache_path("icpctl")
    if folder.parts[:1] == ("~",):
        raise UserError("There is no home folder for the cache: set XDG_CACHE_HOME to a writable folder.")
    return folder


def check_unchanged(file: str, expected: Stamp) -> None:
    """Raise UserError if a file of decoded images is not the one of that stamp any more."""
    try:
        if stamp(expected[0], file) == expected:
            return
        what = "were changed"
    except OSError as problem:
        what = f"cannot be read any more ({problem.strerror})"
    raise UserError(
        f"The decoded images in '{file}' {what} since this process checked them. Leave the cache alone while runs are at work. "
        "The same command makes it anew where needed, and goes on from the last checkpoint."
    )


def decoded(name: str, source: Source, image_size: int | None, crop: str) -> ImageData:
    """The images of `source`, from the cache if they were decoded before; `crop` as of `icpctl.data.load`.

    Raises:
        UserError: a source file is damaged, images differ in size, or the cache folder cannot be written.
    """
    cache = user_cache() / "decoded"
    for _ in range(ATTEMPTS):
        stamps = source.stamps()
        kind = name.partition(":")[0]
        made_from = [FORMAT, kind, source.origin, image_size, crop, sorted(stamps)]
        key = hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:16]
        folder = cache / f"{kind}-{key}"
        with suppress(Exception):  # whatever is wrong with it, it is made anew
            return _open(name, folder, key, source.notes)
        try:
            cache.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{folder}.lock"):
                with suppress(Exception):  # another process may have decoded it while this one waited
                    return _open(name, folder, key, source.notes)
                notes = source.notes
                if os.path.lexists(folder):
                    notes += (f"The images in the cache, '{folder}', were damaged or changed: they are decoded anew.",)
                if _decode_into(folder, source, stamps, image_size, crop, key):
                    return _open(name, folder, key, notes)
        except OSError as problem:  # those of the source files are UserErrors already
            raise UserError(
                f"Cannot write the decoded images of {name} to '{cache}': {problem.strerror or problem}. "
                "Free space there, or set XDG_CACHE_HOME to a writable folder with enough of it."
            ) from problem
    raise UserError(
        f"The files of {name} in '{source.origin}' change while they are read. Start again when they are complete."
    )


def _open(name: str, folder: Path, key: str, notes: tuple[str, ...]) -> ImageData:
    """The decoded data set in `folder`; raises an error of any type if it is missing, damaged or another one."""
    stamps = _stamps(folder)
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    if meta["key"] != key:
        raise ValueError(f"{folder}: decoded from something else")
    train, test = _open_split(folder, "train", stamps[0]), _open_split(folder, "test", stamps[2])
    if _verified(folder) != stamps:
        if _fingerprint(meta["classes"], train, test) != meta["fingerprint"]:
            raise ValueError(f"{folder}: other content than was written")
        with suppress(OSError):  # a cache that cannot be written is compared each time
            _write_verified(folder, stamps)
    notes = (*meta.get("notes", ()), *notes)  # a decode by version 0.1 has none
    return ImageData(name, train, test, tuple(meta["classes"]), meta["fingerprint"], notes)


def _open_split(folder: Path, split: str, of_images: Stamp) -> Split:
    images, labels = (np.load(folder / f"{split}_{kind}.npy", mmap_mode="r") for kind in ("images", "labels"))
    if images.dtype != np.uint8 or labels.dtype != np.int64 or labels.shape != images.shape[:1]:
        raise ValueError(f"{folder}: images and labels of {split} do not fit")
    return Split(images, np.array(labels), of_images)


def _fingerprint(classes: Sequence[str], *splits: Split) -> str:
    digest = hashlib.sha256(json.dumps(classes).encode())
    for split in splits:
        digest.update(json.dumps(split.images.shape).encode())
        digest.update(split.images.data)
        digest.update(split.labels.data)
    return digest.hexdigest()[:16]


def _stamps(folder: Path) -> list[Stamp]:
    return [stamp(file, folder / file) for file in FILES]


def _verified(folder: Path) -> list[Stamp]:
    """The stamps of the files when their content was compared last; none if that is not known."""
    try:
        stamp(VERIFIED, folder / VERIFIED)
        return [tuple(each) for each in json.loads((folder / VERIFIED).read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError):
        return []


def _write_verified(folder: Path, stamps: list[Stamp]) -> None:
    """A reader that comes in between finds no JSON, and compares the content itself."""
    _remove(folder / VERIFIED)
    (folder / VERIFIED).write_text(json.dumps(stamps), encoding="utf-8")


def _remove(path: Path) -> None:
    """Remove a folder with its content, or whatever else is there, as far as that is possible."""
    shutil.rmtree(path, ignore_errors=True)
    with suppress(OSError):
        path.unlink()


def _decode_into(
    folder: Path, source: Source, stamps: Sequence[Stamp], image_size: int | None, crop: str, key: str
) -> bool:
    """Decode all images, unless the files change meanwhile: then False. `folder` appears complete or not at all."""
    raw = source.read()
    _check_raw(raw, source.origin)
    train, test = (raw.train, raw.test) if crop == "box" else (replace(s, boxes=None) for s in (raw.train, raw.test))
    scratch = folder.with_name(f"{folder.name}.part")
    _remove(scratch)  # a process that was killed may have left it
    scratch.mkdir()
    try:
        width, height = _image(train, 0, image_size).size
        splits = []
        for name, split in (("train", train), ("test", test)):
            images = _allocate(scratch / f"{name}_images.npy", (len(split.images), 3, height, width))
            _decode_split(split, train, image_size, images)
            images.flush()
            labels = np.asarray(split.labels, dtype=np.int64)
            np.save(scratch / f"{name}_labels.npy", labels)
            splits.append(Split(images, labels))
        if source.stamps() != stamps:
            return False
        meta = {"key": key, "classes": raw.classes, "fingerprint": _fingerprint(raw.classes, *splits)}
        meta["notes"] = raw.notes
        (scratch / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
        _write_verified(scratch, _stamps(scratch))
        _remove(folder)  # a damaged decode
        scratch.rename(folder)
        return True
    finally:
        _remove(scratch)


def _check_raw(raw: Raw, origin: str) -> None:
    """Raise UserError unless each split has images, and for each the label of a class."""
    for name, split in (("training", raw.train), ("test", raw.test)):
        labels = np.asarray(split.labels)
        problem = None
        if not len(split.images):
            problem = f"no {name} images"
        elif len(labels) != len(split.images):
            problem = f"{len(split.images)} {name} images, but {len(labels)} labels"
        elif labels.min() < 0 or labels.max() >= len(raw.classes):
            problem = f"labels of {name} images that are no index of its {len(raw.classes)} classes"
        if problem:
            raise UserError(f"The data set in '{origin}' has {problem}. Replace it by a complete copy.")


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
    peaks: list[int] = []  # of the images that had more than 8 bits

    def decode_batch(start: int) -> None:
        for index in range(start, min(start + BATCH, len(out))):
            image = _image(split, index, image_size)
            if image.size != (width, height):
                raise UserError(
                    f"The images differ in size: '{split.images[index]}' has {image.width}×{image.height} "
                    f"pixels, '{train.images[0]}' has {width}×{height}. Bring them to one size with --image-size."
                )
            if PEAK in image.info:
                peaks.append(image.info[PEAK])
            out[index] = np.asarray(image).transpose(2, 0, 1)

    first = split.images[0]
    size = len(first.content) if isinstance(first, Encoded) else first.stat().st_size if isinstance(first, Path) else 0
    with ThreadPoolExecutor(max_workers=1 if size < SMALL_FILE else None) as pool:
        for _ in pool.map(decode_batch, range(0, len(out), BATCH)):
            pass  # in order, so that the first bad image is the one reported
    if peaks and max(peaks) < DIM:
        raise UserError(
            f"The 16-bit images beside '{first}' would be almost black: they use less than {DIM / 256:.0%} of the range of 16 bits, "
            "from which they are scaled to 8. Convert them to 8 bits with the range that they use, the same for all of them."
        )
