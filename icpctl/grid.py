"""The values of a grid: lists and ranges, as text, and the conditions that prune their combinations."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterable, Mapping, Sequence

from simpleeval import EvalWithCompoundTypes, InvalidExpression, NameNotDefined

from icpctl.config import RunConfig, declaration, option
from icpctl.errors import UserError, unknown

EXAMPLE = "--grid steps=1,3,5"
LONGEST = 10_000
"""Values that a range may have; more are a slip of the pen."""

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_RANGE = re.compile(rf"({_NUMBER})\.\.({_NUMBER})(?::(lin|log)(\d+))?")


def parse_grid(texts: Sequence[str]) -> dict[str, list[str]]:
    """The values of each hyper-parameter from texts such as "steps=1,3,5", "steps=1..5", "icp-lr=1e-4..1e-2:log5".

    Raises:
        UserError: a text that is not KEY=VALUES, a key given twice, and as `grid_values`.
    """
    grid: dict[str, list[str]] = {}
    for text in texts:
        key, equals, listed = text.partition("=")
        if not equals:
            raise UserError(f"--grid {text}: this is not a key and its values. Write, for example, {EXAMPLE}.")
        name, values = grid_values(key, listed.split(","), f"--grid {text}")
        if name in grid:
            raise UserError(f"--grid {text}: {name} is given twice. List all its values once, for example {EXAMPLE}.")
        grid[name] = values
    return grid


def grid_values(key: str, listed: Iterable[object], where: str) -> tuple[str, list[str]]:
    """The name of a hyper-parameter and its values, ranges written out; they stay text, which `resolve` checks.

    Of a number, "1..5" is 1, 2, 3, 4, 5; "0..1:lin3" is 0, 0.5, 1; "1e-4..1e-2:log3" is 0.0001, 0.001, 0.01. Points
    between the ends have four significant digits, or are whole where the hyper-parameter is. A value of `layers` joins
    its modules with "+".

    Raises:
        UserError: an unknown key, one that does not make another run, an empty value, a range that is none, a value
            twice; with the place.
    """
    name = key.strip().replace("-", "_")
    if name not in RunConfig.model_fields:
        raise UserError(f"{where}: {unknown('hyper-parameter', name, RunConfig.model_fields)}")
    if not declaration(name).identity:
        raise UserError(f"{where}: {name} does not make another run. Set it for all of them with {option(name)}.")
    kind = str(RunConfig.model_fields[name].annotation)
    values: list[str] = []
    for each in listed:
        text = str(each).lower() if isinstance(each, bool) else str(each).strip()
        if not text:
            raise UserError(f"{where}: a value is empty. Part the values with one comma, for example {EXAMPLE}.")
        if ".." in text and ("int" in kind or "float" in kind):
            values += _range(text, "int" in kind, where)
        else:
            values.append(text)
    if not values:
        raise UserError(f"{where}: {name} has no value. Give one or more, for example {EXAMPLE}.")
    if len(set(values)) < len(values):
        raise UserError(f"{where}: a value is given twice. List each value once, for example {EXAMPLE}.")
    return name, values


def _range(text: str, whole: bool, where: str) -> list[str]:
    match = _RANGE.fullmatch(text)
    if not match:
        raise UserError(f"{where}: {text} is not a range. Write 1..5, 0..1:lin5 or 1e-4..1e-2:log5.")
    first, last, spacing, count = match.groups()
    low, high = float(first), float(last)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise UserError(f"{where}: the range {text} has to go from a smaller to a larger number.")
    if whole and not (low.is_integer() and high.is_integer()):
        raise UserError(f"{where}: the ends of the range {text} have to be whole numbers.")
    if spacing is None and not whole:
        raise UserError(f"{where}: how many values has the range {text}? Write {text}:lin5 or {text}:log5.")
    number = int(count) if spacing else int(high - low) + 1
    if spacing == "log" and low <= 0:
        raise UserError(f"{where}: the range {text} begins at {first}, but a log range has to begin above 0.")
    if not 2 <= number <= LONGEST:
        raise UserError(f"{where}: the range {text} has {number} values. Give one of 2 to {LONGEST:,} values.")
    if spacing == "log":
        inner = [low * (high / low) ** (i / (number - 1)) for i in range(1, number - 1)]
    else:
        inner = [low + (high - low) * i / (number - 1) for i in range(1, number - 1)]
    if whole:
        points = [str(round(point)) for point in (low, *inner, high)]
    else:
        points = [first, *(f"{point:.4g}" for point in inner), last]
    if len(set(map(float, points))) < number:
        raise UserError(f"{where}: the range {text} is too narrow for {number} different values. Give fewer.")
    return points


def holds(condition: str, settings: Mapping[str, object], where: str) -> bool:
    """Whether a condition, such as "steps * icp_lr < 0.02 or direction == 'random'", is true of these settings.

    Raises:
        UserError: it cannot be read, has a name that is not among the settings, or is neither true nor false.
    """
    try:
        ast.parse(condition.strip(), mode="eval")  # an assignment is no condition
        truth = EvalWithCompoundTypes(names=dict(settings), functions={}).eval(condition.strip())
    except NameNotDefined as error:
        message = unknown("hyper-parameter", str(error.name), settings)
        raise UserError(f"{where}: {message} A text is written in quotes, as in optimizer == 'adam'.") from None
    except (SyntaxError, RecursionError, MemoryError):  # the latter two of one that is nested too deeply
        raise UserError(
            f'{where}: this is not a condition. Compare with ==, !=, < or >, for example "steps < 5 or icp_lr == 0.01".'
        ) from None
    except (InvalidExpression, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
        raise UserError(f"{where}: this cannot be evaluated: {str(error).rstrip('.')}.") from None
    if not isinstance(truth, bool):
        raise UserError(
            f"{where}: this is {truth!r}, neither true nor false. Compare it with something, as in steps < 5."
        )
    return truth
