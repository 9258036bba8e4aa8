"""Conditions on the settings of a run, as --where of a report and the claims of a study have them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

from icpctl.config import RunConfig, choices, declaration, settings_of_methods
from icpctl.config.grid import grid_values, holds
from icpctl.config.settings import typed_settings
from icpctl.errors import UserError, unknown

Condition = Callable[[RunConfig], bool]

_KEY = re.compile(r"\s*([A-Za-z0-9_-]+)\s*=(?!=)\s*(.*)", re.DOTALL)
_WORD = re.compile(r"[A-Za-z_]\w*")


def parse_conditions(text: str, where: str) -> list[Condition]:
    """The conditions of a text: "model=resnet20,seed=0..4" (values, and intervals of numbers, ends included), or an
    expression as `icpctl ablate` takes it, "steps * icp_lr < 0.02". A condition on a setting that a run ignores is false.

    Raises:
        UserError: it cannot be read; with the place.
    """
    if names := [name for name in RunConfig.model_fields if text.strip() in choices(name)]:
        written = " or ".join(f"{name}={text.strip()}" for name in names)
        raise UserError(f"{where}: {text.strip()} alone is no condition. Write {written}.")
    if not _KEY.match(text):
        return [_expression(text, where)]
    pieces: dict[str, list[str]] = {}
    name = ""
    for piece in text.split(","):
        if match := _KEY.match(piece):
            name = match[1].replace("-", "_")
            if name in pieces:
                raise UserError(f"{where}: {name} is given twice. List all its values once, as in steps=1,3,5.")
            pieces[name] = []
            piece = match[2]
        pieces[name].append(piece.strip())
    return [_values(name, values, where) for name, values in pieces.items()]


def named_settings(text: str) -> set[str]:
    """The settings that conditions name."""
    names = [match[1] for piece in text.split(",") if (match := _KEY.match(piece))] if _KEY.match(text) else []
    words = {name.replace("-", "_") for name in names} or set(_WORD.findall(text))
    return words & {*RunConfig.model_fields}


def _values(name: str, pieces: Sequence[str], where: str) -> Condition:
    if name not in RunConfig.model_fields or not declaration(name).identity:
        known = [each for each in RunConfig.model_fields if declaration(each).identity]
        raise UserError(f"{where}: {unknown('hyper-parameter', name, known)}")
    kind = str(RunConfig.model_fields[name].annotation)
    intervals: list[tuple[float, float]] = []
    listed: list[str] = []
    for piece in pieces:
        if ".." not in piece or ":" in piece or not ("int" in kind or "float" in kind):
            listed.append(piece)
            continue
        try:
            low, high = map(float, piece.split(".."))
        except ValueError:
            low = high = math.nan
        if not low <= high:
            raise UserError(f"{where}: {piece} is not an interval. Write, for example, seed=0..4 or icp_lr=1e-3..1e-1.")
        intervals.append((low, high))
    texts = grid_values(name, listed, where)[1] if listed else []
    values = [typed_settings({name: text}, where)[name] for text in texts]

    def is_true(config: RunConfig) -> bool:
        if not config.uses(name):
            return False
        value = getattr(config, name)
        return value in values or (value is not None and any(low <= value <= high for low, high in intervals))

    return is_true


def _expression(text: str, where: str) -> Condition:
    of_method = set(settings_of_methods()) & set(_WORD.findall(text))

    def is_true(config: RunConfig) -> bool:
        truth = holds(text, dict(config), where)  # of a baseline too, so that what cannot be read is said
        return truth and all(config.uses(name) for name in of_method)

    return is_true
