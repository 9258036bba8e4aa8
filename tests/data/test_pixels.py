"""What the pixels of an image file become: depth, sign, transparency, orientation."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from icpctl.data import load
from icpctl.data.folders import decode
from icpctl.errors import UserError

SIDE = 32
RAMP = np.linspace(0, 1, SIDE * SIDE)


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def pixels(path: Path) -> NDArray[np.uint8]:
    """(H, W, 3)."""
    return np.asarray(decode(path, None))


def tiff(path: Path, values: NDArray[Any], bits: int, signed_or_float: int = 1, white_is_zero: bool = False) -> Path:
    """A grey, uncompressed TIFF of 32×32 pixels, in the byte order of `values`; 12 bits are given packed, as bytes."""
    order, start = (">", b"MM\0*") if values.dtype.str[0] == ">" else ("<", b"II*\0")
    data = values.tobytes()
    longs = {256: SIDE, 257: SIDE, 273: 8, 278: SIDE, 279: len(data)}
    shorts = {258: bits, 259: 1, 262: int(not white_is_zero), 277: 1, 339: signed_or_float}
    entries = {tag: struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in longs.items()}
    entries |= {tag: struct.pack(f"{order}HHIHH", tag, 3, 1, value, 0) for tag, value in shorts.items()}
    head = start + struct.pack(f"{order}I", 8 + len(data)) + data + struct.pack(f"{order}H", len(entries))
    path.write_bytes(head + b"".join(entries[tag] for tag in sorted(entries)) + bytes(4))
    return path


def scaled(dtype: str, low: float, high: float) -> NDArray[Any]:
    return (low + RAMP * (high - low)).astype(dtype)


@pytest.mark.parametrize(
    ("image", "pixel"),
    [
        (Image.new("L", (6, 4), 77), [77, 77, 77]),
        (Image.new("1", (6, 4), 1), [255, 255, 255]),
        (Image.fromarray(np.full((4, 6), 100 * 257, np.uint16)), [100, 100, 100]),
        (Image.new("RGBA", (6, 4), (10, 20, 30, 0)), [255, 255, 255]),
        (Image.new("RGBA", (6, 4), (10, 20, 30, 255)), [10, 20, 30]),
        (Image.new("LA", (6, 4), (50, 255)), [50, 50, 50]),
        (Image.new("RGB", (6, 4), (9, 8, 7)).quantize(4), [9, 8, 7]),
        (Image.new("CMYK", (6, 4), (0, 255, 255, 0)), [255, 0, 0]),
    ],
    ids=lambda value: getattr(value, "mode", ""),
)
def test_modes_become_rgb(image: Image.Image, pixel: list[int], tmp_path: Path) -> None:
    image.save(tmp_path / "x.TIFF")
    assert pixels(tmp_path / "x.TIFF")[1, 1].tolist() == pixel


@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
def test_16_bits_are_scaled_from_their_whole_range(dtype: str, tmp_path: Path) -> None:
    values = scaled(dtype, 0, 65535)
    found = pixels(tiff(tmp_path / "x.tif", values, 16))
    assert np.array_equal(found[..., 0].ravel(), values // 257)
    assert np.array_equal(found[..., 0], found[..., 2])


def test_white_is_zero_of_16_bits(tmp_path: Path) -> None:
    values = scaled("<u2", 0, 65535)
    assert np.array_equal(
        pixels(tiff(tmp_path / "x.tif", values, 16, white_is_zero=True))[..., 0].ravel(), (65535 - values) // 257
    )


def test_12_bits_are_scaled_from_their_whole_range(tmp_path: Path) -> None:
    values = scaled("<u2", 0, 4095).astype(int)
    pairs = [[a >> 4, (a & 15) << 4 | b >> 8, b & 255] for a, b in values.reshape(-1, 2)]
    found = pixels(tiff(tmp_path / "x.tif", np.array(pairs, np.uint8), 12))
    assert np.array_equal(found[..., 0].ravel(), values * 255 // 4095)


@pytest.mark.parametrize(
    ("values", "bits", "kind", "why"),
    [
        (scaled("<i4", 0, 255), 32, 2, "signed"),
        (scaled(">i4", 0, 2**31 - 1), 32, 2, "signed"),
        (scaled("<u4", 0, 255), 32, 1, "32-bit"),
        (scaled("<u4", 0, 2**32 - 1), 32, 1, "32-bit"),
        (scaled("<i2", -1000, 3000), 16, 2, "signed"),
        (scaled(">i2", 0, 32767), 16, 2, "signed"),
        (scaled("|i1", -128, 127), 8, 2, "signed"),
        (scaled("<f4", 0, 1), 32, 3, "floating-point"),
    ],
    ids=lambda value: value.dtype.str if isinstance(value, np.ndarray) else str(value),
)
def test_values_without_a_known_range_are_refused(
    values: NDArray[Any], bits: int, kind: int, why: str, tmp_path: Path
) -> None:
    path = tiff(tmp_path / "x.tif", values, bits, kind)
    with pytest.raises(
        UserError, match=rf"Cannot use the image '{path}': its pixels are {why}.*Convert the images to 8 bits"
    ):
        decode(path, None)


@pytest.mark.parametrize(("highest", "fits"), [(255, False), (4095, False), (5000, True)])
def test_16_bits_that_are_not_used_are_refused(highest: int, fits: bool, tmp_path: Path) -> None:
    for split in ("train", "test"):
        folder = tmp_path / "data" / split / "a"
        folder.mkdir(parents=True)
        for number in (1, 2):  # one image alone may be dark
            tiff(folder / f"{number}.tif", scaled("<u2", 0, highest // number), 16)
    if fits:
        assert load(f"folder:{tmp_path}/data").train.images.max() == highest // 257
    else:
        with pytest.raises(UserError, match=r"would be almost black.*Convert them to 8 bits"):
            load(f"folder:{tmp_path}/data")


def png(path: Path, depth: int, kind: int, rows: list[bytes], width: int, transparent: bytes = b"") -> Path:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, len(rows), depth, kind, 0, 0, 0))
    key = chunk(b"tRNS", transparent) if transparent else b""
    data = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + key + data + chunk(b"IEND", b""))
    return path


GREY, RGB = 0, 2


@settings(max_examples=40, deadline=None)
@given(depth=st.sampled_from([1, 2, 4, 8, 16]), data=st.data())
def test_transparent_grey_of_png(depth: int, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Exactly the pixels of that value, in the bits of the file, are laid on white."""
    top = 2**depth - 1
    values = data.draw(st.lists(st.integers(0, top), min_size=8, max_size=8))
    key = data.draw(st.sampled_from(values) | st.integers(0, top))
    bits = "".join(f"{value:0{depth}b}" for value in values)
    row = int(bits, 2).to_bytes(depth)
    path = png(tmp_path_factory.getbasetemp() / "grey.png", depth, GREY, [row], 8, struct.pack(">H", key))
    expected = [255 if value == key else value * 255 // top for value in values]
    assert pixels(path)[0].tolist() == [[value] * 3 for value in expected]


@pytest.mark.parametrize("depth", [8, 16])
def test_transparent_colour_of_png(depth: int, tmp_path: Path) -> None:
    """Also where 16-bit colours differ in the byte alone that 8 bits lack."""
    form, unit = (">3B", 1) if depth == 8 else (">3H", 257)
    key, near, far = [(1 * unit, 2 * unit, 3 * unit + extra) for extra in (0, 1, 100 * unit)]
    row = b"".join(struct.pack(form, *colour) for colour in (key, near, far))
    found = pixels(png(tmp_path / "x.png", depth, RGB, [row], 3, struct.pack(">3H", *key)))[0].tolist()
    assert found == [[255, 255, 255], [1, 2, 4 if depth == 8 else 3], [1, 2, 103]]


@pytest.mark.parametrize("ending", ["gif", "png"])
def test_transparent_palette(ending: str, tmp_path: Path) -> None:
    image = Image.new("P", (2, 1), 1)
    image.putpalette([10, 20, 30, 200, 0, 0])
    image.putpixel((0, 0), 0)
    image.save(tmp_path / f"x.{ending}", transparency=1)
    assert pixels(tmp_path / f"x.{ending}")[0].tolist() == [[10, 20, 30], [255, 255, 255]]


@pytest.mark.parametrize("ending", ["gif", "png", "tif", "webp"])
def test_first_of_several_frames(ending: str, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / f"x.{ending}", save_all=True, append_images=frames[1:])
    red, _, blue = pixels(tmp_path / f"x.{ending}")[0, 0].tolist()
    assert red > 250
    assert blue < 5


UPRIGHT = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10
STORED = {
    1: UPRIGHT,
    2: np.fliplr(UPRIGHT),
    3: np.rot90(UPRIGHT, 2),
    4: np.flipud(UPRIGHT),
    5: UPRIGHT.T,
    6: np.rot90(UPRIGHT),
    7: np.rot90(UPRIGHT, 2).T,
    8: np.rot90(UPRIGHT, -1),
}
"""The rows and columns of a file, by the orientation that its EXIF states."""


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("ending", ["png", "tif"])
def test_every_orientation_becomes_upright(orientation: int, ending: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(STORED[orientation])).save(tmp_path / f"x.{ending}", exif=exif)
    assert np.array_equal(pixels(tmp_path / f"x.{ending}")[..., 0], UPRIGHT)


ODD_TYPE = struct.pack("<HHII", 270, 5, 1, 38)  # a description that is a fraction
SIDEWAYS = struct.pack("<HHIHH", 274, 3, 1, 6, 0)


@pytest.mark.parametrize(
    ("exif", "turned"),
    [
        (b"II*\0\x08\0\0\0\x02\0" + ODD_TYPE + SIDEWAYS + bytes(4) + struct.pack("<II", 1, 1), True),
        (b"garbage", False),
        (b"II*\0\xff\xff\xff\xff", False),
        (b"MM", False),
    ],
    ids=["odd type", "garbage", "nowhere", "cut off"],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_exif_that_cannot_be_written_is_no_hindrance(exif: bytes, turned: bool, tmp_path: Path) -> None:
    Image.fromarray(UPRIGHT).save(tmp_path / "x.jpg", exif=b"Exif\0\0" + exif)
    assert pixels(tmp_path / "x.jpg").shape == ((6, 4, 3) if turned else (4, 6, 3))


def test_a_picture_of_too_many_pixels_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.new("L", (50, 50)).save(tmp_path / "x.png")
    with pytest.raises(UserError, match=r"Cannot read the image '.*x\.png'.*2500 pixels"):
        decode(tmp_path / "x.png", None)
