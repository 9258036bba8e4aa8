"""What the command line prints on: its standard output and its standard error."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.control import Control
from rich.segment import ControlType
from rich.text import Text

from icpctl.terminal import Stream, Terminal, forget_odd_sizes, printable

OTHER_PROCESS = (os.environ.get("WORLD_SIZE") or "1") != "1" and (os.environ.get("RANK") or "0") != "0"
"""Whether torchrun started this as one of several and another one, the first, speaks for all."""


forget_odd_sizes()
console = Terminal(quiet=OTHER_PROCESS)
errors = Terminal(stderr=True, quiet=OTHER_PROCESS)


def say(message: str) -> None:
    console.print(message, soft_wrap=True)


def complain(kind: str, message: str) -> None:
    """A paragraph on the standard error: broken into lines in a terminal, one line in a file."""
    errors.print(Text.from_markup(kind), printable(message), soft_wrap=not errors.is_terminal)


def notice(kind: str, message: str) -> None:
    """As `complain`, above the progress display where there is one."""
    if console.is_terminal:
        console.print(Text(kind, "yellow"), printable(message))
    else:
        complain(kind, message)


@contextmanager
def loading(what: str = "torch") -> Iterator[None]:
    """Say on a terminal what is waited for, while it is: libraries take seconds to import."""
    shown = errors.is_terminal and not errors.is_dumb_terminal and what not in sys.modules
    if shown:
        errors.print(f"Loading {what} …", end="")
    try:
        yield
    finally:
        if shown:
            errors.control(Control((ControlType.CARRIAGE_RETURN,), (ControlType.ERASE_IN_LINE, 2)))


def pipe_is_closed() -> bool:
    """Whether the reader of the output went away."""
    return isinstance(sys.stdout, Stream) and isinstance(sys.stdout.failure, BrokenPipeError)


def warn(message: str) -> None:
    complain("[yellow]Warning:[/]", message)


def print_json(content: Mapping[str, object]) -> None:
    """Print as JSON, which has no word for a number that is not finite: that is null."""

    def finite(value: object) -> object:
        if isinstance(value, Mapping):
            return {name: finite(each) for name, each in value.items()}
        return None if isinstance(value, float) and not math.isfinite(value) else value

    sys.stdout.write(json.dumps(finite(content), indent=2) + "\n")
