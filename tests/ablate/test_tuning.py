"""Tuning with made-up trials: equal trials for all arms, chosen by validation alone, whatever ends first, whatever is killed."""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd
import pytest
from reports import write_run

from icpctl.ablate.command import define
from icpctl.ablate.scheduler import Scheduler
from icpctl.ablate.study import STUDY_FILE, Definition
from icpctl.ablate.table import write_study_table
from icpctl.ablate.tuning import (
    BATCH,
    STARTUP,
    Tuner,
    final_runs,
    import_optuna,
    tuning_table,
    write_tuning_table,
)
from icpctl.ablate.worker import Job, Outcome
from icpctl.config import RunConfig
from icpctl.config.cost import compute_matched, passes
from icpctl.errors import UserError
from icpctl.runs.folder import TUNING
from icpctl.runs.tuning import PLAN_FILE, read_tunings, trial_value

SETTINGS = {"model": "resnet20", "dataset": "digits", "epochs": "4", "optimizer": "adam"}
RANGES = ["lr=1e-4..1e-1:log,icp-lr=1e-3..1e-1:log"]
Values = Callable[[RunConfig], tuple[float, float]]
"""The validation and the test accuracy of a trial at its last epoch; not a number: it diverged."""


def tuned(trials: int, grid: tuple[str, ...] = ("steps=1,3",), seeds: str = "2", **more: object) -> Definition:
    return define(SETTINGS, grid, seeds=seeds, tune=RANGES, trials=trials, compute_matched=True, **more)  # type: ignore[arg-type]


def hill(config: RunConfig) -> tuple[float, float]:
    """Best at lr 0.01 on the validation split, and far from there on the test split."""
    height = max(0.0, 1 - abs(math.log10(config.lr) + 2) / 4)
    return height, 1 - height


class Planted:
    """An executor whose runs end at once with the values that a function gives, in an order that `chance` shuffles."""

    def __init__(self, output: Path, values: Values, room: int, chance: random.Random | None = None) -> None:
        self.output, self.values, self.size, self.chance = output, values, room, chance
        self.at_work: list[RunConfig] = []
        self.trained: list[str] = []

    @property
    def room(self) -> int:
        return self.size - len(self.at_work)

    def submit(self, job: Job) -> None:
        self.at_work += [RunConfig.model_validate(config) for config in job.runs.values()]

    def wait(self, seconds: float) -> list[tuple[str, Outcome]]:
        number = self.chance.randrange(len(self.at_work)) if self.chance else 0
        config = self.at_work.pop(number)
        self.trained.append(config.run_id)
        return [(config.run_id, train(self.output, config, self.values))]

    def stop(self) -> None:
        self.at_work.clear()

    def close(self) -> None:
        pass


def train(output: Path, config: RunConfig, values: Values) -> Outcome:
    val, test = values(config)
    early = config.epochs - 1
    if math.isnan(val):
        write_run(
            output, config, [test] * early, [0.9] * early, "failed", epoch=early, diverged=True, error="not finite"
        )
        return Outcome("failed", "not finite")
    # The best epoch is not the last one.
    write_run(output, config, [test] * config.epochs, [*[2 - val] * early, val], epoch=config.epochs)
    return Outcome("finished")


class Killed(BaseException):
    """Stands for SIGKILL: nothing is cleared up."""


def tune(
    definition: Definition,
    output: Path,
    values: Values = hill,
    room: int = 1,
    chance: random.Random | None = None,
    looks: int = sys.maxsize,
    kind: type[Planted] = Planted,
) -> Planted:
    """Tune a study in a results folder; killed after so many looks at its runs."""
    definition.keep(output)
    tuner, scheduler = Tuner(definition, output), Scheduler([], output / TUNING)
    executor = kind(output / TUNING, values, room, chance)
    left = iter(range(looks))

    def look(scheduler: Scheduler, changed: object) -> None:
        if changed is None:
            if next(left, None) is None:
                raise Killed
            tuner.advance(scheduler)

    tuner.advance(scheduler)
    while scheduler.waiting:
        scheduler.run(executor, 0, look, lambda: False)
        tuner.advance(scheduler)
    tuner.check(scheduler)
    write_tuning_table(output)
    return executor


def chosen(output: Path) -> Mapping[str, object]:
    """What stands in tuning.json."""
    return {
        group_id: (arm.trials, arm.best)
        for tuning in read_tunings(output).values()
        for group_id, arm in tuning.arms.items()
    }


def test_every_arm_gets_the_same_number_of_trials_of_the_settings_that_it_has(tmp_path: Path) -> None:
    definition = tuned(12, controls=True)
    executor = tune(definition, tmp_path)
    table = tuning_table(tmp_path)
    assert list(table.groupby("arm", sort=False)["trial"].apply(list)) == [list(range(1, 13))] * 10
    # a baseline and the schedule alone; of each number of steps the method, two controls and a compute-matched baseline
    arms = table.drop_duplicates("arm")
    assert sorted(arms["role"]) == ["baseline", *["compute-matched"] * 2, *["control"] * 4, *["method"] * 3]
    assert table["run_id"].is_unique
    assert sorted(executor.trained) == sorted(table["run_id"])
    plain = table["role"].isin(["baseline", "compute-matched"]) | table["arm"].str.contains("schedule")
    assert table["icp_lr"][plain].isna().all()
    assert table["icp_lr"][~plain].between(1e-3, 0.1).all()
    assert table["lr"].between(1e-4, 0.1).all()
    assert (table.groupby("arm")["best"].sum() == 1).all()
    by_id = {run.config.group_id: passes(run.config) for run in definition.runs()}
    assert list(table["passes"]) == [by_id[group_id] for group_id in table["group_id"]]
    written = pd.read_csv(tmp_path / "tuning.csv")
    assert list(written["run_id"]) == list(table["run_id"])
    assert list(written["best"]) == list(table["best"])


def test_the_first_trial_has_the_settings_without_tuning_where_the_ranges_contain_them(tmp_path: Path) -> None:
    definition = tuned(3)
    tune(definition, tmp_path)
    usual = {run.config.group_id: run.config for run in definition.runs()}
    for group_id, arm in next(iter(read_tunings(tmp_path).values())).arms.items():
        assert arm.trials[0] == {name: getattr(usual[group_id], name) for name in arm.reads}
    far = define(SETTINGS, ["steps=1"], tune=["lr=0.5..0.6"], trials=3)
    tune(far, tmp_path / "far")
    for arm in next(iter(read_tunings(tmp_path / "far").values())).arms.values():
        assert all(0.5 <= values["lr"] <= 0.6 for values in arm.trials)


def test_the_choice_is_by_the_last_validation_value_and_never_by_the_test_split(tmp_path: Path) -> None:
    """On the test split, and at earlier epochs, the order of the trials is the reverse."""
    definition = tuned(12)
    tune(definition, tmp_path)
    table = tuning_table(tmp_path)
    for _, arm in table.groupby("arm"):
        far = (arm["lr"].map(math.log10) + 2).abs()
        assert arm["trial"][arm["best"]].tolist() == [arm["trial"].iloc[int(far.argmin())]]
    for run in final_runs(definition, tmp_path):
        best = table[table["best"]]
        assert run.config.lr in set(best["lr"])
        assert abs(math.log10(run.config.lr) + 2) < 0.5


def test_of_equal_trials_the_first_is_chosen(tmp_path: Path) -> None:
    tune(tuned(12), tmp_path, lambda config: (0.5, config.lr))
    assert {arm.best for tuning in read_tunings(tmp_path).values() for arm in tuning.arms.values()} == {0}


def test_no_trial_has_the_seed_of_a_final_run(tmp_path: Path) -> None:
    definition = tuned(12, seeds="30")
    tune(definition, tmp_path)
    table = tuning_table(tmp_path)
    seeds = {run.config.seed for run in final_runs(definition, tmp_path)}
    assert seeds == set(range(30))
    assert not seeds & set(table["seed"])
    assert list(table.groupby("trial")["seed"].nunique()) == [1] * 12  # the same in all arms
    assert table["seed"].nunique() == 12
    with pytest.raises(UserError, match="--seed 2147483647: the seeds from 2147482648 on are those of trials"):
        Tuner(define(SETTINGS, ["steps=1"], seeds="0,2147483647", tune=RANGES), tmp_path)


@pytest.mark.parametrize("seed", range(4))
def test_neither_the_order_of_the_endings_nor_the_jobs_change_the_trials(tmp_path: Path, seed: int) -> None:
    definition = tuned(STARTUP + BATCH + 3)
    for name, room, chance in (("one", 1, None), ("many", 7, random.Random(seed))):
        tune(definition, tmp_path / name, room=room, chance=chance)
    assert chosen(tmp_path / "one") == chosen(tmp_path / "many")


@pytest.mark.parametrize("seed", range(4))
def test_killed_at_any_moment_no_trial_is_lost_or_doubled(tmp_path: Path, seed: int) -> None:
    definition, chance = tuned(STARTUP + BATCH + 3, ("steps=1",)), random.Random(seed)
    undisturbed = tune(definition, tmp_path / "undisturbed")
    trained: list[str] = []
    results = tmp_path / "results"
    for _ in range(100):
        try:
            trained += tune(definition, results, room=3, chance=chance, looks=chance.randrange(12)).trained
            break
        except Killed:
            done = {path.parent.name for path in (results / TUNING).glob("*/status.json")}
            assert done >= set(trained)
            trained = list(done)
    else:
        pytest.fail("it never came to its end")
    assert chosen(results) == chosen(tmp_path / "undisturbed")
    assert sorted(path.name for path in (results / TUNING).iterdir()) == sorted(undisturbed.trained)
    assert (results / "tuning.csv").read_text() == (tmp_path / "undisturbed" / "tuning.csv").read_text()


def test_without_its_plan_the_finished_trials_are_found_again(tmp_path: Path) -> None:
    definition = tuned(STARTUP + BATCH)
    tune(definition, tmp_path)
    before = chosen(tmp_path)
    (tmp_path / PLAN_FILE).unlink()
    assert tune(definition, tmp_path).trained == []
    assert chosen(tmp_path) == before


def test_more_trials_go_on_from_those_that_there_are(tmp_path: Path) -> None:
    few = tune(tuned(STARTUP + 2), tmp_path)
    more = tune(tuned(STARTUP + BATCH), tmp_path)
    assert len(few.trained) == 5 * (STARTUP + 2)
    assert len(more.trained) == 5 * (BATCH - 2)
    assert not set(few.trained) & set(more.trained)


def test_a_choice_stays_when_its_trials_are_removed(tmp_path: Path) -> None:
    definition = tuned(3)
    tune(definition, tmp_path)
    before = [run.config.run_id for run in final_runs(definition, tmp_path)]
    for file in (tmp_path / TUNING).glob("*/status.json"):
        file.unlink()
    assert tune(definition, tmp_path).trained == []
    assert [run.config.run_id for run in final_runs(definition, tmp_path)] == before


def test_trials_that_diverge_count_and_are_not_chosen(tmp_path: Path) -> None:
    def cliff(config: RunConfig) -> tuple[float, float]:
        return (math.nan, 0.0) if config.lr > 0.01 else (config.lr, 0.5)

    definition = tuned(STARTUP + BATCH)
    executor = tune(definition, tmp_path, cliff)
    table = tuning_table(tmp_path)
    assert set(table["state"]) == {"finished", "diverged"}
    assert (table.groupby("arm")["trial"].count() == STARTUP + BATCH).all()
    assert table["lr"][table["best"]].max() <= 0.01
    assert table["value"][table["state"] == "diverged"].isna().all()
    one = table[table["state"] == "diverged"].iloc[0]
    assert 0 < one["passes"] < table["passes"][(table["arm"] == one["arm"]) & (table["state"] == "finished")].min()
    assert sorted(executor.trained) == sorted(table["run_id"])
    assert tune(definition, tmp_path, cliff).trained == []  # none of them is tried again


def test_an_arm_of_which_every_trial_diverged_is_said(tmp_path: Path) -> None:
    definition = tuned(3)
    with pytest.raises(UserError, match=r"The loss was not finite in any trial of .*lr from 0.0001..0.1:log"):
        tune(definition, tmp_path, lambda config: (math.nan if config.steps == 3 else 0.5, 0.0))
    assert len({run.config.group_id for run in final_runs(definition, tmp_path)}) == 4  # and the others are tuned


def test_a_trial_that_failed_for_another_reason_holds_up_its_arm_and_is_tried_again(tmp_path: Path) -> None:
    definition = tuned(3)

    def full(config: RunConfig) -> tuple[float, float]:
        if config.steps == 3 and config.seed == 2**31 - 2:
            raise OSError
        return hill(config)

    class Full(Planted):
        def wait(self, seconds: float) -> list[tuple[str, Outcome]]:
            try:
                return super().wait(seconds)
            except OSError:
                run_id = self.trained.pop()
                (self.output / run_id).mkdir(parents=True, exist_ok=True)
                (self.output / run_id / "status.json").write_text('{"state": "failed", "error": "The disk is full"}')
                return [(run_id, Outcome("failed", "The disk is full"))]

    with pytest.raises(UserError, match=r"1 of the trials failed.*tries them again.*The disk is full"):
        tune(definition, tmp_path, full, kind=Full)
    assert len({run.config.group_id for run in final_runs(definition, tmp_path)}) == 4
    assert len(tune(definition, tmp_path).trained) == 1
    assert len({run.config.group_id for run in final_runs(definition, tmp_path)}) == 5


def test_a_finished_trial_without_its_validation_value_is_refused(tmp_path: Path) -> None:
    definition = tuned(3)
    tune(definition, tmp_path)
    arm = next(iter(next(iter(read_tunings(tmp_path).values())).arms.values()))
    file = tmp_path / TUNING / arm.trial(1).run_id / "metrics.csv"
    file.write_text("".join(line for line in file.read_text().splitlines(True) if ",3,val," not in line))
    with pytest.raises(UserError, match="lacks the accuracy on the validation split at the last epoch"):
        trial_value(tmp_path, arm.trial(1))


def test_final_runs_have_the_best_settings_of_their_own_arm_and_find_each_other(tmp_path: Path) -> None:
    definition = tuned(12, controls=True)
    # Each arm is best elsewhere.
    tune(
        definition, tmp_path, lambda config: (-abs(math.log10(config.lr) + 1 + config.steps / 2 + config.epochs / 9), 0)
    )
    runs = final_runs(definition, tmp_path)
    before = definition.runs()
    assert [(run.role, run.config.seed, run.config.epochs) for run in runs] == [
        (run.role, run.config.seed, run.config.epochs) for run in before
    ]
    write_study_table(tmp_path)
    table = pd.read_csv(tmp_path / "study.csv").set_index("run_id")
    place = {run.config.run_id: made.config for run, made in zip(before, runs, strict=True)}
    for run, made in zip(before, runs, strict=True):
        row = table.loc[made.config.run_id]
        if run.role in ("method", "control"):
            assert row["baseline_run"] == place[run.config.baseline().run_id].run_id
            assert row["matched_run"] == place[compute_matched(run.config).run_id].run_id
            assert made.config.lr != place[run.config.baseline().run_id].lr
            assert table.loc[row["baseline_run"], "group_id"] == row["baseline_id"]
        if run.role == "control":
            assert row["method_run"] == place[run.config.altered(direction="descend").run_id].run_id


def test_a_resumed_study_is_tuned_as_it_was(tmp_path: Path) -> None:
    definition = tuned(12)
    tune(definition, tmp_path)
    again = define({}, resume=tmp_path)
    assert again.studies[0].tune == definition.studies[0].tune
    assert again.studies[0].trials == 12
    assert [run.config for run in final_runs(again, tmp_path)] == [
        run.config for run in final_runs(definition, tmp_path)
    ]
    assert not Tuner(again, tmp_path).unfinished()
    for name, value in {"tune": RANGES, "trials": 5}.items():
        with pytest.raises(UserError, match=f"--{name} would change them"):
            define({}, resume=tmp_path, **{name: value})  # type: ignore[arg-type]


def test_untuned_studies_of_the_folder_stay_as_they_are(tmp_path: Path) -> None:
    untuned = define(SETTINGS, ["steps=1"], seeds="2")
    untuned.keep(tmp_path)
    tune(tuned(3), tmp_path)
    both = Definition.kept(tmp_path)
    assert both is not None
    runs = [run.config for run in final_runs(both, tmp_path)]
    of_untuned = [run.config for run in untuned.runs()]
    assert [config for config in runs if config in of_untuned] == of_untuned
    assert len(runs) == 4 + 10
    assert [config.seed for config in runs] == sorted(config.seed for config in runs)  # one seed after the other


@pytest.mark.parametrize(
    ("settings", "options", "said"),
    [
        ({}, {"tune": ["icp-lr=1e-3..1"]}, "the baseline resnet20-digits-none-.* has none of these settings"),
        ({}, {"tune": ["lr=1e-3..1,vat-xi=1e-3..1"]}, "--tune vat-xi: this changes no run"),
        ({}, {"tune": ["lr=1e-3..1,alpha=1..5"]}, "--tune alpha: this changes no run, as --alpha means nothing"),
        ({}, {"tune": ["lr=1e-3..1,steps=1..5"]}, "--tune steps: --steps changes what a run costs"),
        ({}, {"tune": ["lr=1e-3..1,warmup-epochs=0..2"]}, "--warmup-epochs changes what a run costs"),
        ({}, {"tune": ["lr=1e-3..1,warmup-epochs=0..9"]}, "--tune warmup-epochs=0..9: --warmup-epochs is 9"),
        ({"val_fraction": "0"}, {"tune": RANGES}, "never on the test split, and --val-fraction is 0"),
        ({}, {"tune": RANGES, "where": ["lr < 0.1"]}, "lr is tuned, so no combination has a value of it yet"),
    ],
)
def test_what_cannot_be_tuned_is_refused(
    tmp_path: Path, settings: dict[str, object], options: dict[str, object], said: str
) -> None:
    definition = define(SETTINGS | settings, seeds="2", **options)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=said):
        Tuner(definition, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "options", "said"),
    [
        ({}, {"trials": 5}, "--trials 5: there is nothing to tune"),
        ({}, {"trials": 5, "grid": ["steps=1"]}, "there is nothing to tune"),
        ({"lr": "0.1"}, {"tune": RANGES}, "lr is tuned, and set to 0.1 for all runs. Leave out one of them"),
        ({}, {"tune": RANGES, "grid": ["lr=0.1,1"]}, "lr is tuned, and varied by the grid"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    settings: dict[str, object], options: dict[str, object], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        define(SETTINGS | settings, **options)  # type: ignore[arg-type]


WRITTEN = """
seeds = 2
trials = 7
[settings]
dataset = "digits"
[tune]
lr = "1e-4..1e-1:log"
icp-lr = "0.001..1"
"""


def test_tuning_is_read_from_a_study_file_and_kept(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(WRITTEN)
    definition = define({}, study=tmp_path / "mine.toml")
    (study,) = definition.studies
    assert {name: str(each) for name, each in study.tune.items()} == {"lr": "0.0001..0.1:log", "icp_lr": "0.001..1"}
    assert study.trials == 7
    definition.keep(tmp_path / "results")
    again = Definition.read(tmp_path / "results" / STUDY_FILE, recorded=True).studies[0]
    assert (again.tune, again.trials) == (study.tune, study.trials)
    changed = define({}, study=tmp_path / "mine.toml", trials=9).studies[0]
    assert (changed.tune, changed.trials) == (study.tune, 9)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("trials = 7", "trials = 0", "trials cannot be 0. It is a number from 1 to 1,000"),
        ("trials = 7", "trials = true", "trials cannot be True"),
        ("[tune]", "[tun]", "Unknown key 'tun'. Did you mean 'tune'?"),
        ("lr = ", "lx = ", r"\[tune\] lx: Unknown hyper-parameter"),
        ('"0.001..1"', "[0.1, 1]", "tune cannot be"),
        ('"0.001..1"', '"0.1"', r"\[tune\] icp-lr: 0.1 is not a range"),
        ("[settings]", "[settings]\nlr = 0.1", "lr is tuned, and set to 0.1 for all runs"),
        ('[tune]\nlr = "1e-4..1e-1:log"\nicp-lr = "0.001..1"', "", "trials is given, and no range to choose from"),
    ],
)
def test_a_fault_in_the_file_is_named(tmp_path: Path, old: str, new: str, said: str) -> None:
    (tmp_path / "mine.toml").write_text(WRITTEN.replace(old, new))
    with pytest.raises(UserError, match=said):
        define({}, study=tmp_path / "mine.toml")


@pytest.mark.parametrize("content", ["{", "[]", '{"a": 1}', '{"a": {"ranges": {}, "trials": 1, "arms": {"b": {}}}}'])
def test_a_damaged_plan_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / PLAN_FILE).write_text(content)
    with pytest.raises(UserError, match=r"tuning\.json is damaged"):
        Tuner(tuned(3), tmp_path)


def test_without_optuna_the_way_out_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"pip install 'icpctl\[tune\]'"):
        import_optuna()
