"""How long training waits for its batches, with the images in memory and streamed from the disk.

    python benchmarks/streaming.py --images 20000 --side 64 --workers 1 2 4 > benchmarks/results/streaming.md

Random images are written to a temporary file and read from there, most likely from the memory in which the system keeps
files. An epoch that is not counted starts the worker processes; the next one is timed. "Waiting" is the time between the
end of a step, the device's work included, and the arrival of the next batch; in memory that is preparing the whole epoch.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from measure import command, machine, synchronise, table

import icpctl
from icpctl.data import ImageData, Split
from icpctl.data.streaming import StreamedSplit
from icpctl.models.network import choose_device
from icpctl.training.trainer import Trainer

CHUNK = 1000  # images that are written at once


@dataclass(frozen=True)
class Row:
    """Seconds of an epoch, and how many of them went by without a batch."""

    steps: int
    """Of the perturbation; 0 is plain training."""
    workers: int
    """That stream the images; 0: they are in memory."""
    epoch: float
    waiting: float

    @property
    def images(self) -> str:
        """Where they are."""
        return f"streamed, {self.workers} worker{'s' if self.workers > 1 else ''}" if self.workers else "in memory"


def random_images(file: Path, count: int, side: int, classes: int) -> ImageData:
    """A memory-mapped data set; the test images are a hundredth of it."""
    generator = np.random.default_rng(0)
    images = np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=(count, 3, side, side))
    for start in range(0, count, CHUNK):
        part = images[start : start + CHUNK]
        part[:] = generator.integers(0, 256, part.shape, dtype=np.uint8)
    images.flush()
    labels = np.arange(count, dtype=np.int64) % classes
    test = file.with_name("test.npy")
    np.save(test, images[: max(1, count // 100)])
    train, few = (np.load(path, mmap_mode="r") for path in (file, test))
    names = tuple(map(str, range(classes)))
    return ImageData("random", Split(train, labels), Split(few, labels[: len(few)]), names, "random")


def measure(config: icpctl.RunConfig, images: ImageData, device: torch.device, workers: int) -> Row:
    """The second epoch; streamed by so many workers, if any."""
    if workers:
        config = config.altered(data_memory=1e-9)
    trainer = Trainer(config, images, device)
    if isinstance(trainer.train_set, StreamedSplit):
        trainer.train_set.workers = workers
    trainer.model.train()
    try:
        for epoch in range(2):
            waiting = 0.0
            began = ended = time.perf_counter()
            for batch, pictures in enumerate(trainer.epoch_batches(epoch)):
                synchronise(device)
                waiting += time.perf_counter() - ended
                trainer.step(epoch, batch, pictures)
                synchronise(device)
                ended = time.perf_counter()
        return Row(config.steps, workers, ended - began, waiting)
    finally:
        trainer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, nargs="*", default=[0, 5], help="of the perturbation; 0 is the baseline")
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--augmentation", default="crop-randaugment")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", action="store_true", help="the rows as JSON")
    options = parser.parse_args()

    device = choose_device(options.device)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        images = random_images(Path(folder) / "train.npy", options.images, options.side, 100)
        for steps in options.steps:
            config = icpctl.RunConfig(
                model=options.model,
                optimizer="ademamix" if steps else "none",
                steps=steps,
                batch_size=options.batch,
                epochs=2,
                warmup_epochs=0,
                val_fraction=0.0,
                augmentation=options.augmentation,
            )
            rows += [measure(config, images, device, workers) for workers in (0, *options.workers)]
    if options.json:
        print(json.dumps({"machine": machine(device), "command": command(), "rows": [asdict(row) for row in rows]}))
        return
    print(f"# Waiting for batches: {options.model}, {options.images:,} images of {options.side} pixels, "
          f"batch {options.batch}, {options.augmentation}\n")  # fmt: skip
    print(f"{machine(device)}; `{command()}`.\n")
    print(
        table(
            ["step", "images", "epoch, s", "waiting, s", "share"],
            (
                (
                    f"ademamix, T = {row.steps}" if row.steps else "plain",
                    row.images,
                    f"{row.epoch:.1f}",
                    f"{row.waiting:.2f}",
                    f"{row.waiting / row.epoch:.1%}",
                )
                for row in rows
            ),
        )
    )


if __name__ == "__main__":
    main()
