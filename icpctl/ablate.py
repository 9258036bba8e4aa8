"""Ablations: a grid of settings, each with its baseline, over seeds, one run after the other."""

from __future__ import annotations

import itertools
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from icpctl.config import RunConfig, declaration, option, resolve
from icpctl.errors import UserError, unknown
from icpctl.results import RunFolder

EXAMPLE = "--grid steps=1,3,5"

State = Literal["finished", "skipped", "failed"]


@dataclass(frozen=True)
class Outcome:
    """How one run of an ablation ended; `skipped`: it was finished before."""

    config: RunConfig
    state: State
    error: str | None = None


def parse_grid(grids: Sequence[str]) -> dict[str, list[str]]:
    """The values of each hyper-parameter of a grid, from texts such as "steps=1,3,5" or "icp-lr=0.001,0.01".

    The values stay text; `plan` checks them. A value of `layers` joins its modules with "+": "layers=layer1+layer2".

    Raises:
        UserError: a text that is not KEY=VALUE,…, an unknown key, an empty value, a key or a value given twice.
    """
    grid: dict[str, list[str]] = {}
    for text in grids:
        place = f"--grid {text}"
        key, equals, listed = text.partition("=")
        name = key.strip().replace("-", "_")
        values = [value.strip() for value in listed.split(",")]
        if not equals:
            raise UserError(f"{place}: this is not a key and its values. Write, for example, {EXAMPLE}.")
        if name not in RunConfig.model_fields:
            raise UserError(f"{place}: {unknown('hyper-parameter', name, RunConfig.model_fields)}")
        if not declaration(name).identity:
            raise UserError(f"{place}: {name} does not make another run. Set it for all of them with {option(name)}.")
        if name in grid:
            raise UserError(f"{place}: {name} is given twice. List all its values once, for example {EXAMPLE}.")
        if "" in values:
            raise UserError(f"{place}: a value is empty. Part the values with one comma, for example {EXAMPLE}.")
        if len(set(values)) < len(values):
            raise UserError(f"{place}: a value is given twice. List each value once, for example {EXAMPLE}.")
        grid[name] = values
    return grid


def plan(settings: Mapping[str, object], grids: Sequence[str], seeds: int = 1) -> list[RunConfig]:
    """Every run of an ablation, in order: each combination of the grid, each after its baseline, on each seed.

    One seed is completed before the next begins, so an ablation that is cut short can be compared on the seeds it has.
    Combinations that come to the same run (baselines, mostly) are one run. All are checked before any is run.

    Args:
        settings: what the runs share; a key of the grid goes before it.
        grids: the texts that `parse_grid` takes.
        seeds: how many seeds, counted up from the seed of the settings (0 where they give none).

    Raises:
        UserError: a fault in the grid, or a combination that is not a valid configuration; it is named.
    """
    grid = parse_grid(grids)
    if seeds < 1:
        raise UserError(f"--seeds {seeds}: there is nothing to run. Give 1 or more.")
    if seeds > 1 and "seed" in grid:
        raise UserError(f"--seeds {seeds} and --grid seed=… both say which seeds to run. Give one of them.")
    first = resolve({"seed": settings.get("seed", 0)}).seed
    configs: dict[str, RunConfig] = {}
    for seed in range(first, first + seeds):
        for values in itertools.product(*grid.values()):
            combination = dict(zip(grid, values, strict=True))
            where = " ".join(f"--grid {name}={value}" for name, value in combination.items())
            config = resolve({**settings, "seed": seed, **combination}, where)
            for each in (config.baseline(), config):
                configs.setdefault(each.run_id, each)
    return list(configs.values())


def run(
    configs: Sequence[RunConfig],
    output: Path,
    train: Callable[[RunConfig], object],
    announce: Callable[[int, int, RunConfig, str], None],
) -> list[Outcome]:
    """Run the configurations one after the other; a run that fails is recorded and the others go on.

    Args:
        configs: the runs, in order; those that are finished under `output` are skipped.
        output: the results folder.
        train: trains one run in its folder under `output`; what it returns is not kept.
        announce: told (number from 1, how many, configuration, state) when a run begins ("running") and when it ends
            or is passed over (the state of its `Outcome`).
    """
    outcomes = []
    for number, config in enumerate(configs, start=1):
        folder = RunFolder(output, config)
        if folder.status().get("state") == "finished":
            outcome = Outcome(config, "skipped")
        else:
            announce(number, len(configs), config, "running")
            outcome = _attempt(config, folder, train)
        announce(number, len(configs), config, outcome.state)
        outcomes.append(outcome)
    return outcomes


def _attempt(config: RunConfig, folder: RunFolder, train: Callable[[RunConfig], object]) -> Outcome:
    try:
        train(config)
    except Exception as error:
        message = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        # A run that is refused while it is running may be in the hands of another process: its folder is not ours.
        refused = isinstance(error, UserError) and folder.status().get("state") == "running"
        if not refused:
            with suppress(UserError):  # the folder cannot be written; what stopped the run matters more
                folder.create()
                details = {"state": "failed", "error": message, "traceback": traceback.format_exc()}
                folder.write_status(**folder.status() | details)
        return Outcome(config, "failed", message)
    return Outcome(config, "finished")
