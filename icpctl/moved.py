"""The modules of version 0.1 under their old names, so that scripts written for it go on working; they go with version 0.3."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "checkpoint": "runs.checkpoint",
    "cost": "config.cost",
    "defaults": "config.recipes",
    "display": "training.display",
    "distill": "methods.icp.distillation",
    "engine": "training.engine",
    "evaluation": "training.evaluation",
    "export": "report.export",
    "fastpath": "training.graphs",
    "fidelity": "tasks.fidelity",
    "figures": "report.figures",
    "grid": "config.grid",
    "icp": "methods.icp.perturbation",
    "meter": "training.meter",
    "network": "models.network",
    "options": "cli.options",
    "parallel": "training.distributed",
    "provenance": "runs.provenance",
    "results": "runs.folder",
    "settings": "config.settings",
    "stack": "training.stack",
    "trainer": "training.trainer",
}
"""Old names, and where the modules are now."""


class Finder:
    """Finds the module of an old name where it is now, and is its loader.

    It does without the base classes of `importlib.abc`: importing these takes longer than all else that icpctl's own code does for
    `--help`.
    """

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, old = name.partition(".")
        return ModuleSpec(name, self) if package == "icpctl" and old in MOVED else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        new = f"icpctl.{MOVED[spec.name.partition('.')[2]]}"
        warnings.warn(f"{spec.name} is now {new}", DeprecationWarning, stacklevel=2)
        module = import_module(new)
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """It was run where it is now; the import put the old name into its specification."""
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state
