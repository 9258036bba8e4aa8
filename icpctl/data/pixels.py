"""One image file as 8-bit RGB: its depth, its transparency and its orientation."""

from __future__ import annotations

import struct
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from icpctl.data.source import Encoded

PEAK = "peak of a 16-bit image"
"""Key of `Image.info`: the 8-bit level of the brightest pixel of an image that had more bits."""

PNG_BITS = {"1": 1, "L;2": 2, "L;4": 4, "L": 8, "I;16B": 16, "RGB": 8, "RGB;16B": 16}
"""Bits of a value in a PNG file, by Pillow's raw mode."""

TIFF_BITS, TIFF_PHOTOMETRIC, TIFF_SAMPLE_FORMAT = 258, 262, 339
SIGNED, FLOAT = 2, 3  # of TIFF_SAMPLE_FORMAT
WHITE_IS_ZERO = 0  # of TIFF_PHOTOMETRIC

EXIF_ORIENTATION = 0x0112
TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnsupportedPixelsError(ValueError):
    """Pixels without a range that is known, so that there is no right way to scale them to 8 bits."""


def read_rgb(path: Path | Encoded) -> Image.Image:
    """The image in a file (the first, if there are several), upright and RGB.

    Grey is repeated over the channels. Grey of 9 to 16 bits is scaled from the whole range of its bits. Transparent
    pixels are laid on white.

    Raises:
        UnsupportedPixelsError: signed, 32-bit or floating-point values.
        Exception: damaged bytes lead Pillow's decoders into errors of every type.
    """
    # Given a path, Pillow maps uncompressed TIFFs to memory, and scrambles those that their orientation turns sideways.
    with path.open("rb") as file, _opened(file) as opened:
        bits = _bits(opened)
        raw_mode = opened.tile[0][3] if opened.format == "PNG" and opened.tile else None
        opened.load()
        image = _rgb(opened, bits)
        if raw_mode in PNG_BITS and "transparency" in opened.info and opened.mode != "P":
            image = _lay_on_white(image, _hidden(opened, raw_mode, path))
        orientation = _orientation(opened)
    return image.transpose(TRANSPOSITIONS[orientation]) if orientation in TRANSPOSITIONS else image


def _opened(file: BinaryIO) -> ImageFile.ImageFile:
    try:
        return Image.open(file)
    except UnidentifiedImageError as problem:
        raise ValueError("its format is unknown, or a kind of pixels in it") from problem


def _bits(image: Image.Image) -> int:
    """Bits of a value; 8 for fewer, as Pillow scales those."""
    bits, kinds = 8, set()
    if image.format == "TIFF":
        bits, kinds = max(_tag(image, TIFF_BITS, 1)), set(_tag(image, TIFF_SAMPLE_FORMAT, 1))
    elif image.mode.startswith("I"):
        # Pillow brings all values of PNG, PNM and JPEG 2000 to the range of 16 bits.
        bits = 16 if image.format in ("PNG", "PPM", "JPEG2000") else 32
    if image.mode == "F" or FLOAT in kinds:
        raise UnsupportedPixelsError("its pixels are floating-point numbers, which have no fixed range")
    if SIGNED in kinds:
        raise UnsupportedPixelsError(
            "its pixels are signed integers, and nothing says which values are black and white"
        )
    if bits > 16:
        raise UnsupportedPixelsError("its pixels are 32-bit integers, and nothing says how much of that range they use")
    return max(bits, 8)


def _tag(image: Any, tag: int, default: int) -> tuple[int, ...]:
    value = image.tag_v2.get(tag, default)
    return value if isinstance(value, tuple) else (value,)


def _rgb(image: Image.Image, bits: int) -> Image.Image:
    if image.mode.startswith("I"):  # Pillow's own conversion would clip at 255
        top = 2**bits - 1
        values = np.asarray(image).astype(np.int64)
        if image.format == "TIFF" and WHITE_IS_ZERO in _tag(image, TIFF_PHOTOMETRIC, 1):
            values = top - values  # Pillow does so for 8 bits only
        grey = (values * 255 // top).astype(np.uint8)
        image = Image.fromarray(grey).convert("RGB")
        image.info[PEAK] = int(grey.max())
        return image
    if image.format == "PNG" and image.mode in ("1", "L", "RGB"):
        return image.convert("RGB")  # what is transparent is found by `_hidden`
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
        # Dropping alpha would bring out whatever colours lie hidden under the transparent pixels.
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _hidden(image: Image.Image, raw_mode: str, path: Path | Encoded) -> NDArray[np.bool_]:
    """(H, W): which pixels of a PNG have the colour that its tRNS chunk says is transparent.

    Pillow compares the colour, in the file's bits, with the pixels in 8 bits.
    """
    bits = PNG_BITS[raw_mode]
    key = np.atleast_1d(np.array(image.info["transparency"], np.int64)) & (2**bits - 1)
    if raw_mode == "RGB;16B":
        with (
            path.open("rb") as file,
            Image.open(file) as again,
        ):  # the other byte of each value, of which Pillow gives the higher one alone
            again.tile = [tile._replace(args="RGB;16L") for tile in again.tile]
            low = np.asarray(again)
        values = np.asarray(image).astype(np.int64) << 8 | low
    else:
        values = np.asarray(image.convert("L") if image.mode == "1" else image).astype(np.int64)
        values = values.reshape(*values.shape[:2], -1)
        if bits < 8:
            key = key * 255 // (2**bits - 1)
    hidden: NDArray[np.bool_] = (values == key).all(-1)
    return hidden


def _lay_on_white(image: Image.Image, hidden: NDArray[np.bool_]) -> Image.Image:
    white = Image.new("RGB", image.size, "white")
    image.paste(white, mask=Image.fromarray(hidden.astype(np.uint8) * 255))
    return image


def _orientation(image: Image.Image) -> object:
    """As EXIF says; a camera's EXIF may be garbage, which is no fault of the picture."""
    with suppress(SyntaxError, ValueError, TypeError, KeyError, IndexError, OSError, struct.error):
        return image.getexif().get(EXIF_ORIENTATION)
    return None
