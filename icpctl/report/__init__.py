"""What results folders say: a row a run, a row a group of runs over its seeds, and what the comparisons support.

    report = icpctl.report("results")      # in a notebook it shows its tables
    report.runs, report.summary, report.comparisons

Numbers in the tables of this package are fractions in [0, 1]; those for people give percent and points.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd

from icpctl.config import SELECTION
from icpctl.errors import UserError, first_names, unknown
from icpctl.files import write_atomic
from icpctl.report import notes as remarks
from icpctl.report.groups import Grouping, check_settings, group
from icpctl.report.measures import MEASURES
from icpctl.report.selection import select
from icpctl.runs.folder import TIMINGS, RunRecord, read_runs
from icpctl.runs.table import COSTS, foreign_metrics, has_diverged, metric_columns, runs_table
from icpctl.terminal import printable
from icpctl.text import csv_text

TABLES = ("runs.csv", "summary.csv", "comparisons.csv")


@dataclass(frozen=True)
class Report:
    """What `build` finds in results folders."""

    runs: pd.DataFrame
    """One row a run, as `runs_table` makes it."""
    summary: pd.DataFrame
    """One row a group and metric, as `comparison.summary_table` makes it; empty where no run is finished."""
    comparisons: pd.DataFrame
    """One row a comparison of two groups and metric, as `comparison.comparison_table` makes it."""
    metrics: Mapping[str, str]
    """The metric that the report is about, of each task that there is."""
    grouping: Grouping
    """Of the runs that are outcomes: those that are finished and whole, and those that failed."""
    records: Mapping[str, RunRecord]
    """The runs that are finished and whole, by their ids."""
    left_out: Mapping[str, RunRecord]
    """The other runs, by their ids."""
    common: str
    """Sentences: the settings that the tables do not show, for they are the same in all rows; what pools others."""
    notes: list[str]
    """Sentences: what is damaged, what is left out, what cannot be compared."""

    def _repr_html_(self) -> str:
        """What Jupyter shows."""
        from icpctl.report.notebook import html

        return html(self)


@contextmanager
def uncollected() -> Iterator[None]:
    """Without the search for garbage, which goes through all that is there of many runs again and again; little is made here."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@uncollected()
def build(
    folders: Path | Sequence[Path],
    only: Collection[str] | None = None,
    where: Sequence[str] = (),
    by: Sequence[str] = (),
    metric: str | None = None,
) -> Report:
    """Read results folders, or the folders of single runs. What is damaged is noted, the rest reported.

    Args:
        folders: one or several.
        only: the ids of the runs to report; without it, all.
        where: conditions, as `selection.select` takes them.
        by: the settings that tell the rows apart; without it, all in which the runs differ.
        metric: the one that the report is about; without it, accuracy, or SSIM of a generative model.

    Raises:
        UserError: a folder does not exist, or there is no run that can be read; a condition, setting or metric that is
            none.
    """
    by = check_settings(by, f"--by {','.join(by)}")
    folders = (
        [folders]
        if isinstance(folders, Path)
        else list({os.path.realpath(folder): folder for folder in folders}.values())
    )
    records, notes = _read(folders, only)
    if not records:
        listed = ", ".join(map(str, folders))
        raise UserError(
            " ".join(
                [f"There is no run to report in {listed}. `icpctl train --output {folders[0]}` makes one.", *notes]
            )
        )
    if where:
        kept = select({run_id: record.config for run_id, record in records.items()}, where)
        records = {run_id: record for run_id, record in records.items() if run_id in kept}

    notes += remarks.of_runs(records.values())
    notes += remarks.of_code(records.values())
    runs = runs_table(sorted(records.values(), key=lambda record: record.run_id))
    diverged = [run_id for run_id, record in records.items() if has_diverged(record)]
    whole, failed = remarks.outcomes(runs, diverged, notes)
    complete = runs[whole]
    if complete.empty:
        notes.append(f"No run in {', '.join(map(str, folders))} is finished, so there is nothing to compare yet.")
    metrics = _metrics(complete, metric, notes)
    complete = complete[complete["task"].isin(list(metrics))]
    counted = {run_id: records[run_id] for run_id in complete["run_id"]}
    ended = runs[(whole | failed) & runs["task"].isin(list(metrics))]
    # A failed run is an outcome without a value, whatever it recorded before.
    ended = ended.assign(state=ended["state"].mask(failed, "failed"))
    numbers = [*metric_columns(runs), *COSTS]
    ended[numbers] = ended[numbers].astype(float).mask(failed[ended.index])
    configs = {
        group_id: records[run_id].config for run_id, group_id in zip(ended["run_id"], ended["group_id"], strict=True)
    }
    grouping = group(configs, by)

    from icpctl.report.comparison import comparison_table, summary_table  # they need scipy, which takes a second

    summary, comparisons = summary_table(ended, grouping), comparison_table(ended, grouping)
    notes += remarks.of_data(ended, grouping)
    notes += remarks.lacking(complete, metrics)
    notes += remarks.unpaired(ended, grouping)
    common = remarks.common_settings(list(configs.values()), by, metric_columns(complete))
    left_out = {run_id: record for run_id, record in records.items() if run_id not in counted}
    notes = [printable(note) for note in notes]
    return Report(runs, summary, comparisons, metrics, grouping, counted, left_out, printable(common), notes)


def _read(folders: Sequence[Path], only: Collection[str] | None) -> tuple[dict[str, RunRecord], list[str]]:
    """Each run once, and notes. Of copies the finished one in the run's own folder counts; where several have this rank, and
    differ, none does.
    """
    copies: dict[str, list[RunRecord]] = {}
    notes: list[str] = []
    for folder in folders:
        found, problems = read_runs(folder)
        notes += problems
        for record in found:
            if only is None or record.run_id in only:
                copies.setdefault(record.run_id, []).append(record)
    records = {}
    for run_id, found in copies.items():
        # A finished one, in the run's own folder.
        ranks = [(each.status.get("state") == "finished", each.path.name == run_id) for each in found]
        best = [each for each, rank in zip(found, ranks, strict=True) if rank == max(ranks)]
        first = best[0]
        others = {each.path: _differences(each, first) for each in found if each is not first}
        if different := [each.path for each in best if others.get(each.path)]:
            paths = ", ".join(map(str, (first.path, *different)))
            what = ", ".join(dict.fromkeys(each for path in different for each in others[path]))
            notes.append(
                f"Left out: {run_id}, as its copies differ in {what}, and nothing says which is right: {paths}."
            )
            continue
        records[run_id] = first
        if same := [str(path) for path, differences in others.items() if not differences]:
            notes.append(f"Left out, as copies of the run in {first.path}: {', '.join(same)}.")
        notes += [
            f"Left out: {path}, which has the id of the run in {first.path} and differs from it in {', '.join(differences)}."
            for path, differences in others.items()
            if differences
        ]
    for record in records.values():
        if foreign := foreign_metrics(record):
            notes.append(
                f"{record.path / 'metrics.csv'}: left out of the tables, for they have the names of other columns: {', '.join(foreign)}."
            )
    return records, notes


def _differences(one: RunRecord, other: RunRecord) -> list[str]:
    """In what two records of a run differ, in words: nothing if they are copies, whatever the machine's own metrics say."""
    differences = []
    if one.fingerprint != other.fingerprint:
        differences.append("the fingerprint of the data")
    if one.status.get("state") != other.status.get("state"):
        differences.append("the state")
    if len(one.epochs) != len(other.epochs):
        return [*differences, "the number of epochs"]
    keys = [key for key in {**one.curves, **other.curves} if key[1] not in TIMINGS]
    metrics = [
        f"{split} {metric}"
        for split, metric in keys
        if (a := one.curves.get((split, metric))) is None
        or (b := other.curves.get((split, metric))) is None
        or not np.array_equal(a, b, equal_nan=True)
    ]
    return [*differences, *([first_names(metrics)] if metrics else [])]


def write(folder: Path, report: Report) -> list[Path]:
    """Write runs.csv, summary.csv and comparisons.csv, each whole or not at all.

    Raises:
        UserError: one cannot be written.
    """
    tables = dict(zip(TABLES, (report.runs, report.summary, report.comparisons), strict=True))
    for name, table in tables.items():
        write_atomic(folder / name, csv_text(table).encode())
    return [folder / name for name in tables]


def _metrics(runs: pd.DataFrame, metric: str | None, notes: list[str]) -> dict[str, str]:
    """The metric that the report is about, of each task that has it."""
    there = {
        task: {name for name in metric_columns(part) if part[name].notna().any()} for task, part in runs.groupby("task")
    }
    chosen = {str(task): SELECTION[str(task)] for task in there}
    if metric is not None and there:
        known = set.union(*there.values())
        name = metric if metric in known else metric.replace("-", "_")  # a run's id, in the name of some, has dashes
        of_features = [each for each in known if each.startswith(f"{name}_by_") and not each.endswith("_best")]
        if name not in known and len(of_features) == 1:
            (name,) = of_features
        if name not in known and name in MEASURES:
            raise UserError(
                f"--metric {metric}: none of these runs has it at its last epoch. `icpctl list metrics {name}` says what it is."
            )
        if name not in known:
            listed = ", ".join(sorted(each for each in known if not each.endswith("_best")))
            raise UserError(
                f"--metric {metric}: {unknown('metric', name, known)} These runs have {listed}; and at the best epoch, with "
                "_best, those that are measured at each."
            )
        chosen = dict.fromkeys(chosen, name)
    lacking = [task for task, name in chosen.items() if name not in there[task]]
    for task in lacking:
        number = int((runs["task"] == task).sum())
        notes.append(f"Left out: {remarks.count(number, 'run')} of {task}, with no {chosen[task]} at the last epoch.")
    return {task: name for task, name in chosen.items() if task not in lacking}


class CallableModule(ModuleType):
    """This module, which is also the function `icpctl.report`: a package and a name of `icpctl` cannot be two things."""

    def __call__(
        self,
        folders: str | Path | Sequence[str | Path] = "results",
        *,
        where: str | Sequence[str] = (),
        by: str | Sequence[str] = (),
        metric: str | None = None,
    ) -> Report:
        """What results folders say, as `icpctl report` does, with tables as data frames.

        Args:
            folders: results folders, or the folders of single runs.
            where: conditions that choose runs, as --where takes them.
            by: settings that tell the rows apart; without it, all in which the runs differ.
            metric: the one that the verdicts are about; without it, accuracy, or SSIM of a VAE.

        Returns:
            The report. Jupyter shows its tables.

        Raises:
            UserError: there is no run, or a condition, setting or metric is none.
        """
        given = [folders] if isinstance(folders, (str, Path)) else folders
        conditions, settings = ([text] if isinstance(text, str) else text for text in (where, by))
        return build([Path(folder) for folder in given], None, conditions, settings, metric)


sys.modules[__name__].__class__ = CallableModule
