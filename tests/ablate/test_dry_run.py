"""A dry run downloads nothing, whatever is missing, and says how long the runs take."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from icpctl.ablate import estimate
from icpctl.ablate.command import define
from icpctl.ablate.preview import dry_run
from icpctl.data import standin
from icpctl.errors import UserError


def shown(dataset: str, folder: Path, **settings: Any) -> str:
    given = {"dataset": dataset, "epochs": 2, "data_dir": folder / "data", **settings}
    file = io.StringIO()
    dry_run(define(given, ["steps=1"]), folder / "results", Console(file=file, width=200, color_system=None))
    return file.getvalue()


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Little is measured, and any download fails the test."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a download")

    monkeypatch.setattr(estimate, "MEASURED_SECONDS", 0.01)
    monkeypatch.setattr("socket.socket.connect", refuse)
    for name, (*_, classes, side) in standin.SHAPES.items():
        monkeypatch.setitem(standin.SHAPES, name, (20 * classes, 2 * classes, classes, side))


@pytest.mark.parametrize("dataset", sorted(standin.SHAPES))
def test_of_a_data_set_that_is_not_there_it_estimates_with_images_of_its_size(dataset: str, tmp_path: Path) -> None:
    text = shown(dataset, tmp_path, image_size=16)
    assert f"{dataset} is not on this machine, and a dry run downloads nothing" in text
    assert "of computing on this machine" in text
    assert list(tmp_path.iterdir()) == []


def test_of_a_size_that_is_not_known_it_says_that_it_guesses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standin, "ASSUMED", (200, 20, 10, 8))
    text = shown("hf:nobody/nothing", tmp_path)
    assert "this is a guess" in text
    assert "of computing on this machine" in text


def test_what_is_wrong_with_a_run_is_said_all_the_same(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no module 'layer9'"):
        shown("cifar10", tmp_path, layers=("layer9",))


def test_the_shapes_are_those_of_the_data_sets() -> None:
    from icpctl.data.named import NAMED

    monkeypatched = {name: NAMED[name] for name in standin.SHAPES}
    for name, line in monkeypatched.items():
        assert f"{standin.SHAPES[name][2]} classes" in line, name
