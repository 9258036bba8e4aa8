"""Studies: several local jobs against one, the overhead of the executor, and planning beside many finished runs.

    python benchmarks/ablation.py > benchmarks/results/ablation.md

The same short runs on digits are done by an ablation with one job and by one with as many jobs as cores, in turn; every
job has one thread. Both times hold the start of the processes. The overhead of a run is what it takes beside its epochs:
loading and dividing the data, building the model, claiming, recording. Two ablations with one job, of few runs and of many,
give it as their difference.
"""

from __future__ import annotations

import argparse
import io
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import torch
from rich.console import Console

from icpctl.ablate.command import define, execute, executed_by
from icpctl.runs.folder import RunFolder, load_results

SETTINGS = {"model": "resnet20", "dataset": "digits", "epochs": "3", "optimizer": "none"}


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def study(runs: int, jobs: int) -> tuple[float, float]:
    """Wall time of a study of so many runs, and the seconds of their epochs."""
    definition = executed_by(define(SETTINGS, seeds=str(runs)), {"jobs": jobs}, [])
    with tempfile.TemporaryDirectory() as folder:
        quiet = Console(file=io.StringIO())
        wall = timed(lambda: execute(definition, Path(folder), quiet, should_stop=lambda: False))
        metrics = load_results(folder)
    return wall, float(metrics["value"][metrics["metric"] == "seconds"].sum())


def planning() -> float:
    """Wall time of `icpctl ablate --dry-run` beside 5,000 finished runs, as a process of its own."""
    grid = ["steps=1..999"]  # and five baselines
    with tempfile.TemporaryDirectory() as folder:
        for run in define({"dataset": "digits"}, grid, seeds="5").runs():
            path = RunFolder(Path(folder), run.config).path
            path.mkdir()
            (path / "status.json").write_text('{"state": "finished"}')
        command = [sys.executable, "-m", "icpctl", "ablate", "resnet20", "digits", "--grid", *grid, "--seeds", "5"]
        command += ["--dry-run", "--output", folder]
        return timed(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--runs", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)

    walls: dict[int, list[float]] = {1: [], options.jobs: []}
    overheads = []
    for _ in range(options.rounds):
        few, few_epochs = study(2, jobs=1)
        for jobs, times in walls.items():
            wall, epochs = study(options.runs, jobs)
            times.append(wall)
            if jobs == 1:  # what is paid once, starting the process, falls out of the difference
                overheads.append(((wall - epochs) - (few - few_epochs)) / (options.runs - 2))
    dry_runs = [planning() for _ in range(options.rounds)]

    one, several = (statistics.median(walls[jobs]) for jobs in (1, options.jobs))
    print(f"# Studies: {options.jobs} jobs against one, on {len(os.sched_getaffinity(0))} cores\n")
    print(f"{datetime.now(UTC):%Y-%m-%d}; {platform.machine()}, one thread a job, torch {torch.__version__};")
    print(f"`python benchmarks/ablation.py --jobs {options.jobs} --runs {options.runs} --rounds {options.rounds}`;")
    print(f"medians of {options.rounds} rounds (all of them). A run: {SETTINGS}.\n")

    def listed(values: list[float]) -> str:
        return ", ".join(f"{value:.2f}" for value in values)

    print("| | seconds | |\n| --- | ---: | --- |")
    print(f"| {options.runs} runs, 1 job, processes' start included | {one:.1f} | {listed(walls[1])} |")
    print(f"| the same, {options.jobs} jobs | {several:.1f} | {listed(walls[options.jobs])} |")
    print(f"| ratio | {one / several:.2f} | |")
    print(f"| a run beside its epochs | {statistics.median(overheads):.2f} | {listed(overheads)} |")
    print(f"| dry run beside 5,000 finished runs | {statistics.median(dry_runs):.1f} | {listed(dry_runs)} |")


if __name__ == "__main__":
    main()
