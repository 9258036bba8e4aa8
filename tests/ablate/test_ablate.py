"""Ablations by real processes: killed and resumed, shared by two, stopped, refused. Every run once, and equal to the bit."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import commands
import pandas as pd
import psutil
import pytest
from commands import PATIENCE, Command, Forked, icpctl_command, refused
from filelock import FileLock
from small_runs import write_photos
from studies import assert_equal_to_twins

import icpctl
from icpctl import data
from icpctl.ablate.claim import CLAIM_FILE, holder
from icpctl.ablate.command import define
from icpctl.ablate.study import STUDY_FILE, Definition
from icpctl.runs.folder import RunFolder

SETTINGS = {"model": "resnet20", "dataset": "digits", "train_size": "100", "epochs": "4"}
SMALL = ["resnet20", "digits", "--train-size", "100", "--epochs", "4"]
TWELVE = ["--grid", "steps=1..5", "--seeds", "2"]


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The twelve runs, each trained undisturbed by itself."""
    folder = tmp_path_factory.mktemp("twins")
    runs = define(SETTINGS, ["steps=1..5"], seeds="2").runs()
    return {run.config.run_id: icpctl.train(run.config, folder).path for run in runs}


def begin(*arguments: str, cwd: Path) -> Command:
    return commands.begin("ablate", *arguments, cwd=cwd)


def at_work(results: Path) -> list[Path]:
    return [file.parent for file in results.glob(f"*/{CLAIM_FILE}") if holder(file.parent) is not None]


def until_at_work(process: Command, results: Path, number: int = 1) -> None:
    deadline = time.monotonic() + PATIENCE
    while len(at_work(results)) < number:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_whatever_is_killed_every_run_is_done_once_and_equal(tmp_path: Path, twins: dict[str, Path]) -> None:
    chance = random.Random(5)
    lives = [
        twin.joinpath("status.json").stat().st_mtime - twin.joinpath("config.json").stat().st_mtime
        for twin in twins.values()
    ]
    life = sum(lives) / len(lives)  # so there is work left for the last kill, on a quick machine too
    results = tmp_path / "results"
    process = begin(*SMALL, *TWELVE, "--jobs", "2", "--retries", "100", cwd=tmp_path)
    for victim in ("worker", "worker", "parent", "worker", "parent"):
        until_at_work(process, results)
        time.sleep(chance.uniform(0, life))
        if victim == "worker":
            while not (workers := psutil.Process(process.pid).children()):
                time.sleep(0.02)  # what was at work is the last batch of a worker whose parent was killed
            chance.choice(workers).kill()
        else:
            process.kill()
            process.communicate()
            process = begin("--resume", "results", cwd=tmp_path)
    _, complaints = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, complaints
    assert_equal_to_twins(results, twins)


def test_a_stack_that_is_killed_goes_on(tmp_path: Path) -> None:
    study = [
        *SMALL,
        "--optimizer",
        "adam",
        "--grid",
        "icp-lr=0.001,0.01",
        "--seeds",
        "2",
        "--stack",
        "3",
        "--jobs",
        "1",
    ]
    process = begin(*study, cwd=tmp_path)
    results = tmp_path / "results"
    until_at_work(process, results, 3)
    for worker in psutil.Process(process.pid).children():
        worker.kill()
    process.kill()
    process.wait()
    output = icpctl_command("ablate", "--resume", "results", cwd=tmp_path)
    assert output.returncode == 0, output.stderr
    rows = pd.read_csv(results / "study.csv")
    assert list(rows["state"]) == ["finished"] * 6
    for folder in (path.parent for path in results.glob("*/config.json")):
        metrics = pd.read_csv(folder / "metrics.csv")
        assert not metrics.duplicated(["epoch", "split", "metric"]).any()
        assert sorted(metrics["epoch"].unique()) == [0, 1, 2, 3]
        assert json.loads((folder / "config.json").read_text())["sessions"][-1]["stack"] >= 1


def test_runs_that_cannot_be_stacked_are_counted(tmp_path: Path) -> None:
    study = ["resnet20", "digits", "--train-size", "100", "--epochs", "1", "--controls", "--seeds", "1", "--stack", "2"]
    output = icpctl_command("ablate", *study, cwd=tmp_path)
    assert "--stack 2: 1 of the 5 runs to do is trained one at a time" in " ".join(output.stdout.split())


def test_two_ablations_share_the_work_and_run_nothing_twice(tmp_path: Path, twins: dict[str, Path]) -> None:
    results = tmp_path / "results"
    grid = ["--grid", "steps=1,2", "--seeds", "2"]
    six = {run.config.run_id: twins[run.config.run_id] for run in define(SETTINGS, grid[1:2], seeds="2").runs()}
    processes = [begin(*SMALL, *grid, "--jobs", "1", cwd=tmp_path) for _ in range(2)]
    for process in processes:
        output, complaints = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, complaints
        assert "difference" in output
    assert_equal_to_twins(results, six)
    for run_id in six:
        assert len(json.loads((results / run_id / "config.json").read_text())["sessions"]) == 1
    assert len(Definition.read(results / STUDY_FILE).studies) == 1


def test_changing_the_grid_adds_runs_and_nothing_is_run_again(tmp_path: Path) -> None:
    first = icpctl_command("ablate", *SMALL, "--grid", "steps=1", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    shown = icpctl_command("ablate", *SMALL, "--grid", "steps=1,2", "--dry-run", cwd=tmp_path)
    assert "3 runs (1 baseline, 2 method): 2 finished, 1 to do" in shown.stdout
    assert "from steps measured now with 1 thread" in shown.stdout
    more = icpctl_command("ablate", *SMALL, "--grid", "steps=2", cwd=tmp_path)
    assert more.stdout.count(": running") == 1
    assert len(pd.read_csv(tmp_path / "results" / "study.csv")) == 3
    again = icpctl_command("ablate", "--resume", "results", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert ": running" not in again.stdout
    assert "difference" in again.stdout
    assert len(pd.read_csv(tmp_path / "results" / "study.csv")) == 3


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_what_is_at_work(number: signal.Signals, status: int, tmp_path: Path) -> None:
    process = begin(*SMALL[:-1], "200", "--grid", "optimizer=adam", "--jobs", "2", cwd=tmp_path)
    results = tmp_path / "results"
    until_at_work(process, results, 2)
    while not all((run / "checkpoints" / "last.pt").exists() for run in at_work(results)):
        time.sleep(0.05)
    process.send_signal(number)
    _, complaints = process.communicate(timeout=PATIENCE)
    assert process.returncode == status, complaints
    assert "Saved. `icpctl ablate --resume results` goes on from here." in complaints
    assert [json.loads(file.read_text())["state"] for file in results.glob("*/status.json")] == ["interrupted"] * 2
    assert sorted(pd.read_csv(results / "study.csv")["state"]) == ["interrupted"] * 2
    assert not at_work(results)


def test_a_second_signal_leaves_no_run_that_says_it_is_at_work(tmp_path: Path) -> None:
    process = begin(*SMALL[:-1], "200", "--grid", "optimizer=adam", "--jobs", "1", cwd=tmp_path)
    results = tmp_path / "results"
    until_at_work(process, results)
    while not list(results.glob("*/status.json")):
        time.sleep(0.05)
    (worker,) = psutil.Process(process.pid).children()
    worker.suspend()  # so that it cannot save before the second signal comes
    for _ in range(3):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
    _, complaints = process.communicate(timeout=60)
    assert process.returncode == 143, complaints
    assert "Traceback" not in complaints
    assert "Saved." not in complaints
    assert "Stopped without saving. `icpctl ablate --resume results` goes on from the last checkpoint" in complaints
    assert [json.loads(file.read_text())["state"] for file in results.glob("*/status.json")] == ["interrupted"]
    assert not list(results.glob(f"*/{CLAIM_FILE}"))
    assert not worker.is_running()


def test_a_failing_run_says_why_is_tried_again_and_stops_no_other(tmp_path: Path) -> None:
    grid = ["--grid", "lr=1e30,1e-3", "--model-optimizer", "sgd", "--clip-grad-norm", "0", "--retries", "2"]
    result = icpctl_command("ablate", *SMALL, *grid, cwd=tmp_path)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert result.stderr.count("Failed:") == 2  # the run and its baseline
    assert result.stdout.count("to be tried again") == 4
    states = [json.loads(file.read_text())["state"] for file in (tmp_path / "results").glob("*/status.json")]
    assert sorted(states) == ["failed", "failed", "finished", "finished"]
    table = pd.read_csv(tmp_path / "results" / "study.csv")
    errors = table["error"][table["state"] == "failed"].astype(str)
    assert errors.str.contains("The loss is not finite at epoch").all()


def test_where_no_run_could_begin_the_status_says_that_runs_failed(tmp_path: Path) -> None:
    """The model takes larger images than these, which is found when it is built."""
    arguments = [
        "inception_v3",
        "digits",
        "--epochs",
        "1",
        "--train-size",
        "100",
        "--layers",
        "Mixed_5b",
        "--grid",
        "steps=1",
    ]
    result = icpctl_command("ablate", *arguments, "--retries", "0", cwd=tmp_path)
    assert result.returncode == 1, result.stderr
    assert result.stderr.count("inception_v3 cannot be trained on images of 8×8 pixels") == 2
    assert "Traceback" not in result.stderr
    assert "No run in results is finished" in " ".join(result.stderr.split())
    assert list(pd.read_csv(tmp_path / "results" / "study.csv")["state"]) == ["failed", "failed"]


def test_a_run_that_is_being_trained_by_hand_is_waited_for(tmp_path: Path) -> None:
    config = define(SETTINGS, ["steps=1"]).runs()[0].config
    folder = RunFolder(tmp_path / "results", config)
    folder.create()
    with FileLock(folder.path / ".lock"):  # as `icpctl train` holds it
        process = begin(*SMALL, "--grid", "steps=1", cwd=tmp_path)
        assert process.stdout is not None
        assert any(": in the hands of another process" in line for line in process.stdout)
    output, complaints = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, complaints
    assert ": finished, accuracy" in output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "There is nothing to vary. Give --grid steps=1,3,5"),
        (["resnet20", "digits", "--grid", "steps=1..x"], "--grid steps=1..x: 1..x is not a range"),
        (["resnet20", "digits", "--grid", "steps=1,2", "--where", "stps < 2"], "Did you mean 'steps'"),
        (["resnet20", "digits", "--grid", "steps=1,2", "--steps", "5"], "varied by the grid"),
        (["--resume", "nowhere"], "there is no study.toml"),
        (["--study", "nowhere.toml"], "Cannot read nowhere.toml"),
        (["--resume", "a", "-o", "b"], "both name the results folder"),
        (["resnet20", "digits", "--grid", "layers=layer1,layer9"], "has no module 'layer9'"),
        (["resnet20", "digits", "--grid", "steps=1", "--train-size", "3"], "classes"),
        (["resnet20", "folder:nowhere", "--grid", "steps=1"], "nowhere"),
        (["resnet20", "digits", "--grid", "steps=1", "--device", "cuda:7"], "torch sees"),
        (["resnet20", "digits", "--grid", "steps=1", "--jobs", "two"], "--jobs"),
        (["resnet20", "digits", "--grid", "steps=1", "--address", "localhost:1"], "--executor ray"),
    ],
)
def test_bad_input_is_refused_before_the_first_run(arguments: list[str], said: str, tmp_path: Path) -> None:
    result = icpctl_command("ablate", *arguments, cwd=tmp_path)
    assert result.returncode == 2
    assert said in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_damaged_study_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / STUDY_FILE).write_text("[[study]]\nseeds = ")
    assert "study.toml is not valid TOML" in refused("ablate", "--resume", "results", cwd=tmp_path)
    assert "study.toml is not valid TOML" in refused("ablate", *SMALL, "--grid", "steps=1", cwd=tmp_path)


def test_a_worker_without_the_data_ends_the_study(tmp_path: Path) -> None:
    """The data go away between the look at them and the first run, as on a machine that lacks them."""
    write_photos(tmp_path / "photos")
    arguments = ["resnet20", "folder:photos", "--epochs", "1", "--grid", "steps=1", "--jobs", "1"]
    arguments += ["--val-fraction", "0.25"]
    code = (
        "import shutil, sys; from icpctl.ablate import executors; build = executors.build\n"
        "def gone(*a):\n shutil.rmtree('photos'); return build(*a)\n"
        "executors.build = gone; from icpctl.cli.app import main; sys.argv[0] = 'icpctl'; main()"
    )
    (tmp_path / "script.py").write_text(code)
    process = Forked([sys.executable, tmp_path / "script.py", "ablate", *arguments], tmp_path)
    _, complaints = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2, complaints
    assert "Traceback" not in complaints
    assert f"On {os.uname().nodename}: " in " ".join(complaints.split())
    assert "photos" in complaints


def test_with_everything_finished_a_dry_run_needs_no_torch(tmp_path: Path) -> None:
    fingerprint = data.load("digits").fingerprint
    for run in define(SETTINGS, ["steps=1..40"], seeds="10").runs():
        folder = RunFolder(tmp_path / "results", run.config)
        folder.path.mkdir(parents=True)
        (folder.path / "config.json").write_text(json.dumps({"data": {"fingerprint": fingerprint}}))
        (folder.path / "status.json").write_text('{"state": "finished"}')
    code = "import sys; from icpctl.cli.app import app\ntry:\n app()\nfinally:\n print('torch' in sys.modules)"
    arguments = ["ablate", *SMALL, "--grid", "steps=1..40", "--seeds", "10", "--dry-run"]
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE
    )
    *_, summary, blank, needed = result.stdout.splitlines() + [""] * (result.returncode != 0)
    assert needed == "False"
    assert "410 runs (10 baseline, 400 method): 410 finished, 0 to do" in result.stdout, (summary, blank)
