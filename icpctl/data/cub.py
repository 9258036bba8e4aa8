"""CUB-200-2011 (Wah et al., 2011) as it is published: 11,788 photographs of 200 species of birds, with bounding boxes."""

from __future__ import annotations

import math
import os
import re
import shutil
import tarfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from icpctl.data.download import alone, unavailable
from icpctl.data.source import Box, Raw, RawSplit, Source, Stamp, stamp
from icpctl.errors import UserError

FOLDER, ARCHIVE = "CUB_200_2011", "CUB_200_2011.tgz"
URL = "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz"
MOST_BYTES = 8 * 2**30
"""That the archive may unpack to; the official one has 1.2 GB."""
MD5 = "97eceeb196236b17998738112f37df78"

IMAGES, SPLIT, LABELS = "images.txt", "train_test_split.txt", "image_class_labels.txt"
CLASSES, BOXES = "classes.txt", "bounding_boxes.txt"

_REPAIR = "Replace it by the file of the official archive."

_Value = TypeVar("_Value")


def official_cub(data_dir: Path) -> Source:
    """The data set in `data_dir`/CUB_200_2011, unpacked from the archive beside it, or downloaded, if it is not there.

    `data_dir` may be the folder CUB_200_2011 itself.

    Raises:
        UserError: it is neither there nor can it be downloaded, or something in it is missing or damaged.
    """
    folder = data_dir / FOLDER
    if not folder.is_dir():
        if any((data_dir / file).is_file() for file in (IMAGES, SPLIT)):
            folder = data_dir
        else:
            _fetch(data_dir)
    index = [IMAGES, SPLIT, LABELS, CLASSES, BOXES]
    _stamps(folder, index, "index files of cub")
    names = _table(folder / IMAGES, "the number of an image and its path", _relative)
    files = {image: folder / "images" / name for image, name in names.items()}

    def stamps() -> list[Stamp]:
        images = [f"images/{name}" for name in names.values()]
        of_index = _stamps(folder, index, "index files of cub")
        return of_index + _stamps(folder, images, f"images that {IMAGES} lists")

    return Source(str(folder.resolve()), stamps, lambda: _read(folder, files), boxes=True)


def _read(folder: Path, files: dict[int, Path]) -> Raw:
    classes = _table(folder / CLASSES, "the number of a class and its name", str)
    index = {number: label for label, number in enumerate(sorted(classes))}
    labels = _table(
        folder / LABELS, f"the numbers of an image and of a class of {CLASSES}", lambda text: index[_number(text)]
    )
    for_train = _table(
        folder / SPLIT, "the number of an image and 1 (train) or 0 (test)", {"1": True, "0": False}.__getitem__
    )
    boxes = _table(folder / BOXES, "the number of an image and left, top, width and height of its box", _box)
    for name, table in ((LABELS, labels), (SPLIT, for_train), (BOXES, boxes)):
        _check_images(folder / name, table, files)

    def split(train: bool) -> RawSplit:
        images = [image for image in sorted(files) if for_train[image] == train]
        if not images:
            raise UserError(
                f"'{folder / SPLIT}' puts no image into the {'training' if train else 'test'} split. {_REPAIR}"
            )
        return RawSplit([files[i] for i in images], [labels[i] for i in images], [boxes[i] for i in images])

    return Raw(tuple(classes[number] for number in sorted(classes)), split(True), split(False))


def _table(path: Path, form: str, parse: Callable[[str], _Value]) -> dict[int, _Value]:
    """The lines "NUMBER VALUE" of an index file; `form` says what they are, `parse` refuses a value by its error."""
    table: dict[int, _Value] = {}
    try:
        with path.open(encoding="utf-8-sig") as lines:
            for position, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    number, text = line.split(maxsplit=1)
                    key, value = _number(number), parse(text.rstrip())
                except (ValueError, KeyError) as problem:
                    raise UserError(
                        f"Line {position} of '{path}' is '{line.strip()[:80]}' instead of {form}. {_REPAIR}"
                    ) from problem
                if key in table:
                    raise UserError(f"Line {position} of '{path}' has the number {key} for the second time. {_REPAIR}")
                table[key] = value
    except (OSError, UnicodeDecodeError) as problem:
        raise UserError(f"Cannot read '{path}': {problem}. {_REPAIR}") from problem
    if not table:
        raise UserError(f"'{path}' is empty. {_REPAIR}")
    return table


def _number(text: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", text):
        raise ValueError(text)
    return int(text)


def _relative(text: str) -> str:
    """The path of an image in the folder of the images, and not beside it."""
    if "\0" in text or text.startswith("/") or ".." in text.split("/"):
        raise ValueError(text)
    return text


def _box(text: str) -> Box:
    left, top, width, height = map(float, text.split())
    if not all(map(math.isfinite, (left, top, width, height))):
        raise ValueError(text)
    return left, top, width, height


def _check_images(path: Path, table: Mapping[int, object], files: Mapping[int, Path]) -> None:
    """Raise UserError unless the index file `path` is about the images of images.txt, each and no other."""
    for numbers, problem in ((files.keys() - table.keys(), "lacks"), (table.keys() - files.keys(), "has")):
        if numbers:
            more = f" and {len(numbers) - 1} more" if len(numbers) > 1 else ""
            other = IMAGES if problem == "lacks" else f"no line of {IMAGES}"
            raise UserError(f"'{path}' {problem} image {min(numbers)}{more}, which {other} has. {_REPAIR}")


def _stamps(folder: Path, names: Iterable[str], what: str) -> list[Stamp]:
    """The stamps of files in `folder`; UserError with the number of those that are missing, and the first."""
    stamps: list[Stamp] = []
    missing: list[OSError] = []
    for name in names:
        try:
            stamps.append(stamp(name, folder / name))
        except OSError as problem:
            missing.append(problem)
    if missing:
        raise UserError(
            f"{len(missing)} of the {len(missing) + len(stamps)} {what} cannot be read; the first is "
            f"'{missing[0].filename}': {missing[0].strerror}. Replace '{folder}' by what the official archive has."
        )
    return stamps


def _fetch(data_dir: Path) -> None:
    """Unpack the archive, after downloading it if it is missing or damaged itself."""
    from torchvision.datasets.utils import download_url

    folder, archive = data_dir / FOLDER, data_dir / ARCHIVE
    if archive.is_file() and not os.access(data_dir, os.W_OK):
        raise UserError(
            f"'{archive}' is there, but '{data_dir}' cannot be written to, so it cannot be unpacked there. Unpack it elsewhere, "
            "and name that folder with --data-dir or ICPCTL_DATA_DIR."
        )
    try:
        with alone(data_dir, "cub", archive):
            if not folder.is_dir():  # another process may have unpacked it while this one waited
                download_url(URL, data_dir, ARCHIVE, MD5)  # does nothing if it is there and intact
                _unpack(archive, folder)
    except UserError:
        raise
    except Exception as problem:  # from the network, of every type
        raise unavailable("cub", [folder, archive], data_dir, {archive: MD5}, URL, problem) from problem


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack `folder` from the archive; it appears complete or not at all, and nothing is written outside of it."""
    scratch = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(scratch, ignore_errors=True)  # a process that was killed may have left it
    try:
        scratch.mkdir()
        with tarfile.open(archive, "r:gz") as tar:
            _extract(tar, scratch)
        if not (scratch / folder.name).is_dir():
            raise tarfile.ReadError(f"it has no folder {folder.name}")
        (scratch / folder.name).rename(folder)  # what else there is, a list of attributes, is not needed
    except Exception as problem:  # damaged bytes lead tarfile into errors of every type
        raise UserError(
            f"Cannot unpack '{archive}' into '{folder}': {problem}. Nothing was left there. Free space if it is short, "
            f"or replace the archive by a download of {URL}."
        ) from problem
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _extract(tar: tarfile.TarFile, folder: Path) -> None:
    """Unpack files and folders that stay in `folder`, and refuse an archive that has anything else.

    tarfile's own filter lets crafted links lead out of the folder in Python before 3.11.13, 3.12.11 and 3.13.4
    (CVE-2025-4517). The data set has no links.
    """
    size = 0

    def checked(member: tarfile.TarInfo, target: str) -> tarfile.TarInfo:
        nonlocal size
        size += member.size
        if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE):
            raise tarfile.ReadError(f"'{member.name}' is neither a file nor a folder")
        if member.name.startswith("/") or ".." in member.name.split("/"):
            raise tarfile.ReadError(f"'{member.name}' leads out of the folder")
        if size > MOST_BYTES:
            raise tarfile.ReadError(f"it has more than {MOST_BYTES:,} bytes")
        return tarfile.data_filter(member, target)

    tar.errorlevel = 2
    tar.extractall(folder, filter=checked)
