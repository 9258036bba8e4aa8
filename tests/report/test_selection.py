"""The conditions of --where: what they choose, and what is said of those that cannot be read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reports import configs

from icpctl.config import RunConfig
from icpctl.config.cost import compute_matched
from icpctl.errors import UserError
from icpctl.report.selection import select

RUNS = {
    config.run_id: config
    for config in configs(
        ["optimizer=adam,sgd", "steps=1,3,5", "icp_lr=0.001,0.01"], seeds=3, controls=True, compute_matched=True
    )
}


def chosen(*where: str, optimizer: bool = True) -> list[RunConfig]:
    runs = [RUNS[run_id] for run_id in select(RUNS, where)]
    return [run for run in runs if not optimizer or run.optimizer != "none"]


def test_values_and_intervals() -> None:
    assert {run.steps for run in chosen("steps=1,5")} == {1, 5}
    assert {run.steps for run in chosen("steps=2..5")} == {3, 5}
    assert {run.steps for run in chosen("steps=1,3..4")} == {1, 3}
    assert {run.icp_lr for run in chosen("icp-lr=0.005..1")} == {0.01}
    assert {run.icp_lr for run in chosen("icp_lr=1e-3")} == {0.001}
    for where in (["optimizer=adam,seed=0..1,steps=1,3"], ["optimizer=adam", "seed=0..1", "steps=1,3"]):
        assert {(run.optimizer, run.seed, run.steps) for run in chosen(*where)} == {
            ("adam", seed, steps) for seed in (0, 1) for steps in (1, 3)
        }
    assert len(chosen("model=resnet20,dataset=digits,cifar100")) == len(chosen())


def test_expressions_are_those_of_the_ablation() -> None:
    runs = chosen("steps * icp_lr < 0.004 and optimizer == 'adam'")
    assert {(run.steps, run.icp_lr, run.optimizer) for run in runs} == {(1, 0.001, "adam"), (3, 0.001, "adam")}


def test_baselines_of_what_is_chosen_stay_and_no_others() -> None:
    runs = chosen("steps=5,seed=1", optimizer=False)
    plain = [run for run in runs if run.optimizer == "none"]
    assert {run.seed for run in runs} == {1}
    method = next(run for run in runs if run.optimizer == "adam")
    assert {run.run_id for run in plain} == {method.baseline().run_id, compute_matched(method).run_id}
    plain = [run for run in chosen("icp_lr=0.002..1", optimizer=False) if run.optimizer == "none"]
    assert plain  # kept as baselines, though η is nothing in them, and their default is none of these
    assert all(run.optimizer != "none" for run in chosen("direction=ascend"))


def test_a_setting_of_the_method_is_true_of_no_baseline() -> None:
    baselines = {run_id: config for run_id, config in RUNS.items() if config.optimizer == "none"}
    for condition in ("icp_lr=0.002", "direction=descend", "icp_lr == 0.002"):
        with pytest.raises(UserError, match="no run fulfils this"):
            select(baselines, [condition])
    assert select(baselines, ["optimizer=none"]) == set(baselines)


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        ("step=3", "steps"),
        ("steps=", "empty"),
        ("steps=5..1", "not an interval"),
        ("steps=a..b", "not an interval"),
        ("icp_lr=nan..1", "not an interval"),
        ("steps=x", "steps"),
        ("optimizer=adamw", "adam"),
        ("steps=1,steps=3", "given twice"),
        ("steps=1,1", "given twice"),
        ("device=cpu", "device"),
        ("steps >", "not a condition"),
        ("stepz > 3", "steps"),
        ("steps + 1", "neither true nor false"),
        ("steps=99", "no run fulfils this"),
        ("", "not a condition"),
        (",steps=3", "not a condition"),
    ],
)
def test_what_is_wrong_is_said(condition: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as raised:
        select(RUNS, [condition])
    assert "--where" in str(raised.value)


@given(st.text(max_size=30))
def test_no_condition_ends_in_another_error(text: str) -> None:
    said = ""
    try:
        select(RUNS, [text])
    except UserError as error:
        said = str(error)
    assert not said or "--where" in said
