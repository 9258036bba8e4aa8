"""The companions of the training images: which they are, how they are augmented, and that they change nothing else."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from icpctl.data.epochs import Plan

KINDS = ("view", "class", "replay")


def plan(
    companion: str = "", count: int = 23, size: int = 4, seed: int = 3, labels: Tensor | None = None, rank: int = 0
) -> Plan:
    labels = torch.arange(count) % 5 if labels is None else labels
    processes = 2 if rank else 1
    return Plan(seed, "pad-crop-flip", size, (count, 3, 6, 6), rank, processes, companion, labels)


def test_a_second_view_is_of_the_same_image_in_another_augmentation() -> None:
    one, other = plan("view").draw(2)
    assert torch.equal(one[0], other[0])
    pixels = torch.randint(256, (23, 3, 6, 6), dtype=torch.uint8)
    differing = (one[1](pixels) != other[1](pixels)).flatten(1).any(dim=1)
    assert int(differing.sum()) > 18
    first, second = one[1].draws[0], other[1].draws[0]
    assert abs(float(torch.corrcoef(torch.stack([first.float().flatten(), second.float().flatten()]))[0, 1])) < 0.5


@settings(deadline=None, max_examples=20)
@given(st.integers(4, 40), st.integers(2, 4), st.integers(0, 5))
def test_each_batch_is_replayed_in_the_next_one(count: int, size: int, seed: int) -> None:
    """Across epochs too, whatever an epoch leaves out; the first batch of a run has itself."""
    replaying = plan("replay", count, size, seed)
    last = None
    for epoch in range(3):
        order, companions = replaying.order(epoch), replaying.companions(epoch)
        assert companions.shape == order.shape
        for batch in range(replaying.batches):
            now = order[replaying.rows(batch)]
            replayed = companions[replaying.rows(batch)]
            assert torch.equal(replayed, now if last is None else last), (epoch, batch)
            last = now


def test_what_is_replayed_is_augmented_anew() -> None:
    replaying = plan("replay")
    pixels = (
        torch.arange(23).view(-1, 1, 1, 1).expand(23, 3, 6, 6).to(torch.uint8) + torch.arange(6, dtype=torch.uint8) * 30
    )
    (order, augmentation), (companions, again) = replaying.draw(1)
    first = augmentation(pixels[order])[replaying.rows(0)]
    second = again(pixels[companions])[replaying.rows(1)]
    assert torch.equal(order[replaying.rows(0)], companions[replaying.rows(1)])
    assert not torch.equal(first, second)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(0, 6), min_size=2, max_size=40), st.integers(0, 5))
def test_a_companion_is_of_the_class(labels: list[int], epoch: int) -> None:
    """Also where classes are of different sizes, of one image, or empty."""
    classes = torch.tensor(labels)
    paired = plan("class", len(labels), 2, labels=classes)
    order, companions = paired.order(epoch), paired.companions(epoch)
    assert torch.equal(classes[order], classes[companions])
    counts = Counter(labels)
    for one, other in zip(order.tolist(), companions.tolist(), strict=True):
        assert counts[labels[one]] > 1 or one == other


def test_every_image_of_the_class_is_as_likely_the_image_itself_too() -> None:
    paired = plan("class", 12, labels=torch.tensor([0, 1, 2] * 4))
    met: Counter[tuple[int, int]] = Counter()
    for epoch in range(300):
        met.update(zip(paired.order(epoch).tolist(), paired.companions(epoch).tolist(), strict=True))
    assert len(met) == 12 * 4
    assert min(met.values()) > 45  # of 75 on average; five standard deviations are 38
    assert max(met.values()) < 112


@pytest.mark.parametrize("kind", KINDS)
def test_companions_are_the_same_again_and_others_in_another_epoch_or_run(kind: str) -> None:
    first = plan(kind).draw(1)[1]
    again = plan(kind).draw(1)[1]
    assert torch.equal(first[0], again[0])
    assert all(map(torch.equal, first[1].draws, again[1].draws))
    for other in (plan(kind).draw(2)[1], plan(kind, seed=4).draw(1)[1]):
        assert not torch.equal(first[0], other[0])
        assert not torch.equal(first[1].draws[0], other[1].draws[0])


@pytest.mark.parametrize("kind", KINDS)
def test_the_images_are_those_of_a_run_without_companions(kind: str) -> None:
    """So that a method and its baseline see the same."""
    state = torch.get_rng_state()
    for epoch in (0, 3):
        (order, augmentation), (expected, plain) = plan(kind).draw(epoch)[0], plan().draw(epoch)[0]
        assert torch.equal(order, expected)
        assert torch.equal(order, plan(kind).order(epoch))
        assert all(map(torch.equal, augmentation.draws, plain.draws))
    assert torch.equal(torch.get_rng_state(), state)
    assert len(plan().draw(0)) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_every_process_has_the_companions_of_the_whole_batch(kind: str) -> None:
    assert torch.equal(plan(kind, rank=1).companions(2), plan(kind).companions(2))


def test_the_draws_of_companions_are_not_those_of_the_order() -> None:
    """The place of an image in the epoch says nothing of its companion."""
    paired = plan("class", 400, labels=torch.zeros(400, dtype=torch.int64))
    places = torch.empty(400)
    places[paired.order(0)] = torch.arange(400.0)
    drawn = places[paired.companions(0)]
    assert abs(float(torch.corrcoef(torch.stack([torch.arange(400.0), drawn]))[0, 1])) < 0.2
    assert len(drawn.unique()) == pytest.approx(400 * 0.632, rel=0.1)  # drawn with replacement
