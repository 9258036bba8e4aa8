"""A run is what a loop of its own, written out here, makes of the same model and images, to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import icpctl
from icpctl import data
from icpctl.config import RunConfig
from icpctl.data.device import DeviceSplit
from icpctl.data.epochs import Plan
from icpctl.methods.icp.perturbation import Adam, AdEMAMix
from icpctl.models.network import build_model
from icpctl.runs import checkpoint
from icpctl.seeds import derived_seed

SETTINGS = {"dataset": "digits", "train_size": 90, "epochs": 3, "warmup_epochs": 1, "steps": 2, "val_fraction": 0.2}


def written_out(config: RunConfig) -> dict[str, torch.Tensor]:
    """The weights at the end, by torch and the library's own `SelfDistiller`, without the engine."""
    images = data.load(config.dataset)
    part, _ = data.split_train(images.train.labels, config.train_size, config.val_fraction, images.classes)
    split = DeviceSplit(images.train, torch.device("cpu"), part)
    mean, std = split.statistics()
    torch.manual_seed(config.seed)
    model = build_model(config, 10, torch.device("cpu")).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True)
    distiller = None
    if config.method == "icp":
        kind: Any = {"adam": Adam, "ademamix": AdEMAMix}[config.optimizer]
        distiller = icpctl.SelfDistiller(
            model,
            config.layers,
            kind(),
            config.steps,
            config.icp_lr,
            pass_order=config.pass_order,
            fold_batch_norm=True,
        )
    plan = Plan(config.seed, config.augmentation, config.batch_size, tuple(split.shape))
    for epoch in range(config.epochs):
        labels = split.labels[plan.order(epoch)]
        for step, (batch,) in enumerate(split.batches(plan, epoch, 0)):
            torch.manual_seed(derived_seed(config.seed, epoch, step + 1, 0))
            x = ((batch.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)
            y = labels[plan.rows(step)]
            optimizer.zero_grad()
            if distiller is not None and epoch >= 1:
                loss, _ = distiller(x, y, icpctl.task_weight(epoch, 1, 3), icp_losses=step % 10 == 0)
            else:
                loss = F.cross_entropy(model(x), y)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
    return model.state_dict()


@pytest.mark.parametrize(
    "settings",
    [{"method": "plain"}, {"optimizer": "adam"}, {"pass_order": "student-last"}],
    ids=["plain", "adam", "ademamix, the order of 0.1"],
)
def test_a_run_is_the_loop_written_out(settings: dict[str, Any], tmp_path: Path) -> None:
    config = RunConfig.model_validate({**SETTINGS, **settings})
    run = icpctl.train(config, tmp_path)
    weights = checkpoint.load(run.path / "checkpoints" / "last.pt")["model"]
    expected = written_out(config)
    assert weights.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(weights[name], value), name
