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

from icpctl.errors import UserError, first_names
from icpctl.report.groups import Grouping, group
from icpctl.report.images import WIDENED, Predictions, widened
from icpctl.runs.claims import Evidence, Pair, PlannedClaim, Tuned, ended_values, find_pair, weigh
from icpctl.runs.folder import RunRecord
from icpctl.runs.measures import EFFECT, Measure, images_text, measure_of, p_text
from icpctl.runs.references import AGAINST
from icpctl.statistics import ALPHA, MOST_SEEDS, paired, sequential
from icpctl.terminal import printable

OUTCOMES = {True: "supported", False: "refuted", None: "undecided"}
COLUMNS = (
    *(
        "claim",
        "written",
        "finished_before",
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


@dataclass(frozen=True)
class Claims:
    """What the planned claims of a report come to."""

    table: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=[*COLUMNS]))
    """One row a claim, in their order; see `claims_table`."""
    evidence: Sequence[Evidence] = ()
    """Of those that fit runs, in the same order."""

    def __bool__(self) -> bool:
        return len(self.table) > 0

    def sentences(self) -> list[tuple[Evidence, str]]:
        """The evidence with what it says."""
        said = dict(zip(self.table["claim"], self.table["sentence"], strict=True))
        return [(each, said[each.claim.claim]) for each in self.evidence]


def claims_table(
    claims: Sequence[PlannedClaim],
    records: Mapping[str, RunRecord],
    runs: pd.DataFrame,
    predictions: Predictions,
    tuned: Tuned,
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
        tuned: what tuned runs are compared with.
    """
    configs = {record.config.group_id: record.config for record in records.values()}
    pairs: list[tuple[PlannedClaim, Pair]] = []
    waiting: dict[str, str] = {}
    for claim in claims:
        try:
            pair = find_pair(claim, configs.values(), tuned)
            _refuse_other_data(claim, pair, records)
            pairs.append((claim, pair))
        except UserError as error:  # its runs have not begun, or it never fitted
            waiting[claim.claim] = str(error)
    grouping = group(configs)
    evidence = weigh(pairs, ended_values(runs, {claim.metric for claim in claims}))
    tested = dict(zip((each.claim.claim for each in evidence), evidence, strict=True))
    rows = [
        _row(tested[claim.claim], grouping, len(claims), predictions)
        if claim.claim in tested
        else _untested(claim, waiting[claim.claim])
        for claim in claims
    ]
    return Claims(pd.DataFrame(rows, columns=[*COLUMNS]), evidence)


def _refuse_other_data(claim: PlannedClaim, pair: Pair, records: Mapping[str, RunRecord]) -> None:
    found = [records.get(run.run_id) for seed in claim.planned_seeds() for run in pair.runs(seed)]
    if len(versions := {record.fingerprint for record in found if record and record.fingerprint}) > 1:
        raise UserError(
            f"{claim.place}: its runs were not trained on the same data, as their fingerprints differ: {first_names(sorted(versions))}."
        )


def _facts(claim: PlannedClaim) -> dict[str, Any]:
    return {
        "claim": claim.claim,
        "written": claim.written,
        "finished_before": claim.finished,
        "metric": claim.metric,
        "margin": claim.difference(),
        "planned_seeds": claim.first,
        "max_seeds": claim.most,
    }


def _untested(claim: PlannedClaim, why: str) -> dict[str, Any]:
    said = f"Undecided: {claim.claim}. {printable(why)} {_planned(claim)}"
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
        row |= {"std": std, "e_value": sequential.e_value(t_statistic(x), len(x))}
        if len(x) >= claim.first:
            low, high = interval(evidence, len(x))
            row |= {"low": low, "high": high, "effect": row["difference"] / std if std else math.nan}
            pairs = [(ours.run_id, theirs.run_id) for ours, theirs in map(pair.runs, evidence.seeds)]
            row |= dict(zip(WIDENED, widened(low, high, predictions.error(pairs, claim.metric)), strict=True))
            if evidence.verdict == "cannot tell" and not evidence.lacking and std:
                row["seeds_needed"] = paired.seeds_to_settle(
                    row["difference"] / std, claim.difference() / std, ALPHA / family
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
        level = sequential.nominal_levels(ALPHA, claim.first, claim.most)[min(seeds, claim.most) - claim.first]
    half = float(student.isf(level / 2, seeds - 1) * x.std(ddof=1) / math.sqrt(seeds))
    return float(x.mean()) - half, float(x.mean()) + half


def _sentence(row: Mapping[str, Any], evidence: Evidence, family: int) -> str:
    """The outcome of a claim in words: what was found, by how much, after how many seeds; when it was planned."""
    claim, seeds = evidence.claim, row["seeds"]
    measure = measure_of(claim.metric)
    name = f"{measure.name} (less is better)" if measure.falls else measure.name
    other = AGAINST.get(row["against"], row["other"])
    outcome = row["outcome"].capitalize()
    planned = _planned(claim)
    of_most = f"{seeds} of {'at most ' if claim.most > claim.first else ''}{claim.most} seeds"
    if evidence.lacking:
        return (
            f"{outcome}: {row['group']} and {other} in {name}. A run of the next seed failed or has no finite value, so nothing is "
            f"claimed of the {seeds} seeds before it. {planned}"
        )
    if seeds < claim.first:
        return f"{outcome}: {row['group']} and {other} in {name}. It is looked at when {claim.first} seeds are there; there are {seeds}. {planned}"
    half = (row["high"] - row["low"]) / 2
    low, high = (measure.value(row[end], signed=True, beside=half) for end in ("low", "high"))
    looks = ", which holds for all looks together" if claim.most > claim.first else ""
    found = f"{name} {measure.difference(row['difference'], beside=half)}, 95 % interval {low} to {high}{looks}"
    found += images_text(row, measure, half)
    among = f" among {family} claims" if family > 1 else ""
    margin = _margin(claim, measure)
    match evidence.verdict:
        case "equal":
            return f"{outcome}: {row['group']} is equal to {other} in all {seeds} seeds: {name}. {planned}"
        case "level":
            said = f"is level with {other}: the difference is smaller than {margin}, p {_equal(row['p_level_holm'])}{among}. {found[0].upper()}{found[1:]}"
            return f"{outcome}: {row['group']} {said}; {of_most}. {planned}"
        case "better" | "worse" as verdict:
            effect = EFFECT.value(row["effect"], signed=True)
            return f"{outcome}: {row['group']} is {verdict} than {other}: {found}, p {_equal(row['p_holm'])}{among}, effect size {effect}; {of_most}. {planned}"
    needed = row.get("seeds_needed")
    way_on = (
        f" If difference and spread are as measured, about {needed:,} seeds settle it"
        + (" either way." if claim.margin is not None else ".")
        if needed
        else f" Even {MOST_SEEDS:,} seeds would not settle it, if difference and spread are as measured."
    )
    level = f", of {margin} or more {_equal(row['p_level_holm'])}" if claim.margin is not None else ""
    tested = f"p of no difference {_equal(row['p_holm'])}{level}{among}"
    return f"{outcome}: {of_most} cannot tell {row['group']} from {other}: {found}, {tested}.{way_on} {planned}"


def _margin(claim: PlannedClaim, measure: Measure) -> str:
    unit = "points" if measure.unit == "%" else measure.unit
    return f"{claim.margin:g} {unit}".strip() if claim.margin is not None else ""


def _planned(claim: PlannedClaim) -> str:
    """When a claim was written down, and how much was known by then."""
    try:
        when = f"{datetime.fromisoformat(claim.written):%Y-%m-%d %H:%M} UTC"
    except ValueError:
        when = "at a time that is not recorded"
    if claim.finished:
        return f"Added {when}, after {claim.finished} run{'s' if claim.finished > 1 else ''} had finished, so it is not a plan in full."
    return f"Planned {when}, before any run had finished."


def _equal(p: float) -> str:
    text = p_text(p)
    return text if text.startswith("<") else f"= {text}"
