"""Which run is compared with which."""

from __future__ import annotations

from icpctl.config import RunConfig
from icpctl.config.catalogue import PLAIN
from icpctl.config.cost import compute_matched

AGAINST = {
    "baseline": "the baseline",
    "compute-matched": "the baseline of equal compute",
    "ascend": "its ascending control",
    "random": "its control in a random direction",
}
"""What a run is compared with, in words."""


def references(config: RunConfig) -> dict[str, RunConfig]:
    """What a run is compared with, on the same seed: its twins by the keys of `AGAINST`; of a control also the run of
    the method, as `descend`. A baseline has none.
    """
    if config.method == PLAIN:
        return {}
    found = {"baseline": config.baseline(), "compute-matched": compute_matched(config)}
    if not config.uses("direction"):
        return found
    others = ("ascend", "random") if config.direction == "descend" else ("descend",)
    return found | {direction: config.altered(direction=direction) for direction in others}
