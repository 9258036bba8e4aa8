"""The training loop: what a run leaves behind, how it goes on, and how it stops."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import PROCESSES
from small_runs import Recorder, assert_same_run, small, weights

import icpctl
from icpctl.files import read_json
from icpctl.runs import checkpoint
from icpctl.training import trainer
from icpctl.training.engine import Interrupted


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The undisturbed run of a configuration, trained once."""
    folder = tmp_path_factory.mktemp("reference")

    def trained(**settings: Any) -> Path:
        return icpctl.train(small(**settings), folder).path

    return trained


def test_a_run_leaves_everything_behind(reference: Callable[..., Path]) -> None:
    path = reference()
    config = small()
    assert path.name == config.run_id
    content = json.loads((path / "config.json").read_text())
    assert content["run_id"] == config.run_id
    assert icpctl.RunConfig(**content["config"]) == config
    assert content["parameters"] == 272_474  # ResNet-20 with 10 classes
    assert content["data"]["images"] == {"train": 128, "fit": 13, "val": 32, "test": 360}
    (session,) = content["sessions"]
    assert {"commit", "command", "started", "packages", "device", "threads", "python"} <= session.keys()
    assert json.loads((path / "status.json").read_text())["state"] == "finished"
    assert sorted(file.name for file in (path / "checkpoints").iterdir()) == ["best.pt", "last.pt", "previous.pt"]

    metrics = icpctl.load_results(path.parent)
    mine = metrics[metrics["run_id"] == config.run_id]
    assert list(mine.columns) == ["run_id", "epoch", "split", "metric", "value"]
    assert not mine.duplicated(["epoch", "split", "metric"]).any()
    task = {"loss", "accuracy", "accuracy_top5", "f1_macro", "precision_macro", "recall_macro", "ece", "brier"}
    icp = {"feature_loss", "icp_loss_before", "icp_loss_after", "delta_linf", "delta_l2"}
    icp |= {f"feature_shift_{i}" for i in (1, 2, 3)} | {f"feature_shift_error_{i}" for i in (1, 2, 3)}
    always = {"task_loss", "task_weight", "images_per_second", "seconds", "peak_memory"}
    for epoch in range(3):
        rows = mine[mine["epoch"] == epoch]
        names = {str(split): set(part["metric"]) for split, part in rows.groupby("split")}
        assert names["fit"] == names["val"] == task
        late = {"sharpness"} if epoch == 2 else set()
        assert names["test"] == task | {"generalization_gap_loss", "generalization_gap_accuracy"} | late
        assert names["train"] == task | always | (icp if epoch >= 1 else set())
    table = mine.set_index(["epoch", "split", "metric"])["value"]
    assert [table[e, "train", "task_weight"] for e in range(3)] == pytest.approx([1, 1, 2**-0.5])
    for epoch in (1, 2):
        assert table[epoch, "train", "icp_loss_after"] < table[epoch, "train", "icp_loss_before"]
        assert 0 < table[epoch, "train", "delta_linf"] <= 2 * 2e-3 * 1.5
        assert table[epoch, "train", "feature_shift_error_1"] < 0.01


def test_the_same_configuration_gives_the_same_run_and_another_seed_another(
    reference: Callable[..., Path], tmp_path: Path
) -> None:
    again = icpctl.train(small(), tmp_path).path
    assert_same_run(reference(), again)
    other = icpctl.train(small(seed=1), tmp_path).path
    assert not torch.equal(weights(again)["fc.weight"], weights(other)["fc.weight"])


def test_a_finished_run_is_not_run_again_unless_overwritten(reference: Callable[..., Path]) -> None:
    path = reference()
    before = (path / "metrics.csv").read_bytes(), (path / "checkpoints" / "last.pt").stat().st_mtime_ns
    run = icpctl.train(small(), path.parent)
    assert run.skipped
    assert ((path / "metrics.csv").read_bytes(), (path / "checkpoints" / "last.pt").stat().st_mtime_ns) == before
    anew = icpctl.train(small(), path.parent, overwrite=True)
    assert not anew.skipped
    assert (path / "checkpoints" / "last.pt").stat().st_mtime_ns != before[1]
    assert len(anew.metrics) == len(before[0].splitlines()) - 1


VARIANTS: list[dict[str, Any]] = [
    {},
    {"icp_state": "carry"},
    {"direction": "random", "optimizer": "adam"},
    {"optimizer": "none"},
    {"recipe": "strong", "batch_size": 32, "extra_task_grad": True},
    {"model": "vae"},
]


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_stopped_within_an_epoch_and_resumed_it_ends_the_same(
    settings: dict[str, Any], reference: Callable[..., Path], tmp_path: Path
) -> None:
    for batches in (1, 4, 3):
        asked = itertools.count(1)
        with pytest.raises(Interrupted):
            icpctl.train(small(**settings), tmp_path, should_stop=lambda n=batches, a=asked: next(a) >= n)  # type: ignore[misc]
        run = tmp_path / small(**settings).run_id
        assert json.loads((run / "status.json").read_text())["state"] == "interrupted"
    said = Recorder()
    icpctl.train(small(**settings), tmp_path, display=said)
    assert any("Resuming" in message for message in said.messages)
    assert_same_run(reference(**settings), run)


def _train_in_child(settings: Mapping[str, Any], folder: Path) -> None:
    icpctl.train(small(**settings), folder)


def _train_until_write(settings: Mapping[str, Any], folder: Path, number: int) -> None:
    seen = itertools.count(1)

    def kill(event: str, given: tuple[Any, ...]) -> None:
        """Before a file of the run is opened to be written, renamed, linked or removed."""
        writes = event in ("os.rename", "os.link", "os.remove") or (
            event == "open" and isinstance(given[1], str) and set(given[1]) & set("xwa")
        )
        if writes and str(folder) in str(given[0]) and next(seen) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(kill)
    icpctl.train(small(**settings), folder)


def _start_in_child(settings: Mapping[str, Any], folder: Path, until_write: int | None = None) -> Any:
    target, arguments = (_train_in_child, ()) if until_write is None else (_train_until_write, (until_write,))
    process = PROCESSES.Process(target=target, args=(settings, folder, *arguments))
    process.start()
    return process


def _epochs_recorded(run: Path) -> int:
    """Epochs in metrics.csv; -1 before the run has begun."""
    file = run / "metrics.csv"
    return len({line.split(",")[1] for line in file.read_text().splitlines()[1:]}) if file.exists() else -1


@pytest.mark.parametrize(
    ("model", "times"), [("resnet20", 3), ("vae", 1), pytest.param("resnet20", 12, marks=pytest.mark.slow)]
)
def test_killed_at_random_moments_and_resumed_it_ends_the_same(model: str, times: int, tmp_path: Path) -> None:
    """SIGKILL in turn at one of a run's writes and at a random moment of its life; each in a process of its own."""
    settings = {"model": model, "icp_state": "carry", "epochs": 4}
    name = small(**settings).run_id
    _start_in_child(settings, tmp_path / "undisturbed").join()
    metrics = icpctl.Run(small(**settings), tmp_path / "undisturbed" / name).metrics
    epoch_seconds = metrics[metrics["metric"] == "seconds"]["value"].mean()
    moments = random.Random(20250514)
    killed_at_work = 0
    for i in range(times):
        run = tmp_path / str(i) / name
        process = _start_in_child(settings, run.parent, None if i % 2 else moments.randint(1, 25))
        if i % 2:
            epochs = moments.choice((0, 0, 1, 2, 3))
            while process.is_alive() and _epochs_recorded(run) < epochs:
                time.sleep(0.005)
            time.sleep(moments.uniform(0, epoch_seconds))
            process.kill()
        process.join()
        killed_at_work += read_json(run / "status.json").get("state") == "running"  # or before there was one
        process = _start_in_child(settings, run.parent)
        process.join()
        assert process.exitcode == 0
        assert_same_run(tmp_path / "undisturbed" / name, run)
    assert killed_at_work >= times / 2  # most moments did hit a run at work


def test_rows_written_before_the_kill_are_not_doubled(reference: Callable[..., Path], tmp_path: Path) -> None:
    """Killed after the rows of an epoch were written and before its checkpoint was, in the middle of a line even."""
    run = tmp_path / small().run_id
    asked = itertools.count(1)
    with pytest.raises(Interrupted):
        icpctl.train(small(), tmp_path, should_stop=lambda: next(asked) >= 5)
    with (run / "metrics.csv").open("a") as file:
        file.write(f"{run.name},1,train,loss,9.9\n{run.name},1,tra")
    icpctl.train(small(), tmp_path)
    assert_same_run(reference(), run)


def test_a_truncated_checkpoint_falls_back_to_the_one_before(reference: Callable[..., Path], tmp_path: Path) -> None:
    run = tmp_path / small().run_id
    shutil.copytree(reference(), run)
    last = run / "checkpoints" / "last.pt"
    last.write_bytes(last.read_bytes()[:-1000])
    (run / "status.json").write_text('{"state": "running"}')
    said = Recorder()
    icpctl.train(small(), tmp_path, display=said)
    assert any("truncated" in message and "last.pt" in message for message in said.messages)
    assert any("after its last epoch" in message for message in said.messages)
    assert_same_run(reference(), run)


def test_no_checkpoint_can_be_read_then_it_starts_anew_and_says_so(
    reference: Callable[..., Path], tmp_path: Path
) -> None:
    run = tmp_path / small().run_id
    shutil.copytree(reference(), run)
    for name in ("last", "previous"):
        (run / "checkpoints" / f"{name}.pt").write_text("not a checkpoint")
    (run / "status.json").unlink()
    said = Recorder()
    icpctl.train(small(), tmp_path, display=said)
    assert any("Starting anew" in message for message in said.messages)
    assert_same_run(reference(), run)


def test_changed_data_are_not_mixed_into_a_run(reference: Callable[..., Path], tmp_path: Path) -> None:
    run = tmp_path / small().run_id
    shutil.copytree(reference(), run)
    for name in ("last", "previous"):
        saved = checkpoint.load(run / "checkpoints" / f"{name}.pt")
        checkpoint.save(run / "checkpoints", "last", saved | {"fingerprint": "other"})
    (run / "status.json").unlink()
    with pytest.raises(icpctl.UserError, match="--overwrite"):
        icpctl.train(small(), tmp_path)


def test_a_checkpoint_of_another_run_is_not_taken(reference: Callable[..., Path], tmp_path: Path) -> None:
    run = tmp_path / small().run_id
    shutil.copytree(reference(optimizer="none") / "checkpoints", run / "checkpoints")
    with pytest.raises(icpctl.UserError, match="another run"):
        icpctl.train(small(), tmp_path)


def test_a_loss_that_is_not_finite_stops_the_run_with_its_place(tmp_path: Path) -> None:
    config = small(lr=1e30, clip_grad_norm=0.0, model_optimizer="sgd")
    with pytest.raises(icpctl.UserError, match=r"not finite at epoch 1, batch [2-4], .*no checkpoint yet"):
        icpctl.train(config, tmp_path)
    status = json.loads((tmp_path / config.run_id / "status.json").read_text())
    assert status["state"] == "failed"
    assert "not finite" in status["error"]
    assert not (tmp_path / config.run_id / "checkpoints" / "last.pt").exists()


def test_weights_that_the_last_batch_spoils_are_not_saved(tmp_path: Path) -> None:
    """The loss of the only batch is finite; the step after it is not."""
    config = small(lr=1e30, clip_grad_norm=0.0, model_optimizer="sgd", train_size=60, batch_size=48)
    with pytest.raises(icpctl.UserError, match=r"after its last batch.*no checkpoint yet"):
        icpctl.train(config, tmp_path)
    assert not (tmp_path / config.run_id / "checkpoints" / "last.pt").exists()


def test_the_last_good_checkpoint_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = trainer.Trainer.step

    def poisoned(self: trainer.Trainer, epoch: int, batch: int, *rest: Any) -> Any:
        figures = step(self, epoch, batch, *rest)
        return figures._replace(loss=figures.loss * float("nan")) if (epoch, batch) == (1, 2) else figures

    monkeypatch.setattr(trainer.Trainer, "step", poisoned)
    with pytest.raises(icpctl.UserError, match=r"epoch 2, batch 3, .*checkpoints/last\.pt"):
        icpctl.train(small(), tmp_path)
    assert checkpoint.load(tmp_path / small().run_id / "checkpoints" / "last.pt")["epoch"] == 1


def test_a_perturbation_that_does_nothing_is_warned_about(tmp_path: Path) -> None:
    said = Recorder()
    run = icpctl.train(small(optimizer="sgd", icp_lr=1e-6), tmp_path, display=said)
    assert sum("does nothing" in message for message in said.messages) == 1
    assert "--teacher-statistics" in json.loads((run.path / "status.json").read_text())["notes"][0]  # for the report
    quiet = Recorder()
    icpctl.train(small(), tmp_path, display=quiet)
    assert quiet.messages == ["digits: 1,437 training and 360 test images of 10 classes."]


def test_bfloat16_under_its_noise_floor_is_warned_about(tmp_path: Path) -> None:
    said = Recorder()
    run = icpctl.train(small(precision="bf16", icp_lr=1e-4), tmp_path, display=said)
    assert any("noise floor of bf16" in message for message in said.messages)
    metrics = run.metrics.set_index(["epoch", "split", "metric"])["value"]
    assert metrics[1, "train", "feature_shift_error_1"] > 0.1


def test_out_of_memory_says_what_to_lower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hungry(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(trainer.Trainer, "step", hungry)
    with pytest.raises(icpctl.UserError, match="--batch-size"):
        icpctl.train(small(), tmp_path)


def test_refused_before_anything_is_written(tmp_path: Path) -> None:
    for settings in (
        {"model": "resnet21"},
        {"layers": ("layer1", "layer7")},
        {"device": "cuda:7"},
        {"dataset": "dgits"},
    ):
        with pytest.raises(icpctl.UserError):
            icpctl.train(small(**settings), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "vgg11_bn"}, r"of 8×8 pixels.* --image-size 32\.$"),
        ({"model": "vit_b_16"}, r"of 8×8 pixels.* --image-size 224\.$"),
        (
            # The size is not to blame, and no other one is offered.
            {"model": "vit_b_16", "layers": ("encoder.layers.encoder_layer_0.self_attention",), "image_size": 224}
            | {"train_size": 20, "batch_size": 2, "val_fraction": 0.0},
            r"no tensor.*No other size helps\. Tap other modules, with --layers",
        ),
        ({"model": "resnet18", "layers": ("layer1.0.bn1",)}, "changed in place"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(icpctl.UserError, match=message):
        icpctl.train(small(**settings), tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_overwriting_run_that_is_killed_at_once_is_not_taken_for_finished(
    reference: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / small().run_id
    shutil.copytree(reference(), run)
    (run / "eval.csv").write_text("of the old weights")

    def killed(*_: Any) -> None:
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr("icpctl.runs.folder.RunFolder.write_config", killed)
        with pytest.raises(SystemExit):
            icpctl.train(small(), tmp_path, overwrite=True)
    assert not (run / "eval.csv").exists()
    assert not icpctl.train(small(), tmp_path).skipped
    assert_same_run(reference(), run)


@pytest.mark.parametrize("content", [None, "x,y\n"])
def test_a_run_whose_metrics_were_lost_does_not_go_on(
    content: str | None, reference: Callable[..., Path], tmp_path: Path
) -> None:
    run = tmp_path / small().run_id
    shutil.copytree(reference(), run)
    (run / "status.json").unlink()
    (run / "metrics.csv").unlink()
    if content:
        (run / "metrics.csv").write_text(content)
    with pytest.raises(icpctl.UserError, match="lost the rows of 3 epochs"):
        icpctl.train(small(), tmp_path)
    if content:
        assert (run / "metrics.csv").read_text() == content  # what is left of it is not overwritten


def test_a_damaged_row_is_a_lost_one_and_named(reference: Callable[..., Path], tmp_path: Path) -> None:
    run = tmp_path / small().run_id
    shutil.copytree(reference(), run)
    lines = (run / "metrics.csv").read_text().splitlines()
    lines[4] = "garbage"
    (run / "metrics.csv").write_text("\n".join(lines) + "\n")
    (run / "status.json").unlink()
    with pytest.raises(icpctl.UserError, match=r"has lost 1 row .*line 5 is damaged.*garbage"):
        icpctl.train(small(), tmp_path)


def test_two_processes_do_not_train_one_run(tmp_path: Path) -> None:
    from filelock import FileLock

    run = tmp_path / small().run_id
    run.mkdir()
    with FileLock(run / ".lock"), pytest.raises(icpctl.UserError, match="Another process"):
        icpctl.train(small(), tmp_path)


def test_evaluate_gives_the_figures_of_the_run(reference: Callable[..., Path]) -> None:
    path = reference()
    table = icpctl.train(small(), path.parent).metrics.set_index(["epoch", "split", "metric"])["value"]
    for split in ("test", "val"):
        figures = icpctl.evaluate(path, split=split)
        for name, value in figures.items():
            assert value == pytest.approx(table[2, split, name], abs=1e-7)
    best = checkpoint.load(path / "checkpoints" / "best.pt")["best"]
    figures = icpctl.evaluate(path / "checkpoints" / "best.pt", split="val")
    assert figures["accuracy"] == pytest.approx(best["value"], abs=1e-7)
    assert table[:, "val", "accuracy"].max() == pytest.approx(best["value"], abs=1e-7)


def test_the_cosine_schedule_is_torchs() -> None:
    config = small(lr_schedule="cosine", lr=0.1, model_optimizer="sgd", optimizer="none")
    machine = trainer.Trainer(config, icpctl_digits(), torch.device("cpu"))
    peer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(peer, config.epochs * machine.batches)
    for epoch in range(config.epochs):
        for batch, images in enumerate(machine.epoch_batches(epoch)):
            machine.step(epoch, batch, images)
            assert machine.optimizer.param_groups[0]["lr"] == pytest.approx(peer.param_groups[0]["lr"], abs=1e-12)
            peer.step()
            schedule.step()


def icpctl_digits() -> Any:
    from icpctl import data

    return data.load("digits")


def test_an_epoch_is_every_image_once_in_another_order() -> None:
    machine = trainer.Trainer(small(augmentation="none"), icpctl_digits(), torch.device("cpu"))
    stored = sorted(image.tobytes() for image in machine.train_set.images.numpy())
    orders = []
    for epoch in range(2):
        batches = list(machine.epoch_batches(epoch))
        pixels, labels, index = (
            torch.cat([getattr(b, name) for b in batches]) for name in ("pixels", "labels", "index")
        )
        assert sorted(image.tobytes() for image in pixels.numpy()) == stored
        assert torch.equal(machine.train_set.images[index], pixels)
        orders.append(labels)
        assert torch.equal(orders[-1], machine.epoch_labels(epoch))
    assert not torch.equal(*orders)


def test_normalised_inputs_have_mean_0_and_variance_1() -> None:
    machine = trainer.Trainer(small(), icpctl_digits(), torch.device("cpu"))
    x = machine.network.normalise(machine.train_set.images)
    assert x.mean(dim=(0, 2, 3)).abs().max() < 1e-5
    assert (x.std(dim=(0, 2, 3), correction=0) - 1).abs().max() < 1e-4


NOTED = {"epochs": 2, "train_size": 60, "optimizer": "sgd", "icp_lr": 1e-6}


def at_renames(monkeypatch: pytest.MonkeyPatch, act: Callable[[int], None]) -> None:
    """Call `act` after each file that a run puts in its place, with how many there have been."""
    replace, number = os.replace, itertools.count(1)

    def replaced(source: Any, target: Any) -> None:
        replace(source, target)
        act(next(number))

    monkeypatch.setattr(os, "replace", replaced)


def test_stopped_at_any_write_of_its_end_and_resumed_it_leaves_the_same_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The best and the last checkpoint, and status.json, with the notes that only an epoch finds."""
    written: list[int] = []
    with monkeypatch.context() as patch:
        at_renames(patch, written.append)
        whole = icpctl.train(small(**NOTED), tmp_path / "whole").path
    assert read_json(whole / "status.json")["notes"]
    for end in written[-3:]:

        def stop(number: int, end: int = end) -> None:
            if number == end:
                raise SystemExit

        with monkeypatch.context() as patch:
            at_renames(patch, stop)
            with pytest.raises(SystemExit):
                icpctl.train(small(**NOTED), tmp_path / str(end))
        run = tmp_path / str(end) / whole.name
        assert read_json(run / "status.json")["state"] == "interrupted"
        icpctl.train(small(**NOTED), run.parent)
        assert_same_run(whole, run)
        assert (run / "status.json").read_bytes() == (whole / "status.json").read_bytes()


def test_what_is_refused_leaves_a_stopped_run_as_it_was(tmp_path: Path) -> None:
    asked = itertools.count(1)
    with pytest.raises(Interrupted):
        icpctl.train(small(), tmp_path, should_stop=lambda: next(asked) >= 6)
    status = (tmp_path / small().run_id / "status.json").read_text()
    with pytest.raises(icpctl.UserError, match="was begun without --fit-images"):
        icpctl.train(small(fit_images=50), tmp_path)
    assert (tmp_path / small().run_id / "status.json").read_text() == status
    icpctl.train(small(), tmp_path)
