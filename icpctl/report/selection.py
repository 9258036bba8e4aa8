"""Which runs a report is about: the conditions of --where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from icpctl.config import RunConfig
from icpctl.config.conditions import parse_conditions
from icpctl.errors import UserError
from icpctl.runs.references import TunedArm, references, tuned_references


def select(
    configs: Mapping[str, RunConfig], where: Sequence[str], tunings: Sequence[Sequence[TunedArm]] = ()
) -> set[str]:
    """The ids of the runs for which all conditions are true, and of the baselines, of equal epochs and compute-matched, that
    they are compared with. A condition on a setting of the method is true of no baseline.

    Args:
        configs: the runs there are, by their ids.
        where: conditions: "model=resnet20,seed=0..4" (values, and intervals of numbers, ends included), or an expression
            as `icpctl ablate` takes it, "steps * icp_lr < 0.02".
        tunings: of which some of them come, as `tuned_references` takes them.

    Raises:
        UserError: a condition that cannot be read, or that no run fulfils.
    """
    conditions = [each for text in where for each in parse_conditions(text, f"--where {text}")]
    chosen = {run_id: config for run_id, config in configs.items() if all(is_true(config) for is_true in conditions)}
    if configs and not chosen:
        raise UserError(
            f"--where {' --where '.join(where)}: no run fulfils this. `icpctl report FOLDER` without --where shows which "
            "settings the runs have."
        )
    kept = set(chosen)
    tuned = tuned_references(tunings)
    for config in chosen.values():
        group_id = config.group_id
        twins = tuned[group_id] if group_id in tuned else references(config)
        baselines = [twins[kind] for kind in ("baseline", "compute-matched") if kind in twins]
        kept |= {twin.altered(seed=config.seed).run_id for twin in baselines}
    return kept & configs.keys()
