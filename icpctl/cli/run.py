"""`icpctl train` and `icpctl eval`: the commands about one run."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from icpctl.cli.commands import command
from icpctl.cli.output import complain, console, loading, print_json, say, warn
from icpctl.cli.shared import (
    ConfigFile,
    Json,
    Output,
    Overwrite,
    Quiet,
    Split,
    Track,
    Which,
    one_of,
)
from icpctl.cli.stopping import stoppable


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
    """The next step after a run: to train its baseline, or to report."""
    from icpctl.config.catalogue import METHODS, PLAIN
    from icpctl.runs.folder import RunFolder

    compare = f"`icpctl report {output}`"
    if config.method == PLAIN:
        others = f"`--method {next(name for name in METHODS if name != PLAIN)}`"
        return f"train a method with the same settings, such as {others}; then {compare} compares them."
    if RunFolder(output, config.baseline()).is_finished():
        return f"{compare} compares the run with its baseline. One seed decides nothing: `--seed 1` trains another."
    study = ["icpctl", "ablate", config.model, config.dataset, "--grid", f"method={config.method}", "--seeds", "5"]
    return (
        f"the same command with `--method {PLAIN}` trains the baseline; then {compare} compares them. One seed decides nothing: "
        f"`{shlex.join(study)}` with the same options compares five."
    )


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
