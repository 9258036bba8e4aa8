"""The part of the training images that a run trains on, and the part that it holds out."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from icpctl.errors import UserError

SEED = 0  # fixed, so that every run of a study trains on the same images
MOST_NAMED = 10  # classes in a message


def split_train(
    labels: NDArray[np.int64], train_size: int | None, val_fraction: float, classes: Sequence[str] = ()
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of the training and of the validation images, both sorted.

    First takes `train_size` images (None: all), then holds out the fraction `val_fraction`, in [0, 1), of them.
    Both steps keep the shares of the classes, so a balanced data set stays balanced to within one image a class.
    The same arguments give the same split, always.

    Args:
        labels: (N,) class indices of all training images.
        classes: their names, for the message of an error.

    Raises:
        UserError: there are fewer than `train_size` images, or too few for every class to be on both sides.
    """
    chosen = np.arange(len(labels), dtype=np.int64)
    if train_size is not None and train_size > len(labels):
        raise UserError(
            f"A training set of {train_size} images was asked for, but there are only {len(labels)}. "
            f"Choose a train size of at most {len(labels)}."
        )
    if train_size is not None and train_size < len(labels):
        chosen, _ = _stratified(labels, chosen, len(labels) - train_size, classes, for_train_size=True)
    if val_fraction == 0:
        return chosen, np.empty(0, dtype=np.int64)
    return _stratified(labels, chosen, round(val_fraction * len(chosen)), classes)


def stratified_part(labels: NDArray[np.int64], indices: NDArray[np.int64], number: int) -> NDArray[np.int64]:
    """So many of the images at these indices, sorted: always the same ones, with the shares of the classes kept to within one image.

    Args:
        labels: (N,) class indices of all images.
        indices: of those to choose from.
        number: of images; all of them, if there are no more.
    """
    shuffled = np.random.default_rng(SEED).permutation(indices)
    by_class = np.argsort(labels[shuffled], kind="stable")
    _, firsts, counts = np.unique(labels[shuffled][by_class], return_index=True, return_counts=True)
    turn = np.empty(len(shuffled))
    turn[by_class] = (np.arange(len(shuffled)) - np.repeat(firsts, counts) + 0.5) / np.repeat(counts, counts)
    return np.sort(shuffled[np.argsort(turn, kind="stable")[:number]])


def _stratified(
    labels: NDArray[np.int64],
    indices: NDArray[np.int64],
    rest: int,
    classes: Sequence[str],
    for_train_size: bool = False,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """`indices` without `rest` of them, and these, with the shares of the classes kept."""
    from sklearn.model_selection import train_test_split

    strata, total = labels[indices], len(indices)
    present, counts = np.unique(strata, return_counts=True)
    least = len(present)
    if counts.min() < 2 or not least <= rest <= total - least:
        aim = f"to take {total - rest} of {total}" if for_train_size else f"to hold out {rest} of {total}"
        raise UserError(
            f"Cannot split the training images ({aim}) with each of the {least} classes in both parts. "
            + _way_out(present[counts < 2], least, total, classes, for_train_size)
        )
    kept, left = train_test_split(indices, test_size=rest, stratify=strata, random_state=SEED)
    return np.sort(kept), np.sort(left)


def _way_out(lone: NDArray[np.int64], least: int, total: int, classes: Sequence[str], for_train_size: bool) -> str:
    """What to change; `lone` are the classes that have one image among these."""
    without = "leave out --train-size" if for_train_size else "use --val-fraction 0 for no validation split"
    if len(lone):
        names = [f"'{classes[label]}'" if classes else str(label) for label in lone[:MOST_NAMED]]
        more = f" and {len(lone) - MOST_NAMED} more classes" if len(lone) > MOST_NAMED else ""
        has, add = ("has", "it a second one") if len(lone) == 1 else ("have", "each a second one")
        return (
            f"{', '.join(names)}{more} {has} one image among them: give {add} (or a larger --train-size), or {without}."
        )
    if for_train_size:
        return f"Choose a --train-size from {least} to {total - least}, or {without}."
    # Rounded inwards, so that the numbers that are named work.
    low, high = math.ceil(least / total * 1e6) / 1e6, math.floor((1 - least / total) * 1e6) / 1e6
    fractions = f"{low:.6g}" if low >= high else f"from {low:.6g} to {high:.6g}"
    return f"Choose a --val-fraction {fractions}, or {without}."
