"""What `icpctl report` does: build the report, print it, and write its files; once, or anew while runs go on."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from rich.console import Console

from icpctl.ablate.deciding import planned_runs
from icpctl.ablate.study import Definition
from icpctl.errors import UserError
from icpctl.files import not_writable, read_json, write_atomic
from icpctl.report import Report, build, uncollected, write
from icpctl.report.export import Kind, export
from icpctl.report.formats import Format, render
from icpctl.report.pair import build_pair, folders_of
from icpctl.report.pair_view import pair_terminal
from icpctl.report.terminal import terminal
from icpctl.runs.folder import REPORT, run_folders
from icpctl.terminal import printable

Say = Callable[[str, str], None]
"""Prints a paragraph beside the report: its kind, as in "Note:", and the text."""

REFRESH = 5.0
"""Seconds between two looks at the folders with --watch."""


@dataclass(frozen=True)
class Request:
    """The options of `icpctl report`."""

    folders: Sequence[Path] = ()
    """Those that were named; see `sources`."""
    compare: tuple[str, str] | None = None
    where: Sequence[str] = ()
    by: Sequence[str] = ()
    metric: str | None = None
    margin: float | None = None
    format: Format | Literal["table"] = "table"
    figures: bool = False
    export: Kind | None = None
    output: Path | None = None

    @property
    def sources(self) -> Sequence[Path]:
        """The folders that are read.

        Raises:
            UserError: they are named twice, or an option does not go with two sides.
        """
        if self.compare is None:
            return self.folders or (Path("results"),)
        for given, option in ((self.by, "--by"), (self.export, "--export")):
            if given:
                raise UserError(
                    f"{option} does not go with --compare, whose rows are pairs of groups. Leave out one of them."
                )
        sides = folders_of(self.compare)
        if sides and self.folders:
            raise UserError(
                f"--compare {shlex.join(self.compare)} names two results folders, and so does {self.folders[0]} beside it. Leave that out, "
                "or name two groups."
            )
        return sides or self.folders or (Path("results"),)

    @property
    def target(self) -> Path:
        """Where the files go: the whole report of one folder into that folder, any other not over its files."""
        whole = len(self.sources) == 1 and not self.options()
        return self.output or (self.sources[0] if whole else Path(REPORT))

    def build(self, only: Collection[str] | None = None) -> Report:
        if self.compare:
            return build_pair(self.compare, self.sources, self.where, self.metric, self.margin)
        return build(self.sources, only, self.where, self.by, self.metric, self.margin)

    def options(self) -> list[str]:
        """Those that change what the report is about, as on the command line."""
        options = ["--compare", *self.compare] if self.compare else []
        options += [part for condition in self.where for part in ("--where", condition)]
        options += ["--by", ",".join(self.by)] if self.by else []
        options += ["--metric", self.metric] if self.metric else []
        return [*options, *(["--margin", f"{self.margin:g}"] if self.margin is not None else [])]


def write_report(request: Request, console: Console, say: Say) -> None:
    """Print the report and write its files: tables, report.html, and what was asked for.

    Raises:
        UserError: there is nothing to report, a condition that cannot be read, a file that cannot be written.
    """
    report = request.build()
    show(report, request.format, console, say)
    files = _files(report, request, say)
    if request.export:
        runs = [*report.records.values(), *report.left_out.values()]
        files.append(export(runs, request.export, request.target))
    for file in files:
        say("Written:", str(file))


def report_study(folder: Path, only: Collection[str], console: Console, say: Say) -> None:
    """Print the report of the runs of a study, and write the files of the report of all runs of its results folder.

    Raises:
        UserError: as `write_report`.
    """
    request = Request((folder,))
    whole = request.build()
    beside = {*whole.records, *whole.left_out} - {*only}
    show(request.build(only) if beside else whole, "table", console, say)
    files = _files(whole, request, say)
    say("Written:", f"{files[-1]}, which has the figures, and the tables beside it as CSV.")


def show(report: Report, format: Format | Literal["table"], console: Console, say: Say) -> None:
    """Print the report, and then its notes."""
    if format == "table":
        for part in (pair_terminal if report.sides else terminal)(report, console.width):
            console.print(part)
    else:
        sys.stdout.write(printable(render(report, format), keep="\n\t"))
    for note in [*report.notes, *([report.common] if format == "csv" else [])]:
        say("[yellow]Note:[/]", note)


def watch_report(request: Request, console: Console, say: Say, should_stop: Callable[[], bool]) -> None:
    """Print the report anew whenever a run has got further, until all runs are at their end or it is asked to stop.

    Raises:
        UserError: as `write_report`; options that print something once.
        KeyboardInterrupt: it was asked to stop.
    """
    if request.format != "table" or request.export or request.compare:
        raise UserError(
            "--watch draws the tables and report.html anew. Leave out --format, --export and --compare, or --watch."
        )
    planned = {run_id for folder in request.sources for run_id in _planned(folder)}
    before: object = None
    while not should_stop():
        runs = _look(request.sources)
        waiting = planned - runs.keys()
        if runs != before:
            before = runs
            if any(recorded for _, recorded in runs.values()):
                report = request.build()
                _files(report, request, lambda *_: None)
                if console.is_terminal:
                    console.clear()
                show(report, "table", console, say)
            ended = sum(at_end for at_end, _ in runs.values())
            number = len(runs) + len(waiting)
            over = bool(runs) and ended == number
            way_out = "" if over else " Ctrl-C ends the watching."
            say(f"{datetime.now():%H:%M:%S}", f"{ended} of {number} runs are at their end.{way_out}")
            if over:
                return
        until = time.monotonic() + REFRESH
        while time.monotonic() < until and not should_stop():
            time.sleep(0.1)
    raise KeyboardInterrupt


def _planned(folder: Path) -> list[str]:
    """The runs of the studies of a results folder."""
    definition = Definition.kept(folder)
    return [run.config.run_id for run in planned_runs(definition, folder)] if definition else []


def _look(folders: Sequence[Path]) -> dict[str, tuple[bool, float]]:
    """Of each run that has begun whether it is at its end, and when something was last recorded of it, or 0."""
    runs = {}
    for folder in folders:
        for path in run_folders(folder) if folder.exists() else []:
            if not any((path / name).exists() for name in ("config.json", "log.txt")):
                continue  # no run
            files = [path / name for name in ("metrics.csv", "status.json") if (path / "config.json").exists()]
            recorded = 0.0
            for file in files:
                with suppress(OSError):  # it is not there yet, or was just removed
                    recorded = max(recorded, file.stat().st_mtime)
            runs[path.name] = (read_json(path / "status.json").get("state") in ("finished", "failed"), recorded)
    return runs


@uncollected()
def _files(report: Report, request: Request, say: Say) -> list[Path]:
    """Write the tables and the page, and the figures if they are asked for."""
    from icpctl.report import figures  # matplotlib takes a second
    from icpctl.report.page import PAGE, page

    target = request.target
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise not_writable(target, error) from error
    drawings, notes = figures.draw(report, paper=request.figures)
    for note in notes:
        say("[yellow]Note:[/]", note)
    files = write(target, report)
    content = page(report, drawings, request.sources, request.options())
    write_atomic(target / PAGE, content.encode())
    drawn = figures.write(drawings, target) if request.figures else []
    return [*files, target / PAGE, *drawn]
