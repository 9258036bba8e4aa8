"""A part of the training images with the shares of their classes."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from icpctl.data import stratified_part


@given(
    counts=st.lists(st.integers(0, 12), min_size=1, max_size=6), number=st.integers(0, 60), left_out=st.integers(0, 5)
)
def test_the_classes_keep_their_shares(counts: list[int], number: int, left_out: int) -> None:
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(len(counts)), counts))
    indices = np.arange(len(labels))[left_out:]
    part = stratified_part(labels, indices, number)
    assert len(part) == min(number, len(indices))
    assert part.tolist() == sorted(set(part.tolist()))
    assert set(part) <= set(indices)
    there = np.bincount(labels[indices], minlength=len(counts))
    taken = np.bincount(labels[part], minlength=len(counts))
    if len(indices):
        assert (np.abs(taken - there * len(part) / len(indices)) <= 1).all()


def test_it_is_the_same_always_and_grows() -> None:
    labels = np.repeat(np.arange(5), 20)
    parts = [set(stratified_part(labels, np.arange(100), number)) for number in (10, 10, 30)]
    assert parts[0] == parts[1] < parts[2]
    assert parts[0] != set(range(10))
