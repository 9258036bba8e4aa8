"""Classifiers of timm, by name: their stages, their sizes, and training with the perturbation."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import icpctl
from icpctl import models
from icpctl.errors import UserError

pytest.importorskip("timm")

FAST = ["test_resnet", "test_convnext", "test_vit", "test_efficientnet"]
"""A few thousand parameters each; made by timm for tests."""
SLOW = [
    "resnet10t", "mobilenetv3_small_050", "regnetx_002", "efficientnet_lite0", "convnext_atto", "densenet121", "ghostnet_050",
    "vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "mixer_s32_224", "swin_tiny_patch4_window7_224",
]  # fmt: skip


def config(name: str, image_size: int | None = 32, **settings: object) -> icpctl.RunConfig:
    given = {"dataset": "digits", "train_size": 40, "batch_size": 10, "val_fraction": 0, "device": "cpu"}
    given |= {"epochs": 1, "warmup_epochs": 0, "steps": 1}
    return icpctl.RunConfig.model_validate({"model": f"timm/{name}", "image_size": image_size, **given, **settings})


@pytest.mark.parametrize("name", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_a_model_is_trained_for_an_epoch(name: str, tmp_path: Path) -> None:
    run = icpctl.train(config(name, 64 if "224" in name else 32), tmp_path)
    assert 3 <= len(run.config.layers) <= 6
    assert run.config.run_id.startswith(f"timm-{name}-digits-ademamix-T1-s0-")
    last = run.metrics[run.metrics["split"] == "train"].set_index("metric")["value"]
    assert last["loss"] > 0
    assert all(last[f"feature_shift_{i}"] > 0 for i in range(1, len(run.config.layers) + 1))
    evaluated = icpctl.evaluate(run.path, device="cpu")
    recorded = run.metrics[run.metrics["split"] == "test"].set_index("metric")["value"]
    assert evaluated["loss"] == recorded["loss"]


@pytest.mark.parametrize("name", FAST)
def test_perturb_lowers_the_loss(name: str) -> None:
    torch.manual_seed(0)
    model = models.build(f"timm/{name}", 10, image_size=32).eval()
    x, y = torch.randn(4, 3, 32, 32), torch.arange(4)

    def loss(images: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(model(images), y)

    moved = icpctl.perturb(x, loss, optimizer="adam", steps=3, lr=0.01)
    assert loss(moved) < loss(x)


def test_stages_of_a_transformer_are_four_of_its_blocks() -> None:
    complete = models.complete(config("vit_tiny_patch16_224", 224))
    assert complete.layers == ("blocks.2", "blocks.5", "blocks.8", "blocks.11")
    assert models.complete(config("test_convnext")).layers == ("stages.0", "stages.1", "stages.2", "stages.3")
    assert models.complete(config("test_convnext", layers="stages.3")).layers == ("stages.3",)
    assert models.complete(config("test_vit", method="plain")).layers == ()  # a baseline has no stages


def test_a_size_that_does_not_fit_names_one_that_does(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"images of 8×8 pixels.*--image-size 16"):
        icpctl.train(config("test_vit", None), tmp_path)


def test_what_cannot_be_had_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="Did you mean 'timm/resnet101'"):
        models.check_name("timm/resnet10")
    with pytest.raises(UserError, match="from one pass in eval mode to the next"):
        models.build("timm/levit_128s", 10)
    with pytest.raises(UserError, match="--stem cifar"):
        models.build("timm/test_resnet", 10, stem="cifar")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"pip install 'icpctl\[timm\]'"):
        models.check_name("timm/resnet18")
