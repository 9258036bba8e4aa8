"""The study's own output: study.csv, one row a run."""

from __future__ import annotations

from collections.abc import Sequence, Set
from pathlib import Path

import pandas as pd

from icpctl.ablate.study import STUDY_FILE, Definition, PlannedRun, study_lock
from icpctl.config import RunConfig, declaration
from icpctl.cost import compute_matched, passes
from icpctl.report import runs_table
from icpctl.results import read_record, write_atomic

STUDY_TABLE = "study.csv"


def study_table(planned: Sequence[PlannedRun], output: Path) -> pd.DataFrame:
    """One row a run of a study, in its order, those that have not begun included.

    Columns: run_id; role; state (waiting, running, finished, failed or interrupted); error; passes of a training image
    through the network; seconds; matched_id, the run of plain training with as many passes, if it is in the study; then as in `icpctl.report.runs_table`: group_id, baseline_id, every hyper-parameter that
    makes a run what it is, epochs_recorded, last_epoch, best_epoch, and the metrics of the test split.
    """
    records = [read_record(output / run.config.run_id, run.config) for run in planned]
    table = runs_table(records)
    table["state"] = table["state"].replace("unknown", "waiting")
    table["role"] = [run.role for run in planned]
    table["error"] = [str(record.status.get("error", "")) for record in records]
    table["passes"] = [passes(run.config) for run in planned]
    run_ids = set(table["run_id"])
    table["matched_id"] = [_matched(run, run_ids) for run in planned]
    first = ["run_id", "role", "state", "error", "passes", "seconds", "matched_id"]
    machine = [name for name in RunConfig.model_fields if not declaration(name).identity]
    return table[[*first, *(name for name in table if name not in (*first, *machine))]]


def _matched(run: PlannedRun, run_ids: Set[str]) -> str:
    if run.config.optimizer == "none":
        return ""
    matched = compute_matched(run.config).run_id
    return matched if matched in run_ids else ""


def write_study_table(output: Path) -> Path:
    """Write study.csv to the results folder, whole or not at all: the runs of all studies of its study.toml.

    Raises:
        UserError: it cannot be written.
    """
    file = output / STUDY_TABLE
    with study_lock(output):  # another ablation may come to its end at this moment
        table = study_table(Definition.read(output / STUDY_FILE).runs(), output)
        write_atomic(file, table.to_csv(index=False).encode())
    return file
