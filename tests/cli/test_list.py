"""`icpctl list` shows what there is."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from icpctl.cli import app as cli
from icpctl.cli.listing import entries
from icpctl.config.catalogue import METHODS
from icpctl.data import DATASETS, check_name
from icpctl.errors import UserError


def printed(*arguments: str) -> list[list[str]]:
    result = CliRunner().invoke(cli.app, ["list", *arguments])
    assert result.exit_code == 0, result.exception
    return [line.split("  ", 1) for line in result.output.splitlines()]


def test_every_kind_has_a_line_for_each_name() -> None:
    assert [name for name, _ in printed("methods")] == list(METHODS)
    assert [name for name, _ in printed("datasets")] == [*DATASETS, "folder:PATH", "hf:OWNER/NAME"]
    assert {"resnet20", "vae", "resnet18", "vit_b_16"} <= {name for name, _ in printed("models")}
    assert not [name for name, _ in printed("models") if name.startswith("timm/") and name != "timm/NAME"]
    assert {"accuracy", "f1_macro", "ssim", "fid_prior"} <= {name for name, _ in printed("metrics")}
    for kind in ("methods", "datasets", "models", "metrics"):
        assert all(line for _, line in printed(kind)), kind
    for name in DATASETS:
        check_name(name)


def test_a_pattern_chooses() -> None:
    assert {name for name, _ in printed("models", "VIT*") if "/" not in name} == {
        f"vit_{kind}" for kind in ["b_16", "b_32", "l_16", "l_32", "h_14"]
    }
    assert [name for name, _ in printed("datasets", "cifar10?")] == ["cifar100"]
    assert [name for name, _ in printed("metrics", "kid")] == ["kid_reconstruction", "kid_prior"]  # anywhere in a name


def test_a_pattern_finds_the_models_of_timm() -> None:
    pytest.importorskip("timm")
    assert "timm/vit_tiny_patch16_224" in {name for name, _ in printed("models", "timm/")}


def test_nothing_that_matches_is_an_error() -> None:
    with pytest.raises(UserError, match=r"No name among the models matches 'restnet'\. `icpctl list models`"):
        entries("models", "restnet")
