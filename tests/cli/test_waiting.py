"""What is on the screen of a terminal while a command imports, and while it trains."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from commands import PATIENCE

LOADING = "Loading torch …"


def on_a_terminal(*arguments: str, cwd: Path) -> str:
    """All that a command writes to a terminal of 80 columns."""
    leader, follower = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "80", "LINES": "30"}
    command = [sys.executable, "-m", "icpctl", *arguments]
    process = subprocess.Popen(command, cwd=cwd, env=environment, stdout=follower, stderr=follower, stdin=follower)
    os.close(follower)
    seen = b""
    try:
        while piece := os.read(leader, 65536):
            seen += piece
    except OSError:  # Linux's word for the end of a terminal
        pass
    os.close(leader)
    process.wait(PATIENCE)
    return seen.decode()


@pytest.mark.parametrize("arguments", [("train", "resnet20", "digits", "--device", "cuda:9"), ("eval", "nowhere")])
def test_a_command_says_that_it_loads_torch_and_takes_it_back(arguments: tuple[str, ...], tmp_path: Path) -> None:
    seen = on_a_terminal(*arguments, cwd=tmp_path)
    assert seen.startswith(LOADING)
    assert re.search(f"{LOADING}\\r\x1b\\[2K.*Error:", seen, re.S), seen


def test_nothing_of_it_is_in_a_file(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "icpctl", "eval", "nowhere"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE)
    assert "Loading" not in done.stdout + done.stderr


def test_the_columns_of_a_run_stand_still_and_its_bar_ends_where_the_epochs_end(tmp_path: Path) -> None:
    small = ("resnet20", "digits", "--train-size", "200", "--epochs", "10", "--warmup-epochs", "5", "--steps", "1")
    seen = on_a_terminal("train", *small, "--seed", "1", cwd=tmp_path)
    lines = [re.sub(r"\x1b\[[?0-9;]*[A-Za-z]", "", line).rstrip() for line in re.split("[\r\n]+", seen)]
    (heading,) = [line for line in lines if line.endswith("img/s") and "share" in line and "batch" not in line]
    epochs = [line for line in lines if re.match(r"epoch +[0-9]+/10 +[0-9.]+ ", line) and "━" not in line]
    assert len(epochs) == 10
    assert {len(line) for line in (heading, *epochs)} == {len(heading)}
    ends = [match.end() for match in re.finditer(r"\S+", heading)]
    for line in epochs:
        assert [match.end() for match in re.finditer(r"\S+", line)][2:] == ends
    bars = [line for line in lines if line.startswith("epoch 10/10 ━")]
    assert not bars or "╺" not in bars[-1]
