"""A whole epoch of the paper's recipe: engine against the authors' pipeline, in the step and outside of it.

    python benchmarks/epoch.py > benchmarks/results/epoch.md

The engine's side is a run's own `Session`: order and augmentation of the images, steps, evaluation, metrics, checkpoints,
plain lines on a console. The authors' side is torchvision's: PIL images in a `Dataset`, transforms image by image in the main
process, a `DataLoader`, the step of reference.py; it evaluates and records nothing. The two take turns, some batches
each, so that a slow moment of the machine falls on both; a few batches of each before are to warm up. On CUDA the device is
waited for after every piece, so that its work is counted where it was asked for, and an epoch before those that are counted is for
the capture of the steps. The waits cost time: the engine's whole epoch without them is told too.

With a part of the training images, validation and test images are as many for each of them as in a full epoch; the writing
of checkpoints alone does not grow with the images. So a full epoch is the measured one, times the images, with as many checkpoints.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import ParamSpec, TypeVar
from unittest.mock import patch

import numpy as np
import torch
from measure import command, machine, random_images, synchronise, table
from PIL import Image
from reference import Reference
from rich.console import Console
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

import icpctl
from icpctl import data
from icpctl.data import ImageData, Split
from icpctl.data.augment import CROP, MAGNITUDE, NUM_OPS
from icpctl.models.network import choose_device, set_precision
from icpctl.runs import checkpoint
from icpctl.runs.folder import RunFolder
from icpctl.training.display import ConsoleDisplay, Display
from icpctl.training.session import Session
from icpctl.training.trainer import Images, Trainer

VAL_FRACTION = 0.1
FULL = {"train": 45_000, "test": 10_000}
"""Images of CIFAR-100 that a run trains on, beside those that it holds out; its test images."""
WARM_UP = 5  # batches
PIECES = ("step", "data", "checkpoints", "rest", "evaluation")

Seconds = dict[str, float]

P = ParamSpec("P")
T = TypeVar("T")


@dataclass
class Stopwatch:
    """Times by what was done; of pieces inside of each other, the inner one's are its own."""

    device: torch.device
    times: dict[str, list[float]] = field(default_factory=dict)
    _doing: list[str] = field(default_factory=list)
    _since: float = 0.0

    @contextmanager
    def doing(self, name: str) -> Iterator[None]:
        self._count()
        self._doing.append(name)
        try:
            yield
        finally:
            self._count()
            self._doing.pop()

    def timed(self, name: str, function: Callable[P, T]) -> Callable[P, T]:
        """The function, timed."""

        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            with self.doing(name):
                return function(*args, **kwargs)

        return call

    def seconds(self, epochs: int) -> Seconds:
        """Of an epoch, by piece."""
        return {piece: sum(self.times[piece]) / epochs for piece in PIECES if piece in self.times}

    def step(self) -> float:
        """Seconds of the median step."""
        return statistics.median(self.times["step"])

    def _count(self) -> None:
        synchronise(self.device)
        now = time.perf_counter()
        if self._doing:
            self.times.setdefault(self._doing[-1], []).append(now - self._since)
        self._since = now


def engine_side(trainer: Trainer, folder: Path, watch: Stopwatch, uncounted: int = 0) -> Iterator[None]:
    """Train the run of the trainer, a step a time; neither its beginning nor its first `uncounted` epochs are counted."""
    run = RunFolder(folder, trainer.config)
    run.create()
    session = Session(trainer.config, run, trainer, ConsoleDisplay(Console(file=io.StringIO())), lambda: False)
    batches_of = trainer.epoch_batches

    def epoch_batches(epoch: int, start: int = 0) -> Iterator[Images]:
        batches = batches_of(epoch, start)
        while True:
            with watch.doing("data"):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    with ExitStack() as wrapped:
        wrapped.enter_context(patch.object(trainer, "epoch_batches", epoch_batches))
        wrapped.enter_context(patch.object(trainer.task, "evaluate", watch.timed("evaluation", trainer.task.evaluate)))
        wrapped.enter_context(patch.object(checkpoint, "save", watch.timed("checkpoints", checkpoint.save)))
        session.begin()
        while session.epoch < trainer.config.epochs:
            for batch, images in session.batches():
                with watch.doing("step"):
                    result = trainer.step(session.epoch, batch, images)
                with watch.doing("rest"):
                    session.take(result)
                    if session.batch == trainer.batches:
                        session.finish_epoch()
                if (session.epoch, session.batch) == (uncounted, 0):
                    watch.times.clear()
                yield
        session.finish()


class Pictures(Dataset[tuple[Tensor, int]]):
    """Images as torchvision's CIFAR keeps them, (N, H, W, 3), each made a PIL image and transformed when it is asked for."""

    def __init__(self, trainer: Trainer) -> None:
        self.images = trainer.train_set.images.permute(0, 2, 3, 1).cpu().numpy().copy()
        self.labels = trainer.train_set.labels.tolist()
        height, width = self.images.shape[1:3]
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop((round(CROP * height), round(CROP * width))),
                transforms.Resize((height, width)),
                transforms.RandAugment(NUM_OPS, MAGNITUDE, interpolation=transforms.InterpolationMode.BILINEAR),
                transforms.ToTensor(),
                transforms.Normalize(trainer.network.mean.flatten().tolist(), trainer.network.std.flatten().tolist()),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def reference_side(trainer: Trainer, peer: Reference, watch: Stopwatch, uncounted: int = 0) -> Iterator[None]:
    """Train for the same epochs by the authors' pipeline and procedure, a step a time; the first ones are not counted."""
    config, device = trainer.config, trainer.device
    loader = DataLoader(Pictures(trainer), config.batch_size, shuffle=True, drop_last=True)
    for epoch in range(config.epochs):
        if epoch == uncounted:
            watch.times.clear()
        with watch.doing("data"):
            batches = iter(loader)
        while True:
            with watch.doing("data"):
                if (batch := next(batches, None)) is None:
                    break
                x, y = (each.to(device) for each in batch)
            with watch.doing("step"):
                peer.step(x, y, trainer.method.task_weight(epoch))
            yield


def whole_epochs(trainer: Trainer, folder: Path) -> list[float]:
    """The seconds of each epoch of a run, with its evaluation and without its checkpoint, as the run itself records them."""
    run = RunFolder(folder, trainer.config)
    run.create()
    session = Session(trainer.config, run, trainer, Display(), lambda: False)
    session.begin()
    session.advance((trainer.config.epochs, 0))
    rows, _ = run.read_metrics()
    return [float(value) for value in rows[rows["metric"] == "seconds"].sort_values("epoch")["value"]]


def uncounted_epochs(device: torch.device) -> int:
    """Epochs before those that are counted, as steps are captured in them."""
    return 1 if device.type == "cuda" else 0


def measure(
    config: icpctl.RunConfig, images: ImageData, device: torch.device, turn: int
) -> tuple[Stopwatch, Stopwatch]:
    """The times of both sides, which take turns of so many batches, after the `uncounted_epochs`."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(config, images, device)
        peer = Reference.of(trainer)
        watches = Stopwatch(device), Stopwatch(device)
        first = uncounted_epochs(device)
        sides = [
            engine_side(trainer, Path(folder), watches[0], first),
            reference_side(trainer, peer, watches[1], first),
        ]
        while sides:
            sides = [side for side in sides if len(list(islice(side, turn))) == turn]
    return watches


def part_of(images: ImageData, train: int, test: int) -> ImageData:
    """So many of the images, of every class alike."""

    def some(split: Split, count: int) -> Split:
        indices = np.linspace(0, len(split.labels), count, endpoint=False).astype(np.int64)
        return Split(np.array(split.images[indices]), split.labels[indices])

    return ImageData(
        images.name, some(images.train, train), some(images.test, test), images.classes, images.fingerprint
    )


def cifar100() -> tuple[ImageData, str]:
    """The images, and what they are: random ones where there are no real ones."""
    try:
        return data.load("cifar100"), "CIFAR-100"
    except icpctl.UserError:
        return random_images(round(FULL["train"] / (1 - VAL_FRACTION)), 32, 100), "random images in place of CIFAR-100"


def full_epoch(seconds: Seconds, batches: int, batch_size: int) -> Seconds:
    """Of all images, from an epoch of so many batches."""
    times = FULL["train"] // batch_size / batches
    return {piece: value * (1 if piece == "checkpoints" else times) for piece, value in seconds.items()}


def outside_step(seconds: Seconds) -> float:
    """The share of data, checkpoints and rest in an epoch without its evaluation."""
    trained = sum(seconds.values()) - seconds["evaluation"]
    return (trained - seconds["step"]) / trained


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5, help="of the perturbation, T")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--images", default="3200", help="training images, 1,000 or more, or all")
    parser.add_argument("--epochs", type=int, default=1, help="of which the mean is told")
    parser.add_argument("--turn", type=int, default=10, help="batches of one side before the other goes on")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", action="store_true", help="the figures as JSON")
    options = parser.parse_args()

    device = choose_device(options.device)
    set_precision("float32")
    images, what = cifar100()
    number = FULL["train"] if options.images == "all" else int(options.images)
    config = icpctl.RunConfig(
        steps=options.steps,
        batch_size=options.batch,
        epochs=uncounted_epochs(device) + options.epochs,
        warmup_epochs=0,
        val_fraction=VAL_FRACTION,
        device=options.device,
    )
    measure(config.altered(val_fraction=0.0, epochs=1), part_of(images, WARM_UP * options.batch, 100), device, WARM_UP)
    part = part_of(images, round(number / (1 - VAL_FRACTION)), round(number / FULL["train"] * FULL["test"]))
    watches = measure(config, part, device, options.turn)
    engine, reference = (watch.seconds(options.epochs) for watch in watches)
    step, reference_step = (watch.step() for watch in watches)
    batches = number // options.batch
    without_waits = None
    if device.type == "cuda":
        with tempfile.TemporaryDirectory() as folder:
            without_waits = whole_epochs(Trainer(config, part, device), Path(folder))[-1]
    full = full_epoch(engine, batches, options.batch)
    full_reference = full_epoch(reference, batches, options.batch)
    if options.json:
        settings = {"images": what, "train": number, "steps": options.steps, "batch": options.batch}
        sides = {"engine": engine, "reference": reference, "full_engine": full, "full_reference": full_reference}
        medians = {"engine_step": step, "reference_step": reference_step}
        whole = {"engine_without_waits": without_waits}
        shares = {"outside_step": outside_step(engine), "full_outside_step": outside_step(full)}
        figures = {**settings, **sides, **medians, **whole, **shares}
        print(json.dumps({"machine": machine(device), "command": command(), **figures}))
        return

    print("# An epoch: engine and authors' pipeline\n")
    print(f"{machine(device)}; `{command()}`; turns of {options.turn} batches.\n")
    print(f"ResNet-20, {what}, batch {options.batch}, crop-randaugment, AdEMAMix, T = {options.steps}.")
    print(f"The median step: engine {step * 1e3:.1f} ms, reference {reference_step * 1e3:.1f} ms, "
          f"{reference_step / step:.2f} times that.")  # fmt: skip
    if without_waits is not None:
        print(f"Without the waits for the device the engine's epoch takes {without_waits:.2f} s.")
    print(section(f"{number:,} training images, measured", engine, reference))
    if options.images != "all":
        print(section(f"{FULL['train']:,} training images, computed from these", full, full_reference))


def section(title: str, engine: Seconds, reference: Seconds) -> str:
    """A table of the pieces, and what it comes to."""
    epoch = sum(engine.values())
    trained = {"all but evaluation": epoch - engine["evaluation"]}
    reference = reference | {"all but evaluation": sum(reference.values())}
    rows = []
    for piece, value in (engine | trained).items():
        of_reference, ratio = "", ""
        if piece in reference:
            of_reference, ratio = f"{reference[piece]:.2f}", f"{reference[piece] / value:.2f}"
        rows.append((piece, f"{value:.2f}", f"{value / epoch:.2%}", of_reference, ratio))
    header = ["", "engine, s", "share of the epoch", "reference, s", "reference / engine"]
    outside = f"Outside of the step: {outside_step(engine):.2%} of the epoch without its evaluation."
    return f"\n## {title}\n\n{table(header, rows)}\n\n{outside}"


if __name__ == "__main__":
    main()
