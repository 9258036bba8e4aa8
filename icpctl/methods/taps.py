"""What passes through a model: the outputs of the modules that are tapped, and its own output without the graph.

This module needs torch alone.
"""

from __future__ import annotations

import copy
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def tap(model: nn.Module, layers: Sequence[str]) -> Iterator[list[Tensor]]:
    """Collect the outputs of the modules at these paths, in the order of `layers`, for one forward pass inside.

    Code that torch.compile made runs uncompiled inside, as it may leave out what collects the outputs.

    Raises:
        ValueError: the model has no module at a path, or one that is never called.
        RuntimeError: at the end, if one of them gave no tensor, or one that was changed in place afterwards or has no
            gradient though the pass has one.
    """
    outputs: dict[str, Any] = {}
    versions: dict[str, int] = {}
    features: list[Tensor] = []
    differentiable = torch.is_grad_enabled()
    detached_layers: set[str] = set()

    def keep(layer: str) -> Callable[[nn.Module, object, Any], None]:
        def hook(module: nn.Module, inputs: object, output: Any) -> None:
            outputs[layer] = output
            versions[layer] = output._version if isinstance(output, Tensor) else 0
            if differentiable and not torch.is_grad_enabled():
                detached_layers.add(layer)

        return hook

    modules = [module_at(model, layer) for layer in layers]
    hooks = []
    try:
        for layer, module in zip(layers, modules, strict=True):
            hooks.append(module.register_forward_hook(keep(layer)))
        with _uncompiled(model):
            yield features
        for layer in layers:
            if layer not in outputs:
                raise RuntimeError(f"the module {layer!r} was not called in this pass: tap another one")
            if not isinstance(output := outputs[layer], Tensor):
                raise RuntimeError(
                    f"the module {layer!r} gave a {type(output).__name__}, no tensor: tap one inside of it or after it"
                )
            if output._version != versions[layer]:
                raise RuntimeError(f"the output of {layer!r} is changed in place by the module after it: tap that one")
            if layer in detached_layers:
                raise RuntimeError(
                    f"the module {layer!r} runs without gradients, so its features cannot be trained: tap one outside of "
                    "torch.no_grad(), and checkpoint with use_reentrant=False"
                )
        features += (outputs[layer] for layer in layers)
    finally:
        for hook in hooks:
            hook.remove()


_STANCE = threading.RLock()  # the stance of torch.compile is that of all threads


@contextmanager
def _uncompiled(model: nn.Module) -> Iterator[None]:
    """Run the compiled parts of a model uncompiled."""
    if any("_orig_mod" in m._modules or m._compiled_call_impl is not None for m in model.modules()):
        with _STANCE, torch.compiler.set_stance("force_eager"):
            yield
    else:
        yield


def module_at(model: nn.Module, layer: str) -> nn.Module:
    """The module at a path; ValueError if there is none, or one that is never called."""
    try:
        module = model.get_submodule(layer)
    except AttributeError:
        near = ", ".join(get_close_matches(layer, [name for name, _ in model.named_modules()], n=5))
        raise ValueError(f"the model has no module {layer!r}{near and f'; near it: {near}'}") from None
    if getattr(module.forward, "__func__", None) is nn.Module.forward:
        inside = next((f": tap one inside of it, such as {layer}.{name}" for name in module._modules), "")
        raise ValueError(f"the module {layer!r} is a {type(module).__name__}, which is never called{inside}")
    return module


def pooled(features: Tensor) -> Tensor:
    """Features (B, C, H, W) averaged over their pixels, or those of tokens (B, N, C) over these; others (B, C) as they are."""
    features = channels_first(features)
    return features.mean(1) if features.dim() == 3 else features.flatten(2).mean(2) if features.dim() > 3 else features


def channels_first(features: Tensor) -> Tensor:
    """Features (B, C, H, W) as they are, and those of some transformers, (B, H, W, C), in this order: they have a square before the channels."""
    if features.dim() == 4 and features.shape[1] == features.shape[2] != features.shape[3]:
        return features.permute(0, 3, 1, 2)
    return features


def unmoved(model: nn.Module, x: Tensor) -> Any:
    """The output of a pass on x (B, …) that moves neither running statistics nor any other buffer: it has copies of them."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    return torch.func.functional_call(model, buffers, (x,))


def buffers_kept(model: nn.Module) -> AbstractContextManager[Any]:
    """Graphs made inside keep copies of the buffers that a later train-mode pass may move, so that it may come before the backward pass.

    Those of torch's own modules are not among them: in train mode batch norm moves its statistics, and does not use them.
    """
    own = ("torch.nn.modules.", "icpctl.training.distributed")
    modules = [module for module in model.modules() if not type(module).__module__.startswith(own)]
    places = {buffer.untyped_storage().data_ptr() for module in modules for buffer in module.buffers(recurse=False)}
    if not places:
        return nullcontext()

    def pack(tensor: Tensor) -> Tensor:
        return tensor.clone() if tensor.untyped_storage().data_ptr() in places else tensor

    return torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)


def detached(value: Any, seen: dict[int, Any] | None = None) -> Any:
    """A copy of a model's output, of whatever structure, without its graph.

    Tensors are detached in containers, dataclasses and other objects; what else these hold is shared with the output.
    """
    seen = {} if seen is None else seen
    if id(value) in seen:
        return seen[id(value)]
    inner = functools.partial(detached, seen=seen)
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, tuple):
        return type(value)(*map(inner, value)) if hasattr(value, "_fields") else tuple(map(inner, value))
    slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
    if isinstance(value, (nn.Module, type)) or not (
        isinstance(value, (list, dict)) or slots or hasattr(value, "__dict__")
    ):
        return value
    result = seen[id(value)] = copy.copy(value)
    if isinstance(value, dict):
        for key, item in value.items():
            dict.__setitem__(result, key, inner(item))
    if isinstance(value, list):
        result[:] = map(inner, value)
    for name, item in (
        *getattr(value, "__dict__", {}).items(),
        *((n, getattr(value, n)) for n in slots if hasattr(value, n)),
    ):
        object.__setattr__(result, name, inner(item))
    return result
