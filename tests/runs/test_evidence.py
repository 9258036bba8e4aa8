"""What seeds say about a family of claims, on made-up values: how often it errs, and that a verdict stands."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from icpctl.config import RunConfig, resolve
from icpctl.runs.claims import Evidence, Pair, PlannedClaim, weigh
from icpctl.statistics import sequential
from icpctl.statistics.sequential import nominal_levels

BASE = resolve({"dataset": "digits", "epochs": 1, "method": "plain"})
METRICS = ("accuracy", "f1_macro", "precision_macro")
MOST = 8


def claim(
    metric: str = "accuracy", relation: str = "better than", margin: float | None = None, most: int = MOST
) -> PlannedClaim:
    planned = PlannedClaim.parse(f"lr=0.1 {relation} baseline in {metric}", margin)
    return planned.model_copy(update={"seeds": (0, 1, 2), "max_seeds": most, "written": "2026-01-01T00:00:00+00:00"})


class FixedPair(Pair):
    """Runs with ids that cost nothing to make."""

    def runs(self, seed: int) -> tuple[RunConfig, RunConfig]:
        return tuple(Named(f"{side}{seed}") for side in "ab")  # type: ignore[return-value]


class Named:
    def __init__(self, run_id: str) -> None:
        self.run_id = run_id


PAIR = FixedPair(BASE, BASE, "")


def values(differences: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
    return {
        metric: {f"a{seed}": 0.5 + d for seed, d in enumerate(each)} | {f"b{seed}": 0.5 for seed in range(len(each))}
        for metric, each in differences.items()
    }


def weighed(claims: list[PlannedClaim], differences: Mapping[str, np.ndarray]) -> list[Evidence]:
    return weigh([(each, PAIR) for each in claims], values(differences))


@pytest.fixture(scope="module", autouse=True)
def _levels() -> None:
    nominal_levels(0.05, 3, MOST)


@pytest.mark.parametrize("number", [1, 3])
def test_a_family_without_any_difference_claims_one_in_at_most_five_of_a_hundred_studies(number: int) -> None:
    rng = np.random.default_rng(0)
    studies, wrong = 600, 0
    claims = [claim(metric) for metric in METRICS[:number]]
    for _ in range(studies):
        found = weighed(claims, {metric: 0.01 * rng.standard_normal(MOST) for metric in METRICS[:number]})
        wrong += any(each.verdict != "cannot tell" for each in found)
    assert wrong / studies <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / studies)


@pytest.mark.parametrize(("difference", "wrong"), [(0.01, "level"), (0.005, "refuted"), (0.008, "refuted")])
def test_level_is_claimed_or_refuted_wrongly_in_at_most_five_of_a_hundred_studies(
    difference: float, wrong: str
) -> None:
    """At a true difference as large as the margin it is not level; at a smaller one, which is no zero, it is."""
    rng = np.random.default_rng(1)
    studies, errors = 500, 0
    for _ in range(studies):
        x = difference + 0.01 * rng.standard_normal(MOST)
        (found,) = weighed([claim(relation="level with", margin=1.0)], {"accuracy": x})
        errors += found.verdict == "level" if wrong == "level" else found.is_supported is False
    assert errors / studies <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / studies)


def test_a_verdict_stands_whatever_happens_to_later_seeds() -> None:
    """Another claim keeps the same runs going; one of them then fails."""
    rng = np.random.default_rng(2)
    clear = 0.05 + 0.002 * rng.standard_normal(MOST)
    unclear = 0.002 + 0.01 * rng.standard_normal(MOST)
    broken = clear.copy()
    broken[5:] = np.nan
    claims = [claim(margin=1.0), claim("f1_macro")]
    first, second = weighed(claims, {"accuracy": broken, "f1_macro": unclear})
    assert (first.verdict, first.lacking) == ("better", False)
    assert len(first.seeds) < 5
    assert len(second.seeds) == MOST
    reversed_later = np.concatenate([clear[:5], -5 * clear[5:]])
    (again, _) = weighed(claims, {"accuracy": reversed_later, "f1_macro": unclear})
    assert (again.verdict, again.p_holm, len(again.seeds)) == (first.verdict, first.p_holm, len(first.seeds))


def test_equal_values_decide_nothing_before_the_last_seed() -> None:
    """Accuracies are counts: three of them are equal by chance."""
    same = np.zeros(MOST)
    (early,) = weighed([claim()], {"accuracy": same[:3]})
    assert (early.verdict, early.wanted) == ("cannot tell", 4)
    (late,) = weighed([claim()], {"accuracy": same})
    assert (late.verdict, late.is_supported) == ("equal", False)
    (apart,) = weighed([claim()], {"accuracy": same + 0.01})
    assert (apart.verdict, apart.is_constant) == ("cannot tell", True)


@pytest.mark.parametrize("number", [6, 7, 8, 12])
def test_corrected_levels_between_those_of_the_table_are_those_of_the_design(number: int) -> None:
    """p of α over the number of claims, at the boundary of the test of that level, at every look."""
    for n, level in enumerate(nominal_levels(0.05 / number, 3, 10), start=3):
        assert sequential._over_looks(level, n, 3, 10, True) == pytest.approx(0.05 / number, rel=0.06)
