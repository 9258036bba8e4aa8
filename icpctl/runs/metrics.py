"""metrics.csv of a run: run_id,epoch,split,metric,value, read whatever has become of it."""

from __future__ import annotations

import codecs
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv

from icpctl.config import RunConfig
from icpctl.errors import count
from icpctl.files import read_json

FloatArray = np.ndarray[Any, np.dtype[np.float64]]
IntArray = np.ndarray[Any, np.dtype[np.int64]]

METRICS_FILE = "metrics.csv"
COLUMNS = ("run_id", "epoch", "split", "metric", "value")
_HEADER = ",".join(COLUMNS).encode()
_WORD = pa.dictionary(pa.int32(), pa.string())
ROWS = pa.schema(
    [("run_id", _WORD), ("epoch", pa.int32()), ("split", _WORD), ("metric", _WORD), ("value", pa.float64())]
)
_PLAIN = pa.schema([(field.name, pa.string() if field.type == _WORD else field.type) for field in ROWS])
_OPTIONS = (
    pyarrow.csv.ReadOptions(use_threads=False),
    pyarrow.csv.ParseOptions(quote_char=False),
    pyarrow.csv.ConvertOptions(column_types=ROWS, null_values=[]),
)
TOLD = 3
"""Damaged rows of a file that are described; the others are counted."""


def read_metrics(path: Path, config: RunConfig) -> tuple[pd.DataFrame, list[str]]:
    """The rows in the metrics.csv of a run's folder, and a sentence for each fault.

    What is damaged, of another run, or after the last epoch is left out; of a row given twice the later holds.
    """
    rows, problems = own_rows(path, config, read_json(path / "config.json"))
    frame = tidy(rows)
    twice = frame.duplicated(["epoch", "split", "metric"], keep="last")
    if twice.any():
        problems.append(given_twice(path, int(twice.sum())))
    return frame[~twice].reset_index(drop=True), problems


def own_rows(path: Path, config: RunConfig, facts: Mapping[str, Any]) -> tuple[pa.Table, list[str]]:
    """The rows that belong to the run of a folder, given what its config.json says."""
    file = path / METRICS_FILE
    rows, problems = _read_rows(file)
    rows = rows.combine_chunks()
    run_id = rows["run_id"].combine_chunks()
    ids = run_id.dictionary.to_pylist()
    others = set(ids) - {str(facts.get("run_id"))}
    if others and (others := others - {config.run_id}):
        own = ~np.isin(run_id.indices.to_numpy(), [number for number, name in enumerate(ids) if name in others])
        rows = rows.filter(own)
        named = ", ".join(repr(name[:100]) for name in sorted(others)[:TOLD])
        problems.append(f"{file} has {count((~own).sum(), 'row')} of another run; left out: {named}.")
    inside = rows["epoch"].to_numpy() < config.epochs
    if not inside.all():
        rows = rows.filter(inside)
        problems.append(
            f"{file} has {count((~inside).sum(), 'row')} of epochs after the last; left out, as the run has "
            f"{count(config.epochs, 'epoch')}, counted from 0."
        )
    return rows, problems


def curves_of(rows: pa.Table) -> tuple[IntArray, dict[tuple[str, str], FloatArray], int | None]:
    """The rows of a run as curves.

    Returns:
        The epochs that there are rows of, in order; {(split, metric): a value for each of them, nan where there is none};
        and how many rows are given twice, of which the later hold. The last is None, and there are no curves, where the rows
        do not belong to epochs of the same metrics.
    """
    split, metric = (rows[name].combine_chunks() for name in ("split", "metric"))
    splits, names = split.dictionary.to_pylist(), metric.dictionary.to_pylist()
    pair = split.indices.to_numpy().astype(np.int64) * max(1, len(names)) + metric.indices.to_numpy()
    epochs, pairs, place, twice = _places(rows["epoch"].to_numpy().tobytes(), pair.tobytes())
    if place is None:
        return epochs, {}, None
    values = np.full((len(pairs), len(epochs)), np.nan)
    values.reshape(-1)[place] = rows["value"].to_numpy()  # of a place given twice, numpy keeps the last
    keys = ((splits[number // len(names)], names[number % len(names)]) for number in pairs)
    return epochs, dict(zip(keys, values, strict=True)), twice


@lru_cache(maxsize=8)  # the runs of a study have the same rows, but for the values
def _places(epoch: bytes, pair: bytes) -> tuple[IntArray, list[int], IntArray | None, int]:
    """Where the value of each row stands in an array of pairs by epochs, given the epoch of each, and the number of its pair
    of split and metric: the epochs, the pairs, the places, and how many rows have that of a later one.

    The places are None where the array would be far larger than the rows.
    """
    epochs, column = np.unique(np.frombuffer(epoch, np.int32).astype(np.int64), return_inverse=True)
    epochs.flags.writeable = False  # many runs share it
    pairs, row = np.unique(np.frombuffer(pair, np.int64), return_inverse=True)
    if len(epochs) * len(pairs) > 100 * (len(row) + 100):
        return epochs, pairs.tolist(), None, 0
    place = row * len(epochs) + column
    return epochs, pairs.tolist(), place, len(place) - len(np.unique(place))


def given_twice(path: Path, number: int) -> str:
    return f"{path / METRICS_FILE} has {count(number, 'row')} twice; the later one is used."


def tidy(rows: pa.Table) -> pd.DataFrame:
    types = dict.fromkeys(COLUMNS, "str") | {"epoch": "int64", "value": "float64"}
    frame: pd.DataFrame = rows.cast(_PLAIN).to_pandas()
    return frame.astype(types)


def _read_rows(file: Path) -> tuple[pa.Table, list[str]]:
    try:
        if not file.is_file() and file.exists():  # a pipe would be waited for
            return ROWS.empty_table(), [f"{file} is no file."]
        content = file.read_bytes().removeprefix(codecs.BOM_UTF8)
    except FileNotFoundError:
        return ROWS.empty_table(), []
    except OSError as error:
        return ROWS.empty_table(), [f"{file} cannot be read: {error.strerror}."]
    if content.startswith(";".join(COLUMNS).encode()):
        return ROWS.empty_table(), [
            f"{file} is left out: its columns are separated by semicolons, as some spreadsheets save them. Restore the commas."
        ]
    clean = content.endswith(b"\n") and content.startswith((_HEADER + b"\n", _HEADER + b"\r\n"))
    if clean and b"\r" in content:  # alone it is no end of a line, as Arrow has it
        clean = content.count(b"\r") == content.count(b"\r\n")
    if clean:
        try:  # the fast way, for files without a fault
            rows = pyarrow.csv.open_csv(pa.BufferReader(content), *_OPTIONS).read_all()
            if rows.schema.names == list(COLUMNS) and (rows["epoch"].to_numpy() >= 0).all():
                return rows, []
        except pa.ArrowInvalid:
            pass
    return _read_damaged(file, content.decode(errors="replace"))


def _read_damaged(file: Path, content: str) -> tuple[pa.Table, list[str]]:
    rows: list[tuple[str, int, str, str, float]] = []
    damaged: list[int] = []
    lines = content.split("\n")
    torn = bool(lines[-1])  # every whole line ends in a line break
    for number, ended in enumerate(lines, start=1):
        line = ended.removesuffix("\r")
        if not line or (number == 1 and line == ",".join(COLUMNS)):
            continue
        try:
            run_id, epoch, split, metric, value = line.split(",")
            if (torn and number == len(lines)) or not 0 <= int(epoch) < 2**31:
                raise ValueError
            rows.append((run_id, int(epoch), split, metric, float(value)))
        except ValueError:
            damaged.append(number)
    problems = [
        f"{file} line {number} is damaged and left out: {lines[number - 1][:60]!r}." for number in damaged[:TOLD]
    ]
    if more := damaged[TOLD:]:
        problems.append(f"{file} has {len(more)} more damaged lines, the last of them line {more[-1]}.")
    columns = zip(*rows, strict=True) if rows else [[]] * len(COLUMNS)
    arrays = [pa.array(list(column), field.type) for column, field in zip(columns, _PLAIN, strict=True)]
    return pa.table(arrays, _PLAIN).cast(ROWS), problems
