"""What `icpctl ablate` does: puts the definition of a study together, shows what it costs, executes it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.text import Text

from icpctl.ablate import deciding
from icpctl.ablate.ranges import EXAMPLE as RANGE
from icpctl.ablate.ranges import parse_tune
from icpctl.ablate.scheduler import RunState, Scheduler
from icpctl.ablate.study import STUDY_FILE, TRIALS, Definition, Execution, Plan, Study, parse_seeds
from icpctl.ablate.table import write_study_table
from icpctl.ablate.tuning import Tuner, import_optuna, tuning_text, write_tuning_table
from icpctl.config import RunConfig, declaration, option, resolve
from icpctl.config.catalogue import METHODS
from icpctl.config.grid import EXAMPLE, parse_grid
from icpctl.config.settings import typed_settings
from icpctl.data.download import AbsentError
from icpctl.errors import UserError, abbreviated
from icpctl.runs.fingerprints import data_source, load_data, refuse_other_data
from icpctl.runs.folder import TUNING
from icpctl.statistics import LEAST_SEEDS

NOTHING_TO_TUNE = (
    f"--trials {{}}: there is nothing to tune. Give the ranges to choose from, for example --tune {RANGE}."
)
Waiting = Callable[[], AbstractContextManager[None]]
"""Says that something is waited for while a context lasts."""


def define(
    settings: Mapping[str, object],
    grid: Sequence[str] = (),
    where: Sequence[str] = (),
    seeds: str | None = None,
    controls: bool = False,
    compute_matched: bool = False,
    study: Path | None = None,
    resume: Path | None = None,
    plan: Mapping[str, object] | None = None,
    tune: Sequence[str] = (),
    trials: int | None = None,
) -> Definition:
    """The definition that the options of the command line give, or a file with what they change in it.

    `plan` has claims, margin, until_decided and max_seeds, where they are given.

    Raises:
        UserError: a fault in an option or in the file; options that contradict each other; nothing to study.
    """
    given = typed_settings({name: value for name, value in settings.items() if value is not None}, "settings")
    environment = os.environ.get("ICPCTL_DATA_DIR")
    found = typed_settings({"data_dir": environment} if environment else {}, "ICPCTL_DATA_DIR")  # kept for --resume
    if resume is not None:
        options: dict[str, object] = {
            "--grid": grid,
            "--where": where,
            "--seeds": seeds,
            "--controls": controls,
            "--study": study,
        }
        options |= {"--compute-matched": compute_matched, "--tune": tune, "--trials": trials}
        options |= {option(name): value for name, value in (plan or {}).items()}
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
        changes |= {"tune": parse_tune(tune)} if tune else {}
        changes |= {"trials": trials} if trials else {}
        if trials and not (tune or all(each.tune for each in definition.studies)):
            raise UserError(NOTHING_TO_TUNE.format(trials))
        studies = [
            replace(each, settings={**found, **each.settings, **given}, where=[*each.where, *where], **changes)
            for each in definition.studies
        ]
        return _with_plan(_complete(replace(definition, studies=studies)), plan or {})
    if trials and not tune:
        raise UserError(NOTHING_TO_TUNE.format(trials))
    planned = plan or {}
    if not (
        grid or seeds or controls or compute_matched or tune or planned.get("claims") or planned.get("until_decided")
    ):
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
    usual = str(LEAST_SEEDS) if planned.get("until_decided") else "1"
    study_given = Study(
        given,
        values,
        tuple(where),
        parse_seeds(seeds or usual, first),
        controls,
        compute_matched,
        parse_tune(tune),
        trials or TRIALS,
    )
    return _with_plan(_complete(Definition([study_given])), planned)


def _with_plan(definition: Definition, given: Mapping[str, object]) -> Definition:
    """The definition with the claims that options add, and what they change in the plan.

    Raises:
        UserError: as `Plan.planned`.
    """
    changes = {name: value for name, value in given.items() if value is not None and value is not False and value != []}
    if not changes:
        return definition
    texts: Any = changes.pop("claims", [])
    replaced = dict.fromkeys({"margin", "max_seeds"} & changes.keys())
    claims = [each.model_copy(update=replaced) for each in definition.claims]
    most = [claim.max_seeds for claim in definition.claims if claim.max_seeds]
    before: dict[str, object] = {"until_decided": True, "max_seeds": max(most)} if most else {}
    plan = Plan.of({**before, **changes, "claims": [*claims, *texts]}, "The plan")
    return replace(definition, claims=plan.planned("The plan"), until_decided=plan.until_decided)


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
    identity = [option(name) for name in given if declaration(name).identity or name == "weights"]
    if changes := [*identity, *options]:
        raise UserError(
            f"--resume {folder} takes the studies as they are, and {', '.join(changes)} would change them. Leave out --resume, and give "
            f"--output {folder} with the new settings: that adds runs to the folder."
        )
    studies = [replace(each, settings={**each.settings, **given}) for each in definition.studies]
    return replace(definition, studies=studies)


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
    definition: Definition,
    output: Path,
    console: Console,
    should_stop: Callable[[], bool],
    waiting: Waiting = nullcontext,
) -> dict[str, str | None]:
    """Train what is not finished of a study, and write study.csv.

    Returns:
        Each run's id, and why it failed; None where it did not.

    Raises:
        UserError: something can be refused before the first run; or a machine that cannot do any of them.
        Stopped: as asked by `should_stop`; what was at work is saved.
    """
    definition, notes = deciding.plan(definition, output)
    for note in notes:
        console.print(Text("Note:", "yellow"), note, soft_wrap=True)
    _tune(definition, output, console, should_stop)
    scheduler = Scheduler(deciding.planned_runs(definition, output), output)
    configs = [run.planned.config for run in scheduler.unfinished()]
    check_data(scheduler, lambda summary: console.print(summary, soft_wrap=True), waiting)
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
            f"--stack {definition.execution.stack}: {alone} of the {len(configs)} runs to do {'is' if alone == 1 else 'are'} trained one at a time, as "
            f"runs of {stacked} alone can be stacked, and of these none with a VAE, a random direction, bf16, or a state that is carried over.",
        )
    try:
        definition.keep(output)
        with Progress(console) as progress:
            execution = definition.execution
            scheduler.run(
                executor,
                execution.retries,
                progress,
                should_stop,
                execution.stack,
                execution.track,
                lambda: deciding.planned_runs(definition, output),
            )
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


def _tune(definition: Definition, output: Path, console: Console, should_stop: Callable[[], bool]) -> None:
    """Train the trials that are left of a study's tuning, choose each arm's best one, and write tuning.csv.

    Raises:
        UserError: as `execute`; an arm for which no trial could be chosen.
        Stopped: as asked by `should_stop`; what was at work is saved.
    """
    tuner = Tuner(definition, output)
    if not tuner.unfinished():
        if tuner.arms:  # an ablation that was killed after its last choice has not written the table
            write_tuning_table(output)
        return
    import_optuna()
    known = Scheduler(tuner.trials(), output / TUNING)
    check_data(known, lambda summary: console.print(summary, soft_wrap=True))
    fingerprints = {data_source(run.planned.config): run.fingerprint for run in known.runs.values()}
    console.print(tuning_text(tuner), soft_wrap=not console.is_terminal)

    from icpctl.ablate import executors
    from icpctl.ablate.progress import Progress

    scheduler = Scheduler([], output / TUNING)
    executor = executors.build(definition.execution, [run.config for run in tuner.trials()])
    try:
        definition.keep(output)
        with Progress(console) as progress:

            def advance() -> None:
                tuner.advance(scheduler, lambda text: console.print(text, soft_wrap=not console.is_terminal))
                for run in scheduler.runs.values():
                    run.fingerprint = fingerprints[data_source(run.planned.config)]

            def look(scheduler: Scheduler, changed: RunState | None) -> None:
                if changed is None:
                    advance()
                progress(scheduler, changed)

            advance()
            while scheduler.waiting:
                scheduler.run(executor, definition.execution.retries, look, should_stop, definition.execution.stack)
                advance()
    finally:
        executor.close()
        scheduler.let_go()
        with suppress(UserError, OSError):  # what ended the tuning matters more
            write_tuning_table(output)
    tuner.check(scheduler)


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


def check_data(
    scheduler: Scheduler,
    say: Callable[[str], None] = lambda summary: None,
    waiting: Waiting = nullcontext,
    absent: dict[str, int | None] | None = None,
) -> None:
    """Look for what can be refused before the first run, and note the fingerprints of the data; their summaries go to `say`.

    Where data sets may be `absent`, those that are not on this machine are put there, with the side of their images.

    Raises:
        UserError: a run cannot be trained here, or some were trained on other data.
    """
    known: dict[tuple[object, ...], str] = {}
    if unfinished := scheduler.unfinished():
        with waiting():
            from icpctl.training import engine
        configs = [run.planned.config for run in unfinished]
        if absent is not None:
            sources = {data_source(config): config for config in configs}.values()
            absent |= {config.dataset: config.image_size for config in sources if _is_absent(config)}
            for config in configs:
                if config.dataset in absent:
                    engine.check(config)
            configs = [config for config in configs if config.dataset not in absent]
        known = engine.check_runs(configs, say)
    for run in scheduler.runs.values():
        config = run.planned.config
        if config.dataset in (absent or {}):
            continue
        if (source := data_source(config)) not in known:
            known[source] = load_data(config).fingerprint
        run.fingerprint = known[source]
    _refuse_other_data(scheduler)


def _is_absent(config: RunConfig) -> bool:
    """Whether a data set is not on this machine, where nothing is downloaded."""
    try:
        load_data(config)
    except AbsentError:
        return True
    return False


def _refuse_other_data(scheduler: Scheduler) -> None:
    refuse_other_data([(run.folder, run.fingerprint) for run in scheduler.runs.values() if run.fingerprint])
