"""How long help and the errors of the command line take, beside what importing Typer and Rich takes.

    python benchmarks/startup.py --rounds 25 > benchmarks/results/startup.md

Every round starts one process of each kind in turn, so that a slow moment of the machine falls on all of them; the ratio
is that of the medians. The processes of the bare application are what Typer itself takes: four commands with one option.
The first rounds are not counted: they write the bytecode and warm the cache of the disk.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version

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
WARM_UP = 2  # rounds
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def commands() -> dict[str, list[str]]:
    """The command lines to time, by what they are called in the table."""
    bare = {f"a bare Typer application: {line}": ["-c", BARE_APPLICATION, *line.split()] for line in BARE_ARGUMENTS}
    ours = {f"icpctl {line}": ["-m", "icpctl", *line.split()] for line in ARGUMENTS}
    return {"python -c pass": ["-c", "pass"], BASE: ["-c", "import typer, rich"]} | bare | ours


def seconds_of(arguments: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], capture_output=True, check=False, env=ENVIRONMENT)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--json", action="store_true", help="Print JSON instead of Markdown.")
    options = parser.parse_args()

    seconds: dict[str, list[float]] = {name: [] for name in commands()}
    for number in range(WARM_UP + options.rounds):
        for name, arguments in commands().items():
            elapsed = seconds_of(arguments)
            if number >= WARM_UP:
                seconds[name].append(elapsed)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    made_with = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "packages": {name: version(name) for name in ("typer", "rich", "pydantic")},
        "command": shlex.join(["python", "benchmarks/startup.py", *sys.argv[1:]]),
        "rounds": options.rounds,
    }
    if options.json:
        rows = [
            {"command": name, "seconds": median, "ratio": median / medians[BASE]} for name, median in medians.items()
        ]
        print(json.dumps({**made_with, "rows": rows}, indent=2))
        return
    packages = ", ".join(f"{name} {number}" for name, number in made_with["packages"].items())
    print("# How long help and the errors of the command line take\n")
    print(f"{made_with['date']}; {made_with['machine']}; Python {made_with['python']}, {packages};")
    print(f"`{made_with['command']}`; medians of {options.rounds} interleaved rounds.\n")
    print(f"| command | ms | times `{BASE}` |\n| --- | ---: | ---: |")
    for name, median in medians.items():
        print(f"| `{name}` | {median * 1e3:.0f} | {median / medians[BASE]:.2f} |")


if __name__ == "__main__":
    main()
