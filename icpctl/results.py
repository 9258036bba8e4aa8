"""Run folders: the one place that writes and reads `results/`.

    results/<run-id>/
      config.json              every resolved hyper-parameter, provenance, the data's fingerprint
      metrics.csv              long form: run_id,epoch,split,metric,value; fractions in [0, 1]
      status.json              running, finished, failed or interrupted, and why
      checkpoints/             last.pt, previous.pt, best.pt
    results/study.toml, study.csv     what `icpctl ablate` was asked for; a row for each of its runs
    results/report.html, runs.csv, summary.csv, comparisons.csv    what `icpctl report` writes
    results/figures/           what `icpctl report --figures` draws
    results/tensorboard/, wandb/   what `icpctl report --export` writes
    results/slurm/             what the jobs of `icpctl ablate --executor slurm` return and log

A metric belongs to the split it was computed on; `train` also carries the diagnostics of the method and the cost.
"""

from __future__ import annotations

import csv
import errno
import io
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
from filelock import FileLock, Timeout

from icpctl.config import RunConfig
from icpctl.errors import UserError
from icpctl.text import csv_text

FloatArray = np.ndarray[Any, np.dtype[np.float64]]

COLUMNS = ("run_id", "epoch", "split", "metric", "value")
FIGURES = "figures"
"""The folder of the figures in a results folder; no run has this name."""
SLURM = "slurm"
"""The folder of what Slurm jobs read, return and log; no run has this name either."""
TENSORBOARD, WANDB = "tensorboard", "wandb"
"""The folders of what is exported for these tools; no run has these names either."""
REPORT = "report"
"""The folder of a report on several results folders, or on a part of one; nor this one."""
TIMINGS = ("seconds", "images_per_second", "peak_memory")
"""Metrics of the machine rather than of the method: two equal runs differ in these alone."""


def write_atomic(path: Path, content: bytes) -> None:
    """Write a whole file or leave the old one: a temporary file beside it, flushed to the disk, then renamed."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise not_writable(path, error) from error


def not_writable(path: Path, error: OSError) -> UserError:
    """The error for a file or folder of the results that cannot be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(
            f"The disk is full: {path} could not be written. Make room, or choose another folder with --output, "
            "and give the same command again: the run goes on from its last checkpoint."
        )
    return UserError(
        f"Cannot write {path}: {error.strerror or error}. Make that folder writable, or take another results folder, with --output."
    )


class RunFolder:
    """The folder of one run under the results folder; made when the run starts."""

    def __init__(self, output: Path, config: RunConfig) -> None:
        self.run_id = config.run_id
        self.path = output / config.run_id
        self.metrics_file = self.path / "metrics.csv"
        self.checkpoints = self.path / "checkpoints"

    def create(self) -> None:
        """Make the folder.

        Raises:
            UserError: it cannot be made or written to.
        """
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise not_writable(self.path, error) from error
        if not os.access(self.checkpoints, os.W_OK):
            raise not_writable(self.path, PermissionError(errno.EACCES, "permission denied"))

    def lock(self) -> FileLock:
        """What the process that trains the run holds."""
        return FileLock(self.path / ".lock", timeout=0)

    def is_locked(self) -> bool:
        """Whether a process, of this machine at least, is training the run."""
        if not (self.path / ".lock").exists():
            return False
        try:
            with self.lock():
                return False
        except Timeout:
            return True

    def clear(self) -> None:
        """Remove what an earlier run left, to start anew; no longer finished from the first moment on.

        Raises:
            UserError: something cannot be removed.
        """
        self.write_status("running", epoch=0)
        try:
            for file in (
                *self.checkpoints.iterdir(),
                self.metrics_file,
                self.path / "eval.csv",
                self.path / "config.json",
            ):
                file.unlink(missing_ok=True)
        except OSError as error:
            raise not_writable(self.path, error) from error

    def write_config(self, config: RunConfig, facts: Mapping[str, Any], session: Mapping[str, Any]) -> None:
        """Write config.json: the run id, the configuration, facts of it, and where and when each part of it was run."""
        before = read_json(self.path / "config.json").get("sessions", [])
        content = {"run_id": self.run_id, "config": config.model_dump(mode="json"), **facts}
        content["sessions"] = [*before, session]
        write_atomic(self.path / "config.json", json.dumps(content, indent=2, ensure_ascii=False).encode() + b"\n")

    def write_status(self, state: str, **details: Any) -> None:
        """Write status.json; `state` is running, finished, failed or interrupted."""
        write_atomic(self.path / "status.json", json.dumps({"state": state, **details}, indent=2).encode() + b"\n")

    def status(self) -> dict[str, Any]:
        """What status.json says; empty where there is none that can be read."""
        return read_json(self.path / "status.json")

    def append_metrics(self, epoch: int, metrics: Mapping[str, Mapping[str, float]]) -> None:
        """Add the rows of one epoch, {split: {metric: value}}, and flush them to the disk.

        Raises:
            UserError: they could not be written.
        """
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        for split, values in metrics.items():
            writer.writerows(
                (self.run_id, epoch, split, metric, repr(float(value))) for metric, value in values.items()
            )
        try:
            with self.metrics_file.open("a", encoding="utf-8", newline="") as file:
                if file.tell() == 0:
                    file.write(",".join(COLUMNS) + "\n")
                file.write(text.getvalue())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise not_writable(self.metrics_file, error) from error

    def keep_metrics_before(self, epoch: int) -> list[str]:
        """Drop the rows of `epoch` and later ones, which a run resumed there writes again.

        Returns:
            A sentence for each damaged row, which is dropped too.

        Raises:
            UserError: the file cannot be read or written, or has lost whole epochs; it is then left as it is.
        """
        try:
            self.metrics_file.open("a+").close()  # there, and can be read and written
        except OSError as error:
            raise not_writable(self.metrics_file, error) from error
        metrics, damaged = read_metrics(self.metrics_file)
        kept = metrics[metrics["epoch"] < epoch]
        if missing := sorted(set(range(epoch)) - set(kept["epoch"])):
            raise UserError(
                f"{self.metrics_file} has lost the rows of {len(missing)} epochs that were trained, the first of them "
                f"{missing[0]}. Restore the file, or start the run anew with --overwrite."
            )
        lines = [",".join(COLUMNS), *(f"{r},{e},{s},{m},{v!r}" for r, e, s, m, v in kept.itertuples(index=False))]
        write_atomic(self.metrics_file, ("\n".join(lines) + "\n").encode())
        return damaged


def write_evaluation(path: Path, what: Mapping[str, str], metrics: Mapping[str, float]) -> Path:
    """Add an evaluation to eval.csv of a run's folder: run_id, the columns of `what`, metric, value.

    Rows of the same metrics in the same evaluation are replaced.

    Raises:
        UserError: it cannot be written.
    """
    file = path / "eval.csv"
    new = pd.DataFrame(
        {"run_id": path.resolve().name, **what, "metric": list(metrics), "value": list(metrics.values())}
    )
    try:
        # An older file may lack a column that has come since.
        old = pd.read_csv(file, dtype=str, keep_default_na=False).reindex(columns=new.columns, fill_value="")
        same = (old[list(what)] == pd.Series(what)).all(axis=1) & old["metric"].isin(new["metric"])
        old = old[~same & (old["metric"] != "")]
    except (OSError, ValueError):
        old = new.iloc[:0]
    write_atomic(file, csv_text(pd.concat([old, new.astype(str)])).encode())
    return file


@dataclass(frozen=True)
class RunRecord:
    """One run as it was found in a results folder."""

    path: Path
    config: RunConfig
    status: Mapping[str, Any]
    sessions: Sequence[Mapping[str, Any]]
    """Where and when each part of it was run, as config.json says."""
    fingerprint: str
    """Of the data that it was trained on; empty where it is not known."""
    epochs: np.ndarray[Any, np.dtype[np.int64]]
    """(E,): those of the run that metrics.csv has rows of, in order."""
    curves: Mapping[tuple[str, str], FloatArray]
    """Split and metric to (E,) values, one for each of `epochs`; nan where there is none. Of a row given twice the later holds."""


def read_config(path: Path) -> RunConfig:
    """The configuration in a run folder.

    Raises:
        UserError: config.json is missing, is not JSON, or has settings that this version does not know.
    """
    file = path / "config.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        json.dumps(content["config"], ensure_ascii=False).encode()  # half a character is damage, too
        return RunConfig.recorded(content["config"])
    except OSError as error:
        raise UserError(f"{path} is not the folder of a run: {file.name} cannot be read ({error.strerror}).") from None
    except UserError as error:
        raise UserError(f"{file} has settings that this version of icpctl does not take. {error}") from None
    except (ValueError, KeyError, TypeError, RecursionError):  # the last of what is nested too deeply
        raise UserError(f"{file} is damaged. Train the run again with --overwrite, or remove the folder.") from None


def read_metrics(file: Path) -> tuple[pd.DataFrame, list[str]]:
    """The rows of a metrics.csv, and a sentence for each damaged one (which is left out)."""
    rows, problems = _read_rows(file)
    return _tidy(rows), problems


def _tidy(rows: pa.Table) -> pd.DataFrame:
    types = dict.fromkeys(COLUMNS, "str") | {"epoch": "int64", "value": "float64"}
    frame: pd.DataFrame = rows.cast(_PLAIN).to_pandas()
    return frame.astype(types)


_WORD = pa.dictionary(pa.int32(), pa.string())
_ROWS = pa.schema(
    [("run_id", _WORD), ("epoch", pa.int32()), ("split", _WORD), ("metric", _WORD), ("value", pa.float64())]
)
_PLAIN = pa.schema([(field.name, pa.string() if field.type == _WORD else field.type) for field in _ROWS])
_TOLD = 3
"""Damaged rows of a file that are described; the others are counted."""


def _read_rows(file: Path) -> tuple[pa.Table, list[str]]:
    try:
        if file.exists() and not file.is_file():  # a pipe would be waited for
            return _ROWS.empty_table(), [f"{file} is no file."]
        content = file.read_bytes()
    except FileNotFoundError:
        return _ROWS.empty_table(), []
    except OSError as error:
        return _ROWS.empty_table(), [f"{file} cannot be read: {error.strerror}."]
    if content.endswith(b"\n") and content.startswith(",".join(COLUMNS).encode() + b"\n"):
        try:  # the fast way, for files without a fault
            rows = pyarrow.csv.read_csv(
                pa.BufferReader(content),
                pyarrow.csv.ReadOptions(use_threads=False),
                pyarrow.csv.ParseOptions(quote_char=False),
                pyarrow.csv.ConvertOptions(column_types=_ROWS, null_values=[]),
            )
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
    for number, line in enumerate(lines, start=1):
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
        f"{file} line {number} is damaged and left out: {lines[number - 1][:60]!r}." for number in damaged[:_TOLD]
    ]
    if more := damaged[_TOLD:]:
        problems.append(f"{file} has {len(more)} more damaged lines, the last of them line {more[-1]}.")
    columns = zip(*rows, strict=True) if rows else [[]] * len(COLUMNS)
    arrays = [pa.array(list(column), field.type) for column, field in zip(columns, _PLAIN, strict=True)]
    return pa.table(arrays, _PLAIN).cast(_ROWS), problems


def read_record(path: Path, config: RunConfig) -> tuple[RunRecord, list[str]]:
    """A run whose configuration is known, and whose folder need not be there yet; a sentence for each damaged row."""
    rows, problems = _read_rows(path / "metrics.csv")
    inside = rows["epoch"].to_numpy() < config.epochs
    if not inside.all():
        rows = rows.filter(inside)
        problems.append(
            f"{path / 'metrics.csv'} has {(~inside).sum()} rows of epochs after the last, which are left out: the run has "
            f"{config.epochs}, counted from 0."
        )
    rows = rows.combine_chunks()
    epochs, row = np.unique(rows["epoch"].to_numpy(), return_inverse=True)
    split, metric = (rows[name].combine_chunks() for name in ("split", "metric"))
    splits, names = split.dictionary.to_pylist(), metric.dictionary.to_pylist()
    pairs, column = np.unique(
        split.indices.to_numpy() * max(1, len(names)) + metric.indices.to_numpy(), return_inverse=True
    )
    curves: dict[tuple[str, str], FloatArray] = {}
    if len(epochs) * len(pairs) > 100 * (len(row) + 100):
        problems.append(f"{path / 'metrics.csv'} is left out: its rows do not belong to epochs of the same metrics.")
    else:
        values = np.full((len(pairs), len(epochs)), np.nan)
        values[column, row] = rows["value"].to_numpy()  # of a pair of indices given twice, numpy keeps the last
        places = (divmod(int(pair), len(names)) for pair in pairs)
        curves = {(splits[i], names[j]): curve for (i, j), curve in zip(places, values, strict=True)}
    facts = read_json(path / "config.json")
    listed, data = facts.get("sessions"), facts.get("data")
    sessions = [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
    fingerprint = str(data.get("fingerprint", "")) if isinstance(data, dict) else ""
    status = read_json(path / "status.json")
    return RunRecord(path, config, status, sessions, fingerprint, epochs.astype(np.int64), curves), problems


def run_folders(folder: Path) -> list[Path]:
    """The folders under a results folder that are those of runs, or should be; or the folder itself, if it is one.

    Raises:
        UserError: the folder does not exist.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file. Name a results folder, or the folder of a run.")
    if not folder.is_dir():
        raise UserError(f"There is no results folder {folder}. `icpctl train` and `icpctl ablate` make one.")
    if (folder / "config.json").exists():
        return [folder]
    others = (FIGURES, SLURM, TENSORBOARD, WANDB, REPORT)
    found = (path for path in folder.iterdir() if path.is_dir() and path.name not in others)
    return sorted(path for path in found if not path.name.startswith("."))


def read_runs(folder: Path) -> tuple[list[RunRecord], list[str]]:
    """Every run under a results folder (or the one run that the folder itself is), and a sentence for each fault.

    Raises:
        UserError: the folder does not exist.
    """
    # Files are parsed without the interpreter's lock; what follows needs it, so more threads would wait for each other.
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        found = list(pool.map(_read_run, run_folders(folder)))
    return [record for record, _ in found if record], [problem for _, problems in found for problem in problems]


def _read_run(path: Path) -> tuple[RunRecord | None, list[str]]:
    if not (path / "config.json").exists() and (path / "log.txt").exists():
        return None, [f"{path}: this run of a study has begun, and recorded nothing yet."]
    try:
        return read_record(path, read_config(path))
    except UserError as error:
        return None, [str(error)]


def load_results(folder: str | Path = "results") -> pd.DataFrame:
    """All metrics under a results folder as one tidy frame: run_id, epoch, split, metric, value.

    Damaged rows and runs are left out; `icpctl report` names them.
    """
    frames = [_tidy(_ROWS.empty_table())]
    for path in run_folders(Path(folder)):
        with suppress(UserError):
            read_config(path)
            frames.append(read_metrics(path / "metrics.csv")[0])
    return pd.concat(frames, ignore_index=True)


def read_json(file: Path) -> dict[str, Any]:
    """What a JSON file says; empty where there is none, or none that can be read."""
    try:
        content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
