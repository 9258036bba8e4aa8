"""What reaches the terminal: texts without commands to it, in any encoding; and an output that fails loses no work."""

from __future__ import annotations

import fcntl
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import PATIENCE, icpctl_command, refused
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

import icpctl
from icpctl.terminal import Terminal, printable

HOSTILE = "a\x1b[2Jb\x9b31mc\x07d\re\bf\u202eg\udcffh[bold]i[/]:smile:"
COMMANDS = set("\x1b\x9b\x07\r\b\u202e\udcff")


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command line of bash, in which "icpctl" is this one."""
    function = f'icpctl() {{ {sys.executable} -m icpctl "$@"; }}; set -o pipefail; '
    return subprocess.run(
        ["bash", "-c", function + command],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        env=os.environ | {"TERM": "dumb"} | environment,
        timeout=PATIENCE,
        check=False,
    )


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    icpctl.train(icpctl.RunConfig(dataset="digits", epochs=1, train_size=160, optimizer="none"), folder)
    return folder


@given(st.text())
def test_a_printable_text_is_the_text_as_json_escapes_it(text: str) -> None:
    shown = printable(text)
    assert shown.isascii() or not any(ord(character) < 32 or 127 <= ord(character) < 160 for character in shown)
    assert json.loads(f'"{printable(json.dumps(text, ensure_ascii=False)[1:-1])}"') == text


def test_a_terminal_obeys_no_text_wherever_it_stands() -> None:
    file = io.StringIO()
    terminal = Terminal(file=file, force_terminal=True, width=200)
    table = Table(title=HOSTILE)
    table.add_column(HOSTILE)
    table.add_row(HOSTILE)
    terminal.print(HOSTILE, table)
    terminal.out(HOSTILE)
    assert "[bold]i[/]:smile:" in file.getvalue()
    shown = file.getvalue()
    for code in ("\x1b[3m", "\x1b[1m", "\x1b[0m"):  # Rich's own
        shown = shown.replace(code, "")
    assert not COMMANDS & set(shown)


@pytest.mark.parametrize(
    "arguments",
    [
        ["\x1b[2J"],
        ["train", "\x1b[2J"],
        ["train", "resnet20", "digits", "--\x1b[2J", "1"],
        ["train", "resnet20", "folder:\x1b[2J\udcff"],
        ["train", "--config", "\x1b[2J\udcff"],
        ["eval", "\udcff\u202e"],
        ["ablate", "resnet20", "digits", "--grid", "steps=\x1b\n1"],
        ["report", ".", "--where", "steps == '\x9b' +"],
        ["report", "[bold]\x07\udcff[/]"],
    ],
    ids=repr,
)
def test_an_argument_does_not_command_the_terminal(arguments: list[str], tmp_path: Path) -> None:
    assert not COMMANDS & set(refused(*arguments, cwd=tmp_path))


@pytest.mark.parametrize("name", ["nope", "/", "", "_", "☃"])
def test_an_unknown_command_is_refused(name: str) -> None:
    assert "Unknown command" in refused(name)


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "latin-1"])
def test_any_encoding_of_the_output_will_do(results: Path, encoding: str) -> None:
    for format in ("table", "json", "markdown") if encoding == "ascii" else ("table",):
        shown = icpctl_command("report", str(results), "--format", format, PYTHONIOENCODING=encoding)
        assert (shown.returncode, "Traceback" in shown.stderr) == (0, False)
        if format == "json":
            assert json.loads(shown.stdout)["summary"]
    assert shell("icpctl train --help", PYTHONIOENCODING=encoding).returncode == 0
    if encoding == "ascii":
        assert shell(f"icpctl report {results}", PYTHONIOENCODING=encoding).returncode == 0


@pytest.mark.parametrize(
    ("command", "status"),
    [
        ("--version >&-", 0),
        ("--help >&-", 0),
        ("--help >/dev/full", 2),
        ("report {results} >/dev/full", 2),
        ("report {results} --format csv >/dev/full", 2),
        ("report {results} >&- 2>&- <&-", 0),
        ("report {results} 2>/dev/full", 0),
        ("report {results} | true", 141),
        ("train --nope 2>&-", 2),
    ],
)
def test_an_output_that_cannot_be_written_loses_no_work(results: Path, command: str, status: int) -> None:
    (results / "report.html").unlink(missing_ok=True)
    done = shell("icpctl " + command.format(results=results))
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert (results / "report.html").exists() == command.startswith("report")


@pytest.mark.skipif(not hasattr(fcntl, "F_SETPIPE_SZ"), reason="needs a pipe of a chosen size")
def test_a_reader_that_goes_after_a_line_ends_the_command_in_silence() -> None:
    """As `| head -1` does, but that the help does not fit into the pipe: so it is being written when the reader goes."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    command = [sys.executable, "-m", "icpctl", "train", "--help-all"]
    with subprocess.Popen(command, stdout=writer, stderr=subprocess.PIPE, text=True) as process:
        os.close(writer)
        assert os.read(reader, 14) == b"Usage: icpctl "
        os.close(reader)
        _, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, errors) == (141, "")


def test_a_run_whose_output_is_full_is_trained_and_one_whose_reader_has_gone_is_saved(tmp_path: Path) -> None:
    train = f"icpctl train resnet20 digits --train-size 100 --optimizer none -o {tmp_path}"
    assert shell(f"{train} --epochs 1 >/dev/full").returncode == 2
    assert shell(f"{train} --epochs 2 | true").returncode == 141
    states = [json.loads(file.read_text())["state"] for file in tmp_path.glob("*/status.json")]
    assert sorted(states) == ["finished", "interrupted"]


@pytest.mark.parametrize("columns", ["0", "1", "-5", "²", "9" * 5000, "wide"])
def test_any_size_of_the_terminal_will_do(results: Path, columns: str) -> None:
    shown = icpctl_command("report", str(results), COLUMNS=columns, TERMINAL_WIDTH=columns)
    assert shown.returncode == 0, shown.stderr
    assert "resnet20" in "".join(shown.stdout.split())
