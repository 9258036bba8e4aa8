"""The training images: which ones a run takes, and their augmentation against torchvision's own."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from icpctl.data import augment as module
from icpctl.data import split_train
from icpctl.data.augment import AUGMENTATIONS, draw
from icpctl.errors import UserError

SHAPES = [(32, 32), (20, 33)]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def augment(images: Tensor, kind: str, generator: torch.Generator) -> Tensor:
    """Each image by itself."""
    count, _, height, width = images.shape
    return draw(kind, count, height, width, generator)(images)


def sample_images(count: int, height: int = 32, width: int = 32) -> Tensor:
    """Noise, smooth and flat images, in turn: the operations treat each of them differently."""
    noise = torch.rand(count, 3, height, width, generator=seeded())
    smooth = interpolate(torch.rand(count, 3, 4, 4, generator=seeded()), (height, width), mode="bilinear") * 0.6 + 0.2
    flat = torch.rand(count, 3, 1, 1, generator=seeded()).expand_as(noise)
    kind = torch.arange(count).remainder(3)[:, None, None, None]
    return torch.where(kind == 0, noise, torch.where(kind == 1, smooth, flat)).mul(255).to(torch.uint8)


@pytest.mark.parametrize("size", SHAPES, ids=str)
def test_every_operation_is_torchvisions_image_by_image(size: tuple[int, int]) -> None:
    reference = v2.RandAugment(2, 9, 31, interpolation=v2.InterpolationMode.BILINEAR)
    images = sample_images(12, *size)
    operations = module._operations(*size)
    assert {name for name, _ in operations} == reference._AUGMENTATION_SPACE.keys()
    assert len(operations) == 2 * len(reference._AUGMENTATION_SPACE)
    for (name, sign), operation in operations.items():
        magnitudes, signed = reference._AUGMENTATION_SPACE[name]
        scale = magnitudes(reference.num_magnitude_bins, *size)
        magnitude = 0.0 if scale is None else float(scale[reference.magnitude]) * (sign if signed else 1)
        expected = [
            reference._apply_image_or_video_transform(
                image, name, magnitude, interpolation=reference.interpolation, fill=reference._fill
            )
            for image in images
        ]
        assert torch.equal(operation(images), torch.stack(expected)), (name, sign)


def test_randaugment_applies_what_each_image_drew() -> None:
    images = sample_images(60)
    operations = list(module._operations(32, 32).values())
    draws = torch.randint(len(operations), (2, 60), generator=seeded())
    expected = [operations[b](operations[a](image[None]))[0] for image, a, b in zip(images, *draws, strict=True)]
    assert torch.equal(module._randaugment(images.clone(), draws), torch.stack(expected))


@pytest.mark.parametrize("size", SHAPES, ids=str)
def test_crop_is_resized_back(size: tuple[int, int]) -> None:
    height, width = size
    crop = round(0.78 * height), round(0.78 * width)
    images = sample_images(40, *size)
    tops = torch.randint(height - crop[0] + 1, (40,), generator=(generator := seeded()))
    lefts = torch.randint(width - crop[1] + 1, (40,), generator=generator)
    assert [tops.min(), tops.max(), lefts.max()] == [0, height - crop[0], width - crop[1]]  # the bounds are met
    expected = [
        F.resized_crop(image, int(top), int(left), *crop, size=list(size))
        for image, top, left in zip(images, tops, lefts, strict=True)
    ]
    assert torch.equal(module._crop_resize(images, torch.stack([tops, lefts])), torch.stack(expected))


def test_pad_crop_flip_shows_every_shift_and_both_directions() -> None:
    rows, columns = torch.meshgrid(torch.arange(1, 9), torch.arange(1, 9), indexing="ij")
    image = torch.stack([rows, columns, rows]).to(torch.uint8)
    output = augment(image.expand(4000, -1, -1, -1), "pad-crop-flip", seeded())
    padded = F.pad(image, [4])
    possible = [padded[:, top : top + 8, left : left + 8] for top in range(9) for left in range(9)]
    possible += [shifted.flip(2) for shifted in possible]
    seen, counts = torch.unique(output.flatten(1), dim=0, return_counts=True)
    assert {tuple(row) for row in seen.tolist()} == {tuple(each.flatten().tolist()) for each in possible}
    flips = output[:, 1].int().diff(dim=2).eq(-1).any(dim=(1, 2)).float().mean()
    assert counts.max() < 60  # 4000 / 162 on average
    assert 0.45 < flips < 0.55


@pytest.mark.parametrize("kind", AUGMENTATIONS)
def test_deterministic_whatever_the_chunks(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    images = sample_images(50)
    original = images.clone()
    whole = augment(images, kind, seeded(1))
    assert torch.equal(images, original)
    assert (whole.dtype, whole.shape) == (torch.uint8, images.shape)
    assert torch.equal(augment(images, kind, seeded(1)), whole)
    monkeypatch.setattr(module, "CHUNK_BYTES", 16 * 3 * 32 * 32 * 3)  # three images
    assert torch.equal(augment(images, kind, seeded(1)), whole)
    monkeypatch.setattr(module, "CHUNK_BYTES", 1)
    assert torch.equal(augment(images, kind, seeded(1)), whole)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", AUGMENTATIONS)
def test_same_augmentation_on_the_gpu(kind: str) -> None:
    images = sample_images(2000)
    cpu, gpu = augment(images, kind, seeded()), augment(images.cuda(), kind, seeded())
    assert gpu.is_cuda
    # Float sums are rounded differently, which a later posterize or equalize can widen in a few pixels.
    assert (cpu.int() - gpu.cpu().int()).abs().gt(1).float().mean() < 1e-3


@pytest.mark.parametrize("kind", ["crop-randaugment", "pad-crop-flip"])
def test_images_and_epochs_differ(kind: str) -> None:
    images = sample_images(1).expand(64, -1, -1, -1)
    generator = seeded()
    first, second = augment(images, kind, generator), augment(images, kind, generator)
    assert len(torch.unique(first.flatten(1), dim=0)) > 40
    assert not torch.equal(first, second)


@pytest.mark.parametrize("kind", AUGMENTATIONS)
@pytest.mark.parametrize("shape", [(0, 3, 32, 32), (1, 3, 32, 32), (3, 1, 8, 8), (2, 3, 5, 9)], ids=str)
def test_small_batches_and_shapes(kind: str, shape: tuple[int, ...]) -> None:
    images = torch.randint(256, shape, generator=seeded(), dtype=torch.uint8)
    assert augment(images, kind, seeded()).shape == shape


def test_unknown_kind_names_the_nearest() -> None:
    with pytest.raises(UserError, match="Did you mean 'pad-crop-flip'"):
        augment(sample_images(1), "pad-crop", seeded())


@settings(max_examples=50, deadline=None)
@given(st.data(), st.integers(1, 8), st.integers(5, 30), st.sampled_from([0.0, 0.3, 0.5]))
def test_split_is_balanced(data: st.DataObject, classes: int, per_class: int, val_fraction: float) -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(classes), per_class))
    train_size = data.draw(st.none() | st.integers(4 * classes, (per_class - 1) * classes), "train size")
    train, val = split_train(labels, train_size, val_fraction)
    total = train_size or len(labels)
    assert train.dtype == val.dtype == np.int64
    assert len(train) + len(val) == total
    assert len(val) == round(val_fraction * total)
    assert len(np.union1d(train, val)) == total
    for part, slack in ((train, 2), (val, 1)):
        assert np.array_equal(part, np.sort(part))
        if len(part):
            assert np.ptp(np.bincount(labels[part], minlength=classes)) <= slack
    again = split_train(labels, train_size, val_fraction)
    assert all(np.array_equal(*pair) for pair in zip((train, val), again, strict=True))


def test_split_needs_enough_images() -> None:
    labels = np.repeat(np.arange(10), 5)
    everything, nothing = split_train(labels, 50, 0.0)
    assert everything.tolist() == list(range(50))
    assert nothing.size == 0
    with pytest.raises(UserError, match=r"51 images was asked for, but there are only 50"):
        split_train(labels, 51, 0.0)
    with pytest.raises(
        UserError, match=r"hold out 2 of 50\) with each of the 10 classes .*--val-fraction from 0.2 to 0.8"
    ):
        split_train(labels, None, 0.04)
    with pytest.raises(UserError, match=r"take 5 of 50\) with .*Choose a --train-size from 10 to 40"):
        split_train(labels, 5, 0.0)


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(1, 6), min_size=2, max_size=5),
    val_fraction=st.floats(0.01, 0.99),
    train_size=st.none() | st.integers(1, 30),
)
def test_the_advice_of_a_split_that_fails_works(counts: list[int], val_fraction: float, train_size: int | None) -> None:
    """Followed again and again, it comes to a split."""
    classes = [f"class-{number}" for number in range(len(counts))]
    labels = np.repeat(np.arange(len(counts)), counts)
    if train_size is not None:
        train_size = min(train_size, len(labels))
    for _ in range(4):
        try:
            split_train(labels, train_size, val_fraction, classes)
        except UserError as error:
            text = str(error)
        else:
            return
        if found := re.search(r"--train-size from (\d+) to (\d+)", text):
            train_size = int(found[1 + train_size % 2]) if train_size else None
        elif found := re.search(r"--val-fraction (?:from )?([\d.]+)(?: to ([\d.]+))?,", text):
            val_fraction = float(found[2] or found[1]) if val_fraction > 0.5 else float(found[1])
        elif "leave out --train-size" in text:
            train_size = None
        else:
            assert re.search(r"'class-\d'.* one image among them: give .* or use --val-fraction 0 for no", text)
            val_fraction = 0
    pytest.fail(text)
