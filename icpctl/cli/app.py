"""The commands: they parse, build a RunConfig, call the same functions as Python does, and print.

torch is imported by the commands that need it, so that the errors of the command line come at once.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from icpctl.cli.commands import UsageError, app, command
from icpctl.cli.listing import Kind, entries
from icpctl.cli.output import complain, console, loading, pipe_is_closed, print_json, say, warn
from icpctl.cli.shared import (
    ConfigFile,
    Executor,
    Format,
    Json,
    Output,
    Overwrite,
    Quiet,
    Split,
    Tool,
    Track,
    Which,
    one_of,
)
from icpctl.cli.stopping import stoppable
from icpctl.errors import UserError
from icpctl.terminal import guard_streams

__all__ = ["app", "main"]

GRID_HELP = (
    "Values of a hyper-parameter: 1,3,5; 1..5 for every whole number from 1 to 5; 1e-4..1e-2:log5 or 0..1:lin3 for five or "
    "three spaced numbers. Repeat it, and every combination is a run."
)


def main() -> None:
    """The entry point: an error that the user can mend is one paragraph and status 2."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    output, _ = guard_streams()
    status: Any = 2
    try:
        status = app(standalone_mode=False, prog_name="icpctl") or 0
    except SystemExit as leaving:
        status = leaving.code
    except UsageError as error:
        _complain_of_usage(error)
    except OSError as error:
        complain("[bold red]Error:[/]", _in_words(error))
    except UserError as error:
        complain("[bold red]Error:[/]", str(error))
    except (ImportError, MemoryError) as error:
        fault = f"{error}. " if str(error) else ""
        complain("[bold red]Error:[/]", f"{fault}Memory ran out, or a package that icpctl needs is broken or missing.")
    output.flush()
    if pipe_is_closed():
        status = status or 128 + signal.SIGPIPE
    elif output.failure and not status:
        status = 2
        complain("[bold red]Error:[/]", f"The output could not be written: {output.failure.strerror}.")
    sys.exit(status)


def _complain_of_usage(error: Any) -> None:
    message = " ".join(error.format_message().replace("Value error, ", "").split())
    if message:  # else the help was asked for, and printed, by giving nothing
        command = error.ctx.command_path if error.ctx else "icpctl"
        complain("[bold red]Error:[/]", f"{message.rstrip('.')}. `{command} --help` shows what can be given.")


def _in_words(error: OSError) -> str:
    try:
        Path.cwd()
    except OSError:
        return "The working directory is not there any more. Change to one that is, and give the command again."
    reason = error.strerror or str(error)
    return f"{error.filename}: {reason}." if error.filename else f"{reason}."


def _help(name: str) -> str:
    from icpctl.config import RunConfig

    return str(RunConfig.model_fields[name].description)


@command("train", hyperparameters=True)
def train(
    settings: dict[str, object],
    output: Output = Path("results"),
    overwrite: Overwrite = False,
    config: ConfigFile = None,
    track: Track = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train one run, or continue it where it stopped.

    Example: icpctl train resnet20 cifar100 --optimizer ademamix --steps 5
    """
    from icpctl.config import resolve

    run_config = resolve(settings)
    with loading():
        from icpctl.training.engine import train as train_run
    from icpctl.training import tracking
    from icpctl.training.display import ConsoleDisplay, Display, metrics_table, nested

    class Quietly(Display):
        def warn(self, message: str) -> None:
            warn(message)

    silent = quiet or as_json
    display: Display = Quietly() if silent else ConsoleDisplay(console)
    if track:
        tracking.check(track)
        display = tracking.Tracked(display, track, output)
    with stoppable() as should_stop:
        run = train_run(run_config, output, overwrite=overwrite, display=display, should_stop=should_stop)
    metrics = run.metrics
    last = nested(metrics[metrics["epoch"] == metrics["epoch"].max()])
    if as_json:
        print_json({"run_id": run.config.run_id, "path": str(run.path), "trained": not run.skipped, "metrics": last})
    if silent:
        return
    if run.skipped:
        again = f"icpctl eval {run.path}{' --robustness' if run_config.robustness else ''}"
        say(f"{run.path} is finished already; --overwrite trains it anew, `{again}` measures it again.")
    say(f"\nLast epoch of {run.config.run_id}")
    console.print(metrics_table(last))
    say(f"Everything is in {run.path}")
    complain("Next:", _next_step(run.config, output))


def _next_step(config: Any, output: Path) -> str:
    """What there is to do after a run: its baseline, or the report."""
    from icpctl.config.catalogue import METHODS, PLAIN
    from icpctl.runs.folder import RunFolder

    compare = f"`icpctl report {output}`"
    if config.method == PLAIN:
        others = f"`--method {next(name for name in METHODS if name != PLAIN)}`"
        return f"train a method with the same settings, such as {others}; then {compare} compares them."
    if RunFolder(output, config.baseline()).is_finished():
        return f"{compare} compares the run with its baseline. One seed decides nothing: `--seed 1` trains another."
    return f"the same command with `--method {PLAIN}` trains the baseline; then {compare} compares them."


@command("eval")
def evaluate(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A run's folder, or a checkpoint file.")],
    dataset: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Another data set, for a classifier with the same classes.")
    ] = None,
    columns: Annotated[str | None, typer.Option(metavar="TEXT", help=_help("columns"))] = None,
    split: Annotated[Split, typer.Option(metavar="NAME", help=one_of("The images to evaluate on.", Split))] = "test",
    checkpoint: Annotated[
        Which, typer.Option(metavar="NAME", help=one_of("Which checkpoint of a run's folder.", Which))
    ] = "last",
    samples: Annotated[
        int | None,
        typer.Option(
            metavar="INT", help="Images that a VAE draws for FID and KID; without it, as many as the split has.", min=2
        ),
    ] = None,
    fid_weights: Annotated[Path | None, typer.Option(metavar="PATH", help=_help("fid_weights"))] = None,
    fid_features: Annotated[Path | None, typer.Option(metavar="PATH", help=_help("fid_features"))] = None,
    device: Annotated[str, typer.Option(metavar="TEXT", help=_help("device"))] = "auto",
    data_dir: Annotated[Path | None, typer.Option(metavar="PATH", help=_help("data_dir"))] = None,
    data_memory: Annotated[float | None, typer.Option(metavar="FLOAT", help=_help("data_memory"))] = None,
    robustness: Annotated[
        bool,
        typer.Option(
            "--robustness",
            help="Also measure a classifier's accuracy on attacked (FGSM, PGD-20), noisy and blurred images.",
        ),
    ] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Evaluate a trained run, and add the metrics to its eval.csv if PATH is a run's folder.

    Example: icpctl eval results/RUN --dataset folder:my-photos
    """
    from icpctl.config import resolve

    resolve({"device": device, "data_memory": data_memory})
    with loading():
        from icpctl.training.evaluation import evaluate as evaluate_checkpoint
    from icpctl.runs.folder import read_config, write_evaluation
    from icpctl.training.display import metrics_table

    tell = (lambda message: None) if quiet or as_json else say
    metrics = evaluate_checkpoint(
        path,
        dataset,
        columns=columns,
        split=split,
        which=checkpoint,
        samples=samples,
        fid_weights=fid_weights,
        fid_features=fid_features,
        data_dir=data_dir,
        data_memory=data_memory,
        device=device,
        robustness=robustness,
        say=tell,
        warn=warn,
    )
    name = dataset or (read_config(path).dataset if path.is_dir() else "its own data set")
    what = {"checkpoint": checkpoint, "dataset": name, "split": split, "samples": str(samples or "")}
    tell(f"{path}, {checkpoint} checkpoint, on {name}" if path.is_dir() else f"{path} on {name}")
    if as_json:
        print_json({"path": str(path), **what, "samples": samples, "metrics": metrics})
    elif not quiet:
        console.print(metrics_table({split: metrics}))
    if path.is_dir():
        tell(f"Written to {write_evaluation(path, what, metrics)}")


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
            show_default="one per GPU; on a CPU, one per core",
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
        study_command.dry_run(definition, folder, console, loading)
        return
    with stoppable(f"`icpctl ablate --resume {folder}` goes on from here.", "saving the runs") as should_stop:
        errors_of = study_command.execute(definition, folder, console, should_stop, loading)
    failed = {run_id: error for run_id, error in errors_of.items() if error is not None}
    for run_id, error in failed.items():
        complain("[bold red]Failed:[/]", f"{run_id}: {error}")
    from icpctl.report.command import report_study

    report_study(folder, errors_of, console, complain)
    if failed:
        raise typer.Exit(1)


@command("report")
def report(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="FOLDERS", help="Results folders, or the folders of single runs.", show_default="results"
        ),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CONDITION",
            help="Report only these runs and their baselines: model=resnet20,seed=0..4; icp-lr=1e-4..1e-2 for every value between the two; or 'steps * icp_lr < 0.02'.",
            rich_help_panel="Selection",
        ),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(
            metavar="SETTINGS",
            help="Show a row for each value of these settings, and pool the others.",
            show_default="all that differ",
            rich_help_panel="Selection",
        ),
    ] = None,
    compare: Annotated[
        tuple[str, str] | None,
        typer.Option(
            metavar="A B",
            help="Compare A with B, paired by seed. Each is a results folder, or a group of runs: a condition such as method=icp,steps=5, or the name that the report gives the group.",
            rich_help_panel="Selection",
        ),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The metric of the verdicts and figures.",
            show_default="accuracy; for a VAE, ssim",
            rich_help_panel="Selection",
        ),
    ] = None,
    margin: Annotated[
        float | None,
        typer.Option(
            metavar="FLOAT",
            help="The smallest difference in this metric that matters, in points or in its unit. Groups that differ by less are level.",
            rich_help_panel="Selection",
        ),
    ] = None,
    format: Annotated[
        Format,
        typer.Option(metavar="NAME", help=one_of("How the report is printed.", Format), rich_help_panel="Output"),
    ] = "table",
    figures: Annotated[
        bool,
        typer.Option(
            "--figures", help="Write all figures as PNG, SVG and PDF into figures/.", rich_help_panel="Output"
        ),
    ] = False,
    export: Annotated[
        Tool | None,
        typer.Option(
            metavar="NAME",
            help=one_of("Write the runs for another tool (for wandb, as offline runs).", Tool),
            rich_help_panel="Output",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="PATH",
            help="The folder for the files.",
            show_default="the results folder; report/ with several folders, --where or --compare",
            rich_help_panel="Output",
        ),
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Update the report while runs are trained.", rich_help_panel="Output")
    ] = False,
) -> None:
    """Report what the runs of results folders show: verdicts, tables, and report.html with figures.

    Example: icpctl report results/ --where seed=0..4 --by steps
    """
    with loading("pandas"):
        from icpctl.report.command import Request, watch_report, write_report

    request = Request(
        tuple(folders or ()),
        compare,
        tuple(where or ()),
        tuple(name for name in (by or "").split(",") if name),
        metric,
        margin,
        format,
        figures,
        export,
        output,
    )
    if watch:
        with stoppable("report.html is as it was drawn last.", "after this drawing") as should_stop:
            watch_report(request, console, complain, should_stop)
    else:
        write_report(request, console, complain)


@command("list")
def listing(
    kind: Annotated[Kind, typer.Argument(metavar="KIND", help=one_of("What to list.", Kind))],
    pattern: Annotated[
        str, typer.Argument(metavar="PATTERN", help="Names to show, such as 'vit*'.", show_default="all")
    ] = "",
) -> None:
    """List the available models, data sets, methods or metrics, one per line.

    Example: icpctl list models 'vit*'
    """
    found = entries(kind, pattern)
    if not console.is_terminal:  # a line each, for other programs
        width = max(len(name) for name, _ in found)
        for name, line in found:
            say(f"{name:<{width}}  {line}")
        return
    from rich.table import Table

    table = Table.grid(padding=(0, 2, 0, 0))
    for name, line in found:
        table.add_row(Text(name, "bold"), Text(line))
    console.print(table)
