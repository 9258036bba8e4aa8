"""What a person sees of a study: the live table in a narrow terminal, lines elsewhere; and the estimate of its hours."""

from __future__ import annotations

import io
import json
import re
import time
from pathlib import Path

import pytest
from rich.console import Console

from icpctl.ablate import estimate, progress
from icpctl.ablate.claim import CLAIM_FILE
from icpctl.ablate.estimate import Pace
from icpctl.ablate.labels import labels
from icpctl.ablate.progress import Progress
from icpctl.ablate.scheduler import Scheduler
from icpctl.ablate.study import Study
from icpctl.config import RunConfig, resolve
from icpctl.config.grid import parse_grid
from icpctl.runs.folder import RunFolder


@pytest.fixture
def scheduler(tmp_path: Path) -> Scheduler:
    """Twenty runs of 12 passes an image and the baseline of 6: one finished, one at half, one failed, one elsewhere."""
    scheduler = Scheduler(Study({"epochs": 2}, parse_grid(["icp-lr=0.001..0.02:lin20", "steps=1"])).runs(), tmp_path)
    runs = list(scheduler.runs.values())
    for run, state in zip(runs[1:], ("finished", "running", "failed", "elsewhere"), strict=False):
        run.state = state  # type: ignore[assignment]
    runs[3].error = "the loss is NaN [sic]"
    runs[2].folder.path.mkdir()
    claim = {"host": "gpu7", "progress": {"epoch": 1.0, "epochs": 2}}
    (runs[2].folder.path / CLAIM_FILE).write_text(json.dumps(claim))
    runs[5].status = {"state": "interrupted", "epoch": 1}
    return scheduler


def console(terminal: bool) -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, force_terminal=terminal, width=80, color_system=None, legacy_windows=False), file


def test_the_live_table(scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "REFRESH", 0.0)
    clock = iter(range(0, 1000, 60))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    shown, file = console(terminal=True)
    with Progress(shown) as watch:
        watch(scheduler, None)
        list(scheduler.runs.values())[6].state = "finished"
        file.seek(0)
        file.truncate()
        watch(scheduler, None)
    lines = re.sub(r"\x1b\[[?0-9]*[A-Za-z]", "", file.getvalue()).splitlines()
    text = " ".join(file.getvalue().split())
    assert "AdEMAMix-ICP, icp_lr=0.002, seed 0 1.0/2 gpu7" in text
    assert "AdEMAMix-ICP, icp_lr=0.004, seed 0 starting another process" in text
    assert any(set(line.strip()) <= set("━╺╸") for line in lines if line.strip())  # the bar, on a line of its own
    assert "1 running, 1 elsewhere, 2 done, 1 failed, 16 waiting" in text
    assert "left" in text
    assert max(map(len, lines)) <= 80


def test_passes_done_count_what_is_saved_and_what_is_at_work(scheduler: Scheduler) -> None:
    assert scheduler.passes_done() == 12 + 12 / 2 + 12 / 2  # finished, at half, stopped at half


def test_lines_where_there_is_no_terminal(scheduler: Scheduler) -> None:
    shown, file = console(terminal=False)
    with Progress(shown) as watch:
        watch(scheduler, None)
        for run in list(scheduler.runs.values())[1:5]:
            watch(scheduler, run)
    lines = file.getvalue().splitlines()
    ids = [f" [{run_id}]" for run_id in list(scheduler.runs)[1:5]]
    assert [line.split(": ", 1)[1] for line in lines] == [
        "finished" + ids[0],
        "running" + ids[1],
        "failed. the loss is NaN [sic]" + ids[2],
        "in the hands of another process" + ids[3],
    ]
    assert lines[0].startswith(" 2/21 AdEMAMix-ICP, icp_lr=0.001, seed 0: ")


@pytest.mark.parametrize(("model", "expected"), [("resnet20", ", accuracy 75.0%"), ("vae", ", ssim 0.750")])
def test_a_finished_run_says_what_it_has_reached(model: str, expected: str, tmp_path: Path) -> None:
    config = resolve({"model": model, "dataset": "digits", "epochs": 2})
    folder = RunFolder(tmp_path, config)
    folder.create()
    for epoch, value in enumerate((0.9, 0.75)):
        folder.append_metrics(epoch, {"val": {config.selection: 0.5}, "test": {"loss": 1.0, config.selection: value}})
    assert progress.reached(folder) == expected


def test_labels_say_what_tells_the_runs_apart() -> None:
    study = Study({"dataset": "digits"}, parse_grid(["optimizer=adam,sgd", "steps=1,5"]), seeds=(3,), controls=True)
    found = list(labels([run.config for run in study.runs()]).values())
    assert len(set(found)) == len(found)
    assert {"baseline, seed 3", "Adam-ICP, steps=1, seed 3", "SGD-ICP random, steps=5, seed 3"} <= set(found)


def test_the_pace_of_a_run_is_that_of_its_steps() -> None:
    pace = Pace(batches=10, plain_step=0.1, icp_step=0.7, icp_passes=14, epoch=2.0)
    method = resolve({"epochs": 8, "warmup_epochs": 2, "steps": 5})
    assert pace.seconds(method) == pytest.approx(2 * 10 * 0.1 + 6 * 10 * 0.7 + 8 * 2)
    assert pace.seconds(method.baseline()) == pytest.approx(8 * 10 * 0.1 + 8 * 2)
    twice = resolve({"epochs": 8, "warmup_epochs": 2, "steps": 12})
    assert pace.seconds(twice) == pytest.approx(2 * 10 * 0.1 + 6 * 10 * 1.4 + 8 * 2)


@pytest.mark.parametrize("model", ["resnet20", "vae"])
def test_steps_are_measured_once_for_runs_that_cost_the_same(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "MEASURED_SECONDS", 0.1)
    measured = []
    measure = estimate._measure

    def count(config: RunConfig) -> Pace:
        measured.append(config)
        return measure(config)

    monkeypatch.setattr(estimate, "_measure", count)
    settings = {"model": model, "dataset": "digits", "train_size": 100, "epochs": 4}
    runs = [run.config for run in Study(settings, parse_grid(["steps=1,5", "lr=0.1,0.01"]), seeds=(0, 1)).runs()]
    baseline, short, *_ = times = estimate.seconds(runs, threads=1)
    assert len(measured) == 1
    assert len(times) == len(runs)
    assert baseline > 0  # measured by itself; that it is less is a matter of the machine's other work
    assert 0 < short < times[runs.index(next(run for run in runs if run.steps == 5))]
