"""Hyper-parameters by name, as a TOML file or a grid gives them; torch-free, as `icpctl.config` is."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from icpctl.config import RunConfig, fault_in_words, located, truth_for_number
from icpctl.errors import UserError, unknown


def read_toml(path: Path) -> dict[str, object]:
    """Hyper-parameters from a TOML file of the same names; `icp-lr` and `icp_lr` are the same.

    Raises:
        UserError: the file cannot be read or is not TOML; and as `typed_settings`.
    """
    return typed_settings(load_toml(path), str(path))


def load_toml(path: Path) -> dict[str, Any]:
    """What a TOML file says.

    Raises:
        UserError: the file cannot be read or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid TOML: {error}. Write lines such as `steps = 5`.") from None


def typed_settings(values: Mapping[str, object], where: str) -> dict[str, object]:
    """Hyper-parameters by name, each of its own type; `icp-lr` and `icp_lr` are the same.

    Raises:
        UserError: a name is unknown or given twice, or a value is out of range; with the place. Whether the values fit
            together is checked by `resolve`.
    """
    settings: dict[str, object] = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        if name not in RunConfig.model_fields:
            raise UserError(f"{where}: {unknown('hyper-parameter', name, RunConfig.model_fields)}")
        if name in settings:
            raise UserError(f"{where}: {name} is given twice, as {name} and as {name.replace('_', '-')}.")
        field = RunConfig.model_fields[name]
        if message := truth_for_number(name, value):
            raise UserError(f"{where}: {message}.")
        try:
            settings[name] = TypeAdapter(field.rebuild_annotation()).validate_python(value)
            if isinstance(path := settings[name], Path):  # found again from another working directory
                settings[name] = path.expanduser().absolute()
            elif name == "dataset":
                settings[name] = located(path)
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]
            raise UserError(f"{where}: {fault_in_words({**fault, 'loc': (name,)})}") from None
    return settings
