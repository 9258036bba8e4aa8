"""Runs in processes of this machine, each of which is kept for the next run.

A process that is killed takes nothing with it but its run: each has pipes of its own, and no lock is shared.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import IO

import psutil
import torch

from icpctl.ablate.study import Execution
from icpctl.ablate.worker import READY, Job, Outcome
from icpctl.config import RunConfig
from icpctl.errors import UserError
from icpctl.models.network import choose_device

MEMORY_PER_JOB = 1.5 * 2**30
"""Bytes of main memory that a run on a CPU is reckoned with, so that the default number of jobs fits."""
PATIENCE = 30.0
"""Seconds in which a process that was told to end has to have done so."""


class Local:
    """`icpctl.ablate.executors.Executor` on this machine."""

    def __init__(self, execution: Execution, configs: Sequence[RunConfig]) -> None:
        devices = _devices(configs) * execution.jobs_per_gpu
        cores = torch.get_num_threads()
        if devices:
            if (execution.jobs or 1) > len(devices):
                raise UserError(
                    f"--jobs {execution.jobs}: there is room for {len(devices)} here, with --jobs-per-gpu "
                    f"{execution.jobs_per_gpu}. Raise --jobs-per-gpu, or take fewer jobs."
                )
            jobs = room = execution.jobs or len(devices)
        else:
            jobs = execution.jobs or cores
            fit = max(1, int(psutil.virtual_memory().available // MEMORY_PER_JOB))
            room = execution.jobs or min(cores, fit)
        # By the jobs that were asked for, not by how many there is work or memory for: a run that is resumed is equal to
        # the bit with the same number of threads alone.
        self.threads = max(1, cores // jobs)
        devices += [""] * (room - len(devices))
        self.processes = [_Process(device, self.threads) for device in devices[: min(room, len(configs))]]

    @property
    def room(self) -> int:
        """Processes without a job."""
        return sum(process.job is None for process in self.processes)

    def submit(self, job: Job) -> None:
        """Give a job to a process that has none."""
        next(process for process in self.processes if process.job is None).begin(job)

    def wait(self, seconds: float) -> list[tuple[str, Outcome]]:
        """The runs that have ended; a process that is gone has lost its job."""
        with selectors.DefaultSelector() as selector:
            for process in self.processes:
                if process.job is not None:
                    selector.register(process.answers, selectors.EVENT_READ, process)
            return [end for key, _ in selector.select(seconds) for end in key.data.end().items()]

    def stop(self) -> None:
        """Tell the processes to save and end."""
        for process in self.processes:
            process.stop()

    def close(self) -> None:
        """End the processes: idle ones at once, others by force."""
        for process in self.processes:
            process.close()


class _Process:
    """A worker process; started with its first job, and again if it has died."""

    def __init__(self, device: str, threads: int) -> None:
        self.device, self.threads = device, threads
        self.job: Job | None = None
        self._popen: subprocess.Popen[bytes] | None = None

    @property
    def answers(self) -> IO[bytes]:
        assert self._popen is not None
        assert self._popen.stdout is not None
        return self._popen.stdout

    def begin(self, job: Job) -> None:
        self.job = job
        line = json.dumps(asdict(job.on(self.device) if self.device else job)).encode() + b"\n"
        try:
            self._started().write(line)
        except BrokenPipeError:  # it died while it had nothing to do
            self.close()
            self.job = job
            self._started().write(line)

    def _started(self) -> IO[bytes]:
        if self._popen is None:
            self._ready = False
            self._errors = tempfile.TemporaryFile()  # noqa: SIM115, read when the process is gone
            # Its own session: Ctrl-C in the terminal is for the parent, which tells its workers.
            self._popen = subprocess.Popen(
                [sys.executable, "-P", "-m", "icpctl.ablate.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                bufsize=0,
                env=os.environ | {"OMP_NUM_THREADS": str(self.threads)},
                start_new_session=True,
            )
        assert self._popen.stdin is not None
        return self._popen.stdin

    def end(self) -> dict[str, Outcome]:
        """How each run of the job ended, or nothing if it goes on; once `answers` has something to read."""
        assert self.job is not None
        job, line = self.job, self.answers.readline()
        self._ready = self._ready or line == READY.encode()
        if line.endswith(b"\n") and not line.startswith(b"{"):  # that it is ready, or what something else has printed
            return {}
        self.job = None
        if not line.endswith(b"\n"):
            status, words = self._last_words()
            if not self._ready and status > 0:  # nor would the next one come up
                refusal = f"On {socket.gethostname()}: no worker process can be started. {words}"
                return dict.fromkeys(job.runs, Outcome("refused", refusal))
            return dict.fromkeys(job.runs, Outcome("lost", words))
        outcomes = {run_id: Outcome(**outcome) for run_id, outcome in json.loads(line).items()}
        if any(outcome.crashed or outcome.ending == "interrupted" for outcome in outcomes.values()):
            # After a CUDA error, say, a process can do no more; one that was told to stop has ended.
            self.close()
        return outcomes

    def _last_words(self) -> tuple[int, str]:
        """The status of a process that has ended, and how it did in words."""
        assert self._popen is not None
        status = self._popen.wait()
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip().splitlines()
        self.close()
        if status == -signal.SIGKILL:
            return status, "Its process was killed (SIGKILL), as the system does when memory runs out."
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        return status, f"Its process {how}." + (f" It said: {said[-1]}" if said else "")

    def stop(self) -> None:
        """End its standard input, at which it saves and ends."""
        if self._popen is not None and self._popen.stdin is not None:
            self._popen.stdin.close()

    def close(self) -> None:
        popen, self._popen, busy, self.job = self._popen, None, self.job is not None, None
        if popen is None:
            return
        if busy:
            popen.kill()
        for pipe in (popen.stdin, popen.stdout):
            assert pipe is not None
            with suppress(OSError):
                pipe.close()
        try:
            popen.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            popen.kill()
            popen.wait()
        self._errors.close()


def _devices(configs: Sequence[RunConfig]) -> list[str]:
    """The CUDA devices that the runs may use; none where they run on the CPU.

    Raises:
        UserError: a device that is not there.
    """
    devices: set[str] = set()
    for name in {config.device for config in configs}:
        device = choose_device(name)
        if device.type == "cuda":
            indices = range(torch.cuda.device_count()) if device.index is None else [device.index]
            devices |= {f"cuda:{index}" for index in indices}
    return sorted(devices, key=lambda name: int(name.removeprefix("cuda:")))
