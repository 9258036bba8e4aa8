"""Two processes against one with the doubled batch. This file is also what the processes run."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import PATIENCE, Command, Forked
from doubled import float64
from once import once
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from typer.testing import CliRunner

import icpctl
from icpctl.cli import app as cli
from icpctl.models import CifarResNet
from icpctl.runs import checkpoint
from icpctl.runs.folder import TIMINGS
from icpctl.training import distributed as parallel
from icpctl.training import trainer
from icpctl.training.engine import Interrupted

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def small(**settings: Any) -> icpctl.RunConfig:
    """Two epochs of three batches of 32 digits, both with the method."""
    values: dict[str, Any] = {"model": "resnet20", "dataset": "digits", "train_size": 120, "val_fraction": 0.2}
    values |= {"epochs": 2, "warmup_epochs": 0, "steps": 2, "device": "cpu"}
    return icpctl.RunConfig(**(values | {"batch_size": 32} | settings))


RUNS: dict[str, dict[str, Any]] = {
    "baseline": {"optimizer": "none"},
    "sgd": {"optimizer": "sgd", "icp_lr": 1.0, "extra_task_grad": True},
    "sum": {"optimizer": "sgd", "icp_lr": 0.05, "icp_reduction": "sum", "teacher_statistics": False},
    "adam": {"optimizer": "adam", "recipe": "strong", "batch_size": 32, "lr": 0.01},
    "resumed": {"warmup_epochs": 1},
    "mixed": {"optimizer": "none", "mix": "cutmix", "label_smoothing": 0.1},
    **{method: {"method": method} for method in ("two-views", "ps-kd", "cs-kd", "dlb", "sam")},
}
REFUSED: dict[str, dict[str, Any]] = {
    "carry": {"icp_state": "carry"},
    **{method: {"method": method} for method in ("ddgsd", "byot", "vat")},
    "51 images": {"train_size": 51, "val_fraction": 0, "batch_size": 64},
}


# ── what the processes run


def train_all(folder: Path) -> None:
    """Every run with half the batch; what each process is told is left in a file."""
    told = {}
    for name, settings in (RUNS | REFUSED | {"not finite": {"seed": 3}}).items():
        if name == "not finite":
            _poison(rank=1, place=(1, 1))
        config = small(**settings)
        try:
            halved = config.model_validate(config.model_dump() | {"batch_size": config.batch_size // 2})
            told[name] = str(icpctl.train(halved, folder).config.batch_size)
        except icpctl.UserError as error:
            told[name] = str(error)
    (folder / f"told{os.environ['RANK']}.json").write_text(json.dumps(told))


def _poison(rank: int, place: tuple[int, int]) -> None:
    step = trainer.Trainer.step

    def poisoned(self: trainer.Trainer, epoch: int, batch: int, *rest: Any) -> Any:
        figures = step(self, epoch, batch, *rest)
        bad = (epoch, batch) == place and self.processes.rank == rank
        return figures._replace(loss=figures.loss * float("nan")) if bad else figures

    trainer.Trainer.step = poisoned  # type: ignore[assignment,method-assign]


def run_command(folder: Path, how: str) -> None:
    """The command line; the second process can come to grief in the second epoch."""
    step = trainer.Trainer.step

    def failing(self: trainer.Trainer, epoch: int, *rest: Any) -> Any:
        if epoch == 1 and self.processes.rank == 1:
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise torch.OutOfMemoryError("out of memory")
        return step(self, epoch, *rest)

    if how != "well":
        trainer.Trainer.step = failing  # type: ignore[assignment,method-assign]
    sys.argv = ["icpctl", *command(folder)]
    cli.main()


def distil(model: nn.Module, x: Tensor, y: Tensor, reduction: str, optimizer: str) -> dict[str, Tensor]:
    """The log, the perturbed inputs, the gradients and the statistics of one step in float64."""
    lr = 1.0 if reduction == "mean" else 0.1
    distiller = icpctl.SelfDistiller(model, ["layer1", "layer3"], optimizer, 2, lr, reduction=reduction)
    loss, log = distiller(x, y, 0.7, icp_losses=True)
    loss.backward()
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    gradients = {name: parameter.grad for name, parameter in inner.named_parameters() if parameter.grad is not None}
    return log | gradients | {name: buffer.clone() for name, buffer in inner.named_buffers()}


DISTILLED = list(itertools.product(("mean", "sum"), ("sgd", "adam")))


def double_resnet() -> CifarResNet:
    torch.manual_seed(0)
    return CifarResNet(8, 10).double()


def double_batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(8, 3, 8, 8, dtype=torch.float64, generator=generator)
    return 3 + 2 * x, torch.randint(10, (8,), generator=generator)


def normalise(module: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Outputs, input and weight gradients and statistics of a batch norm; of a loss that no mean of x is alien to."""
    x = x.clone().requires_grad_()
    output = module(x)
    ((output * torch.arange(8.0).view(8)) ** 3).sum().backward()
    assert x.grad is not None
    gradients = {name: parameter.grad for name, parameter in module.named_parameters() if parameter.grad is not None}
    return {"output": output.detach(), "input gradient": x.grad} | gradients | dict(module.named_buffers())


def step_all(folder: Path) -> None:
    """Single steps in float64; each process leaves what it got."""
    with parallel.processes(small()) as (shared, _):
        x, y = map(shared.part, double_batch())
        results: dict[str, dict[str, Tensor]] = {}
        for reduction, optimizer in DISTILLED:
            results[f"{reduction} {optimizer}"] = distil(shared.share(double_resnet()), x, y, reduction, optimizer)
        for name, momentum in (("momentum", 0.1), ("cumulative", None)):
            norm = nn.Sequential(nn.BatchNorm2d(3, momentum=momentum)).double()
            shared.share(norm)
            results[name] = normalise(norm, x)
        torch.save(results, folder / f"steps{shared.rank}.pt")


# ── what is expected of them


def torchrun(*arguments: str | Path, fresh: bool = False) -> Command:
    """`fresh`: where it counts that processes take as long to end as they do."""
    command = [*TORCHRUN, *map(str, arguments)]
    if not fresh:
        return Forked(command, together=True)
    where = os.pathsep.join(
        [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    )  # of what this file imports
    environment = os.environ | {"PYTHONPATH": where}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def command(folder: Path) -> list[str]:
    text = "--train-size 120 --val-fraction 0.2 --epochs 6 --warmup-epochs 0 --steps 2 --device cpu --batch-size 16"
    return ["train", "resnet20", "digits", *text.split(), "-o", str(folder)]


def assert_equal_runs(one: Path, other: Path) -> None:
    """Float64 but for the metrics, which are taken in float32."""
    saved = [checkpoint.load(path / "checkpoints" / "last.pt") for path in (one, other)]
    assert saved[0]["config"] == saved[1]["config"]
    for name, value in saved[0]["model"].items():
        torch.testing.assert_close(saved[1]["model"][name], value, rtol=1e-6, atol=1e-8, msg=name)
    first, second = (icpctl.load_results(path).set_index(["epoch", "split", "metric"]) for path in (one, other))
    assert list(first.index) == list(second.index)
    for (epoch, split, metric), values in zip(
        first.index, zip(first["value"], second["value"], strict=True), strict=True
    ):
        if metric not in TIMINGS:
            assert values[1] == pytest.approx(values[0], rel=1e-5, abs=1e-6), (epoch, split, metric)


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of what two processes did."""
    return once(tmp_path_factory, "together", train_together)


def train_together(folder: Path) -> None:
    asked = itertools.count(1)
    with pytest.MonkeyPatch.context() as patch:
        float64(patch.setattr)
        with pytest.raises(Interrupted):  # in one process, in the second epoch
            icpctl.train(small(**RUNS["resumed"]), folder, should_stop=lambda: next(asked) >= 5)
    process = torchrun(__file__, folder)
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, output


@pytest.mark.parametrize("name", RUNS)
def test_a_run_of_two_processes_is_that_of_the_whole_batch(
    name: str, together: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    float64(monkeypatch.setattr)
    config = small(**RUNS[name])
    reference = icpctl.train(config, tmp_path).path
    assert_equal_runs(reference, together / config.run_id)
    content = json.loads((together / config.run_id / "config.json").read_text())
    assert [session["processes"] for session in content["sessions"]][-1] == 2


def test_all_processes_refuse_and_fail_at_the_same_place(together: Path) -> None:
    told = [json.loads((together / f"told{rank}.json").read_text()) for rank in (0, 1)]
    assert told[0] == told[1]
    assert [told[0][name] for name in RUNS] == ["32"] * len(RUNS)
    for name in ("carry", "ddgsd", "byot", "vat"):
        assert "one process" in told[0][name]
    assert "2 processes cannot share a batch of 51" in told[0]["51 images"]
    assert "not finite at epoch 2, batch 2" in told[0]["not finite"]


@pytest.mark.parametrize(("reduction", "optimizer"), DISTILLED)
def test_a_distributed_model_is_distilled_as_on_the_whole_batch(reduction: str, optimizer: str, together: Path) -> None:
    expected = distil(double_resnet(), *double_batch(), reduction, optimizer)
    parts = [torch.load(together / f"steps{rank}.pt")[f"{reduction} {optimizer}"] for rank in (0, 1)]
    assert_close_parts(parts, expected, ("output", "x_icp"))


@pytest.mark.parametrize(("name", "momentum"), [("momentum", 0.1), ("cumulative", None)])
def test_batch_norm_is_torchs_on_the_whole_batch(name: str, momentum: float | None, together: Path) -> None:
    parts = [torch.load(together / f"steps{rank}.pt")[name] for rank in (0, 1)]
    for part in parts:  # the gradients that a DDP model would add up
        part["0.weight"] = sum(each["0.weight"] for each in parts) if part is parts[0] else parts[0]["0.weight"]
    parts[0]["0.bias"] = parts[1]["0.bias"] = parts[0]["0.bias"] + parts[1]["0.bias"]
    norm = nn.Sequential(nn.BatchNorm2d(3, momentum=momentum)).double()
    assert_close_parts(parts, normalise(norm, double_batch()[0]), ("output", "input gradient"))


def assert_close_parts(parts: list[dict[str, Tensor]], expected: dict[str, Tensor], divided: tuple[str, ...]) -> None:
    """What is `divided` is that of the whole batch put together; all else every process has as a whole."""
    assert parts[0].keys() == parts[1].keys() == expected.keys()
    for name, value in expected.items():
        if name in divided:
            torch.testing.assert_close(torch.cat([part[name] for part in parts]), value, rtol=1e-9, atol=1e-9, msg=name)
        else:
            for part in parts:
                torch.testing.assert_close(part[name], value, rtol=1e-5, atol=1e-9, msg=name)


def test_a_stopped_run_goes_on_in_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked through torchrun, once the first epoch is recorded."""
    config = small(epochs=6)
    process = torchrun(__file__, tmp_path / "two", "well")
    metrics = tmp_path / "two" / config.run_id / "metrics.csv"
    while process.poll() is None and not (metrics.exists() and len(metrics.read_text().splitlines()) > 1):
        time.sleep(0.01)
    process.terminate()
    output, _ = process.communicate(timeout=PATIENCE)
    assert output.count("2 processes of 16 images train one run of --batch-size 32.") == 1
    assert output.count("Saved.") == 1
    assert json.loads((metrics.parent / "status.json").read_text())["state"] == "interrupted"
    float64(monkeypatch.setattr)
    icpctl.train(config, tmp_path / "two")
    assert_equal_runs(icpctl.train(config, tmp_path / "one").path, metrics.parent)


def test_the_first_process_alone_says_why_a_run_is_refused(tmp_path: Path) -> None:
    process = torchrun("-m", "icpctl", *command(tmp_path), "--icp-state", "carry")
    output, _ = process.communicate(timeout=PATIENCE)
    assert output.count("--icp-state carry keeps a state") == 1
    assert "exitcode  : 2" in output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("killed", "run ended. The"),
        pytest.param("failed", "run ended: Out of memory on cpu with --batch-size 32", marks=pytest.mark.slow),
    ],
)
def test_a_process_that_ends_does_not_leave_the_other_hanging(how: str, reason: str, tmp_path: Path) -> None:
    process = torchrun(__file__, tmp_path, how, fresh=True)
    output, _ = process.communicate(timeout=PATIENCE)
    assert output.count("\nError:") == 1
    assert reason in output
    assert "icpctl/training/distributed.py" not in output  # no traceback of ours
    run = next(tmp_path.iterdir())
    assert json.loads((run / "status.json").read_text())["state"] == "failed"
    assert checkpoint.load(run / "checkpoints" / "last.pt")["epoch"] == 1


def test_each_process_takes_its_own_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name, value in {"WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert parallel.own_device("auto") == parallel.own_device("cuda") == torch.device("cuda:1")
    assert parallel.own_device("cpu") == torch.device("cpu")
    with pytest.raises(icpctl.UserError, match=r"cuda:0: .*--device cuda\."):
        parallel.own_device("cuda:0")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(icpctl.UserError, match="3 processes, but torch sees 2"):
        parallel.own_device("auto")


def test_other_commands_are_refused_under_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = CliRunner().invoke(cli.app, ["ablate", "--grid", "steps=1,2"])
    assert isinstance(result.exception, icpctl.UserError)
    assert "without it" in str(result.exception)


if __name__ == "__main__":
    float64()
    if sys.argv[2:]:
        run_command(Path(sys.argv[1]), sys.argv[2])
    else:
        step_all(Path(sys.argv[1]))
        train_all(Path(sys.argv[1]))
