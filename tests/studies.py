"""A small study, for the tests of what executes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd
import torch

from icpctl.ablate.claim import holder
from icpctl.ablate.executors import Executor
from icpctl.ablate.scheduler import RunState, Scheduler
from icpctl.ablate.study import Definition, Study
from icpctl.ablate.table import write_study_table
from icpctl.config import RunConfig
from icpctl.runs import checkpoint
from icpctl.runs.folder import TIMINGS
from icpctl.training.engine import train

SETTINGS = {"model": "resnet20", "dataset": "digits", "train_size": 100, "batch_size": 10}


def study(epochs: int, *steps: int) -> Definition:
    """A baseline, and a run for each number of steps."""
    return Definition([Study(SETTINGS | {"epochs": epochs}, {"steps": [str(number) for number in steps]})])


def configs(definition: Definition) -> list[RunConfig]:
    return [run.config for run in definition.runs()]


def execute(
    definition: Definition,
    output: Path,
    executor: Executor,
    watch: Callable[[Scheduler], object] = lambda scheduler: None,
    should_stop: Callable[[], bool] = lambda: False,
    retries: int = 1,
) -> Scheduler:
    """Train a study; `watch` sees it at every look at the runs."""
    scheduler = Scheduler(definition.runs(), output)

    def watch_looks(scheduler: Scheduler, changed: RunState | None) -> None:
        if changed is None:
            watch(scheduler)

    try:
        definition.keep(output)
        scheduler.run(executor, retries, watch_looks, should_stop)
    finally:
        executor.close()
        write_study_table(output)
    return scheduler


def under_way(scheduler: Scheduler) -> list[RunState]:
    """The runs at work whose first epoch is recorded."""
    return [run for run in scheduler.runs.values() if run.state == "running" and run.folder.metrics_file.exists()]


def assert_complete(definition: Definition, output: Path, twins: Path) -> None:
    """Every run is finished, stands in study.csv once, and is equal to one that nothing disturbed."""
    assert_equal_to_twins(output, {config.run_id: train(config, twins).path for config in configs(definition)})


def assert_equal_to_twins(output: Path, twins: Mapping[str, Path]) -> None:
    """Every run, of all that have a twin, is finished, stands in study.csv once, and is equal to its twin to the bit."""
    table = pd.read_csv(output / "study.csv")
    assert sorted(table["run_id"]) == sorted(twins)
    assert set(table["state"]) == {"finished"}
    for run_id, twin in twins.items():
        assert metrics(output / run_id) == metrics(twin)
        weights, expected = (
            checkpoint.load(path / "checkpoints" / "last.pt")["model"] for path in (output / run_id, twin)
        )
        assert weights.keys() == expected.keys()
        assert all(torch.equal(weights[name], expected[name]) for name in weights)
        assert holder(output / run_id) is None


def metrics(folder: Path) -> list[str]:
    rows = (folder / "metrics.csv").read_text().splitlines()
    return [row for row in rows if row.split(",")[3] not in TIMINGS]
