"""Splits that do not fit the memory of the device: their images stay on the disk, and worker processes read and augment.

The workers are a `torch.utils.data.DataLoader`'s. What a batch is made of derives from its place alone (`Plan`), so it is
the same to the bit whichever worker makes it, on a CPU also the same as that of a split in memory.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from types import ModuleType
from typing import Any

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from icpctl.config import option
from icpctl.data import Split
from icpctl.data.augment import Augmentation
from icpctl.data.cache import check_unchanged
from icpctl.data.device import DeviceSplit
from icpctl.data.epochs import Plan
from icpctl.data.source import Stamp, stamp
from icpctl.errors import UserError

GIB = 2**30
MOST_WORKERS = 8


def choose_split(
    needed: int,
    device: torch.device,
    allowed: float | None,
    say: Callable[[str], None],
    agree: Callable[[bool], bool] = bool,
) -> type[DeviceSplit]:
    """How the splits of a run are kept: on the device if they fit, else on the disk, which is told to `say`.

    Args:
        needed: bytes that they take on the device.
        allowed: GiB that they may take there; None: half of what is free, as the rest is for the network, its
            gradients and outputs, and for the copies that augmentation makes.
        agree: what the processes of the run make of the answer of this one.
    """
    budget = _free_memory(device) / 2 if allowed is None else allowed * GIB
    if not agree(needed > budget):
        return DeviceSplit
    limit = option("data_memory") if allowed is not None else f"half of what is free; {option('data_memory')}"
    say(
        f"The images need {needed / GIB:.3g} GiB of memory on {device}, and may take {budget / GIB:.3g} GiB ({limit}): "
        "they are streamed from the disk."
    )
    return StreamedSplit


def _free_memory(device: torch.device) -> float:
    """Bytes, for each process of a run."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    return psutil.virtual_memory().available / _processes_here()


def _processes_here() -> int:
    """How many torchrun started on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or 1)


def default_workers() -> int:
    """Worker processes of a run: one for each of its threads, of which a study gives each of its runs a part."""
    if _processes_here() == 1:
        return min(torch.get_num_threads(), MOST_WORKERS)
    # torchrun gives each process one thread, whatever there is.
    return max(1, min((os.cpu_count() or 1) // _processes_here(), MOST_WORKERS))


class StreamedSplit(DeviceSplit):
    """A split whose images come to the device when they are asked for; its labels are there.

    `split.images` has to be memory-mapped, as `icpctl.data.load` gives it.
    """

    def _keep(self, split: Split, part: NDArray[Any] | None) -> None:
        assert isinstance(split.images, np.memmap)
        self.file = str(split.images.filename)
        self.stamp = split.stamp or stamp("images", self.file)
        self.indices = np.arange(len(split.labels)) if part is None else part
        self.workers = default_workers()
        """Of the next `batches` after a `close`."""
        self._loader: DataLoader[tuple[Tensor, ...]] | None = None
        self._places = _Places()

    def __getitem__(self, part: slice) -> Tensor:
        return torch.from_numpy(_rows(self.file, self.stamp, self.indices[part])).to(self.device)

    def batches(self, plan: Plan, epoch: int, start: int) -> Iterator[tuple[Tensor, ...]]:
        """The images (B, 3, H, W) of each batch of an epoch from batch `start` on, augmented; and their companions, if the plan has any.

        The first call starts the workers, which stay until `close`. They read the rows of this process alone; those
        of the others are black.

        Raises:
            UserError: a worker ended, or cannot read the images.
        """
        if self._loader is None:
            self._loader = self._make_loader(plan)
        self._places.all = [(epoch, batch) for batch in range(start, plan.batches)]
        for batch in _received(self._loader):
            yield tuple(self._whole(own.to(self.device, non_blocking=True), plan) for own in batch)

    def _whole(self, own: Tensor, plan: Plan) -> Tensor:
        """A batch of which this process has read its rows."""
        if plan.processes == 1:
            return own
        whole = own.new_zeros(plan.batch_size, *own.shape[1:])
        whole[plan.own_rows()] = own
        return whole

    def _make_loader(self, plan: Plan) -> DataLoader[tuple[Tensor, ...]]:
        atexit.register(self.close)  # before multiprocessing's own end, which would wait for the workers
        return DataLoader(
            _Batches(self.file, self.stamp, self.indices, plan),
            batch_size=None,  # an item is a batch
            sampler=self._places,
            num_workers=self.workers,
            persistent_workers=True,
            worker_init_fn=_leave_with_parent,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # else it would draw from the run's
            # A fork of a process that has threads, or CUDA, may hang; and a server that forks (forkserver) would go with
            # a signal to the whole group of processes.
            multiprocessing_context="spawn",
        )

    def close(self) -> None:
        """End the workers."""
        atexit.unregister(self.close)
        iterator = self._loader._iterator if self._loader is not None else None
        self._loader = None
        if iterator is not None:
            iterator._shutdown_workers()  # type: ignore[attr-defined]  # it has no public name
            for worker in iterator._workers:  # type: ignore[attr-defined]
                worker.kill()  # one that did not end in time; it has nothing to lose
                worker.join()


class _Places(Sampler[tuple[int, int]]):
    """(epoch, batch) of what is asked of the workers."""

    def __init__(self) -> None:
        self.all: list[tuple[int, int]] = []

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self.all)


@dataclass(frozen=True)
class _Batches(Dataset[tuple[Tensor, ...]]):
    """What a worker knows: where the images are, which ones to take, and how batches are made of them."""

    file: str  # rather than the mapped array, of which a pickle would hold the content
    stamp: Stamp
    indices: NDArray[Any]
    plan: Plan

    def __getitem__(self, place: tuple[int, int]) -> tuple[Tensor, ...]:
        """The rows of this process of the batch at (epoch, batch)."""
        epoch, batch = place
        first, own = self.plan.rows(batch).start, self.plan.own_rows()
        part = slice(first + own.start, first + own.stop)
        return tuple(
            augmentation(torch.from_numpy(_rows(self.file, self.stamp, self.indices[order[part].numpy()])), part)
            for order, augmentation in _drawn(self.plan, epoch)
        )


def _rows(file: str, stamp: Stamp, indices: NDArray[Any]) -> NDArray[np.uint8]:
    """Some of the images in a file; UserError if it is not the one of that stamp any more."""
    check_unchanged(file, stamp)  # first: reading what was cut off a mapped file would end the process
    rows: NDArray[np.uint8] = _mapped(file, stamp)[indices]
    check_unchanged(file, stamp)
    return rows


@cache
def _mapped(file: str, stamp: Stamp) -> NDArray[np.uint8]:
    images: NDArray[np.uint8] = np.load(file, mmap_mode="r")
    return images


@lru_cache(maxsize=1)
def _drawn(plan: Plan, epoch: int) -> list[tuple[Tensor, Augmentation]]:
    """Drawn anew by each worker, once an epoch: that takes less than sending it, for a million images too."""
    return plan.draw(epoch)


def _received(loader: DataLoader[tuple[Tensor, ...]]) -> Iterator[tuple[Tensor, ...]]:
    """What the workers make.

    Raises:
        UserError: says how one came to its end.
    """
    try:
        with _starting_workers():
            batches = iter(loader)
        yield from batches
    except UserError as error:  # of a worker, whose message is its traceback
        raise UserError(_last_line(error).partition(": ")[2]) from error
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"A process that reads the training images came to its end: {_last_line(error)} If memory or /dev/shm is short, lower "
            f"{option('batch_size')}. The same command goes on from the last checkpoint."
        ) from error


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1]


@contextmanager
def _starting_workers() -> Iterator[None]:
    """The workers that start in here import nothing of the user's, and take no part in a stop."""
    main = sys.modules["__main__"]
    # Workers import the main module, which would run a script that has no `if __name__ == "__main__"` once more.
    sys.modules["__main__"] = ModuleType("__main__")
    # A stop that goes to the whole group of processes (Ctrl-C, a scheduler) is this process's affair: it lets the batch
    # end, for which it may need the workers. They inherit what is blocked here.
    if hasattr(signal, "pthread_sigmask"):
        from multiprocessing import resource_tracker

        resource_tracker.ensure_running()  # started later, it would unblock them
        stops = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}
        before = signal.pthread_sigmask(signal.SIG_BLOCK, stops)
    handler = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        # Torch's handler raises wherever the run is when a worker dies; without it, asking for the next batch does.
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, handler)


def _leave_with_parent(_: int) -> None:
    """A worker ends when the process that started it does, however that ends."""

    def wait() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
