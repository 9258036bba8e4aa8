"""How many operations a step launches, by its parts: on a GPU each is a kernel or more, and tiny ones are most of the time.

    python benchmarks/operations.py > benchmarks/results/operations.md

They are counted on the CPU, below autograd, where each is what torch would launch on a GPU. What only makes a view of a tensor is not counted.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from typing import Any

import torch
from measure import command, machine, table
from step import engine, whole_set
from torch.utils._python_dispatch import TorchDispatchMode

from icpctl.methods.icp import folding, perturbation
from icpctl.models.network import set_precision

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="the rows as JSON")
    options = parser.parse_args()

    set_precision("float32")
    rows = {
        f"{model}, {method}{'' if at_once else ', batch norms folded one by one'}": counts(
            model, method, at_once=at_once
        )
        for model in ("resnet20", "vae")
        for method, at_once in (("none", True), ("ademamix", False), ("ademamix", True))
    }
    if options.json:
        print(json.dumps({"machine": machine(torch.device("cpu")), "rows": rows}))
        return
    print("# The operations of a step\n")
    print(f"{machine(torch.device('cpu'))}; `{command()}`; T = 5.\n")
    shown = ((name, *(row[part] for part in (*PARTS, "the rest")), row.total()) for name, row in rows.items())
    print(table(["step", *PARTS, "the rest", "all"], shown))


if __name__ == "__main__":
    main()
