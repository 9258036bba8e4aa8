"""The commands: they parse, build a RunConfig, call the same functions as Python does, and print.

torch is imported by the commands that need it, so that the errors of the command line come at once.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

from icpctl.cli import run, study, reading  # each adds its commands, in this order  # isort: skip
from icpctl.cli.commands import UsageError, app, meant_option
from icpctl.cli.output import complain, pipe_is_closed
from icpctl.errors import UserError
from icpctl.terminal import guard_streams

__all__ = ["app", "main", "reading", "run", "study"]


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
        if hasattr(error, "possibilities"):  # of an option that the command does not have
            message = f"{error.message}. {meant_option(error.option_name, error.ctx)}".strip()
        end = "" if message.endswith((".", "?")) else "."
        complain("[bold red]Error:[/]", f"{message}{end} `{command} --help` shows what can be given.")


def _in_words(error: OSError) -> str:
    try:
        Path.cwd()
    except OSError:
        return "The working directory is not there any more. Change to one that is, and give the command again."
    reason = error.strerror or str(error)
    return f"{error.filename}: {reason}." if error.filename else f"{reason}."
