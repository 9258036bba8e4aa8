"""Class folders, `ROOT/{train,test}/CLASS/*`, and the decoding of one image."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from icpctl.data.source import Box, Item, Raw, RawSplit, Source, stamp
from icpctl.errors import UserError

EXTENSIONS = frozenset(
    {".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pcx", ".pgm", ".png"}
    | {".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"}
)
"""Files with another ending are not taken for images (notes, thumbnail databases, checksums)."""

Listing = dict[str, list[os.DirEntry[str]]]  # class name -> its image files, both sorted by name


def class_folders(root: Path) -> Source:
    """The images under `root`, one folder per class, in the same classes for train and test.

    Hidden files and folders, and files that are no images by their ending, are ignored.

    Raises:
        UserError: a folder is missing, unreadable or without images, or the two splits differ in their classes.
    """
    if not root.is_dir():
        raise UserError(f"The data folder '{root}' does not exist or is not a folder.")
    train, test = _listing(root / "train"), _listing(root / "test")
    if train.keys() != test.keys():
        raise UserError(
            f"The classes of '{root}' differ between its two splits:"
            f"{_lacking('test', train.keys() - test.keys())}{_lacking('train', test.keys() - train.keys())} "
            "Give train/ and test/ the same class folders."
        )

    def read() -> Raw:
        return Raw(tuple(train), _raw_split(train), _raw_split(test))

    try:
        stamps = [
            stamp(f"{split}/{name}/{file.name}", file.stat())
            for split, listing in (("train", train), ("test", test))
            for name, files in listing.items()
            for file in files
        ]
    except OSError as problem:
        raise _unreadable(Path(problem.filename), problem) from problem
    return Source(str(root.resolve()), stamps, read)


def decode(item: Item, image_size: int | None, box: Box | None = None) -> Image.Image:
    """One image as RGB, upright; with `image_size` N resized to shorter side N, and its N×N centre kept.

    With `box`, the `square` around it is cut out before the resize. Grey is repeated, 16-bit grey is scaled to
    8 bits, and transparent pixels are laid on white.

    Raises:
        UserError: the file is damaged or unreadable, or the box is not in the image; names the image.
    """
    if isinstance(item, Path):
        try:
            with Image.open(item) as opened:
                image = _rgb(ImageOps.exif_transpose(opened))
        except Exception as problem:  # damaged bytes lead Pillow's decoders into errors of every type
            raise _unreadable(item, problem) from problem
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


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers, which have no fixed range")
    if image.mode.startswith("I"):
        # 16-bit grey, which Pillow's own conversion would clip at 255. Older versions open it as 32-bit "I".
        grey = np.asarray(image) // 257
        return Image.fromarray(grey.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        # Dropping alpha would bring out whatever colours lie hidden under the transparent pixels.
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _listing(folder: Path) -> Listing:
    if not folder.is_dir():
        raise UserError(
            f"'{folder}' is missing: a data folder has the images of each class in train/CLASS/ and test/CLASS/."
        )
    listing = {
        entry.name: [file for file in _visible(entry.path) if Path(file.name).suffix.lower() in EXTENSIONS]
        for entry in _visible(folder)
        if entry.is_dir()
    }
    if not listing:
        raise UserError(f"'{folder}' has no class folders: put the images of each class in a folder of its own.")
    for name, files in listing.items():
        if not files:
            raise UserError(
                f"The class folder '{folder / name}' has no images (files ending in .png, .jpg, .webp, .tiff …). "
                "Put some there, or remove the class from both train/ and test/."
            )
    return listing


def _visible(folder: Path | str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:  # one system call for many names: a data set can have a million
            return sorted((e for e in entries if not e.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as problem:
        raise UserError(f"Cannot list the folder '{folder}': {problem.strerror}.") from problem


def _raw_split(listing: Listing) -> RawSplit:
    labelled = [(Path(file.path), label) for label, files in enumerate(listing.values()) for file in files]
    return RawSplit([path for path, _ in labelled], [label for _, label in labelled])


def _lacking(split: str, names: Iterable[str]) -> str:
    quoted = [f"'{name}'" for name in sorted(names)]
    shown = ", ".join(quoted[:10]) + (f" and {len(quoted) - 10} more" if len(quoted) > 10 else "")
    return f" {split}/ lacks {shown}." if quoted else ""


def _unreadable(path: Path, problem: Exception) -> UserError:
    reason = problem.strerror if isinstance(problem, OSError) and problem.strerror else str(problem)
    return UserError(f"Cannot read the image '{path}': {reason}. Repair it, make it readable, or remove it.")
