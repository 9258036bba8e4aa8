"""What the report says of tuning: what each arm was given, what was chosen, and what it cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from icpctl.config import RunConfig
from icpctl.errors import UserError
from icpctl.report.groups import Grouping
from icpctl.runs.tuning import Tuning, read_tunings, trial_passes
from icpctl.text import value_text

COLUMNS = ("group_id", "label", "task", "role", "trials", "ranges", "chosen", "passes")


def read(folders: Sequence[Path], notes: list[str]) -> list[tuple[Path, Tuning]]:
    """What was tuned in results folders, and in those of single runs; what is damaged is noted."""
    found = []
    for folder in dict.fromkeys(each.parent if (each / "config.json").exists() else each for each in folders):
        try:
            found += [(folder, tuning) for tuning in read_tunings(folder).values()]
        except UserError as error:
            notes.append(str(error))
    return found


def tuning_table(
    tunings: Sequence[tuple[Path, Tuning]], configs: Mapping[str, RunConfig], grouping: Grouping
) -> pd.DataFrame:
    """One row an arm that was tuned, in the order of the groups.

    Columns: group_id, label, task and role of its row; trials; ranges, as text; chosen, the settings of the best trial, as text; passes
    of a training image through the network in all trials.

    Args:
        tunings: results folders, and what was tuned there.
        configs: those of the groups, by their group_id in the table of runs.
        grouping: of these.
    """
    places: dict[str, list[str]] = {}
    for group_id, config in configs.items():
        places.setdefault(config.group_id, []).append(grouping.member[group_id])
    rows = []
    for folder, tuning in tunings:
        for arm in tuning.arms.values():
            if arm.chosen is None:
                continue
            for place in dict.fromkeys(places.get(arm.tuned.group_id, ())):
                group = grouping.table.loc[place]
                rows.append(
                    {
                        "group_id": place,
                        **{name: group[name] for name in ("label", "task", "role")},
                        "trials": len(arm.trials),
                        "ranges": ", ".join(f"{name} {tuning.ranges[name]}" for name in arm.reads),
                        "chosen": ", ".join(f"{name} {value_text(value)}" for name, value in arm.chosen.items()),
                        "passes": trial_passes(folder, arm),
                    }
                )
    table = pd.DataFrame(rows, columns=list(COLUMNS)).drop_duplicates()
    order = {group_id: number for number, group_id in enumerate(grouping.table.index)}
    return table.sort_values("group_id", key=lambda ids: ids.map(order), kind="stable", ignore_index=True)


def tuning_notes(table: pd.DataFrame, grouping: Grouping) -> list[str]:
    """Notes on arms that were not tuned alike, so that a difference may be one of the tuning."""
    notes = []
    for task, arms in table.groupby("task", sort=False):
        if arms["trials"].nunique() > 1:
            numbers = "; ".join(
                f"{label}: {trials}" for label, trials in zip(arms["label"], arms["trials"], strict=True)
            )
            notes.append(
                f"The arms were tuned with unequal numbers of trials, which favours those with more ({numbers})."
            )
        ranges: dict[str, set[str]] = {}
        for text in arms["ranges"]:
            for each in text.split(", "):
                ranges.setdefault(each.split(" ")[0], set()).add(each)
        if unlike := [name for name, texts in ranges.items() if len(texts) > 1]:
            notes.append(f"Not all arms were tuned over the same range of {', '.join(unlike)}.")
        of_task = grouping.table[grouping.table["task"] == task]
        if untuned := list(of_task["label"][~of_task.index.isin(arms["group_id"])]):
            notes.append(
                f"Not tuned, and not compared with the groups that were: {', '.join(untuned[:3])}"
                + (f" and {len(untuned) - 3} more." if len(untuned) > 3 else ".")
            )
    return notes


def explanation(table: pd.DataFrame) -> str:
    """What the table is, as sentences."""
    return (
        f"Trials were chosen by the validation split at the last epoch, never by the test split, and have seeds that no run above has. "
        f"Together they took {table['passes'].sum():g} passes of a training image through the network, in addition to those of the runs. tuning.csv has "
        "every trial."
    )
