"""The catalogue of methods: what the rest of the code needs to know about each. It imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from icpctl.config import RunConfig

PLAIN_STEP = 3
"""Passes of a plain step: 1 forward, and 2 backward, for the gradients of the features and of the weights."""
PLAIN = "plain"
"""The baseline of every other method: the same training without it."""


class Variant(NamedTuple):
    """How a method, or one of several that it has, is shown."""

    label: str
    colour: str
    marker: str


@dataclass(frozen=True)
class MethodRow:
    """One method.

    A forward pass of the network counts 1, a backward pass 1 for the gradients of the features and 1 for those of the weights.
    """

    label: str
    """Its name where its variants are pooled."""
    summary: str
    """One sentence, without its full stop."""
    variants: Mapping[str, Variant]
    """How it is shown, by its own name; or by `optimizer`, where that makes variants of it."""
    module: str
    """The class, as package.module:Class; a subclass of `icpctl.methods.base.Method`."""
    passes: Callable[[RunConfig], int] = lambda config: PLAIN_STEP
    """Passes of the network for a fresh image in a step with the method."""
    groups: tuple[str, ...] = ()
    """The groups of settings that mean something with it; those of other methods are put at their defaults."""
    tasks: tuple[str, ...] = ("classification", "generation")
    captured: bool = False
    """Whether its step can be a CUDA graph: it does the same operations each time, on tensors at fixed places."""
    stacked: bool = False
    """Whether several runs can be trained together: `torch.vmap` can map its objective, and `update` is that of `Method`."""


def _icp_passes(config: RunConfig) -> int:
    """2·T for the perturbation, which needs no gradients of the weights, 1 for the teacher, 3 for the student.

    The eval-mode gradient of `extra_task_grad` is 3 more.
    """
    return 2 * config.steps + 1 + PLAIN_STEP + (PLAIN_STEP if config.extra_task_grad else 0)


METHODS: dict[str, MethodRow] = {
    PLAIN: MethodRow(
        "baseline",
        "Plain training: the task loss alone",
        {PLAIN: Variant("baseline", "#000000", "X")},
        "icpctl.methods.plain:Plain",
        captured=True,
        stacked=True,
    ),
    "icp": MethodRow(
        "ICP",
        "The features of a constructively perturbed input are targets for those of the original one (arXiv 2505.14751)",
        {
            "sgd": Variant("SGD-ICP", "#CC79A7", "s"),
            "adam": Variant("Adam-ICP", "#0072B2", "o"),
            "ademamix": Variant("AdEMAMix-ICP", "#D55E00", "D"),
        },
        "icpctl.methods.icp.method:ICP",
        passes=_icp_passes,
        groups=("perturbation", "distillation"),
        captured=True,
        stacked=True,
    ),
}
"""In the order of tables and figures; the colours are of the palette of Okabe and Ito."""


def variants() -> dict[str, Variant]:
    """How each method and variant is shown, in the order of tables and figures."""
    return {key: variant for row in METHODS.values() for key, variant in row.variants.items()}
