"""The part of the training images that a run trains on, and the part that it holds out."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from icpctl.errors import UserError

SEED = 0  # fixed, so that every run of a study trains on the same images


def split_train(
    labels: NDArray[np.int64], train_size: int | None, val_fraction: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of the training and of the validation images, both sorted.

    First takes `train_size` images (None: all), then holds out the fraction `val_fraction`, in [0, 1), of them.
    Both steps keep the shares of the classes, so a balanced data set stays balanced to within one image a class.
    The same arguments give the same split, always.

    Args:
        labels: (N,) class indices of all training images.

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
        chosen, _ = _stratified(labels, chosen, len(labels) - train_size, f"train size {train_size}")
    if val_fraction == 0:
        return chosen, np.empty(0, dtype=np.int64)
    held_out = round(val_fraction * len(chosen))
    return _stratified(labels, chosen, held_out, f"validation fraction {val_fraction:g}")


def _stratified(
    labels: NDArray[np.int64], indices: NDArray[np.int64], rest: int, setting: str
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """`indices` without `rest` of them, and these; `setting` is what the user would have to change."""
    from sklearn.model_selection import train_test_split

    strata = labels[indices]
    try:
        kept, left = train_test_split(indices, test_size=rest, stratify=strata, random_state=SEED)
    except ValueError as problem:
        classes, counts = np.unique(strata, return_counts=True)
        raise UserError(
            f"Cannot split {len(indices)} training images into {len(indices) - rest} and {rest} ({setting}): both "
            f"parts need at least one image of each of the {len(classes)} classes, and the smallest class has "
            f"{counts.min()}. Choose a {setting.rsplit(' ', 1)[0]} that leaves at least {len(classes)} on each side."
        ) from problem
    return np.sort(kept), np.sort(left)
