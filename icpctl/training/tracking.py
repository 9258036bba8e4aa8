"""Runs in TensorBoard or Weights & Biases while they go on. What goes wrong there is a warning, and never stops a run.

    OUTPUT/tensorboard/<run id>/   event files; a run that is resumed goes on in the same curves
    Weights & Biases               a run of the run's id, in the project that WANDB_PROJECT names, else icpctl

`metrics.csv` remains the record. `icpctl report --export` writes the same afterwards, and replaces the event files.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol

from icpctl.config import RunConfig, declaration
from icpctl.config.catalogue import PLAIN
from icpctl.errors import UserError
from icpctl.training.display import Display, Metrics

Tool = Literal["tensorboard", "wandb"]
Setting = bool | int | float | str

EVENTS = "events.out.tfevents.{}.icpctl"
"""Event files are found by `tfevents` in their names; the end tells ours from those of others."""
PROJECT = "icpctl"
PATIENCE = 30
"""Seconds in which Weights & Biases has to answer."""


def check(tool: Tool) -> None:
    """Raise UserError if the package of a tool is not installed."""
    if find_spec(tool) is None:
        raise UserError(f"--track {tool} needs the package {tool}: pip install 'icpctl[{tool}]'.")


def settings_of(config: RunConfig) -> dict[str, Setting]:
    """What makes a run what it is, in types that both tools take; what is None is left out."""
    return {
        name: ",".join(value) if isinstance(value, list) else value
        for name, value in config.model_dump(mode="json").items()
        if value is not None and declaration(name).identity
    }


def labels_of(config: RunConfig) -> dict[str, Any]:
    """How Weights & Biases files a run."""
    return {
        "id": config.run_id,
        "name": config.run_id,
        "job_type": "baseline" if config.method == PLAIN else config.variant,
    }


class Tracker(Protocol):
    """One run in a tool."""

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        """The metrics of an epoch by `split/metric`; more of them may follow for the last one."""

    def end(self) -> None:
        """Nothing more comes."""


class Tracked(Display):
    """A display that also sends what it sees to a tool.

    Args:
        display: the other one.
        tool: which.
        output: the results folder.
    """

    def __init__(self, display: Display, tool: Tool, output: str | Path) -> None:
        self.display, self.tool, self.output = display, tool, Path(output)
        self.tracker: Tracker | None = None

    def start(self, config: RunConfig, batches: int) -> None:
        self.display.start(config, batches)
        self.attempt(lambda: self.begin(config))

    def begin(self, config: RunConfig) -> None:
        make: Mapping[str, Callable[[RunConfig, Path], Tracker]] = {"tensorboard": TensorBoard, "wandb": WandB}
        self.tracker = make[self.tool](config, self.output)

    def say(self, message: str) -> None:
        self.display.say(message)

    def warn(self, message: str) -> None:
        self.display.warn(message)

    def batch(self, epoch: int, batch: int, values: Mapping[str, float], seconds_left: float) -> None:
        self.display.batch(epoch, batch, values, seconds_left)

    def epoch(self, epoch: int, metrics: Metrics) -> None:
        self.display.epoch(epoch, metrics)
        self.measured(epoch, metrics)

    def measured(self, epoch: int, metrics: Metrics) -> None:
        values = {f"{split}/{name}": value for split, of_split in metrics.items() for name, value in of_split.items()}
        if (tracker := self.tracker) is not None:
            self.attempt(lambda: tracker.log(epoch, values))

    def stop(self) -> None:
        self.display.stop()

    def close(self) -> None:
        self.display.close()
        if (tracker := self.tracker) is not None:
            self.attempt(tracker.end)
        self.tracker = None

    def attempt(self, work: Callable[[], None]) -> None:
        """Do something with the tool; if that fails, say so, and do no more."""
        try:
            work()
        except Exception as error:  # of every type: the network, the disk, the tool itself
            self.tracker = None
            reason = " ".join(str(error).split()) or type(error).__name__
            self.warn(f"{self.tool} does not follow this run any more: {reason[:300]}. The run goes on.")


class TensorBoard:
    """A file of events, which a TensorBoard that is running reads as it grows."""

    def __init__(self, config: RunConfig, output: Path) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.plugins.hparams import summary_v2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self.event, self.session_log, self.summary = Event, SessionLog, Summary
        folder = output / "tensorboard" / config.run_id
        folder.mkdir(parents=True, exist_ok=True)
        now = time.time()
        self.file = (folder / EVENTS.format(time.time_ns())).open("xb", buffering=0)
        self.writer = RecordWriter(self.file)
        self.started = False
        self.write(file_version="brain.Event:2")
        self.write(summary=summary_v2.hparams_pb(settings_of(config), config.run_id, now))

    def write(self, **content: Any) -> None:
        self.writer.write(self.event(wall_time=time.time(), **content).SerializeToString())

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        if not self.started:  # TensorBoard forgets what an earlier file has from here on
            self.write(step=epoch, session_log=self.session_log(status=self.session_log.START))
            self.started = True
        scalars = [self.summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self.write(step=epoch, summary=self.summary(value=scalars))

    def end(self) -> None:
        self.file.close()


class WandB:
    """A run of Weights & Biases, where and how its own settings and environment say: online, or with WANDB_MODE=offline."""

    def __init__(self, config: RunConfig, output: Path) -> None:
        import wandb

        output.mkdir(parents=True, exist_ok=True)
        self.run = wandb.init(
            dir=str(output),
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            group=config.group_id,
            config=settings_of(config),
            resume="allow",
            settings=wandb.Settings(silent=True, console="off", reinit="create_new", init_timeout=PATIENCE),
            **labels_of(config),
        )

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=epoch)

    def end(self) -> None:
        self.run.finish()
