"""Studies on a Ray cluster of two nodes, which are started here, killed here, and left alone otherwise."""

from __future__ import annotations

import io
import shutil
import socket
import sys
import threading
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image
from rich.console import Console
from studies import SETTINGS, assert_complete, configs, execute, study, under_way

from icpctl.ablate import command
from icpctl.ablate.claim import holder
from icpctl.ablate.executors import ray as ray_executor
from icpctl.ablate.executors.ray import Ray
from icpctl.ablate.scheduler import Scheduler, Stopped
from icpctl.ablate.study import Definition, Execution, Study
from icpctl.ablate.worker import Job
from icpctl.config import resolve
from icpctl.errors import UserError

try:
    ray = ray_executor._import_ray()
except UserError:
    pytest.skip("ray is not installed", allow_module_level=True)
pytestmark = pytest.mark.xdist_group("ray")


# Without the health checks at such intervals, a cluster takes a minute to see that a node is dead.
HEALTH = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 2}
# Ray lets its workers go after everything else on the machine, the other tests included.
HEAD = {"num_cpus": 1, "include_dashboard": False, "_system_config": HEALTH | {"worker_niceness": 0}}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    cluster: Any = Cluster(initialize_head=True, head_node_args=HEAD)
    try:
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture(autouse=True)
def no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def connect(cluster: Any, definition: Definition, **execution: Any) -> Ray:
    return Ray(Execution(executor="ray", address=cluster.address, **execution), configs(definition))


def test_the_package_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'icpctl\[ray\]'"):
        Ray(Execution(executor="ray"), [])


def test_without_a_cluster_it_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "process_iter", lambda names: iter(()))
    began = time.monotonic()
    with pytest.raises(UserError, match="No node of a Ray cluster runs on this machine"):
        Ray(Execution(executor="ray"), [])
    assert time.monotonic() - began < 60


@pytest.mark.parametrize("given", ["option", "environment"])
def test_an_address_where_nothing_answers_is_refused_at_once(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address if given == "environment" else "192.0.2.77:1")
        began = time.monotonic()
        with pytest.raises(UserError, match=f"No Ray cluster answers at {address}.*ray start --head"):
            Ray(Execution(executor="ray", address=address if given == "option" else None), [])
    assert time.monotonic() - began < 60


@pytest.mark.parametrize("address", ["host", "host:x", "ray://host:10001", "http://127.0.0.1:8265", ":6379", "h:70000"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(UserError, match="this is not HOST:PORT"):
        Ray(Execution(executor="ray", address=address), [])


def test_the_address_of_a_web_server_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(99)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        threading.Thread(target=answer).start()
        with pytest.raises(UserError, match="a web server answers there"):
            Ray(Execution(executor="ray", address=f"127.0.0.1:{server.getsockname()[1]}"), [])


def test_a_node_that_dies_loses_no_run(cluster: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    definition = study(6, 1, 2)  # long enough to be killed at work
    node = cluster.add_node(num_cpus=1)
    executor = connect(cluster, definition)
    capfd.readouterr()
    killed: list[str] = []
    rooms: list[int] = []

    def kill(scheduler: Scheduler) -> None:
        if killed:
            rooms.append(executor.room + scheduler.counts()["running"])
            return
        raylet = node.all_processes["raylet"][0].process.pid
        for run in under_way(scheduler):
            claim = holder(run.folder.path)
            if claim and raylet in [parent.pid for parent in psutil.Process(claim["pid"]).parents()]:
                rooms.append(executor.room + scheduler.counts()["running"])
                cluster.remove_node(node, allow_graceful=False)
                killed.append(run.folder.run_id)
                return

    scheduler = execute(definition, tmp_path, executor, kill)
    assert len(killed) == 1
    assert scheduler.runs[killed[0]].attempts == 2
    assert (rooms[0], rooms[-1]) == (3, 2)  # one more than there are CPUs
    assert not ray.is_initialized()
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "")
    assert_complete(definition, tmp_path, tmp_path / "twins")


def test_runs_that_are_stopped_are_saved_and_go_on(cluster: Any, tmp_path: Path) -> None:
    definition = study(4, 1)
    stopped: list[str] = []

    def watch(scheduler: Scheduler) -> None:
        stopped.extend(run.folder.run_id for run in under_way(scheduler))

    executor = connect(cluster, definition)
    with pytest.raises(Stopped):
        execute(definition, tmp_path, executor, watch, lambda: bool(stopped))
    states = [run.folder.status().get("state") for run in Scheduler(definition.runs(), tmp_path).runs.values()]
    assert sorted(map(str, states)) == ["None", "interrupted"]
    execute(definition, tmp_path, connect(cluster, definition))
    assert_complete(definition, tmp_path, tmp_path / "twins")


def test_sigterm_is_left_to_the_study(cluster: Any) -> None:
    import signal

    before = signal.getsignal(signal.SIGTERM)
    connect(cluster, study(1, 1)).close()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_worker_without_the_data_ends_the_study(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = tmp_path / "pictures"
    for split in ("train", "test"):
        for number in range(40):
            file = pictures / split / f"class{number % 2}" / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(file)

    def build(execution: Execution, planned: Any) -> Ray:
        shutil.rmtree(pictures)
        return Ray(execution, planned)

    monkeypatch.setattr("icpctl.ablate.executors.build", build)
    settings = {"model": "resnet20", "dataset": f"folder:{pictures}", "batch_size": 2}
    execution = Execution(executor="ray", address=cluster.address)
    began = time.monotonic()
    with pytest.raises(UserError, match=f"On {socket.gethostname()}: .*pictures"):
        command.execute(
            Definition([Study(settings, seeds=(0, 1))], execution),
            tmp_path / "results",
            Console(file=io.StringIO()),
            bool,
        )
    assert time.monotonic() - began < 200
    assert not ray.is_initialized()


def test_another_version_on_a_node_ends_the_study(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_executor, "version", lambda package: "9.9")
    definition = study(1, 1)
    with pytest.raises(UserError, match=rf"On {socket.gethostname()}: icpctl is .* and 9.9 .*icpctl\[ray\]==9.9"):
        execute(definition, tmp_path, connect(cluster, definition))


def test_a_node_without_icpctl_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "icpctl.ablate.worker", None)
    job = Job.of(configs(study(1, 1))[:1], Path("results"))
    (outcome,) = ray_executor._task()(vars(job), version("icpctl")).values()
    assert outcome["ending"] == "refused"
    assert outcome["error"].startswith(f"On {socket.gethostname()}: ")


def test_a_worker_that_is_killed_loses_its_run_alone(cluster: Any, tmp_path: Path) -> None:
    definition = study(8, 1)
    killed: list[str] = []

    def kill(scheduler: Scheduler) -> None:
        for run in under_way(scheduler):
            if not killed and (claim := holder(run.folder.path)):
                psutil.Process(claim["pid"]).kill()
                killed.append(run.folder.run_id)

    scheduler = execute(definition, tmp_path, connect(cluster, definition), kill, retries=0)
    assert {run_id: run.state for run_id, run in scheduler.runs.items()} == {
        config.run_id: "failed" if config.run_id in killed else "finished" for config in configs(definition)
    }
    assert "Ray lost it: WorkerCrashedError" in scheduler.runs[killed[0]].folder.status()["error"]


def test_gpus_are_shared_as_asked(cluster: Any) -> None:
    node = cluster.add_node(num_cpus=8, num_gpus=2)
    try:
        executor = connect(cluster, study(1, 1), jobs_per_gpu=3)
        try:
            assert executor.room == 2 * 3 + 1
        finally:
            executor.close()
        plain = [resolve(SETTINGS | {"optimizer": "none", "device": "cpu"})]
        executor = Ray(Execution(executor="ray", address=cluster.address), plain)
        try:
            assert executor.room == 1 + 8 + 1
        finally:
            executor.close()
    finally:
        cluster.remove_node(node, allow_graceful=False)
        cluster.wait_for_nodes()


def test_a_device_that_the_cluster_lacks_is_refused(cluster: Any) -> None:
    config = resolve(SETTINGS | {"optimizer": "none", "device": "cuda"})
    with pytest.raises(UserError, match="have no GPU"):
        Ray(Execution(executor="ray", address=cluster.address), [config])
    assert not ray.is_initialized()
