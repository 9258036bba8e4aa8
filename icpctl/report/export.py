"""The runs of a results folder for people who live in TensorBoard or in Weights & Biases.

    results/tensorboard/       one experiment: its hyper-parameters and metrics, for the HParams tab
    results/tensorboard/<id>/  one event file: a scalar for each split/metric, by epoch; hyper-parameters; how it ended
    results/wandb/             one offline run each, which `wandb sync` uploads

Both are copies: `metrics.csv` and `config.json` remain the record.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from icpctl.errors import UserError
from icpctl.files import not_writable, write_atomic
from icpctl.runs.folder import TENSORBOARD, RunRecord
from icpctl.runs.metrics import read_metrics
from icpctl.runs.table import data_versions, of_version
from icpctl.training.tracking import EVENTS, PROJECT, Setting, Tool, labels_of, settings_of

Kind = Tool
Epoch = tuple[int, float, dict[str, float]]
"""An epoch's number, when it ended (seconds since 1970), and its metrics by `split/metric`."""

ROOM = 1 << 20
"""Bytes that must be free when wandb is done; it writes in blocks of 32 KiB."""


def export(records: Sequence[RunRecord], kind: Kind, target: Path) -> Path:
    """Write every run's metrics and hyper-parameters for TensorBoard, or for Weights & Biases (offline).

    Runs are taken whatever their state; one without metrics has its hyper-parameters alone. What an earlier export wrote
    of the same run is replaced when the new copy is whole, and everything else in the folder is left alone. Settings of
    the machine (device, folders) are left out. Nothing goes over the network.

    Args:
        records: the runs; of two copies of a run the one in the run's own folder is taken.
        kind: for which of the two.
        target: the results folder; a folder named after the kind is made in it.

    Returns:
        The folder to give to the tool.

    Raises:
        UserError: the tool's package is missing, or something cannot be written.
    """
    own_last = sorted(records, key=lambda record: record.path.name == record.run_id)
    runs = {record.run_id: record for record in own_last}.values()
    folder = target / kind
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if kind == TENSORBOARD:
            _to_tensorboard(runs, folder)
        else:
            _to_wandb(runs, folder)
    except ImportError as error:
        raise UserError(
            f"--export {kind} needs the package {kind}, which cannot be imported ({error}): pip install 'icpctl[{kind}]'."
        ) from error
    except OSError as error:
        raise not_writable(folder, error) from error
    return folder


def _to_tensorboard(records: Iterable[RunRecord], folder: Path) -> None:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2, summary_v2
    from tensorboard.summary.writer.record_writer import RecordWriter

    def write(path: Path, name: str, events: Sequence[Any]) -> None:
        # Not by SummaryWriter: its thread loses what a full disk does not take, and it puts the host into the name.
        content = io.BytesIO()
        writer = RecordWriter(content)
        for event in [Event(wall_time=events[0].wall_time, file_version="brain.Event:2"), *events]:
            writer.write(event.SerializeToString())
        path.mkdir(exist_ok=True)
        write_atomic(path / name, content.getvalue())
        for earlier in path.glob(EVENTS.format("*")):
            if earlier.name != name:
                earlier.unlink()

    def ended(state: object, time: float) -> Any:
        known = {"finished": api_pb2.STATUS_SUCCESS, "failed": api_pb2.STATUS_FAILURE}
        info = plugin_data_pb2.SessionEndInfo(status=known.get(str(state)), end_time_secs=time)
        about = metadata.create_summary_metadata(plugin_data_pb2.HParamsPluginData(session_end_info=info))
        return Summary.Value(tag=metadata.SESSION_END_INFO_TAG, metadata=about, tensor=metadata.NULL_TENSOR)

    values: dict[str, set[Setting]] = {}
    measured: dict[str, None] = {}
    for record in records:
        settings, epochs, changed = settings_of(record.config), _epochs(record), _changed(record)
        began = epochs[0][1] if epochs else changed
        events = [Event(wall_time=began, summary=summary_v2.hparams_pb(settings, record.run_id, began))]
        for epoch, time, metrics in epochs:
            scalars = [Summary.Value(tag=tag, simple_value=value) for tag, value in metrics.items()]
            events.append(Event(wall_time=time, step=epoch, summary=Summary(value=scalars)))
            measured |= dict.fromkeys(tag for tag in metrics if tag.startswith("test/"))
        end = ended(record.status.get("state"), changed)
        events.append(Event(wall_time=changed, summary=Summary(value=[end])))
        # A TensorBoard that is running reads each file once, so other contents need another name.
        write(folder / record.run_id, EVENTS.format(int(changed * 1000)), events)
        for name, value in settings.items():
            values.setdefault(name, set()).add(value)

    # HParams reads one experiment for all runs, which says what its table shows.
    hparams = [summary_v2.HParam(name, summary_v2.Discrete(found)) for name, found in values.items()]
    experiment = summary_v2.hparams_config_pb(hparams, [summary_v2.Metric(tag) for tag in measured], 0)
    write(folder, EVENTS.format(0), [Event(summary=experiment)])


def _to_wandb(records: Iterable[RunRecord], folder: Path) -> None:
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # read on import; it would report crashes over the network
    from wandb import Error, Settings, init, teardown

    quiet = Settings(
        mode="offline",
        console="off",
        silent=True,
        host="",
        reinit="create_new",
        disable_git=True,
        disable_code=True,
        x_disable_meta=True,
        x_disable_stats=True,
        x_disable_machine_info=True,
        x_save_requirements=False,
    )
    records = list(records)
    try:
        for record, version in zip(records, data_versions(records), strict=True):
            run_id = record.run_id
            state = str(record.status.get("state") or "unknown")
            with TemporaryDirectory(dir=folder, prefix=".", ignore_cleanup_errors=True) as temporary:
                run = init(
                    dir=temporary,
                    project=PROJECT,
                    group=of_version(record.config.group_id, version),
                    tags=[state],
                    config=settings_of(record.config),
                    settings=quiet,
                    **labels_of(record.config),
                )
                for epoch, time, metrics in _epochs(record):
                    run.log({**metrics, "_timestamp": time}, step=epoch)
                run.finish(exit_code=int(state != "finished"))
                # wandb does not say that the disk was full; where it was, there is no room for this either.
                write_atomic(Path(temporary) / "room", bytes(ROOM))
                (written,) = Path(temporary, "wandb").glob(f"offline-run-*-{run_id}")
                for earlier in folder.glob(f"offline-run-*-{run_id}"):
                    earlier.rename(Path(temporary) / earlier.name)
                written.rename(folder / written.name)
    except Error as error:
        raise UserError(f"wandb could not write {folder}: {error}") from error
    finally:
        teardown()  # else its service lives as long as this process


def _epochs(record: RunRecord) -> list[Epoch]:
    """The epochs in order; the last one ended when metrics.csv was last written, the others by their seconds before."""
    rows, _ = read_metrics(record.path, record.config)  # the report names what is damaged
    metrics: dict[int, dict[str, float]] = {}
    for _, epoch, split, metric, value in rows.itertuples(index=False, name=None):
        metrics.setdefault(epoch, {})[f"{split}/{metric}"] = value
    ended = _changed(record)
    epochs: list[Epoch] = []
    for epoch in sorted(metrics, reverse=True):
        epochs.append((epoch, ended, metrics[epoch]))
        seconds = metrics[epoch].get("train/seconds", 0.0)
        ended -= seconds if math.isfinite(seconds) else 0.0
    return epochs[::-1]


def _changed(record: RunRecord) -> float:
    """When metrics.csv was last written; of a run without one, when its config.json was."""
    file = record.path / "metrics.csv"
    return (file if file.exists() else record.path / "config.json").stat().st_mtime
