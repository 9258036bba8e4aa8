"""Groups of runs: what belongs together, what is compared with what, names and order."""

from __future__ import annotations

import pytest
from reports import configs

from icpctl.config import RunConfig, resolve
from icpctl.config.cost import compute_matched
from icpctl.errors import UserError
from icpctl.report.groups import Grouping, check_settings, group
from icpctl.runs.references import of_controls, references


def grouped(runs: list[RunConfig], *by: str) -> Grouping:
    return group({config.group_id: config for config in runs}, by)


def labels(grouping: Grouping) -> list[str]:
    return grouping.table["label"].tolist()


def test_a_run_is_compared_with_its_twins() -> None:
    run = resolve({"epochs": 8, "optimizer": "adam", "steps": 5, "lr": 0.01, "seed": 3})
    twins = references(run)
    assert list(twins) == ["baseline", "compute-matched", "ascend", "random", "schedule"]
    assert twins["baseline"] == run.baseline()
    assert twins["compute-matched"] == compute_matched(run)
    assert (twins["ascend"].direction, twins["random"].direction) == ("ascend", "random")
    assert {twin.seed for twin in twins.values()} == {3}
    assert list(references(twins["ascend"])) == ["baseline", "compute-matched"]
    assert of_controls([run])[twins["ascend"].group_id] == run
    assert references(run.baseline()) == {}


def test_groups_have_roles_and_stand_in_the_order_of_the_grid() -> None:
    runs = configs(["optimizer=ademamix,sgd", "steps=10,2"], seeds=2, controls=True, compute_matched=True, epochs=8)
    grouping = grouped(runs)
    assert labels(grouping) == [
        "baseline",
        "baseline of 18 epochs",
        "baseline of 50 epochs",
        *(
            f"{name}{direction}, T={steps}"
            for name in ("SGD-ICP", "AdEMAMix-ICP")
            for steps in (2, 10)
            for direction in ("", " ascend", " random")
        ),
        "schedule alone",
    ]
    assert grouping.table["role"].tolist() == [
        "baseline",
        "compute-matched",
        "compute-matched",
        *["method", "control", "control"] * 4,
        "method",
    ]
    assert grouping.settings == ["method", "epochs", "optimizer", "steps", "direction"]
    assert grouping.table["steps"].isna().tolist() == [True] * 3 + [False] * 12 + [True]
    method = runs[[run.optimizer == "sgd" and run.direction == "descend" for run in runs].index(True)]
    assert grouping.twins[method.group_id]["compute-matched"] == compute_matched(method).group_id
    assert set(grouping.twins[method.group_id]) == {"baseline", "compute-matched", "ascend", "random", "schedule"}


def test_each_baseline_stands_above_its_own_family() -> None:
    grouping = grouped(configs(["lr=0.1,0.01"], compute_matched=True, epochs=4))
    assert labels(grouping) == [
        "baseline, lr=0.01",
        "baseline of 15 epochs, lr=0.01",
        "AdEMAMix-ICP, lr=0.01",
        "baseline, lr=0.1",
        "baseline of 15 epochs, lr=0.1",
        "AdEMAMix-ICP, lr=0.1",
    ]


def test_baselines_of_different_epochs_are_named_by_them() -> None:
    grouping = grouped(configs(["epochs=4,8"]))
    assert labels(grouping) == [
        "baseline of 4 epochs",
        "AdEMAMix-ICP, epochs=4",
        "baseline of 8 epochs",
        "AdEMAMix-ICP, epochs=8",
    ]
    assert grouping.settings == ["epochs", "optimizer"]  # the warm-up and the stages follow from others


def test_a_switch_is_named_where_it_is_not_as_usual() -> None:
    grouping = grouped(configs(["teacher_statistics=true,false", "lr_schedule=constant,cosine"]))
    assert labels(grouping) == [
        "baseline",
        "AdEMAMix-ICP, teacher_statistics=false",
        "AdEMAMix-ICP",
        "baseline, lr_schedule=cosine",
        "AdEMAMix-ICP, teacher_statistics=false, lr_schedule=cosine",
        "AdEMAMix-ICP, lr_schedule=cosine",
    ]


def test_what_differs_between_data_sets_alone_is_in_no_name() -> None:
    runs = [*configs([], dataset="digits"), *configs([], dataset="cifar100", lr=0.01)]
    assert labels(grouped(runs)) == [
        "baseline, resnet20 on cifar100",
        "AdEMAMix-ICP, resnet20 on cifar100",
        "baseline, resnet20 on digits",
        "AdEMAMix-ICP, resnet20 on digits",
    ]
    assert "lr" in grouped(runs).settings


def test_rows_by_a_setting_pool_the_others_and_keep_directions_apart() -> None:
    runs = configs(
        ["optimizer=adam,sgd", "steps=1,3", "icp_lr=0.001,0.1"], controls=True, compute_matched=True, epochs=8
    )
    grouping = grouped(runs, "steps")
    assert labels(grouping) == [
        "baseline",
        "baseline of 14 epochs",
        "baseline of 22 epochs",
        *(f"ICP{direction}, T={steps}" for steps in (1, 3) for direction in ("", " ascend", " random")),
        "schedule alone",
    ]
    members = list(grouping.member.values())
    assert [members.count(key) for key in grouping.table.index] == [1, 1, 1, 4, 4, 4, 4, 4, 4, 1]
    assert grouped(runs, "optimizer").table["optimizer"].tolist()[-2] == "adam"


def test_a_run_with_another_role_elsewhere_keeps_to_the_stronger_one() -> None:
    """The compute-matched baseline of one run is the baseline at equal epochs of another."""
    short = resolve({"epochs": 8, "steps": 1})
    long = resolve({"epochs": compute_matched(short).epochs, "steps": 1})
    runs = [short, short.baseline(), long, long.baseline()]
    grouping = grouped(runs)
    assert sorted(grouping.table["role"]) == ["baseline", "baseline", "method", "method"]
    assert grouping.twins[short.group_id]["compute-matched"] == long.baseline().group_id


def test_settings_are_checked_by_name() -> None:
    assert check_settings(["icp-lr", "steps", "icp_lr"], "--by") == ["icp_lr", "steps"]
    with pytest.raises(UserError, match=r"--by step: .*steps"):
        check_settings(["step"], "--by step")
    with pytest.raises(UserError, match="device"):
        check_settings(["device"], "--by device")
