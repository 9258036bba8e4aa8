"""The export, read back by TensorBoard itself and from the records that wandb wrote."""

from __future__ import annotations

import math
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import psutil
import pytest
from tracked import Table, table, tensorboard_events, tensorboard_table, wandb_items, wandb_records, wandb_table

from icpctl.config import RunConfig, resolve
from icpctl.errors import UserError
from icpctl.report.export import Kind, export
from icpctl.runs.folder import RunFolder, read_runs

Metrics = dict[str, dict[str, float]]
EPOCHS: list[Metrics] = [
    {"train": {"loss": 2.5, "seconds": 100.0}, "test": {"accuracy": 0.1, "loss": math.nan}},
    {
        "train": {"loss": math.inf, "seconds": math.nan},
        "test": {"accuracy": 0.2, "loss": -math.inf},
        "val": {"f1": 1e-9},
    },
    {"train": {"loss": 1 / 3, "seconds": 20.0}, "test": {"accuracy": 0.3, "loss": 1.0, "fid": 12.0}},
]
kinds = pytest.mark.parametrize("kind", get_args(Kind))


def write_run(output: Path, config: RunConfig, epochs: list[Metrics], state: str = "finished") -> RunFolder:
    folder = RunFolder(output, config)
    folder.create()
    folder.write_config(config, {}, {})
    for epoch, metrics in enumerate(epochs):
        folder.append_metrics(epoch, metrics)
    folder.write_status(state)
    return folder


def export_all(output: Path, kind: Kind) -> Path:
    pytest.importorskip(kind)
    return export(read_runs(output)[0], kind, output)


def read_back(path: Path, kind: Kind, run_id: str) -> tuple[Table, dict[int, float]]:
    return tensorboard_table(path / run_id) if kind == "tensorboard" else wandb_table(path, run_id)


def assert_equal(found: Table, expected: Table, kind: Kind) -> None:
    if kind == "tensorboard":  # which keeps 32 bits
        expected = {key: float(np.float32(value)) for key, value in expected.items()}
    assert found.keys() == expected.keys()
    np.testing.assert_array_equal([found[key] for key in expected], list(expected.values()))


@kinds
def test_every_number_of_every_run_is_there_at_its_epoch(tmp_path: Path, kind: Kind) -> None:
    folders = [
        write_run(tmp_path, resolve({"epochs": 3}), EPOCHS),
        write_run(tmp_path, resolve({"epochs": 3, "seed": 1}), EPOCHS[1:], "failed"),
        write_run(tmp_path, resolve({"epochs": 3, "optimizer": "none"}), EPOCHS[:1], "running"),
    ]
    path = export_all(tmp_path, kind)
    assert path == tmp_path / kind
    for folder in folders:
        assert_equal(read_back(path, kind, folder.run_id)[0], table(folder), kind)


@kinds
def test_an_epoch_has_the_time_when_it_ended(tmp_path: Path, kind: Kind) -> None:
    folder = write_run(tmp_path, resolve({"epochs": 3}), EPOCHS)
    os.utime(folder.metrics_file, (0, 1_700_000_000.5))
    _, times = read_back(export_all(tmp_path, kind), kind, folder.run_id)
    # The second epoch does not know how long it took.
    assert times == {2: 1_700_000_000.5, 1: 1_699_999_980.5, 0: 1_699_999_980.5}
    if kind == "tensorboard":  # which orders the runs by it
        assert tensorboard_events(tmp_path / kind / folder.run_id).FirstEventTimestamp() == times[0]


@kinds
def test_exporting_again_replaces_the_run_and_leaves_the_rest(tmp_path: Path, kind: Kind) -> None:
    folder = write_run(tmp_path, resolve({"epochs": 3}), EPOCHS)
    other = write_run(tmp_path, resolve({"epochs": 3, "seed": 1}), EPOCHS)
    path = export_all(tmp_path, kind)
    names = {file.name for file in path.glob(f"{folder.run_id}/*tfevents*")}
    theirs = [path / "notes.txt", *(path / "x" / name for name in ("events.out.tfevents.1.host", "run-x.wandb"))]
    theirs[1].parent.mkdir()
    for file in theirs:
        file.write_text("theirs")
    shutil.rmtree(other.path)
    folder.metrics_file.unlink()
    folder.append_metrics(1, {"test": {"accuracy": 0.7}})
    os.utime(folder.metrics_file, (0, 1_700_000_000))

    export_all(tmp_path, kind)
    assert_equal(read_back(path, kind, folder.run_id)[0], table(folder), kind)
    assert len(read_back(path, kind, other.run_id)[0]) == len(
        [1 for e in EPOCHS for split in e.values() for _ in split]
    )
    assert all(file.read_text() == "theirs" for file in theirs)
    assert len(list(path.iterdir())) == 2 + 2 + (kind == "tensorboard")  # the runs, theirs, and the experiment
    assert len(list(path.glob(f"*{folder.run_id}"))) == 1
    assert names.isdisjoint(
        file.name for file in path.glob(f"{folder.run_id}/*tfevents*")
    )  # else TensorBoard keeps the old one


@kinds
def test_the_exported_folder_is_no_run(tmp_path: Path, kind: Kind) -> None:
    write_run(tmp_path, resolve({"epochs": 3}), EPOCHS)
    path = export_all(tmp_path, kind)
    (path / "log.txt").touch()  # what makes another folder without a configuration one of a run that has begun
    records, problems = read_runs(tmp_path)
    assert (len(records), problems) == (1, [])


@kinds
def test_of_two_copies_the_one_in_the_runs_own_folder_counts(tmp_path: Path, kind: Kind) -> None:
    folder = write_run(tmp_path, resolve({"epochs": 3}), EPOCHS)
    for name in ("a-copy", "z-copy"):
        shutil.copytree(folder.path, tmp_path / name)
        (tmp_path / name / "metrics.csv").unlink()
    assert_equal(read_back(export_all(tmp_path, kind), kind, folder.run_id)[0], table(folder), kind)


def tensorboard_hparams(path: Path) -> dict[str, Any]:
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    content = tensorboard_events(path).summary_metadata
    return {
        tag: HParamsPluginData.FromString(value.plugin_data.content) for tag, value in content.items() if tag[0] == "_"
    }


CONFIG = {"model": "vae", "dataset": "digits", "epochs": 3, "data_dir": "/secret", "fid_weights": "/secret/weights.pth"}


def assert_settings(settings: dict[str, object], config: RunConfig) -> None:
    assert settings["layers"] == ",".join(config.layers)
    assert len(config.layers) > 1
    assert (settings["optimizer"], settings["lr"], settings["steps"]) == (config.optimizer, config.lr, config.steps)
    assert settings["teacher_statistics"] is True
    of_the_machine = {
        "device",
        "fast",
        "data_dir",
        "data_memory",
        "fid_weights",
        "fid_features",
        "robustness",
        "keep_predictions",
    }
    unset = {name for name, value in config if value is None}
    assert settings.keys() == RunConfig.model_fields.keys() - of_the_machine - unset


@pytest.mark.parametrize("epochs", [EPOCHS, []])
@pytest.mark.parametrize(("state", "status"), [("finished", 1), ("failed", 2), ("running", 0), ("interrupted", 0)])
def test_tensorboard_has_the_hyper_parameters(tmp_path: Path, epochs: list[Metrics], state: str, status: int) -> None:
    config = resolve(CONFIG)
    folder = write_run(tmp_path, config, epochs, state)
    hparams = tensorboard_hparams(export_all(tmp_path, "tensorboard") / folder.run_id)
    start = hparams["_hparams_/session_start_info"].session_start_info
    found = {name: getattr(value, str(value.WhichOneof("kind"))) for name, value in start.hparams.items()}
    assert_settings(found, config)
    assert start.group_name == folder.run_id
    assert hparams["_hparams_/session_end_info"].session_end_info.status == status


def test_one_experiment_tells_tensorboard_the_test_metrics_of_all_runs(tmp_path: Path) -> None:
    for seed, epochs in enumerate((EPOCHS, EPOCHS[:1])):
        write_run(tmp_path, resolve({"epochs": 3, "seed": seed}), epochs)
    path = export_all(tmp_path, "tensorboard")
    experiment = tensorboard_hparams(path)["_hparams_/experiment"].experiment
    assert {info.name.tag for info in experiment.metric_infos} == {"test/accuracy", "test/loss", "test/fid"}
    domains = {info.name: list(info.domain_discrete) for info in experiment.hparam_infos}
    assert domains["seed"] == [0, 1]
    assert domains["optimizer"] == ["ademamix"]
    assert "_hparams_/experiment" not in tensorboard_hparams(next(p for p in path.iterdir() if p.is_dir()))


def test_the_same_runs_give_the_same_event_files(tmp_path: Path) -> None:
    write_run(tmp_path, resolve({"epochs": 3}), EPOCHS)

    def contents() -> dict[Path, bytes]:
        files = export_all(tmp_path, "tensorboard").rglob("*")
        return {file: file.read_bytes() for file in files if file.is_file()}

    first = contents()
    assert len(first) == 2
    assert contents() == first
    assert not [name for name in first if socket.gethostname() in name.name]


@pytest.mark.parametrize(
    ("optimizer", "job_type", "state", "code"),
    [("adam", "adam", "finished", 0), ("none", "baseline", "failed", 1), ("none", "baseline", "interrupted", 1)],
)
@pytest.mark.parametrize("epochs", [EPOCHS, []])
def test_wandb_has_the_run(
    tmp_path: Path, optimizer: str, job_type: str, state: str, code: int, epochs: list[Metrics]
) -> None:
    config = resolve(CONFIG | {"optimizer": optimizer})
    write_run(tmp_path, config, epochs, state)
    records = wandb_records(export_all(tmp_path, "wandb"), config.run_id)
    (run,) = (record.run for record in records if record.HasField("run"))
    assert (run.run_id, run.display_name, run.run_group) == (config.run_id, config.run_id, config.group_id)
    assert (run.job_type, run.project, list(run.tags)) == (job_type, "icpctl", [state])
    settings = wandb_items(run.config.update)
    del settings["_wandb"]
    assert_settings(settings, config)
    assert [record.exit.exit_code for record in records if record.HasField("exit")] == [code]
    summary: dict[str, Any] = {}
    for record in records:
        if record.HasField("summary"):
            summary |= wandb_items(record.summary.update)
    last = {f"{split}/{name}": value for e in epochs for split, metrics in e.items() for name, value in metrics.items()}
    assert {name: value for name, value in summary.items() if name[0] != "_"} == last


def test_wandb_stays_offline_and_silent_and_leaves_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("wandb")
    config = resolve({"epochs": 3})
    write_run(tmp_path / "results", config, EPOCHS)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        monkeypatch.setenv("WANDB_MODE", "online")
        monkeypatch.setenv("WANDB_DIR", str(tmp_path / "elsewhere"))
        path = export_all(tmp_path / "results", "wandb")
        with pytest.raises(BlockingIOError):
            server.accept()
    assert capfd.readouterr() == ("", "")
    assert not [process for process in psutil.Process().children(recursive=True) if "wandb" in process.name()]
    assert [entry.name for entry in tmp_path.iterdir()] == ["results"]
    assert [entry.name for entry in path.iterdir()] == [next(path.glob("offline-run-*")).name]
    assert [record.run.host for record in wandb_records(path, config.run_id) if record.HasField("run")] == [""]
    written = next(path.glob("*/*.wandb")).read_bytes()
    assert not [secret for secret in (Path.cwd(), sys.executable, tmp_path) if bytes(Path(secret)) in written]
    assert not list(path.rglob("wandb-metadata.json"))
    assert not list(path.rglob("requirements.txt"))


@kinds
def test_a_missing_package_says_how_to_install_it(tmp_path: Path, kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path, resolve({"epochs": 3}), EPOCHS)
    for name in [name for name in sys.modules if name.split(".")[0] == kind] + [kind]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=rf"--export {kind} needs .*pip install 'icpctl\[{kind}\]'"):
        export(read_runs(tmp_path)[0], kind, tmp_path)


@kinds
def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, kind: Kind) -> None:
    write_run(tmp_path, resolve({"epochs": 3}), EPOCHS)
    (tmp_path / kind).touch()
    with pytest.raises(UserError, match=f"Cannot write .*{kind}"):
        export_all(tmp_path, kind)


@contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    """What a full disk looks like to those who write."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(("kind", "size"), [("tensorboard", 1 << 10), ("wandb", 1 << 18)])
def test_what_cannot_be_written_whole_leaves_the_earlier_export(
    tmp_path: Path, kind: Literal["tensorboard", "wandb"], size: int
) -> None:
    folder = write_run(tmp_path, resolve({"epochs": 3}), EPOCHS)
    path = export_all(tmp_path, kind)
    before = {file for file in path.rglob("*") if file.is_file()}
    expected = table(folder)
    folder.append_metrics(4, EPOCHS[0])
    with no_file_larger_than(size), pytest.raises(UserError, match="Cannot write"):
        export_all(tmp_path, kind)
    assert {file for file in path.rglob("*") if file.is_file()} == before
    assert_equal(read_back(path, kind, folder.run_id)[0], expected, kind)
