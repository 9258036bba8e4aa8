"""The one training loop.

The data set lives on the device as uint8, or is streamed from the disk if it does not fit there. All random numbers derive
from (seed, epoch, batch): a run that was killed goes on from its checkpoint to the same weights as one that was not: bit for
bit on a CPU, and but for rounding on CUDA, where sums come in an order of their own. Within an epoch nothing waits for the device; the display reads it once a second.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from filelock import Timeout

from icpctl import data, models, tasks
from icpctl.config import RunConfig, option
from icpctl.config.catalogue import METHODS
from icpctl.errors import UserError, is_out_of_memory, near_names
from icpctl.files import not_lockable
from icpctl.models import own
from icpctl.models.network import choose_device, set_precision
from icpctl.runs.fingerprints import data_source, is_finished, load_data, namesake
from icpctl.runs.folder import RunFolder, read_config
from icpctl.runs.metrics import read_metrics
from icpctl.training.display import Display
from icpctl.training.distributed import processes
from icpctl.training.session import Interrupted as Interrupted  # what `train` raises
from icpctl.training.session import Session
from icpctl.training.trainer import Trainer


class BusyError(UserError):
    """Another process is training the run."""


@dataclass(frozen=True)
class Run:
    """A run in a results folder."""

    config: RunConfig
    path: Path
    skipped: bool = False
    """Whether it had been finished before, and was not trained again."""

    @property
    def metrics(self) -> pd.DataFrame:
        """Tidy: run_id, epoch, split, metric, value. Rows that are damaged, or of another run, are left out with a warning."""
        metrics, problems = read_metrics(self.path, self.config)
        for problem in problems:
            warnings.warn(problem, stacklevel=2)
        return metrics


def check(config: RunConfig) -> None:
    """Refuse at once what cannot be run: unknown names, a device that is not there, layers that the model lacks.

    Raises:
        UserError: says which and the way out.
    """
    data.check_name(config.dataset)
    models.check_name(config.model)
    choose_device(config.device)
    modules = models.module_paths(config.model, config.stem, config.image_size)
    top = ", ".join(name for name in modules if "." not in name)
    if not config.layers and config.uses("layers"):
        way_out = ", or list their paths in an attribute `stages` of the model" if own.is_own(config.model) else ""
        raise UserError(
            f"There are no stages of {config.model} to tap. Name modules with --layers{way_out}. Its top-level modules are {top}."
        )
    least = METHODS[config.method].least_stages
    if len(config.layers) < least and config.uses("layers"):
        raise UserError(
            f"{option('method')} {config.method} needs {least} stages or more, and --layers names {','.join(config.layers)} alone. Name another."
        )
    for layer in config.layers:
        if layer not in modules:
            near = near_names(layer, modules)
            raise UserError(f"--layers: {config.model} has no module '{layer}'.{near} Its top-level modules are {top}.")


def check_runs(
    configs: Sequence[RunConfig], say: Callable[[str], None] = lambda message: None
) -> dict[tuple[object, ...], str]:
    """Refuse at once what cannot be run: as `check`, for each of them, and `check_data`, which says what is returned.

    Raises:
        UserError: says which and the way out.
    """
    for config in configs:
        check(config)
    return check_data(configs, say)


def check_data(
    configs: Iterable[RunConfig], say: Callable[[str], None] = lambda message: None
) -> dict[tuple[object, ...], str]:
    """Refuse at once what cannot be run for want of data: each data set is loaded, and split, once.

    Its `ImageData.summary` is told to `say`.

    Returns:
        The fingerprint of each, by `icpctl.runs.fingerprints.data_source`.

    Raises:
        UserError: as `icpctl.data.load`, `icpctl.tasks.build` and `split_train`.
    """
    fingerprints: dict[tuple[object, ...], str] = {}
    summaries: dict[str, None] = {}
    for config in {data_needs(config): config for config in configs}.values():
        loaded = load_data(config)
        fingerprints[data_source(config)] = loaded.fingerprint
        summaries[loaded.summary()] = None
        task, images = tasks.build(config, loaded)
        task.check()
        data.split_train(images.train.labels, config.train_size, config.val_fraction, images.classes)
    for summary in summaries:
        say(summary)
    return fingerprints


def data_needs(config: RunConfig) -> tuple[object, ...]:
    """What a run takes of its data; equal for runs that `check_data` need not tell apart."""
    task = config.task, config.fid_weights, config.fid_features, config.train_size, config.val_fraction
    return *data_source(config), *task


def train(
    config: RunConfig,
    output: str | Path = "results",
    *,
    overwrite: bool = False,
    display: Display | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    before_write: Callable[[], None] = lambda: None,
    fingerprint: str = "",
) -> Run:
    """Train one run, or continue it where it stopped.

    Under torchrun the processes train it together. The batch of the run is then that of all of them.

    Args:
        config: the run; its id, and so its folder, derives from it. The batch size is that of each process.
        output: the results folder.
        overwrite: train the run from the beginning, even if it is finished.
        display: told of the run's progress; without one nothing is shown.
        should_stop: called after every batch; when it returns True, the state is saved and `Interrupted` is raised.
        before_write: called before anything of the run is written; raises if this process may not.
        fingerprint: of the data that the run has to be trained on; empty: whatever is there.

    Returns:
        The run. A finished one is returned as it is.

    Raises:
        UserError: the run cannot start or go on, or it was trained, finished or not, on other data than are there now. Its
            saved files stay.
        Interrupted: as asked by `should_stop`.
    """
    config = models.complete(config)
    check(config)
    with processes(config) as (shared, device):
        display = display if display is not None and shared.first else Display()
        config = shared.whole_batch(config, display.say)
        folder = RunFolder(Path(output), config, before_write)
        if not overwrite and shared.lead(lambda: is_finished(folder)):
            if change := own.change(config.model, folder.source()):
                display.warn(f"{change} --overwrite trains it anew.")
            return Run(config, folder.path, skipped=True)
        set_precision(config.precision)
        try:
            images = load_data(config, fingerprint)
            display.say(images.summary())
            if shared.first and (other := namesake(folder)):
                display.say(other)
            trainer = Trainer(config, images, device, shared, display.say)
            trainer.check()
            with sole_writer(folder) if shared.first else nullcontext():
                if overwrite and shared.first:
                    folder.clear()
                if shared.first:
                    warn_of_other_weights(folder, display)
                Session(config, folder, trainer, display, should_stop).train()
        except Exception as error:
            if (explained := in_words(error, config, device)) is not error:
                raise explained from error
            raise
        return Run(config, folder.path)


def warn_of_other_weights(folder: RunFolder, display: Display) -> None:
    """Say that a run is begun because the file of its weights has changed: the same command meant another run before."""
    config = folder.config
    if not config.weights or folder.status():  # it was begun before
        return
    for path in folder.path.parent.glob(f"{config.run_id.rpartition('-')[0]}-*"):
        with suppress(UserError):  # not a run, or a damaged one
            other = read_config(path)
            same = other.weights == config.weights and other.weights_hash != config.weights_hash
            if same and other.altered(weights_hash=config.weights_hash).run_id == config.run_id:
                display.warn(
                    f"{config.weights} has changed since {path} was begun with it, so this is another run. Restore the file "
                    "to go on with that one."
                )


@contextmanager
def sole_writer(folder: RunFolder) -> Iterator[None]:
    """Make the folder and hold it."""
    folder.create()
    lock = folder.lock()
    try:
        lock.acquire()
    except Timeout:
        raise BusyError(f"Another process is training {folder.path} at this moment. Wait for it, or stop it.") from None
    except (OSError, NotImplementedError) as error:
        raise not_lockable(Path(lock.lock_file), error) from error
    try:
        folder.remove_leftovers()
        yield
    finally:
        lock.release()


def in_words(error: BaseException, config: RunConfig, device: torch.device, stack: int = 1) -> BaseException:
    """The error itself; if memory has run out, what to do about it."""
    if not is_out_of_memory(error):
        return error
    fewer = "--stack, " if stack > 1 else ""
    return UserError(
        f"Out of memory on {device} with {option('batch_size')} {config.batch_size}. Lower {fewer}{option('batch_size')} or "
        f"{option('image_size')}, or take a smaller model. The same command goes on from the last checkpoint if these stay "
        "as they are."
    )
