"""Options that several commands have, and the values of those that take one of a few."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import typer

Split = Literal["train", "val", "test"]
Which = Literal["last", "best"]
Executor = Literal["local", "ray", "slurm"]
Format = Literal["table", "csv", "markdown", "latex", "json"]
Tool = Literal["tensorboard", "wandb"]


def one_of(help: str, values: Any) -> str:
    """The help of an option that takes one of a few values, as that of a hyper-parameter says it."""
    return f"{help} One of: {', '.join(get_args(values))}."


Output = Annotated[Path, typer.Option("--output", "-o", metavar="PATH", help="The results folder.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Discard what the run's folder holds, and train from the start.")
]
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="PATH", help="A TOML file of settings. Options on the command line override it."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only warnings and errors.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else, on standard output.")]
Track = Annotated[
    Tool | None,
    typer.Option(
        "--track",
        metavar="NAME",
        help=one_of("Also send the metrics to another tool while runs are trained.", Tool),
    ),
]
