"""Mixup against its formula and torchvision's, and what a run that mixes records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_methods import (
    CLASSES,
    Given,
    assert_as_defined,
    assert_equal,
    batch,
    cross_entropy,
    images,
    method,
    network,
    steps,
    trainer,
)
from small_runs import small
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torchvision.transforms import v2

import icpctl
from icpctl.config import RunConfig
from icpctl.methods.base import Batch
from icpctl.methods.mixing import mix, mixup

CONFIG = RunConfig(method="mixup")


@settings(deadline=None, max_examples=15)
@given(st.floats(0, 1), st.permutations(range(4)))
def test_it_is_a_weighted_mean_of_images_and_labels(share: float, order: list[int]) -> None:
    x, y = images(0, 4)
    generator: Any = Given(share, order)
    mixed, targets = mix(CONFIG, x, y, CLASSES, generator)
    for i, j in enumerate(order):
        assert_equal(mixed[i], share * x[i] + (1 - share) * x[j])
        for k in range(CLASSES):
            expected = share * (int(y[i]) == k) + (1 - share) * (int(y[j]) == k)
            assert float(targets[i, k]) == pytest.approx(expected, abs=1e-6)
    assert generator.asked == [(1.0, 1.0)]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.81, 1.0])
def test_it_is_that_of_torchvision(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = images(1, 5)
    theirs = v2.MixUp(num_classes=CLASSES)
    monkeypatch.setattr(theirs._dist, "sample", lambda shape: torch.tensor(share, dtype=torch.float64))
    expected = theirs(x, y)
    rolled = torch.arange(5).roll(1)
    generator: Any = Given(share, rolled.tolist())
    mixed, targets = mix(CONFIG, x, y, CLASSES, generator)
    assert_equal(mixed, expected[0])
    torch.testing.assert_close(targets.float(), expected[1])


@pytest.mark.parametrize("share", [0.25, 0.625])
def test_a_step_equals_its_definition(share: float) -> None:
    """λ·CE(y) + (1 − λ)·CE(y_π), of one pass on mixed images."""
    given_before = batch()
    order = torch.tensor([2, 0, 5, 1, 4, 3])
    one_hot = torch.zeros(6, CLASSES, dtype=torch.float64)
    for i, label in enumerate(given_before.y.tolist()):
        one_hot[i, label] = 1
    x, y = mixup(given_before.x, one_hot, share, order)
    mixed = Batch(x, y, given_before.index, given_before.criterion, 1, 0)

    def naive(other: Any, _: Batch) -> Tensor:
        x, y = given_before.x, given_before.y
        logits = other.model(torch.stack([share * x[i] + (1 - share) * x[j] for i, j in enumerate(order.tolist())]))
        return share * cross_entropy(logits, y) + (1 - share) * cross_entropy(logits, y[order])

    assert_as_defined(method("mixup", network()), mixed, naive)


def test_one_share_of_the_distribution_is_drawn_for_each_batch() -> None:
    x, y = images(0, 4)
    shares = []
    for seed in range(400):
        mixed, targets = mix(RunConfig(method="mixup", mix_alpha=0.4), x, y, CLASSES, np.random.default_rng(seed))
        differing = (mixed - x).flatten(1).norm(dim=1) > 0
        if differing.any():
            found = [float(targets[i, y[i]]) for i in range(4) if differing[i] and targets[i, y[i]] < 1]
            assert max(found, default=0) == pytest.approx(min(found, default=0), abs=1e-6)
            shares += found[:1]
    assert np.mean(shares) == pytest.approx(0.5, abs=0.06)
    assert np.var(shares) == pytest.approx(0.25 / 1.8, rel=0.2)  # of Beta(α, α): 1/(4·(2α + 1))


def test_a_batch_is_left_as_it_is_as_often_as_the_run_says() -> None:
    x, y = images(0, 4)
    config = RunConfig(method="mixup", mix_probability=0.3)
    for chance, is_mixed in ((0.29, True), (0.3, False), (0.9, False)):
        generator: Any = Given(0.4, [1, 2, 3, 0], chance=chance)
        mixed, targets = mix(config, x, y, CLASSES, generator)
        assert torch.equal(mixed, x) != is_mixed
        assert torch.equal(targets, nn.functional.one_hot(y, CLASSES).float()) != is_mixed
        assert targets.shape == (4, CLASSES)


def test_a_run_draws_anew_for_each_step_and_the_same_again() -> None:
    def mixed(epoch: int, step: int) -> tuple[Tensor, Tensor]:
        made = run.batch(epoch, step, next(iter(run.epoch_batches(0))))
        return made.x, made.y

    run = trainer("mixup", augmentation="none")
    first, again, later, next_epoch = mixed(0, 0), mixed(0, 0), mixed(0, 1), mixed(1, 0)
    assert all(map(torch.equal, first, again))
    assert not torch.equal(first[0], later[0])
    assert not torch.equal(first[0], next_epoch[0])
    assert float((first[1].sum(dim=1) - 1).abs().max()) < 1e-6


@pytest.mark.parametrize(("name", "mixes"), [("mixup", True), ("sam", True), ("plain", False)])
def test_of_mixed_images_no_metric_but_the_loss_is_recorded(name: str, mixes: bool, tmp_path: Path) -> None:
    config = small(method=name, model="small_methods:SmallNet", epochs=1, train_size=60, warmup_epochs=0, batch_size=16)
    if mixes:
        config = config.altered(mix="mixup")
    metrics = icpctl.train(config, tmp_path).metrics
    of = {split: set(metrics[metrics["split"] == split]["metric"]) for split in ("train", "val", "test")}
    labels = {"accuracy", "accuracy_top5", "f1_macro", "precision_macro", "recall_macro", "ece"}
    assert of["train"] & labels == (set() if mixes else labels)
    assert of["val"] >= labels
    assert of["test"] >= labels
    assert {"loss", "task_loss"} <= of["train"]
    values = metrics[metrics["split"] == "train"].set_index("metric")["value"]
    if mixes:
        assert values["loss"] == values["task_loss"]


def test_the_mixed_batch_is_what_a_run_is_trained_on() -> None:
    run = trainer("mixup")
    (_, _, images_of, loss, log), *_ = steps(run, [0])
    again = trainer("mixup").batch(0, 0, images_of)
    assert again.y.shape == (4, 3)
    torch.testing.assert_close(loss, -(again.y * log["record"].log_softmax(1)).sum(1).mean())


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixing_does_not_wait_for_the_device(kind: str) -> None:
    copies = []

    class Copies(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function is torch.Tensor.to and isinstance(args[1], torch.device):
                copies.append(kwargs)
            return function(*args, **(kwargs or {}))

    config = RunConfig(method=kind, mix_probability=1)
    with Copies():
        mix(config, torch.rand(4, 3, 8, 8), torch.arange(4), 4, np.random.default_rng(1))
    assert copies == [{"non_blocking": True}]
