"""`photos`: patches of the photographs that scikit-image carries, a set of natural images without a download."""

from __future__ import annotations

import importlib.resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from icpctl.data.folders import decode
from icpctl.data.source import Raw, RawSplit, Source, Stamp, stamp
from icpctl.errors import UserError

PHOTOS = {
    "astronaut": "astronaut.png",
    "brick": "brick.png",
    "camera": "camera.png",
    "chelsea": "chelsea.png",
    "clock": "clock_motion.png",
    "coffee": "coffee.png",
    "coins": "coins.png",
    "grass": "grass.png",
    "gravel": "gravel.png",
    "hubble_deep_field": "hubble_deep_field.jpg",
    "immunohistochemistry": "ihc.png",
    "moon": "moon.png",
    "retina": "retina.jpg",
    "rocket": "rocket.jpg",
    "stereo_motorcycle": "motorcycle_left.png",
}
"""Class, which is the name of scikit-image's function, and file. `skimage.data` would download others of its files."""

SIDE = 64
"""Height and width of a patch in pixels, and the distance from one to the next: they do not overlap."""

TEST_SHARE = 0.2
"""Share of the columns of patches of a photograph, from the right, that are for the test."""

MIN_CONTRAST = 1.0
"""Standard deviation of a patch's grey levels, 0 … 255, below which it is left out as nearly constant. The black corners
of the retina have less than 0.4, all other patches more than 1.3."""


def photos() -> Source:
    """The patches of `PHOTOS`, each photograph a class.

    Raises:
        UserError: scikit-image lacks one of the files.
    """
    folder = Path(str(importlib.resources.files("skimage"))) / "data"
    files = [folder / file for file in PHOTOS.values()]

    def read() -> Raw:
        parts = [_patches(file) for file in files]
        return Raw(tuple(PHOTOS), _labelled([train for train, _ in parts]), _labelled([test for _, test in parts]))

    def stamps() -> list[Stamp]:
        try:
            return [stamp(file.name, file) for file in files]
        except OSError as problem:
            raise UserError(
                f"Cannot read the photograph '{problem.filename}' of scikit-image: {problem.strerror}. Install that package "
                "anew: pip install --force-reinstall scikit-image."
            ) from problem

    return Source("scikit-image", stamps, read)


def _patches(file: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The patches of a photograph for train and for test, (N, 64, 64, 3) each, row by row from the top left."""
    photo = decode(file, None)
    patches, grey = _grid(np.asarray(photo)), _grid(np.asarray(photo.convert("L"))[..., None])
    varied = grey.std((2, 3, 4)) >= MIN_CONTRAST
    first = patches.shape[1] - max(1, round(TEST_SHARE * patches.shape[1]))  # column of the test
    return patches[:, :first][varied[:, :first]], patches[:, first:][varied[:, first:]]


def _grid(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W, C) to (rows, columns, 64, 64, C); what does not fill a patch at the right and at the bottom is cut off."""
    rows, columns = pixels.shape[0] // SIDE, pixels.shape[1] // SIDE
    return pixels[: rows * SIDE, : columns * SIDE].reshape(rows, SIDE, columns, SIDE, -1).swapaxes(1, 2)


def _labelled(classes: list[NDArray[np.uint8]]) -> RawSplit:
    return RawSplit(np.concatenate(classes), np.repeat(np.arange(len(classes)), [len(part) for part in classes]))
