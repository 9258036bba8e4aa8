"""The loop of a study, with an executor that does as it is told: what is tried again, waited for, refused, stopped."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from icpctl.ablate import scheduler as module
from icpctl.ablate.claim import CLAIM_FILE, Claim
from icpctl.ablate.scheduler import RunState, Scheduler, Stopped
from icpctl.ablate.study import Definition, PlannedRun, Study
from icpctl.ablate.table import study_table, write_study_table
from icpctl.ablate.worker import Job, Outcome, record_failure
from icpctl.config.grid import parse_grid
from icpctl.errors import UserError
from icpctl.runs.folder import RunFolder

Behaviour = Callable[[str], Outcome]


class Fake:
    """An executor of `size` jobs at once, each of which ends as `behaviour` says at the next wait."""

    def __init__(self, behaviour: Behaviour, size: int = 2) -> None:
        self.behaviour, self.size = behaviour, size
        self.at_work: deque[Job] = deque()
        self.submitted: list[str] = []
        self.jobs: list[list[str]] = []
        self.stopped = False

    @property
    def room(self) -> int:
        return self.size - len(self.at_work)

    def submit(self, job: Job) -> None:
        assert self.room > 0
        assert not self.stopped
        self.submitted += job.runs
        self.jobs.append(list(job.runs))
        self.at_work.append(job)

    def wait(self, seconds: float) -> list[tuple[str, Outcome]]:
        job = self.at_work.popleft()
        return [(each, Outcome("interrupted") if self.stopped else self.behaviour(each)) for each in job.runs]

    def stop(self) -> None:
        self.stopped = True

    def close(self) -> None:
        """Nothing is open."""


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TICK", 0.001)
    monkeypatch.setattr(module, "LOOK_ELSEWHERE", 0.0)


@pytest.fixture
def planned() -> list[PlannedRun]:
    return Study({"epochs": 2}, parse_grid(["steps=1,2,3"])).runs()


def finish(output: Path) -> Behaviour:
    def behaviour(run_id: str) -> Outcome:
        write_status(output, run_id, state="finished")
        return Outcome("finished")

    return behaviour


def write_status(output: Path, run_id: str, **status: object) -> None:
    (output / run_id).mkdir(exist_ok=True, parents=True)
    (output / run_id / "status.json").write_text(json.dumps(status))


def run(
    scheduler: Scheduler,
    executor: Fake,
    retries: int = 0,
    should_stop: Callable[[], bool] = lambda: False,
    stack: int = 1,
) -> list[tuple[str, str]]:
    """Run the study; what was told of it."""
    told: list[tuple[str, str]] = []

    def watch(study: Scheduler, changed: RunState | None) -> None:
        if changed is not None:
            told.append((changed.folder.run_id, changed.state))

    scheduler.run(executor, retries, watch, should_stop, stack)
    return told


def ids(planned: list[PlannedRun]) -> list[str]:
    return [each.config.run_id for each in planned]


def test_every_run_is_handed_out_once_in_order(tmp_path: Path, planned: list[PlannedRun]) -> None:
    executor = Fake(finish(tmp_path))
    told = run(Scheduler(planned, tmp_path), executor)
    assert executor.submitted == ids(planned)
    assert sorted(told) == sorted((run_id, state) for run_id in ids(planned) for state in ("running", "finished"))


def test_finished_runs_are_not_run_and_failed_or_interrupted_ones_are(
    tmp_path: Path, planned: list[PlannedRun]
) -> None:
    for each, state in zip(planned, ("finished", "failed", "interrupted", "running"), strict=True):
        write_status(tmp_path, each.config.run_id, state=state)
    executor = Fake(finish(tmp_path))
    scheduler = Scheduler(planned, tmp_path)
    assert [each.planned for each in scheduler.unfinished()] == planned[1:]
    run(scheduler, executor)
    assert executor.submitted == ids(planned)[1:]
    assert all(each.state == "finished" for each in scheduler.runs.values())


def test_a_failing_run_is_tried_again_as_asked_and_stops_no_other(tmp_path: Path, planned: list[PlannedRun]) -> None:
    bad = ids(planned)[1]

    def behaviour(run_id: str) -> Outcome:
        if run_id != bad:
            return finish(tmp_path)(run_id)
        record_failure(RunFolder(tmp_path, planned[1].config), planned[1].config, "the loss is NaN")
        return Outcome("failed", "the loss is NaN")

    for retries in (0, 2):
        executor = Fake(behaviour)
        scheduler = Scheduler(planned, tmp_path)
        run(scheduler, executor, retries)
        assert executor.submitted.count(bad) == retries + 1
        assert [each.state for each in scheduler.runs.values()] == ["finished", "failed", "finished", "finished"]
        assert scheduler.runs[bad].error == "the loss is NaN"


def test_a_run_that_fails_once_is_finished_at_the_second_attempt(tmp_path: Path, planned: list[PlannedRun]) -> None:
    seen: set[str] = set()

    def behaviour(run_id: str) -> Outcome:
        if run_id in seen:
            return finish(tmp_path)(run_id)
        seen.add(run_id)
        config = next(each.config for each in planned if each.config.run_id == run_id)
        record_failure(RunFolder(tmp_path, config), config, "once")
        return Outcome("failed", "once")

    scheduler = Scheduler(planned, tmp_path)
    run(scheduler, Fake(behaviour), retries=1)
    assert all(each.state == "finished" for each in scheduler.runs.values())


def test_a_lost_run_says_why_in_its_status(tmp_path: Path, planned: list[PlannedRun]) -> None:
    scheduler = Scheduler(planned, tmp_path)
    executor = Fake(lambda run_id: Outcome("lost", "Its process was killed."))
    run(scheduler, executor, retries=1)
    assert len(executor.submitted) == 2 * len(planned)
    for each in planned:
        status = RunFolder(tmp_path, each.config).status()
        assert (status["state"], status["error"]) == ("failed", "Its process was killed.")
        assert not (tmp_path / each.config.run_id / CLAIM_FILE).exists()


def test_a_lost_run_whose_process_is_dying_still_is_no_more_than_lost(
    tmp_path: Path, planned: list[PlannedRun]
) -> None:
    claim = Claim.take(tmp_path / ids(planned)[0])
    looks = iter(range(100))

    def should_stop() -> bool:
        if next(looks) == 5:
            assert claim is not None
            claim.__exit__(None, None, None)
        return False

    scheduler = Scheduler(planned[:1], tmp_path)
    lost = scheduler.runs[ids(planned)[0]]
    lost.is_taken = lambda: False  # type: ignore[method-assign]  # it is claimed only after it was handed out
    executor = Fake(lambda run_id: Outcome("lost", "Its node is gone."))
    run(scheduler, executor, should_stop=should_stop)
    assert executor.submitted == ids(planned)[:1]
    assert lost.folder.status()["error"] == "Its node is gone."


def test_a_run_of_another_study_is_waited_for_and_its_end_counts(tmp_path: Path, planned: list[PlannedRun]) -> None:
    claims = [Claim.take(tmp_path / run_id) for run_id in ids(planned)[:3]]
    looks = 0

    def behaviour(run_id: str) -> Outcome:
        return finish(tmp_path)(run_id)

    def should_stop() -> bool:
        """Not asked to stop: the moment at which the other study comes to an end with its runs."""
        nonlocal looks
        looks += 1
        if looks == 5:
            ends = ({"state": "finished"}, {"state": "failed", "error": "theirs"}, {"state": "interrupted"})
            for run_id, claim, end in zip(ids(planned), claims, ends, strict=False):
                write_status(tmp_path, run_id, **end)
                assert claim is not None
                claim.__exit__(None, None, None)
        return False

    executor = Fake(behaviour)
    scheduler = Scheduler(planned, tmp_path)
    run(scheduler, executor, should_stop=should_stop)
    assert executor.submitted == [ids(planned)[3], ids(planned)[2]]  # the interrupted one is ours to do
    assert [each.state for each in scheduler.runs.values()] == ["finished", "failed", "finished", "finished"]
    assert scheduler.runs[ids(planned)[1]].error == "theirs"


def test_a_worker_that_finds_the_run_taken_leaves_it(tmp_path: Path, planned: list[PlannedRun]) -> None:
    answers = iter([Outcome("elsewhere")])
    scheduler = Scheduler(planned, tmp_path)
    executor = Fake(lambda run_id: next(answers, None) or finish(tmp_path)(run_id))
    run(scheduler, executor)
    assert executor.submitted.count(ids(planned)[0]) == 2
    assert all(each.state == "finished" for each in scheduler.runs.values())


def test_a_machine_that_can_do_no_run_ends_the_study(tmp_path: Path, planned: list[PlannedRun]) -> None:
    executor = Fake(lambda run_id: Outcome("refused", "On host7: there is no data."))
    scheduler = Scheduler(planned, tmp_path)
    with pytest.raises(UserError, match="On host7: there is no data"):
        run(scheduler, executor)
    assert executor.stopped
    assert len(executor.submitted) == 2
    assert {each.state for each in scheduler.runs.values()} == {"waiting"}


def test_a_stop_is_handed_on_and_waited_for(tmp_path: Path, planned: list[PlannedRun]) -> None:
    executor = Fake(finish(tmp_path))
    scheduler = Scheduler(planned, tmp_path)
    asked = iter([False, True])
    with pytest.raises(Stopped):
        run(scheduler, executor, should_stop=lambda: next(asked, True))
    assert executor.stopped
    assert not executor.at_work
    assert scheduler.counts() == {"finished": 1, "waiting": 3}


def test_the_table_has_every_run_once_whatever_its_state(tmp_path: Path, planned: list[PlannedRun]) -> None:
    first, second, third, _ = planned
    folder = RunFolder(tmp_path, first.config)
    folder.create()
    folder.append_metrics(0, {"train": {"seconds": 2.0}, "test": {"accuracy": 0.25}})
    folder.append_metrics(1, {"train": {"seconds": 3.0}, "test": {"accuracy": 0.5}})
    folder.write_status("finished")
    record_failure(RunFolder(tmp_path, second.config), second.config, 'it said "no", and stopped')
    write_status(tmp_path, third.config.run_id, state="interrupted")
    Definition([Study({"epochs": 2}, parse_grid(["steps=1,2,3"]))]).keep(tmp_path)
    write_study_table(tmp_path)
    table = pd.read_csv(tmp_path / "study.csv", keep_default_na=False)
    assert list(table["run_id"]) == ids(planned)
    assert list(table["role"]) == ["baseline", "method", "method", "method"]
    assert list(table["state"]) == ["finished", "failed", "interrupted", "waiting"]
    assert list(table["error"]) == ["", 'it said "no", and stopped', "", ""]
    assert list(table["passes"]) == [6, 12, 16, 20]
    assert (table["accuracy"][0], float(table["seconds"][0])) == ("0.5", 5.0)
    assert list(table["steps"]) == ["", 1, 2, 3] or list(table["steps"]) == ["", "1", "2", "3"]
    assert "data_dir" not in table
    assert list(table["baseline_run"]) == ["", *3 * [ids(planned)[0]]]
    assert list(table["matched_run"]) == [""] * 4
    assert len(study_table(planned[3:], tmp_path)) == 1  # nothing has begun


def test_the_table_names_the_baseline_of_as_many_passes(tmp_path: Path) -> None:
    """And a control's row names the run that descends."""
    settings = {"epochs": 4, "warmup_epochs": 0}
    planned = Study(settings, parse_grid(["steps=1"]), controls=True, compute_matched=True).runs()
    table = study_table(planned, tmp_path).drop_duplicates("role").set_index("role")
    for role in ("method", "control"):
        assert table["matched_run"][role] == table["run_id"]["compute-matched"]
        assert table["baseline_run"][role] == table["run_id"]["baseline"]
    assert (table["method_run"]["control"], table["method_run"]["method"]) == (table["run_id"]["method"], "")
    assert table["passes"]["method"] == table["passes"]["compute-matched"] == 2 * table["passes"]["baseline"]


def test_what_was_finished_before_it_was_lost_is_finished(tmp_path: Path, planned: list[PlannedRun]) -> None:
    def behaviour(run_id: str) -> Outcome:
        write_status(tmp_path, run_id, state="finished")
        return Outcome("lost", "Its process was killed.")

    scheduler = Scheduler(planned, tmp_path)
    run(scheduler, Fake(behaviour))
    assert {each.state for each in scheduler.runs.values()} == {"finished"}
    assert RunFolder(tmp_path, planned[0].config).status() == {"state": "finished"}


def test_a_process_that_dies_of_the_stop_is_interrupted(tmp_path: Path, planned: list[PlannedRun]) -> None:
    class Dying(Fake):
        def wait(self, seconds: float) -> list[tuple[str, Outcome]]:
            lost = Outcome("lost", "It was killed by SIGTERM.")
            return [(run_id, lost) for run_id in self.at_work.popleft().runs] if self.stopped else []

    scheduler = Scheduler(planned, tmp_path)
    executor = Dying(finish(tmp_path))
    asked = iter([False])
    with pytest.raises(Stopped):
        run(scheduler, executor, should_stop=lambda: next(asked, True))
    assert {each.state for each in scheduler.runs.values()} == {"waiting"}


def test_a_folder_that_cannot_be_used_costs_its_run_alone(tmp_path: Path, planned: list[PlannedRun]) -> None:
    (tmp_path / ids(planned)[1]).write_text("a file")
    scheduler = Scheduler(planned, tmp_path)
    bad = ids(planned)[1]
    run(scheduler, Fake(lambda run_id: Outcome("lost", "Gone.") if run_id == bad else finish(tmp_path)(run_id)))
    assert [each.state for each in scheduler.runs.values()] == ["finished", "failed", "finished", "finished"]


def test_runs_that_can_be_trained_together_are_one_job(tmp_path: Path) -> None:
    planned = Study({"epochs": 2}, parse_grid(["steps=1,2", "icp_lr=0.001,0.01"]), seeds=(0, 1)).runs()
    scheduler = Scheduler(planned, tmp_path)
    executor = Fake(finish(tmp_path), size=1)
    run(scheduler, executor, stack=3)
    configs = {each.config.run_id: each.config for each in planned}
    together = [{configs[run_id].steps for run_id in job} for job in executor.jobs]
    assert [len(job) for job in executor.jobs] == [2, 3, 3, 1, 1]  # baselines; T = 1 and 2; what is left of each
    assert sorted(map(sorted, together)) == [[0], [1], [1], [2], [2]]
    assert sorted(executor.submitted) == sorted(configs)
    assert {each.state for each in scheduler.runs.values()} == {"finished"}


def test_a_run_that_is_taken_is_left_out_of_its_stack(tmp_path: Path) -> None:
    planned = Study({"epochs": 2, "optimizer": "none"}, seeds=(0, 1, 2)).runs()
    taken = planned[1].config
    claim = Claim.take(RunFolder(tmp_path, taken).path)
    assert claim is not None
    scheduler = Scheduler(planned, tmp_path)

    def behaviour(run_id: str) -> Outcome:
        if run_id == ids(planned)[2]:
            claim.__exit__(None, None, None)
        return finish(tmp_path)(run_id)

    executor = Fake(behaviour)
    with claim:
        run(scheduler, executor, stack=8)
    assert executor.jobs == [[ids(planned)[0], ids(planned)[2]], [ids(planned)[1]]]
    assert {each.state for each in scheduler.runs.values()} == {"finished"}


def test_a_run_that_was_lost_is_tried_again_alone(tmp_path: Path) -> None:
    """It may be what costs the others."""
    planned = Study({"epochs": 2, "optimizer": "none"}, seeds=(0, 1, 2)).runs()
    bad = ids(planned)[1]
    executor: Fake

    def behaviour(run_id: str) -> Outcome:
        job = next(job for job in reversed(executor.jobs) if run_id in job)
        return Outcome("lost", "Killed.") if bad in job else finish(tmp_path)(run_id)

    executor = Fake(behaviour, size=1)
    scheduler = Scheduler(planned, tmp_path)
    run(scheduler, executor, retries=1, stack=3)
    assert executor.jobs[0] == ids(planned)
    assert sorted(executor.jobs[1:]) == sorted([run_id] for run_id in ids(planned))
    assert [each.state for each in scheduler.runs.values()] == ["finished", "failed", "finished"]


def test_no_status_says_at_work_of_a_run_that_nobody_trains(tmp_path: Path, planned: list[PlannedRun]) -> None:
    """As one whose process was ended by force, at the second signal."""
    for each, state in zip(planned, ("finished", "running", "running", "running"), strict=True):
        write_status(tmp_path, each.config.run_id, state=state, epoch=1)
    _, killed, by_study, by_hand = Scheduler(planned, tmp_path).runs.values()
    claim = Claim.take(by_study.folder.path)
    assert claim is not None
    with claim, by_hand.folder.lock():
        Scheduler(planned, tmp_path).let_go()
    states = [each.folder.status()["state"] for each in Scheduler(planned, tmp_path).runs.values()]
    assert states == ["finished", "interrupted", "running", "running"]
    assert killed.folder.status() == {"state": "interrupted", "epoch": 1}
    assert [file.name for file in killed.folder.path.iterdir() if file.suffix == ".json"] == ["status.json"]
