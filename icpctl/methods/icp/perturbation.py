"""Iterative constructive perturbation (ICP): move the input so that the task loss falls.

For t = 0 … T−1, with x₀ = x and the network's parameters θ fixed (arXiv 2505.14751):

    g_t     = ∂ L_task(f_θ(x_t), y) / ∂x_t
    x_{t+1} = x_t − η · u_t

where the input optimizer makes u_t from g_t. It is FGSM with the sign turned round; `direction="ascend"` turns it back.
This module needs torch and `evalmode` alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from icpctl.methods.evalmode import eval_mode as eval_mode  # also under this name


class SGD:
    """u_t = g_t."""

    state: dict[str, Any]
    """Empty where it is fresh; tensors of the shape of the inputs, and the number of steps."""

    def __init__(self) -> None:
        self.state = {}

    def __call__(self, gradient: Tensor, x: Tensor) -> Tensor:
        """The update u_t for the gradient g_t at x_t; all (B, …) of one shape."""
        return gradient


class Adam(SGD):
    """u_t = m̂_t / (√v̂_t + ε), both moments bias-corrected (Kingma and Ba, arXiv 1412.6980).

    Args:
        betas: β₁ and β₂.
        eps: ε.
    """

    def __init__(self, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8) -> None:
        super().__init__()
        self.betas, self.eps = betas, eps

    def __call__(self, gradient: Tensor, x: Tensor) -> Tensor:
        first, scale = self._moments(gradient)
        return first / scale

    def _moments(self, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """m̂_t and √v̂_t + ε."""
        if self.state and self.state["m"].shape != gradient.shape:
            shapes = f"{tuple(self.state['m'].shape)}, but must be {tuple(gradient.shape)}"
            raise ValueError(f"the state that the input optimizer carries has the shape {shapes}, that of x")
        beta1, beta2 = self.betas
        t = self.state.get("t", 0) + 1
        m = self._moved("m", beta1, gradient)
        v = self._moved("v", beta2, gradient.square())
        self.state |= {"t": t, "m": m, "v": v}
        return m / (1 - beta1**t), (v / (1 - beta2**t)).sqrt() + self.eps

    def _moved(self, name: str, beta: float, value: Tensor) -> Tensor:
        """A moment with the next value in it; it begins at 0."""
        new = (1 - beta) * value
        return beta * self.state[name] + new if name in self.state else new


class AdEMAMix(Adam):
    """u_t = (m̂1_t + α·m2_t) / (√v̂_t + ε) + λ·x_t; m1 and v are bias-corrected, m2 is not (arXiv 2409.03137).

    With a fresh state m2 enters with the weight α·(1 − β₃) = 5e-4, so at T = 5 this is nearly Adam.

    Args:
        betas: β₁, β₂ and β₃.
        eps: ε.
        alpha: α, the weight of the slow moment m2.
        weight_decay: λ.
    """

    def __init__(
        self,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
        eps: float = 1e-8,
        alpha: float = 5.0,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(betas[:2], eps)
        self.beta3, self.alpha, self.weight_decay = betas[2], alpha, weight_decay

    def __call__(self, gradient: Tensor, x: Tensor) -> Tensor:
        first, scale = self._moments(gradient)
        slow = self.state["m2"] = self._moved("m2", self.beta3, gradient)
        update = (first + self.alpha * slow) / scale
        decays = isinstance(self.weight_decay, Tensor) or self.weight_decay  # a tensor is that of several runs
        return update + self.weight_decay * x if decays else update


OPTIMIZERS: dict[str, type[SGD]] = {"sgd": SGD, "adam": Adam, "ademamix": AdEMAMix}
GradientOf = Callable[[Callable[[Tensor], Tensor], Tensor], tuple[Tensor, Tensor]]
DIRECTIONS = {"descend": -1, "ascend": 1, "random": -1}
"""Their names, and the sign of a step; "random" then turns what "descend" did."""
REDUCTIONS = ("mean", "sum")


def make_optimizer(optimizer: str | SGD, **constants: Any) -> SGD:
    """An input optimizer by its name, with a fresh state and these constants, or the published ones; or the one that is given.

    Raises:
        ValueError: an unknown name, or another thing.
    """
    if isinstance(optimizer, SGD):
        return optimizer
    check_choice("optimizer", optimizer, OPTIMIZERS)
    return OPTIMIZERS[optimizer](**constants)


def autograd_gradient(loss_fn: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of a scalar loss at inputs (B, …), and the loss, detached."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        loss = loss_fn(x)
        (gradient,) = torch.autograd.grad(loss, x)
    return gradient, loss.detach()


def func_gradient(loss_fn: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """The same inside of `torch.func` transforms, such as `torch.vmap`."""
    with torch.no_grad():  # nothing outside differentiates through the perturbation
        return torch.func.grad_and_value(loss_fn)(x)


def perturb(
    x: Tensor,
    loss_fn: Callable[[Tensor], Tensor],
    optimizer: str | SGD = "ademamix",
    steps: int = 5,
    lr: float | Tensor = 2e-3,
    direction: str = "descend",
    *,
    reduction: str = "mean",
    losses: list[Tensor] | None = None,
    gradient_of: GradientOf = autograd_gradient,
) -> Tensor:
    """Perturb a batch of inputs along the gradient of its loss.

    The modules that `loss_fn` reaches (see `evalmode.modules_of`) run in eval mode: running batch-norm statistics, no
    dropout. They are left as they were: mode, parameters, `.grad` and buffers. No step keeps the graph of the one before
    it, so memory does not grow with `steps`. Inputs in half precision move in float32 and are rounded where the network
    sees them.

    Args:
        x: (B, …), the inputs in normalised units; not changed.
        loss_fn: maps inputs of that shape to a scalar, the mean of the loss over the batch.
        optimizer: "sgd", "adam" or "ademamix" for a fresh state and the published constants; or an object of those
            classes, whose state this call carries on.
        steps: T.
        lr: η, in units of x.
        direction: "descend" lowers the loss; "ascend" raises it (iterative FGSM); "random" goes as far as "descend"
            does, per sample in the L2 norm, in a random direction.
        reduction: "mean" takes the gradient as it is, which shrinks as 1/B; "sum" takes that of each sample's own loss.
        losses: the scalar loss at x_0 … x_{T−1} is appended to it, detached.
        gradient_of: what computes g_t; by default torch's autograd, which a function that torch.func transforms cannot
            ask: there give `func_gradient`.

    Returns:
        x_T: as x, detached.

    Raises:
        ValueError: an unknown optimizer, direction or reduction, a number of steps that is not 1, 2, …, a step size that is not above
            0, inputs that are no floating-point tensor, or a loss that is no scalar.
        RuntimeError: in `torch.inference_mode`, which has no gradients.

    Source: arXiv 2505.14751, the perturbation loop; the constants are those of the authors' released code.
    """
    check_perturbation(steps, lr, direction, reduction)
    check_inputs(x)
    update = make_optimizer(optimizer)
    step_size = DIRECTIONS[direction] * lr
    x_0 = x_t = at_least_float32(x.detach())
    mode, gradients = eval_mode(loss_fn), torch.is_grad_enabled()
    try:
        with mode:
            for _ in range(steps):
                gradient, loss = gradient_of(lambda z: single(loss_fn(z), "loss_fn"), x_t.to(x.dtype))
                if losses is not None:
                    losses.append(loss)
                with torch.no_grad():
                    gradient = gradient.to(x_t.dtype)
                    if reduction == "sum":
                        gradient = gradient * len(x)
                    x_t = x_t + step_size * update(gradient, x_t)
    finally:
        # Again, as an interrupt can come at the end of a block.
        mode.restore()
        torch.set_grad_enabled(gradients)
    return (x_0 + _random_like(x_t - x_0) if direction == "random" else x_t).to(x.dtype)


def check_perturbation(steps: int, lr: float | Tensor, direction: str, reduction: str) -> None:
    """Raises ValueError for what `perturb` does not take; a tensor is not looked into, which would wait for the device."""
    if not isinstance(steps, Integral) or isinstance(steps, bool) or steps < 1:
        raise ValueError(f"steps is {steps!r}, but must be a whole number of at least 1")
    if not isinstance(lr, Tensor) and not (isinstance(lr, Real) and 0 < lr < math.inf):
        raise ValueError(f"lr is {lr!r}, but must be a number above 0")
    check_choice("direction", direction, DIRECTIONS)
    check_choice("reduction", reduction, REDUCTIONS)


def check_choice(name: str, value: object, known: Collection[str]) -> None:
    """Raises ValueError for an argument that is not one of these."""
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{name} is {value!r}, but must be one of {', '.join(known)}")


def single(loss: Tensor, name: str) -> Tensor:
    """What a function returned, which an argument of this name gave; raises ValueError if it is no single number."""
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        what = f"a tensor of the shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        raise ValueError(
            f"{name} returned {what}, but must return a scalar tensor: the mean of the loss over the batch"
        )
    return loss


def check_inputs(x: object) -> None:
    """Raises ValueError for what is no batch of normalised inputs, RuntimeError in `torch.inference_mode`."""
    if not isinstance(x, Tensor):
        raise ValueError(f"x is of type {type(x).__name__}, but must be one tensor (B, …)")
    if not x.is_floating_point():
        raise ValueError(f"x is {x.dtype}, but must be normalised inputs of a floating-point type")
    if x.dim() == 0:
        raise ValueError("x is a single number, but must be a batch (B, …)")
    if torch.is_inference_mode_enabled() or x.is_inference():
        raise RuntimeError(
            "the perturbation needs gradients, and torch.inference_mode() rules them out: use torch.no_grad() in its "
            "place, where x is made too, or give x.clone() outside of it"
        )


def _random_like(delta: Tensor) -> Tensor:
    """A random direction for each sample, as long as its own delta in the L2 norm."""
    noise = per_sample(torch.randn_like(delta))
    noise *= per_sample(delta).norm(dim=1, keepdim=True) / noise.norm(dim=1, keepdim=True)
    return noise.reshape(delta.shape)


def per_sample(batch: Tensor) -> Tensor:
    """(B, …) as (B, D), also where D is 1."""
    return batch.unsqueeze(-1).flatten(1)


def at_least_float32(tensor: Tensor) -> Tensor:
    """Half precision as float32, for differences and squares; anything else as it is."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
