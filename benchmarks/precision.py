"""How much of the feature shift is rounding, at each precision, on real CIFAR-100.

    python benchmarks/precision.py > benchmarks/results/precision.md

A ResNet-20 after 4 epochs on 4,096 images (AdamW 1e-3, batch 64); T = 5, a batch of 64 training images, eval mode.
"Shift" is ‖F(x_T) − F(x)‖ / ‖F(x)‖ at the three stages in float64; "error" is ‖ΔF − ΔF₆₄‖ / ‖ΔF₆₄‖. The data set is
looked for where `icpctl train` looks: ICPCTL_DATA_DIR or the cache folder.
"""

from __future__ import annotations

import copy
import platform
from dataclasses import dataclass
from datetime import UTC, datetime

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import icpctl
from icpctl import data
from icpctl.methods.icp.distillation import feature_shift_errors
from icpctl.methods.taps import tap
from icpctl.models.network import autocast, choose_device, set_precision
from icpctl.training.trainer import Trainer

LAYERS = ("layer1", "layer2", "layer3")
PERTURBATIONS = (("adam", 2e-3), ("adam", 3e-4), ("ademamix", 2e-3), ("sgd", 2e-3))


@dataclass(frozen=True)
class Row:
    """One perturbation: losses in float64, shift at each stage, and its error at each precision."""

    optimizer: str
    lr: float
    loss_before: float
    loss_after: float
    shifts: list[float]
    errors: dict[str, list[float]]


def trained_network(
    images: data.ImageData, device: torch.device, epochs: int, train_size: int | None
) -> tuple[nn.Module, Tensor, Tensor]:
    """The network and a normalised batch with its targets."""
    config = icpctl.RunConfig(
        optimizer="none",
        epochs=epochs,
        train_size=train_size,
        val_fraction=0,
        lr=1e-3,
        batch_size=64,
        augmentation="pad-crop-flip",
    )
    trainer = Trainer(config, images, device)
    for epoch in range(config.epochs):
        trainer.model.train()
        for batch, pictures in enumerate(trainer.epoch_batches(epoch)):
            trainer.step(epoch, batch, pictures)
    x = trainer.network.normalise(trainer.train_set[:64])
    return trainer.model.eval(), x, trainer.train_set.labels[:64]


def measure(device: torch.device, images: data.ImageData, epochs: int = 4, train_size: int | None = 4096) -> list[Row]:
    """Every perturbation at every precision that the device has."""
    set_precision("float32")
    model, x, y = trained_network(images, device, epochs, train_size)
    precisions = ("float32", "bf16") if device.type == "cpu" else ("float32", "tf32", "bf16")
    exact = copy.deepcopy(model).double()
    rows = []
    for name, lr in PERTURBATIONS:
        x_icp = icpctl.perturb(x, lambda z: F.cross_entropy(model(z), y), name, lr=lr)
        stages = []
        losses = []
        for value in (x.double(), x_icp.double()):
            with torch.no_grad(), tap(exact, LAYERS) as features:
                losses.append(float(F.cross_entropy(exact(value), y)))
            stages.append(features)
        errors = {}
        for precision in precisions:
            set_precision(precision)
            with autocast(precision, device):
                measured = feature_shift_errors(model, LAYERS, x, x_icp)
            errors[precision] = [float(error) for error in measured]
        set_precision("float32")
        shifts = [float((moved - stage).norm() / stage.norm()) for stage, moved in zip(*stages, strict=True)]
        rows.append(Row(name, lr, losses[0], losses[1], shifts, errors))
    return rows


def main() -> None:
    device = choose_device("auto")
    rows = measure(device, data.load("cifar100"))
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    print("# The feature shift and its error by rounding\n")
    print(f"{datetime.now(UTC):%Y-%m-%d}; {hardware}, torch {torch.__version__}; `python benchmarks/precision.py`.\n")
    precisions = list(rows[0].errors)
    print("| perturbation | loss before → after | shift, stages 1–3 |", *(f"error in {p} |" for p in precisions))
    print("| --- | --- | --- |", *("--- |" for _ in precisions))
    for row in rows:
        errors = (f"{', '.join(f'{e:.1e}' for e in row.errors[p])} |" for p in precisions)
        shifts = ", ".join(f"{s:.1e}" for s in row.shifts)
        print(f"| {row.optimizer}, η {row.lr:g} | {row.loss_before:.4f} → {row.loss_after:.4f} | {shifts} |", *errors)


if __name__ == "__main__":
    main()
