"""A convolutional variational autoencoder for square images whose side is a power of two (Kingma and Welling, arXiv
1312.6114).

Each encoder stage halves the side, down to 4 pixels, and each decoder stage doubles it. The stages are what is tapped for
distillation.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from icpctl.config.recipes import VAE_BOTTLENECK, vae_stages

CHANNELS, MOST_CHANNELS = 32, 256  # of the first stage; doubled with each one up to the second number


class VAEOutput(NamedTuple):
    """What the VAE makes of inputs (B, 3, S, S)."""

    reconstruction: Tensor
    """(B, 3, S, S), the mean of the Gaussian over images, in the units of the inputs."""

    mean: Tensor
    """(B, Z), μ of the posterior."""

    log_variance: Tensor
    """(B, Z), log σ² of the posterior."""


class VAE(nn.Module):
    """(B, 3, S, S) → `VAEOutput`; in train mode z = μ + σ·ε is drawn, in eval mode z = μ.

    Args:
        image_size: S, a power of two from 16 on.
        latent_dim: Z.
    """

    noise: Tensor | None
    """(B, Z), ε of the passes in train mode; None: drawn in each."""

    def __init__(self, image_size: int, latent_dim: int) -> None:
        super().__init__()
        widths = [min(CHANNELS << stage, MOST_CHANNELS) for stage in range(vae_stages(image_size))]
        self.image_size, self.latent_dim = image_size, latent_dim
        self.noise = None
        self.encoder = nn.Sequential(*map(_down, [3, *widths], widths))
        self.to_posterior = nn.Linear(widths[-1] * VAE_BOTTLENECK**2, 2 * latent_dim)
        self.from_latent = nn.Linear(latent_dim, widths[-1] * VAE_BOTTLENECK**2)
        self.decoder = nn.Sequential(*map(_up, widths[::-1], [*widths[-2::-1], widths[0]]))
        self.to_image = nn.Conv2d(widths[0], 3, 3, padding=1)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """μ and log σ² of the posterior, (B, Z) each."""
        mean, log_variance = self.to_posterior(self.encoder(x).flatten(1)).chunk(2, dim=1)
        return mean, log_variance

    def decode(self, z: Tensor) -> Tensor:
        """Images (B, 3, S, S) in the units of the inputs, from latents (B, Z)."""
        side = VAE_BOTTLENECK
        return self.to_image(self.decoder(self.from_latent(z).view(z.shape[0], -1, side, side)))  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> VAEOutput:
        mean, log_variance = self.encode(x)
        z = mean
        if self.training:
            noise = self.noise
            if noise is None:
                noise = torch.randn_like(mean, dtype=torch.promote_types(mean.dtype, torch.float32))
            z = mean + (log_variance / 2).exp() * noise
        return VAEOutput(self.decode(z), mean, log_variance)


def _down(in_channels: int, channels: int) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, channels, 3, stride=2, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU())


def _up(in_channels: int, channels: int) -> nn.Sequential:
    conv = nn.ConvTranspose2d(in_channels, channels, 4, stride=2, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU())
