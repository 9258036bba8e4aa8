"""Several models trained at once: the runs differ in their seed or in numbers alone, and make each step together.

The parameters of all models are stacked, and `torch.vmap` maps the objective over them, so that each operation of the
network is one for all. The rest of a run is its own: data order, augmentation, optimizer, metrics, checkpoints. Each member
equals the run that is trained alone up to the rounding of float32.
"""

from __future__ import annotations

import copy
import operator
import traceback
from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from icpctl.config import RunConfig, declaration
from icpctl.icp import func_gradient
from icpctl.trainer import Trainer, input_optimizer, make_distiller

OF_THE_PERTURBATION = [
    name for name in RunConfig.model_fields if declaration(name).stacks and declaration(name).group == "perturbation"
]
"""The settings that the objective is mapped over; the others in which runs may differ are of their optimizers."""


class UnstackableError(Exception):
    """Models of this kind cannot make their steps together."""


class Step(NamedTuple):
    """A step that a run asks for: its place, and the images (uint8) and labels of its batch."""

    epoch: int
    batch: int
    images: Tensor
    labels: Tensor


Result = tuple[Tensor, dict[str, Tensor]]
"""The loss and the log of a step, which stay on the device."""


class Session(Protocol):
    """A run at work; see `icpctl.session.Session`."""

    trainer: Trainer

    def steps(self) -> Generator[Step, Result, None]:
        """Train the run: asks for each step, and is sent its result."""


AnySession = TypeVar("AnySession", bound=Session)


def take_steps(sessions: Sequence[AnySession]) -> dict[AnySession, BaseException]:
    """Train the runs to their end: take the steps that they ask for, those at the same place together.

    A run that is behind, as it was resumed from an earlier checkpoint, takes steps alone until it has caught up.

    Returns:
        What stopped a run, for those that did not come to their end; the others went on.
    """
    at_work = {session: session.steps() for session in sessions}
    asked: dict[AnySession, Step] = {}
    stopped: dict[AnySession, BaseException] = {}
    ended: list[BaseException] = []
    together = _Together()

    def go_on(session: AnySession, resume: Callable[[], Step]) -> None:
        try:
            asked[session] = resume()
        except StopIteration:
            asked.pop(session, None)
        except BaseException as error:
            asked.pop(session, None)
            stopped[session] = error
            traceback.clear_frames(
                error.__traceback__
            )  # they hold the run's images, which the others may need room for
            if type(error) in (KeyboardInterrupt, SystemExit):  # of the whole process
                ended.append(error)

    try:
        for session, steps in at_work.items():
            go_on(session, partial(next, steps))
        while asked and not ended:
            place = min(step[:2] for step in asked.values())
            ready = {session: step for session, step in asked.items() if step[:2] == place}
            try:
                results = together.step([session.trainer for session in ready], list(ready.values()))
            except BaseException as error:
                if type(error) in (KeyboardInterrupt, SystemExit):
                    ready = asked  # it is the end of all
                for session in list(ready):
                    go_on(session, partial(at_work[session].throw, error))
                continue
            for session, result in zip(ready, results, strict=True):
                go_on(session, partial(at_work[session].send, result))
        if ended:
            for session in list(asked):
                go_on(session, partial(at_work[session].throw, ended[0]))
            raise ended[0]
    finally:
        for steps in at_work.values():
            steps.close()
    return stopped


class _Together:
    """Takes steps of the same place; keeps the stack for the next ones of the same runs."""

    def __init__(self) -> None:
        self._stack: Stack | None = None

    def step(self, trainers: Sequence[Trainer], steps: Sequence[Step]) -> list[Result]:
        if len(trainers) == 1:
            return [trainers[0].step(*steps[0])]
        if self._stack is None or self._stack.trainers != trainers:
            self._stack = Stack(trainers)
        return self._stack.step(steps)


class Stack:
    """The steps of several trainers, whose models have the same shape, as one.

    Args:
        trainers: of runs with one `stack_id`; from now on their parameters and buffers are parts of the stacked ones.
    """

    def __init__(self, trainers: Sequence[Trainer]) -> None:
        self.trainers = trainers
        for trainer in trainers:
            trainer.captured = None  # a graph would go on with the weights where they were
        first = trainers[0]
        self._objective = _Objective(first)
        models = [trainer.model for trainer in trainers]
        self._parameters = {
            name: _stacked([model.get_parameter(name) for model in models])
            for name, _ in first.model.named_parameters()
        }
        self._buffers = {
            name: _stacked([model.get_buffer(name) for model in models]) for name, _ in first.model.named_buffers()
        }
        self._numbers = {
            name: torch.tensor(
                [getattr(trainer.config, name) for trainer in trainers], dtype=torch.float64, device=first.device
            )
            for name in OF_THE_PERTURBATION
        }

    def step(self, steps: Sequence[Step]) -> list[Result]:
        """One update of all weights, by a step of each member at the same place; for each as `Trainer.step`."""
        epoch, batch = steps[0][:2]
        inputs = [trainer.inputs(*step) for trainer, step in zip(self.trainers, steps, strict=True)]
        x, y = (torch.stack(each) for each in zip(*inputs, strict=True))
        for tensor in self._parameters.values():
            tensor.grad = None
        for trainer in self.trainers:
            trainer.optimizer.zero_grad(set_to_none=True)
        losses, logs = self._mapped(epoch, batch, x, y)
        losses.sum().backward()
        results = []
        for i, (trainer, (x_i, y_i)) in enumerate(zip(self.trainers, inputs, strict=True)):
            for name, parameter in trainer.model.named_parameters():
                gradient = self._parameters[name].grad
                parameter.grad = None if gradient is None else gradient[i]
            log = tree_map_only(Tensor, operator.itemgetter(i), logs)
            results.append((losses[i].detach(), trainer.update(epoch, batch, x_i, y_i, log)))
        return results

    def _mapped(self, epoch: int, batch: int, x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Any]]:
        def of_one(state: dict[str, Tensor], x: Tensor, y: Tensor, numbers: dict[str, Tensor]) -> Any:
            return torch.func.functional_call(self._objective, state, (epoch, batch, x, y, numbers))

        state = {f"model.{name}": tensor for name, tensor in (self._parameters | self._buffers).items()}
        with self.trainers[0].network.autocast():
            return torch.vmap(of_one)(state, x, y, self._numbers)  # type: ignore[no-any-return]

    def check(self) -> None:
        """Try the objective on two images, with the method and without, and leave all as it was.

        Raises:
            UnstackableError: the model cannot be mapped: it draws random numbers, or decides by values of its inputs.
        """
        kept = {name: tensor.clone() for name, tensor in self._buffers.items()}
        inputs = [trainer.network.normalise(trainer.train_set[:2]) for trainer in self.trainers]
        labels = [trainer.train_set.labels[:2] for trainer in self.trainers]
        try:
            with torch.no_grad():
                for epoch in (0, self.trainers[0].config.epochs - 1):
                    self._mapped(epoch, 1, torch.stack(inputs), torch.stack(labels))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise UnstackableError(str(error).partition("\n")[0]) from error
        finally:
            for name, tensor in self._buffers.items():
                tensor.copy_(kept[name])


class _Objective(nn.Module):
    """The objective of a trainer, as a function of the parameters and buffers of its model."""

    def __init__(self, trainer: Trainer) -> None:
        super().__init__()
        self.model = trainer.model
        self.trainer = copy.copy(trainer)
        if trainer.distiller is not None:
            self.trainer.distiller = make_distiller(trainer.config, trainer.model, func_gradient)
            self.trainer.distiller.folded = trainer.distiller.folded

    def forward(
        self, epoch: int, batch: int, x: Tensor, y: Tensor, numbers: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Any]]:
        if (distiller := self.trainer.distiller) is not None:
            distiller.lr = numbers["icp_lr"]
            distiller.optimizer = input_optimizer(self.trainer.config.model_copy(update=numbers))
        return self.trainer.objective(*self.trainer.kind(epoch, batch), x, y, self.trainer.weight(epoch))


def _stacked(members: Sequence[Tensor]) -> Tensor:
    """(N, …): the values of the members, of which each becomes a part, in its own layout in memory."""
    first = members[0]
    stacked = torch.empty_strided(
        (len(members), *first.shape), (first.numel(), *first.stride()), dtype=first.dtype, device=first.device
    )
    for part, member in zip(stacked, members, strict=True):
        part.copy_(member.detach())
        member.data = part
    return stacked.requires_grad_(first.requires_grad)
