"""Generation by a VAE: its loss, and its metrics, SSIM and PSNR as scikit-image has them, FID and KID by torch-fidelity.

    L_task = (‖x̂ − x‖² + β · KL) / D,    KL = ½ Σ_j (μ_j² + σ_j² − 1 − log σ_j²)

as the mean over the batch, with D = C·H·W values an image, in normalised units: up to a constant and a factor, the negative
evidence lower bound of a Gaussian decoder of variance ½ for β = 1 (Kingma and Welling, arXiv 1312.6114; β after Higgins et
al., 2017).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from icpctl.config import RunConfig
from icpctl.data.device import DeviceSplit
from icpctl.errors import UserError
from icpctl.methods.evalmode import eval_mode
from icpctl.methods.icp.perturbation import at_least_float32
from icpctl.models.network import Network, evaluation_batch, to_floats
from icpctl.models.vae import VAE, VAEOutput
from icpctl.seeds import derived_seed
from icpctl.tasks import fidelity
from icpctl.tasks.image_quality import image_quality

SAMPLE_BATCH = 500  # latents that are drawn from one seed, so that fewer samples are the first of more


class Generation:
    """Outputs are `VAEOutput`s, targets are the original inputs (B, 3, S, S).

    Args:
        config: of the run.
        samples: how many images are drawn for FID and KID; None: as many as they are compared with.
    """

    def __init__(self, config: RunConfig, samples: int | None = None) -> None:
        self.config, self.samples = config, samples

    def targets(self, x: Tensor, labels: Tensor) -> Tensor:
        """The inputs themselves: the loss of a perturbed input is against the original one."""
        return x

    def loss(self, outputs: VAEOutput, targets: Tensor) -> Tensor:
        """The mean of L_task over the batch, a scalar, in float32 or better."""
        return self._terms(outputs, targets)[:, 0].mean()

    def plain_loss(self, outputs: VAEOutput, targets: Tensor) -> Tensor:
        """The same."""
        return self.loss(outputs, targets)

    def record(self, outputs: VAEOutput, targets: Tensor) -> Tensor:
        """(B, 3): of each image L_task, ‖x̂ − x‖²/D and KL."""
        return self._terms(outputs, targets).detach()

    def metrics(self, records: Tensor, labels: Tensor) -> dict[str, float]:
        """Means over the images: loss and reconstruction_loss, a value of an image in normalised units; kl, in nats."""
        loss, reconstruction_loss, kl = records.mean(dim=0)
        return to_floats({"loss": loss, "reconstruction_loss": reconstruction_loss, "kl": kl})

    def evaluate(self, network: Network, split: DeviceSplit) -> dict[str, float]:
        """The same at z = μ, with ssim and psnr (dB) of the reconstructions as 8-bit images, means over the images."""
        return to_floats({name: values.mean() for name, values in self.of_each(network, split).items()})

    def of_each(self, network: Network, split: DeviceSplit) -> dict[str, Tensor]:
        """The metrics of each image."""
        records, quality = [], []
        for x, output in network.batches(split):
            records.append(self._terms(output, x))
            quality.append(image_quality(network.pixels(x), network.pixels(output.reconstruction)))
        ssim, psnr = (torch.cat(values) for values in zip(*quality, strict=True))
        loss, reconstruction_loss, kl = torch.cat(records).unbind(dim=1)
        return {"loss": loss, "reconstruction_loss": reconstruction_loss, "kl": kl, "ssim": ssim, "psnr": psnr}

    def check(self) -> None:
        """Refuse weights or a classifier for FID that are not what they should be.

        Raises:
            UserError: says which.
        """
        fidelity.check(self.config.fid_weights, self.config.fid_features)

    def evaluate_last(
        self,
        network: Network,
        split: DeviceSplit,
        say: Callable[[str], None],
        warn: Callable[[str], None],
        pause: Callable[[], None],
    ) -> dict[str, float]:
        """FID and KID of the split's reconstructions (z = μ) and of samples from the prior, against the split."""

        def reconstructed() -> Tensor:
            # On the host, as the split itself may not fit the memory of the device.
            return torch.cat([network.pixels(output.reconstruction).cpu() for _, output in network.batches(split)])

        def sampled() -> Tensor:
            return sample(network, self.samples or len(split), self.config.seed)

        try:
            return fidelity.distances(
                split,
                {"reconstruction": reconstructed, "prior": sampled},
                weights=self.config.fid_weights,
                classifier=self.config.fid_features,
                say=say,
                warn=warn,
                pause=pause,
            )
        except UserError as error:  # of files that were in order when the run began
            warn(f"FID and KID are missing. {error}")
            return {}

    def _terms(self, outputs: VAEOutput, targets: Tensor) -> Tensor:
        """(B, 3): of each image L_task, ‖x̂ − x‖²/D and KL."""
        reconstruction, mean, log_variance = map(at_least_float32, outputs)
        reconstruction_loss = (reconstruction - targets).square().flatten(1).mean(dim=1)
        kl = (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=1) / 2
        loss = reconstruction_loss + self.config.beta * kl / targets[0].numel()
        return torch.stack([loss, reconstruction_loss, kl], dim=1)


def sample(network: Network, number: int, seed: int) -> Tensor:
    """Images (N, 3, S, S) uint8 decoded from latents of the prior N(0, 1), on the host; fewer are the first ones of more."""
    assert isinstance(network.model, VAE)
    latents = []
    for batch in range(math.ceil(number / SAMPLE_BATCH)):
        generator = torch.Generator().manual_seed(derived_seed(seed, batch))
        latents.append(torch.randn(SAMPLE_BATCH, network.model.latent_dim, generator=generator))
    z = torch.cat(latents)[:number].to(network.device)
    with torch.no_grad(), eval_mode(network.model), network.autocast():
        parts = z.split(evaluation_batch(network.model.image_size, network.model.image_size))
        return torch.cat([network.pixels(network.model.decode(part)).cpu() for part in parts])
