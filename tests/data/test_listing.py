"""Which files of class folders are images, which are left out, and what is refused."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from icpctl.data import ImageData, check_name, load
from icpctl.data.source import stamp
from icpctl.errors import UserError


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def save(path: Path, level: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 4), level).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes of two training images and one test image each, all of different levels."""
    for level, file in enumerate(("train/a/0", "train/a/1", "train/b/0", "train/b/1", "test/a/0", "test/b/0")):
        save(tmp_path / "data" / f"{file}.png", level)
    return tmp_path / "data"


def loaded(root: Path) -> ImageData:
    return load(f"folder:{root}")


def levels(data: ImageData) -> list[int]:
    return [int(level) for level in data.train.images[:, 0, 0, 0]]


def refused(root: Path) -> str:
    with pytest.raises(UserError) as caught:
        loaded(root)
    return str(caught.value)


def test_images_in_sub_folders(root: Path, tmp_path: Path) -> None:
    """Each folder in the order of its names, so that the order of a flat folder is that of the names."""
    save(root / "train/a/0x/deep/5.png", 10)
    save(tmp_path / "elsewhere/1.PNG", 11)
    (root / "train/b/linked").symlink_to(tmp_path / "elsewhere")
    data = loaded(root)
    assert levels(data) == [0, 10, 1, 2, 3, 11]
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.summary() == f"folder:{root}: 6 training and 2 test images of 2 classes."


def test_what_is_left_out_is_said(root: Path) -> None:
    for file in ("train/a/notes.txt", "train/b/Thumbs.DB", "test/a/x.txt", "train/a/.DS_Store", "train/b/x"):
        (root / file).touch()
    save(root / "train/loose.png", 9)
    (root / "val/a").mkdir(parents=True)
    for _ in range(2):  # from the cache as well
        summary = loaded(root).summary()
        assert (
            "4 training and 2 test images of 2 classes. Only train and test are used, not 'val' beside them." in summary
        )
        assert "Left out: 6 files that are not images in a class folder (.txt: 2, " in summary
        for part in (".db: 1", "hidden: 1", "without an ending: 1", "images outside of the class folders: 1"):
            assert part in summary


@pytest.mark.parametrize("link", ["train/c", "train/a/2024", "train/a/2.png", "test/c"])
@pytest.mark.parametrize("target", ["/not/mounted", "itself"])
def test_a_link_that_leads_nowhere_is_named(root: Path, link: str, target: str) -> None:
    path = root / link
    path.symlink_to(path if target == "itself" else target)
    assert f"'{path}'" in refused(root)
    path.unlink()
    assert levels(loaded(root)) == [0, 1, 2, 3]


@pytest.mark.parametrize("target", ["train/a", "train", "."])
def test_a_link_to_a_folder_above_is_named(root: Path, target: str) -> None:
    (root / "train/a/loop").symlink_to(root / target)
    text = refused(root)
    assert f"'{root}/train/a/loop" in text
    assert "Remove the link" in text


def pipe(path: Path) -> None:
    os.mkfifo(path)


def unix_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))


@pytest.mark.parametrize(
    "make", [pipe, unix_socket, lambda path: path.symlink_to("/dev/zero")], ids=["pipe", "socket", "device"]
)
def test_what_never_ends_is_refused_at_once(
    root: Path, make: Callable[[Path], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)  # the path of a socket has to be short
    make(Path("train/a/2.png"))
    assert f"'{root}/train/a/2.png': It is a named pipe, a socket or a device" in refused(root)


LATIN = os.fsdecode(b"caf\xe9")


def test_names_that_are_not_utf8(root: Path) -> None:
    save(root / f"train/a/{LATIN}.png", 50)  # of an image: it is in no file of a run
    assert levels(loaded(root)) == [0, 1, 50, 2, 3]
    for split in ("train", "test"):
        (root / split / "b").rename(root / split / LATIN)
    text = refused(root)
    assert rf"{root}/train/caf\xe9' is not UTF-8" in text
    assert text.encode()
    with pytest.raises(UserError, match=r"caf\\xe9' is not UTF-8. Rename it"):
        check_name(f"folder:{LATIN}")
    with pytest.raises(UserError, match="NUL"):
        check_name("folder:a\0b")


@pytest.mark.parametrize("how", ["renamed", "relinked"])
def test_classes_that_changed_places_are_seen(how: str, root: Path, tmp_path: Path) -> None:
    """Though every path has the size and the time that it had."""
    for path in root.rglob("*.png"):
        image = np.full((4, 4), int(path.parent.name == "a"), np.uint8)
        Image.fromarray(image).save(path.with_suffix(".bmp"))
        path.unlink()
        os.utime(path.with_suffix(".bmp"), (0, 0))
    if how == "relinked":
        for split in ("train", "test"):
            (root / split).rename(tmp_path / split)
            (root / split).mkdir()
            for name in "ab":
                (root / split / name).symlink_to(tmp_path / split / name)
    assert levels(loaded(root)) == [1, 1, 0, 0]
    for split in ("train", "test"):
        for old, new in (("a", "x"), ("b", "a"), ("x", "b")):
            (root / split / old).rename(root / split / new)
    assert levels(loaded(root)) == [0, 0, 1, 1]


def test_files_of_equal_size_and_times_differ_by_their_inodes(root: Path) -> None:
    one, other = (stamp("", root / "train/a" / name) for name in ("0.png", "1.png"))
    assert one[4] != other[4]


def test_a_file_overwritten_with_its_time_kept_is_seen(root: Path, tmp_path: Path) -> None:
    save(path := root / "train/a/0.bmp", 100)
    before = loaded(root).fingerprint
    save(other := tmp_path / "other.bmp", 200)
    assert other.stat().st_size == path.stat().st_size
    status = path.stat()
    shutil.copyfile(other, path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_mtime_ns == status.st_mtime_ns
    assert loaded(root).fingerprint != before


def test_files_that_change_while_they_are_decoded(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The decode is not kept under the stamps of the files before."""
    from icpctl.data import cache

    level = iter(range(100, 110))

    def changing(item: Path, *how: Any) -> Image.Image:
        if item.name == "1.png" and item.parent.name == "b":
            save(root / "train/b/1.png", next(level))
        return decode(item, *how)

    decode = cache.decode  # type: ignore[attr-defined]
    monkeypatch.setattr(cache, "decode", changing)
    assert "change while they are read" in refused(root)
    monkeypatch.setattr(cache, "decode", decode)
    assert levels(loaded(root)) == [0, 1, 2, 101]
