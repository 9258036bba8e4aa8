"""The checks of gpu.py that are about right and wrong: precision, captured steps, gradients, waits, streaming.

Each takes the `Setting` and gives its `Line`s one by one, so that what was found before an exception is kept.
"""

from __future__ import annotations

import subprocess
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import streaming
import torch
from measure import machine, random_images
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

import icpctl
from icpctl.data.streaming import StreamedSplit
from icpctl.models.network import set_precision
from icpctl.training.graphs import CapturedSteps, CudaGraphs, Update
from icpctl.training.meter import Figures, Meter
from icpctl.training.trainer import Images, Trainer

EXACT = 1e-5
"""Of ‖a − b‖ / ‖b‖ for a convolution in float32 against float64; in TF32 it is about 3e-4."""
METHOD_EPOCH = 3
"""Of four, the first of which is plain: its task weight is a half."""
KINDS = {
    "plain": (0, 1),
    "with the method": (METHOD_EPOCH, 1),
    "with the method and the loss after it": (METHOD_EPOCH, 10),
}
"""The epoch and the number of a step of each kind."""
MODELS = ("resnet20", "vae")

Result = Literal["pass", "fail", "skip", "figure"]


@dataclass(frozen=True)
class Line:
    """One thing that was found."""

    what: str
    result: Result
    said: str
    figures: Mapping[str, float] = field(default_factory=dict)
    block: str = ""
    """Text of several lines that belongs to it."""
    check: str = ""


@dataclass(frozen=True)
class Setting:
    """How the checks are done."""

    device: torch.device
    short: bool
    """Everything as small as it can be."""
    folder: Path
    """For files that go when the check has ended."""

    def of(self, whole: int, short: int) -> int:
        """A number of the whole form, or of the short one."""
        return short if self.short else whole


class Skipped(Exception):  # noqa: N818
    """A check cannot be done here; says why."""


class Wrong(Exception):  # noqa: N818
    """A check found something wrong; says what."""


def verdict(what: str, good: bool, said: str, **figures: float) -> Line:
    return Line(what, "pass" if good else "fail", said, figures)


def figure(what: str, said: str, block: str = "", **figures: float) -> Line:
    return Line(what, "figure", said, figures, block)


def attempt(what: str, work: Callable[[], str]) -> Line:
    """A part of a check, whose failure does not keep the other parts from being tried."""
    try:
        return Line(what, "pass", work())
    except Exception as error:
        return failure(what, error)


def failure(what: str, error: Exception) -> Line:
    """An exception as a line, with its traceback; Wrong needs none, as it names the finding."""
    if isinstance(error, Wrong):
        return Line(what, "fail", str(error))
    block = "".join(traceback.format_exception(error))
    return Line(what, "fail", in_a_line(error), block=block)


def in_a_line(error: BaseException) -> str:
    """The last line of the traceback; of an error of CUDA, which goes on for several, the one that says which it is."""
    return traceback.format_exception_only(error)[0].strip().splitlines()[0]


def require(condition: object, otherwise: str) -> None:
    if not condition:
        raise Wrong(otherwise)


def trainer_of(
    setting: Setting, model: str = "resnet20", *, device: torch.device | None = None, batches: int = 4, **settings: Any
) -> tuple[Trainer, list[str]]:
    """The trainer of a run on random images, and what it says: AdEMAMix-ICP, four epochs, the first of them plain."""
    given: dict[str, Any] = {"model": model, "optimizer": "ademamix", "steps": setting.of(5, 1), "val_fraction": 0.0}
    given |= {"epochs": 4, "warmup_epochs": 1, "batch_size": setting.of(32, 8), "augmentation": "none"}
    given |= {"image_size": setting.of(32, 16)} | settings
    config = icpctl.RunConfig.model_validate(given)
    set_precision(config.precision)
    assert config.image_size is not None
    images = random_images(batches * config.batch_size, config.image_size, 10)
    said: list[str] = []
    trainer = Trainer(config, images, device or setting.device, say=said.append)
    trainer.method.train()
    return trainer, said


def take(trainer: Trainer, epoch: int, step: int, times: int, batches: list[Images] | None = None) -> list[Tensor]:
    """The losses of steps of one kind, on one batch after another."""
    batches = batches or list(trainer.epoch_batches(epoch))
    return [trainer.step(epoch, step, batches[i % len(batches)]).loss for i in range(times)]


def captured(trainer: Trainer, said: list[str], kinds: int = 1) -> CapturedSteps:
    """The captured steps of a trainer, of so many kinds.

    Raises:
        Wrong: there are fewer, and why.
    """
    require(trainer.captured is not None, "no step is captured")
    assert trainer.captured is not None
    found = len(trainer.captured._graphs)
    require(found >= kinds, " ".join(said) or f"graphs are in use for {found} kinds of step of {kinds}")
    return trainer.captured


def relative(a: Tensor, b: Tensor) -> float:
    """‖a − b‖ / ‖b‖."""
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).norm() / b.norm())


def hardware(setting: Setting) -> Iterator[Line]:
    """GPU, driver, torch, and the flags that a run sets."""
    yield figure("hardware and torch", machine(setting.device))
    if setting.device.type == "cuda":
        properties = torch.cuda.get_device_properties(setting.device)
        asked = [
            "nvidia-smi",
            "--query-gpu=driver_version,clocks.max.sm,power.limit",
            "--format=csv,noheader",
            "--id=0",
        ]
        driver = attempt("", lambda: subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip())
        yield figure("GPU", f"capability {properties.major}.{properties.minor}, {properties.multi_processor_count} "
                     f"multiprocessors, {properties.total_memory / 2**30:.0f} GiB; {torch.cuda.device_count()} of them")  # fmt: skip
        yield figure("driver, clock, power", driver.said)
        yield figure("libraries", f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}")
    set_precision("float32")
    flags = {
        "matmul TF32": torch.backends.cuda.matmul.allow_tf32,
        "cuDNN TF32": torch.backends.cudnn.allow_tf32,
        "cuDNN benchmark": torch.backends.cudnn.benchmark,
        "cuDNN deterministic": torch.backends.cudnn.deterministic,
    }
    told = ", ".join(f"{name} {'on' if value else 'off'}" for name, value in flags.items())
    yield verdict("flags of float32", not flags["matmul TF32"] and not flags["cuDNN TF32"], told)


CONVOLUTIONS = [(3, 16, 3, 1), (16, 16, 3, 1), (16, 32, 3, 2), (32, 64, 1, 2), (64, 64, 3, 1)]
"""Channels in and out, kernel, stride."""


def convolutions(setting: Setting) -> Iterator[Line]:
    """Outputs and gradients of convolutions and of a product of matrices in float32 against float64."""
    torch.manual_seed(0)
    precisions = ["float32", "tf32"] if setting.device.type == "cuda" else ["float32"]
    for precision in precisions:
        set_precision(precision)
        errors = {}
        for layout in (torch.contiguous_format, torch.channels_last):
            for channels, out, kernel, stride in CONVOLUTIONS:
                x, weight = (
                    torch.randn(setting.of(32, 8), channels, 32, 32),
                    torch.randn(out, channels, kernel, kernel),
                )
                name = f"{channels}→{out}, {kernel}×{kernel}, {str(layout).removeprefix('torch.')}"
                errors[name] = _error(
                    setting.device,
                    partial(F.conv2d, stride=stride, padding=kernel // 2),
                    x.contiguous(memory_format=layout),
                    weight.contiguous(memory_format=layout),
                )
        errors["matrices"] = _error(setting.device, torch.matmul, torch.randn(256, 512), torch.randn(512, 128))
        name, worst = max(errors.items(), key=lambda item: item[1])
        told = f"at most {worst:.1e}, at {name}; the bar of float32 is {EXACT:.0e}"
        if precision == "float32":
            yield verdict(f"{precision} against float64", worst <= EXACT, told, worst=worst)
        else:
            yield figure(f"{precision} against float64", told, worst=worst)
    set_precision("float32")


def _error(device: torch.device, function: Callable[..., Tensor], *inputs: Tensor) -> float:
    """The largest relative error of the outputs and of the gradients of the inputs."""
    found = []
    for dtype in (torch.float32, torch.float64):
        given = [tensor.to(device, dtype).requires_grad_() for tensor in inputs]
        output = function(*given)
        weights = torch.arange(output.numel(), device=device).view(output.shape).to(dtype).cos()
        found.append([output, *torch.autograd.grad(output, given, weights)])
    return max(relative(a, b) for a, b in zip(*found, strict=True))


class Compared:
    """In the place of a trainer's captured steps: replays a graph, filled with NaN before, and holds it against the step as it is."""

    def __init__(self, steps: CapturedSteps) -> None:
        self.steps = steps
        self.name, self.difference = "", 0.0

    def __call__(self, kind: Any, update: Update, *inputs: Tensor) -> Figures:
        before, graph = self.steps._kept(), self.steps._graphs[kind]
        self.name, self.difference = self.steps.compare(graph, update, inputs, before)
        self.steps._set(before)
        return graph(inputs)


def kinds_of_step(setting: Setting) -> Iterator[Line]:
    """Each kind of step, at a task weight of a half: its graph, filled with NaN, on two new batches, against the step as it is."""
    for model in MODELS:
        for precision in ("float32", "bf16"):
            for name, (epoch, step) in KINDS.items():
                work = partial(_compared, setting, model, precision, epoch, step)
                yield attempt(f"{model}, {precision}, {name}", work)


def _compared(setting: Setting, model: str, precision: str, epoch: int, step: int) -> str:
    trainer, said = trainer_of(setting, model, batches=CapturedSteps.BEFORE_USE + 2, precision=precision)
    batches = list(trainer.epoch_batches(epoch))
    take(trainer, epoch, step, CapturedSteps.BEFORE_USE, batches)
    compared = Compared(captured(trainer, said))
    trainer.captured = compared  # type: ignore[assignment]
    found = []
    for batch in batches[CapturedSteps.BEFORE_USE :]:
        loss = trainer.step(epoch, step, batch).loss
        require(loss.isfinite(), "the loss is not finite")
        found.append((compared.difference, compared.name))
    difference, where = max(found)
    told = f"differs by {difference:.1e} at most, in {where}; the bar is {CapturedSteps.TOLERANCE:.0e}"
    require(difference <= CapturedSteps.TOLERANCE, told)
    return told


def fifty_steps(setting: Setting) -> Iterator[Line]:
    """50 steps with graphs against 50 without, beside what two trainings without differ by."""
    for model in MODELS:
        yield attempt(model, partial(_trained_alike, setting, model))


def _trained_alike(setting: Setting, model: str) -> str:
    runs = [_trained(setting, model, graphs) for graphs in (True, False, False)]
    (losses, update), plain, again = runs
    difference, noise = relative(update, plain[1]), relative(again[1], plain[1])
    of_losses = float(((losses - plain[0]) / plain[0]).abs().max())
    told = f"the weights' change differs by {difference:.1e}, the losses by {of_losses:.1e}; two eager trainings by {noise:.1e}"
    require(difference <= max(1e-2, 4 * noise), told)
    return told


def _trained(setting: Setting, model: str, graphs: bool) -> tuple[Tensor, Tensor]:
    """The losses of the steps, and the change of the weights."""
    trainer, said = trainer_of(setting, model)
    if not graphs:
        trainer.captured = None
    start = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    batches = list(trainer.epoch_batches(METHOD_EPOCH))
    losses = [trainer.step(METHOD_EPOCH, i, batches[i % len(batches)]).loss for i in range(1, setting.of(50, 12) + 1)]
    if graphs:
        captured(trainer, said)
    update = [(p.detach() - s).flatten() for p, s in zip(trainer.model.parameters(), start, strict=True)]
    return torch.stack(losses), torch.cat(update)


def gradients(setting: Setting) -> Iterator[Line]:
    """Every parameter has a finite gradient that is not all zero."""
    for model in MODELS:
        for precision in ("float32", "tf32", "bf16") if setting.device.type == "cuda" else ("float32", "bf16"):
            yield attempt(f"{model}, {precision}", partial(_with_gradients, setting, model, precision))


def _with_gradients(setting: Setting, model: str, precision: str) -> str:
    trainer, said = trainer_of(setting, model, precision=precision)
    take(trainer, METHOD_EPOCH, 1, CapturedSteps.BEFORE_USE + 1 if setting.device.type == "cuda" else 1)
    if trainer.captured is not None:
        captured(trainer, said)
    named = dict(trainer.model.named_parameters())
    without = [n for n, p in named.items() if p.grad is None or not p.grad.any() or not p.grad.isfinite().all()]
    require(not without, f"{len(without)} of {len(named)} have none, such as {', '.join(without[:3])}")
    return f"{len(named)} parameters"


def second_gpu(setting: Setting) -> Iterator[Line]:
    """Captured steps on cuda:1."""
    if torch.cuda.device_count() < 2:
        raise Skipped("there is one GPU")
    device = torch.device("cuda:1")
    trainer, said = trainer_of(setting, device=device)
    losses = take(trainer, METHOD_EPOCH, 1, CapturedSteps.BEFORE_USE + 3)
    captured(trainer, said)
    finite = all(bool(loss.isfinite()) for loss in losses)
    there = all(tensor.device == device for tensor in (*losses, *trainer.model.state_dict().values()))
    yield verdict("captured on it", finite and there, f"losses on {losses[-1].device}, finite: {finite}")


def no_waits(setting: Setting) -> Iterator[Line]:
    """20 steps once the graphs are in use, counted as a run counts them, and none waits for the device."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield attempt("a wait is noticed", lambda: _noticed(setting.device))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for model, method in (*((model, "icp") for model in MODELS), ("resnet20", "mixup"), ("resnet20", "cutmix")):
        yield attempt(f"{model}, {method}", partial(_without_waits, setting, model, method))


def _noticed(device: torch.device) -> str:
    try:
        torch.ones(1, device=device).item()
    except RuntimeError:
        return "torch raises where a value is read"
    raise Wrong("torch did not raise where a value was read: the lines below mean nothing")


def _without_waits(setting: Setting, model: str, method: str) -> str:
    trainer, said = trainer_of(setting, model, method=method)
    batches = list(trainer.epoch_batches(METHOD_EPOCH))
    for step in (1, 10):
        take(trainer, METHOD_EPOCH, step, CapturedSteps.BEFORE_USE, batches)
    captured(trainer, said, kinds=2 if method == "icp" else 1)
    meter = Meter()
    torch.cuda.synchronize(setting.device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(1, 21):
            meter.add(trainer.step(METHOD_EPOCH, step, batches[step % len(batches)]))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    require(all(value == value for value in meter.means().values()), "a figure is NaN")
    return "20 steps without one"


def failed_capture(setting: Setting) -> Iterator[Line]:
    """A capture is made to fail: stream, generator and allocator work as before, and so does the next capture."""
    device = setting.device
    torch.manual_seed(7)
    expected, stream = torch.randn(8, device=device), torch.cuda.current_stream(device)
    torch.cuda.empty_cache()
    reserved = torch.cuda.memory_reserved(device)
    yield attempt("it is refused", lambda: _refused(device))

    def same_stream() -> str:
        require(torch.cuda.current_stream(device) == stream, "another stream is current")
        torch.cuda.synchronize(device)
        return "the current one is as before"

    def same_numbers() -> str:
        torch.manual_seed(7)
        require(torch.equal(torch.randn(8, device=device), expected), "a seed gives other numbers")
        return "draws the same numbers from a seed"

    def memory_goes_back() -> str:
        big = torch.empty(2**28, dtype=torch.uint8, device=device)
        del big
        torch.cuda.empty_cache()
        left = torch.cuda.memory_reserved(device) - reserved
        require(left <= 2**22, f"{left / 2**20:.0f} MiB stay taken")
        return "gives back what it was given"

    def another_capture() -> str:
        x = torch.ones(4, device=device)
        outputs, replay = CudaGraphs(device)(lambda: x * 2)
        x.fill_(3)
        replay()
        require(bool((outputs == 6).all()), f"gives {outputs.tolist()}")
        return "works"

    def training_goes_on() -> str:
        trainer, said = trainer_of(setting, "vae")  # which draws random numbers on the device
        require(trainer.captured is not None, "no step is captured")
        assert trainer.captured is not None
        trainer.captured._capture = lambda function: CudaGraphs(device)(lambda: _waits(function()))
        losses = take(trainer, METHOD_EPOCH, 1, CapturedSteps.BEFORE_USE + 3)
        require(all(bool(loss.isfinite()) for loss in losses), "a loss is not finite")
        require(any("cannot be captured" in message for message in said), f"nothing was said of it: {said}")
        return "goes on without graphs, and says so"

    yield attempt("stream", same_stream)
    yield attempt("generator", same_numbers)
    yield attempt("allocator", memory_goes_back)
    yield attempt("another capture", another_capture)
    yield attempt("a run whose capture fails", training_goes_on)


def _waits(results: Any) -> Any:
    """Read a value on the host, which no capture allows."""
    next(leaf for leaf in tree_leaves(results) if isinstance(leaf, Tensor)).sum().item()
    return results


def _refused(device: torch.device) -> str:
    try:
        CudaGraphs(device)(lambda: _waits(torch.ones(4, device=device)))
    except RuntimeError as error:
        return in_a_line(error)
    raise Wrong("a capture that reads a value did not fail")


def streaming_through_a_capture(setting: Setting) -> Iterator[Line]:
    """Steps are captured while worker processes and a thread bring the images; each batch is what it should be."""
    batches, batch = 7 * 10 + 1, setting.of(32, 4)
    images = streaming.random_images(setting.folder / "train.npy", batches * batch, setting.of(32, 8), 10)
    config = icpctl.RunConfig(
        steps=1, batch_size=batch, epochs=1, warmup_epochs=0, val_fraction=0.0, augmentation="none", data_memory=1e-9
    )
    said: list[str] = []
    trainer = Trainer(config, images, setting.device, say=said.append)
    assert isinstance(trainer.train_set, StreamedSplit)
    trainer.train_set.workers = 2
    trainer.method.train()
    wrong = 0
    try:
        for step, pictures in enumerate(trainer.epoch_batches(0)):
            loss = trainer.step(0, step, pictures).loss
            original = torch.from_numpy(images.train.images[pictures.index.cpu().numpy()])
            wrong += not (torch.equal(pictures.pixels.cpu(), original) and bool(loss.isfinite()))
    finally:
        trainer.close()
    captured(trainer, said[1:], kinds=2)
    yield verdict("images and losses", not wrong, f"{wrong} of {batches} batches are wrong", wrong=wrong)
