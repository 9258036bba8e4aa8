"""Digests of the weights and metrics of a fixed list of runs: equal before and after a change that leaves the numbers alone.

    PYTHONPATH=BEFORE python benchmarks/identical.py > before.txt
    PYTHONPATH=AFTER python benchmarks/identical.py > after.txt
    diff before.txt after.txt

Each run is a process of its own, with the icpctl that Python finds. The digests are of one machine and release of torch.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

SMALL = "resnet20 digits --train-size 120 --epochs 2 --warmup-epochs 1"
RUNS = {
    "baseline": f"{SMALL} --optimizer none",
    "sgd": f"{SMALL} --optimizer sgd --steps 2",
    "adam": f"{SMALL} --optimizer adam --steps 2",
    "ademamix": f"{SMALL} --steps 2",
    "the order of 0.1": f"{SMALL} --steps 2 --pass-order student-last",
    "random": f"{SMALL} --steps 2 --direction random",
    "no fast path": f"{SMALL} --steps 2 --extra-task-grad --no-teacher-statistics --no-fast",
    "strong": f"{SMALL} --recipe strong --batch-size 32 --steps 1",
    "carried state": f"{SMALL} --steps 2 --icp-state carry --optimizer adam",
    "bf16": f"{SMALL} --steps 2 --precision bf16",
    "vae": "vae digits --train-size 60 --epochs 2 --warmup-epochs 1 --steps 2",
}
TIMINGS = (",seconds,", ",images_per_second,", ",peak_memory,")


def main() -> None:
    with TemporaryDirectory() as folder:
        for name, arguments in RUNS.items():
            show(name, run("-m", "icpctl", "train", *arguments.split(), "-o", f"{folder}/{name}"))
        processes = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "icpctl", "train")
        show("two processes", run(*processes, *SMALL.split(), "--steps", "2", "-o", f"{folder}/two"))
        stack = ["--steps", "2", "--seeds", "2", "--stack", "2", "--jobs", "1"]
        show("stack", run("-m", "icpctl", "ablate", *SMALL.split(), *stack, "-o", f"{folder}/stack"))


def run(*command: str) -> Path:
    """The results folder of a command, which is its last word."""
    subprocess.run(
        [sys.executable, *command], check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    return Path(command[-1])


def show(name: str, results: Path) -> None:
    for path in sorted(results.glob("*/config.json")):
        print(f"{name}: {path.parent.name} {digest(path.parent)}", flush=True)


def digest(folder: Path) -> str:
    """Of the weights, and of the metrics that are not timings."""
    weights = hashlib.sha256()
    for name, tensor in sorted(torch.load(folder / "checkpoints" / "last.pt", weights_only=True)["model"].items()):
        weights.update(name.encode() + tensor.contiguous().numpy().tobytes())
    rows = [row for row in (folder / "metrics.csv").read_text().splitlines() if not any(t in row for t in TIMINGS)]
    return f"{weights.hexdigest()[:16]} {hashlib.sha256(repr(rows).encode()).hexdigest()[:16]}"


if __name__ == "__main__":
    main()
