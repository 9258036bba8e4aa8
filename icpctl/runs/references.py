"""Which run is compared with which."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from icpctl.config import RunConfig, settings_of_methods
from icpctl.config.catalogue import LABEL_SMOOTHING, METHODS, PLAIN, Live, controls
from icpctl.config.cost import compute_matched

COUNTERPART = "counterpart"
"""Stands for the group of B that a group of A is compared with, where a report holds two sides beside each other."""
AGAINST = Live(
    lambda: {
        "baseline": "the baseline",
        "compute-matched": "the compute-matched baseline",
        **{key: control.words for key, control in controls().items()},
        **{name: row.label for name, row in METHODS.items() if name not in (PLAIN, "icp", *controls())},
        COUNTERPART: "its counterpart in B",
    }
)
"""What a run is compared with, in words."""
METHOD_RUN = "method"
"""Stands among the references of a control for the run whose control it is; see `of_controls`."""


def references(config: RunConfig) -> dict[str, RunConfig]:
    """What a run is compared with, on the same seed: its twins by the keys of `AGAINST`. A baseline has none. For other methods
    see `rivals`.
    """
    if config.method == PLAIN:
        return {}
    found = {"baseline": config.baseline(), "compute-matched": compute_matched(config)}
    if found["compute-matched"] == found["baseline"]:  # the method costs nothing
        del found["compute-matched"]
    return found | controls_of(config)


def controls_of(config: RunConfig) -> dict[str, RunConfig]:
    """The controls of a run of a method; a control has none. Labels that are smoothed for all runs need no such control."""
    if config.control:
        return {}
    return {
        key: config.altered(**control.settings)
        for key, control in METHODS[config.method].controls.items()
        if key != LABEL_SMOOTHING or not config.label_smoothing
    }


def of_controls(configs: Iterable[RunConfig]) -> dict[str, RunConfig]:
    """The run whose control a run is, by the group_id of the control.

    Args:
        configs: one of each group.
    """
    return {
        control.group_id: config for config in configs for control in controls_of(config).values() if control.control
    }


def rivals(configs: Iterable[RunConfig]) -> dict[str, dict[str, RunConfig]]:
    """The runs of other methods that each run of ICP is compared with, by its group_id and by the names of the methods.

    They have the baseline of the run of ICP, so that they differ from it in the method alone. Of several runs of a method, those
    count that have the settings of ICP where both methods read them; of these the one of default settings; without it none.

    Args:
        configs: one of each group.
    """
    of_baseline: dict[str, list[RunConfig]] = defaultdict(list)
    for config in configs:
        if config.method != PLAIN and not config.control:
            of_baseline[config.baseline().group_id].append(config)
    found: dict[str, dict[str, RunConfig]] = {}
    for alike in of_baseline.values():
        by_method: dict[str, list[RunConfig]] = defaultdict(list)
        for config in alike:
            by_method[config.method].append(config)
        for config in by_method.pop("icp", []):
            chosen = {method: _nearest(config, several) for method, several in by_method.items()}
            found[config.group_id] = {method: one for method, one in chosen.items() if one is not None}
    return found


def _nearest(config: RunConfig, several: list[RunConfig]) -> RunConfig | None:
    if len(several) == 1:
        return several[0]
    names = [name for name in settings_of_methods() if several[0].uses(name)]
    shared = [name for name in names if config.uses(name)]
    alike = [one for one in several if all(getattr(one, name) == getattr(config, name) for name in shared)]
    own = [*METHODS[several[0].method].sets, "mix_alpha", "mix_probability", *(n for n in names if n not in shared)]
    usual = [one for one in alike if all(map(one.is_default, own))]
    return alike[0] if len(alike) == 1 else usual[0] if usual else None


def comparisons(configs: Iterable[RunConfig]) -> int:
    """How many comparisons a report makes of a metric, all of which its correction is over; of several tasks, the most.

    Args:
        configs: of the runs, before their tuning.
    """
    groups = {config.group_id: config for config in configs}
    others, found = rivals(groups.values()), Counter[str]()
    for group_id, config in groups.items():
        twins = references(config) | others.get(group_id, {})
        found[config.task] += sum(twin.group_id in groups for twin in twins.values())
    return max(found.values(), default=0)


class TunedArm(NamedTuple):
    """The runs of a study that differ in their seed alone, before their tuning and after it; of any seed."""

    untuned: RunConfig
    tuned: RunConfig


def tuned_references(tunings: Iterable[Iterable[TunedArm]]) -> dict[str, dict[str, RunConfig]]:
    """What each tuned run is compared with, by its group_id, and by the keys of `AGAINST`: what it was compared with before the tuning,
    with the settings that tuning chose for that. So tuned runs are compared with runs that were tuned alike, and with no others.

    Args:
        tunings: the arms of each tuning. If one run comes from several tunings, the first of them counts.
    """
    found: dict[str, dict[str, RunConfig]] = {}
    for arms in map(list, tunings):
        tuned = {arm.untuned.group_id: arm.tuned for arm in arms}
        before = [arm.untuned for arm in arms]
        others, methods = rivals(before), of_controls(before)
        for arm in arms:
            group_id = arm.untuned.group_id
            twins = references(arm.untuned) | others.get(group_id, {})
            if method := methods.get(group_id):
                twins[METHOD_RUN] = method
            there = {kind: tuned[twin.group_id] for kind, twin in twins.items() if twin.group_id in tuned}
            found[arm.tuned.group_id] = there | found.get(arm.tuned.group_id, {})
    return found
