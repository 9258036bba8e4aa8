"""What the perturbation reaches, in other people's models and loops: all of it in eval mode, and nothing else."""

from __future__ import annotations

import copy
import dataclasses
import functools
import sys
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy, dropout
from torch.nn.utils import parametrizations, parametrize
from torch.utils.checkpoint import checkpoint

import icpctl
from icpctl.methods.evalmode import eval_mode, modules_of
from icpctl.methods.icp.distillation import PASS_ORDERS
from icpctl.methods.icp.perturbation import Adam
from icpctl.methods.taps import detached, tap


class Net(nn.Module):
    """Its block can be checkpointed; its `loss` calls modules by their methods."""

    def __init__(self, checkpointed: bool = False, reentrant: bool = False) -> None:
        super().__init__()
        self.checkpointed, self.reentrant = checkpointed, reentrant
        self.stem = nn.Linear(6, 16)
        self.block = nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Dropout(0.5))
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        h = checkpoint(self.block, h, use_reentrant=self.reentrant) if self.checkpointed else self.block(h)
        return self.head(h)  # type: ignore[no-any-return]

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        h = dropout(self.block[1].forward(self.stem(x)), 0.5, self.training)
        return cross_entropy(self.head.forward(h), y)


def net(**options: bool) -> Net:
    torch.manual_seed(0)
    return Net(**options)


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(8, 6, generator=generator), torch.arange(8) % 3


GLOBAL = net()


class Loop:
    """A user's own loop, which holds more models than its loss uses."""

    def __init__(self) -> None:
        self.model, self.other = net(), net()

    @property
    def current(self) -> Net:
        return self.model

    def loss(self, z: Tensor, y: Tensor) -> Tensor:
        return self.help(z, y)

    def help(self, z: Tensor, y: Tensor) -> Tensor:
        return self.current.loss(z, y)


def reaching() -> list[tuple[Callable[[Tensor], Tensor], nn.Module, list[nn.Module]]]:
    """Functions, the module that each reaches, and those that it does not."""
    y, model, loop, other = batch()[1], net(), Loop(), net()
    held = {"a": [net()]}

    def nested(z: Tensor) -> Tensor:
        return torch.stack([cross_entropy(part(z), y) for part in held["a"]]).sum()

    class Call:
        def __init__(self) -> None:
            self.inner = net()

        def __call__(self, z: Tensor) -> Tensor:
            return self.inner.loss(z, y)

    call = Call()
    bound = net()
    return [
        (lambda z: cross_entropy(model(z), y), model, [other]),
        (lambda z: model.loss(z, y), model, [other]),
        (lambda z: GLOBAL.loss(z, y), GLOBAL, [other]),
        (functools.partial(bound.loss, y=y), bound, [other]),
        (functools.partial(loop.loss, y=y), loop.model, [loop.other]),
        (nested, held["a"][0], [other]),
        (call, call.inner, [other]),
    ]


@pytest.mark.parametrize("case", range(7))
def test_what_a_function_reaches_is_in_eval_mode(case: int) -> None:
    function, model, others = reaching()[case]
    x, _ = batch()
    assert set(model.modules()) <= set(modules_of(function))
    assert not {module for other in others for module in other.modules()} & set(modules_of(function))
    buffers = copy.deepcopy(dict(model.named_buffers()))
    losses: list[Tensor] = []
    icpctl.perturb(x, function, "adam", 4, lr=1e-12, losses=losses)
    assert max(losses) - min(losses) < 1e-6  # no dropout
    torch.testing.assert_close(dict(model.named_buffers()), buffers, rtol=0, atol=0)
    assert all(module.training for module in model.modules())


def test_another_thread_trains_undisturbed() -> None:
    mine, other, (x, y) = net(), net(), batch()
    inside, trained = threading.Event(), threading.Event()
    wrong: list[str] = []

    def train() -> None:
        inside.wait(60)
        before = int(other.get_buffer("block.1.num_batches_tracked"))
        cross_entropy(other(x), y).backward()
        if int(other.get_buffer("block.1.num_batches_tracked")) != before + 1:
            wrong.append("statistics")
        wrong.extend(name for name, p in other.named_parameters() if p.grad is None)
        trained.set()

    def loss(z: Tensor) -> Tensor:
        value = cross_entropy(mine(z), y)
        inside.set()
        assert trained.wait(60)
        return value

    thread = threading.Thread(target=train)
    thread.start()
    icpctl.perturb(x, loss, steps=2)
    thread.join()
    assert wrong == []


def test_threads_may_perturb_one_model_at_once() -> None:
    model, (x, y) = net(), batch()
    expected = icpctl.perturb(x, lambda z: cross_entropy(model(z), y), "adam", 5)
    first_ended, second_began = threading.Event(), threading.Event()
    results: list[Tensor] = []

    def second() -> None:
        def loss(z: Tensor) -> Tensor:
            second_began.set()
            assert first_ended.wait(60)
            return cross_entropy(model(z), y)

        results.append(icpctl.perturb(x, loss, "adam", 5))

    def first_loss(z: Tensor) -> Tensor:
        if not second_began.is_set():
            thread.start()
            assert second_began.wait(60)
        return cross_entropy(model(z), y)

    thread = threading.Thread(target=second)
    results.append(icpctl.perturb(x, first_loss, "adam", 5))
    assert not model.training  # the second one is at work
    first_ended.set()
    thread.join()
    assert all(torch.equal(result, expected) for result in results)
    assert all(module.training for module in model.modules())


def test_an_interrupt_at_any_line_leaves_nothing_behind() -> None:
    model, (x, y) = net(), batch()
    files = ("perturbation.py", "evalmode.py")

    def interrupted(at: int) -> bool:
        left = at

        def trace(frame: Any, event: str, argument: object) -> Any:
            nonlocal left
            if not frame.f_code.co_filename.endswith(files):
                return None
            frame.f_trace_opcodes = True
            left -= event == "opcode"
            if event == "opcode" and left == 0:
                raise KeyboardInterrupt
            return trace

        sys.settrace(trace)
        try:
            icpctl.perturb(x, lambda z: cross_entropy(model(z), y), "sgd", 1)
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(None)
        return False

    at, step = 1, 7
    while interrupted(at):
        assert all(module.training for module in model.modules()), at
        assert all(parameter.requires_grad for parameter in model.parameters())
        assert not eval_mode._at_work
        assert torch.is_grad_enabled()
        at += step
    assert at > 300


def test_nothing_is_frozen_or_used_up() -> None:
    """Weights that have a graph (MAML), and weights that are cached, keep it."""
    model, (x, y) = nn.Sequential(parametrizations.weight_norm(nn.Linear(6, 8)), nn.Tanh(), nn.Linear(8, 3)), batch()
    weights = dict(model.named_parameters())
    gradients = torch.autograd.grad(cross_entropy(model(x), y), list(weights.values()), create_graph=True)
    fast = {name: p - 0.1 * g for (name, p), g in zip(weights.items(), gradients, strict=True)}
    x_icp = icpctl.perturb(x, lambda z: cross_entropy(functional_call(model, fast, (z,)), y), "adam", 2)
    cross_entropy(functional_call(model, fast, (x_icp,)), y).backward()
    assert all(p.grad is not None for p in model.parameters())
    for extra in (False, True):
        for order in PASS_ORDERS:
            model.zero_grad()
            distiller = icpctl.SelfDistiller(model, ["0"], "adam", 2, extra_task_grad=extra, pass_order=order)
            with parametrize.cached():
                distiller(x, y, 0.5)[0].backward()
            assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("order", PASS_ORDERS)
def test_the_extra_gradient_is_the_same_with_checkpoints(order: str) -> None:
    gradients = []
    for checkpointed in (False, True):
        model, (x, y) = net(checkpointed=checkpointed), batch()
        distiller = icpctl.SelfDistiller(model, ["head"], "adam", 2, extra_task_grad=True, pass_order=order)
        torch.manual_seed(2)
        distiller(x, y, 0.5)[0].backward()
        gradients.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(*gradients)


def test_a_tap_without_gradients_is_refused() -> None:
    model, x = net(checkpointed=True, reentrant=True), batch()[0]
    with (
        pytest.raises(RuntimeError, match=r"'block.1' runs without gradients.*use_reentrant=False"),
        tap(model, ["block.1"]),
    ):
        model(x.requires_grad_())


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("in_place", [False, True])
def test_compiled_models_take_the_same_step(warm: bool, in_place: bool) -> None:
    results = []
    for compiled in (False, True):
        model: Any = net()
        x, y = batch()
        if compiled and in_place:
            model.compile(backend="eager")
        elif compiled:
            model = torch.compile(model, backend="eager")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if warm:
                torch.manual_seed(1)
                model(x)
            torch.manual_seed(2)
            loss, log = icpctl.SelfDistiller(model, ["stem", "block.1"], "adam", 2)(x, y, 0.5)
        loss.backward()
        results.append((loss, log, [p.grad for p in model.parameters()]))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_moves_in_float32(dtype: torch.dtype) -> None:
    x = torch.linspace(0.5, 2, 12).view(3, 4).to(dtype)
    moved = icpctl.perturb(x, lambda z: (z.float() * 1e-6).sum(), "adam", 5, lr=1e-3)
    assert moved.dtype is dtype
    exact = icpctl.perturb(x.float(), lambda z: (z * 1e-6).sum(), "adam", 5, lr=1e-3)
    assert torch.equal(moved, exact.to(dtype))


@pytest.mark.parametrize("direction", ["descend", "ascend", "random"])
def test_inputs_may_be_single_numbers(direction: str) -> None:
    class Scalar(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(1, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x[:, None])[:, 0]  # type: ignore[no-any-return]

    v = torch.randn(8)
    _, log = icpctl.SelfDistiller(Scalar(), ["net"], "adam", 2, direction=direction)(v, v, 0.5, nn.functional.mse_loss)
    assert log["x_icp"].shape == v.shape
    assert float(log["delta_l2"]) == pytest.approx(float((log["x_icp"] - v).abs().mean()))


def test_inputs_that_cannot_be_perturbed_are_refused_in_words() -> None:
    x, y = batch()
    for call in (
        lambda z: icpctl.perturb(z, lambda z: z.sum()),
        lambda z: icpctl.SelfDistiller(net(), ["stem"])(z, y, 0.5),
    ):
        for wrong in ((x, x), [x], x.long(), x.to(torch.complex64), torch.tensor(1.0)):
            with pytest.raises(ValueError, match=r"^x is "):
                call(wrong)
        with torch.inference_mode(), pytest.raises(RuntimeError, match=r"torch.inference_mode\(\)"):
            call(x)
    with pytest.raises(ValueError, match="sgd, adam, ademamix"):
        icpctl.perturb(x, lambda z: z.sum(), Adam)  # type: ignore[arg-type]
    carried = Adam()
    icpctl.perturb(x, lambda z: z.sum(), carried)
    with pytest.raises(ValueError, match=r"\(8, 6\), but must be \(1, 6\)"):
        icpctl.perturb(x[:1], lambda z: z.sum(), carried)


class Observer(nn.Module):
    """Keeps the largest value that it saw in train mode, and divides by it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("largest", torch.ones(6))

    def forward(self, x: Tensor) -> Tensor:
        largest = self.get_buffer("largest")
        if self.training:
            largest.lerp_(x.detach().abs().amax(0), 0.5)
        return x / largest


@pytest.mark.parametrize("order", PASS_ORDERS)
@pytest.mark.parametrize("teacher_statistics", [False, True])
def test_any_buffer_may_move(order: str, teacher_statistics: bool) -> None:
    """The student's gradients do not depend on what the teacher's pass moves, and its buffers need not move at all."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 6),
        Observer(),
        nn.Unflatten(1, (1, 6)),
        nn.InstanceNorm1d(1, track_running_stats=True),
        nn.Flatten(),
    )
    plain, (x, y) = copy.deepcopy(model), batch()
    distiller = icpctl.SelfDistiller(model, ["0"], "adam", 2, teacher_statistics=teacher_statistics, pass_order=order)
    distiller(x, y, 1.0)[0].backward()
    if order == "student-first":
        cross_entropy(plain(x), y).backward()
        torch.testing.assert_close([p.grad for p in model.parameters()], [p.grad for p in plain.parameters()])
    else:
        plain(x)
    moved = [not torch.equal(a, b) for a, b in zip(model.buffers(), plain.buffers(), strict=True)]
    assert any(moved) is teacher_statistics


def test_outputs_of_any_structure_are_detached() -> None:
    @dataclasses.dataclass(frozen=True)
    class Output:
        logits: Tensor
        more: dict[str, list[Tensor]]

    class Slots:
        __slots__ = ("value",)

        def __init__(self, value: Tensor) -> None:
            self.value = value

    class Items(dict[str, Tensor]):
        pass

    t = torch.ones(2, requires_grad=True) * 2
    output = Output(t, {"a": [t]})
    normal, slots, items = detached((torch.distributions.Normal(t, t), Slots(t), Items(a=t)))
    copied = detached(output)
    tensors = [copied.logits, copied.more["a"][0], normal.loc, slots.value, items["a"]]
    assert all(torch.equal(each, t) and not each.requires_grad for each in tensors)
    assert type(copied) is Output
    assert type(items) is Items
    assert output.logits.requires_grad


def test_taps_that_cannot_be_are_named_and_leave_no_hooks() -> None:
    model: Any = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(6, 3)]), "lstm": nn.LSTM(6, 3)})
    with pytest.raises(ValueError, match=r"'blocks' is a ModuleList, which is never called.*blocks\.0"):
        icpctl.SelfDistiller(model, ["blocks"])
    x, _ = batch()
    with pytest.raises(RuntimeError, match="'lstm' gave a tuple"), tap(model, ["lstm"]):
        model["lstm"](x)
    with pytest.raises(ValueError, match="'gone'"), tap(model, ["blocks.0", "gone"]):
        pass
    assert not any(module._forward_hooks for module in model.modules())
