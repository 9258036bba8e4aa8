"""The study's own output: study.csv, one row a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from icpctl.ablate.study import PlannedRun
from icpctl.config import RunConfig, declaration
from icpctl.cost import passes
from icpctl.report import runs_table
from icpctl.results import read_record, write_atomic

STUDY_TABLE = "study.csv"


def study_table(planned: Sequence[PlannedRun], output: Path) -> pd.DataFrame:
    """One row a run of a study, in its order, those that have not begun included.

    Columns: run_id; role; state (waiting, running, finished, failed or interrupted); error; passes of a training image
    through the network; seconds; then as in `icpctl.report.runs_table`: group_id, baseline_id, every hyper-parameter that
    makes a run what it is, epochs_recorded, last_epoch, best_epoch, and the metrics of the test split.
    """
    records = [read_record(output / run.config.run_id, run.config) for run in planned]
    table = runs_table(records)
    table["state"] = table["state"].replace("unknown", "waiting")
    table["role"] = [run.role for run in planned]
    table["error"] = [str(record.status.get("error", "")) for record in records]
    table["passes"] = [passes(run.config) for run in planned]
    first = ["run_id", "role", "state", "error", "passes", "seconds"]
    machine = [name for name in RunConfig.model_fields if not declaration(name).identity]
    return table[[*first, *(name for name in table if name not in (*first, *machine))]]


def write_study_table(planned: Sequence[PlannedRun], output: Path) -> Path:
    """Write study.csv to the results folder, whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    file = output / STUDY_TABLE
    write_atomic(file, study_table(planned, output).to_csv(index=False).encode())
    return file
