"""Each setting of a run reaches what it is about: a run with another value of it takes other steps."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from measure import random_images

from icpctl.config import RunConfig, declaration
from icpctl.training.trainer import Trainer

BASE: dict[str, Any] = {
    "model": "resnet20",
    "dataset": "digits",
    "epochs": 4,
    "warmup_epochs": 0,
    "batch_size": 4,
    "val_fraction": 0,
    "eps": 1e-3,
    "icp_weight_decay": 0.1,
    "lr": 1e-3,
    "weight_decay": 0.1,
    "icp_lr": 0.1,
}
OTHER: dict[str, Any] = {
    "optimizer": "adam",
    "steps": 2,
    "icp_lr": 0.2,
    "icp_reduction": "sum",
    "direction": "ascend",
    "beta1": 0.5,
    "beta2": 0.5,
    "beta3": 0.5,
    "alpha": 50.0,
    "eps": 1e-2,
    "icp_weight_decay": 0.2,
    "icp_state": "carry",
    "layers": ("layer1",),
    "layer_weights": "uniform",
    "warmup_epochs": 2,
    "pass_order": "student-last",
    "teacher_statistics": False,
    "extra_task_grad": True,
    "model_optimizer": "sgd",
    "lr": 2e-3,
    "weight_decay": 0.2,
    "lr_schedule": "cosine",
    "batch_size": 6,
    "augmentation": "pad-crop-flip",
    "clip_grad_norm": 1e-3,
    "latent_dim": 16,
    "beta": 2.0,
}
OF_RIVALS: dict[str, dict[str, Any]] = {
    "plain": {"label_smoothing": 0.2, "mix": "mixup"},
    "two-views": {"layers": ("layer1",), "layer_weights": "uniform", "warmup_epochs": 2, "teacher_statistics": False},
    "mixup": {"mix_alpha": 0.2, "mix_probability": 0.1},
    "ps-kd": {"ps_kd_alpha": 0.1},
    "cs-kd": {"cs_kd_weight": 2.0, "cs_kd_temperature": 2.0},
    "dlb": {"dlb_weight": 2.0, "dlb_temperature": 2.0},
    "ddgsd": {"ddgsd_weight": 2.0, "ddgsd_temperature": 2.0, "ddgsd_mmd": 0.1, "layers": ("layer2", "layer1")},
    "byot": {"byot_alpha": 0.5, "byot_lambda": 0.1, "byot_temperature": 2.0, "layers": ("layer1", "layer3")},
    "sam": {"sam_rho": 0.5},
    "vat": {"vat_weight": 2.0, "vat_xi": 10.0, "vat_epsilon": 2.0},
}
ELSEWHERE = {"recipe", "fid_weights", "fid_features", "byot_share"}
"""Settings that are about the defaults of others, about the cost, or about what is measured after the last epoch."""


def weights(**settings: Any) -> list[torch.Tensor]:
    """What two steps of the method at each of two epochs make of a model and its statistics."""
    config = RunConfig(**{**BASE, **settings})
    trainer = Trainer(config, random_images(24, config.image_size or 8, 3), torch.device("cpu"))
    for epoch in (1, 3):
        for step, batch in zip(range(2), trainer.epoch_batches(epoch), strict=False):
            trainer.step(epoch, step, batch)
    return [tensor.clone() for tensor in trainer.model.state_dict().values()]


unchanged = cache(weights)


def test_there_is_another_value_for_every_setting_of_a_step() -> None:
    settings = {name for name in RunConfig.model_fields if declaration(name).group not in ("run", "machine")}
    assert settings - ELSEWHERE == OTHER.keys() | {name for values in OF_RIVALS.values() for name in values}


@pytest.mark.parametrize("name", OTHER)
def test_another_value_gives_other_weights(name: str) -> None:
    model = {"model": "vae", "image_size": 16} if declaration(name).group == "generation" else {}
    before, after = unchanged(**model), weights(**model, **{name: OTHER[name]})
    same_shapes = [one.shape for one in before] == [one.shape for one in after]
    assert not same_shapes or not all(map(torch.equal, before, after))


@pytest.mark.parametrize(("method", "name"), [(method, name) for method in OF_RIVALS for name in OF_RIVALS[method]])
def test_another_value_gives_other_weights_with_its_method(method: str, name: str) -> None:
    values = {"method": method, "augmentation": "pad-crop-flip"}
    before, after = unchanged(**values), weights(**values, **{name: OF_RIVALS[method][name]})
    assert not all(map(torch.equal, before, after))
