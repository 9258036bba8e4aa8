"""A network whose batch norm is folded gives the model's outputs and input gradients, whatever its code does, or is plain."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest
import torch
import torch.nn.functional as F
from folded import folded, images, same, trained, values
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint

from icpctl.methods.icp import folding
from icpctl.methods.icp.folding import fold
from icpctl.models import CifarResNet

Model = TypeVar("Model", bound=nn.Module)
Forward = Callable[[Any, Tensor], Any]


class Small(nn.Module):
    """A convolution, batch norm, ReLU and a layer for the means."""

    mean: Tensor

    def __init__(self, forward: Forward | None = None, **settings: Any) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3, **settings), nn.BatchNorm2d(8), nn.Linear(8, 5)
        self.gain = nn.Parameter(torch.ones(()))
        self.register_buffer("mean", torch.full((3, 1, 1), 0.4))
        self.flag = False
        self._code = forward

    def forward(self, x: Tensor) -> Any:
        if self._code is not None:
            return self._code(self, x)
        return self.rest(self.norm(self.conv((x - self.mean) * self.gain)))

    def rest(self, x: Tensor) -> Tensor:
        return self.head(F.relu(x).mean((2, 3)))  # type: ignore[no-any-return]


class Layers(nn.Sequential):
    """Some layers for images of 8 pixels, with what comes after them."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__(*layers, nn.Flatten(), nn.LazyLinear(3))
        self.eval()(torch.zeros(2, 3, 8, 8))


class NormAndReLU(nn.BatchNorm2d):
    """A batch norm that does more than that."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).relu()


class Standardised(nn.Conv2d):
    """A convolution of other weights than it holds."""

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(input, weight, self.bias)  # type: ignore[no-any-return]


class OwnSwish(torch.autograd.Function):
    """torch sees nothing of what becomes of its input."""

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        context.save_for_backward(x)
        return x * x.sigmoid()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        (x,) = context.saved_tensors
        return gradient * (x.sigmoid() * (1 + x * (1 - x.sigmoid())))  # type: ignore[no-any-return]


@dataclass
class Answer:
    logits: Tensor


def module_with(model: Model, path: str, change: Callable[[Any], object]) -> Model:
    change(model.get_submodule(path))
    return model


def twice(module: Any) -> None:
    old = module.forward
    module.forward = lambda *inputs: 2 * old(*inputs)


def gated(model: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        gate = torch.sigmoid(5 * x.mean((2, 3), keepdim=True))
    return model.rest(model.norm(model.conv(x * gate)))  # type: ignore[no-any-return]


def without_gradient(model: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        out = model.conv(x)
    return model.rest(model.norm(out)) + x.mean()  # type: ignore[no-any-return]


def changed_in_place(model: Any, x: Tensor) -> Tensor:
    out = model.conv(x)
    out.mul_(2)
    return model.rest(model.norm(out))  # type: ignore[no-any-return]


def input_changed(model: Any, x: Tensor) -> Tensor:
    x = x * 1
    out = model.conv(x)
    x.add_(1)
    return model.rest(model.norm(out))  # type: ignore[no-any-return]


def kept(model: Any, x: Tensor) -> Tensor:
    model.features = model.conv(x)
    return model.rest(model.norm(model.features))  # type: ignore[no-any-return]


def both(model: Any, x: Tensor) -> Tensor:
    out = model.conv(x)
    return model.rest(model.norm(out) + out)  # type: ignore[no-any-return]


def weight_of_input(model: Any, x: Tensor) -> Tensor:
    out = model.conv._conv_forward(x, model.conv.weight * x.mean(), None)
    return model.rest(model.norm(out))  # type: ignore[no-any-return]


def by_value(model: Any, x: Tensor) -> Tensor:
    out = model.norm(model.conv(x))
    return model.rest(out if out.mean() > 0 else -out)  # type: ignore[no-any-return]


def if_tensor(model: Any, x: Tensor) -> Tensor:
    if isinstance(x, Tensor) and torch.is_tensor(x) and not isinstance(x, tuple):
        x = (x - 0.4) / 0.2
    return model.rest(model.norm(model.conv(x)))  # type: ignore[no-any-return]


FOLDED: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "bias": (lambda: Small(bias=True), 1),
    "groups, no affine": (lambda: Layers(nn.Conv2d(3, 6, 3, groups=3), nn.BatchNorm2d(6, affine=False, eps=0.1)), 1),
    "transposed": (lambda: Layers(nn.ConvTranspose2d(3, 5, 3, stride=2, output_padding=1), nn.BatchNorm2d(5)), 1),
    "circular padding": (lambda: Small(padding=1, padding_mode="circular"), 1),
    "padding by name": (lambda: Small(padding="same", dilation=2), 1),
    "SyncBatchNorm": (lambda: Layers(nn.Conv2d(3, 4, 3), nn.SyncBatchNorm(4)), 1),
    "no momentum": (lambda: Layers(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=None)), 1),
    "one dimension": (lambda: Layers(nn.Flatten(2), nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4)), 1),
    "a batch norm that does more": (lambda: Layers(nn.Conv2d(3, 4, 3), NormAndReLU(4)), 1),
    "other weights than it holds": (lambda: Layers(Standardised(3, 4, 3), nn.BatchNorm2d(4)), 1),
    "a parametrised weight": (lambda: Layers(parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4)), 1),
    "a pruned weight": (
        lambda: Layers(prune.random_unstructured(nn.Conv2d(3, 4, 3), "weight", 0.5), nn.BatchNorm2d(4)),
        1,
    ),
    "isinstance": (lambda: Small(if_tensor), 1),
    "no_grad": (lambda: Small(gated), 1),
    "values decide": (lambda: Small(by_value), 1),
    "a random number": (lambda: Small(lambda m, x: m.rest(m.norm(m.conv(x))) + torch.rand(5)), 1),
    "a weight that is read": (lambda: Small(lambda m, x: m.rest(m.norm(m.conv(x))) * m.conv.weight.mean()), 1),
    "a weight made of the input": (lambda: Small(weight_of_input), 1),
    "a forward of the model's own": (lambda: module_with(Small(), "", twice), 1),
    "a forward of the norm's own": (lambda: module_with(Small(), "norm", twice), 1),
    "a hook on the norm": (
        lambda: module_with(Small(), "norm", lambda m: m.register_forward_hook(lambda _, i, o: 2 * o)),
        1,
    ),
    "a backward hook on the norm": (
        lambda: module_with(Small(), "norm", lambda m: m.register_full_backward_hook(lambda _, i, o: (2 * i[0],))),
        0,
    ),
    "a dict": (lambda: Small(lambda m, x: {"a": m.rest(m.norm(m.conv(x))), "b": (x.mean(), x.square())}), 1),
    "two uses of two": (lambda: Layers(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.ReLU()), 1),
    "checkpointing": (
        lambda: Small(lambda m, x: m.rest(checkpoint(lambda z: m.norm(m.conv(z)), x, use_reentrant=False))),
        0,
    ),
    "batch norm first": (lambda: Layers(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)), 0),
    "something between": (lambda: Layers(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)), 0),
    "no running statistics": (lambda: Layers(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)), 0),
    "groups of a transposed one": (lambda: Layers(nn.ConvTranspose2d(3, 6, 3, groups=3), nn.BatchNorm2d(6)), 0),
    "a hook on the convolution": (
        lambda: module_with(Small(), "conv", lambda m: m.register_forward_hook(lambda _, i, o: 2 * o)),
        0,
    ),
    "a forward of the convolution's own": (lambda: module_with(Small(), "conv", twice), 0),
    "a convolution without gradient": (lambda: Small(without_gradient), 0),
    "an output changed in place": (lambda: Small(changed_in_place), 0),
    "an output that is kept": (lambda: Small(kept), 0),
    "another use of the output": (lambda: Small(both), 0),
    "a function of its own": (lambda: Small(lambda m, x: m.rest(m.norm(OwnSwish.apply(m.conv(x))))), 0),
    "one of two norms": (lambda: Small(lambda m, x: m.rest(m.norm(m.norm(m.conv(x))))), 1),
    "a convolution passed twice": (lambda: Small(lambda m, x: m.rest(m.norm(m.conv(x)) + m.conv(x + 1).relu())), 0),
}


@pytest.mark.parametrize("case", FOLDED)
def test_outputs_and_gradients_are_the_models(case: str) -> None:
    torch.manual_seed(0)
    make, norms = FOLDED[case]
    model = trained(make()).double().eval()
    network = folded(model)
    same(network, model, images())
    assert network.norms == norms
    assert (network.declined is None) == (norms > 0)


def new_weights(model: Small) -> None:
    state = copy.deepcopy(model.state_dict())
    model.load_state_dict(
        {name: value * 3 if value.is_floating_point() else value for name, value in state.items()}, assign=True
    )


def new_method(model: Small) -> None:
    model.flag = True
    model._code = both


def renamed(name: str, value: Callable[[], nn.Module]) -> Callable[[Small], None]:
    return lambda model: setattr(model, name, trained(value()).double().eval())


CHANGES: dict[str, Callable[[Any], object]] = {
    "weights in place": lambda model: model.conv.weight.data.mul_(2),
    "statistics in place": lambda model: model.norm.running_var.mul_(2),
    "weights that are assigned": new_weights,
    "a buffer that is assigned": lambda model: setattr(model, "mean", model.mean + 1),
    "statistics that are assigned": lambda model: setattr(model.norm, "running_var", model.norm.running_var * 2),
    "another convolution": renamed("conv", lambda: nn.Conv2d(3, 8, 5)),
    "a convolution that does more": renamed("conv", lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.Tanh())),
    "another norm": renamed("norm", lambda: nn.BatchNorm2d(8, eps=1.0)),
    "no norm": renamed("norm", nn.Identity),
    "another eps": lambda model: setattr(model.norm, "eps", 1.0),
    "another padding": lambda model: setattr(model.conv, "padding", (1, 1)),
    "a hook on the convolution": lambda model: model.conv.register_forward_hook(lambda m, i, o: 2 * o),
    "a hook on the norm": lambda model: model.norm.register_forward_pre_hook(lambda m, i: (2 * i[0],)),
    "a forward of the convolution's own": lambda model: twice(model.conv),
    "a forward of the norm's own": lambda model: twice(model.norm),
    "a forward of the model's own": twice,
    "a parametrised weight": lambda model: parametrizations.weight_norm(model.conv),
    "a norm in train mode": lambda model: model.norm.train(),
    "another way through the code": new_method,
    "an output that is kept": lambda model: setattr(model, "_code", kept),
    "a function of its own": lambda model: setattr(
        model, "_code", lambda m, x: m.rest(m.norm(m.conv(x)) + OwnSwish.apply(m.conv(x)))
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_after_folding_counts(change: str) -> None:
    torch.manual_seed(0)
    model = trained(Small()).double().eval()
    network = folded(model)
    same(network, model, images())
    assert network.norms == 1
    copy.deepcopy(network)
    CHANGES[change](model)
    same(network, model, images())
    same(network, model, images(batch=3, side=11))


def test_code_that_changes_all_the_time_is_left(recwarn: pytest.WarningsRecorder) -> None:
    said: list[str] = []
    model = trained(Small()).double().eval()
    network = fold(model, said.append)
    assert network is not None
    for step in range(12):
        model._code = both if step % 2 else None
        same(network, model, images())
        model.conv.register_forward_hook(lambda m, i, o: None)
        network._known.clear()
    assert network.declined
    assert said == [
        f"Batch norm is not folded for the perturbation: {network.declined}. The steps are the same, but take longer."
    ]


def test_a_wrong_fold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison itself, by a convolution that is wrong for other weights."""
    for wrong in (lambda out: out * 1.01, lambda out: out.detach() + 0 * out, lambda out: out[:1]):
        model = trained(Small()).double().eval()
        original = model.conv.weight
        with monkeypatch.context() as patch:

            def odd(x: Tensor, weight: Tensor, *rest: Any, wrong: Any = wrong, original: Tensor = original) -> Tensor:
                out = F.conv2d(x, weight, *rest)
                return out if weight is original else wrong(out)

            patch.setattr("icpctl.methods.icp.folding._KINDS", ((nn.Conv2d, folding._Convolution, odd),))
            network = folded(model)
            same(network, model, images())
        assert network.declined is not None
        assert "differ by" in network.declined or "a trial ended in" in network.declined


def test_parts_that_are_compiled_are_left() -> None:
    model = trained(Small()).double().eval()
    network = folded(model)
    same(network, model, images())
    model.conv.compile(backend="eager")
    network.now()
    assert network.declined == "parts of it are compiled"


def test_nothing_to_fold() -> None:
    assert fold(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())) is None


def test_tensors_that_move_and_other_types() -> None:
    torch.manual_seed(0)
    model = trained(Small()).eval()
    network = folded(model)
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-5), (torch.bfloat16, 0.1)):
        model.to(dtype)
        x = images().to(dtype)
        torch.testing.assert_close(values(network.now(), x), values(model, x), rtol=tolerance, atol=tolerance)
        assert network.norms == 1


def test_under_autocast() -> None:
    torch.manual_seed(0)
    model = trained(CifarResNet(20, 10)).eval()
    network = folded(model)
    x = images(side=32).float()
    with torch.autocast("cpu", torch.bfloat16):
        fast, plain = values(network.now(), x)[0], values(model, x)[0]
    assert network.norms == 21
    assert fast.dtype == plain.dtype == torch.bfloat16
    assert (fast - plain).float().norm() < 0.05 * plain.float().norm()


class Counting(Small):
    """Keeps this and that in every pass."""

    passes: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.shapes, self.seen = 0, [torch.Size([1])], {0}
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, x: Tensor) -> Any:
        self.calls += 1
        self.shapes.append(x.shape)
        self.seen.add(self.calls)
        self.passes += 1
        self.mean = self.mean + 1
        self.features = F.relu(self.norm(self.conv(x)))
        return self.head(self.features.mean((2, 3))) + torch.rand(5)


def test_a_trial_changes_nothing() -> None:
    """The model is as after the same passes without folding, and so are the random numbers."""
    results = []
    for fast in (False, True):
        torch.manual_seed(0)
        model = trained(Counting()).double().eval()
        model.conv.weight.requires_grad_(False)
        network: nn.Module = folded(model) if fast else model
        copy.deepcopy(model)
        x = images()
        outputs = torch.stack([network(x) for _ in range(3)])
        kept_values = [model.calls, model.shapes, model.seen, float(model.passes), float(model.mean.mean())]
        flags = [(p.requires_grad, p.grad) for p in model.parameters()], [m.training for m in model.modules()]
        results.append((outputs, model.features, kept_values, flags, torch.rand(3), vars(model).keys()))
    expected, found = results
    torch.testing.assert_close(found[:2], expected[:2], rtol=1e-9, atol=1e-9)
    assert found[2:4] == expected[2:4]
    assert torch.equal(found[4], expected[4])
    assert found[5] == expected[5]


def test_other_threads_pass_through_the_model_as_it_is() -> None:
    torch.manual_seed(0)
    seen: list[list[Tensor]] = []

    def meanwhile(module: nn.Module, inputs: Any, output: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            thread = threading.Thread(target=lambda: seen.append(values(model.conv, images())))
            thread.start()
            thread.join()

    model = trained(Small()).double().eval()
    expected = values(model.conv, images())
    model.norm.register_forward_hook(meanwhile)
    network = folded(model)
    network(images())
    network(images())
    assert network.norms == 1
    assert len(seen) > 2
    for each in seen:
        torch.testing.assert_close(each, expected)


def test_no_graph_and_no_inference_tensors() -> None:
    torch.manual_seed(0)
    model = trained(Small()).double().eval()
    network = folded(model)
    with torch.no_grad():
        torch.testing.assert_close(network.now()(images()), model(images()))
        assert network.norms == 1
        model._code = input_changed  # which a graph would not allow
        torch.testing.assert_close(network.now()(images()), model(images()))
        assert network.norms == 0
        model._code, network = None, folded(model)
    with torch.inference_mode():
        torch.testing.assert_close(network.now()(images()), model(images()))
    same(network, model, images())
    assert network.norms == 1


def test_outputs_that_are_dataclasses_are_compared() -> None:
    model = trained(Small(lambda m, x: Answer(m.rest(m.norm(m.conv(x)))))).double().eval()
    network = folded(model)
    torch.testing.assert_close(network(images()).logits, model(images()).logits)
    assert network.norms == 1
    opaque = trained(Small(lambda m, x: [lambda: m.rest(m.norm(m.conv(x)))][0])).double().eval()
    network = folded(opaque)
    torch.testing.assert_close(network(images())(), opaque(images())())
    assert network.declined
