"""What each way of computing a piece of the step gains, side by side.

    python benchmarks/pieces.py --compile > benchmarks/results/pieces.md

The pieces are those of floor.py: a train step, a forward pass in train mode, a pass of the perturbation.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from functools import partial

import torch
from measure import command, interleaved, machine, table
from step import engine, inputs
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torch.nn import functional as F

from icpctl.methods.icp.folding import fold
from icpctl.models.network import choose_device, set_precision


def input_gradient(network: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, part: int | None = None) -> None:
    """The gradient of the input, of so many images at a time."""
    for x_part, y_part in zip(x.split(part or len(x)), y.split(part or len(x)), strict=True):
        x_t = x_part.detach().requires_grad_()
        torch.autograd.grad(F.cross_entropy(network(x_t), y_part), x_t)


def train(model: nn.Module, network: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> None:
    """Forward and backward in train mode."""
    model.zero_grad(set_to_none=True)
    F.cross_entropy(network(x), y).backward()


def forward(model: nn.Module, x: Tensor) -> None:
    """Forward in train mode, without a graph."""
    with torch.no_grad():
        model(x)


def folded(model: nn.Module) -> Callable[[Tensor], Tensor]:
    network = fold(frozen(model))
    assert network is not None
    return network.now()


def frozen(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).eval().requires_grad_(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="*", default=[32, 128])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument(
        "--compile", action="store_true", help="torch.compile too, which takes a minute for each batch size"
    )
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()

    device = choose_device(options.device)
    set_precision("float32")
    columns = []
    for batch in options.batches:
        trainer = engine("resnet20", "none", 0, batch, device)
        last = trainer.model.train()
        x, y = inputs(trainer)
        first = copy.deepcopy(last).to(memory_format=torch.contiguous_format)
        x_first = x.contiguous()
        work: dict[str, Callable[[], object]] = {
            "train step, NCHW": partial(train, first, first, x_first, y),
            "train step, channels last": partial(train, last, last, x, y),
            "forward, NCHW": partial(forward, first, x_first),
            "forward, channels last": partial(forward, last, x),
            "pass, NCHW": partial(input_gradient, frozen(first), x_first, y),
            "pass, channels last": partial(input_gradient, frozen(last), x, y),
            "pass, channels last, folded": partial(input_gradient, folded(last), x, y),
            "the same, 8 images at a time": partial(input_gradient, folded(last), x, y, 8),
        }
        if options.compile:
            work["train step, channels last, compiled"] = partial(train, last, torch.compile(last), x, y)
            compiled = torch.compile(fuse(frozen(last)))  # a copy of it, as what is folded in passing is not compiled
            work["pass, channels last, folded, compiled"] = partial(input_gradient, compiled, x, y)
        columns.append(interleaved(work, options.rounds, device))
    print("# Ways to compute the pieces of a step\n")
    print(f"{machine(device)}; `{command()}`; ResNet-20, medians of {options.rounds} interleaved rounds.\n")
    header = ["ms", *(f"batch {batch}" for batch in options.batches)]
    print(table(header, ([name, *(f"{column[name] * 1e3:.1f}" for column in columns)] for name in columns[0])))


if __name__ == "__main__":
    main()
