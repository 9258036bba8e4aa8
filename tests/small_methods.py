"""A small network in float64 with a method at work on it, and the terms of losses as their formulas say, one number at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from measure import random_images
from torch import Tensor, nn

from icpctl.config import RunConfig
from icpctl.methods import base
from icpctl.methods.base import Batch, Companion, Data, Method
from icpctl.methods.evalmode import eval_mode
from icpctl.tasks.classification import Classification
from icpctl.training.meter import Figures
from icpctl.training.trainer import Images, Trainer

CLASSES, SIDE, SIZE, EPOCHS = 5, 6, 6, 4
STAGES = ("stage1", "stage2")


class SmallNet(nn.Module):
    """(B, 3, H, W) → (B, K): two convolutions with batch norm, smooth all through."""

    stages = STAGES

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        self.stage1 = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Tanh())
        self.stage2 = nn.Sequential(nn.Conv2d(4, 6, 3, 2, padding=1), nn.BatchNorm2d(6), nn.Tanh())
        self.fc = nn.Linear(6, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.stage2(self.stage1(x)).mean(dim=(2, 3)))  # type: ignore[no-any-return]

    def features(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The two stages' and the logits."""
        first = self.stage1(x)
        second = self.stage2(first)
        return first, second, self.fc(second.mean(dim=(2, 3)))


def network(seed: int = 0) -> SmallNet:
    """In train mode, with statistics that are not those of the start."""
    torch.manual_seed(seed)
    model = SmallNet().double()
    with torch.no_grad():
        model(torch.randn(16, 3, SIDE, SIDE, dtype=torch.float64))
        model.fc.weight *= 4  # predictions that are not all alike
    return model


def images(seed: int, size: int = SIZE) -> tuple[Tensor, Tensor]:
    """Inputs and labels."""
    generator = torch.Generator().manual_seed(100 + seed)
    x = torch.randn(size, 3, SIDE, SIDE, generator=generator, dtype=torch.float64)
    return x, torch.randint(CLASSES, (size,), generator=generator)


def batch(
    seed: int = 0, size: int = SIZE, epoch: int = 1, *, smoothing: float = 0.0, other_labels: bool = False
) -> Batch:
    """A batch with companions, of the same labels or others; its images are the first of the training images."""
    (x, y), (x2, y2) = images(seed, size), images(seed + 1000, size)
    return Batch(
        x,
        y,
        torch.arange(size),
        Classification(CLASSES, smoothing).loss,
        epoch,
        0,
        companion=Companion(x2, y2 if other_labels else y),
    )


def method(name: str, model: nn.Module, labels: Tensor | None = None, **settings: Any) -> Method:
    """A method at work on a model, in float64 with all that it adds."""
    values = {"dataset": "digits", "epochs": EPOCHS, "layers": STAGES, "augmentation": "pad-crop-flip"}
    config = RunConfig(**{**values, "method": name, **settings})
    data = Data(
        torch.zeros(SIZE, dtype=torch.int64) if labels is None else labels, CLASSES, torch.Size((3, SIDE, SIDE))
    )
    return base.build(config, model, model, data, lambda message: None).double().train()


def trainer(name: str, count: int = 24, classes: int = 3, **settings: Any) -> Trainer:
    """A run of the small network on random images, at its start."""
    values = {"model": "small_methods:SmallNet", "layers": STAGES, "dataset": "digits", "epochs": EPOCHS}
    values |= {
        "batch_size": 4,
        "val_fraction": 0,
        "augmentation": "pad-crop-flip",
        "lr": 0.05,
        "model_optimizer": "sgd",
    }
    config = RunConfig(**{**values, "method": name, **settings})
    return Trainer(config, random_images(count, 8, classes), torch.device("cpu"))


def steps(run: Trainer, epochs: Sequence[int]) -> list[tuple[int, int, Images, Tensor, dict[str, Any]]]:
    """All steps of some epochs: epoch, step, images, loss and log."""
    taken = []
    for epoch in epochs:
        for step, batched in enumerate(run.epoch_batches(epoch)):
            taken.append((epoch, step, batched, *logged(run.step(epoch, step, batched))))
    return taken


def logged(step: Figures) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a step and its log."""
    return step.loss, {**step.log, "record": step.record}


class Given:
    """In the place of a generator: its first number decides whether a batch is mixed, and the others are these."""

    def __init__(self, share: float, order: list[int], centre: tuple[int, int] = (0, 0), chance: float = 0.0) -> None:
        self.share, self.order, self.centre, self.chance = share, order, iter(centre), chance
        self.asked: list[tuple[float, float]] = []

    def random(self) -> float:
        return self.chance

    def beta(self, a: float, b: float) -> float:
        self.asked.append((a, b))
        return self.share

    def permutation(self, count: int) -> np.ndarray[Any, Any]:
        assert count == len(self.order)
        return np.array(self.order)

    def integers(self, side: int) -> int:
        return next(self.centre)


# ── terms, one number at a time


def softmax(logits: Tensor, temperature: float = 1.0) -> list[list[Tensor]]:
    """p_k = exp(z_k/τ) / Σ_j exp(z_j/τ) of each image."""
    rows = []
    for row in logits:
        powers = [(z / temperature).exp() for z in row]
        total = powers[0]
        for power in powers[1:]:
            total = total + power
        rows.append([power / total for power in powers])
    return rows


def cross_entropy(
    logits: Tensor, targets: Sequence[int] | Tensor | Sequence[Sequence[Any]], temperature: float = 1.0
) -> Tensor:
    """The mean over the images of −Σ_k t_k·log p_k; of one class each where the targets are integers."""
    total = torch.zeros((), dtype=torch.float64)
    for i, predicted in enumerate(softmax(logits, temperature)):
        target: Any = targets[i]
        shares = target if isinstance(target, (list, tuple)) or getattr(target, "dim", int)() else None
        for k, p in enumerate(predicted):
            share = shares[k] if shares is not None else float(k == int(target))
            total = total - share * p.log()
    return total / len(logits)


def divergence(target: Tensor, predicted: Tensor, temperature: float = 1.0) -> Tensor:
    """The mean over the images of Σ_k a_k·log(a_k/b_k), for a of `target`, into which no gradient goes, and b of `predicted`."""
    total = torch.zeros((), dtype=torch.float64)
    pairs = zip(softmax(target.detach(), temperature), softmax(predicted, temperature), strict=True)
    for a, b in pairs:
        for share, p in zip(a, b, strict=True):
            total = total + share * (share.log() - p.log())
    return total / len(target)


# ── both ways


def gradients(module: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """Of a loss with respect to each parameter of a module, by its name; zeros where there is none."""
    names, parameters = zip(*module.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    pairs = zip(names, parameters, found, strict=True)
    return {name: torch.zeros_like(parameter) if g is None else g for name, parameter, g in pairs}


def assert_equal(found: Any, expected: Any, tolerance: float = 1e-9) -> None:
    """Equal up to the rounding of float64."""
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=1e-12)


def assert_as_defined(at_work: Method, given: Batch, naive: Callable[[Any, Batch], Tensor]) -> dict[str, Any]:
    """The loss of a method, its gradients and the buffers that it leaves are those of its definition; gives the log.

    Args:
        at_work: the method.
        given: the batch.
        naive: the loss by its definition, for a copy of the method.
    """
    other = copy.deepcopy(at_work)
    other.__dict__["trained"] = other.model
    state = torch.get_rng_state()
    expected = naive(other, given)
    torch.set_rng_state(state)
    loss, log = at_work.objective(given)
    assert loss.dtype == torch.float64
    assert_equal(loss, expected)
    assert_equal(gradients(at_work, loss), gradients(other, expected))
    assert_equal(dict(at_work.named_buffers()), dict(other.named_buffers()))
    assert not any(isinstance(value, Tensor) and value.requires_grad for value in log.values())
    return log


def evaluated(model: nn.Module, x: Tensor) -> Tensor:
    """The logits in eval mode."""
    with torch.no_grad(), eval_mode(model):
        logits: Tensor = model(x)
    return logits
