"""A model together with the units of its inputs; and such a one read from a checkpoint."""

from __future__ import annotations

import ctypes
import math
import sys
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.torch_version import TorchVersion

from icpctl import models
from icpctl.config import RECORDED, RunConfig, resolve
from icpctl.errors import UserError
from icpctl.methods.evalmode import eval_mode
from icpctl.models import own
from icpctl.runs import checkpoint

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
EVALUATION_BATCH = 500  # images of 32 pixels; fewer of larger ones


def choose_device(name: str) -> torch.device:
    """The device that --device means.

    Raises:
        UserError: it is not there.
    """
    resolve({"device": name})
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {name}: torch sees {torch.cuda.device_count()} CUDA devices here. Use --device cpu.")
    return device


def set_precision(precision: str) -> None:
    """Float32 arithmetic is IEEE's unless TF32 is asked for; torch's own default lets convolutions use TF32."""
    with warnings.catch_warnings(
        action="ignore"
    ):  # there are newer flags; once they are set, reading these raises, as parts of torch do
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        torch.backends.cudnn.allow_tf32 = precision == "tf32"


def keep_freed_memory() -> None:
    """Let the process keep the memory that it frees for its next tensors, where the C library is glibc.

    By default glibc gives large blocks back to the system, which has to clear them again for the next ones. While the
    student's graph is alive during the perturbation, that costs a tenth of a step on a CPU.
    """
    with suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        for parameter in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
            mallopt(parameter, 2**30)


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """bfloat16 where it was asked for; else nothing."""
    return torch.autocast(
        device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=keeps_gradients(torch.__version__)
    )


def keeps_gradients(torch_version: str) -> bool:
    """Whether a torch casts a weight anew for a pass with gradients, where it was cast in one without.

    Before version 2.11 it does not (pytorch issue 112583), and the weight would not be trained.
    """
    return bool(TorchVersion(torch_version) >= TorchVersion("2.11"))


def evaluation_batch(height: int, width: int) -> int:
    """Images of this size to pass through a network at once without gradients."""
    return max(1, EVALUATION_BATCH * 32**2 // max(32**2, height * width))


class Images(Protocol):
    """uint8 (N, 3, H, W): a tensor, or what gives tensors on the device, such as a `DeviceSplit`."""

    @property
    def shape(self) -> torch.Size: ...

    @property
    def device(self) -> torch.device: ...

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> Tensor: ...


def peak_memory(device: torch.device) -> float:
    """Bytes: of the device since its statistics were reset on CUDA, of the process so far on a CPU.

    On CUDA what torch has reserved: what a captured step needs beside its results stays taken, but is not allocated.
    """
    if device.type == "cuda":
        return float(torch.cuda.max_memory_reserved(device))
    if sys.platform == "win32":
        return math.nan
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def to_floats(values: dict[str, Tensor]) -> dict[str, float]:
    """Scalars brought to the host in one go."""
    return dict(zip(values, torch.stack([v.double() for v in values.values()]).tolist(), strict=True))


@dataclass(frozen=True)
class Network:
    """A model on its device, with the mean and standard deviation, (3, 1, 1) in [0, 1], of what it was trained on."""

    model: nn.Module
    mean: Tensor
    std: Tensor
    precision: str = "float32"

    @property
    def device(self) -> torch.device:
        return self.mean.device

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) to float32 in normalised units, channels last in memory."""
        return ((images.float() / 255 - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def pixels(self, x: Tensor) -> Tensor:
        """Normalised units back to uint8, rounded, and clamped to what a pixel can be."""
        return ((x.float() * self.std + self.mean) * 255).round().clamp(0, 255).to(torch.uint8)

    def autocast(self) -> torch.autocast:
        """The precision of the passes."""
        return autocast(self.precision, self.device)

    def batches(self, images: Images) -> Iterator[tuple[Tensor, Any]]:
        """The normalised inputs and the outputs in eval mode for uint8 images, batch by batch, without gradients."""
        size = evaluation_batch(*images.shape[-2:])
        for start in range(0, len(images), size):
            x = self.normalise(images[start : start + size])
            with torch.no_grad(), eval_mode(self.model), self.autocast():
                output = self.model(x)
            yield x, output


def build_model(config: RunConfig, num_classes: int, device: torch.device) -> nn.Module:
    """The model of a run, with fresh weights, on the device."""
    model = models.build(config.model, num_classes, config.stem, config.image_size, config.latent_dim)
    if any(parameter.dim() > 4 for parameter in model.parameters()):  # of three-dimensional convolutions, say
        return model.to(device)
    return model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


@dataclass(frozen=True)
class Trained:
    """A trained network, and what its checkpoint says of the run."""

    file: Path
    config: RunConfig
    network: Network
    classes: tuple[str, ...]
    image_size: tuple[int, int]
    """Height and width of the images it was trained on."""
    fingerprint: str
    """Of the data set it was trained on."""
    code_change: str
    """How the user's code of the model differs from what it was trained with, in words; empty if it does not."""


def load_trained(path: str | Path, which: str = "last", device: str = "auto") -> Trained:
    """The network of a run folder or of a checkpoint file.

    Args:
        path: a run folder, or a checkpoint file.
        which: last or best, for a run folder.
        device: cpu, cuda, cuda:N or auto.

    Raises:
        UserError: no such run or checkpoint, one that cannot be read, a device that is not there.
    """
    target = choose_device(device)
    file = _checkpoint_file(Path(path), which)
    saved = checkpoint.load(file, target)
    config = resolve(saved["config"], str(file), RECORDED)
    with torch.random.fork_rng(devices=[]):  # fresh weights are drawn, and then replaced
        model = build_model(config, len(saved["classes"]), target)
    code_change = own.change(config.model, saved.get("source"))
    try:
        model.load_state_dict(checkpoint.weights_of(saved, model))
    except (RuntimeError, ValueError):
        fault = f"The weights in {file} do not fit the model {config.model} of this version."
        raise UserError(" ".join(filter(None, [fault, code_change, "Train it anew with --overwrite."]))) from None
    height, width = saved["image_size"]
    return Trained(
        file,
        config,
        Network(model, saved["mean"], saved["std"], config.precision),
        tuple(saved["classes"]),
        (height, width),
        saved["fingerprint"],
        code_change,
    )


def _checkpoint_file(path: Path, which: str) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise UserError(
            f"There is no run folder or checkpoint {path}. `icpctl report` lists the runs of a results folder."
        )
    if not (path / "checkpoints").is_dir():
        raise UserError(
            f"{path} is not the folder of a run: it has no checkpoints. Give results/<run-id>, or a .pt file."
        )
    file = path / "checkpoints" / f"{which}.pt"
    if which == "best" and not file.exists():
        raise UserError(
            f"{path} has no best checkpoint: it held out no images (--val-fraction 0), or no epoch has ended."
        )
    return file
