"""Runs in TensorBoard and in Weights & Biases while they go on: the same numbers, one curve over all starts, and no run stopped."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from small_runs import assert_same_run, small
from tracked import table, tensorboard_table, wandb_table

import icpctl
from icpctl.ablate.command import executed_by
from icpctl.ablate.study import Definition, Study
from icpctl.ablate.worker import Job, Outcome, work
from icpctl.report.export import export
from icpctl.runs.folder import RunFolder, read_runs
from icpctl.training import tracking
from icpctl.training.display import Display
from icpctl.training.engine import Interrupted
from icpctl.training.tracking import TensorBoard, Tracked


class Warned(Display):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, message: str) -> None:
        self.warnings.append(message)


def expected(run: icpctl.Run) -> dict[tuple[int, str], float]:
    return table(RunFolder(run.path.parent, run.config))


def test_a_run_that_is_stopped_and_resumed_is_one_curve_of_its_metrics(tmp_path: Path) -> None:
    straight = icpctl.train(small(), tmp_path / "straight")
    output, display = tmp_path / "results", Warned()
    for batches in (2, 3):  # within the first epoch, and within the second
        asked = itertools.count(1)
        with pytest.raises(Interrupted):
            icpctl.train(
                small(),
                output,
                display=Tracked(display, "tensorboard", output),
                should_stop=lambda n=batches, a=asked: next(a) >= n,  # type: ignore[misc]
            )
    run = icpctl.train(small(), output, display=Tracked(display, "tensorboard", output))
    assert_same_run(straight.path, run.path)
    assert len(list((output / "tensorboard" / run.config.run_id).iterdir())) == 3
    found, _ = tensorboard_table(output / "tensorboard" / run.config.run_id)
    assert found == pytest.approx(expected(run), rel=1e-6)
    assert any(tag.startswith("test/sharpness") for _, tag in found)  # measured after the last epoch
    assert not display.warnings
    export(read_runs(output)[0], "tensorboard", output)  # takes the place of what was written live
    again, _ = tensorboard_table(output / "tensorboard" / run.config.run_id)
    assert again == pytest.approx(expected(run), rel=1e-6)


def test_an_epoch_that_is_trained_twice_is_one_point(tmp_path: Path) -> None:
    for epochs in ((0, 1, 2), (1, 2, 3)):  # killed after its third epoch, and resumed from the checkpoint of the first
        tracker = TensorBoard(small(), tmp_path)
        for epoch in epochs:
            tracker.log(epoch, {"test/accuracy": 0.1 * epoch})
        tracker.end()
    found, _ = tensorboard_table(tmp_path / "tensorboard" / small().run_id)
    assert [epoch for epoch, _ in sorted(found)] == [0, 1, 2, 3]


def test_wandb_has_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    display = Warned()
    run = icpctl.train(small(epochs=2), tmp_path, display=Tracked(display, "wandb", tmp_path))
    assert not display.warnings
    wandb.teardown()  # as at the end of the process; what it has not written yet it writes now
    found, _ = wandb_table(tmp_path / "wandb", run.config.run_id)
    assert found == pytest.approx(expected(run), rel=1e-6)


@pytest.mark.parametrize("part", ["__init__", "log", "end"])
def test_a_tracker_that_fails_stops_no_run_and_is_warned_of_once(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(TensorBoard, part, broken)
    display = Warned()
    run = icpctl.train(small(), tmp_path, display=Tracked(display, "tensorboard", tmp_path))
    assert json.loads((run.path / "status.json").read_text())["state"] == "finished"
    assert display.warnings == ["tensorboard does not follow this run any more: no space left. The run goes on."]


def test_a_study_is_followed_by_its_workers_and_remembers_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = small(epochs=1, warmup_epochs=0)
    definition = executed_by(Definition([Study(seeds=(0,))]), {"track": "tensorboard"}, [])
    definition.keep(tmp_path)
    kept: Any = Definition.kept(tmp_path)
    assert kept.execution.track == "tensorboard"
    job = Job.of([config], tmp_path, track=kept.execution.track)
    assert work(Job(**json.loads(json.dumps(job.__dict__))), lambda: False) == {config.run_id: Outcome("finished")}
    found, _ = tensorboard_table(tmp_path / "tensorboard" / config.run_id)
    assert found == pytest.approx(table(RunFolder(tmp_path, config)), rel=1e-6)
    assert len(read_runs(tmp_path)[0]) == 1  # the tool's folder is no run


def test_a_missing_package_is_said_before_anything_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(icpctl.UserError, match=r"needs the package wandb: pip install 'icpctl\[wandb\]'"):
        tracking.check("wandb")
