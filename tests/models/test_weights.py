"""Weights to start from: what is read, what fits, and which run it is."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import Recorder
from torch import Tensor

import icpctl
from icpctl import models
from icpctl.ablate.command import define
from icpctl.ablate.study import Definition
from icpctl.ablate.worker import Job, Outcome, work
from icpctl.errors import UserError
from icpctl.models import weights
from icpctl.runs import checkpoint


def config(file: Path | str | None, **settings: Any) -> icpctl.RunConfig:
    given: dict[str, Any] = {
        "dataset": "digits",
        "train_size": 40,
        "batch_size": 10,
        "val_fraction": 0,
        "device": "cpu",
    }
    given |= {"epochs": 1, "warmup_epochs": 0, "steps": 1, "weights": file}
    return icpctl.RunConfig(**(given | settings))


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """The weights of a resnet20 of 7 classes, in the working directory as well."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(7)
    state = models.build("resnet20", 7).state_dict()
    torch.save(state, "weights.pt")
    return state


def write(file: Path, state: dict[str, Tensor], form: str) -> None:
    from safetensors.torch import save_file

    match form:
        case "safetensors":
            save_file(state, file)
        case "plain":
            torch.save(state, file)
        case "entry":
            torch.save({"state_dict": state, "epoch": 3}, file)
        case "prefixed":
            torch.save({"model": {f"module.{name}": value for name, value in state.items()}}, file)


@pytest.mark.parametrize("form", ["safetensors", "plain", "entry", "prefixed"])
def test_each_form_is_read_and_a_head_of_another_size_is_fresh(state: dict[str, Tensor], form: str) -> None:
    file = Path("form.safetensors" if form == "safetensors" else "form.pth")
    write(file, state, form)
    model = models.build("resnet20", 10)
    fresh = model.state_dict()["fc.weight"].clone()
    said: list[str] = []
    weights.load(model, file, weights.digest(file), 10, said.append)
    assert torch.equal(model.state_dict()["fc.weight"], fresh)
    others = [name for name in state if not name.startswith("fc.")]
    assert all(torch.equal(model.state_dict()[name], state[name]) for name in others)
    assert "fc.weight, fc.bias: fresh" in said[0]
    same = models.build("resnet20", 7)
    weights.load(same, file, None, 7, said.append)
    assert torch.equal(same.state_dict()["fc.weight"], state["fc.weight"])
    assert "fresh" not in said[1]


def test_a_run_starts_from_them_and_its_evaluation_needs_them_no_more(state: dict[str, Tensor]) -> None:
    run = icpctl.train(config("weights.pt", lr=1e-12, method="plain"))
    trained = checkpoint.load(run.path / "checkpoints" / "last.pt")["model"]
    assert torch.allclose(trained["layer3.0.conv1.weight"], state["layer3.0.conv1.weight"], atol=1e-6)
    Path("weights.pt").unlink()
    assert icpctl.evaluate(run.path, device="cpu")["loss"] > 0


def test_the_content_is_the_identity_and_not_the_path(state: dict[str, Tensor]) -> None:
    run = icpctl.train(config("weights.pt"))
    assert run.config.weights_hash == weights.digest(Path("weights.pt"))
    assert run.config.run_id != models.complete(config(None)).run_id
    Path("weights.pt").rename("moved.pt")
    assert icpctl.train(config("moved.pt")).skipped
    torch.save({"state_dict": state}, "weights.pt")
    recorder = Recorder()
    other = icpctl.train(config("weights.pt"), display=recorder)
    assert other.config.run_id != run.config.run_id
    assert any("has changed since" in message and run.config.run_id in message for message in recorder.messages)


def test_a_study_keeps_the_content_and_its_workers_compare_it(state: dict[str, Tensor]) -> None:
    torch.save({"model": state}, "others.pt")
    given = {name: value for name, value in config(None).model_dump().items() if name in (
        "dataset", "train_size", "batch_size", "val_fraction", "device", "epochs", "warmup_epochs")}  # fmt: skip
    definition = define(given, ["weights=weights.pt,others.pt"], seeds="1")
    runs = {run.config.run_id: run.config for run in definition.runs()}
    digests = {weights.digest(Path(name)) for name in ("weights.pt", "others.pt")}
    assert len(runs) == 4
    assert {run.weights_hash for run in runs.values()} == digests
    definition.keep(Path("results"))
    kept = tomllib.loads(Path("results/study.toml").read_text())["study"]
    assert {study["settings"]["weights_hash"] for study in kept} == digests
    one = next(iter(runs.values()))
    job = Job.of([one], Path("results"))
    assert work(job, lambda: False) == {one.run_id: Outcome("finished")}
    torch.save(state | {"fc.bias": state["fc.bias"] + 1}, "weights.pt")
    (outcome,) = work(Job.of([list(runs.values())[1]], Path("results")), lambda: False).values()
    assert outcome.ending in ("refused", "failed")
    assert "another content" in outcome.error
    with pytest.raises(UserError, match="another content"):
        define({}, resume=Path("results"))
    kept_definition = Definition.kept(Path("results"))
    assert kept_definition is not None
    assert {run.config.run_id for run in kept_definition.runs()} == runs.keys()  # a report does not need the files


def test_what_does_not_fit_is_refused_in_words(state: dict[str, Tensor]) -> None:
    torch.save({name: value for name, value in state.items() if "bn" not in name}, "lacks.pt")
    torch.save(state | {"more.weight": torch.zeros(1)}, "more.pt")
    torch.save(state | {"conv1.weight": torch.zeros(16, 1, 3, 3)}, "shape.pt")
    torch.save(models.build("resnet20", 10), "pickled.pt")
    torch.save([1, 2], "list.pt")
    Path("text.safetensors").write_text("no tensors")
    Path("cut.pt").write_bytes(Path("weights.pt").read_bytes()[:5000])
    for file, message in {
        "lacks.pt": r"it lacks bn1\.weight, bn1\.bias, bn1\.running_mean and \d+ more",
        "more.pt": r"the model has no more\.weight",
        "shape.pt": r"conv1\.weight \(16, 1, 3, 3\) instead of \(16, 3, 3, 3\)",
        "pickled.pt": "more than tensors",
        "list.pt": "no state dict",
        "text.safetensors": "damaged",
        "cut.pt": "damaged",
        "missing.pt": "No such file",
    }.items():
        with pytest.raises(UserError, match=message):
            icpctl.train(config(file))
    with pytest.raises(UserError, match="another content"):
        icpctl.train(config("weights.pt", weights_hash="0" * 16))
    with pytest.raises(UserError, match="Give that file"):
        icpctl.train(config(None, weights_hash="0" * 16))
