"""`make gpu` on a CPU: every check runs or says why not, the two files agree, and a check that fails does not stop the others."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gpu
import gpu_checks
import gpu_figures
import pytest
import torch
from gpu import CHECKS, Check
from gpu_checks import Line, Setting
from torch import nn
from torch.utils._pytree import tree_leaves

from icpctl.training.graphs import CapturedSteps
from icpctl.training.trainer import Trainer

CPU = torch.device("cpu")
Found = list[dict[str, Any]]


def results(folder: Path) -> tuple[Found, list[list[str]]]:
    """The lines of the JSON file, and the rows of the Markdown one."""
    (text,), (table,) = (list(folder.glob(f"gpu-*.{kind}")) for kind in ("json", "md"))
    assert text.stem == table.stem
    lines: Found = json.loads(text.read_text())["lines"]
    rows = [line for line in table.read_text().splitlines() if line.startswith("| ")]
    return lines, [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows[2:]]


def test_the_short_form_runs_on_a_cpu(tmp_path: Path) -> None:
    assert gpu.main(["--device", "cpu", "--output", str(tmp_path)]) == 0
    lines, rows = results(tmp_path)
    assert {line["result"] for line in lines} == {"pass", "figure", "skip"}
    assert list(dict.fromkeys(line["check"] for line in lines)) == [check.name for check in CHECKS]
    by_check = {check.name: {line["result"] for line in lines if line["check"] == check.name} for check in CHECKS}
    assert {check.name for check in CHECKS if "CUDA" in check.needs} == {
        name for name, found in by_check.items() if found == {"skip"}
    }
    assert all(line["said"] for line in lines)
    cells = [[gpu._cell(line[name]) for name in ("check", "what", "result", "said")] for line in lines]
    assert rows == cells


def fine(setting: Setting) -> Iterator[Line]:
    yield Line("it", "pass", "is | fine")


def broken(setting: Setting) -> Iterator[Line]:
    yield Line("the first half", "figure", "1")
    raise RuntimeError("CUDA error: an illegal memory access\nwas encountered")


def missing(setting: Setting) -> Iterator[Line]:
    raise gpu_checks.Skipped("there is one GPU")
    yield


def test_a_check_that_raises_is_a_failure_and_the_others_go_on(tmp_path: Path) -> None:
    checks = (Check("a", fine), Check("b", broken), Check("c", missing), Check("d", fine, ("CUDA",)), Check("e", fine))
    assert gpu.main(["--device", "cpu", "--output", str(tmp_path)], checks) == 1
    lines, rows = results(tmp_path)
    assert [(line["check"], line["result"], line["said"]) for line in lines] == [
        ("a", "pass", "is | fine"),
        ("b", "figure", "1"),
        ("b", "fail", "RuntimeError: CUDA error: an illegal memory access"),
        ("c", "skip", "there is one GPU"),
        ("d", "skip", "needs a CUDA device"),
        ("e", "pass", "is | fine"),
    ]
    assert [row[0] for row in rows] == ["a", "b", "b", "c", "d", "e"]
    assert "in broken" in lines[2]["block"]  # the traceback


def test_a_check_in_a_process_of_its_own_gives_its_lines_or_why_it_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    (line,) = gpu.lines_apart(CHECKS[1], CPU, short=True)
    assert (line.check, line.result) == ("float32 convolutions", "pass")
    monkeypatch.setattr("sys.executable", shutil.which("false"))
    (line,) = gpu.lines_apart(CHECKS[1], CPU, short=True)
    assert (line.check, line.result) == ("float32 convolutions", "fail")
    assert line.said == "its process ended with status 1"


def test_the_first_command_is_that_of_the_readme() -> None:
    readme = (Path(gpu.__file__).parents[1] / "README.md").read_text()
    assert f"\nicpctl {shlex.join(gpu_figures.FIRST_COMMAND)}\n" in readme


def stand_in(model: nn.Module) -> Callable[[Callable[[], Any]], tuple[Any, Callable[[], None]]]:
    """Replays by computing anew into the same places."""

    def capture(function: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        places = function()
        gradients = [parameter.grad for parameter in model.parameters()]

        def replay() -> None:
            for place, value in zip(tree_leaves(places), tree_leaves(function()), strict=True):
                if isinstance(place, torch.Tensor):
                    place.copy_(value)
            for gradient, parameter in zip(gradients, model.parameters(), strict=True):
                if gradient is not None and parameter.grad is not None:
                    gradient.copy_(parameter.grad)

        return places, replay

    return capture


@pytest.fixture
def stood_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setting:
    """The setting of a CPU whose steps are captured, as far as anyone can tell."""
    monkeypatch.setattr(
        Trainer, "_captured", lambda self, say: CapturedSteps(self.method, self.optimizer, stand_in(self.method), say)
    )
    monkeypatch.setattr(gpu_checks, "MODELS", ("resnet20",))
    monkeypatch.setattr(gpu_checks, "KINDS", {"with the method": gpu_checks.KINDS["with the method"]})
    for name in ("set_sync_debug_mode", "synchronize"):
        monkeypatch.setattr(f"torch.cuda.{name}", lambda given: None)
    return Setting(CPU, True, tmp_path)


@pytest.mark.parametrize(
    "check",
    [
        gpu_checks.kinds_of_step,
        gpu_checks.fifty_steps,
        pytest.param(gpu_checks.streaming_through_a_capture, marks=pytest.mark.slow),
    ],
)
def test_the_checks_of_captured_steps(check: Callable[[Setting], Iterator[Line]], stood_in: Setting) -> None:
    assert {line.result for line in check(stood_in)} == {"pass"}


def test_the_check_of_waits(stood_in: Setting) -> None:
    noticed, *without = gpu_checks.no_waits(stood_in)
    assert noticed.result == "fail"  # nothing notices a wait here
    assert {line.result for line in without} == {"pass"}


def test_a_graph_that_went_wrong_after_it_was_taken_into_use_is_found(
    stood_in: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = CapturedSteps._check

    def check_and_break(self: CapturedSteps, kind: Any, *given: Any) -> None:
        checked(self, kind, *given)
        self._graphs[kind].replay = lambda: None

    monkeypatch.setattr(CapturedSteps, "_check", check_and_break)
    lines = list(gpu_checks.kinds_of_step(stood_in))
    assert {line.result for line in lines} == {"fail"}
    assert "the loss is not finite" in lines[0].said


def test_the_check_of_a_failed_capture(stood_in: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(results: Any) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    reserved = iter([0, 2**28])
    monkeypatch.setattr(gpu_checks, "_waits", refuse)
    monkeypatch.setattr(gpu_checks, "CudaGraphs", lambda device: stand_in(nn.Linear(1, 1)))
    for name, given in {
        "current_stream": lambda device: "main",
        "memory_reserved": lambda device: next(reserved),
        "empty_cache": lambda: None,
    }.items():
        monkeypatch.setattr(f"torch.cuda.{name}", given)
    found = {line.what: line for line in gpu_checks.failed_capture(stood_in)}
    leak = found.pop("allocator")
    assert {line.result for line in found.values()} == {"pass"}
    assert (leak.result, leak.said) == ("fail", "256 MiB stay taken")
