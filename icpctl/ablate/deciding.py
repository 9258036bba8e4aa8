"""Planning the claims of a study, and the seeds that are added until they are decided."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType

from icpctl.ablate.study import Definition, PlannedRun
from icpctl.ablate.tuning import final_runs
from icpctl.config import RunConfig
from icpctl.config.conditions import named_settings
from icpctl.errors import UserError
from icpctl.runs.claims import Pair, PlannedClaim, Values, bound_pair, ended_values, find_pair, weigh
from icpctl.runs.folder import RunRecord, read_record, run_folders
from icpctl.runs.metrics import METRICS_FILE
from icpctl.runs.table import runs_table
from icpctl.runs.tuning import read_tunings
from icpctl.statistics import LEAST_SEEDS


def plan(definition: Definition, output: Path) -> tuple[Definition, list[str]]:
    """The definition with the claims that its results folder has, and with plans for those that are new.

    A claim of the folder keeps its plan once anything was measured there, so that no look at the results can change it.

    Returns:
        The definition; and sentences on what was asked for and is not done.

    Raises:
        UserError: a claim that fits no runs of the study, or several; too few seeds; a setting that tuning chooses.
    """
    kept = Definition.kept(output) or Definition([])
    claims = {claim.claim: claim for claim in kept.claims if claim.written}
    planned = definition.runs()
    measured = sum((folder / METRICS_FILE).exists() for folder in (run_folders(output) if output.exists() else []))
    now = datetime.now(UTC).isoformat(timespec="seconds")
    notes = []
    for claim in definition.claims:
        before = claims.get(claim.claim)
        new = claim if claim.written else _with_plan(claim, definition, planned, now, measured)
        if before is None or not measured:
            claims[claim.claim] = new
        elif (new.margin, new.seeds, new.max_seeds) != (before.margin, before.seeds, before.max_seeds):
            notes.append(
                f"{claim.place} keeps the plan that it had before runs were measured in {output}: {_plan_in_words(before)}. For another plan, "
                "take another results folder."
            )
    until_decided = definition.until_decided or kept.until_decided
    return replace(definition, claims=tuple(claims.values()), until_decided=until_decided), notes


def _with_plan(
    claim: PlannedClaim, definition: Definition, planned: Sequence[PlannedRun], now: str, measured: int
) -> PlannedClaim:
    pair = find_pair(claim, (run.config for run in planned))
    tuned = {name for study in definition.studies for name in study.tune}
    if chosen := sorted(tuned & (named_settings(claim.subject) | named_settings(claim.other))):
        raise UserError(
            f"{claim.place} names {', '.join(chosen)}, which tuning chooses. Describe the runs by other settings."
        )
    there = {run.config.run_id for run in planned}
    every = dict.fromkeys(run.config.seed for run in planned)
    seeds = tuple(seed for seed in every if all(config.run_id in there for config in pair.runs(seed)))
    if len(seeds) < LEAST_SEEDS:
        raise UserError(
            f"{claim.place}: it takes {LEAST_SEEDS} seeds or more to test it, and both groups are planned with {len(seeds)}. "
            f"Give --seeds {LEAST_SEEDS} or more."
        )
    if claim.max_seeds is not None and claim.max_seeds < len(seeds):
        raise UserError(
            f"--max-seeds is {claim.max_seeds}, but {len(seeds)} seeds are planned already. Give --max-seeds ≥ {len(seeds)}."
        )
    groups = (pair.subject.group_id, pair.other.group_id)
    changes = {"seeds": seeds, "groups": groups, "against": pair.against, "written": now, "measured": measured}
    return claim.model_copy(update=changes)


def _plan_in_words(claim: PlannedClaim) -> str:
    margin = "no margin" if claim.margin is None else f"a margin of {claim.margin:g}"
    more = f", at most {claim.most}" if claim.most > claim.first else ""
    return f"{margin}, {claim.first} seeds{more}"


def planned_runs(
    definition: Definition,
    output: Path,
    every: bool = False,
    records: Mapping[str, RunRecord] = MappingProxyType({}),
) -> list[PlannedRun]:
    """The runs of a study, with those of the seeds that its claims need to be decided, as far as the finished runs tell; or of `every`
    seed that they may need.

    Args:
        definition: the study.
        output: its results folder.
        every: whether to count all seeds that the claims may need.
        records: of runs that have been read already, by their ids; the others are read here.

    Raises:
        UserError: as `Definition.runs`.
    """
    runs = {run.config.run_id: run for run in final_runs(definition, output)}
    claims = _bound(definition, runs.values(), output) if definition.until_decided else []
    if not claims:
        return [*runs.values()]
    others = sum(bool(claim.written) for claim in definition.claims) - len(claims)
    roles = {run.config.group_id: run.role for run in runs.values()}
    for evidence in weigh(claims, _values(output, claims, records), others):
        wanted = evidence.claim.most if every and not evidence.is_over else evidence.wanted
        for seed in evidence.claim.planned_seeds[:wanted]:
            for config in evidence.pair.runs(seed):
                runs.setdefault(config.run_id, PlannedRun(config, roles[config.group_id]))
    return [*runs.values()]


def _bound(definition: Definition, runs: Iterable[PlannedRun], output: Path) -> list[tuple[PlannedClaim, Pair]]:
    """The claims that have a plan, with the groups that they are about; those whose runs are of no study here, or are not tuned yet,
    are left out.
    """
    configs = {run.config.group_id: run.config for run in runs}
    if any(study.tune for study in definition.studies):
        arms = (arm for tuning in read_tunings(output).values() for arm in tuning.tuned_arms())
        configs |= {arm.untuned.group_id: arm.tuned for arm in arms}
    pairs = [(claim, bound_pair(claim, configs)) for claim in definition.claims if claim.written]
    return [(claim, pair) for claim, pair in pairs if pair]


def _values(output: Path, claims: Sequence[tuple[PlannedClaim, Pair]], records: Mapping[str, RunRecord]) -> Values:
    configs: dict[str, RunConfig] = {}
    for claim, pair in claims:
        each = (config for seed in claim.planned_seeds for config in pair.runs(seed))
        configs |= {config.run_id: config for config in each if (output / config.run_id).exists()}
    if not configs:
        return {}
    runs = runs_table(
        [records.get(run_id) or read_record(output / run_id, config)[0] for run_id, config in configs.items()]
    )
    return ended_values(runs, {claim.metric for claim, _ in claims})
