"""The cache of the features for FID and KID: computed once, not trusted when damaged, done without where it cannot be written."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from checkpoints import MakesFolder
from fidelities import Asked, files, images, run
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from icpctl.tasks import fidelity


@pytest.fixture
def ask() -> Asked:
    return Asked()


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of images of every pass of a classifier."""
    counted: list[int] = []
    forward = fidelity.ClassifierFeatures.forward

    def counting(self: fidelity.ClassifierFeatures, x: Tensor) -> tuple[Tensor]:
        counted.append(len(x))
        return forward(self, x)

    monkeypatch.setattr(fidelity.ClassifierFeatures, "forward", counting)
    monkeypatch.setattr(fidelity, "CHUNK", 20)
    monkeypatch.setattr(fidelity, "BATCH", 8)
    return counted


def test_features_are_computed_once(ask: Asked, tmp_path: Path, passes: list[int]) -> None:
    folder = run(tmp_path / "run")
    first = ask(images(40), classifier=folder, prior=images(30, 1))
    assert passes == [8, 8, 4] * 3 + [8, 2]
    passes.clear()
    # The same in another order in memory.
    assert ask(images(40).to(memory_format=torch.channels_last), classifier=folder, prior=images(30, 1)) == first
    assert not passes
    assert len(ask.said) == 1
    ask(images(40), classifier=folder, prior=images(60, 1))  # 20 are those of before, 10 of them in a chunk of 20 now
    assert passes == [8, 8, 4] * 2
    assert "features of 40 images" in ask.said[-1]


@pytest.mark.parametrize("change", [{"seed": 1}, {"image_size": 16}, {"mean": 0.5}])
def test_each_extractor_has_its_features(ask: Asked, tmp_path: Path, passes: list[int], change: dict[str, Any]) -> None:
    ask(images(20), classifier=run(tmp_path / "one"), prior=images(20, 1))
    passes.clear()
    ask(images(20), classifier=run(tmp_path / "other", **change), prior=images(20, 1))
    assert sum(passes) == 40


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_damaged_features_are_not_taken(data: st.DataObject) -> None:
    features = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    key = "0" * 64
    fidelity._keep(key, features)
    content = bytearray(fidelity._file(key).read_bytes())
    if data.draw(st.booleans()):
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    fidelity._file(key).write_bytes(content)
    kept = fidelity._kept(key, 5)  # what a bit of a date changes can still be read
    assert kept is None or np.array_equal(kept, features)


def test_a_damaged_file_is_computed_again(ask: Asked, tmp_path: Path, passes: list[int]) -> None:
    folder = run(tmp_path / "run")
    first = ask(images(40), classifier=folder, prior=images(40, 1))
    file = files()[0]
    whole, wrong = file.read_bytes(), np.zeros((20, 64), dtype=np.float32)
    damages: list[Callable[[], Any]] = [
        lambda: file.write_bytes(whole[: len(whole) // 2]),
        lambda: np.savez(file, features=wrong[:9]),
        lambda: np.savez(file, features=wrong[:, 0]),
        lambda: np.savez(file, features=wrong.astype(np.float64)),
        lambda: np.savez(file, features=np.array([MakesFolder(tmp_path / "was here")])),
    ]
    for damage in damages:
        passes.clear()
        damage()
        assert ask(images(40), classifier=folder, prior=images(40, 1)) == first
        assert passes == [8, 8, 4]
        assert file.read_bytes() == whole
    assert not (tmp_path / "was here").exists()


@pytest.mark.parametrize("fault", ["no folder", "full disk"])
def test_a_cache_that_cannot_be_written_stops_nothing(
    ask: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    folder = run(tmp_path / "run")
    first = ask(images(40), classifier=folder, prior=images(40, 1))

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    if fault == "full disk":
        monkeypatch.setattr(os, "fsync", Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
    else:
        (tmp_path / "other").touch()
    for _ in range(2):
        assert ask(images(40), classifier=folder, prior=images(40, 1)) == first
    assert len(ask.said) == 3
    assert not files()
