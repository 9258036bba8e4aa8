"""Fast paths: the same numbers for less work; `--no-fast` takes none of them.

- Batch norm is folded into the convolutions for the perturbation: see `icpctl.methods.icp.folding`.
- A GPU waits for Python where a step is many small operations. A CUDA graph is recorded of them once and then launched
  whole.

This module needs torch alone.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from icpctl.methods.icp.folding import fold

__all__ = ["CapturedSteps", "cuda_graph", "fold"]

Inputs = tuple[Tensor, ...]
Compute = Callable[..., tuple[Tensor, dict[str, Any]]]
"""Maps tensors to a loss and a log of tensors, detached, and leaves the gradients of a model in `.grad`."""
Capture = Callable[[Callable[[], Any]], tuple[Any, Callable[[], None]]]
"""Records a function; gives its outputs, which need not hold anything yet, and what computes them anew in their place."""


class CapturedSteps:
    """The gradients of a step, by a CUDA graph for each kind of step.

    The first steps of a kind are computed as they are. Then a graph is captured, and the next step is computed both ways: if
    the results are not the same up to rounding, or it cannot be captured, or it draws random numbers (which a graph would
    draw otherwise), all steps stay as they are.

    Args:
        model: whose gradients and buffers a step changes; both are as if each step had been computed once.
        capture: such as `cuda_graph`.
        say: told why steps are not captured.
    """

    WARM_UP = 3
    """Steps of a kind before it is captured: libraries choose their algorithms in the first ones."""
    TOLERANCE = 1e-2
    """Of ‖a − b‖ / ‖b‖, for the loss and for the gradients; two steps of one input that is all the same differ by 1e-3, where
    sums come in another order, as Adam-ICP divides by what may be tiny."""

    def __init__(self, model: nn.Module, capture: Capture, say: Callable[[str], None]) -> None:
        self.model, self._capture, self._say = model, capture, say
        self._refused = False
        self._seen: Counter[Hashable] = Counter()
        self._graphs: dict[Hashable, _Graph] = {}

    def __call__(self, kind: Hashable, compute: Compute, *inputs: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """What `compute` gives for the inputs: of one shape, and all that differs between steps of this kind."""
        if self._refused:
            return compute(*inputs)
        if (graph := self._graphs.get(kind)) is not None:
            return graph(inputs)
        before = [buffer.clone() for buffer in self.model.buffers()]
        offset = _random_offset(inputs[0].device)
        results = compute(*inputs)
        self._seen[kind] += 1
        if _random_offset(inputs[0].device) != offset:
            self._refuse("they draw random numbers")
        elif self._seen[kind] > self.WARM_UP:
            after = [buffer.clone() for buffer in self.model.buffers()]
            gradients = [p.grad for p in self.model.parameters()]
            self._set_buffers(before)
            try:
                graph = _Graph(self.model, compute, inputs, self._capture)
                difference = self._difference([graph(inputs)[0], *graph.gradients], [results[0], *gradients])
                if difference <= self.TOLERANCE:
                    self._graphs[kind] = graph
                else:
                    self._refuse(f"a captured one differs by {difference:.1e}")
            except RuntimeError as error:
                self._refuse(f"one cannot be captured ({str(error).strip().splitlines()[0]})")
            self._set_buffers(after)
            for parameter, gradient in zip(self.model.parameters(), gradients, strict=True):
                parameter.grad = gradient
        return results

    def _refuse(self, why: str) -> None:
        self._refused = True
        self._say(f"Steps are not launched as CUDA graphs: {why}.")

    def _set_buffers(self, values: Sequence[Tensor]) -> None:
        for buffer, value in zip(self.model.buffers(), values, strict=True):
            buffer.copy_(value)

    @staticmethod
    def _difference(captured: Sequence[Tensor | None], expected: Sequence[Tensor | None]) -> float:
        """The largest ‖a − b‖ / ‖b‖; infinite where one is not finite."""
        differences = [
            float((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-12))
            for a, b in zip(captured, expected, strict=True)
            if a is not None and b is not None
        ]
        return max(d if math.isfinite(d) else math.inf for d in differences)


class _Graph:
    """A captured step: inputs, outputs and gradients are at fixed places in memory."""

    def __init__(self, model: nn.Module, compute: Compute, inputs: Inputs, capture: Capture) -> None:
        self.model = model
        self.inputs = [tensor.clone() for tensor in inputs]
        self.outputs, self.replay = capture(lambda: compute(*self.inputs))
        self.gradients = [p.grad for p in model.parameters()]

    def __call__(self, inputs: Inputs) -> tuple[Tensor, dict[str, Any]]:
        for place, tensor in zip(self.inputs, inputs, strict=True):
            place.copy_(tensor)
        self.replay()
        for parameter, gradient in zip(self.model.parameters(), self.gradients, strict=True):
            parameter.grad = gradient
        copies: tuple[Tensor, dict[str, Any]] = tree_map_only(Tensor, Tensor.clone, self.outputs)
        return copies


def cuda_graph(function: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
    """Capture a function as a CUDA graph; its outputs, which hold nothing before the first replay, and the replay."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = function()
    return outputs, graph.replay


def _random_offset(device: torch.device) -> int:
    """How many random numbers the device's generator has drawn since it was seeded."""
    if device.type != "cuda":
        return 0
    index = torch.cuda.current_device() if device.index is None else device.index
    return torch.cuda.default_generators[index].get_offset()
