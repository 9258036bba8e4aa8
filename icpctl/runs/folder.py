"""Run folders: the one place that writes and reads `results/`.

    results/<run-id>/
      config.json              every resolved hyper-parameter, provenance, the data's fingerprint
      metrics.csv              long form: run_id,epoch,split,metric,value; fractions in [0, 1]
      predictions.csv          with --keep-predictions: a row for each test image
      status.json              running, finished, failed or interrupted, and why
      checkpoints/             last.pt, previous.pt, best.pt
    results/study.toml, study.csv     what `icpctl ablate` was asked for; a row for each of its runs
    results/tuning/            the trials of `icpctl ablate --tune`, a run folder each; tuning.json, tuning.csv: what was tried and chosen
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
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
from filelock import FileLock, Timeout
from pydantic import ConfigDict, Field, TypeAdapter, with_config
from typing_extensions import TypedDict

from icpctl.config import RunConfig
from icpctl.errors import UserError, count
from icpctl.files import load_json, locked, not_writable, read_json, write_atomic
from icpctl.runs.metrics import (
    COLUMNS,
    METRICS_FILE,
    ROWS,
    TOLD,
    FloatArray,
    IntArray,
    curves_of,
    given_twice,
    own_rows,
    read_metrics,
    tidy,
)

PREDICTIONS = "predictions.csv"
"""What the network of a run makes of each test image after the last epoch, where that is kept."""
FIGURES = "figures"
"""The folder of the figures in a results folder; no run has this name."""
SLURM = "slurm"
"""The folder of what Slurm jobs read, return and log; no run has this name either."""
TUNING = "tuning"
"""The folder of the trials of tuning, which no report on the results folder counts."""
TENSORBOARD, WANDB = "tensorboard", "wandb"
"""The folders of what is exported for these tools; no run has these names either."""
_OF_A_RUN = ("config.json", "log.txt", "status.json", METRICS_FILE)
_AT_ONCE = 16
"""Runs that a thread reads before it asks for more."""
REPORT = "report"
"""The folder of a report on several results folders, or on a part of one; nor this one."""
TIMINGS = ("seconds", "images_per_second", "peak_memory")
"""Metrics of the machine rather than of the method: two equal runs differ in these alone."""


@with_config(ConfigDict(strict=True, extra="allow", defer_build=True))
class _Status(TypedDict, total=False):
    """What status.json may say."""

    state: Literal["running", "finished", "failed", "interrupted"]
    epoch: Annotated[int | float, Field(ge=0, allow_inf_nan=False)]
    error: str
    notes: list[str]
    rows: Annotated[int, Field(ge=0)]


_STATUS: TypeAdapter[_Status] = TypeAdapter(_Status)


class RunFolder:
    """The folder of one run under the results folder; made when the run starts.

    Args:
        output: the results folder.
        config: the run.
        check: called at the last moment before anything of the run is written; raises if this process may not.
    """

    def __init__(self, output: Path, config: RunConfig, check: Callable[[], None] = lambda: None) -> None:
        self.config, self.run_id, self.check = config, config.run_id, check
        self.path = output / config.run_id
        self.metrics_file = self.path / METRICS_FILE
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
        except (OSError, NotImplementedError):  # who trains the run is told so
            return False

    def is_finished(self) -> bool:
        """Whether status.json says so."""
        return self.status().get("state") == "finished"

    def remove_leftovers(self) -> None:
        """Remove what a killed writer left beside the checkpoints; to be called by the holder of the lock."""
        for file in self.checkpoints.glob("*.tmp"):
            with suppress(OSError):
                file.unlink()

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
        before = _sessions(read_json(self.path / "config.json"))
        content = {"run_id": self.run_id, "config": config.model_dump(mode="json"), **facts}
        content["sessions"] = [*before, session]
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        write_atomic(self.path / "config.json", text.encode(), self.check)

    def write_predictions(self, of_each: Mapping[str, Sequence[float]]) -> None:
        """Write predictions.csv: a row for each test image, in their order."""
        table = pd.DataFrame(of_each).rename_axis("image").reset_index()
        write_atomic(self.path / PREDICTIONS, table.to_csv(index=False).encode(), self.check)

    def write_status(self, state: str, **details: Any) -> None:
        """Write status.json; `state` is running, finished, failed or interrupted."""
        text = json.dumps({"state": state, **details}, indent=2) + "\n"
        write_atomic(self.path / "status.json", text.encode(), self.check)

    def status(self) -> dict[str, Any]:
        """What status.json says; empty where there is none that can be read."""
        return _read_status(self.path)[0]

    def source(self) -> object:
        """What the last session of the run recorded of the user's code of its model; None where that is nothing."""
        sessions = _sessions(read_json(self.path / "config.json"))
        return sessions[-1].get("source") if sessions else None

    def trained_on(self) -> str | None:
        """The fingerprint of the data that the run was trained on, finished or up to a checkpoint; None if it was not.

        Raises:
            UserError: the run is finished, and config.json does not say it.
        """
        finished = self.is_finished()
        if not (finished or any((self.checkpoints / f"{name}.pt").exists() for name in ("last", "previous"))):
            return None
        fingerprint = _fingerprint(read_json(self.path / "config.json"))
        if finished and not fingerprint:
            raise UserError(
                f"{self.path} is finished, but its config.json is missing or damaged, so nothing says which data it was "
                "trained on. Restore the file; or remove the folder, and the run is trained anew."
            )
        return fingerprint or None  # where nothing says it, the checkpoint does, when the run goes on

    def read_metrics(self) -> tuple[pd.DataFrame, list[str]]:
        """As the function of this name."""
        return read_metrics(self.path, self.config)

    def append_metrics(self, epoch: int, metrics: Mapping[str, Mapping[str, float]]) -> int:
        """Add the rows of one epoch, {split: {metric: value}}, and flush them to the disk.

        Returns:
            How many there are.

        Raises:
            UserError: they could not be written.
        """
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        for split, values in metrics.items():
            writer.writerows(
                (self.run_id, epoch, split, metric, repr(float(value))) for metric, value in values.items()
            )
        self.check()
        try:
            with self.metrics_file.open("a", encoding="utf-8", newline="") as file:
                if file.tell() == 0:
                    file.write(",".join(COLUMNS) + "\n")
                file.write(text.getvalue())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise not_writable(self.metrics_file, error) from error
        return sum(map(len, metrics.values()))

    def keep_metrics_before(self, epoch: int, rows: int | None = None) -> tuple[int, list[str]]:
        """Drop the rows of `epoch` and later ones, which a run resumed there writes again.

        Args:
            epoch: where the run goes on.
            rows: how many there are to be before it. None if that was not recorded, as by version 0.1: then no epoch may
                lack what the others of its kind have.

        Returns:
            How many rows are left; and a sentence for each fault of the file, whose rows are dropped too.

        Raises:
            UserError: the file has lost rows, and is left as it is; or it cannot be written.
        """
        metrics, problems = self.read_metrics()
        kept = metrics[metrics["epoch"] < epoch]
        self._check_rows(kept, epoch, self._missing(kept, epoch) if rows is None else rows - len(kept), problems)
        lines = [",".join(COLUMNS), *(f"{r},{e},{s},{m},{v!r}" for r, e, s, m, v in kept.itertuples(index=False))]
        write_atomic(self.metrics_file, ("\n".join(lines) + "\n").encode(), self.check)
        return len(kept), problems

    def check_metrics(self, rows: int) -> None:
        """Make sure that metrics.csv still has the rows that were written.

        Raises:
            UserError: it has lost some.
        """
        metrics, problems = self.read_metrics()
        self._check_rows(metrics, self.config.epochs, rows - len(metrics), problems)

    def _check_rows(self, kept: pd.DataFrame, epochs: int, missing: int, problems: Sequence[str]) -> None:
        lost = f"{count(missing, 'row')} of epochs that were trained"
        if without := sorted(set(range(epochs)) - set(kept["epoch"])):
            lost = f"the rows of {count(len(without), 'epoch')} of its training, the first of them {without[0]}"
        if without or missing > 0:
            said = " ".join([f"{self.metrics_file} has lost {lost}.", *problems])
            raise UserError(f"{said} Restore the file, or start the run anew with --overwrite.")

    def _missing(self, kept: pd.DataFrame, epochs: int) -> int:
        """Rows that epochs lack and others of their kind, plain or with the method, have.

        The last epoch of a run may have more than others: what is measured after it.
        """
        keys: dict[int, set[tuple[str, str]]] = {}
        for epoch, split, metric in kept[["epoch", "split", "metric"]].itertuples(index=False, name=None):
            keys.setdefault(epoch, set()).add((split, metric))
        kinds = ([e for e in keys if (e < self.config.warmup_epochs) == plain] for plain in (True, False))
        missing = 0
        for kind in kinds:
            usual: set[tuple[str, str]] = set().union(
                *(keys[epoch] for epoch in kind if epoch < self.config.epochs - 1)
            )
            missing += sum(len(usual - keys[epoch]) for epoch in kind)
        return missing


def write_evaluation(path: Path, what: Mapping[str, str], metrics: Mapping[str, float]) -> Path:
    """Add an evaluation to eval.csv of a run's folder: run_id, the columns of `what`, metric, value.

    Rows of the same metrics in the same evaluation are replaced. Whatever else the file has is kept, lines that are no
    rows of it included.

    Raises:
        UserError: it cannot be written; or it is no table of evaluations, and is left as it is.
    """
    file = path / "eval.csv"
    what = {"run_id": path.resolve().name, **what}
    with locked(path / ".eval.csv.lock"):  # another evaluation of the run may come to its end at this moment
        try:
            lines = file.read_text(encoding="utf-8-sig", errors="surrogateescape").splitlines() if file.exists() else []
        except OSError as error:
            raise not_writable(file, error) from error
        columns, *old = [next(csv.reader([line]), []) for line in lines] or [[]]
        if lines and not {"run_id", "metric", "value"} <= set(columns):
            raise UserError(
                f"{file} does not begin with the names of its columns, separated by commas, so nothing was added to it. Save it so, "
                "or move it away."
            )
        columns += [name for name in (*what, "metric", "value") if name not in columns]  # that have come since
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        for line, values in zip(lines[1:], old, strict=True):
            row = dict(zip(columns, values, strict=False))
            if len(values) > len(columns) or "value" not in row:
                text.write(line + "\n")
            elif row["metric"] not in metrics or any(row.get(name, "") != value for name, value in what.items()):
                writer.writerow(row)
        writer.writerows({**what, "metric": metric, "value": repr(float(value))} for metric, value in metrics.items())
        write_atomic(file, text.getvalue().encode(errors="surrogateescape"))
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
    epochs: IntArray
    """(E,): those of the run that metrics.csv has rows of, in order."""
    curves: Mapping[tuple[str, str], FloatArray]
    """Split and metric to (E,) values, one for each of `epochs`; nan where there is none. Of a row given twice the later holds."""

    @cached_property
    def run_id(self) -> str:
        return self.config.run_id


def read_config(path: Path) -> RunConfig:
    """The configuration in a run folder.

    Raises:
        UserError: config.json is missing, is damaged, or has settings that this version does not know.
    """
    return _read_facts(path)[0]


def _read_facts(path: Path) -> tuple[RunConfig, dict[str, Any]]:
    """The configuration in a run folder, and all that its config.json says."""
    file = path / "config.json"
    try:
        facts = load_json(file)
        return RunConfig.recorded(facts["config"]), facts
    except OSError as error:
        raise UserError(f"{path} is not the folder of a run: {file.name} cannot be read ({error.strerror}).") from None
    except UserError as error:
        raise UserError(f"{file} has settings that this version of icpctl does not take. {error}") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{file} is damaged. Train the run again with --overwrite, or remove the folder.") from None


def _sessions(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    listed = facts.get("sessions")
    return [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []


def _fingerprint(facts: Mapping[str, Any]) -> str:
    """Of the data of a run; empty where config.json does not say it."""
    data = facts.get("data")
    fingerprint = data.get("fingerprint") if isinstance(data, dict) else None
    return fingerprint if isinstance(fingerprint, str) else ""


def _read_status(path: Path) -> tuple[dict[str, Any], list[str]]:
    """What status.json says, empty where that cannot be known; and a sentence if it is damaged."""
    file = path / "status.json"
    try:
        return dict(_STATUS.validate_python(load_json(file))), []
    except FileNotFoundError:
        return {}, []
    except (OSError, ValueError):
        return {}, [
            f"{file} is damaged, so it does not say whether the run is finished. The command that trained the run finds that out."
        ]


def read_record(path: Path, config: RunConfig) -> tuple[RunRecord, list[str]]:
    """A run whose configuration is known, and whose folder need not be there yet; and a sentence for each fault."""
    return _record(path, config, read_json(path / "config.json"))


def _record(path: Path, config: RunConfig, facts: Mapping[str, Any]) -> tuple[RunRecord, list[str]]:
    """The record of a run, given what its config.json says."""
    rows, problems = own_rows(path, config, facts)
    epochs, curves, twice = curves_of(rows)
    if twice is None:
        problems.append(f"{path / METRICS_FILE} is left out: its rows do not belong to epochs of the same metrics.")
    elif twice:
        problems.append(given_twice(path, twice))
    status, damaged = _read_status(path)
    if (lost := status.get("rows", 0) - len(rows)) > 0:
        damaged.append(f"{path / METRICS_FILE} lacks {lost} of the rows that it had when the run was finished.")
    record = RunRecord(path, config, status, _sessions(facts), _fingerprint(facts), epochs, curves)
    return record, [*problems, *damaged]


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
    others = (FIGURES, SLURM, TUNING, TENSORBOARD, WANDB, REPORT)
    found = (path for path in folder.iterdir() if path.is_dir() and path.name not in others)
    return sorted(path for path in found if not path.name.startswith("."))


def read_runs(folder: Path) -> tuple[list[RunRecord], list[str]]:
    """Every run under a results folder (or the one run that the folder itself is), and a sentence for each fault.

    Raises:
        UserError: the folder does not exist.
    """
    paths, problems = _named(run_folders(folder))
    parts = [paths[first : first + _AT_ONCE] for first in range(0, len(paths), _AT_ONCE)]
    # Files are parsed without the interpreter's lock; what follows needs it, so more threads would wait for each other.
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        found = [run for part in pool.map(lambda part: [*map(_read_run, part)], parts) for run in part]
    problems += [problem for _, problems in found for problem in problems]
    return [record for record, _ in found if record], problems


def _named(paths: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """The folders without those that are no runs, beyond a few of them; and how many these are, if any."""
    strangers = [path for path in paths if not any(os.path.lexists(path / name) for name in _OF_A_RUN)]
    if not (more := set(strangers[TOLD:])):
        return list(paths), []
    problem = f"{strangers[0].parent} has {len(more)} more folders that are not run folders."
    return [path for path in paths if path not in more], [problem]


def _read_run(path: Path) -> tuple[RunRecord | None, list[str]]:
    try:
        return _record(path, *_read_facts(path))
    except UserError as error:
        if (path / "log.txt").exists() and not (path / "config.json").exists():
            return None, [f"{path}: this run of a study has begun, and recorded nothing yet."]
        return None, [str(error)]


def load_results(folder: str | Path = "results") -> pd.DataFrame:
    """All metrics under a results folder as one tidy frame: run_id, epoch, split, metric, value.

    Rows and runs that are damaged, and rows of other runs, are left out, with a warning for each.
    """
    frames = [tidy(ROWS.empty_table())]
    paths, problems = _named(run_folders(Path(folder)))
    for path in paths:
        try:
            metrics, found = read_metrics(path, read_config(path))
            frames.append(metrics)
            problems += found
        except UserError as error:
            problems.append(str(error))
    for problem in problems:
        warnings.warn(problem, stacklevel=2)
    return pd.concat(frames, ignore_index=True)
