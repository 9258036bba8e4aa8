"""The ranges from which tuning chooses: one for each setting that is tuned."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from icpctl.config import RunConfig, declaration, option
from icpctl.config.grid import NUMBER
from icpctl.config.settings import typed_settings
from icpctl.errors import UserError, abbreviated, unknown

EXAMPLE = "lr=1e-4..1e-1:log"

_RANGE = re.compile(rf"({NUMBER})\.\.({NUMBER})(?::(lin|log))?", re.ASCII)


@dataclass(frozen=True)
class Range:
    """The values of a setting that tuning may choose, both ends included."""

    low: float
    high: float
    log: bool
    """Whether equal ratios are equally likely, rather than equal differences."""
    whole: bool
    """Whether the setting is a whole number."""

    def __str__(self) -> str:
        return f"{self.low:.12g}..{self.high:.12g}" + (":log" if self.log else "")

    @property
    def ends(self) -> tuple[float, float]:
        """The smallest and the largest value, of the setting's own type."""
        return (int(self.low), int(self.high)) if self.whole else (self.low, self.high)


def parse_tune(texts: Iterable[str]) -> dict[str, Range]:
    """The ranges of the settings from texts such as "lr=1e-4..1e-1:log,icp-lr=1e-3..1e-1:log".

    Raises:
        UserError: a text that is not KEY=RANGE, a key given twice, and as `ranges_of`.
    """
    pairs = []
    for piece in (piece for text in texts for piece in text.split(",")):
        key, equals, text = piece.partition("=")
        if not equals:
            raise UserError(
                f"--tune {abbreviated(piece)}: this is not a setting and its range. Write, for example, --tune {EXAMPLE}."
            )
        pairs.append((key.strip(), text.strip()))
    return ranges_of(pairs, "--tune")


def ranges_of(pairs: Iterable[tuple[str, object]], where: str) -> dict[str, Range]:
    """The ranges of the settings, by their names as `RunConfig` has them.

    Raises:
        UserError: a setting that does not exist, is given twice, is no number, or says what is trained rather than how; a range
            that is none, or whose ends the setting cannot have; with the place.
    """
    found: dict[str, Range] = {}
    for key, text in pairs:
        name = key.replace("-", "_")
        if name in found:
            raise UserError(f"{where}: {name} is given twice. Give one range for each setting.")
        found[name] = _range(name, abbreviated(text), f"{where} {abbreviated(key)}")
    return found


def _range(name: str, text: str, where: str) -> Range:
    if name not in RunConfig.model_fields:
        raise UserError(f"{where}: {unknown('hyper-parameter', name, RunConfig.model_fields)}")
    kind = RunConfig.model_fields[name].annotation
    if kind not in (int, float):
        raise UserError(
            f"{where}: {name} is no number, so it has no range. Vary it with --grid, where each value is tuned by itself; "
            f"or set it for all runs, with {option(name)}."
        )
    declared = declaration(name)
    if declared.group == "run" or not declared.identity:
        raise UserError(
            f"{where}: {name} says what is trained, and tuning chooses how. Set it for all runs, with {option(name)}."
        )
    match = _RANGE.fullmatch(text)
    if not match:
        raise UserError(
            f"{where}: {text} is not a range to choose from. Write, for example, 0.1..0.9 or 1e-4..1e-1:log."
        )
    low, high, log = float(match[1]), float(match[2]), match[3] == "log"
    if not (low < high and math.isfinite(high - low)):
        raise UserError(f"{where}: the range {text} has to go from a smaller to a larger number.")
    if log and low <= 0:
        raise UserError(f"{where}: the range {text} begins at {match[1]}, but a log range has to begin above 0.")
    if kind is int and not (low.is_integer() and high.is_integer()):
        raise UserError(f"{where}: the ends of the range {text} have to be whole numbers, as {name} is one.")
    for end in match.group(1, 2):
        typed_settings({name: end}, where)
    return Range(low, high, log, kind is int)


def texts_of(ranges: Mapping[str, Range]) -> dict[str, str]:
    """The ranges as text, which `ranges_of` reads."""
    return {name: str(each) for name, each in ranges.items()}
