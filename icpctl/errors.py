"""The one error that is meant for the person at the keyboard."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can put right: says what is wrong, where, and the way out, in one paragraph.

    The command line prints it without a traceback and leaves with status 2.
    """


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that is not one of `known`: names the nearest one, or lists a few of them."""
    known, name = sorted(known), abbreviated(name)

    def nearness(candidate: str) -> tuple[float, int]:
        ratio = difflib.SequenceMatcher(None, name, candidate).ratio()
        # resnet21 is as near to resnet32 as to resnet20, but begins like the latter.
        return ratio, len(os.path.commonprefix([name, candidate]))  # noqa: RUF071, characters are meant

    nearest = max(difflib.get_close_matches(name, known, n=10, cutoff=0.5), key=nearness, default=None)
    if nearest:
        return UserError(f"Unknown {kind} '{name}'. Did you mean '{nearest}'?")
    listed = ", ".join(known[:20]) + (", …" if len(known) > 20 else "")
    return UserError(f"Unknown {kind} '{name}'. It can be one of: {listed}.")


def near_names(name: str, known: Iterable[str]) -> str:
    """A sentence on the names that are near one that is unknown, the nearest first; empty where none is."""
    near = difflib.get_close_matches(name, list(known), n=5, cutoff=0.6)
    return f" Near it: {', '.join(near)}." if near else ""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory has run out, on whichever device."""
    signs = ("can't allocate memory", "out of memory", "ALLOC_FAILED")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)
    )


def abbreviated(value: object, longest: int = 200) -> str:
    """A value for a message, as text; the middle of a long one is left out, and one that cannot be written is named by its type."""
    try:
        text = str(value)
    except (ValueError, RecursionError):  # a number of thousands of digits; a table in a table in a table …
        return f"a huge {type(value).__name__}"
    return text if len(text) <= longest else f"{text[: longest - 20]} … {text[-10:]}"


def first_names(names: Iterable[str], limit: int = 3) -> str:
    """The first of the names, and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + more
