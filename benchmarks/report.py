"""How the time and the memory of `icpctl report` grow with the runs.

    python benchmarks/report.py > benchmarks/results/report.md

Made-up runs of 100 epochs, each with the 37 metrics an epoch that a run of the method records: a grid of three optimizers, T and η,
with baselines, controls and compute-matched baselines, over ten seeds. Each report is a process of its own and writes all its
files, report.html included; its peak memory is that of the whole process. The files have just been written, so they
are read from memory.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from icpctl.ablate.study import Study
from icpctl.config import RunConfig
from icpctl.config.grid import parse_grid
from icpctl.runs.folder import RunFolder
from icpctl.runs.metrics import COLUMNS

EPOCHS = 100
MEASURES = ("loss", "accuracy", "accuracy_top5", "f1_macro", "precision_macro", "recall_macro", "ece")
DIAGNOSTICS = (
    *("task_loss", "feature_loss", "task_weight", "icp_loss_before", "icp_loss_after", "delta_linf", "delta_l2"),
    *(f"feature_shift_{stage}" for stage in (1, 2, 3)),
    *(f"feature_shift_error_{stage}" for stage in (1, 2, 3)),
    *("images_per_second", "peak_memory", "seconds"),
)
ROWS = [(split, name) for split in ("train", "val", "test") for name in MEASURES]
ROWS += [("train", name) for name in DIAGNOSTICS]


def plan(number: int) -> list[RunConfig]:
    """So many runs of one study: the baselines first, then one combination of the grid after another, with all seeds."""
    grid = parse_grid(["optimizer=sgd,adam,ademamix", "steps=1..12", "icp-lr=1e-4..1e-1:log10"])
    study = Study(
        {"model": "resnet20", "dataset": "cifar100", "epochs": EPOCHS}, grid, (), tuple(range(10)), True, True
    )
    configs = [run.config for run in study.runs()]
    configs.sort(
        key=lambda config: (config.optimizer != "none", config.steps, config.icp_lr, config.group_id, config.seed)
    )
    return configs[:number]


def make(output: Path, config: RunConfig, rng: random.Random) -> None:
    """A finished run with noise for metrics."""
    folder = RunFolder(output, config)
    folder.create()
    folder.write_config(config, {}, {"started": "2026-01-01T00:00:00+00:00", "threads": 1, "device": "cpu"})
    level = rng.gauss(0.6, 0.03)
    lines = [",".join(COLUMNS)]
    for epoch in range(config.epochs):
        mean = level * (1 - 2 ** (-epoch / 20))
        lines += [f"{folder.run_id},{epoch},{split},{name},{rng.gauss(mean, 0.01)!r}" for split, name in ROWS]
    folder.metrics_file.write_text("\n".join(lines) + "\n")
    folder.write_status("finished")


def report(output: Path) -> tuple[float, float]:
    """Wall time and peak memory in MB of `icpctl report`."""
    before = time.perf_counter()
    command = [sys.executable, "-m", "icpctl", "report", str(output)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} ended with status {status}")
    return time.perf_counter() - before, usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, nargs="+", default=[300, 1_000, 3_000, 10_000])
    options = parser.parse_args()
    print("# `icpctl report`: time and memory by the number of runs\n")
    print(f"{datetime.now(UTC):%Y-%m-%d}; {platform.machine()}, {len(os.sched_getaffinity(0))} cores;")
    print(f"`python benchmarks/report.py --runs {' '.join(map(str, options.runs))}`.")
    print(f"{EPOCHS} epochs a run (compute-matched baselines have more), {len(ROWS)} metrics an epoch.\n")
    print(
        "| runs | metrics.csv, MB | seconds | peak memory, MB | report.html, MB |\n| ---: | ---: | ---: | ---: | ---: |"
    )
    with tempfile.TemporaryDirectory() as folder:
        output, rng, made = Path(folder), random.Random(0), 0
        for number in sorted(options.runs):
            configs = plan(number)
            for config in configs[made:]:
                make(output, config, rng)
            made = len(configs)
            size = sum(file.stat().st_size for file in output.glob("*/metrics.csv")) / 1e6
            seconds, memory = report(output)
            page = (output / "report.html").stat().st_size / 1e6
            print(f"| {made:,} | {size:,.0f} | {seconds:.1f} | {memory:,.0f} | {page:.1f} |", flush=True)


if __name__ == "__main__":
    main()
