"""The application, and how a function becomes a command of it.

A command's options are made when it is called, so that help and the errors of the command line come at once.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from icpctl.cli.help import show_help
from icpctl.cli.output import say
from icpctl.errors import UserError, nearest, unknown


class _Commands(TyperGroup):
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Refuse an unknown command first: to read the options before it, though there are none, Typer imports pydantic."""
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            raise unknown("command", args[0], self.commands)
        return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        show_help(ctx)


app = typer.Typer(
    name="icpctl",
    cls=_Commands,
    help="Self-distillation by iterative constructive perturbations (arXiv 2505.14751): train, evaluate, ablate, report.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
MOST_NEAR = 3
"""Options that a message suggests."""
UsageError: type[Exception] = typer.BadParameter.__mro__[1]
"""Click's, which some releases of Typer have in themselves."""


def _version(show: bool) -> None:
    if show:
        from importlib.metadata import version

        say(f"icpctl {version('icpctl')}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    _: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    if (os.environ.get("WORLD_SIZE") or "1") != "1" and context.invoked_subcommand != "train":
        raise UserError("torchrun is for `icpctl train`: start the other commands without it.")


def command(name: str, hyperparameters: bool = False) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add a function as a command, with an option for every hyper-parameter if it takes them.

    What lists the commands gets their help alone: the options are made when a command is called.
    """

    def add(function: Callable[..., None]) -> Callable[..., None]:
        class Command(TyperCommand):
            def complete(self) -> Any:
                """The command with its options."""
                made = typer.Typer(add_completion=False)
                options = _with_hyperparameters(function) if hyperparameters else function
                made.command(name, cls=_Short if hyperparameters else _Whole)(options)
                return get_command(made)

            def make_context(self, *args: Any, **kwargs: Any) -> Any:
                return self.complete().make_context(*args, **kwargs)

        app.command(name, cls=Command, help=inspect.getdoc(function))(lambda: None)
        return function

    return add


def meant_option(name: str, context: Any) -> str:
    """A sentence on an option that a command does not have: whose it is, or which of the command's own are near; may be empty."""
    commands = getattr(context.find_root().command, "commands", {})
    owners = [f"`icpctl {each}`" for each in commands if name in _options(commands[each].complete())]
    if owners:
        return f"It belongs to {' and '.join(owners)}."
    arguments = [each.name for each in context.command.params if each.param_type_name == "argument"]
    if "model" in arguments and name in ("--model", "--dataset", "--data"):
        return "MODEL and DATASET are given without a name, in this order, as in `icpctl train resnet20 cifar100`."
    near = nearest(name, _options(context.command))[:MOST_NEAR]
    return f"Did you mean {' or '.join([', '.join(near[:-1]), near[-1]] if near[1:] else near)}?" if near else ""


def _options(command: Any) -> list[str]:
    options = (each for each in command.params if each.param_type_name == "option")
    return [name for each in options for name in (*each.opts, *each.secondary_opts)]


class _Whole(TyperCommand):
    """A command whose help has all of its options."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        show_help(ctx)


class _Short(TyperCommand):
    """A command whose help has the common options; --help-all has the rest."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        from icpctl.cli.options import common

        show_help(ctx, common(parameter.name for parameter in self.get_params(ctx)))


def _with_hyperparameters(command: Callable[..., None]) -> Callable[..., None]:
    from icpctl.cli.options import with_hyperparameters

    return with_hyperparameters(command)
