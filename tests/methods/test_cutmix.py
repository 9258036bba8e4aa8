"""CutMix against its definition, one pixel at a time, and torchvision's."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_methods import CLASSES, Given, assert_as_defined, batch, cross_entropy, method, network, trainer
from torch import Tensor, nn
from torchvision.transforms import v2

from icpctl.config import RunConfig
from icpctl.methods.base import Batch
from icpctl.methods.mixing import cutmix, mix

CONFIG = RunConfig(method="cutmix")
HEIGHT, WIDTH = 7, 10


def rectangles(size: int) -> tuple[Tensor, Tensor]:
    """Images that are no squares, and labels."""
    generator = torch.Generator().manual_seed(size)
    x = torch.randn(size, 3, HEIGHT, WIDTH, generator=generator, dtype=torch.float64)
    return x, torch.randint(CLASSES, (size,), generator=generator)


def naive(x: Tensor, order: list[int], share: float, centre: tuple[int, int]) -> tuple[Tensor, float]:
    """Images whose box is another's, pixel by pixel, and the part of their pixels that is their own."""
    side = math.sqrt(1 - share)
    half_height, half_width = int(side * HEIGHT / 2), int(side * WIDTH / 2)
    mixed, inside = x.clone(), 0
    for row in range(HEIGHT):
        for column in range(WIDTH):
            if (
                centre[0] - half_height <= row < centre[0] + half_height
                and centre[1] - half_width <= column < centre[1] + half_width
            ):
                inside += 1
                for i, j in enumerate(order):
                    mixed[i, :, row, column] = x[j, :, row, column]
    return mixed, 1 - inside / (HEIGHT * WIDTH)


boxes = st.tuples(st.integers(0, HEIGHT - 1), st.integers(0, WIDTH - 1))


@settings(deadline=None, max_examples=25)
@given(st.floats(0, 1), st.permutations(range(3)), boxes)
def test_a_box_is_another_image_and_its_share_of_the_label(
    share: float, order: list[int], centre: tuple[int, int]
) -> None:
    x, y = rectangles(3)
    generator: Any = Given(share, order, centre)
    mixed, targets = mix(CONFIG, x, y, CLASSES, generator)
    expected, left = naive(x, order, share, centre)
    assert torch.equal(mixed, expected)
    for i, j in enumerate(order):
        for k in range(CLASSES):
            own = left * (int(y[i]) == k) + (1 - left) * (int(y[j]) == k)
            assert float(targets[i, k]) == pytest.approx(own, abs=1e-6)
    assert generator.asked == [(1.0, 1.0)]


def test_the_border_cuts_the_box_and_the_share_follows() -> None:
    x, y = torch.zeros(2, 3, 8, 8), torch.tensor([0, 1])
    x[1] = 1
    # Of λ = 3/4: a box of 4×4, of which a corner has less.
    for centre, side in (((4, 4), 4), ((0, 0), 2), ((7, 7), 3)):
        mixed, targets = cutmix(x, nn.functional.one_hot(y, 2).float(), 0.75, torch.tensor([1, 0]), centre)
        assert int(mixed[0, 0].sum()) == side**2
        assert targets.tolist() == [[1 - side**2 / 64, side**2 / 64], [side**2 / 64, 1 - side**2 / 64]]


@settings(deadline=None, max_examples=15)
@given(st.floats(0, 1), boxes)
def test_it_is_that_of_torchvision(share: float, centre: tuple[int, int]) -> None:
    x, y = rectangles(4)
    theirs = v2.CutMix(num_classes=CLASSES)
    drawn = iter((centre[1], centre[0]))  # torchvision draws the column first
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(theirs._dist, "sample", lambda shape: torch.tensor(share, dtype=torch.float64))
        patch.setattr(torch, "randint", lambda high, size: torch.tensor([next(drawn)]))
        expected = theirs(x, y)
    generator: Any = Given(share, torch.arange(4).roll(1).tolist(), centre)
    mixed, targets = mix(CONFIG, x, y, CLASSES, generator)
    assert torch.equal(mixed, expected[0])
    torch.testing.assert_close(targets.float(), expected[1])


def test_a_step_equals_its_definition() -> None:
    """λ·CE(y) + (1 − λ)·CE(y_π) for the λ that is left after the box is cut: 2×4 of 36 pixels here."""
    before, order = batch(), torch.tensor([2, 0, 5, 1, 4, 3])
    one_hot = torch.eye(CLASSES, dtype=torch.float64)[before.y]
    x, y = cutmix(before.x, one_hot, 0.5, order, (0, 2))
    share = 1 - 2 * 4 / 36

    def defined(other: Any, _: Batch) -> Tensor:
        mixed = before.x.clone()
        for i, j in enumerate(order.tolist()):
            mixed[i, :, 0:2, 0:4] = before.x[j, :, 0:2, 0:4]
        logits = other.model(mixed)
        return share * cross_entropy(logits, before.y) + (1 - share) * cross_entropy(logits, before.y[order])

    assert_as_defined(method("cutmix", network()), Batch(x, y, before.index, before.criterion, 1, 0), defined)


def test_half_of_the_batches_are_mixed_by_default() -> None:
    assert CONFIG.mix_probability == 0.5
    assert RunConfig(method="mixup").mix_probability == 1.0
    run = trainer("cutmix", augmentation="none", count=16)
    mixed = 0
    for epoch in range(40):
        for step, given_images in enumerate(run.epoch_batches(epoch)):
            plain = run.network.normalise(given_images.pixels)
            made = run.batch(epoch, step, given_images)
            mixed += not torch.equal(made.x, plain)
            whole = ((made.y == 0) | (made.y == 1)).all()
            assert whole or not torch.equal(made.x, plain)
    assert 45 < mixed < 95  # of 160; a box may be empty or its pixels those of the image itself


def test_the_centre_is_anywhere_in_the_image() -> None:
    class Bounds(Given):
        def integers(self, side: int) -> int:
            bounds.append(side)
            return side - 1

    bounds: list[int] = []
    x, y = rectangles(2)
    generator: Any = Bounds(0.5, [1, 0])
    mix(CONFIG, x, y, CLASSES, generator)
    assert bounds == [HEIGHT, WIDTH]
