"""Run folders: what is written is read again, whatever happened to it in between."""

from __future__ import annotations

import errno
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icpctl.config import resolve
from icpctl.errors import UserError
from icpctl.results import (
    COLUMNS,
    RunFolder,
    load_results,
    read_config,
    read_metrics,
    read_runs,
    write_atomic,
    write_evaluation,
)

HEADER = ",".join(COLUMNS) + "\n"
GOOD = "r,1,test,loss,0.5\n"


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    config = resolve({"dataset": "folder:/données/pictures"})
    folder = RunFolder(tmp_path, config)
    folder.create()
    folder.write_config(config, {}, {"commit": "abc"})
    return folder


@given(st.lists(st.floats(), min_size=1, max_size=8))
def test_values_are_read_as_they_were_written(tmp_path_factory: pytest.TempPathFactory, values: list[float]) -> None:
    folder = RunFolder(tmp_path_factory.mktemp("results"), resolve({}))
    folder.create()
    folder.append_metrics(0, {"test": {f"m{number}": value for number, value in enumerate(values)}})
    metrics, problems = read_metrics(folder.metrics_file)
    assert not problems
    np.testing.assert_array_equal(metrics["value"], values)
    before = folder.metrics_file.read_bytes()
    folder.keep_metrics_before(1)
    assert folder.metrics_file.read_bytes() == before


def test_numpy_numbers_are_written_as_numbers(folder: RunFolder) -> None:
    values: dict[str, Any] = {"loss": np.float64(0.1), "accuracy": np.float32(0.5)}
    folder.append_metrics(1, {"test": values})
    metrics, problems = read_metrics(folder.metrics_file)
    assert not problems
    assert metrics["value"].tolist() == [0.1, 0.5]


def test_resuming_drops_the_epochs_that_are_run_again(folder: RunFolder) -> None:
    for epoch in (0, 1, 2):
        folder.append_metrics(epoch, {"train": {"loss": 1 / (epoch + 1)}, "test": {"loss": 1 / 3 / (epoch + 1)}})
    with folder.metrics_file.open("a") as file:
        file.write("torn,3,te")
    folder.keep_metrics_before(2)
    folder.append_metrics(2, {"test": {"loss": 0.25}})
    metrics, problems = read_metrics(folder.metrics_file)
    assert not problems
    assert metrics["epoch"].tolist() == [0, 0, 1, 1, 2]
    assert metrics["value"].iloc[1] == 1 / 3


def test_config_and_status_are_read_again(folder: RunFolder) -> None:
    folder.write_status("failed", error="out of memory")
    assert folder.status() == {"state": "failed", "error": "out of memory"}
    assert read_config(folder.path).run_id == folder.run_id
    (folder.path / "status.json").write_text("[1]")
    assert folder.status() == {}


@pytest.mark.parametrize(
    ("content", "whole", "damaged"),
    [
        (HEADER + GOOD + GOOD, 2, []),
        (HEADER, 0, []),
        ("", 0, []),
        (HEADER + GOOD + "r,2,test,lo", 1, [3]),
        (HEADER + GOOD + "r,2,test,loss,0.1", 1, [3]),  # cut within 0.125, and still a number
        (HEADER + "r,2,test,loss\n" + GOOD, 1, [2]),
        (HEADER + GOOD + "r,2,test,loss,\n", 1, [3]),
        (HEADER + "r,2,test,accr,3,train,loss,0.5\n" + GOOD, 1, [2]),
        (HEADER + "r,two,test,loss,0.5\n" + GOOD + "r,2.5,test,loss,0.5\n", 1, [2, 4]),
        (HEADER + "r,99999999999999999999,test,loss,1\n" + GOOD, 1, [2]),
        (HEADER + 'r,2,"test,loss,1\n' + GOOD + 'r,2,te"st,loss,1\n', 3, []),  # quotes swallow no lines
        (HEADER + GOOD + "\0" * 40 + "\n" + GOOD, 2, [3]),
        (GOOD, 1, []),
    ],
)
def test_damaged_rows_are_named_and_the_others_read(
    tmp_path: Path, content: str, whole: int, damaged: list[int]
) -> None:
    file = tmp_path / "metrics.csv"
    file.write_text(content)
    metrics, problems = read_metrics(file)
    assert len(metrics) == whole
    assert metrics["epoch"].dtype == np.int64
    assert metrics["value"].dtype == np.float64
    assert len(problems) == len(damaged)
    for number, problem in zip(damaged, problems, strict=True):
        assert f"{file} line {number} is damaged" in problem


@given(st.binary(max_size=200) | st.text(alphabet='r,1test.\n"\0\r', max_size=200).map(str.encode))
def test_no_content_stops_the_reading(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    file = tmp_path_factory.mktemp("run") / "metrics.csv"
    for start in (b"", HEADER.encode()):
        file.write_bytes(start + content)
        metrics, _ = read_metrics(file)
        assert tuple(metrics.columns) == COLUMNS


def test_a_damaged_run_is_named_and_the_others_read(folder: RunFolder, tmp_path: Path) -> None:
    folder.append_metrics(1, {"test": {"accuracy": 0.5, "loss": math.inf}})
    for name, content in {
        "torn": '{"run_id": "x", "conf',
        "list": "[]",
        "null": '{"config": null}',
        "newer": '{"config": {"unheard_of": 1}}',
        "invalid": '{"config": {"steps": -1}}',
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(content)
    (tmp_path / "empty").mkdir()
    (tmp_path / "runs.csv").write_text("")
    records, problems = read_runs(tmp_path)
    assert [record.config.run_id for record in records] == [folder.run_id]
    assert len(problems) == 6
    for name in ("torn", "list", "null", "newer", "invalid", "empty"):
        assert any(str(tmp_path / name) in problem for problem in problems)
    assert load_results(tmp_path)["value"].tolist() == [0.5, math.inf]
    assert read_runs(folder.path)[0][0].config == records[0].config


def test_no_results(tmp_path: Path) -> None:
    assert load_results(tmp_path).empty
    with pytest.raises(UserError, match="no results folder"):
        read_runs(tmp_path / "missing")


def test_who_reads_a_file_while_it_is_replaced_sees_the_old_one(tmp_path: Path) -> None:
    file = tmp_path / "status.json"
    write_atomic(file, b"old")
    with file.open("rb") as reader:
        write_atomic(file, b"new")
        assert reader.read() == b"old"
    assert file.read_bytes() == b"new"


def test_an_evaluation_replaces_the_same_one_and_no_other(folder: RunFolder) -> None:
    best, last = ({"checkpoint": name, "split": "test"} for name in ("best", "last"))
    write_evaluation(folder.path, best, {"accuracy": 0.1, "loss": 1 / 3})
    write_evaluation(folder.path, last, {"accuracy": 0.2})
    file = write_evaluation(folder.path, best, {"accuracy": 0.3, "loss": 1 / 3})
    rows = pd.read_csv(file)
    assert rows[["checkpoint", "metric", "value"]].to_numpy().tolist() == [
        ["last", "accuracy", 0.2],
        ["best", "accuracy", 0.3],
        ["best", "loss", 1 / 3],
    ]
    file.write_text("damaged\n")
    assert len(pd.read_csv(write_evaluation(folder.path, best, {"accuracy": 0.3}))) == 1


@pytest.mark.parametrize(("number", "said"), [(errno.ENOSPC, "disk is full"), (errno.EIO, "Cannot write")])
def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, said: str
) -> None:
    file = tmp_path / "status.json"
    write_atomic(file, b"old")

    def fail(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UserError, match=said):
        write_atomic(file, b"new and longer")
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_full_disk_is_said_when_metrics_are_written(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="disk is full"):
        folder.append_metrics(1, {"test": {"loss": 1.0}})


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("a file")
    with pytest.raises(UserError, match="Cannot write"):
        RunFolder(tmp_path / "results", resolve({})).create()
