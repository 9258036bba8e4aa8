"""The one training loop.

The data set lives on the device as uint8, or is streamed from the disk if it does not fit there. All random numbers derive
from (seed, epoch, batch): a run that was killed goes on from its checkpoint to the same weights, bit for bit, as one that
was not. Within an epoch nothing waits for the device; the display reads it once a second.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from filelock import Timeout
from torch import Tensor

from icpctl import checkpoint, data, models, tasks
from icpctl.config import RunConfig, option, resolve
from icpctl.display import CostEstimate, Display, Throttle
from icpctl.errors import UserError
from icpctl.meter import Meter
from icpctl.network import choose_device, peak_memory, set_precision
from icpctl.parallel import processes
from icpctl.provenance import provenance
from icpctl.results import RunFolder, read_metrics
from icpctl.stack import Result, Stack, Step, UnstackableError, take_steps
from icpctl.trainer import Trainer

NO_OP = 1e-3  # relative change of the loss and of the features up to which a perturbation does nothing
NOISE_FLOOR = 0.1  # error of the feature shift above which rounding drowns it


class BusyError(UserError):
    """Another process is training the run."""


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop, has saved its state, and goes on from there when it is started again."""


@dataclass(frozen=True)
class Run:
    """A run in a results folder."""

    config: RunConfig
    path: Path
    skipped: bool = False
    """Whether it had been finished before, and was not trained again."""

    @property
    def metrics(self) -> pd.DataFrame:
        """Tidy: run_id, epoch, split, metric, value."""
        return read_metrics(self.path / "metrics.csv")[0]


def check(config: RunConfig) -> None:
    """Refuse at once what cannot be run: unknown names, a device that is not there, layers that the model lacks.

    Raises:
        UserError: says which and the way out.
    """
    data.check_name(config.dataset)
    models.check_name(config.model)
    choose_device(config.device)
    modules = models.module_paths(config.model, config.stem, config.image_size)
    if not config.layers and config.optimizer != "none":
        raise UserError(f"There are no stages of {config.model} to tap. Name modules with --layers.")
    for layer in config.layers:
        if layer not in modules:
            top = ", ".join(name for name in modules if "." not in name)
            raise UserError(f"--layers: {config.model} has no module '{layer}'. Its top-level modules are {top}.")


def check_runs(configs: Sequence[RunConfig], say: Callable[[str], None] = lambda message: None) -> None:
    """Refuse at once what cannot be run: as `check`, for each of them, and `check_data`.

    Raises:
        UserError: says which and the way out.
    """
    for config in configs:
        check(config)
    check_data(configs, say)


def check_data(configs: Iterable[RunConfig], say: Callable[[str], None] = lambda message: None) -> None:
    """Refuse at once what cannot be run for want of data: each data set is loaded, and split, once.

    Its `ImageData.summary` is told to `say`.

    Raises:
        UserError: as `icpctl.data.load`, `icpctl.tasks.build` and `split_train`.
    """
    summaries: dict[str, None] = {}
    for config in {data_needs(config): config for config in configs}.values():
        loaded = _load(config)
        summaries[loaded.summary()] = None
        task, images = tasks.build(config, loaded)
        task.check()
        data.split_train(images.train.labels, config.train_size, config.val_fraction, images.classes)
    for summary in summaries:
        say(summary)


def data_needs(config: RunConfig) -> tuple[object, ...]:
    """What a run takes of its data; equal for runs that `check_data` need not tell apart."""
    task = config.task, config.fid_weights, config.fid_features, config.train_size, config.val_fraction
    return config.dataset, config.data_dir, config.image_size, config.crop, *task


def _load(config: RunConfig) -> data.ImageData:
    return data.load(config.dataset, config.data_dir, config.image_size, config.crop)


def train(
    config: RunConfig,
    output: str | Path = "results",
    *,
    overwrite: bool = False,
    display: Display | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Run:
    """Train one run, or go on with it where it was left.

    Under torchrun the processes train it together. The batch of the run is then that of all of them.

    Args:
        config: the run; its id, and so its folder, derives from it. The batch size is that of each process.
        output: the results folder.
        overwrite: start anew, also if the run is finished.
        display: sees the run go by; none shows nothing.
        should_stop: asked after every batch; at True the state is saved and `Interrupted` raised.

    Returns:
        The run. A finished one is returned as it is.

    Raises:
        UserError: the run cannot start or go on; what was saved stays.
        Interrupted: as asked by `should_stop`.
    """
    check(config)
    with processes(config) as (shared, device):
        display = display if display is not None and shared.first else Display()
        config = shared.whole_batch(config, display.say)
        folder = RunFolder(Path(output), config)
        if shared.lead(folder.status).get("state") == "finished" and not overwrite:
            return Run(config, folder.path, skipped=True)
        set_precision(config.precision)
        try:
            images = _load(config)
            display.say(images.summary())
            trainer = Trainer(config, images, device, shared, display.say)
            trainer.check()
            with _sole_writer(folder) if shared.first else nullcontext():
                if overwrite and shared.first:
                    folder.clear()
                for error in take_steps([Session(config, folder, trainer, display, should_stop)]).values():
                    raise error
        except Exception as error:
            if (explained := _in_words(error, config, device)) is not error:
                raise explained from error
            raise
        return Run(config, folder.path)


def train_stack(
    configs: Sequence[RunConfig],
    output: str | Path = "results",
    *,
    displays: Sequence[Display] = (),
    should_stop: Callable[[RunConfig], bool] = lambda config: False,
) -> list[BaseException | None]:
    """Train several runs at once, which take their steps together (`icpctl.stack`), or go on with them.

    Args:
        configs: runs with one `RunConfig.stack_id`.
        output: the results folder.
        displays: one for each run; none shows nothing.
        should_stop: asked of each run after every batch; at True its state is saved, and `Interrupted` stops it.

    Returns:
        For each run None, or what stopped it: as `train` would raise it. The others go on.
    """
    device = choose_device(configs[0].device)
    set_precision(configs[0].precision)
    stopped: dict[str, BaseException] = {}
    sessions: list[Session] = []
    with ExitStack() as locks:
        for config, display in zip(configs, displays or [Display() for _ in configs], strict=True):
            folder = RunFolder(Path(output), config)
            try:
                check(config)
                if folder.status().get("state") == "finished":
                    continue
                locks.enter_context(_sole_writer(folder))
                beside = sessions[0].trainer if sessions else None
                trainer = Trainer(config, _load(config), device, say=display.say, stack=len(configs), beside=beside)
                trainer.check()
            except Exception as error:
                stopped[config.run_id] = error
            else:
                sessions.append(Session(config, folder, trainer, display, partial(should_stop, config)))
        try:
            for together in _stackable(sessions):
                stopped |= {session.config.run_id: error for session, error in take_steps(together).items()}
        except (RuntimeError, MemoryError) as error:  # there is no room to stack them
            stopped |= {session.config.run_id: error for session in sessions}
    return [
        _in_words(stopped[config.run_id], config, device, len(configs)) if config.run_id in stopped else None
        for config in configs
    ]


def _stackable(sessions: Sequence[Session]) -> list[Sequence[Session]]:
    """All of them at once; one at a time if they cannot take their steps together, which is said."""
    try:
        if len(sessions) > 1:
            Stack([session.trainer for session in sessions]).check()
        return [sessions]
    except UnstackableError as error:
        for session in sessions:
            session.display.warn(
                f"{session.config.model} is trained alone, as models of it cannot be stacked: {error}."
            )
        return [[session] for session in sessions]


@contextmanager
def _sole_writer(folder: RunFolder) -> Iterator[None]:
    """Make the folder and hold it."""
    folder.create()
    lock = folder.lock()
    try:
        lock.acquire()
    except Timeout:
        raise BusyError(f"Another process is training {folder.path} at this moment. Wait for it, or stop it.") from None
    try:
        yield
    finally:
        lock.release()


class Session:
    """The epochs of one run: measure, record, save, and stop when asked."""

    def __init__(
        self, config: RunConfig, folder: RunFolder, trainer: Trainer, display: Display, should_stop: Callable[[], bool]
    ) -> None:
        self.config, self.folder, self.trainer, self.display = config, folder, trainer, display
        self.processes = trainer.processes
        self.should_stop = should_stop
        self.epoch = self.batch = 0
        self.meter = Meter()
        self.best: dict[str, float] = {}
        self.seconds = 0.0  # of the epoch at work, before it was resumed
        self.cost = CostEstimate(config, trainer.batches)
        self.warned: set[str] = set()
        self.notes: list[str] = []  # what the report says of the run

    def steps(self) -> Generator[Step, Result, None]:
        """Train the run: asks for each step, is sent its result, and does all the rest."""
        try:
            self._resume()
            self.processes.lead(self._begin)
            while self.epoch < self.config.epochs:
                yield from self._epoch()
            self.processes.lead(self._measure_last)
            self._write_status("finished", epoch=self.config.epochs, notes=self.notes)
        except (KeyboardInterrupt, SystemExit):  # asked to stop, or the reader of the output went away
            self._write_status("interrupted", epoch=self.epoch)
            raise
        except Exception as error:
            with suppress(UserError):  # a full disk, say, which is what stopped the run
                self._write_status("failed", epoch=self.epoch, error=str(self.processes.explain(error)))
            raise
        finally:
            self.trainer.close()
            self.display.stop()

    def _begin(self) -> None:
        session = provenance(self.trainer.device) | {"processes": self.processes.size, "stack": self.trainer.stack}
        self.folder.write_config(self.config, self._facts(), session)
        self._write_status("running", epoch=self.epoch)
        self.display.start(self.config, self.trainer.batches)

    def _write_status(self, state: str, **details: Any) -> None:
        if self.processes.first:
            self.folder.write_status(state, **details)

    def _asked_to_stop(self) -> bool:
        return self.processes.any(self.should_stop())

    def _epoch(self) -> Generator[Step, Result, None]:
        started = time.perf_counter() - self.seconds
        if self.trainer.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.trainer.device)
        self.trainer.model.train()
        due = Throttle(1.0)
        size = self.trainer.batch_size
        for batch, (images, labels) in enumerate(self.trainer.epoch_batches(self.epoch, self.batch), self.batch):
            loss, log = yield Step(self.epoch, batch, images, labels)
            self.meter.add(batch, loss, log)
            done = batch + 1
            if due():
                seconds = time.perf_counter() - started
                self.cost.measured(self.trainer.uses_icp(self.epoch), seconds / done)
                self._show(done, done * size / seconds)
            if done < self.trainer.batches and self._asked_to_stop():
                self.meter = self.processes.whole_meter(self.meter)
                self._check_finite()
                self.batch, self.seconds = done, time.perf_counter() - started
                self._save()
                raise Interrupted
        self._finish_epoch(self.trainer.epoch_labels(self.epoch), started)
        if self.epoch < self.config.epochs and self._asked_to_stop():
            raise Interrupted

    def _finish_epoch(self, labels: Tensor, started: float) -> None:
        self.meter = self.processes.whole_meter(self.meter)
        self._check_finite()  # waits for the device
        improved = self.processes.lead(lambda: self._record_epoch(labels, started))
        self.epoch, self.batch, self.meter, self.seconds = self.epoch + 1, 0, Meter(), 0.0
        if improved:  # first, so that a run resumed from `last` has the best of the epochs before it
            self._save("best")
        self._save()

    def _record_epoch(self, labels: Tensor, started: float) -> bool:
        """Measure, record and show the epoch; whether it is the best so far."""
        seconds = time.perf_counter() - started
        self.cost.measured(self.trainer.uses_icp(self.epoch), seconds / self.trainer.batches)
        task = self.trainer.task
        metrics = {"train": task.metrics(torch.cat(self.meter.records), labels) | self.meter.means()}
        metrics["train"] |= {
            "task_weight": self.trainer.weight(self.epoch),
            "images_per_second": len(labels) / seconds * self.trainer.stack,  # a stacked run's own share of the time
            "peak_memory": peak_memory(self.trainer.device),
        }
        for name, split in self.trainer.evaluation_sets.items():
            metrics[name] = task.evaluate(self.trainer.network, split)
            if not math.isfinite(metrics[name]["loss"]):
                raise self._not_finite("after its last batch")
        metrics["train"]["seconds"] = (time.perf_counter() - started) / self.trainer.stack
        self._warn(metrics["train"])
        self.folder.append_metrics(self.epoch, metrics)
        self.display.epoch(self.epoch, metrics)
        improved = False
        if "val" in metrics:
            value = metrics["val"][self.config.selection]
            improved = not self.best or value > self.best["value"]
            if improved:
                self.best = {"epoch": self.epoch, "value": value}
        return improved

    def _resume(self) -> None:
        device = self.trainer.device
        saved, faults = self.processes.lead(lambda: checkpoint.load_last(self.folder.checkpoints, device), device)
        if faults:
            self.display.warn(" ".join([*faults, "Going on from the one before it." if saved else "Starting anew."]))
        if saved is None:
            self.processes.lead(lambda: self.folder.keep_metrics_before(0))
            return
        if resolve(saved["config"], str(self.folder.checkpoints)).run_id != self.config.run_id:
            raise UserError(
                f"{self.folder.checkpoints} has a checkpoint of another run. Remove it, or use --overwrite."
            )
        if saved["fingerprint"] != self.trainer.fingerprint:
            raise UserError(
                f"The data set {self.config.dataset} is not what {self.folder.path} was begun with. Restore the data, or "
                "start the run anew with --overwrite."
            )
        self.trainer.restore(saved)
        self.epoch, self.batch, self.best = saved["epoch"], saved["batch"], saved["best"]
        self.meter.restore(saved["meter"], self.processes.part)
        self.seconds = saved["seconds"]
        for fault in self.processes.lead(lambda: self.folder.keep_metrics_before(self.epoch)):
            self.display.warn(fault)
        place = f"epoch {self.epoch + 1} of {self.config.epochs}" + (f", batch {self.batch + 1}" if self.batch else "")
        self.display.say(f"Resuming {self.config.run_id} at {place}.")

    def _save(self, name: str = "last") -> None:
        content = {
            "config": self.config.model_dump(mode="json"),
            "fingerprint": self.trainer.fingerprint,
            "classes": list(self.trainer.classes),
            "mean": self.trainer.network.mean,
            "std": self.trainer.network.std,
            "image_size": list(self.trainer.train_set.shape[-2:]),
            "epoch": self.epoch,
            "batch": self.batch,
            "best": self.best,
            "meter": self.meter.state(),
            "seconds": self.seconds,
        }
        content |= self.trainer.state()
        self.processes.lead(lambda: checkpoint.save(self.folder.checkpoints, name, content))

    def _check_finite(self) -> None:
        bad = self.meter.first_bad
        if bad is None or int(bad) < 0:
            return
        raise self._not_finite(f"batch {int(bad) + 1}")

    def _not_finite(self, place: str) -> UserError:
        last = self.folder.checkpoints / "last.pt"
        good = f"The last good checkpoint is {last}" if last.exists() else "There is no checkpoint yet"
        icp_lr = f" or {option('icp_lr')} (now {self.config.icp_lr:g})" if self.config.optimizer != "none" else ""
        return UserError(
            f"The loss is not finite at epoch {self.epoch + 1}, {place}, of {self.config.run_id}. {good}. Lower "
            f"{option('lr')} (now {self.config.lr:g}){icp_lr}, or clip the gradient with {option('clip_grad_norm')}."
        )

    def _show(self, done: int, images_per_second: float) -> None:
        if self.processes.size == 1:  # several have to find it at the same batch: at the end of the epoch, or at a stop
            self._check_finite()
        values = self.meter.means() | {
            "task_weight": self.trainer.weight(self.epoch),
            "images_per_second": images_per_second,
        }
        self.display.batch(self.epoch, done, values, self.cost.seconds_left(self.epoch, done))

    def _measure_last(self) -> None:
        """Add the costly metrics to the last epoch, which is saved by now.

        A run that is stopped or killed in here measures them anew.
        """
        self.display.stop()

        def warn(message: str) -> None:
            self.notes.append(message)
            self.display.warn(message)

        def pause() -> None:
            if self.should_stop():
                raise Interrupted

        test = self.trainer.evaluation_sets["test"]
        measured = self.trainer.task.evaluate_last(self.trainer.network, test, self.display.say, warn, pause)
        if not measured:
            return
        last = self.config.epochs - 1
        rows = read_metrics(self.folder.metrics_file)[0]
        recorded = set(rows[(rows["epoch"] == last) & (rows["split"] == "test")]["metric"])
        new = {name: value for name, value in measured.items() if name not in recorded}
        if new:
            self.folder.append_metrics(last, {"test": new})

    def _warn(self, values: dict[str, float]) -> None:
        """Say, once a run, that the perturbation does nothing or that rounding drowns it."""
        if "icp_loss_before" in values and "no-op" not in self.warned:
            before, after = values["icp_loss_before"], values["icp_loss_after"]
            shift = max(
                value for name, value in values.items() if name.startswith("feature_shift_") and "error" not in name
            )
            if abs(after - before) <= NO_OP * abs(before) and shift <= NO_OP:
                self.warned.add("no-op")
                self.notes.append(
                    "The perturbation does nothing. What sets such a run apart from its baseline is the falling task weight, "
                    f"and the teacher's own update of the batch-norm statistics ({option('teacher_statistics')})."
                )
                self.display.warn(
                    f"the perturbation does nothing: loss {before:.6f} before, {after:.6f} after, the largest change of "
                    f"an input value is {values['delta_linf']:.1e}, the largest feature shift {shift:.1e}. Raise "
                    f"{option('icp_lr')} or {option('steps')}"
                    + (f", or use {option('icp_reduction')} sum." if self.config.icp_reduction == "mean" else ".")
                )
        errors = [value for name, value in values.items() if name.startswith("feature_shift_error_")]
        if errors and max(errors) > NOISE_FLOOR and "noise" not in self.warned:
            self.warned.add("noise")
            self.notes.append(f"The feature shift is under the noise floor of {self.config.precision}.")
            self.display.warn(
                f"the feature shift is under the noise floor of {self.config.precision}: rounding makes up "
                f"{max(errors):.0%} of it (measured against float64). Raise {option('icp_lr')} or {option('steps')}"
                + (f", or use {option('precision')} float32." if self.config.precision != "float32" else ".")
            )

    def _facts(self) -> dict[str, Any]:
        """What config.json says of the data and the model."""
        trainer = self.trainer
        facts = {
            "dataset": self.config.dataset,
            "fingerprint": trainer.fingerprint,
            "classes": len(trainer.classes),
            "images": {"train": len(trainer.train_set)} | {n: len(s) for n, s in trainer.evaluation_sets.items()},
            "image_size": list(trainer.train_set.shape[-2:]),
            "mean": trainer.network.mean.flatten().tolist(),
            "std": trainer.network.std.flatten().tolist(),
        }
        parameters = sum(p.numel() for p in trainer.model.parameters())
        return {"parameters": parameters, "data": facts}


def _in_words(error: BaseException, config: RunConfig, device: torch.device, stack: int = 1) -> BaseException:
    """The error itself; if memory has run out, what to do about it."""
    signs = ("can't allocate memory", "out of memory", "ALLOC_FAILED")
    by_message = isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)
    if not (by_message or isinstance(error, (MemoryError, torch.OutOfMemoryError))):
        return error
    fewer = "--stack, " if stack > 1 else ""
    return UserError(
        f"Out of memory on {device} with {option('batch_size')} {config.batch_size}. Lower {fewer}{option('batch_size')} or "
        f"{option('image_size')}, or take a smaller model. The same command goes on from the last checkpoint if these stay "
        "as they are."
    )
