"""Names of data sets that are paths, and paths."""

from __future__ import annotations

import os
from pathlib import Path

from icpctl.errors import UserError

FOLDER = "folder:"
"""Begins the name of a data set of class folders; its path follows."""

HUGGING_FACE = "hf:"
"""Begins the name of a data set of the Hugging Face hub, or of a path to one on the disk; see `is_path`."""


def expanded(path: Path) -> Path:
    """A path, which may begin with the home directory, "~".

    Raises:
        UserError: the home directory is not known; a character that no path can have.
    """
    if "\0" in str(path):
        raise UserError(f"A path cannot have the character NUL: {path}")
    try:
        return path.expanduser()
    except RuntimeError:
        raise UserError(f"The home directory in {path} is not known. Write the path out.") from None


def is_path(dataset: str) -> bool:
    """Whether a data set's name has a path: `folder:PATH`, or `hf:PATH` where PATH begins with /, . or ~."""
    return dataset.startswith((FOLDER, *(HUGGING_FACE + start for start in "/.~")))


def short_name(dataset: str) -> str:
    """The name of a data set, without the way to it where it has a path."""
    kind, _, path = dataset.partition(":")
    return f"{kind}:{Path(path).name}" if path and is_path(dataset) else dataset.removesuffix(":")


def located(dataset: object) -> object:
    """A data set's name; one with a path has the absolute one, so that it is one name from every working directory."""
    kind, _, path = (part.strip() for part in str(dataset).partition(":"))
    if not path or not is_path(f"{kind}:{path}"):
        return dataset
    return f"{kind}:" + os.path.abspath(os.path.expanduser(path))  # noqa: PTH100, PTH111, pathlib keeps .., and fails without a home


def as_folder(name: str) -> str:
    """A data set's name for a folder that was given without "folder:"; empty where there is no such folder."""
    return FOLDER + name if os.path.isdir(os.path.expanduser(name)) else ""  # noqa: PTH111, PTH112, of any text


def as_factory(name: str) -> str:
    """A model's name for a file in the working directory that was given as `mine`, `mine.py`, `mine.py:tiny` or `mine.tiny`; empty
    where there is no such file.
    """
    path, _, function = name.partition(":")
    whole = os.path.relpath(path.removesuffix(".py") or ".").replace("/", ".")
    for module, factory in ((whole, function or "NAME"), *([] if function else [whole.rpartition(".")[::2]])):
        is_name = all(part.isidentifier() for part in module.split("."))
        if is_name and os.path.isfile(module.replace(".", "/") + ".py"):  # noqa: PTH113, of any text
            return f"{module}:{factory}"
    return ""
