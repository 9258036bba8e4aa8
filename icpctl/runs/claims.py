"""Planned claims: what a study is there to decide, written down before its runs, and what its seeds say about it.

A plan binds a claim to two groups of runs and to their seeds, in an order. It is tested with these and with no others: once, when all
seeds are there, or after each seed up to a maximum; then by the tests of `icpctl.statistics.sequential`. A claim that is decided
stays so: seeds that come later are not looked at.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, field_validator

from icpctl.config import RunConfig
from icpctl.config.catalogue import PLAIN
from icpctl.config.conditions import parse_conditions
from icpctl.errors import UserError, abbreviated, first_names, unknown
from icpctl.runs.measures import falls, measure_of, metrics_of
from icpctl.runs.references import AGAINST, references, rivals
from icpctl.runs.table import metric_columns
from icpctl.statistics import ALPHA

EXAMPLE = "method=icp better than compute-matched in accuracy"
_TEXT = re.compile(r"\s*(.+?)\s+(better|worse|level)\s+(?:than|with)\s+(.+?)\s+in\s+([\w-]+)\s*", re.DOTALL)

Relation = Literal["better", "worse", "level"]
Verdict = Literal["better", "worse", "level", "equal", "cannot tell"]
Values = Mapping[str, Mapping[str, float]]
"""Of each metric, the value of each run that has ended, by its id; not finite where the run failed or has none."""
Floats = np.ndarray[Any, np.dtype[np.float64]]


class PlannedClaim(BaseModel):
    """A claim and its plan, as study.toml has them."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, populate_by_name=True)

    claim: str
    """In words: one group of runs, better than, worse than or level with another, in a metric."""
    margin: float | None = Field(None, gt=0, allow_inf_nan=False)
    """The smallest difference that matters, in the unit of the metric, points for a percentage; None: none was planned."""
    seeds: tuple[int, ...] = Field((), strict=False)
    """Those of the first look, or the only one; in the order in which they are counted."""
    max_seeds: int | None = Field(None, alias="max-seeds", ge=1)
    """Seeds at the last look; None: there is one look."""
    groups: tuple[str, ...] = Field((), strict=False)
    """The group_ids of what is claimed and of what it is compared with, before their tuning."""
    against: str = ""
    """What the second group is to the first, by the keys of `AGAINST`; empty where the claim describes it."""
    written: str = ""
    """When the claim was written down, ISO 8601, UTC; empty as long as there is no plan."""
    measured: int = 0
    """Runs of the results folder that had recorded metrics by then."""

    @field_validator("claim")
    @classmethod
    def _in_words(cls, text: str) -> str:
        if not _TEXT.fullmatch(text):
            raise ValueError(f"the claim {abbreviated(text)!r} cannot be read")
        return text

    @classmethod
    def parse(cls, text: str, margin: float | None = None) -> Self:
        """A claim from its words, such as "method=icp,steps=5 better than compute-matched in accuracy".

        Raises:
            UserError: it cannot be read, or its metric does not exist.
        """
        match = _TEXT.fullmatch(text)
        if not match:
            raise UserError(
                f"The claim {abbreviated(text)!r} cannot be read. Write RUNS better than OTHERS in METRIC, for example {EXAMPLE!r}; "
                "or worse than, or level with."
            )
        words = "with" if match[2] == "level" else "than"
        metric = match[4] if "_by_" in match[4] else match[4].replace("-", "_")  # a run's id, in some, has dashes
        return cls(claim=f"{match[1]} {match[2]} {words} {match[3]} in {metric}", margin=margin)

    def _part(self, number: int) -> str:
        match = _TEXT.fullmatch(self.claim)
        assert match
        return match[number]

    @property
    def subject(self) -> str:
        return self._part(1)

    @property
    def relation(self) -> Relation:
        return self._part(2)  # type: ignore[return-value]

    @property
    def other(self) -> str:
        return self._part(3)

    @property
    def metric(self) -> str:
        return self._part(4)

    @property
    def place(self) -> str:
        return f"The claim {self.claim!r}"

    @property
    def first(self) -> int:
        """Seeds at the first look."""
        return len(self.seeds)

    @property
    def most(self) -> int:
        """Seeds at the last look."""
        return self.max_seeds or self.first

    @property
    def planned_seeds(self) -> tuple[int, ...]:
        """Every seed that may be used, in order: those of the first look, then the next whole numbers."""
        last = max(self.seeds, default=-1)
        return self.seeds + tuple(range(last + 1, last + 1 + self.most - self.first))

    @property
    def least_difference(self) -> float:
        """The margin as the metric is recorded: fractions, not points."""
        return math.nan if self.margin is None else self.margin / measure_of(self.metric).scale


@dataclass(frozen=True)
class Pair:
    """The two groups that a claim is about, each by one of its configurations."""

    subject: RunConfig
    other: RunConfig
    against: str

    def runs(self, seed: int) -> tuple[RunConfig, RunConfig]:
        """Their runs of a seed."""
        return self.subject.altered(seed=seed), self.other.altered(seed=seed)


def find_pair(claim: PlannedClaim, configs: Iterable[RunConfig]) -> Pair:
    """The groups that the words of a claim describe.

    Args:
        claim: the claim.
        configs: the runs of the study.

    Raises:
        UserError: a part of the claim fits no group, or several; a metric that the runs do not have.
    """
    groups = {config.group_id: config for config in configs}
    subject = _one_of(groups, claim.subject, claim.place)
    known = metrics_of(subject.task)
    if claim.metric.removesuffix("_best") not in known and "_by_" not in claim.metric:
        raise UserError(
            f"{claim.place}: {unknown('metric', claim.metric, known)} `icpctl list metrics` shows what each is."
        )
    if claim.relation == "level" and claim.margin is None:
        raise UserError(f"{claim.place}: two groups are level if they differ by less than a margin. Give --margin.")
    if claim.other in AGAINST:
        return Pair(subject, _reference(claim, subject, groups), claim.other)
    other = _one_of(groups, claim.other, claim.place)
    if other.group_id == subject.group_id:
        raise UserError(f"{claim.place} compares a group with itself. Describe another one after {claim.relation}.")
    if (other.dataset, other.task) != (subject.dataset, subject.task):
        raise UserError(
            f"{claim.place} compares runs of two data sets or tasks: {subject.dataset} and {other.dataset}."
        )
    return Pair(subject, other, "")


def _reference(claim: PlannedClaim, subject: RunConfig, groups: Mapping[str, RunConfig]) -> RunConfig:
    """The group that stands to the subject as the claim says."""
    own = references(subject)
    known = own | rivals(groups.values()).get(subject.group_id, {})
    if "baseline" in known:
        known.setdefault("compute-matched", known["baseline"])  # of a method that costs nothing
    twin = known.get(claim.other)
    if twin is None:
        raise UserError(
            f"{claim.place}: {claim.subject} is compared with no {claim.other}. It is compared with "
            f"{', '.join(known) or 'nothing'}; or describe the other runs by their settings."
        )
    if twin.group_id not in groups:
        option = "--compute-matched" if claim.other == "compute-matched" else "--controls"
        raise UserError(
            f"{claim.place}: there is no run of {AGAINST[claim.other]}."
            + (f" {option} adds it." if claim.other in own else "")
        )
    return twin


def _one_of(groups: Mapping[str, RunConfig], text: str, place: str) -> RunConfig:
    """The one group that a text describes: of several, the one that is neither a control nor a baseline."""
    conditions = parse_conditions(text, place)
    found = [config for config in groups.values() if all(holds(config) for holds in conditions)]
    for part in (
        [config for config in found if config.method != PLAIN and not config.control],
        [config for config in found if config.method != PLAIN],
        found,
    ):
        if len(part) == 1:
            return part[0]
        if len(part) > 1:
            names = [
                name
                for name in RunConfig.model_fields
                if name != "seed" and len({repr(getattr(config, name)) for config in part}) > 1
            ]
            raise UserError(
                f"{place}: {text} fits {len(part)} groups of runs, and has to fit one. They differ in {first_names(names)}: add what "
                "tells them apart, as in method=icp,optimizer=adam,steps=5."
            )
    raise UserError(f"{place}: no run fits {text}. `icpctl ablate --dry-run` lists the runs of a study.")


def bound_pair(claim: PlannedClaim, configs: Mapping[str, RunConfig]) -> Pair | None:
    """The groups that a plan binds a claim to; None where one of them is not there.

    Args:
        claim: with its plan.
        configs: a configuration of each group, by its group_id; of a group that was tuned, the tuned one, by the group_id before.
    """
    subject, other = (configs.get(group_id) for group_id in claim.groups)
    return Pair(subject, other, claim.against) if subject and other else None


@dataclass(frozen=True)
class Evidence:
    """What the planned seeds say about a claim, so far."""

    claim: PlannedClaim
    pair: Pair
    wanted: int
    """How many of its planned seeds the claim is to have."""
    seeds: Sequence[int]
    """Those of them that both groups have a value of, in order, up to the first that is not there."""
    differences: Floats
    """(seeds,): subject less other."""
    p: Sequence[float]
    """At each look so far, valid for all looks together: of no difference; of a level claim, of none beyond the margin."""
    p_level: Sequence[float]
    """The same, of a difference of the margin or more; empty without a margin."""
    lacking: bool = False
    """Whether the next seed has ended without a value, so that nothing is claimed."""
    rounding: float = 0.0
    """Differences that vary by no more than this have no spread, and so no test."""
    p_holm: float = math.nan
    """The last p, corrected over all claims."""
    p_level_holm: float = math.nan
    verdict: Verdict = "cannot tell"

    @property
    def is_constant(self) -> bool:
        """Whether all differences are the same."""
        return len(self.seeds) > 1 and float(np.ptp(self.differences)) <= self.rounding

    @property
    def is_over(self) -> bool:
        """Whether no further seed can change anything: it is decided, a run has failed, or all seeds are used."""
        return self.verdict != "cannot tell" or self.lacking or len(self.seeds) >= self.claim.most

    @property
    def is_supported(self) -> bool | None:
        """Whether the claim holds; None if that is not decided."""
        if self.verdict == "cannot tell":
            return None
        return self.claim.relation == ("level" if self.verdict == "equal" else self.verdict)


def ended_values(runs: pd.DataFrame, metrics: Iterable[str]) -> dict[str, dict[str, float]]:
    """The values of runs that have ended.

    Args:
        runs: as `icpctl.runs.table.runs_table` makes them.
        metrics: their names, of the test split.
    """
    failed = runs["state"] == "failed"
    ended = runs[failed | ((runs["state"] == "finished") & (runs["epochs_recorded"] >= runs["epochs"]))]
    there = metric_columns(runs)
    nothing = pd.Series(math.nan, index=runs.index)
    columns = {metric: runs[metric] if metric in there else nothing for metric in metrics}
    return {
        metric: dict(zip(ended["run_id"], column.mask(failed)[ended.index].astype(float), strict=True))
        for metric, column in columns.items()
    }


def weigh(claims: Sequence[tuple[PlannedClaim, Pair]], values: Values, others: int = 0) -> list[Evidence]:
    """What the seeds say about all claims of a study, which are one family.

    All claims are looked at when each has the seeds of its first look. Each that is not decided then gets a seed more, and so
    on. So which seeds are run, and what is decided, depends on the values alone, not on what ended first; a verdict stands. Both
    kinds of error, a difference and a level that are not there, are held at `ALPHA` each by Holm's correction over the
    claims, on p values that are valid for all looks together.

    Args:
        claims: with the groups that they are about.
        values: of the runs.
        others: claims of the family whose runs are not there yet.
    """
    paths = [_path(claim, pair, values.get(claim.metric, {})) for claim, pair in claims]
    now = [_cut(path, path.claim.first) for path in paths]
    while True:
        now = _judged(now, others)
        if any(not each.is_over and len(each.seeds) < each.wanted for each in now) or all(each.is_over for each in now):
            return now  # some of the seeds are still to be run; or nothing can change any more
        now = [each if each.is_over else _cut(path, each.wanted + 1) for each, path in zip(now, paths, strict=True)]


def _path(claim: PlannedClaim, pair: Pair, values: Mapping[str, float]) -> Evidence:
    """All that there is of a claim's planned seeds, with the p values of every look."""
    from icpctl.statistics import paired, sequential  # they need scipy, which takes a second

    seeds: list[int] = []
    differences: list[float] = []
    size, lacking = 0.0, False
    for seed in claim.planned_seeds:
        ours, theirs = (values.get(run.run_id) for run in pair.runs(seed))
        if ours is None or theirs is None:
            break
        lacking = not (math.isfinite(ours) and math.isfinite(theirs))
        if lacking:
            break
        seeds.append(seed)
        differences.append(ours - theirs)
        size = max(size, abs(ours), abs(theirs))
    x, rounding, margin = np.array(differences), paired.ROUNDING * size, claim.least_difference

    def greater(x: Floats) -> list[float]:
        return sequential.running_p(x, claim.first, claim.most, "greater", rounding)

    if claim.relation == "level":
        sides = zip(greater(x - margin), greater(-x - margin), strict=True)
        p = [min(1.0, 2 * min(both)) for both in sides]
    else:
        p = sequential.running_p(x, claim.first, claim.most, rounding=rounding)
    p_level = [max(both) for both in zip(greater(margin - x), greater(margin + x), strict=True)] if claim.margin else []
    return Evidence(claim, pair, claim.most, seeds, x, p, p_level, lacking, rounding)


def _cut(path: Evidence, wanted: int) -> Evidence:
    """The evidence of so many seeds."""
    looks = max(0, wanted - path.claim.first + 1)
    return replace(
        path,
        wanted=wanted,
        seeds=path.seeds[:wanted],
        differences=path.differences[:wanted],
        p=path.p[:looks],
        p_level=path.p_level[:looks],
        lacking=path.lacking and len(path.seeds) < wanted,
    )


def _judged(found: Sequence[Evidence], others: int) -> list[Evidence]:
    """With corrected p values, and verdicts for those that have none yet."""
    from icpctl.statistics import paired

    # A claim that has not been looked at yet is one of the family all the same.
    p = paired.holm(pd.Series([each.p[-1] if each.p else 1.0 for each in found] + [1.0] * others))
    of_level = [math.nan if each.claim.margin is None else each.p_level[-1] if each.p_level else 1.0 for each in found]
    p_level = paired.holm(pd.Series(of_level + [1.0] * others))
    return [
        each
        if each.verdict != "cannot tell"
        else replace(each, p_holm=one, p_level_holm=other, verdict=_verdict(each, one, other))
        for each, one, other in zip(found, p, p_level, strict=False)
    ]


def _verdict(evidence: Evidence, p: float, p_level: float) -> Verdict:
    claim, x = evidence.claim, evidence.differences
    if evidence.lacking or len(x) < claim.first:
        return "cannot tell"
    if evidence.is_constant and np.abs(x).max() <= evidence.rounding and len(x) >= claim.most:
        return "equal"
    if p_level <= ALPHA:
        return "level"
    if p <= ALPHA:
        look = claim.first + [*evidence.p].index(evidence.p[-1])  # that of the strongest evidence
        return "worse" if (float(x[:look].mean()) > 0) == falls(claim.metric) else "better"
    return "cannot tell"
