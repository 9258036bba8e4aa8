"""Where icpctl prints: nothing that comes from a file or an argument commands the terminal, and no work is lost when the
output cannot be written.
"""

from __future__ import annotations

import codecs
import io
import json
import os
import re
import sys
from collections.abc import Iterable
from typing import Any, TextIO

from rich.console import Console
from rich.segment import Segment

# Control characters, which make up the escape sequences; characters that reorder or hide text; halves of characters,
# which stand for the bytes of a path that is not UTF-8.
_UNSAFE = re.compile(
    r"[\x00-\x1f\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)
_SIZES = range(10, 10_000)
"""Columns or lines that a terminal can have."""


def printable(text: str, keep: str = "") -> str:
    """A text with the characters that a terminal would obey, or cannot show, written as JSON escapes them, but for `keep`."""
    return _UNSAFE.sub(lambda match: match[0] if match[0] in keep else _escaped(match[0]), text)


def _escaped(text: str) -> str:
    return json.dumps(text)[1:-1]


def _escape_unencodable(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    return _escaped(error.object[error.start : error.end]), error.end


codecs.register_error("icpctl-escape", _escape_unencodable)  # JSON stays JSON


class Terminal(Console):
    """A Rich console that takes texts literally and makes them printable."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False, "highlight": False, **options})

    def render(self, *args: Any, **options: Any) -> Iterable[Segment]:
        """As Rich renders, but printable."""
        for segment in super().render(*args, **options):
            yield segment if segment.control else segment._replace(text=printable(segment.text, keep="\n"))


class Stream(io.TextIOWrapper):
    """The standard output or error: a character that it has no code for is escaped; one that cannot be written loses no work."""

    failure: OSError | None = None
    """Why it was given up: the reader went away, the disk is full, the terminal was closed."""

    def write(self, text: str) -> int:
        """As a file does; a failure is kept for later."""
        try:
            return super().write(text)
        except OSError as error:
            self._give_up(error)
            return len(text)

    def flush(self) -> None:
        """As a file does; a failure is kept for later."""
        try:
            super().flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self.failure = self.failure or error
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
        super().flush()  # what is left in the buffer


def guard_streams() -> tuple[Stream, Stream]:
    """Put `Stream` in the place of the standard output and error, which may be closed or of any encoding."""
    for number in range(3):  # a closed one would be given to the next file that is opened
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdout, sys.stderr = output, errors = _guarded(sys.stdout, 1), _guarded(sys.stderr, 2)
    return output, errors


def _guarded(stream: TextIO | None, number: int) -> Stream:
    if stream is None:
        return Stream(open(number, "wb", closefd=False), encoding="utf-8", errors="icpctl-escape")
    assert isinstance(stream, io.TextIOWrapper)
    encoding, line_buffering = stream.encoding, stream.line_buffering
    return Stream(stream.detach(), encoding=encoding, errors="icpctl-escape", line_buffering=line_buffering)


def forget_odd_sizes() -> None:
    """Leave out of the environment what Rich and Typer would fail to read as the size of a terminal."""
    for name in ("COLUMNS", "LINES", "TERMINAL_WIDTH"):
        value = os.environ.get(name)
        if value is not None and not (re.fullmatch("[0-9]{1,5}", value) and int(value) in _SIZES):
            del os.environ[name]
