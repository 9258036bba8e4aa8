"""Ablations: which runs a grid means, in which order, and that one that fails does not stop the others."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icpctl.ablate import Outcome, parse_grid, plan, run
from icpctl.config import RunConfig, declaration, resolve
from icpctl.errors import UserError
from icpctl.results import RunFolder

values = st.text(st.characters(exclude_characters=",", exclude_categories=["Cs"]), min_size=1).map(str.strip)
grids = st.dictionaries(
    st.sampled_from([name for name in RunConfig.model_fields if declaration(name).identity]),
    st.lists(values.filter(bool), min_size=1, unique=True),
    max_size=4,
)


@given(grids, st.booleans())
def test_a_grid_is_read_as_it_was_written(grid: dict[str, list[str]], dashes: bool) -> None:
    keys = {name: name.replace("_", "-") if dashes else name for name in grid}
    assert parse_grid([f"{keys[name]}={','.join(listed)}" for name, listed in grid.items()]) == grid


@given(st.lists(st.text() | st.builds("{}={}".format, st.sampled_from([*RunConfig.model_fields]), st.text())))
def test_any_grid_is_planned_or_refused(texts: list[str]) -> None:
    with suppress(UserError):
        assert plan({}, texts)


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["steps"], "--grid steps: this is not a key"),
        (["stpes=1,2"], "'steps'"),
        (["=1,2"], "Unknown hyper-parameter"),
        (["steps=1,,3"], "--grid steps=1,,3: a value is empty"),
        (["steps="], "a value is empty"),
        (["steps=1,3,1"], "a value is given twice"),
        (["device=cpu,cuda"], "does not make another run"),
        (["icp-lr=1", "icp_lr=2"], "--grid icp_lr=2: icp_lr is given twice"),
    ],
)
def test_what_is_wrong_with_a_grid_is_said(texts: list[str], said: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_grid(texts)
    assert said in str(caught.value)


def test_each_baseline_is_run_once_a_seed_and_one_seed_is_completed_before_the_next() -> None:
    configs = plan({"epochs": 4}, ["steps=1,3", "lr=0.1,0.01"], seeds=2)
    assert [(config.seed, config.steps, config.lr) for config in configs] == [
        (seed, steps, lr)
        for seed in (0, 1)
        for steps, lr in ((0, 0.1), (1, 0.1), (0, 0.01), (1, 0.01), (3, 0.1), (3, 0.01))
    ]
    assert {config.epochs for config in configs} == {4}


def test_combinations_that_come_to_the_same_run_are_one() -> None:
    configs = plan({}, ["optimizer=none,adam", "steps=1,2"])
    assert [(config.optimizer, config.steps) for config in configs] == [("none", 0), ("adam", 1), ("adam", 2)]
    assert len(plan({}, ["icp_lr=0.1,1e-1"])) == 2


def test_layers_of_a_grid_are_joined_with_plus() -> None:
    configs = plan({}, ["layers=layer1+layer2,layer3"])
    assert [config.layers for config in configs[1:]] == [("layer1", "layer2"), ("layer3",)]


def test_seeds_count_up_from_the_given_one() -> None:
    assert [config.seed for config in plan({"optimizer": "none", "seed": "5"}, [], seeds=3)] == [5, 6, 7]
    assert [config.seed for config in plan({"optimizer": "none", "seed": 5}, [])] == [5]
    assert [config.seed for config in plan({"optimizer": "none", "seed": 5}, ["seed=1,2"])] == [1, 2]


@pytest.mark.parametrize(
    ("settings", "texts", "seeds", "said"),
    [
        ({}, ["seed=1,2"], 2, "--seeds 2 and --grid seed"),
        ({}, [], 0, "--seeds 0"),
        ({"seed": "x"}, [], 2, "--seed got 'x'"),
        ({"seed": 2**31 - 1}, [], 2, "--seed got"),
        (
            {"epochs": 4},
            ["steps=1", "warmup-epochs=1,4"],
            1,
            "--grid steps=1 --grid warmup_epochs=4: warmup_epochs is 4",
        ),
        ({}, ["steps=3,0"], 1, "--grid steps=0: steps is 0"),
    ],
)
def test_an_invalid_plan_is_refused(settings: dict[str, object], texts: list[str], seeds: int, said: str) -> None:
    with pytest.raises(UserError) as caught:
        plan(settings, texts, seeds)
    assert said in str(caught.value)


@pytest.fixture
def configs() -> list[RunConfig]:
    return plan({}, ["steps=1,2,3"])


def ignore(number: int, total: int, config: RunConfig, state: str) -> None:
    """Announce to nobody."""


def test_a_failed_run_is_recorded_and_the_others_go_on(tmp_path: Path, configs: list[RunConfig]) -> None:
    announced: list[tuple[int, int, int, str]] = []

    def train(config: RunConfig) -> None:
        if config.steps == 1:
            raise ValueError("the loss is NaN")
        if config.steps == 2:
            raise UserError("Out of memory. Give a smaller --batch-size.")

    outcomes = run(
        configs,
        tmp_path,
        train,
        lambda number, total, config, state: announced.append((number, total, config.steps, state)),
    )
    assert outcomes == [
        Outcome(configs[0], "finished"),
        Outcome(configs[1], "failed", "ValueError: the loss is NaN"),
        Outcome(configs[2], "failed", "Out of memory. Give a smaller --batch-size."),
        Outcome(configs[3], "finished"),
    ]
    status = RunFolder(tmp_path, configs[1]).status()
    assert (status["state"], status["error"]) == ("failed", "ValueError: the loss is NaN")
    assert "in train" in status["traceback"]
    assert RunFolder(tmp_path, configs[2]).status()["state"] == "failed"
    assert announced[:4] == [(1, 4, 0, "running"), (1, 4, 0, "finished"), (2, 4, 1, "running"), (2, 4, 1, "failed")]
    assert len(announced) == 8


def test_finished_runs_are_skipped_and_failed_ones_run_again(tmp_path: Path, configs: list[RunConfig]) -> None:
    for config, state in zip(configs, ("finished", "failed", "running"), strict=False):
        folder = RunFolder(tmp_path, config)
        folder.create()
        folder.write_status(state)
    trained: list[RunConfig] = []
    outcomes = run(configs, tmp_path, trained.append, ignore)
    assert trained == configs[1:]
    assert [outcome.state for outcome in outcomes] == ["skipped", "finished", "finished", "finished"]


def test_a_run_in_the_hands_of_another_process_is_left_alone(tmp_path: Path, configs: list[RunConfig]) -> None:
    folder = RunFolder(tmp_path, configs[0])
    folder.create()
    folder.write_status("running")

    def refuse(config: RunConfig) -> None:
        raise UserError("Another process trains this run.")

    assert run(configs[:1], tmp_path, refuse, ignore)[0].state == "failed"
    assert folder.status() == {"state": "running"}


def test_a_crash_while_running_is_recorded(tmp_path: Path, configs: list[RunConfig]) -> None:
    def crash(config: RunConfig) -> None:
        folder = RunFolder(tmp_path, config)
        folder.create()
        folder.write_status("running", epoch=3)
        raise RuntimeError("CUDA error")

    run(configs[:1], tmp_path, crash, ignore)
    status = RunFolder(tmp_path, configs[0]).status()
    assert (status["state"], status["epoch"], status["error"]) == ("failed", 3, "RuntimeError: CUDA error")


def test_what_stopped_a_run_is_kept_where_it_cannot_be_written(
    tmp_path: Path, configs: list[RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    def crash(config: RunConfig) -> None:
        raise RuntimeError("what stopped it")

    monkeypatch.setattr(os, "fsync", full)
    assert run(configs[:1], tmp_path, crash, ignore)[0].error == "RuntimeError: what stopped it"
    (tmp_path / "file").write_text("")
    assert run(configs[:1], tmp_path / "file", crash, ignore)[0].error == "RuntimeError: what stopped it"


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_an_interruption_ends_the_ablation(tmp_path: Path, configs: list[RunConfig], stop: type[BaseException]) -> None:
    def interrupt(config: RunConfig) -> None:
        raise stop

    with pytest.raises(stop):
        run(configs, tmp_path, interrupt, ignore)
    assert not any(tmp_path.iterdir())


def test_a_baseline_is_planned_for_every_configuration() -> None:
    planned = plan({}, ["optimizer=sgd,adam", "epochs=4,8", "recipe=paper,strong"], seeds=2)
    ids = {config.run_id for config in planned}
    assert all(config.baseline().run_id in ids for config in planned)
    assert resolve({"epochs": 8, "optimizer": "none", "seed": 1}).run_id in ids
