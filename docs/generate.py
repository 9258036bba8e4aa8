"""Write docs/cli.md from the declarations: every command with its arguments and options, and every hyper-parameter.

python docs/generate.py            write the file
python docs/generate.py --check    exit with 1 if the file is not current
"""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt
from typer.main import get_command

from icpctl.cli.app import app
from icpctl.config import GROUPS, RunConfig, choices, declaration, default_text, option

FILE = Path(__file__).with_name("cli.md")
CLI: Any = get_command(app)

INTRODUCTION = """\
# Command line

<!-- Made by docs/generate.py from the code. Do not edit it; run `make docs`. -->

`icpctl COMMAND --help` shows the same in the terminal. [Exit statuses](run-folder.md#exit-statuses) are listed with the run folder.
"""
HYPERPARAMETERS = """\
## Every hyper-parameter

Each is an option of `icpctl train` and `icpctl ablate`, a key of `--grid` and of a `--config` file (there with `_` or
`-`), an entry of `config.json` and a field of `icpctl.RunConfig`. `model` and `dataset` are arguments on the command
line. Settings that the method of a run does not read are put at their defaults.

A unit stands in round brackets beside the values, and the source of a default in square ones: P is the paper (arXiv 2505.14751), S a public summary of it, A the authors'
released code for its extension. A default without a source is this project's choice or, for a method other than ICP, that of
the source in [Methods](methods.md).
"""
HEADER = "| option | values | default | meaning |\n| --- | --- | --- | --- |\n"


def document() -> str:
    """The whole of docs/cli.md."""
    return "\n".join([INTRODUCTION, *(_command(name) for name in ["", *CLI.commands]), declarations()])


def declarations() -> str:
    """The tables of the hyper-parameters, one a heading."""
    alike = ", ".join(f"`{option(name)}`" for name in RunConfig.model_fields if not declaration(name).identity)
    parts = [HYPERPARAMETERS, f"A change of any of these makes another run, except for {alike}.\n"]
    for heading in dict.fromkeys(GROUPS.values()):  # two groups may have one
        rows = [_row(name) for name in RunConfig.model_fields if GROUPS[declaration(name).group] == heading]
        parts.append(f"### {heading}\n\n{HEADER}{''.join(rows)}")
    return "\n".join(parts)


def _command(name: str) -> str:
    """A command: its sentences, and a table of its own arguments and options."""
    made = CLI.commands[name].make_context(name, [], resilient_parsing=True).command if name else CLI
    takes_all = {*RunConfig.model_fields} <= {parameter.name for parameter in made.params}
    own = [each for each in made.params if not (takes_all and each.name in RunConfig.model_fields)]
    parts = [f"## icpctl {name}".rstrip(), _sentences(inspect.cleandoc(made.help))]
    if takes_all:
        parts.append("It takes [every hyper-parameter](#every-hyper-parameter) and these:")
    hints = get_type_hints(made.callback, include_extras=True)
    rows = [_parameter(parameter, hints.get(parameter.name, bool)) for parameter in own]
    parts.append(HEADER + "\n".join(rows))
    if not name:
        commands = [f"| [`{each}`](#icpctl-{each}) | {_first(CLI.commands[each].help)} |" for each in CLI.commands]
        parts.append("| command | what it does |\n| --- | --- |\n" + "\n".join(commands))
    return "\n\n".join(parts) + "\n"


def _sentences(text: str) -> str:
    """The help of a command, its example as code."""
    return re.sub(r"^Example: (.*)$", r"Example: `\1`", text, flags=re.MULTILINE)


def _first(text: str) -> str:
    return " ".join(inspect.cleandoc(text).partition("\n\n")[0].split())


def _parameter(parameter: Any, hint: Any) -> str:
    """The row of an argument, or of an option that is not a hyper-parameter; the hint is that of the function."""
    shown = [parameter.metavar or parameter.name.upper()] if parameter.param_type_name == "argument" else parameter.opts
    default = parameter.show_default if isinstance(parameter.show_default, str) else parameter.default
    quiet = default is None or default is False or callable(default)
    said = getattr(parameter, "help", "") or ""
    values = _kind(hint)
    if parameter.metavar and parameter.metavar not in shown:
        values = " or ".join(f"`{each}`" for each in parameter.metavar.split("|"))
    cells = (", ".join(f"`{each}`" for each in shown), values, "" if quiet else str(default), said)
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def _kind(hint: Any) -> str:
    """The values of an argument or option, in words."""
    declared, *notes = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    choices_of = [
        value for kind in (declared, *get_args(declared)) if get_origin(kind) is Literal for value in get_args(kind)
    ]
    if choices_of:
        return ", ".join(f"`{value}`" for value in choices_of)
    words = {"bool": "", "int": "integer", "float": "number", "Path": "path"}
    kind = next((word for key, word in words.items() if key in str(declared)), "text")
    least = next((note.min for note in notes if getattr(note, "min", None) is not None), None)
    return kind + (f" ≥ {least}" if least is not None else "") + (", several" if "list[" in str(declared) else "")


def _row(name: str) -> str:
    said = declaration(name)
    default = default_text(name) + (f" [{said.source}]" if said.source else "")
    values = _values(name) + (f" ({said.unit})" if said.unit else "")
    shown = option(name)
    if RunConfig.model_fields[name].annotation is bool:
        shown += f"`, `--no-{option(name)[2:]}"
    cells = (f"`{shown}`", values, default, RunConfig.model_fields[name].description)
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
