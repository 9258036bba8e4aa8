"""The planned claims of a study in its report: a row a claim, and a sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t as student

from icpctl.errors import first_names
from icpctl.report.groups import Grouping, group
from icpctl.report.images import WIDENED, Predictions, widened
from icpctl.runs.claims import Evidence, Pair, PlannedClaim, bound_pair, ended_values, weigh
from icpctl.runs.folder import RunRecord
from icpctl.runs.measures import EFFECT, Measure, images_text, measure_of, p_equal
from icpctl.runs.references import AGAINST, TunedArm
from icpctl.statistics import ALPHA, MOST_SEEDS, paired, sequential

OUTCOMES = {True: "supported", False: "refuted", None: "undecided"}
COLUMNS = (
    *(
        "claim",
        "written",
        "measured_before",
        "group",
        "other",
        "against",
        "metric",
        "margin",
        "planned_seeds",
        "max_seeds",
    ),
    *(
        "seeds",
        "difference",
        "std",
        "low",
        "high",
        *WIDENED,
        "p",
        "p_holm",
        "p_level",
        "p_level_holm",
        "e_value",
        "effect",
    ),
    *("verdict", "outcome", "seeds_needed", "sentence"),
)
"""Of the table of claims."""
IN_COMPARISONS = {
    name: {"p_level": "p_level_holm"}.get(name, name)
    for name in (
        *("seeds", "difference", "std", "low", "high", *WIDENED, "p", "p_holm", "margin", "p_level", "effect"),
        *("verdict", "seeds_needed", "sentence"),
    )
}
"""Columns of the table of comparisons, by those of the table of claims: a comparison that was planned has the numbers of its claim."""


@dataclass(frozen=True)
class Claims:
    """What the planned claims of a report come to."""

    table: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=[*COLUMNS]))
    """One row a claim, in their order; see `claims_table`."""
    evidence: Sequence[Evidence] = ()
    """Of those that fit runs, in the same order."""

    def __bool__(self) -> bool:
        return len(self.table) > 0

    def into(self, comparisons: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
        """The comparisons, each that a claim was planned of with the numbers of the claim.

        Args:
            comparisons: as `comparison.comparison_table` and `images.with_images` make them.
            runs: those that they are made of, whose group_id they have.
        """
        groups = dict(zip(runs["run_id"], runs["group_id"], strict=True))
        rows = self.table.set_index("claim")
        planned = {
            (groups.get(subject.run_id, subject.group_id), each.pair.against, each.claim.metric): rows.loc[
                each.claim.claim
            ]
            for each in self.evidence
            for subject in [each.pair.subject]
        }
        keys = [*zip(comparisons["group_id"], comparisons["against"], comparisons["metric"], strict=True)]
        columns: dict[str, Any] = {
            name: [
                planned[key][of_claim] if key in planned else cell
                for key, cell in zip(keys, comparisons[name], strict=True)
            ]
            for name, of_claim in IN_COMPARISONS.items()
        }
        return comparisons.assign(**columns).astype({"seeds_needed": "Int64"})


def claims_table(
    claims: Sequence[PlannedClaim],
    records: Mapping[str, RunRecord],
    runs: pd.DataFrame,
    predictions: Predictions,
    tunings: Sequence[Sequence[TunedArm]] = (),
) -> Claims:
    """The claims, weighed as one family.

    Columns: claim; written, when, and finished_before, how many runs were finished then; group and other, their names;
    against, a key of `AGAINST`, or empty; metric; margin, the smallest difference that matters, in the metric's own size
    (fractions); planned_seeds, those of the first look, and max_seeds; seeds, those that both groups have, in the planned
    order; difference, std; low and high, the 95 % interval, which is valid for all looks together; p and p_level, of no
    difference and of one as large as the margin, valid for all looks; the same by Holm's correction over the claims;
    low_images and high_images, the interval that covers the sampling of the test images too, where predictions were kept;
    e_value, as `sequential.e_value`; effect, Cohen's d; verdict; outcome, supported, refuted or undecided; seeds_needed,
    to decide it either way, if difference and spread are as measured; sentence.

    Args:
        claims: of the results folders, with their plans.
        records: all runs, by their ids.
        runs: the same, as `icpctl.runs.table.runs_table` makes them, with runs that diverged as failed.
        predictions: of the runs.
        tunings: the arms of each tuning.
    """
    configs = {record.config.group_id: record.config for record in records.values()}
    grouping = group(configs)
    of_plans = configs | {arm.untuned.group_id: arm.tuned for arms in tunings for arm in arms}
    bound: list[tuple[PlannedClaim, Pair]] = []
    waiting: dict[str, str] = {}
    for claim in claims:
        pair = bound_pair(claim, of_plans)
        if pair is None or {pair.subject.group_id, pair.other.group_id} - configs.keys():
            waiting[claim.claim] = "Its runs have not been trained yet."
        elif fault := _other_data(pair, claim, records):
            waiting[claim.claim] = fault
        else:
            bound.append((claim, pair))
    evidence = weigh(bound, ended_values(runs, {claim.metric for claim in claims}), len(waiting))
    tested = dict(zip((each.claim.claim for each in evidence), evidence, strict=True))
    rows = [
        _row(tested[claim.claim], grouping, len(claims), predictions)
        if claim.claim in tested
        else _untested(claim, waiting[claim.claim])
        for claim in claims
    ]
    return Claims(pd.DataFrame(rows, columns=[*COLUMNS]), evidence)


def _other_data(pair: Pair, claim: PlannedClaim, records: Mapping[str, RunRecord]) -> str:
    """Why runs cannot be compared that were not trained on the same data; empty if they were."""
    found = [records.get(run.run_id) for seed in claim.planned_seeds for run in pair.runs(seed)]
    if len(versions := {record.fingerprint for record in found if record and record.fingerprint}) > 1:
        return f"Its runs were not trained on the same data, as their fingerprints differ: {first_names(sorted(versions))}."
    return ""


def _facts(claim: PlannedClaim) -> dict[str, Any]:
    return {
        "claim": claim.claim,
        "written": claim.written,
        "measured_before": claim.measured,
        "metric": claim.metric,
        "margin": claim.least_difference,
        "planned_seeds": claim.first,
        "max_seeds": claim.most,
    }


def _untested(claim: PlannedClaim, why: str) -> dict[str, Any]:
    said = f"Undecided: “{claim.claim}”. {why} {_planned(claim)}"
    return {**_facts(claim), "seeds": 0, "verdict": "cannot tell", "outcome": "undecided", "sentence": said}


def _row(evidence: Evidence, grouping: Grouping, family: int, predictions: Predictions) -> dict[str, Any]:
    claim, pair, x = evidence.claim, evidence.pair, evidence.differences
    labels = grouping.table["label"]
    row = {
        **_facts(claim),
        "group": labels[pair.subject.group_id],
        "other": labels[pair.other.group_id],
        "against": pair.against,
        "seeds": len(x),
        "p": evidence.p[-1] if evidence.p else math.nan,
        "p_level": evidence.p_level[-1] if evidence.p_level else math.nan,
        "p_holm": evidence.p_holm if evidence.p else math.nan,
        "p_level_holm": evidence.p_level_holm if evidence.p_level else math.nan,
        "verdict": evidence.verdict,
        "outcome": OUTCOMES[evidence.is_supported],
    }
    if len(x):
        row["difference"] = float(x.mean())
    if len(x) >= 2:
        std = float(x.std(ddof=1))
        if evidence.is_constant:
            return row | {"std": 0.0, "sentence": _sentence(row, evidence, family)}
        row |= {"std": std, "e_value": sequential.e_value(t_statistic(x), len(x))}
        if len(x) >= claim.first:
            low, high = interval(evidence, len(x))
            row |= {"low": low, "high": high, "effect": row["difference"] / std}
            pairs = [(ours.run_id, theirs.run_id) for ours, theirs in map(pair.runs, evidence.seeds)]
            row |= dict(zip(WIDENED, widened(low, high, predictions.error(pairs, claim.metric)), strict=True))
            if evidence.verdict == "cannot tell" and not evidence.lacking:
                row["seeds_needed"] = paired.seeds_to_settle(
                    row["difference"] / std, claim.least_difference / std, ALPHA / family
                )
    return row | {"sentence": _sentence(row, evidence, family)}


def t_statistic(x: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    std = float(x.std(ddof=1))
    return float(x.mean()) / std * math.sqrt(len(x)) if std else 0.0


def interval(evidence: Evidence, seeds: int) -> tuple[float, float]:
    """The 95 % interval of the mean difference of the first seeds, valid for all looks together."""
    claim, x = evidence.claim, evidence.differences[:seeds]
    level = ALPHA
    if claim.most > claim.first:
        level = sequential.nominal_levels(ALPHA, claim.first, claim.most)[seeds - claim.first]
    half = float(student.isf(level / 2, seeds - 1) * x.std(ddof=1) / math.sqrt(seeds))
    return float(x.mean()) - half, float(x.mean()) + half


def _sentence(row: Mapping[str, Any], evidence: Evidence, family: int) -> str:
    """The outcome of a claim in words: what was claimed, what was found, after how many seeds, and when it was planned."""
    claim, seeds = evidence.claim, row["seeds"]
    measure = measure_of(claim.metric)
    name = f"{measure.name} (less is better)" if measure.falls else measure.name
    label, other = row["group"], AGAINST.get(row["against"], row["other"])
    said = f"{row['outcome'].capitalize()}: “{claim.claim}”."
    planned = _planned(claim)
    of_most = f"{seeds} of {'at most ' if claim.most > claim.first else ''}{claim.most} seeds"
    if evidence.lacking:
        return f"{said} A run of the next seed failed or has no finite value, so nothing is claimed from the {seeds} seeds before it. {planned}"
    if seeds < claim.first:
        return f"{said} It is tested once it has {claim.first} seeds; it has {seeds}. {planned}"
    if evidence.verdict == "equal":
        return f"{said} {label} is equal to {other} in {name}, in all {seeds} seeds. {planned}"
    if evidence.is_constant:
        size = measure.difference(row["difference"])
        return f"{said} {label} has the same difference from {other} in all {seeds} seeds: {name} {size}. Without any spread there is no test. {planned}"
    half = (row["high"] - row["low"]) / 2
    low, high = (measure.value(row[end], signed=True, beside=half) for end in ("low", "high"))
    looks = ", valid for all looks together" if claim.most > claim.first else ""
    found = f"{name} {measure.difference(row['difference'], beside=half)}, 95 % interval {low} to {high}{looks}{images_text(row, measure, half)}"
    among = f" among {family} claims" if family > 1 else ""
    margin = _margin(claim, measure)
    match evidence.verdict:
        case "level":
            return (
                f"{said} {label} is level with {other}: they differ by less than {margin} (p {p_equal(row['p_level_holm'])}{among}); {found}; {of_most}. "
                f"{planned}"
            )
        case "better" | "worse" as verdict:
            by = f" by more than {margin}" if claim.relation == "level" else ""
            effect = EFFECT.value(row["effect"], signed=True)
            return f"{said} {label} is {verdict} than {other}{by}: {found}, p {p_equal(row['p_holm'])}{among}, effect size {effect}; {of_most}. {planned}"
    needed = row.get("seeds_needed")
    way_on = (
        f" If difference and spread are as measured, about {needed:,} seeds settle it"
        + (" either way." if claim.margin is not None else ".")
        if needed
        else f" Even {MOST_SEEDS:,} seeds would not settle it, if difference and spread are as measured."
    )
    beyond = f"for one beyond {margin}" if claim.relation == "level" else "for no difference"
    tests = f"p {p_equal(row['p_holm'])} {beyond}"
    if claim.margin is not None:
        tests += f", p {p_equal(row['p_level_holm'])} for one of {margin} or more"
    return f"{said} {of_most} cannot tell {label} from {other}: {found}, {tests}{among}.{way_on} {planned}"


def _margin(claim: PlannedClaim, measure: Measure) -> str:
    unit = "points" if measure.unit == "%" else measure.unit
    return f"{claim.margin:g} {unit}".strip() if claim.margin is not None else ""


def _planned(claim: PlannedClaim) -> str:
    """When a claim was written down, and how much was known by then."""
    try:
        when = f"{datetime.fromisoformat(claim.written):%Y-%m-%d %H:%M} UTC"
    except ValueError:
        when = "at a time that is not recorded"
    if claim.measured:
        runs = "one run" if claim.measured == 1 else f"{claim.measured} runs"
        return f"Added {when}, when {runs} had been measured already, so it was not planned in advance."
    return f"Planned {when}, before any run was measured."
