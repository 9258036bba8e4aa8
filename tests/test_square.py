"""The square around a bounding box."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from icpctl.data.folders import square
from icpctl.data.source import Box


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((0, 0, 10, 4), (0, 0, 10, 10)),  # in the corners: moved inside
        ((90, 46, 10, 4), (90, 40, 100, 50)),
        ((0, 46, 4, 4), (0, 46, 4, 50)),
        ((20, 10, 5, 8), (18, 10, 26, 18)),  # half a pixel goes to the left
        ((10, 20, 80, 20), (25, 0, 75, 50)),  # too long for the image: its shorter side
        ((0, 0, 100, 50), (25, 0, 75, 50)),
        ((92, 5, 40, 10), (90, 5, 100, 15)),  # over the edge: the part inside counts
        ((-3, -3, 8, 8), (0, 0, 5, 5)),
        ((20.5, 10.5, 4, 2), (20, 9, 25, 14)),
    ],
)
def test_square(box: Box, expected: tuple[int, int, int, int]) -> None:
    assert square(box, (100, 50)) == expected


def test_true_box_over_the_edge() -> None:
    assert square((92.0, 51.0, 440.0, 303.0), (500, 410)) == (92, 0, 500, 408)  # image 1218 of CUB-200-2011


@given(st.data(), st.integers(1, 300), st.integers(1, 300))
def test_square_around_any_box(data: st.DataObject, width: int, height: int) -> None:
    x, y = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    w, h = data.draw(st.integers(1, width - x)), data.draw(st.integers(1, height - y))
    left, top, right, bottom = square((x, y, w, h), (width, height))
    side = right - left
    assert side == bottom - top == min(max(w, h), width, height)
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    for start, length, low, limit in ((x, w, left, width), (y, h, top, height)):
        if max(w, h) <= min(width, height):
            assert low <= start
            assert start + length <= low + side
        off = (2 * low + side) - (2 * start + length)  # twice the distance of the centres
        assert off in (0, -1) or (off > 0 and low == 0) or (off < 0 and low + side == limit)


@given(*[st.floats(-50, 150) for _ in range(2)], *[st.floats(0.01, 150) for _ in range(2)])
def test_square_of_fractions_and_over_the_edge(x: float, y: float, w: float, h: float) -> None:
    assume(x < 100 and y < 50 and x + w > 0 and y + h > 0)
    left, top, right, bottom = square((x, y, w, h), (100, 50))
    assert 0 < right - left == bottom - top <= 50
    assert 0 <= left < right <= 100
    assert 0 <= top < bottom <= 50
