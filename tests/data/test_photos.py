"""The patches of scikit-image's photographs; data without classes."""

from __future__ import annotations

import importlib.resources
import socket
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from icpctl.data import ImageData, load, photos
from icpctl.errors import UserError

TRAIN, TEST = 1067, 260


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ImageData:
    """Decoded anew, without a network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(socket, "socket", pytest.fail)
        patch.setattr(socket, "getaddrinfo", pytest.fail)
        return load("photos")


def whole(name: str) -> NDArray[np.uint8]:
    """The photograph (H, W, 3)."""
    with Image.open(Path(str(importlib.resources.files("skimage"))) / "data" / photos.PHOTOS[name]) as image:
        return np.asarray(image.convert("RGB"))


def test_sizes(data: ImageData) -> None:
    assert data.train.images.shape == (TRAIN, 3, 64, 64)
    assert data.test.images.shape == (TEST, 3, 64, 64)
    assert data.classes == tuple(photos.PHOTOS)
    assert len(data.classes) == 15
    for split in (data.train, data.test):
        assert np.bincount(split.labels, minlength=15).min() >= 4
    camera = data.train.images[data.train.labels == data.classes.index("camera")]
    assert np.array_equal(camera[:, 0], camera[:, 2])


def test_no_pixel_is_in_both_splits_or_twice(data: ImageData) -> None:
    """The grid is walked again: each patch is looked for at its place, and the places do not overlap."""
    for label, name in enumerate(data.classes):
        photo = whole(name)
        used = np.zeros(photo.shape[:2], int)
        for split, mark in ((data.train, 1), (data.test, 2)):
            patches = iter(split.images[split.labels == label].transpose(0, 2, 3, 1))
            patch = next(patches, None)
            for top in range(0, photo.shape[0] - 63, 64):
                for left in range(0, photo.shape[1] - 63, 64):
                    part = np.s_[top : top + 64, left : left + 64]
                    if patch is not None and not used[part].any() and np.array_equal(photo[part], patch):
                        used[part] = mark
                        patch = next(patches, None)
            assert patch is None, f"a patch of {name} is nowhere in it"
        columns = photo.shape[1] // 64
        first = (columns - max(1, round(columns / 5))) * 64
        assert not (used[:, :first] == 2).any()
        assert not (used[:, first:] == 1).any()
        for top, left in np.argwhere(used[: photo.shape[0] // 64 * 64 : 64, : columns * 64 : 64] == 0) * 64:
            assert photo[top : top + 64, left : left + 64].mean(2).std() < 1, "only constant patches are left out"


def test_left_out_patches_are_corners_of_the_retina(data: ImageData) -> None:
    counts = np.bincount(data.train.labels, minlength=15) + np.bincount(data.test.labels, minlength=15)
    for name, count in zip(data.classes, counts, strict=True):
        height, width = whole(name).shape[:2]
        assert (height // 64) * (width // 64) - count == (67 if name == "retina" else 0)


def test_deterministic(data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert load("photos").fingerprint == data.fingerprint
    small = load("photos", image_size=16)
    assert small.test.images.shape == (TEST, 3, 16, 16)
    assert np.array_equal(small.test.labels, data.test.labels)


def test_missing_photograph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(photos.PHOTOS, "moon", "no-moon.png")
    with pytest.raises(UserError, match=r"no-moon.png' of scikit-image: No such file.*pip install"):
        load("photos")


def test_without_classes(data: ImageData) -> None:
    bare = data.without_classes()
    assert bare.classes == ("",)
    assert (bare.name, bare.fingerprint) == (data.name, data.fingerprint)
    for split, original in ((bare.train, data.train), (bare.test, data.test)):
        assert split.images is original.images
        assert split.labels.dtype == np.int64
        assert split.labels.tolist() == [0] * len(original.labels)
    assert data.train.labels.max() == 14  # the original keeps its own
