"""Weights to start from, for fine-tuning: read from a file that need not be trusted, and fitted to a model."""

from __future__ import annotations

import hashlib
import io
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from icpctl.errors import UserError, first_names, is_out_of_memory

ENTRIES = ("state_dict", "model")
"""The names under which training programs save a state dict beside other things; icpctl's own is the latter."""
DIGITS = 16
"""Of a SHA-256, which tell files apart."""


def digest(file: Path) -> str:
    """The first digits of a file's SHA-256.

    Raises:
        UserError: it cannot be read.
    """
    return hashlib.sha256(_read(file)).hexdigest()[:DIGITS]


def load(model: nn.Module, file: Path, expected: str | None, num_classes: int, say: Callable[[str], None]) -> None:
    """Put the weights of a file into a model. A head for another number of classes stays fresh, which is told to `say`.

    Args:
        model: of the run, for so many classes.
        file: safetensors, or a state dict saved by torch, by itself or as the entry `state_dict` or `model`.
        expected: the digest that the file has to have.
        num_classes: the length of what is taken for a head.

    Raises:
        UserError: it cannot be read, is another file, or does not fit.
    """
    content = _read(file)
    found = hashlib.sha256(content).hexdigest()[:DIGITS]
    if expected not in (None, found):
        raise changed(file, expected, found)
    given, own = _state(file, content), model.state_dict()
    fresh = [
        name
        for name in given.keys() & own.keys()
        if given[name].shape != own[name].shape
        and given[name].shape[1:] == own[name].shape[1:]
        and own[name].shape[:1] == (num_classes,)
    ]
    shapes = [
        f"{name} {tuple(given[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in given and name not in fresh and given[name].shape != own[name].shape
    ]
    faults = {"it lacks": [n for n in own if n not in given], "the model has no": [n for n in given if n not in own]}
    faults["these have other shapes:"] = shapes
    if any(faults.values()):
        listed = "; ".join(f"{what} {first_names(names)}" for what, names in faults.items() if names)
        raise UserError(f"--weights {file} does not fit the model: {listed}. Give weights of the same architecture.")
    weights: Any = OrderedDict(given | {name: own[name] for name in fresh})
    weights._metadata = getattr(own, "_metadata", None)  # the versions of layers, for which some models ask
    model.load_state_dict(weights)
    others = [name for name in own if name in fresh]
    head = f" {', '.join(others)}: fresh, as the file has them for another number of classes." if others else ""
    say(f"The weights are those of {file} ({found}).{head}")


def changed(file: Path, expected: str | None, found: str) -> UserError:
    """The error for a file that has another content than the run was planned with."""
    return UserError(
        f"--weights {file} has another content than the run is to start from: the SHA-256 begins with {found}, and not with "
        f"{expected}. Restore the file; or give the command anew, without --resume, for other runs."
    )


def _state(file: Path, content: bytes) -> dict[str, Tensor]:
    """The tensors in a file by name, without the prefix of a model that was trained by several processes."""
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load as load_safetensors

            state: Any = load_safetensors(content)
        else:
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged file makes the libraries do
        if is_out_of_memory(error):
            raise
        raise UserError(
            f"--weights {file} cannot be read: it is damaged, or holds more than tensors and plain values. Give a state dict: "
            "safetensors, or what torch.save(model.state_dict(), …) writes."
        ) from None
    for entry in ENTRIES:
        if isinstance(state, dict) and isinstance(state.get(entry), dict):
            state = state[entry]
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(
            f"--weights {file} holds no state dict: names with tensors, by itself or as the entry {' or '.join(ENTRIES)}."
        )
    if all(str(name).startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return {str(name): value for name, value in state.items()}


def _read(file: Path) -> bytes:
    try:
        if file.exists() and not file.is_file():  # a pipe would be waited for
            raise UserError(f"--weights {file} is no file.")
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"--weights {file} cannot be read: {error.strerror}.") from None
