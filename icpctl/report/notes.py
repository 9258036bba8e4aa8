"""What a report says beside its numbers: what is damaged, left out, or cannot be compared; what its tables leave unsaid."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from icpctl.ablate.study import PlannedRun
from icpctl.config import RunConfig
from icpctl.config.catalogue import PLAIN, PLAIN_STEP
from icpctl.errors import count, first_names
from icpctl.report.groups import Grouping, shared, twin_places, varied
from icpctl.runs.folder import RunRecord
from icpctl.runs.measures import feature_letters
from icpctl.runs.references import AGAINST
from icpctl.text import value_text


def outcomes(runs: pd.DataFrame, diverged: Collection[str], notes: list[str]) -> tuple[pd.Series, pd.Series]:
    """Whether a run is finished and whole, and whether it failed; what is not finished and whole, is noted.

    Args:
        runs: as `runs_table` makes them.
        diverged: the ids of unfinished runs that were ended when their loss was no number any more.
        notes: to add to.
    """
    diverging = runs["run_id"].isin(list(diverged)) & (runs["state"] != "failed")
    failed = (runs["state"] == "failed") | diverging
    unfinished = ~runs["state"].isin(["failed", "finished"]) & ~diverging
    cut = (runs["state"] == "finished") & (runs["epochs_recorded"] < runs["epochs"])
    of_failure = "so they are in no mean, and nothing is claimed from the other seeds of their groups"
    for concerned, what in (
        (failed & ~diverging, f"Failed (status.json in the folder of a run says why), {of_failure}"),
        (diverging, f"Diverged and unfinished, which counts as failed, {of_failure}"),
        (unfinished, "Not finished and left out, so means and claims are about the finished seeds only"),
        (cut, "Left out, because epochs are missing from metrics.csv"),
    ):
        if concerned.any():
            notes.append(f"{what}: {count(concerned.sum(), 'run')}, {first_names(runs['run_id'][concerned])}.")
    return ~(failed | unfinished | cut), failed


def of_data(runs: pd.DataFrame, grouping: Grouping) -> list[str]:
    """Notes on data sets of which the runs were trained on several versions, and on runs that do not say on which."""
    notes = []
    versions = runs["group_id"].map(grouping.member).map(grouping.table["data"])
    for dataset, of_dataset in runs[versions.notna()].groupby("dataset"):
        listed = "; ".join(
            f"{version}: {count(len(run_ids), 'run')}, {first_names(run_ids)}"
            for version, run_ids in of_dataset["run_id"].groupby(versions[of_dataset.index])
        )
        notes.append(
            f"The runs on {value_text(dataset)} were not trained on the same data: their fingerprints differ. Each version has its own "
            f"rows, and versions are not compared with each other ({listed})."
        )
    silent = runs["run_id"][(runs["fingerprint"] == "") & versions.isna()]
    if len(silent):
        notes.append(
            "Taken to be trained on the same data, although their config.json records no fingerprint of it: "
            f"{count(len(silent), 'run')}, {first_names(silent)}."
        )
    return notes


def of_code(records: Iterable[RunRecord]) -> list[str]:
    """Notes on the users' own models whose code was not the same in all runs."""
    versions: dict[str, dict[str, dict[str, None]]] = {}
    for record in records:
        for session in record.sessions:
            source = session.get("source")
            if isinstance(source, dict):
                of_model = versions.setdefault(record.config.model, {})
                of_model.setdefault(str(source.get("sha256"))[:16], {})[record.run_id] = None
    return [
        f"The runs of {model} were not trained with the same code: the SHA-256 of its file differs ("
        + "; ".join(f"{sha256}…: {count(len(runs), 'run')}, {first_names(runs)}" for sha256, runs in found.items())
        + "). They are averaged and compared nevertheless."
        for model, found in versions.items()
        if len(found) > 1
    ]


def of_runs(records: Iterable[RunRecord]) -> list[str]:
    """What the runs' own notes say, each once: metrics that are missing, or not to be trusted."""
    counts: Counter[str] = Counter()
    example: dict[str, str] = {}
    for record in records:
        given = record.status.get("notes")
        for note in map(str, given if isinstance(given, list) else []):
            counts[note] += 1
            example.setdefault(note, record.run_id)
    return [
        f"{count(number, 'run')}, {'for example ' if number > 1 else ''}{example[note]}: {note}"
        for note, number in counts.items()
    ]


def lacking(runs: pd.DataFrame, metrics: Mapping[str, str]) -> list[str]:
    """Notes on runs that count and have no value of the metric that the report is about."""
    notes = []
    for task, name in metrics.items():
        part = runs[runs["task"] == task]
        without = part["run_id"][part[name].isna()]
        if len(without):
            notes.append(
                f"Without a finite {name}, so they are in no mean of it, and nothing is claimed about their groups: "
                f"{count(len(without), 'run')}, {first_names(without)}."
            )
    return notes


def of_fit(records: Mapping[str, RunRecord]) -> list[str]:
    """A note on runs that were not measured on training images, and one on runs that were on different numbers of these.

    Args:
        records: of the runs that count, by their ids.
    """
    measured = {run_id: ("fit", record.config.selection) in record.curves for run_id, record in records.items()}
    notes = []
    if without := [run_id for run_id, there in measured.items() if not there]:
        notes.append(
            "Not measured on training images without augmentation (split fit), so they have no such curve and no generalization gap: "
            f"{count(len(without), 'run')}, {first_names(without)}. They were trained by a version before 0.2, or with --fit-images 0."
        )
    numbers: dict[str, dict[str, list[str]]] = {}
    for run_id, record in records.items():
        if measured[run_id]:
            number = "the default" if record.config.fit_images is None else f"{record.config.fit_images:,}"
            numbers.setdefault(record.config.dataset, {}).setdefault(number, []).append(run_id)
    listed = [
        f"{number}: {count(len(run_ids), 'run')}, {first_names(run_ids)}"
        for of_number in numbers.values()
        if len(of_number) > 1
        for number, run_ids in of_number.items()
    ]
    if listed:
        notes.append(
            "The fit was measured on different numbers of training images (--fit-images), so a difference in the generalization gap may "
            f"come from that alone ({'; '.join(listed)})."
        )
    return notes


def unpaired(runs: pd.DataFrame, grouping: Grouping, planned: Sequence[PlannedRun] = ()) -> list[str]:
    """Notes on what has no baseline on its own seed, and on comparisons that are not made.

    Args:
        runs: those that are outcomes.
        grouping: of these runs.
        planned: of the studies of the results folders; what is among them needs no advice.
    """
    if runs.empty:
        return []
    notes = []
    present = set(zip(runs["group_id"], runs["seed"], strict=True))
    method = runs["method"] != PLAIN
    baselines = [*zip(runs["baseline_id"], runs["seed"], strict=True)]
    alone = runs[method & np.array([baseline not in present for baseline in baselines])]
    if len(alone):
        to_come = {(run.config.group_id, run.config.seed) for run in planned}
        is_planned = to_come.issuperset(zip(alone["baseline_id"], alone["seed"], strict=True))
        notes.append(
            "Not compared with a baseline, because none with the same settings, seed and data is finished: "
            f"{count(len(alone), 'run')}, {first_names(alone['run_id'])}."
            + (
                ""
                if is_planned
                else " `icpctl train --method plain`, with the other options of these runs, trains one."
            )
        )
    dearer = runs["passes"] > PLAIN_STEP * runs["epochs"]
    paired = {against: twin_places(runs, grouping, against) >= 0 for against in grouping.kinds}
    advice = ": `icpctl ablate --compute-matched` trains such baselines."
    if any(run.role == "compute-matched" for run in planned):
        advice = "."
    notes += [
        f"No run of {task} is compared with a compute-matched baseline, so a gain may come from more compute{advice}"
        for task in sorted(set(runs["task"][method & dearer]))
        if not (paired["compute-matched"] & (runs["task"] == task)).any()
    ]
    for against in paired:
        twins = [
            (grouping.twins[group_id].get(against), seed)
            for group_id, seed in zip(runs["group_id"], runs["seed"], strict=True)
        ]
        there = np.array([twin in present for twin in twins])
        dropped = runs["run_id"][there & ~paired[against]]
        if len(dropped):
            notes.append(
                f"Not compared with {AGAINST[against]}, which is there for only some of the runs that a row pools: "
                f"{count(len(dropped), 'run')}, {first_names(dropped)}."
            )
    rows = runs["group_id"].map(grouping.member)
    sizes = runs.groupby([rows, "seed"]).size().groupby(level=0).nunique()
    if (sizes > 1).any():
        labels = grouping.table["label"][sizes.index[sizes > 1]]
        notes.append(
            f"The seeds do not have the same runs in {count(len(labels), 'row')}, {first_names(labels)}: the means of these seeds are over "
            "different settings."
        )
    return notes


def common_settings(configs: Sequence[RunConfig], by: Sequence[str], metrics: Iterable[str]) -> str:
    """What the tables leave unsaid."""
    methods = [config for config in configs if config.method != PLAIN]
    always = {
        name: values.pop()
        for name in ("epochs", "steps", "icp_lr")  # whatever their defaults, for no one knows these by heart
        if len(values := {getattr(config, name) for config in methods or configs if name == "epochs" or config.steps})
        == 1
    }
    same = ", ".join(f"{name} {value_text(value)}" for name, value in {**always, **shared(configs)}.items() if value)
    text = "Settings that are not in the table have their defaults."
    if same:
        text = f"The same in all rows{' of a method' if methods else ''}: {same}. Other settings have their defaults."
    if by:
        pooled = [name for name in varied(methods or configs) if name not in by and name != "direction"]
        unpooled = text
        text = f"A row pools {', '.join(pooled) or 'nothing'}: the runs of a seed are averaged, and count once. "
        text += "A difference is a mean over pairs of runs, so it need not be the difference of two rows. " + unpooled
    for classifier, letter in feature_letters(metrics).items():
        text += f" FID and KID ({letter}): in the features of {classifier}."
    return text
