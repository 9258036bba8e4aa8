"""How a hyper-parameter is declared."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, cast

from pydantic import Field
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from icpctl.config.catalogue import INPUT_OPTIMIZERS, METHODS
from icpctl.config.recipes import recipe_default, recipe_text

GROUPS = {
    "run": "Run",
    "perturbation": "ICP: perturbation",
    "distillation": "ICP: self-distillation",
    "schedule": "ICP: self-distillation",
    "features": "Features (methods that compare features)",
    "training": "Training recipe",
    "labels": "Labels and mixing of images",
    "ps-kd": "PS-KD",
    "cs-kd": "CS-KD",
    "dlb": "DLB",
    "ddgsd": "DDGSD",
    "byot": "BYOT",
    "sam": "SAM",
    "vat": "VAT",
    "generation": "VAE",
    "machine": "Machine",
}


def split_names(value: object) -> object:
    """ "layer1,layer2" as a list; in a grid, where the comma parts the values, "layer1+layer2"."""
    return tuple(part for part in re.split(r"[,+\s]+", value) if part) if isinstance(value, str) else value


@dataclass(frozen=True)
class Declared:
    """What a declaration says beside type, range and default."""

    group: str
    source: str = ""
    unit: str = ""
    default: str = ""  # in words, where the default depends on other settings
    common: bool = False  # whether the short help shows it
    identity: bool = True  # whether a change of it makes another run
    stacks: bool = False  # whether runs that differ in it can be trained together
    listed: Callable[[], Collection[str]] = tuple  # its values, where they are a list that can grow
    earlier: str = ""  # its value in runs of versions that did not have it yet, where that is not the default
    usual: Any = None  # the value that the id of a run leaves out, where the default depends on other settings


def field(default: Any, help: str, group: str, **kwargs: Any) -> Any:
    declared: dict[str, Any] = {
        name: kwargs.pop(name)
        for name in ("source", "unit", "common", "identity", "stacks", "earlier", "listed", "usual")
        if name in kwargs
    }
    declared["default"] = kwargs.pop("default_text", "")
    kwargs["default_factory" if callable(default) else "default"] = default
    extra: Any = {"declared": Declared(group, **declared)}
    return Field(description=help, json_schema_extra=extra, **kwargs)


def default_of(field: FieldInfo, settings: Mapping[str, Any]) -> Any:
    """The value of a setting that is not given, beside the others. As pydantic's, which looks at the signature each time."""
    if field.default_factory is None:
        return field.default
    return cast(Callable[[Mapping[str, Any]], Any], field.default_factory)(settings)


def of_recipe(name: str, help: str, **kwargs: Any) -> Any:
    """A hyper-parameter whose default comes from --recipe."""
    return field(
        lambda data: recipe_default(name, data["recipe"], data["model"]),
        help,
        "training",
        default_text=recipe_text(name),
        **kwargs,
    )


def of_method(name: str, usual: Any, help: str, default_text: str, **kwargs: Any) -> Any:
    """A setting of every method of classification, for which some methods have a default of their own."""
    return field(
        lambda data: METHODS[data["method"]].sets.get(name, usual),
        help,
        "labels",
        default_text=default_text,
        usual=usual,
        **kwargs,
    )


NO_OPTIMIZER = "none"
"""Stands for the input optimizer of a run that perturbs nothing."""


def known_method(name: str) -> str:
    return _one_of(METHODS, name)


def known_optimizer(name: str) -> str:
    return _one_of((*INPUT_OPTIMIZERS, NO_OPTIMIZER), name)


def _one_of(known: Collection[str], name: str) -> str:
    if name not in known:
        raise PydanticCustomError("literal_error", "")
    return name
