"""What the benchmarks share: timing side by side, the machine in words, tables, random images."""

from __future__ import annotations

import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

from icpctl.data import ImageData, Split
from icpctl.training.graphs import CapturedSteps

TURN = 10
"""Pieces of work on CUDA between two waits for the device."""

clock = time.perf_counter
"""What times a piece of work; `processor_seconds` where the machine is at other work."""


def processor_seconds() -> float:
    """Of this process and of those that it has waited for."""
    own, children = (resource.getrusage(of) for of in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def random_images(count: int, side: int, classes: int) -> ImageData:
    """Images of noise: what a step costs does not depend on them."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (count, 3, side, side), dtype=np.uint8)
    split = Split(images, np.arange(count, dtype=np.int64) % classes)
    return ImageData("random", split, split, tuple(map(str, range(classes))), "random")


def interleaved(work: Mapping[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, float]:
    """The median seconds of each piece of work.

    Every round times each of them in turn, so that a slow moment of the machine falls on all; rounds before are to warm up. A turn is
    one piece on a CPU. On CUDA it is several, and the device is waited for after the last one alone, as in training.
    """
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(warm_up(device)):
        for piece in work.values():
            piece()
    pieces = TURN if device.type == "cuda" else 1
    for _ in range(rounds):
        for name, piece in work.items():
            seconds[name].append(unsynchronised(piece, pieces, device))
    return {name: statistics.median(values) for name, values in seconds.items()}


def unsynchronised(piece: Callable[[], object], times: int, device: torch.device) -> float:
    """The mean seconds of a piece that is done so many times, with one wait for the device at the end."""
    synchronise(device)
    started = clock()
    for _ in range(times):
        piece()
    synchronise(device)
    return (clock() - started) / times


def warm_up(device: torch.device) -> int:
    """How often to do a piece before it is timed: a step on CUDA is not what training does before its graph is in use."""
    return CapturedSteps.BEFORE_USE if device.type == "cuda" else 2


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(device: torch.device) -> float:
    """Bytes: reserved on CUDA, as what a captured step needs beside its results is not allocated; on a CPU resident, of the whole process."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_reserved(device))
    # On Linux ru_maxrss is at least what the process that started this one had; the high-water mark is its own.
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.exists() else []:
        if line.startswith("VmHWM:"):
            return float(line.split()[1]) * 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))


def matrix_product(device: torch.device, size: int = 2048) -> tuple[Callable[[], object], int]:
    """A float32 matrix product, and its floating-point operations: what the device can do at best."""
    a, b = torch.randn(2, size, size, device=device)
    return lambda: a @ b, 2 * size**3


def machine(device: torch.device) -> str:
    """Date, hardware, threads and versions: what a figure was measured on."""
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return (
        f"{datetime.now(UTC):%Y-%m-%d}; {hardware}, {torch.get_num_threads()} threads, Python {platform.python_version()}, "
        f"torch {torch.__version__}"
    )


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def command() -> str:
    """The command line of this benchmark."""
    return " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])


def table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table; all but the first column are numbers, to the right."""
    columns = list(header)
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *([str(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
