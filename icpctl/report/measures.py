"""How metrics are shown to people: headings, units, digits, and whether less is better."""

from __future__ import annotations

import math
import re
import string
from collections.abc import Iterable
from dataclasses import dataclass, replace

import pandas as pd

from icpctl.terminal import printable


@dataclass(frozen=True)
class Measure:
    """How a metric is shown."""

    name: str
    unit: str = ""
    """Of a value; % means that fractions are shown as percent, and their differences in points."""
    decimals: int = 2
    falls: bool = False
    """Whether less is better."""

    @property
    def heading(self) -> str:
        return f"{self.name} {self.unit}".strip()

    @property
    def scale(self) -> float:
        return 100.0 if self.unit == "%" else 1.0

    def value(self, number: float, signed: bool = False) -> str:
        """A value in the unit, without naming it; a dash where there is none."""
        if math.isnan(number):
            return "–"
        text = f"{self.scale * number:{'+' if signed else ''}.{self.decimals}f}"
        return text.replace("-", "−")

    def difference(self, number: float) -> str:
        """A difference, with its unit."""
        unit = "points" if self.unit == "%" else self.unit
        return f"{self.value(number, signed=True)} {unit}".strip()


_MEASURES = {
    "accuracy": Measure("accuracy", "%"),
    "accuracy_top5": Measure("top-5 accuracy", "%"),
    "f1_macro": Measure("macro F1", "%"),
    "precision_macro": Measure("macro precision", "%"),
    "recall_macro": Measure("macro recall", "%"),
    "ece": Measure("calibration error", "%", falls=True),
    "loss": Measure("loss", decimals=4, falls=True),
    "ssim": Measure("SSIM", decimals=4),
    "psnr": Measure("PSNR", "dB"),
    "reconstruction_loss": Measure("reconstruction loss", decimals=4, falls=True),
    "kl": Measure("KL", "nats", falls=True),
    "fid_reconstruction": Measure("FID rec.", falls=True),
    "fid_prior": Measure("FID prior", falls=True),
    "kid_reconstruction": Measure("KID rec.", decimals=4, falls=True),
    "kid_prior": Measure("KID prior", decimals=4, falls=True),
    "seconds": Measure("time", "s", decimals=0, falls=True),
    "passes": Measure("passes", decimals=0, falls=True),
    "images_per_second": Measure("images/s", decimals=0),
}

_SHOWN = {
    "classification": ("accuracy", "f1_macro", "accuracy_best"),
    "generation": ("ssim", "psnr", "fid_reconstruction", "fid_prior", "kid_reconstruction", "kid_prior", "ssim_best"),
}
_BY = re.compile(r"([fk]id_[a-z]+)_by_(.+)")


def measure_of(metric: str, letters: dict[str, str] | None = None) -> Measure:
    """How a metric is shown; one that is not known, as it is.

    Args:
        metric: with the suffix _best, at the best epoch.
        letters: for FID and KID in the features of a classifier, a letter for each of them.
    """
    base = metric.removesuffix("_best")
    kind = _BY.fullmatch(base)
    measure = _MEASURES.get(kind[1] if kind else base, Measure(printable(base), decimals=4))
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


def p_text(p: float) -> str:
    """A p value for people."""
    if pd.isna(p):
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.01 else f"{p:.4f}" if p < 0.1 else f"{p:.2f}"
