"""Hyper-parameters by name, as a TOML file or a grid gives them; torch-free, as `icpctl.config` is."""

from __future__ import annotations

import codecs
import re
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from icpctl.config import RunConfig, expanded, fault_in_words, located, truth_for_number
from icpctl.errors import UserError, abbreviated, unknown

LARGEST_FILE = 16 * 2**20
"""Bytes of a file of settings or of a study; a longer one is taken for something else."""

_DEEP_KEY = re.compile(r"""(?<![\w"'-])(?:[\w"'-]++[ \t]*+\.[ \t]*+){100}""")


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
        if path.is_fifo() and not path.is_relative_to("/dev"):  # /dev/fd/63 is the output of another command
            raise UserError(f"Cannot read {path}: it is a named pipe. Give a file.")
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from None
    if len(content) > LARGEST_FILE:
        raise UserError(f"{path} is larger than {LARGEST_FILE // 2**20} MiB, so it is no file of settings.")
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UserError(f"{path} is encoded as UTF-16. Save it as UTF-8.")
    try:
        text = content.decode("utf-8-sig")
        if _DEEP_KEY.search(text):  # tomllib takes time and memory by the square of its parts
            raise RecursionError
        return tomllib.loads(re.sub("\r\n?", "\n", text))
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not encoded as UTF-8, at byte {error.start + 1}. Save it as UTF-8.") from None
    except RecursionError:
        raise UserError(f"{path} cannot be read: its lists or tables are nested too deeply.") from None
    except ValueError as error:  # TOMLDecodeError is one; a number of thousands of digits is another
        raise UserError(f"{path} is not valid TOML: {_fault(error)}. Write lines such as `steps = 5`.") from None


def _fault(error: ValueError) -> str:
    if isinstance(error, tomllib.TOMLDecodeError):
        return abbreviated(str(error).rstrip("."))
    return "a number in it has thousands of digits"


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
        if message := truth_for_number(name, value):
            raise UserError(f"{where}: {message}.")
        try:
            settings[name] = _adapter(name).validate_python(value)
            if isinstance(path := settings[name], Path):  # found again from another working directory
                settings[name] = expanded(path).absolute()
            elif name == "dataset":
                settings[name] = located(path)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]
            raise UserError(f"{where}: {fault_in_words({**fault, 'loc': (name,)})}") from None
    return settings


@cache
def _adapter(name: str) -> TypeAdapter[object]:
    return TypeAdapter(RunConfig.model_fields[name].rebuild_annotation())
