"""What a person sees of a study: a bar and a live table in a terminal, a line for each change elsewhere."""

from __future__ import annotations

import socket
import time

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from icpctl.ablate.claim import CLAIM_FILE, read_claim
from icpctl.ablate.labels import labels
from icpctl.ablate.scheduler import RunState, Scheduler
from icpctl.config.cost import passes
from icpctl.runs.folder import RunFolder
from icpctl.training.display import duration, value_of

ROWS = 12
"""Runs at work that the live table shows; the others are counted."""
REFRESH = 1.0
"""Seconds between two drawings of the live table while no run changes; it reads the progress of each run that it shows."""


class Progress:
    """Shows a study go by; leaving the context ends the live table."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self._started = time.monotonic()
        self._drawn = 0.0
        self._passes_before: float | None = None
        self._labels: dict[str, str] = {}

    def __enter__(self) -> Progress:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def __call__(self, study: Scheduler, changed: RunState | None) -> None:
        """To be told of a run whose state has changed, and from time to time."""
        if len(self._labels) < len(study.runs):  # of a study that is decided, or tuned, they become more
            self._labels = labels([run.planned.config for run in study.runs.values()])
        if self._live and (changed or time.monotonic() - self._drawn > REFRESH):
            self._drawn = time.monotonic()
            self._live.update(self._table(study), refresh=True)
        if changed and (self._live is None or changed.state in ("finished", "failed", "elsewhere")):
            self._say(study, changed)

    def _say(self, study: Scheduler, run: RunState) -> None:
        counts = study.counts()
        ended = counts["finished"] + counts["failed"]
        words = {"waiting": "to be tried again" if run.error else "stopped"}
        words["elsewhere"] = "in the hands of another process"
        state = words.get(run.state, run.state)
        colour = {"failed": "red", "finished": "green"}.get(run.state, "")
        number = len(study.runs) + len(study.to_come)
        place = f"{ended:>{len(str(number))}}/{number}"
        line = Text.assemble(f"{place} {self._labels[run.folder.run_id]}: ", (state, colour))
        if run.state == "finished":
            line.append(reached(run.folder))
        if run.state == "elsewhere" and (claim := read_claim(run.folder.path)):
            line.append(
                f" (process {claim.get('pid', 'unknown')} on {claim.get('host', 'an unknown host')}, which is waited for as long "
                f"as {run.folder.path / CLAIM_FILE} is renewed; remove that file if the process is gone)"
            )
        line.append(f". {run.error}" if run.error else "")
        if self._live is None:
            line.append(f" [{run.folder.run_id}]")
        self.console.print(line, soft_wrap=self._live is None)

    def _table(self, study: Scheduler) -> Group:
        counts = study.counts()
        done = study.passes_done()
        if self._passes_before is None:
            self._passes_before = done
        total = sum(passes(run.planned.config) for run in study.runs.values() if run.state != "failed")
        total += sum(map(passes, study.to_come))
        elapsed = time.monotonic() - self._started
        rate = (done - self._passes_before) / elapsed
        left = f"{duration((total - done) / rate)} left" if rate > 0 else "time left unknown yet"
        parts = [f"{counts[state]} {state}" for state in ("running", "elsewhere") if counts[state]]
        parts += [
            f"{counts['finished']} done",
            f"{counts['failed']} failed",
            f"{counts['waiting'] + len(study.to_come)} waiting",
            left,
        ]
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, expand=True)
        table.add_column("running", overflow="fold", ratio=1)
        table.add_column("epoch", justify="right", min_width=11)
        at_work = [run for run in study.runs.values() if run.state in ("running", "elsewhere")]
        rows = []
        for run in at_work[:ROWS]:
            progress = run.progress()
            epoch = f"{progress['epoch']:.1f}/{progress['epochs']}" if "epoch" in progress else "starting"
            host = progress["host"] if progress["host"] != socket.gethostname() else ""
            where = [host, "another process" if run.state == "elsewhere" else ""]
            rows.append((self._labels[run.folder.run_id], epoch, ", ".join(filter(None, where))))
        if any(where for *_, where in rows):
            table.add_column("on", min_width=8)
        for row in rows:
            table.add_row(*row[: len(table.columns)])
        if len(at_work) > ROWS:
            table.add_row(f"and {len(at_work) - ROWS} more")
        bar = Table.grid(expand=True)
        bar.add_row(ProgressBar(total=max(total, 1.0), completed=done))  # which ends no line itself
        return Group(table, bar, Text(", ".join(parts)))


def reached(folder: RunFolder) -> str:
    """What a finished run has reached, for a sentence: its accuracy or SSIM on the test split at the last epoch."""
    rows, _ = folder.read_metrics()
    selection = folder.config.selection
    values = rows[(rows["split"] == "test") & (rows["metric"] == selection)].sort_values("epoch")["value"]
    return f", {selection} {value_of(selection, float(values.iloc[-1]))}" if len(values) else ""
