"""What `icpctl ablate` does: puts the definition of a study together, shows what it costs, executes it."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from operator import methodcaller
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.text import Text

from icpctl.ablate.claim import holder
from icpctl.ablate.scheduler import RunState, Scheduler
from icpctl.ablate.study import STUDY_FILE, Definition, Execution, PlannedRun, Study, parse_seeds
from icpctl.ablate.table import write_study_table
from icpctl.config import RunConfig, declaration, option, resolve
from icpctl.config.catalogue import METHODS
from icpctl.config.cost import passes
from icpctl.config.grid import EXAMPLE, parse_grid
from icpctl.config.settings import typed_settings
from icpctl.errors import UserError, abbreviated
from icpctl.runs.fingerprints import data_source, load_data, refuse_other_data
from icpctl.text import value_text

IN_RUN_ID = frozenset(["model", "dataset", "method", "optimizer", "steps", "seed"])
"""Settings that a run's id shows."""


def define(
    settings: Mapping[str, object],
    grid: Sequence[str] = (),
    where: Sequence[str] = (),
    seeds: str | None = None,
    controls: bool = False,
    compute_matched: bool = False,
    study: Path | None = None,
    resume: Path | None = None,
) -> Definition:
    """The definition that the options of the command line give, or a file with what they change in it.

    Raises:
        UserError: a fault in an option or in the file; options that contradict each other; nothing to study.
    """
    given = typed_settings({name: value for name, value in settings.items() if value is not None}, "settings")
    environment = os.environ.get("ICPCTL_DATA_DIR")
    found = typed_settings({"data_dir": environment} if environment else {}, "ICPCTL_DATA_DIR")  # kept for --resume
    if resume is not None:
        options = {"--grid": grid, "--where": where, "--seeds": seeds, "--controls": controls, "--study": study}
        options["--compute-matched"] = compute_matched
        return _complete(_resumed(resume, given, [name for name, value in options.items() if value]))
    if study is not None:
        if grid:
            raise UserError(
                f"--study {study} and --grid both say what varies. Write the grid into the file, or leave out one."
            )
        definition = Definition.read(study)
        if seeds and any("seed" in each.grid for each in definition.studies):
            raise UserError(
                f"--seeds {seeds} and seed under [grid] of {study} both say which seeds to run. Give one of them."
            )
        first = given.pop("seed", None)
        changes: dict[str, Any] = {"seeds": parse_seeds(seeds or "1", first)} if seeds or first is not None else {}
        changes |= {"controls": True} if controls else {}
        changes |= {"compute_matched": True} if compute_matched else {}
        studies = [
            replace(each, settings={**found, **each.settings, **given}, where=[*each.where, *where], **changes)
            for each in definition.studies
        ]
        return _complete(Definition(studies, definition.execution))
    if not (grid or seeds or controls or compute_matched):
        raise UserError(f"There is nothing to vary. Give {EXAMPLE}, --seeds 5, --study FILE, or --resume FOLDER.")
    values = parse_grid(grid)
    # The two arguments have to be given before others; so a grid may vary what they set.
    given = {name: value for name, value in given.items() if name not in values or name not in ("model", "dataset")}
    if "seed" in values and (seeds is not None or "seed" in given):
        raise UserError(
            f"--grid seed=… and {'--seeds' if seeds else option('seed')} both say which seeds to run. Give one."
        )
    first = given.pop("seed", None)
    given = {**found, **given}
    study_given = Study(given, values, tuple(where), parse_seeds(seeds or "1", first), controls, compute_matched)
    return _complete(Definition([study_given]))


def _complete(definition: Definition) -> Definition:
    """The definition with what only a model or a file of weights can say, so that study.toml alone tells which runs it means."""
    return replace(definition, studies=[part for study in definition.studies for part in _complete_study(study)])


def _complete_study(study: Study) -> list[Study]:
    """A study whose settings have the stages of its model and the digest of its weights; one for each model or file that it varies."""
    for name in ("model", "weights"):
        values = study.grid.get(name, ())
        if any(name == "weights" or not value.isidentifier() for value in values):
            rest = {key: value for key, value in study.grid.items() if key != name}
            each = [typed_settings({name: value}, f"--grid {name}") for value in values]
            parts = [replace(study, settings={**study.settings, **one}, grid=rest) for one in each]
            return [complete for part in parts for complete in _complete_study(part)]
    names = ("model", "dataset", "image_size", "stem", "weights", "weights_hash")
    needed = {name: study.settings[name] for name in names if name in study.settings}
    stages = not str(needed.get("model", "resnet20")).isidentifier() and not {"layers"} & {*study.settings, *study.grid}
    if not stages and not {"weights", "weights_hash"} & needed.keys():
        return [study]
    from icpctl import models

    config = models.complete(resolve(needed))
    found: dict[str, object] = {"layers": config.layers} if stages else {}
    found |= {"weights_hash": config.weights_hash} if config.weights_hash else {}
    return [replace(study, settings={**study.settings, **found})]


def _resumed(folder: Path, given: Mapping[str, object], options: Sequence[str]) -> Definition:
    if (definition := Definition.kept(folder)) is None:
        raise UserError(f"--resume {folder}: there is no {STUDY_FILE}, so no study was begun there with icpctl ablate.")
    arguments = {"model": "MODEL", "dataset": "DATASET"}
    identity = [arguments.get(name, option(name)) for name in given if declaration(name).identity or name == "weights"]
    if changes := [*identity, *options]:
        raise UserError(
            f"--resume {folder} takes the studies as they are, and {', '.join(changes)} would change them. Leave out --resume, and give "
            f"--output {folder} with the new settings: that adds runs to the folder."
        )
    studies = [replace(each, settings={**each.settings, **given}) for each in definition.studies]
    return Definition(studies, definition.execution)


def executed_by(definition: Definition, options: Mapping[str, object], slurm: Sequence[str]) -> Definition:
    """The definition with the options of its execution that are given.

    Raises:
        UserError: an option that is none, or that another executor takes.
    """
    parameters: dict[str, str | int] = {}
    for text in slurm:
        key, equals, value = text.partition("=")
        if not (key and equals):
            raise UserError(f"--slurm {abbreviated(text)}: write KEY=VALUE, for example --slurm slurm_partition=gpu.")
        parameters[key] = int(value) if re.fullmatch("-?[0-9]{1,18}", value) else value
    given = {name: value for name, value in options.items() if value is not None}
    given |= {"slurm": parameters} if parameters else {}
    execution = Execution.model_validate(definition.execution.model_dump() | given)
    for name, executor in (("address", "ray"), ("slurm", "slurm")):
        if name in given and execution.executor != executor:
            raise UserError(f"--{name} is for --executor {executor}, and the executor is {execution.executor}.")
    return replace(definition, execution=execution)


def execute(
    definition: Definition, output: Path, console: Console, should_stop: Callable[[], bool]
) -> dict[str, str | None]:
    """Train what is not finished of a study, and write study.csv.

    Returns:
        Each run's id, and why it failed; None where it did not.

    Raises:
        UserError: something can be refused before the first run; or a machine that cannot do any of them.
        Stopped: as asked by `should_stop`; what was at work is saved.
    """
    Definition.kept(output)  # what is wrong with it is said at once
    scheduler = Scheduler(definition.runs(), output)
    configs = [run.planned.config for run in scheduler.unfinished()]
    _check_data(scheduler, lambda summary: console.print(summary, soft_wrap=True))
    _warn_of_other_code(scheduler, console)
    if not configs:
        definition.keep(output)
        _note_threads(write_study_table(output), console)
        return dict.fromkeys(scheduler.runs)

    from icpctl.ablate import executors
    from icpctl.ablate.progress import Progress

    executor = executors.build(definition.execution, configs)
    alone = sum(config.stack_id is None for config in configs)
    stacked = ", ".join(name for name, row in METHODS.items() if row.stacked)
    if definition.execution.stack > 1 and alone:
        console.print(
            Text("Note:", "yellow"),
            f"--stack {definition.execution.stack}: {alone} of the {len(configs)} runs to do are trained one at a time, as "
            f"runs of {stacked} alone can be stacked, and of these none with a VAE, a random direction, bf16, or a state that is carried over.",
        )
    try:
        definition.keep(output)
        with Progress(console) as progress:
            scheduler.run(executor, definition.execution.retries, progress, should_stop, definition.execution.stack)
    except BaseException:
        executor.close()
        scheduler.let_go()
        with suppress(UserError, OSError):  # what ended the study matters more
            write_study_table(output)
        raise
    executor.close()
    _note_threads(write_study_table(output), console)
    _refuse_other_data(scheduler)  # another study may have finished some in the meantime, elsewhere
    return {run_id: run.error if run.state == "failed" else None for run_id, run in scheduler.runs.items()}


def _warn_of_other_code(scheduler: Scheduler, console: Console) -> None:
    """Say that a user's own model is not what runs of the study were trained with."""
    from icpctl.models import own

    runs = [run for run in scheduler.runs.values() if run.status and own.is_own(run.planned.config.model)]
    for change in {own.change(run.planned.config.model, run.folder.source()): None for run in runs}:
        if change:
            console.print(Text("Warning:", "yellow"), f"{change} The other runs are trained with the new code.")


def _note_threads(table: pd.DataFrame, console: Console) -> None:
    threads = sorted(set(table["threads"]) - {""})
    if len(threads) > 1:
        console.print(
            Text("Note:", "yellow"),
            f"the runs were trained with {', '.join(threads)} threads (column threads of study.csv). Sums come "
            "in another order then, so a part of their differences is rounding: give --jobs, or OMP_NUM_THREADS, the same.",
        )


def dry_run(definition: Definition, output: Path, console: Console) -> None:
    """Print every run, its state, its role and its passes; and how long the rest will take.

    Raises:
        UserError: as `execute`, before the first run.
    """
    Definition.kept(output)
    planned = definition.runs()
    scheduler = Scheduler(planned, output)
    _check_data(scheduler)
    varied = _varied(planned)
    console.print("state     role            passes  run")
    for run in scheduler.runs.values():
        state = run.state if run.state == "finished" else _unfinished_state(run.folder.path, run.status)
        config = run.planned.config
        shown = (
            name for name in varied if config.uses(name) and (name != "direction" or run.planned.role == "control")
        )
        settings = "".join(f" {name}={value_text(getattr(config, name))}" for name in shown)
        line = f"{state:<9} {run.planned.role:<15} {passes(config):>6g}  {run.folder.run_id}"
        if len(line + settings) > console.width:
            line += "\n" + 34 * " "
        console.out(line + settings)
    roles = Counter(run.role for run in planned)
    unfinished = scheduler.unfinished()
    console.print(
        f"\n{len(planned)} runs ({', '.join(f'{number} {role}' for role, number in roles.items())}): "
        f"{len(planned) - len(unfinished)} finished, {len(unfinished)} to do. Passes: of each training image through the network.",
        soft_wrap=not console.is_terminal,
    )
    if unfinished:
        console.print(_estimate(definition.execution, unfinished), soft_wrap=not console.is_terminal)


def _rough(seconds: float) -> str:
    if seconds < 60:
        return "Less than a minute"
    return f"About {seconds / 60:.0f} minutes" if seconds < 5400 else f"About {seconds / 3600:.1f} hours"


def _check_data(scheduler: Scheduler, say: Callable[[str], None] = lambda summary: None) -> None:
    """Look for what can be refused before the first run, and note the fingerprints of the data; their summaries go to `say`.

    Raises:
        UserError: a run cannot be trained here, or some were trained on other data.
    """
    known: dict[tuple[object, ...], str] = {}
    if unfinished := scheduler.unfinished():
        from icpctl.training import engine

        known = engine.check_runs([run.planned.config for run in unfinished], say)
    for run in scheduler.runs.values():
        config = run.planned.config
        if (source := data_source(config)) not in known:
            known[source] = load_data(config).fingerprint
        run.fingerprint = known[source]
    _refuse_other_data(scheduler)


def _refuse_other_data(scheduler: Scheduler) -> None:
    refuse_other_data([(run.folder, run.fingerprint) for run in scheduler.runs.values()])


def _unfinished_state(folder: Path, status: Mapping[str, object]) -> str:
    if holder(folder) is not None:
        return "running"
    state = str(status.get("state", "waiting"))
    return "stopped" if state in ("running", "interrupted") else state


def _varied(planned: Sequence[PlannedRun]) -> list[str]:
    """The settings in which the runs differ, and that their ids do not show."""
    varied = []
    for name in RunConfig.model_fields:
        configs = [run.config for run in planned if run.config.uses(name)]
        if len({getattr(config, name) for config in configs}) > 1 and not all(
            map(methodcaller("is_default", name), configs)
        ):
            varied.append(name)
    return [name for name in varied if name not in IN_RUN_ID]


def _estimate(execution: Execution, runs: Sequence[RunState]) -> str:
    """How long the runs will take, from where they are."""
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
    seconds = sum(math.prod(pair) for pair in zip(left, estimate.seconds(configs, threads), strict=True))
    start = estimate.process_start(configs[0])
    # This command's own process, and then one that is kept for many runs, or one for each.
    starts = 2 * start if execution.executor == "local" else (1 + len(runs)) * start
    return (
        f"{_rough(starts + seconds)} of computing on this machine, if they run one at a time"
        + (
            f", {_rough(starts + seconds / jobs).lower()} with {jobs} jobs if those do not slow one another"
            if jobs > 1
            else ""
        )
        + f"; from steps measured now with {threads} thread{'s' if threads > 1 else ''}"
        + (f"; what --stack {execution.stack} gains is not in it" if execution.stack > 1 else "")
        + ". The start of the processes is in it. What is measured after the last epoch at a high cost (FID, KID, robustness) is not."
    )
