"""The one training loop.

The data set lives on the device as uint8, or is streamed from the disk if it does not fit there. All random numbers derive
from (seed, epoch, batch): a run that was killed goes on from its checkpoint to the same weights, bit for bit, as one that
was not. Within an epoch nothing waits for the device; the display reads it once a second.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType

import pandas as pd
import torch
from filelock import Timeout

from icpctl import data, models, tasks
from icpctl.config import RunConfig, option
from icpctl.display import Display
from icpctl.errors import UserError, is_out_of_memory
from icpctl.files import not_lockable
from icpctl.fingerprints import OtherDataError, data_source, is_finished, load_data
from icpctl.metrics import read_metrics
from icpctl.network import choose_device, set_precision
from icpctl.parallel import processes
from icpctl.results import RunFolder
from icpctl.session import Interrupted as Interrupted  # what `train` raises
from icpctl.session import Session
from icpctl.stack import Stack, UnstackableError, take_steps
from icpctl.trainer import Trainer


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
    if not config.layers and config.optimizer != "none":
        raise UserError(f"There are no stages of {config.model} to tap. Name modules with --layers.")
    for layer in config.layers:
        if layer not in modules:
            top = ", ".join(name for name in modules if "." not in name)
            raise UserError(f"--layers: {config.model} has no module '{layer}'. Its top-level modules are {top}.")


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
        The fingerprint of each, by `icpctl.fingerprints.data_source`.

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
        UserError: the run cannot start or go on; what was saved stays. So it is with a run, finished or not, that was
            trained on other data than are there now.
        Interrupted: as asked by `should_stop`.
    """
    check(config)
    with processes(config) as (shared, device):
        display = display if display is not None and shared.first else Display()
        config = shared.whole_batch(config, display.say)
        folder = RunFolder(Path(output), config)
        if not overwrite and shared.lead(lambda: is_finished(folder)):
            return Run(config, folder.path, skipped=True)
        set_precision(config.precision)
        try:
            images = load_data(config)
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
    checks: Mapping[str, Callable[[], None]] = MappingProxyType({}),
    fingerprints: Mapping[str, str] = MappingProxyType({}),
) -> list[BaseException | None]:
    """Train several runs at once, which take their steps together (`icpctl.stack`), or go on with them.

    Args:
        configs: runs with one `RunConfig.stack_id`.
        output: the results folder.
        displays: one for each run; none shows nothing.
        should_stop: asked of each run after every batch; at True its state is saved, and `Interrupted` stops it.
        checks: by the ids of runs, called before anything of them is written; raise if this process may not.
        fingerprints: of the data that runs have to be trained on, by their ids; none: whatever is there.

    Returns:
        For each run None, or what stopped it: as `train` would raise it. The others go on.
    """
    device = choose_device(configs[0].device)
    set_precision(configs[0].precision)
    stopped: dict[str, BaseException] = {}
    sessions: list[Session] = []
    with ExitStack() as locks:
        for config, display in zip(configs, displays or [Display() for _ in configs], strict=True):
            folder = RunFolder(Path(output), config, checks.get(config.run_id, lambda: None))
            try:
                check(config)
                if is_finished(folder):
                    continue
                images = load_data(config)
                if fingerprints.get(config.run_id, images.fingerprint) != images.fingerprint:
                    raise OtherDataError(
                        f"{config.dataset} is not what the study was started with. Restore the data, where every machine has "
                        "the same, and go on with --resume."
                    )
                locks.enter_context(_sole_writer(folder))
                beside = sessions[0].trainer if sessions else None
                trainer = Trainer(config, images, device, say=display.say, stack=len(configs), beside=beside)
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
    except (OSError, NotImplementedError) as error:
        raise not_lockable(Path(lock.lock_file), error) from error
    try:
        folder.remove_leftovers()
        yield
    finally:
        lock.release()


def _in_words(error: BaseException, config: RunConfig, device: torch.device, stack: int = 1) -> BaseException:
    """The error itself; if memory has run out, what to do about it."""
    if not is_out_of_memory(error):
        return error
    fewer = "--stack, " if stack > 1 else ""
    return UserError(
        f"Out of memory on {device} with {option('batch_size')} {config.batch_size}. Lower {fewer}{option('batch_size')} or "
        f"{option('image_size')}, or take a smaller model. The same command goes on from the last checkpoint if these stay "
        "as they are."
    )
