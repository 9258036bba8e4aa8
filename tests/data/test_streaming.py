"""Images streamed from the disk: the same run to the bit as one in memory, whatever reads them, and nobody left behind."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import pickle
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from commands import PATIENCE, PROCESSES, Forked
from small_runs import Recorder
from torch import Tensor
from torch.utils.data import DataLoader

import icpctl
from icpctl import data
from icpctl.data import Split, streaming
from icpctl.data.device import DeviceSplit
from icpctl.data.epochs import Plan
from icpctl.data.source import Stamp, stamp
from icpctl.data.streaming import StreamedSplit, choose_split
from icpctl.runs import checkpoint
from icpctl.runs.folder import TIMINGS
from icpctl.training import trainer
from icpctl.training.engine import Interrupted

CPU = torch.device("cpu")
TINY = 1e-6  # GiB


def small(**settings: Any) -> icpctl.RunConfig:
    """Two epochs of four batches of digits, the second with the method."""
    values: dict[str, Any] = {"dataset": "digits", "epochs": 2, "warmup_epochs": 1, "train_size": 170, "steps": 1}
    return icpctl.RunConfig(**(values | {"val_fraction": 0.2, "batch_size": 32, "device": "cpu"} | settings))


class Told(Recorder):
    """Keeps what is said of streaming, too."""

    @property
    def streamed(self) -> list[str]:
        return [message for message in self.messages if "streamed" in message]


def assert_same_run(one: Path, other: Path) -> None:
    """Equal to the bit: weights, mean and standard deviation, metrics but for the timings."""
    saved = [checkpoint.load(path / "checkpoints" / "last.pt") for path in (one, other)]
    for name in ("mean", "std"):
        assert torch.equal(saved[0][name], saved[1][name])
    for key, value in saved[0]["model"].items():
        assert torch.equal(value, saved[1]["model"][key]), key
    texts = [(path / "metrics.csv").read_text().splitlines() for path in (one, other)]
    kept = [[line for line in lines if line.split(",")[3] not in TIMINGS] for lines in texts]
    assert kept[0] == kept[1]
    assert len(kept[0]) > 40


@pytest.fixture(scope="module")
def in_memory(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The run of a configuration whose images are in memory, trained once."""
    folder = tmp_path_factory.mktemp("memory")
    return lambda **settings: icpctl.train(small(**settings), folder).path


@pytest.fixture(autouse=True)
def nobody_left_behind() -> Iterator[None]:
    yield
    assert not multiprocessing.active_children()


@pytest.fixture
def forked_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that need not import torch, each for seconds, where a test is about what they make and not how they start."""

    def loader(*given: Any, **named: Any) -> DataLoader[Tensor]:
        assert named["multiprocessing_context"] == "spawn"
        return DataLoader(*given, **named | {"multiprocessing_context": PROCESSES})

    forkserver.ensure_running()  # before signals are blocked for the workers, which all that it forks would inherit
    monkeypatch.setattr(streaming, "DataLoader", loader)


@pytest.fixture
def mapped(tmp_path: Path) -> Split:
    """50 random images on the disk."""
    images = np.random.default_rng(0).integers(0, 256, (50, 3, 12, 10), dtype=np.uint8)
    images[:, 2] = 7  # a channel without variation
    np.save(tmp_path / "images.npy", images)
    return Split(np.load(tmp_path / "images.npy", mmap_mode="r"), np.arange(50))


def on_disk(split: Split) -> tuple[str, Stamp]:
    """The file of its images, and the stamp of that."""
    assert isinstance(split.images, np.memmap)
    file = str(split.images.filename)
    return file, stamp("images", file)


@pytest.mark.parametrize("settings", [{}, {"recipe": "strong"}, {"model": "vae", "augmentation": "none"}], ids=str)
def test_a_streamed_run_is_the_one_in_memory(
    settings: dict[str, Any], in_memory: Callable[..., Path], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if settings != {"recipe": "strong"}:  # whose workers start as those of a user do
        request.getfixturevalue("forked_workers")
    said = Told()
    config = small(**settings, data_memory=TINY)
    assert config.run_id == small(**settings).run_id
    run = icpctl.train(config, tmp_path, display=said)
    assert_same_run(in_memory(**settings), run.path)
    (message,) = said.streamed
    assert "may take 1e-06 GiB (--data-memory)" in message
    assert "of memory on cpu" in message


def test_small_data_are_not_streamed(tmp_path: Path) -> None:
    said = Told()
    icpctl.train(small(optimizer="none", epochs=1, warmup_epochs=0), tmp_path, display=said)
    assert not said.streamed
    assert said.messages == ["digits: 1,437 training and 360 test images of 10 classes."]


@pytest.mark.usefixtures("forked_workers")
def test_a_streamed_run_that_was_stopped_goes_on_with_the_next_batch(
    in_memory: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = itertools.count(1)
    with pytest.raises(Interrupted):
        icpctl.train(small(data_memory=TINY), tmp_path, should_stop=lambda: next(asked) >= 2)
    assert not multiprocessing.active_children()
    places: list[tuple[int, int]] = []

    def noted(self: streaming._Places) -> Iterator[tuple[int, int]]:
        for place in self.all:
            places.append(place)
            yield place

    monkeypatch.setattr(streaming._Places, "__iter__", noted)
    run = icpctl.train(small(data_memory=TINY), tmp_path)
    assert places == [(0, 2), (0, 3)] + [(1, batch) for batch in range(4)]
    assert_same_run(in_memory(), run.path)


@pytest.mark.usefixtures("forked_workers")
@pytest.mark.parametrize("kind", ["crop-randaugment", "pad-crop-flip", "none"])
@pytest.mark.parametrize(("workers", "companion"), [(1, ""), (2, "class"), (2, "replay")])
def test_batches_are_the_same_whatever_the_workers(kind: str, workers: int, companion: str, mapped: Split) -> None:
    part = np.arange(1, 48, 2)
    plan = Plan(5, kind, 5, (24, 3, 12, 10), companion=companion, labels=torch.arange(24) % 4)
    held, streamed = DeviceSplit(mapped, CPU, part), StreamedSplit(mapped, CPU, part)
    streamed.workers = workers
    state = torch.get_rng_state()
    try:
        for epoch, start in ((0, 0), (3, 2), (1, 0)):
            expected, found = (list(split.batches(plan, epoch, start)) for split in (held, streamed))
            assert len(expected) == 4 - start
            for batches in zip(expected, found, strict=True):
                assert len(batches[0]) == 1 + bool(companion)
                assert all(torch.equal(one, other) for one, other in zip(*batches, strict=True))
    finally:
        streamed.close()
    assert torch.equal(torch.get_rng_state(), state)  # what the run draws is not disturbed


@pytest.mark.usefixtures("forked_workers")
def test_each_process_reads_its_rows(mapped: Split) -> None:
    whole = DeviceSplit(mapped, CPU)
    for rank in (0, 1):
        plan = Plan(0, "pad-crop-flip", 8, (50, 3, 12, 10), rank, 2)
        expected = [images for (images,) in whole.batches(plan, 0, 0)]
        worker = streaming._Batches(*on_disk(mapped), np.arange(50), plan)
        for batch, images in enumerate(expected):
            assert torch.equal(worker[0, batch][0], images.chunk(2)[rank])
    streamed = StreamedSplit(mapped, CPU)
    try:
        for images, (own,) in zip(expected, streamed.batches(plan, 0, 0), strict=True):
            assert own.shape == images.shape
            assert torch.equal(own.chunk(2)[1], images.chunk(2)[1])
    finally:
        streamed.close()


def test_what_a_worker_is_sent_is_small(mapped: Split) -> None:
    plan = Plan(0, "none", 5, (50, 3, 12, 10))
    sent = streaming._Batches(*on_disk(mapped), np.arange(50), plan)
    assert len(pickle.dumps(sent)) < 1500


@pytest.mark.parametrize("part", [None, np.array([3, 4, 9, 40])])
def test_statistics_are_exact(part: Any, mapped: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = DeviceSplit(mapped, CPU, part).statistics()
    monkeypatch.setattr("icpctl.data.device.CHUNK_BYTES", 7 * 3 * 12 * 10)  # seven images
    streamed = StreamedSplit(mapped, CPU, part)
    assert all(map(torch.equal, expected, streamed.statistics()))
    images = mapped.images if part is None else mapped.images[part]
    values = images.astype(np.float64) / 255
    assert expected[0].flatten().tolist() == pytest.approx(values.mean((0, 2, 3)), rel=1e-6)
    assert expected[1].flatten().tolist() == pytest.approx([*values.std((0, 2, 3))[:2], 1.0], rel=1e-6)
    assert (len(streamed), streamed.shape) == (len(images), torch.Size(images.shape))
    assert np.array_equal(streamed.images.numpy(), images)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_evaluation_streams(split: str, in_memory: Callable[..., Path]) -> None:
    path = in_memory()
    said: list[str] = []
    expected = icpctl.evaluate(path, split=split, device="cpu", say=said.append)
    assert not said
    assert icpctl.evaluate(path, split=split, device="cpu", data_memory=TINY, say=said.append) == expected
    assert "streamed" in said[0]


def test_fid_of_streamed_images(in_memory: Callable[..., Path]) -> None:
    classifier, vae = in_memory(), in_memory(model="vae", augmentation="none")
    options: dict[str, Any] = {
        "fid_features": classifier,
        "device": "cpu",
        "split": "val",
        "warn": lambda message: None,
    }
    expected = icpctl.evaluate(vae, **options)
    assert any(name.startswith("fid") for name in expected)
    assert icpctl.evaluate(vae, **options, data_memory=TINY) == expected


def test_the_memory_that_images_may_take(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    free = psutil.virtual_memory().available
    monkeypatch.setattr(streaming, "_free_memory", lambda device: float(free))
    assert choose_split(free // 2, CPU, None, said.append) is DeviceSplit
    assert choose_split(free // 2, CPU, 2 * free / 2**30, said.append) is DeviceSplit
    assert not said
    assert choose_split(free // 2 + 1, CPU, None, said.append) is StreamedSplit
    assert "half of what is free; --data-memory" in said[0]
    assert (
        choose_split(1, CPU, None, said.append, agree=lambda mine: True) is StreamedSplit
    )  # another process's is short


def test_memory_and_threads_are_shared_by_the_processes_of_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(os, "cpu_count", lambda: 10)
    assert streaming.default_workers() == 3
    alone = streaming._free_memory(CPU)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert streaming.default_workers() == 2
    assert streaming._free_memory(CPU) == pytest.approx(alone / 4, rel=0.2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "40")
    assert streaming.default_workers() == 1


# ── how it ends


@pytest.mark.usefixtures("forked_workers")
def test_a_failure_leaves_no_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any) -> Any:
        raise ValueError("of the step")

    monkeypatch.setattr(trainer.Trainer, "step", failing)
    with pytest.raises(ValueError, match="of the step") as caught:  # which holds on to all that was there
        icpctl.train(small(data_memory=TINY), tmp_path)
    assert not multiprocessing.active_children()
    del caught


def test_a_worker_that_is_killed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killing(self: trainer.Trainer, epoch: int, batch: int, images: trainer.Images) -> Any:
        for worker in multiprocessing.active_children():
            worker.kill()
        return step(self, epoch, batch, images)

    step = trainer.Trainer.step
    monkeypatch.setattr(trainer.Trainer, "step", killing)
    with pytest.raises(
        icpctl.UserError, match=r"reads the training images came to its end: .*The same command goes on"
    ):
        icpctl.train(small(data_memory=TINY), tmp_path)


def replace_content(file: Path) -> None:
    """By as many bytes, of the same time."""
    before = file.stat()
    file.write_bytes(file.read_bytes()[:-1] + b"\0")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.usefixtures("forked_workers")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (Path.unlink, r"cannot be read any more \(No such file or directory\)"),
        (replace_content, "were changed"),
        (lambda file: os.truncate(file, 500), "were changed"),
    ],
    ids=["removed", "replaced", "cut off"],
)
def test_images_that_change_under_a_run_are_named(mapped: Split, change: Callable[[Path], object], words: str) -> None:
    """Nothing else is read in their place, by a worker or here, and reading beyond the end ends no process."""
    split = replace(mapped, stamp=on_disk(mapped)[1])
    streamed = StreamedSplit(split, CPU)
    streamed.workers = 1
    plan = Plan(0, "none", 5, (50, 3, 12, 10))
    batches = streamed.batches(plan, 0, 0)
    next(batches)
    change(Path(streamed.file))
    with pytest.raises(
        icpctl.UserError, match=rf"^The decoded images in '.*images\.npy' {words}.*same command"
    ) as caught:
        list(streamed.batches(plan, 1, 0))
    assert "\n" not in str(caught.value)
    streamed.close()
    with pytest.raises(icpctl.UserError, match=words):
        streamed[:5]
    with pytest.raises(icpctl.UserError, match=words):
        split.check()


SCRIPT = """
import sys, icpctl
print("begun", flush=True)
config = icpctl.RunConfig(
    dataset="digits", epochs={epochs}, optimizer="none", train_size=170, data_memory=1e-6, device="cpu", batch_size=32
)
icpctl.train(config, sys.argv[1])
"""


def test_a_script_without_a_guard_runs_once(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT.format(epochs=1))
    process = Forked([sys.executable, tmp_path / "script.py", tmp_path / "results"], together=True)
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, output
    assert output == "begun\n"


def _at_work(process: Forked, results: Path) -> list[psutil.Process]:
    """Its descendants, once an epoch is recorded."""
    _until_recorded(1, process, results)
    return psutil.Process(process.pid).children(recursive=True)


def _epochs_recorded(results: Path) -> int:
    lines = [line for file in results.glob("*/metrics.csv") for line in file.read_text().splitlines()[1:]]
    return len({line.split(",")[1] for line in lines if line.count(",") > 1})


def _until_recorded(epochs: int, process: Forked, results: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while _epochs_recorded(results) < epochs:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_run_that_is_killed_leaves_no_worker(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT.format(epochs=10_000))
    process = Forked([sys.executable, tmp_path / "script.py", tmp_path / "results"], together=True)
    workers = _at_work(process, tmp_path / "results")
    assert workers
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs(workers, timeout=PATIENCE)
    assert not alive


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_of_the_whole_group_is_saved(stop: int, tmp_path: Path) -> None:
    options = "--epochs 10000 --optimizer none --train-size 170 --data-memory 1e-6 --device cpu --batch-size 32"
    command = ["-m", "icpctl", "train", "resnet20", "digits", *options.split(), "-o", str(tmp_path)]
    process = Forked([sys.executable, *command], together=True, session=True)
    workers = _at_work(process, tmp_path)
    for worker in workers:  # by themselves, they go on
        worker.send_signal(stop)
    _until_recorded(_epochs_recorded(tmp_path) + 2, process, tmp_path)
    os.killpg(process.pid, stop)
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + stop, output
    assert "Saved." in output
    assert "Traceback" not in output
    (status,) = tmp_path.glob("*/status.json")
    assert json.loads(status.read_text())["state"] == "interrupted"
    _, alive = psutil.wait_procs(workers, timeout=PATIENCE)
    assert not alive


def test_images_are_read_as_they_are_asked_for() -> None:
    """Nothing but the labels is in memory."""
    images = data.load("digits").train
    split = StreamedSplit(images, CPU)
    assert not any(isinstance(value, Tensor) and value.ndim == 4 for value in vars(split).values())
    assert np.array_equal(split[5:9].numpy(), images.images[5:9])
