"""What the command line prints on: its standard output and its standard error."""

from __future__ import annotations

import os
import sys

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


def pipe_is_closed() -> bool:
    """Whether the reader of the output went away."""
    return isinstance(sys.stdout, Stream) and isinstance(sys.stdout.failure, BrokenPipeError)
