"""How the cost of an engine's step grows: with T, the batch, the size of the images, the model; and its memory with T.

    python benchmarks/scaling.py > benchmarks/results/scaling.md

With T the time of a step should be a straight line whose slope is one pass of the perturbation, measured bare
(floor.py), and the memory should not grow. Within a part every round times one step of each setting in turn. The memory is
that of a fresh process for each T after some steps: resident on a CPU, reserved by torch on CUDA. ResNet-20, batch 32,
images of 32 pixels, AdEMAMix-ICP with T = 5, float32, where nothing else is said; images are random.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
import psutil
import torch
from floor import Floor
from measure import command, interleaved, machine, peak_memory, table, warm_up
from step import TASK_WEIGHT, engine, engine_step, inputs, reference
from torch.nn.modules.batchnorm import _BatchNorm

from icpctl.methods.icp.method import ICP
from icpctl.models.network import choose_device, set_precision
from icpctl.training.trainer import Trainer

STEPS = (1, 2, 3, 5, 8, 12, 20)
MEMORY_STEPS = (1, 5, 20)
SIDES_OF_MEMORY = ("engine", "reference")


@dataclass(frozen=True)
class Setting:
    """A model and its inputs."""

    model: str = "resnet20"
    batch: int = 32
    side: int = 32
    stem: str = "imagenet"

    def __str__(self) -> str:
        stem = f" (stem {self.stem})" if self.stem != "imagenet" else ""
        return f"{self.model}{stem}, batch {self.batch}, {self.side} pixels"


SETTINGS = {
    "batch": [Setting(batch=batch) for batch in (16, 32, 64, 128, 256)],
    "size": [Setting(side=side) for side in (32, 48, 64, 96)],
    "model": [
        *(Setting(model) for model in ("resnet20", "resnet32", "resnet56")),
        Setting("resnet18", stem="cifar"),
        Setting("mobilenet_v2"),
        Setting("vae", side=64),
    ],
}
ROUNDS = {"steps": 1.0, "batch": 0.4, "size": 0.4, "model": 0.25}
"""Shares of the rounds asked for, which the larger steps get."""
PARTS = ("steps", "batch", "size", "model", "memory")


@dataclass(frozen=True)
class Line:
    """The seconds of a step for every T, and the straight line through them."""

    seconds: dict[int, float]
    slope: float
    intercept: float
    perturbation_pass: float
    """Seconds of a bare one."""

    def deviation(self, steps: int) -> float:
        """Of the time from the line, relative."""
        return self.seconds[steps] / (self.intercept + self.slope * steps) - 1


@dataclass(frozen=True)
class Row:
    """Seconds of a step of plain training and of one of the method."""

    setting: Setting
    plain: float
    icp: float
    folded: int
    """Batch norms that the perturbation's network does without."""
    batch_norms: int


@dataclass(frozen=True)
class Memory:
    """Bytes of a process: its peak, and by how much that is above what it had before the first step."""

    side: str
    steps: int
    peak: float
    growth: float
    allocated: float
    """At the peak, on CUDA; on a CPU the peak itself."""


def measure_steps(rounds: int, device: torch.device) -> Line:
    """How the time grows with T."""
    trainers = {t: engine("resnet20", "ademamix", t, 32, device) for t in STEPS}
    some = trainers[STEPS[0]]
    bare = Floor(copy.deepcopy(some.model), some.task.loss, *inputs(some))
    work: dict[str, Callable[[], object]] = {str(t): partial(engine_step, trainer) for t, trainer in trainers.items()}
    seconds = interleaved({"pass": bare.perturbation_pass, **work}, rounds, device)
    of_step = {t: seconds[str(t)] for t in STEPS}
    slope, intercept = np.polyfit(STEPS, list(of_step.values()), 1)
    return Line(of_step, float(slope), float(intercept), seconds["pass"])


def measure_settings(settings: Sequence[Setting], rounds: int, device: torch.device) -> list[Row]:
    """The method, T = 5, beside plain training."""
    work: dict[str, Callable[[], object]] = {}
    trainers = {}
    for setting in settings:
        for name, optimizer, steps in (("plain", "none", 0), ("icp", "ademamix", 5)):
            trainer = engine(
                setting.model, optimizer, steps, setting.batch, device, side=setting.side, stem=setting.stem
            )
            work[f"{name} {setting}"] = partial(engine_step, trainer)
        trainers[setting] = trainer
    seconds = interleaved(work, rounds, device)
    return [
        Row(setting, seconds[f"plain {setting}"], seconds[f"icp {setting}"], *batch_norms(trainers[setting]))
        for setting in settings
    ]


def batch_norms(trainer: Trainer) -> tuple[int, int]:
    """How many batch norms were folded in the last pass of the perturbation, and how many there are."""
    assert isinstance(trainer.method, ICP)
    folded = trainer.method.distiller.folded
    return folded.norms if folded else 0, sum(isinstance(module, _BatchNorm) for module in trainer.model.modules())


def measure_memory(device: torch.device) -> list[Memory]:
    """Every T in a process of its own."""
    found = []
    for side in SIDES_OF_MEMORY:
        for steps in MEMORY_STEPS:
            arguments = [sys.executable, __file__, "--device", str(device), "--memory-of", side, str(steps)]
            said = subprocess.run(arguments, check=True, stdout=subprocess.PIPE, text=True).stdout
            found.append(Memory(**json.loads(said)))
    return found


def memory_of(side: str, steps: int, device: torch.device) -> Memory:
    """The memory of this process, by some steps of one side."""
    trainer = engine("resnet20", "ademamix", steps, 32, device)
    work: Callable[[], object] = partial(engine_step, trainer)
    if side == "reference":
        peer, x, y = reference(trainer)
        work = partial(peer.step, x, y, TASK_WEIGHT)
    before = torch.cuda.memory_reserved(device) if device.type == "cuda" else psutil.Process().memory_info().rss
    for _ in range(warm_up(device) + 1):
        work()
    peak = peak_memory(device)
    allocated = float(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else peak
    return Memory(side, steps, peak, peak - before, allocated)


def steps_in_words(line: Line) -> str:
    rows = [(t, f"{s * 1e3:.1f}", f"{line.deviation(t):+.1%}") for t, s in line.seconds.items()]
    furthest = max(abs(line.deviation(t)) for t in line.seconds)
    return (
        f"## Steps of the perturbation\n\n{table(['T', 'ms', 'from the line'], rows)}\n\n"
        f"The line: {line.intercept * 1e3:.1f} ms + {line.slope * 1e3:.2f} ms · T, from which the times are at most "
        f"{furthest:.1%} away. A bare pass takes {line.perturbation_pass * 1e3:.2f} ms: the slope is "
        f"{line.slope / line.perturbation_pass:.3f} of it.\n"
    )


def settings_in_words(title: str, rows: Iterable[Row]) -> str:
    header = [title, "plain, ms", "ICP, ms", "ICP / plain", "ICP, ns a pixel", "batch norms folded"]
    cells = [
        (
            row.setting,
            f"{row.plain * 1e3:.1f}",
            f"{row.icp * 1e3:.1f}",
            f"{row.icp / row.plain:.2f}",
            f"{row.icp * 1e9 / (row.setting.batch * row.setting.side**2):,.0f}",
            f"{row.folded} of {row.batch_norms}",
        )
        for row in rows
    ]
    return f"## {title.capitalize()}\n\n{table(header, cells)}\n"


def memory_in_words(found: Sequence[Memory]) -> str:
    least = {each.side: each for each in found if each.steps == MEMORY_STEPS[0]}
    rows = [
        (
            f"{each.side}, T = {each.steps}",
            f"{each.peak / 2**20:,.0f}",
            f"{each.peak / least[each.side].peak:.3f}",
            f"{each.growth / 2**20:,.0f}",
            f"{each.growth / least[each.side].growth:.3f}",
        )
        for each in found
    ]
    of_least = f"times that of T = {MEMORY_STEPS[0]}"
    header = ["process", "peak, MiB", of_least, "above that before the first step, MiB", of_least]
    return f"## Peak memory\n\n{table(header, rows)}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=20, help="of the steps; fewer of the rest, which take longer")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", action="store_true", help="the figures as JSON")
    parser.add_argument("--memory-of", nargs=2, metavar=("SIDE", "T"), help=argparse.SUPPRESS)
    options = parser.parse_args()

    device = choose_device(options.device)
    set_precision("float32")
    if options.memory_of:
        side, steps = options.memory_of
        print(json.dumps(asdict(memory_of(side, int(steps), device))))
        return
    figures: dict[str, object] = {}
    if not options.json:
        print("# How the cost of a step grows\n")
        print(f"{machine(device)}; `{command()}`; medians of interleaved rounds.\n")
    for part in options.parts:
        rounds = max(3, round(options.rounds * ROUNDS.get(part, 1)))
        if part == "steps":
            line = measure_steps(rounds, device)
            figures[part], words = asdict(line), steps_in_words(line)
        elif part == "memory":
            memory = measure_memory(device)
            figures[part], words = [asdict(each) for each in memory], memory_in_words(memory)
        else:
            rows = measure_settings(SETTINGS[part], rounds, device)
            figures[part], words = [asdict(row) for row in rows], settings_in_words(part, rows)
        if not options.json:
            print(words, flush=True)
    if options.json:
        print(json.dumps({"machine": machine(device), "command": command(), **figures}))


if __name__ == "__main__":
    main()
