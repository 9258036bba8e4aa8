"""Several models trained at once: the runs differ in their seed or in numbers alone, and make each step together.

The parameters of all models are stacked, and `torch.vmap` maps the objective over them, so that each operation of the
network is one for all. The rest of a run is its own: data order, augmentation, optimizer, metrics, checkpoints. Each member
equals the run that is trained alone up to the rounding of float32.
"""

from __future__ import annotations

import operator
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from icpctl import models
from icpctl.config import RunConfig, declaration, settings_of_methods
from icpctl.methods.base import Batch, Loss
from icpctl.models.network import choose_device, set_precision
from icpctl.runs.fingerprints import is_finished, load_data
from icpctl.runs.folder import RunFolder
from icpctl.training.display import Display
from icpctl.training.engine import check, in_words, sole_writer, warn_of_other_weights
from icpctl.training.meter import Figures
from icpctl.training.session import Session
from icpctl.training.trainer import Images, Trainer

T = TypeVar("T")

OF_METHODS = [name for name in settings_of_methods() if declaration(name).stacks]
"""The settings that the objective is mapped over; the others in which runs may differ are of their optimizers."""


class UnstackableError(Exception):
    """Models of this kind cannot make their steps together."""


def train_stack(
    configs: Sequence[RunConfig],
    output: str | Path = "results",
    *,
    displays: Sequence[Display] = (),
    should_stop: Callable[[RunConfig], bool] = lambda config: False,
    checks: Mapping[str, Callable[[], None]] = MappingProxyType({}),
    fingerprints: Mapping[str, str] = MappingProxyType({}),
) -> list[BaseException | None]:
    """Train several runs at once, or go on with them; the arguments are those of `icpctl.train` for each run.

    Args:
        configs: runs with one `RunConfig.stack_id`.
        output: the results folder.
        displays: one for each run; none shows nothing.
        should_stop: asked of each run after every batch; at True its state is saved, and `Interrupted` stops it.
        checks: by the ids of runs, called before anything of them is written; raise if this process may not.
        fingerprints: of the data of each run, by its id.

    Returns:
        For each run None, or what stopped it: as `icpctl.train` would raise it. The others go on.
    """
    configs = [models.complete(config) for config in configs]
    device = choose_device(configs[0].device)
    set_precision(configs[0].precision)
    stopped: dict[str, BaseException] = {}
    sessions: list[Session] = []
    with ExitStack() as locks:
        for config, display in zip(configs, displays or [Display() for _ in configs], strict=True):
            folder = RunFolder(Path(output), config, checks.get(config.run_id, lambda: None))
            try:
                check(config)
                if is_finished(folder):
                    continue
                images = load_data(config, fingerprints.get(config.run_id, ""))
                locks.enter_context(sole_writer(folder))
                warn_of_other_weights(folder, display)
                beside = sessions[0].trainer if sessions else None
                trainer = Trainer(config, images, device, say=display.say, stack=len(configs), beside=beside)
                trainer.check()
            except Exception as error:
                stopped[config.run_id] = error
            else:
                sessions.append(Session(config, folder, trainer, display, partial(should_stop, config)))
        try:
            for members in _stackable(sessions):
                stopped |= {member.config.run_id: error for member, error in train_members(members).items()}
        except (RuntimeError, MemoryError) as error:  # there is no room to stack them
            stopped |= {session.config.run_id: error for session in sessions}
    return [
        in_words(stopped[config.run_id], config, device, len(configs)) if config.run_id in stopped else None
        for config in configs
    ]


def _stackable(sessions: Sequence[Session]) -> list[Sequence[Session]]:
    """All of them at once; one at a time if they cannot take their steps together, which is said."""
    try:
        if len(sessions) > 1:
            Stack([session.trainer for session in sessions]).check()
        return [sessions]
    except UnstackableError as error:
        for session in sessions:
            session.display.warn(
                f"{session.config.model} is trained alone, as models of it cannot be stacked: {error}."
            )
        return [[session] for session in sessions]


def train_members(sessions: Sequence[Session]) -> dict[Session, BaseException]:
    """Train runs to their end, together; those that are behind, as they were resumed from an earlier place, catch up first.

    Returns:
        What stopped a run, for those that did not come to their end; the others went on.
    """
    members = list(sessions)
    stopped: dict[Session, BaseException] = {}

    def attempt(session: Session, work: Callable[[], T]) -> T | None:
        """A part of the work of a member, which leaves if it fails."""
        try:
            return work()
        except BaseException as error:
            members.remove(session)
            stopped[session] = _leave(session, error)
            if type(error) in (KeyboardInterrupt, SystemExit):  # of the whole process
                raise
            return None

    try:
        for session in sessions:
            attempt(session, session.begin)
        place = max(((session.epoch, session.batch) for session in members), default=(0, 0))
        for session in [*members]:
            attempt(session, partial(session.advance, place))
        stack: Stack | None = None
        while len(members) > 1 and members[0].epoch < members[0].config.epochs:
            trainers = [session.trainer for session in members]
            if stack is None or stack.trainers != trainers:
                stack = Stack(trainers)
            _train_epoch(stack, members, attempt)
        for session in [*members]:
            attempt(session, partial(_end, session))
    except BaseException as error:
        for session in members:
            stopped[session] = _leave(session, error)
        if type(error) in (KeyboardInterrupt, SystemExit):
            raise
    return stopped


def _end(session: Session) -> None:
    """Train a run to its end, alone where steps are left."""
    session.advance((session.config.epochs, 0))
    session.finish()
    session.close()


def _train_epoch(stack: Stack, members: list[Session], attempt: Callable[[Session, Callable[[], Any]], Any]) -> None:
    """Train the members to the end of the epoch, or until one of them has left."""
    together = [*members]
    epoch = members[0].epoch
    iterators = {session: session.batches() for session in members}
    for _ in range(members[0].batch, members[0].trainer.batches):
        batches = [attempt(session, partial(next, iterators[session])) for session in together]
        if members != together:
            return
        results = stack.step([(epoch, number, images) for number, images in batches])
        for session, result in zip(together, results, strict=True):
            attempt(session, partial(session.take, result))
        if members != together:
            return
    for session in together:
        attempt(session, session.finish_epoch)


def _leave(session: Session, error: BaseException) -> BaseException:
    """Write down what stopped a run, and let go of its images, which the others may need room for."""
    try:
        session.record(error)
    except BaseException as another:  # that it may not be written any more, say
        error = another
    finally:
        session.close()
        traceback.clear_frames(error.__traceback__)
    return error


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
        methods = [trainer.method for trainer in trainers]
        self._parameters = {
            name: _stacked([method.get_parameter(name) for method in methods])
            for name, _ in first.method.named_parameters()
        }
        self._buffers = {
            name: _stacked([method.get_buffer(name) for method in methods]) for name, _ in first.method.named_buffers()
        }
        self._numbers = {
            name: torch.tensor(
                [getattr(trainer.config, name) for trainer in trainers], dtype=torch.float64, device=first.device
            )
            for name in OF_METHODS
        }

    def step(self, steps: Sequence[tuple[int, int, Images]]) -> list[Figures]:
        """One update of all weights, by a step of each member at the same place; for each as `Trainer.step`."""
        batches = [trainer.batch(*step) for trainer, step in zip(self.trainers, steps, strict=True)]
        for tensor in self._parameters.values():
            tensor.grad = None
        for trainer in self.trainers:
            trainer.optimizer.zero_grad(set_to_none=True)
        losses, logs = self._mapped(batches)
        losses.sum().backward()
        results = []
        for i, (trainer, batch) in enumerate(zip(self.trainers, batches, strict=True)):
            for name, parameter in trainer.method.named_parameters():
                gradient = self._parameters[name].grad
                parameter.grad = None if gradient is None else gradient[i]
            log = tree_map_only(Tensor, operator.itemgetter(i), logs)
            trainer.apply(batch, log)
            results.append(Figures.of(losses[i].detach(), log))
        return results

    def _mapped(self, batches: Sequence[Batch]) -> Loss:
        def of_one(state: dict[str, Tensor], x: Tensor, y: Tensor, numbers: dict[str, Tensor]) -> Any:
            batch = replace(batches[0], x=x, y=y)
            return torch.func.functional_call(self._objective, state, (batch, numbers))

        x, y = (torch.stack([getattr(batch, name) for batch in batches]) for name in ("x", "y"))
        state = {f"method.{name}": tensor for name, tensor in (self._parameters | self._buffers).items()}
        with self.trainers[0].network.autocast():
            return torch.vmap(of_one)(state, x, y, self._numbers)  # type: ignore[no-any-return]

    def check(self) -> None:
        """Try the objective on two images, with the method and without, and leave all as it was.

        Raises:
            UnstackableError: the model cannot be mapped: it draws random numbers, or decides by values of its inputs.
        """
        kept = {name: tensor.clone() for name, tensor in self._buffers.items()}
        two = [Images(t.train_set[:2], t.train_set.labels[:2], torch.arange(2)) for t in self.trainers]
        try:
            with torch.no_grad():
                for epoch in (0, self.trainers[0].config.epochs - 1):
                    self._mapped([t.batch(epoch, 1, images) for t, images in zip(self.trainers, two, strict=True)])
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a model makes of inputs that are mapped
            raise UnstackableError(str(error).partition("\n")[0]) from error
        finally:
            for name, tensor in self._buffers.items():
                tensor.copy_(kept[name])


class _Objective(nn.Module):
    """The objective of a method, as a function of its parameters and buffers and of the numbers in which runs may differ."""

    def __init__(self, trainer: Trainer) -> None:
        super().__init__()
        self.method = trainer.method.mapped()

    def forward(self, batch: Batch, numbers: dict[str, Tensor]) -> Loss:
        self.method.take(numbers)
        return self.method.objective(batch)


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
