"""Model, data, device and step of one run: what the loop of the engine drives."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from icpctl import data, tasks
from icpctl.config import RunConfig, option
from icpctl.data.device import DeviceSplit
from icpctl.data.epochs import Plan
from icpctl.data.streaming import StreamedSplit, choose_split
from icpctl.errors import UserError
from icpctl.methods.icp import perturbation as icp
from icpctl.methods.icp.distillation import SelfDistiller, feature_shift_errors, task_weight
from icpctl.methods.taps import tap
from icpctl.models.network import Network, build_model, keep_freed_memory
from icpctl.seeds import derived_seed
from icpctl.training.distributed import ALONE, Processes
from icpctl.training.graphs import CapturedSteps, cuda_graph

ICP_LOSSES_EVERY = 10  # batches; the loss after the perturbation costs a forward pass
SHIFT_ERROR_IMAGES = 32  # of the first batch of each ICP epoch; float64 is slow
SIDES = (16, 24, 32, 48, 64, 75, 96, 128, 160, 192, 224, 256, 299, 331, 384, 448, 512)
"""Of images that are tried where a model refuses its own, the smallest first."""
MOMENTUM = 0.9  # of SGD with Nesterov's momentum; the strong recipe


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
        self.network = Network(self.model, *self.train_set.statistics(), config.precision)
        self.optimizer = _model_optimizer(config, self.model.parameters(), device)
        self.trained = processes.share(self.model)
        self.distiller = make_distiller(config, self.trained) if config.optimizer != "none" else None
        if self.distiller is not None and self.distiller.folded is not None:
            self.distiller.folded.say = say
        self.captured = self._captured(say)
        self.batch_size = min(config.batch_size, len(self.train_set))
        shape = tuple(self.train_set.shape)
        self.plan = Plan(config.seed, config.augmentation, self.batch_size, shape, processes.rank, processes.size)
        self.batches = self.plan.batches

    def _keep(self, images: data.ImageData, say: Callable[[str], None]) -> None:
        """Put the images where they fit."""
        config = self.config
        train_part, val_part = data.split_train(
            images.train.labels, config.train_size, config.val_fraction, images.classes
        )
        # Of the training images each run has another copy: an epoch of them is augmented at once.
        image = images.train.images[0].nbytes
        needed = ((1 + self.stack) * len(train_part) + len(val_part) + len(images.test.labels)) * image
        split = choose_split(needed, self.device, config.data_memory, say, self.processes.any)
        self.train_set = split(images.train, self.device, train_part)
        self.evaluation_sets = {"val": split(images.train, self.device, val_part)} if len(val_part) else {}
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
        ):
            return None
        return CapturedSteps(self.model, cuda_graph, say)

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
        x = self.network.normalise(self.train_set[:2])
        if (problem := self._refusal(x)) is None:
            return
        side = "×".join(str(n) for n in x.shape[-2:])
        said = f"{self.config.model} cannot be trained on images of {side} pixels: {str(problem).rstrip('.!')}."
        for fitting in SIDES:
            if self._refusal(x.new_zeros(2, 3, fitting, fitting)) is None:
                raise UserError(f"{said} It takes images of {fitting}: {option('image_size')} {fitting}.") from problem
        raise UserError(f"{said} No other size helps. Tap other modules, with {option('layers')}.") from problem

    def _refusal(self, x: Tensor) -> Exception | None:
        """What the model, or a tap of it, has against such inputs."""
        layers = self.config.layers if self.distiller is not None else ()
        try:
            with torch.no_grad(), icp.eval_mode(self.model), tap(self.model, layers):
                self.model(x)
        except (RuntimeError, AssertionError, ValueError, TypeError) as error:
            return error
        return None

    def epoch_labels(self, epoch: int) -> Tensor:
        """The labels of all batches of an epoch, in their order."""
        order = self.plan.order(epoch)[: self.batches * self.batch_size]
        return self.train_set.labels[order.to(self.device)]

    def epoch_batches(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The images, augmented (uint8), and the labels of each batch of an epoch, from batch `start` on.

        Raises:
            UserError: images that are streamed cannot be read any more.
        """
        labels = self.epoch_labels(epoch)
        for batch, images in enumerate(self.train_set.batches(self.plan, epoch, start), start):
            yield images, labels[self.plan.rows(batch)]

    def close(self) -> None:
        """End the processes that stream the images; they start again with the next epoch."""
        self.train_set.close()

    def weight(self, epoch: int) -> float:
        """The task weight a_e; the baseline has nothing but its task."""
        if self.distiller is None:
            return 1.0
        return task_weight(epoch, self.config.warmup_epochs, self.config.epochs)

    def uses_icp(self, epoch: int) -> bool:
        """Whether the method is at work in this epoch."""
        return self.distiller is not None and epoch >= self.config.warmup_epochs

    def step(self, epoch: int, batch: int, images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """One update of the weights for a whole batch; the loss and the log stay on the device."""
        x, y = self.inputs(epoch, batch, images, labels)
        icp, measure = kind = self.kind(epoch, batch)

        def compute(x: Tensor, y: Tensor, weight: float | Tensor) -> tuple[Tensor, dict[str, Any]]:
            self.optimizer.zero_grad(set_to_none=True)
            with self.network.autocast():
                loss, log = self.objective(icp, measure, x, y, weight)
            loss.backward()
            return loss.detach(), log

        weight = self.weight(epoch)
        if self.captured is None:
            loss, log = compute(x, y, weight)
        else:
            loss, log = self.captured(kind, compute, x, y, torch.full((), weight, device=self.device))
        return loss, self.update(epoch, batch, x, y, log)

    def inputs(self, epoch: int, batch: int, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Begin a step: its random numbers, its learning rate; this process's inputs (B, 3, H, W) and targets."""
        images, labels = self.processes.part(images), self.processes.part(labels)
        # 0 is the epoch's own. Each process draws for its own part of the batch; rank 0 as a single one does.
        torch.manual_seed(derived_seed(self.config.seed, epoch, batch + 1, self.processes.rank))
        self._set_lr((epoch + batch / self.batches) / self.config.epochs)
        x = self.network.normalise(images)
        return x, self.task.targets(x, labels)

    def kind(self, epoch: int, batch: int) -> tuple[bool, bool]:
        """Whether the method is at work in a step, and whether the loss after the perturbation is measured."""
        icp = self.uses_icp(epoch)
        return icp, icp and batch % ICP_LOSSES_EVERY == 0

    def objective(
        self, icp: bool, measure: bool, x: Tensor, y: Tensor, weight: float | Tensor
    ) -> tuple[Tensor, dict[str, Any]]:
        """The loss of a step of this `kind`, with its graph, and the log: `output`, scalars and, of the method, `x_icp`."""
        if self.distiller is not None and icp:
            return self.distiller(x, y, weight, self.task.loss, icp_losses=measure)
        output = self.trained(x)
        loss = self.task.loss(output, y)
        return loss, {"output": tree_map_only(Tensor, Tensor.detach, output), "task_loss": loss.detach()}

    def update(self, epoch: int, batch: int, x: Tensor, y: Tensor, log: dict[str, Any]) -> dict[str, Tensor]:
        """End a step, with the gradients in place: what is recorded of it, and the update of the weights."""
        log["record"] = self.task.record(log.pop("output"), y)
        x_icp = log.pop("x_icp", None)
        if batch == 0 and x_icp is not None:
            log |= self._shift_errors(x, x_icp)
        if self.config.clip_grad_norm:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_grad_norm)
        self.optimizer.step()
        return log

    def _shift_errors(self, x: Tensor, x_icp: Tensor) -> dict[str, Tensor]:
        x, x_icp = (self.processes.whole(part)[:SHIFT_ERROR_IMAGES] for part in (x, x_icp))
        errors = feature_shift_errors(self.model, self.config.layers, x, x_icp, self.network.autocast())
        return {f"feature_shift_error_{i}": error for i, error in enumerate(errors, start=1)}

    def _set_lr(self, progress: float) -> None:
        """`progress` is the share of the run that is done, in [0, 1)."""
        cosine = 0.5 * (1 + math.cos(math.pi * progress))
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * (cosine if self.config.lr_schedule == "cosine" else 1.0)

    def state(self) -> dict[str, Any]:
        """All that the rest of the run depends on, beside the configuration and the data."""
        carried = self.distiller.optimizer.state if self.distiller and self.distiller.carry_state else {}
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "icp_state": carried}

    def restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.distiller is not None and self.distiller.carry_state:
            self.distiller.optimizer.state = dict(state["icp_state"])


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


def make_distiller(
    config: RunConfig, model: nn.Module, gradient_of: icp.GradientOf = icp.autograd_gradient
) -> SelfDistiller:
    """The objective of a run for its model; `gradient_of` as of `icpctl.perturb`."""
    return SelfDistiller(
        model,
        config.layers,
        input_optimizer(config),
        config.steps,
        config.icp_lr,
        config.direction,
        reduction=config.icp_reduction,
        carry_state=config.icp_state == "carry",
        weights=config.layer_weights,
        teacher_statistics=config.teacher_statistics,
        extra_task_grad=config.extra_task_grad,
        pass_order=config.pass_order,
        fold_batch_norm=config.fast,
        gradient_of=gradient_of,
    )


def input_optimizer(config: RunConfig) -> icp.SGD:
    """The input optimizer of a run, with a fresh state."""
    beta1, beta2, beta3 = config.beta1, config.beta2, config.beta3
    match config.optimizer:
        case "adam":
            return icp.Adam((beta1, beta2), config.eps)
        case "ademamix":
            return icp.AdEMAMix((beta1, beta2, beta3), config.eps, config.alpha, config.icp_weight_decay)
        case "sgd":
            return icp.SGD()
    raise ValueError(f"there is no input optimizer {config.optimizer!r}")
