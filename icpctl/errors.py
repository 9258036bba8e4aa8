"""The one error that is meant for the person at the keyboard."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can put right: says what is wrong, where, and the way out, in one paragraph.

    The command line prints it without a traceback and leaves with status 2.
    """


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that is not one of `known`: names the nearest one, or lists a few of them."""
    known, name = sorted(known), abbreviated(name)
    if near := nearest(name, known):
        return UserError(f"Unknown {kind} '{name}'. Did you mean '{near[0]}'?")
    listed = ", ".join(known[:20]) + (", …" if len(known) > 20 else "")
    return UserError(f"Unknown {kind} '{name}'. It can be one of: {listed}.")


OTHER_WORDS = {
    "learning-rate": "lr",
    "lrate": "lr",
    "eta": "icp-lr",
    "baseline": "plain",
    "wd": "weight-decay",
    "bs": "batch-size",
    "img-size": "image-size",
    "resolution": "image-size",
    "gpu": "device",
    "amp": "precision",
    "fp16": "precision",
    "random-state": "seed",
    "logdir": "output",
}
"""Well-known names in other tools, and what icpctl calls the same."""
LEAST_LIKENESS = 0.5
"""Of two names that may be meant for one another, from 0 to 1."""
LEAST_BEGINNING = 3
"""Characters of a word that may stand for the whole of it."""


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """The known names that may be meant, the likeliest first: those with all words of the name (or their beginnings), or else those
    that are spelled like it; "-" and "_" are the same.
    """
    meant = re.sub("[-_]+", "-", name).strip("-").lower()
    for other, ours in OTHER_WORDS.items():
        meant = re.sub(rf"\b{other}\b", ours, meant)
    words = meant.split("-")

    def likeness(candidate: str) -> tuple[bool, float, float, int]:
        written = candidate.replace("_", "-").strip("-").lower()
        others = written.split("-")
        shared = sum(any(_is_beginning(word, other) for other in others) for word in words)
        ratio = difflib.SequenceMatcher(None, meant, written).ratio()
        # resnet21 is as near to resnet32 as to resnet20, but begins like the latter.
        prefix = len(os.path.commonprefix([meant, written]))  # noqa: RUF071, characters are meant
        return shared == len(words), max(ratio, 2 * shared / (len(words) + len(others))), ratio, prefix

    found = {candidate: likeness(candidate) for candidate in known}
    with_all = [each for each in found if found[each][0]]
    alike = [each for each in found if found[each][1] >= LEAST_LIKENESS]
    same = [each for each in with_all if found[each][2] == 1]
    return sorted(same or with_all or alike, key=lambda each: found[each], reverse=True)


def _is_beginning(word: str, other: str) -> bool:
    short, long = sorted((word, other), key=len)
    return word == other or (len(short) >= LEAST_BEGINNING and long.startswith(short))


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


def count(number: int, noun: str) -> str:
    """A number of things, as in "2 runs"."""
    return f"{number} {noun}" + ("" if number == 1 else "s")
