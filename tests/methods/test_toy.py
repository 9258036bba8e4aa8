"""A method is one class and one row of the catalogue; everything else follows from the row."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
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


class Doubled(Plain):
    """Twice the task loss, and a memory of how many steps it took."""

    def objective(self, batch: Batch) -> Loss:
        loss, log = super().objective(batch)
        return 2 * loss, log | {"doubled": torch.ones(())}

    def active(self, epoch: int) -> bool:
        return True


@pytest.fixture(autouse=True)
def row() -> Iterator[MethodRow]:
    module = ModuleType("toy")
    module.Doubled = Doubled  # type: ignore[attr-defined]
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
    assert "One of: plain, icp, toy" in " ".join(
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
