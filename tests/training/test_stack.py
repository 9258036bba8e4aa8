"""Runs that are trained together are the runs that are trained alone."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from doubled import float64
from measure import random_images
from torch import Tensor

import icpctl
from icpctl.config import RunConfig
from icpctl.data.streaming import choose_split
from icpctl.errors import UserError
from icpctl.models.network import Network
from icpctl.runs.folder import RunFolder
from icpctl.runs.metrics import read_metrics
from icpctl.training import engine
from icpctl.training import stack as stacking
from icpctl.training.display import Display
from icpctl.training.graphs import CapturedSteps
from icpctl.training.session import Session
from icpctl.training.stack import Stack, UnstackableError, train_members, train_stack
from icpctl.training.trainer import Trainer

BATCH, BATCHES = 6, 3


class Network64(Network):
    """Inputs in float64."""

    def normalise(self, images: Tensor) -> Tensor:
        return super().normalise(images).double()


def trainers(number: int, dtype: torch.dtype = torch.float64, **settings: Any) -> list[Trainer]:
    """Trainers that differ in everything that members of a stack may differ in."""
    images = random_images(BATCH * BATCHES, 12, 7)
    given = {"optimizer": "ademamix", "steps": 2, "epochs": 4, "warmup_epochs": 1, "val_fraction": 0.0} | settings
    made = []
    for i in range(number):
        numbers = {"seed": i, "lr": 1e-3 * (i + 1), "weight_decay": 0.01 * i, "clip_grad_norm": 5.0 * i}
        if given["optimizer"] != "none":
            numbers |= {
                "icp_lr": 2e-3 * (i + 1),
                "beta1": 0.9 - 0.2 * i,
                "beta2": 0.999 - 0.1 * i,
                "eps": 10.0 ** (-8 + i),
            }
            numbers |= {"beta3": 0.99 - 0.1 * i, "alpha": 5.0 + i, "icp_weight_decay": 0.1 * i}
        config = RunConfig.model_validate({"batch_size": BATCH, **given, **numbers})
        trainer = Trainer(config, images, torch.device("cpu"))
        trainer.model.to(dtype).train()
        if dtype is torch.float64:
            trainer.network = Network64(**vars(trainer.network))
        made.append(trainer)
    assert len({trainer.config.stack_id for trainer in made}) == 1
    return made


def steps_of(members: list[Trainer], epoch: int, batch: int) -> list[Any]:
    return [(epoch, batch, list(trainer.epoch_batches(epoch))[batch]) for trainer in members]


def flat(value: Any) -> Tensor:
    return value.detach().double().flatten() if isinstance(value, Tensor) else torch.zeros(0)


SETTINGS: dict[str, dict[str, Any]] = {
    "ademamix": {},
    "adam": {"optimizer": "adam", "direction": "ascend"},
    "sgd": {"optimizer": "sgd", "icp_reduction": "sum"},
    "none": {"optimizer": "none"},
    "strong": {"recipe": "strong", "teacher_statistics": False, "layer_weights": "uniform"},
    "extra": {"extra_task_grad": True, "fast": False},
    "mixed": {"mix": "cutmix", "mix_probability": 1.0, "label_smoothing": 0.1},
}


@pytest.mark.parametrize("case", SETTINGS)
def test_each_member_is_its_own_single_run_in_float64(case: str) -> None:
    together, alone = (trainers(3, **SETTINGS[case]) for _ in range(2))
    stack = Stack(together)
    for epoch, batch in ((0, 0), (1, 0), (2, 1), (3, 2)):  # of the warm-up, the first one of the method, later ones
        results = stack.step(steps_of(together, epoch, batch))
        for found, trainer, step in zip(results, alone, steps_of(alone, epoch, batch), strict=True):
            expected = trainer.step(*step)
            torch.testing.assert_close(found.loss, expected.loss, rtol=1e-9, atol=1e-12)
            assert found.names == expected.names
            for name, value in {**expected.log, "record": expected.record}.items():
                tolerance = 1e-4 if name.startswith("feature_shift") else 1e-7  # these are computed in float32
                mine = found.record if name == "record" else found.log[name]
                torch.testing.assert_close(flat(mine), flat(value), rtol=tolerance, atol=1e-9, msg=name)
    for member, single in zip(together, alone, strict=True):
        expected_state = single.model.state_dict()
        for name, value in member.model.state_dict().items():
            torch.testing.assert_close(value, expected_state[name], rtol=1e-7, atol=1e-9, msg=name)
    weights = [member.model.get_parameter("conv1.weight") for member in together]
    assert not torch.allclose(weights[0], weights[1])


def test_each_member_is_its_own_single_run_in_float32() -> None:
    """One step; what rounding does to later ones depends on the training."""
    together, alone = (trainers(3, torch.float32, recipe="strong") for _ in range(2))
    results = Stack(together).step(steps_of(together, 2, 1))
    for i, (trainer, step) in enumerate(zip(alone, steps_of(alone, 2, 1), strict=True)):
        expected = trainer.step(*step)
        torch.testing.assert_close(results[i].loss, expected.loss, rtol=1e-5, atol=0)
        torch.testing.assert_close(results[i].log["delta_l2"], expected.log["delta_l2"], rtol=1e-3, atol=0)
        for member, single in zip(together[i].model.parameters(), trainer.model.parameters(), strict=True):
            assert (member - single).norm() <= 1e-4 * single.norm()


def test_weights_and_the_state_of_their_optimizer_have_one_layout() -> None:
    """A fused optimizer goes through both in the order of memory."""
    (single,) = trainers(1, torch.float32)
    single.step(*steps_of([single], 0, 0)[0])
    state = single.state()
    members = trainers(2, torch.float32)
    stack = Stack(members)
    members[0].restore(state)
    stack.step(steps_of(members, 0, 1))
    for parameter in members[0].model.parameters():
        moment = members[0].optimizer.state[parameter]["exp_avg"]
        assert parameter.grad is not None
        assert parameter.stride() == moment.stride() == parameter.grad.stride()


def test_a_captured_step_does_not_outlive_the_place_of_the_weights() -> None:
    members = trainers(2)
    first = members[0]
    first.captured = CapturedSteps(first.model, first.optimizer, lambda function: (function(), print), print)
    Stack(members)
    assert members[0].captured is None


def test_the_check_leaves_the_models_as_they_are() -> None:
    members = trainers(2)
    before = [{name: value.clone() for name, value in member.model.state_dict().items()} for member in members]
    Stack(members).check()
    for member, kept in zip(members, before, strict=True):
        after = member.model.state_dict()
        assert all(torch.equal(after[name], kept[name]) for name in kept)
        assert member.model.training


@pytest.mark.parametrize("model", ["alexnet", "efficientnet_b0"])
def test_a_model_that_draws_random_numbers_is_not_stacked(model: str) -> None:
    """Dropout, and stochastic depth."""
    images = random_images(8, 64, 3)
    config = {"model": model, "optimizer": "none", "epochs": 1, "val_fraction": 0, "batch_size": 4}
    members = [Trainer(RunConfig.model_validate({**config, "seed": i}), images, torch.device("cpu")) for i in (0, 1)]
    with pytest.raises(UnstackableError, match="random"):
        Stack(members).check()


@pytest.mark.parametrize(
    "settings",
    [
        {"model": "vae", "dataset": "digits"},
        {"direction": "random"},
        {"icp_state": "carry"},
        {"precision": "bf16"},
    ],
)
def test_what_draws_or_carries_has_no_stack(settings: dict[str, Any]) -> None:
    assert RunConfig.model_validate(settings).stack_id is None


def test_what_changes_the_shape_of_the_work_makes_another_stack() -> None:
    first = RunConfig()
    for other in ({"steps": 3}, {"batch_size": 64}, {"warmup_epochs": 3}, {"optimizer": "adam"}, {"recipe": "strong"}):
        assert RunConfig.model_validate(other).stack_id != first.stack_id
    for same in ({"seed": 3}, {"lr": 0.1}, {"icp_lr": 0.1}, {"alpha": 1.0}, {"clip_grad_norm": 0.0}):
        assert RunConfig.model_validate(same).stack_id == first.stack_id


def digits(seed: int, **settings: Any) -> RunConfig:
    given = {"dataset": "digits", "optimizer": "adam", "epochs": 3, "warmup_epochs": 1, "steps": 1, "train_size": 150}
    return RunConfig.model_validate(
        {**given, "recipe": "strong", "lr": 0.01, "batch_size": 30, "seed": seed} | settings
    )


def values(run_id: str, output: Path) -> Any:
    rows = icpctl.load_results(output / run_id)
    rows = rows[~rows["metric"].isin(["seconds", "images_per_second", "peak_memory"])]
    return rows.set_index(["epoch", "split", "metric"])["value"]


def test_whole_runs_have_the_metrics_of_single_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64: what the rounding of float32 grows to in fifteen steps at this learning rate is not bounded by much."""
    float64(monkeypatch.setattr)
    configs = [digits(0), digits(1), digits(0, icp_lr=1e-2)]
    assert train_stack(configs, tmp_path / "stack") == [None] * 3
    for config in configs:
        icpctl.train(config, tmp_path / "single")
        together, alone = (values(config.run_id, tmp_path / folder) for folder in ("stack", "single"))
        assert together.index.equals(alone.index)
        for name in ("loss", "task_loss", "feature_loss", "delta_l2"):
            expected = alone.xs(name, level="metric").to_numpy()
            assert together.xs(name, level="metric").to_numpy() == pytest.approx(expected, rel=1e-6)
        sizes = [
            (tmp_path / name / config.run_id / "checkpoints/last.pt").stat().st_size for name in ("stack", "single")
        ]
        assert sizes[0] == pytest.approx(sizes[1], rel=0.01)  # its own weights alone
    monkeypatch.setattr(stacking, "Trainer", lambda *given, **named: pytest.fail("a finished run was trained"))
    assert train_stack(configs, tmp_path / "stack") == [None] * 3


def test_runs_that_stopped_at_different_places_catch_up_and_end_together(tmp_path: Path) -> None:
    configs = [digits(0), digits(1)]

    def stop_after(batches: int) -> Callable[[RunConfig], bool]:
        asked = iter(range(batches))
        return lambda config: config.seed == 0 and next(asked, None) is None

    interrupted, finished = train_stack(configs, tmp_path, should_stop=stop_after(6))
    assert isinstance(interrupted, engine.Interrupted)
    assert finished is None
    third = digits(2)
    assert train_stack([configs[0], third], tmp_path) == [None, None]
    for config in (*configs, third):
        assert RunFolder(tmp_path, config).status()["state"] == "finished"
        assert list(values(config.run_id, tmp_path).index.levels[0]) == [0, 1, 2]


def test_the_end_of_the_process_is_the_end_of_every_member(tmp_path: Path) -> None:
    configs = [digits(0), digits(1), digits(2)]

    def leave(config: RunConfig) -> bool:
        if config.seed == 1:
            sys.exit(143)  # as a second signal does
        return False

    with pytest.raises(SystemExit):
        train_stack(configs, tmp_path, should_stop=leave)
    assert [RunFolder(tmp_path, config).status()["state"] for config in configs] == ["interrupted"] * 3


def test_a_member_that_fails_costs_its_run_alone(tmp_path: Path) -> None:
    configs = [digits(0), digits(1, lr=1e30), digits(2)]
    first, failed, last = train_stack(configs, tmp_path)
    assert (first, last) == (None, None)
    assert isinstance(failed, UserError)
    assert "not finite" in str(failed)
    assert RunFolder(tmp_path, configs[1]).status()["state"] == "failed"
    assert RunFolder(tmp_path, configs[2]).status()["state"] == "finished"


def test_what_fails_for_all_is_said_of_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(stack: Stack, steps: list[Any]) -> list[Any]:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(Stack, "step", full)
    configs = [digits(0), digits(1)]
    for config, error in zip(configs, train_stack(configs, tmp_path), strict=True):
        assert isinstance(error, UserError)
        assert "--stack" in str(error)
        assert RunFolder(tmp_path, config).status()["state"] == "failed"


def test_models_that_cannot_be_stacked_are_trained_alone(tmp_path: Path) -> None:
    said: list[str] = []

    class Listening(Display):
        def warn(self, message: str) -> None:
            said.append(message)

    configs = [
        digits(
            seed, model="mobilenet_v3_small", image_size=64, optimizer="none", epochs=1, train_size=30, val_fraction=0.0
        )
        for seed in (0, 1)
    ]
    assert train_stack(configs, tmp_path, displays=[Listening(), Listening()]) == [None, None]
    assert len(said) == 2
    assert "mobilenet_v3_small is trained alone" in said[0]


class Alone:
    batches = 2

    def __init__(self, log: list[str], name: str) -> None:
        self.log, self.name = log, name

    def step(self, epoch: int, batch: int, images: object) -> str:
        self.log.append(f"{self.name}{epoch}{batch}")
        return self.name


class Counting(Session):
    """A run that begins at a place and counts what its steps give."""

    def __init__(self, epoch: int, batch: int, trainer: Any) -> None:
        self.config, self.trainer, self.epoch, self.batch = RunConfig(epochs=2), trainer, epoch, batch
        self.got: list[object] = []

    def batches(self) -> Any:
        for batch in range(self.batch, 2):
            yield batch, torch.zeros(0)

    def take(self, step: Any) -> None:
        self.got.append(step)
        self.batch += 1

    def finish_epoch(self) -> None:
        self.epoch, self.batch = self.epoch + 1, 0

    def begin(self) -> None: ...

    def finish(self) -> None:
        self.got.append("finished")

    def record(self, error: BaseException) -> None:
        self.got.append(str(error))

    def close(self) -> None:
        self.got.append("closed")


def test_steps_at_the_same_place_are_taken_together(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []

    class Pair:
        def __init__(self, members: list[Alone]) -> None:
            self.trainers = members

        def step(self, steps: list[Any]) -> list[str]:
            log.append("+".join(member.name for member in self.trainers) + "{}{}".format(*steps[0]))
            return [member.name for member in self.trainers]

    monkeypatch.setattr(stacking, "Stack", Pair)
    behind, ahead = Counting(0, 1, Alone(log, "a")), Counting(1, 1, Alone(log, "b"))
    assert train_members([behind, ahead]) == {}
    assert log == ["a01", "a10", "a+b11"]
    end = ["finished", "closed"]
    assert (behind.got, ahead.got) == (["a"] * 3 + end, ["b", *end])


def test_a_member_that_fails_when_it_goes_on_alone_is_not_finished() -> None:
    class Failing(Alone):
        def step(self, epoch: int, batch: int, images: object) -> str:
            raise UserError("no more")

    single = Counting(0, 1, Failing([], "a"))
    assert [str(error) for error in train_members([single]).values()] == ["no more"]
    assert single.got == ["no more", "closed"]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_the_end_of_the_process_ends_every_run(
    stop: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leave(stack: Stack, steps: list[Any]) -> list[Any]:
        raise stop

    monkeypatch.setattr(Stack, "step", leave)
    configs = [digits(0), digits(1)]
    with pytest.raises(stop):
        train_stack(configs, tmp_path)
    for config in configs:
        assert RunFolder(tmp_path, config).status()["state"] == "interrupted"
        assert not RunFolder(tmp_path, config).is_locked()


def test_members_share_their_images_and_count_a_copy_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    from icpctl.training import trainer as module

    needs: list[int] = []

    def counting(needed: int, *given: Any) -> Any:
        needs.append(needed)
        return choose_split(needed, *given)

    monkeypatch.setattr(module, "choose_split", counting)
    images = random_images(20, 8, 2)
    config = RunConfig(val_fraction=0, optimizer="none", epochs=1, batch_size=4)
    first = Trainer(config, images, torch.device("cpu"), stack=3)
    second = Trainer(config, images, torch.device("cpu"), stack=3, beside=first)
    # The training images, a tenth of them for the fit, an epoch for each run, the test images.
    assert needs == [((1 + 3 + 1) * 20 + 2) * 3 * 8 * 8]
    assert second.train_set is first.train_set
    assert second.evaluation_sets is first.evaluation_sets


def test_the_seconds_of_a_stack_are_shared_among_its_runs(tmp_path: Path) -> None:
    began = time.perf_counter()
    configs = [digits(0), digits(1), digits(2)]
    train_stack(configs, tmp_path)
    elapsed = time.perf_counter() - began
    rows = [read_metrics(tmp_path / config.run_id, config)[0] for config in configs]
    assert sum(float(each[each["metric"] == "seconds"]["value"].sum()) for each in rows) <= elapsed
