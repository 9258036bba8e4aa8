"""Means over an epoch that stay on the device until they are read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Meter:
    """Sums over the batches of an epoch, kept on the device until they are read."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.records: list[Tensor] = []
        self.first_bad: Tensor | None = None

    def add(self, batch: int, loss: Tensor, log: dict[str, Tensor]) -> None:
        """Count one batch; `log` has scalars and the task's `record`."""
        self.records.append(log.pop("record"))
        for name, value in log.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.counts[name] = self.counts.get(name, 0) + 1
        # The first batch whose loss is not finite, found without waiting for the device.
        if self.first_bad is None:
            self.first_bad = torch.full((), -1, device=loss.device)
        bad = ~torch.isfinite(loss.detach()) & (self.first_bad < 0)
        self.first_bad = torch.where(bad, batch, self.first_bad)

    def means(self) -> dict[str, float]:
        """The mean of each figure; waits for the device."""
        return {name: float(value) / self.counts[name] for name, value in self.sums.items()}

    def whole(self, gather: Callable[[Tensor], Tensor]) -> Meter:
        """The figures of whole batches from those of every process's part; `gather` stacks the processes' tensors."""
        meter = Meter()
        means = gather(torch.stack([value.double() for value in self.sums.values()])).mean(dim=0)
        meter.sums = {name: mean.to(self.sums[name].dtype) for name, mean in zip(self.sums, means, strict=True)}
        meter.counts = self.counts
        records = gather(torch.stack(self.records))  # (processes, batches, B, …)
        meter.records = list(records.transpose(0, 1).flatten(1, 2))
        assert self.first_bad is not None
        bad = gather(self.first_bad)
        meter.first_bad = bad[bad >= 0].min() if (bad >= 0).any() else bad[0]
        return meter

    def state(self) -> dict[str, Any]:
        return {"sums": self.sums, "counts": self.counts, "records": self.records, "first_bad": self.first_bad}

    def restore(self, state: dict[str, Any], part: Callable[[Tensor], Tensor]) -> None:
        """Go on from a `state`; `part` is what this process takes of a whole batch's records."""
        self.sums, self.counts = dict(state["sums"]), dict(state["counts"])
        records = state["records"] if "records" in state else state["outputs"]  # their name before there was a VAE
        self.records, self.first_bad = [part(record) for record in records], state["first_bad"]
