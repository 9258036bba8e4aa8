"""The distillation against its definition, computed naively in float64."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import icpctl
from icpctl.methods.icp.distillation import PASS_ORDERS, feature_shift_errors
from icpctl.methods.taps import tap
from icpctl.models import CifarResNet

LAYERS = ["layer1", "layer2", "layer3"]


def small_resnet(dtype: torch.dtype = torch.float64) -> CifarResNet:
    torch.manual_seed(0)
    model = CifarResNet(8, 10)
    for _ in range(3):  # running statistics away from their initial values
        model(torch.randn(16, 3, 16, 16))
    return model.to(dtype)


def batch(dtype: torch.dtype = torch.float64, size: int = 8, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, 3, 16, 16, generator=generator, dtype=torch.float64)
    return x.to(dtype), torch.randint(10, (size,), generator=generator)


def stages(model: CifarResNet, x: Tensor) -> tuple[list[Tensor], Tensor]:
    """The forward pass written out, with its features."""
    h = F.relu(model.bn1(model.conv1(x)))
    features = [h := model.layer1(h), h := model.layer2(h), h := model.layer3(h)]
    return features, model.fc(h.mean(dim=(2, 3)))


def naive_step(
    model: CifarResNet, x: Tensor, y: Tensor, name: str, a: float, lr: float, steps: int, extra: bool, order: str
) -> dict[str, Tensor]:
    """A step straight from the formulas, operation by operation; leaves its gradients in `.grad`, and gives the log."""
    losses: list[tuple[list[Tensor], Tensor]] = []

    def student() -> None:
        model.train()
        features, logits = stages(model, x)
        losses.append((features, F.cross_entropy(logits, y)))

    if order == "student-first":
        student()
    model.eval()
    added = F.cross_entropy(stages(model, x)[1], y)
    if extra:
        added.backward()
    x_t = x.clone()
    m1, m2, v = torch.zeros_like(x), torch.zeros_like(x), torch.zeros_like(x)
    for t in range(1, steps + 1):
        z = x_t.clone().requires_grad_()
        (g,) = torch.autograd.grad(F.cross_entropy(stages(model, z)[1], y), z)
        m1, m2, v = 0.9 * m1 + 0.1 * g, 0.9999 * m2 + 0.0001 * g, 0.999 * v + 0.001 * g**2
        scale = (v / (1 - 0.999**t)).sqrt() + 1e-8
        first = m1 / (1 - 0.9**t)
        u = {"sgd": g, "adam": first / scale, "ademamix": (first + 5 * m2) / scale}[name]
        x_t = x_t - lr * u
    log = {"x_icp": x_t, "icp_loss_before": added.detach()}
    log["icp_loss_after"] = F.cross_entropy(stages(model, x_t)[1], y).detach()
    model.train()
    targets = [f.detach() for f in stages(model, x_t)[0]]
    if order == "student-last":
        student()
    features, log["task_loss"] = losses[0]
    weights = [math.cos(i / 2 * math.pi / 4) for i in range(3)]
    terms = [w * ((f - t) ** 2).mean() for w, f, t in zip(weights, features, targets, strict=True)]
    distance = torch.stack(terms).sum()
    total = a * log["task_loss"] + (1 - a) * distance
    total.backward()
    log |= {"feature_loss": distance, "loss": total + added if extra else total}
    log["delta_linf"] = (x_t - x).abs().max()
    log["delta_l2"] = (x_t - x).flatten(1).norm(dim=1).mean()
    for i, (feature, target) in enumerate(zip(features, targets, strict=True), start=1):
        log[f"feature_shift_{i}"] = (feature - target).norm() / feature.norm()
    return log


@settings(deadline=None, max_examples=20)
@given(
    st.sampled_from(["sgd", "adam", "ademamix"]),
    st.sampled_from([1.0, 0.6, 0.0]),
    st.integers(1, 4),
    st.booleans(),
    st.sampled_from(PASS_ORDERS),
    st.integers(0, 3),
)
def test_a_step_equals_the_naive_one(name: str, a: float, steps: int, extra: bool, order: str, seed: int) -> None:
    """Log, gradients, and the buffers that the step leaves."""
    ours, theirs = small_resnet(), small_resnet()
    x, y = batch(seed=seed)
    lr = 0.5 if name == "sgd" else 2e-3
    distiller = icpctl.SelfDistiller(ours, LAYERS, name, steps, lr, extra_task_grad=extra, pass_order=order)
    loss, log = distiller(x, y, task_weight=a, icp_losses=True)
    loss.backward()
    expected = naive_step(theirs, x, y, name, a, lr, steps, extra, order)

    torch.testing.assert_close({"loss": loss, **log}, expected | {"output": log["output"]}, rtol=1e-8, atol=1e-12)
    for (key, parameter), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-7, atol=1e-12, msg=key)
    torch.testing.assert_close(dict(ours.named_buffers()), dict(theirs.named_buffers()), rtol=1e-12, atol=0)
    assert log["icp_loss_after"] < log["icp_loss_before"]


def test_the_orders_differ() -> None:
    x, y = batch()
    models = small_resnet(), small_resnet()
    logs = [
        icpctl.SelfDistiller(model, LAYERS, "adam", pass_order=order)(x, y, 0.5)[1]
        for model, order in zip(models, PASS_ORDERS, strict=True)
    ]
    assert not torch.allclose(logs[0]["x_icp"], logs[1]["x_icp"], atol=1e-6)
    assert not torch.allclose(models[0].bn1.running_mean, models[1].bn1.running_mean, rtol=1e-6)  # type: ignore[arg-type]


class Noisy(nn.Module):
    """Dropout in train mode, and a generator that eval mode leaves alone."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.dropout, self.head = nn.Linear(6, 64), nn.Dropout(0.5), nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.dropout(self.stem(x)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("order", PASS_ORDERS)
@pytest.mark.parametrize("direction", ["descend", "random"])
def test_both_passes_draw_the_same_and_the_generator_goes_on_as_after_one(order: str, direction: str) -> None:
    torch.manual_seed(0)
    model = Noisy()
    x, y = torch.randn(4, 6), torch.randint(3, (4,))
    masks: list[Tensor] = []
    model.dropout.register_forward_hook(lambda *call: masks.append(call[2] == 0) if model.training else None)
    distiller = icpctl.SelfDistiller(model, ["dropout"], "adam", 2, 1e-6, direction, pass_order=order)
    torch.manual_seed(5)
    distiller(x, y, 0.5)
    now = torch.get_rng_state()
    assert len(masks) == 2
    assert torch.equal(masks[0], masks[1])
    torch.manual_seed(5)
    if order == "student-first":
        model(x)
    if direction == "random":
        torch.randn_like(x)
    if order == "student-last":
        model(x)
    assert torch.equal(torch.get_rng_state(), now)


class FrozenNorm(nn.Module):
    """Its norm stays in eval mode, as is usual where a trained backbone is tuned."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))
        self.net[1].eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("order", PASS_ORDERS)
@pytest.mark.parametrize("extra", [False, True])
def test_a_norm_in_eval_mode_stays_so(order: str, extra: bool) -> None:
    torch.manual_seed(0)
    model = FrozenNorm()
    x, y = torch.randn(8, 6), torch.randint(3, (8,))
    before = copy.deepcopy(model.net[1].state_dict())
    distiller = icpctl.SelfDistiller(model, ["net.1", "net.3"], "adam", 2, extra_task_grad=extra, pass_order=order)
    loss, _ = distiller(x, y, 0.5)
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert not model.net[1].training
    assert model.net[2].training
    torch.testing.assert_close(model.net[1].state_dict(), before, rtol=0, atol=0)


def test_no_gradient_goes_into_the_teacher() -> None:
    student = torch.randn(2, 3, requires_grad=True)
    teacher = torch.randn(2, 3, requires_grad=True)
    icpctl.feature_loss([student], [teacher], [1.0]).backward()
    assert teacher.grad is None
    assert torch.allclose(student.grad, 2 * (student - teacher).detach() / 6)  # type: ignore[arg-type]


def test_teacher_statistics_are_switchable() -> None:
    x, y = batch()
    tracked = {}
    for both in (True, False):
        model = small_resnet()
        icpctl.SelfDistiller(model, LAYERS, "adam", teacher_statistics=both)(x, y, task_weight=0.5)
        tracked[both] = (
            model.state_dict()["bn1.num_batches_tracked"].clone(),
            model.state_dict()["bn1.running_mean"].clone(),
        )
    plain = small_resnet()
    plain(x)
    assert int(tracked[True][0]) == 5
    assert int(tracked[False][0]) == 4
    assert torch.equal(tracked[False][1], plain.bn1.running_mean)  # type: ignore[arg-type]
    assert not torch.equal(tracked[True][1], tracked[False][1])


@given(k=st.integers(0, 60), extra=st.integers(1, 200), e=st.integers(0, 300))
def test_task_weight_follows_the_quarter_cosine(k: int, extra: int, e: int) -> None:
    epochs = k + extra
    a = icpctl.task_weight(e, k, epochs)
    if e <= k:
        assert a == 1.0
    elif e <= epochs:
        assert a == pytest.approx(math.sin(math.pi / 2 * (epochs - e) / extra), abs=1e-12)  # the same, told otherwise
        assert 0 <= a < 1


def test_task_weight_of_the_paper() -> None:
    assert icpctl.task_weight(25) == 1.0
    assert icpctl.task_weight(50) == pytest.approx(math.cos(math.pi / 6))
    assert icpctl.task_weight(75) == pytest.approx(0.5)
    assert icpctl.task_weight(100) == pytest.approx(0.0)
    with pytest.raises(ValueError, match="warmup_epochs"):
        icpctl.task_weight(0, 10, 10)


@given(st.integers(1, 12))
def test_layer_weights(n: int) -> None:
    cosine = icpctl.layer_weights(n)
    assert cosine[0] == 1.0
    assert cosine == sorted(cosine, reverse=True)
    assert n == 1 or cosine[-1] == pytest.approx(math.sqrt(0.5))
    assert icpctl.layer_weights(n, "cosine-inverse") == cosine[::-1]
    assert icpctl.layer_weights(n, "uniform") == [1.0] * n


def test_three_layer_weights_are_those_of_the_formula() -> None:
    assert icpctl.layer_weights(3) == pytest.approx([1.0, math.cos(math.pi / 8), math.cos(math.pi / 4)])
    with pytest.raises(ValueError, match="kind"):
        icpctl.layer_weights(3, "linear")


def test_features_of_unequal_number_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        icpctl.feature_loss([torch.ones(1)], [], [1.0])


def test_taps_are_in_the_order_asked_for_and_leave_nothing_behind() -> None:
    model = small_resnet()
    x, _ = batch()
    with tap(model, ["layer3", "layer1"]) as features:
        model(x)
    assert [feature.shape[1] for feature in features] == [64, 16]
    assert not any(module._forward_hooks for module in model.modules())
    with pytest.raises(RuntimeError, match="layer2"), tap(model, ["layer2"]):
        pass
    assert not any(module._forward_hooks for module in model.modules())


def test_a_layer_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match="'layer9'"):
        icpctl.SelfDistiller(small_resnet(), ["layer1", "layer9"])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"model": len}, "model is of type builtin_function_or_method, but must be a torch.nn.Module"),
        ({"layers": []}, r"layers is \[\], but must be a list of module paths, one or more"),
        ({"layers": None}, "layers is None"),
        ({"layers": [3]}, r"layers is \[3\]"),
        ({"lr": -1}, "lr is -1, but must be a number above 0"),
        ({"steps": 1.5}, "steps is 1.5, but must be a whole number"),
        ({"direction": "down"}, "direction is 'down'"),
        ({"reduction": "max"}, "reduction is 'max'"),
        ({"weights": "linear"}, "weights is 'linear', but must be one of cosine, cosine-inverse, uniform"),
        ({"pass_order": "first"}, "pass_order is 'first'"),
        ({"optimizer": "adamw"}, "optimizer is 'adamw'"),
    ],
)
def test_wrong_arguments_are_named_when_it_is_made(wrong: dict[str, object], message: str) -> None:
    arguments: dict[str, Any] = {"model": small_resnet(), "layers": LAYERS, **wrong}
    with pytest.raises(ValueError, match=f"^{message}"):
        icpctl.SelfDistiller(**arguments)


@pytest.mark.parametrize("order", PASS_ORDERS)
def test_wrong_arguments_of_a_step_are_named(order: str) -> None:
    x, y = batch()
    for extra in (False, True):
        distiller = icpctl.SelfDistiller(small_resnet(), LAYERS, steps=1, pass_order=order, extra_task_grad=extra)
        for weight in (2.0, -1.0, math.nan, "1"):
            with pytest.raises(ValueError, match=r"^task_weight is .*, but must be a number from 0 to 1"):
                distiller(x, y, weight)  # type: ignore[arg-type]
        with pytest.raises(
            ValueError, match=r"^criterion returned a tensor of the shape \(8,\), but must return a scalar"
        ):
            distiller(x, y, 0.5, nn.CrossEntropyLoss(reduction="none"))
        with pytest.raises(ValueError, match=r"^criterion returned a float"):
            distiller(x, y, 0.5, lambda output, y: 1.0)  # type: ignore[arg-type, return-value]
    with pytest.raises(ValueError, match=r"^loss_fn returned a tensor of the shape \(8, 3, 16, 16\)"):
        icpctl.perturb(x, lambda z: z**2)


def test_a_task_weight_that_is_a_tensor_is_not_looked_into() -> None:
    """Its value would have to come from the device, and a captured step has none."""
    x, y = batch()
    losses = [
        icpctl.SelfDistiller(small_resnet(), LAYERS, steps=1)(x, y, weight)[0] for weight in (0.5, torch.tensor(0.5))
    ]
    assert torch.equal(*losses)
    assert icpctl.SelfDistiller(small_resnet(), LAYERS, steps=1)(x, y, torch.tensor(2.0))[0].isfinite()


def trained_resnet() -> tuple[nn.Module, Tensor, Tensor]:
    """A ResNet-20 after some steps on digits, enlarged to 32 pixels, and a batch of 64: about the page's set-up."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None].repeat(1, 3, 1, 1) / 16
    images = F.interpolate((images - images.mean()) / images.std(), size=32, mode="bilinear")
    labels = torch.tensor(digits.target)
    torch.manual_seed(0)
    model = CifarResNet(20, 10)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for i in range(20):
        part = slice(i * 32, (i + 1) * 32)
        optimizer.zero_grad()
        F.cross_entropy(model(images[part]), labels[part]).backward()
        optimizer.step()
    return model, images[1000:1064], labels[1000:1064]


def test_feature_shift_is_exact_at_the_default_precision_and_drowns_in_bfloat16() -> None:
    """At the default settings float32 keeps the error of the shift under 1 %; bfloat16 does not."""
    model, x, y = trained_resnet()
    for name in ("adam", "ademamix"):
        x_icp = icpctl.perturb(x, lambda z: F.cross_entropy(model(z), y), name)
        errors = {}
        for enabled in (False, True):
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                found = feature_shift_errors(model, LAYERS, x[:16], x_icp[:16])  # of few, as bfloat16 is slow
            errors[enabled] = [float(error) for error in found]
        assert max(errors[False]) < 0.01
        assert max(errors[True]) > 0.05


def test_measuring_the_shift_error_leaves_the_model_alone() -> None:
    model = small_resnet(torch.float32)
    x, _ = batch(torch.float32)
    before = copy.deepcopy(model.state_dict())
    feature_shift_errors(model, LAYERS, x, x + 0.01)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.training
    assert next(model.parameters()).dtype == torch.float32


def test_a_wrong_layer_names_the_near_ones() -> None:
    model = icpctl.models.build("resnet20", num_classes=10)
    with pytest.raises(ValueError, match=r"no module 'layer4'; near it: layer3, layer2, layer1"):
        icpctl.SelfDistiller(model, layers=["layer4"])
