"""CUB-200-2011: its archive and download, its index files, its bounding boxes."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import io
import json
import os
import shutil
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from icpctl.data import ImageData, cache, cub, load
from icpctl.errors import UserError

CLASSES, EACH = 20, 12
NAMES = [f"{number:03}.Bird_{number}" for number in range(1, CLASSES + 1)]
FILES = [f"{name}/{name[4:]}_{image:04}.jpg" for name in NAMES for image in range(EACH)]
TRAIN = np.random.default_rng(1).permuted(np.tile(np.arange(EACH) < 7, (CLASSES, 1)), axis=1).ravel()
LABELS = np.repeat(np.arange(CLASSES), EACH)
SIDE = 12  # of every box's longer side, so that the crops are of one size without a resize


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def picture(path: Path, width: int, height: int, seed: int) -> None:
    """A JPEG of smooth colours that are nowhere the same."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(path, quality=90)


def lines(rows: list[str]) -> str:
    return "".join(f"{number} {row}\n" for number, row in enumerate(rows, 1))


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive of a small CUB as the true one is: 240 pictures of various sizes in 20 classes."""
    root = tmp_path_factory.mktemp("cub")
    folder = root / cub.FOLDER
    rng = np.random.default_rng(0)
    boxes = []
    for number, file in enumerate(FILES):
        width, height = rng.integers(SIDE + 4, 40, 2).tolist()
        picture(folder / "images" / file, width, height, number)
        shorter = int(rng.integers(3, SIDE + 1))
        w, h = (SIDE, shorter) if number % 2 else (shorter, SIDE)
        boxes.append(f"{rng.integers(0, width - w + 1)}.0 {rng.integers(0, height - h + 1)}.0 {w}.0 {h}.0")
    (folder / cub.IMAGES).write_text(lines(FILES))
    (folder / cub.SPLIT).write_text(lines([f"{flag:d}" for flag in TRAIN]))
    (folder / cub.LABELS).write_text(lines([f"{label + 1}" for label in LABELS]))
    (folder / cub.CLASSES).write_text(lines(NAMES))
    (folder / cub.BOXES).write_text(lines(boxes))
    (folder / "README").write_text("of no use here")
    (root / "attributes.txt").write_text("1 has_bill_shape::curved\n")
    with tarfile.open(root / cub.ARCHIVE, "w:gz") as tar:
        for name in ("attributes.txt", cub.FOLDER):
            tar.add(root / name, name)
    return root / cub.ARCHIVE


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


@pytest.fixture
def archive(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The small archive in a data folder, in place of the official one, and no network."""
    monkeypatch.setattr(cub, "MD5", md5(made))
    monkeypatch.setattr(cub, "URL", "http://127.0.0.1:9/CUB_200_2011.tgz")
    (tmp_path / "data").mkdir()
    return Path(shutil.copy(made, tmp_path / "data"))


@pytest.fixture
def folder(archive: Path, made: Path) -> Path:
    """The unpacked data set, without its archive."""
    archive.unlink()
    return Path(shutil.copytree(made.parent / cub.FOLDER, archive.parent / cub.FOLDER))


def message(data_dir: Path, **how: Any) -> str:
    with pytest.raises(UserError) as caught:
        load("cub", data_dir, **{"image_size": 8, **how})
    assert "\n" not in str(caught.value)
    return str(caught.value)


def left(data_dir: Path) -> list[str]:
    return sorted(path.name for path in data_dir.iterdir() if path.name != ".cub.lock")


def pixels(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image).transpose(2, 0, 1)


def check(data: ImageData) -> None:
    assert data.classes == tuple(NAMES)
    assert data.train.labels.tolist() == LABELS[TRAIN].tolist()
    assert data.test.labels.tolist() == LABELS[~TRAIN].tolist()
    assert data.train.images.shape == (TRAIN.sum(), 3, 8, 8)
    assert data.test.images.shape == ((~TRAIN).sum(), 3, 8, 8)


def test_archive(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load("cub", archive.parent, image_size=8)
    check(first)
    assert left(archive.parent) == [cub.FOLDER, cub.ARCHIVE]
    archive.unlink()
    monkeypatch.setattr(cache, "decode", pytest.fail)
    monkeypatch.setattr(cub, "alone", pytest.fail)  # the unpacked files may be in a read-only folder
    assert load("cub", archive.parent, image_size=8).fingerprint == first.fingerprint


def test_folder_itself_as_data_dir(folder: Path) -> None:
    check(load("cub", folder, image_size=8))
    renamed = folder.rename(folder.with_name("birds"))
    check(load("cub", renamed, image_size=8))


def test_sizes_differ(folder: Path) -> None:
    assert "--image-size" in message(folder.parent, image_size=None)


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The address at which a local server hands out the files of `folder`."""
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("before", ["nothing", "half a download"])
def test_download(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str) -> None:
    data_dir = tmp_path / "new"
    if before == "half a download":
        data_dir.mkdir()
        (data_dir / cub.ARCHIVE).write_bytes(archive.read_bytes()[:-100])
    with serving(archive.parent) as url:
        monkeypatch.setattr(cub, "URL", url + cub.ARCHIVE)
        check(load("cub", data_dir, image_size=8))


def test_unavailable(archive: Path) -> None:
    archive.unlink()
    data_dir = archive.parent
    text = message(data_dir)
    places = [f"'{data_dir}/{end}'" for end in (cub.FOLDER, cub.ARCHIVE, "cub/train/CLASS")]
    for part in (*places, cub.URL, "Connection refused", f"into '{data_dir}'", "--data-dir"):
        assert part in text
    assert "Damaged" not in text
    assert left(data_dir) == []


def test_official_address() -> None:
    assert cub.URL == "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz"
    assert cub.MD5 == "97eceeb196236b17998738112f37df78"


def test_wrong_md5_is_not_unpacked(made: Path, archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cub, "MD5", 32 * "0")
    assert f"Damaged (wrong MD5 sum) or unreadable: '{archive}'" in message(archive.parent)
    assert left(archive.parent) == [cub.ARCHIVE]
    with serving(made.parent) as url:  # what is served is no better
        monkeypatch.setattr(cub, "URL", url + cub.ARCHIVE)
        assert f"Damaged (wrong MD5 sum) or unreadable: '{archive}'" in message(archive.parent)
    assert left(archive.parent) == [cub.ARCHIVE]


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    info.size = 4 if kind == tarfile.REGTYPE else 0
    return info


@pytest.mark.parametrize(
    "evil",
    [
        member("../evil"),
        member(f"{cub.FOLDER}/../../evil"),
        member("ABSOLUTE/evil"),
        member(f"{cub.FOLDER}/evil", tarfile.SYMTYPE, "../../../evil"),
        member(f"{cub.FOLDER}/evil", tarfile.SYMTYPE, "ABSOLUTE/evil"),
        member(f"{cub.FOLDER}/evil", tarfile.LNKTYPE, "../../images.txt"),
        member(f"{cub.FOLDER}/evil", tarfile.SYMTYPE, "images.txt"),
        member(f"{cub.FOLDER}/evil", tarfile.LNKTYPE, f"{cub.FOLDER}/images.txt"),
        member(f"{cub.FOLDER}/evil", tarfile.FIFOTYPE),
        member(f"{cub.FOLDER}/evil", tarfile.CHRTYPE),
    ],
    ids=[
        "up",
        "inside and up",
        "absolute",
        "symlink up",
        "symlink absolute",
        "hard link",
        "symlink",
        "hard link inside",
        "pipe",
        "device",
    ],
)
def test_archive_that_leaves_its_folder(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, evil: tarfile.TarInfo
) -> None:
    evil.name, evil.linkname = (text.replace("ABSOLUTE", str(tmp_path)) for text in (evil.name, evil.linkname))
    with tarfile.open(archive, "w:gz") as tar:
        tar.addfile(member(f"{cub.FOLDER}/{cub.IMAGES}"), io.BytesIO(b"1 a\n"))
        tar.addfile(evil, io.BytesIO(b"evil"))
    monkeypatch.setattr(cub, "MD5", md5(archive))
    text = message(archive.parent)
    assert f"Cannot unpack '{archive}'" in text
    assert "evil" in text
    assert left(archive.parent) == [cub.ARCHIVE]
    assert not list(tmp_path.rglob("evil"))


def test_archive_that_unpacks_to_too_much(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cub, "MOST_BYTES", 10_000)
    assert "it has more than 10,000 bytes" in message(archive.parent)
    assert left(archive.parent) == [cub.ARCHIVE]


@pytest.mark.parametrize("name", [cub.IMAGES, f"images/{FILES[3]}"])
def test_a_pipe_is_not_waited_for(folder: Path, name: str) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)
    assert f"'{folder / name}': It is a named pipe" in message(folder.parent)


def test_a_pipe_in_the_place_of_the_archive(archive: Path) -> None:
    archive.unlink()
    os.mkfifo(archive)
    assert f"'{archive}' is not a file. Move it away" in message(archive.parent)


@pytest.mark.parametrize("content", [b"no archive", b"cut off", b"another folder"])
def test_archive_that_is_none(archive: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    if content == b"cut off":
        content = archive.read_bytes()[:-1000]
    archive.write_bytes(content)
    if content == b"another folder":
        with tarfile.open(archive, "w:gz") as tar:
            tar.addfile(member("CUB_200/images.txt"), io.BytesIO(b"1 a\n"))
    monkeypatch.setattr(cub, "MD5", md5(archive))
    text = message(archive.parent)
    assert f"Cannot unpack '{archive}'" in text
    assert cub.URL in text
    assert left(archive.parent) == [cub.ARCHIVE]


def test_rest_of_a_killed_process_is_no_hindrance(archive: Path) -> None:
    scratch = archive.parent / f".{cub.FOLDER}.part"
    (scratch / cub.FOLDER / cub.IMAGES).mkdir(parents=True)
    check(load("cub", archive.parent, image_size=8))
    assert not scratch.exists()


def test_broken_and_missing_pictures(folder: Path) -> None:
    paths = [folder / "images" / FILES[number] for number in (7, 100)]
    content = paths[1].read_bytes()
    paths[1].write_bytes(content[: len(content) // 2])
    assert f"Cannot read the image '{paths[1]}'" in message(folder.parent)
    for path in paths:
        path.unlink()
    text = message(folder.parent)
    assert "2 of the 240 images that images.txt lists cannot be read" in text
    assert f"the first is '{paths[0]}': No such file" in text


def test_changed_files_are_seen(folder: Path) -> None:
    fingerprints = {load("cub", folder.parent, image_size=8).fingerprint}
    picture(folder / "images" / FILES[3], 30, 30, 999)
    fingerprints.add(load("cub", folder.parent, image_size=8).fingerprint)
    change(folder / cub.SPLIT, "1 ", f"1 {1 - TRAIN[0]:d}")
    fingerprints.add(load("cub", folder.parent, image_size=8).fingerprint)
    change(folder / cub.CLASSES, "2 ", "2 002.Dodo")
    fingerprints.add(load("cub", folder.parent, image_size=8).fingerprint)
    assert len(fingerprints) == 4


def change(path: Path, start: str, line: str | None) -> None:
    """Replace the lines that begin with `start`, or remove them; the time of the change is always another."""
    status = path.stat()
    kept = [old if not old.startswith(start) else line for old in path.read_text().splitlines()]
    path.write_text("".join(f"{text}\n" for text in kept if text is not None))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


@pytest.mark.parametrize(
    ("file", "line", "parts"),
    [
        (cub.IMAGES, "5", ["Line 5 of", "is '5' instead of the number of an image and its path"]),
        (cub.IMAGES, "five a.jpg", ["Line 5 of", "'five a.jpg'"]),
        (cub.IMAGES, "5 a\0b.jpg", ["Line 5 of", "is '5 a\0b.jpg'"]),
        (cub.IMAGES, "5 ../a.jpg", ["Line 5 of", "'5 ../a.jpg'"]),
        (cub.IMAGES, "5 /a.jpg", ["Line 5 of", "'5 /a.jpg'"]),
        (cub.IMAGES, f"{'9' * 5000} a.jpg", ["Line 5 of", "the number of an image"]),
        (cub.IMAGES, f"{'9' * 4000} a.jpg", ["Line 5 of", "the number of an image"]),
        (cub.LABELS, f"5 {'9' * 5000}", ["Line 5 of", "of a class of classes.txt"]),
        (cub.IMAGES, "4 a.jpg", ["Line 5 of", "has the number 4 for the second time"]),
        (cub.SPLIT, "5 2", ["Line 5 of", "1 (train) or 0 (test)"]),
        (cub.SPLIT, "5 1 1", ["Line 5 of", "'5 1 1'"]),
        (cub.SPLIT, None, ["lacks image 5, which images.txt has"]),
        (cub.SPLIT, "999 1\n998 1\n5 0", ["has image 998 and 1 more, which no line of images.txt has"]),
        (cub.LABELS, "5 21", ["Line 5 of", "of a class of classes.txt"]),
        (cub.LABELS, "5 one", ["Line 5 of", "'5 one'"]),
        (cub.LABELS, "55 1", ["Line 55 of", "second time"]),
        (cub.CLASSES, "5", ["Line 5 of", "a class and its name"]),
        (cub.BOXES, "5 1.0 2.0 3.0", ["Line 5 of", "width and height of its box"]),
        (cub.BOXES, "5 1.0 2.0 3.0 nan", ["Line 5 of", "'5 1.0 2.0 3.0 nan'"]),
    ],
)
def test_malformed_index_lines(folder: Path, file: str, line: str | None, parts: list[str]) -> None:
    change(folder / file, "5 ", line)
    text = message(folder.parent)
    for part in (*parts, f"'{folder / file}'", "Replace it"):
        assert part in text


def test_index_files_as_a_whole(folder: Path) -> None:
    path = folder / cub.SPLIT
    path.write_text(lines(["1"] * len(FILES)))
    assert f"'{path}' puts no image into the test split" in message(folder.parent)
    path.write_text("\n")
    assert f"'{path}' is empty" in message(folder.parent)
    path.write_bytes(b"1 \xff\n")
    assert f"Cannot read '{path}'" in message(folder.parent)
    path.unlink()
    text = message(folder.parent)
    assert f"1 of the 5 index files of cub cannot be read; the first is '{path}': No such file" in text
    assert "1 of the 5 index files" in message(folder)


def test_blank_lines_and_windows_line_ends_are_read(folder: Path) -> None:
    for name in (cub.IMAGES, cub.SPLIT, cub.LABELS, cub.CLASSES, cub.BOXES):
        (folder / name).write_bytes(b"\n" + (folder / name).read_bytes().replace(b"\n", b"\r\n") + b"\r\n")
    (folder / cub.IMAGES).write_bytes(b"\xef\xbb\xbf" + (folder / cub.IMAGES).read_bytes())  # a byte order mark
    check(load("cub", folder.parent, image_size=8))


def inside(start: int, length: int, limit: int) -> slice:
    """SIDE pixels around `length` pixels from `start`, moved into 0 … limit."""
    start -= (SIDE - length + 1) // 2
    return slice(min(max(start, 0), limit - SIDE), min(max(start, 0), limit - SIDE) + SIDE)


def test_box_crop_is_exact(folder: Path) -> None:
    """All boxes are SIDE pixels long, so the crops are, without a resize, cut from the pictures' own pixels."""
    data = load("cub", folder.parent, crop="box")
    expected = []
    for file, line in zip(FILES, (folder / cub.BOXES).read_text().splitlines(), strict=True):
        x, y, w, h = (int(float(number)) for number in line.split()[1:])
        whole = pixels(folder / "images" / file)
        expected.append(whole[:, inside(y, h, whole.shape[1]), inside(x, w, whole.shape[2])])
    assert np.array_equal(data.train.images, np.array(expected)[TRAIN])
    assert np.array_equal(data.test.images, np.array(expected)[~TRAIN])


def test_crop_comes_before_the_resize(folder: Path) -> None:
    image = np.zeros((30, 40, 3), np.uint8)
    image[10:18, 20:28] = 255
    Image.fromarray(image).save(folder / "images" / FILES[0], quality=95)
    change(folder / cub.SPLIT, "1 ", "1 1")
    change(folder / cub.BOXES, "1 ", "1 20.0 10.0 8.0 8.0")
    cropped = load("cub", folder.parent, image_size=16, crop="box").train.images[0]
    assert cropped.min() > 240
    assert load("cub", folder.parent, image_size=16).train.images[0].mean() < 80


@pytest.mark.parametrize(
    ("box", "problem"),
    [
        ("5.5 5.0 0.0 4.0", "has no area"),
        ("5.0 5.0 4.0 -1.0", "has no area"),
        ("50.0 5.0 4.0 4.0", "lies outside of it"),
        ("5.0 -9.0 4.0 4.0", "lies outside of it"),
    ],
)
def test_impossible_box(folder: Path, box: str, problem: str) -> None:
    change(folder / cub.BOXES, "8 ", f"8 {box}")
    text = message(folder.parent, crop="box")
    assert f"Cannot crop the image '{folder / 'images' / FILES[7]}'" in text
    assert problem in text
    assert "bounding_boxes.txt" in text
    assert load("cub", folder.parent, image_size=8).classes  # of no interest without the crop


def test_only_cub_has_boxes(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("icpctl.data.named.alone", pytest.fail)  # said before a download is tried
    for name in ("cifar10", "digits", "photos", f"folder:{folder}"):
        with pytest.raises(UserError, match=r"has no bounding boxes; only cub has them"):
            load(name, tmp_path, crop="box")
    with pytest.raises(UserError, match=r"Unknown crop 'boxes'\. Did you mean 'box'"):
        load("cub", tmp_path, crop="boxes")
    for file, train in zip(FILES, TRAIN, strict=True):
        target = tmp_path / "cub" / ("train" if train else "test") / file
        target.parent.mkdir(parents=True, exist_ok=True)
        (folder / "images" / file).rename(target)
    check(load("cub", tmp_path, image_size=8))
    assert f"in class folders, '{tmp_path / 'cub'}', has no bounding boxes" in message(tmp_path, crop="box")


def test_crop_has_its_own_place_in_the_cache(folder: Path, cache_home: Path) -> None:
    load("digits")
    plain, cropped = (load("cub", folder.parent, image_size=8, crop=crop) for crop in ("none", "box"))
    assert plain.fingerprint != cropped.fingerprint
    made = {path.name for path in (cache_home / "icpctl/decoded").iterdir() if path.is_dir()}
    assert len(made) == 3
    crops = json.dumps([2, "digits", "scikit-learn", None, "none", []])  # the key of data that users have decoded
    assert f"digits-{hashlib.sha256(crops.encode()).hexdigest()[:16]}" in made


INDEX = Path(os.environ.get("ICPCTL_DATA_DIR", "nowhere")).expanduser() / "cub-index"


@pytest.mark.skipif(not INDEX.is_dir(), reason="ICPCTL_DATA_DIR names no folder that has CUB's index files, cub-index/")
def test_true_index_files(tmp_path: Path) -> None:
    """Its first 300 images; the whole of it has 11,788 lines, 5,994 of them for training."""
    count = 300
    (folder := tmp_path / cub.FOLDER).mkdir()
    rows = {}
    for name in (cub.IMAGES, cub.SPLIT, cub.LABELS, cub.BOXES):
        text = (INDEX / name).read_text().splitlines()
        assert len(text) == 11_788
        rows[name] = [line.split()[1:] for line in text]
        (folder / name).write_text("".join(f"{line}\n" for line in text[:count]))
    shutil.copy(INDEX / cub.CLASSES, folder)
    assert sum(flag == ["1"] for flag in rows[cub.SPLIT]) == 5_994
    for number in range(count):
        x, y, w, h = map(float, rows[cub.BOXES][number])
        picture(folder / "images" / rows[cub.IMAGES][number][0], int(x + w) + number % 7, int(y + h) + 3, number)
    data = load("cub", tmp_path, image_size=16, crop="box")
    train = [flag == ["1"] for flag in rows[cub.SPLIT][:count]]
    assert (len(data.train.labels), len(data.test.labels)) == (sum(train), count - sum(train))
    labels = np.array([int(label) - 1 for (label,) in rows[cub.LABELS][:count]])
    assert np.array_equal(data.train.labels, labels[train])
    assert len(data.classes) == 200
    assert data.classes[0] == "001.Black_footed_Albatross"
