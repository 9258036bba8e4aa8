"""Tuning by real processes: killed and resumed, with one job and with two, shared by two; what it says before and after."""

from __future__ import annotations

import json
import random
import shutil
import time
from pathlib import Path

import commands
import pandas as pd
import psutil
import pytest
from commands import PATIENCE, Command, icpctl_command, refused
from studies import metrics

from icpctl.ablate.claim import CLAIM_FILE, holder
from icpctl.runs.folder import TUNING

SMALL = ["resnet20", "digits", "--train-size", "100", "--epochs", "2", "--val-fraction", "0.4", "--optimizer", "adam"]
STUDY = [*SMALL, "--grid", "steps=1", "--tune", "lr=1e-4..1e-1:log,icp-lr=1e-3..1e-1:log", "--trials", "12"]
ARMS, TRIALS, SEEDS = 2, 12, 2
SEEDED = [*STUDY, "--seeds", str(SEEDS)]


def begin(*arguments: str, cwd: Path) -> Command:
    return commands.begin("ablate", *arguments, cwd=cwd)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The study with one job, from beginning to end: its folder, and what it said."""
    folder = tmp_path_factory.mktemp("undisturbed")
    output = icpctl_command("ablate", *SEEDED, "--jobs", "1", cwd=folder)
    assert output.returncode == 0, output.stderr
    return folder / "results", output.stdout


def assert_same(results: Path, other: Path) -> None:
    """Every trial and every run is there once and finished, and what was chosen, tried and trained is the same."""
    assert json.loads((results / "tuning.json").read_text()) == json.loads((other / "tuning.json").read_text())
    for name in ("tuning.csv", "study.csv"):
        table, expected = (pd.read_csv(folder / name) for folder in (results, other))
        assert table["run_id"].is_unique
        assert set(table["state"]) == {"finished"}
        volatile = ["seconds", "threads", "images_per_second"]
        left_out = [column for column in volatile if column in table]
        pd.testing.assert_frame_equal(table.drop(columns=left_out), expected.drop(columns=left_out))
    for inside in (Path(), Path(TUNING)):
        ids = [{path.parent.name for path in (folder / inside).glob("*/config.json")} for folder in (results, other)]
        assert ids[0] == ids[1]
        assert all(metrics(results / inside / run_id) == metrics(other / inside / run_id) for run_id in ids[0])


def test_every_arm_is_tuned_and_its_final_runs_are_reported(undisturbed: tuple[Path, str]) -> None:
    results, said = undisturbed
    tuning, study = pd.read_csv(results / "tuning.csv"), pd.read_csv(results / "study.csv")
    assert list(tuning["arm"].value_counts()) == [TRIALS] * ARMS
    assert len(list((results / TUNING).glob("*/config.json"))) == ARMS * TRIALS
    assert len(study) == ARMS * SEEDS
    for _, arm in tuning.groupby("arm"):
        best = arm.iloc[int(arm["value"].argmax())]
        assert best["best"]
        (lr,) = study["lr"][study["role"] == best["role"]].unique()
        assert lr == best["lr"]
        for run_id, value in zip(arm["run_id"], arm["value"], strict=True):
            rows = pd.read_csv(results / TUNING / run_id / "metrics.csv")
            last = rows[(rows["split"] == "val") & (rows["metric"] == "accuracy") & (rows["epoch"] == 1)]
            assert last["value"].tolist() == [value]
            assert "fit" not in set(rows["split"])  # the choice does not need it
    words = " ".join(said.split())
    total = int(tuning["passes"].sum())
    assert f"Tuning 2 arms on the validation split: 24 trials, 0 of them done; {total} passes" in words
    assert "24/24 " in words
    assert words.count("Tuned ") == ARMS
    assert f"Together they took {total} passes" in words
    assert "minus" in words  # the method is compared with its baseline, of another learning rate


@pytest.mark.slow
def test_with_two_jobs_it_is_as_with_one(tmp_path: Path, undisturbed: tuple[Path, str]) -> None:
    output = icpctl_command("ablate", *SEEDED, "--jobs", "2", cwd=tmp_path)
    assert output.returncode == 0, output.stderr
    assert_same(tmp_path / "results", undisturbed[0])


def test_whatever_is_killed_no_trial_is_lost_or_doubled(tmp_path: Path, undisturbed: tuple[Path, str]) -> None:
    chance = random.Random(3)
    results = tmp_path / "results"
    process = begin(*SEEDED, "--jobs", "2", "--retries", "100", cwd=tmp_path)
    for victim in ("parent", "worker", "parent", "worker", "parent", "parent"):
        until_at_work(process, results)
        time.sleep(chance.uniform(0, 1.5))
        if process.poll() is not None:
            break
        if victim == "worker" and (workers := psutil.Process(process.pid).children()):
            chance.choice(workers).kill()
        elif victim == "parent":
            process.kill()
            process.communicate()
            process = begin("--resume", "results", cwd=tmp_path)
    _, complaints = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, complaints
    assert_same(results, undisturbed[0])


def test_a_resumed_study_writes_the_missing_table_of_trials(tmp_path: Path, undisturbed: tuple[Path, str]) -> None:
    results = tmp_path / "results"
    shutil.copytree(undisturbed[0], results)
    (results / "tuning.csv").unlink()
    output = icpctl_command("ablate", "--resume", str(results))
    assert output.returncode == 0, output.stderr
    assert_same(results, undisturbed[0])


def until_at_work(process: Command, results: Path) -> None:
    """Until a trial or a run is at work, or the study at its end."""
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and not any(
        holder(file.parent) is not None
        for inside in ("*", f"{TUNING}/*")
        for file in results.glob(f"{inside}/{CLAIM_FILE}")
    ):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_two_ablations_share_the_trials(tmp_path: Path, undisturbed: tuple[Path, str]) -> None:
    processes = [begin(*SEEDED, "--jobs", "1", cwd=tmp_path) for _ in range(2)]
    for process in processes:
        _, complaints = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, complaints
    assert_same(tmp_path / "results", undisturbed[0])


def test_a_stack_of_trials_is_trained_together(tmp_path: Path) -> None:
    few = [*SMALL, "--grid", "steps=1", "--tune", "lr=1e-4..1e-2:log", "--trials", "3", "--stack", "3", "--jobs", "1"]
    output = icpctl_command("ablate", *few, cwd=tmp_path)
    assert output.returncode == 0, output.stderr
    files = list((tmp_path / "results" / TUNING).glob("*/config.json"))
    assert [json.loads(file.read_text())["sessions"][-1]["stack"] for file in files] == [3] * 6
    assert len(pd.read_csv(tmp_path / "results" / "study.csv")) == 2


def test_a_dry_run_says_what_tuning_will_cost_and_writes_nothing(tmp_path: Path, undisturbed: tuple[Path, str]) -> None:
    output = icpctl_command("ablate", *SEEDED, "--dry-run", cwd=tmp_path)
    assert output.returncode == 0, output.stderr
    words = " ".join(output.stdout.split())
    assert not list(tmp_path.iterdir())
    tuning = pd.read_csv(undisturbed[0] / "tuning.csv")
    for role, cost in tuning.groupby("role")["passes"].sum().items():
        assert f"0/12 {role} {cost:g} resnet20-digits-" in words
    assert f"24 trials, 0 of them done; {tuning['passes'].sum():g} passes" in words
    assert words.count("as tuned") == ARMS * SEEDS
    assert "4 runs (2 baseline, 2 method): 0 finished, 4 to do" in words
    again = icpctl_command("ablate", "--resume", str(undisturbed[0]), "--dry-run")
    assert "4 finished, 0 to do" in " ".join(again.stdout.split())
    assert "trials" not in again.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--tune", "lr=1"], "--tune lr: 1 is not a range"),
        (["--tune", "lx=1..2"], "Unknown hyper-parameter 'lx'"),
        (["--tune", "lr=1e-3..1", "--trials", "0"], "--trials"),
        (["--tune", "lr=1e-3..1", "--grid", "lr=1,2"], "lr is tuned, and varied by the grid"),
        (["--tune", "lr=1e-3..1", "--val-fraction", "0"], "never on the test split"),
        (["--trials", "3"], "there is nothing to tune"),
    ],
)
def test_faults_are_one_paragraph_and_leave_nothing(tmp_path: Path, arguments: list[str], said: str) -> None:
    assert said in " ".join(refused("ablate", "resnet20", "digits", *arguments, cwd=tmp_path).split())
    assert not list(tmp_path.iterdir())


def test_trials_that_diverge_are_outcomes(tmp_path: Path) -> None:
    wild = [*SMALL, "--grid", "steps=1", "--tune", "lr=1e-4..1e38:log", "--trials", "4", "--model-optimizer", "sgd"]
    output = icpctl_command("ablate", *wild, "--jobs", "1", "--retries", "0", cwd=tmp_path)
    table = pd.read_csv(tmp_path / "results" / "tuning.csv")
    assert set(table["state"]) == {"finished", "diverged"}
    assert len(table) == 8
    assert output.returncode == 0, output.stderr
    assert "trials diverged." in " ".join(output.stdout.split())
