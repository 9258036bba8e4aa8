"""One run of a study in a process: claim it, train it, and say how it ended.

The executors call `work`, wherever they run. As a program (`python -m icpctl.ablate.worker`) it takes jobs from the
standard input, a line of JSON each, and answers each with a line of JSON: so the local executor keeps it for many runs.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import chdir, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

from rich.console import Console

from icpctl.ablate.claim import Claim, ClaimLostError
from icpctl.ablate.study import STUDY_FILE
from icpctl.config import RunConfig
from icpctl.display import ConsoleDisplay, Metrics
from icpctl.errors import UserError
from icpctl.results import RunFolder, not_writable

LOG_FILE = "log.txt"
READY = "ready\n"
"""The first line of a worker process: it has come up, and will answer."""

_checked: set[tuple[object, ...]] = set()
"""The data that this process has found to be there."""

Ending = Literal["finished", "failed", "lost", "elsewhere", "interrupted", "refused"]


@dataclass(frozen=True)
class Job:
    """A run to train: its configuration, for this machine, and the results folder."""

    run_id: str
    config: Mapping[str, Any]
    output: str
    cwd: str
    """Where relative paths, such as those of a data set, begin."""
    command: Sequence[str]
    """The command line of the study, for the provenance of the run."""

    @classmethod
    def of(cls, config: RunConfig, output: Path) -> Job:
        """The job of a run in a results folder."""
        return cls(config.run_id, config.model_dump(mode="json"), str(output.absolute()), str(Path.cwd()), sys.argv)


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    finished: the run is finished, now or before. failed: it says why in `error` and in status.json. lost: its process
    or machine is gone. elsewhere: another process is training it. interrupted: it was asked to stop, and is saved.
    refused: this machine cannot do any such run.
    """

    ending: Ending
    error: str = ""
    crashed: bool = False
    """Whether the failure was no error that the user can mend, after which the process is not to be trusted."""


def work(job: Job, should_stop: Callable[[], bool]) -> Outcome:
    """Train a run, or go on with it, unless another process is doing so."""
    if not Path(job.cwd).is_dir():
        return _refused(f"the working directory {job.cwd} is not there. Put it where every machine sees it")
    with chdir(job.cwd):
        return _work(job, should_stop)


def _work(job: Job, should_stop: Callable[[], bool]) -> Outcome:
    from icpctl import engine

    sys.argv = list(job.command)
    config = RunConfig.model_validate(job.config)
    output = Path(job.output)
    if not (output / STUDY_FILE).exists():
        return _refused(f"the results folder {output} is not there. Put it where every machine sees it")
    try:
        if (needs := engine.data_needs(config)) not in _checked:
            engine.check_runs([config])
            _checked.add(needs)
    except UserError as error:
        return _refused(str(error))
    folder = RunFolder(output, config)
    try:
        claim = Claim.take(folder.path)
    except OSError as error:
        message = str(not_writable(folder.path, error))
        return Outcome("failed", message) if os.access(output, os.W_OK) else _refused(message)
    if claim is None:
        return Outcome("elsewhere")
    with claim:
        if folder.status().get("state") == "finished":
            return Outcome("finished")

        def asked_to_stop() -> bool:
            claim.check()
            return should_stop()

        try:
            with (folder.path / LOG_FILE).open("a", encoding="utf-8", buffering=1) as log:
                display = _WorkerDisplay(log, claim)
                engine.train(config, output, display=display, should_stop=asked_to_stop)
        except engine.Interrupted:
            return Outcome("interrupted")
        except (engine.BusyError, ClaimLostError):
            return Outcome("elsewhere")
        except Exception as error:
            return _failed(folder, config, error)
        finally:
            _release_memory()
    return Outcome("finished")


def _refused(why: str) -> Outcome:
    return Outcome("refused", f"On {socket.gethostname()}: {why}")


def _failed(folder: RunFolder, config: RunConfig, error: Exception) -> Outcome:
    known = isinstance(error, UserError)
    message = str(error) if known else f"{type(error).__name__}: {error}"
    record_failure(folder, config, message, traceback.format_exc())
    return Outcome("failed", message, crashed=not known)


def record_failure(folder: RunFolder, config: RunConfig, error: str, trace: str = "") -> None:
    """Write into status.json why a run failed; to be called by the holder of its claim."""
    with suppress(UserError):  # the folder cannot be written; what stopped the run matters more
        folder.create()
        if not (folder.path / "config.json").exists():  # it failed before it began
            folder.write_config(config, {}, {})
        details = {"state": "failed", "error": error} | ({"traceback": trace} if trace else {})
        folder.write_status(**folder.status() | details)


def _release_memory() -> None:
    """Give back what the run held on its device, for the other processes there."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class _WorkerDisplay(ConsoleDisplay):
    """Lines in the run's log, and its progress in the claim, for the table of the study."""

    def __init__(self, log: TextIO, claim: Claim) -> None:
        super().__init__(Console(file=log, width=120))
        self.claim = claim

    def batch(self, epoch: int, batch: int, values: Mapping[str, float], seconds_left: float) -> None:
        self.claim.progress = {"epoch": epoch + batch / self.batches, "epochs": self.epochs}

    def epoch(self, epoch: int, metrics: Metrics) -> None:
        super().epoch(epoch, metrics)
        self.claim.progress = {"epoch": epoch + 1, "epochs": self.epochs}


def main() -> None:
    """Take jobs from the standard input until it ends, which it does with the process that sends them.

    At its end, or at SIGTERM, the run at work is saved and stopped.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever prints does not disturb the answers
    answers.write(READY)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    jobs: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            jobs.put(line)
        stop.set()
        jobs.put(None)

    threading.Thread(target=read, daemon=True).start()
    while not stop.is_set() and (line := jobs.get()) is not None:
        outcome = work(Job(**json.loads(line)), stop.is_set)
        with suppress(BrokenPipeError):
            answers.write(json.dumps(asdict(outcome)) + "\n")


if __name__ == "__main__":
    main()
