"""What a person sees of a training run: a live display in a terminal, plain lines elsewhere, nothing from Python."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping

import pandas as pd
from rich import box
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from icpctl.config import RunConfig
from icpctl.config.catalogue import METHODS, PLAIN_STEP
from icpctl.config.cost import plain_epochs, step_passes

Metrics = Mapping[str, Mapping[str, float]]
WIDTHS = {"loss": 9, "feature": 10, "share": 7, "val": 8, "test": 8, "img/s": 9}
"""Columns of the terminal for each figure of an epoch."""


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

    def measured(self, epoch: int, metrics: Metrics) -> None:
        """More metrics of an epoch, which are measured after the last one."""

    def stop(self) -> None:
        """The epochs have ended, one way or the other."""

    def close(self) -> None:
        """The run has ended: nothing more comes of it."""


class _Bars(Progress):
    """Bars above an empty line, where a terminal writes ^C without moving the bars."""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        yield Text()


class ConsoleDisplay(Display):
    """A live display on a terminal; a line for each epoch where the output is a file or a pipe."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.live = console.is_terminal
        self.progress: Progress | None = None
        self.epochs = self.batches = 0
        self.selection = ""
        self.columns: list[str] = []

    def start(self, config: RunConfig, batches: int) -> None:
        self.epochs, self.batches, self.selection = config.epochs, batches, config.selection
        self.console.print(Text.assemble("Run ", (config.run_id, "bold")))
        self.console.print(f"val, test: {config.selection}; share: of the task in the loss\n")
        self.columns = ["loss", "feature", "share", "val", "test", "img/s"]
        if "features" not in METHODS[config.method].groups:
            self.columns.remove("feature")
        heading = f"{'':{len('epoch ') + len(_counted(1, config.epochs))}}"
        self.console.print(heading + "".join(f"{name:>{WIDTHS[name]}}" for name in self.columns))
        if self.live:
            self.progress = _Bars(
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
        feature = f"feature {values['feature_loss']:.1e}" if "feature_loss" in values else ""
        figures = f"task {values['task_loss']:6.3f}  {feature}  share {values['task_weight']:.2f}  {speed(values['images_per_second']):>6} img/s"
        first, second = self.tasks
        self.progress.update(
            first,
            completed=epoch + batch / self.batches,
            description=f"epoch {_counted(epoch + 1, self.epochs)}",
            figures=left,
        )
        self.progress.update(
            second, completed=batch, description=f"batch {_counted(batch, self.batches)}", figures=figures
        )

    def epoch(self, epoch: int, metrics: Metrics) -> None:
        train = metrics["train"]
        if self.progress is not None:
            self.progress.update(self.tasks[0], completed=epoch + 1)
            self.progress.update(self.tasks[1], completed=self.batches)
        values = {
            "loss": f"{train['loss']:.3f}",
            "feature": f"{train['feature_loss']:.1e}" if "feature_loss" in train else "–",
            "share": f"{train['task_weight']:.2f}",
            "img/s": speed(train["images_per_second"]),
        }
        for split in ("val", "test"):
            values[split] = value_of(self.selection, metrics[split][self.selection]) if split in metrics else "–"
        line = "".join(f"{values[name]:>{WIDTHS[name]}}" for name in self.columns)
        self.console.print(f"epoch {_counted(epoch + 1, self.epochs)}{line}", soft_wrap=not self.live)

    def stop(self) -> None:
        if self.progress is not None:
            self.progress.stop()
            self.progress = None


def _counted(number: int, total: int) -> str:
    """A number of a total, as wide for each."""
    return f"{number:>{len(str(total))}}/{total}"


def value_of(selection: str, value: float) -> str:
    """An accuracy in percent, or another metric as it is."""
    return f"{value:.1%}" if selection == "accuracy" else f"{value:.3f}"


def duration(seconds: float) -> str:
    """Seconds as 1:02:03 or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def nested(metrics: pd.DataFrame) -> dict[str, dict[str, float]]:
    """The metrics of one epoch by split and name, from the table of a run's metrics."""
    return {
        str(split): dict(zip(rows["metric"], map(float, rows["value"]), strict=True))
        for split, rows in metrics.groupby("split", sort=False)
    }


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
