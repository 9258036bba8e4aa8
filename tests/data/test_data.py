"""Finding, downloading, decoding and caching of data sets."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import os
import pickle
import resource
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from icpctl.data import DATASETS, cache, check_name, default_data_dir, load
from icpctl.data.folders import decode
from icpctl.errors import UserError


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two classes, three training and one test image each, every image of one colour."""
    root = tmp_path / "pictures"
    files = [f"train/{name}/{image}.png" for name in ("cat", "ant") for image in range(3)]
    for number, file in enumerate([*files, "test/cat/0.png", "test/ant/0.png"]):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 4), (number, 10 * number, 100)).save(root / file)
    return root


def load_folder(root: Path, image_size: int | None = None) -> cache.ImageData:
    return load(f"folder:{root}", image_size=image_size)


def message(root: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_folder(root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def save_one(root: Path, image: Image.Image, file: str = "train/ant/0.png", **options: Any) -> None:
    """Replace the first training image."""
    (root / "train/ant/0.png").unlink()
    image.save(root / file, **options)


def test_names() -> None:
    for name in (*DATASETS, "folder:x"):
        check_name(name)
    with pytest.raises(UserError, match=r"'cifar-100'\. Did you mean 'cifar100'"):
        check_name("cifar-100")
    with pytest.raises(UserError, match=r"Did you mean 'fashion-mnist'"):
        check_name("mnist")
    for odd in ("a" * 5000 + "/", "a/\0", "~nobody/x"):
        with pytest.raises(UserError, match="no folder"):
            check_name(odd)
    with pytest.raises(UserError, match="lacks its path"):
        check_name("folder:")
    with pytest.raises(UserError, match="Unknown data set 'nothing'"):
        load("nothing")


def test_checking_a_name_imports_no_heavy_library() -> None:
    heavy = "{'torch', 'torchvision', 'sklearn'}"
    code = f"import sys, icpctl.data as data; data.check_name('cifar10'); sys.exit(bool({heavy} & {{*sys.modules}}))"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_default_data_dir(monkeypatch: pytest.MonkeyPatch, cache_home: Path) -> None:
    monkeypatch.delenv("ICPCTL_DATA_DIR", raising=False)
    assert default_data_dir() == cache_home / "icpctl" / "data"
    monkeypatch.setenv("ICPCTL_DATA_DIR", "~/sets")
    assert default_data_dir() == Path.home() / "sets"


def test_folder_in_class_and_name_order(pictures: Path) -> None:
    (pictures / "train/cat/notes.txt").write_text("no image")
    (pictures / "train/cat/.hidden.png").write_text("no image")
    (pictures / "train/.thumbnails").mkdir()
    data = load_folder(pictures)
    assert data.classes == ("ant", "cat")
    assert data.train.images.shape == (6, 3, 4, 6)
    assert (str(data.train.images.dtype), str(data.train.labels.dtype)) == ("uint8", "int64")
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.train.images[:, :, 2, 3].tolist() == [[n, 10 * n, 100] for n in (3, 4, 5, 0, 1, 2)]
    assert data.test.images[:, 0, 0, 0].tolist() == [7, 6]
    assert isinstance(data.train.images, np.memmap)


def test_relative_and_home_paths(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fingerprint = load_folder(pictures).fingerprint
    monkeypatch.chdir(pictures.parent)
    monkeypatch.setenv("HOME", str(pictures.parent))
    assert load("folder:pictures").fingerprint == fingerprint
    assert load("folder:~/pictures").fingerprint == fingerprint


def test_image_size_crops_the_centre(pictures: Path) -> None:
    picture = Image.new("RGB", (12, 4), "black")
    picture.paste("white", (4, 0, 8, 4))
    save_one(pictures, picture)
    data = load_folder(pictures, image_size=2)
    assert data.train.images.shape == (6, 3, 2, 2)
    assert data.train.images[0].min() > 200  # only the white middle third is left
    with pytest.raises(UserError, match="at least 1 pixel"):
        load_folder(pictures, image_size=0)


def test_first_image_of_another_size_is_named(pictures: Path) -> None:
    Image.new("RGB", (5, 4)).save(pictures / "train/cat/1.png")
    Image.new("RGB", (9, 9)).save(pictures / "test/ant/0.png")
    text = message(pictures)
    assert f"'{pictures}/train/cat/1.png' has 5×4" in text
    assert f"'{pictures}/train/ant/0.png' has 6×4" in text
    assert "--image-size" in text


@pytest.mark.parametrize("start", [b"", b"this is no image", b"\x89PNG\r\n\x1a\n"])
def test_broken_image_is_named(pictures: Path, start: bytes) -> None:
    path = pictures / "test/ant/0.png"
    path.write_bytes(start)
    assert f"Cannot read the image '{path}'" in message(pictures)


def test_image_that_cannot_be_opened_is_named(pictures: Path) -> None:
    path = pictures / "train/ant/0.png"
    path.unlink()
    path.mkdir()
    assert f"'{path}': Is a directory" in message(pictures)
    path.rmdir()
    path.symlink_to("nowhere.png")
    assert f"'{path}': No such file" in message(pictures)
    save_one(pictures, Image.new("F", (6, 4)), "train/ant/0.tiff")
    assert f"'{path.with_suffix('.tiff')}': its pixels are floating-point" in message(pictures)


def test_classes_must_agree(pictures: Path) -> None:
    (pictures / "test/cat").rename(pictures / "test/dog")
    text = message(pictures)
    assert "test/ lacks 'cat'." in text
    assert "train/ lacks 'dog'." in text
    (pictures / "test/dog").rename(pictures / "dog")
    (pictures / "train/cat").rename(pictures / "cat")
    assert load_folder(pictures).classes == ("ant",)  # one is enough for a task that needs no labels


def test_missing_and_empty_folders(pictures: Path, tmp_path: Path) -> None:
    assert "does not exist" in message(tmp_path / "elsewhere")
    (pictures / "train/eel").mkdir()
    (pictures / "train/eel/readme.txt").touch()
    assert f"'{pictures}/train/eel' has no images" in message(pictures)
    (pictures / "test").rename(pictures / "held-out")
    (pictures / "train/eel/readme.txt").rename(pictures / "train/eel/0.png")
    assert f"'{pictures}/test' is missing" in message(pictures)
    (pictures / "test").mkdir()
    assert "has no class folders" in message(pictures)


@pytest.fixture
def decodes(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The images that were decoded, in no particular order."""
    items: list[Any] = []

    def counted(item: Any, *how: Any) -> Image.Image:
        items.append(item)
        return decode(item, *how)

    monkeypatch.setattr(cache, "decode", counted)
    return items


def test_second_load_decodes_nothing(pictures: Path, decodes: list[Any]) -> None:
    first = load_folder(pictures)
    assert decodes
    decodes.clear()
    second = load_folder(pictures)
    assert not decodes
    assert (second.classes, second.fingerprint) == (first.classes, first.fingerprint)
    assert np.array_equal(first.train.images, second.train.images)
    assert np.array_equal(first.test.labels, second.test.labels)


def test_changed_added_and_removed_files_are_seen(pictures: Path) -> None:
    loaded = [load_folder(pictures)]
    path = pictures / "train/ant/0.png"
    before = path.stat()
    Image.new("RGB", (6, 4), (3, 30, 101)).save(path)  # as many bytes
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    loaded.append(load_folder(pictures))
    (pictures / "train/ant/9.png").write_bytes(path.read_bytes())
    loaded.append(load_folder(pictures))
    path.unlink()
    (pictures / "train/ant/1.png").unlink()
    loaded.append(load_folder(pictures))
    assert [len(data.train.labels) for data in loaded] == [6, 6, 7, 5]
    assert len({data.fingerprint for data in loaded}) == 4


def test_fingerprint_is_of_content_not_of_place(pictures: Path, tmp_path: Path) -> None:
    fingerprint = load_folder(pictures).fingerprint
    moved = pictures.rename(tmp_path / "moved")
    assert load_folder(moved).fingerprint == fingerprint
    for split in ("train", "test"):
        (moved / split / "cat").rename(moved / split / "cow")
    assert load_folder(moved).fingerprint != fingerprint


def decoded_folders(cache_home: Path) -> list[Path]:
    return [path for path in (cache_home / "icpctl/decoded").iterdir() if path.is_dir()]


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("train_images.npy", Path.unlink),
        ("train_images.npy", lambda path: path.write_bytes(path.read_bytes()[:-1])),
        ("train_images.npy", lambda path: path.write_bytes(b"")),
        ("train_images.npy", lambda path: np.save(path, np.zeros((6, 3, 2, 6), np.uint8))),
        ("test_labels.npy", lambda path: np.save(path, np.zeros(5, np.int64))),
        ("meta.json", lambda path: path.write_text("{")),
        ("meta.json", lambda path: path.write_text("[]")),
    ],
    ids=["missing", "short", "empty", "shape", "labels", "json", "keys"],
)
def test_damaged_cache_is_made_anew(
    pictures: Path, cache_home: Path, decodes: list[Any], file: str, damage: Callable[[Path], object]
) -> None:
    expected = np.array(load_folder(pictures).train.images)
    (folder,) = decoded_folders(cache_home)
    damage(folder / file)
    decodes.clear()
    assert np.array_equal(load_folder(pictures).train.images, expected)
    assert len(decodes) == 8 + 1  # the first image is looked at for its size
    decodes.clear()
    load_folder(pictures)
    assert not decodes


def test_failure_while_decoding_leaves_nothing(pictures: Path, cache_home: Path) -> None:
    path = pictures / "test/cat/0.png"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert f"Cannot read the image '{path}': " in message(pictures)
    assert decoded_folders(cache_home) == []
    path.write_bytes(content)
    assert len(load_folder(pictures).test.labels) == 2


def test_rest_of_a_killed_process_is_no_hindrance(pictures: Path, cache_home: Path) -> None:
    load_folder(pictures)
    (folder,) = decoded_folders(cache_home)
    folder.rename(f"{folder}.part")
    load_folder(pictures)
    assert decoded_folders(cache_home) == [folder]


def test_two_at_once_decode_once(pictures: Path, decodes: list[Any]) -> None:
    with ThreadPoolExecutor() as pool:
        loaded = list(pool.map(load_folder, [pictures] * 4))
    assert len({data.fingerprint for data in loaded}) == 1
    assert len(decodes) == 8 + 1


def test_cache_folder_that_cannot_be_made(pictures: Path, cache_home: Path) -> None:
    cache_home.touch()
    text = message(pictures)
    assert str(cache_home) in text
    assert "XDG_CACHE_HOME" in text


def test_full_disk(pictures: Path, cache_home: Path) -> None:
    """A limit on the size of files stands for the full disk: both fail at the allocation."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, hard))
    try:
        text = message(pictures)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "Free space" in text
    assert decoded_folders(cache_home) == []


def test_digits() -> None:
    data = load("digits")
    assert data.train.images.shape == (1437, 3, 8, 8)
    assert data.test.images.shape == (360, 3, 8, 8)
    assert data.classes == tuple("0123456789")
    assert (data.train.images.min(), data.train.images.max()) == (0, 255)
    assert np.array_equal(data.train.images[:, 0], data.train.images[:, 2])
    assert np.bincount(data.test.labels).min() >= 35
    assert load("digits", image_size=16).test.images.shape == (360, 3, 16, 16)


def test_named_class_folders_come_first(pictures: Path, tmp_path: Path) -> None:
    for name in ("cifar10", "fashion-mnist", "cub"):
        pictures = pictures.rename(tmp_path / name)
        assert load(name, tmp_path).classes == ("ant", "cat")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and the address at which a local server hands out its files."""
    (folder := tmp_path / "served").mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


@pytest.fixture
def cifar(served: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The served archive of a small CIFAR-100: 8 training images, 4 test images, 2 classes."""
    from torchvision.datasets import CIFAR100

    folder, url = served
    (source := tmp_path / "source").mkdir()
    rng = np.random.default_rng(0)
    for name, count in (("train", 8), ("test", 4)):
        pixels = rng.integers(0, 256, (count, 3 * 32 * 32), dtype=np.uint8)
        content = {"data": pixels, "fine_labels": [index % 2 for index in range(count)]}
        (source / name).write_bytes(pickle.dumps(content))
    (source / "meta").write_bytes(pickle.dumps({"fine_label_names": ["apple", "bear"]}))
    archive = folder / "cifar-100-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(source, "cifar-100-python")
    monkeypatch.setattr(CIFAR100, "url", url + archive.name)
    monkeypatch.setattr(CIFAR100, "tgz_md5", md5(archive))
    monkeypatch.setattr(CIFAR100, "train_list", [["train", md5(source / "train")]])
    monkeypatch.setattr(CIFAR100, "test_list", [["test", md5(source / "test")]])
    monkeypatch.setattr(CIFAR100, "meta", dict(CIFAR100.meta, md5=md5(source / "meta")))
    return archive


def cifar_error(data_dir: Path) -> str:
    with pytest.raises(UserError) as caught:
        load("cifar100", data_dir)
    return str(caught.value)


def test_download(cifar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = load("cifar100", tmp_path / "data")
    source = pickle.loads((tmp_path / "source/train").read_bytes())
    assert np.array_equal(data.train.images, source["data"].reshape(8, 3, 32, 32))
    assert data.train.labels.tolist() == source["fine_labels"]
    assert data.test.images.shape == (4, 3, 32, 32)
    assert data.classes == ("apple", "bear")
    cifar.unlink()
    (tmp_path / "data" / cifar.name).unlink()
    monkeypatch.setattr("icpctl.data.named.alone", pytest.fail)  # the unpacked files may be in a read-only folder
    assert load("cifar100", tmp_path / "data", image_size=16).classes == ("apple", "bear")


def test_archive_in_the_data_folder_needs_no_network(cifar: Path, tmp_path: Path) -> None:
    cifar.rename(tmp_path / cifar.name)
    assert load("cifar100", tmp_path).classes == ("apple", "bear")


def test_no_network(cifar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchvision.datasets.CIFAR100.url", "http://127.0.0.1:9/cifar-100-python.tar.gz")
    data_dir = tmp_path / "data"
    text = cifar_error(data_dir)
    places = [f"{data_dir}/{end}'" for end in ("cifar100/train/CLASS", "cifar-100-python", "cifar-100-python.tar.gz")]
    for part in (*places, "Connection refused", "--data-dir", "ICPCTL_DATA_DIR"):
        assert part in text
    assert "Damaged" not in text


def test_half_a_download_is_made_good(cifar: Path, tmp_path: Path) -> None:
    content = cifar.read_bytes()
    cifar.write_bytes(content[:-100])
    archive = tmp_path / "data" / cifar.name
    assert f"Damaged (wrong MD5 sum) or unreadable: '{archive}'" in cifar_error(tmp_path / "data")
    cifar.write_bytes(content)
    assert len(load("cifar100", tmp_path / "data").train.labels) == 8


def test_damaged_batch_without_network_is_named(cifar: Path, tmp_path: Path) -> None:
    (tmp_path / "source").rename(tmp_path / "cifar-100-python")
    cifar.unlink()
    (tmp_path / "cifar-100-python/train").write_bytes(b"garbled")
    text = cifar_error(tmp_path)
    assert f"unreadable: '{tmp_path}/cifar-100-python/train'." in text
    assert "404" in text


def test_bad_pickle_is_named(cifar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = (tmp_path / "source").rename(tmp_path / "cifar-100-python")
    (folder / "train").write_bytes(b"garbled")
    monkeypatch.setattr("torchvision.datasets.CIFAR100.train_list", [["train", md5(folder / "train")]])
    assert f"Cannot read cifar100 from '{folder}'" in cifar_error(tmp_path)


@pytest.fixture
def fashion(served: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The served folder of a small Fashion-MNIST: 6 training images, 3 test images of 28×28 pixels."""
    from torchvision.datasets import FashionMNIST

    folder, url = served
    rng = np.random.default_rng(0)
    resources = []
    for split, count in (("train", 6), ("t10k", 3)):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        for kind, array in (("images-idx3", images), ("labels-idx1", np.arange(count, dtype=np.uint8))):
            header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
            path = folder / f"{split}-{kind}-ubyte.gz"
            path.write_bytes(gzip.compress(header + array.tobytes()))
            resources.append((path.name, md5(path)))
    monkeypatch.setattr(FashionMNIST, "mirrors", [url])
    monkeypatch.setattr(FashionMNIST, "resources", resources)
    return folder


def test_fashion_mnist_download(fashion: Path, tmp_path: Path) -> None:
    last = fashion / "t10k-labels-idx1-ubyte.gz"
    content = last.read_bytes()
    last.write_bytes(content[:-5])
    with pytest.raises(UserError, match=f"unreadable: '{tmp_path}/data/FashionMNIST/raw/{last.name}'"):
        load("fashion-mnist", tmp_path / "data")
    last.write_bytes(content)
    data = load("fashion-mnist", tmp_path / "data")
    pixels = gzip.decompress((fashion / "train-images-idx3-ubyte.gz").read_bytes())[16:]
    assert data.train.images[:, 1].tobytes() == pixels
    assert data.train.labels.tolist() == [0, 1, 2, 3, 4, 5]
    assert data.test.images.shape == (3, 3, 28, 28)
    assert data.classes[9] == "Ankle boot"


def test_fashion_mnist_as_packaged(fashion: Path, tmp_path: Path) -> None:
    folder = fashion.rename(tmp_path / "fashion-mnist")
    assert len(load("fashion-mnist", tmp_path).train.labels) == 6
    idx = bytes([0, 0, 8, 3]) + np.array([6, 28, 28], ">u4").tobytes()
    for content in (
        b"garbled",
        gzip.compress(idx),
        gzip.compress(idx + bytes(6 * 28 * 28 + 1)),
        gzip.compress(b"\0\0\x08\3" + b"\xff" * 12 + bytes(10**6)),
        gzip.compress(b"\0\0\x08"),
        gzip.compress(bytes([0, 0, 0x0D, 3]) + idx[4:] + bytes(4 * 6 * 28 * 28)),
    ):
        (folder / "train-images-idx3-ubyte.gz").write_bytes(content)
        with pytest.raises(UserError, match=f"Cannot read '{folder}/train-images-idx3-ubyte.gz'"):
            load("fashion-mnist", tmp_path)


@pytest.mark.parametrize(("labels", "problem"), [([0, 10, 2], "no index of its 10 classes"), ([0, 1], "but 2 labels")])
def test_fashion_mnist_with_labels_that_do_not_fit(
    labels: list[int], problem: str, fashion: Path, tmp_path: Path
) -> None:
    folder = fashion.rename(tmp_path / "fashion-mnist")
    content = bytes([0, 0, 8, 1, 0, 0, 0, len(labels), *labels])
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(content))
    with pytest.raises(UserError, match=f"{problem}. Replace it by a complete copy"):
        load("fashion-mnist", tmp_path)


REAL = default_data_dir() if "ICPCTL_DATA_DIR" in os.environ else None


@pytest.mark.skipif(
    REAL is None or not ((REAL / "cifar100").is_dir() or (REAL / "cifar-100-python").is_dir()),
    reason="ICPCTL_DATA_DIR names no folder that has CIFAR-100",
)
def test_real_cifar100() -> None:
    data = load("cifar100", REAL)
    assert data.train.images.shape == (50_000, 3, 32, 32)
    assert data.test.images.shape == (10_000, 3, 32, 32)
    assert np.bincount(data.train.labels).tolist() == [500] * 100
    assert (data.classes[0], data.classes[99]) == ("apple", "worm")
    values = data.train.images / np.float32(255)
    assert values.mean((0, 2, 3)) == pytest.approx([0.5071, 0.4865, 0.4409], abs=1e-4)
    assert values.std((0, 2, 3)) == pytest.approx([0.2673, 0.2564, 0.2762], abs=1e-4)
