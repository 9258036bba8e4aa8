"""Model, data, device and step of one run: what the loop of the engine drives."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from icpctl import data, icp, models
from icpctl.config import RunConfig, option
from icpctl.data.augment import augment
from icpctl.data.device import DeviceSplit, normalise
from icpctl.distill import SelfDistiller, feature_shift_errors, tap, task_weight
from icpctl.errors import UserError
from icpctl.meter import to_floats
from icpctl.tasks import Task
from icpctl.tasks.classification import Classification

EVALUATION_BATCH = 500  # images of 32 pixels; fewer of larger ones
ICP_LOSSES_EVERY = 10  # batches; the loss after the perturbation costs a forward pass
SHIFT_ERROR_IMAGES = 32  # of the first batch of each ICP epoch; float64 is slow
MOMENTUM = 0.9  # of SGD with Nesterov's momentum; the strong recipe


def choose_device(name: str) -> torch.device:
    """The device that --device means.

    Raises:
        UserError: it is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {name}: torch sees {torch.cuda.device_count()} CUDA devices here. Use --device cpu.")
    return device


def set_precision(precision: str) -> None:
    """Float32 arithmetic is IEEE's unless TF32 is asked for; torch's own default lets convolutions use TF32."""
    mode = "tf32" if precision == "tf32" else "ieee"
    torch.backends.cuda.matmul.fp32_precision = mode
    torch.backends.cudnn.conv.fp32_precision = mode  # type: ignore[attr-defined]


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """bfloat16 where it was asked for; else nothing."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def derived_seed(*numbers: int) -> int:
    """A 64-bit seed from several numbers, such as (seed, epoch, batch). Zeros at the end do not count."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


class Trainer:
    """Model, data and step of one run."""

    def __init__(self, config: RunConfig, images: data.ImageData, device: torch.device) -> None:
        self.config, self.device = config, device
        self.classes, self.fingerprint = images.classes, images.fingerprint
        train_part, val_part = data.split_train(images.train.labels, config.train_size, config.val_fraction)
        self.train_set = DeviceSplit(images.train, device, train_part)
        self.mean, self.std = self.train_set.statistics()
        self.evaluation_sets = {"val": DeviceSplit(images.train, device, val_part)} if len(val_part) else {}
        self.evaluation_sets["test"] = DeviceSplit(images.test, device)

        torch.manual_seed(config.seed)
        self.task: Task = Classification(len(self.classes))
        self.model = models.build(config.model, len(self.classes), config.stem)
        self.model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = _model_optimizer(config, self.model.parameters(), device)
        self.distiller = _distiller(config, self.model) if config.optimizer != "none" else None
        self.batch_size = min(config.batch_size, len(self.train_set))
        # The rest of an epoch that does not fill a batch is left out: another one each time, as the order is random.
        self.batches = len(self.train_set) // self.batch_size

    def check_shapes(self) -> None:
        """Refuse a model that cannot take these images, and taps that give no features.

        Raises:
            UserError: what the model says of it.
        """
        if self.batch_size < 2:
            raise UserError(
                f"There is {len(self.train_set)} image to train on, and batch norm needs two in a batch. Give more images."
            )
        x = normalise(self.train_set.images[:2], self.mean, self.std)
        layers = self.config.layers if self.distiller is not None else ()
        try:
            with torch.no_grad(), icp.eval_mode(), tap(self.model, layers):
                self.model(x)
        except (RuntimeError, AssertionError, ValueError, TypeError) as error:
            side = "×".join(str(n) for n in x.shape[-2:])
            raise UserError(
                f"{self.config.model} cannot be trained on images of {side} pixels: {error}. Try another "
                f"{option('image_size')}{', or other ' + option('layers') if layers else ''}."
            ) from error

    def begin_epoch(self, epoch: int) -> tuple[Tensor, Tensor]:
        """The training images of an epoch in their order, augmented (uint8), and their targets."""
        generator = torch.Generator().manual_seed(derived_seed(self.config.seed, epoch))
        order = torch.randperm(len(self.train_set), generator=generator).to(self.device)
        images = augment(self.train_set.images[order], self.config.augmentation, generator)
        return images, self.train_set.labels[order]

    def weight(self, epoch: int) -> float:
        """The task weight a_e; the baseline has nothing but its task."""
        if self.distiller is None:
            return 1.0
        return task_weight(epoch, self.config.warmup_epochs, self.config.epochs)

    def uses_icp(self, epoch: int) -> bool:
        """Whether the method is at work in this epoch."""
        return self.distiller is not None and epoch >= self.config.warmup_epochs

    def step(self, epoch: int, batch: int, images: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """One update of the weights; the loss and the log stay on the device."""
        torch.manual_seed(derived_seed(self.config.seed, epoch, batch + 1))  # 0 is the epoch's own
        x = normalise(images, self.mean, self.std)
        self._set_lr((epoch + batch / self.batches) / self.config.epochs)
        with autocast(self.config.precision, self.device):
            if self.distiller is not None and self.uses_icp(epoch):
                measure = batch % ICP_LOSSES_EVERY == 0
                loss, log = self.distiller(x, targets, self.weight(epoch), self.task.loss, icp_losses=measure)
                x_icp = log.pop("x_icp")
            else:
                output = self.model(x)
                loss = self.task.loss(output, targets)
                log = {"output": output.detach(), "task_loss": loss.detach()}
        if batch == 0 and self.uses_icp(epoch):
            log |= self._shift_errors(x, x_icp)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.config.clip_grad_norm:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_grad_norm)
        self.optimizer.step()
        return loss, log

    def _shift_errors(self, x: Tensor, x_icp: Tensor) -> dict[str, Tensor]:
        x, x_icp = x[:SHIFT_ERROR_IMAGES], x_icp[:SHIFT_ERROR_IMAGES]
        precision = autocast(self.config.precision, self.device)
        errors = feature_shift_errors(self.model, self.config.layers, x, x_icp, precision)
        return {f"feature_shift_error_{i}": error for i, error in enumerate(errors, start=1)}

    def _set_lr(self, progress: float) -> None:
        """`progress` is the share of the run that is done, in [0, 1)."""
        cosine = 0.5 * (1 + math.cos(math.pi * progress))
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * (cosine if self.config.lr_schedule == "cosine" else 1.0)

    def evaluate(self, split: DeviceSplit) -> dict[str, float]:
        """The task's metrics on a split."""
        outputs = predict(self.model, split.images, self.mean, self.std, autocast(self.config.precision, self.device))
        return to_floats(self.task.metrics(outputs, split.labels))

    def state(self) -> dict[str, Any]:
        """All that the rest of the run depends on, beside the configuration and the data."""
        carried = self.distiller.optimizer.state if self.distiller and self.distiller.carry_state else {}
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "icp_state": carried}

    def restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.distiller is not None and self.distiller.carry_state:
            self.distiller.optimizer.state = dict(state["icp_state"])


def predict(model: nn.Module, images: Tensor, mean: Tensor, std: Tensor, precision: torch.autocast) -> Tensor:
    """The outputs of the model in eval mode for uint8 images, batch by batch."""
    size = max(1, EVALUATION_BATCH * 32**2 // max(32**2, images.shape[-2] * images.shape[-1]))
    with torch.no_grad(), icp.eval_mode(), precision:
        return torch.cat([model(normalise(batch, mean, std)) for batch in images.split(size)])


def _model_optimizer(
    config: RunConfig, parameters: Iterable[nn.Parameter], device: torch.device
) -> torch.optim.Optimizer:
    if config.model_optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay, fused=True)
    return torch.optim.SGD(
        parameters, lr=config.lr, momentum=MOMENTUM, nesterov=True, weight_decay=config.weight_decay, fused=True
    )


def _distiller(config: RunConfig, model: nn.Module) -> SelfDistiller:
    return SelfDistiller(
        model,
        config.layers,
        _input_optimizer(config),
        config.steps,
        config.icp_lr,
        config.direction,
        reduction=config.icp_reduction,
        carry_state=config.icp_state == "carry",
        weights=config.layer_weights,
        teacher_statistics=config.teacher_statistics,
        extra_task_grad=config.extra_task_grad,
    )


def _input_optimizer(config: RunConfig) -> icp.SGD:
    beta1, beta2, beta3 = config.beta1, config.beta2, config.beta3
    match config.optimizer:
        case "adam":
            return icp.Adam((beta1, beta2), config.eps)
        case "ademamix":
            return icp.AdEMAMix((beta1, beta2, beta3), config.eps, config.alpha, config.icp_weight_decay)
        case _:
            return icp.SGD()
