"""Self-distillation: the features of the perturbed input are targets for the features of the original one.

    L_feat  = Σ_i w_i · MSE(F_i(x), stopgrad(F_i(x_T)))
    L_total = a_e · L_task(x) + (1 − a_e) · L_feat

The student sees x; the teacher is the same network on x_T. F_1 … F_L are the outputs of the network's stages.
This module needs torch, the perturbation, the taps and the fast path alone.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from numbers import Real
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from icpctl.methods.evalmode import eval_mode
from icpctl.methods.icp.folding import fold
from icpctl.methods.icp.perturbation import (
    SGD,
    GradientOf,
    at_least_float32,
    autograd_gradient,
    check_choice,
    check_inputs,
    check_perturbation,
    func_gradient,
    make_optimizer,
    per_sample,
    perturb,
    single,
)
from icpctl.methods.taps import buffers_kept, detached, module_at, tap, unmoved

Criterion = Callable[[Any, Tensor], Tensor]
PASS_ORDERS = ("student-first", "student-last")
LAYER_WEIGHTS = ("cosine", "cosine-inverse", "uniform")


def task_weight(epoch: int, warmup_epochs: int = 25, epochs: int = 100) -> float:
    """The weight a_e of the task loss: 1 for e ≤ k, else cos(π (e − k) / (2 (E − k))), from 1 towards 0.

    Args:
        epoch: e, counted from 0.
        warmup_epochs: k, the epochs of plain training.
        epochs: E.

    Raises:
        ValueError: warmup_epochs is not in [0, epochs).

    Source: the "cosine-decay schedule" of arXiv 2505.14751, with k and E of its experiments.
    """
    if not 0 <= warmup_epochs < epochs:
        raise ValueError(f"warmup_epochs is {warmup_epochs}, but must be at least 0 and less than epochs, {epochs}")
    if epoch <= warmup_epochs:
        return 1.0
    # Rounding leaves 6e-17 below zero or above it at e = E, where the cosine is 0.
    return max(0.0, math.cos(math.pi * (epoch - warmup_epochs) / (2 * (epochs - warmup_epochs))))


def layer_weights(n: int, kind: str = "cosine") -> list[float]:
    """The weights w_1 … w_n of the stages.

    Args:
        n: number of stages, L.
        kind: "cosine" is cos(i/(L−1) · π/4) for i = 0 … L−1, from 1 down to 0.7071; "cosine-inverse" the same
            reversed; "uniform" all 1.

    Raises:
        ValueError: n < 1 or an unknown kind.

    Source: the authors' released code, which runs both cosine and uniform.
    """
    if n < 1:
        raise ValueError(f"n is {n}, but there must be at least one stage")
    check_choice("kind", kind, LAYER_WEIGHTS)
    if kind == "uniform":
        return [1.0] * n
    weights = [math.cos(i / max(n - 1, 1) * math.pi / 4) for i in range(n)]
    return weights if kind == "cosine" else weights[::-1]


def feature_loss(
    student_features: Sequence[Tensor], teacher_features: Sequence[Tensor], weights: Sequence[float]
) -> Tensor:
    """L_feat = Σ_i w_i · MSE(F_i(x), stopgrad(F_i(x_T))), in float32 or better.

    Args:
        student_features: F_i(x), one tensor (B, …) a stage.
        teacher_features: F_i(x_T), of the same shapes; no gradient goes into them.
        weights: w_i.

    Returns:
        A scalar: each mean square is over batch, channels and pixels.

    Raises:
        ValueError: the three differ in length.
    """
    return _weighted(_square_errors(student_features, teacher_features), weights)


def _square_errors(student_features: Sequence[Tensor], teacher_features: Sequence[Tensor]) -> list[Tensor]:
    """MSE(F_i(x), stopgrad(F_i(x_T))) of each stage."""
    pairs = zip(student_features, teacher_features, strict=True)
    return [nn.functional.mse_loss(at_least_float32(s), at_least_float32(t.detach())) for s, t in pairs]


def _weighted(errors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    return torch.stack([weight * error for weight, error in zip(weights, errors, strict=True)]).sum()


def _shift_norms(student_features: Sequence[Tensor], errors: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """‖F_i(x_T) − F_i(x)‖, from its mean square, and ‖F_i(x)‖ of each stage."""
    with torch.no_grad():
        pairs = zip(student_features, errors, strict=True)
        return [((error * s.numel()).sqrt(), at_least_float32(s).norm()) for s, error in pairs]


class _Student(NamedTuple):
    """What the student's pass gives."""

    output: Any
    features: list[Tensor]
    loss: Tensor


class _Perturbed(NamedTuple):
    """What the perturbation gives."""

    x: Tensor
    extra_loss: Tensor | None
    losses: dict[str, Tensor]
    """Before and after, where they are asked for."""


class SelfDistiller:
    """The whole objective of one step, for any model and any training loop.

        distiller = SelfDistiller(model, layers=["layer1", "layer2", "layer3"], optimizer="adam", steps=5)
        loss, log = distiller(x, y, task_weight=0.8)
        loss.backward()

    Args:
        model: maps inputs (B, …) to outputs. In a `DistributedDataParallel` model each process gives its part of a batch,
            all of one size: the perturbation and the log are those of the whole batch.
        layers: module paths of the stages F_1 … F_L, without the wrapper's `module.`.
        optimizer: the input optimizer: "sgd", "adam", "ademamix", or an object that brings its own constants.
        steps: T, the steps of the perturbation.
        lr: η, the step size, in units of the inputs.
        direction: "descend", "ascend" or "random"; see `icpctl.perturb`.
        reduction: "mean" or "sum"; see `icpctl.perturb`.
        carry_state: keep the input optimizer's state from batch to batch (all of one shape) instead of a fresh one.
        weights: kind of the layer weights, see `icpctl.layer_weights`.
        teacher_statistics: whether the teacher's train-mode pass, too, updates running batch-norm statistics.
        extra_task_grad: adds the eval-mode task loss at x to the total, as the released code does by accident.
        pass_order: "student-first" is the released code's order: the student's pass, the perturbation on the running
            statistics that this pass has moved, the teacher's pass. "student-last" is that of icpctl 0.1: the
            perturbation, the teacher's pass, the student's pass.
        fold_batch_norm: perturb with the batch norm of the model folded into its convolutions, which costs less and is
            the same up to rounding. The first batch is computed both ways. If they differ, the model stays unfolded, with
            a warning. See `icpctl.methods.icp.folding.FoldedNetwork`.
        gradient_of: see `icpctl.perturb`.

    Raises:
        ValueError: a layer that the model does not have, no layer, an unknown name, or a number that is out of range.

    Both passes are in the model's own mode (train), as in the released code, and draw the same random numbers: dropout
    masks or a VAE's noise are those of the student for the teacher too, so the features differ by the perturbation alone.

    Source: arXiv 2505.14751.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[str],
        optimizer: str | SGD = "ademamix",
        steps: int = 5,
        lr: float = 2e-3,
        direction: str = "descend",
        *,
        reduction: str = "mean",
        carry_state: bool = False,
        weights: str = "cosine",
        teacher_statistics: bool = True,
        extra_task_grad: bool = False,
        pass_order: str = "student-first",
        fold_batch_norm: bool = False,
        gradient_of: GradientOf = autograd_gradient,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise ValueError(f"model is of type {type(model).__name__}, but must be a torch.nn.Module")
        is_list = isinstance(layers, Sequence) and not isinstance(layers, str) and len(layers) > 0
        if not is_list or not all(isinstance(layer, str) for layer in layers):
            raise ValueError(f"layers is {layers!r}, but must be a list of module paths, one or more")
        check_perturbation(steps, lr, direction, reduction)
        check_choice("weights", weights, LAYER_WEIGHTS)
        check_choice("pass_order", pass_order, PASS_ORDERS)
        self.trained = model  # what the student's pass goes through
        inner = model._modules.get("_orig_mod") or model  # of torch.compile
        self.group = inner.process_group if isinstance(inner, DistributedDataParallel) else None
        self.model: nn.Module = inner.module if isinstance(inner, DistributedDataParallel) else model
        for layer in layers:
            module_at(self.model, layer)
        self.layers = tuple(layers)
        self.optimizer = make_optimizer(optimizer)
        self.perturbation: dict[str, Any] = {"steps": steps, "lr": lr, "direction": direction, "reduction": reduction}
        self.carry_state = carry_state
        self.weights = layer_weights(len(layers), weights)
        self.teacher_statistics, self.extra_task_grad = teacher_statistics, extra_task_grad
        self.pass_order = pass_order
        self.gradient_of = gradient_of
        self.folded = fold(self.model) if fold_batch_norm else None

    def __call__(
        self,
        x: Tensor,
        y: Tensor,
        task_weight: float | Tensor,
        criterion: Criterion = nn.functional.cross_entropy,
        *,
        icp_losses: bool = False,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the total loss of one batch. The caller calls `.backward()` on it and steps the model's optimizer.

        Args:
            x: (B, …) inputs.
            y: targets, as the criterion takes them; for an autoencoder x itself, so that the perturbed input's loss is
                against the original one.
            task_weight: a_e in [0, 1]; a tensor is taken as it is.
            criterion: maps (outputs, targets) to the batch mean of the task loss, a scalar.
            icp_losses: also log the loss before and after the perturbation, which costs one more forward pass.

        Returns:
            The loss L_total, and a log of detached tensors that stay on the device. Its entries are `output` (the student's, of the
            model's own structure), `x_icp` (x_T), and scalars: task_loss; feature_loss; delta_linf, the largest entry of x_T − x;
            delta_l2, the mean of the samples' norms of x_T − x; feature_shift_1 …, one for each stage; with `icp_losses` also
            icp_loss_before and icp_loss_after, in eval mode at x and x_T.

        Raises:
            ValueError: inputs that are no floating-point tensor, a task weight out of range, or a loss that is no scalar.
        """
        if not isinstance(task_weight, Tensor) and not (isinstance(task_weight, Real) and 0 <= task_weight <= 1):
            raise ValueError(f"task_weight is {task_weight!r}, but must be a number from 0 to 1")
        check_inputs(x)
        same_numbers = random_numbers_from_here(x.device)
        if self.pass_order == "student-first":
            student = self._student(x, y, criterion)
        perturbed = self._perturbed(x, y, criterion, icp_losses)
        if self.pass_order == "student-last":
            same_numbers = random_numbers_from_here(x.device)
        with same_numbers():
            teacher = teacher_features(self.model, self.layers, perturbed.x, self.teacher_statistics)
        if self.pass_order == "student-last":
            student = self._student(x, y, criterion)

        errors = _square_errors(student.features, teacher)
        features = _weighted(errors, self.weights)
        loss = task_weight * student.loss + (1 - task_weight) * features
        if perturbed.extra_loss is not None:
            loss = loss + perturbed.extra_loss
        log = self._log(x, student, perturbed, errors, features)
        return loss, {"output": detached(student.output), "x_icp": perturbed.x, **log}

    def _student(self, x: Tensor, y: Tensor, criterion: Criterion) -> _Student:
        """The train-mode pass on x, with its graph."""
        with buffers_kept(self.model), tap(self.model, self.layers) as features:
            output = self.trained(x)
        return _Student(output, features, criterion(output, y))

    def _perturbed(self, x: Tensor, y: Tensor, criterion: Criterion, icp_losses: bool) -> _Perturbed:
        """x_T, in eval mode, and the losses that are asked for."""
        if not self.carry_state:
            self.optimizer.state = {}
        network = self.model if self.folded is None else self.folded.now()
        # Of several processes, each has the gradient of the mean over the whole batch.
        share = 1 / self.group.size() if self.group is not None and self.perturbation["reduction"] == "mean" else 1.0
        losses: list[Tensor] = []
        extra = None
        mode = eval_mode(self.model, network, criterion)
        try:
            with mode:
                if self.extra_task_grad:
                    extra = self._eval_mode_loss(x, y, criterion, mode.modules)
                x_icp = perturb(
                    x,
                    lambda z: share * single(criterion(network(z), y), "criterion"),
                    self.optimizer,
                    losses=losses,
                    gradient_of=self.gradient_of,
                    **self.perturbation,
                )
                before_and_after = {}
                if icp_losses:  # before the teacher's pass moves the running statistics
                    with torch.no_grad():
                        before_and_after["icp_loss_before"] = losses[0] / share
                        before_and_after["icp_loss_after"] = criterion(network(x_icp), y)
        finally:
            mode.restore()  # where an interrupt came at the end of the block
        return _Perturbed(x_icp, extra, before_and_after)

    def _log(
        self, x: Tensor, student: _Student, perturbed: _Perturbed, errors: Sequence[Tensor], features: Tensor
    ) -> dict[str, Tensor]:
        """The scalars of the log, over the whole batch."""
        with torch.no_grad():
            delta = per_sample(at_least_float32(perturbed.x) - at_least_float32(x))
            log = {
                "task_loss": student.loss.detach(),
                "feature_loss": features.detach(),
                "delta_linf": delta.abs().max(),
                "delta_l2": delta.norm(dim=1).mean(),
            }
            norms = _shift_norms(student.features, errors)
            for i, (shift, norm) in enumerate(norms, start=1):
                log[f"feature_shift_{i}"] = shift / norm
            log |= perturbed.losses
            return log if self.group is None else _over_processes(log, norms, self.group)

    def _eval_mode_loss(self, x: Tensor, y: Tensor, criterion: Criterion, modules: Sequence[nn.Module]) -> Tensor:
        """The task loss at x in eval mode, in which these modules are, with its gradient."""
        if self.gradient_of is func_gradient:  # the graph refers to the running statistics, which the passes move
            return single(criterion(unmoved(self.model, x), y), "criterion")
        loss = single(criterion(self.model(x), y), "criterion")
        if not loss.requires_grad:
            return loss
        # Now, as a checkpoint computes its part anew in the backward pass: in eval mode and with the statistics of now.
        parameters = dict.fromkeys(p for module in modules for p in module.parameters(recurse=False))
        inputs = [tensor for tensor in (*parameters, x) if tensor.requires_grad]
        gradients = torch.autograd.grad(loss, inputs, retain_graph=True, allow_unused=True)
        return _WithGradient.apply(loss.detach(), gradients, *inputs)  # type: ignore[no-any-return]


class _WithGradient(torch.autograd.Function):
    """A value whose gradients with respect to the inputs are known."""

    @staticmethod
    def forward(context: Any, value: Tensor, gradients: Sequence[Tensor | None], *inputs: Tensor) -> Tensor:
        context.gradients = gradients
        return value.clone()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Any:
        return None, None, *(None if g is None else gradient.to(g.dtype) * g for g in context.gradients)


def _over_processes(
    log: dict[str, Tensor], norms: Sequence[tuple[Tensor, Tensor]], group: dist.ProcessGroup
) -> dict[str, Tensor]:
    """The log of the whole batch from that of each process's part, in one collective; `norms` as of `_shift_norms`."""
    mine = torch.stack([*log.values(), *(norm for pair in norms for norm in pair)])
    everyone = mine.new_empty(group.size(), len(mine))
    dist.all_gather_into_tensor(everyone.view(-1), mine, group=group)
    whole = dict(zip(log, everyone.mean(dim=0), strict=False))
    whole["delta_linf"] = everyone[:, list(log).index("delta_linf")].max()
    totals = everyone[:, len(log) :].norm(dim=0)  # the norm over all parts
    for i, (shift, norm) in enumerate(totals.view(-1, 2), start=1):
        whole[f"feature_shift_{i}"] = shift / norm
    return {name: value.to(log[name].dtype) for name, value in whole.items()}


def teacher_features(model: nn.Module, layers: Sequence[str], x: Tensor, statistics: bool = True) -> list[Tensor]:
    """The features of a pass on x (B, …) in the model's own mode, without gradient.

    Args:
        model: the network.
        layers: module paths of the stages.
        x: what the teacher sees.
        statistics: whether the pass updates running batch-norm statistics, and whatever else it moves.
    """
    with torch.no_grad(), tap(model, layers) as features:
        if statistics:
            model(x)
        else:
            unmoved(model, x)
    return features


def feature_shift_errors(model: nn.Module, layers: Sequence[str], x: Tensor, x_icp: Tensor) -> list[Tensor]:
    """How much of each feature shift is rounding: ‖ΔF − ΔF₆₄‖ / ‖ΔF₆₄‖ for ΔF = F(x_T) − F(x), in eval mode.

    ΔF is computed by the model, under the caller's autocast; ΔF₆₄ by a copy of it in float64. An error of 1 means that the
    noise is as large as the signal.
    """

    def shifts(network: nn.Module, *inputs: Tensor) -> list[Tensor]:
        stages = []
        for value in inputs:
            with tap(network, layers) as features:
                network(value)
            stages.append([feature.double() for feature in features])
        return [b - a for a, b in zip(*stages, strict=True)]

    with torch.no_grad(), eval_mode(model):
        measured = shifts(model, x, x_icp)
        with torch.autocast(x.device.type, enabled=False):
            exact = shifts(copy.deepcopy(model).double(), x.double(), x_icp.double())
        return [(m - e).norm() / e.norm() for m, e in zip(measured, exact, strict=True)]


def random_numbers_from_here(device: torch.device) -> Callable[[], AbstractContextManager[None]]:
    """A context that draws the random numbers that come next once more, and leaves the generators as it found them."""
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return nullcontext  # only what draws nothing is captured, and the generator cannot be asked
    devices = [device] if device.type == "cuda" else []
    start, starts = torch.get_rng_state(), [torch.cuda.get_rng_state(device) for device in devices]

    @contextmanager
    def again() -> Iterator[None]:
        with torch.random.fork_rng(devices):
            torch.set_rng_state(start)
            for device, state in zip(devices, starts, strict=True):
                torch.cuda.set_rng_state(state, device)
            yield

    return again
