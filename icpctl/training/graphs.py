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
from torch.utils._pytree import tree_leaves, tree_map_only

from icpctl.methods.icp.folding import fold
from icpctl.training.meter import Figures

__all__ = ["CapturedSteps", "CudaGraphs", "fold"]

Inputs = tuple[Tensor, ...]
Update = Callable[..., Figures]
"""One update of the weights: maps tensors to what is recorded of it, and leaves the gradients in `.grad`."""
Capture = Callable[[Callable[[], Any]], tuple[Any, Callable[[], None]]]
"""Records a function; gives its outputs, which need not hold anything yet, and what computes them anew in their place."""


State = dict[str, list[Tensor]]
BUFFERS = "the buffers"
GRADIENT, CHANGE = "the gradient of", "the change of"
CHANGE_ALLOWANCE = 10
"""By which a change of the weights, or of the moments of their optimizer, may differ more than the rest: AdamW divides by what may be tiny."""
SMALL_GRADIENT = 1e-3
"""Of the norm of all gradients: one that is smaller is held against so much, as that of a bias before batch norm is rounding alone."""


class CapturedSteps:
    """Steps by a CUDA graph for each kind of step, from the objective to the update of the weights.

    The first steps of a kind are computed as they are. Then a graph is captured. On the next batch it is held against the step as it
    is: everything that it should compute is filled with NaN before, and the task weight and the learning rate are a half, so that no part
    of the step is left out. If any result is another one but for rounding, or the step cannot be captured, or it draws random numbers
    (which a graph would draw otherwise), all steps stay as they are.

    Args:
        model: whose gradients, parameters and buffers a step changes; all are as if each step had been computed once.
        optimizer: of the parameters; so is its state.
        capture: such as `CudaGraphs`.
        say: told why steps are not captured.
    """

    WARM_UP = 3
    """Steps of a kind before it is captured: libraries choose their algorithms in the first ones."""
    BEFORE_USE = WARM_UP + 2
    """Steps of a kind before its graph takes over: one more is captured, and another one checks the graph."""
    TOLERANCE = 1e-2
    """Of ‖a − b‖ / ‖b‖ for each result; two steps of one input that is all the same differ by 1e-3, where sums come in another
    order, as Adam-ICP divides by what may be tiny."""
    CHECKED_SCALAR = 0.5
    """In the place of every input that is a scalar, which are the task weight and the learning rate, when a graph is checked."""

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, capture: Capture, say: Callable[[str], None]
    ) -> None:
        self.model, self.optimizer, self._capture, self._say = model, optimizer, capture, say
        self._refused = False
        self._seen: Counter[Hashable] = Counter()
        self._unchecked: dict[Hashable, _Graph] = {}
        self._graphs: dict[Hashable, _Graph] = {}

    def __call__(self, kind: Hashable, update: Update, *inputs: Tensor) -> Figures:
        """What `update` gives for the inputs: of one shape, and all that differs between steps of this kind; None is never captured."""
        if self._refused or kind is None:
            return update(*inputs)
        if (graph := self._graphs.get(kind)) is not None:
            return graph(inputs)
        before = self._kept()
        offset = _random_offset(inputs[0].device)
        figures = update(*inputs)
        self._seen[kind] += 1
        if _random_offset(inputs[0].device) != offset:
            self._refuse("they draw random numbers")
        elif self._seen[kind] > self.WARM_UP:
            after = self._kept()
            self._set(before)
            try:
                if kind in self._unchecked:
                    self._check(kind, update, inputs, before)
                else:
                    self._unchecked[kind] = _Graph(self.model, update, inputs, self._capture)
            except RuntimeError as error:
                self._refuse(f"one cannot be captured ({str(error).strip().splitlines()[0]})")
            self._set(after)
        return figures

    def _check(self, kind: Hashable, update: Update, inputs: Inputs, before: State) -> None:
        """Take the graph of a kind for its next steps, if it gives what the step gives for these inputs."""
        graph = self._unchecked.pop(kind)
        inputs = tuple(i if i.dim() else torch.full_like(i, self.CHECKED_SCALAR) for i in inputs)
        name, difference = self.compare(graph, update, inputs, before)
        if difference <= self.TOLERANCE:
            self._graphs[kind] = graph
        else:
            self._refuse(f"a captured one differs by {difference:.1e} in {name}")

    def compare(self, graph: _Graph, update: Update, inputs: Inputs, before: State) -> tuple[str, float]:
        """In which result a graph differs most, and by how much; the state is then that of the graph."""
        expected = self._results(update(*inputs), [p.grad for p in self.model.parameters()], before)
        self._set(before)
        graph.forget()
        found = self._results(graph(inputs), graph.gradients, before)
        return _largest_difference(found, expected)

    def _results(self, figures: Figures, gradients: Sequence[Tensor | None], before: State) -> dict[str, Tensor]:
        """Copies of all that a step computes, by name."""
        named = [name for name, _ in self.model.named_parameters()]
        found = {
            "the loss": figures.loss,
            "the outputs": figures.record,
            **figures.log,
            **{f"{GRADIENT} {n}": g for n, g in zip(named, gradients, strict=True) if g is not None},
            **dict(self.model.named_buffers()),
        }
        for name, tensors in self._state().items():
            if name != BUFFERS:
                changes = [now.detach() - then for now, then in zip(tensors, before[name], strict=True)]
                found[f"{CHANGE} {name}"] = torch.cat([change.flatten() for change in changes])
        return {name: value.detach().clone() for name, value in found.items()}

    def _refuse(self, why: str) -> None:
        self._refused = True
        self._graphs.clear()  # with their memory
        self._unchecked.clear()
        self._say(f"Steps are not launched as CUDA graphs: {why}.")

    def _state(self) -> State:
        """All that a step changes beside the gradients, in place."""
        state: State = {BUFFERS: [*self.model.buffers()], "the weights": [*self.model.parameters()]}
        for moments in self.optimizer.state.values():
            for name, value in moments.items():
                state.setdefault(name, []).append(value)
        return state

    def _kept(self) -> State:
        return tree_map_only(Tensor, lambda tensor: tensor.detach().clone(), self._state())  # type: ignore[no-any-return]

    def _set(self, values: State) -> None:
        with torch.no_grad():
            for name, tensors in self._state().items():
                for place, value in zip(tensors, values[name], strict=True):
                    place.copy_(value)


def _largest_difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> tuple[str, float]:
    """Where ‖a − b‖ / ‖b‖ is largest, by its allowance, and how large: infinite where one is missing or not finite."""
    if missing := found.keys() ^ expected.keys():
        return min(missing), math.inf
    gradients = [float(value.double().norm()) for name, value in expected.items() if name.startswith(GRADIENT)]
    least = SMALL_GRADIENT * math.hypot(*gradients)

    def difference(name: str, value: Tensor) -> float:
        norm = max(float(value.double().norm()), least if name.startswith(GRADIENT) else 1e-12)
        allowance = CHANGE_ALLOWANCE if name.startswith(CHANGE) else 1
        return float((found[name].double() - value.double()).norm()) / (allowance * max(norm, 1e-12))

    differences = {name: difference(name, value) for name, value in expected.items()}
    differences = {name: value if math.isfinite(value) else math.inf for name, value in differences.items()}
    return max(differences.items(), key=lambda item: item[1])


class _Graph:
    """A captured step: inputs, outputs and gradients are at fixed places in memory."""

    def __init__(self, model: nn.Module, update: Update, inputs: Inputs, capture: Capture) -> None:
        self.inputs = [tensor.clone() for tensor in inputs]
        self.outputs, self.replay = capture(lambda: update(*self.inputs))
        self.gradients = [p.grad for p in model.parameters()]

    def __call__(self, inputs: Inputs) -> Figures:
        for place, tensor in zip(self.inputs, inputs, strict=True):
            place.copy_(tensor)
        self.replay()
        copies: Figures = tree_map_only(Tensor, Tensor.clone, self.outputs)
        return copies

    def forget(self) -> None:
        """Fill with NaN what a replay should compute."""
        for tensor in (*tree_leaves(self.outputs), *self.gradients):
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                tensor.fill_(math.nan)


class CudaGraphs:
    """Captures functions as CUDA graphs of a device, which share their memory.

    A graph may write to what another one has left, so what one gives has to be used, or copied, before the next one is replayed.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.pool = torch.cuda.graph_pool_handle()

    def __call__(self, function: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        """The outputs of a function, which hold nothing before the first replay, and the replay.

        Raises:
            RuntimeError: it cannot be captured; the device is as before.
        """
        graph = torch.cuda.CUDAGraph()
        # Other threads go on: one of them may keep images in pinned memory.
        recording = torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local")
        with torch.cuda.device(self.device):
            stream, index = torch.cuda.current_stream(), torch.cuda.current_device()
            generator = torch.cuda.default_generators[index]
            random = generator.clone_state()
            try:
                with recording:
                    outputs = function()
            except BaseException:
                # Where the end of a capture fails, torch leaves all of this as it was during the capture.
                torch.cuda.set_stream(stream)
                graph.reset()
                generator.graphsafe_set_state(random)
                self._leave_pool(index)
                raise
        return outputs, graph.replay

    def _leave_pool(self, index: int) -> None:
        """Let the allocator of a GPU forget a capture whose end failed."""
        try:
            torch._C._cuda_endAllocateToPool(index, self.pool)
        except RuntimeError:  # the end came that far itself
            return
        torch._C._cuda_releasePool(index, self.pool)


def _random_offset(device: torch.device) -> int:
    """How many random numbers the device's generator has drawn since it was seeded."""
    if device.type != "cuda":
        return 0
    index = torch.cuda.current_device() if device.index is None else device.index
    return torch.cuda.default_generators[index].get_offset()
