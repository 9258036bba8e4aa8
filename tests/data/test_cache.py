"""The decoded images of the cache are those that were decoded, or are made anew, whatever happened to its files."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from icpctl.data import ImageData, cache, load
from icpctl.data.device import DeviceSplit
from icpctl.errors import UserError


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/icpctl/decoded"


@pytest.fixture
def truth(home: Path) -> ImageData:
    return load("digits")


@pytest.fixture
def folder(truth: ImageData, home: Path) -> Path:
    (folder,) = [path for path in home.iterdir() if path.is_dir()]
    return folder


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The data sets whose content was hashed."""
    done: list[str] = []

    def counted(*content: Any) -> str:
        done.append(result := fingerprint(*content))
        return result

    fingerprint = cache._fingerprint
    monkeypatch.setattr(cache, "_fingerprint", counted)
    return done


def assert_same(one: ImageData, other: ImageData) -> None:
    assert (one.classes, one.fingerprint) == (other.classes, other.fingerprint)
    for mine, theirs in ((one.train, other.train), (one.test, other.test)):
        assert np.array_equal(mine.images, theirs.images)
        assert np.array_equal(mine.labels, theirs.labels)


def change_meta(**values: Any) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        meta = json.loads(path.read_text()) | values
        path.write_text(json.dumps(meta))

    return change


def flip_in_place(path: Path) -> None:
    """One bit of the last byte, with the time of the file kept."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        (byte,) = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def a_folder(path: Path) -> None:
    path.unlink()
    (path / "x").mkdir(parents=True)


def objects(path: Path) -> None:
    np.save(path, np.array([{}, {}]), allow_pickle=True)


DAMAGE: dict[str, tuple[str, Callable[[Path], object]]] = {
    "inverted": ("train_images.npy", lambda path: np.save(path, 255 - np.load(path))),
    "one bit": ("train_images.npy", flip_in_place),
    "a bit of a test label": ("test_labels.npy", flip_in_place),
    "labels out of range": ("train_labels.npy", lambda path: np.save(path, np.load(path) + 500)),
    "negative labels": ("train_labels.npy", lambda path: np.save(path, -np.load(path))),
    "labels of another type": ("train_labels.npy", lambda path: np.save(path, np.load(path).astype(np.uint64))),
    "floating-point images": ("train_images.npy", lambda path: np.save(path, np.load(path) / 255)),
    "objects": ("train_labels.npy", objects),
    "an archive": ("train_labels.npy", lambda path: np.savez(path.open("wb"), a=np.zeros(3))),
    "huge header": (
        "train_labels.npy",
        lambda path: path.write_bytes(path.read_bytes().replace(b"(1437,)", b"(9**99,)")),
    ),
    "cut off": ("train_images.npy", lambda path: os.truncate(path, 1000)),
    "other classes": ("meta.json", change_meta(classes=list("9876543210"))),
    "classes of another type": ("meta.json", change_meta(classes=5)),
    "other fingerprint": ("meta.json", change_meta(fingerprint="0" * 16)),
    "fingerprint of another type": ("meta.json", change_meta(fingerprint=[1])),
    "other key": ("meta.json", change_meta(key="0" * 16)),
    "nested": ("meta.json", lambda path: path.write_text("[" * 100_000)),
    "pipe": ("meta.json", a_pipe),
    "folder": ("test_images.npy", a_folder),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_was_changed_is_made_anew_and_said(damage: str, truth: ImageData, folder: Path) -> None:
    file, change = DAMAGE[damage]
    train, test = (replace(split, images=np.array(split.images)) for split in (truth.train, truth.test))
    expected = replace(truth, train=train, test=test)
    change(folder / file)
    found = load("digits")
    assert_same(found, expected)
    assert "damaged or changed: they are decoded anew" in found.summary()
    assert load("digits").summary() == truth.summary()


def test_a_decode_of_something_else_is_not_taken(truth: ImageData, folder: Path, home: Path) -> None:
    load("digits", image_size=4)
    (other,) = [path for path in home.iterdir() if path.is_dir() and path != folder]
    folder.rename(home / "kept")
    other.rename(folder)
    assert_same(load("digits"), truth)


def test_content_is_compared_only_after_a_change(truth: ImageData, folder: Path, hashed: list[str]) -> None:
    load("digits")
    assert not hashed
    os.utime(folder / "train_images.npy")
    for _ in range(2):
        assert_same(load("digits"), truth)
        assert len(hashed) == 1
    shutil.copytree(folder, copy := folder.with_name("copy"))
    shutil.rmtree(folder)
    copy.rename(folder)
    for _ in range(2):
        assert_same(load("digits"), truth)
        assert len(hashed) == 2


@pytest.mark.parametrize("content", ["", "{}", "[[1, 2]]", "null", "[" * 100_000])
def test_what_cannot_be_trusted_of_the_comparison_is_repeated(
    content: str, truth: ImageData, folder: Path, hashed: list[str]
) -> None:
    (folder / cache.VERIFIED).write_text(content)
    assert_same(load("digits"), truth)
    assert hashed


@pytest.mark.parametrize("where", ["", ".part"])
@pytest.mark.parametrize("kind", ["file", "link", "dangling link"])
def test_something_else_in_the_place_of_the_folder(
    kind: str, where: str, truth: ImageData, folder: Path, tmp_path: Path
) -> None:
    shutil.rmtree(folder)
    place = folder.with_name(folder.name + where)
    (victim := tmp_path / "victim").mkdir()
    (victim / "mine").touch()
    if kind == "file":
        place.touch()
    else:
        place.symlink_to(victim if kind == "link" else tmp_path / "nowhere")
    assert load("digits").fingerprint == truth.fingerprint
    assert [path.name for path in victim.iterdir()] == ["mine"]
    assert not os.path.lexists(f"{folder}.part")


def test_images_that_changed_before_they_were_in_memory(truth: ImageData, folder: Path) -> None:
    flip_in_place(folder / "train_images.npy")
    with pytest.raises(UserError, match=r"train_images\.npy' were changed.*same command"):
        DeviceSplit(truth.train, torch.device("cpu"))
    DeviceSplit(truth.test, torch.device("cpu"))


def test_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name: Path("~/.cache") / name)
    with pytest.raises(UserError, match=r"no home folder.*XDG_CACHE_HOME"):
        load("digits")
    with pytest.raises(UserError, match="home directory in ~nobody-at-all/x is not known"):
        load("folder:~nobody-at-all/x")
