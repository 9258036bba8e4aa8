"""The help of a command: two columns that fit any terminal, its own options first, then the settings of a run.

Typer's help gives each form of an option a column, and cuts the names at 80 columns.
"""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Iterable
from typing import Annotated, Any

import typer
from rich.text import Text

from icpctl.cli.output import console

WIDEST = 100
"""Columns beyond which lines are hard to read."""
INDENT, TERMS, GAP = 2, 22, 2
"""Columns before the names of options, of the names, and between them and their text. A longer name has a line of its own."""
OWN = "Options"


def show_help(context: Any, common: Collection[str] | None = None) -> None:
    """Print the help of a command.

    Args:
        context: Click's, of the command.
        common: the names of the parameters to show; None: all.
    """
    command = context.command
    parameters = [each for each in command.get_params(context) if not getattr(each, "hidden", False)]
    shown = [each for each in parameters if common is None or each.name in common]
    arguments = [each for each in parameters if each.param_type_name == "argument"]
    usage = [context.command_path, "[OPTIONS]", *(_usage(each) for each in arguments)]
    commands = getattr(command, "commands", {})
    console.print(Text.assemble(("Usage: ", "bold"), " ".join([*usage, *(["COMMAND …"] if commands else [])])))
    for paragraph in (command.help or "").split("\n\n"):
        console.print()
        _wrapped(paragraph, 0)
    _section("Arguments", [(_term(each), _text(each)) for each in shown if each in arguments])
    panels: dict[str, list[tuple[str, str]]] = {OWN: []}
    for each in shown:
        if each not in arguments:
            panels.setdefault(getattr(each, "rich_help_panel", None) or OWN, []).append((_term(each), _text(each)))
    for heading, entries in panels.items():
        _section(heading, entries)
    _section("Commands", [(name, each.get_short_help_str(1000)) for name, each in commands.items()])
    if left_out := len(parameters) - len(shown):
        console.print()
        _wrapped(f"`{context.command_path} --help-all` shows {left_out} more options.", 0)


def _all(context: typer.Context, asked: bool) -> None:
    if asked:
        show_help(context)
        raise typer.Exit


HelpAll = Annotated[bool, typer.Option("--help-all", callback=_all, is_eager=True, help="Show every option and exit.")]


def _usage(argument: Any) -> str:
    name = _name(argument) + (" …" if argument.nargs == -1 else "")
    return name if argument.required else f"[{name}]"


def _name(argument: Any) -> str:
    return str(argument.metavar or argument.name.upper())


def _term(parameter: Any) -> str:
    """An argument or option as it is written: `-o, --output PATH`; `--[no-]fast` for what can be on or off."""
    if parameter.param_type_name == "argument":
        return _name(parameter)
    names = sorted(parameter.opts, key=len)
    if parameter.secondary_opts:
        names = [name.replace("--", "--[no-]") for name in names]
    return " ".join([", ".join(names), *([parameter.metavar] if parameter.metavar else [])])


def _text(parameter: Any) -> str:
    default = parameter.show_default if isinstance(parameter.show_default, str) else ""
    if not default and parameter.default not in (None, False, ()) and not callable(parameter.default):
        default = str(parameter.default)
    return " ".join(filter(None, [parameter.help, f"[default: {default}]" if default else ""]))


def _section(heading: str, entries: Iterable[tuple[str, str]]) -> None:
    """A heading, and each entry's name beside its text."""
    listed = list(entries)
    if listed:
        console.print()
        console.print(Text(heading, "bold"))
    for term, text in listed:
        left = f"{'':{INDENT}}{term:<{TERMS}}"
        beside = len(term) <= TERMS
        if not beside:
            console.print(Text(left, "cyan"), soft_wrap=True)
        _wrapped(text, INDENT + TERMS + GAP, left if beside else "")


def _wrapped(text: str, indent: int, first: str = "") -> None:
    """A paragraph with so many columns before it; in the first line these begin with a name."""
    width = max(indent + 20, min(console.width, WIDEST))
    lines = textwrap.wrap(text, width - indent, break_on_hyphens=False) or [""]
    for line in lines:
        console.print(Text.assemble((f"{first:<{indent}}", "cyan"), line), soft_wrap=True)
        first = ""
