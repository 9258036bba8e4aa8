"""Images in the place of a data set that is not on this machine, to measure what a run on it costs."""

from __future__ import annotations

import numpy as np

from icpctl.data.cache import ImageData, Split

SHAPES = {
    "cifar10": (50_000, 10_000, 10, 32),
    "cifar100": (50_000, 10_000, 100, 32),
    "cub": (5_994, 5_794, 200, 64),
    "fashion-mnist": (60_000, 10_000, 10, 28),
}
"""Training images, test images, classes and side in pixels of what can be downloaded."""
ASSUMED = SHAPES["cifar100"]
"""Of a data set whose shape is not known before it is there."""


MOST_BYTES = 2**30
"""Of the images of a split; of larger ones there are fewer."""


def stand_in(name: str, image_size: int | None = None) -> ImageData:
    """Random images, as many and as large as the data set has."""
    train, test, classes, side = _shape(name, image_size)
    generator = np.random.default_rng(0)

    def split(count: int) -> Split:
        images = generator.integers(256, size=(count, 3, side, side), dtype=np.uint8)
        return Split(images, np.arange(count, dtype=np.int64) % classes)

    return ImageData(name, split(train), split(test), tuple(map(str, range(classes))), "")


def assumption(name: str, image_size: int | None = None) -> str:
    """A sentence on what stands in for a data set."""
    train, test, classes, side = _shape(name, image_size)
    guess = "" if name in SHAPES else " Its size is not known before it is there, and this is a guess."
    return (
        f"{name} is not on this machine, and a dry run downloads nothing: the estimate is made with random images, {train:,} for "
        f"training and {test:,} to test, of {classes} classes and {side} pixels.{guess}"
    )


def _shape(name: str, image_size: int | None) -> tuple[int, int, int, int]:
    train, test, classes, side = SHAPES.get(name, ASSUMED)
    side = image_size or side
    most = MOST_BYTES // (3 * side**2)
    return min(train, most), min(test, most), classes, side
