"""Which runs belong together and which are compared: groups over seeds, their roles, their names, their order."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from icpctl.config import RunConfig, choices, declaration, short_name
from icpctl.config.catalogue import METHODS, PLAIN, variants
from icpctl.errors import UserError, count, unknown
from icpctl.runs.references import AGAINST, METHOD_RUN, TunedArm, of_controls, references, rivals, tuned_references
from icpctl.runs.table import METHOD, of_version
from icpctl.text import value_text

TOLD_BY_OPTIMIZER = {PLAIN, "icp"}
"""Methods that the column of the input optimizer tells apart, so that none of the method is needed."""

SIGNS = {"steps": "T", "icp_lr": "η", "beta1": "β₁", "beta2": "β₂", "beta3": "β₃", "alpha": "α", "eps": "ε"}
"""The paper's signs, for names that have to be short."""


@dataclass(frozen=True)
class Grouping:
    """The groups of the runs that count."""

    table: pd.DataFrame
    """A row a group in the order of the tables, indexed by group_id: task, role, label, model, dataset, data (its version,
    where there are several), and the settings that tell the groups apart, missing where they mean nothing."""
    settings: list[str]
    """These settings."""
    member: Mapping[str, str]
    """The group_id of a configuration to that of its row; the same but for `by`."""
    twins: Mapping[str, Mapping[str, str]]
    """The group_id of a configuration to those that it is compared with, by the keys of `AGAINST`, where they are there."""

    @property
    def kinds(self) -> list[str]:
        """The baselines, and what else any group is compared with, in the order of `AGAINST`."""
        there = {"baseline", "compute-matched"}.union(*self.twins.values())
        return [kind for kind in AGAINST if kind in there]


def group(
    configs: Mapping[str, RunConfig], by: Sequence[str] = (), tunings: Sequence[Sequence[TunedArm]] = ()
) -> Grouping:
    """Groups of configurations that differ in their seed alone; or, with `by`, in nothing that is named there.

    Args:
        configs: a configuration of any seed, by its group_id in the table of runs.
        by: the settings that tell the rows apart; the others are pooled. Task, model, data set and its version, role and
            control and method are always apart, and the compute-matched baselines by their epochs.
        tunings: of which some of them come, as `tuned_references` takes them.
    """
    versions = {
        group_id: group_id.removeprefix(config.group_id).removeprefix("-") for group_id, config in configs.items()
    }
    tuned = tuned_references(tunings)
    alike = {
        version: [c for g, c in configs.items() if versions[g] == version and c.group_id not in tuned]
        for version in set(versions.values())
    }
    others = {version: rivals(there) for version, there in alike.items()}

    def compared_with(config: RunConfig, version: str) -> Mapping[str, RunConfig]:
        of_tuned = tuned.get(config.group_id)
        return references(config) | others[version].get(config.group_id, {}) if of_tuned is None else of_tuned

    twins = {
        group_id: {
            kind: twin_id
            for kind, twin in compared_with(config, versions[group_id]).items()
            if (twin_id := of_version(twin.group_id, versions[group_id])) in configs
        }
        for group_id, config in configs.items()
    }
    for version, there in alike.items():
        for control, config in of_controls(there).items():
            if (control_id := of_version(control, version)) in twins:
                twins[control_id][METHOD_RUN] = of_version(config.group_id, version)
    roles = _roles(configs, twins)
    apart = [*by] if by else varied(list(configs.values()))
    if by and "compute-matched" in roles.values():
        apart = list(dict.fromkeys([*apart, "epochs"]))

    rows: dict[str, dict[str, Any]] = {}
    members: dict[str, list[RunConfig]] = {}
    member: dict[str, str] = {}
    before = {arm.tuned.group_id: arm.untuned for arms in tunings for arm in arms}
    ranked = {group_id: before.get(config.group_id, config) for group_id, config in configs.items()}
    for group_id in _ordered(ranked, versions, twins, roles, apart):
        config, role = configs[group_id], roles[group_id]
        shown = [name for name in apart if config.uses(name)]
        if by and "epochs" not in by and role != "compute-matched":
            shown = [name for name in shown if name != "epochs"]
        values = {name: getattr(config, name) for name in shown}
        row: dict[str, Any] = {"task": config.task, "role": role, "model": config.model, "dataset": config.dataset}
        row |= {"data": versions[group_id] or None, **values}
        key = group_id
        if by:
            text = repr([*row.items(), config.control, config.method])
            key = hashlib.sha256(text.encode()).hexdigest()[:8]
        member[group_id] = key
        rows.setdefault(key, row)
        members.setdefault(key, []).append(config)

    _name(rows, members, apart)
    settings = [name for name in apart if name not in ("model", "dataset")]
    columns = ["task", "role", "label", "model", "dataset", "data", *settings]
    table = pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("group_id")
    for name in columns:
        table[name] = [("+".join(value) if isinstance(value, tuple) else value) for value in table[name]]
    return Grouping(table.convert_dtypes(), settings, member, twins)


Twins = Mapping[str, Mapping[str, str]]


def _roles(configs: Mapping[str, RunConfig], twins: Twins) -> dict[str, str]:
    """What each group is there for, as `icpctl.ablate.study.PlannedRun` has it. A baseline of one run that has the compute of
    another is a baseline.
    """
    there = {kind: {of[kind] for of in twins.values() if kind in of} for kind in ("baseline", "compute-matched")}
    matched = there["compute-matched"] - there["baseline"]

    def role(group_id: str, config: RunConfig) -> str:
        if config.method == PLAIN:
            return "compute-matched" if group_id in matched else "baseline"
        return "control" if config.control else "method"

    return {group_id: role(group_id, config) for group_id, config in configs.items()}


def _ordered(
    configs: Mapping[str, RunConfig],
    versions: Mapping[str, str],
    twins: Twins,
    roles: Mapping[str, str],
    apart: Sequence[str],
) -> list[str]:
    """The groups in the order of the tables, one version of the data after the other: each baseline, the compute-matched ones, the methods
    with their controls. What was tuned has its place by the settings before that.
    """
    first = {of["compute-matched"]: of.get("baseline", "") for of in twins.values() if "compute-matched" in of}
    plain = [name for name in apart if name not in METHOD | {"method", "optimizer"}]
    names = ["variant", *(name for name in apart if name in METHOD and name != "direction"), "direction"]

    def rank(group_id: str) -> tuple[Any, ...]:
        config = configs[group_id]
        matched = roles[group_id] == "compute-matched"
        family = configs.get(first[group_id], config) if matched else config
        return (
            (config.task, config.model, config.dataset, versions[group_id]),
            [_rank(family, name) for name in plain],
            config.method != PLAIN,
            [_rank(config, name) for name in (*plain, *names)],
        )

    return sorted(configs, key=rank)


def _name(rows: Mapping[str, dict[str, Any]], members: Mapping[str, Sequence[RunConfig]], apart: Sequence[str]) -> None:
    """Give each row its label, of what tells it apart from those of its model and data set."""
    kinds = {key: (row["task"], row["model"], row["dataset"]) for key, row in rows.items()}
    for kind in set(kinds.values()):
        of_kind = [key for key in rows if kinds[key] == kind]
        # That a compute-matched baseline has other epochs is in its own name alone, and so is what makes a control.
        others = [config for key in of_kind if rows[key]["role"] != "compute-matched" for config in members[key]]
        others = [config for config in others if not config.control]
        named = [name for name in varied(others) if name in apart and name not in ("method", "optimizer", "direction")]
        several = sum(other[0] == kind[0] for other in set(kinds.values())) > 1
        for key in of_kind:
            rows[key]["label"] = _label(members[key], rows[key], named, several)
    _make_unique(rows)


def twin_places(runs: pd.DataFrame, grouping: Grouping, against: str) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Which row each row is compared with, -1 for none.

    A twin has the same seed, and was trained on the same version of the data. Where settings are pooled, a seed counts only
    if each of its runs has a twin: else the difference would be of other runs than the row is.
    """
    place = pd.Series(np.arange(len(runs)), index=pd.MultiIndex.from_frame(runs[["group_id", "seed"]]))
    twins = runs["group_id"].map({group_id: of.get(against) for group_id, of in grouping.twins.items()})
    found = place.reindex(pd.MultiIndex.from_arrays([twins, runs["seed"]])).fillna(-1).to_numpy(np.int64)
    keys = [runs["group_id"].map(grouping.member), runs["seed"]]
    complete = pd.Series(found >= 0, index=runs.index).groupby(keys).transform("all")
    return np.where(complete.to_numpy(bool), found, -1)


def varied(configs: Sequence[RunConfig]) -> list[str]:
    """The settings that tell configurations apart, but for model, data set and seed. A setting that everywhere has its
    default is none, even where the default follows from another setting.
    """
    apart = []
    for name in RunConfig.model_fields:
        if name in ("model", "dataset", "seed") or not declaration(name).identity:
            continue
        active = [config for config in configs if config.uses(name)]
        if name == "method" and {config.method for config in active} <= TOLD_BY_OPTIMIZER:
            continue
        if len({getattr(config, name) for config in active}) > 1 and not all(each.is_default(name) for each in active):
            apart.append(name)
    return apart


def shared(configs: Sequence[RunConfig]) -> dict[str, object]:
    """The settings, not at their defaults, that all configurations in which they mean something share."""
    same = {}
    for name in RunConfig.model_fields:
        if name in ("model", "dataset", "seed") or not declaration(name).identity:
            continue
        active = [config for config in configs if config.uses(name)]
        if len({getattr(config, name) for config in active}) == 1 and not all(each.is_default(name) for each in active):
            same[name] = getattr(active[0], name)
    return same


def check_settings(names: Sequence[str], where: str) -> list[str]:
    """The names of settings that tell groups apart, as `RunConfig` has them.

    Raises:
        UserError: one that is none, or the seed; with the place.
    """
    known = [name for name in RunConfig.model_fields if declaration(name).identity and name != "seed"]
    found = [name.strip().replace("-", "_") for name in names]
    for name in found:
        if name == "seed":
            raise UserError(f"{where}: a row is a mean over the seeds. To see one seed, give --where seed=0.")
        if name not in known:
            raise UserError(f"{where}: {unknown('hyper-parameter', name, known)}")
    return list(dict.fromkeys(found))


def _rank(config: RunConfig, name: str) -> tuple[Any, ...]:
    """The place of a value: none first, then in the order of the choices, of numbers, or of the alphabet."""
    if name == "variant":
        return (1, [*variants()].index(config.variant))
    value = getattr(config, name)
    if value is None or not config.uses(name):
        return (0,)
    listed = choices(name)
    return (1, listed.index(value) if listed else value)


def _label(configs: Sequence[RunConfig], row: Mapping[str, Any], named: Sequence[str], several: bool) -> str:
    """What a group is called in a sentence or a legend."""
    config = configs[0]
    one = len({config.variant for config in configs}) == 1
    parts = [variants()[config.variant].label if one else METHODS[config.method].label]
    if row["role"] == "control":
        parts[0] += f" {config.control}"
    if row["role"] == "compute-matched" or (config.method == PLAIN and "epochs" in named and "epochs" in row):
        parts[0] += f" of {count(config.epochs, 'epoch')}"
        named = [name for name in named if name != "epochs"]
    shown = [name for name in named if name in row and not (_is_switch(name) and config.is_default(name))]
    parts += [f"{SIGNS.get(name, name)}={value_text(row[name])}" for name in shown]
    if several:
        parts.append(f"{config.model} on {short_dataset(config.dataset)}")
    if row["data"]:
        parts.append(f"data {row['data']}")
    return ", ".join(parts)


def _make_unique(rows: Mapping[str, dict[str, Any]]) -> None:
    """Tell rows of one label apart, by the whole name of their data set, or else by their id."""
    for mark in (lambda key: value_text(rows[key]["dataset"]), lambda key: key):
        of_label: dict[tuple[str, str], list[str]] = {}
        for key, row in rows.items():
            of_label.setdefault((row["task"], row["label"]), []).append(key)
        for keys in of_label.values():
            if len(keys) > 1 and len({mark(key) for key in keys}) > 1:
                for key in keys:
                    rows[key]["label"] += f" ({mark(key)})"


def _is_switch(name: str) -> bool:
    return bool(choices(name)) or RunConfig.model_fields[name].annotation is bool


def short_dataset(dataset: str) -> str:
    """The name of a data set, without the way to it where it has a path."""
    return value_text(short_name(dataset))
