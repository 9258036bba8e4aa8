"""All that is to be checked and measured on a GPU, by one command.

    python benchmarks/gpu.py            # or: make gpu
    python benchmarks/gpu.py --full     # the first command of the README as well, all 100 epochs
    python benchmarks/gpu.py --short    # the smallest form of everything; always on a CPU, where what needs CUDA is skipped

Every line of the result is a pass, a fail, a skip with its reason, or a figure. They are written after every check, as Markdown and
as JSON. On CUDA each check has a process of its own, as an error of the device would be one of all that come after it. What fails in
one check does not keep the others from being done; the exit status is 1 if anything failed.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import gpu_checks as checks
import gpu_figures as figures
import torch
from gpu_checks import Line, Setting, Skipped, failure
from measure import command, machine, table

from icpctl.models.network import choose_device
from icpctl.runs.provenance import commit

RESULTS = Path(__file__).parent / "results"
LIMIT, LIMIT_OF_FULL = 20 * 60, 3 * 3600
"""Seconds of a check, after which it has failed."""


@dataclass(frozen=True)
class Check:
    """One check; `needs` is what it is skipped without: a CUDA device, or --full."""

    name: str
    function: Callable[[Setting], Iterator[Line]]
    needs: tuple[str, ...] = ()


CHECKS = (
    Check("hardware", checks.hardware),
    Check("float32 convolutions", checks.convolutions),
    Check("kinds of step", checks.kinds_of_step, ("CUDA",)),
    Check("50 steps", checks.fifty_steps, ("CUDA",)),
    Check("gradients", checks.gradients),
    Check("second GPU", checks.second_gpu, ("CUDA",)),
    Check("no waits", checks.no_waits, ("CUDA",)),
    Check("failed capture", checks.failed_capture, ("CUDA",)),
    Check("streaming", checks.streaming_through_a_capture, ("CUDA",)),
    Check("times", figures.times),
    Check("profile", figures.profile),
    Check("precision", figures.precision_table),
    Check("whole epoch", figures.whole_epoch),
    Check("authors' procedure", figures.authors_procedure),
    Check("first command", figures.first_command, ("CUDA", "--full")),
    Check("stack of 8", figures.stack_of_eight),
    Check("memory", figures.memory),
)


def lines_of(check: Check, device: torch.device, short: bool) -> Iterator[Line]:
    """The lines of a check, made in this process; an exception is a line, too."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            for line in check.function(Setting(device, short, Path(folder))):
                yield replace(line, check=check.name)
    except Skipped as reason:
        yield Line("", "skip", str(reason), check=check.name)
    except Exception as error:
        yield replace(failure("", error), check=check.name)


def lines_apart(check: Check, device: torch.device, short: bool) -> Iterator[Line]:
    """The same in a process of its own, which may crash or hang."""
    with tempfile.TemporaryDirectory() as folder:
        lines, errors = Path(folder, "lines"), Path(folder, "errors")
        python = [sys.executable, "-X", "faulthandler", __file__, *(["--short"] if short else [])]
        arguments = ["--device", str(device), "--only", check.name, "--lines", str(lines)]
        reason = ""
        with errors.open("w") as file:
            try:
                limit = LIMIT_OF_FULL if "--full" in check.needs else LIMIT
                done = subprocess.run([*python, *arguments], stderr=file, timeout=limit)
                if done.returncode:
                    reason = f"its process ended with status {done.returncode}"
            except subprocess.TimeoutExpired:
                reason = f"it took more than {limit:,} s"
        told = errors.read_text(errors="replace")
        sys.stderr.write(told)
        for line in lines.read_text().splitlines() if lines.exists() else []:
            yield Line(**json.loads(line))
    if reason:
        *_, last = ["", *told.strip().splitlines()]
        yield Line("", "fail", f"{reason}: {last}" if last else reason, block=told, check=check.name)


def skipped(check: Check, device: torch.device, full: bool) -> str:
    """Why a check is not done; empty if it is."""
    if "CUDA" in check.needs and device.type != "cuda":
        return "needs a CUDA device"
    return "only with --full" if "--full" in check.needs and not full else ""


def run(
    table_of_checks: Sequence[Check], device: torch.device, short: bool, full: bool, write: Callable[[list[Line]], None]
) -> list[Line]:
    """The lines of all checks, in their order; `write` is given those so far after each."""
    found: list[Line] = []
    for check in table_of_checks:
        if reason := skipped(check, device, full):
            lines = iter([Line("", "skip", reason, check=check.name)])
        else:
            lines = (lines_apart if device.type == "cuda" else lines_of)(check, device, short)
        for line in lines:
            found.append(line)
            print(f"{line.result:6} {line.check}{': ' if line.what else ''}{line.what}: {line.said}", flush=True)
        write(found)
    return found


def markdown(facts: dict[str, object], lines: Sequence[Line]) -> str:
    """A table of all lines, and the blocks of those that have one."""
    counts = Counter(line.result for line in lines)
    rows = [[_cell(cell) for cell in (line.check, line.what, line.result, line.said)] for line in lines]
    listed = table(["check", "", "result", ""], rows).replace("---:", "---")
    blocks = [f"\n## {line.check}: {line.what}\n\n```\n{line.block.strip()}\n```\n" for line in lines if line.block]
    counted = ", ".join(f"{result} {counts[result]}" for result in ("pass", "fail", "skip", "figure"))
    form = f"{'short' if facts['short'] else 'whole'} form; commit {facts['commit']}"
    return f"# On {facts['hardware']}\n\n{facts['machine']}; `{facts['command']}`; {form}.\n\n{counted}.\n\n{listed}\n{''.join(blocks)}"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def main(arguments: Sequence[str] | None = None, table_of_checks: Sequence[Check] = CHECKS) -> int:
    """Do the checks; 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output", type=Path, default=RESULTS, metavar="DIR", help="where gpu-DATE-HARDWARE.md and .json go"
    )
    parser.add_argument("--short", action="store_true", help="the smallest form of everything")
    parser.add_argument("--full", action="store_true", help="the first command of the README as well, all of it")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--only", nargs="+", choices=[check.name for check in table_of_checks], metavar="CHECK")
    parser.add_argument("--lines", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)

    device = choose_device(options.device)
    short = options.short or device.type == "cpu"
    chosen = [check for check in table_of_checks if not options.only or check.name in options.only]
    if options.lines:  # this is the process of a check
        with options.lines.open("w") as file:
            for line in lines_of(chosen[0], device, short):
                print(json.dumps(asdict(line)), file=file, flush=True)
        return 0

    hardware = machine(device).partition("; ")[2].partition(",")[0]
    facts: dict[str, object] = {"hardware": hardware, "machine": machine(device), "command": command()}
    facts |= {"commit": commit(), "short": short, "full": options.full}
    slug = re.sub(r"[^a-z0-9]+", "-", hardware.lower()).strip("-")
    file = options.output / f"gpu-{datetime.now(UTC):%Y-%m-%d}-{slug}"
    options.output.mkdir(parents=True, exist_ok=True)

    def write(lines: list[Line]) -> None:
        Path(f"{file}.md").write_text(markdown(facts, lines), encoding="utf-8")
        Path(f"{file}.json").write_text(
            json.dumps(facts | {"lines": [asdict(line) for line in lines]}, indent=1) + "\n"
        )

    lines = run(chosen, device, short, options.full, write)
    print(f"\n{file}.md and .json")
    return int(any(line.result == "fail" for line in lines))


if __name__ == "__main__":
    sys.exit(main())
