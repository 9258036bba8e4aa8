"""A user's own model: `package.module:factory`, a function of the number of classes, from the working directory or installed.

Importing runs the user's code. So nothing here is called by what only reads results, such as `icpctl report`.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import sys
import traceback
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from icpctl.config import as_factory
from icpctl.errors import UserError, abbreviated, is_out_of_memory, unknown

_built: weakref.WeakSet[nn.Module] = weakref.WeakSet()


@dataclass(frozen=True)
class Factory:
    """A function of the user, and the file that it came from."""

    function: Callable[[int], object]
    file: Path
    sha256: str
    """Of the file when it was imported: what this process runs, whatever became of the file since."""


def is_own(name: str) -> bool:
    """Whether a model's name is that of a user's factory."""
    return ":" in name


def find(name: str) -> Factory:
    """The factory of this name.

    Raises:
        UserError: it cannot be imported, is not there, or does not take the number of classes.
    """
    return _find(name, Path.cwd())


def build(name: str, num_classes: int) -> nn.Module:
    """What the factory makes for so many classes.

    Raises:
        UserError: the factory fails, or what it makes cannot be trained.
    """
    function = find(name).function
    with _importable(Path.cwd()):
        try:
            model = function(num_classes)
        except (Exception, SystemExit) as error:
            if is_out_of_memory(error):
                raise
            raise UserError(f"{name}({num_classes}) failed: {in_words(error)}.") from error
    if not isinstance(model, nn.Module):
        raise UserError(f"{name}({num_classes}) returned {_a(type(model))}. It has to return a torch.nn.Module.")
    if model in _built:
        raise UserError(
            f"{name} returned the same model twice, so a run would go on with the weights of another. Make a new one in each call."
        )
    _built.add(model)
    if not any(True for _ in model.parameters()):
        raise UserError(f"{name}({num_classes}) returned a model without parameters, so there is nothing to train.")
    if any(is_lazy(parameter) for parameter in model.parameters()):
        raise UserError(
            f"{name}({num_classes}) returned a model with lazy modules, whose shapes are not known yet. Give their sizes."
        )
    return model


def stages(model: nn.Module) -> tuple[str, ...]:
    """The attribute `stages` of a model, if it lists module paths."""
    listed = getattr(model, "stages", ())
    is_list = isinstance(listed, (list, tuple)) and all(isinstance(path, str) for path in listed)
    return tuple(listed) if is_list else ()


def source(name: str) -> dict[str, str]:
    """Where the code of a model came from, for the record of a run: `file` and `sha256`; empty for models of a package."""
    if not is_own(name):
        return {}
    factory = find(name)
    return {"file": str(factory.file), "sha256": factory.sha256}


def change(name: str, before: Any) -> str:
    """In words how the code of a model differs from what a run recorded of it, as `source`; empty if it does not."""
    now = source(name)
    if not now or not isinstance(before, dict) or before.get("sha256") in (None, now["sha256"]):
        return ""
    return (
        f"{now['file']}, which has the model {name}, is not the file that the run was trained with: its SHA-256 was "
        f"{before['sha256'][:16]}…, and is {now['sha256'][:16]}… now."
    )


def in_words(error: BaseException) -> str:
    """An error of the user's code: its type, what it says, and where in their code it was raised."""
    said = abbreviated(" ".join(str(error.msg if isinstance(error, SyntaxError) else error).split()), 400)
    name = type(error).__name__
    return f"{name}: {said.rstrip('.')}{_place(error)}" if said else f"{name}{_place(error)}"


def _place(error: BaseException) -> str:
    if isinstance(error, SyntaxError):
        place = (error.filename, error.lineno)
    else:
        frames = traceback.extract_tb(error.__traceback__)
        packages = (torch.__file__, importlib.__file__)
        libraries = (*(str(Path(file).parent) for file in packages), str(Path(__file__).parents[1]), "<")
        if not (theirs := [frame for frame in frames if not frame.filename.startswith(libraries)]):
            return ""
        place = (theirs[-1].filename, theirs[-1].lineno)
    file = Path(place[0] or "?")
    return f" ({file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file}:{place[1]})"


@cache
def _find(name: str, folder: Path) -> Factory:
    module_name, _, path = name.partition(":")
    with _importable(folder):
        try:
            module = importlib.import_module(module_name)
        except (Exception, SystemExit) as error:
            missing = error.name if isinstance(error, ModuleNotFoundError) else None
            if missing and f"{module_name}.".startswith(f"{missing}."):
                if (written := as_factory(name)) and written != name:
                    raise UserError(f"{name} is not the name of a module and its function. Write {written}.") from None
                raise UserError(
                    f"There is no module {missing} for the model {name}, neither in the working directory {folder} nor among the "
                    f"installed packages. Give the command in the folder that has {missing.partition('.')[0]}, or install it."
                ) from None
            raise UserError(f"The module of the model {name} cannot be imported: {in_words(error)}.") from error
    function: Any = module
    for part in path.split("."):
        if not hasattr(function, part):
            public = [
                each for each in dir(function) if callable(getattr(function, each, None)) and not each.startswith("_")
            ]
            raise UserError(
                f"{getattr(module, '__file__', module_name)}: {unknown('factory', part, public or ['none'])}"
            )
        function = getattr(function, part)
    if not callable(function) or isinstance(function, nn.Module):
        raise UserError(f"{name} is {_a(type(function))}. It has to be a function of the number of classes.")
    try:
        inspect.signature(function).bind(10)
    except TypeError as error:
        raise UserError(
            f"{name}{inspect.signature(function)} does not take the number of classes alone: {error}. Write a function "
            f"{path.rpartition('.')[2]}(num_classes) that returns the model."
        ) from None
    except ValueError:  # a function of C, which does not say what it takes
        pass
    try:
        file = inspect.getsourcefile(inspect.unwrap(function))
    except TypeError:  # an object that can be called
        file = None
    location = Path(file or getattr(module, "__file__", None) or "")
    if not location.is_file():
        raise UserError(f"The source of {name} is not in a file, so it cannot be recorded. Write it into one.")
    return Factory(function, location, hashlib.sha256(location.read_bytes()).hexdigest())


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """The working directory goes before all packages meanwhile, as in `python script.py`; and after them from then on, for what
    the model imports when it is called.
    """
    importlib.invalidate_caches()  # the file may have been written a moment ago
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        if str(folder) not in sys.path:
            sys.path.append(str(folder))


def _a(kind: type) -> str:
    return f"an object of type {kind.__name__}"
