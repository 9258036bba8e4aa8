"""Planning the claims of a study, and the seeds that are added until they are decided."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from icpctl.ablate.study import Definition, PlannedRun
from icpctl.ablate.tuning import final_runs
from icpctl.config import RunConfig
from icpctl.errors import UserError
from icpctl.files import read_json
from icpctl.runs.claims import Pair, PlannedClaim, ended_values, find_pair, seeds_to_run
from icpctl.runs.folder import read_record, run_folders
from icpctl.runs.references import tuned_references
from icpctl.runs.table import runs_table
from icpctl.runs.tuning import read_tunings
from icpctl.statistics import LEAST_SEEDS


def plan(definition: Definition, output: Path) -> Definition:
    """The definition with all claims that its results folder has, and with what is recorded of those that are new.

    A claim that the folder has already keeps its plan once a run is finished, so that no look at the results can change it.

    Raises:
        UserError: a claim that fits no runs of the study, or several; too few seeds.
    """
    kept = Definition.kept(output) or Definition([])
    before = {claim.claim: claim for claim in kept.claims}
    planned = definition.runs()
    folders = run_folders(output) if output.exists() else []
    finished = sum(read_json(folder / "status.json").get("state") == "finished" for folder in folders)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    claims = dict(before)
    for claim in definition.claims:
        if claim.written or (claim.claim in before and finished):
            continue
        pair = find_pair(claim, (run.config for run in planned))
        seeds = _seeds_of(pair, planned)
        if len(seeds) < LEAST_SEEDS:
            raise UserError(
                f"{claim.place}: it takes {LEAST_SEEDS} seeds or more to test it, and both groups are planned with {len(seeds)}. "
                f"Give --seeds {LEAST_SEEDS} or more."
            )
        if claim.max_seeds is not None and claim.max_seeds < len(seeds):
            raise UserError(
                f"max-seeds is {claim.max_seeds}, but {len(seeds)} seeds are planned already. Give max-seeds > {len(seeds)}."
            )
        claims[claim.claim] = claim.model_copy(update={"seeds": seeds, "written": now, "finished": finished})
    return replace(
        definition, claims=tuple(claims.values()), until_decided=definition.until_decided or kept.until_decided
    )


def planned_runs(definition: Definition, output: Path) -> list[PlannedRun]:
    """The runs of a study, with those of the seeds that its claims need to be decided, as far as the finished runs tell.

    Raises:
        UserError: as `Definition.runs`.
    """
    runs = {run.config.run_id: run for run in final_runs(definition, output)}
    pairs = _pairs(definition, runs.values(), output) if definition.until_decided else []
    if not pairs:
        return [*runs.values()]
    roles = {run.config.group_id: run.role for run in runs.values()}
    values = _values(output, pairs)
    for (claim, pair), number in zip(pairs, seeds_to_run(pairs, values), strict=True):
        for seed in claim.planned_seeds()[:number]:
            for config in pair.runs(seed):
                runs.setdefault(config.run_id, PlannedRun(config, roles[config.group_id]))
    return [*runs.values()]


def _pairs(definition: Definition, runs: Iterable[PlannedRun], output: Path) -> list[tuple[PlannedClaim, Pair]]:
    """The claims that have a plan, with the groups that they are about. Where these are still to be tuned, there are none yet."""
    configs = [run.config for run in runs]
    is_tuned = any(study.tune for study in definition.studies)
    tunings = read_tunings(output).values() if is_tuned else ()
    tuned = tuned_references(tuning.tuned_arms() for tuning in tunings)
    found = []
    for claim in definition.claims:
        with suppress(UserError) if is_tuned else nullcontext():
            if claim.written:
                found.append((claim, find_pair(claim, configs, tuned)))
    return found


def _seeds_of(pair: Pair, planned: Sequence[PlannedRun]) -> tuple[int, ...]:
    """The seeds of which both groups have a run, in the order of the study."""
    there = {run.config.run_id for run in planned}
    seeds = dict.fromkeys(run.config.seed for run in planned)
    return tuple(seed for seed in seeds if all(config.run_id in there for config in pair.runs(seed)))


def _values(output: Path, pairs: Sequence[tuple[PlannedClaim, Pair]]) -> dict[str, dict[str, float]]:
    """Of each metric of a claim, the value of each run that has ended, not a number where it failed."""
    configs: dict[str, RunConfig] = {}
    for claim, pair in pairs:
        each = (config for seed in claim.planned_seeds() for config in pair.runs(seed))
        configs |= {config.run_id: config for config in each if (output / config.run_id).exists()}
    if not configs:
        return {}
    runs = runs_table([read_record(output / run_id, config)[0] for run_id, config in configs.items()])
    return ended_values(runs, {claim.metric for claim, _ in pairs})
