"""Planned claims: what a study is there to decide, written down before its runs, and what its seeds say about it.

A claim is tested with the seeds that were planned for it, in their order, and with no others. Either there is one look, when
all are there, or one after each seed up to a planned maximum: then the tests are those of `icpctl.statistics.sequential`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field

from icpctl.config import RunConfig
from icpctl.config.catalogue import PLAIN
from icpctl.config.conditions import parse_conditions
from icpctl.errors import UserError, abbreviated, first_names
from icpctl.runs.measures import falls, measure_of
from icpctl.runs.references import AGAINST, references, rivals
from icpctl.statistics import ALPHA

EXAMPLE = "method=icp better than compute-matched in accuracy"
_TEXT = re.compile(r"\s*(.+?)\s+(better|worse|level)\s+(?:than|with)\s+(.+?)\s+in\s+([\w-]+)\s*", re.DOTALL)

Relation = Literal["better", "worse", "level"]
Verdict = Literal["better", "worse", "level", "equal", "cannot tell"]


class PlannedClaim(BaseModel):
    """A claim and its plan, as study.toml has them."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, populate_by_name=True)

    claim: str
    """In words: one group of runs, better than, worse than or level with another, in a metric."""
    margin: float | None = Field(None, gt=0)
    """The smallest difference that matters, in the unit of the metric, points for a percentage; None: none was planned."""
    seeds: tuple[int, ...] = Field((), strict=False)
    """Those of the first look, or the only one; in the order in which they are counted."""
    max_seeds: int | None = Field(None, alias="max-seeds", ge=1)
    """Seeds at the last look; None: there is one look."""
    written: str = ""
    """When the claim was written down, ISO 8601, UTC."""
    finished: int = 0
    """Runs of the results folder that were finished by then."""

    @classmethod
    def parse(cls, text: str, margin: float | None = None) -> Self:
        """A claim from its words, such as "method=icp,steps=5 better than compute-matched in accuracy".

        Raises:
            UserError: it cannot be read.
        """
        match = _TEXT.fullmatch(text)
        if not match:
            raise UserError(
                f"The claim {abbreviated(text)!r} cannot be read. Write RUNS better than OTHERS in METRIC, for example {EXAMPLE!r}; "
                "or worse than, or level with."
            )
        words = "with" if match[2] == "level" else "than"
        return cls(claim=f"{match[1]} {match[2]} {words} {match[3]} in {match[4].replace('-', '_')}", margin=margin)

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

    def planned_seeds(self) -> tuple[int, ...]:
        """Every seed that may be used, in order: those of the first look, then the next whole numbers."""
        more = self.most - self.first
        return self.seeds + tuple(range(max(self.seeds, default=-1) + 1, max(self.seeds, default=-1) + 1 + more))

    def difference(self) -> float:
        """The margin as the metric is recorded: fractions, not points."""
        return math.nan if self.margin is None else self.margin / measure_of(self.metric).scale


@dataclass(frozen=True)
class Pair:
    """The two groups that a claim is about, each by one of its configurations."""

    subject: RunConfig
    other: RunConfig
    against: str
    """A key of `AGAINST`; or empty, where the claim describes the other group."""

    def runs(self, seed: int) -> tuple[RunConfig, RunConfig]:
        """Their runs of a seed."""
        return self.subject.altered(seed=seed), self.other.altered(seed=seed)


Tuned = Mapping[str, Mapping[str, RunConfig]]
"""As `icpctl.runs.references.tuned_references` makes it."""


def find_pair(claim: PlannedClaim, configs: Iterable[RunConfig], tuned: Tuned = MappingProxyType({})) -> Pair:
    """The groups that a claim is about.

    Args:
        claim: the claim.
        configs: the runs that there are, or are to be.
        tuned: what tuned runs are compared with.

    Raises:
        UserError: a part of the claim fits no group, or several.
    """
    groups = {config.group_id: config for config in configs}
    subject = _one_of(groups, claim.subject, claim.place)
    if claim.other in AGAINST:
        known = dict(tuned.get(subject.group_id, {})) or references(subject) | rivals(groups.values()).get(
            subject.group_id, {}
        )
        if claim.other == "compute-matched":
            known.setdefault(
                "compute-matched", known.get("baseline", subject.baseline())
            )  # of a method that costs nothing
        twin = known.get(claim.other)
        if twin is None:
            raise UserError(
                f"{claim.place}: {claim.subject} is compared with no {claim.other}. It is compared with "
                f"{', '.join(known) or 'nothing'}; or describe the other runs by their settings."
            )
        if twin.group_id not in groups:
            option = {"compute-matched": "--compute-matched"}.get(claim.other, "--controls")
            raise UserError(
                f"{claim.place}: there is no run of {AGAINST[claim.other]}."
                + (f" {option} adds it." if claim.other in references(subject) else "")
            )
        return Pair(subject, twin, claim.other)
    other = _one_of(groups, claim.other, claim.place)
    if other.group_id == subject.group_id:
        raise UserError(f"{claim.place} compares a group with itself. Describe another one after {claim.relation}.")
    if other.dataset != subject.dataset:
        raise UserError(f"{claim.place} compares runs of two data sets, {subject.dataset} and {other.dataset}.")
    return Pair(subject, other, "")


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


@dataclass(frozen=True)
class Evidence:
    """What the planned seeds say about a claim, so far."""

    claim: PlannedClaim
    pair: Pair
    seeds: Sequence[int]
    """Those that both groups have a value of, in order, up to the first that is not there."""
    differences: np.ndarray[Any, np.dtype[np.float64]]
    """(seeds,): subject less other."""
    lacking: bool = False
    """Whether the next seed has ended without a value, so that nothing is claimed."""
    p: Sequence[float] = ()
    """The p value at each look so far, valid for all looks together: of no difference."""
    p_level: Sequence[float] = ()
    """The same, of a difference of the margin or more; empty without a margin."""
    p_holm: float = math.nan
    """The last p, corrected over all claims."""
    p_level_holm: float = math.nan
    verdict: Verdict = "cannot tell"

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
    """Of each metric, the value of each run that has ended, by its id: not a number where it failed or has none.

    Args:
        runs: as `icpctl.runs.table.runs_table` makes them.
        metrics: their names, of the test split.
    """
    failed = runs["state"] == "failed"
    ended = runs[failed | ((runs["state"] == "finished") & (runs["epochs_recorded"] >= runs["epochs"]))]
    nothing = pd.Series(math.nan, index=runs.index)
    return {
        metric: dict(
            zip(ended["run_id"], runs.get(metric, nothing).mask(failed)[ended.index].astype(float), strict=True)
        )
        for metric in metrics
    }


def weigh(
    claims: Sequence[tuple[PlannedClaim, Pair]],
    values: Mapping[str, Mapping[str, float]],
    limits: Sequence[int] | None = None,
) -> list[Evidence]:
    """What the seeds say about all claims of a study, which are one family.

    Both kinds of error, a difference and a level that are not there, are held at `ALPHA` each by Holm's correction over the
    claims; with several looks, it is applied to p values that are valid for all looks together.

    Args:
        claims: with the groups that they are about.
        values: of each metric, the value of each run that has ended, by its id, not finite where it failed.
        limits: how many seeds of each claim may be looked at; all, if not given.
    """
    from icpctl.statistics import paired, sequential

    found = []
    for place, (claim, pair) in enumerate(claims):
        of_metric = values.get(claim.metric, {})
        seeds: list[int] = []
        differences: list[float] = []
        lacking = False
        planned = claim.planned_seeds()
        for seed in planned if limits is None else planned[: limits[place]]:
            ours, theirs = (of_metric.get(run.run_id) for run in pair.runs(seed))
            if ours is None or theirs is None:
                break
            lacking = not (math.isfinite(ours) and math.isfinite(theirs))
            if lacking:
                break
            seeds.append(seed)
            differences.append(ours - theirs)
        x = np.array(differences)
        size = max((abs(v) for run in seeds for v in (of_metric[c.run_id] for c in pair.runs(run))), default=0.0)
        rounding = paired.ROUNDING * size
        p = sequential.running_p(x, claim.first, claim.most, rounding=rounding)
        p_level: Sequence[float] = ()
        if claim.margin is not None:
            sides = [
                sequential.running_p(sign * x + claim.difference(), claim.first, claim.most, "greater", rounding)
                for sign in (1, -1)
            ]
            p_level = [max(both) for both in zip(*sides, strict=True)]
        constant = len(x) >= claim.first and float(np.abs(x).max()) <= rounding
        found.append(
            Evidence(claim, pair, seeds, x, lacking, p, p_level, verdict="equal" if constant else "cannot tell")
        )
    # A claim that has not been looked at yet is one of the family all the same.
    holm = paired.holm(pd.Series([each.p[-1] if each.p else 1.0 for each in found]))
    of_level = [math.nan if each.claim.margin is None else each.p_level[-1] if each.p_level else 1.0 for each in found]
    holm_level = paired.holm(pd.Series(of_level))
    return [_judged(each, *corrected) for each, *corrected in zip(found, holm, holm_level, strict=True)]


def _judged(evidence: Evidence, p: float, p_level: float) -> Evidence:
    """With the verdict that p values allow which are corrected over all claims."""
    verdict = evidence.verdict
    if verdict == "cannot tell" and not evidence.lacking:
        if p_level <= ALPHA:
            verdict = "level"
        elif p <= ALPHA:
            look = evidence.claim.first + [*evidence.p].index(evidence.p[-1])  # that of the strongest evidence
            rises = float(evidence.differences[:look].mean()) > 0
            verdict = "worse" if rises == falls(evidence.claim.metric) else "better"
    return replace(evidence, p_holm=p, p_level_holm=p_level, verdict="cannot tell" if evidence.lacking else verdict)


def seeds_to_run(claims: Sequence[tuple[PlannedClaim, Pair]], values: Mapping[str, Mapping[str, float]]) -> list[int]:
    """How many of its planned seeds each claim is to have.

    All claims are looked at when each has the seeds of its first look, then each undecided one gets a seed more, and so on: a
    claim gets none once it is over. So which seeds are run depends on their values alone, not on what ended first.

    Args:
        claims: as of `weigh`.
        values: as of `weigh`, of the runs that have ended.
    """
    limits = [claim.first for claim, _ in claims]
    while True:
        found = weigh(claims, values, limits)
        if any(not each.is_over and len(each.seeds) < limit for each, limit in zip(found, limits, strict=True)):
            return limits  # some of these are still to be run
        if all(each.is_over for each in found):
            return limits
        limits = [limit + (not each.is_over) for each, limit in zip(found, limits, strict=True)]
