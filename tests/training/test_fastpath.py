"""Fast paths give the same numbers as the plain code."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from doubled import float64
from measure import random_images
from torch import Tensor
from torch.utils._pytree import tree_leaves

import icpctl
from icpctl.methods.icp import distillation
from icpctl.methods.icp.distillation import PASS_ORDERS
from icpctl.methods.icp.perturbation import perturb
from icpctl.models.network import keeps_gradients, set_precision
from icpctl.training.graphs import CapturedSteps, CudaGraphs, _largest_difference
from icpctl.training.meter import Figures
from icpctl.training.trainer import Trainer


@pytest.mark.parametrize(("model", "dtype"), [("resnet20", "float64"), ("vae", "float64"), ("resnet20", "float32")])
def test_a_run_with_and_without_fast_paths_is_the_same(
    model: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if dtype == "float64":
        float64(monkeypatch.setattr)
    metrics = []
    for fast in (True, False):
        config = icpctl.RunConfig(
            model=model,
            dataset="digits",
            optimizer="adam",
            epochs=2 if dtype == "float64" else 1,
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
    # In float64 what differs is below 1e-14, and 6e-8 where a metric is kept in float32: it is one training. In float32 the
    # two steps of an epoch make up to 1e-4 of the 1e-7 of rounding, which is another one on each kind of processor.
    bound = 1e-6 if dtype == "float64" else 1e-3
    for name in learned:
        fast_values, plain_values = (rows.xs(name, level="metric") for rows in metrics)
        assert fast_values.to_numpy() == pytest.approx(plain_values.to_numpy(), rel=bound), name
    # Rounding differs, so what is equal to the last bit everywhere is the same code.
    assert not fast_run.equals(plain_run)


BROKEN = {
    "stale inputs": "the outputs",
    "empty": "",
    "a buffer left out": "running_mean",
    "a wrong gradient": "the gradient of",
    "no feature loss": "feature_loss",
    "another perturbation": "feature_loss",
    "no gradient": "the gradient of",
    "no clipping": "the change of exp_avg_sq",
    "a stale learning rate": "the change of the weights",
    "weights left out": "the change of the weights",
    "the optimizer left out": "the change of step",
}
"""Graphs that compute another step, and in which result that is seen."""


class FakeGraphs:
    """Stands in for `CudaGraphs` on a CPU: captures without effect, and replays into the same places in memory."""

    def __init__(self, trainer: Trainer, broken: str = "") -> None:
        self.trainer, self.model, self.broken = trainer, trainer.model, broken
        self.captured = self.replayed = 0
        self.outside = True
        """Whether no replay is at work."""

    def places(self, part: str = "") -> list[Tensor]:
        """What a step changes: all of it, or one part."""
        moments = [value for state in self.trainer.optimizer.state.values() for value in state.values()]
        parts = {
            "a buffer left out": [*self.model.buffers()],
            "weights left out": [parameter.data for parameter in self.model.parameters()],
            "the optimizer left out": moments,
        }
        return parts.get(part, []) if part else [place for each in parts.values() for place in each]

    def __call__(self, function: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        self.captured += 1
        with self.undone(self.places()):
            rates = [torch.as_tensor(group["lr"]).clone() for group in self.trainer.optimizer.param_groups]
            outputs = function()
            gradients = [p.grad for p in self.model.parameters()]
            first = [leaf.clone() for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]
        places = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]
        for tensor in [*places, *gradients]:
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                tensor.fill_(torch.nan)  # nothing is there before the first replay
        if self.broken == "no gradient":
            next(self.model.parameters()).grad = None

        def replay() -> None:
            self.replayed += 1
            if self.broken == "empty":
                return
            with ExitStack() as faults:
                faults.enter_context(self.undone(self.places(self.broken or "nothing")))
                if self.broken == "no feature loss":
                    faults.enter_context(patch.object(distillation, "_weighted", nothing))
                if self.broken == "another perturbation":
                    faults.enter_context(patch.object(distillation, "perturb", halfway))
                if self.broken == "no clipping":
                    faults.enter_context(patch("torch.nn.utils.clip_grad_norm_"))
                if self.broken == "a stale learning rate":
                    faults.enter_context(patch.object(self.trainer, "_set_lr", lambda lr: set_lr(rates[0])))
                values = [leaf for leaf in tree_leaves(function()) if isinstance(leaf, Tensor)]
            for place, value in zip(places, first if self.broken == "stale inputs" else values, strict=True):
                place.copy_(value)
            for gradient, parameter in zip(gradients, self.model.parameters(), strict=True):
                if gradient is not None and parameter.grad is not None:
                    gradient.copy_(parameter.grad * (1.1 if self.broken == "a wrong gradient" else 1.0))

        set_lr = self.trainer._set_lr
        return outputs, replay

    @contextmanager
    def undone(self, places: list[Tensor]) -> Iterator[None]:
        """What a step does to these is undone."""
        before = [place.clone() for place in places]
        yield
        for place, value in zip(places, before, strict=True):
            place.copy_(value)


def halfway(x: Tensor, *given: Any, **more: Any) -> Tensor:
    """Half of the perturbation."""
    return torch.lerp(x, perturb(x, *given, **more), 0.5)


weighted = distillation._weighted


def nothing(errors: Any, weights: Any) -> Tensor:
    return 0 * weighted(errors, weights)


def captured_trainer(said: list[str], broken: str = "", **settings: Any) -> tuple[Trainer, FakeGraphs]:
    given = {"optimizer": "adam", "steps": 2, "epochs": 4, "warmup_epochs": 1, "val_fraction": 0, "batch_size": 4}
    config = icpctl.RunConfig.model_validate({**given, "augmentation": "none", **settings})
    trainer = Trainer(config, random_images(4 * 12, config.image_size or 12, 5), torch.device("cpu"))
    trainer.model.train()
    graphs = FakeGraphs(trainer, broken)
    trainer.captured = CapturedSteps(trainer.model, trainer.optimizer, graphs, said.append)
    return trainer, graphs


def train(trainer: Trainer, epochs: int = 3) -> list[Figures]:
    return [
        trainer.step(epoch, batch, part)
        for epoch in range(epochs)
        for batch, part in enumerate(trainer.epoch_batches(epoch))
    ]


CAPTURED: list[dict[str, Any]] = [
    {"recipe": "paper"},
    {"recipe": "strong"},
    {"method": "label-smoothing"},
    {"method": "cutmix", "optimizer": "none"},
    {"model": "vae", "image_size": 16, "optimizer": "ademamix"},
]


@pytest.mark.parametrize("settings", CAPTURED, ids=str)
def test_captured_steps_are_the_steps(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("icpctl.methods.icp.method.LOSSES_EVERY", 3)
    said: list[str] = []
    trainer, graphs = captured_trainer(said, **settings)
    results = train(trainer)
    plain, _ = captured_trainer(said, **settings)
    plain.captured = None
    set_lr = plain._set_lr
    monkeypatch.setattr(plain, "_set_lr", lambda lr: set_lr(torch.tensor(lr).item()))  # a graph reads it in float32
    expected = train(plain)
    assert said == []
    # Plain steps, steps of the method, those that measure the loss afterwards; never the first one of an epoch with the method.
    kinds, firsts = (3, 2) if trainer.config.method == "icp" else (1, 0)
    assert graphs.captured == kinds
    # One of each kind is captured, and the next one computed both ways.
    assert graphs.replayed == 36 - firsts - kinds * (CapturedSteps.WARM_UP + 1)
    for found, wanted in zip(results, expected, strict=True):
        torch.testing.assert_close(found.loss, wanted.loss, rtol=1e-5, atol=1e-6)
        assert found.names == wanted.names
        torch.testing.assert_close(found.record, wanted.record, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(found.values, wanted.values, rtol=1e-2, atol=1e-4)
    assert [type(group["lr"]) for group in trainer.optimizer.param_groups] == [float]
    for mine, other in zip(trainer.optimizer.state.values(), plain.optimizer.state.values(), strict=True):
        for name, value in mine.items():
            assert (value - other[name]).norm() <= 1e-2 * other[name].norm(), name
    expected_state = plain.model.state_dict()
    for name, value in trainer.model.state_dict().items():
        torch.testing.assert_close(value, expected_state[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("how", [*BROKEN, "refused", "no memory", "random"])
def test_steps_that_cannot_be_captured_stay_as_they_are(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    # From the first epoch with the method on, where the task weight is 1 and the feature loss counts for nothing.
    trainer, _ = captured_trainer(said, broken=how, warmup_epochs=0, clip_grad_norm=1e-3)
    assert trainer.captured is not None
    if how == "refused":

        def refuse(function: Callable[[], Any]) -> Any:
            for _ in range(2):  # it may have changed the buffers by then
                function()
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore lines")

        monkeypatch.setattr(trainer.captured, "_capture", refuse)
    if how == "no memory":  # the graphs' own, beside the images: the run needs none of it

        def too_large(function: Callable[[], Any]) -> Any:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

        monkeypatch.setattr(trainer.captured, "_capture", too_large)
    if how == "random":
        offsets = iter(range(1000))
        monkeypatch.setattr("icpctl.training.graphs._random_offset", lambda device: next(offsets))
    results = train(trainer, epochs=1)
    plain, _ = captured_trainer([], warmup_epochs=0, clip_grad_norm=1e-3)
    plain.captured = None
    for found, expected in zip(results, train(plain, epochs=1), strict=True):
        torch.testing.assert_close(found.loss, expected.loss, rtol=1e-6, atol=1e-7)
    (message,) = said
    reasons = {
        "random": "random numbers",
        "no memory": "cannot be captured (CUDA out of memory.",
        "refused": "cannot be captured (CUDA error: operation not permitted when stream is capturing)",
    }
    assert reasons.get(how, "a captured one differs by") in message
    assert BROKEN.get(how, "") in message
    assert not trainer.captured._graphs  # nor their memory
    assert not trainer.captured._unchecked


class Torch:
    """Stands in for torch.cuda, and notes what is asked of it."""

    def __init__(self, fails: str) -> None:
        self.fails, self.stream = fails, "main"
        self.asked: list[object] = []
        self.CUDAGraph = lambda: SimpleNamespace(reset=lambda: self.asked.append("reset"), replay="replay")
        self.generator = SimpleNamespace(
            state="capturing", clone_state=lambda: "before", graphsafe_set_state=self.draw_from
        )
        self.default_generators = [None, self.generator]
        self.pools: list[object] = []
        """That the allocator fills."""
        self._cuda_releasePool = lambda *pool: self.asked.append(("released", *pool))

    def draw_from(self, state: str) -> None:
        self.generator.state = state

    def _cuda_endAllocateToPool(self, *pool: object) -> None:  # noqa: N802
        if not self.pools:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.pools.clear()

    def current_device(self) -> int:
        return 1

    def graph_pool_handle(self) -> str:
        return "pool"

    def current_stream(self) -> str:
        return self.stream

    def set_stream(self, stream: str) -> None:
        self.stream = stream

    @contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        self.asked.append(f"on {device}")
        yield

    @contextmanager
    def graph(self, graph: object, **options: str) -> Iterator[None]:
        self.asked.append(options)
        self.stream, self.generator.state = "side", "capturing"
        self.pools.append(options["pool"])
        yield
        if self.fails == "early":  # at the end of the capture, where torch itself leaves all as it is
            raise RuntimeError("capture_end")
        self.pools.clear()
        if self.fails == "late":
            raise RuntimeError("capture_end")
        self.stream, self.generator.state = "main", "before"


@pytest.mark.parametrize("fails", ["", "early", "late"])
def test_a_graph_is_captured_on_its_device_and_leaves_it_as_it_was(fails: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = Torch(fails)
    monkeypatch.setattr("icpctl.training.graphs.torch", SimpleNamespace(cuda=cuda, _C=cuda))
    capture = CudaGraphs(torch.device("cuda:1"))
    for _ in range(2):
        if fails:
            with pytest.raises(RuntimeError, match="capture_end"):
                capture(lambda: 1)
        else:
            outputs, replay = capture(lambda: 1)
            assert outputs == 1
            assert str(replay) == "replay"
        assert (cuda.stream, cuda.generator.state, cuda.pools) == ("main", "before", [])
    how: list[object] = ["on cuda:1", {"pool": "pool", "capture_error_mode": "thread_local"}]
    after: dict[str, list[object]] = {"": [], "early": ["reset", ("released", 1, "pool")], "late": ["reset"]}
    assert cuda.asked == 2 * [*how, *after[fails]]


def test_the_run_takes_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[torch.device] = []
    monkeypatch.setattr("torch.cuda.set_device", taken.append)
    config = icpctl.RunConfig(val_fraction=0, batch_size=4)
    with pytest.raises((RuntimeError, AssertionError)):  # there is none here
        Trainer(config, random_images(8, 12, 5), torch.device("cuda:3"))
    assert taken == [torch.device("cuda:3")]


@pytest.mark.parametrize("order", PASS_ORDERS)
def test_bfloat16_trains_every_weight(order: str) -> None:
    trainer, _ = captured_trainer([], precision="bf16", pass_order=order, warmup_epochs=0)
    trainer.captured = None
    trainer.step(1, 0, next(trainer.epoch_batches(1)))
    without = [name for name, p in trainer.model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []
    assert [keeps_gradients(version) for version in ("2.9.1", "2.10.0+cu128", "2.11.0", "2.14.1+cu130")] == [
        False,
        False,
        True,
        True,
    ]


def test_the_flags_of_every_interface_of_torch_can_be_read() -> None:
    for precision in ("tf32", "bf16", "float32"):
        set_precision(precision)
        allowed = (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32)
        assert allowed == (precision == "tf32",) * 2
        assert torch.get_float32_matmul_precision() == ("high" if precision == "tf32" else "highest")
        assert torch.backends.cuda.matmul.fp32_precision == ("tf32" if precision == "tf32" else "ieee")


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
        results.append([float(step.loss) for step in train(trainer)])
    assert said == []
    assert results[0] == pytest.approx(results[1], rel=1e-2)


def test_a_gradient_that_is_rounding_alone_is_no_difference() -> None:
    """As that of a bias before batch norm is: 5e-8 in one way, and another 5e-8 where sums come in another order."""
    of_weight, of_bias = "the gradient of conv.weight", "the gradient of conv.bias"
    expected = {of_weight: torch.ones(4), of_bias: torch.tensor([5e-8])}
    name, difference = _largest_difference({of_weight: torch.ones(4), of_bias: torch.tensor([-5e-8])}, expected)
    assert (name, difference < 1e-4) == (of_bias, True)
    name, difference = _largest_difference({of_weight: torch.ones(4), of_bias: torch.tensor([0.1])}, expected)
    assert (name, difference > 10) == (of_bias, True)
    assert _largest_difference({of_weight: torch.ones(4)}, expected) == (of_bias, float("inf"))
