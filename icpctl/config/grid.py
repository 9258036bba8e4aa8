"""The values of a grid: lists and ranges, as text, and the conditions that prune their combinations."""

from __future__ import annotations

import ast
import math
import operator
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from simpleeval import EvalWithCompoundTypes, FeatureNotAvailable, InvalidExpression, NameNotDefined

from icpctl.config import RunConfig, declaration, option
from icpctl.config.settings import typed_settings
from icpctl.errors import UserError, abbreviated, unknown

EXAMPLE = "--grid steps=1,3,5"
LONGEST = 10_000
"""Values that a range may have; more are a slip of the pen."""

NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
"""A number at the end of a range."""
_RANGE = re.compile(rf"({NUMBER})\.\.({NUMBER})(?::(lin|log)(\d+))?", re.ASCII)


def key_of(name: str) -> str:
    """A hyper-parameter as the key of a grid, written as its option is."""
    return name.replace("_", "-")


def parse_grid(texts: Sequence[str]) -> dict[str, list[str]]:
    """The values of each hyper-parameter from texts such as "steps=1,3,5", "steps=1..5", "icp-lr=1e-4..1e-2:log5".

    Raises:
        UserError: a text that is not KEY=VALUES, a key given twice, and as `grid_values`.
    """
    grid: dict[str, list[str]] = {}
    for text in texts:
        key, equals, listed = text.partition("=")
        where = f"--grid {abbreviated(text)}"
        if not equals:
            raise UserError(f"{where}: this is not a key and its values. Write, for example, {EXAMPLE}.")
        name, values = grid_values(key, listed.split(","), where)
        if name in grid:
            raise UserError(f"{where}: {name} is given twice. List all its values once, for example {EXAMPLE}.")
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
    if not declaration(name).identity and name != "weights":  # whose content makes another run
        raise UserError(f"{where}: {name} does not make another run. Set it for all of them with {option(name)}.")
    kind = str(RunConfig.model_fields[name].annotation)
    values: list[str] = []
    for each in listed:
        text = str(each).lower() if isinstance(each, bool) else abbreviated(each, longest=10_000).strip()
        if not text:
            raise UserError(f"{where}: a value is empty. Separate the values by one comma, for example {EXAMPLE}.")
        if ".." in text and ("int" in kind or "float" in kind):
            values += _range(text, "int" in kind, where)
        else:
            values.append(text)
    if not values:
        raise UserError(f"{where}: {name} has no value. Give one or more, for example {EXAMPLE}.")
    first: dict[object, str] = {}
    for text in values:
        meaning = _meaning(name, text)
        if meaning in first:
            words = "" if text == first[meaning] else f", as {first[meaning]} and as {text}"
            raise UserError(f"{where}: a value is given twice{words}. List each value once, for example {EXAMPLE}.")
        first[meaning] = text
    return name, values


def _meaning(name: str, text: str) -> object:
    """Equal for texts that are one value; `resolve` finds fault with a text that is none."""
    try:
        return typed_settings({name: text}, "")[name]
    except UserError:
        return text


def _range(text: str, whole: bool, where: str) -> list[str]:
    match = _RANGE.fullmatch(text)
    text = abbreviated(text)
    if not match:
        raise UserError(f"{where}: {text} is not a range. Write 1..5, 0..1:lin5 or 1e-4..1e-2:log5.")
    first, last, spacing, count = match.groups()
    low, high = float(first), float(last)
    if not low < high:
        raise UserError(f"{where}: the range {text} has to go from a smaller to a larger number.")
    span = high / low if spacing == "log" and low > 0 else high - low
    if not math.isfinite(span):
        raise UserError(f"{where}: the range {text} is too wide. Bring its ends closer together.")
    if whole and not (low.is_integer() and high.is_integer()):
        raise UserError(f"{where}: the ends of the range {text} have to be whole numbers.")
    if spacing is None and not whole:
        raise UserError(f"{where}: how many values has the range {text}? Write {text}:lin5 or {text}:log5.")
    if spacing == "log" and low <= 0:
        raise UserError(f"{where}: the range {text} begins at {first}, but a log range has to begin above 0.")
    number = int(min(float(count) if spacing else span + 1, LONGEST + 1))
    if not 2 <= number <= LONGEST:
        count = "fewer" if number < 2 else "more"
        raise UserError(
            f"{where}: the range {text} has {count} values than it can have. Give one of 2 to {LONGEST:,} values."
        )
    if spacing == "log":
        inner = [low * span ** (i / (number - 1)) for i in range(1, number - 1)]
    else:
        inner = [low + span * i / (number - 1) for i in range(1, number - 1)]
    if whole:
        points = [str(round(point)) for point in (low, *inner, high)]
    else:
        points = [first, *(f"{point:.4g}" for point in inner), last]
    if len(set(map(float, points))) < number:
        raise UserError(f"{where}: the range {text} is too narrow for {number} different values. Give fewer.")
    return points


LONGEST_CONDITION = 10_000
"""Characters of a condition."""


def _of_numbers(function: Callable[..., float]) -> Callable[..., float]:
    """Arithmetic for numbers alone: by a text, % and * are ways to ask for any amount of memory."""

    def calculate(*operands: object) -> float:
        if not all(isinstance(operand, (int, float)) for operand in operands):
            raise TypeError("arithmetic is for numbers")
        return function(*operands)

    return calculate


_ARITHMETIC: dict[type, Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: math.pow,  # of floats: a power of whole numbers can have any number of digits
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}
_COMPARISONS: dict[type, Callable[..., Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda item, items: item in items,
    ast.NotIn: lambda item, items: item not in items,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
    ast.Not: operator.not_,
}
_OPERATORS = {
    **{node: _of_numbers(function) for node, function in _ARITHMETIC.items()},
    **_COMPARISONS,
}
_ALLOWED = (
    *(ast.Constant, ast.Name, ast.Tuple, ast.List, ast.Set, ast.Subscript),
    *(ast.Compare, ast.BoolOp, ast.BinOp, ast.UnaryOp, ast.IfExp),
)
"""What a condition is made of: none of it can call anything, or make more than the condition says."""


def holds(condition: str, settings: Mapping[str, object], where: str) -> bool:
    """Whether a condition, such as "steps * icp_lr < 0.02 or direction == 'random'", is true of these settings.

    Raises:
        UserError: it cannot be read, has a name that is not among the settings, or is neither true nor false.
    """
    try:
        parsed = _parsed(condition.strip())
        evaluator = EvalWithCompoundTypes(names=dict(settings), functions={}, operators=_OPERATORS)
        evaluator.nodes = {node: evaluator.nodes[node] for node in _ALLOWED}
        truth = evaluator.eval(condition, parsed)
    except NameNotDefined as error:
        message = unknown("hyper-parameter", str(error.name), settings)
        raise UserError(f"{where}: {message} A text is written in quotes, as in optimizer == 'adam'.") from None
    except (SyntaxError, RecursionError, MemoryError):  # the latter two of one that is nested too deeply
        raise UserError(
            f'{where}: this is not a condition. Compare with ==, !=, < or >, for example "steps < 5 or icp_lr == 0.01".'
        ) from None
    except FeatureNotAvailable:
        raise UserError(
            f"{where}: this cannot be evaluated. A condition compares hyper-parameters, numbers and texts in quotes, with "
            "and, or, not, in, and arithmetic."
        ) from None
    except (InvalidExpression, TypeError, ValueError, ArithmeticError, LookupError) as error:
        raise UserError(f"{where}: this cannot be evaluated: {abbreviated(error).rstrip('.')}.") from None
    if not isinstance(truth, bool):
        raise UserError(
            f"{where}: this is {abbreviated(truth)}, neither true nor false. Compare it with something, as in steps < 5."
        )
    return truth


@cache
def _parsed(condition: str) -> ast.expr:
    if len(condition) > LONGEST_CONDITION:
        raise SyntaxError
    with warnings.catch_warnings(action="ignore"):  # of "1 is 1", say
        return ast.parse(condition, mode="eval").body  # an assignment is no condition
