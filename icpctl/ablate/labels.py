"""What the runs of a study are called for people: the method, and the settings in which the runs differ."""

from __future__ import annotations

from collections.abc import Container, Sequence
from operator import methodcaller

from icpctl.config import RunConfig, declaration
from icpctl.config.catalogue import variants
from icpctl.text import value_text

IN_LABEL = frozenset(["method", "optimizer", "direction", "seed"])
"""Settings that every label shows in words."""


def varied(configs: Sequence[RunConfig], shown: Container[str]) -> list[str]:
    """The settings in which configurations differ, but for those that are shown anyway."""
    names = []
    for name in RunConfig.model_fields:
        active = [config for config in configs if config.uses(name)]
        if len({getattr(config, name) for config in active}) > 1 and not all(
            map(methodcaller("is_default", name), active)
        ):
            names.append(name)
    return [name for name in names if name not in shown]


def labels(configs: Sequence[RunConfig]) -> dict[str, str]:
    """A label for each run, by its id: "AdEMAMix-ICP random, steps=5, seed 0"."""
    apart = [name for name in varied(configs, IN_LABEL) if declaration(name).identity]
    found = {}
    for config in configs:
        name = " ".join(filter(None, [variants()[config.variant].label, config.control]))
        settings = [f"{each}={value_text(getattr(config, each))}" for each in apart if config.uses(each)]
        found[config.run_id] = ", ".join([name, *settings, f"seed {config.seed}"])
    return found
