"""How long runs will take on this machine, from steps that are measured here and now."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from icpctl import models
from icpctl.config import RunConfig, declaration
from icpctl.config.catalogue import PLAIN
from icpctl.config.cost import plain_epochs, step_passes
from icpctl.config.recipes import default_layers
from icpctl.data.device import DeviceSplit
from icpctl.data.download import AbsentError
from icpctl.data.standin import stand_in
from icpctl.models.network import choose_device, set_precision
from icpctl.runs import checkpoint
from icpctl.runs.fingerprints import load_data
from icpctl.tasks.sharpness import sharpness
from icpctl.training.graphs import CapturedSteps
from icpctl.training.trainer import Trainer

MEASURED_SECONDS = 1.0
"""How long each kind of step is measured, after the first ones."""
SHARE_FOR_THE_REST = 0.2
"""Of this time, for what a run does once an epoch or once."""
EVALUATED_IMAGES = 500
clock = time.perf_counter
_WORKER_START = """
import sys
from icpctl.config import RunConfig
from icpctl.data.download import no_downloads
from icpctl.training import engine
with no_downloads():
    engine.check_runs([RunConfig.model_validate_json(sys.stdin.read())])
"""
"""The work of a process before its first run: it imports the modules of training, and looks at the data if they are there."""


@dataclass(frozen=True)
class Pace:
    """What was measured, in seconds."""

    batches: int
    plain_step: float
    icp_step: float
    icp_passes: float
    """Of the step that was measured."""
    epoch: float
    """Beside its steps: shuffling, augmentation, evaluation, checkpoints. Of streamed images the first batch alone is counted."""
    icp_epoch: float = 0.0
    """By how much the first step of an epoch with the method takes longer: it measures more."""
    once: float = 0.0
    """Model and data at the beginning, and the sharpness at the end."""

    def seconds(self, config: RunConfig) -> float:
        """Of a whole run in a process that is there. The costly metrics after the last epoch (FID) are not counted."""
        plain = plain_epochs(config)
        icp = config.epochs - plain
        icp_step = self.icp_step * step_passes(config) / self.icp_passes
        steps = plain * self.plain_step + icp * icp_step
        return steps * self.batches + config.epochs * self.epoch + icp * self.icp_epoch + self.once


def seconds(configs: Sequence[RunConfig], threads: int) -> list[float]:
    """The seconds of each run, one at a time with so many threads.

    Raises:
        UserError: a run cannot be trained here; as `icpctl.train`.
    """
    torch.set_num_threads(threads)
    paces: dict[tuple[object, ...], Pace] = {}
    for config in sorted(configs, key=lambda config: config.steps, reverse=True):
        if _kind(config) not in paces:
            paces[_kind(config)] = _measure(config)
    return [paces[_kind(config)].seconds(config) for config in configs]


def _kind(config: RunConfig) -> tuple[object, ...]:
    """Equal for runs whose steps cost the same, but for those of the perturbation."""
    apart = ("method", "seed", "epochs", "lr", "weight_decay", "lr_schedule", "recipe")
    groups = ("run", "training", "generation", "machine")
    names = [n for n in RunConfig.model_fields if n not in apart and declaration(n).group in groups]
    method = "icp" if config.method == PLAIN else config.method  # a baseline is measured with the method beside it
    return method, *(getattr(config, name) for name in names)


def process_start(config: RunConfig) -> float:
    """The seconds that a process takes before its first run, by starting one."""
    began = clock()
    subprocess.run(
        [sys.executable, "-P", "-c", _WORKER_START],
        input=config.model_dump_json(),
        text=True,
        capture_output=True,
        check=False,
    )
    return clock() - began


def _measure(config: RunConfig) -> Pace:
    config = config.altered(epochs=2, warmup_epochs=1)
    if config.method == PLAIN and default_layers(config.model, config.image_size):
        config = config.altered(optimizer="adam", steps=5)
    config = models.complete(config)
    set_precision(config.precision)
    began = clock()
    try:
        images = load_data(config)
    except AbsentError:
        images = stand_in(config.dataset, config.image_size)
    trainer = Trainer(config, images, choose_device(config.device))
    trainer.check()
    built = clock() - began
    began = clock()
    batch = next(trainer.epoch_batches(0))
    prepared = clock() - began
    trainer.close()
    trainer.model.train()
    # Batch 1, as the first one of an epoch and each tenth measure more.
    before = 1 if trainer.captured is None else CapturedSteps.BEFORE_USE
    plain = _time(lambda: trainer.step(0, 1, batch), trainer.device, before)
    icp = _time(lambda: trainer.step(1, 1, batch), trainer.device, before)
    first = _time(lambda: trainer.step(1, 0, batch), trainer.device, before, SHARE_FOR_THE_REST)
    part = DeviceSplit(images.test, trainer.device, np.arange(min(EVALUATED_IMAGES, len(images.test.labels))))
    evaluated = _time(lambda: trainer.task.evaluate(trainer.network, part), trainer.device) / len(part)
    evaluated *= sum(map(len, trainer.evaluation_sets.values()))
    if "fit" in trainer.evaluation_sets:
        fit, task = trainer.evaluation_sets["fit"], trainer.task
        built += _time(
            lambda: sharpness(trainer.network, fit, task.targets, task.plain_loss),
            trainer.device,
            1,
            SHARE_FOR_THE_REST,
        )
    with tempfile.TemporaryDirectory() as folder:
        saved = _time(
            lambda: checkpoint.save(Path(folder), "last", trainer.state()), trainer.device, 1, SHARE_FOR_THE_REST
        )
    epoch = prepared + evaluated + 2 * saved  # the last and, as a rule, the best
    return Pace(trainer.batches, plain, icp, step_passes(config), epoch, max(0.0, first - icp), built)


def _time(work: Callable[[], object], device: torch.device, before: int = 1, share: float = 1.0) -> float:
    """Mean seconds of a piece of work in this share of `MEASURED_SECONDS`; it is done so many times before, which are not counted."""

    def finish() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    for _ in range(before):
        work()
    finish()
    began, number = clock(), 0
    while number == 0 or clock() - began < share * MEASURED_SECONDS:
        work()
        number += 1
    finish()
    return (clock() - began) / number
