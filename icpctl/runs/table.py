"""The table of runs: one row a run, from what its folder holds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from icpctl.config import RunConfig, settings_of_methods
from icpctl.config.cost import passes
from icpctl.runs.folder import TIMINGS, RunRecord
from icpctl.runs.references import TunedArm, tuned_references
from icpctl.terminal import printable

METHOD = frozenset(settings_of_methods())
"""The settings that mean nothing in a baseline."""

COSTS = ("seconds", "passes", "images_per_second")
"""Seconds of all epochs; passes of a training image through the network; images/s, mean over the epochs."""


IDENTITY = (
    *("run_id", "group_id", "baseline_id", "task", *RunConfig.model_fields, "state", "fingerprint"),
    *("epochs_recorded", "last_epoch", "best_epoch", *COSTS),
)
"""The columns of the table of runs that are no metrics."""
RESERVED = frozenset(
    {
        *IDENTITY,
        "metric",
        "against",
        "data",
        "row",
        "role",
        "label",
        "value",
        "seeds",
        "lacking",
        "failed",
        "panel",
        "side",
        "counterpart",
    }
)
"""Names that the tables and the data of the figures give to other columns."""
UNKNOWN_DATA = "unknown"
"""Stands for the fingerprint of runs that do not record one, beside runs of the same data set that do."""


def runs_table(records: Sequence[RunRecord], tunings: Sequence[Sequence[TunedArm]] = ()) -> pd.DataFrame:
    """One row a run.

    Columns: run_id; group_id, the same for runs that differ in the seed alone, with the version of the data where there are
    several; baseline_id, the group_id of the plain training that the run is compared with; task; every hyper-parameter; state, the last word of status.json;
    epochs_recorded; last_epoch and best_epoch, the latter the one of the highest accuracy, or SSIM of a generative model,
    on the validation split (the earliest of equals; none without that split); seconds; passes; images_per_second; and
    every metric of the test split at the last epoch and, with the suffix _best, at the best. Values that are not finite
    are missing. What is measured after the last epoch alone has no best.

    Args:
        records: the runs.
        tunings: of which some of them come, as `tuned_references` takes them.
    """
    of_tuned = tuned_references(tunings)
    baselines: dict[str, str] = {}  # one for all seeds
    rows = []
    for record, version in zip(records, data_versions(records), strict=True):
        group_id = record.config.group_id
        if group_id not in baselines:
            twin = of_tuned.get(group_id, {}).get("baseline") or record.config.baseline()
            baselines[group_id] = twin.group_id
        ids = (of_version(group_id, version), of_version(baselines[group_id], version))
        rows.append(_measured(record) | _identity(record, *ids))
    runs = pd.DataFrame(rows)
    runs = runs[[*IDENTITY, *(name for name in runs if name not in IDENTITY)]]
    whole = ["epochs_recorded", "last_epoch", "best_epoch"]
    settings = [name for name in IDENTITY if name not in (*whole, *COSTS)]
    return runs.astype(dict.fromkeys(whole, "Int64")).assign(**runs[settings].convert_dtypes())


def data_versions(records: Sequence[RunRecord]) -> list[str]:
    """The version of the data that each run was trained on, by its fingerprint; empty where all runs of a data set have one.

    Runs that do not record a fingerprint are a version of their own, as nothing says that theirs was the same data.
    """
    keys = [
        (
            record.config.dataset,
            record.config.image_size,
            record.config.crop,
            record.config.columns,
            record.config.split,
        )
        for record in records
    ]
    begun = [bool(record.fingerprint or record.status or len(record.epochs)) for record in records]
    found: dict[object, set[str]] = defaultdict(set)
    for record, key, has_begun in zip(records, keys, begun, strict=True):
        if has_begun:
            found[key].add(record.fingerprint)
    names: dict[object, dict[str, str]] = {}
    for of_data, fingerprints in found.items():
        if len(fingerprints) > 1:
            short = {fingerprint[:8] for fingerprint in fingerprints}
            digits = 8 if len(short) == len(fingerprints) else None
            names[of_data] = {each: printable(each[:digits]) or UNKNOWN_DATA for each in fingerprints}
    return [
        names[key][record.fingerprint] if has_begun and key in names else ""
        for record, key, has_begun in zip(records, keys, begun, strict=True)
    ]


def of_version(group_id: str, version: str) -> str:
    """The id of a group of runs that were trained on a version of the data."""
    return f"{group_id}-{version}" if version else group_id


def has_diverged(record: RunRecord) -> bool:
    """Whether a run was ended, by whomever, when its loss or its accuracy (SSIM of a generative model) was no number any more."""
    last = [
        curve[-1]
        for key in (("train", "loss"), ("val", record.config.selection), ("test", record.config.selection))
        if len(curve := record.curves.get(key, np.array([])))
    ]
    return record.status.get("state") != "finished" and not np.isfinite(last).all()


def metric_columns(runs: pd.DataFrame) -> list[str]:
    """The columns of a table of runs that are metrics of the test split, at the last and at the best epoch."""
    return [str(name) for name in runs if name not in IDENTITY]


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table by the names of its columns."""
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def _identity(record: RunRecord, group_id: str, baseline_id: str) -> dict[str, Any]:
    settings = {name: "+".join(value) if isinstance(value, tuple) else value for name, value in record.config}
    ids = {"run_id": record.run_id, "group_id": group_id, "baseline_id": baseline_id, "task": record.config.task}
    return ids | settings


def foreign_metrics(record: RunRecord) -> list[str]:
    """The metrics of the test split that have the name of something else, and are left out of the table of runs."""
    return [name for split, name in record.curves if split == "test" and _is_foreign(name)]


def _is_foreign(name: str) -> bool:
    return name in RESERVED or name.endswith("_best") or not name


def _measured(record: RunRecord) -> dict[str, Any]:
    config, epochs = record.config, record.epochs
    used = {("val", config.selection), ("train", "seconds"), ("train", "images_per_second")}
    curves = {
        key: np.where(np.isfinite(curve), curve, np.nan)
        for key, curve in record.curves.items()
        if key[0] == "test" or key in used
    }
    validation = curves.get(("val", config.selection), np.array([]))
    # of equals the first; the best of nothing is none
    best = None if np.isnan(validation).all() else int(np.nanargmax(validation))
    seconds = curves.get(("train", "seconds"))
    speed = curves.get(("train", "images_per_second"))
    row: dict[str, Any] = {
        "state": str(record.status.get("state", "unknown")),
        "fingerprint": record.fingerprint,
        "epochs_recorded": len(epochs),
        "last_epoch": epochs[-1] if len(epochs) else None,
        "best_epoch": None if best is None else epochs[best],
        "seconds": np.nan if seconds is None else float(np.nansum(seconds)),
        "passes": passes(config),
        "images_per_second": np.nan if speed is None or np.isnan(speed).all() else float(np.nanmean(speed)),
    }
    test = {name: curve for (split, name), curve in curves.items() if split == "test" and name not in TIMINGS}
    test = {name: curve for name, curve in test.items() if not _is_foreign(name)}
    row |= {name: float(curve[-1]) for name, curve in test.items()}
    if best is not None:
        by_epoch = {name: curve for name, curve in test.items() if len(curve) == 1 or not np.isnan(curve[:-1]).all()}
        row |= {f"{name}_best": float(curve[best]) for name, curve in by_epoch.items()}
    return row
