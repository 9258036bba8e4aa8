"""Two sides beside each other: two groups of runs, or two results folders; A less B, paired by seed.

Groups of a folder are compared like with like: two of them make a pair if they are equal in all settings but those that the
selections name. Of two folders, a group is compared with the same group of the other: by its group_id, so by its settings, whatever
trained it. The numbers are those of `comparison`, on one comparison a pair.
"""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from icpctl.config import RunConfig, declaration
from icpctl.config.conditions import named_settings, parse_conditions
from icpctl.errors import UserError, count, first_names
from icpctl.report import (
    Outcomes,
    Report,
    Sides,
    differences,
    margins_of,
    outcomes,
    planned_claims,
    read,
    studies_of,
    uncollected,
)
from icpctl.report import notes as remarks
from icpctl.report.groups import Grouping, group
from icpctl.report.selection import select
from icpctl.runs.folder import RunRecord
from icpctl.runs.references import COUNTERPART
from icpctl.runs.table import metric_columns
from icpctl.terminal import printable
from icpctl.text import value_text

SIDES = ("A", "B")
MOST_VALUES, MOST_LABELS = 4, 3
"""Of a setting, and of groups, in a sentence."""
PLACES = ("data_dir", "weights", "fid_weights", "fid_features")
"""Settings that are paths: that they differ says nothing of the runs."""

Pairs = list[tuple[str, str]]
"""The group_ids of a group of A and of one of B, without the side."""


def folders_of(compare: tuple[str, str]) -> tuple[Path, Path] | None:
    """The two results folders that --compare names; None if it names groups."""
    first, second = map(Path, compare)
    return (first, second) if first.is_dir() and second.is_dir() else None


@uncollected()
def build_pair(
    compare: tuple[str, str],
    folders: Sequence[Path],
    where: Sequence[str] = (),
    metric: str | None = None,
    margin: float | None = None,
) -> Report:
    """The report of two sides.

    Its groups and runs have the side before their ids: "A/1a2b3c4d". A comparison is a pair of groups, with the columns of
    `comparison.comparison_table` and counterpart, the label of the group of B; counterpart_id; mean_a, std_a, mean_b and
    std_b, over all seeds of a side.

    Args:
        compare: what A and B are: two results folders, or two groups, each by conditions as `--where` takes
            them, by its label in a report of the folders, or by its group_id.
        folders: where the runs are; those that `folders_of` finds count instead.
        where: conditions that hold on both sides.
        metric: as of `icpctl.report.build`.
        margin: as of the same. Groups of a study with claims have no verdict: none was planned of them.

    Raises:
        UserError: a side that is no folder, group or condition, or has no run; and as `icpctl.report.build`.
    """
    from icpctl.report.claims import Claims  # they need scipy, which takes a second
    from icpctl.report.comparison import comparison_table, summary_table
    from icpctl.report.images import Predictions, with_images

    named = folders_of(compare)
    records, notes = _of_folders(named, where) if named else _of_groups(folders, where)
    planned = planned_claims({} if named else studies_of(folders, notes).values(), margin, notes)
    found = outcomes(records, metric, notes)
    configs = found.configs
    grouping = group(configs)
    if named:
        chosen = tuple({run_id for run_id in records if run_id.startswith(f"{side}/")} for side in SIDES)
    else:
        chosen = tuple(_chosen(text, found, grouping, records) for text in compare)
        if chosen[0] == chosen[1]:
            raise UserError(
                f"{_said(compare)}: both are the same {count(len(chosen[0]), 'run')}. Name two groups that differ."
            )
    strip = 2 if named else 0  # the side, which is before the ids already
    runs, ended, complete = (_beside(table, chosen, strip) for table in (found.runs, found.ended, found.complete))
    table = _both(grouping, set(ended["group_id"]), configs, bool(named))
    ids = [[key[2:] for key in table.index if key.startswith(f"{side}/")] for side in SIDES]
    pairs = [(key, key) for key in ids[0] if key in ids[1]] if named else _alike(ids, configs, grouping, compare)
    seeds = {str(key): set(of["seed"]) for key, of in ended.groupby("group_id")}
    notes += _unpaired(pairs, ids, configs, grouping, compare, named)
    notes += _on_seeds(pairs, seeds, _labels(grouping))
    both = Grouping(table, grouping.settings, {key: key for key in table.index}, {})
    summary = summary_table(ended, both)
    counted, left_out = (
        {
            f"{side}/{run_id[strip:]}": of[run_id]
            for side, ids in zip(SIDES, chosen, strict=True)
            for run_id in sorted(ids & of.keys())
        }
        for of in (found.counted, found.left_out)
    )
    paired, as_compared = _as_comparisons(pairs, ended, both, bool(named))
    comparisons = comparison_table(paired, as_compared, margins_of(found.metrics, margin), bool(planned))
    comparisons = with_images(comparisons, paired, as_compared, found.metrics.values(), Predictions(counted))
    comparisons = _with_means(comparisons.assign(group_id=comparisons["group_id"].str.split(" ").str[0]), summary)
    notes += remarks.of_data(ended, both)
    notes += remarks.lacking(complete, found.metrics)
    notes += remarks.of_fit(counted)
    about = [
        *_settings_apart(pairs, configs),
        *_made(pairs, ended, counted),
        *(_equal(pairs, ended, counted) if named else []),
    ]
    sides = Sides((printable(compare[0]), printable(compare[1])), bool(named), [printable(text) for text in about])
    common = remarks.common_settings(
        [configs[key] for key in dict.fromkeys(itertools.chain(*ids))], (), metric_columns(complete)
    )
    return Report(
        runs, summary, comparisons, found.metrics, both, counted, left_out, Claims(), printable(common), pd.DataFrame(),
        [printable(note) for note in notes], sides,
    )  # fmt: skip


def _of_folders(folders: tuple[Path, Path], where: Sequence[str]) -> tuple[dict[str, RunRecord], list[str]]:
    """The runs of two folders, by the side and their ids."""
    if folders[0].samefile(folders[1]):
        raise UserError(
            f"{_said(tuple(map(str, folders)))}: both are the same folder. Name two, or two groups of runs."
        )
    records: dict[str, RunRecord] = {}
    notes: list[str] = []
    for side, folder in zip(SIDES, folders, strict=True):
        found, faults = _of_groups([folder], where)
        records |= {f"{side}/{run_id}": record for run_id, record in found.items()}
        notes += faults
    return records, notes


def _of_groups(folders: Sequence[Path], where: Sequence[str]) -> tuple[dict[str, RunRecord], list[str]]:
    records, notes = read(folders)
    if where:
        kept = select({run_id: record.config for run_id, record in records.items()}, where)
        records = {run_id: record for run_id, record in records.items() if run_id in kept}
    return records, notes


def _said(compare: Iterable[str]) -> str:
    return f"--compare {shlex.join(compare)}"


def _chosen(text: str, found: Outcomes, grouping: Grouping, records: Mapping[str, RunRecord]) -> set[str]:
    """The ids of the runs of a side: by the label of a group, by its group_id, or by conditions."""
    of_group = _groups_named(text, grouping)
    runs = found.runs
    if of_group:
        return set(runs["run_id"][runs["group_id"].isin(of_group)])
    if not (set("=<>") & set(text)):
        listed = "; ".join(grouping.table["label"].head(6))
        raise UserError(
            f"--compare: '{text}' is no results folder, no label or id of a group, and no condition on a setting. A condition is "
            f"written as method=icp,steps=5. The groups there are: {listed}{' …' if len(grouping.table) > 6 else ''}."
        )
    conditions = parse_conditions(text, f"--compare {text}")
    chosen = {run_id for run_id, record in records.items() if all(is_true(record.config) for is_true in conditions)}
    if not chosen:
        raise UserError(
            f"--compare: no run fulfils '{text}'. `icpctl report FOLDER` shows which settings the runs have."
        )
    return chosen


def _groups_named(text: str, grouping: Grouping) -> list[str]:
    table = grouping.table
    return [str(key) for key in table.index[(table["label"] == text) | (table.index == text)]]


def _beside(runs: pd.DataFrame, chosen: Sequence[set[str]], strip: int) -> pd.DataFrame:
    """The rows of the runs of A, then those of B, the side before their ids; a run of both twice."""
    parts = []
    for side, run_ids in zip(SIDES, chosen, strict=True):
        of_side = runs[runs["run_id"].isin(list(run_ids))]
        ids = {
            name: f"{side}/" + of_side[name].str[strip if name == "run_id" else 0 :] for name in ("run_id", "group_id")
        }
        parts.append(of_side.assign(**ids))
    return pd.concat(parts, ignore_index=True)


def _both(grouping: Grouping, there: set[str], configs: Mapping[str, RunConfig], folders: bool) -> pd.DataFrame:
    """The table of the groups, each of A above that of B, with the side in its label and in a column of its own."""
    first: dict[str, int] = {}
    for key in grouping.table.index:  # of all versions of the data
        first.setdefault(configs[key].group_id, len(first))
    parts = []
    for number, side in enumerate(SIDES):
        table = grouping.table.assign(side=side)
        table["place"] = [2 * first[configs[key].group_id] + number for key in table.index]
        table["label"] += f" in {side}" if folders else f" ({side})"
        parts.append(table.set_axis([f"{side}/{key}" for key in table.index], axis="index"))
    table = pd.concat(parts).sort_values("place", kind="stable").drop(columns="place").rename_axis("group_id")
    table.insert(2, "side", table.pop("side").astype("string"))
    return table[table.index.isin(list(there))]


def _alike(
    ids: Sequence[Sequence[str]], configs: Mapping[str, RunConfig], grouping: Grouping, compare: tuple[str, str]
) -> Pairs:
    """The pairs of groups of the same data that are equal in all that the selections do not name. Of several for a group of A, those
    count that differ from it in the fewest settings that one selection alone names. Where a selection is a group by its name,
    each group of it makes a pair with each of the other side.
    """
    by_name = any(_groups_named(text, grouping) for text in compare)
    free = _free(compare)
    held = [
        name
        for name in RunConfig.model_fields
        if declaration(name).identity
        and name not in free
        and len({getattr(configs[key], name) for side in ids for key in side}) > 1
    ]
    data = grouping.table["data"].fillna("")

    def are_alike(a: str, b: str) -> bool:
        one, other = configs[a], configs[b]
        if a == b or one.task != other.task or one.dataset != other.dataset or data[a] != data[b]:
            return False
        return by_name or all(_agree(name, one, other) for name in held)

    alone = named_settings(compare[0]) ^ named_settings(compare[1])

    def apart(a: str, b: str) -> int:
        return 0 if by_name else sum(not _agree(name, configs[a], configs[b]) for name in alone)

    pairs: Pairs = []
    for a in ids[0]:
        alike = {b: apart(a, b) for b in ids[1] if are_alike(a, b)}
        pairs += [(a, b) for b, number in alike.items() if number == min(alike.values())]
    return pairs


def _free(compare: tuple[str, str]) -> set[str]:
    """The settings in which the groups of a pair may differ: those that the selections name."""
    free = {"seed"}.union(*map(named_settings, compare))
    return free | {"method"} if "optimizer" in free else free  # the input optimizer says whether it is ICP


def _agree(name: str, one: RunConfig, other: RunConfig) -> bool:
    """Whether two configurations have the same of a setting, as far as both read it; or each the default that follows from others."""
    if not (one.uses(name) and other.uses(name)) or (name == "optimizer" and one.method != other.method):
        return True
    return bool(getattr(one, name) == getattr(other, name) or (one.is_default(name) and other.is_default(name)))


def _as_comparisons(pairs: Pairs, ended: pd.DataFrame, both: Grouping, folders: bool) -> tuple[pd.DataFrame, Grouping]:
    """The runs of each pair under ids of its own, as a group may be in several, and these as what is compared."""
    keys = [(f"A/{a} B/{b}", f"B/{b} A/{a}") for a, b in pairs]
    of_pair = pd.DataFrame(
        [(key.partition(" ")[0], key) for pair in keys for key in pair], columns=["group_id", "pair"], dtype="string"
    )
    runs = ended.merge(of_pair, on="group_id").assign(group_id=lambda table: table["pair"]).drop(columns="pair")
    table = both.table.loc[[f"A/{a}" for a, _ in pairs]]
    counterparts = [f"B/{b}" for _, b in pairs]
    labels = ["that in B"] * len(pairs) if folders else both.table["label"][counterparts].tolist()
    table = table.assign(**{COUNTERPART: labels, "counterpart_id": counterparts}).set_axis(
        [key for key, _ in keys], axis="index"
    )
    twins = {ours: {COUNTERPART: theirs} for ours, theirs in keys}
    return runs, Grouping(
        table.rename_axis("group_id"), both.settings, {key: key for pair in keys for key in pair}, twins
    )


def _with_means(comparisons: pd.DataFrame, summary: pd.DataFrame) -> pd.DataFrame:
    """The comparisons, with the mean and the standard deviation of each side."""
    of_group = summary.set_index(["group_id", "metric"])[["mean", "std"]]
    for side, name in zip("ab", ("group_id", "counterpart_id"), strict=True):
        places = pd.MultiIndex.from_arrays([comparisons[name].astype(object), comparisons["metric"].astype(object)])
        of_side = of_group.reindex(places)
        comparisons[[f"mean_{side}", f"std_{side}"]] = of_side.to_numpy(float)
    return comparisons


def _unpaired(
    pairs: Pairs,
    ids: Sequence[Sequence[str]],
    configs: Mapping[str, RunConfig],
    grouping: Grouping,
    compare: tuple[str, str],
    folders: tuple[Path, Path] | None,
) -> Iterator[str]:
    """Notes on the groups without a counterpart, and why they have none."""
    label = _labels(grouping)
    both = [key for key in ids[0] if key in ids[1]] if not folders else []
    if both:
        yield f"On both sides, and not compared with themselves: {_listed(label[both])}."
    alone = [
        [key for key in side if key not in {pair[place] for pair in pairs} and key not in both]
        for place, side in enumerate(ids)
    ]
    of_data = [{configs[key].group_id if folders else configs[key].task: key for key in side} for side in alone]
    datasets = [{configs[key].dataset for key in side} for side in ids]
    if folders and (other := of_data[0].keys() & of_data[1].keys()):
        listed = [key for key in alone[0] if configs[key].group_id in other]
        yield (
            f"Not paired, because A and B were trained on different data: {_listed(label[listed])}. Their means stand side by side. A difference "
            "by seed would also be one of the images, so none is taken."
        )
        alone = [[key for key in side if configs[key].group_id not in other] for side in alone]
    elif not pairs and not folders and all(datasets) and datasets[0].isdisjoint(datasets[1]):
        of_side = [first_names(sorted(map(value_text, names))) for names in datasets]
        yield (
            f"Nothing is paired, because A and B were trained on different data sets (A: {of_side[0]}; B: {of_side[1]}). Their means stand side by side. A "
            "difference by seed would also be one of the images, so none is taken."
        )
        return
    for side, keys in zip(SIDES, alone, strict=True):
        if keys:
            yield f"Only in {side}, so not paired: {_listed(label[keys])}."
    if all(alone):
        apart = _apart(*([configs[key] for key in side] for side in alone))
        if not folders:
            free = _free(compare)
            apart = {
                name: of
                for name, of in apart.items()
                if name not in free and not (name == "optimizer" and "method" in free)
            }
        where = "these groups of A and of B"
        if not apart:
            yield f"No single setting tells {where} apart; runs.csv has the settings of each."
        elif folders:
            way_out = ""
            if all(len(values) == 1 for of in apart.values() for values in of):
                texts = [
                    ",".join(f"{name.replace('_', '-')}={of[place][0]}" for name, of in apart.items())
                    for place in (0, 1)
                ]
                command = shlex.join(["icpctl", "report", *compare, "--compare", *texts])
                way_out = f" To compare them nevertheless: `{command}`."
            yield f"All {where} differ in {_in_words(apart)}, and only groups with the same settings are paired.{way_out}"
        else:
            yield (
                f"All {where} differ in {_in_words(apart)}, and only groups that are equal in every setting that --compare does not name are paired. To compare them, name it on both "
                f"sides, as in {next(iter(apart)).replace('_', '-')}={next(iter(apart.values()))[0][0]}."
            )


def _labels(grouping: Grouping) -> pd.Series:
    """The labels of the groups, without the version of the data."""
    table = grouping.table
    pairs = zip(table["label"], table["data"].fillna(""), strict=True)
    return pd.Series([label.removesuffix(f", data {version}") for label, version in pairs], table.index)


def _listed(labels: Iterable[str]) -> str:
    """Labels in a sentence; they have commas."""
    listed = list(dict.fromkeys(labels))
    more = f" and {len(listed) - MOST_LABELS} more" if len(listed) > MOST_LABELS else ""
    return f"{count(len(listed), 'group')}, {'; '.join(listed[:MOST_LABELS])}{more}"


def _apart(ours: Sequence[RunConfig], theirs: Sequence[RunConfig]) -> dict[str, tuple[list[str], list[str]]]:
    """The settings of which no value is on both sides, with the values of each; not those that follow from others everywhere."""
    found = {}
    for name in RunConfig.model_fields:
        if name == "seed" or not declaration(name).identity:
            continue
        used = [[config for config in side if config.uses(name)] for side in (ours, theirs)]
        values = [{value_text(getattr(config, name)) for config in side} for side in used]
        usual = all(config.is_default(name) for side in used for config in side)
        if all(values) and values[0].isdisjoint(values[1]) and not usual:
            found[name] = (sorted(values[0]), sorted(values[1]))
    return found


def _in_words(apart: Mapping[str, tuple[Sequence[str], Sequence[str]]]) -> str:
    return ", ".join(
        f"{name} (A: {first_names(a, MOST_VALUES)}; B: {first_names(b, MOST_VALUES)})" for name, (a, b) in apart.items()
    )


def _on_seeds(pairs: Pairs, seeds: Mapping[str, set[int]], label: pd.Series) -> Iterator[str]:
    """Notes on seeds that one side alone has."""
    none, some = [], []
    for a, b in pairs:
        ours, theirs = seeds[f"A/{a}"], seeds[f"B/{b}"]
        sets = {"A": ours - theirs, "B": theirs - ours}
        words = "; ".join(f"{side}: {first_names(map(str, sorted(only)), 8)}" for side, only in sets.items() if only)
        if not ours & theirs:
            none.append(f"{label[a]} ({words})")
        elif words:
            some.append(f"{label[a]} ({words})")
    if none:
        yield f"Not paired, because A and B have no seed in common: {_listed(none)}. Train them with the same seeds."
    if some:
        yield f"Seeds that only one side has are in its mean, and in no difference: {_listed(some)}."


def _settings_apart(pairs: Pairs, configs: Mapping[str, RunConfig]) -> Iterator[str]:
    """In what the groups that are compared differ."""
    values: dict[str, tuple[dict[str, None], dict[str, None]]] = {}
    for a, b in pairs:
        if a == b:
            continue
        for name in RunConfig.model_fields:
            one, other = configs[a], configs[b]
            if name == "seed" or not declaration(name).identity or not (one.uses(name) and other.uses(name)):
                continue
            if getattr(one, name) != getattr(other, name):
                for side, config in zip(values.setdefault(name, ({}, {})), (one, other), strict=True):
                    side[value_text(getattr(config, name))] = None
    if values:
        yield f"The groups that are compared differ in {_in_words({name: (list(a), list(b)) for name, (a, b) in values.items()})}, and in no other setting that both read."


def _made(pairs: Pairs, ended: pd.DataFrame, records: Mapping[str, RunRecord]) -> Iterator[str]:
    """For the groups that are compared: in what the making of the two sides differs: versions, machine, and settings that do not change what a run is."""
    found: dict[str, dict[str, set[str]]] = {side: {} for side in SIDES}
    alike = [name for name in RunConfig.model_fields if not declaration(name).identity and name not in PLACES]
    paired = ended["run_id"][
        ended["group_id"].isin([f"{side}/{key}" for pair in pairs for side, key in zip(SIDES, pair, strict=True)])
    ]
    for run_id in paired[paired.isin(list(records))]:
        record = records[run_id]
        of_side = found[run_id[0]]
        session: Mapping[str, Any] = record.sessions[-1] if record.sessions else {}
        packages = session.get("packages")
        facts: dict[str, Any] = dict(packages) if isinstance(packages, dict) else {}
        facts |= {name: session.get(name) for name in ("commit", "python", "platform", "threads")}
        facts |= {"machine": session.get("device")} | {name: getattr(record.config, name) for name in alike}
        for name, value in facts.items():
            of_side.setdefault(str(name), set()).add(value_text(value) if np.isscalar(value) else "–")
    apart = {
        name: (sorted(values), sorted(found["B"][name]))
        for name, values in found["A"].items()
        if name in found["B"] and values != found["B"][name]
    }
    if apart:
        yield f"The runs of A and of B were made differently: {_in_words(apart)}."


def _equal(pairs: Pairs, ended: pd.DataFrame, records: Mapping[str, RunRecord]) -> Iterator[str]:
    """How many runs of the same settings and seed have the same metrics."""
    keys = ended["group_id"].str[2:] + " " + ended["seed"].astype("string")
    of_side = [
        dict(zip(keys[here], ended["run_id"][here], strict=True))
        for side in SIDES
        for here in [ended["run_id"].str.startswith(side)]
    ]
    compared = [(ours, of_side[1][key]) for key, ours in of_side[0].items() if key in of_side[1]]
    whole = [(records[ours], records[theirs]) for ours, theirs in compared if ours in records and theirs in records]
    if not whole:
        return
    apart = [what for one, other in whole if (what := differences(one, other))]
    if not apart:
        yield f"All {len(whole)} runs of A have a run of the same settings and seed in B with the same metrics in every epoch, to the last digit, apart from times."
        return
    yield (
        f"{len(whole) - len(apart)} of {count(len(whole), 'run')} that both have are equal in every epoch, to the last digit, apart from times. "
        f"The others differ, the first of them in {', '.join(apart[0])}."
    )
