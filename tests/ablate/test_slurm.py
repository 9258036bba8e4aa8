"""Studies by Slurm jobs: those of submitit on this machine, and those of commands that behave like Slurm's."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import fake_slurm
import psutil
import pytest
from rich.console import Console
from studies import SETTINGS, assert_complete, configs, execute, study, under_way

from icpctl.ablate import command
from icpctl.ablate.claim import holder
from icpctl.ablate.command import define, executed_by
from icpctl.ablate.executors import slurm
from icpctl.ablate.executors.slurm import Slurm
from icpctl.ablate.scheduler import Scheduler, Stopped
from icpctl.ablate.study import Definition, Execution
from icpctl.errors import UserError
from icpctl.runs.folder import read_runs

pytest.importorskip("submitit")


@pytest.fixture(params=[pytest.param("local", marks=pytest.mark.slow), "slurm"])
def cluster(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    monkeypatch.setattr(slurm, "ASK", 2.0)
    monkeypatch.setattr(slurm, "ASK_OFTEN", 1.0)
    monkeypatch.setattr(slurm, "GRACE", 1.0)
    if request.param == "slurm":
        commands, state = tmp_path / "bin", tmp_path / "state"
        commands.mkdir()
        state.mkdir()
        for name in ("sbatch", "srun", "scancel", "sacct", "scontrol"):
            (commands / name).write_text(f"#!{sys.executable} -S\n{Path(fake_slurm.__file__).read_text()}")
            (commands / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
        monkeypatch.setenv("FAKE_SLURM", str(state))
    return str(request.param)


def executor(
    definition: Definition,
    cluster: str,
    parameters: Mapping[str, str | int] = MappingProxyType({}),
    jobs: int | None = 1,
) -> Slurm:
    given = {"cluster": cluster, **parameters}
    return Slurm(Execution(executor="slurm", jobs=jobs, slurm=given), configs(definition))


def signal_one(scheduler: Scheduler, number: signal.Signals) -> bool:
    """Send a signal to a run that is past its first epoch."""
    for run in under_way(scheduler):
        if claim := holder(run.folder.path):
            psutil.Process(claim["pid"]).send_signal(number)
            return True
    return False


@pytest.mark.slow
@pytest.mark.parametrize("cluster", ["local"], indirect=True)
def test_a_job_that_is_killed_is_tried_again_and_one_that_is_preempted_queued_again(
    cluster: str, tmp_path: Path
) -> None:
    definition, output = study(5, 1), tmp_path / "results"
    killed: list[bool] = []
    preempted: list[bool] = []

    def disturb(scheduler: Scheduler) -> None:
        if not killed and signal_one(scheduler, signal.SIGKILL):
            killed.append(True)
        elif killed and not preempted and scheduler.counts()["finished"]:
            preempted.extend([True] if signal_one(scheduler, signal.SIGUSR2) else [])

    scheduler = execute(definition, output, executor(definition, cluster), disturb)
    assert (killed, preempted) == ([True], [True])
    assert sorted(run.attempts for run in scheduler.runs.values()) == [1, 2]
    assert (
        len(list((output / "slurm").glob("*_submitted.pkl"))) == 3
    )  # that of the preempted run was the same job again
    assert_complete(definition, output, tmp_path / "twins")
    records, problems = read_runs(output)
    assert (len(records), problems) == (2, [])


def test_jobs_that_are_stopped_are_saved_and_go_on(cluster: str, tmp_path: Path) -> None:
    definition, output = study(8, 1), tmp_path / "results"
    stopped: list[Any] = []
    with pytest.raises(Stopped):
        execute(
            definition,
            output,
            executor(definition, cluster),
            lambda scheduler: stopped.extend(under_way(scheduler)),
            lambda: bool(stopped),
        )
    assert stopped[0].folder.status()["state"] == "interrupted"
    execute(definition, output, executor(definition, cluster))
    assert_complete(definition, output, tmp_path / "twins")


@pytest.mark.parametrize("cluster", ["slurm"], indirect=True)
def test_a_job_that_is_lost_too_often_fails_with_its_last_words(
    cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    definition = study(1, 1)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "broken"))
    monkeypatch.chdir(tmp_path)
    broken = tmp_path / "broken" / "icpctl" / "__init__.py"
    broken.parent.mkdir(parents=True)
    broken.write_text("raise ImportError('no icpctl here')")
    scheduler = execute(definition, tmp_path / "results", executor(definition, cluster, jobs=None), retries=0)
    for run in scheduler.runs.values():
        assert run.state == "failed"
        assert "no icpctl here" in run.folder.status()["error"]


@pytest.mark.parametrize("cluster", ["slurm"], indirect=True)
def test_queued_jobs_are_cancelled_when_the_study_stops(cluster: str, tmp_path: Path) -> None:
    (Path(os.environ["FAKE_SLURM"]) / "hold").touch()
    definition = study(1, 1)
    looks: list[object] = []
    with pytest.raises(Stopped):
        execute(definition, tmp_path / "results", executor(definition, cluster), looks.append, lambda: len(looks) > 1)
    jobs = [path for path in Path(os.environ["FAKE_SLURM"]).iterdir() if path.is_dir()]
    assert [fake_slurm.state(job) for job in jobs] == ["CANCELLED"]


@pytest.mark.parametrize("cluster", ["slurm"], indirect=True)
def test_a_full_queue_is_waited_for_unless_the_first_job_is_refused(cluster: str, tmp_path: Path) -> None:
    full = Path(os.environ["FAKE_SLURM"]) / "full"
    full.touch()
    definition = study(1, 1)
    with pytest.raises(UserError, match=r"Slurm does not take the job: .*QOSMaxSubmitJobPerUserLimit"):
        execute(definition, tmp_path / "results", executor(definition, cluster))
    full.unlink()

    def watch(scheduler: Scheduler) -> None:
        if scheduler.counts()["finished"]:
            full.unlink(missing_ok=True)
        elif scheduler.counts()["running"]:
            full.touch()

    scheduler = execute(definition, tmp_path / "results", executor(definition, cluster), watch)
    assert [run.attempts for run in scheduler.runs.values()] == [1, 1]


@pytest.mark.parametrize("cluster", ["slurm"], indirect=True)
@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"slurm_partitoin": "gpu"}, "Unknown argument 'partitoin'"),
        ({"whatever": 1}, "Parameter 'whatever' need to be prefixed"),
        ({"timeout_min": "long"}, '"timeout_min" expected type'),
        ({"tasks_per_node": 2}, "a run is one process"),
        ({"cpus_per_task": "many"}, '"cpus_per_task" expected type'),
    ],
)
def test_what_is_wrong_with_a_parameter_is_said_before_the_first_run(
    cluster: str, parameters: dict[str, str | int], said: str
) -> None:
    with pytest.raises(UserError) as caught:
        executor(study(1, 1), cluster, parameters)
    assert str(caught.value).startswith("--slurm")
    assert said in str(caught.value)


def test_without_slurm_it_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="Slurm's sbatch is not there"):
        executor(study(1, 1), "slurm")
    with pytest.raises(UserError, match="it is slurm or local"):
        executor(study(1, 1), "slrum")


def test_gpus_are_not_shared() -> None:
    with pytest.raises(UserError, match="--jobs-per-gpu 2"):
        Slurm(Execution(executor="slurm", jobs_per_gpu=2, slurm={"cluster": "local"}), [])


def test_the_package_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match=r"pip install 'icpctl\[slurm\]'"):
        Slurm(Execution(executor="slurm"), [])


@pytest.mark.slow
@pytest.mark.parametrize("cluster", ["local"], indirect=True)
def test_tuning_and_the_final_runs_are_done_by_jobs(cluster: str, tmp_path: Path) -> None:
    output = tmp_path / "results"
    definition = define(SETTINGS | {"epochs": 1, "val_fraction": 0.3}, seeds="1", tune=["lr=1e-4..1e-2:log"], trials=1)
    definition = executed_by(definition, {"executor": "slurm", "jobs": 2}, [f"cluster={cluster}"])
    assert set(command.execute(definition, output, Console(file=io.StringIO()), lambda: False).values()) == {None}
    records, problems = read_runs(output / "tuning")
    assert ([record.status["state"] for record in records], problems) == (["finished"] * 2, [])
    records, problems = read_runs(output)
    assert ([record.status["state"] for record in records], problems) == (["finished"] * 2, [])
