"""What was tuned in a results folder: the arms, the trials that each was given, and the one that was chosen.

`tuning.json` says which trials there are, and is written before they begin; how each of them ended is in its own run folder, under
`tuning/`. The choice is written down once all trials of an arm have ended, so that what is trained with it stays as it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, TypeAdapter

from icpctl.config import RunConfig
from icpctl.config.cost import passes
from icpctl.errors import UserError
from icpctl.files import load_json, write_atomic
from icpctl.runs.folder import TUNING, RunFolder, read_record
from icpctl.runs.references import TunedArm

PLAN_FILE = "tuning.json"
LAST_SEED = 2**31 - 1
"""The seed of the first trial; the others count down from it, so that none is that of a run of the study."""

Values = dict[str, int | float]
"""Of the settings that are tuned, by their names."""


class Arm(BaseModel):
    """What is tuned by itself: the runs of a study that differ in their seed alone."""

    model_config = ConfigDict(strict=True)

    role: str
    config: dict[str, Any]
    """Before its tuning, as config.json has it."""
    reads: list[str]
    """The settings with a range that mean something in it."""
    trials: list[Values] = []
    """The settings of each trial, in order."""
    best: int | None = None
    """The trial that was chosen, counted from 0; None as long as not all of them have ended."""

    @cached_property
    def untuned(self) -> RunConfig:
        """The configuration before its tuning."""
        return RunConfig.recorded(self.config)

    @property
    def name(self) -> str:
        """Readable, and different for each arm of a tuning."""
        return f"{self.untuned.run_id.rpartition('-s')[0]}-{self.untuned.group_id}"

    @property
    def chosen(self) -> Values | None:
        """The settings of the trial that was chosen; None as long as there is none."""
        return None if self.best is None else self.trials[self.best]

    @property
    def tuned(self) -> RunConfig:
        """The configuration with the settings that were chosen, or as it was before."""
        return self.untuned.altered(**(self.chosen or {}))

    def trial(self, number: int) -> RunConfig:
        """The run of a trial, counted from 0."""
        return trial_of(self.untuned, number, self.trials[number])


class Tuning(BaseModel):
    """The arms that were tuned alike: over the same ranges, with the same number of trials."""

    model_config = ConfigDict(strict=True)

    ranges: dict[str, str]
    trials: int
    """Of each arm."""
    arms: dict[str, Arm]
    """By the group_id before the tuning."""

    def tuned_arms(self) -> list[TunedArm]:
        """The arms for which a trial was chosen."""
        return [TunedArm(arm.untuned, arm.tuned) for arm in self.arms.values() if arm.chosen is not None]


_PLAN: TypeAdapter[dict[str, Tuning]] = TypeAdapter(dict[str, Tuning])


def trial_of(untuned: RunConfig, number: int, values: Mapping[str, object]) -> RunConfig:
    """The run of a trial of an arm, counted from 0. Its seed is that of no final run, and nothing is measured that the choice does not need."""
    return untuned.altered(**values, seed=LAST_SEED - number, fit_images=0, robustness=False, keep_predictions=False)


def read_tunings(output: Path) -> dict[str, Tuning]:
    """What was tuned in a results folder, by `icpctl.ablate.tuning.tuning_id`.

    Raises:
        UserError: tuning.json is damaged.
    """
    file = output / PLAN_FILE
    try:
        tunings = _PLAN.validate_python(load_json(file))
        for arm in (arm for tuning in tunings.values() for arm in tuning.arms.values()):
            for number in {0, arm.best or 0} if arm.trials or arm.best is not None else ():
                arm.trial(number)
        return tunings
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, IndexError, TypeError, UserError):
        raise UserError(
            f"{file} is damaged, so it does not say what was tuned. Restore it; or remove it, and `icpctl ablate --resume {output}` "
            "finds the finished trials again."
        ) from None


def write_tunings(output: Path, tunings: Mapping[str, Tuning]) -> None:
    """Write what was tuned, whole or not at all; to be called by the holder of the study's lock.

    Raises:
        UserError: it cannot be written.
    """
    content = {key: tuning.model_dump(mode="json") for key, tuning in tunings.items()}
    write_atomic(output / PLAN_FILE, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def trial_value(output: Path, config: RunConfig) -> float | None:
    """What a trial is chosen by: its metric on the validation split at the last epoch, the larger the better.

    Returns:
        The value; −∞ of a trial whose loss was no finite number at some step; None of one that has not ended.

    Raises:
        UserError: it is finished, and its metrics.csv has no such value.
    """
    folder = RunFolder(output / TUNING, config)
    status = folder.status()
    if status.get("state") == "failed" and status.get("diverged"):
        return -np.inf
    if status.get("state") != "finished":
        return None
    record, _ = read_record(folder.path, config)
    curve = record.curves.get(("val", config.selection))
    if curve is None or record.epochs[-1] != config.epochs - 1 or not np.isfinite(curve[-1]):
        raise UserError(
            f"{folder.metrics_file} lacks the {config.selection} on the validation split at the last epoch, by which a trial is chosen. "
            "Restore the file; or remove the folder, and the trial is trained anew."
        )
    return float(curve[-1])


def trial_passes(output: Path, arm: Arm) -> float:
    """What the trials of an arm cost: passes of a training image through the network, of each trial up to where it came."""
    total = 0.0
    for number in range(len(arm.trials)):
        config = arm.trial(number)
        status = RunFolder(output / TUNING, config).status()
        # A chosen arm had all of its trials; the folder of one may have been removed since.
        until = status.get("epoch", 0) if status.get("state") != "finished" and (status or arm.best is None) else None
        total += passes(config, until)
    return total
