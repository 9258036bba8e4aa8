"""A network in eval mode with its batch norm folded: the same numbers for less work.

Batch norm in eval mode is a fixed scale and shift of each channel, which the convolution before it can do itself. The
perturbation passes through the network in eval mode T times with the same weights, so the two are folded once a batch.
This module needs torch alone.
"""

from __future__ import annotations

import copy
import math
import operator
import threading
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import is_dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves, tree_map_only


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
    """After so many trials the model is not folded any more: each costs four passes."""
    NOISE = 4
    """By how many times the network's own noise a result may differ: what a tiny change of the input makes of it."""
    MOST = 0.9
    """The largest ‖a − b‖ / ‖b‖ that noise can excuse; it is 1 where a gradient is lost."""

    def __init__(self, model: nn.Module, say: Callable[[str], None]) -> None:
        super().__init__()
        self.model, self.say = model, say
        self.declined: str | None = None
        """Why the model is not folded."""
        self.norms = 0
        """How many batch norms were folded in the last pass."""
        self._replacements: list[_Replacement] = []
        self._folding = _Folding()
        self._known: dict[Hashable, set[int]] = {}  # numbers of batch norms that passed a trial, for each kind of input
        self._trials = 0

    def now(self) -> FoldedNetwork:
        """Maps inputs (B, …) to what the model, as it is now, makes of them in eval mode, which the caller sees to.

        What was given before does the same from here on.
        """
        self._folding.fold_again()
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
        folding, taken = self._folding, []
        folding.begin(x)
        try:
            for replacement in self._replacements:
                if replacement.still_fits():
                    vars(replacement.module)[replacement.entry] = replacement
                    taken.append(replacement)
            output = self.model(x)
        finally:
            folding.thread = None
            for replacement in taken:
                vars(replacement.module).pop(replacement.entry, None)
        self.norms, unfit = len(folding.calls), folding.unfit()
        folding.calls = []  # they hold the graph of the pass
        return output, unfit

    def _try(self, x: Tensor, kind: Hashable) -> None:
        """Find what can be folded and compare with the plain model; decline where it differs."""
        self._trials += 1
        if self._trials > self.TRIALS:
            return self._decline("its code does something else in pass after pass")
        mapped = torch._C._are_functorch_transforms_active()
        with _undone(self.model):
            try:
                plain = [] if mapped else _outputs_and_gradient(self.model, x)
                found = [_replacement(module, self._folding) for module in self.model.modules()]
                self._replacements = [replacement for replacement in found if replacement is not None]
                while unfit := _same_random_numbers(x.device, lambda: self._pass(x)[1]):
                    self._replacements = [each for each in self._replacements if each.module not in unfit]
                if not self.norms:
                    return self._decline("no batch norm follows a convolution that has no other use")
                norms = self.norms
                if not mapped:
                    differences = _differences(_outputs_and_gradient(lambda z: self._pass(z)[0], x), plain)
                    eps = _eps(x)
                    noise = _differences(_outputs_and_gradient(self.model, x * (1 + eps ** (2 / 3))), plain)
            except Exception as error:  # whatever the model's code does with a stand-in
                reason = f"{type(error).__name__}: {str(error).strip()}".splitlines()[0]
                return self._decline(f"a trial ended in {reason}")
        if not mapped:
            if not all(tensor.isfinite().all() for tensor in plain):
                return None  # a network that diverges has other worries
            if not plain:
                return self._decline("its output has no tensors to compare")
            for difference, magnified in zip(differences, noise, strict=True):
                if difference > max(eps ** (1 / 3), min(self.NOISE * magnified, self.MOST)):
                    return self._decline(f"outputs or input gradients would differ by {difference:.1e}")
        self._known.setdefault(kind, set()).add(norms)
        return None


_Folded = tuple[Sequence[Tensor | None], list[int], float, Tensor, Tensor]
"""The tensors that were folded, their versions, and ε; the weight and the bias that they make."""


class _Folding:
    """What belongs to the passes of one network: weights until they are cleared, the rest until the next pass."""

    def __init__(self) -> None:
        self.weights: dict[tuple[nn.Module, int], _Folded] = {}  # by the convolution and the running mean after it
        self.used: set[tuple[nn.Module, int]] = set()
        self.calls: list[tuple[weakref.ref[Tensor], _Call]] = []
        self.thread: int | None = None
        """Of the pass that is at work; other threads that pass through the model have nothing to do with it."""
        self.device = "cpu"

    def begin(self, x: Tensor) -> None:
        self.calls, self.thread, self.device = [], threading.get_ident(), x.device.type

    def circumstances(self, input: Tensor) -> tuple[object, ...]:
        """What must be the same where a convolution is called and where it is computed."""
        autocast = torch.get_autocast_dtype(self.device) if torch.is_autocast_enabled(self.device) else None
        return input._version, torch.is_grad_enabled(), autocast

    def fold_again(self) -> None:
        """Fold what was folded in the passes since the last time, from the tensors as they are now, all at once.

        That takes an operation of vectors for all batch norms together where one after the other takes one for each: most of the
        operations that folding launches. The values are the same to the bit. What is not folded here is folded where it is met.
        """
        before, self.weights = {place: self.weights[place] for place in self.used if place in self.weights}, {}
        self.used = set()
        # Of batch norms without scale and shift, and of tensors that torch.vmap maps, for which torch has no such operations.
        places = [place for place, (of, *_) in before.items() if of[4] is not None and of[5] is not None]
        if not places or torch._C._are_functorch_transforms_active():
            return
        with torch.no_grad():
            weights, biases, means, variances, scales, shifts = zip(
                *(before[place][0] for place in places), strict=True
            )
            folded_scales = torch._foreach_add(variances, [before[place][2] for place in places])
            torch._foreach_rsqrt_(folded_scales)
            folded_shifts = torch._foreach_neg(means)
            if with_bias := [i for i, bias in enumerate(biases) if bias is not None]:
                torch._foreach_add_([folded_shifts[i] for i in with_bias], [biases[i] for i in with_bias])
            torch._foreach_mul_(folded_shifts, folded_scales)
            torch._foreach_mul_(folded_scales, scales)
            torch._foreach_mul_(folded_shifts, scales)
            torch._foreach_add_(folded_shifts, shifts)
            for place, weight, scale, shift in zip(places, weights, folded_scales, folded_shifts, strict=True):
                tensors, _, eps, *_ = before[place]
                kernel = weight * scale.view(_channels_of(place[0], weight))
                versions = [tensor._version for tensor in tensors if tensor is not None]
                self.weights[place] = tensors, versions, eps, kernel.to(weight.dtype), shift.to(weight.dtype)

    def unfit(self) -> set[nn.Module]:
        """The convolutions with an output that batch norm did not take, that was used otherwise, or that is kept."""
        return {call.module for stand_in, call in self.calls if call.uses != 1 or stand_in() is not None}


class _Replacement:
    """Stands in the place of a method of a module during a pass, as an attribute of that one object."""

    entry = "forward"

    def __init__(self, module: Any, folding: _Folding, function: Callable[..., Tensor]) -> None:
        self.module, self.folding, self.function = module, folding, function
        self.method = getattr(type(module), self.entry)

    def still_fits(self) -> bool:
        """Whether the module still does what torch's own class does."""
        return self.entry not in vars(self.module) and getattr(type(self.module), self.entry) is self.method

    def _stays(self, input: Tensor) -> bool:
        """Whether a convolution is computed at once: of another thread, or without the versions that tell of changes."""
        return self.folding.thread != threading.get_ident() or torch.is_inference_mode_enabled() or input.is_inference()

    def _stand_in(self, *call: Any) -> Tensor:
        stand_in = Tensor._make_subclass(_StandIn, _EMPTY)
        stand_in.call = of_it = _Call(self, *call)
        self.folding.calls.append((weakref.ref(stand_in), of_it))
        return stand_in


class _Convolution(_Replacement):
    entry = "_conv_forward"

    def __call__(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        module = self.module
        if self._stays(input):
            return self.method(module, input, weight, bias)  # type: ignore[no-any-return]
        padding = module.padding
        if module.padding_mode != "zeros":
            input, padding = F.pad(input, module._reversed_padding_repeated_twice, module.padding_mode), 0
        return self._stand_in(input, weight, bias, (module.stride, padding, module.dilation, module.groups))


class _Transposed(_Replacement):
    def __call__(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        module = self.module
        if self._stays(input) or output_size is not None or module.padding_mode != "zeros":
            return self.method(module, input, output_size)  # type: ignore[no-any-return]
        rest = module.stride, module.padding, module.output_padding, module.groups, module.dilation
        return self._stand_in(input, module.weight, module.bias, rest)


class _Norm(_Replacement):
    """Batch norm; takes a stand-in without asking torch, which takes longer."""

    def __call__(self, input: Tensor) -> Tensor:
        module = self.module
        if type(input) is not _StandIn or module.training:
            return self.method(module, input)  # type: ignore[no-any-return]
        mean, variance = module.running_mean, module.running_var
        training = mean is None and variance is None
        return input.call.normed(mean, variance, module.weight, module.bias, training, 0.0, module.eps)


_KINDS: tuple[tuple[type[nn.Module], type[_Replacement], Callable[..., Tensor]], ...] = (
    (nn.Conv1d, _Convolution, F.conv1d),
    (nn.Conv2d, _Convolution, F.conv2d),
    (nn.Conv3d, _Convolution, F.conv3d),
    (nn.ConvTranspose1d, _Transposed, F.conv_transpose1d),
    (nn.ConvTranspose2d, _Transposed, F.conv_transpose2d),
    (nn.ConvTranspose3d, _Transposed, F.conv_transpose3d),
    (_BatchNorm, _Norm, F.batch_norm),
)


def _replacement(module: nn.Module, folding: _Folding) -> _Replacement | None:
    """For a convolution or batch norm that does what torch's own class does."""
    for kind, replacement_of, function in _KINDS:
        if isinstance(module, kind):
            replacement = replacement_of(module, folding, function)
            by_torch = replacement.method.__module__.startswith("torch.nn.modules.")
            return replacement if by_torch and replacement.still_fits() else None
    return None


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
        self, of: _Replacement, input: Tensor, weight: Tensor, bias: Tensor | None, rest: tuple[Any, ...]
    ) -> None:
        self.module, self.folding, self.function = of.module, of.folding, of.function
        self.input, self.weight, self.bias, self.rest = input, weight, bias, rest
        self.circumstances = of.folding.circumstances(input)
        self.uses = 0

    def value(self) -> Tensor:
        """The output, for something other than batch norm."""
        self.uses += 2
        return self.function(self.input, self.weight, self.bias, *self.rest)

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
        tensors = self.weight, self.bias, mean, variance, weight, bias
        if (
            training
            or mean is None
            or variance is None
            or self.input.dim() != self.weight.dim()  # no batch
            or self.circumstances != self.folding.circumstances(self.input)
        ):
            return F.batch_norm(self.value(), mean, variance, weight, bias, training, momentum, eps)
        versions = [tensor._version for tensor in tensors if tensor is not None]
        place = self.module, id(mean)
        if (known := self.folding.weights.get(place)) is not None:
            of, of_versions, of_eps, kernel, shift = known
            if of_versions == versions and of_eps == eps and all(map(operator.is_, of, tensors)):
                self.uses += 1
                self.folding.used.add(place)
                return self.function(self.input, kernel, shift, *self.rest)
        shape = _channels_of(self.module, self.weight)
        if self.weight.shape[shape.index(-1)] != len(mean):  # of a transposed one in groups
            return F.batch_norm(self.value(), mean, variance, weight, bias, training, momentum, eps)
        # Only the gradient of the input is asked for, which goes through a weight that is made of the input.
        constant = all(tensor is None or tensor.is_leaf for tensor in tensors)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not constant):
            scale = torch.rsqrt(variance + eps)
            shift = (-mean if self.bias is None else self.bias - mean) * scale
            if weight is not None:
                scale, shift = weight * scale, shift * weight
            if bias is not None:
                shift = shift + bias
            kernel, shift = (self.weight * scale.view(shape)).to(self.weight.dtype), shift.to(self.weight.dtype)
        if constant:
            self.folding.weights[place] = tensors, versions, eps, kernel, shift
            self.folding.used.add(place)
        self.uses += 1
        return self.function(self.input, kernel, shift, *self.rest)


def _channels_of(convolution: nn.Module, weight: Tensor) -> list[int]:
    """The shape in which a vector of the output's channels multiplies the weight."""
    shape = [1] * weight.dim()
    shape[1 if isinstance(convolution, nn.modules.conv._ConvTransposeNd) else 0] = -1
    return shape


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


def _eps(x: Tensor) -> float:
    """The rounding error of one operation."""
    kind = x.device.type
    return torch.finfo(torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype).eps


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


def _differences(these: Sequence[Tensor], those: Sequence[Tensor]) -> list[float]:
    """‖a − b‖ / ‖b‖ of each two; infinite where they are of other shapes or not finite."""
    if [tensor.shape for tensor in these] != [tensor.shape for tensor in those]:
        return [math.inf] * len(those)
    pairs = [
        (float((a - b).abs().double().norm()), float(b.abs().double().norm()))
        for a, b in zip(these, those, strict=True)
    ]
    differences = [0.0 if error == 0 else error / max(norm, 1e-300) for error, norm in pairs]
    return [d if math.isfinite(d) else math.inf for d in differences]
