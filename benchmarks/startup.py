"""How long help and the errors of the command line take, beside the same of a bare Typer application.

    python benchmarks/startup.py --cpu > benchmarks/results/startup.md

Every round starts one process of each kind in turn, so that a slow moment of the machine falls on all of them; the ratio
is that of the medians. The bare application has four commands with one option, so its time is that of Typer itself.
The first rounds are not counted: they write the bytecode and warm the cache of the disk.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from functools import partial
from importlib.metadata import version

import measure
import torch
from measure import command, interleaved, machine, processor_seconds, table

BASE = 'python -c "import typer, rich"'
BARE_APPLICATION = """
import typer
app = typer.Typer()
def command(lr: float = 0.1) -> None: "A command."
for name in ("train", "eval", "ablate", "report"): app.command(name)(command)
app()
"""
ARGUMENTS = (
    "--help",
    "train --help",
    "nope",
    "train resnet20 --optmizer adam",
    "train resnet20 cifar100 --lr x",
    "train resnet20 cifar100 --steps -1",
)
BARE_ARGUMENTS = ("--help", "train --help", "nope", "train --optmizer adam", "train --lr x")
BARE = "a bare Typer application: "
PEERS = dict(zip(ARGUMENTS, (*BARE_ARGUMENTS, "train --lr x"), strict=True))
"""The line of the bare application that ends as ours does."""
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def commands() -> dict[str, list[str]]:
    """The command lines to time, by what they are called in the table."""
    bare = {f"{BARE}{line}": ["-c", BARE_APPLICATION, *line.split()] for line in BARE_ARGUMENTS}
    ours = {f"icpctl {line}": ["-m", "icpctl", *line.split()] for line in ARGUMENTS}
    return {"python -c pass": ["-c", "pass"], BASE: ["-c", "import typer, rich"]} | bare | ours


def run(arguments: list[str]) -> None:
    subprocess.run([sys.executable, *arguments], capture_output=True, check=False, env=ENVIRONMENT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--cpu", action="store_true", help="seconds of the processor instead of the clock's")
    parser.add_argument("--json", action="store_true", help="Print JSON instead of Markdown.")
    options = parser.parse_args()

    if options.cpu:
        measure.clock = processor_seconds
    device = torch.device("cpu")
    work = {name: partial(run, arguments) for name, arguments in commands().items()}
    medians = interleaved(work, options.rounds, device)
    ratios = {f"icpctl {line}": medians[f"icpctl {line}"] / medians[BARE + peer] for line, peer in PEERS.items()}
    packages = {name: version(name) for name in ("typer", "rich", "pydantic")}
    if options.json:
        rows = [{"command": name, "seconds": median, "ratio": ratios.get(name)} for name, median in medians.items()]
        made_with = {"machine": machine(device), "packages": packages, "command": command(), "rounds": options.rounds}
        print(json.dumps({**made_with, "rows": rows}, indent=2))
        return
    print("# How long help and the errors of the command line take\n")
    print(f"{machine(device)}, {', '.join(f'{name} {number}' for name, number in packages.items())};")
    print(
        f"`{command()}`; medians of {options.rounds} interleaved rounds{' in seconds of the processor' if options.cpu else ''}.\n"
    )
    rows_of_table = (
        (f"`{name}`", f"{s * 1e3:.0f}", f"{ratios[name]:.2f}" if name in ratios else "") for name, s in medians.items()
    )
    print(table(["command", "ms", "times the bare application"], rows_of_table))


if __name__ == "__main__":
    main()
