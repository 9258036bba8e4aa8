"""Hugging Face data sets: of the hub, or on the disk as `save_to_disk` or parquet files keep them.

The package `datasets` reads them to tables that are mapped from the disk. It is imported when there is something to read:
images on the disk that are decoded already need it no more.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from icpctl.config import HUGGING_FACE, expanded, is_path
from icpctl.data.download import AbsentError, may_download
from icpctl.data.folders import MOST_NAMED, lacking
from icpctl.data.source import Encoded, Raw, RawSplit, Source, Stamp, stamp
from icpctl.errors import UserError, abbreviated, first_names

TRAIN, TEST, VALIDATION = "train", "test", "validation"
WORDS = {"train": TRAIN, "training": TRAIN, "test": TEST, "testing": TEST} | dict.fromkeys(
    ("validation", "valid", "val", "dev"), VALIDATION
)
"""In the path of a parquet file: of which split it is."""

SPLIT_COLUMN = "split"
"""Of a single table: says of which split a row is."""

UNLABELLED = -1
"""How `datasets` writes that a row has no label."""

Table = Any  # a datasets.Dataset


def check_hub_name(name: str) -> None:
    """Raise UserError unless `name` is hf:OWNER/NAME or hf:OWNER/NAME/CONFIG; looks neither at the disk nor at the hub."""
    if not re.fullmatch(r"hf:\w[\w.-]*/\w[\w.-]*(/\w[\w.+-]*)?", name, re.ASCII):
        raise UserError(
            f"'{abbreviated(name)}' is no name of a Hugging Face data set. Write hf:OWNER/NAME, or hf:OWNER/NAME/CONFIG, for one of the "
            "hub. Write hf:./PATH or hf:/PATH for one on the disk."
        )


def hugging_face(name: str, columns: str | None) -> Source:
    """The data set `name`, which begins with hf:.

    Args:
        columns: "IMAGE,LABEL"; None: the only ones of their types.

    Raises:
        UserError: it is not there, cannot be loaded, or lacks splits, columns, images or labels.
    """
    where = name.removeprefix(HUGGING_FACE)
    if columns and not re.fullmatch("[^,]+,[^,]+", columns):
        raise UserError(f"--columns got '{abbreviated(columns)}'. Write the names of two columns: IMAGE,LABEL.")
    chosen = f" with the columns {columns}" if columns else ""
    if is_path(name):
        root = expanded(Path(where)).resolve()
        _files(root)

        def stamps() -> list[Stamp]:
            try:
                return [stamp(str(file.relative_to(root.parent)), file) for file in _files(root)]
            except OSError as problem:
                raise UserError(f"Cannot read '{problem.filename}': {problem.strerror}. Make it readable.") from problem

        return Source(f"{root}{chosen}", stamps, lambda: _raw(_from_disk(root), name, columns))
    if Path(where).exists():  # `datasets` would take it, and whose data these are would depend on the working directory
        raise UserError(
            f"'{where}' is also a path here. Write hf:./{where} for it, or work in another folder to take {where} of the hub."
        )
    tables = _from_hub(where)
    made_of = "+".join(str(table._fingerprint) for table in tables.values())  # derives from the revision
    return Source(f"{name}{chosen}, {made_of}", list, lambda: _raw(tables, name, columns))


def _files(root: Path) -> list[Path]:
    """The files that a data set on the disk is made of."""
    if root.is_file():
        return [root]
    suffixes = (".arrow", ".json") if _is_saved(root) else (".parquet",)
    files = [
        file
        for file in sorted(root.rglob("*"))
        if file.suffix in suffixes and not any(part.startswith(".") for part in file.relative_to(root).parts)
    ]
    if not files:
        raise UserError(
            f"There is no Hugging Face data set at '{root}': neither a folder that save_to_disk wrote, nor a folder with parquet files, nor "
            "such a file. Write folder:PATH for images in class folders, and hf:OWNER/NAME for a data set of the hub."
        )
    return files


def _is_saved(root: Path) -> bool:
    return (root / "dataset_dict.json").exists() or (root / "state.json").exists()


def _from_disk(root: Path) -> dict[str, Table]:
    problem = f"Cannot read the Hugging Face data set at '{root}'", "Replace it by a complete copy."
    if root.is_dir() and _is_saved(root):
        return _loaded(lambda datasets: datasets.load_from_disk(str(root)), *problem)
    files: dict[str, list[str]] = {}
    for file in _files(root):
        words = re.findall("[a-z]+", str(file.relative_to(root if root.is_dir() else root.parent)).lower())
        splits = {WORDS[word] for word in words if word in WORDS}
        files.setdefault(splits.pop() if len(splits) == 1 else "unnamed", []).append(_literal(file))
    # What `datasets` made of the files before goes by their times, which can be set.
    anew = {"download_mode": "force_redownload", "batch_size": 256}
    return _loaded(lambda datasets: datasets.load_dataset("parquet", data_files=files, **anew), *problem)


def _literal(file: Path) -> str:
    """The path as a pattern."""
    return re.sub(r"([*?[])", r"[\1]", str(file))


@cache  # one revision in a process, for which the hub is asked once
def _from_hub(where: str) -> dict[str, Table]:
    owner, name, *config = where.split("/")
    try:
        return _loaded(
            lambda datasets: datasets.load_dataset(f"{owner}/{name}", *config),
            f"Cannot load the data set {where} from the Hugging Face hub",
            "Check the name and the network. A gated or private one needs `hf auth login`. One of several configurations is "
            "hf:OWNER/NAME/CONFIG. With HF_HUB_OFFLINE=1 only what was downloaded before is used.",
        )
    except UserError as error:
        if may_download() or isinstance(error.__cause__, ImportError):
            raise
        raise AbsentError(str(error)) from error


def _loaded(load: Callable[[Any], Any], problem: str, way_out: str) -> dict[str, Table]:
    """The tables of a data set by the names of their splits."""
    try:
        with _quiet() as datasets:
            found = load(datasets)
    except ImportError as error:
        raise UserError(
            f"The data sets hf:… need the package datasets, which cannot be imported ({error}): pip install 'icpctl[hf]'."
        ) from error
    except Exception as error:  # of every type, from the network, the disk and the files
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reasons = dict.fromkeys(
            " ".join(str(each).split()).rstrip(".") or type(each).__name__ for each in (error, cause)
        )
        raise UserError(f"{problem}: {abbreviated('. '.join(reasons), 600)}. {way_out}") from error
    return dict(found) if isinstance(found, dict) else {"unnamed": found}


@contextmanager
def _quiet() -> Iterator[Any]:
    """The package `datasets`, which says nothing meanwhile, and downloads nothing where that is not allowed."""
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        import datasets
        import huggingface_hub.utils

        for package in (datasets, huggingface_hub.utils):
            if not package.are_progress_bars_disabled():
                package.disable_progress_bars()
                stack.callback(package.enable_progress_bars)
        for logger in map(logging.getLogger, ("datasets", "huggingface_hub")):
            stack.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.CRITICAL)
        if not may_download():
            offline: tuple[Any, ...] = (datasets.config, huggingface_hub.constants)
            for constants in offline:
                stack.callback(setattr, constants, "HF_HUB_OFFLINE", constants.HF_HUB_OFFLINE)
                constants.HF_HUB_OFFLINE = True
        yield datasets


def _raw(tables: dict[str, Table], name: str, columns: str | None) -> Raw:
    parts, notes = _parts(tables, name), []
    train, test = parts[TRAIN], parts.get(TEST) or parts[VALIDATION]
    image, label = _columns(train, columns)
    if test.split == VALIDATION:
        notes.append(f"There is no split {TEST}: {VALIDATION} takes its place.")
    elif VALIDATION in parts and label in test.table.features and not test.labelled(label).any():
        test = parts[VALIDATION]
        notes.append(f"The split {TEST} has no labels: {VALIDATION} takes its place.")
    if others := [f"'{split}'" for split in parts if split not in (TRAIN, test.split)]:
        notes.append(f"Only {TRAIN} and {test.split} are used, not {first_names(others, MOST_NAMED)} beside them.")
    _columns(test, f"{image},{label}")
    classes, codes = _classes(train, label)
    names, test_codes = _classes(test, label)
    if set(classes) != set(names):
        raise UserError(
            f"The classes of {name} differ between its two splits:{lacking(test.split, set(classes) - set(names))}"
            f"{lacking(TRAIN, set(names) - set(classes))} Give both the same classes."
        )
    index = np.array([classes.index(each) for each in names])
    of_train = RawSplit(_Images(train, train.values(image)), codes)
    of_test = RawSplit(_Images(test, test.values(image)), index[test_codes])
    return Raw(tuple(classes), of_train, of_test, tuple(notes))


@dataclass(frozen=True)
class _Part:
    """A split: some rows of a table."""

    dataset: str
    split: str
    table: Table
    rows: NDArray[np.int64]

    def __str__(self) -> str:
        return f"the split {self.split} of {self.dataset}"

    def values(self, column: str) -> Any:
        """A column of the whole table as Arrow keeps it, mapped from the disk."""
        return self.table.select_columns([column]).with_format("arrow")[:].column(column)

    def labels(self, column: str) -> list[Any]:
        values = self.values(column).to_pylist()
        return [values[row] for row in self.rows]

    def labelled(self, column: str) -> NDArray[np.bool_]:
        names = self.names(column)
        return np.array(
            [v not in (None, UNLABELLED) and (not names or 0 <= v < len(names)) for v in self.labels(column)]
        )

    def names(self, column: str) -> list[str]:
        """The classes that a column declares."""
        return list(getattr(self.table.features[column], "names", None) or ())


def _parts(tables: dict[str, Table], name: str) -> dict[str, _Part]:
    """The splits that have rows; those of a single table by its column `SPLIT_COLUMN`, if it has one."""
    parts = {split: _Part(name, split, table, np.arange(len(table))) for split, table in tables.items() if len(table)}
    if len(parts) == 1 and SPLIT_COLUMN in next(iter(parts.values())).table.features:
        whole = next(iter(parts.values()))
        of_rows = np.array([WORDS.get(str(value).lower(), str(value)) for value in whole.labels(SPLIT_COLUMN)])
        parts = {str(s): _Part(name, str(s), whole.table, np.flatnonzero(of_rows == s)) for s in np.unique(of_rows)}
    missing = [TRAIN] * (TRAIN not in parts) + [f"{TEST} or {VALIDATION}"] * (not {TEST, VALIDATION} & {*parts})
    if missing:
        there = (
            first_names([f"'{part.split}' ({len(part.rows):,} rows)" for part in parts.values()], MOST_NAMED)
            or "none that has rows"
        )
        raise UserError(
            f"The data set {name} lacks the split {' and '.join(missing)}. There is: {there}. Parquet files have their split in their "
            f"name, such as train.parquet and test.parquet. A single table can have it in a column '{SPLIT_COLUMN}'."
        )
    return parts


def _columns(part: _Part, given: str | None) -> tuple[str, str]:
    """The columns of the images and of the labels."""
    image, _, label = (given or "").partition(",")
    return (
        _column(part, "images", image.strip(), ("Image",), ("binary", "large_binary", "bytes")),
        _column(part, "labels", label.strip(), ("ClassLabel",), ("integer", "string", "large_string")),
    )


def _column(part: _Part, what: str, given: str, sure: tuple[str, ...], likely: tuple[str, ...]) -> str:
    kinds = {column: _kind(feature) for column, feature in part.table.features.items()}
    fitting = [column for column in kinds if kinds[column] in (*sure, *likely)]
    found = [column for column in fitting if kinds[column] in sure] or [c for c in fitting if c != SPLIT_COLUMN]
    if given in fitting or (not given and len(found) == 1):
        return given or found[0]
    if given:
        problem = f"no {what} in the column '{given}'" if given in kinds else f"no column '{given}'"
    else:
        problem = f"{'several columns' if found else 'no column'} that can be the {what}"
    listed = first_names([f"'{column}' ({kind})" for column, kind in kinds.items()], MOST_NAMED)
    raise UserError(
        f"In {part} there {'are' if found and not given else 'is'} {problem}. The columns are {listed}. Name the two with --columns IMAGE,LABEL."
    )


def _kind(feature: Any) -> str:
    """The type of a column, in a word."""
    if isinstance(feature, dict):
        return "bytes" if "bytes" in feature else "struct"
    kind = str(feature.dtype) if type(feature).__name__ == "Value" else type(feature).__name__
    return "integer" if re.fullmatch(r"u?int\d+", kind) else kind


def _classes(part: _Part, column: str) -> tuple[list[str], NDArray[np.int64]]:
    """The names of the classes, and of each row the index of its class."""
    _refuse(part, ~part.labelled(column), f"no label: it is null, {UNLABELLED}, or of no class")
    values, names = part.labels(column), part.names(column)
    if names:
        return names, np.array(values, np.int64)
    distinct = sorted(set(values))
    index = {value: i for i, value in enumerate(distinct)}
    return [str(value) for value in distinct], np.array([index[value] for value in values], np.int64)


def _refuse(part: _Part, bad: NDArray[np.bool_], what: str) -> None:
    if bad.any():
        first = part.rows[bad.argmax()]
        raise UserError(
            f"{bad.sum():,} of the {len(bad):,} rows of {part} have {what}. The first is row {first} (from 0). Complete or remove them."
        )


class _Images(Sequence["Path | Encoded"]):
    """The images of a split. Each is read from the disk when it is asked for."""

    def __init__(self, part: _Part, values: Any) -> None:
        self.part, self.values = part, values
        _refuse(part, np.asarray(values.is_null())[part.rows], "no image: it is null")

    def __len__(self) -> int:
        return len(self.part.rows)

    def __getitem__(self, index: Any) -> Any:
        row = int(self.part.rows[index])
        value = self.values[row].as_py()
        value = value if isinstance(value, dict) else {"bytes": value}
        if value["bytes"] is not None:
            return Encoded(f"row {row} (from 0) of {self.part}", value["bytes"])
        if value.get("path") and not is_path(self.part.dataset):
            return Path(value["path"])  # in the cache of the hub, which keeps a revision as it is
        raise UserError(
            f"Row {row} (from 0) of {self.part} has no bytes of an image. Save the data set with the images in it, as save_to_disk and "
            "to_parquet do with a column of the type Image."
        )
