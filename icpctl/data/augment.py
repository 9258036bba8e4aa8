"""Random augmentation of the images of an epoch: drawn for all of them at first, applied to any part, on their device."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from icpctl.errors import unknown

AUGMENTATIONS = ("crop-randaugment", "pad-crop-flip", "none")

CROP = 0.78  # side of the random crop, as a fraction of the image's
NUM_OPS, MAGNITUDE, BINS = 2, 9, 31  # RandAugment
PADDING = 4  # pixels, of pad-crop-flip

CHUNK_BYTES = 64 * 2**20
"""Bound on the temporaries of one step; the widest need 16 bytes for each of the image's."""

Operation = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Augmentation:
    """What each of N images goes through; what was drawn of it takes a few bytes an image."""

    apply: Callable[..., Tensor]
    """Of some of the images and their part of each of the `draws`."""

    draws: tuple[Tensor, ...]
    """(…, N) each, on the CPU."""

    def __call__(self, images: Tensor, part: slice = slice(None)) -> Tensor:
        """Some of the images, augmented; they come out the same whichever others are with them.

        Args:
            images: (B, C, H, W) uint8, on any device.
            part: which B of the N images these are.
        """
        return self.apply(images, *(drawn[..., part] for drawn in self.draws))


def draw(kind: str, count: int, height: int, width: int, generator: torch.Generator) -> Augmentation:
    """The augmentation of `count` images of this size.

    - "crop-randaugment": a random crop of 0.78 of each side, resized back, then RandAugment (two operations
      at magnitude 9 of 31, bilinear, black outside).
    - "pad-crop-flip": four black pixels added on every side, a random crop of the old size, and a horizontal
      flip with probability 1/2.
    - "none": the images unchanged.

    Args:
        kind: one of `AUGMENTATIONS`.
        generator: on the CPU, so each image gets the same augmentation on every device.

    Raises:
        UserError: unknown `kind`.
    """
    match kind:
        case "crop-randaugment":
            crop_height, crop_width = _crop_size(height, width)
            corners = _random_corners(count, height - crop_height, width - crop_width, generator)
            number = len(_operations(height, width))
            operations = torch.randint(number, (NUM_OPS, count), generator=generator).to(torch.uint8)
            return Augmentation(_crop_randaugment, (corners, operations))
        case "pad-crop-flip":
            corners = _random_corners(count, 2 * PADDING, 2 * PADDING, generator)
            return Augmentation(_pad_crop_flip, (corners, torch.rand(count, generator=generator).lt(0.5)))
        case "none":
            return Augmentation(lambda images: images, ())
    raise unknown("augmentation", kind, AUGMENTATIONS)


def _crop_randaugment(images: Tensor, corners: Tensor, operations: Tensor) -> Tensor:
    return _randaugment(_crop_resize(images, corners), operations)


def _crop_size(height: int, width: int) -> tuple[int, int]:
    return round(CROP * height), round(CROP * width)


def _crop_resize(images: Tensor, corners: Tensor) -> Tensor:
    height, width = images.shape[2:]
    corners = corners.to(images.device)
    output = torch.empty_like(images)
    for part in _chunks(torch.arange(len(images)), images):
        crops = _crops(images[part], corners[:, part], _crop_size(height, width))
        output[part] = F.resize(crops, [height, width])
    return output


def _pad_crop_flip(images: Tensor, corners: Tensor, flipped: Tensor) -> Tensor:
    height, width = images.shape[2:]
    corners, flipped = corners.to(images.device), flipped.to(images.device)
    output = torch.empty_like(images)
    for part in _chunks(torch.arange(len(images)), images):
        crops = _crops(F.pad(images[part], [PADDING]), corners[:, part], (height, width))
        output[part] = torch.where(flipped[part, None, None, None], crops.flip(3), crops)
    return output


def _random_corners(count: int, lowest: int, rightmost: int, generator: torch.Generator) -> Tensor:
    """(2, N): top and left of a crop for each image, from 0 to `lowest` and `rightmost`, both included."""
    draws = [torch.randint(bound + 1, (count,), generator=generator) for bound in (lowest, rightmost)]
    return torch.stack(draws).to(torch.int16)


def _crops(images: Tensor, corners: Tensor, size: tuple[int, int]) -> Tensor:
    """The part of each image of height and width `size` that starts at its corner."""
    windows = images.unfold(2, size[0], 1).unfold(3, size[1], 1)  # a view: (N, C, tops, lefts, height, width)
    tops, lefts = corners.long()
    return windows[torch.arange(len(images), device=images.device), :, tops, lefts]


def _randaugment(images: Tensor, draws: Tensor) -> Tensor:
    """torchvision's RandAugment, in place, on a batch in which every image drew its own operations: `draws` (2, B).

    The magnitude is fixed, so there are few different operations, and the images that drew the same one go
    through it together.
    """
    for draw in draws:
        for index, operation in enumerate(_operations(*images.shape[2:]).values()):
            for part in _chunks((draw == index).nonzero().flatten(), images):
                images[part] = operation(images[part])
    return images


def _operations(height: int, width: int) -> dict[tuple[str, int], Operation]:
    """RandAugment's 14 operations, by torchvision's name and sign; those that have no sign are there twice.

    So each pair is equally likely. An operation takes and returns (N, C, H, W) uint8, each image by itself.
    """

    def level(highest: float, lowest: float = 0.0) -> float:
        return float(torch.linspace(lowest, highest, BINS)[MAGNITUDE])

    identity = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0]}
    affine = partial(F.affine, **identity, interpolation=InterpolationMode.BILINEAR)
    shear = math.degrees(math.atan(level(0.3)))
    shift_x, shift_y = int(level(150 / 331 * width)), int(level(150 / 331 * height))
    bits = 8 - round(MAGNITUDE / (BINS - 1) * 4)
    operations: dict[tuple[str, int], Operation] = {}
    for sign in (1, -1):
        factor = 1.0 + sign * level(0.9)
        for name, operation in {
            "Identity": torch.clone,
            "ShearX": partial(affine, shear=[sign * shear, 0.0], center=[0, 0]),
            "ShearY": partial(affine, shear=[0.0, sign * shear], center=[0, 0]),
            "TranslateX": partial(affine, translate=[sign * shift_x, 0]),
            "TranslateY": partial(affine, translate=[0, sign * shift_y]),
            "Rotate": partial(F.rotate, angle=sign * level(30.0), interpolation=InterpolationMode.BILINEAR),
            "Brightness": partial(F.adjust_brightness, brightness_factor=factor),
            "Color": partial(F.adjust_saturation, saturation_factor=factor),
            "Contrast": partial(F.adjust_contrast, contrast_factor=factor),
            "Sharpness": partial(F.adjust_sharpness, sharpness_factor=factor),
            "Posterize": partial(F.posterize, bits=bits),
            "Solarize": partial(F.solarize, threshold=255 * level(0.0, lowest=1.0)),
            "AutoContrast": F.autocontrast,
            "Equalize": F.equalize,
        }.items():
            operations[name, sign] = operation
    return operations


def _chunks(indices: Tensor, images: Tensor) -> Iterator[Tensor]:
    """`indices` of images in pieces whose temporaries stay under `CHUNK_BYTES`, on the images' device."""
    bytes_per_image = 16 * math.prod(images.shape[1:])
    size = max(1, CHUNK_BYTES // bytes_per_image)
    return (part.to(images.device) for part in torch.split(indices, size) if len(part))
