"""The help: the common options on one page, all of them when asked, and nothing that is cut."""

from __future__ import annotations

import re
from typing import Any, get_args

import pytest
from commands import icpctl_command
from typer.main import get_command

from icpctl.cli import app as cli
from icpctl.cli.shared import Format, Tool
from icpctl.config import RunConfig, option

COMMANDS = ("train", "eval", "ablate", "report", "list")
WITH_SETTINGS = ("train", "ablate")
NOTATION = {
    "INT",
    "FLOAT",
    "PATH",
    "NAME",
    "TEXT",
    "CONDITION",
    "SETTINGS",
    "SEEDS",
    "KEY=VALUE",
    "KEY=VALUES",
    "KEY=RANGE",
    "CLAIM",
    "A B",
}
"""What stands for the value of an option."""


def printed(*arguments: str, columns: int = 80) -> str:
    result = icpctl_command(*arguments, COLUMNS=str(columns))
    assert result.returncode == 0, result.stderr
    return result.stdout


def parameters(command: str) -> list[Any]:
    group: Any = get_command(cli.app)
    context = group.commands[command].make_context(command, [], resilient_parsing=True)
    return list(context.command.get_params(context))


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("columns", [60, 80, 200])
def test_every_option_is_shown_whole_at_any_width(command: str, columns: int) -> None:
    shown = printed(command, "--help-all" if command in WITH_SETTINGS else "--help", columns=columns)
    longest = max(shown.splitlines(), key=len)
    assert len(longest) <= columns, longest
    for parameter in parameters(command):
        for name in (*parameter.opts, *parameter.secondary_opts):
            if name.startswith("-"):
                written = {name, name.replace("--no-", "--[no-]"), name.replace("--", "--[no-]", 1)}
                assert any(f" {each}" in shown for each in written), name
        words = " ".join(shown.split())
        assert " ".join((parameter.help or "").split()) in words


def test_the_options_that_are_often_given_fit_a_screen_and_come_first() -> None:
    shown = printed("train", "--help")
    assert len(shown.splitlines()) <= 70
    for name in ("--method", "--optimizer", "--steps", "--icp-lr", "--epochs", "--seed", "--device", "--output"):
        assert f"{name} " in shown
    assert "--byot-lambda" not in shown
    assert "--help-all` shows" in shown
    assert shown.index("--output") < shown.index("--overwrite") < shown.index("--method")
    assert "--stack" not in printed("ablate", "--help")
    assert printed("ablate", "--help").index("--grid") < printed("ablate", "--help").index("--method")


@pytest.mark.parametrize("command", COMMANDS)
def test_the_values_of_all_options_have_one_notation(command: str) -> None:
    for parameter in parameters(command):
        if parameter.param_type_name == "option" and not getattr(parameter, "is_flag", False):
            assert parameter.metavar in NOTATION, parameter.name


def test_an_option_of_a_few_values_lists_them() -> None:
    shown = " ".join(printed("report", "--help").split())
    assert f"One of: {', '.join(get_args(Format))}." in shown
    assert f"One of: {', '.join(get_args(Tool))}." in shown


def test_every_setting_of_a_run_is_in_the_whole_help() -> None:
    for command in WITH_SETTINGS:
        shown = printed(command, "--help-all")
        for name in RunConfig.model_fields:
            if name not in ("model", "dataset"):
                assert re.search(rf"{option(name)}\b|--\[no-\]{option(name)[2:]}\b", shown), name


def test_an_option_that_can_be_off_is_parsed_both_ways() -> None:
    group: Any = get_command(cli.app)
    for text, value in (("--teacher-statistics", True), ("--no-teacher-statistics", False)):
        context = group.commands["train"].make_context("train", [text])
        assert context.params["teacher_statistics"] is value
