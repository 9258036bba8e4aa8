"""The perturbation against torch.optim, the formulas in float64, and what it must leave alone."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import icpctl
from icpctl.methods.icp.perturbation import AdEMAMix, eval_mode


def small_network(seed: int = 0) -> nn.Sequential:
    """A network with batch norm and dropout, in train mode, its statistics away from their initial values."""
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )
    network(torch.randn(16, 3, 8, 8))
    return network.double()


def batch(size: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(size, 3, 8, 8, generator=generator, dtype=torch.float64)
    return x, torch.randint(4, (size,), generator=generator)


def task_loss(network: nn.Module, y: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda z: F.cross_entropy(network(z), y)


@pytest.mark.parametrize(
    ("name", "lr", "peer"),
    [
        ("sgd", 5.0, lambda x: torch.optim.SGD([x], lr=5.0)),
        ("adam", 0.05, lambda x: torch.optim.Adam([x], lr=0.05, betas=(0.9, 0.999), eps=1e-8)),
    ],
)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_equals_torch_optim_stepping_the_input(
    name: str, lr: float, peer: Callable[[Tensor], torch.optim.Optimizer], steps: int
) -> None:
    network, (x, y) = small_network(), batch()
    ours = icpctl.perturb(x, task_loss(network, y), optimizer=name, steps=steps, lr=lr)
    theirs = x.clone().requires_grad_()
    optimizer = peer(theirs)
    reference = copy.deepcopy(network).eval()
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(reference(theirs), y).backward()
        optimizer.step()
    assert (ours - theirs.detach()).abs().max() < 1e-6
    assert (ours - x).abs().max() > 1e-4  # it did move


@settings(deadline=None, max_examples=30)
@given(
    steps=st.integers(1, 8),
    beta1=st.floats(0, 0.99),
    beta2=st.floats(0, 0.9999),
    beta3=st.floats(0, 0.99999),
    alpha=st.floats(0, 20),
    eps=st.floats(1e-10, 1e-2),
    weight_decay=st.floats(0, 1),
)
def test_ademamix_equals_its_formula_in_float64(
    steps: int, beta1: float, beta2: float, beta3: float, alpha: float, eps: float, weight_decay: float
) -> None:
    """Numbers, one at a time, in plain Python: the loss is Σ sin(x + c), so each input has its own gradient."""
    x = torch.tensor([[0.3, -1.2, 2.0]], dtype=torch.float64)
    c = torch.tensor([0.1, 0.7, -0.4], dtype=torch.float64)
    optimizer = AdEMAMix((beta1, beta2, beta3), eps, alpha, weight_decay)
    ours = icpctl.perturb(x, lambda z: torch.sin(z + c).sum(), optimizer, steps, lr=0.1)
    for i in range(3):
        value, m1, m2, v = float(x[0, i]), 0.0, 0.0, 0.0
        for t in range(1, steps + 1):
            g = math.cos(value + float(c[i]))
            m1 = beta1 * m1 + (1 - beta1) * g
            m2 = beta3 * m2 + (1 - beta3) * g
            v = beta2 * v + (1 - beta2) * g * g
            m1_hat, v_hat = m1 / (1 - beta1**t), v / (1 - beta2**t)
            value -= 0.1 * ((m1_hat + alpha * m2) / (math.sqrt(v_hat) + eps) + weight_decay * value)
        assert float(ours[0, i]) == pytest.approx(value, rel=1e-9, abs=1e-9)


def test_float32_stays_close_to_float64() -> None:
    network, (x, y) = small_network(), batch()
    single = copy.deepcopy(network).float()
    for name in ("sgd", "adam", "ademamix"):
        exact = icpctl.perturb(x, task_loss(network, y), optimizer=name)
        ours = icpctl.perturb(x.float(), task_loss(single, y), optimizer=name)
        assert ((ours - x.float()).double() - (exact - x)).norm() < 1e-2 * (exact - x).norm() + 1e-6 * x.norm()


@pytest.mark.parametrize("name", ["sgd", "adam", "ademamix"])
@pytest.mark.parametrize("training", [True, False])
def test_leaves_the_model_as_it_was(name: str, training: bool) -> None:
    network, (x, y) = small_network().train(training), batch()
    network[1].eval()  # a mode of its own must survive too
    network[0].weight.requires_grad_(False)
    F.cross_entropy(network(x), y).backward()
    x_before = x.clone()
    buffers = {key: value.clone() for key, value in network.state_dict().items()}
    grads = [p.grad.clone() if p.grad is not None else None for p in network.parameters()]
    modes = [module.training for module in network.modules()]
    wanted = [p.requires_grad for p in network.parameters()]

    x_icp = icpctl.perturb(x, task_loss(network, y), optimizer=name, steps=4)

    assert not x_icp.requires_grad
    assert x_icp.grad_fn is None
    assert torch.equal(x, x_before)
    assert not x.requires_grad
    assert all(torch.equal(value, buffers[key]) for key, value in network.state_dict().items())
    for parameter, grad in zip(network.parameters(), grads, strict=True):
        assert (parameter.grad is None and grad is None) or torch.equal(parameter.grad, grad)  # type: ignore[arg-type]
    assert [module.training for module in network.modules()] == modes
    assert [p.requires_grad for p in network.parameters()] == wanted


def test_restores_the_model_when_the_loss_raises() -> None:
    network, (x, _) = small_network(), batch()

    def failing(z: Tensor) -> Tensor:
        network(z)
        raise RuntimeError("no loss")

    with pytest.raises(RuntimeError, match="no loss"):
        icpctl.perturb(x, failing)
    assert all(module.training for module in network.modules())
    assert all(p.requires_grad for p in network.parameters())
    network(x)  # in train mode again: the statistics move
    assert int(network.state_dict()["1.num_batches_tracked"]) == 2


def test_eval_mode_is_used_inside() -> None:
    network, (x, y) = small_network(), batch()
    first = icpctl.perturb(x, task_loss(network, y), optimizer="adam")
    second = icpctl.perturb(x, task_loss(network.eval(), y), optimizer="adam")
    assert torch.equal(first, second)  # no dropout, running statistics


def test_descend_lowers_the_loss_at_every_step_and_ascend_raises_it() -> None:
    network, (x, y) = small_network(), batch()
    for direction, sign in (("descend", -1), ("ascend", 1)):
        losses: list[Tensor] = []
        x_icp = icpctl.perturb(x, task_loss(network, y), "adam", 6, 0.01, direction, losses=losses)
        with eval_mode(network):
            values = [*losses, task_loss(network, y)(x_icp)]
        differences = torch.stack(values).diff()
        assert (differences * sign > 0).all()


def test_random_is_as_long_as_descend_for_each_sample_and_elsewhere() -> None:
    network, (x, y) = small_network(), batch()
    descend = icpctl.perturb(x, task_loss(network, y), "adam") - x
    torch.manual_seed(3)
    random = icpctl.perturb(x, task_loss(network, y), "adam", direction="random") - x
    assert torch.allclose(random.flatten(1).norm(dim=1), descend.flatten(1).norm(dim=1), rtol=1e-9)
    cosine = F.cosine_similarity(random.flatten(1), descend.flatten(1))
    assert cosine.abs().max() < 0.4


def test_sum_does_not_depend_on_the_batch_and_mean_does() -> None:
    network, (x, y) = small_network(), batch(8)
    for reduction, same in (("sum", True), ("mean", False)):
        alone = icpctl.perturb(x[:1], task_loss(network, y[:1]), "sgd", 3, 0.05, reduction=reduction)
        together = icpctl.perturb(x, task_loss(network, y), "sgd", 3, 0.05, reduction=reduction)
        assert torch.allclose(alone, together[:1], atol=1e-12) is same


def test_memory_does_not_grow_with_steps() -> None:
    """No graph is kept from one step to the next: as many tensors are alive in step 20 as in step 2."""
    import gc

    network, (x, y) = small_network(), batch()
    alive: list[int] = []

    def counted(z: Tensor) -> Tensor:
        alive.append(sum(issubclass(type(thing), Tensor) for thing in gc.get_objects()))
        return F.cross_entropy(network(z), y)

    icpctl.perturb(x, counted, "ademamix", steps=20)
    assert alive[-1] == alive[2]


def test_carried_state_goes_on_and_fresh_state_does_not() -> None:
    network, (x, y) = small_network(), batch()
    optimizer = AdEMAMix()
    first = icpctl.perturb(x, task_loss(network, y), optimizer, steps=3)
    second = icpctl.perturb(first, task_loss(network, y), optimizer, steps=4)
    at_once = icpctl.perturb(x, task_loss(network, y), "ademamix", steps=7)
    assert torch.allclose(second, at_once, atol=1e-12)
    assert not torch.allclose(second, icpctl.perturb(first, task_loss(network, y), "ademamix", steps=4), atol=1e-6)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"optimizer": "adamw"}, "sgd, adam, ademamix"),
        ({"steps": 0}, "^steps is 0, but must be a whole number of at least 1"),
        ({"steps": 1.5}, "^steps is 1.5"),
        ({"steps": True}, "^steps is True"),
        ({"lr": -1}, "^lr is -1, but must be a number above 0"),
        ({"lr": math.nan}, "^lr is nan"),
        ({"lr": "2"}, "^lr is '2'"),
        ({"direction": []}, "^direction is"),
        ({"direction": "down"}, "descend, ascend, random"),
        ({"reduction": "max"}, "mean, sum"),
    ],
)
def test_wrong_arguments_are_named(wrong: dict[str, object], message: str) -> None:
    x, y = batch()
    with pytest.raises(ValueError, match=message):
        icpctl.perturb(x, task_loss(small_network(), y), **wrong)  # type: ignore[arg-type]
