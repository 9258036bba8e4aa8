"""What `icpctl ablate --dry-run` prints: the claims, the arms to tune, every run, and how long all that will take."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

from rich.console import Console
from rich.text import Text

from icpctl.ablate import deciding
from icpctl.ablate.claim import holder
from icpctl.ablate.command import Waiting, check_data
from icpctl.ablate.labels import varied
from icpctl.ablate.scheduler import RunState, Scheduler
from icpctl.ablate.study import Definition, Execution
from icpctl.ablate.tuning import Tuner, tuning_text
from icpctl.config import RunConfig
from icpctl.config.cost import passes
from icpctl.data.download import no_downloads
from icpctl.data.standin import assumption
from icpctl.errors import count
from icpctl.runs.claims import PlannedClaim
from icpctl.runs.folder import TUNING
from icpctl.runs.references import comparisons
from icpctl.statistics import ALPHA, LEAST_SEEDS, POWER
from icpctl.text import value_text

IN_RUN_ID = frozenset(["model", "dataset", "method", "optimizer", "steps", "seed"])
"""Settings that a run's id shows."""


def dry_run(definition: Definition, output: Path, console: Console, waiting: Waiting = nullcontext) -> None:
    """Print every run, its state, its role and its passes, and the arms that are to be tuned; and how long the rest will take.
    Nothing is downloaded.

    Raises:
        UserError: as `execute`, before the first run.
    """
    definition, notes = deciding.plan(definition, output)
    tuner = Tuner(definition, output)
    trials = Scheduler(tuner.trials(), output / TUNING)
    later = Scheduler(tuner.final_runs_to_come(), output / TUNING)  # where no final run is
    scheduler = Scheduler(deciding.planned_runs(definition, output), output)
    absent: dict[str, int | None] = {}
    with no_downloads():
        for each in (trials, later, scheduler):
            check_data(each, waiting=waiting, absent=absent)
    for note in notes:
        console.print(Text("Note:", "yellow"), note, soft_wrap=not console.is_terminal)
    _print_claims(definition, console)
    _print_tuning(tuner, console)
    planned = [run.planned for each in (scheduler, later) for run in each.runs.values()]
    differing = varied([run.config for run in planned], IN_RUN_ID)
    console.print("state     role            passes  run")
    for run in scheduler.runs.values():
        state = run.state if run.state == "finished" else _unfinished_state(run.folder.path, run.status)
        config = run.planned.config
        shown = (
            name for name in differing if config.uses(name) and (name != "direction" or run.planned.role == "control")
        )
        settings = "".join(f" {name}={value_text(getattr(config, name))}" for name in shown)
        line = f"{state:<9} {run.planned.role:<15} {passes(config):>6g}  {run.folder.run_id}"
        if len(line + settings) > console.width:
            line += "\n" + 34 * " "
        console.out(line + settings)
    for run in later.runs.values():
        name = f"{run.folder.run_id.rpartition('-')[0]}-…, as tuned"
        console.out(f"waiting   {run.planned.role:<15} {passes(run.planned.config):>6g}  {name}")
    roles = Counter(run.role for run in planned)
    unfinished = scheduler.unfinished() + later.unfinished()
    console.print(
        f"\n{count(len(planned), 'run')} ({', '.join(f'{number} {role}' for role, number in roles.items())}): "
        f"{len(planned) - len(unfinished)} finished, {len(unfinished)} to do. Passes: of each training image through the network.",
        soft_wrap=not console.is_terminal,
    )
    untuned = [run.config for run in (definition.runs() if tuner.arms else planned)]
    _print_power(definition.claims, untuned, console)
    left = {run.config.run_id for run in tuner.left()}
    unfinished += [run for run in trials.runs.values() if run.folder.run_id in left]
    if unfinished:
        with no_downloads():
            every = deciding.planned_runs(definition, output, every=True) if definition.until_decided else []
            more = [run.config for run in every if run.config.run_id not in scheduler.runs]
            estimated = _estimate(definition.execution, unfinished, more)
        for dataset, image_size in absent.items():
            console.print(Text("Note:", "yellow"), assumption(dataset, image_size), soft_wrap=not console.is_terminal)
        console.print(estimated, soft_wrap=not console.is_terminal)


def _print_claims(definition: Definition, console: Console) -> None:
    """Print the claims that the study is to decide, and how many seeds they may take."""
    if not definition.claims:
        return
    console.print("claims")
    for claim in definition.claims:
        margin = f", margin {claim.margin:g}" if claim.margin is not None else ""
        more = f" to {claim.most}" if claim.most > claim.first else ""
        console.print(Text(f"  {claim.claim}{margin}: {claim.first}{more} seeds"), soft_wrap=not console.is_terminal)
    if any(claim.most > claim.first for claim in definition.claims):
        console.print(
            "The runs below are those of the seeds that are certain. Each undecided claim adds one seed at a time, up to its maximum.",
            soft_wrap=not console.is_terminal,
        )
    console.print()


def _print_power(claims: Sequence[PlannedClaim], planned: Sequence[RunConfig], console: Console) -> None:
    """Print how small a difference the planned seeds can show; of several looks by the last one alone, so slightly smaller ones are found, too."""
    from icpctl.statistics.paired import LARGEST_EFFECT, least_effect  # scipy takes a second
    from icpctl.statistics.sequential import nominal_levels

    number = len(claims) or comparisons(planned)
    if not number:
        return
    seeds = min([claim.most for claim in claims] or Counter(config.group_id for config in planned).values())
    looks = [
        nominal_levels(ALPHA / number, claim.first, claim.most)[-1] for claim in claims if claim.most > claim.first
    ]
    found = least_effect(seeds, min(looks, default=ALPHA / number))
    what = f"{count(seeds, 'seed')} and {count(number, 'claim' if claims else 'comparison')}"
    if seeds < LEAST_SEEDS:
        text = f"With {what} nothing can be claimed: it takes {LEAST_SEEDS} seeds or more."
    else:
        size = f"more than {LARGEST_EFFECT:g}" if math.isinf(found) else f"{found:.2g}"
        text = f"With {what}, the smallest difference that is found with a chance of {100 * POWER:g} % is {size} standard deviations of the paired differences."
    console.print(text, soft_wrap=not console.is_terminal)


def _print_tuning(tuner: Tuner, console: Console) -> None:
    """Print the arms that are to be tuned, with their trials and what these cost."""
    if not tuner.unfinished():
        return
    left = {run.config.run_id for run in tuner.left()}
    console.print("tuned     role            passes  arm")
    for arm in tuner.unfinished():
        done = sum(config.run_id not in left for config in arm.configs)
        line = f"{f'{done}/{arm.number}':<9} {arm.plan.role:<15} {arm.number * passes(arm.config):>6g}  {arm.plan.name}"
        ranges = "".join(f" {name}={each}" for name, each in arm.ranges.items())
        console.out(line + ("\n" + 34 * " " if len(line + ranges) > console.width else "") + ranges)
    console.print(f"{tuning_text(tuner)}\n", soft_wrap=not console.is_terminal)


def _rough(seconds: float) -> str:
    """A time in words, to no more digits than an estimate has."""
    if seconds < 60:
        return "less than a minute"
    number, unit = (seconds / 60, "minute") if seconds < 5400 else (seconds / 3600, "hour")
    text = f"{number:.1f}".removesuffix(".0") if unit == "hour" and number < 9.95 else f"{number:,.0f}"
    return f"about {text} {unit}{'s' * (text != '1')}"


def _left_out(configs: Sequence[RunConfig]) -> str:
    """A sentence on the metrics that the estimate does not count; empty where there are none."""
    costly = []
    if any(config.task == "generation" for config in configs):
        costly.append("FID and KID")
    if any(config.robustness for config in configs):
        costly.append("robustness")
    return f" It does not count {' and '.join(costly)}, which are measured after the last epoch." if costly else ""


def _unfinished_state(folder: Path, status: Mapping[str, object]) -> str:
    if holder(folder) is not None:
        return "running"
    state = str(status.get("state", "waiting"))
    return "stopped" if state in ("running", "interrupted") else state


def _estimate(execution: Execution, runs: Sequence[RunState], later: Sequence[RunConfig] = ()) -> str:
    """How long the runs will take, from where they are; and with those that the claims may need later."""
    import torch

    from icpctl.ablate import estimate
    from icpctl.ablate.executors.local import Local

    configs = [run.planned.config for run in runs]
    if execution.executor == "local":
        local = Local(execution, configs)
        jobs, threads = len(local.processes), local.threads
    else:
        jobs, threads = 1, torch.get_num_threads()
    left = [1 - passes(run.planned.config, run.epoch()) / passes(run.planned.config) for run in runs]
    each = estimate.seconds([*configs, *later], threads)
    seconds = sum(math.prod(pair) for pair in zip(left, each, strict=False))
    start = estimate.process_start(configs[0])

    def rough(number: int, seconds: float, jobs: int) -> str:
        # This command's own process, and then one that is kept for many runs, or one for each.
        return _rough((2 if execution.executor == "local" else 1 + number) * start + seconds / jobs)

    def beside(number: int, seconds: float) -> str:
        return f", {rough(number, seconds, jobs)} with {jobs} jobs" if jobs > 1 else ""

    number, most = len(runs) + len(later), seconds + sum(each[len(runs) :])
    return (
        f"{rough(len(runs), seconds, 1).capitalize()} of computing on this machine, if they run one at a time"
        + (f"{beside(len(runs), seconds)} if those do not slow one another" if jobs > 1 else "")
        + (
            f"; {rough(number, most, 1)}{beside(number, most)} if the claims need every seed that --max-seeds allows"
            if later
            else ""
        )
        + f"; from steps measured now with {count(threads, 'thread')}"
        + (f"; what --stack {execution.stack} gains is not in it" if execution.stack > 1 else "")
        + f". This counts the start of the processes.{_left_out(configs)} It is too high if the machine is busy now."
    )
