"""The values of a grid and its conditions: what is written is what is read, and a fault is named with its place."""

from __future__ import annotations

import math
from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icpctl.config import RunConfig, declaration, resolve
from icpctl.config.grid import grid_values, holds, parse_grid
from icpctl.errors import UserError

names = st.sampled_from([name for name in RunConfig.model_fields if declaration(name).identity])
values = st.text(st.characters(exclude_characters=",", exclude_categories=["Cs"]), min_size=1).map(str.strip)
grids = st.dictionaries(
    names, st.lists(values.filter(lambda text: text and ".." not in text), min_size=1, unique=True), max_size=4
)


@given(grids, st.booleans())
def test_a_grid_is_read_as_it_was_written(grid: dict[str, list[str]], dashes: bool) -> None:
    keys = {name: name.replace("_", "-") if dashes else name for name in grid}
    assert parse_grid([f"{keys[name]}={','.join(listed)}" for name, listed in grid.items()]) == grid


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("steps=1..5", ["1", "2", "3", "4", "5"]),
        ("steps=1,3..5,9", ["1", "3", "4", "5", "9"]),
        ("steps=1..100:log3", ["1", "10", "100"]),
        ("steps=0..10:lin3", ["0", "5", "10"]),
        ("icp-lr=1e-4..1e-2:log5", ["1e-4", "0.0003162", "0.001", "0.003162", "1e-2"]),
        ("lr=0..1:lin5", ["0", "0.25", "0.5", "0.75", "1"]),
        ("lr=.5..2:lin2", [".5", "2"]),
        ("train_size=100..102", ["100", "101", "102"]),
        ("dataset=folder:../birds,folder:a..b", ["folder:../birds", "folder:a..b"]),
    ],
)
def test_ranges(text: str, expected: list[str]) -> None:
    (listed,) = parse_grid([text]).values()
    assert listed == expected


@given(st.floats(1e-6, 1e3), st.floats(2, 1e6), st.integers(2, 20), st.sampled_from(["lin", "log"]))
def test_a_range_has_its_ends_and_even_gaps(low: float, ratio: float, number: int, spacing: str) -> None:
    _, listed = grid_values("icp_lr", [f"{low!r}..{low * ratio!r}:{spacing}{number}"], "here")
    points = [float(text) for text in listed]
    assert (points[0], points[-1], len(points)) == (low, low * ratio, number)
    scale = math.log if spacing == "log" else float
    gaps = [scale(b) - scale(a) for a, b in pairwise(points)]
    # Each point is rounded to four digits: at most 5e-4 of itself off, a gap twice that, and another one as much the other way.
    assert max(gaps) - min(gaps) <= 2.001e-3 * (1.0 if spacing == "log" else points[-1])


@given(st.lists(st.text() | st.builds("{}={}".format, names, st.text())))
def test_any_grid_is_read_or_refused(texts: list[str]) -> None:
    with suppress(UserError):
        assert all(parse_grid(texts).values())


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["steps"], "--grid steps: this is not a key"),
        (["stpes=1,2"], "'steps'"),
        (["=1,2"], "Unknown hyper-parameter"),
        (["steps=1,,3"], "--grid steps=1,,3: a value is empty"),
        (["steps="], "a value is empty"),
        (["steps=1,3,1"], "a value is given twice"),
        (["steps=1..3,2"], "a value is given twice"),
        (["device=cpu,cuda"], "does not make another run"),
        (["icp-lr=1", "icp_lr=2"], "--grid icp_lr=2: icp_lr is given twice"),
        (["steps=1..x"], "--grid steps=1..x: 1..x is not a range. Write 1..5"),
        (["steps=5..1"], "from a smaller to a larger"),
        (["steps=1..2.5"], "have to be whole numbers"),
        (["steps=1..3:exp3"], "is not a range"),
        (["icp_lr=1e-4..1e-2"], "how many values has the range"),
        (["icp_lr=0..1:log3"], "a log range has to begin above 0"),
        (["icp_lr=1..2:log1"], "has fewer values"),
        (["steps=1..1000000"], "has more values"),
        (["icp_lr=1..1e999:lin3"], "is too wide"),
        (["icp_lr=-1e308..1e308:lin3"], "is too wide"),
        (["icp_lr=1e-320..1e300:log3"], "is too wide"),
        (["steps=1.." + "9" * 5000], "is too wide"),
        (["steps=1..5:lin" + "9" * 5000], "has more values"),
        (["steps=1..1" + "0" * 200], "has more values"),
        (["steps=١..٥"], "is not a range"),
        (["lr=0.1,1e-1"], "a value is given twice, as 0.1 and as 1e-1"),
        (["steps=1,+1"], "a value is given twice, as 1 and as +1"),
        (["layers=layer1+layer2,layer1 layer2"], "a value is given twice, as"),
        (["extra-task-grad=true,yes"], "a value is given twice, as true and as yes"),
        (["icp_lr=0.10001..0.10002:lin9"], "too narrow for 9 different values"),
        (["steps=1..3:log5"], "too narrow"),
    ],
)
def test_what_is_wrong_with_a_grid_is_said(texts: list[str], said: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_grid(texts)
    assert said in str(caught.value)
    assert str(caught.value).startswith("--grid ")


@pytest.mark.parametrize(
    ("condition", "truth"),
    [
        ("steps == 3", True),
        ("steps * icp_lr < 0.01 or direction == 'random'", True),
        ("not steps in (1, 3)", False),
        ("optimizer == 'adam' and layers == ('layer1', 'layer2', 'layer3')", True),
        (" 2 < steps < 4 ", True),
        ("optimizer in {'adam', 'sgd'} and 'res' in model", True),
        ("train_size is None and layers[0] == 'layer1'", True),
        ("(steps if fast else 0) ** 2 / 3 // 1 % 2 == -(-1)", True),
    ],
)
def test_conditions(condition: str, truth: bool) -> None:
    assert holds(condition, dict(resolve({"optimizer": "adam", "steps": 3})), "--where") is truth


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        ("stps < 3", "Did you mean 'steps'?"),
        ("steps = 3", "this is not a condition"),
        ("steps <", "this is not a condition"),
        ("", "this is not a condition"),
        ("steps", "this is 5, neither true nor false"),
        ("steps < 'a'", "cannot be evaluated"),
        ("1 / 0 < 2", "division by zero"),
        ("train_size < 5", "cannot be evaluated"),
        ("__import__('os').system('true') == 0", "cannot be evaluated"),
        ("layers[9] == 'layer1'", "cannot be evaluated"),
        ("-" * 50_000 + "steps < 3", "this is not a condition"),
        ("1" + "+1" * 4000 + " < steps", "this is not a condition"),
        ("steps < " + "9" * 5000, "this is not a condition"),
        ("2**100000", "cannot be evaluated"),
        ("9**9**9**9 > 1", "cannot be evaluated"),
        ("0x" + "f" * 5000, "neither true nor false"),
        ("1 << 10**9 > 1", "cannot be evaluated"),
        ("'a'.ljust(3000000000) == ''", "compares hyper-parameters"),
        ("'%3000000000d' % 1 == ''", "arithmetic is for numbers"),
        ("f'{seed:>3000000000}' == ''", "compares hyper-parameters"),
        ("'x' * 10**9 == ''", "arithmetic is for numbers"),
        ("'x' + 'y' == 'xy'", "arithmetic is for numbers"),
        ("layers * 10**9 == ()", "arithmetic is for numbers"),
        ("[x for x in layers] == []", "compares hyper-parameters"),
        ("list(layers) == []", "compares hyper-parameters"),
        ("optimizer.upper() == 'ADAM'", "compares hyper-parameters"),
        ("layers.__class__ == 1", "compares hyper-parameters"),
        ("{'a': 1} == 1", "compares hyper-parameters"),
        ("(lambda: 1) == 1", "compares hyper-parameters"),
        ("(-8) ** 0.5 < 1", "cannot be evaluated"),
    ],
)
def test_what_is_wrong_with_a_condition_is_said(condition: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        holds(condition, dict(resolve({})), "--where here")
    assert said in str(caught.value)
    assert str(caught.value).startswith("--where here: ")


@given(st.text())
def test_any_condition_is_true_or_false_or_refused(condition: str) -> None:
    with suppress(UserError):
        assert holds(condition, dict(resolve({})), "here") in (True, False)
