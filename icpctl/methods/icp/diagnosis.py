"""What the measurements of an epoch say against its perturbation: that it does nothing, or that rounding drowns it."""

from __future__ import annotations

from collections.abc import Mapping
from math import isnan

from icpctl.config import RunConfig, option
from icpctl.config.catalogue import INPUT_OPTIMIZERS
from icpctl.methods.base import Fault

NO_OP = 1e-3
"""Relative change of the loss and of the features up to which a perturbation does nothing."""
NOISE_FLOOR = 0.1
"""Error of the feature shift above which rounding drowns it."""
VANISHED = 0.1
"""Share of η that the largest change of an input has with Adam or AdEMAMix, which normalise their steps, unless the gradients are as small as ε."""


def diagnose(config: RunConfig, means: Mapping[str, float], settled: bool) -> list[Fault]:
    """What is wrong with the perturbation of an epoch.

    Args:
        config: the run.
        means: of the epoch, by name, as a run records them; without those of the perturbation there is no fault.
        settled: whether an epoch of training came before, after which the running statistics of batch norm, which the
            perturbation reads, are those of the images.
    """
    if "icp_loss_before" not in means:
        return []
    before, after, moved = means["icp_loss_before"], means["icp_loss_after"], means["delta_linf"]
    of_stages = {name: value for name, value in means.items() if name.startswith("feature_shift_") and not isnan(value)}
    errors = [value for name, value in of_stages.items() if "error" in name]
    largest = max((value for name, value in of_stages.items() if "error" not in name), default=0.0)
    nothing = abs(after - before) <= NO_OP * abs(before) and largest <= NO_OP
    drowned = max(errors, default=0.0)
    measured = (
        f"loss {before:.6f} before, {after:.6f} after, the largest change of an input value is {moved:.1e}, the largest "
        f"feature shift {largest:.1e}"
    )
    if not settled and (nothing or drowned > NOISE_FLOOR):
        said = f"does nothing ({measured})" if nothing else f"is drowned by the rounding of {config.precision}"
        return [
            Fault(
                "unsettled",
                f"in the first epoch the perturbation {said}. The running statistics of batch norm, which it reads, have "
                f"not settled there: train an epoch or more without it, with {option('warmup_epochs')}.",
            )
        ]
    faults = []
    if nothing:
        normalises = INPUT_OPTIMIZERS[config.optimizer].normalises
        vanished = normalises and moved < VANISHED * config.icp_lr
        sum_instead = (
            f", or use {option('icp_reduction')} sum" if config.icp_reduction == "mean" and not normalises else ""
        )
        way_out = (
            "The gradient of the loss with respect to the input has vanished, as in a dead network or at a loss of 0, and no "
            f"{option('icp_lr')} changes that: look at the loss of this run, and lower {option('lr')}."
            if vanished
            else f"Raise {option('icp_lr')} or {option('steps')}{sum_instead}."
        )
        faults.append(
            Fault(
                "no-op",
                f"the perturbation does nothing: {measured}. {way_out}",
                "The perturbation does nothing. What sets such a run apart from its baseline is the falling task weight, "
                f"and the teacher's own update of the batch-norm statistics ({option('teacher_statistics')}).",
            )
        )
    if drowned > NOISE_FLOOR:
        size = f"{drowned:.0%} of it" if drowned <= 1 else "more than the shift itself"
        precise = f", or use {option('precision')} float32" if config.precision != "float32" else ""
        faults.append(
            Fault(
                "noise",
                f"the feature shift is under the noise floor of {config.precision}: rounding makes up {size} (measured "
                f"against float64). Raise {option('icp_lr')} or {option('steps')}{precise}.",
                f"The feature shift is under the noise floor of {config.precision}.",
            )
        )
    return faults
