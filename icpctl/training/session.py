"""One run from its first epoch, or where it was left, to its last: measured, recorded, saved."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import torch

from icpctl.config import RECORDED, RunConfig, option, resolve
from icpctl.errors import UserError, is_out_of_memory
from icpctl.models import own
from icpctl.models.network import peak_memory
from icpctl.runs import checkpoint
from icpctl.runs.folder import RunFolder
from icpctl.runs.provenance import provenance
from icpctl.tasks.sharpness import sharpness
from icpctl.training.display import CostEstimate, Display, Throttle
from icpctl.training.meter import Figures, Meter
from icpctl.training.trainer import Images, Trainer


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop, has saved its state, and goes on from there when it is started again."""


class DivergedError(UserError):
    """The loss of a run was no finite number any more."""


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
        self.seconds = 0.0  # that the epoch has taken so far
        self.started = 0.0  # when it would have begun without a stop
        self.due = Throttle(1.0)
        self.rows = 0  # of metrics.csv, before the epoch at work
        evaluated = sum(map(len, trainer.evaluation_sets.values())) / trainer.batch_size
        self.cost = CostEstimate(config, trainer.batches, evaluated)
        self.warned: set[str] = set()
        self.notes: list[str] = []  # what the report says of the run
        self.begun = False  # whether it is at work

    def train(self) -> None:
        """Train the run to its end.

        Raises:
            Interrupted: as asked by `should_stop`.
        """
        try:
            self.begin()
            self.advance((self.config.epochs, 0))
            self.finish()
        except BaseException as error:
            self.record(error)
            raise
        finally:
            self.close()

    def advance(self, place: tuple[int, int]) -> None:
        """Take all steps before this place, an epoch and a batch of it."""
        while (self.epoch, self.batch) < place:
            for batch, images in self.batches():
                self.take(self.trainer.step(self.epoch, batch, images))
                if (self.epoch, self.batch) == place:
                    return
            self.finish_epoch()

    def begin(self) -> None:
        """Go on from the last checkpoint, if there is one, and write down that the run is at work."""
        self._resume()
        self.begun = True
        self.processes.lead(self._begin)

    def batches(self) -> Iterator[tuple[int, Images]]:
        """Each batch of the epoch that is left, and its number."""
        self.started = time.perf_counter() - self.seconds
        if self.trainer.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.trainer.device)
        self.trainer.method.train()
        yield from enumerate(self.trainer.epoch_batches(self.epoch, self.batch), self.batch)

    def take(self, step: Figures) -> None:
        """Count a step that was taken; stop after it when asked to."""
        self.meter.add(step)
        self.batch += 1
        self.seconds = time.perf_counter() - self.started
        if self.due():
            self._show()
        if self.batch < self.trainer.batches and self._asked_to_stop():
            self.meter = self.processes.whole_meter(self.meter)
            self._check_finite()
            self._save()
            raise Interrupted

    def finish_epoch(self) -> None:
        """Measure, record and save the epoch; stop after it when asked to."""
        self.meter = self.processes.whole_meter(self.meter)
        self._check_finite()  # waits for the device
        ended = time.perf_counter()
        self.seconds = ended - self.started
        improved = self.processes.lead(self._record_epoch)
        self.epoch, self.batch, self.meter, self.seconds = self.epoch + 1, 0, Meter(), 0.0
        if improved:  # first, so that a run resumed from `last` has the best of the epochs before it
            self._save("best")
        self._save()
        self.cost.measured_between(time.perf_counter() - ended)
        if self.epoch < self.config.epochs and self._asked_to_stop():
            raise Interrupted

    def finish(self) -> None:
        """Measure what is too costly for every epoch, and write down that the run is finished."""
        if self.processes.lead(self._measure_last):
            self._save()  # so that it knows of the rows that were added
        self.processes.lead(self._keep_predictions)
        self.processes.lead(lambda: self.folder.check_metrics(self.rows))
        self._write_status("finished", epoch=self.config.epochs, notes=self.notes, rows=self.rows)

    def record(self, error: BaseException) -> None:
        """Write down what stopped the run; of one that was refused before it went on, nothing has changed."""
        if not self.begun:
            return
        if isinstance(error, (KeyboardInterrupt, SystemExit)):  # asked to stop, or the reader of the output went away
            self._write_status("interrupted", epoch=self.epoch)
        elif isinstance(error, Exception):
            with suppress(UserError):  # a full disk, say, which is what stopped the run
                details = {"diverged": True} if isinstance(error, DivergedError) else {}
                self._write_status("failed", epoch=self.epoch, error=str(self.processes.explain(error)), **details)

    def close(self) -> None:
        """End what the run started beside itself."""
        self.trainer.close()
        self.display.stop()
        self.display.close()

    def _begin(self) -> None:
        session = provenance(self.trainer.device) | {"processes": self.processes.size, "stack": self.trainer.stack}
        if source := own.source(self.config.model):
            session["source"] = source
        self.folder.write_config(self.config, self._facts(), session)
        self._write_status("running", epoch=self.epoch)
        self.display.start(self.config, self.trainer.batches)

    def _write_status(self, state: str, **details: Any) -> None:
        if self.processes.first:
            self.folder.write_status(state, **details)

    def _asked_to_stop(self) -> bool:
        return self.processes.any(self.should_stop())

    def _record_epoch(self) -> bool:
        """Measure, record and show the epoch; whether it is the best so far."""
        method, task = self.trainer.method, self.trainer.task
        labels = self.trainer.epoch_labels(self.epoch)
        self.cost.measured(method.active(self.epoch), self.seconds / self.trainer.batches)
        means = self.meter.means()
        if self.config.mix == "none":
            metrics = {"train": task.metrics(torch.cat(self.meter.records), labels) | means}
        else:  # against the label of one of two images, every other metric would mean nothing
            metrics = {"train": {"loss": means["task_loss"]} | means}
        metrics["train"] |= {
            "task_weight": method.task_weight(self.epoch),
            "images_per_second": len(labels)
            / self.seconds
            * self.trainer.stack,  # a stacked run's own share of the time
            "peak_memory": peak_memory(self.trainer.device),
        }
        for name, split in self.trainer.evaluation_sets.items():
            metrics[name] = task.evaluate(self.trainer.network, split)
            if not math.isfinite(metrics[name]["loss"]):
                raise self._not_finite("after its last batch")
        if "fit" in metrics:
            metrics["test"] |= {
                f"generalization_gap_{name}": metrics["fit"][name] - metrics["test"][name]
                for name in ("loss", self.config.selection)
            }
        metrics["train"]["seconds"] = (time.perf_counter() - self.started) / self.trainer.stack
        self._warn(metrics["train"])
        self.rows += self.folder.append_metrics(self.epoch, metrics)
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
        if saved is not None:
            self._restore(saved)
        rows = None if saved is None else saved.get("rows")
        self.rows, problems = self.processes.lead(lambda: self.folder.keep_metrics_before(self.epoch, rows))
        for problem in problems:
            self.display.warn(problem)
        if saved is None:
            return
        if self.epoch == self.config.epochs:
            self.display.say(f"Resuming {self.config.run_id} after its last epoch.")
            return
        place = f"epoch {self.epoch + 1} of {self.config.epochs}" + (f", batch {self.batch + 1}" if self.batch else "")
        self.display.say(f"Resuming {self.config.run_id} at {place}.")

    def _restore(self, saved: checkpoint.Checkpoint) -> None:
        if resolve(saved["config"], str(self.folder.checkpoints), RECORDED).run_id != self.config.run_id:
            raise UserError(
                f"{self.folder.checkpoints} has a checkpoint of another run. Remove it, or use --overwrite."
            )
        if saved["fingerprint"] != self.trainer.fingerprint:
            raise UserError(
                f"The data set {self.config.dataset} is not what {self.folder.path} was begun with. Restore the data, or "
                "start the run anew with --overwrite."
            )
        begun = saved["config"].get("fit_images", self.config.fit_images)
        if begun != self.config.fit_images:
            how = f"without {option('fit_images')}" if begun is None else f"with {option('fit_images')} {begun}"
            raise UserError(
                f"{self.folder.path} was begun {how}, and its metrics are of those images. Go on with it so, or start the run anew with "
                "--overwrite."
            )
        self.epoch, self.batch, self.best = saved["epoch"], saved["batch"], saved["best"]
        self.seconds, self.notes = saved["seconds"], list(saved.get("notes", []))
        if change := own.change(self.config.model, saved.get("source")):
            self.notes += [change] if change not in self.notes else []
            self.display.warn(f"{change} The run goes on with the new code. With --overwrite it starts anew.")
        try:
            groups = self.trainer.optimizer.state_dict()["param_groups"]
            self.trainer.restore(saved | {"model": checkpoint.weights_of(saved, self.trainer.model)})
            checkpoint.check_optimizer(self.trainer.optimizer, groups)
            self.meter.restore(saved["meter"], self.processes.part)
            if self.epoch > self.config.epochs or self.batch >= self.trainer.batches:
                raise ValueError("an epoch or a batch that the run does not have")
            if len(self.meter.records) != self.batch or self.meter.sums.keys() != self.meter.counts.keys():
                raise ValueError("figures of other batches")
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise UserError(
                f"The checkpoint in {self.folder.checkpoints} does not fit the run: {' '.join(str(error).split())[:200]}. "
                "Remove it, and the run goes on from the one before it; or start the run anew with --overwrite."
            ) from error

    def _save(self, name: str = "last") -> None:
        content = {
            "config": self.config.model_dump(mode="json"),
            "fingerprint": self.trainer.fingerprint,
            "classes": list(self.trainer.classes),
            "mean": self.trainer.network.mean,
            "std": self.trainer.network.std,
            "image_size": list(self.trainer.train_set.shape[-2:]),
            "source": own.source(self.config.model),
            "epoch": self.epoch,
            "batch": self.batch,
            "best": self.best,
            "meter": self.meter.state(),
            "seconds": self.seconds,
            "rows": self.rows,
            "notes": self.notes,
        }
        content |= self.trainer.state()
        self.processes.lead(lambda: checkpoint.save(self.folder.checkpoints, name, content, self.folder.check))

    def _check_finite(self) -> None:
        if (bad := int(self.meter.first_bad())) >= 0:
            raise self._not_finite(f"batch {bad + 1}")

    def _not_finite(self, place: str) -> DivergedError:
        last = self.folder.checkpoints / "last.pt"
        good = f"The last good checkpoint is {last}" if last.exists() else "There is no checkpoint yet"
        icp_lr = f" or {option('icp_lr')} (now {self.config.icp_lr:g})" if self.config.uses("icp_lr") else ""
        return DivergedError(
            f"The loss is not finite at epoch {self.epoch + 1}, {place}, of {self.config.run_id}. {good}. Lower "
            f"{option('lr')} (now {self.config.lr:g}){icp_lr}, or clip the gradient with {option('clip_grad_norm')}."
        )

    def _show(self) -> None:
        if self.processes.size == 1:  # several have to find it at the same batch: at the end of the epoch, or at a stop
            self._check_finite()
        method = self.trainer.method
        self.cost.measured(method.active(self.epoch), self.seconds / self.batch)
        values = self.meter.means() | {
            "task_weight": method.task_weight(self.epoch),
            "images_per_second": self.batch * self.trainer.batch_size / self.seconds,
        }
        self.display.batch(self.epoch, self.batch, values, self.cost.seconds_left(self.epoch, self.batch))

    def _measure_last(self) -> bool:
        """Add the costly metrics to the last epoch, which is saved by now; whether there are any new ones.

        A run that is stopped or killed in here measures them anew.
        """
        self.display.stop()

        def warn(message: str) -> None:
            self.notes.append(message)
            self.display.warn(message)

        def pause() -> None:
            if self.should_stop():
                raise Interrupted

        task, network, sets = self.trainer.task, self.trainer.network, self.trainer.evaluation_sets
        measured = task.evaluate_last(network, sets["test"], self.display.say, warn, pause)
        if "fit" in sets:
            measured |= {"sharpness": sharpness(network, sets["fit"], task.targets, task.plain_loss)}
        last = self.config.epochs - 1
        rows, _ = self.folder.read_metrics()
        recorded = set(rows[(rows["epoch"] == last) & (rows["split"] == "test")]["metric"])
        new = {name: value for name, value in measured.items() if name not in recorded}
        if new:
            self.rows += self.folder.append_metrics(last, {"test": new})
            self.display.measured(last, {"test": new})
        return bool(new)

    def _keep_predictions(self) -> None:
        if self.config.keep_predictions:
            of_each = self.trainer.task.of_each(self.trainer.network, self.trainer.evaluation_sets["test"])
            self.folder.write_predictions({name: values.tolist() for name, values in of_each.items()})

    def _warn(self, values: dict[str, float]) -> None:
        """Say, once a run each, what is wrong with how the method works."""
        for fault in self.trainer.method.diagnose(values, settled=self.epoch > 0):
            if fault.kind not in self.warned:
                self.warned.add(fault.kind)
                self.notes += [fault.note] if fault.note and fault.note not in self.notes else []
                self.display.warn(fault.message)

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
