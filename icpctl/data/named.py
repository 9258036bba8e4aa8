"""The named data sets: those that a package carries, else class folders in the data folder, else the official files."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from icpctl.data.cub import official_cub
from icpctl.data.download import alone, intact, unavailable
from icpctl.data.folders import class_folders
from icpctl.data.photos import photos
from icpctl.data.source import Raw, RawSplit, Source, Stamp, stamp
from icpctl.errors import UserError, unknown

NAMED = {
    "cifar10": "CIFAR-10: 50,000 training and 10,000 test images of 10 classes, 32 pixels",
    "cifar100": "CIFAR-100: 50,000 training and 10,000 test images of 100 classes, 32 pixels",
    "cub": "CUB-200-2011: 5,994 training and 5,794 test photographs of birds of 200 classes",
    "digits": "scikit-learn's digits: 1,437 training and 360 test images of 10 classes, 8 pixels; no download",
    "fashion-mnist": "Fashion-MNIST: 60,000 training and 10,000 test images of 10 classes, 28 pixels",
    "photos": "patches of scikit-image's photographs: 1,067 for training and 260 to test, 15 classes, 64 pixels; no download",
}
"""The names, and what each data set is."""

MOST_BYTES = 2**30
"""That an unpacked file of Fashion-MNIST may have; the largest has 47 MB."""


def find(name: str, data_dir: Path) -> Source:
    """The data set `name`, one of `NAMED`, from `data_dir`; downloaded to it if it is not there.

    Raises:
        UserError: it is neither there nor can it be downloaded, or it is damaged.
    """
    if name == "digits":
        return Source("scikit-learn", list, _read_digits)
    if name == "photos":
        return photos()
    folder = data_dir / name
    if (folder / "train").is_dir() or (folder / "test").is_dir():
        return class_folders(folder)
    match name:
        case "cub":
            return official_cub(data_dir)
        case "fashion-mnist":
            return _fashion_mnist(data_dir)
        case "cifar10" | "cifar100":
            return _cifar(name, data_dir)
    raise unknown("data set", name, NAMED)


def _read_digits() -> Raw:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)  # its grey levels are 0 … 16
    train, test, train_labels, test_labels = train_test_split(
        images, digits.target, test_size=360, stratify=digits.target, random_state=0
    )
    return Raw(tuple("0123456789"), RawSplit(train, train_labels), RawSplit(test, test_labels))


def _cifar(name: str, data_dir: Path) -> Source:
    from torchvision import datasets

    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    batches, archive = data_dir / kind.base_folder, data_dir / kind.filename
    sums = [*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])]
    files = {batches / file: md5 for file, md5 in sums}

    def fetch() -> None:
        """Unpack the archive, after downloading it if it is missing or damaged itself."""
        try:
            with alone(data_dir, name, archive, *files):
                kind(data_dir, train=False, download=True)
        except Exception as problem:  # from the network, tarfile or pickle, of every type
            checked = {archive: kind.tgz_md5, **files}
            raise unavailable(name, [batches, archive], data_dir, checked, kind.url, problem) from problem

    def read() -> Raw:
        if not _all_intact(files):
            fetch()
        try:
            train, test = kind(data_dir, train=True), kind(data_dir, train=False)
        except Exception as problem:  # from pickle, of every type
            raise UserError(
                f"Cannot read {name} from '{batches}': {problem}. Remove that folder; it is unpacked or "
                "downloaded again."
            ) from problem
        return Raw(tuple(train.classes), RawSplit(train.data, train.targets), RawSplit(test.data, test.targets))

    if not all(path.is_file() for path in files):
        fetch()
    return _source(files, read)


def _fashion_mnist(data_dir: Path) -> Source:
    from torchvision.datasets import FashionMNIST
    from torchvision.datasets.utils import download_url

    # A folder with the four files, as Linux distributions package them, or torchvision's own. torchvision also
    # unpacks the files, but does not notice when it was stopped at that; the compressed ones can be checked.
    packaged, raw = data_dir / "fashion-mnist", data_dir / "FashionMNIST" / "raw"
    sums = dict(FashionMNIST.resources)  # images and labels of train, then of test
    folder = packaged if all((packaged / file).is_file() for file in sums) else raw
    files = {folder / file: md5 for file, md5 in sums.items()}

    def fetch() -> None:
        """Download what is missing or damaged."""
        url = FashionMNIST.mirrors[0]
        try:
            with alone(data_dir, "fashion-mnist", *files):
                for path, md5 in files.items():
                    download_url(url + path.name, raw, path.name, md5)
        except Exception as problem:  # from the network, of every type
            raise unavailable("fashion-mnist", [packaged, raw], raw, files, url, problem) from problem

    def read() -> Raw:
        if folder == raw and not _all_intact(files):
            fetch()
        arrays = [_read_idx(path, dimensions) for path, dimensions in zip(files, (3, 1, 3, 1), strict=True)]
        images, labels, test_images, test_labels = arrays
        classes = tuple(FashionMNIST.classes)
        return Raw(classes, RawSplit(images, labels.tolist()), RawSplit(test_images, test_labels.tolist()))

    if not all(path.is_file() for path in files):
        fetch()
    return _source(files, read)


def _read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """The array in a compressed IDX file: type (3 bytes), dimensions (1), the length of each (4), the data."""
    try:
        with gzip.open(path) as file:
            if file.read(4) != bytes([0, 0, 8, dimensions]):
                raise ValueError(f"it has no {dimensions}-dimensional array of bytes")
            shape = np.frombuffer(file.read(4 * dimensions), ">u4").tolist()
            size = math.prod(shape)
            if size > MOST_BYTES:
                raise ValueError(f"it claims to have {size:,} bytes")
            content = file.read(size + 1)
        return np.frombuffer(content, np.uint8).reshape(shape)
    except (OSError, EOFError, ValueError, zlib.error) as problem:
        raise UserError(f"Cannot read '{path}': {problem}. Replace it by a complete copy.") from problem


def _source(files: Iterable[Path], read: Callable[[], Raw]) -> Source:
    paths = [path.resolve() for path in files]

    def stamps() -> list[Stamp]:
        try:
            return [stamp(str(path), path) for path in paths]
        except OSError as problem:
            raise UserError(f"Cannot read '{problem.filename}': {problem.strerror}. Make it readable.") from problem

    return Source("torchvision", stamps, read)


def _all_intact(files: dict[Path, str]) -> bool:
    return all(intact(path, md5) for path, md5 in files.items())
