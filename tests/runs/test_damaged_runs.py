"""A run goes on from what is whole in its folder, and from nothing else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import assert_same_run, small

import icpctl
from icpctl.runs import checkpoint


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return icpctl.train(small(), tmp_path_factory.mktemp("finished")).path


def test_lost_rows_of_an_epoch_stop_a_run_and_are_left_to_be_restored(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / small().run_id
    shutil.copytree(finished, run)
    lines = (run / "metrics.csv").read_text().splitlines(keepends=True)
    left = "".join(line for line in lines if ",1,test,accuracy," not in line)
    (run / "metrics.csv").write_text(left)
    (run / "status.json").unlink()
    with pytest.raises(icpctl.UserError, match="has lost 1 row "):
        icpctl.train(small(), tmp_path)
    assert (run / "metrics.csv").read_text() == left
    (run / "metrics.csv").write_text("".join(lines))
    icpctl.train(small(), tmp_path)
    assert_same_run(finished, run)


def test_rows_that_are_lost_while_a_run_goes_on_are_noticed_before_it_is_finished(tmp_path: Path) -> None:
    def lose(file: Path) -> bool:
        if file.exists() and len(lines := file.read_text().splitlines(keepends=True)) > 20:
            file.write_text("".join(lines[:-1]))
        return False

    file = tmp_path / small().run_id / "metrics.csv"
    with pytest.raises(icpctl.UserError, match="has lost"):
        icpctl.train(small(), tmp_path, should_stop=lambda: lose(file))
    assert json.loads((file.parent / "status.json").read_text())["state"] == "failed"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda saved: saved | {"epoch": 99},
        lambda saved: saved | {"batch": 99},
        lambda saved: saved | {"batch": 2},  # without the figures of these batches
        lambda saved: saved | {"model": {}},
        lambda saved: saved | {"model": {name: torch.zeros(7) for name in saved["model"]}},
        lambda saved: saved | {"optimizer": {"state": {}, "param_groups": []}},
        lambda saved: saved | {"optimizer": {**saved["optimizer"], "param_groups": [{"params": []}]}},
        lambda saved: saved | {"optimizer": {**saved["optimizer"], "state": {0: {"step": 5}}}},
        lambda saved: saved | {"optimizer": {**saved["optimizer"], "state": {0: {"exp_avg": torch.zeros(7)}}}},
        lambda saved: saved | {"icp_state": {"t": 1, "m": torch.zeros(7), "v": torch.zeros(7)}},
    ],
)
def test_a_checkpoint_that_does_not_fit_the_run_is_refused(
    spoil: Callable[[dict[str, Any]], dict[str, Any]], finished: Path, tmp_path: Path
) -> None:
    run = tmp_path / small().run_id
    shutil.copytree(finished, run)
    (run / "status.json").unlink()
    saved = checkpoint.load(run / "checkpoints" / "last.pt")
    checkpoint.save(run / "checkpoints", "last", spoil(saved))
    with pytest.raises(icpctl.UserError, match=r"does not fit the run.*--overwrite"):
        icpctl.train(small(), tmp_path)


def test_what_a_killed_writer_left_beside_the_checkpoints_is_removed(tmp_path: Path) -> None:
    config = small(optimizer="none", epochs=1)
    folder = tmp_path / config.run_id / "checkpoints"
    folder.mkdir(parents=True)
    for name in (f".{'0' * 32}.tmp", "last.pt.tmp"):  # the latter of version 0.1
        (folder / name).write_text("")
    icpctl.train(config, tmp_path)
    assert not list(folder.glob("*.tmp"))


def test_a_lock_that_is_a_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / small().run_id / ".lock").mkdir(parents=True)
    with pytest.raises(icpctl.UserError, match=r"Cannot write .*\.lock"):
        icpctl.train(small(), tmp_path)
