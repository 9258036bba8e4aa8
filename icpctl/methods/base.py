"""The interface of a method: what a step minimises, beside what the engine does for every method."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from icpctl.config import RunConfig
from icpctl.config.catalogue import METHODS

Loss = tuple[Tensor, dict[str, Any]]
"""A scalar with its graph, and a log: `output` and `task_loss` of the student, and other scalars to record. All are detached."""


class Data(NamedTuple):
    """What a method is told about the training data."""

    labels: Tensor
    """(N,) int64."""
    classes: int
    """How many there are, K."""
    shape: torch.Size
    """(3, H, W) of an image."""


class Companion(NamedTuple):
    """What comes with each image of a batch; see `icpctl.config.catalogue.MethodRow.companion`."""

    x: Tensor
    y: Tensor


@dataclass(frozen=True)
class Batch:
    """What a step is made of."""

    x: Tensor
    """(B, …), the inputs in normalised units."""
    y: Tensor
    """The targets, as the criterion takes them."""
    index: Tensor
    """(B,) int64: which of the training images these are."""
    criterion: Callable[[Any, Tensor], Tensor]
    """Maps outputs and targets to the mean task loss of the batch, a scalar."""
    epoch: int
    step: int
    """Of the epoch, counted from 0."""
    weight: float | Tensor = 1.0
    """The task weight of the epoch; a tensor in a captured step, for which it is an input."""
    gather: Callable[[Tensor], Tensor] = lambda part: part
    """Maps a tensor (B, …) of this process's part to that of the whole batch."""
    part: Callable[[Tensor], Tensor] = lambda whole: whole
    """Maps a tensor (B, …) of the whole batch to that of this process's part."""
    companion: Companion | None = None
    """In the same order, for a method whose row asks for it."""


class Fault(NamedTuple):
    """One thing that is wrong with how a method works in a run."""

    kind: str
    message: str
    """For the person at the keyboard: what was measured, and the way out."""
    note: str = ""
    """What the report says of the run; empty for what can pass with the first epoch."""


class Method(nn.Module):
    """A method at work in one run: owns the model and what it adds to it, all of which is optimised.

    Args:
        config: of the run.
        model: the network.
        trained: what the student's pass goes through: the model, or its wrapper that averages the gradients of several
            processes.
        data: that the run trains on.
        say: told what there is to know of how the method works.
    """

    model: nn.Module
    trained: nn.Module
    taps: tuple[str, ...] = ()
    """The paths of the modules whose outputs it reads."""

    def __init__(
        self,
        config: RunConfig,
        model: nn.Module,
        trained: nn.Module,
        data: Data,
        say: Callable[[str], None] = warnings.warn,
    ) -> None:
        super().__init__()
        self.config, self.model, self.data = config, model, data
        self.__dict__["trained"] = trained  # no second registration of the model

    def objective(self, batch: Batch) -> Loss:
        """What the step minimises, and its log."""
        raise NotImplementedError

    def update(self, compute: Callable[[], Loss], apply: Callable[[dict[str, Any]], None]) -> Loss:
        """One update of the weights.

        Args:
            compute: gives the objective of the step and leaves its gradients.
            apply: records the log of the step, and changes the weights by the gradients, which it clips.
        """
        loss, log = compute()
        apply(log)
        return loss, log

    def after(self, batch: Batch, log: dict[str, Any]) -> None:
        """Once a step, before the weights change: store state for later steps, and remove from the log what is not a scalar."""

    def active(self, epoch: int) -> bool:
        """Whether the method is at work in an epoch; else its step is a plain one."""
        return True

    def task_weight(self, epoch: int) -> float:
        """The weight of the task loss in the epoch."""
        return 1.0

    def kind(self, epoch: int, step: int) -> Hashable:
        """Equal for steps that do the same operations: a captured graph is for one kind. None: the step is never captured."""
        return self.active(epoch)

    def state(self) -> dict[str, Any]:
        """What the next steps depend on beside the weights: tensors by name, saved with every checkpoint."""
        return {}

    def restore(self, state: Mapping[str, Any], shape: torch.Size) -> None:
        """Go on from a `state`.

        Args:
            state: as `state` gave it.
            shape: of a batch of inputs.

        Raises:
            ValueError: it is not of such a run.
        """

    def heads(self) -> dict[str, Tensor]:
        """The parameters and buffers that the method adds to the model, by name."""
        return {name: value for name, value in self.state_dict().items() if not name.startswith("model.")}

    def diagnose(self, means: Mapping[str, float], settled: bool) -> list[Fault]:
        """What is wrong with how the method worked in an epoch.

        Args:
            means: of the epoch, by name, as the run records them.
            settled: whether an epoch of training came before.
        """
        return []

    @classmethod
    def measure(cls, config: RunConfig, model: nn.Module) -> dict[str, object]:
        """The settings that the method's row calls `measured`, for a run with such a model."""
        return {}

    def mapped(self) -> Method:
        """The same for `torch.vmap`, which maps `objective` over several runs."""
        return self

    def take(self, numbers: Mapping[str, Tensor]) -> None:
        """Use these numbers, by the names of settings, in the place of the run's own; of `mapped` methods alone."""


def build(config: RunConfig, model: nn.Module, trained: nn.Module, data: Data, say: Callable[[str], None]) -> Method:
    """The method of a run, for its model; the arguments are those of `Method`."""
    return find(config)(config, model, trained, data, say)


def find(config: RunConfig) -> type[Method]:
    """The class of the method of a run."""
    module, _, name = METHODS[config.method].module.partition(":")
    found: type[Method] = getattr(import_module(module), name)
    return found
