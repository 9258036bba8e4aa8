"""The time of a step of each method, beside the passes of the network that its row of the catalogue declares.

    python benchmarks/methods.py [--batch 128] [--side 32] [--rounds 10]

Steps of all methods are timed in turn, on the same random images, with all that a step of a run does: normalisation, the method, the
update of the weights. `declared` is the passes over those of a plain step, `measured` the seconds over those of a plain step. ICP's
folded passes (--fast) and those for the gradients of the input alone take less than their share, so that it is measured without the
former too.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from functools import partial

from measure import command, interleaved, machine, random_images, table

from icpctl import models
from icpctl.config import RunConfig
from icpctl.config.catalogue import METHODS, PLAIN, PLAIN_STEP
from icpctl.config.cost import step_passes
from icpctl.models.network import choose_device
from icpctl.training.trainer import Trainer


@dataclasses.dataclass(frozen=True)
class Row:
    """A method."""

    name: str
    passes: float
    declared: float
    measured: float
    milliseconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    device = choose_device(options.device)

    configs: dict[str, RunConfig] = {}
    for method in METHODS:
        settings = {"model": options.model, "method": method, "batch_size": options.batch, "image_size": options.side}
        config = models.complete(RunConfig(**settings, epochs=2, warmup_epochs=0, val_fraction=0.0))
        configs[method] = config
        if method == "icp":
            configs["icp --no-fast"] = config.altered(fast=False)
    images = random_images(2 * options.batch, options.side, 100)
    work = {}
    for name, config in configs.items():
        trainer = Trainer(config, images, device)
        trainer.method.train()
        first, second = trainer.epoch_batches(0)
        trainer.step(0, 0, first)  # after which a method that replays has something to replay
        work[name] = partial(trainer.step, 0, 1, second)
    seconds = interleaved(work, options.rounds, device)
    rows = [
        Row(
            name,
            step_passes(config),
            step_passes(config) / PLAIN_STEP,
            seconds[name] / seconds[PLAIN],
            1e3 * seconds[name],
        )
        for name, config in configs.items()
    ]
    if options.json:
        print(json.dumps([dataclasses.asdict(row) for row in rows]))
        return
    print(machine(device), command(), sep="\n\n", end="\n\n")
    cells = [
        [
            row.name,
            f"{row.passes:.3g}",
            f"{row.declared:.2f}",
            f"{row.measured:.2f}",
            f"{row.measured / row.declared:.2f}",
            f"{row.milliseconds:.0f}",
        ]
        for row in rows
    ]
    print(table(["method", "passes", "declared", "measured", "measured / declared", "ms"], cells))


if __name__ == "__main__":
    main()
