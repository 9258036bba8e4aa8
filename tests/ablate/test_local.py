"""The local executor, with worker processes that do as the job's name says: who gets which device, and what a death costs."""

from __future__ import annotations

import json
import os
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from icpctl.ablate.executors import build
from icpctl.ablate.executors.local import Local
from icpctl.ablate.study import Execution
from icpctl.ablate.worker import Job, Outcome
from icpctl.config import RunConfig
from icpctl.errors import UserError

WORKER = """\
    #!{python}
    import json, os, signal, sys, time
    asked = []
    print("something that prints when Python starts", flush=True)
    if os.environ.get("BROKEN"):
        sys.exit("ModuleNotFoundError: no module named icpctl")
    print("ready", flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        (name, config), = job["runs"].items()
        said = {{"pid": os.getpid(), "device": config["device"]}}
        said["threads"] = os.environ["OMP_NUM_THREADS"]
        if name == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if name == "exits":
            sys.exit("something said last")
        if name == "waits":
            asked = [sys.stdin.readline() == ""]
        ending = {{"fails": "failed", "crashes": "failed", "waits": "interrupted"}}.get(name, "finished")
        answer = {{"ending": ending, "error": json.dumps(said), "crashed": name == "crashes"}}
        print(json.dumps({{name: answer}}), flush=True)
        if asked:
            break
"""


@pytest.fixture
def executable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Python that, whatever it is asked to run, is the worker above."""
    file = tmp_path / "python"
    file.write_text(textwrap.dedent(WORKER).format(python=sys.executable))
    file.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(file))


def job(name: str, device: str = "auto") -> Job:
    return Job({name: {"device": device}}, "results", ".", ["icpctl"])


def configs(number: int, device: str = "auto") -> list[RunConfig]:
    return [RunConfig(seed=seed, device=device) for seed in range(number)]


def ended(executor: Local, number: int = 1) -> list[tuple[str, Outcome]]:
    done: list[tuple[str, Outcome]] = []
    deadline = time.monotonic() + 600
    while len(done) < number:
        assert time.monotonic() < deadline
        done += executor.wait(0.1)
    return done


def said(outcome: Outcome) -> dict[str, object]:
    content = json.loads(outcome.error)
    assert isinstance(content, dict)
    return content


@pytest.mark.usefixtures("executable")
def test_a_process_is_kept_for_the_next_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    executor = build(Execution(jobs=2), configs(9))
    assert isinstance(executor, Local)
    assert (executor.room, executor.threads) == (2, 2)
    for name in ("a", "b"):
        executor.submit(job(name))
    assert executor.room == 0
    first = ended(executor, 2)
    assert sorted(name for name, _ in first) == ["a", "b"]
    executor.submit(job("fails"))
    ((_, failed),) = ended(executor)
    assert failed.ending == "failed"
    assert said(failed)["pid"] in {said(outcome)["pid"] for _, outcome in first}
    assert {said(outcome)["threads"] for _, outcome in first} == {"2"}
    executor.close()


@pytest.mark.usefixtures("executable")
@pytest.mark.parametrize(
    ("name", "ending", "words"),
    [
        ("killed", "lost", "Its process was killed (SIGKILL), as the system does when memory runs out."),
        ("exits", "lost", "Its process ended with status 1. It said: something said last"),
        ("crashes", "failed", ""),
    ],
)
def test_a_death_costs_its_run_alone(name: str, ending: str, words: str) -> None:
    executor = Local(Execution(jobs=1), configs(2))
    executor.submit(job("a"))
    ((_, before),) = ended(executor)
    executor.submit(job(name))
    ((_, outcome),) = ended(executor)
    assert outcome.ending == ending
    assert words in outcome.error
    executor.submit(job("a"))
    ((_, after),) = ended(executor)
    assert said(after)["pid"] != said(before)["pid"]
    executor.close()


@pytest.mark.usefixtures("executable")
def test_a_process_that_dies_between_two_runs_is_replaced() -> None:
    executor = Local(Execution(jobs=1), configs(2))
    executor.submit(job("a"))
    ((_, before),) = ended(executor)
    pid = said(before)["pid"]
    assert isinstance(pid, int)
    os.kill(pid, 9)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    executor.submit(job("a"))
    ((_, after),) = ended(executor)
    assert after.ending == "finished"
    assert said(after)["pid"] != pid
    executor.close()


@pytest.mark.usefixtures("executable")
def test_processes_that_cannot_start_end_the_study(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROKEN", "1")
    executor = Local(Execution(jobs=1), configs(2))
    executor.submit(job("a"))
    ((_, outcome),) = ended(executor)
    assert outcome.ending == "refused"
    assert "no worker process can be started" in outcome.error
    assert "It said: ModuleNotFoundError: no module named icpctl" in outcome.error
    executor.close()


@pytest.mark.usefixtures("executable")
def test_a_stop_is_handed_on_and_a_close_is_by_force() -> None:
    executor = Local(Execution(jobs=2), configs(2))
    executor.submit(job("waits"))
    executor.submit(job("a"))
    ended(executor)
    executor.stop()
    ((name, outcome),) = ended(executor)
    assert (name, outcome.ending) == ("waits", "interrupted")
    executor.submit(job("waits"))
    executor.close()
    assert executor.room == 2


@pytest.mark.usefixtures("executable")
def test_jobs_share_the_cuda_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert Local(Execution(), configs(9)).room == 2
    assert Local(Execution(), configs(9, "cuda:1")).room == 1
    assert Local(Execution(jobs_per_gpu=2), configs(3)).room == 3  # no more than there are runs
    assert Local(Execution(jobs=3, jobs_per_gpu=2), configs(9)).room == 3
    two = Local(Execution(jobs_per_gpu=2), configs(2))
    assert [process.device for process in two.processes] == ["cuda:0", "cuda:1"]  # none idles
    with pytest.raises(UserError, match=r"--jobs 3: there is room for 2 here, with --jobs-per-gpu 1"):
        Local(Execution(jobs=3), configs(9))
    with pytest.raises(UserError, match="torch sees 2 CUDA devices"):
        Local(Execution(), configs(1, "cuda:7"))
    executor = Local(Execution(jobs_per_gpu=2), configs(9))
    for name in "abcd":
        executor.submit(job(name))
    assert sorted(str(said(outcome)["device"]) for _, outcome in ended(executor, 4)) == [
        "cuda:0",
        "cuda:0",
        "cuda:1",
        "cuda:1",
    ]
    executor.submit(job("e", "cpu"))
    ((_, outcome),) = ended(executor)
    assert said(outcome)["device"] == "cpu"
    executor.close()


@pytest.mark.parametrize(
    ("jobs", "cores", "runs", "processes", "threads"),
    [(None, 4, 9, 4, 1), (None, 4, 2, 2, 1), (2, 4, 9, 2, 2), (2, 4, 1, 1, 2), (8, 4, 9, 8, 1), (1, 4, 9, 1, 4)],
)
def test_threads_follow_from_the_jobs_asked_for_and_not_from_the_work_that_is_left(
    jobs: int | None, cores: int, runs: int, processes: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is resumed alone would not be equal to the bit with the threads of all."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: cores)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2**40))
    executor = Local(Execution(jobs=jobs), configs(runs, "cpu"))
    assert (len(executor.processes), executor.threads) == (processes, threads)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2**20))
    executor = Local(Execution(jobs=jobs), configs(runs, "cpu"))
    assert (len(executor.processes), executor.threads) == (processes if jobs else 1, threads)
