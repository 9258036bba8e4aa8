"""BYOT against its definition: the heads, what they learn from, and what does not use them."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from small_methods import (
    CLASSES,
    STAGES,
    assert_as_defined,
    assert_equal,
    batch,
    cross_entropy,
    evaluated,
    gradients,
    method,
    network,
    softmax,
    steps,
    trainer,
)
from torch import Tensor, nn

import icpctl
from icpctl import models
from icpctl.config import RunConfig
from icpctl.config.catalogue import METHODS
from icpctl.errors import UserError
from icpctl.methods.base import Batch
from icpctl.methods.byot import BYOT, Head, make_heads
from icpctl.methods.taps import pooled

THREE = ("stage1.0", "stage1", "stage2")


def naive(alpha: float, weight: float, temperature: float, layers: tuple[str, ...] = STAGES) -> Any:
    """The loss for these constants, of a copy of the method."""

    def loss(other: Any, given: Batch) -> Tensor:
        model = other.model
        convolved = model.stage1[0](given.x)
        first = model.stage1[1:](convolved)
        last = model.stage2(first)
        logits = model.fc(last.mean(dim=(2, 3)))
        stages = [convolved, first] if layers == THREE else [first]
        total = cross_entropy(logits, given.y)
        teacher = softmax(logits.detach(), temperature)
        target = last.mean(dim=(2, 3)).detach()
        for head, stage in zip(other.heads_of_stages, stages, strict=True):
            matched = head.body(stage).mean(dim=(2, 3))
            predicted = head.classifier(matched)
            total = total + (1 - alpha) * cross_entropy(predicted, given.y)
            total = total + alpha * cross_entropy(predicted, teacher, temperature)
            distance = torch.zeros((), dtype=torch.float64)
            for one, another in zip(matched, target, strict=True):
                square = torch.zeros((), dtype=torch.float64)
                for f, t in zip(one, another, strict=True):
                    square = square + (f - t) ** 2
                distance = distance + square.sqrt()
            total = total + weight * distance / len(matched)
        return total

    return loss


@pytest.mark.parametrize("layers", [STAGES, THREE])
@pytest.mark.parametrize(
    ("alpha", "weight", "temperature"), [(0.3, 0.03, 3.0), (0.0, 0.0, 3.0), (1.0, 2.0, 1.0), (0.5, 0.0, 4.5)]
)
def test_a_step_equals_its_definition(alpha: float, weight: float, temperature: float, layers: tuple[str, ...]) -> None:
    found = method("byot", network(), layers=layers, byot_alpha=alpha, byot_lambda=weight, byot_temperature=temperature)
    log = assert_as_defined(found, batch(), naive(alpha, weight, temperature, layers))
    assert {name for name in log if name.startswith("head_")} == {
        f"head_{what}_{i}" for what in ("loss", "distance") for i in range(1, len(layers))
    }


@pytest.mark.parametrize(("alpha", "weight"), [(1.0, 0.0), (0.0, 5.0), (0.3, 0.03)])
def test_the_teacher_gets_no_gradient(alpha: float, weight: float) -> None:
    """Neither its logits nor its features: what no head stands on has the gradient of plain training."""
    found = method("byot", network(), byot_alpha=alpha, byot_lambda=weight)
    plain = copy.deepcopy(found.model)
    given = batch()
    got = gradients(found.model, found.objective(given)[0])
    expected = gradients(plain, cross_entropy(plain(given.x), given.y))
    for name, gradient in got.items():
        if name.startswith(("fc", "stage2")):
            assert_equal(gradient, expected[name])
        else:  # but for what a norm takes away
            assert not torch.allclose(gradient, expected[name], rtol=1e-3) or name == "stage1.0.bias"


def test_no_term_grows_with_the_batch() -> None:
    found, given = method("byot", network(), byot_alpha=0.5, byot_lambda=1.0), batch()
    twice = replace(given, x=torch.cat([given.x, given.x]), y=torch.cat([given.y, given.y]), index=torch.arange(12))
    (one, log), (other, other_log) = found.objective(given), found.objective(twice)
    assert_equal(one, other)
    assert_equal(log["head_distance_1"], other_log["head_distance_1"])


def test_its_control_is_the_heads_alone() -> None:
    """Without any distillation: the task losses of all classifiers."""
    control = METHODS["byot"].controls["heads"]
    assert control.settings == {"byot_alpha": 0.0, "byot_lambda": 0.0}
    config = RunConfig(method="byot", dataset="digits")
    assert (config.byot_alpha, config.byot_lambda, config.byot_temperature) == (0.3, 0.03, 3.0)
    assert config.control == ""
    assert config.altered(**control.settings).control == "heads"

    found = method("byot", network(), byot_alpha=0.0, byot_lambda=0.0)
    other: Any = copy.deepcopy(found)
    given = batch()
    first, _, logits = other.model.features(given.x)
    expected = cross_entropy(logits, given.y) + cross_entropy(other.heads_of_stages[0](first)[0], given.y)
    loss, _ = found.objective(given)
    assert_equal(loss, expected)
    assert_equal(gradients(found, loss), gradients(other, expected))


def test_the_heads_are_trained_and_not_evaluated() -> None:
    run = trainer("byot")
    found = run.method
    assert isinstance(found, BYOT)
    optimised = {id(p) for group in run.optimizer.param_groups for p in group["params"]}
    heads = dict(found.heads_of_stages.named_parameters())
    assert len(heads) == 5  # of a convolution, its norm and a classifier
    assert optimised == {id(p) for p in (*heads.values(), *run.model.parameters())}
    before = copy.deepcopy(heads)
    steps(run, [0])
    for name, parameter in heads.items():
        assert not torch.equal(parameter, before[name]), name

    x = run.network.normalise(run.train_set[:4])
    test = run.evaluation_sets["test"]
    logits, measured = evaluated(run.model, x), run.task.evaluate(run.network, test)
    with torch.no_grad():
        for parameter in heads.values():
            parameter.fill_(float("nan"))
    assert torch.equal(evaluated(run.model, x), logits)
    assert run.task.evaluate(run.network, test) == measured
    assert set(run.state()["heads"]) > {f"heads_of_stages.{name}" for name in heads}
    assert not any("head" in name for name in run.state()["model"])


def test_the_heads_of_a_checkpoint_go_on() -> None:
    run, other = trainer("byot"), trainer("byot")
    steps(run, [0])
    other.restore(copy.deepcopy(run.state()))
    for one, another in zip(steps(run, [1]), steps(other, [1]), strict=True):
        assert torch.equal(one[3], another[3])


def test_a_head_brings_any_stage_to_the_size_of_the_last_one() -> None:
    """More pixels and fewer channels, as is usual; as many; more channels; tokens; no pixels at all."""
    last = torch.randn(2, 6, 2, 2)
    for shape, convolutions in (((4, 16, 16), 3), ((4, 2, 2), 1), ((6, 4, 4), 1), ((64, 8, 8), 2), ((64, 2, 2), 1)):
        head = Head(torch.randn(2, *shape), last, CLASSES)
        logits, matched = head(torch.randn(2, *shape))
        assert (logits.shape, matched.shape) == ((2, CLASSES), (2, 6)), shape
        assert sum(isinstance(module, nn.Conv2d) for module in head.modules()) == convolutions
    for stage in (torch.randn(2, 9, 4), torch.randn(2, 4)):
        logits, matched = Head(stage, last, CLASSES)(stage)
        assert (logits.shape, matched.shape) == ((2, CLASSES), (2, 6))


def test_the_cost_of_the_heads_is_counted() -> None:
    """One convolution and one classifier on the first stage, against two convolutions and one classifier, at 32 pixels."""
    config = models.complete(RunConfig(method="byot", model="small_methods:SmallNet", dataset="digits"))
    network_ = 9 * 3 * 4 * 32**2 + 9 * 4 * 6 * 16**2 + 6 * 10
    head = 9 * 4 * 6 * 16**2 + 6 * 10
    assert config.byot_share == pytest.approx(head / network_, abs=1e-3)
    assert METHODS["byot"].passes(config) == pytest.approx(3 * (1 + head / network_), abs=3e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": ("layer9", "layer3")}, "resnet20 has no module 'layer9'"),
        ({"model": "squeezenet1_1"}, "squeezenet1_1 cannot be trained on images of 8×8 pixels"),
    ],
)
def test_what_the_model_refuses_is_said_in_words(settings: dict[str, Any], message: str, tmp_path: Any) -> None:
    values = {"method": "byot", "dataset": "digits", "epochs": 1, "train_size": 40, "val_fraction": 0, "device": "cpu"}
    with pytest.raises(icpctl.UserError, match=message):
        icpctl.train(RunConfig(**(values | settings)), tmp_path)


def test_features_of_a_transformer_have_their_channels_last() -> None:
    features = torch.arange(2 * 4 * 4 * 6.0).view(2, 4, 4, 6)
    assert torch.equal(pooled(features), features.mean(dim=(1, 2)))
    assert torch.equal(pooled(features.permute(0, 3, 1, 2)), features.mean(dim=(1, 2)))
    model = torchvision.models.swin_t(weights=None, num_classes=3)
    heads = make_heads(model, ["features.1", "features.7"], torch.zeros(2, 3, 32, 32), 3)
    assert [tuple(output.shape) for output in heads[0](torch.zeros(2, 8, 8, 96))] == [(2, 3), (2, 768)]


def test_one_stage_is_refused(tmp_path: Path) -> None:
    config = RunConfig(dataset="digits", method="byot", layers=("layer3",), epochs=1)
    with pytest.raises(UserError, match=r"needs 2 stages or more, and --layers names layer3 alone\. Name another"):
        icpctl.train(config, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_model_without_stages_is_refused_before_its_heads_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code = "from torch import nn\n\ndef make(n):\n    return nn.Sequential(nn.Flatten(), nn.Linear(192, n))\n"
    (tmp_path / "flat_for_byot.py").write_text(code)
    config = RunConfig(model="flat_for_byot:make", dataset="digits", method="byot", epochs=1)
    assert models.complete(config).byot_share is None
    with pytest.raises(UserError, match="There are no stages of flat_for_byot:make to tap"):
        icpctl.train(config, tmp_path / "results")
