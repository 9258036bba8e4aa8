"""What there is to choose from: models, data sets, methods and metrics, with a line each."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Literal

from icpctl.errors import UserError

Kind = Literal["models", "datasets", "methods", "metrics"]
Entry = tuple[str, str]
"""A name, and what it is."""


def entries(kind: Kind, pattern: str = "") -> list[Entry]:
    """The entries of a kind; with a shell pattern, those whose name, or what follows its last "/", matches it, whatever its case.

    A pattern without `*`, `?` or `[` is looked for anywhere in the name. The models of timm are listed only with a pattern, as
    there are more than a thousand.

    Raises:
        UserError: none matches.
    """
    listed = list(_ALL[kind]())
    if not pattern:
        return listed
    if kind in _MORE:
        listed += _MORE[kind]()
    wanted = pattern.lower()
    if not any(character in wanted for character in "*?["):
        wanted = f"*{wanted}*"
    found = [
        entry for entry in listed if any(fnmatchcase(name.lower(), wanted) for name in (entry[0], _last(entry[0])))
    ]
    if not found:
        raise UserError(f"No name among the {kind} matches '{pattern}'. `icpctl list {kind}` shows what there is.")
    return found


def _last(name: str) -> str:
    return name.rpartition("/")[2]


def _models() -> Iterable[Entry]:
    from icpctl.models import listed

    return listed()


def _datasets() -> Iterable[Entry]:
    from icpctl.data import DATASETS

    yield from DATASETS.items()
    yield "folder:PATH", "your own images, in PATH/train/CLASS and PATH/test/CLASS (or val), or in PATH/CLASS"
    yield "hf:OWNER/NAME", "a data set of the Hugging Face hub, or hf:PATH for one on the disk; needs icpctl[hf]"


def _methods() -> Iterable[Entry]:
    from icpctl.config.catalogue import METHODS

    return ((name, row.summary) for name, row in METHODS.items())


def _metrics() -> Iterable[Entry]:
    from icpctl.runs.measures import MEASURES

    return (
        (name, measure.meaning + (", less is better" if measure.falls else "")) for name, measure in MEASURES.items()
    )


def _timm_models() -> Iterable[Entry]:
    from icpctl.models import timm

    return ((name, "timm classifier") for name in timm.names())


_MORE = {"models": _timm_models}
"""The entries that are listed only with a pattern."""
_ALL = {"models": _models, "datasets": _datasets, "methods": _methods, "metrics": _metrics}
