"""The checks of gpu.py that are about time and memory, most of them by the other benchmarks.

Each takes the `Setting` and gives its `Line`s one by one. "goal" is what docs/performance.md says of it.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial

import epoch
import precision
import scaling
import stack
import step
import torch
from gpu_checks import METHOD_EPOCH, Line, Setting, Skipped, Wrong, attempt, captured, figure, take, trainer_of, verdict
from measure import random_images, unsynchronised
from torch import Tensor

import icpctl
from icpctl import data
from icpctl.data import ImageData
from icpctl.methods.icp.method import ICP
from icpctl.models.network import Network, set_precision
from icpctl.training.graphs import CapturedSteps
from icpctl.training.trainer import Trainer

FIRST_COMMAND = ("train", "resnet20", "cifar100", "--optimizer", "ademamix", "--steps", "5")
"""Of the README."""
SHIFT_BAR = 0.01
"""Of the feature shift may be rounding."""


class RowMajor(Network):
    """The same with its inputs in NCHW."""

    def normalise(self, images: Tensor) -> Tensor:
        return super().normalise(images).contiguous()


def times(setting: Setting) -> Iterator[Line]:
    """Milliseconds of a step at each precision, layout, cuDNN benchmark and folding; and of a plain step, and without graphs."""
    on_gpu = setting.device.type == "cuda"
    precisions = ("float32", "tf32", "bf16") if on_gpu else ("float32", "bf16")
    for batch in (32, 128) if not setting.short else (8,):
        for name, layout, chosen, folded in itertools.product(
            precisions, ("channels last", "NCHW"), (False, True) if on_gpu else (False,), (True, False)
        ):
            what = (
                f"batch {batch}, {name}, {layout}{', cuDNN benchmark' if chosen else ''}{', folded' if folded else ''}"
            )
            seconds = _timed(setting, batch, name, layout, chosen, folded)
            yield figure(what, f"{seconds * 1e3:.2f} ms", seconds=seconds)
        for what, at, graphs in (("plain", 0, True), ("without graphs", METHOD_EPOCH, False)):
            if not graphs and not on_gpu:
                continue
            seconds = _timed(setting, batch, "float32", "channels last", False, True, at, graphs)
            yield figure(f"batch {batch}, float32, {what}", f"{seconds * 1e3:.2f} ms", seconds=seconds)
    set_precision("float32")


def _timed(
    setting: Setting,
    batch: int,
    of_precision: str,
    layout: str,
    chosen: bool,
    folded: bool,
    at: int = METHOD_EPOCH,
    graphs: bool = True,
) -> float:
    """The mean seconds of 200 steps of an epoch, without a wait between them."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = chosen
    try:
        trainer, said = trainer_of(setting, precision=of_precision, batch_size=batch)
        assert isinstance(trainer.method, ICP)
        if not folded:
            trainer.method.distiller.folded = None
        if not graphs:
            trainer.captured = None
        if layout == "NCHW":
            trainer.model.to(memory_format=torch.contiguous_format)
            network = trainer.network
            trainer.network = RowMajor(network.model, network.mean, network.std, network.precision)
        batches = list(trainer.epoch_batches(at))
        kinds = 2 if at == METHOD_EPOCH else 1
        for number in (1, 10):
            take(trainer, at, number, CapturedSteps.BEFORE_USE if trainer.captured is not None else 1, batches)
        if trainer.captured is not None:
            captured(trainer, said, kinds)
        numbers = itertools.count(1)

        def work() -> None:
            number = next(numbers)
            trainer.step(at, number, batches[number % len(batches)])

        return unsynchronised(work, setting.of(200, 2), setting.device)
    finally:
        torch.backends.cudnn.benchmark = before


def profile(setting: Setting) -> Iterator[Line]:
    """The operations in which a step spends its time."""
    for model in ("resnet20",) if setting.short else ("resnet20", "vae"):
        trainer = step.engine(model, "ademamix", setting.of(5, 1), setting.of(32, 4), setting.device)
        yield figure(f"{model}, batch {trainer.batch_size}", "below", block=step.profiled(trainer))


def precision_table(setting: Setting) -> Iterator[Line]:
    """How much of the feature shift is rounding; see precision.py."""
    images, what = _photographs(setting)
    train_size = min(setting.of(4096, 256), len(images.train.labels))
    rows = precision.measure(setting.device, images, setting.of(4, 1), train_size)
    yield figure("images", what)
    for row in rows:
        for name, errors in row.errors.items():
            said = (
                f"{', '.join(f'{error:.1e}' for error in errors)} of the shift at stages 1–3; the bar is {SHIFT_BAR:g}"
            )
            named = f"{row.optimizer}, η {row.lr:g}, {name}"
            if name == "float32" and row.lr == 2e-3 and row.optimizer != "sgd" and not setting.short:
                yield verdict(named, max(errors) < SHIFT_BAR, said, worst=max(errors))
            else:
                yield figure(named, said, worst=max(errors))


def _photographs(setting: Setting) -> tuple[ImageData, str]:
    """CIFAR-100; without it the photographs that need no download; in short digits."""
    if setting.short:
        return data.load("digits"), "digits"
    try:
        return data.load("cifar100"), "CIFAR-100"
    except icpctl.UserError as error:
        return data.load("photos", image_size=32), f"photos in place of CIFAR-100 ({str(error).splitlines()[0]})"


def _images(setting: Setting) -> tuple[ImageData, str]:
    if setting.short:
        return random_images(80, 16, 4), "80 random images"
    return epoch.cifar100()


def whole_epoch(setting: Setting) -> Iterator[Line]:
    """Epochs of runs with evaluation, without waits: the second plain one, and the second one with the method."""
    images, what = _images(setting)
    yield figure("images", what)
    for model in ("resnet20", "vae"):
        config = icpctl.RunConfig(
            model=model,
            image_size=images.train.images.shape[-1],
            steps=setting.of(5, 1),
            batch_size=setting.of(32, 16),
            epochs=setting.of(4, 2),
            warmup_epochs=setting.of(2, 1),
            val_fraction=epoch.VAL_FRACTION,
        )
        said: list[str] = []
        trainer = Trainer(config, images, setting.device, say=said.append)
        seconds = epoch.whole_epochs(trainer, setting.folder / model)
        plain, icp = seconds[config.warmup_epochs - 1], seconds[-1]
        evaluation = unsynchronised(
            lambda t=trainer: [t.task.evaluate(t.network, part) for part in t.evaluation_sets.values()],  # type: ignore[misc]
            1,
            setting.device,
        )
        hundred = (25 * plain + 75 * icp) / 60
        yield figure(
            model,
            f"plain {plain:.2f} s, with the method {icp:.2f} s, of which {evaluation:.2f} s are evaluation; 25 plain ones "
            f"and 75 with the method: {hundred:.1f} min (goal for ResNet-20 on CIFAR-100: 4)",
            plain=plain,
            icp=icp,
            evaluation=evaluation,
            minutes_of_100=hundred,
        )
        if trainer.captured is not None:
            yield attempt(f"{model}: every kind of step is a graph", partial(_all_kinds, trainer, said))


def _all_kinds(trainer: Trainer, said: list[str]) -> str:
    captured(trainer, said, kinds=3)
    return "all three"


def authors_procedure(setting: Setting) -> Iterator[Line]:
    """Engine, authors' procedure and least work: the same numbers in float64, and how long each takes."""
    models, batches = (("resnet20",), (4,)) if setting.short else (("resnet20", "vae"), (32, 128))
    set_precision("float32")
    for model in models:
        difference = step.check(model, "ademamix", setting.of(5, 1), setting.of(8, 2), setting.device)
        said = f"the three differ by {difference:.1e} in float64"
        yield verdict(f"{model}: the same step", difference < step.TOLERANCE, said, difference=difference)
    for model, batch in itertools.product(models, batches):
        row = step.measure(model, "ademamix", setting.of(5, 1), batch, setting.of(10, 1), setting.device)
        yield figure(
            f"{model}, batch {batch}: a step",
            f"engine {row.engine * 1e3:.2f} ms, plain {row.plain * 1e3:.2f} ms; the authors' takes {row.reference / row.engine:.1f} "
            f"times that (goal 10), without its collections and clean pass {row.reference_without_extras / row.engine:.1f}; engine over "
            f"least work {row.engine / row.floor:.2f} (goal 1.3)",
            engine=row.engine,
            plain=row.plain,
            reference=row.reference,
            reference_without_extras=row.reference_without_extras,
            floor=row.floor,
        )
    yield _authors_epoch(setting)


def _authors_epoch(setting: Setting) -> Line:
    """A part of an epoch of both, made a whole one."""
    images, what = _images(setting)
    count, batch = setting.of(3200, 48), setting.of(32, 16)
    part = images if setting.short else epoch.part_of(images, round(count / (1 - epoch.VAL_FRACTION)), 711)
    config = icpctl.RunConfig(
        steps=setting.of(5, 1),
        batch_size=batch,
        epochs=epoch.uncounted_epochs(setting.device) + 1,
        warmup_epochs=0,
        val_fraction=epoch.VAL_FRACTION,
    )
    watches = epoch.measure(config, part, setting.device, 10)
    batches = len(part.train.labels) * (1 - epoch.VAL_FRACTION) // batch
    engine, reference = (sum(epoch.full_epoch(w.seconds(1), int(batches), batch).values()) for w in watches)
    return figure(
        "resnet20: an epoch of 45,000 images, computed from a part",
        f"engine with evaluation and checkpoints, waited for after every piece, {engine:.1f} s; authors' pipeline {reference:.1f} s, "
        f"{reference / engine:.0f} times that (goal 50); {what}",
        engine=engine,
        reference=reference,
    )


def first_command(setting: Setting) -> Iterator[Line]:
    """The first command of the README, all of it."""
    try:
        data.load("cifar100")
    except icpctl.UserError as error:
        raise Skipped(f"there is no CIFAR-100: {str(error).splitlines()[0]}") from error
    output = setting.folder / "results"
    command = [sys.executable, "-m", "icpctl", *FIRST_COMMAND, "--device", str(setting.device), "--output", str(output)]
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, timeout=2.5 * 3600)
    minutes = (time.perf_counter() - began) / 60
    if done.returncode:
        raise Wrong((done.stderr.strip() or done.stdout.strip()).splitlines()[-1])
    (run,) = (path.parent for path in output.glob("*/config.json"))
    metrics = icpctl.evaluate(run, device=str(setting.device))
    said = f"{minutes:.1f} min (goal 4); accuracy on the test images {metrics['accuracy']:.1%}"
    yield figure(f"icpctl {' '.join(FIRST_COMMAND)}", said, minutes=minutes, accuracy=metrics["accuracy"])
    if "not launched as CUDA graphs" in done.stdout + done.stderr:
        raise Wrong("its steps were not launched as CUDA graphs")


def stack_of_eight(setting: Setting) -> Iterator[Line]:
    """A stack of runs: each member takes the step that it takes alone; and its time against as many runs with graphs."""
    set_precision("float32")
    side = setting.of(32, 8)
    difference = stack.check(side, setting.device)
    yield verdict("members against runs alone", difference < step.TOLERANCE, f"differ by {difference:.1e} in float64")
    (row,) = stack.measure(
        side, [setting.of(8, 2)], setting.of(5, 1), setting.of(32, 4), setting.of(10, 1), setting.device
    )
    yield figure(
        f"a step of {row.runs} runs",
        f"stack {row.stacked * 1e3:.1f} ms, one after another {row.one_by_one * 1e3:.1f} ms, one run {row.one * 1e3:.1f} ms: the stack "
        f"takes {row.stacked / row.one:.1f} times one run (goal 2.5)",
        stacked=row.stacked,
        one_by_one=row.one_by_one,
        one=row.one,
    )


def memory(setting: Setting) -> Iterator[Line]:
    """Peak memory of fresh processes: what torch has reserved, graphs and all, and what of it was allocated."""
    found = (
        [scaling.memory_of("engine", 1, setting.device)] if setting.short else scaling.measure_memory(setting.device)
    )
    least = {each.side: each for each in found if each.steps == 1}
    for each in found:
        yield figure(
            f"{each.side}, T = {each.steps}",
            f"reserved {each.peak / 2**20:,.0f} MiB, {each.peak / least[each.side].peak:.2f} times that of T = 1 (goal 1.05 at T = 20); "
            f"allocated {each.allocated / 2**20:,.0f} MiB",
            reserved=each.peak,
            allocated=each.allocated,
        )
