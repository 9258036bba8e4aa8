"""What is recorded of the steps of an epoch; it stays on the device until it is read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Figures(NamedTuple):
    """What is recorded of a step, detached."""

    loss: Tensor
    """The objective, a scalar."""
    record: Tensor
    """(B, …): see `icpctl.tasks.Task.record`."""
    names: tuple[str, ...]
    values: Tensor
    """(len(names),): one tensor, so that the meter adds them at once."""

    @classmethod
    def of(cls, loss: Tensor, log: dict[str, Tensor]) -> Figures:
        """The figures of a log, which has scalars and the task's `record`."""
        record = log.pop("record")
        return cls(loss, record, tuple(log), torch.stack([value.to(loss.dtype) for value in log.values()]))

    @property
    def log(self) -> dict[str, Tensor]:
        """The scalars by their names."""
        return dict(zip(self.names, self.values, strict=True))


class Meter:
    """Sums over the batches of an epoch."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        """By the names of the figures of a kind of step, with commas between them: their sums, in this order."""
        self.counts: dict[str, int] = {}
        self.records: list[Tensor] = []
        self.losses: list[Tensor] = []
        """Of the steps since the start of the epoch or the last stop, before which all losses were finite."""

    def add(self, step: Figures) -> None:
        """Count one step: one operation on the device."""
        kind = ",".join(step.names)
        self.sums[kind] = self.sums[kind] + step.values if kind in self.sums else step.values
        self.counts[kind] = self.counts.get(kind, 0) + 1
        self.records.append(step.record)
        self.losses.append(step.loss)

    def first_bad(self) -> Tensor:
        """The first batch whose loss is not finite, or −1."""
        bad = ~torch.isfinite(torch.stack(self.losses))
        first = len(self.records) - len(self.losses) + bad.int().argmax()
        return torch.where(bad.any(), first, -1)

    def means(self) -> dict[str, float]:
        """The mean of each figure over the steps that have it; waits for the device."""
        sums: dict[str, float] = {}
        counts: dict[str, int] = {}
        for kind, values in self.sums.items():
            for name, value in zip(kind.split(","), values.reshape(-1).tolist(), strict=True):
                sums[name] = sums.get(name, 0.0) + value
                counts[name] = counts.get(name, 0) + self.counts[kind]
        return {name: value / counts[name] for name, value in sums.items()}

    def whole(self, gather: Callable[[Tensor], Tensor]) -> Meter:
        """The figures of whole batches from those of every process's part; `gather` stacks the processes' tensors."""
        meter = Meter()
        meter.sums = {kind: gather(sums.double()).mean(dim=0).to(sums.dtype) for kind, sums in self.sums.items()}
        meter.counts = self.counts
        records = gather(torch.stack(self.records))  # (processes, batches, B, …)
        meter.records = list(records.transpose(0, 1).flatten(1, 2))
        # One that is not finite in the part of one process is not finite in the sum of all.
        meter.losses = list(gather(torch.stack(self.losses)).sum(dim=0))
        return meter

    def state(self) -> dict[str, Any]:
        return {"sums": self.sums, "counts": self.counts, "records": self.records}

    def restore(self, state: dict[str, Any], part: Callable[[Tensor], Tensor]) -> None:
        """Go on from a `state`; `part` is what this process takes of a whole batch's records."""
        self.sums, self.counts = dict(state["sums"]), dict(state["counts"])
        records = state["records"] if "records" in state else state["outputs"]  # their name before there was a VAE
        self.records = [part(record) for record in records]
