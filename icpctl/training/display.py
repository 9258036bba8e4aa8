"""What a person sees of a training run: a live display in a terminal, plain lines elsewhere, nothing from Python."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from icpctl.config import RunConfig
from icpctl.config.catalogue import PLAIN_STEP
from icpctl.config.cost import plain_epochs, step_passes

Metrics = Mapping[str, Mapping[str, float]]


class Display:
    """Sees a run go by; this one shows nothing. A subclass overrides what it wants to show."""

    def start(self, config: RunConfig, batches: int) -> None:
        """A run begins or goes on; `batches` an epoch."""

    def say(self, message: str) -> None:
        """Something to know."""

    def warn(self, message: str) -> None:
        """Something to worry about."""

    def batch(self, epoch: int, batch: int, values: Mapping[str, float], seconds_left: float) -> None:
        """At most once a second: the means of the epoch so far."""

    def epoch(self, epoch: int, metrics: Metrics) -> None:
        """The end of an epoch, {split: {metric: value}}."""

    def stop(self) -> None:
        """The run has ended, one way or the other."""


class ConsoleDisplay(Display):
    """A live display on a terminal; a line for each epoch where the output is a file or a pipe."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.live = console.is_terminal
        self.progress: Progress | None = None
        self.epochs = self.batches = 0
        self.selection = ""

    def start(self, config: RunConfig, batches: int) -> None:
        self.epochs, self.batches, self.selection = config.epochs, batches, config.selection
        self.console.print(Text.assemble("Run ", (config.run_id, "bold")))
        self.console.print(f"val, test: {config.selection}; share: of the task in the loss")
        if self.live:
            self.progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                TextColumn("{task.fields[figures]}"),
                console=self.console,
                expand=True,
                transient=True,
            )
            self.tasks: list[TaskID] = [
                self.progress.add_task("epoch", total=config.epochs, figures=""),
                self.progress.add_task("batch", total=batches, figures=""),
            ]
            self.progress.start()

    def say(self, message: str) -> None:
        self.console.print(message, soft_wrap=not self.live)

    def warn(self, message: str) -> None:
        self.console.print(Text("Warning:", "yellow"), message, soft_wrap=not self.live)

    def batch(self, epoch: int, batch: int, values: Mapping[str, float], seconds_left: float) -> None:
        if self.progress is None:
            return
        left = f"{duration(seconds_left)} left"
        figures = f"task {values['task_loss']:.3f}"
        if "feature_loss" in values:
            figures += f"  feature {values['feature_loss']:.1e}"
        figures += f"  share {values['task_weight']:.2f}  {speed(values['images_per_second'])} img/s"
        first, second = self.tasks
        self.progress.update(
            first, completed=epoch + batch / self.batches, description=f"epoch {epoch + 1}/{self.epochs}", figures=left
        )
        self.progress.update(second, completed=batch, description=f"batch {batch}/{self.batches}", figures=figures)

    def epoch(self, epoch: int, metrics: Metrics) -> None:
        train = metrics["train"]
        parts = [f"epoch {epoch + 1}/{self.epochs}", f"loss {train['loss']:.3f}"]
        if "feature_loss" in train:
            parts.append(f"feature {train['feature_loss']:.1e}")
        parts.append(f"share {train['task_weight']:.2f}")
        for split in ("val", "test"):
            if split in metrics:
                value = metrics[split][self.selection]
                parts.append(f"{split} {value:.1%}" if self.selection == "accuracy" else f"{split} {value:.3f}")
        parts.append(f"{speed(train['images_per_second'])}/s")
        gap = "  " if self.console.width > 85 or not self.live else " "
        self.console.print(gap.join(parts), soft_wrap=not self.live)

    def stop(self) -> None:
        if self.progress is not None:
            self.progress.stop()
            self.progress = None


def duration(seconds: float) -> str:
    """Seconds as 1:02:03 or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def metrics_table(metrics: Metrics) -> Table:
    """The metrics of a run or an evaluation: a row for each metric, a column for each split."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("metric", overflow="fold")
    for split in metrics:
        table.add_column(split, justify="right")
    names = dict.fromkeys(name for values in metrics.values() for name in values)
    for name in names:
        table.add_row(name, *(_figure(values[name]) if name in values else "" for values in metrics.values()))
    return table


def _figure(value: float) -> str:
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:.4f}" if 1e-3 <= abs(value) < 1e4 else f"{value:.3e}"


class CostEstimate:
    """The time left, from the measured seconds of a plain batch, of an ICP batch, and of what is done between two epochs.

    Args:
        config: of the run.
        batches: of an epoch.
        evaluated: images that are evaluated after each epoch, in batches.
    """

    def __init__(self, config: RunConfig, batches: int, evaluated: float = 0.0) -> None:
        self.config, self.batches, self.evaluated = config, batches, evaluated
        self.seconds: dict[bool, float] = {}
        self.between: float | None = None

    def measured(self, icp_epoch: bool, seconds_per_batch: float) -> None:
        self.seconds[icp_epoch] = seconds_per_batch

    def measured_between(self, seconds: float) -> None:
        """What the evaluation, the records and the checkpoints of an epoch took."""
        self.between = seconds

    def seconds_left(self, epoch: int, batch: int) -> float:
        # For the kind of step that was not measured yet.
        ratio = step_passes(self.config) / PLAIN_STEP
        plain = self.seconds.get(False) or self.seconds[True] / ratio
        with_icp = self.seconds.get(True) or self.seconds[False] * ratio
        between = self.evaluated * plain / PLAIN_STEP if self.between is None else self.between
        first = plain_epochs(self.config)
        plain_left = max(0, first - epoch) * plain
        icp_left = (self.config.epochs - max(epoch, first)) * with_icp
        done = batch * (with_icp if epoch >= first else plain)
        return (plain_left + icp_left) * self.batches - done + (self.config.epochs - epoch) * between


def speed(images_per_second: float) -> str:
    """A speed for people: whole images, or two digits where there are few."""
    return f"{images_per_second:,.0f}" if images_per_second >= 10 else f"{images_per_second:.2g}"


class Throttle:
    """True at most once in `interval` seconds."""

    def __init__(self, interval: float) -> None:
        self.interval, self.last = interval, time.monotonic()

    def __call__(self) -> bool:
        now = time.monotonic()
        if now - self.last < self.interval:
            return False
        self.last = now
        return True
