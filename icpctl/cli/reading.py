"""`icpctl report` and `icpctl list`: the commands that train nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from icpctl.cli.commands import command
from icpctl.cli.listing import Kind, entries
from icpctl.cli.output import complain, console, loading, say
from icpctl.cli.shared import (
    Format,
    Tool,
    one_of,
)
from icpctl.cli.stopping import stoppable


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
            show_default="the results folder; report/ with several folders, or an option under Selection",
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
        drawn = "report.html is as it was drawn last."
        with stoppable(drawn, "after this drawing", drawn) as should_stop:
            watch_report(request, console, complain, should_stop)
    else:
        write_report(request, console, complain)


@command("list")
def listing(
    kind: Annotated[Kind, typer.Argument(metavar="KIND", help=one_of("What to list.", Kind))],
    pattern: Annotated[
        str,
        typer.Argument(
            metavar="PATTERN",
            help="Names to show, such as 'vit*'. Only with one are timm's models listed.",
            show_default="all",
        ),
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
