"""Tuning: every arm of a study gets the same number of trials, and its final runs have the settings of the best one.

An arm is the runs of a study that differ in their seed alone: a baseline, a compute-matched one, a method, a control. A trial is a run
like any other, in a run folder under `tuning/`, so claims, executors and resuming are those of runs. Which trials an arm has is
written to `tuning.json` before they begin.

Optuna is asked for the trials in batches, and told how those of the batches before ended, in their order. What it answers follows from
that and from the arm alone; so neither the number of jobs nor a kill changes the trials, or the choice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from icpctl.ablate.ranges import EXAMPLE as RANGE
from icpctl.ablate.ranges import Range, texts_of
from icpctl.ablate.scheduler import Scheduler
from icpctl.ablate.study import MOST_TRIALS, Definition, PlannedRun, Study, in_order, study_lock
from icpctl.config import RunConfig, option
from icpctl.config.conditions import named_settings
from icpctl.config.cost import passes
from icpctl.config.grid import EXAMPLE, key_of
from icpctl.errors import UserError, count
from icpctl.files import write_atomic
from icpctl.runs.folder import TUNING, RunFolder
from icpctl.runs.tuning import LAST_SEED, Arm, Tuning, Values, read_tunings, trial_of, trial_value, write_tunings
from icpctl.seeds import derived_seed
from icpctl.text import csv_text, value_text

TUNING_TABLE = "tuning.csv"
STARTUP = 10
"""Trials of an arm that are drawn at random, before Optuna's estimator has something to learn from; they are the first batch."""
BATCH = 5
"""Trials that are asked for at once after these."""
DIGITS = 4
"""Significant digits of the numbers that are tried."""


@dataclass
class ArmAtWork:
    """An arm as the tuning of a study sees it."""

    tuning: str
    """The id of its tuning."""
    config: RunConfig
    """Before its tuning, of any seed, for this machine."""
    ranges: Mapping[str, Range]
    """Those that mean something in it."""
    number: int
    """Of its trials."""
    plan: Arm
    """What is written down of it."""
    configs: list[RunConfig] = field(default_factory=list)
    """The runs of the trials that it was given so far."""
    fault: str = ""
    """Why none of its trials can be chosen."""

    def __post_init__(self) -> None:
        self.take(self.plan)

    def take(self, plan: Arm) -> None:
        """Go by what is written down."""
        self.plan = plan
        self.configs += [
            trial_of(self.config, number, plan.trials[number]) for number in range(len(self.configs), len(plan.trials))
        ]

    @property
    def left(self) -> int:
        """How many trials it has not been given yet."""
        return self.number - len(self.configs)


class Tuner:
    """The tuning of the studies of a definition, in a results folder.

    Raises:
        UserError: a study that cannot be tuned as it says; a damaged `tuning.json`.
    """

    def __init__(self, definition: Definition, output: Path) -> None:
        self.output = output
        self.studies = [study for study in definition.studies if study.tune]
        tunings = read_tunings(output) if self.studies else {}
        self.tunings: dict[str, Tuning] = {}
        self.arms: list[ArmAtWork] = []
        for study in self.studies:
            key = tuning_id(study)
            arms = tunings[key].arms if key in tunings else {}
            self.tunings[key] = Tuning(ranges=texts_of(study.tune), trials=study.trials, arms={})
            self.arms += [arm for arm in _arms(study, arms) if not self._has(arm)]
        self._values: dict[str, float] = {}

    def _has(self, arm: ArmAtWork) -> bool:
        return any((one.tuning, one.config.group_id) == (arm.tuning, arm.config.group_id) for one in self.arms)

    def unfinished(self) -> list[ArmAtWork]:
        """The arms for which no trial has been chosen yet."""
        return [arm for arm in self.arms if arm.plan.best is None]

    def trials(self) -> list[PlannedRun]:
        """The trials that the unfinished arms have been given, and for each of the others a stand-in of the same cost."""
        return [
            PlannedRun(config, "trial")
            for arm in self.unfinished()
            for config in (*arm.configs, *(trial_of(arm.config, arm.number - 1 - i, {}) for i in range(arm.left)))
        ]

    def left(self) -> list[PlannedRun]:
        """Those of `trials` that have not ended."""
        return [run for run in self.trials() if trial_value(self.output, run.config) is None]

    def final_runs_to_come(self) -> list[PlannedRun]:
        """The final runs of the unfinished arms, before their tuning."""
        waiting = {(arm.tuning, arm.config.group_id) for arm in self.unfinished()}
        return [
            run for study in self.studies for run in study.runs() if (tuning_id(study), run.config.group_id) in waiting
        ]

    def advance(self, scheduler: Scheduler, say: Callable[[str], None] = lambda message: None) -> None:
        """Give each arm whose trials so far have ended the next ones, or choose the best of them; to be called from time to time."""
        for arm in self.arms:
            while arm.plan.best is None and not arm.fault and (values := self._ended(arm, scheduler)) is not None:
                self._go_on(arm, values)
                if arm.plan.best is not None:
                    say(chosen_text(arm, values))
        scheduler.to_come = [arm.config for arm in self.unfinished() if not arm.fault for _ in range(arm.left)]

    def check(self, scheduler: Scheduler) -> None:
        """To be called at the end.

        Raises:
            UserError: an arm for which no trial could be chosen.
        """
        failed = {run.folder.run_id: run.error for run in scheduler.runs.values() if run.state == "failed"}
        broken = {run_id: error for run_id, error in failed.items() if run_id not in self._values}
        if broken:
            run_id, error = next(iter(broken.items()))
            raise UserError(
                f"{len(broken)} of the trials failed, and an arm's best one is chosen when all of them have ended. Mend what was wrong, "
                f"and `icpctl ablate --resume {self.output}` tries them again. {self.output / TUNING / run_id}: {error}"
            )
        for arm in self.arms:
            if arm.fault:
                raise UserError(arm.fault)

    def _ended(self, arm: ArmAtWork, scheduler: Scheduler) -> list[float] | None:
        """What each trial so far is chosen by; None as long as not all of them have ended, and those that are left are to be trained."""
        values: list[float] = []
        for config in arm.configs:
            run_id = config.run_id
            if run_id not in self._values:
                run = scheduler.runs.get(run_id)
                # One that failed and is tried again has not ended yet.
                if run is None or run.state in ("finished", "failed"):
                    value = trial_value(self.output, config)
                    if value is not None:
                        self._values[run_id] = value
                    elif run is None:
                        scheduler.add([PlannedRun(config, "trial")])
            if run_id in self._values:
                values.append(self._values[run_id])
        return values if len(values) == len(arm.configs) else None

    def _go_on(self, arm: ArmAtWork, values: Sequence[float]) -> None:
        """Write down the next trials of an arm, or the choice among all of them."""
        if not arm.left and np.isneginf(values).all():
            ranges = ", ".join(f"{name} from {arm.ranges[name]}" for name in arm.ranges)
            arm.fault = (
                f"The loss was not finite in any trial of {arm.plan.name}, so there is none to choose ({ranges}). Give ranges with smaller "
                "learning rates."
            )
            return
        group_id = arm.config.group_id
        with study_lock(self.output):  # another process may be tuning the same study
            tunings = read_tunings(self.output)
            of_tuning = tunings.setdefault(arm.tuning, self.tunings[arm.tuning])
            kept = of_tuning.arms.get(group_id, arm.plan)
            plan = arm.plan.model_copy(deep=True)
            if arm.left:
                plan.trials += next_trials(arm, values)
            else:
                plan.best = int(np.argmax(values))  # of equals the first
            if len(kept.trials) >= len(plan.trials) and plan.best is None:
                plan = kept
            of_tuning.arms[group_id] = plan
            write_tunings(self.output, tunings)
        arm.take(plan)


def tuning_id(study: Study) -> str:
    """The same for studies that tune alike: over the same ranges, with the same number of trials."""
    content = json.dumps([sorted(texts_of(study.tune).items()), study.trials])
    return hashlib.sha256(content.encode()).hexdigest()[:8]


def final_runs(definition: Definition, output: Path) -> list[PlannedRun]:
    """The runs of all studies, each once, tuned ones with the settings that were chosen; without the arms for which none were, yet.

    Raises:
        UserError: as `Definition.runs`; a damaged `tuning.json`.
    """
    tunings = read_tunings(output) if any(study.tune for study in definition.studies) else {}
    planned: list[PlannedRun] = []
    for study in definition.studies:
        arms = tunings[tuning_id(study)].arms if tuning_id(study) in tunings else {}
        for run in study.runs():
            if study.tune:
                arm = arms.get(run.config.group_id)
                if arm is None or arm.chosen is None:
                    continue
                run = replace(run, config=run.config.altered(**arm.chosen))
            planned.append(run)
    return in_order(planned)


def _arms(study: Study, kept: Mapping[str, Arm]) -> Iterator[ArmAtWork]:
    """The arms of a study.

    Raises:
        UserError: it cannot be tuned as it says.
    """
    key, words = tuning_id(study), f"--tune {','.join(map(key_of, study.tune))}"
    for condition in study.where:
        if named := sorted(study.tune.keys() & named_settings(condition)):
            raise UserError(
                f"--where {condition!r}: {', '.join(map(option, named))} is tuned, so no combination has a value of it yet. Leave out the condition, or "
                "give a narrower range."
            )
    found: dict[str, ArmAtWork] = {}
    for run in study.runs():
        config = run.config
        if config.seed > LAST_SEED - MOST_TRIALS:
            raise UserError(
                f"{option('seed')} {config.seed}: the seeds from {LAST_SEED - MOST_TRIALS + 1} on are those of trials, which no final run may "
                "have. Give a smaller one."
            )
        if config.group_id in found:
            continue
        if not config.val_fraction:
            raise UserError(
                f"{words}: trials are chosen by their accuracy on held-out training images, never on the test split, and {option('val_fraction')} is 0. "
                f"Leave out {option('val_fraction')}, or give more than 0."
            )
        ranges = {name: each for name, each in study.tune.items() if _reads(config, name, each)}
        plan = Arm(role=run.role, config=config.model_dump(mode="json"), reads=list(ranges))
        arm = ArmAtWork(key, config, ranges, study.trials, kept.get(config.group_id, plan))
        found[config.group_id] = arm
    for name in study.tune:
        if not any(name in arm.ranges for arm in found.values()):
            raise UserError(
                f"--tune {key_of(name)}: this changes no run, as {option(name)} means nothing with the other settings. Leave it out, or change those."
            )
    for arm in found.values():
        if not arm.ranges:
            raise UserError(
                f"{words}: the {arm.plan.role} {arm.plan.name} has none of these settings, so it would be the one that is not tuned. Add a range "
                f"that it has, for example {RANGE}."
            )
    yield from found.values()


def _reads(config: RunConfig, name: str, each: Range) -> bool:
    """Whether a setting means something in a run.

    Raises:
        UserError: the run cannot have an end of the range, or the setting changes what it costs.
    """
    if not config.uses(name):
        return False
    try:
        low, high = (config.altered(**{name: end}) for end in each.ends)
    except UserError as error:
        raise UserError(f"--tune {key_of(name)}={each}: {error}") from None
    if not passes(low) == passes(high) == passes(config):
        raise UserError(
            f"--tune {key_of(name)}: {option(name)} changes what a run costs, so its arms would not be compared at one cost. Vary it with --grid instead, as in "
            f"{EXAMPLE}: each value is an arm, with a baseline of its compute."
        )
    return low.group_id != high.group_id


def next_trials(arm: ArmAtWork, values: Sequence[float]) -> list[Values]:
    """The settings of the next batch of trials, given how those before ended.

    The first trial has the settings that the arm has without tuning, if the ranges contain them.
    """
    optuna = import_optuna()
    settings = {
        name: optuna.distributions.IntDistribution(*each.ends, log=each.log)
        if each.whole
        else optuna.distributions.FloatDistribution(*each.ends, log=each.log)
        for name, each in arm.ranges.items()
    }
    seed = derived_seed(int(arm.config.group_id, 16), len(values)) % 2**32
    sampler = optuna.samplers.TPESampler(n_startup_trials=STARTUP, multivariate=True, constant_liar=True, seed=seed)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for tried, value in zip(arm.plan.trials, values, strict=True):
        ending: dict[str, Any] = {"value": value}
        if np.isneginf(value):  # which ranks it below all that have a value
            ending = {"state": optuna.trial.TrialState.PRUNED}
        study.add_trial(optuna.trial.create_trial(params=tried, distributions=settings, **ending))
    size = min(arm.left, BATCH if values else STARTUP)
    usual: Values = {name: getattr(arm.config, name) for name in arm.ranges}
    first = [usual] if not values and all(e.low <= usual[n] <= e.high for n, e in arm.ranges.items()) else []
    asked = [study.ask(settings).params for _ in range(size - len(first))]
    return first + [{name: _rounded(arm.ranges[name], value) for name, value in params.items()} for params in asked]


def _rounded(each: Range, value: float) -> int | float:
    return value if each.whole else min(max(float(f"{value:.{DIGITS}g}"), each.low), each.high)


def import_optuna() -> Any:
    """Optuna, which chooses the settings of trials.

    Raises:
        UserError: it is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise UserError(
            "--tune needs the package optuna, which is not installed: pip install 'icpctl[tune]'. The machine that starts the study "
            "needs it, and those that train its runs do not."
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def tuning_text(tuner: Tuner) -> str:
    """What is going to be tuned, as a sentence."""
    arms, trials = tuner.unfinished(), tuner.trials()
    ended = len(trials) - len(tuner.left())
    return (
        f"Tuning {count(len(arms), 'arm')} on the validation split: {count(len(trials), 'trial')}, {ended} of them done; {sum(passes(run.config) for run in trials):g} "
        "passes of each training image through the network in all."
    )


def chosen_text(arm: ArmAtWork, values: Sequence[float]) -> str:
    """What was chosen for an arm, as a sentence."""
    assert arm.plan.best is not None
    chosen = ", ".join(f"{name}={value_text(value)}" for name, value in arm.plan.trials[arm.plan.best].items())
    diverged = int(np.isneginf(values).sum())
    return (
        f"Tuned {arm.plan.role} {arm.plan.name}: {chosen}. It is trial {arm.plan.best + 1} of {arm.number}, with {arm.config.selection} "
        f"{values[arm.plan.best]:.4f} on the validation split"
        + (f"; {count(diverged, 'trial')} diverged." if diverged else ".")
    )


def tuning_table(output: Path) -> pd.DataFrame:
    """One row a trial of all that was tuned in a results folder, by arm and in their order.

    Columns: tuning, the same for arms that were tuned alike; arm; role; group_id, of the arm before its tuning; trial, counted from 1;
    run_id, of its folder under `tuning/`; state (waiting, running, finished, interrupted, failed, or diverged: its loss was not
    finite); best, whether it was chosen; the settings that were tried, missing where the arm does not have them; seed; metric and
    value, on the validation split at the last epoch; passes of a training image through the network, up to where it came.

    Raises:
        UserError: a damaged `tuning.json`.
    """
    rows = []
    for key, tuning in read_tunings(output).items():
        for group_id, arm in tuning.arms.items():
            for number, tried in enumerate(arm.trials):
                config = arm.trial(number)
                status = RunFolder(output / TUNING, config).status()
                state = "diverged" if status.get("diverged") else status.get("state", "waiting")
                epoch = config.epochs if state == "finished" else min(status.get("epoch", 0), config.epochs)
                value = trial_value(output, config) if state == "finished" else None
                row = {"tuning": key, "arm": arm.name, "role": arm.role, "group_id": group_id, "trial": number + 1}
                row |= {"run_id": config.run_id, "state": state, "best": number == arm.best, **tried}
                row |= {
                    "seed": config.seed,
                    "metric": config.selection,
                    "value": value,
                    "passes": passes(config, epoch),
                }
                rows.append(row)
    table = pd.DataFrame(rows)
    last = ["seed", "metric", "value", "passes"]
    return table[[*(name for name in table if name not in last), *(name for name in last if name in table)]]


def write_tuning_table(output: Path) -> None:
    """Write tuning.csv to the results folder, whole or not at all.

    Raises:
        UserError: it cannot be written; or as `tuning_table`.
    """
    with study_lock(output):
        if len(table := tuning_table(output)):
            write_atomic(output / TUNING_TABLE, csv_text(table).encode())
