"""One run of a study in this process: what a worker does with a run that is finished, lost to another, or refused."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from icpctl.ablate import claim as claim_module
from icpctl.ablate.claim import CLAIM_FILE, Claim, ClaimLostError
from icpctl.ablate.study import Definition, Study
from icpctl.ablate.worker import LOG_FILE, Job, Outcome, work
from icpctl.config import RunConfig
from icpctl.files import read_json
from icpctl.runs.folder import RunFolder
from icpctl.tasks.classification import Classification
from icpctl.training import engine

CONFIG = RunConfig(dataset="digits", train_size=100, epochs=2, optimizer="none")


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["/bin/icpctl", "ablate", "--seeds", "1"])
    Definition([Study(seeds=(0,))]).keep(tmp_path / "results")
    return Job.of([CONFIG], Path("results"))


def never() -> bool:
    return False


def test_a_run_is_trained_recorded_and_let_go(job: Job) -> None:
    folder = RunFolder(Path(job.output), CONFIG)
    assert work(job, never) == {CONFIG.run_id: Outcome("finished")}
    assert folder.status()["state"] == "finished"
    assert "epoch 2/2" in (folder.path / LOG_FILE).read_text()
    assert not (folder.path / CLAIM_FILE).exists()
    (session,) = json.loads((folder.path / "config.json").read_text())["sessions"]
    assert session["command"] == "icpctl ablate --seeds 1"


def test_a_run_that_another_study_has_just_finished_is_not_touched(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(Path(job.output), CONFIG)
    folder.create()
    folder.write_status("finished", epoch=2)
    monkeypatch.setattr(engine, "train", lambda *given, **named: pytest.fail("it was trained"))
    assert work(job, never) == {CONFIG.run_id: Outcome("finished")}


def test_a_run_in_living_hands_is_left_there(job: Job) -> None:
    folder = RunFolder(Path(job.output), CONFIG)
    claim = Claim.take(folder.path)
    assert claim is not None
    with claim:
        assert work(job, never) == {CONFIG.run_id: Outcome("elsewhere")}
    with folder.lock():  # as `icpctl train` holds it
        assert work(job, never) == {CONFIG.run_id: Outcome("elsewhere")}
    assert "state" not in folder.status()


def test_who_has_lost_the_claim_writes_nothing_more(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(Path(job.output), CONFIG)

    def lost(claim: Claim) -> None:
        if folder.metrics_file.exists() and folder.metrics_file.read_text().count("\n") > 1:  # after the first epoch
            folder.write_status("running", by="another")
            raise ClaimLostError

    monkeypatch.setattr(Claim, "check", lost)
    assert work(job, never) == {CONFIG.run_id: Outcome("elsewhere")}
    assert folder.status() == {"state": "running", "by": "another"}


@pytest.mark.parametrize("epochs", [0, 1, 2])
def test_who_has_lost_the_claim_by_the_end_of_an_epoch_writes_nothing_more(
    epochs: int, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a process that was stopped while it evaluated, or measured the last figures."""
    folder = RunFolder(Path(job.output), CONFIG)
    evaluate = Classification.evaluate_last if epochs == CONFIG.epochs else Classification.evaluate
    done: list[int] = []
    kept: dict[Path, bytes] = {}

    def stands_still(task: Classification, *given: Any) -> Any:
        done.append(1)
        if len(done) == epochs + 1 or epochs == CONFIG.epochs:
            claim = folder.path / CLAIM_FILE
            claim.write_text(json.dumps(read_json(claim) | {"owner": "another"}))
            kept.update((file, file.read_bytes()) for file in folder.path.rglob("*.*") if file.is_file())
            monkeypatch.setattr(claim_module, "HEARTBEAT", -1.0)  # it looks before it writes, as after a long sleep
        return evaluate(task, *given)

    monkeypatch.setattr(Classification, evaluate.__name__, stands_still)
    assert work(job, never) == {CONFIG.run_id: Outcome("elsewhere")}
    assert kept
    assert {file: file.read_bytes() for file in folder.path.rglob("*.*") if file.is_file()} == kept


def test_who_falls_asleep_within_a_save_does_not_end_it(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(Path(job.output), CONFIG)
    fsync, kept = os.fsync, list[bytes]()

    def sleeps(descriptor: int) -> None:
        fsync(descriptor)
        last = folder.checkpoints / "last.pt"
        if last.exists() and list(folder.checkpoints.glob("*.tmp")) and not kept:  # it is about to be replaced
            kept.append(last.read_bytes())
            (folder.path / CLAIM_FILE).write_text(
                json.dumps(read_json(folder.path / CLAIM_FILE) | {"owner": "another"})
            )
            monkeypatch.setattr(claim_module, "HEARTBEAT", -1.0)

    monkeypatch.setattr(os, "fsync", sleeps)
    assert work(job, never) == {CONFIG.run_id: Outcome("elsewhere")}
    assert (folder.checkpoints / "last.pt").read_bytes() == kept[0]
    assert folder.status()["state"] == "running"
    assert not list(folder.checkpoints.glob("*.tmp"))


def test_a_stop_saves(job: Job) -> None:
    asked = iter([False, False])
    assert work(job, lambda: next(asked, True)) == {CONFIG.run_id: Outcome("interrupted")}
    assert RunFolder(Path(job.output), CONFIG).status()["state"] == "interrupted"


def test_what_fails_says_why_and_has_its_configuration(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*given: object, **named: object) -> None:
        raise RuntimeError("CUDA error")

    monkeypatch.setattr(engine, "train", crash)
    assert work(job, never) == {CONFIG.run_id: Outcome("failed", "RuntimeError: CUDA error", crashed=True)}
    folder = RunFolder(Path(job.output), CONFIG)
    status = folder.status()
    assert (status["state"], status["error"]) == ("failed", "RuntimeError: CUDA error")
    assert "in crash" in status["traceback"]
    assert json.loads((folder.path / "config.json").read_text())["run_id"] == CONFIG.run_id


def test_a_machine_that_cannot_do_it_says_its_name(job: Job, tmp_path: Path) -> None:
    nowhere = replace(job, output=str(tmp_path / "nowhere"))
    (config,) = job.runs.values()
    without_data = replace(job, runs={CONFIG.run_id: {**config, "dataset": "folder:nowhere"}})
    for refused in (nowhere, replace(job, cwd=str(tmp_path / "nowhere")), without_data):
        outcome = work(refused, never)[CONFIG.run_id]
        assert outcome.ending == "refused"
        assert outcome.error.startswith(f"On {socket.gethostname()}: ")
        assert "nowhere" in outcome.error


def test_a_folder_that_cannot_be_made_costs_its_run_alone(job: Job) -> None:
    (Path(job.output) / CONFIG.run_id).write_text("a file")
    outcome = work(job, never)[CONFIG.run_id]
    assert (outcome.ending, outcome.crashed) == ("failed", False)
    assert CONFIG.run_id in outcome.error
