"""What a run costs, counted in passes of the network: the measure by which baselines are compute-matched.

Passes are counted as in `icpctl.config.catalogue`.
"""

from __future__ import annotations

from icpctl.config import RunConfig
from icpctl.config.catalogue import METHODS, PLAIN, PLAIN_STEP


def step_passes(config: RunConfig) -> float:
    """Passes of one step with the method."""
    return METHODS[config.method].passes(config)


def plain_epochs(config: RunConfig) -> int:
    """Epochs without the method: the warm-up, or all of a baseline's."""
    if config.method == PLAIN:
        return config.epochs
    return config.warmup_epochs if "schedule" in METHODS[config.method].groups else 0


def passes(config: RunConfig, epoch: float | None = None) -> float:
    """How often a training image passes through the network in a run, evaluation not counted; or up to an epoch of it."""
    until = config.epochs if epoch is None else epoch
    plain = min(until, plain_epochs(config))
    return plain * PLAIN_STEP + (until - plain) * step_passes(config)


def compute_matched(config: RunConfig) -> RunConfig:
    """The compute-matched baseline of a run: plain training for as many epochs as its passes pay for, to the nearest."""
    epochs = round(passes(config) / PLAIN_STEP)
    return config.baseline().altered(epochs=epochs)
