"""How often the tests of a claim err, and how many seeds they take: simulated studies that are looked at after every seed.

    python benchmarks/sequential.py [--studies 20000] [--json FILE]

Differences are normal with a standard deviation of 1; so sizes are in standard deviations. Four designs with at most 40 seeds:

    group-sequential   `icpctl ablate --until-decided`: t tests after 3, 4, … 40 seeds, by alpha spending
    anytime-valid      the e-value of the same t statistics, which needs no last seed
    naive              an ordinary t test after each seed, which is what one must not do
    fixed              one t test of as many seeds as give the power of the group-sequential design

Right: "better", if the difference is above zero; or "level", if it is below the margin. The last table has several claims at once,
all of no difference: any "better" or "worse" is an error of the family.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import command, machine, table
from scipy.stats import t as student

from icpctl.statistics import ALPHA
from icpctl.statistics.sequential import PRIOR_SEEDS, nominal_levels

FIRST, MOST = 3, 40
SIZES = (0.0, 0.5, 1.0, 2.0)
MARGIN = 1.0
FAMILIES = (1, 3, 8)
COUNTS = np.arange(FIRST, MOST + 1)

Floats = np.ndarray[Any, np.dtype[np.float64]]
Truths = np.ndarray[Any, np.dtype[np.bool_]]


def moments(x: Floats) -> tuple[Floats, Floats]:
    """(studies, looks): mean and standard error of the first 3, 4, … seeds."""
    n = np.arange(1, x.shape[1] + 1)
    means = np.cumsum(x, 1) / n
    squares = np.cumsum(x * x, 1) - n * means**2
    errors = np.sqrt(squares[:, FIRST - 1 :] / (COUNTS - 1) / COUNTS)
    return means[:, FIRST - 1 :], errors


def p_of(t: Floats, two_sided: bool) -> Floats:
    """p values of t tests at every look."""
    p: Floats = student.sf(np.abs(t) if two_sided else t, COUNTS - 1) * (2 if two_sided else 1)
    return p


def e_log(t: Floats) -> Floats:
    """The logarithm of `icpctl.statistics.sequential.e_value`, of all studies at once."""
    ratio, squared = PRIOR_SEEDS / (PRIOR_SEEDS + COUNTS), t * t / (COUNTS - 1)
    logs: Floats = np.log(ratio) / 2 + COUNTS / 2 * (np.log1p(squared) - np.log1p(ratio * squared))
    return logs


def rejections(design: str, t: Floats, alpha: float, two_sided: bool = True) -> Truths:
    """(studies, looks): whether the test of a mean of zero, or of zero or less, rejects at this look."""
    if design == "anytime-valid":  # both sides of the interval, which is what has a closed form
        found: Truths = (e_log(t) >= -math.log(alpha)) & (two_sided | (t > 0))
        return found
    levels = (
        np.full(len(COUNTS), alpha) if design == "naive" else np.array(nominal_levels(alpha, FIRST, MOST, two_sided))
    )
    return p_of(t, two_sided) <= levels


def simulate(design: str, size: float, margin: float | None, studies: int, seed: int = 0) -> Mapping[str, float]:
    """The shares of the verdicts, and the mean number of seeds, where the true difference has this size."""
    x = np.random.default_rng(seed).standard_normal((studies, MOST)) + size
    mean, error = moments(x)
    differs = rejections(design, mean / error, ALPHA)
    level = np.zeros_like(differs)
    if margin is not None:
        below, above = (rejections(design, (margin + sign * mean) / error, ALPHA, False) for sign in (1, -1))
        level = np.maximum.accumulate(below, 1) & np.maximum.accumulate(above, 1)
    over = differs | level
    stop = np.where(over.any(1), over.argmax(1), len(COUNTS) - 1)
    rows = np.arange(studies)
    is_level = level[rows, stop]
    claimed = differs[rows, stop] & ~is_level
    rises = mean[rows, stop] > 0
    return {
        "better": float((claimed & rises).mean()),
        "worse": float((claimed & ~rises).mean()),
        "level": float(is_level.mean()),
        "seeds": float(COUNTS[stop].mean()),
    }


def simulate_level(size: float, margin: float, studies: int) -> Mapping[str, float]:
    """How often a claim of "level with" is supported and refuted, and after how many seeds. Only a difference beyond the margin refutes it."""
    x = np.random.default_rng(2).standard_normal((studies, MOST)) + size
    mean, error = moments(x)
    sides = [(margin + sign * mean) / error for sign in (1, -1)]
    below, above = (rejections("group-sequential", t, ALPHA, False) for t in sides)
    level = np.maximum.accumulate(below, 1) & np.maximum.accumulate(above, 1)
    beyond, other = (rejections("group-sequential", -t, ALPHA / 2, False) for t in sides)
    over = level | beyond | other
    stop = np.where(over.any(1), over.argmax(1), len(COUNTS) - 1)
    is_level = level[np.arange(studies), stop]
    return {
        "supported": float(is_level.mean()),
        "refuted": float((over.any(1) & ~is_level).mean()),
        "seeds": float(COUNTS[stop].mean()),
    }


def fixed_seeds(size: float, power: float) -> int:
    """Seeds of one t test with this power."""
    from scipy.stats import f, ncf

    for seeds in range(FIRST, 10_000):
        if ncf.sf(f.isf(ALPHA, 1, seeds - 1), 1, seeds - 1, seeds * size**2) >= power:
            return seeds
    raise ValueError("no number of seeds has this power")


def family_errors(claims: int, studies: int) -> float:
    """How often a family of claims without any difference claims one, by Holm's first step: any p of α over their number."""
    wrong = np.zeros(studies, bool)
    for claim in range(claims):
        x = np.random.default_rng(1000 + claim).standard_normal((studies, MOST))
        mean, error = moments(x)
        wrong |= rejections("group-sequential", mean / error, ALPHA / claims).any(1)
    return float(wrong.mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=20_000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    studies = options.studies
    print(f"{command()}\n{machine(torch.device('cpu'))}\n")
    results: dict[str, Any] = {"studies": studies}

    rows = []
    for size in SIZES:
        for design in ("group-sequential", "anytime-valid", "naive"):
            found = simulate(design, size, None, studies)
            results[f"difference {size:g}, {design}"] = found
            seeds = (
                fixed_seeds(size, found["better"])
                if size and design == "group-sequential" and found["better"] < 1
                else None
            )
            shares = [f"{100 * found[verdict]:.1f}" for verdict in ("better", "worse")]
            rows.append([f"{size:g}", design, *shares, f"{found['seeds']:.1f}", str(seeds or "–")])
    print(
        table(
            ["true difference", "design", "better %", "worse %", "mean seeds", "fixed design of the same power"], rows
        )
    )

    print(f"\nWith a margin of {MARGIN:g}:\n")
    rows = []
    for size in SIZES:
        for design in ("group-sequential", "anytime-valid", "naive"):
            found = simulate(design, size, MARGIN, studies, seed=1)
            results[f"margin {MARGIN:g}, difference {size:g}, {design}"] = found
            shares = [f"{100 * found[verdict]:.1f}" for verdict in ("better", "worse", "level")]
            rows.append([f"{size:g}", design, *shares, f"{found['seeds']:.1f}"])
    print(table(["true difference", "design", "better %", "worse %", "level %", "mean seeds"], rows))

    print(f"\nA claim of level with, group-sequential, with a margin of {MARGIN:g}:\n")
    rows = []
    for size in SIZES:
        found = simulate_level(size, MARGIN, studies)
        results[f"level with, difference {size:g}"] = found
        rows.append(
            [f"{size:g}", *(f"{100 * found[name]:.1f}" for name in ("supported", "refuted")), f"{found['seeds']:.1f}"]
        )
    print(table(["true difference", "supported %", "refuted %", "mean seeds"], rows))

    print("\nSeveral claims without any difference, group-sequential:\n")
    errors = {claims: family_errors(claims, studies) for claims in FAMILIES}
    results["family"] = errors
    print(
        table(
            ["claims", "a false one in % of studies"], [[str(claims), f"{100 * e:.1f}"] for claims, e in errors.items()]
        )
    )
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
