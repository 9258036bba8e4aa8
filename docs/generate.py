"""Write docs/cli.md: every hyper-parameter from its declaration, and the help of every command as it is printed.

python docs/generate.py            write the file
python docs/generate.py --check    leave with 1 if the file is not current
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from annotated_types import Ge, Gt, Le, Lt

from icpctl.cli.options import POSITIONAL
from icpctl.config import GROUPS, RunConfig, choices, declaration, default_text, option

FILE = Path(__file__).with_name("cli.md")
COMMANDS = {
    "": "--help",
    "train": "--help-all",
    "eval": "--help",
    "ablate": "--help-all",
    "report": "--help",
    "list": "--help",
}
WIDTH = 100
PLAIN = {"NO_COLOR": "1", "TERM": "dumb", "COLUMNS": str(WIDTH), "PYTHONUTF8": "1"}
COLOURING = ("FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS", "TERMINAL_WIDTH")  # these go before NO_COLOR in Typer

HELP_HEADING = "## The help of every command"
INTRODUCTION = """\
# Command line

This file is made by `docs/generate.py` from the code. Do not edit it; run `make docs`.

## Every hyper-parameter

Each is an option of `icpctl train` and `icpctl ablate`, a key of `--grid` and of a `--config` file (there with `_` or
`-`), an entry of `config.json` and a field of `icpctl.RunConfig`. `model` and `dataset` are arguments on the command
line. Sources: P is the paper (arXiv 2505.14751), S a public summary of it, A the authors' released code for its
extension; no source: this project's choice, or for a method other than ICP what [methods.md](methods.md) says. Settings
that a run's method does not read are put at their defaults.
"""


def document() -> str:
    """The whole of docs/cli.md."""
    return declarations() + helps()


def declarations() -> str:
    """The tables of the hyper-parameters, one a group."""
    alike = ", ".join(f"`{option(name)}`" for name in RunConfig.model_fields if not declaration(name).identity)
    parts = [INTRODUCTION, f"A change of any of them makes another run, but for {alike}.\n"]
    for group, heading in GROUPS.items():
        rows = [_row(name) for name in RunConfig.model_fields if declaration(name).group == group]
        header = "| option | values | default | unit | source | |\n| --- | --- | --- | --- | --- | --- |\n"
        parts.append(f"### {heading}\n\n{header}{''.join(rows)}")
    return "\n".join(parts) + "\n"


def _row(name: str) -> str:
    said = declaration(name)
    default = default_text(name)
    shown = name.upper() if name in POSITIONAL else option(name)
    if RunConfig.model_fields[name].annotation is bool:
        shown += f"`, `--no-{option(name)[2:]}"
    cells = (f"`{shown}`", _values(name), default, said.unit, said.source, RunConfig.model_fields[name].description)
    return "| " + " | ".join(str(cell).replace("|", r"\|") for cell in cells) + " |\n"


def _values(name: str) -> str:
    """Type and range in words."""
    field = RunConfig.model_fields[name]
    if choices(name):
        return ", ".join(f"`{value}`" for value in choices(name))
    annotation = str(field.annotation)
    words = {"bool": "yes or no", "int": "integer", "float": "number", "Path": "path", "tuple": "module paths"}
    kind = next((word for key, word in words.items() if key in annotation), "text")
    return " ".join([kind, ", ".join(filter(None, map(_bound, field.metadata)))]).strip()


def _bound(rule: Any) -> str:
    match rule:
        case Ge(bound):
            return f"≥ {bound}"
        case Gt(bound):
            return f"> {bound}"
        case Le(bound):
            return f"≤ {bound}"
        case Lt(bound):
            return f"< {bound}"
    return ""


def helps() -> str:
    """The help text of every command, at 100 columns without colour; whole, where there is a short one."""
    parts = [HELP_HEADING + "\n"]
    for command, asked in COMMANDS.items():
        heading = f"icpctl {command} {asked}".replace("  ", " ")
        parts.append(f"### {heading}\n\n```text\n{_help(command, asked)}\n```\n")
    return "\n".join(parts)


def _help(command: str, option: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in COLOURING} | PLAIN
    program = "from icpctl.cli.app import app; app(prog_name='icpctl')"
    arguments = [sys.executable, "-c", program, *command.split(), option]
    done = subprocess.run(arguments, capture_output=True, check=True, encoding="utf-8", env=environment)
    return "\n".join(line.rstrip() for line in done.stdout.strip("\n ").splitlines())


def main(arguments: list[str]) -> int:
    """Write the file, or check it; the exit status."""
    if arguments == ["--check"]:
        if FILE.exists() and FILE.read_text(encoding="utf-8") == document():
            return 0
        print(f"{FILE} is not current: run `python docs/generate.py`.", file=sys.stderr)
        return 1
    if arguments:
        print("Usage: python docs/generate.py [--check]", file=sys.stderr)
        return 2
    FILE.write_text(document(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
