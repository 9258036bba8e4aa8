"""Attacks against an independent library, and noise and blur against their definitions."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.ndimage
import torch
from measure import random_images
from torch import Tensor, nn

import icpctl
from icpctl.models import CifarResNet
from icpctl.models.network import Network
from icpctl.runs.measures import MEASURES
from icpctl.tasks import robustness
from icpctl.tasks.sharpness import sharpness
from icpctl.training.trainer import Trainer

UNUSED, UNUSED_NETWORK = torch.Generator(), nn.Identity()
foolbox: Any = import_module("foolbox")  # which exports nothing by name


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    model = CifarResNet(8, 10)
    model(torch.randn(64, 3, 16, 16))  # running statistics
    return model.eval()


def pixels(number: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    levels = torch.randint(256, (number, 3, 16, 16), generator=generator)
    levels[0] = 255 * (levels[0] > 127)  # at the ends of the range
    return levels / 255, torch.randint(10, (number,), generator=generator)


@pytest.mark.parametrize("epsilon", robustness.EPSILONS)
def test_attacks_are_those_of_foolbox(epsilon: int, model: nn.Module) -> None:
    x, y = pixels()
    size = epsilon / 255
    known = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    _, of_library, _ = foolbox.attacks.LinfFastGradientAttack()(known, x, y, epsilons=size)
    torch.testing.assert_close(robustness.fgsm(model, x, y, UNUSED, size), of_library, rtol=0, atol=1e-6)
    attack = foolbox.attacks.LinfPGD(rel_stepsize=0.25, steps=20, random_start=False)
    _, of_library, _ = attack(known, x, y, epsilons=size)
    torch.testing.assert_close(robustness.ascend(model, x, x, y, size), of_library, rtol=0, atol=1e-6)
    model.zero_grad(set_to_none=True)  # of the library's backward passes


def test_an_attack_stays_near_and_raises_the_loss(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = pixels(32)
    size = 8 / 255
    losses = []
    generator = torch.Generator().manual_seed(3)
    for disturbed in (x, robustness.fgsm(model, x, y, UNUSED, size), robustness.pgd(model, x, y, generator, size)):
        assert (disturbed - x).abs().max() <= size + 1e-6
        assert 0 <= disturbed.min() <= disturbed.max() <= 1
        losses.append(float(nn.functional.cross_entropy(model(disturbed), y).detach()))
    assert losses[0] < losses[1] < losses[2]
    monkeypatch.setattr(robustness, "PGD_STEPS", 0)
    starts = [robustness.pgd(model, x, y, torch.Generator().manual_seed(seed), size) for seed in (1, 2)]
    assert (starts[0] - x).abs().mean() == pytest.approx(size / 2, rel=0.1)  # uniform, where the range allows it
    assert not torch.equal(*starts)


def test_noise_has_its_deviation_and_stays_in_range() -> None:
    x = torch.full((4, 3, 64, 64), 0.5)
    noisy = robustness.noise(UNUSED_NETWORK, x, x, torch.Generator().manual_seed(0), 16 / 255)
    assert (noisy - x).std() == pytest.approx(16 / 255, rel=0.02)
    assert robustness.noise(UNUSED_NETWORK, torch.ones(1, 3, 8, 8), x, torch.Generator(), 0.1).max() == 1


def test_blur_is_a_gaussian_filter() -> None:
    x, _ = pixels(2)
    for sigma in robustness.BLUR:
        reach = round(3 * sigma) / sigma
        expected = scipy.ndimage.gaussian_filter(
            x.double().numpy(), (0, 0, sigma, sigma), mode="mirror", truncate=reach
        )
        np.testing.assert_allclose(robustness.blur(UNUSED_NETWORK, x, x, UNUSED, sigma).numpy(), expected, atol=1e-5)


def test_each_image_is_disturbed_alike_whatever_the_batch_and_the_network_is_left_alone(model: nn.Module) -> None:
    images = random_images(40, 16, 10)
    config = icpctl.RunConfig(dataset="digits", val_fraction=0, epochs=1)
    trainer = Trainer(config, images, torch.device("cpu"))
    network = Network(model, *trainer.train_set.statistics())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, second = (robustness.robustness(network, trainer.train_set, seed=5) for _ in range(2))
    assert first == second
    assert first.keys() == robustness.disturbances().keys()
    assert first.keys() <= MEASURES.keys()
    assert all(0 <= value <= 1 for value in first.values())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_sharpness_is_the_rise_a_step_up_the_gradient() -> None:
    images = random_images(20, 8, 5)
    trainer = Trainer(icpctl.RunConfig(dataset="digits", val_fraction=0, epochs=1), images, torch.device("cpu"))
    task, network = trainer.task, trainer.network
    model = network.model.double().eval()
    x, y = network.normalise(trainer.train_set.images).double(), trainer.train_set.labels
    before = [parameter.detach().clone() for parameter in model.parameters()]

    class Network64(Network):
        def normalise(self, images: Tensor) -> Tensor:
            return super().normalise(images).double()

    measured = sharpness(Network64(model, network.mean, network.std), trainer.train_set, task.targets, task.loss)
    assert all(map(torch.equal, model.parameters(), before))
    loss = nn.functional.cross_entropy(model(x), y)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
    with torch.no_grad():
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter.add_(0.05 * gradient / norm)
        expected = float(nn.functional.cross_entropy(model(x), y) - loss)
    assert expected > 0
    assert measured == pytest.approx(expected, rel=1e-9)


def test_a_run_and_an_evaluation_measure_them(tmp_path: Path) -> None:
    config = icpctl.RunConfig(
        dataset="digits", method="plain", train_size=200, epochs=2, val_fraction=0.2, robustness=True
    )
    run = icpctl.train(config, tmp_path)
    rows = run.metrics
    last = rows[(rows["epoch"] == 1) & (rows["split"] == "test")].set_index("metric")["value"]
    assert {*robustness.disturbances(), "sharpness"} <= set(last.index)
    again = icpctl.evaluate(run.path, robustness=True)
    for name in robustness.disturbances():
        assert again[name] == last[name]
    assert last["accuracy_pgd20_8"] <= last["accuracy"]
    assert not {*robustness.disturbances()} & icpctl.evaluate(run.path).keys()


def test_the_gap_is_between_training_images_as_they_are_and_the_test_images(tmp_path: Path) -> None:
    config = icpctl.RunConfig(
        dataset="digits", method="plain", train_size=200, epochs=1, val_fraction=0.2, fit_images=160
    )
    run = icpctl.train(config, tmp_path)
    values = run.metrics.set_index(["split", "metric"])["value"]
    fit, test = icpctl.evaluate(run.path, split="train"), icpctl.evaluate(run.path)
    for name in ("loss", "accuracy"):
        assert values["fit", name] == pytest.approx(fit[name], abs=1e-6)
        assert values["test", f"generalization_gap_{name}"] == pytest.approx(fit[name] - test[name], abs=1e-6)
    without = icpctl.train(config.altered(fit_images=0, seed=1), tmp_path).metrics
    assert set(without["split"]) == {"train", "val", "test"}
    assert not without["metric"].str.contains("gap|sharpness").any()
