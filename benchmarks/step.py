"""What a step of the method costs beside a plain step of training, measured side by side in one process.

    python benchmarks/step.py --batch 32 --rounds 12 > benchmarks/results/step.md

Every round times one step of each kind in turn, so that a slow moment of the machine falls on all of them; the ratio
is that of the medians. Images are random: the cost does not depend on them.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from datetime import UTC, datetime

import numpy as np
import torch

import icpctl
from icpctl.data import ImageData, Split
from icpctl.network import choose_device
from icpctl.trainer import Trainer


def random_images(count: int, side: int, classes: int) -> ImageData:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (count, 3, side, side), dtype=np.uint8)
    split = Split(images, np.arange(count, dtype=np.int64) % classes)
    return ImageData("random", split, split, tuple(map(str, range(classes))), "random")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, nargs="*", default=[1, 3, 5, 10])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()

    device = choose_device(options.device)
    images = random_images(options.batch, options.side, 100)
    trainers: dict[str, Trainer] = {}
    for steps in (0, *options.steps):
        config = icpctl.RunConfig(
            model=options.model,
            optimizer="ademamix" if steps else "none",
            steps=steps,
            image_size=options.side,
            batch_size=options.batch,
            epochs=1,
            val_fraction=0.0,
            augmentation="none",
        )
        trainers[f"ademamix, T = {steps}" if steps else "plain"] = Trainer(config, images, device)
    seconds: dict[str, list[float]] = {name: [] for name in trainers}
    for number in range(options.rounds + 2):  # two to warm up
        for name, trainer in trainers.items():
            trainer.model.train()
            batch, targets = trainer.train_set.images, trainer.train_set.labels
            _synchronise(device)
            started = time.perf_counter()
            trainer.step(0, 1, batch, targets)
            _synchronise(device)
            if number >= 2:
                seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    print(f"# The cost of a step: {options.model}, {options.side} pixels, batch {options.batch}\n")
    print(f"{datetime.now(UTC):%Y-%m-%d}; {hardware}, {torch.get_num_threads()} threads, torch {torch.__version__};")
    print(f"`python benchmarks/step.py --model {options.model} --side {options.side} --batch {options.batch} "
          f"--rounds {options.rounds}`; medians of {options.rounds} interleaved rounds.\n")  # fmt: skip
    print("| step | ms | times a plain step |\n| --- | ---: | ---: |")
    for name, median in medians.items():
        print(f"| {name} | {median * 1e3:.1f} | {median / medians['plain']:.2f} |")


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
