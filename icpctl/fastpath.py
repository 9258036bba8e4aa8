"""Fast paths: the same numbers for less work; `--no-fast` takes none of them.

- Batch norm in eval mode is a fixed scale and shift of each channel, which the convolution before it can do itself. The
  perturbation passes through the network in eval mode T times with the same weights, so the two are folded once a batch.
- A GPU waits for Python where a step is many small operations. A CUDA graph is recorded of them once and then launched
  whole.

This module needs torch alone.
"""

from __future__ import annotations

import copy
import math
import threading
import warnings
import weakref
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import is_dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves, tree_map_only

_CONVOLUTIONS: dict[type[nn.Module], str] = {nn.Conv1d: "conv1d", nn.Conv2d: "conv2d", nn.Conv3d: "conv3d"}
_TRANSPOSED: dict[type[nn.Module], str] = {
    nn.ConvTranspose1d: "conv_transpose1d",
    nn.ConvTranspose2d: "conv_transpose2d",
    nn.ConvTranspose3d: "conv_transpose3d",
}


def fold(model: nn.Module, say: Callable[[str], None] = warnings.warn) -> FoldedNetwork | None:
    """The model with its batch norm folded, for passes in eval mode; None where it has no batch norm.

    Args:
        model: maps inputs (B, …) to outputs; left as it is.
        say: told why the model is not folded, where a pass finds that it cannot be.
    """
    return FoldedNetwork(model, say) if any(isinstance(module, _BatchNorm) for module in model.modules()) else None


class FoldedNetwork(nn.Module):
    """A model in eval mode, with each batch norm that follows a convolution folded into it; made by `fold`.

    The model's own code runs in every pass, with the tensors, modules, hooks and attributes that it has at that moment. Only
    the convolutions are put off. Each gives a stand-in for its output. If the next thing that happens to the stand-in is
    batch norm by fixed statistics, one convolution with other weights computes both. A trial pass finds the convolutions
    whose output is used in any other way, or kept: those are then computed as always. If the code does something else with
    an output in a later pass, that pass is not used, and there is another trial.

    A trial also compares outputs and input gradients with those of the plain model for the same batch. It takes place for
    each type of input, with and without autocast, and for each number of batch norms that are folded in a pass. It draws
    no random numbers, and undoes what the passes do to buffers and attributes. Two things are beyond it: within transforms
    of torch.func no values can be compared, and while a CUDA graph is captured the model runs unfolded unless it was tried
    before.
    """

    TRIALS = 8
    """After so many trials the model is not folded any more: each costs three passes."""

    def __init__(self, model: nn.Module, say: Callable[[str], None]) -> None:
        super().__init__()
        self.model, self.say = model, say
        self.declined: str | None = None
        """Why the model is not folded."""
        self.norms = 0
        """How many batch norms were folded in the last pass."""
        self._convolutions: list[nn.Module] = []
        self._weights: _Weights = {}
        self._known: dict[Hashable, set[int]] = {}  # numbers of batch norms that passed a trial, for each kind of input
        self._trials = 0

    def now(self) -> FoldedNetwork:
        """Maps inputs (B, …) to what the model, as it is now, makes of them in eval mode, which the caller sees to.

        What was given before does the same from here on.
        """
        self._weights.clear()
        if self.declined is None and any(_is_compiled(module) for module in self.model.modules()):
            self._decline("parts of it are compiled")
        return self

    def forward(self, x: Tensor) -> Any:
        kind = x.dtype, x.device, torch.is_autocast_enabled(x.device.type)
        for _ in range(2):
            if self.declined is not None or torch.is_inference_mode_enabled():
                break
            if kind in self._known:
                output, unfit = self._pass(x)
                if not unfit and self.norms in self._known[kind]:
                    return output
                del output
            if x.is_cuda and torch.cuda.is_current_stream_capturing():
                break
            self._try(x, kind)
        self.norms = 0
        return self.model(x)

    def _decline(self, why: str) -> None:
        self.declined = why
        self.say(f"Batch norm is not folded for the perturbation: {why}. The steps are the same, but take longer.")

    def _pass(self, x: Tensor) -> tuple[Any, set[nn.Module]]:
        """The output, and the convolutions whose output was not for batch norm alone; if there are any, it is no use."""
        put_off = _PutOff(self._weights)
        try:
            for module in self._convolutions:
                put_off.take(module)
            output = self.model(x)
        finally:
            put_off.thread = None
            for module in self._convolutions:
                vars(module).pop(_entry(module), None)
        unfit = put_off.unfit()
        self.norms = len(put_off.calls)
        return output, unfit

    def _try(self, x: Tensor, kind: Hashable) -> None:
        """Find what can be folded and compare with the plain model; decline where it differs."""
        self._trials += 1
        if self._trials > self.TRIALS:
            return self._decline("its code does something else in pass after pass")
        with _undone(self.model):
            mapped = torch._C._are_functorch_transforms_active()
            plain = [] if mapped else _outputs_and_gradient(self.model, x)
            self._convolutions = [module for module in self.model.modules() if _can_be_put_off(module)]
            try:
                while unfit := _same_random_numbers(x.device, lambda: self._pass(x)[1]):
                    self._convolutions = [module for module in self._convolutions if module not in unfit]
                if not self.norms:
                    return self._decline("no batch norm follows a convolution that has no other use")
                difference = 0.0 if mapped else _difference(_outputs_and_gradient(lambda z: self._pass(z)[0], x), plain)
            except Exception as error:  # whatever the model's code does with a stand-in
                reason = f"{type(error).__name__}: {str(error).strip()}".splitlines()[0]
                return self._decline(f"a trial ended in {reason}")
        if not all(tensor.isfinite().all() for tensor in plain):
            return None  # a network that diverges has other worries
        if not mapped and not plain:
            return self._decline("its output has no tensors to compare")
        dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
        tolerance = torch.finfo(dtype).eps ** (1 / 3)
        if difference > tolerance:
            return self._decline(f"outputs or input gradients would differ by {difference:.1e}")
        self._known.setdefault(kind, set()).add(self.norms)
        return None


_Weights = dict[tuple[nn.Module, int], tuple[Sequence[Tensor | None], list[int], float, Tensor, Tensor]]
"""For a convolution and the running mean after it: the tensors that were folded, their versions, ε; weight and bias."""


class _PutOff:
    """The convolutions of one pass that are put off, in one thread, until `thread` is None."""

    def __init__(self, weights: _Weights) -> None:
        self.weights = weights
        self.thread: int | None = threading.get_ident()
        self.calls: list[tuple[weakref.ref[Tensor], _Call]] = []

    def take(self, module: nn.Module) -> None:
        """Put off what the module computes, by an attribute of the object that is named as the method that does it."""
        if _can_be_put_off(module):
            entry = _entry(module)
            vars(module)[entry] = partial(self._transposed if entry == "forward" else self._convolved, module)

    def unfit(self) -> set[nn.Module]:
        """The convolutions with an output that batch norm did not take, that was used otherwise, or that is kept."""
        return {call.module for stand_in, call in self.calls if call.uses != 1 or stand_in() is not None}

    def _convolved(self, module: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self._stays(input):
            return type(module)._conv_forward(module, input, weight, bias)  # type: ignore[no-any-return]
        padding = module.padding
        if module.padding_mode != "zeros":
            input, padding = F.pad(input, module._reversed_padding_repeated_twice, module.padding_mode), 0
        return self._stand_in(module, input, weight, bias, module.stride, padding, module.dilation, module.groups)

    def _transposed(self, module: Any, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        if self._stays(input) or output_size is not None or module.padding_mode != "zeros":
            return type(module).forward(module, input, output_size)  # type: ignore[no-any-return]
        shape = module.stride, module.padding, module.output_padding, module.groups, module.dilation
        return self._stand_in(module, input, module.weight, module.bias, *shape)

    def _stays(self, input: Tensor) -> bool:
        """Whether a convolution is computed at once: of another thread, or without the versions that tell of changes."""
        return self.thread != threading.get_ident() or torch.is_inference_mode_enabled() or input.is_inference()

    def _stand_in(self, module: nn.Module, input: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
        stand_in = Tensor._make_subclass(_StandIn, _EMPTY)
        stand_in.call = call = _Call(self.weights, module, input, weight, bias, rest)
        self.calls.append((weakref.ref(stand_in), call))
        return stand_in


class _StandIn(Tensor):
    """The output of a convolution that is put off. It computes itself for whatever is not batch norm."""

    call: _Call

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.batch_norm and isinstance(args[0], cls):
            return args[0].call.normed(*args[1:], **kwargs)
        args, kwargs = tree_map_only(cls, lambda stand_in: stand_in.call.value(), (args, kwargs))
        return func(*args, **kwargs)

    def dim(self) -> int:  # which batch norm asks for
        return self.call.input.dim()

    @property
    def ndim(self) -> int:  # type: ignore[override]
        return self.call.input.dim()


class _Call:
    """A convolution of given arguments, and what its output is used for."""

    def __init__(
        self,
        weights: _Weights,
        module: nn.Module,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        rest: Sequence[Any],
    ) -> None:
        self.weights, self.module = weights, module
        self.input, self.weight, self.bias, self.rest = input, weight, bias, rest
        self.circumstances = self._circumstances()
        self.uses = 0

    def _circumstances(self) -> tuple[object, ...]:
        device = self.input.device.type
        autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        return self.input._version, torch.is_grad_enabled(), autocast

    def value(self) -> Tensor:
        """The output, for something other than batch norm."""
        self.uses += 2
        return self._with(self.weight, self.bias)

    def normed(
        self,
        mean: Tensor | None,
        variance: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        training: bool,
        momentum: float,
        eps: float,
    ) -> Tensor:
        """The output after `torch.nn.functional.batch_norm`."""
        transposed = type(self.module) in _TRANSPOSED
        if (
            training
            or mean is None
            or variance is None
            or self.input.dim() != self.weight.dim()  # no batch
            or self.weight.shape[int(transposed)] != len(mean)  # of a transposed one in groups
            or self.circumstances != self._circumstances()
        ):
            return F.batch_norm(self.value(), mean, variance, weight, bias, training, momentum, eps)
        self.uses += 1
        tensors = self.weight, self.bias, mean, variance, weight, bias
        versions = [tensor._version for tensor in tensors if tensor is not None]
        place = self.module, id(mean)
        if (known := self.weights.get(place)) is not None:
            of, of_versions, of_eps, *folded = known
            if of_versions == versions and of_eps == eps and all(a is b for a, b in zip(of, tensors, strict=True)):
                return self._with(*folded)
        scale = torch.rsqrt(variance + eps)
        shift = (-mean if self.bias is None else self.bias - mean) * scale
        if weight is not None:
            scale, shift = weight * scale, shift * weight
        if bias is not None:
            shift = shift + bias
        shape = [1] * self.weight.dim()
        shape[int(transposed)] = -1
        kernel, shift = (self.weight * scale.view(shape)).to(self.weight.dtype), shift.to(self.weight.dtype)
        if not kernel.requires_grad and not shift.requires_grad:  # a graph serves one backward pass
            self.weights[place] = tensors, versions, eps, kernel, shift
        return self._with(kernel, shift)

    def _with(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        function: Callable[..., Tensor] = getattr(F, _function(self.module))
        return function(self.input, weight, bias, *self.rest)


def _function(module: nn.Module) -> str:
    return next(name for kind, name in (_CONVOLUTIONS | _TRANSPOSED).items() if isinstance(module, kind))


def _entry(module: nn.Module) -> str:
    """The name of the method that computes a convolution from its weights."""
    return "_conv_forward" if isinstance(module, tuple(_CONVOLUTIONS)) else "forward"


def _can_be_put_off(module: nn.Module) -> bool:
    """Whether the module is a convolution, and computed by torch's own method."""
    if not isinstance(module, (*_CONVOLUTIONS, *_TRANSPOSED)):
        return False
    entry = _entry(module)
    return entry not in vars(module) and getattr(type(module), entry).__module__ == nn.modules.conv.__name__


def _is_compiled(module: nn.Module) -> bool:
    return type(module).__name__ == "OptimizedModule" or module._compiled_call_impl is not None


_EMPTY = torch.empty(0)
_Containers = (list, dict, set, deque)
_OF_EVERY_MODULE = vars(nn.Module()).keys() - {"_buffers"}


@contextmanager
def _undone(model: nn.Module) -> Iterator[None]:
    """Undo what passes inside do to attributes and buffers of the model, and to lists, dicts and sets among them."""

    def content(container: Any) -> list[Any]:
        return [*container, *container.values()] if isinstance(container, dict) else [*container]

    attributes = [
        (module, {k: v for k, v in vars(module).items() if k not in _OF_EVERY_MODULE}) for module in model.modules()
    ]
    containers = [(v, copy.copy(v)) for _, own in attributes for v in own.values() if isinstance(v, _Containers)]
    buffers = [(buffer, buffer._version, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        for module, own in attributes:
            for name in vars(module).keys() - own.keys() - _OF_EVERY_MODULE:
                del vars(module)[name]
            vars(module).update(own)
        for container, before in containers:
            if [*map(id, content(container))] != [*map(id, content(before))]:
                container.clear()
                getattr(container, "extend" if isinstance(container, (list, deque)) else "update")(before)
        for buffer, version, value in buffers:
            if buffer._version != version:  # a copy that changes nothing would end the graphs that refer to it
                with torch.no_grad():
                    buffer.copy_(value)


def _same_random_numbers(device: torch.device, function: Callable[[], Any]) -> Any:
    """What the function gives; what it draws is drawn again afterwards."""
    with torch.random.fork_rng(
        [] if device.type == "cpu" else [device], device_type=device.type if device.type != "cpu" else "cuda"
    ):
        return function()


def _outputs_and_gradient(function: Callable[[Tensor], Any], x: Tensor) -> list[Tensor]:
    """The tensors of floating point in what the function makes of x, and the gradient at x of a weighted sum of them."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        output = _same_random_numbers(x.device, lambda: function(x))
        outputs = [tensor for tensor in _tensors(output) if tensor.is_floating_point() or tensor.is_complex()]
        with_graph = [tensor for tensor in outputs if tensor.requires_grad]
        weights = [torch.arange(t.numel(), device=t.device).cos().to(t.dtype).view(t.shape) for t in with_graph]
        gradients = torch.autograd.grad(with_graph, x, weights, allow_unused=True) if with_graph else ()
    return [tensor.detach() for tensor in (*outputs, *gradients) if tensor is not None]


def _tensors(output: Any) -> Iterable[Tensor]:
    for leaf in tree_leaves(output):
        if isinstance(leaf, Tensor):
            yield leaf
        elif is_dataclass(leaf):
            yield from _tensors(vars(leaf))


def _difference(these: Sequence[Tensor], those: Sequence[Tensor]) -> float:
    """The largest ‖a − b‖ / ‖b‖; infinite where they are of other shapes or not finite."""
    if [tensor.shape for tensor in these] != [tensor.shape for tensor in those]:
        return math.inf
    pairs = [
        (float((a - b).abs().double().norm()), float(b.abs().double().norm()))
        for a, b in zip(these, those, strict=True)
    ]
    differences = [0.0 if error == 0 else error / max(norm, 1e-300) for error, norm in pairs]
    return max((d if math.isfinite(d) else math.inf for d in differences), default=0.0)


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
