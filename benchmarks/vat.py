"""VAT's constants on a trained network: from which ξ the direction is right, and what an ε does to a prediction.

    python benchmarks/vat.py RUN

RUN is the folder of a finished run. The direction of the perturbation by one step of the power iteration in float32, as
`icpctl.methods.vat` takes it, is compared with that in float64 at ξ = 1e-6, which is the derivative up to 1e-6: the mean cosine over
the images. The divergence of the predictions is that of perturbations of norm ε.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from unittest.mock import patch

import torch
from measure import command, machine, table
from torch import Tensor

from icpctl.config import RunConfig
from icpctl.methods.base import Data
from icpctl.methods.soft import divergence
from icpctl.methods.vat import VAT
from icpctl.models.network import load_trained
from icpctl.runs.fingerprints import load_data

IMAGES = 256
LENGTHS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)
EPSILONS = (0.1, 0.3, 1.0, 3.0, 10.0)


def method(config: RunConfig, model: torch.nn.Module, xi: float, epsilon: float) -> VAT:
    """VAT with these lengths, on a model in train mode."""
    changed = config.altered(method="vat", vat_xi=xi, vat_epsilon=epsilon)
    return VAT(changed, model, model, Data(torch.zeros(1), 1, torch.Size()), print).train()


def direction(of: VAT, x: Tensor) -> Tensor:
    """r of each image for the random numbers of seed 0, drawn in float32."""
    drawn = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x.dtype)
    with patch("torch.randn_like", lambda like: drawn):
        return of.perturbation(x, of.model(x).detach()).flatten(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    options = parser.parse_args()
    trained = load_trained(options.run, device="cpu")
    images = torch.from_numpy(load_data(trained.config).test.images[:IMAGES].copy())
    x = trained.network.normalise(images)
    model = trained.network.model
    exact = direction(method(trained.config, copy.deepcopy(model).double(), 1e-6, 1.0), x.double())
    rows = []
    for xi in LENGTHS:
        found = direction(method(trained.config, model, xi, 1.0), x).double()
        cosines = torch.nn.functional.cosine_similarity(found, exact)
        rows.append([f"{xi:g}", f"{float(cosines.mean()):.4f}", f"{float(cosines.quantile(0.05)):.4f}"])
    print(
        machine(torch.device("cpu")), command(), table(["ξ", "cosine, mean", "cosine, 5 % quantile"], rows), sep="\n\n"
    )
    rows = []
    for epsilon in EPSILONS:
        vat = method(trained.config, model, 1e-2, epsilon)
        output = vat.model(x).detach()
        moved = vat.model(x + direction(vat, x).view_as(x)).detach()
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
        noise *= epsilon / noise.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        rows.append(
            [
                f"{epsilon:g}",
                f"{float(divergence(output, moved)):.2e}",
                f"{float(divergence(output, vat.model(x + noise).detach())):.2e}",
            ]
        )
    print(table(["ε", "KL after the step", "KL after noise of the same norm"], rows))


if __name__ == "__main__":
    main()
