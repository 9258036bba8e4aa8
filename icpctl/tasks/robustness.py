"""What is left of the accuracy where the images are disturbed: by attacks along the gradient, by noise, by blur.

All is done in pixels, in [0, 1], where the disturbed images stay. For f the network in eval mode, L the cross-entropy and ε the largest
change of a pixel value:

    FGSM:   x + ε·sign(∇L(x))                                             (Goodfellow et al., arXiv 1412.6572)
    PGD-20: 20 steps x ← P(x + ε/4·sign(∇L(x))) from a random place,      (Madry et al., arXiv 1706.06083)
            P the projection to the images within ε of the original one

The passes are in float32, whatever the run's precision. An image whose gradient is zero there, as the network is so sure of its class, is
not attacked, and counts as right.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as transforms

from icpctl.data.device import DeviceSplit
from icpctl.methods.evalmode import eval_mode
from icpctl.models.network import Network, evaluation_batch
from icpctl.seeds import derived_seed

EPSILONS = (2, 8)
"""Largest changes of the attacks, in 1/255."""
PGD_STEPS = 20
STEP_SHARE = 1 / 4
"""Of ε, a step of PGD."""
NOISE = (8, 16, 32)
"""Standard deviations of Gaussian noise, in 1/255."""
BLUR = (0.5, 1.0, 2.0)
"""Standard deviations of Gaussian blur, in pixels."""

OfPixels = Callable[[Tensor], Tensor]
"""Maps pixels (B, 3, H, W) in [0, 1] to logits (B, K)."""
Disturb = Callable[[OfPixels, Tensor, Tensor, torch.Generator], Tensor]
"""Maps a network, pixels, labels (B,) and random numbers to other pixels."""


def disturbances() -> dict[str, Disturb]:
    """What the images are disturbed by, by the name of its metric."""
    found: dict[str, Disturb] = {}
    for epsilon in EPSILONS:
        found[f"accuracy_fgsm_{epsilon}"] = partial(fgsm, epsilon=epsilon / 255)
        found[f"accuracy_pgd{PGD_STEPS}_{epsilon}"] = partial(pgd, epsilon=epsilon / 255)
    for level in NOISE:
        found[f"accuracy_noise_{level}"] = partial(noise, sigma=level / 255)
    for sigma in BLUR:
        found[f"accuracy_blur_{sigma:g}".replace(".", "_")] = partial(blur, sigma=sigma)
    return found


def robustness(
    network: Network, split: DeviceSplit, seed: int, pause: Callable[[], None] = lambda: None
) -> dict[str, float]:
    """The accuracy on disturbed images, fractions in [0, 1].

    Args:
        network: a classifier.
        split: images and labels.
        seed: of the random numbers; each batch has its own, so that batches do not depend on one another.
        pause: called between the batches; it may raise to stop.
    """
    model = _Pixels(network)
    right = dict.fromkeys(disturbances(), 0)
    size = evaluation_batch(*split.shape[-2:])
    with eval_mode(network.model):
        for start in range(0, len(split), size):
            x, y = split[start : start + size].float() / 255, split.labels[start : start + size]
            for number, (name, disturb) in enumerate(disturbances().items()):
                pause()
                generator = torch.Generator(x.device).manual_seed(derived_seed(seed, start, number))
                disturbed = disturb(model, x, y, generator)
                with torch.no_grad():
                    right[name] += int((model(disturbed).argmax(dim=1) == y).sum())
    return {name: number / len(split) for name, number in right.items()}


def fgsm(f: OfPixels, x: Tensor, y: Tensor, generator: torch.Generator, epsilon: float) -> Tensor:
    """One step of size ε up the gradient's sign.

    Args:
        f: maps pixels to logits.
        x: (B, 3, H, W) in [0, 1].
        y: (B,), the labels.
        generator: of random numbers; of these attacks PGD alone draws any.
        epsilon: ε.
    """
    return (x + epsilon * _gradient(f, x, y).sign()).clamp(0, 1)


def pgd(f: OfPixels, x: Tensor, y: Tensor, generator: torch.Generator, epsilon: float) -> Tensor:
    """`ascend` from a random place within ε; the arguments are those of `fgsm`."""
    start = x + epsilon * (2 * torch.rand(x.shape, generator=generator, device=x.device) - 1)
    return ascend(f, start.clamp(0, 1), x, y, epsilon)


def ascend(f: OfPixels, start: Tensor, x: Tensor, y: Tensor, epsilon: float) -> Tensor:
    """20 steps of ε/4 up the gradient's sign, each projected to the images within ε of x."""
    x_t = start
    for _ in range(PGD_STEPS):
        moved = x_t + STEP_SHARE * epsilon * _gradient(f, x_t, y).sign()
        x_t = torch.minimum(torch.maximum(moved, x - epsilon), x + epsilon).clamp(0, 1)
    return x_t


def noise(f: OfPixels, x: Tensor, y: Tensor, generator: torch.Generator, sigma: float) -> Tensor:
    """Gaussian noise of standard deviation σ on every value."""
    return (x + sigma * torch.randn(x.shape, generator=generator, device=x.device)).clamp(0, 1)


def blur(f: OfPixels, x: Tensor, y: Tensor, generator: torch.Generator, sigma: float) -> Tensor:
    """Gaussian blur of standard deviation σ, by a kernel that reaches 3·σ to each side, with the border mirrored."""
    reach = min(max(1, round(3 * sigma)), min(x.shape[-2:]) - 1)
    blurred: Tensor = transforms.gaussian_blur(x, [2 * reach + 1, 2 * reach + 1], [sigma, sigma])
    return blurred.clamp(0, 1)


def _gradient(f: OfPixels, x: Tensor, y: Tensor) -> Tensor:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(f(x).float(), y, reduction="sum"), x)
    return gradient


class _Pixels(nn.Module):
    """A network as a function of pixels in [0, 1]."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network.model((x - self.network.mean) / self.network.std)
        return logits
