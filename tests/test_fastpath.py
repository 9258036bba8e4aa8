"""Fast paths give the same numbers as the plain code."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from measure import random_images
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrizations, prune
from torch.utils._pytree import tree_leaves

import icpctl
from icpctl import models
from icpctl.fastpath import CapturedSteps, fold
from icpctl.icp import eval_mode
from icpctl.models import CifarResNet
from icpctl.trainer import Trainer

FAMILIES = {"resnet20": 32, "vae": 64, "resnet18": 64, "googlenet": 64, "densenet121": 64, "mobilenet_v3_small": 64}
FAMILIES |= {"shufflenet_v2_x0_5": 64, "regnet_y_400mf": 64, "vgg11_bn": 64, "efficientnet_b0": 64, "mnasnet0_5": 64}


Model = TypeVar("Model", bound=nn.Module)


@contextmanager
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def trained(model: Model) -> Model:
    """The model with running statistics, scales and shifts as of a trained one: fresh ones fold to nothing."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            if module.running_mean is not None and module.running_var is not None:
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 2)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0, 0.3)
    return model


def outputs(function: Any, x: Tensor) -> Tensor:
    with torch.no_grad(), eval_mode():
        output = function(x)
    return torch.cat([each.flatten() for each in output]) if isinstance(output, tuple) else output


@pytest.mark.parametrize("name", FAMILIES)
def test_a_folded_network_is_the_model_in_eval_mode(name: str) -> None:
    torch.manual_seed(0)
    with float64():
        model = trained(models.build(name, 10))
        folded = fold(model)
        assert folded is not None
        x = torch.randn(2, 3, FAMILIES[name], FAMILIES[name])
        torch.testing.assert_close(outputs(folded.now(), x), outputs(model, x), rtol=1e-9, atol=1e-9)
    norms = sum(isinstance(module, _BatchNorm) for module in model.modules())
    assert len(folded.pairs) == (59 if name == "densenet121" else norms)  # where others come before the convolution
    assert not any(isinstance(folded.model.get_submodule(path), _BatchNorm) for path, _ in folded.pairs)


class Layers(nn.Sequential):
    """Some layers for images of 8 pixels, with what comes after them."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__(*layers, nn.Flatten(), nn.LazyLinear(3))
        self.eval()(torch.zeros(2, 3, 8, 8))
        trained(self.train())


class Branching(nn.Module):
    """A convolution whose output goes past its batch norm, too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv(x)
        return self.norm(out) + out  # type: ignore[no-any-return]


class Twice(nn.Module):
    """A convolution that is passed twice, with a batch norm after one of the times."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.norm(self.conv(x)))  # type: ignore[no-any-return]


class Drawing(nn.Module):
    """A model that draws a number in eval mode, too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) + torch.rand(3, 1, 1)  # type: ignore[no-any-return]


class NormAndReLU(nn.BatchNorm2d):
    """A batch norm that does more than that."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).relu()


def hooked(which: int) -> nn.Module:
    model = Layers(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    model[which].register_forward_hook(lambda module, inputs, output: 2 * output)
    return model


class Deciding(nn.Module):
    """A model whose way depends on the values of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.conv(x))
        return out if out.mean() > 0 else -out


UNFOLDABLE = {
    "no batch norm": lambda: Layers(nn.Conv2d(3, 4, 3), nn.ReLU()),
    "batch norm first": lambda: Layers(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)),
    "something between": lambda: Layers(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)),
    "no running statistics": lambda: Layers(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)),
    "a parametrised weight": lambda: Layers(parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4)),
    "groups of a transposed one": lambda: Layers(nn.ConvTranspose2d(3, 6, 3, groups=3), nn.BatchNorm2d(6)),
    "a parametrised batch norm": lambda: Layers(nn.Conv2d(3, 4, 3), parametrizations.weight_norm(nn.BatchNorm2d(4))),
    "a pruned weight": lambda: Layers(prune.random_unstructured(nn.Conv2d(3, 4, 3), "weight", 0.5), nn.BatchNorm2d(4)),
    "a batch norm that does more": lambda: Layers(nn.Conv2d(3, 4, 3), NormAndReLU(4)),
    "a hook on the convolution": lambda: hooked(0),
    "a hook on the batch norm": lambda: hooked(1),
    "a random number": Drawing,
    "another user": Branching,
    "another use": Twice,
    "a way that depends on values": Deciding,
}


@pytest.mark.parametrize("case", UNFOLDABLE)
def test_what_cannot_be_folded_is_left(case: str) -> None:
    assert fold(UNFOLDABLE[case]()) is None


@pytest.mark.parametrize(
    "layers",
    [
        (nn.Conv2d(3, 4, 3, bias=True), nn.BatchNorm2d(4)),
        (nn.Conv2d(3, 6, 3, groups=3, bias=False), nn.BatchNorm2d(6, affine=False, eps=0.1)),
        (nn.ConvTranspose2d(3, 5, 3, stride=2), nn.BatchNorm2d(5)),
    ],
    ids=["bias", "groups, no affine", "transposed"],
)
def test_every_kind_of_convolution_and_batch_norm(layers: tuple[nn.Module, ...]) -> None:
    torch.manual_seed(0)
    model = Layers(*layers).double()
    folded = fold(model)
    assert folded is not None
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(outputs(folded.now(), x), outputs(model, x), rtol=1e-9, atol=1e-9)


class WithAuxiliary(Layers):
    """A branch that is used in training alone, and a weight that two modules share."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1))
        self.auxiliary = nn.Linear(3, 3)
        self[3].weight = self[2].weight

    def forward(self, x: Tensor) -> Tensor:
        for name, layer in self.named_children():
            x = x if name == "auxiliary" else layer(x)
        return self.auxiliary(x) if self.training else x


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_unused_and_shared_parameters_and_other_types(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = WithAuxiliary()
    folded = fold(model)
    assert folded is not None
    model.to(dtype)  # after it was folded
    x = torch.randn(2, 3, 8, 8, dtype=dtype)
    tolerance = 1e-9 if dtype is torch.float64 else 0.1
    torch.testing.assert_close(outputs(folded.now(), x), outputs(model, x), rtol=tolerance, atol=tolerance)


def test_the_model_stays_as_it_is() -> None:
    torch.manual_seed(0)
    model = trained(CifarResNet(20, 10))
    model.layer1.eval()
    model.conv1.weight.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    trains = [parameter.requires_grad for parameter in model.parameters()]
    folded = fold(model)
    assert folded is not None
    outputs(folded.now(), torch.randn(2, 3, 32, 32))
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == trains
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert model.conv1.bias is None


def test_it_is_folded_anew_for_the_weights_of_now() -> None:
    torch.manual_seed(0)
    model = trained(CifarResNet(20, 10))
    folded = fold(model)
    assert folded is not None
    x = torch.randn(2, 3, 32, 32)
    network = folded.now()
    before = outputs(network, x)
    with torch.no_grad():
        model.get_buffer("layer2.0.bn1.running_var").mul_(2)
        model.get_parameter("layer3.0.conv1.weight").mul_(1.5)
    torch.testing.assert_close(outputs(folded.now(), x), outputs(model, x))
    assert not torch.allclose(outputs(folded.now(), x), before)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-2)])
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "ademamix"])
def test_distillation_with_and_without_folding_is_the_same(
    optimizer: str, dtype: torch.dtype, tolerance: float
) -> None:
    """‖a − b‖ / ‖b‖ of x_T − x and of the gradients; Adam magnifies the rounding of entries whose gradient is tiny."""
    results = []
    for folded in (True, False):
        torch.manual_seed(0)
        model = trained(CifarResNet(20, 10)).to(dtype)
        x, y = torch.randn(8, 3, 32, 32, dtype=dtype), torch.arange(8)
        distiller = icpctl.SelfDistiller(
            model, ["layer1", "layer2", "layer3"], optimizer, steps=3, lr=2e-3, fold_batch_norm=folded
        )
        loss, log = distiller(x, y, 0.5, icp_losses=True)
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        results.append([log["x_icp"] - x, log["icp_loss_before"], log["icp_loss_after"], loss.detach(), gradient])
    for fast, plain in zip(*results, strict=True):
        assert (fast - plain).norm() <= tolerance * plain.norm()
        assert not torch.equal(fast, plain) or plain.dim() == 0


@pytest.mark.parametrize("model", ["resnet20", "vae"])
def test_a_run_with_and_without_fast_paths_is_the_same(model: str, tmp_path: Path) -> None:
    metrics = []
    for fast in (True, False):
        config = icpctl.RunConfig(
            model=model,
            dataset="digits",
            optimizer="adam",
            epochs=2,
            warmup_epochs=0,
            steps=2,
            train_size=200,
            fast=fast,
        )
        run = icpctl.train(config, tmp_path / str(fast))
        rows = run.metrics.set_index(["epoch", "split", "metric"])["value"]
        metrics.append(
            rows[~rows.index.get_level_values("metric").isin(["seconds", "images_per_second", "peak_memory"])]
        )
    fast_run, plain_run = metrics
    assert fast_run.index.equals(plain_run.index)
    learned = ["loss", "task_loss", "feature_loss", "icp_loss_before", "icp_loss_after", "delta_l2", "feature_shift_1"]
    for name in learned:
        fast_values, plain_values = (rows.xs(name, level="metric") for rows in metrics)
        assert fast_values.to_numpy() == pytest.approx(plain_values.to_numpy(), rel=1e-2), name
    # Rounding differs, so what is equal to the last bit everywhere is the same code.
    assert not fast_run.equals(plain_run)


class FakeGraphs:
    """Stands in for `cuda_graph` on a CPU: captures without effect, and replays into the same places in memory."""

    def __init__(self, model: nn.Module, wrong_by: float = 1.0) -> None:
        self.model, self.wrong_by = model, wrong_by
        self.captured = self.replayed = 0

    def __call__(self, function: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        self.captured += 1
        buffers = [buffer.clone() for buffer in self.model.buffers()]
        places = function()
        for buffer, value in zip(self.model.buffers(), buffers, strict=True):
            buffer.copy_(value)
        gradients = [p.grad for p in self.model.parameters()]
        for tensor in [*tree_leaves(places), *gradients]:
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                tensor.fill_(torch.nan)  # nothing is there before the first replay

        def replay() -> None:
            self.replayed += 1
            for place, value in zip(tree_leaves(places), tree_leaves(function()), strict=True):
                place.copy_(value)
            for gradient, parameter in zip(gradients, self.model.parameters(), strict=True):
                if gradient is not None and parameter.grad is not None:
                    gradient.copy_(parameter.grad * self.wrong_by)

        return places, replay


def captured_trainer(said: list[str], wrong_by: float = 1.0, **settings: Any) -> tuple[Trainer, FakeGraphs]:
    given = {"optimizer": "adam", "steps": 2, "epochs": 4, "warmup_epochs": 1, "val_fraction": 0, "batch_size": 4}
    config = icpctl.RunConfig.model_validate({**given, "augmentation": "none", **settings})
    trainer = Trainer(config, random_images(4 * 12, 12, 5), torch.device("cpu"))
    trainer.model.train()
    graphs = FakeGraphs(trainer.model, wrong_by)
    trainer.captured = CapturedSteps(trainer.model, graphs, said.append)
    return trainer, graphs


def train(trainer: Trainer, epochs: int = 3) -> list[tuple[Tensor, dict[str, Tensor]]]:
    return [
        trainer.step(epoch, batch, *part)
        for epoch in range(epochs)
        for batch, part in enumerate(trainer.epoch_batches(epoch))
    ]


@pytest.mark.parametrize("recipe", ["paper", "strong"])
def test_captured_steps_are_the_steps(recipe: str) -> None:
    said: list[str] = []
    trainer, graphs = captured_trainer(said, recipe=recipe)
    results = train(trainer)
    plain, _ = captured_trainer(said, recipe=recipe)
    plain.captured = None
    expected = train(plain)
    assert said == []
    assert graphs.captured == 3  # plain steps, steps of the method, those that measure the loss afterwards
    assert graphs.replayed == 36 - 3 * CapturedSteps.WARM_UP  # the last one to warm up is computed both ways
    for (loss, log), (expected_loss, expected_log) in zip(results, expected, strict=True):
        torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=1e-6)
        assert log.keys() == expected_log.keys()
        torch.testing.assert_close(log["record"], expected_log["record"], rtol=1e-3, atol=1e-4)
    expected_state = plain.model.state_dict()
    for name, value in trainer.model.state_dict().items():
        torch.testing.assert_close(value, expected_state[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("how", ["wrong", "not a number", "refused", "random"])
def test_steps_that_cannot_be_captured_stay_as_they_are(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    trainer, _ = captured_trainer(said, wrong_by={"wrong": 1.1, "not a number": float("nan")}.get(how, 1.0))
    assert trainer.captured is not None
    if how == "refused":

        def refuse(function: Callable[[], Any]) -> Any:
            for _ in range(2):  # it may have changed the buffers by then
                function()
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore lines")

        monkeypatch.setattr(trainer.captured, "_capture", refuse)
    if how == "random":
        offsets = iter(range(1000))
        monkeypatch.setattr("icpctl.fastpath._random_offset", lambda device: next(offsets))
    results = train(trainer)
    plain, _ = captured_trainer([])
    plain.captured = None
    for (loss, _), (expected, _) in zip(results, train(plain), strict=True):
        torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-7)
    (message,) = said
    reasons = {"wrong": "differs by 1.0e-01", "not a number": "differs by inf", "random": "random numbers"}
    assert (
        reasons.get(how, "cannot be captured (CUDA error: operation not permitted when stream is capturing)") in message
    )


def test_only_one_gpu_without_a_carried_state_captures_steps() -> None:
    config = icpctl.RunConfig(val_fraction=0, batch_size=4)
    assert Trainer(config, random_images(8, 12, 5), torch.device("cpu")).captured is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_captured_steps_on_a_gpu_are_the_steps(tmp_path: Path) -> None:
    said: list[str] = []
    results = []
    for fast in (True, False):
        given = {"optimizer": "adam", "steps": 2, "epochs": 4, "warmup_epochs": 1, "val_fraction": 0, "batch_size": 4}
        config = icpctl.RunConfig.model_validate({**given, "augmentation": "none", "fast": fast})
        trainer = Trainer(config, random_images(4 * 12, 12, 5), torch.device("cuda"), say=said.append)
        trainer.model.train()
        results.append([float(loss) for loss, _ in train(trainer)])
    assert said == []
    assert results[0] == pytest.approx(results[1], rel=1e-2)
