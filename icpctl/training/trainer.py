"""Model, data, device and step of one run: what the loop of the engine drives."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from icpctl import data, tasks
from icpctl.config import RunConfig, option
from icpctl.config.catalogue import METHODS
from icpctl.data.device import DeviceSplit
from icpctl.data.epochs import Plan
from icpctl.data.streaming import StreamedSplit, choose_split
from icpctl.errors import UserError
from icpctl.methods import base as methods
from icpctl.methods.base import Batch, Companion, Data, Loss
from icpctl.methods.evalmode import eval_mode
from icpctl.methods.mixing import mix
from icpctl.methods.taps import tap
from icpctl.models import own, weights
from icpctl.models.network import Network, build_model, keep_freed_memory
from icpctl.models.vae import VAE
from icpctl.seeds import derived_seed
from icpctl.training.distributed import ALONE, Processes
from icpctl.training.graphs import CapturedSteps, CudaGraphs
from icpctl.training.meter import Figures

SIDES = (16, 24, 32, 48, 64, 75, 96, 128, 160, 192, 224, 256, 299, 331, 384, 448, 512)
"""Of images that are tried where a model refuses its own, the smallest first."""
FIT_SHARE, MOST_FIT_IMAGES = 0.1, 5_000
"""Of the training images, how many the fit is measured on: a forward pass of a tenth is 3 % of the passes of a plain epoch."""
MOMENTUM = 0.9  # of SGD with Nesterov's momentum; the strong recipe


@dataclass(frozen=True)
class Images:
    """A whole batch of training images."""

    pixels: Tensor
    """(B, 3, H, W) uint8, augmented."""
    labels: Tensor
    """(B,)"""
    index: Tensor
    """(B,): which of the training images these are, by their places in the training set."""
    companions: Images | None = None
    """Another image for each of these, where the method asks for it."""


class Trainer:
    """Model, data and step of one run.

    Data that do not fit the memory of the device are streamed, which is told to `say`; `close` ends what that started.

    Args:
        config: of the run.
        images: its data set.
        device: where it is trained.
        processes: that train it together.
        say: told how the images are kept.
        stack: how many runs are trained together on this device.
        beside: one of these, whose images this one shares.
    """

    def __init__(
        self,
        config: RunConfig,
        images: data.ImageData,
        device: torch.device,
        processes: Processes = ALONE,
        say: Callable[[str], None] = lambda message: None,
        stack: int = 1,
        beside: Trainer | None = None,
    ) -> None:
        self.config, self.device, self.processes, self.stack = config, device, processes, stack
        if device.type == "cpu":
            keep_freed_memory()
        elif device.index is not None:
            torch.cuda.set_device(device)  # what asks for no device takes the current one
        self.task, images = tasks.build(config, images)
        self.classes, self.fingerprint = images.classes, images.fingerprint
        self.train_set: DeviceSplit
        self.evaluation_sets: dict[str, DeviceSplit]
        if beside is not None and type(beside.train_set) is DeviceSplit:  # one that streams reads for its own run
            self.train_set, self.evaluation_sets = beside.train_set, beside.evaluation_sets
        else:
            self._keep(images, say)

        torch.manual_seed(config.seed)
        self.model = build_model(config, len(self.classes), device)
        if config.weights:
            weights.load(self.model, config.weights, config.weights_hash, len(self.classes), say)
        self.network = Network(self.model, *self.train_set.statistics(), config.precision)
        seen = Data(self.train_set.labels, len(self.classes), self.train_set.shape[1:])
        self.row = METHODS[config.method]
        self.method = methods.build(config, self.model, processes.share(self.model), seen, say).to(device)
        self.optimizer = _model_optimizer(config, self.method.parameters(), device)
        self.captured = self._captured(say)
        self.batch_size = min(config.batch_size, len(self.train_set))
        shape = tuple(self.train_set.shape)
        self.plan = Plan(
            config.seed,
            config.augmentation,
            self.batch_size,
            shape,
            processes.rank,
            processes.size,
            self.row.companion,
            self.train_set.labels.cpu() if self.row.companion == "class" else None,
        )
        self.batches = self.plan.batches

    def _keep(self, images: data.ImageData, say: Callable[[str], None]) -> None:
        """Put the images where they fit."""
        config = self.config
        train_part, val_part = data.split_train(
            images.train.labels, config.train_size, config.val_fraction, images.classes
        )
        fit_images = config.fit_images
        if fit_images is None:
            fit_images = min(MOST_FIT_IMAGES, round(FIT_SHARE * len(train_part)))
        fit_part = data.stratified_part(images.train.labels, train_part, fit_images)
        # Of the training images each run has another copy: an epoch of them is augmented at once.
        number = (1 + self.stack) * len(train_part) + len(fit_part) + len(val_part) + len(images.test.labels)
        needed = number * images.train.images[0].nbytes
        split = choose_split(needed, self.device, config.data_memory, say, self.processes.any)
        self.train_set = split(images.train, self.device, train_part)
        parts = {"fit": fit_part, "val": val_part}
        self.evaluation_sets = {n: split(images.train, self.device, part) for n, part in parts.items() if len(part)}
        self.evaluation_sets["test"] = split(images.test, self.device)
        if isinstance(self.train_set, StreamedSplit):
            self.train_set.workers = max(1, self.train_set.workers // self.stack)

    def _captured(self, say: Callable[[str], None]) -> CapturedSteps | None:
        """Steps as CUDA graphs, where these can be: on one GPU, without a state that is carried over."""
        if (
            not self.config.fast
            or self.device.type != "cuda"
            or self.processes.size > 1
            or self.config.icp_state == "carry"
            or not self.row.captured
        ):
            return None
        return CapturedSteps(self.method, self.optimizer, CudaGraphs(self.device), say)

    def check(self) -> None:
        """Refuse a model that cannot take these images, taps that give no features, metrics that cannot be measured.

        Raises:
            UserError: what the model says of it.
        """
        self.task.check()
        if self.batch_size < 2:
            raise UserError(
                f"There is {len(self.train_set)} image to train on, and batch norm needs two in a batch. Give more images."
            )
        if self.batch_size % self.processes.size:
            raise UserError(
                f"{self.processes.size} processes cannot share a batch of {self.batch_size} images, all that there are to "
                f"train on, equally. Start fewer processes, or lower {option('batch_size')}."
            )
        if self.processes.size > 1:
            self._check_shared()
        x = self.network.normalise(self.train_set[:2])
        if (problem := self._refusal(x)) is None:
            self._check_outputs(x)
            return
        side = "×".join(str(n) for n in x.shape[-2:])
        reason = own.in_words(problem) if own.is_own(self.config.model) else str(problem).rstrip(".!")
        said = f"{self.config.model} cannot be trained on images of {side} pixels: {reason}."
        for fitting in SIDES:
            if self._refusal(x.new_zeros(2, 3, fitting, fitting)) is None:
                raise UserError(f"{said} It takes images of {fitting}: {option('image_size')} {fitting}.") from problem
        if own.is_own(self.config.model) and self._refusal(x, taps=()):
            raise UserError(f"{said} No other size helps. It has to take float32 images (B, 3, H, W).") from problem
        raise UserError(f"{said} No other size helps. Tap other modules, with {option('layers')}.") from problem

    def _check_shared(self) -> None:
        """Refuse what several processes cannot train together."""
        why = self.row.single_process
        if not why and self.method.heads():
            why = "it has parameters beside the model's, which several processes do not share"
        if why:
            raise UserError(
                f"{option('method')} {self.config.method} cannot be trained by several processes, as {why}. Train it in one process."
            )
        if self.config.mix != "none" and isinstance(self.train_set, StreamedSplit):
            raise UserError(
                f"Several processes stream the images, so that none has a whole batch to mix. Leave out {option('mix')}, give "
                f"more memory with {option('data_memory')}, or train in one process."
            )

    def _refusal(self, x: Tensor, taps: Sequence[str] | None = None) -> Exception | None:
        """What the model, or a tap of it, has against such inputs."""
        known = (RuntimeError, AssertionError, ValueError, TypeError)
        try:
            with torch.no_grad(), eval_mode(self.model), tap(self.model, self.method.taps if taps is None else taps):
                self.model(x)
        except Exception as error:
            if isinstance(error, known) or own.is_own(self.config.model):  # the user's code may raise anything
                return error
            raise
        return None

    def _check_outputs(self, x: Tensor) -> None:
        """Refuse a classifier of timm or of the user whose outputs are not one tensor of logits, in training or evaluation."""
        if self.config.model.isidentifier():
            return
        kept = [(buffer, buffer.clone()) for buffer in self.model.buffers()]  # the running statistics
        for mode in ("evaluation", "training"):
            self.model.train(mode == "training")
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                try:
                    output = self.model(x)
                except Exception as error:
                    raise UserError(f"{self.config.model} fails in {mode}: {own.in_words(error)}.") from error
                for buffer, before in kept:
                    buffer.copy_(before)
            logits = (len(x), len(self.classes))
            if isinstance(output, Tensor) and output.shape == logits:
                continue
            found = f"a tensor {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
            raise UserError(
                f"{self.config.model} returned {found} in {mode} for {len(x)} images of {len(self.classes)} classes. A classifier "
                f"returns one tensor of logits, {logits} here."
            )

    def epoch_labels(self, epoch: int) -> Tensor:
        """The labels of all batches of an epoch, in their order."""
        order = self.plan.order(epoch)[: self.batches * self.batch_size]
        return self.train_set.labels[order.to(self.device)]

    def epoch_batches(self, epoch: int, start: int = 0) -> Iterator[Images]:
        """The batches of an epoch, from batch `start` on.

        Raises:
            UserError: images that are streamed cannot be read any more.
        """
        orders = [self.plan.order(epoch), *([self.plan.companions(epoch)] if self.plan.companion else [])]
        indices = [order.to(self.device) for order in orders]
        for batch, pixels in enumerate(self.train_set.batches(self.plan, epoch, start), start):
            rows = self.plan.rows(batch)
            parts = [Images(p, self.train_set.labels[i[rows]], i[rows]) for p, i in zip(pixels, indices, strict=True)]
            yield replace(parts[0], companions=parts[1]) if parts[1:] else parts[0]

    def close(self) -> None:
        """End the processes that stream the images; they start again with the next epoch."""
        self.train_set.close()

    def step(self, epoch: int, step: int, images: Images) -> Figures:
        """One update of the weights for a whole batch."""
        batch = self.batch(epoch, step, images)
        if self.captured is None:
            return self._update(batch)
        rate = self.optimizer.param_groups[0]["lr"]
        scalars = [torch.full((), float(value), device=self.device) for value in (batch.weight, rate)]
        inputs = [batch.x, batch.y, *scalars]
        if isinstance(self.model, VAE):  # a graph cannot draw as many random numbers as a step
            inputs.append(torch.randn(len(batch.x), self.model.latent_dim, device=self.device))

        def update(x: Tensor, y: Tensor, weight: Tensor, lr: Tensor, noise: Tensor | None = None) -> Figures:
            if isinstance(self.model, VAE):
                self.model.noise = noise
            self._set_lr(lr)
            return self._update(replace(batch, x=x, y=y, weight=weight))

        figures = self.captured(self.method.kind(epoch, step), update, *inputs)
        self._set_lr(rate)
        return figures

    def _update(self, batch: Batch) -> Figures:
        """One update of the weights; all of it can be captured."""

        def gradients() -> Loss:
            self.optimizer.zero_grad(set_to_none=True)
            with self.network.autocast():
                loss, log = self.method.objective(batch)
            loss.backward()
            return loss.detach(), log

        return Figures.of(*self.method.update(gradients, partial(self.apply, batch)))

    def batch(self, epoch: int, step: int, images: Images) -> Batch:
        """Begin a step: its random numbers, its learning rate, and this process's part of the batch."""
        x, y = self._inputs(images)
        if self.config.mix != "none":
            generator = np.random.default_rng(derived_seed(self.config.seed, epoch, step + 1, 0, 1))
            x, y = mix(self.config, x, y, len(self.classes), generator)
        x, y = self.processes.part(x), self.processes.part(y)
        companion = None
        if images.companions is not None:
            companion = Companion(*map(self.processes.part, self._inputs(images.companions)))
        # 0 is the epoch's own. Each process draws for its own part of the batch; rank 0 as a single one does.
        torch.manual_seed(derived_seed(self.config.seed, epoch, step + 1, self.processes.rank))
        progress = (epoch + step / self.batches) / self.config.epochs
        factors = {"constant": 1.0, "cosine": 0.5 * (1 + math.cos(math.pi * progress))}
        self._set_lr(self.config.lr * factors[self.config.lr_schedule])
        return Batch(
            x,
            y,
            self.processes.part(images.index),
            self.task.loss,
            epoch,
            step,
            self.method.task_weight(epoch),
            gather=self.processes.whole,
            part=self.processes.part,
            companion=companion,
        )

    def _inputs(self, images: Images) -> tuple[Tensor, Tensor]:
        """The normalised images, and the targets."""
        x = self.network.normalise(images.pixels)
        return x, self.task.targets(x, images.labels)

    def apply(self, batch: Batch, log: dict[str, Any]) -> None:
        """End a step, with the gradients in place: what is recorded of it, and the update of the weights."""
        log["record"] = self.task.record(log.pop("output"), batch.y)
        with self.network.autocast():
            self.method.after(batch, log)
        if self.config.clip_grad_norm:
            nn.utils.clip_grad_norm_(self.method.parameters(), self.config.clip_grad_norm)
        self.optimizer.step()

    def _set_lr(self, lr: float | Tensor) -> None:
        """A tensor in a captured step, which reads it anew each time."""
        capturing = isinstance(lr, Tensor) and lr.is_cuda and torch.cuda.is_current_stream_capturing()
        for group in self.optimizer.param_groups:
            group["lr"] = lr
            if "capturable" in group:  # of AdamW, which warns where it is set and nothing is captured
                group["capturable"] = capturing

    def state(self) -> dict[str, Any]:
        """All that the rest of the run depends on, beside the configuration and the data."""
        return {
            "model": self.model.state_dict(),
            "heads": self.method.heads(),
            "optimizer": self.optimizer.state_dict(),
            "icp_state": self.method.state(),  # its name in version 0.1
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        for name, value in self.method.heads().items():
            value.copy_(state["heads"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.method.restore(state["icp_state"], torch.Size((self.batch_size, *self.train_set.shape[1:])))


def _model_optimizer(
    config: RunConfig, parameters: Iterable[nn.Parameter], device: torch.device
) -> torch.optim.Optimizer:
    match config.model_optimizer:
        case "adamw":
            return torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay, fused=True)
        case "sgd":
            return torch.optim.SGD(
                parameters, lr=config.lr, momentum=MOMENTUM, nesterov=True, weight_decay=config.weight_decay, fused=True
            )
