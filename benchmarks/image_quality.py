"""SSIM and PSNR for whole batches beside scikit-image's, image by image: alone, and in the evaluation of a VAE.

python benchmarks/image_quality.py [--images 1000] [--rounds 5]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from unittest.mock import patch

import torch
from measure import command, interleaved, machine, random_images, table
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from icpctl.config import RunConfig
from icpctl.models.network import keep_freed_memory
from icpctl.tasks import generation
from icpctl.tasks.image_quality import image_quality
from icpctl.training.trainer import Trainer


def one_by_one(images: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """The same by scikit-image."""
    pairs = zip(*(tensor.permute(0, 2, 3, 1).numpy() for tensor in (images, others)), strict=True)
    values = [
        (structural_similarity(a, b, channel_axis=2, data_range=255), peak_signal_noise_ratio(a, b, data_range=255))
        for a, b in pairs
    ]
    ssim, psnr = torch.tensor(values, dtype=torch.float64).unbind(1)
    return ssim, psnr


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    device = torch.device("cpu")
    keep_freed_memory()
    rows = []
    for side in (16, 32, 64):
        config = RunConfig(model="vae", dataset="cifar100", image_size=side, val_fraction=0, epochs=1)
        trainer = Trainer(config, random_images(options.images, side, 1), device)
        images = trainer.evaluation_sets["test"].images
        evaluate = partial(trainer.task.evaluate, trainer.network, trainer.evaluation_sets["test"])

        def as_before(evaluate: partial[dict[str, float]] = evaluate) -> None:
            with patch.object(generation, "image_quality", one_by_one):
                evaluate()

        work: dict[str, Callable[[], object]] = {
            "ours": partial(image_quality, images, images.flip(0)),
            "scikit-image": partial(one_by_one, images, images.flip(0)),
            "evaluation": evaluate,
            "evaluation by scikit-image": as_before,
        }
        seconds = interleaved(work, options.rounds, device)
        alone, whole = (
            seconds[one] / seconds[other]
            for one, other in (("scikit-image", "ours"), ("evaluation by scikit-image", "evaluation"))
        )
        rows.append([str(side), *(f"{1e3 * seconds[name]:.0f}" for name in work), f"{alone:.1f}", f"{whole:.1f}"])
    heading = [
        "pixels",
        "ours, ms",
        "scikit-image, ms",
        "evaluation, ms",
        "by scikit-image, ms",
        "ratio",
        "ratio of the evaluations",
    ]
    print(machine(device), command(), table(heading, rows), sep="\n\n")


if __name__ == "__main__":
    main()
