"""A dry run downloads nothing, whatever is missing, and says how long the runs take."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from icpctl.ablate import estimate
from icpctl.ablate.command import define
from icpctl.ablate.preview import _rough, dry_run
from icpctl.data import standin
from icpctl.errors import UserError

CLAIM = "method=icp better than baseline in accuracy"


def shown(dataset: str, folder: Path, study: dict[str, Any] | None = None, **settings: Any) -> str:
    given = {"dataset": dataset, "epochs": 2, "data_dir": folder / "data", **settings}
    file = io.StringIO()
    dry_run(
        define(given, ["steps=1"], **study or {}), folder / "results", Console(file=file, width=200, color_system=None)
    )
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


@pytest.mark.parametrize(
    "dataset",
    [name if name == "cifar100" else pytest.param(name, marks=pytest.mark.slow) for name in sorted(standin.SHAPES)],
)
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


@pytest.mark.parametrize(
    ("study", "said"),
    [
        ({"seeds": "2"}, "With 2 seeds and 1 comparison nothing can be claimed: it takes 3 seeds or more."),
        (
            {"seeds": "3", "controls": True, "compute_matched": True},
            "With 3 seeds and 10 comparisons, the smallest difference that is found with a chance of 80 % is 10",
        ),
        (
            {"seeds": "20"},
            "With 20 seeds and 1 comparison, the smallest difference that is found with a chance of 80 % is 0.66",
        ),
        ({"seeds": "3", "plan": {"claims": [CLAIM]}}, "With 3 seeds and 1 claim"),
        (
            {"seeds": "3", "plan": {"claims": [CLAIM], "until_decided": True}},
            "With 40 seeds and 1 claim, the smallest difference that is found with a chance of 80 % is 0.55",
        ),
    ],
)
def test_it_says_how_small_a_difference_the_seeds_can_show(
    study: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "seconds", lambda configs, threads: [3600.0] * len(configs))
    monkeypatch.setattr(estimate, "process_start", lambda config: 0.0)
    assert said in shown("digits", tmp_path, study, train_size=100)


def test_what_every_seed_would_cost_stands_beside_the_cost_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run takes an hour."""
    monkeypatch.setattr(estimate, "seconds", lambda configs, threads: [3600.0] * len(configs))
    monkeypatch.setattr(estimate, "process_start", lambda config: 0.0)
    plan = {"claims": [CLAIM], "until_decided": True, "max_seeds": 10}
    text = shown("digits", tmp_path, {"plan": plan})
    assert "About 6 hours of computing on this machine, if they run one at a time" in text
    assert "about 20 hours" in text
    assert "if the claims need every seed that --max-seeds allows" in text
    assert "--max-seeds" not in shown("digits", tmp_path, {"seeds": "3"})


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (59, "less than a minute"),
        (60, "about 1 minute"),
        (89, "about 1 minute"),
        (150, "about 2 minutes"),
        (5399, "about 90 minutes"),
        (5400, "about 1.5 hours"),
        (7200, "about 2 hours"),
        (1061640, "about 295 hours"),
        (3600 * 12345, "about 12,345 hours"),
    ],
)
def test_an_estimate_has_no_more_digits_than_it_knows(seconds: float, words: str) -> None:
    assert _rough(seconds) == words


def test_the_shapes_are_those_of_the_data_sets() -> None:
    from icpctl.data.named import NAMED

    monkeypatched = {name: NAMED[name] for name in standin.SHAPES}
    for name, line in monkeypatched.items():
        assert f"{standin.SHAPES[name][2]} classes" in line, name
