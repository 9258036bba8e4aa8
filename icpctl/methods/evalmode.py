"""Eval mode for what a function reaches, in this thread and those that it starts, restored whatever interrupts.

A global hook would reach the models that other threads train, and code that torch.compile made without it would not call
it. So the modules are looked up before the function runs, in what its code names. This module needs torch alone.
"""

from __future__ import annotations

import functools
import threading
from collections import deque
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType, MethodType
from typing import Any

from torch import Tensor, nn

Names = frozenset[str]
_LARGEST_CONTAINER = 1000  # entries; a larger one holds data, and looking through it for modules would take long


def modules_of(function: Callable[..., Any]) -> list[nn.Module]:
    """The modules that a function can reach, with all modules inside of them.

    These are the function itself, the objects that it is bound to, and what its code names: variables of the functions
    around it, globals, defaults, attributes of those, elements of containers, and so on in the functions that it names.
    A module that is made by the function or looked up by other means is not found.
    """
    found: dict[nn.Module, None] = {}
    seen: dict[tuple[int, Names], object] = {}  # holds the objects, so that no other one gets their id
    todo: deque[tuple[object, Names]] = deque([(function, frozenset())])
    while todo:
        thing, names = todo.popleft()
        if isinstance(thing, Tensor) or (id(thing), names) in seen:
            continue
        seen[id(thing), names] = thing
        if isinstance(thing, nn.Module) and thing not in found:
            for module in thing.modules():
                found[module] = None
                if not _is_closed(type(module)):
                    todo.append((MethodType(type(module).forward, module), frozenset()))
        todo.extend(_parts(thing, names))
    return list(found)


def _parts(thing: object, names: Names) -> Iterator[tuple[object, Names]]:
    """What is next to an object for code that uses these names, and the names that are used of it."""
    if isinstance(thing, FunctionType):
        names = _names(thing.__code__)
        for cell in thing.__closure__ or ():
            try:
                yield cell.cell_contents, names
            except ValueError:  # a variable without a value yet
                continue
        for default in (*(thing.__defaults__ or ()), *(thing.__kwdefaults__ or {}).values()):
            yield default, names
        if not _is_closed(thing):
            yield from ((thing.__globals__[name], names) for name in names & thing.__globals__.keys())
    elif isinstance(thing, MethodType):
        yield thing.__func__, frozenset()
        yield thing.__self__, _names(thing.__func__.__code__) if isinstance(thing.__func__, FunctionType) else names
    elif isinstance(thing, functools.partial):
        yield from ((part, names) for part in (thing.func, *thing.args, *thing.keywords.values()))
    elif isinstance(thing, (list, tuple, set, frozenset, deque, dict)):
        if len(thing) <= _LARGEST_CONTAINER:
            yield from ((part, names) for part in (thing.values() if isinstance(thing, dict) else tuple(thing)))
    else:
        own = getattr(thing, "__dict__", {})
        for name in (*names, "__call__"):
            if name in own:
                yield own[name], names
            elif isinstance(value := getattr(type(thing), name, None), FunctionType):
                if not _is_closed(value):
                    yield MethodType(value, thing), names
            elif isinstance(value, property) and value.fget is not None:
                yield MethodType(value.fget, thing), names
            elif hasattr(value, "__set__"):  # of __slots__
                yield getattr(thing, name, None), names


@functools.lru_cache(maxsize=4096)
def _names(code: CodeType) -> Names:
    """The globals and attributes that code uses, also in the functions inside of it."""
    inner = [_names(constant) for constant in code.co_consts if isinstance(constant, CodeType)]
    return frozenset(code.co_names).union(*inner)


def _is_closed(thing: Any) -> bool:
    """Whether its code reaches no module but those inside of it: torch's, and that which passes through a folded model."""
    return str(thing.__module__).partition(".")[0] == "torch" or thing.__module__ == "icpctl.methods.icp.folding"


class eval_mode:  # noqa: N801 - a context, as torch.no_grad
    """Run what these functions reach, or these modules, in eval mode inside; then restore the mode of each.

    Threads may hold the same modules: the last one to end restores them. An interrupt at any time leaves nothing behind
    if `restore` is called once more after the block.
    """

    _lock = threading.RLock()
    _at_work: dict[eval_mode, None] = {}  # noqa: RUF012

    def __init__(self, *functions: Callable[..., Any]) -> None:
        self.modules = list(dict.fromkeys(module for function in functions for module in modules_of(function)))
        self._held: list[nn.Module] = []

    def __enter__(self) -> None:
        try:
            with self._lock:
                elsewhere = self._held_elsewhere()
                self._held = [module for module in self.modules if module.training or module in elsewhere]
                self._at_work[self] = None
                for module in self._held:
                    module.training = False
        except BaseException:
            self.restore()
            raise

    def __exit__(self, *_: object) -> None:
        try:
            self.restore()
        finally:  # where an interrupt came in between
            self.restore()

    def restore(self) -> None:
        """Put the modules back in train mode that were in it; may be called any number of times."""
        with self._lock:
            self._at_work.pop(self, None)
            elsewhere = self._held_elsewhere()
            for module in self._held:
                if module not in elsewhere:
                    module.training = True

    def _held_elsewhere(self) -> set[nn.Module]:
        return {module for other in self._at_work if other is not self for module in other._held}
