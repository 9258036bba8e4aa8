"""`icpctl ablate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from icpctl.cli.commands import command
from icpctl.cli.output import complain, console, loading
from icpctl.cli.shared import (
    ConfigFile,
    Executor,
    Track,
    one_of,
)
from icpctl.cli.stopping import stoppable
from icpctl.errors import UserError

GRID_HELP = (
    "Values of a hyper-parameter: 1,3,5; 1..5 for every whole number from 1 to 5; 1e-4..1e-2:log5 or 0..1:lin3 for five or "
    "three spaced numbers. Repeat it, and every combination is a run."
)


@command("ablate", hyperparameters=True)
def ablate(
    settings: dict[str, object],
    grid: Annotated[
        list[str] | None,
        typer.Option("--grid", "-g", metavar="KEY=VALUES", help=GRID_HELP, rich_help_panel="Study"),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CONDITION", help="Leave out the combinations for which this is false.", rich_help_panel="Study"
        ),
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(
            metavar="SEEDS",
            help="How many seeds, such as 5, or which ones: 0,3,7 or 0..4.",
            show_default="1",
            rich_help_panel="Study",
        ),
    ] = None,
    controls: Annotated[
        bool,
        typer.Option(
            "--controls",
            help="Add the controls of each method. ICP: an ascending direction, a random direction, and its schedule alone. Methods with soft targets: label smoothing. BYOT: its heads without distillation.",
            rich_help_panel="Study",
        ),
    ] = False,
    compute_matched: Annotated[
        bool,
        typer.Option(
            "--compute-matched",
            help="Add compute-matched baselines: for each run of a method, plain training with as many passes of the network.",
            rich_help_panel="Study",
        ),
    ] = False,
    claim: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CLAIM",
            help='A claim for the study to decide, written down before its runs: "method=icp,steps=5 better than compute-matched in accuracy". Repeat it for more.',
            rich_help_panel="Plan",
        ),
    ] = None,
    margin: Annotated[
        float | None,
        typer.Option(
            metavar="FLOAT",
            help="The smallest difference that matters, in points or in the unit of the metric. Groups that differ by less are level.",
            rich_help_panel="Plan",
        ),
    ] = None,
    until_decided: Annotated[
        bool,
        typer.Option("--until-decided", help="Add seeds until every claim is decided.", rich_help_panel="Plan"),
    ] = False,
    max_seeds: Annotated[
        int | None,
        typer.Option(
            metavar="INT",
            help="The most seeds that --until-decided may use.",
            show_default="40",
            rich_help_panel="Plan",
        ),
    ] = None,
    tune: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=RANGE",
            help="Tune a setting for every arm (the runs that differ only in the seed): lr=1e-4..1e-1:log. The best trial on the validation split is chosen. Separate several by commas.",
            rich_help_panel="Study",
        ),
    ] = None,
    trials: Annotated[
        int | None,
        typer.Option(
            metavar="INT",
            help="How many trials --tune gives each arm.",
            show_default="20",
            min=1,
            max=1000,
            rich_help_panel="Study",
        ),
    ] = None,
    study: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="A TOML file that defines the study, instead of these options.",
            rich_help_panel="Study",
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Continue all studies of a results folder.", rich_help_panel="Study"),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Show the runs and their cost, and train nothing.", rich_help_panel="Study"),
    ] = False,
    executor: Annotated[
        Executor | None,
        typer.Option(
            metavar="NAME",
            help=one_of("What trains the runs.", Executor),
            show_default="local",
            rich_help_panel="Execution",
        ),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            metavar="INT",
            help="How many runs are trained at once.",
            show_default="one per GPU; on a CPU, one per core, or OMP_NUM_THREADS if it is set",
            min=1,
            rich_help_panel="Execution",
        ),
    ] = None,
    jobs_per_gpu: Annotated[
        int | None,
        typer.Option(
            metavar="INT", help="Runs that share a GPU.", show_default="1", min=1, rich_help_panel="Execution"
        ),
    ] = None,
    stack: Annotated[
        int | None,
        typer.Option(
            metavar="INT",
            help="Train up to this many runs together in one process, if they differ only in the seed, the learning rates or similar numbers. For GPUs and small images.",
            show_default="1",
            min=1,
            rich_help_panel="Execution",
        ),
    ] = None,
    retries: Annotated[
        int | None,
        typer.Option(
            metavar="INT",
            help="How often a failed run is tried again.",
            show_default="1",
            min=0,
            rich_help_panel="Execution",
        ),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="The address of the Ray cluster, HOST:PORT.", rich_help_panel="Execution"),
    ] = None,
    slurm: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="A parameter of the Slurm jobs, under submitit's name.",
            rich_help_panel="Execution",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="PATH", help="The results folder.", show_default="results"),
    ] = None,
    config: ConfigFile = None,
    track: Track = None,
) -> None:
    """Run a study: a grid of settings and its baselines over several seeds, and then a report.

    The results folder keeps its definition. Finished runs are not repeated, and --resume continues a study that was stopped.

    Example: icpctl ablate resnet20 cifar100 --grid steps=1,3,5 --seeds 3
    """
    if resume is not None and output is not None:
        raise UserError(f"--resume {resume} and --output {output} both name the results folder. Give one of them.")
    folder = resume or output or Path("results")
    plan = {"claims": claim, "margin": margin, "until_decided": until_decided, "max_seeds": max_seeds}
    with loading():
        from icpctl.ablate import command as study_command
        from icpctl.training.tracking import check as check_tool

        definition = study_command.define(
            settings, grid or [], where or [], seeds, controls, compute_matched, study, resume, plan, tune or [], trials
        )
        options: dict[str, object] = {"executor": executor, "address": address, "retries": retries}
        options |= {"jobs": jobs, "jobs_per_gpu": jobs_per_gpu, "stack": stack, "track": track}
        definition = study_command.executed_by(definition, options, slurm or [])
    if definition.execution.track:
        check_tool(definition.execution.track)
    if dry_run:
        from icpctl.ablate.preview import dry_run as preview

        preview(definition, folder, console, loading)
        return
    resumed = f"`icpctl ablate --resume {folder}` goes on from"
    with stoppable(f"{resumed} here.", "saving the runs", f"{resumed} the last checkpoint of each run.") as should_stop:
        errors_of = study_command.execute(definition, folder, console, should_stop, loading)
    failed = {run_id: error for run_id, error in errors_of.items() if error is not None}
    for run_id, error in failed.items():
        complain("[bold red]Failed:[/]", f"{run_id}: {error}")
    from icpctl.report.command import report_study

    report_study(folder, errors_of, console, complain)
    if failed:
        raise typer.Exit(1)
