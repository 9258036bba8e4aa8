"""Tuned runs in the report: compared with what was tuned alike, trials in no mean, and what was tried and what it cost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import pytest
from reports import write_run
from rich.console import Console

from icpctl.ablate.command import define
from icpctl.ablate.study import Definition
from icpctl.ablate.tuning import Tuner, final_runs
from icpctl.config.cost import compute_matched, passes
from icpctl.report import build
from icpctl.report.command import Request, write_report
from icpctl.report.formats import render
from icpctl.report.terminal import terminal
from icpctl.runs.folder import TUNING
from icpctl.runs.tuning import PLAN_FILE, read_tunings, write_tunings

SETTINGS = {"model": "resnet20", "dataset": "digits", "epochs": "4", "optimizer": "adam"}
RANGE = ["lr=1e-4..1e-1:log,icp-lr=1e-3..1e-1:log"]
BEST = {"baseline": 0.01, "compute-matched": 0.003, "method": 0.02, "control": 0.05}
GAIN = {"baseline": 0.0, "compute-matched": 0.05, "method": 0.1, "control": -0.1}


def write_tuned(output: Path, definition: Definition, best: Mapping[str, float] = BEST) -> None:
    """A results folder of a tuned study, whose arms each chose the last of their trials: the learning rate of their role, and η 0.03."""
    output.mkdir(exist_ok=True)
    tunings, tuner = read_tunings(output), Tuner(definition, output)
    for arm in tuner.arms:
        chosen: dict[str, int | float] = {name: best[arm.plan.role] if name == "lr" else 0.03 for name in arm.ranges}
        arm.plan.trials = [chosen | {"lr": 0.0001 * (1 + number)} for number in range(arm.number - 1)] + [chosen]
        arm.plan.best = arm.number - 1
        tunings.setdefault(arm.tuning, tuner.tunings[arm.tuning]).arms[arm.config.group_id] = arm.plan
        for number in range(arm.number):
            config = arm.plan.trial(number)
            write_run(output / TUNING, config, [0.99] * config.epochs, [0.5] * config.epochs)
    write_tunings(output, tunings)
    for run in final_runs(definition, output):
        value = 0.5 + GAIN[run.role] + run.config.seed / 100 + (run.config.seed % 2) * GAIN[run.role] / 10
        write_run(output, run.config, [0.1] * (run.config.epochs - 1) + [value], [0.2] * run.config.epochs)


def tuned() -> Definition:
    """ICP with its controls and baselines."""
    return define(SETTINGS, ["steps=1"], seeds="3", controls=True, compute_matched=True, tune=RANGE, trials=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("tuned")
    write_tuned(output, tuned())
    tuned().keep(output)
    return output


def test_a_tuned_run_is_compared_with_the_tuned_baselines_and_controls(folder: Path) -> None:
    report = build(folder)
    table = report.comparisons[report.comparisons["metric"] == "accuracy"]
    said = table[table["label"].str.startswith("Adam-ICP") & (table["role"] == "method")].set_index("against")[
        "difference"
    ]
    assert said.to_dict() == pytest.approx(
        {
            "baseline": 0.1 + 0.01 / 3,
            "compute-matched": 0.05 + 0.005 / 3,
            "ascend": 0.2 + 0.02 / 3,
            "random": 0.2 + 0.02 / 3,
            "schedule": 0.0,
        }
    )
    assert set(table["against"][table["role"] == "control"]) == {"baseline", "compute-matched"}
    assert (table["seeds"] == 3).all()
    roles = report.grouping.table["role"].tolist()
    assert roles == ["baseline", "compute-matched", "method", "control", "control", "method"]
    assert not [note for note in report.notes if "(split fit)" not in note]  # the runs written here have no such split
    baseline = report.runs[(report.runs["method"] == "plain") & (report.runs["epochs"] == 4)]
    assert set(report.runs["baseline_id"][report.runs["method"] == "icp"]) == set(baseline["group_id"])


def test_no_trial_is_in_any_table(folder: Path) -> None:
    report = build(folder)
    assert set(report.runs["seed"]) == {0, 1, 2}
    assert (report.summary["seeds"][report.summary["metric"] == "accuracy"] == 3).all()
    assert (
        report.summary["mean"][report.summary["metric"] == "accuracy"].max() < 0.9
    )  # the trials have 0.99 on the test split


def test_what_was_tried_and_chosen_and_its_cost_is_said_in_every_form(folder: Path, tmp_path: Path) -> None:
    report = build(folder)
    table = report.tuning[~report.tuning["label"].str.startswith("schedule")].set_index("role")
    assert set(table["trials"]) == {2}
    assert table.loc["baseline", "ranges"] == "lr 0.0001..0.1:log"
    assert table.loc["method", "ranges"] == "lr 0.0001..0.1:log, icp_lr 0.001..0.1:log"
    assert table.loc["method", "chosen"] == "lr 0.02, icp_lr 0.03"
    costs = [2 * passes(run.config) for run in final_runs(tuned(), folder) if run.config.seed == 0]
    assert sorted(report.tuning["passes"]) == sorted(costs)
    console = Console(width=80, record=True, file=(tmp_path / "said").open("w"))
    for part in terminal(report, 80):
        console.print(part)
    words = " ".join(console.export_text().split())
    text = " ".join(render(report, "markdown").split())
    write_report(Request((folder,), output=tmp_path), console, lambda *_: None)
    page = " ".join((tmp_path / "report.html").read_text().split())
    for said in (words, text, page):
        assert f"Together they took {sum(costs):g} passes" in said
        assert "icp_lr 0.03" in said.replace("\\", "")
    assert json.loads(render(report, "json"))["tuning"][0]["trials"] == 2


def test_a_condition_keeps_the_tuned_baselines(folder: Path) -> None:
    report = build(folder, where=["direction=descend,steps=1"])
    assert sorted(report.grouping.table["role"]) == ["baseline", "compute-matched", "method"]
    report = build(folder, where=["icp_lr > 0.01"], by=["steps"])
    assert set(report.comparisons["against"]) >= {"baseline", "compute-matched"}


def test_untuned_runs_and_tuned_ones_are_not_compared(folder: Path, tmp_path: Path) -> None:
    both = shutil.copytree(folder, tmp_path / "both")
    # Of the learning rate that the method chose, so that by its settings it would be the method's baseline.
    untuned = [run.config for run in define({**SETTINGS, "lr": "0.02"}, seeds="3").runs()]
    for config in untuned:
        write_run(both, config, [0.1, 0.1, 0.1, 0.3], [0.2] * 4)
    report = build(both)
    table = report.comparisons[report.comparisons["metric"] == "accuracy"]
    mine = table[table["group_id"].isin({config.group_id for config in untuned})]
    assert list(mine["against"]) == ["baseline", "schedule"]  # which has the same settings, tuned or not
    tuned = table[(table["role"] == "method") & ~table["group_id"].isin(mine["group_id"])]
    before = build(folder).comparisons
    assert list(tuned["difference"]) == list(
        before["difference"][(before["metric"] == "accuracy") & (before["role"] == "method")]
    )
    (note,) = [note for note in report.notes if note.startswith("Not tuned")]
    assert "baseline" in note


def test_a_tuned_baseline_that_is_missing_is_not_replaced_by_an_untuned_one(folder: Path, tmp_path: Path) -> None:
    torn = shutil.copytree(folder, tmp_path / "torn")
    report = build(torn)
    for run_id in report.runs["run_id"][(report.runs["method"] == "plain") & (report.runs["epochs"] == 4)]:
        shutil.rmtree(torn / run_id)
    for run in define({**SETTINGS, "lr": "0.02", "icp_lr": "0.03", "steps": "1"}, seeds="3").runs():
        if run.role == "baseline":
            write_run(torn, run.config, [0.1, 0.1, 0.1, 0.3], [0.2] * 4)
    report = build(torn)
    assert "baseline" not in set(report.comparisons["against"])
    assert any("Not compared with a baseline" in note for note in report.notes)


def test_without_a_tuned_baseline_of_equal_compute_there_is_none(tmp_path: Path) -> None:
    definition = define(SETTINGS, ["steps=1"], seeds="3", tune=RANGE, trials=2)
    write_tuned(tmp_path, definition)
    for run in final_runs(definition, tmp_path):
        if run.role == "method":
            matched = compute_matched(run.config)
            write_run(tmp_path, matched, [0.1] * matched.epochs, [0.2] * matched.epochs)
    assert "compute-matched" not in set(build(tmp_path).comparisons["against"])


RIVALS = {"model": "resnet20", "dataset": "digits", "epochs": "4"}


def test_rivals_are_those_that_were_tuned_alike(tmp_path: Path) -> None:
    write_tuned(tmp_path, define(RIVALS, ["method=icp,mixup"], seeds="3", tune=["lr=1e-4..1e-1:log"], trials=1))
    assert compared(tmp_path) == {("AdEMAMix-ICP", "baseline"), ("AdEMAMix-ICP", "mixup"), ("mixup", "baseline")}
    # Of the learning rate that was chosen for mixup, and not tuned itself.
    for run in define({**RIVALS, "lr": str(BEST["method"]), "steps": "3"}, seeds="3").runs():
        write_run(tmp_path, run.config, [0.1, 0.1, 0.1, 0.3 + run.config.seed / 10], [0.2] * 4)
    assert compared(tmp_path, steps=3) == {("AdEMAMix-ICP", "baseline")}


def compared(folder: Path, **of: object) -> set[tuple[str, str]]:
    """Which groups are compared with what, by the first word of their labels."""
    table = build(folder).comparisons
    for name, value in of.items():
        table = table[table[name] == value]
    return set(zip(table["label"].str.partition(",")[0], table["against"], strict=True))


def test_unequal_trials_and_ranges_are_noted(tmp_path: Path) -> None:
    write_tuned(tmp_path, tuned())
    mixup = define({**RIVALS, "method": "mixup"}, seeds="3", tune=["lr=1e-4..1e-2:log"], trials=5)
    write_tuned(tmp_path, mixup, {"baseline": 0.001, "method": 0.002})
    notes = " ".join(build(tmp_path).notes)
    assert "tuned with unequal numbers of trials" in notes
    assert "mixup, lr=0.002: 5" in notes
    assert "Not all arms were tuned over the same range of lr." in notes


def test_a_damaged_plan_is_noted_and_the_rest_reported(folder: Path, tmp_path: Path) -> None:
    torn = shutil.copytree(folder, tmp_path / "torn")
    (torn / PLAN_FILE).write_text("{")
    report = build(torn)
    assert any("tuning.json is damaged" in note for note in report.notes)
    assert len(report.runs) == 18
    assert report.tuning.empty


def test_where_nothing_was_tuned_nothing_is_said_of_it(tmp_path: Path) -> None:
    for run in define(SETTINGS, ["steps=1"], seeds="3").runs():
        write_run(tmp_path, run.config, [0.1, 0.1, 0.1, 0.5], [0.2] * 4)
    report = build(tmp_path)
    assert report.tuning.empty
    assert "uning" not in render(report, "markdown")
    assert "tuning" not in json.loads(render(report, "json"))
    assert isinstance(report.tuning, pd.DataFrame)


def test_the_figures_of_a_tuned_study_can_be_drawn(folder: Path, tmp_path: Path) -> None:
    write_report(
        Request((folder,), output=tmp_path, figures=True), Console(file=(tmp_path / "said").open("w")), lambda *_: None
    )
    assert list((tmp_path / "figures").glob("*.svg"))
