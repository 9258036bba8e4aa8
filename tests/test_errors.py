"""Which known name is meant by an unknown one."""

from __future__ import annotations

import pytest

from icpctl.config import RunConfig, option
from icpctl.errors import nearest, unknown

OPTIONS = [*map(option, RunConfig.model_fields), "--help", "--output"]


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("--learning-rate", ["--lr"]),
        ("--learning-rate-schedule", ["--lr-schedule"]),
        ("--wd", ["--weight-decay"]),
        ("--bs", ["--batch-size"]),
        ("--img-size", ["--image-size"]),
        ("--gpu", ["--device"]),
        ("--clip", ["--clip-grad-norm"]),
        ("--gradient-clip", ["--clip-grad-norm"]),
        ("--grad_clip", ["--clip-grad-norm"]),
        ("--warm", ["--warmup-epochs"]),
        ("--smoothing", ["--label-smoothing"]),
        ("--nothing-like-it", []),
    ],
)
def test_an_option_is_found_by_its_words(given: str, meant: list[str]) -> None:
    assert nearest(given, OPTIONS) == meant


@pytest.mark.parametrize(("given", "meant"), [("--max-epochs", "--epochs"), ("--stpes", "--steps")])
def test_the_likeliest_comes_first(given: str, meant: str) -> None:
    assert nearest(given, OPTIONS)[0] == meant


@pytest.mark.parametrize(
    ("given", "known", "meant"),
    [
        ("resnet21", ("resnet20", "resnet32", "wide_resnet50_2"), "resnet20"),
        ("cifar", ("cifar10", "cifar100", "digits"), "cifar10"),
        ("learning_rate", RunConfig.model_fields, "lr"),
    ],
)
def test_other_names_are_found_in_the_same_way(given: str, known: list[str], meant: str) -> None:
    assert str(unknown("name", given, known)) == f"Unknown name '{given}'. Did you mean '{meant}'?"


def test_where_none_is_near_they_are_listed() -> None:
    assert str(unknown("name", "qqq", ["a", "b"])) == "Unknown name 'qqq'. It can be one of: a, b."
