"""A step of the engine against the authors' procedure (reference.py) and the least work (floor.py), side by side.

    python benchmarks/step.py > benchmarks/results/step.md

First it checks in float64 that the three compute the same: perturbed input, losses, gradients of the parameters. Then
every round times one step of each kind in turn, in float32, so that a slow moment of the machine falls on all of them; the
ratios are of medians. Images are random: the cost does not depend on them.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial

import torch
from floor import Floor
from measure import command, interleaved, machine, matrix_product, random_images, table, warm_up
from reference import Reference
from torch import Tensor, nn
from torch.profiler import profile
from torch.utils.flop_counter import FlopCounterMode

import icpctl
from icpctl.methods.icp.method import ICP
from icpctl.models.network import choose_device, set_precision
from icpctl.training.graphs import CudaGraphs
from icpctl.training.trainer import Images, Trainer

TASK_WEIGHT = 0.7
ICP_LR = 2e-3
TOLERANCE = 1e-9
"""Of ‖a − b‖ / ‖b‖ in float64; Adam divides by √v, which magnifies rounding where gradients are tiny."""


@dataclass(frozen=True)
class Row:
    """The median seconds of one setting, and what they come to."""

    model: str
    optimizer: str
    batch: int
    steps: int
    engine: float
    reference: float
    reference_without_extras: float
    """Without the clean pass, the garbage collection and the flush."""
    reference_without_collection: float
    """Without the garbage collection and the flush alone."""
    floor: float
    floor_with_features: float
    """The same, with the feature loss."""
    plain: float
    share: float
    """Of the rate of the machine's own matrix product."""


def engine(
    model: str,
    optimizer: str,
    steps: int,
    batch: int,
    device: torch.device,
    side: int | None = None,
    stem: str = "imagenet",
    seed: int = 0,
) -> Trainer:
    """The engine of a run with the paper's recipe, on one batch of random images; of 64 pixels for the VAE, else of 32."""
    side = side or (64 if model == "vae" else 32)
    config = icpctl.RunConfig(
        model=model,
        optimizer=optimizer,
        steps=steps,
        icp_lr=ICP_LR,
        image_size=side,
        stem=stem,
        seed=seed,
        batch_size=batch,
        epochs=1,
        val_fraction=0.0,
        augmentation="none",
    )
    return Trainer(config, random_images(batch, side, 100), device)


def inputs(trainer: Trainer) -> tuple[Tensor, Tensor]:
    """The normalised batch, and its targets."""
    x = trainer.network.normalise(trainer.train_set.images)
    return x, trainer.task.targets(x, trainer.train_set.labels)


def reference(trainer: Trainer, collect: bool = True, clean_pass: bool = True) -> tuple[Reference, Tensor, Tensor]:
    """The authors' procedure with the engine's weights and batch, in NCHW."""
    x, y = (each.contiguous() for each in inputs(trainer))
    return Reference.of(trainer, collect, clean_pass), x, y


def check(model: str, optimizer: str, steps: int, batch: int, device: torch.device) -> float:
    """The largest relative difference between the three in float64, of x_T − x, the losses and the gradients."""
    trainer = engine(model, optimizer, steps, batch, device)
    assert isinstance(trainer.method, ICP)
    distiller = trainer.method.distiller
    move_statistics(trainer.model)
    trainer.model.double().train()
    x, y = (each.double() if each.is_floating_point() else each for each in inputs(trainer))
    if model == "vae":
        y = x
    peer, _, _ = reference(trainer)
    least = Floor(copy.deepcopy(trainer.model), trainer.task.loss, x, y)

    def of_engine() -> tuple[Tensor, Tensor, Tensor]:
        loss, log = distiller(x, y, TASK_WEIGHT, trainer.task.loss)
        loss.backward()
        return log["x_icp"], log["feature_loss"], log["task_loss"]

    results = []
    for network, backward in (
        (trainer.model, of_engine),
        (peer.model, partial(peer.backward, x.contiguous(), y.contiguous(), TASK_WEIGHT)),
        (least.model, partial(least.backward, trainer.config.layers, optimizer, steps, ICP_LR, TASK_WEIGHT)),
    ):
        torch.manual_seed(1)
        x_icp, feature_loss, task_loss = backward()
        gradient = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
        results.append((x_icp - x, feature_loss.detach(), task_loss.detach(), gradient))
    mine, *others = results
    # SGD moves a VAE's input and its features by 1e-10 of themselves, of which float64 keeps six digits.
    least_size = (float(1e-6 * x.norm()), float(1e-9 * mine[2]), 0.0, 0.0)
    return max(
        float((a - b).norm() / b.norm().clamp(min=size))
        for other in others
        for a, b, size in zip(mine, other, least_size, strict=True)
    )


def move_statistics(model: nn.Module) -> None:
    """Running statistics and scales as of a trained network: fresh ones fold to nothing."""
    torch.manual_seed(2)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)


def measure(model: str, optimizer: str, steps: int, batch: int, rounds: int, device: torch.device) -> Row:
    """One setting; nothing else is alive meanwhile, as the reference's garbage collection would look through it."""
    plain, trainer = (engine(model, name, t, batch, device) for name, t in (("none", 0), (optimizer, steps)))
    least = Floor(copy.deepcopy(plain.model), plain.task.loss, *inputs(plain))
    pieces = {
        "train": least.train_step,
        "distilling": least.distilling_step(trainer.config.layers, TASK_WEIGHT),
        "pass": least.perturbation_pass,
        "teacher": least.teacher_pass,
    }
    product, of_product = matrix_product(device)
    work: dict[str, Callable[[], object]] = {
        "product": product,
        "plain": partial(engine_step, plain),
        "engine": partial(engine_step, trainer),
        **{name: _captured(piece) if device.type == "cuda" else piece for name, piece in pieces.items()},
    }
    kinds = {"reference": (True, True), "no collection": (False, True), "bare reference": (False, False)}
    for name, (collect, clean_pass) in kinds.items():
        peer, x, y = reference(trainer, collect, clean_pass)
        work[name] = partial(peer.step, x, y, TASK_WEIGHT)
    for each in (plain, trainer):
        each.model.train()
    seconds = interleaved(work, rounds, device)
    train, each_pass, teacher = _operations(least)
    return Row(
        model,
        optimizer,
        batch,
        steps,
        seconds["engine"],
        seconds["reference"],
        seconds["bare reference"],
        seconds["no collection"],
        seconds["train"] + steps * seconds["pass"] + seconds["teacher"],
        seconds["distilling"] + steps * seconds["pass"] + seconds["teacher"],
        seconds["plain"],
        (train + steps * each_pass + teacher) / seconds["engine"] / (of_product / seconds["product"]),
    )


def _captured(piece: Callable[[], None]) -> Callable[[], None]:
    """The same as one CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            piece()
    torch.cuda.current_stream().wait_stream(stream)
    return CudaGraphs(torch.device("cuda", torch.cuda.current_device()))(piece)[1]


def _operations(least: Floor) -> tuple[int, int, int]:
    """Floating-point operations of a train step, a pass of the perturbation, and the teacher's pass."""

    def perturbation_pass() -> None:  # of the network that is not folded: the counter's hooks keep it from being folded
        x = least.x.clone().requires_grad_()
        least.criterion(least.model(x), least.y).backward(inputs=[x])

    counts = []
    for work in (least.train_step, perturbation_pass, least.teacher_pass):
        with FlopCounterMode(display=False) as counter:
            work()
        counts.append(counter.get_total_flops())
    return counts[0], counts[1], counts[2]


def profiled(trainer: Trainer) -> str:
    """The operations that a step spends most time in, as torch's profiler has it."""
    trainer.model.train()
    for _ in range(warm_up(trainer.device)):
        engine_step(trainer)
    with profile() as result:
        engine_step(trainer)
    most = "self_device_time_total" if trainer.device.type == "cuda" else "self_cpu_time_total"
    return str(result.key_averages().table(sort_by=most, row_limit=12, max_name_column_width=40))


def whole_set(trainer: Trainer) -> Images:
    """All training images as one batch, as they are."""
    split = trainer.train_set
    return Images(split.images, split.labels, torch.arange(len(split), device=trainer.device))


def engine_step(trainer: Trainer) -> Tensor:
    """A step on the engine's batch, not one of the few that also measure the loss after the perturbation; its loss."""
    return trainer.step(0, 1, whole_set(trainer)).loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=["resnet20", "vae"])
    parser.add_argument("--batches", type=int, nargs="*", default=[32, 128])
    parser.add_argument("--steps", type=int, nargs="*", default=[1, 3, 5, 10])
    parser.add_argument(
        "--optimizers", nargs="*", default=["sgd", "adam", "ademamix"], help="at T = 5; others: the last"
    )
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", action="store_true", help="the rows as JSON")
    parser.add_argument(
        "--profile", action="store_true", help="instead: where the time of each T at each batch size goes"
    )
    options = parser.parse_args()

    device = choose_device(options.device)
    set_precision("float32")
    if options.profile:
        for model, batch, steps in itertools.product(options.models, options.batches, options.steps):
            print(f"{model}, batch {batch}, {options.optimizers[-1]}, T = {steps}; {machine(device)}\n")
            print(profiled(engine(model, options.optimizers[-1], steps, batch, device)))
        return
    rows, checks = [], {}
    for model in options.models:
        for optimizer in options.optimizers:
            checks[f"{model}, {optimizer}"] = difference = check(model, optimizer, 5, 8, device)
            if not difference < TOLERANCE:
                raise SystemExit(
                    f"{model}, {optimizer}: the three do not compute the same: {difference:.1e} in float64"
                )
        for batch in options.batches:
            *others, last = options.optimizers
            settings = [(last, steps) for steps in options.steps] + [(other, 5) for other in others]
            rows += [measure(model, optimizer, t, batch, options.rounds, device) for optimizer, t in settings]
    if options.json:
        print(json.dumps({"machine": machine(device), "differences": checks, "rows": [asdict(row) for row in rows]}))
        return
    print("# A step: engine, authors' procedure, least work\n")
    print(f"{machine(device)}; `{command()}`; medians of {options.rounds} interleaved rounds.\n")
    print(f"In float64 the three agree to {max(checks.values()):.0e} (x_T − x, losses, gradients; T = 5).\n")
    header = ["step", "plain, ms", "engine, ms", "times plain", "reference, ms", "reference / engine"]
    header += [
        "without its collection / engine",
        "bare reference / engine",
        "engine / floor",
        "engine / floor with the feature loss",
        "share of matrix-product rate",
    ]
    print(
        table(
            header,
            (
                (
                    f"{row.model}, batch {row.batch}, {row.optimizer}, T = {row.steps}",
                    f"{row.plain * 1e3:.1f}",
                    f"{row.engine * 1e3:.1f}",
                    f"{row.engine / row.plain:.2f}",
                    f"{row.reference * 1e3:.1f}",
                    f"{row.reference / row.engine:.2f}",
                    f"{row.reference_without_collection / row.engine:.2f}",
                    f"{row.reference_without_extras / row.engine:.2f}",
                    f"{row.engine / row.floor:.3f}",
                    f"{row.engine / row.floor_with_features:.3f}",
                    f"{row.share:.0%}",
                )
                for row in rows
            ),
        )
    )


if __name__ == "__main__":
    main()
