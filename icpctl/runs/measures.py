"""How metrics are shown to people: headings, units, digits, and whether less is better."""

from __future__ import annotations

import math
import re
import string
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from icpctl.terminal import printable

LEAST, MOST = 1e-4, 1e9
"""Numbers that are smaller, or as large, are written with a power of ten."""
MOST_DIGITS = 6
"""After the point."""


MARK = "†"
"""Stands beside numbers that are of a part of the seeds, as the others failed or have no finite value."""


@dataclass(frozen=True)
class Measure:
    """How a metric is shown."""

    name: str
    unit: str = ""
    """Of a value; % means that fractions are shown as percent, and their differences in points."""
    decimals: int = 2
    falls: bool = False
    """Whether less is better."""
    meaning: str = ""
    """One line, for a list of all metrics."""

    @property
    def heading(self) -> str:
        return f"{self.name} {self.unit}".strip()

    @property
    def scale(self) -> float:
        return 100.0 if self.unit == "%" else 1.0

    def value(self, number: float, signed: bool = False, beside: float = math.nan) -> str:
        """A value in the unit, without naming it; a dash where there is none.

        Args:
            number: the value.
            signed: whether a positive one has a plus sign.
            beside: what the digits are for, where it is not the value itself: its standard deviation, or half the width
                of its interval. Where the usual digits show nothing of it, two digits of it are shown.
        """
        if math.isnan(number):
            return "–"
        shown = self.scale * number
        size = abs(shown if math.isnan(beside) or beside == 0 else self.scale * beside)
        decimals = self.decimals
        if 0 < size < 10.0**-decimals:
            decimals = 1 - math.floor(math.log10(size))
        sign = "+" if signed else ""
        if round(shown, decimals) == 0:
            text = f"{0:.{self.decimals}f}"
        elif abs(shown) < LEAST or MOST <= abs(shown) < math.inf:
            digits = max(decimals + math.floor(math.log10(abs(shown))), 0)
            text = f"{shown:{sign}.{min(digits, MOST_DIGITS)}e}"
        else:
            text = f"{shown:{sign}.{min(decimals, MOST_DIGITS)}f}"
        return text.replace("-", "−")

    def difference(self, number: float, beside: float = math.nan) -> str:
        """A difference, with its unit; `beside` as in `value`."""
        unit = "points" if self.unit == "%" else self.unit
        return f"{self.value(number, signed=True, beside=beside)} {unit}".strip()


MEASURES = {
    "accuracy": Measure("accuracy", "%", meaning="Share of images whose most probable class is the right one"),
    "accuracy_top5": Measure(
        "top-5 accuracy", "%", meaning="Share of images whose right class is among the five most probable"
    ),
    "f1_macro": Measure("macro F1", "%", meaning="F1 of each class, mean over the classes"),
    "precision_macro": Measure("macro precision", "%", meaning="Precision of each class, mean over the classes"),
    "recall_macro": Measure("macro recall", "%", meaning="Recall of each class, mean over the classes"),
    "ece": Measure("calibration error", "%", falls=True, meaning="Expected calibration error, 15 bins of equal width"),
    "brier": Measure(
        "Brier score", decimals=4, falls=True, meaning="Squared error of the probabilities of all classes, in [0, 2]"
    ),
    "generalization_gap_accuracy": Measure(
        "gap in accuracy",
        "%",
        falls=True,
        meaning="Accuracy on training images, without augmentation, less that on the test images",
    ),
    "generalization_gap_loss": Measure(
        "gap in loss", decimals=4, meaning="Loss on training images, without augmentation, less that on the test images"
    ),
    "generalization_gap_ssim": Measure(
        "gap in SSIM",
        decimals=4,
        falls=True,
        meaning="SSIM on training images, without augmentation, less that on the test images",
    ),
    "sharpness": Measure(
        "sharpness",
        decimals=4,
        falls=True,
        meaning="Rise of the training loss when the weights move 0.05 along its gradient",
    ),
    "loss": Measure("loss", decimals=4, falls=True, meaning="Mean task loss: cross-entropy, or the VAE's objective"),
    "ssim": Measure("SSIM", decimals=4, meaning="Structural similarity of a reconstruction and its image"),
    "psnr": Measure("PSNR", "dB", meaning="Peak signal-to-noise ratio of a reconstruction, in dB"),
    "reconstruction_loss": Measure(
        "reconstruction loss", decimals=4, falls=True, meaning="Mean squared error of a reconstruction"
    ),
    "kl": Measure("KL", "nats", falls=True, meaning="KL divergence of the latent from the prior, in nats an image"),
    "fid_reconstruction": Measure(
        "FID rec.", falls=True, meaning="Fréchet inception distance of reconstructions from the images"
    ),
    "fid_prior": Measure("FID prior", falls=True, meaning="Fréchet inception distance of drawn images from the images"),
    "kid_reconstruction": Measure(
        "KID rec.", decimals=4, falls=True, meaning="Kernel inception distance of reconstructions from the images"
    ),
    "kid_prior": Measure(
        "KID prior", decimals=4, falls=True, meaning="Kernel inception distance of drawn images from the images"
    ),
    "seconds": Measure("time", "s", decimals=0, falls=True, meaning="Seconds of all epochs"),
    "passes": Measure("passes", decimals=0, falls=True, meaning="Passes of a training image through the network"),
    "images_per_second": Measure("images/s", decimals=0, meaning="Training images a second, mean over the epochs"),
}

_ATTACK = "Accuracy where each pixel value is moved by at most {} of 255, {}"
MEASURES |= {
    f"accuracy_{kind}_{size}": Measure(f"{name}, {size}/255", "%", meaning=_ATTACK.format(size, how))
    for kind, name, how in (
        ("fgsm", "FGSM", "by one step up the gradient"),
        ("pgd20", "PGD-20", "by 20 projected steps up the gradient from a random place"),
    )
    for size in (2, 8)
}
MEASURES |= {
    f"accuracy_noise_{size}": Measure(
        f"noise, {size}/255", "%", meaning=f"Accuracy with Gaussian noise of standard deviation {size} of 255"
    )
    for size in (8, 16, 32)
}
MEASURES |= {
    f"accuracy_blur_{size.replace('.', '_')}": Measure(
        f"blur, {size} px", "%", meaning=f"Accuracy with Gaussian blur of standard deviation {size} pixels"
    )
    for size in ("0.5", "1", "2")
}

EFFECT = Measure("effect size", decimals=1)
"""Cohen's d."""

_SHOWN = {
    "classification": ("accuracy", "f1_macro", "accuracy_best"),
    "generation": ("ssim", "psnr", "fid_reconstruction", "fid_prior", "kid_reconstruction", "kid_prior", "ssim_best"),
}
_BY = re.compile(r"([fk]id_[a-z]+)_by_(.+)")


_OF_VAE = re.compile(r"ssim|psnr|reconstruction_loss|kl|generalization_gap_ssim|[fk]id_\w+")
_OF_BOTH = ("loss", "generalization_gap_loss", "sharpness")
_COSTS = ("seconds", "passes", "images_per_second")


def metrics_of(task: str) -> list[str]:
    """The metrics of the test split that a task can have; but for FID and KID in the features of a classifier, which is in their names."""
    return [
        name
        for name in MEASURES
        if name not in _COSTS and (name in _OF_BOTH or (_OF_VAE.fullmatch(name) is not None) == (task == "generation"))
    ]


def measure_of(metric: str, letters: dict[str, str] | None = None) -> Measure:
    """How a metric is shown; one that is not known, as it is.

    Args:
        metric: with the suffix _best, at the best epoch.
        letters: for FID and KID in the features of a classifier, a letter for each of them.
    """
    base = metric.removesuffix("_best")
    kind = _BY.fullmatch(base)
    measure = MEASURES.get(kind[1] if kind else base, Measure(printable(base), decimals=4))
    if kind:
        letter = (letters or {}).get(kind[2], printable(kind[2]))
        measure = replace(measure, name=f"{measure.name} ({letter})")
    return measure if base == metric else replace(measure, name=f"{measure.name}, best epoch")


def falls(metric: str) -> bool:
    """Whether less of a metric is better."""
    return measure_of(metric).falls


def shown_metrics(task: str, metrics: Iterable[str], chosen: str) -> list[str]:
    """The metrics that the tables for people have, of those that there are; the chosen one first."""
    there = list(dict.fromkeys(metrics))
    kinds = [name for name in there if _BY.fullmatch(name) and not name.endswith("_best")]
    listed: list[str] = [chosen]
    for name in _SHOWN[task]:
        listed += [
            each for each in (name, *(kind for kind in kinds if kind.startswith(f"{name}_by_"))) if each in there
        ]
    return list(dict.fromkeys(listed))


def feature_letters(metrics: Iterable[str]) -> dict[str, str]:
    """The classifiers whose features FID and KID are in, and a letter for each."""
    found = {match[2].removesuffix("_best") for name in metrics if (match := _BY.fullmatch(str(name)))}
    return dict(zip(sorted(found), string.ascii_lowercase, strict=False))


def interval_half(row: Any) -> float:
    """Half the width of the interval of a comparison; not a number where there is none."""
    return (float(row["high"]) - float(row["low"])) / 2


def images_text(row: Mapping[str, Any], measure: Measure, half: float) -> str:
    """The interval that covers the sampling of the test images too, for the end of a sentence; empty where it is not known."""
    if pd.isna(row.get("low_images")):
        return ""
    low, high = (measure.value(row[end], signed=True, beside=half) for end in ("low_images", "high_images"))
    return f" ({low} to {high} with the sampling of the test images)"


def p_equal(p: float) -> str:
    """A p value for people after the letter p: "= 0.03", "< 0.001"."""
    text = p_text(p)
    return text if text.startswith("<") else f"= {text}"


def p_text(p: float) -> str:
    """A p value for people."""
    if pd.isna(p):
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.01 else f"{p:.4f}" if p < 0.1 else f"{p:.2f}"
