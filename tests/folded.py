"""Networks to fold, and the values that must be the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from icpctl.methods.icp.folding import FoldedNetwork, fold

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


def folded(model: nn.Module) -> FoldedNetwork:
    network = fold(model, lambda message: None)
    assert network is not None
    return network


def images(batch: int = 2, side: int = 8) -> Tensor:
    return torch.randn(batch, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def values(function: Callable[[Tensor], Any], x: Tensor) -> list[Tensor]:
    """The outputs and the gradient at x."""
    torch.manual_seed(2)
    x = x.clone().requires_grad_()
    output = function(x)
    tensors = list(output.values()) if isinstance(output, dict) else [output]
    tensors = [tensor for each in tensors for tensor in (each if isinstance(each, tuple) else (each,))]
    return [*tensors, *torch.autograd.grad(sum((tensor**2).sum() for tensor in tensors), x)]


def same(network: FoldedNetwork, model: nn.Module, x: Tensor) -> None:
    """Whether two passes give the model's values."""
    for _ in range(2):
        torch.testing.assert_close(values(network.now(), x), values(model, x), rtol=1e-8, atol=1e-8)
