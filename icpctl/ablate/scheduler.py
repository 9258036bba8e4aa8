"""The loop of a study: hands its runs to an executor, tries again what failed, and waits for what others are training."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from icpctl.ablate.claim import Claim, holder, read_claim
from icpctl.ablate.executors import Executor
from icpctl.ablate.study import PlannedRun
from icpctl.ablate.worker import Job, Outcome, record_failure
from icpctl.config import RunConfig
from icpctl.config.cost import passes
from icpctl.errors import UserError
from icpctl.runs.folder import RunFolder
from icpctl.training.tracking import Tool

TICK = 0.5
"""Seconds between two looks at the runs."""
LOOK_ELSEWHERE = 2.0
"""Seconds between two looks at the runs that other processes are training."""

State = Literal["waiting", "running", "elsewhere", "finished", "failed"]


class Stopped(KeyboardInterrupt):
    """The study was asked to stop; the runs at work are saved."""


@dataclass
class RunState:
    """A run of the study as the scheduler sees it."""

    planned: PlannedRun
    folder: RunFolder
    state: State = "waiting"
    error: str = ""
    attempts: int = 0
    fingerprint: str = ""
    """Of its data, where the study was started; empty if that is not known."""
    status: dict[str, Any] = field(default_factory=dict)
    """What status.json said when this study last had to do with the run."""

    def is_taken(self) -> bool:
        """Whether a process is training it, of a study or by hand."""
        return holder(self.folder.path) is not None or self.folder.is_locked()

    def epoch(self) -> float:
        """The epoch from which it goes on, as status.json last said."""
        return float(self.status.get("epoch", 0))

    def progress(self) -> dict[str, Any]:
        """What the process that trains it says: epoch, epochs, host; empty where none does."""
        claim = read_claim(self.folder.path)
        return {"host": claim.get("host", ""), **claim.get("progress", {})}


class Scheduler:
    """The runs of a study and how far each is; `run` goes on until each is finished or has failed."""

    def __init__(self, planned: Sequence[PlannedRun], output: Path) -> None:
        self.output = output
        self.runs: dict[str, RunState] = {}
        self.waiting: deque[str] = deque()
        self.to_come: Sequence[RunConfig] = ()
        """Stand-ins, of the same cost, for runs that are added later."""
        self._looked = 0.0
        self.add(planned)

    def add(self, planned: Sequence[PlannedRun]) -> None:
        """Take in the runs that are not there yet, in their order, the study at work or not; they have the data of their group."""
        fingerprints = {run.planned.config.group_id: run.fingerprint for run in self.runs.values()}
        for each in planned:
            run_id = each.config.run_id
            if run_id in self.runs:
                continue
            run = RunState(each, RunFolder(self.output, each.config))
            run.fingerprint = fingerprints.get(each.config.group_id, "")
            run.status = run.folder.status()
            self.runs[run_id] = run
            if run.folder.is_finished():
                run.state = "finished"
            else:
                self.waiting.append(run_id)

    def unfinished(self) -> list[RunState]:
        """The runs that are not finished."""
        return [run for run in self.runs.values() if run.state != "finished"]

    def counts(self) -> Counter[State]:
        """How many runs are in each state."""
        return Counter(run.state for run in self.runs.values())

    def passes_done(self) -> float:
        """Of all runs, as `icpctl.config.cost.passes` counts them; of those at work, what they have said so far."""
        done = 0.0
        for run in self.runs.values():
            config = run.planned.config
            if run.state == "finished":
                done += passes(config)
            elif run.state in ("running", "elsewhere"):
                done += passes(config, max(run.epoch(), run.progress().get("epoch", 0)))
            elif run.state == "waiting":
                done += passes(config, run.epoch())
        return done

    def run(
        self,
        executor: Executor,
        retries: int,
        watch: Callable[[Scheduler, RunState | None], None],
        should_stop: Callable[[], bool],
        stack: int = 1,
        track: Tool | None = None,
        more: Callable[[], Sequence[PlannedRun]] = tuple,
    ) -> None:
        """Train what is not finished yet.

        Args:
            executor: trains the runs.
            retries: how often a run that failed is tried again.
            watch: told of every run whose state has changed; and at every look at the runs, with None.
            should_stop: asked at every look; at True the runs at work are saved.
            stack: how many runs that can be trained together are, as one job.
            track: the tool that follows the runs.
            more: asked when all runs have ended: the runs of the study that their results call for.

        Raises:
            Stopped: as asked.
            UserError: a machine cannot do any such run; the others at work are saved.
        """
        self._watch, self._track = watch, track
        refusal = ""
        stopping = False
        while self._goes_on(more):
            if (refusal or should_stop()) and not stopping:
                stopping = True
                executor.stop()
            if stopping and not self._any("running"):
                raise UserError(refusal) if refusal else Stopped
            while not stopping and self.waiting and executor.room > 0:
                self._hand_out(executor, stack)
            if self._any("running"):
                ended = executor.wait(TICK)
            else:
                ended = []
                time.sleep(TICK)
            for run_id, outcome in ended:
                run = self.runs[run_id]
                if outcome.ending == "refused":
                    refusal = refusal or outcome.error
                if outcome.ending == "lost" and stopping:  # it was told to end before it could save
                    outcome = Outcome("interrupted")
                self._end(run, outcome, retries)
            self._look_elsewhere(retries)
            watch(self, None)
        for run in self.runs.values():
            if run.state == "failed" and run.folder.is_finished():
                run.state = "finished"  # by another study, in the meantime

    def let_go(self) -> None:
        """Have no status.json say that a run is at work when its process was ended by force; of all runs that nobody trains."""
        for run in self.runs.values():
            status = run.folder.status()
            if status.get("state") != "running" or run.is_taken():
                continue
            with suppress(UserError, OSError):  # its folder cannot be written
                if claim := Claim.take(run.folder.path):
                    with claim:
                        run.folder.write_status(**status | {"state": "interrupted"})

    def _goes_on(self, more: Callable[[], Sequence[PlannedRun]]) -> bool:
        """Whether a run has not ended, of those there are or of those that the results call for."""
        if not (self.waiting or self._any("running", "elsewhere")):
            self.add(more())
        return bool(self.waiting) or self._any("running", "elsewhere")

    def _any(self, *states: State) -> bool:
        return any(run.state in states for run in self.runs.values())

    def _set(self, run: RunState, state: State, error: str = "") -> None:
        run.state, run.error = state, error
        self._watch(self, run)

    def _hand_out(self, executor: Executor, stack: int) -> None:
        """Begin the next run, and those that can be trained together with it."""
        first = self.runs[self.waiting.popleft()]
        together = [first] if self._is_ours(first) else []
        kind = self._stack_id(first) if stack > 1 else None
        for run_id in list(self.waiting) if together and kind is not None else []:
            run = self.runs[run_id]
            if len(together) < stack and self._stack_id(run) == kind:
                self.waiting.remove(run_id)
                together += [run] if self._is_ours(run) else []
        if together:
            fingerprints = {run.folder.run_id: run.fingerprint for run in together if run.fingerprint}
            executor.submit(Job.of([run.planned.config for run in together], self.output, fingerprints, self._track))
        for run in together:
            run.attempts += 1
            self._set(run, "running")

    @staticmethod
    def _stack_id(run: RunState) -> str | None:
        """Equal for runs that are trained together; one that was lost or failed is tried again alone, as it costs the others."""
        return None if run.attempts else run.planned.config.stack_id

    def _is_ours(self, run: RunState) -> bool:
        """Whether a run is to be begun: no other study has it, or has come to its end in the meantime."""
        status = run.folder.status()
        if status.get("state") == "finished":
            self._set(run, "finished")
        elif status.get("state") == "failed" and status != run.status:
            self._set(run, "failed", str(status.get("error", "")))
        elif run.is_taken():
            self._set(run, "elsewhere")
        else:
            return True
        return False

    def _end(self, run: RunState, outcome: Outcome, retries: int) -> None:
        run.status = run.folder.status()
        match outcome.ending:
            case "finished":
                self._set(run, "finished")
            case "elsewhere":
                run.attempts -= 1
                self._set(run, "elsewhere")
            case "interrupted" | "refused":
                run.attempts -= 1
                self.waiting.appendleft(run.planned.config.run_id)
                self._set(run, "waiting")
            case "failed" | "lost" if run.attempts <= retries:
                self.waiting.appendleft(run.planned.config.run_id)
                self._set(run, "waiting", outcome.error)
            case "failed":
                self._set(run, "failed", outcome.error)
            case "lost":
                self._give_up(run, outcome.error)

    def _give_up(self, run: RunState, error: str) -> None:
        """Record why a run was lost for the last time, once its process is gone for certain."""
        try:
            claim = Claim.take(run.folder.path)
        except OSError:  # nor can its folder be written
            self._set(run, "failed", error)
            return
        if claim is None:  # it is dying still; or its machine is cut off, and the run alive
            self._set(run, "elsewhere", error)
            return
        with claim:
            run.status = run.folder.status()
            if run.status.get("state") == "finished":
                self._set(run, "finished")
                return
            record_failure(run.folder, run.planned.config, error)
        run.status = run.folder.status()
        self._set(run, "failed", error)

    def _look_elsewhere(self, retries: int) -> None:
        """Runs that others have let go: their end counts; what they left unfinished is ours to do."""
        if time.monotonic() - self._looked < LOOK_ELSEWHERE:
            return
        self._looked = time.monotonic()
        for run_id, run in self.runs.items():
            if run.state != "elsewhere" or run.is_taken():
                continue
            if run.attempts > retries:
                self._give_up(run, run.error)
            else:
                run.state = "waiting"
                self.waiting.appendleft(run_id)
