"""What a run costs, counted in passes of the network: the measure in which runs are compared at equal compute.

A forward pass counts 1, a backward pass 1 for the gradients of the features and 1 for those of the weights. The
perturbation needs no gradients of the weights.
"""

from __future__ import annotations

from icpctl.config import RunConfig

PLAIN_STEP = 3
"""Passes of a plain step: forward, backward."""


def step_passes(config: RunConfig, icp: bool) -> int:
    """Passes of one step: 3, or with the method 2·T for the perturbation, 1 for the teacher and 3 for the student.

    The eval-mode gradient of `extra_task_grad` is 3 more.
    """
    if not icp:
        return PLAIN_STEP
    return 2 * config.steps + 1 + PLAIN_STEP + (PLAIN_STEP if config.extra_task_grad else 0)


def plain_epochs(config: RunConfig) -> int:
    """Epochs without the method: the warm-up, or all of a baseline's."""
    return config.epochs if config.optimizer == "none" else config.warmup_epochs


def passes(config: RunConfig, epoch: float | None = None) -> float:
    """How often a training image passes through the network in a run, evaluation not counted; or up to an epoch of it."""
    until = config.epochs if epoch is None else epoch
    plain = min(until, plain_epochs(config))
    return plain * PLAIN_STEP + (until - plain) * step_passes(config, icp=True)


def compute_matched(config: RunConfig) -> RunConfig:
    """The baseline of a run at equal compute: plain training for as many epochs as its passes pay for, to the nearest."""
    epochs = round(passes(config) / PLAIN_STEP)
    return config.baseline().altered(epochs=epochs)
