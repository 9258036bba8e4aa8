"""Fast paths: the same numbers for less work; `--no-fast` takes none of them.

Batch norm in eval mode is a fixed scale and shift of each channel, which the convolution before it can do itself. The
perturbation passes through the network in eval mode T times with the same weights, so the two are folded once a batch.
This module needs torch alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)


def fold(model: nn.Module) -> FoldedNetwork | None:
    """The model in eval mode with its batch norm folded; None where its code cannot be recorded or has nothing to fold.

    The code is recorded once. So it must do the same for every batch: no attribute that changes what `forward` does, no
    hooks on modules that hold other modules.

    Args:
        model: maps inputs (B, …) to outputs; left as it is.
    """
    training = [module for module in model.modules() if module.training]
    try:
        graph = _Tracer().trace(model.eval())
    except Exception:  # whatever the model's code does with a stand-in for its inputs
        return None
    finally:
        for module in training:
            module.training = True
    pairs = []
    modules = dict(model.named_modules())
    for node in list(graph.nodes):
        before = node.args[0] if node.args else None
        if isinstance(before, fx.Node) and _foldable(graph, modules, before, node):
            pairs.append((str(before.target), str(node.target)))
            node.replace_all_uses_with(before)
            graph.erase_node(node)
    return FoldedNetwork(model, fx.GraphModule(model, graph), pairs) if pairs else None


class FoldedNetwork:
    """A model in eval mode, with each batch norm that follows a convolution folded into it; made by `fold`."""

    def __init__(self, model: nn.Module, network: fx.GraphModule, pairs: Sequence[tuple[str, str]]) -> None:
        self.model = model
        self.network = network
        """The model without the batch norms that are folded; its other modules are the model's own."""
        self.pairs = pairs
        """The paths of each convolution and of the batch norm that is folded into it."""

    def now(self) -> Callable[[Tensor], Any]:
        """The network as the model is now: its weights do not follow those of the model."""
        state: dict[str, Tensor] = dict(self.model.named_parameters(remove_duplicate=False))
        state |= self.model.named_buffers(remove_duplicate=False)
        return partial(self, self.weights(state))

    def weights(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the network computes with, from the parameters and buffers of the model by name; detached."""
        weights = {name: tensor.detach() for name, tensor in state.items()}
        for path, norm_path in self.pairs:
            convolution, norm = self.model.get_submodule(path), self.model.get_submodule(norm_path)
            weights[f"{path}.weight"], weights[f"{path}.bias"] = fuse_conv_bn_weights(
                weights[f"{path}.weight"],
                weights.get(f"{path}.bias"),
                weights.pop(f"{norm_path}.running_mean"),
                weights.pop(f"{norm_path}.running_var"),
                norm.eps,  # type: ignore[arg-type]
                weights.pop(f"{norm_path}.weight", None),
                weights.pop(f"{norm_path}.bias", None),
                transpose=isinstance(convolution, _TRANSPOSED),
            )
            weights.pop(f"{norm_path}.num_batches_tracked", None)
        return weights

    def __call__(self, weights: Mapping[str, Tensor], x: Tensor) -> Any:
        """What the model makes of inputs (B, …) in eval mode, which the caller sees to (`icpctl.icp.eval_mode`)."""
        return torch.func.functional_call(self.network, dict(weights), (x,))


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, _BatchNorm) or super().is_leaf_module(m, module_qualified_name)


def _foldable(graph: fx.Graph, modules: Mapping[str, nn.Module], before: fx.Node, node: fx.Node) -> bool:
    """Whether `node` is a batch norm of fixed statistics, and `before` a convolution whose output goes nowhere else."""
    if (before.op, node.op) != ("call_module", "call_module"):
        return False
    convolution, norm = modules[str(before.target)], modules[str(node.target)]
    calls = [each.target for each in graph.nodes if each.op == "call_module"]
    return (
        isinstance(convolution, _CONVOLUTIONS)
        and isinstance(norm, _BatchNorm)
        and norm.running_mean is not None
        and not (isinstance(convolution, _TRANSPOSED) and convolution.groups > 1)
        and "weight" in convolution._parameters  # else it is made of others, as by a parametrisation
        and len(before.users) == 1
        and calls.count(before.target) == calls.count(node.target) == 1
    )
