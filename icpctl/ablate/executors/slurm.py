"""Runs as Slurm jobs, one each, by way of submitit; or as submitit's jobs on this machine, to try that out."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from icpctl.ablate.study import Execution
from icpctl.ablate.worker import Job, Outcome, work
from icpctl.config import RunConfig
from icpctl.errors import UserError
from icpctl.runs.folder import SLURM

JOBS = 32
"""Jobs that Slurm has at once, queued ones included, unless --jobs says another number."""
DEFAULTS = {"name": "icpctl", "timeout_min": 240, "cpus_per_task": 1}
"""Parameters of a job that --slurm does not give. A run that takes longer is queued again, and goes on."""
REQUEUES = 100
"""How often a job may come to its time limit."""
POLL = 1.0
"""Seconds between two looks for results."""
ASK = 30.0
"""Seconds between two questions to Slurm: for the state of all jobs, and for a place in its queue."""
ASK_OFTEN = 5.0
"""The same, once the jobs shall stop."""
GRACE = 5.0
"""Seconds in which the result of a job that has ended has to come through the file system."""
LAST_WORDS = 5
"""Lines of a lost job's standard error that are repeated."""


@dataclass
class _Submission:
    """A job of the study, and what submitit calls one: None as long as Slurm has not taken it."""

    job: Job
    submitted: Any = None
    ended: float | None = None
    """When it was first seen to have ended without a result; of `time.monotonic`."""


class Slurm:
    """`icpctl.ablate.executors.Executor` by Slurm."""

    def __init__(self, execution: Execution, configs: Sequence[RunConfig]) -> None:
        self._submitit = _import_submitit()
        given = dict(execution.slurm)
        self._cluster = given.pop("cluster", "slurm")
        self._parameters = _parameters(given)
        if execution.jobs_per_gpu != 1:
            raise UserError(
                f"--jobs-per-gpu {execution.jobs_per_gpu}: Slurm gives each job GPUs of its own, --slurm gpus_per_node=1. "
                "Leave out --jobs-per-gpu."
            )
        if self._cluster not in ("slurm", "local"):
            raise UserError(f"--slurm cluster={self._cluster}: it is slurm or local.")
        missing = [command for command in ("sbatch", "srun", "sacct", "scancel") if not shutil.which(command)]
        if self._cluster == "slurm" and missing:
            raise UserError(
                f"--executor slurm: Slurm's {missing[0]} is not there. Give the command on a machine from which jobs are "
                "submitted; or leave out --executor, and the runs are executed on this machine."
            )
        with tempfile.TemporaryDirectory() as folder:
            self._build(Path(folder))
        self._executor: Any = None
        self._jobs = min(execution.jobs or JOBS, len(configs))
        self._at_work: list[_Submission] = []
        self._stopping = False
        self._asked = time.monotonic()

    @property
    def room(self) -> int:
        """Jobs that may be added to those that are queued or at work."""
        return self._jobs - len(self._at_work)

    def submit(self, job: Job) -> None:
        """Queue a job.

        Raises:
            UserError: Slurm does not take the first one.
        """
        first = self._executor is None
        if first:
            self._executor = self._build(Path(job.output) / SLURM)
        submission = _Submission(job)
        self._at_work.append(submission)
        refused = self._queue(submission)
        if refused and first:
            raise UserError(
                f"Slurm does not take the job: {refused} Its parameters are given by --slurm KEY=VALUE, such as "
                "--slurm slurm_partition=NAME --slurm timeout_min=60."
            )

    def wait(self, seconds: float) -> list[tuple[str, Outcome]]:
        """The runs that have ended; looks for their results once in a while, and takes longer if there are none."""
        ask = time.monotonic() - self._asked > (ASK_OFTEN if self._stopping else ASK)
        if ask:
            self._asked = time.monotonic()
            if self._stopping:
                self._signal()  # again, for one that has begun in the meantime
        ended: list[tuple[str, Outcome]] = []
        for submission in list(self._at_work):
            if submission.submitted is None and ask and not self._stopping:
                self._queue(submission)
            if outcomes := self._outcomes(submission, ask):
                ended += outcomes.items()
                self._at_work.remove(submission)
            elif submission.submitted is not None:
                ask = False  # Slurm was asked for all of them
        if not ended:
            time.sleep(max(seconds, POLL))
        return ended

    def stop(self) -> None:
        """Take queued jobs out of the queue, and ask the others to save and stop."""
        self._stopping = True
        self._signal()

    def close(self) -> None:
        """Cancel what is left."""
        for submission in self._at_work:
            if submission.submitted is not None:
                submission.submitted.cancel(check=False)
        self._at_work.clear()

    def _build(self, folder: Path) -> Any:
        """Submitit's executor, with the parameters.

        Raises:
            UserError: one of them is unknown, or has a value that it cannot have.
        """
        limits = {f"{self._cluster}_max_num_timeout": REQUEUES}
        executor = self._submitit.AutoExecutor(folder=folder, cluster=self._cluster, **limits)
        try:
            executor.update_parameters(**self._parameters)
        except (NameError, AssertionError, ValueError, TypeError) as error:
            said = str(error).splitlines()[0].rstrip(".")
            raise UserError(
                f"--slurm: {said}. The names are submitit's: timeout_min, gpus_per_node, cpus_per_task, mem_gb; and "
                "sbatch's own with slurm_ before them, such as slurm_partition."
            ) from None
        return executor

    def _queue(self, submission: _Submission) -> str:
        """Hand a job to Slurm; what Slurm has against it."""
        try:
            submission.submitted = self._executor.submit(_Run(submission.job, int(self._parameters["cpus_per_task"])))
        except (self._submitit.core.utils.FailedJobError, self._submitit.core.utils.FailedSubmissionError) as error:
            return " ".join(str(error).split()) or "sbatch failed."
        return ""

    def _outcomes(self, submission: _Submission, ask: bool) -> dict[str, Outcome]:
        """How the runs of a job have ended; nothing if they have not."""
        submitted, runs = submission.submitted, submission.job.runs
        if submitted is None:  # not taken yet; by now there may be room for it
            return dict.fromkeys(runs, Outcome("interrupted")) if self._stopping else {}
        if not submitted.done(force_check=ask):
            return {}
        if submitted.paths.result_pickle.exists():
            if submitted.exception():
                return dict.fromkeys(runs, Outcome("lost", _last_words(submitted)))
            return {run_id: Outcome(**outcome) for run_id, outcome in submitted.result().items()}
        now = time.monotonic()
        submission.ended = submission.ended or now
        if now - submission.ended < GRACE:
            return {}
        outcome = Outcome("interrupted") if self._stopping else Outcome("lost", _last_words(submitted))
        return dict.fromkeys(runs, outcome)

    def _signal(self) -> None:
        queued = [submission.submitted for submission in self._at_work if submission.submitted is not None]
        if self._cluster == "local":
            for submitted in queued:
                if not submitted.done():
                    os.kill(int(submitted.job_id), signal.SIGTERM)  # its controller, which passes it on
        elif queued:
            # In this order none is missed: what is queued now is cancelled, and the rest is at work.
            for options in (["--state=PENDING"], ["--state=RUNNING", "--signal=TERM"]):
                command = ["scancel", "--quiet", *options, *(submitted.job_id for submitted in queued)]
                subprocess.run(command, check=False, capture_output=True)


class _Run:
    """What a Slurm job executes. Submitit calls `checkpoint` when the job is preempted or its time is over."""

    def __init__(self, job: Job, threads: int) -> None:
        self.job, self.threads = job, threads

    def __call__(self) -> dict[str, Any]:
        import submitit
        import torch

        torch.set_num_threads(self.threads)
        # Submitit ignores SIGTERM, and at its own signal would leave in the middle of a batch. Here both let the run
        # save first; only then does submitit's handler queue the job again.
        over = signal.Signals[f"SIG{submitit.JobEnvironment.USR_SIG}"]
        requeue: Any = signal.getsignal(over)
        received: list[int] = []
        for number in (over, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, _: received.append(number))
        outcomes = work(self.job, lambda: bool(received))
        if over in received and any(outcome.ending == "interrupted" for outcome in outcomes.values()):
            requeue(over, None)
        return {run_id: asdict(outcome) for run_id, outcome in outcomes.items()}

    def checkpoint(self) -> Any:
        """The same again: the run goes on from its own checkpoint."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _import_submitit() -> Any:
    try:
        import submitit
    except ImportError:
        raise UserError(
            "--executor slurm needs the package submitit, which is not installed: pip install 'icpctl[slurm]'. Or leave "
            "out --executor, and the runs are executed on this machine."
        ) from None
    logging.getLogger("submitit").setLevel(logging.ERROR)  # it warns in the terminal when sacct is busy
    return submitit


def _parameters(given: Mapping[str, str | int]) -> dict[str, Any]:
    """Those of a job, by submitit's names.

    Raises:
        UserError: more than one task for a run.
    """
    parameters: dict[str, Any] = DEFAULTS | dict(given)
    for name in ("nodes", "tasks_per_node", "slurm_nodes", "slurm_ntasks_per_node"):
        if parameters.get(name, 1) != 1:
            raise UserError(f"--slurm {name}={parameters[name]}: a run is one process. Leave it out.")
    for name in ("slurm_setup", "slurm_teardown", "slurm_srun_args"):
        if name in parameters:
            parameters[name] = [parameters[name]]
    return parameters


def _last_words(submitted: Any) -> str:
    said: list[str] = []
    with suppress(OSError):
        said = submitted.paths.stderr.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-LAST_WORDS:]
    ending = f"Its Slurm job {submitted.job_id} ended as {submitted.state}"
    return f"{ending}. It said: {' / '.join(said)}" if said else f"{ending}. Its logs are in {submitted.paths.folder}."
