"""A run of a study in a process, or several that are trained together: claim, train, and say how each ended.

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
from contextlib import ExitStack, chdir, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TextIO

from icpctl.ablate.claim import CLAIM_FILE, Claim, ClaimLostError
from icpctl.ablate.study import STUDY_FILE
from icpctl.config import RunConfig
from icpctl.errors import UserError
from icpctl.files import not_writable
from icpctl.runs.fingerprints import OtherDataError
from icpctl.runs.folder import TUNING, RunFolder
from icpctl.terminal import Terminal
from icpctl.training.display import ConsoleDisplay, Display, Metrics
from icpctl.training.tracking import Tool, Tracked

LOG_FILE = "log.txt"
READY = "ready\n"
"""The first line of a worker process: it has come up, and will answer."""

_checked: set[tuple[object, ...]] = set()
"""The data that this process has found to be there."""

Ending = Literal["finished", "failed", "lost", "elsewhere", "interrupted", "refused"]


@dataclass(frozen=True)
class Job:
    """Runs to train together, mostly one: their configurations, for this machine, and the results folder."""

    runs: Mapping[str, Mapping[str, Any]]
    """The configuration of each, by its id."""
    output: str
    cwd: str
    """Where relative paths, such as those of a data set, begin."""
    command: Sequence[str]
    """The command line of the study, for the provenance of the runs."""
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    """Of the data of each run where the study was started; none: whatever is there."""
    track: Tool | None = None
    """The tool that follows the runs."""

    @classmethod
    def of(
        cls,
        configs: Sequence[RunConfig],
        output: Path,
        fingerprints: Mapping[str, str] | None = None,
        track: Tool | None = None,
    ) -> Job:
        """The job of runs in a results folder; several have one `stack_id`."""
        runs = {config.run_id: config.model_dump(mode="json") for config in configs}
        return cls(runs, str(output.absolute()), str(Path.cwd()), sys.argv, fingerprints or {}, track)

    def on(self, device: str) -> Job:
        """The same where the runs that would choose a CUDA device take this one."""
        runs = {
            run_id: {**config, "device": device} if config["device"] in ("auto", "cuda") else config
            for run_id, config in self.runs.items()
        }
        return replace(self, runs=runs)


@dataclass(frozen=True)
class Outcome:
    """How a run of a job ended.

    finished: the run is finished, now or before. failed: it says why in `error` and in status.json. lost: its process
    or machine is gone. elsewhere: another process is training it. interrupted: it was asked to stop, and is saved.
    refused: this machine cannot do any such run.
    """

    ending: Ending
    error: str = ""
    crashed: bool = False
    """Whether the failure was no error that the user can mend, after which the process is not to be trusted."""


def work(job: Job, should_stop: Callable[[], bool]) -> dict[str, Outcome]:
    """Train the runs of a job, or go on with them, but for those that another process is training; how each ended."""
    if not Path(job.cwd).is_dir():
        refusal = _refused(f"the working directory {job.cwd} is not there. Put it where every machine sees it")
        return dict.fromkeys(job.runs, refusal)
    with chdir(job.cwd):
        return _work(job, should_stop)


def _work(job: Job, should_stop: Callable[[], bool]) -> dict[str, Outcome]:
    from icpctl.training import engine

    sys.argv = list(job.command)
    configs = [RunConfig.model_validate(config) for config in job.runs.values()]
    output = Path(job.output)
    if not ((output.parent if output.name == TUNING else output) / STUDY_FILE).exists():
        return dict.fromkeys(
            job.runs,
            _refused(
                f"the results folder {output} is not there. If it was removed, the same command begins anew. On a cluster, put it "
                "where every machine sees it"
            ),
        )
    try:
        if (needs := engine.data_needs(configs[0])) not in _checked:
            engine.check_runs(configs[:1])
            _checked.add(needs)
    except UserError as error:
        return dict.fromkeys(job.runs, _refused(str(error)))
    outcomes: dict[str, Outcome] = {}
    with ExitStack() as claims:
        taken: dict[str, _Taken] = {}
        for config in configs:
            folder = RunFolder(output, config)
            claim = _claimed(folder)
            if isinstance(claim, Outcome):
                outcomes[config.run_id] = claim
            else:
                claims.enter_context(claim)
                taken[config.run_id] = _Taken(config, folder, claim)
        if taken:
            outcomes |= _train(taken, output, job.fingerprints, should_stop, job.track)
            _release_memory()
    return outcomes


@dataclass(frozen=True)
class _Taken:
    """A run that this process has claimed."""

    config: RunConfig
    folder: RunFolder
    claim: Claim


def _claimed(folder: RunFolder) -> Claim | Outcome:
    """The claim of a run; an outcome if there is nothing to train, or it cannot be claimed."""
    try:
        claim = Claim.take(folder.path)
    except OSError as error:
        message = str(not_writable(folder.path / CLAIM_FILE, error))
        return Outcome("failed", message) if os.access(folder.path.parent, os.W_OK) else _refused(message)
    if claim is None:
        return Outcome("elsewhere")
    if folder.is_finished():
        with claim:
            return Outcome("finished")
    return claim


def _train(
    taken: Mapping[str, _Taken],
    output: Path,
    fingerprints: Mapping[str, str],
    should_stop: Callable[[], bool],
    track: Tool | None = None,
) -> dict[str, Outcome]:
    from icpctl.training import engine
    from icpctl.training.stack import train_stack

    def asked_to_stop(config: RunConfig) -> bool:
        taken[config.run_id].claim.check()
        return should_stop()

    outcomes: dict[str, Outcome] = {}
    displays: dict[str, Display] = {}
    with ExitStack() as logs:
        for run_id, run in taken.items():
            try:
                log = logs.enter_context((run.folder.path / LOG_FILE).open("a", encoding="utf-8", buffering=1))
                display: Display = _WorkerDisplay(log, run.claim)
                displays[run_id] = Tracked(display, track, output) if track else display
            except OSError as error:
                outcomes[run_id] = _failed(run.folder, run.config, error)
        configs = [taken[run_id].config for run_id in displays]
        stopped: list[BaseException | None] = [None] * len(configs)
        try:
            checks = {run_id: run.claim.check for run_id, run in taken.items()}
            if len(configs) == 1:
                (config,), (display,) = configs, displays.values()
                engine.train(
                    config,
                    output,
                    display=display,
                    should_stop=partial(asked_to_stop, config),
                    before_write=checks[config.run_id],
                    fingerprint=fingerprints.get(config.run_id, ""),
                )
            elif configs:
                stopped = train_stack(
                    configs,
                    output,
                    displays=list(displays.values()),
                    should_stop=asked_to_stop,
                    checks=checks,
                    fingerprints=fingerprints,
                )
        except (Exception, engine.Interrupted, ClaimLostError) as error:  # that stopped all of them
            stopped = [error] * len(configs)
    return outcomes | {
        config.run_id: Outcome("finished") if error is None else _stopped(taken[config.run_id], error)
        for config, error in zip(configs, stopped, strict=True)
    }


def _stopped(run: _Taken, error: BaseException) -> Outcome:
    from icpctl.training import engine

    if isinstance(error, engine.Interrupted):
        return Outcome("interrupted")
    if isinstance(error, (engine.BusyError, ClaimLostError)):
        return Outcome("elsewhere")
    if isinstance(error, OtherDataError):
        return _refused(str(error))
    with suppress(ClaimLostError):
        run.claim.check()
        return _failed(run.folder, run.config, error)
    return Outcome("elsewhere")


def _refused(why: str) -> Outcome:
    return Outcome("refused", f"On {socket.gethostname()}: {why}")


def _failed(folder: RunFolder, config: RunConfig, error: BaseException) -> Outcome:
    known = isinstance(error, UserError)
    message = str(error) if known else f"{type(error).__name__}: {error}"
    record_failure(folder, config, message, "".join(traceback.format_exception(error)))
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
        super().__init__(Terminal(file=log, width=120))
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
        outcomes = work(Job(**json.loads(line)), stop.is_set)
        with suppress(BrokenPipeError):
            answers.write(json.dumps({run_id: asdict(outcome) for run_id, outcome in outcomes.items()}) + "\n")


if __name__ == "__main__":
    main()
