"""The study's own output: study.csv, one row a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from icpctl.ablate.deciding import planned_runs
from icpctl.ablate.study import STUDY_FILE, Definition, PlannedRun, study_lock
from icpctl.config import RunConfig, declaration
from icpctl.errors import UserError
from icpctl.files import write_atomic
from icpctl.runs.folder import read_record
from icpctl.runs.references import METHOD_RUN, TunedArm, of_controls, references, tuned_references
from icpctl.runs.table import METHOD, runs_table
from icpctl.runs.tuning import read_tunings
from icpctl.text import csv_text

STUDY_TABLE = "study.csv"
COMPARED = {"baseline_run": "baseline", "matched_run": "compute-matched", "method_run": METHOD_RUN}
"""The columns that name what a run is compared with, by the keys of `icpctl.runs.references.references`."""


def study_table(
    planned: Sequence[PlannedRun], output: Path, tunings: Sequence[Sequence[TunedArm]] = ()
) -> pd.DataFrame:
    """One row a run of a study, in its order, those that have not begun included.

    Columns: run_id; role; state (waiting, running, finished, failed or interrupted); error; passes of a training image
    through the network; seconds; threads and device, of all its starts; the run_id of what it is compared with, on the
    same seed: baseline_run, matched_run (plain training of as many passes) and, of a control, method_run; then as in
    `icpctl.runs.table.runs_table`: group_id, baseline_id, every hyper-parameter that makes a run what it is (missing where it
    means nothing), epochs_recorded, last_epoch, best_epoch, and the metrics of the test split.
    """
    records = [read_record(output / run.config.run_id, run.config)[0] for run in planned]
    table = runs_table(records, tunings)
    table["state"] = table["state"].replace("unknown", "waiting")
    table["role"] = [run.role for run in planned]
    table["error"] = [str(record.status.get("error", "")) for record in records]
    for fact in ("threads", "device"):
        starts = [dict.fromkeys(str(session.get(fact, "")) for session in record.sessions) for record in records]
        table[fact] = ["+".join(filter(None, values)) for values in starts]
    # A run that was trained on other data is not what a run is compared with.
    data = {record.config.run_id: record.fingerprint for record in records}
    tuned = tuned_references(tunings)
    methods = of_controls({run.config.group_id: run.config for run in planned}.values())
    compared: list[dict[str, str]] = []
    for run in planned:
        of = tuned.get(run.config.group_id)
        if of is None:
            method = methods.get(run.config.group_id)
            of = references(run.config) | ({METHOD_RUN: method} if method else {})
        twins = {
            kind: twin.altered(seed=run.config.seed).run_id for kind, twin in of.items() if kind in COMPARED.values()
        }
        compared.append(twins)
        if "baseline" in twins:  # which a method that costs no more is matched by
            twins.setdefault("compute-matched", twins["baseline"])
    for name, kind in COMPARED.items():
        table[name] = [
            twins[kind] if twins.get(kind) in data and _same(data[twins[kind]], data[run.config.run_id]) else ""
            for run, twins in zip(planned, compared, strict=True)
        ]
    for name in METHOD:
        table[name] = table[name].where(np.array([run.config.uses(name) for run in planned]))
    first = ["run_id", "role", "state", "error", "passes", "seconds", "threads", "device", *COMPARED]
    machine = [name for name in RunConfig.model_fields if not declaration(name).identity and name != "device"]
    return table[[*first, *(name for name in table if name not in (*first, *machine))]]


def _same(one: str, other: str) -> bool:
    """Whether two fingerprints are of the same data, as far as they are known."""
    return one == other or not (one and other)


def write_study_table(output: Path) -> pd.DataFrame:
    """Write study.csv to the results folder, whole or not at all: the runs of all studies of its study.toml.

    Returns:
        The table, as `study_table` makes it.

    Raises:
        UserError: it cannot be written.
    """
    file = output / STUDY_TABLE
    with study_lock(output):  # another ablation may come to its end at this moment
        if (definition := Definition.kept(output)) is None:
            raise UserError(
                f"{output / STUDY_FILE} is gone, as if the results folder had been removed while the study was at work. The same "
                "command begins anew."
            )
        tunings = [tuning.tuned_arms() for tuning in read_tunings(output).values()]
        table = study_table(planned_runs(definition, output), output, tunings)
        write_atomic(file, csv_text(table).encode())
    return table
