"""What results folders say: a row a run, a row a group of runs over its seeds, and what the comparisons support.

    report = icpctl.report("results")      # in a notebook it shows its tables
    report.runs, report.summary, report.comparisons

Numbers in the tables of this package are fractions in [0, 1]; those for people give percent and points.
"""

from __future__ import annotations

import gc
import os
import shlex
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from icpctl.ablate.deciding import planned_runs
from icpctl.ablate.study import Definition, PlannedRun
from icpctl.config import SELECTION, RunConfig
from icpctl.errors import UserError, count, first_names, unknown
from icpctl.files import write_atomic
from icpctl.report import notes as remarks
from icpctl.report import tuning
from icpctl.report.groups import Grouping, check_settings, group
from icpctl.report.images import Predictions, with_images
from icpctl.report.selection import select
from icpctl.runs.claims import PlannedClaim
from icpctl.runs.folder import TIMINGS, RunRecord, read_runs
from icpctl.runs.measures import MEASURES, measure_of
from icpctl.runs.references import TunedArm
from icpctl.runs.table import COSTS, foreign_metrics, has_diverged, metric_columns, runs_table
from icpctl.terminal import printable
from icpctl.text import csv_text

if TYPE_CHECKING:
    from icpctl.report.claims import Claims

TABLES = ("runs.csv", "summary.csv", "comparisons.csv")
CLAIMS = "claims.csv"


@dataclass(frozen=True, repr=False)
class Report:
    """The tables and notes of a report, as `icpctl.report` returns them."""

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
    claims: Claims
    """What the planned claims of the results folders come to."""
    common: str
    """Sentences: the settings that the tables do not show, for they are the same in all rows; what pools others."""
    tuning: pd.DataFrame
    """One row an arm that was tuned, as `tuning.tuning_table` makes it; empty where none was."""
    notes: list[str]
    """Sentences: what is damaged, what is left out, what cannot be compared."""
    sides: Sides | None = None
    """Of a report of two sides, as `pair.build_pair` makes it."""

    def __repr__(self) -> str:
        """What `print` shows: the report as Markdown."""
        from icpctl.report.formats import render
        from icpctl.terminal import printable

        return printable(render(self, "markdown"), keep="\n\t")

    def _repr_html_(self) -> str:
        """What Jupyter shows."""
        from icpctl.report.notebook import html

        return html(self)


@dataclass(frozen=True)
class Sides:
    """The two sides that a report holds beside each other."""

    names: tuple[str, str]
    """What A and B are, as the command line names them."""
    folders: bool
    """Whether they are results folders, whose groups have the same names; else they are groups of the same folders."""
    about: list[str]
    """Sentences: in what settings they differ, how they were made, whether they are equal to the last digit."""


@dataclass(frozen=True)
class Outcomes:
    """What has become of runs."""

    runs: pd.DataFrame
    """One row a run."""
    complete: pd.DataFrame
    """Those that are finished and whole, of the tasks that have a metric to report."""
    ended: pd.DataFrame
    """These and those that failed, which have no value."""
    metrics: dict[str, str]
    """As `Report.metrics`."""
    counted: dict[str, RunRecord]
    """The records of `complete`."""
    left_out: dict[str, RunRecord]
    """The others."""

    @property
    def configs(self) -> dict[str, RunConfig]:
        """A configuration of each group of `ended`."""
        records = self.counted | self.left_out
        pairs = zip(self.ended["run_id"], self.ended["group_id"], strict=True)
        return {group_id: records[run_id].config for run_id, group_id in pairs}


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
    margin: float | None = None,
) -> Report:
    """Read results folders, or the folders of single runs. What is damaged is noted, the rest reported.

    Args:
        folders: one or several.
        only: the ids of the runs to report; without it, all.
        where: conditions, as `selection.select` takes them.
        by: the settings that tell the rows apart; without it, all in which the runs differ.
        metric: the one that the report is about; without it, accuracy, or SSIM of a generative model.
        margin: the smallest difference in this metric that matters, in its unit, points for a percentage. Of a study with
            claims, the plan says it.

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
    records, notes = read(folders, only)
    studies = studies_of(folders, notes)
    runs = [run for folder, study in studies.items() for run in _planned(folder, study, records, only, notes)]
    planned = planned_claims(studies.values(), margin, notes)
    every = read(folders)[0] if planned and only is not None else records  # a claim is about all of its runs
    tuned = tuning.read(folders, notes)
    tunings = [each.tuned_arms() for _, each in tuned]
    if where:
        kept = select({run_id: record.config for run_id, record in records.items()}, where, tunings)
        records = {run_id: record for run_id, record in records.items() if run_id in kept}

    found = outcomes(records, metric, notes, tunings)
    if found.complete.empty:
        notes.append(f"No run in {', '.join(map(str, folders))} is finished, so there is nothing to compare yet.")
    ended, configs = found.ended, found.configs
    grouping = group(configs, by, tunings)
    tuning_table = tuning.tuning_table(tuned, configs, grouping)

    from icpctl.report.comparison import comparison_table, summary_table  # they need scipy, which takes a second

    predictions = Predictions(every)
    claims = _weighed(planned, every, predictions, tunings)
    margins = margins_of(found.metrics, margin)
    summary = summary_table(ended, grouping)
    comparisons = comparison_table(ended, grouping, margins, bool(claims))
    comparisons = with_images(comparisons, ended, grouping, found.metrics.values(), predictions)
    comparisons = claims.into(comparisons, found.runs)
    notes += remarks.of_data(ended, grouping)
    notes += remarks.lacking(found.complete, found.metrics)
    notes += remarks.of_fit(found.counted)
    notes += remarks.unpaired(ended, grouping, runs)
    notes += tuning.tuning_notes(tuning_table, grouping)
    common = remarks.common_settings(list(configs.values()), by, metric_columns(found.complete))
    notes = [printable(note) for note in notes]
    return Report(
        found.runs,
        summary,
        comparisons,
        found.metrics,
        grouping,
        found.counted,
        found.left_out,
        claims,
        printable(common),
        tuning_table,
        notes,
    )


def studies_of(folders: Sequence[Path], notes: list[str]) -> dict[Path, Definition]:
    """The studies of results folders, of those that have any; a file that cannot be read is noted."""
    studies = {}
    for folder in folders:
        try:
            if definition := Definition.kept(folder):
                studies[folder] = definition
        except UserError as error:
            notes.append(f"The study in {folder} and its claims are not reported. {error}")
    return studies


def _planned(
    folder: Path,
    study: Definition,
    records: Mapping[str, RunRecord],
    only: Collection[str] | None,
    notes: list[str],
) -> list[PlannedRun]:
    """The runs of a study, of those that are to be reported; notes how many are not finished."""
    try:
        every = planned_runs(study, folder, records=records)
        tuned = any(each.tune for each in study.studies)
        to_tune = len(study.runs()) - len(every) if tuned and only is None else 0
    except UserError as error:
        notes.append(f"The unfinished runs of the study in {folder} are not counted. {error}")
        return []
    runs = [run for run in every if only is None or run.config.run_id in only]
    there = [records[run.config.run_id] for run in runs if run.config.run_id in records]
    finished = sum(record.status.get("state") == "finished" for record in there)
    if finished < (number := len(runs) + max(to_tune, 0)):
        are = "is" if finished == 1 else "are"
        go_on = shlex.join(["icpctl", "ablate", "--resume", str(folder)])
        notes.append(
            f"{finished} of {count(number, 'run')} of the study in {folder} {are} finished: `{go_on}` continues it."
        )
    return runs


def planned_claims(studies: Iterable[Definition], margin: float | None, notes: list[str]) -> list[PlannedClaim]:
    """The claims of studies, each once.

    Args:
        studies: as `studies_of` finds them.
        margin: as of `build`.
        notes: to add to.

    Raises:
        UserError: the margin is none, or there are claims, which have their own.
    """
    planned: dict[str, PlannedClaim] = {}
    every = [claim for study in studies for claim in study.claims if claim.written]
    for claim in sorted(every, key=lambda claim: claim.written):
        first = planned.setdefault(claim.claim, claim)
        if (claim.margin, claim.seeds, claim.max_seeds, claim.groups) != (
            first.margin,
            first.seeds,
            first.max_seeds,
            first.groups,
        ):
            notes.append(
                f"{claim.place} has several plans in these folders. The earliest one, of {first.written}, counts."
            )
    if margin is not None and not margin > 0:
        raise UserError(f"--margin {margin:g} has to be above 0: it is the smallest difference that matters.")
    if margin is not None and planned:
        raise UserError(
            f"--margin {margin:g}: the claims of the study were planned with their own margins, and no look at the results can change them. "
            "Leave it out."
        )
    return [*planned.values()]


def margins_of(metrics: Mapping[str, str], margin: float | None) -> dict[str, float]:
    """The smallest difference that matters in each metric that the report is about, at the last and at the best epoch."""
    margins = {name: margin / measure_of(name).scale for name in metrics.values()} if margin is not None else {}
    return margins | {f"{name}_best": size for name, size in margins.items()}


def _weighed(
    claims: Sequence[PlannedClaim],
    records: Mapping[str, RunRecord],
    predictions: Predictions,
    tunings: Sequence[Sequence[TunedArm]],
) -> Claims:
    """The claims with what all runs say about them, whatever the rest of the report is about."""
    from icpctl.report.claims import Claims, claims_table  # they need scipy, which takes a second

    if not claims:
        return Claims()
    runs = runs_table([*records.values()])
    diverged = runs["run_id"].isin([run_id for run_id, record in records.items() if has_diverged(record)])
    runs["state"] = runs["state"].mask(diverged, "failed")
    return claims_table(claims, records, runs, predictions, tunings)


def outcomes(
    records: Mapping[str, RunRecord],
    metric: str | None,
    notes: list[str],
    tunings: Sequence[Sequence[TunedArm]] = (),
) -> Outcomes:
    """The runs that count, and the metric that they are reported by; adds to the notes.

    Args:
        records: by a name of each, which stands for its id.
        metric: as of `build`.
        notes: to add to.
        tunings: the arms of each tuning.

    Raises:
        UserError: no run has the metric.
    """
    notes += remarks.of_runs(records.values())
    notes += remarks.of_code(records.values())
    ordered = dict(sorted(records.items()))
    runs = runs_table([*ordered.values()], tunings).assign(run_id=pd.array([*ordered], "string"))
    diverged = [run_id for run_id, record in records.items() if has_diverged(record)]
    whole, failed = remarks.outcomes(runs, diverged, notes)
    complete = runs[whole]
    metrics = _metrics(complete, metric, notes)
    complete = complete[complete["task"].isin(list(metrics))]
    counted = {run_id: records[run_id] for run_id in complete["run_id"]}
    ended = runs[(whole | failed) & runs["task"].isin(list(metrics))]
    # A failed run is an outcome without a value, whatever it recorded before.
    ended = ended.assign(state=ended["state"].mask(failed, "failed"))
    numbers = [*metric_columns(runs), *COSTS]
    ended[numbers] = ended[numbers].astype(float).mask(failed[ended.index])
    left_out = {run_id: record for run_id, record in records.items() if run_id not in counted}
    return Outcomes(runs, complete, ended, metrics, counted, left_out)


def read(folders: Sequence[Path], only: Collection[str] | None = None) -> tuple[dict[str, RunRecord], list[str]]:
    """Each run once, and notes. Of copies the finished one in the run's own folder counts; where several have this rank, and
    differ, none does.

    Raises:
        UserError: a folder does not exist, or there is no run that can be read.
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
        others = {each.path: differences(each, first) for each in found if each is not first}
        if different := [each.path for each in best if others.get(each.path)]:
            paths = ", ".join(map(str, (first.path, *different)))
            what = ", ".join(dict.fromkeys(each for path in different for each in others[path]))
            notes.append(
                f"Left out: {run_id}. Its copies differ in {what}, and nothing says which one is right: {paths}."
            )
            continue
        records[run_id] = first
        if same := [str(path) for path, differences in others.items() if not differences]:
            notes.append(f"Left out, because they are copies of the run in {first.path}: {', '.join(same)}.")
        notes += [
            f"Left out: {path}. It has the id of the run in {first.path}, and differs from it in {', '.join(differences)}."
            for path, differences in others.items()
            if differences
        ]
    for record in records.values():
        if foreign := foreign_metrics(record):
            notes.append(
                f"{record.path / 'metrics.csv'}: metrics with the name of another column are left out of the tables: {', '.join(foreign)}."
            )
    if not records:
        listed = ", ".join(map(str, folders))
        said = f"There is no run to report in {listed}. `icpctl train --output {folders[0]}` makes one."
        raise UserError(" ".join([said, *notes]))
    return records, notes


def differences(one: RunRecord, other: RunRecord) -> list[str]:
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
    """Write runs.csv, summary.csv and comparisons.csv, and claims.csv where there are claims; each whole or not at all.

    Raises:
        UserError: one cannot be written.
    """
    tables = dict(zip(TABLES, (report.runs, report.summary, report.comparisons), strict=True))
    tables |= {CLAIMS: report.claims.table} if report.claims else {}
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
        notes.append(f"Left out: {count(number, 'run')} of {task} without {chosen[task]} at the last epoch.")
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
        margin: float | None = None,
    ) -> Report:
        """Report on results folders as `icpctl report` does. The tables are data frames.

        Args:
            folders: results folders, or the folders of single runs.
            where: conditions that choose runs, as --where takes them.
            by: settings that tell the rows apart; without it, all in which the runs differ.
            metric: the one that the verdicts are about; without it, accuracy, or SSIM of a VAE.
            margin: the smallest difference in it that matters, as of --margin.

        Returns:
            The report. Jupyter shows its tables.

        Raises:
            UserError: there is no run, or a condition, setting or metric is none.
        """
        given = [folders] if isinstance(folders, (str, Path)) else folders
        conditions, settings = ([text] if isinstance(text, str) else text for text in (where, by))
        return build([Path(folder) for folder in given], None, conditions, settings, metric, margin)


sys.modules[__name__].__class__ = CallableModule
