"""A user's own model, from a file in the working directory: trained, resumed, ablated, evaluated, reported; and what is refused."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

import icpctl
from icpctl import models, report
from icpctl.ablate.command import define
from icpctl.models import own
from icpctl.runs.folder import read_config
from icpctl.training.display import Display
from icpctl.training.engine import Interrupted

CODE = """
from torch import nn

class Net(nn.Module):
    stages = ["first", "second"]

    def __init__(self, num_classes):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Linear(8, num_classes)

    def forward(self, x):
        return self.head(self.second(self.first(x)).mean((2, 3)))

def tiny(num_classes):
    return Net(num_classes)
"""
SETTINGS: dict[str, Any] = {"dataset": "digits", "train_size": 60, "batch_size": 10, "val_fraction": 0.2}
SETTINGS |= {"epochs": 2, "warmup_epochs": 0, "steps": 1, "device": "cpu"}
numbers = itertools.count()


class Recorder(Display):
    """Keeps what a run warns of."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, message: str) -> None:
        self.warnings.append(message)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module in the working directory; each test has another, as Python imports each once."""
    name = f"own_{os.getpid()}_{next(numbers)}"
    (tmp_path / f"{name}.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder != str(tmp_path)])
    return name


def edit(module: str, text: str) -> None:
    """Change the module's file, as it will be for the next process."""
    file = Path(f"{module}.py")
    file.write_text(file.read_text() + text)
    own._find.cache_clear()
    models._outline.cache_clear()
    sys.modules.pop(module, None)


def command(*arguments: str) -> str:
    """What icpctl prints as a process that, like the console script, has not the working directory on its path."""
    done = subprocess.run([sys.executable, "-P", "-m", "icpctl", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def stops_after(batches: int) -> Callable[[], bool]:
    asked = itertools.count(1)
    return lambda: next(asked) >= batches


def test_the_stages_are_the_models_and_part_of_the_id(module: str) -> None:
    config = models.complete(icpctl.RunConfig(model=f"{module}:tiny", **SETTINGS))
    assert config.layers == ("first", "second")
    assert config.run_id.startswith(f"{module}-tiny-digits-ademamix-T1-s0-")
    given = icpctl.RunConfig(model=f"{module}:tiny", layers="first+second", **SETTINGS)
    assert given.run_id == config.run_id
    assert icpctl.RunConfig(model=f"{module}:Net", layers="first+second", **SETTINGS).run_id != given.run_id


def test_a_stopped_run_goes_on_to_the_same_weights(module: str) -> None:
    config = icpctl.RunConfig(model=f"{module}:tiny", **SETTINGS)
    whole = icpctl.train(config, "whole")
    with pytest.raises(Interrupted):
        icpctl.train(config, "parts", should_stop=stops_after(3))
    recorder = Recorder()
    parts = icpctl.train(config, "parts", display=recorder)
    assert [message for message in recorder.warnings if "SHA-256" in message] == []
    figures = [run.metrics[run.metrics["metric"].isin(["loss", "accuracy"])] for run in (whole, parts)]
    assert figures[0].equals(figures[1])
    (session,) = json.loads((whole.path / "config.json").read_text())["sessions"]
    content = Path(f"{module}.py").read_bytes()
    assert session["source"] == {"file": str(Path(f"{module}.py").absolute()), "sha256": sha256(content).hexdigest()}


def test_a_changed_file_is_said_wherever_the_run_is_used(module: str) -> None:
    config = icpctl.RunConfig(model=f"{module}:tiny", **SETTINGS)
    with pytest.raises(Interrupted):
        icpctl.train(config, should_stop=stops_after(3))
    edit(module, "# changed\n")
    resumed = Recorder()
    run = icpctl.train(config, display=resumed)
    assert any(f"{module}.py" in message and "goes on with the new code" in message for message in resumed.warnings)
    sessions = json.loads((run.path / "config.json").read_text())["sessions"]
    assert len({session["source"]["sha256"] for session in sessions}) == 2
    assert any("is not the file that the run was trained with" in note for note in report.build(Path("results")).notes)
    said: list[str] = []
    before = icpctl.evaluate(run.path, device="cpu", warn=said.append)
    assert said == []
    edit(module, "# changed again\n")
    skipped = Recorder()
    assert icpctl.train(config, display=skipped).skipped
    assert any("--overwrite trains it anew" in message for message in skipped.warnings)
    assert icpctl.evaluate(run.path, device="cpu", warn=said.append) == before
    assert len(said) == 1
    assert "today's code" in said[0]


def test_a_file_that_fits_the_weights_no_more_is_named(module: str) -> None:
    run = icpctl.train(icpctl.RunConfig(model=f"{module}:tiny", **SETTINGS))
    edit(module, "\ndef tiny(num_classes):\n    return nn.Sequential(nn.Flatten(), nn.Linear(192, num_classes))\n")
    with pytest.raises(icpctl.UserError, match=rf"do not fit the model.*{module}\.py"):
        icpctl.evaluate(run.path, device="cpu")


@pytest.mark.timeout(240)
def test_a_study_of_two_jobs_and_its_report(module: str) -> None:
    options = [f"{name}={value}" for name, value in SETTINGS.items() if name not in ("dataset", "steps")]
    Path("settings.toml").write_text("\n".join(option if "cpu" not in option else 'device="cpu"' for option in options))
    study = ["ablate", f"{module}:tiny", "digits", "--config", "settings.toml", "--grid", "steps=1"]
    command(*study, "--jobs", "2")
    runs = {path.name: read_config(path) for path in Path("results").glob("own*")}
    assert {(config.method, config.steps) for config in runs.values()} == {("plain", 0), ("icp", 1)}
    assert {config.layers for config in runs.values() if config.steps} == {("first", "second")}
    assert tomllib.loads(Path("results/study.toml").read_text())["study"][0]["settings"]["layers"] == [
        "first",
        "second",
    ]
    config = models.complete(icpctl.RunConfig(model=f"{module}:tiny", **SETTINGS))
    assert icpctl.train(config).skipped
    Path(f"{module}.py").unlink()  # reading results runs no code of the user
    assert len(report.build(Path("results")).runs) == 2
    assert {run.config.run_id for run in define({}, resume=Path("results")).runs()} == runs.keys()


def test_a_run_whose_code_differs_from_another_is_noted(module: str) -> None:
    icpctl.train(icpctl.RunConfig(model=f"{module}:tiny", **SETTINGS))
    edit(module, "# changed\n")
    icpctl.train(icpctl.RunConfig(model=f"{module}:tiny", **SETTINGS | {"seed": 1}))
    assert any("were not trained with the same code" in note for note in report.build(Path("results")).notes)


FAULTY = """
class Wrong(Net):
    def __init__(self, num_classes):
        super().__init__(7)

class Pair(Net):
    def forward(self, x):
        return (super().forward(x),) * 2 if self.training else super().forward(x)

class Fails(Net):
    def forward(self, x):
        return self.nothing(x)

class Silent(Net):
    stages = None

class Large(Net):
    def forward(self, x):
        if x.shape[-1] < 30:
            raise IndexError("a small image")
        return super().forward(x)

def raises(num_classes):
    return {}["width"]

def nothing(num_classes):
    return None

def empty(num_classes):
    return nn.ReLU()

def lazy(num_classes):
    return nn.LazyLinear(num_classes)

def two(num_classes, width):
    return Net(num_classes)

one = Net(10)

def always(num_classes):
    return one
"""


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("missing", "Unknown factory 'missing'"),
        ("tinny", "Did you mean 'tiny'"),
        ("Wrong", r"\(2, 7\) in evaluation .*\(2, 10\)"),
        ("Pair", "a tuple in training"),
        ("Fails", r"AttributeError: .*'nothing' \(own_\w+\.py:\d+\)"),
        ("Silent", "--layers, or list their paths in an attribute `stages`"),
        ("Large", "IndexError: a small image.*--image-size 32"),
        ("raises", r"\(10\) failed: KeyError: 'width' \(own_\w+\.py:\d+\)"),
        ("nothing", "NoneType.*has to return a torch.nn.Module"),
        ("empty", "without parameters"),
        ("lazy", "lazy modules"),
        ("two", r"\(num_classes, width\) does not take the number of classes alone"),
        ("one", "has to be a function"),
        ("always", "the same model twice"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_words(module: str, factory: str, message: str) -> None:
    edit(module, FAULTY)
    with pytest.raises(icpctl.UserError) as refused:
        icpctl.train(icpctl.RunConfig(model=f"{module}:{factory}", **SETTINGS))
    assert re.search(message, str(refused.value)), refused.value
    assert "\n" not in str(refused.value)


def test_a_module_that_cannot_be_imported_is_refused_in_words(module: str) -> None:
    Path("broken.py").write_text("def f(:\n")
    Path("exits.py").write_text("raise SystemExit(3)\n")
    Path("lacks.py").write_text("import no_such_package\n")
    for name, message in {
        "nowhere:f": "no module nowhere .*working directory",
        f"{module}.part:f": f"no module {module}.part",
        "broken:f": r"SyntaxError: .*\(broken\.py:1\)",
        "exits:f": r"SystemExit: 3 \(exits\.py:1\)",
        "lacks:f": r"ModuleNotFoundError: .*no_such_package.*\(lacks\.py:1\)",
        "os:path": "has to be a function",
    }.items():
        with pytest.raises(icpctl.UserError, match=message):
            icpctl.train(icpctl.RunConfig(model=name, **SETTINGS))


@pytest.mark.parametrize(
    "name", ["../x:f", "a/b:f", "/x:f", "a:b:c", ":f", "a:", "timm/", "timm/../x", "timm/a/b", "a b"]
)
def test_a_name_has_no_path_in_it(name: str) -> None:
    with pytest.raises(icpctl.UserError, match="MODEL got"):
        icpctl.RunConfig(model=name)


@pytest.mark.parametrize("form", ["{}.py:tiny", "./{}.py:tiny", "{}.tiny", "{}", "{}.py", "{}/{}.py:tiny"])
def test_a_model_given_as_a_file_is_told_its_form(module: str, form: str) -> None:
    given = form.replace("{}/", f"{Path.cwd()}/").format(module)
    written = f"{module}:{'tiny' if 'tiny' in form else 'NAME'}"
    with pytest.raises(icpctl.UserError, match=rf"[Ww]rite {written}\.$"):
        icpctl.train(icpctl.RunConfig(model=given, **SETTINGS))
    with pytest.raises(icpctl.UserError, match="Unknown model 'nothing_here'"):
        icpctl.train(icpctl.RunConfig(model="nothing_here", **SETTINGS))


def test_ids_of_other_models_stay() -> None:
    config = icpctl.RunConfig(model="resnet20", dataset="digits", optimizer="adam", steps=1)
    assert config.run_id == "resnet20-digits-adam-T1-s0-4fefdac1"  # as before there were other models
    assert models.complete(config) == config
