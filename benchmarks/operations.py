"""How many operations a step launches, by its parts: on a GPU each is a kernel or more, and tiny ones are most of the time.

    python benchmarks/operations.py > benchmarks/results/operations.md

They are counted on the CPU, below autograd, where each is what torch would launch on a GPU. What only makes a view of a tensor is not counted.
With a CUDA graph a step launches the graph, and beside it what brings the inputs to their places and takes the figures from theirs:
these are counted with a graph that computes nothing.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from measure import command, machine, table
from step import engine, whole_set
from torch.utils._python_dispatch import TorchDispatchMode

from icpctl.methods.icp import folding, perturbation
from icpctl.models.network import set_precision
from icpctl.training.graphs import CapturedSteps
from icpctl.training.meter import Meter

MODELS, METHODS = ("resnet20", "vae"), ("none", "ademamix")
PARTS = {"folding": (folding._Folding, "fold_again"), "input optimizer": (perturbation.AdEMAMix, "__call__")}
"""The parts that are counted apart, by the methods that they are."""


class Counted(TorchDispatchMode):
    """Counts operations by the part that they belong to."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.part = "the rest"
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if not func.is_view and "empty" not in func.__name__ and "detach" not in func.__name__:
            self.counts[self.part] += 1
        return made


def counts(model: str, method: str, *, at_once: bool) -> Counter[str]:
    """The operations of a step; `at_once`: with all batch norms folded together, not each where it is met."""
    trainer = engine(model, method, 5, 4, torch.device("cpu"))
    trainer.model.train()
    counted, originals = Counted(), {part: getattr(*place) for part, place in PARTS.items()}

    def apart(part: str) -> Any:
        def method(*given: Any) -> Any:
            outside, counted.part = counted.part, part
            try:
                return originals[part](*given)
            finally:
                counted.part = outside

        return method

    try:
        for part, place in PARTS.items():
            setattr(*place, apart(part))
        if not at_once:
            folding._Folding.fold_again = lambda self: self.weights.clear()  # type: ignore[method-assign]
        for _ in range(2):  # the first one is tried both ways
            trainer.step(0, 1, whole_set(trainer))
        with counted:
            trainer.step(0, 1, whole_set(trainer))
    finally:
        for part, place in PARTS.items():
            setattr(*place, originals[part])
    return counted.counts


class Unchecked(CapturedSteps):
    """Takes each graph as it is."""

    def compare(self, *given: Any) -> tuple[str, float]:
        return "", 0.0


def beside_the_graph(model: str, method: str) -> int:
    """The operations of a step whose graph is in use, and of its place in the meter."""
    trainer = engine(model, method, 5, 4, torch.device("cpu"))
    trainer.model.train()

    def capture(function: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        return function(), lambda: None

    trainer.captured = Unchecked(trainer.method, trainer.optimizer, capture, print)
    images, meter, counted = whole_set(trainer), Meter(), Counted()
    for _ in range(CapturedSteps.BEFORE_USE + 1):
        meter.add(trainer.step(0, 1, images))
    with counted:
        meter.add(trainer.step(0, 1, images))
    return counted.counts.total()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="the rows as JSON")
    options = parser.parse_args()

    set_precision("float32")
    rows = {
        f"{model}, {method}{'' if at_once else ', batch norms folded one by one'}": counts(
            model, method, at_once=at_once
        )
        for model in MODELS
        for method, at_once in (("none", True), ("ademamix", False), ("ademamix", True))
    }
    beside = {f"{model}, {method}": beside_the_graph(model, method) for model in MODELS for method in METHODS}
    if options.json:
        print(json.dumps({"machine": machine(torch.device("cpu")), "rows": rows, "beside the graph": beside}))
        return
    print("# The operations of a step\n")
    print(f"{machine(torch.device('cpu'))}; `{command()}`; T = 5.\n")
    shown = (
        (name, *(row[part] for part in (*PARTS, "the rest")), row.total(), beside.get(name, ""))
        for name, row in rows.items()
    )
    print(table(["step", *PARTS, "the rest", "all", "with a CUDA graph, beside it"], shown))


if __name__ == "__main__":
    main()
