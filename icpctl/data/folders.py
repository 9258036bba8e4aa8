"""Class folders, `ROOT/{train,test}/CLASS/**` or `ROOT/CLASS/**`, and the decoding of one image."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from icpctl.data.pixels import UnsupportedPixelsError, read_rgb
from icpctl.data.source import Box, Encoded, Item, Raw, RawSplit, Source, Stamp, stamp
from icpctl.data.splitting import stratified_part
from icpctl.errors import UserError, count, first_names

EXTENSIONS = frozenset(
    {".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pcx", ".pgm", ".png"}
    | {".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"}
)
"""Files with another ending are not taken for images (notes, thumbnail databases, checksums)."""

HIDDEN, LOOSE = "hidden", "images outside of the class folders"
"""What is left out, beside files of other types."""

MOST_NAMED = 10
"""Types of files that a message lists."""

TRAIN, TEST = "train", "test"
VALIDATION = ("val", "valid", "validation")
"""Folders that take the place of a missing test folder; the first that is there."""

DEFAULT_SPLIT = 0.8
LAYOUTS = "A data folder has the images of each class in train/CLASS/ and test/CLASS/ (or val/CLASS/), or in CLASS/, not split."

Listing = dict[str, list[str]]  # class name -> the paths of its image files, both sorted


def class_folders(root: Path, split: float | None = None) -> Source:
    """The images under `root`, one folder per class: in train/ and test/, in train/ and val/, or not split yet.

    The images of a class may lie in sub-folders. Hidden files and folders, and files that are no images by their
    ending, are left out, and counted in the source's `notes`.

    Args:
        root: the folder.
        split: the share of the images of each class that is for training, where they are not split; always the same ones.
            None: `DEFAULT_SPLIT`.

    Raises:
        UserError: a folder is missing, unreadable or without images, a link leads nowhere, a name is not UTF-8, an image
            is no file, or the two splits differ in their classes; a share of images that are split, or that leaves a class
            without images for training or for the test.
    """
    if not root.is_dir():
        raise UserError(f"The data folder '{root}' does not exist or is not a folder. {LAYOUTS}")
    left_out: Counter[str] = Counter()
    test = next((name for name in (TEST, *VALIDATION) if (root / name).is_dir()), None)
    if test is None and not (root / TRAIN).is_dir():
        share = DEFAULT_SPLIT if split is None else split
        listings = _split(_listing(root, left_out), share, root)
        notes = [
            f"There are no folders {TRAIN} and {TEST}: {100 * share:.4g} % of the images of each class are for training, always the same ones (--split), "
            "and the others are the test split."
        ]
    else:
        if test is None:
            raise UserError(f"'{root / TEST}' is missing, and so are {' and '.join(VALIDATION)}. {LAYOUTS}")
        if split is not None:
            raise UserError(f"'{root}' is split already, into {TRAIN} and {test}. Leave out --split.")
        listings = _listing(root / TRAIN, left_out), _listing(root / test, left_out)
        train, other = (listing.keys() for listing in listings)
        if train != other:
            raise UserError(
                f"The classes of '{root}' differ between its two splits:"
                f"{lacking(test, train - other)}{lacking(TRAIN, other - train)} "
                f"Give {TRAIN}/ and {test}/ the same class folders."
            )
        notes = [] if test == TEST else [f"There is no folder {TEST}: {test} takes its place."]
        notes += _unused(root, (TRAIN, test))
    found = [files for listing in listings for files in listing.values()]
    start = len(str(root / TRAIN)) - len(TRAIN)  # of the path relative to the root

    def stamps() -> list[Stamp]:
        try:
            return [stamp(file[start:], file) for files in found for file in files]
        except OSError as problem:
            raise unreadable(Path(problem.filename), problem) from problem

    def read() -> Raw:
        return Raw(tuple(listings[0]), _raw_split(listings[0]), _raw_split(listings[1]))

    origin = str(root.resolve()) + ("" if test else f" split {share:.4g}")
    return Source(origin, stamps, read, notes=(*notes, *_told(left_out)))


def _split(listing: Listing, share: float, root: Path) -> tuple[Listing, Listing]:
    """Each class in two parts."""
    files = [file for of_class in listing.values() for file in of_class]
    labels = np.repeat(np.arange(len(listing)), [len(of_class) for of_class in listing.values()])
    held = set(stratified_part(labels, np.arange(len(files)), round((1 - share) * len(files))).tolist())
    parts: tuple[Listing, Listing] = ({name: [] for name in listing}, {name: [] for name in listing})
    for place, (file, label) in enumerate(zip(files, labels, strict=True)):
        parts[place in held][list(listing)[label]].append(file)
    for name in listing:
        if not (parts[0][name] and parts[1][name]):
            raise UserError(
                f"The class '{name}' of '{root}' has {count(len(listing[name]), 'image')}, too few for a training and a test part with "
                f"--split {share:.4g}. Add images, change --split, or put them into {TRAIN}/ and {TEST}/."
            )
    return parts


def decode(item: Item, image_size: int | None, box: Box | None = None) -> Image.Image:
    """One image as RGB, upright (see `read_rgb`); with `image_size` N resized to shorter side N, and its N×N centre kept.

    With `box`, the `square` around it is cut out before the resize.

    Raises:
        UserError: the file is damaged or unreadable, its pixels have no known range, or the box is not in the image;
            names the image.
    """
    if not isinstance(item, np.ndarray):
        try:
            image = read_rgb(item)
        except UnsupportedPixelsError as problem:
            raise UserError(
                f"Cannot use the image '{item}': {problem}. Convert the images to 8 bits, with one scale for all of them."
            ) from problem
        except MemoryError as problem:
            raise UserError(f"There is not enough memory to decode the image '{item}'. Free some.") from problem
        except Exception as problem:  # damaged bytes lead Pillow's decoders into errors of every type
            raise unreadable(item, problem) from problem
    else:
        image = Image.fromarray(item).convert("RGB")
    if box is not None:
        try:
            image = image.crop(square(box, image.size))
        except ValueError as problem:
            raise UserError(
                f"Cannot crop the image '{item}' of {image.width}×{image.height} pixels: {problem}. Correct the box in "
                "bounding_boxes.txt, or use --crop none."
            ) from problem
    if image_size is None:
        return image
    return ImageOps.fit(image, (image_size, image_size), Image.Resampling.BILINEAR)


def square(box: Box, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The square around `box` in an image of `size` (width, height): left, top, right, bottom, in whole pixels.

    Its side is the longer one of the box, and its centre the box's. It is moved to lie inside the image, and
    shrunk to the image's shorter side if it cannot fit. A box may reach over the edge, as one of CUB-200-2011 does
    by 32 pixels and others by one: then its part in the image counts.

    Raises:
        ValueError: the box has no width or no height, or no part in the image.
    """
    left, top, width, height = box
    written = f"the bounding box {left:g} {top:g} {width:g} {height:g} (left, top, width, height)"
    if width <= 0 or height <= 0:
        raise ValueError(f"{written} has no area")
    left, right = max(0, math.floor(left)), min(size[0], math.ceil(left + width))
    top, bottom = max(0, math.floor(top)), min(size[1], math.ceil(top + height))
    if left >= right or top >= bottom:
        raise ValueError(f"{written} lies outside of it")
    side = min(max(right - left, bottom - top), *size)
    left = min(max(0, (left + right - side) // 2), size[0] - side)
    top = min(max(0, (top + bottom - side) // 2), size[1] - side)
    return left, top, left + side, top + side


def _listing(folder: Path, left_out: Counter[str]) -> Listing:
    """The classes of a split; counts what is left out."""
    if not folder.is_dir():
        raise UserError(f"'{folder}' is missing. {LAYOUTS}")
    classes = []
    for entry in _entries(folder):
        if entry.name.startswith("."):
            left_out[HIDDEN] += 1
        elif _is_folder(entry):
            classes.append(entry.name)
        else:
            left_out[LOOSE if _is_image(entry.name) else _type(entry.name)] += 1
    if not classes:
        raise UserError(
            f"'{folder}' has no class folders: put the images of each class in a folder of its own. {LAYOUTS}"
        )
    listing = {name: list(_images(folder, name, left_out)) for name in classes}
    for name, files in listing.items():
        if not files:
            raise UserError(
                f"The class folder '{folder / name}' has no images (files ending in .png, .jpg, .webp, .tiff …). "
                "Put some there, or remove the folder."
            )
        try:
            name.encode()
        except UnicodeEncodeError as problem:
            raise not_utf8("class folder", os.path.join(folder, name)) from problem  # noqa: PTH118
    return listing


def _images(split: Path, name: str, left_out: Counter[str]) -> Iterator[str]:
    """The paths of the images of a class, those in sub-folders among them, sorted by their names in each folder."""
    folder = os.path.join(split, name)  # noqa: PTH118, a Path for each of a million files takes long
    above = [os.stat(split), os.stat(folder)]  # noqa: PTH116
    walk = [iter(_entries(folder))]
    while walk:
        entry = next(walk[-1], None)
        if entry is None:
            walk.pop()
            above.pop()
        elif entry.name.startswith("."):
            left_out[HIDDEN] += 1
        elif _is_image(entry.name):
            yield entry.path
        elif _is_folder(entry):
            status = entry.stat()
            if any(os.path.samestat(status, other) for other in above):
                raise UserError(
                    f"'{entry.path}' is a link to a folder that it lies in, so its images would be found without end. "
                    "Remove the link."
                )
            walk.append(iter(_entries(entry.path)))
            above.append(status)
        else:
            left_out[_type(entry.name)] += 1


def _is_image(name: str) -> bool:
    return _type(name) in EXTENSIONS


def _type(name: str) -> str:
    return os.path.splitext(name)[1].lower() or "without an ending"  # noqa: PTH122


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        if entry.is_symlink():
            entry.stat()  # fails for a link that leads nowhere, which is_dir() takes for a file
        return entry.is_dir()
    except OSError as problem:
        raise UserError(
            f"The link '{entry.path}' cannot be followed: {problem.strerror}. Mount or restore what it leads to, or remove "
            "the link."
        ) from problem


def _entries(folder: Path | str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:  # one system call for many names: a data set can have a million
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as problem:
        raise UserError(f"Cannot list the folder '{folder}': {problem.strerror}. Make it readable.") from problem


def _unused(root: Path, used: tuple[str, str]) -> list[str]:
    """A sentence on the folders beside those that are used, such as a validation split."""
    names = [e.name for e in _entries(root) if not e.name.startswith(".") and e.is_dir()]
    others = [f"'{name}'" for name in names if name not in used]
    beside = first_names(others, MOST_NAMED)
    return [f"Only {' and '.join(used)} are used, not {beside} beside them."] if others else []


def _told(left_out: Counter[str]) -> list[str]:
    """A sentence on what is left out."""
    if not left_out:
        return []
    total = left_out.total()
    kinds = first_names([f"{kind}: {number}" for kind, number in left_out.most_common()], MOST_NAMED)
    return [
        f"Left out: {total} {'files that are not images' if total > 1 else 'file that is not an image'} in a class folder ({kinds})."
    ]


def _raw_split(listing: Listing) -> RawSplit:
    labelled = [(Path(file), label) for label, files in enumerate(listing.values()) for file in files]
    return RawSplit([path for path, _ in labelled], [label for _, label in labelled])


def lacking(split: str, names: Iterable[str]) -> str:
    quoted = [f"'{name}'" for name in sorted(names)]
    return f" {split}/ lacks {first_names(quoted, MOST_NAMED)}." if quoted else ""


def not_utf8(what: str, path: str) -> UserError:
    """The error for a name that could not be written to the files of a run."""
    shown = os.fsencode(path).decode("utf-8", "backslashreplace")
    return UserError(f"The path of the {what} '{shown}' is not UTF-8. Rename it.")


def unreadable(path: Path | Encoded, problem: Exception) -> UserError:
    reason = problem.strerror if isinstance(problem, OSError) and problem.strerror else str(problem)
    return UserError(
        f"Cannot read the image '{path}': {reason or type(problem).__name__}. Repair it, make it readable, convert "
        "it to an 8-bit PNG, or remove it."
    )
