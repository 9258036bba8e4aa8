"""What executes the runs of a study: processes of this machine, a Ray cluster, Slurm jobs. One interface."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from icpctl.ablate.study import Execution
from icpctl.ablate.worker import Job, Outcome
from icpctl.config import RunConfig


class Executor(Protocol):
    """Trains jobs, several at once, each by `icpctl.ablate.worker.work` in a process."""

    @property
    def room(self) -> int:
        """How many more jobs can begin now."""

    def submit(self, job: Job) -> None:
        """Begin a job; there has to be room."""

    def wait(self, seconds: float) -> list[tuple[str, Outcome]]:
        """The runs that have ended, by their ids, and how; waits for a job at most so long."""

    def stop(self) -> None:
        """Ask the jobs at work to save and stop; `wait` tells when they have."""

    def close(self) -> None:
        """End every process; what is at work is lost up to its last checkpoint."""


def build(execution: Execution, configs: Sequence[RunConfig]) -> Executor:
    """The executor that was asked for, for these runs.

    Raises:
        UserError: it cannot be had here: a missing package, no cluster at the address, more jobs than room.
    """
    match execution.executor:
        case "ray":
            from icpctl.ablate.executors.ray import Ray

            return Ray(execution, configs)
        case "slurm":
            from icpctl.ablate.executors.slurm import Slurm

            return Slurm(execution, configs)
        case "local":
            from icpctl.ablate.executors.local import Local

            return Local(execution, configs)
