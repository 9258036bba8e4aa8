"""Which runs a report is about: the conditions of --where."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence

from icpctl.config import RunConfig, declaration
from icpctl.config.grid import grid_values, holds
from icpctl.config.settings import typed_settings
from icpctl.errors import UserError, unknown
from icpctl.runs.references import TunedArm, references, tuned_references
from icpctl.runs.table import METHOD

Condition = Callable[[RunConfig], bool]

_KEY = re.compile(r"\s*([A-Za-z0-9_-]+)\s*=(?!=)\s*(.*)", re.DOTALL)


def select(
    configs: Mapping[str, RunConfig], where: Sequence[str], tunings: Sequence[Sequence[TunedArm]] = ()
) -> set[str]:
    """The ids of the runs for which all conditions are true, and of the baselines, at equal epochs and at equal compute, that
    they are compared with. A condition on a setting of the method is true of no baseline.

    Args:
        configs: the runs there are, by their ids.
        where: conditions: "model=resnet20,seed=0..4" (values, and intervals of numbers, ends included), or an expression
            as `icpctl ablate` takes it, "steps * icp_lr < 0.02".
        tunings: of which some of them come, as `tuned_references` takes them.

    Raises:
        UserError: a condition that cannot be read, or that no run fulfils.
    """
    conditions = [each for text in where for each in parse_where(text)]
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


def parse_where(text: str) -> list[Condition]:
    """The conditions of one --where.

    Raises:
        UserError: it cannot be read.
    """
    where = f"--where {text}"
    if not _KEY.match(text):
        return [_expression(text, where)]
    pieces: dict[str, list[str]] = {}
    name = ""
    for piece in text.split(","):
        if match := _KEY.match(piece):
            name = match[1].replace("-", "_")
            if name in pieces:
                raise UserError(f"{where}: {name} is given twice. List all its values once, as in steps=1,3,5.")
            pieces[name] = []
            piece = match[2]
        pieces[name].append(piece.strip())
    return [_values(name, values, where) for name, values in pieces.items()]


def _values(name: str, pieces: Sequence[str], where: str) -> Condition:
    if name not in RunConfig.model_fields or not declaration(name).identity:
        known = [each for each in RunConfig.model_fields if declaration(each).identity]
        raise UserError(f"{where}: {unknown('hyper-parameter', name, known)}")
    kind = str(RunConfig.model_fields[name].annotation)
    intervals: list[tuple[float, float]] = []
    listed: list[str] = []
    for piece in pieces:
        if ".." not in piece or ":" in piece or not ("int" in kind or "float" in kind):
            listed.append(piece)
            continue
        try:
            low, high = map(float, piece.split(".."))
        except ValueError:
            low = high = math.nan
        if not low <= high:
            raise UserError(f"{where}: {piece} is not an interval. Write, for example, seed=0..4 or icp_lr=1e-3..1e-1.")
        intervals.append((low, high))
    texts = grid_values(name, listed, where)[1] if listed else []
    values = [typed_settings({name: text}, where)[name] for text in texts]

    def is_true(config: RunConfig) -> bool:
        if not config.uses(name):
            return False
        value = getattr(config, name)
        return value in values or (value is not None and any(low <= value <= high for low, high in intervals))

    return is_true


def _expression(text: str, where: str) -> Condition:
    of_method = METHOD & set(re.findall(r"[A-Za-z_]\w*", text))

    def is_true(config: RunConfig) -> bool:
        truth = holds(text, dict(config), where)  # of a baseline too, so that what cannot be read is said
        return truth and all(config.uses(name) for name in of_method)

    return is_true
