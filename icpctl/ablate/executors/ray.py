"""Runs as tasks of a Ray cluster, which is there already: one task a run, on any node that has icpctl and the folders."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import psutil

from icpctl.ablate.study import Execution
from icpctl.ablate.worker import Job, Outcome
from icpctl.config import RunConfig
from icpctl.errors import UserError

ANSWER = 3.0
"""Seconds in which the head of a cluster has to answer; `ray.init` by itself goes on trying for minutes."""
HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
"""How a client of the head's protocol, HTTP/2, begins."""
GPU_PARTS = 10_000
"""Into how many parts Ray divides a GPU."""
WAY_OUT = (
    "Start one with `ray start --head`, and add machines with `ray start --address=HOST:6379`; or give --executor local, "
    "and the runs are executed on this machine."
)
WAY_BACK = (
    "The runs are saved up to their last checkpoint: start the cluster again, and go on with --resume; or with --resume and "
    "--executor local."
)


class Ray:
    """`icpctl.ablate.executors.Executor` on a Ray cluster.

    Without `execution.jobs` there is one job more in flight than the cluster's nodes have room for: it waits in Ray's
    queue, so that no node idles between two runs, and so that a cluster that grows on demand sees the demand.
    """

    def __init__(self, execution: Execution, configs: Sequence[RunConfig]) -> None:
        self._ray = _import_ray()
        self._execution = execution
        self._at_work: dict[Any, Job] = {}
        _connect(self._ray, execution.address)
        try:
            self._gpus = any(config.device != "cpu" for config in configs) and self._resource("GPU") > 0
            self._check(configs)
        except BaseException:
            self.close()
            raise

    @property
    def room(self) -> int:
        """Jobs that may be added to those in flight, by the nodes that the cluster has at this moment."""
        return (self._execution.jobs or self._places() + 1) - len(self._at_work)

    def submit(self, job: Job) -> None:
        """Put a job into the cluster's queue."""
        gpu = self._gpus and all(config["device"] != "cpu" for config in job.runs.values())
        # Of the devices that a task sees, its own is the only one. Ray ends a process after one task with a GPU, as
        # CUDA cannot change the device later.
        runs = {run_id: {**config, "device": "cuda" if gpu else "cpu"} for run_id, config in job.runs.items()}
        task = self._ray.remote(_task()).options(
            name=" ".join(job.runs),
            num_cpus=1,
            num_gpus=GPU_PARTS // self._execution.jobs_per_gpu / GPU_PARTS if gpu else 0,
            max_retries=0,  # the scheduler tries again
        )
        self._at_work[task.remote(asdict(job) | {"runs": runs}, version("icpctl"))] = job

    def wait(self, seconds: float) -> list[tuple[str, Outcome]]:
        """The runs that have ended; one whose worker or node is gone is lost."""
        refs = list(self._at_work)
        ended, _ = self._ray.wait(refs, num_returns=len(refs), timeout=0)
        if not ended:
            ended, _ = self._ray.wait(refs, num_returns=1, timeout=seconds)
        return [end for ref in ended for end in self._outcomes(ref, self._at_work.pop(ref)).items()]

    def stop(self) -> None:
        """Ask every job to save and stop; one that still waits in the queue is taken out."""
        for ref in self._at_work:
            with suppress(self._ray.exceptions.RayError):  # the cluster may be gone
                self._ray.cancel(ref)  # SIGINT in the task, which takes it for the wish to stop

    def close(self) -> None:
        """End what is at work by force, and leave the cluster, which goes on."""
        for ref in self._at_work:
            with suppress(self._ray.exceptions.RayError):
                self._ray.cancel(ref, force=True)
        self._at_work.clear()
        self._ray.shutdown()

    def _outcomes(self, ref: Any, job: Job) -> dict[str, Outcome]:
        try:
            return {run_id: Outcome(**outcome) for run_id, outcome in self._ray.get(ref).items()}
        except self._ray.exceptions.TaskCancelledError:  # before it began
            outcome = Outcome("interrupted")
        except Exception as error:  # a worker or node is gone, or memory has run out: Ray has a class for each
            if self._has_ended(error):
                outcome = Outcome("refused", f"Ray's node on this machine has ended, and with it the study. {WAY_BACK}")
            else:
                said = str(error).strip().partition("\n")[0].partition(". ")[0]
                outcome = Outcome("lost", f"Ray lost it: {type(error).__name__}" + (f", {said}." if said else "."))
        return dict.fromkeys(job.runs, outcome)

    def _has_ended(self, error: Exception) -> bool:
        """Whether the node on this machine is gone, without which nothing can be executed; it may be going still."""
        gone = (self._ray.exceptions.LocalRayletDiedError, self._ray.exceptions.NodeDiedError)
        deadline = time.monotonic() + (ANSWER if isinstance(error, gone) else 0)
        while _node_is_here():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        return True

    def _resource(self, name: str) -> float:
        return float(self._ray.cluster_resources().get(name, 0))

    def _places(self) -> int:
        """Jobs for which the nodes that are alive have room."""
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        return sum(
            int(min(node.get("CPU", 0), node.get("GPU", 0) * self._execution.jobs_per_gpu))
            if self._gpus
            else int(node.get("CPU", 0))
            for node in nodes
        )

    def _check(self, configs: Sequence[RunConfig]) -> None:
        """Refuse what no node of the cluster could ever run."""
        asked = sorted({config.device for config in configs if config.device.startswith("cuda")})
        if asked and not self._gpus:
            raise UserError(
                f"--device {asked[0]}: the nodes of the Ray cluster have no GPU. Add one with `ray start --address`, or use "
                "--device cpu."
            )
        if self._places() == 0 and self._execution.jobs is None:
            raise UserError(
                "The nodes of the Ray cluster have no CPU for a task. Add one with `ray start --address`; or, if the "
                "cluster grows by itself, say how many runs it shall have at once with --jobs."
            )


def _import_ray() -> Any:
    # Ray reads this when it is imported. What its workers and daemons say is in its logs; what became of a run is said
    # by the study.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "^")
    try:
        import ray
    except ImportError:
        raise UserError(
            "--executor ray needs the package ray, which is not installed: pip install 'icpctl[ray]'. Or leave out "
            "--executor, and the runs are executed on this machine."
        ) from None
    return ray


def _connect(ray: Any, address: str | None) -> None:
    """Connect this process to a cluster.

    Raises:
        UserError: there is none, or it cannot be used from here.
    """
    where = address or os.environ.get("RAY_ADDRESS") or "auto"
    if where != "auto":
        _check_answers(where)
    # A driver speaks to the Ray daemon of its own machine; without one, Ray would try for minutes.
    if not _node_is_here():
        raise UserError(f"No node of a Ray cluster runs on this machine. {WAY_OUT}")
    # Ray takes SIGTERM for itself, by which the study is asked to save and stop.
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=where, logging_level="CRITICAL", log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as error:  # such as another version of Ray or of Python
        raise UserError(f"The Ray cluster cannot be used from here: {' '.join(str(error).split())} {WAY_OUT}") from None
    finally:
        signal.signal(signal.SIGTERM, handler)


def _node_is_here() -> bool:
    return any(process.info["name"] == "raylet" for process in psutil.process_iter(["name"]))


def _check_answers(address: str) -> None:
    host, colon, port = address.rpartition(":")
    if "/" in address or not (colon and host and port.isdigit() and int(port) < 2**16):
        raise UserError(
            f"--address {address}: this is not HOST:PORT, such as 127.0.0.1:6379, of a Ray cluster. Run icpctl on a "
            "machine of the cluster; `ray status` there shows whether it is up."
        )
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER) as connection:
            connection.settimeout(ANSWER)
            connection.sendall(HELLO)
            answer = connection.recv(len(b"HTTP"))
    except OSError as error:
        raise UserError(f"No Ray cluster answers at {address}: {error.strerror or error}. {WAY_OUT}") from None
    if answer == b"HTTP":
        raise UserError(
            f"--address {address}: a web server answers there, perhaps Ray's dashboard. Give the address of the cluster "
            "itself; its port is 6379 if none was chosen."
        )


def _task() -> Callable[[Mapping[str, Any], str], dict[str, Any]]:
    """What a node executes.

    A function within a function is sent as it is: it can say that icpctl is missing, where one that is looked up by its
    name could not even be loaded.
    """

    def train(job: Mapping[str, Any], version: str) -> dict[str, Any]:
        import os
        import signal
        import socket
        import threading
        from dataclasses import asdict
        from importlib import metadata

        stop = threading.Event()
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = [signal.signal(number, lambda *_: stop.set()) for number in numbers]
        try:
            os.environ["OMP_NUM_THREADS"] = "1"
            found = metadata.version("icpctl")
            if found != version:
                raise ImportError(f"icpctl is {found} here, and {version} where the study was started")
            import torch

            from icpctl.ablate.worker import Job, work

            torch.set_num_threads(1)
            return {run_id: asdict(outcome) for run_id, outcome in work(Job(**job), stop.is_set).items()}
        except ImportError as error:  # PackageNotFoundError is one
            way_out = f"Install it on every node, in Ray's environment: pip install 'icpctl[ray]=={version}'"
            refusal = {"ending": "refused", "error": f"On {socket.gethostname()}: {error}. {way_out}."}
            return dict.fromkeys(job["runs"], refusal)
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)

    return train
