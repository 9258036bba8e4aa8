"""Which run is compared with which."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from icpctl.config import RunConfig
from icpctl.config.catalogue import METHODS, PLAIN, controls
from icpctl.config.cost import compute_matched

AGAINST = {
    "baseline": "the baseline",
    "compute-matched": "the baseline of equal compute",
    **{key: control.words for key, control in controls().items()},
    **{name: row.label for name, row in METHODS.items() if name not in (PLAIN, "icp")},
}
"""What a run is compared with, in words."""
METHOD = "method"
"""Stands among the references of a control for the run whose control it is."""


def references(config: RunConfig) -> dict[str, RunConfig]:
    """What a run is compared with, on the same seed: its twins by the keys of `AGAINST`; of a control also the run of
    the method, as `METHOD`. A baseline has none. For other methods see `rivals`.
    """
    if config.method == PLAIN:
        return {}
    found = {"baseline": config.baseline(), "compute-matched": compute_matched(config)}
    if found["compute-matched"] == found["baseline"]:  # the method costs nothing
        del found["compute-matched"]
    of_method = METHODS[config.method].controls
    if not config.control:
        return found | {key: config.altered(**control.settings) for key, control in of_method.items()}
    defaults = {name: RunConfig.model_fields[name].default for name in of_method[config.control].settings}
    return found | {METHOD: config.altered(**defaults)}


def rivals(configs: Iterable[RunConfig]) -> dict[str, dict[str, RunConfig]]:
    """The runs of other methods that each run of ICP is compared with, by its group_id and by the names of the methods.

    They have the baseline of the run of ICP, so that they differ from it in the method alone. Of several runs of a method, the
    one of its default settings counts; without it none does.

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
        of_icp = by_method.pop("icp", [])
        chosen = {method: _default(several) for method, several in by_method.items()}
        for config in of_icp:
            found[config.group_id] = {method: one for method, one in chosen.items() if one is not None}
    return found


def _default(several: list[RunConfig]) -> RunConfig | None:
    if len(several) == 1:
        return several[0]
    usual = several[0].baseline().altered(method=several[0].method).group_id
    return next((config for config in several if config.group_id == usual), None)
