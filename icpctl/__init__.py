"""Self-distillation by iterative constructive perturbations (arXiv 2505.14751).

    x_icp = icpctl.perturb(x, loss_fn, optimizer="adam", steps=5)
    distiller = icpctl.SelfDistiller(model, layers=["layer1", "layer2", "layer3"])
    run = icpctl.train(icpctl.RunConfig(model="resnet20", dataset="digits", epochs=3))
    icpctl.report("results")

The names are imported when they are first used, so that the command line starts without torch.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from icpctl.moved import MOVED, Finder

if TYPE_CHECKING:
    from icpctl import models
    from icpctl.config import RunConfig
    from icpctl.errors import UserError
    from icpctl.methods.icp.distillation import SelfDistiller, feature_loss, layer_weights, task_weight
    from icpctl.methods.icp.perturbation import perturb
    from icpctl.report import CallableModule
    from icpctl.runs.folder import load_results
    from icpctl.training.engine import Run, train
    from icpctl.training.evaluation import evaluate

    report: CallableModule

_HOME = {
    "Run": "training.engine",
    "RunConfig": "config",
    "SelfDistiller": "methods.icp.distillation",
    "UserError": "errors",
    "evaluate": "training.evaluation",
    "feature_loss": "methods.icp.distillation",
    "layer_weights": "methods.icp.distillation",
    "load_results": "runs.folder",
    "perturb": "methods.icp.perturbation",
    "task_weight": "methods.icp.distillation",
    "train": "training.engine",
}

sys.meta_path.insert(0, Finder())

__all__ = [
    "Run",
    "RunConfig",
    "SelfDistiller",
    "UserError",
    "evaluate",
    "feature_loss",
    "layer_weights",
    "load_results",
    "models",
    "perturb",
    "report",
    "task_weight",
    "train",
]


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    if name in ("models", "report") or name in MOVED:
        return import_module(f"icpctl.{name}")
    if name in _HOME:
        return getattr(import_module(f"icpctl.{_HOME[name]}"), name)
    raise AttributeError(f"module 'icpctl' has no attribute {name!r}")
