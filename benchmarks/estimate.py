"""The estimate of `icpctl ablate --dry-run` against what the same study then takes.

    python benchmarks/estimate.py > benchmarks/results/estimate.md

Each study is estimated and then run, with one job and one thread, from the start of the command to its end. A machine that is at other work
slows the two differently, so seconds of the processor (`--cpu`), of all processes of a command, are the fairer measure there.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from tempfile import TemporaryDirectory

import torch
from measure import command, machine, processor_seconds, table

from icpctl.ablate import estimate
from icpctl.ablate.study import Study
from icpctl.config import resolve

STUDIES = {
    "two short runs": {"model": "resnet20", "dataset": "digits", "train_size": 300, "epochs": 4, "warmup_epochs": 1},
    "ten epochs": {"model": "resnet20", "dataset": "digits", "epochs": 10, "warmup_epochs": 3},
    "the strong recipe": {
        "model": "resnet20",
        "dataset": "digits",
        "epochs": 6,
        "warmup_epochs": 2,
        "recipe": "strong",
        "image_size": 32,
    },
    "a VAE": {"model": "vae", "dataset": "digits", "train_size": 300, "epochs": 4, "warmup_epochs": 1},
}
GOAL = 0.25
"""Of what a study takes, by how much its estimate may differ."""


def estimated(settings: dict[str, object]) -> float:
    """What `icpctl ablate --dry-run` says of a study, in seconds."""
    configs = [run.config for run in Study(settings, seeds=(0,)).runs()]
    return sum(estimate.seconds(configs, 1)) + 2 * estimate.process_start(resolve(settings))


def taken(settings: dict[str, object], clock: Callable[[], float]) -> float:
    """The seconds that the study takes."""
    with TemporaryDirectory() as output:
        options = [
            f"--{name.replace('_', '-')}={value}"
            for name, value in settings.items()
            if name not in ("model", "dataset")
        ]
        line = [str(settings["model"]), str(settings["dataset"]), *options, "--seeds", "1", "--jobs", "1", "-o", output]
        began = clock()
        subprocess.run([sys.executable, "-m", "icpctl", "ablate", *line], check=True, capture_output=True)
        return clock() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", nargs="*", default=list(STUDIES), choices=list(STUDIES))
    parser.add_argument("--cpu", action="store_true", help="seconds of the processor instead of the clock's")
    parser.add_argument("--json", action="store_true", help="the rows as JSON")
    options = parser.parse_args()

    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    clock = processor_seconds if options.cpu else time.perf_counter
    estimate.clock = clock
    rows = [(name, estimated(STUDIES[name]), taken(STUDIES[name], clock)) for name in options.studies]
    if options.json:
        print(json.dumps({"machine": machine(torch.device("cpu")), "command": command(), "rows": rows}))
        return
    print("# The estimate of a study against what it takes\n")
    print(
        f"{machine(torch.device('cpu'))}; `{command()}`; {'seconds of the processor' if options.cpu else 'seconds'}.\n"
    )
    cells = ((name, f"{e:.1f}", f"{t:.1f}", f"{e / t - 1:+.0%}") for name, e, t in rows)
    print(table(["study", "estimated, s", "taken, s", f"difference (goal: {GOAL:.0%})"], cells))


if __name__ == "__main__":
    main()
