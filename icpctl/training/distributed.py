"""What the processes of one run share: torchrun starts them, and each trains on its part of every batch.

Gradients are averaged by torch's `DistributedDataParallel`, batch norm sees the whole batch, and the first process alone
writes and speaks. Without torchrun there is one process, and everything here gives back what it is given.
"""

from __future__ import annotations

import io
import itertools
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from icpctl.config import RunConfig, option
from icpctl.errors import UserError
from icpctl.methods.icp.perturbation import at_least_float32
from icpctl.models.network import choose_device
from icpctl.training.meter import Meter

T = TypeVar("T")

PATIENCE = timedelta(days=1)  # the others wait while the first one evaluates; one that died is noticed at once


@dataclass(frozen=True)
class Processes:
    """The processes of one run; this is the one of this `rank`."""

    rank: int = 0
    size: int = 1
    store: Store | None = None
    """Where one that fails leaves its reason."""

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and speaks."""
        return self.rank == 0

    def whole_batch(self, config: RunConfig, say: Callable[[str], None]) -> RunConfig:
        """The run of all processes from that of one: --batch-size is what each of them takes.

        Raises:
            UserError: the run cannot be divided.
        """
        if self.size == 1:
            return config
        if config.icp_state == "carry":
            raise UserError(
                "--icp-state carry keeps a state of the shape of a batch, which several processes do not share. Train it "
                "in one process."
            )
        whole = config.batch_size * self.size
        say(f"{self.size} processes of {config.batch_size} images train one run of {option('batch_size')} {whole}.")
        return config.altered(batch_size=whole)

    def share(self, model: nn.Module) -> nn.Module:
        """The model to train with: gradients are averaged; batch norm is replaced in `model` itself."""
        if self.size == 1:
            return model
        for name, module in model.named_modules():
            if type(module) is nn.BatchNorm2d:
                module.__class__ = BatchNorm2d  # parameters, buffers, hooks and their names stay
            elif isinstance(module, nn.modules.batchnorm._BatchNorm):
                raise UserError(
                    f"The batch norm {name} of this model is a {type(module).__name__}, whose statistics several processes do not "
                    "share; they share those of nn.BatchNorm2d. Train it in one process."
                )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # some releases of torch want the argument by another name
            # The buffers are equal as they are: all come from reduced sums.
            return DistributedDataParallel(model, broadcast_buffers=False)

    def part(self, batch: Tensor) -> Tensor:
        """The rows of a whole batch that are this process's."""
        return batch if self.size == 1 else batch.chunk(self.size)[self.rank]

    def gather(self, tensor: Tensor) -> Tensor:
        """(N, …): the tensor of every process, in the order of their ranks."""
        everyone = tensor.new_empty(self.size, *tensor.shape)
        dist.all_gather_into_tensor(everyone.view(-1), tensor.contiguous().view(-1))
        return everyone

    def whole(self, batch: Tensor) -> Tensor:
        """What there is of each image of the whole batch, (B, …), from the part of each process."""
        if self.size == 1:
            return batch
        whole = self.gather(batch).flatten(0, 1)
        return whole.contiguous(memory_format=torch.channels_last) if whole.dim() == 4 else whole

    def whole_meter(self, meter: Meter) -> Meter:
        """The figures of the epoch so far over whole batches, from those of the part of each process."""
        return meter if self.size == 1 else meter.whole(self.gather)

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in one of them at least; does not wait for the device."""
        if self.size == 1:
            return flag
        flags = torch.tensor(int(flag))
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        return bool(flags)

    def lead(self, work: Callable[[], T], device: torch.device | str = "cpu") -> T:
        """What `work` gives in the first process, which alone does it; a stop that is asked for there stops all.

        Tensors of it come to `device`.
        """
        if self.size == 1:
            return work()
        outcome: list[bytes | KeyboardInterrupt] = [b""]
        if self.first:
            try:
                buffer = io.BytesIO()
                torch.save(work(), buffer)
                outcome = [buffer.getvalue()]
            except KeyboardInterrupt as stop:
                outcome = [stop]
        dist.broadcast_object_list(outcome, device=torch.device("cpu"))
        if isinstance(outcome[0], KeyboardInterrupt):
            raise outcome[0]
        return torch.load(io.BytesIO(outcome[0]), map_location=device, weights_only=False)  # type: ignore[no-any-return]

    def explain(self, error: Exception) -> Exception:
        """The error itself; in words where a collective failed, as it does when another process ended."""
        if self.store is None or not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            return error
        reason = "."
        with suppress(dist.DistError):  # the store may have gone with the other process
            if self.store.check(["reason"]):
                reason = f": {self.store.get('reason').decode()}"
        return UserError(
            f"Another process of this run ended{reason} The same command goes on from the last checkpoint."
        )


ALONE = Processes()
_RUNS = itertools.count()  # of one torchrun, whose store keeps the addresses of those before


@contextmanager
def processes(config: RunConfig) -> Iterator[tuple[Processes, torch.device]]:
    """Join the processes that torchrun started for a run; and the device of this one.

    Raises:
        UserError: a device that is not there, or one for all of them.
    """
    size = int(os.environ.get("WORLD_SIZE") or 1)
    if size == 1:
        yield ALONE, choose_device(config.device)
        return
    if missing := [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]:
        raise UserError(f"WORLD_SIZE is {size}, but {missing[0]} is not set. Start several processes with torchrun.")
    device = own_device(config.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    store, rank, _ = next(rendezvous("env://", timeout=PATIENCE))
    store = PrefixStore(f"icpctl/{next(_RUNS)}", store)
    shared = Processes(rank, size, store)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
        yield shared, device
    except KeyboardInterrupt:  # all were asked to stop, and leave when the first one is done
        with suppress(RuntimeError):
            shared.any(False)
        raise
    except Exception as error:
        explained = shared.explain(error)
        if explained is not error:
            raise explained from error
        with suppress(dist.DistError):
            store.set("reason", str(error))
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def own_device(name: str) -> torch.device:
    """The device that --device means for this one of several processes.

    Raises:
        UserError: it is not there, or is one for all of them.
    """
    device = choose_device(name)
    if device.type == "cpu":
        return device
    if device.index is not None:
        raise UserError(
            f"{option('device')} {name}: each of several processes takes a device of its own. Use {option('device')} cuda."
        )
    here = int(os.environ["LOCAL_WORLD_SIZE"])
    if here > torch.cuda.device_count():
        raise UserError(
            f"There are {here} processes, but torch sees {torch.cuda.device_count()} CUDA devices here. Start as many "
            f"processes as there are devices, or use {option('device')} cpu."
        )
    return torch.device("cuda", int(os.environ["LOCAL_RANK"]))


class BatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` over the whole batch, of which every process has a part of the same size (B, C, H, W).

    Unlike `nn.SyncBatchNorm` it runs on every device. In eval mode both are the same.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        x = at_least_float32(input)
        variance, mean = torch.var_mean(x, dim=(0, 2, 3), correction=0)
        # In float64, as the variance is a difference of what may be large.
        moments = torch.stack([mean.double(), variance.double() + mean.double().square()])
        mean, square = _Sum.apply(moments) / dist.get_world_size()
        variance = square - mean.square()
        if self.track_running_stats:
            self._track(mean.detach(), variance.detach(), x.numel() // len(mean) * dist.get_world_size())
        scale = (variance + self.eps).rsqrt().to(x.dtype)
        normalised = (x - _channels(mean.to(x.dtype))) * _channels(scale)
        return (normalised * _channels(self.weight) + _channels(self.bias)).to(input.dtype)

    def _track(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Move the running statistics; the variance, of `count` values a channel, becomes the unbiased one."""
        assert self.num_batches_tracked is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        self.num_batches_tracked.add_(1)
        factor = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), factor)
        self.running_var.lerp_((variance * count / (count - 1)).to(self.running_var.dtype), factor)


class _Sum(torch.autograd.Function):
    """The sum over all processes; differentiable."""

    @staticmethod
    def forward(context: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        # Each process has the gradient of its own loss; all of their losses depend on this process's term.
        return _Sum.forward(context, gradient)


def _channels(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1)
