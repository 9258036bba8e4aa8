"""A method is one class and one row of the catalogue; everything else follows from the row."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import icpctl
from icpctl.ablate.study import Study
from icpctl.cli import app as cli
from icpctl.config import RunConfig, choices
from icpctl.config.catalogue import METHODS, MethodRow, Variant
from icpctl.config.cost import compute_matched, passes
from icpctl.methods.base import Batch, Loss
from icpctl.methods.plain import Plain
from icpctl.report import build
from icpctl.report.formats import render
from icpctl.runs import checkpoint


class Doubled(Plain):
    """Twice the task loss, and a memory of how many steps it took."""

    def objective(self, batch: Batch) -> Loss:
        loss, log = super().objective(batch)
        return 2 * loss, log | {"doubled": torch.ones(())}

    def active(self, epoch: int) -> bool:
        return True


class Headed(Plain):
    """A head of its own on the logits, and a memory of the mean logits, which the next step reads."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.head = nn.Linear(10, 10)
        self.memory = torch.zeros(10)

    def objective(self, batch: Batch) -> Loss:
        loss, log = super().objective(batch)
        logits = self.head(self.model(batch.x)) - self.memory
        return loss + batch.criterion(logits, batch.y), log

    def after(self, batch: Batch, log: dict[str, Any]) -> None:
        with torch.no_grad():
            self.memory = 0.9 * self.memory + 0.1 * self.head.bias

    def state(self) -> dict[str, Any]:
        return {"memory": self.memory}

    def restore(self, state: Mapping[str, Any], shape: torch.Size) -> None:
        self.memory = state["memory"]


@pytest.fixture(autouse=True)
def row() -> Iterator[MethodRow]:
    module = ModuleType("toy")
    module.Doubled, module.Headed = Doubled, Headed  # type: ignore[attr-defined]
    sys.modules["toy"] = module
    METHODS["toy"] = MethodRow(
        "doubled",
        "Twice the task loss",
        {"toy": Variant("doubled loss", "#009E73", "^")},
        "toy:Doubled",
        passes=lambda config: 7,
        tasks=("classification",),
    )
    yield METHODS["toy"]
    del METHODS["toy"], sys.modules["toy"]


SETTINGS = {"dataset": "digits", "train_size": 100, "epochs": 3, "method": "toy"}


def test_it_is_in_the_help_the_list_and_the_grid() -> None:
    assert "toy" in choices("method")
    assert "sam, vat, toy." in " ".join(
        CliRunner().invoke(cli.app, ["train", "--help"], env={"COLUMNS": "400"}).output.split()
    )
    assert "Twice the task loss" in CliRunner().invoke(cli.app, ["list", "methods"]).output
    planned = Study(settings={"epochs": 3}, grid={"method": ["toy", "icp"]}, seeds=(0,)).runs()
    assert [run.config.method for run in planned] == ["plain", "toy", "icp"]


def test_it_costs_what_its_row_says() -> None:
    config = RunConfig.model_validate(SETTINGS)
    assert passes(config) == 3 * 7
    assert compute_matched(config).epochs == 7
    assert "toy" in config.run_id
    assert config.run_id != config.baseline().run_id
    assert RunConfig.model_validate({**SETTINGS, "icp_lr": 0.5}).run_id == config.run_id  # a setting of another method


def test_it_is_refused_for_another_task() -> None:
    with pytest.raises(icpctl.UserError, match="method is toy, which cannot train vae: it is for classification"):
        RunConfig(model="vae", method="toy")


def test_it_is_trained_and_reported(tmp_path: Path) -> None:
    config = RunConfig.model_validate(SETTINGS)
    run = icpctl.train(config, tmp_path)
    icpctl.train(config.baseline(), tmp_path)
    icpctl.train(RunConfig.model_validate({**SETTINGS, "method": "icp", "steps": 1}), tmp_path)
    train = run.metrics[run.metrics["split"] == "train"].set_index(["metric", "epoch"])["value"]
    assert train["doubled"].tolist() == [1.0] * 3
    assert train["task_weight"].tolist() == [1.0] * 3
    report = build(tmp_path)
    assert list(report.grouping.table["label"]) == ["baseline", "AdEMAMix-ICP", "doubled loss"]
    assert "doubled loss" in render(report, "markdown")


def test_its_head_and_its_memory_are_trained_and_resumed(row: MethodRow, tmp_path: Path) -> None:
    METHODS["toy"] = replace(row, module="toy:Headed")
    config = RunConfig.model_validate(SETTINGS)
    asked = iter(range(100))
    with pytest.raises(KeyboardInterrupt):
        icpctl.train(config, tmp_path / "stopped", should_stop=lambda: next(asked) == 3)
    saved = []
    for name in ("stopped", "straight"):
        run = icpctl.train(config, tmp_path / name)
        saved.append(checkpoint.load(run.path / "checkpoints" / "last.pt"))
    stopped, straight = saved
    assert straight["heads"].keys() == {"head.weight", "head.bias"}
    assert straight["icp_state"]["memory"].abs().max() > 0
    for part in ("model", "heads", "icp_state"):
        for name, value in straight[part].items():
            assert torch.equal(stopped[part][name], value), (part, name)


def test_it_is_in_the_table_of_the_options() -> None:
    document = runpy.run_path(str(Path(__file__).parents[2] / "docs" / "generate.py"))["declarations"]()
    assert "`sam`, `vat`, `toy` |" in document


def test_a_method_that_does_not_say_that_it_stacks_is_trained_alone() -> None:
    assert RunConfig.model_validate(SETTINGS).stack_id is None
