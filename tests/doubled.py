"""Training in float64, in which two ways to compute the same differ by 1e-15 and not by what a training makes of 1e-7."""

from __future__ import annotations

from collections.abc import Callable

from icpctl.models.network import Network, build_model
from icpctl.training import trainer


def float64(patch: Callable[[object, str, object], None] = setattr) -> None:
    """In float32 a network like these makes 1e-3 of 1e-7 in five steps, in one process and by one way too."""
    build, normalise = build_model, Network.normalise
    patch(trainer, "build_model", lambda *arguments: build(*arguments).double())
    patch(Network, "normalise", lambda self, images: normalise(self, images).double())
