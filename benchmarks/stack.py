"""Runs that are trained as one stack against the same runs one after another.

    python benchmarks/stack.py > benchmarks/results/stack.md

First it checks in float64 that each member of a stack takes the step that it takes alone: losses, gradients, weights. Then
every round times, in turn, one step of stacks of N runs and a step of each of N runs by itself, in float32. ResNet-20,
AdEMAMix-ICP; images are random: of 8 pixels as the digits are, and of 32.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

import torch
from measure import command, interleaved, machine, table
from step import TOLERANCE, engine, engine_step, move_statistics, whole_set
from torch import Tensor

from icpctl.models.network import choose_device, set_precision
from icpctl.training.stack import Stack
from icpctl.training.trainer import Trainer


@dataclass(frozen=True)
class Row:
    """Seconds of a step of N runs, stacked and one after another, and of one run."""

    side: int
    runs: int
    stacked: float
    one_by_one: float
    one: float


def trainers(runs: int, side: int, steps: int, batch: int, device: torch.device) -> list[Trainer]:
    """Of runs that differ in their seed."""
    return [engine("resnet20", "ademamix", steps, batch, device, side=side, seed=seed) for seed in range(runs)]


def stack_step(stack: Stack) -> list[Tensor]:
    """A step of every member, on its own batch; the losses."""
    steps = [(0, 1, whole_set(trainer)) for trainer in stack.trainers]
    return [step.loss for step in stack.step(steps)]


def step_each(of: Sequence[Trainer]) -> list[Tensor]:
    """The same, one after another."""
    return [engine_step(trainer) for trainer in of]


def check(side: int, device: torch.device) -> float:
    """The largest relative difference of a member's loss, gradients and weights from those of its run alone, in float64."""
    alone, members = (trainers(3, side, 5, 8, device) for _ in range(2))
    for trainer in (*alone, *members):
        move_statistics(trainer.model)
        trainer.model.double()
        network = trainer.network
        trainer.network = replace(network, mean=network.mean.double(), std=network.std.double())
    losses = zip(stack_step(Stack(members)), step_each(alone), strict=True)
    pairs = list(losses)
    for member, single in zip(members, alone, strict=True):
        for a, b in zip(member.model.parameters(), single.model.parameters(), strict=True):
            assert a.grad is not None
            assert b.grad is not None
            pairs += [(a.grad, b.grad), (a.detach(), b.detach())]
    return max(float((a - b).norm() / b.norm()) for a, b in pairs)


def measure(side: int, counts: Sequence[int], steps: int, batch: int, rounds: int, device: torch.device) -> list[Row]:
    """Every N in the same rounds."""
    work: dict[str, Callable[[], object]] = {"one": partial(step_each, trainers(1, side, steps, batch, device))}
    for runs in counts:
        work[f"stacked {runs}"] = partial(stack_step, Stack(trainers(runs, side, steps, batch, device)))
        work[f"one by one {runs}"] = partial(step_each, trainers(runs, side, steps, batch, device))
    seconds = interleaved(work, rounds, device)
    return [
        Row(side, runs, seconds[f"stacked {runs}"], seconds[f"one by one {runs}"], seconds["one"]) for runs in counts
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--sides", type=int, nargs="+", default=[8, 32], help="of the images")
    parser.add_argument("--steps", type=int, default=5, help="of the perturbation, T")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", action="store_true", help="the rows as JSON")
    options = parser.parse_args()

    device = choose_device(options.device)
    set_precision("float32")
    differences = {f"{side} pixels": check(side, device) for side in options.sides}
    if not max(differences.values()) < TOLERANCE:
        raise SystemExit(f"The members of a stack are not their runs alone: {differences} in float64")
    rows = []
    for side in options.sides:
        rows += measure(side, options.runs, options.steps, options.batch, options.rounds, device)
    if options.json:
        made_with = {"machine": machine(device), "command": command(), "differences": differences}
        print(json.dumps({**made_with, "rows": [asdict(row) for row in rows]}))
        return
    print("# Runs in one stack against one after another\n")
    print(f"{machine(device)}; `{command()}`; medians of {options.rounds} interleaved rounds.\n")
    print(f"ResNet-20, batch {options.batch}, AdEMAMix, T = {options.steps}. In float64 the members of a stack agree with "
          f"their runs alone to {max(differences.values()):.0e} (losses, gradients, weights).\n")  # fmt: skip
    header = ["step of", "stack, ms", "one by one, ms", "stack / one run", "one by one / stack"]
    print(
        table(
            header,
            (
                (
                    f"{row.runs} run{'s' if row.runs > 1 else ''}, {row.side} pixels",
                    f"{row.stacked * 1e3:.1f}",
                    f"{row.one_by_one * 1e3:.1f}",
                    f"{row.stacked / row.one:.2f}",
                    f"{row.one_by_one / row.stacked:.2f}",
                )
                for row in rows
            ),
        )
    )


if __name__ == "__main__":
    main()
