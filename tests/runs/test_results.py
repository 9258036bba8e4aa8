"""Run folders: what is written is read again, whatever happened to it in between."""

from __future__ import annotations

import errno
import json
import math
import os
import re
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.csv
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icpctl.config import resolve
from icpctl.errors import UserError
from icpctl.runs.folder import RunFolder, load_results, read_config, read_record, read_runs, write_evaluation
from icpctl.runs.metrics import COLUMNS, read_metrics

HEADER = ",".join(COLUMNS) + "\n"
CONFIG = resolve({})
R = CONFIG.run_id
GOOD = f"{R},1,test,loss,0.5\n"


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
    metrics, problems = folder.read_metrics()
    assert not problems
    np.testing.assert_array_equal(metrics["value"], values)
    before = folder.metrics_file.read_bytes()
    folder.keep_metrics_before(1)
    assert folder.metrics_file.read_bytes() == before


def test_numpy_numbers_are_written_as_numbers(folder: RunFolder) -> None:
    values: dict[str, Any] = {"loss": np.float64(0.1), "accuracy": np.float32(0.5)}
    folder.append_metrics(1, {"test": values})
    metrics, problems = folder.read_metrics()
    assert not problems
    assert metrics["value"].tolist() == [0.1, 0.5]


def test_resuming_drops_the_epochs_that_are_run_again(folder: RunFolder) -> None:
    for epoch in (0, 1, 2):
        folder.append_metrics(epoch, {"train": {"loss": 1 / (epoch + 1)}, "test": {"loss": 1 / 3 / (epoch + 1)}})
    with folder.metrics_file.open("a") as file:
        file.write("torn,3,te")
    folder.keep_metrics_before(2)
    folder.append_metrics(2, {"test": {"loss": 0.25}})
    metrics, problems = folder.read_metrics()
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
        (HEADER + GOOD, 1, []),
        (HEADER, 0, []),
        ("", 0, []),
        (HEADER + GOOD + f"{R},2,test,lo", 1, [3]),
        (HEADER + GOOD + f"{R},2,test,loss,0.1", 1, [3]),  # cut within 0.125, and still a number
        (HEADER + f"{R},2,test,loss\n" + GOOD, 1, [2]),
        (HEADER + GOOD + f"{R},2,test,loss,\n", 1, [3]),
        (HEADER + f"{R},2,test,accr,3,train,loss,0.5\n" + GOOD, 1, [2]),
        (HEADER + f"{R},two,test,loss,0.5\n" + GOOD + f"{R},2.5,test,loss,0.5\n", 1, [2, 4]),
        (HEADER + f"{R},99999999999999999999,test,loss,1\n" + GOOD, 1, [2]),
        (HEADER + f'{R},2,"test,loss,1\n' + GOOD + f'{R},2,te"st,loss,1\n', 3, []),  # quotes swallow no lines
        (HEADER + GOOD + "\0" * 40 + "\n" + GOOD.replace("loss", "ssim"), 2, [3]),
        (GOOD, 1, []),
        # Other line ends, and what Windows puts first, are no damage.
        ((HEADER + GOOD).replace("\n", "\r\n"), 1, []),
        ("\ufeff" + (HEADER + GOOD + f"{R},2,test,lo").replace("\n", "\r\n"), 1, [3]),
        ("\ufeff" + HEADER + GOOD, 1, []),
    ],
)
def test_damaged_rows_are_named_and_the_others_read(
    tmp_path: Path, content: str, whole: int, damaged: list[int]
) -> None:
    file = tmp_path / "metrics.csv"
    file.write_bytes(content.encode())
    metrics, problems = read_metrics(tmp_path, CONFIG)
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
        metrics, _ = read_metrics(file.parent, CONFIG)
        assert tuple(metrics.columns) == COLUMNS


LINES = [
    f"{R},{epoch},{split},{metric},{epoch / 7}\n".encode()
    for epoch in range(3)
    for split, metric in (("train", "loss"), ("test", "loss"), ("test", "ece"))
]
PIECES = [
    *LINES,
    *(b"\n", b"\r\n", b"\r", b"\n\n", b",", b'"', b"\0", b"\xff", b"\xef\xbb\xbf", b" ", b"\t", b"-", b"+", b"_", b"#"),
    *(b"nan", b"inf", b"-Infinity", b"1e999", b"1e-999", b"0x1p3", b"99999999999", b"1.", b".5", b"1d5", b"\xd9\xa1"),
    *(f"{row}\n".encode() for row in ("other,1,test,loss,0.5", f"{R},1,,,", f"{R},01,test,loss,-0.0")),
    HEADER.encode(),
]


@given(
    st.lists(st.sampled_from(LINES), max_size=12),
    st.lists(
        st.tuples(st.integers(0, 1000), st.integers(0, 60), st.sampled_from(PIECES) | st.binary(max_size=3)), max_size=4
    ),
)
def test_the_fast_way_reads_a_file_as_the_careful_one_does(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], damage: list[tuple[int, int, bytes]]
) -> None:
    content = HEADER.encode() + b"".join(lines)
    for place, length, piece in damage:
        content = content[:place] + piece + content[place + length :]
    folder = tmp_path_factory.mktemp("run")
    (folder / "metrics.csv").write_bytes(content)
    record, problems = read_record(folder, CONFIG)
    metrics, of_metrics = read_metrics(folder, CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pyarrow.csv, "open_csv", Mock(side_effect=pyarrow.ArrowInvalid))
        careful, of_careful = read_metrics(folder, CONFIG)
    pd.testing.assert_frame_equal(metrics, careful, check_exact=True)
    assert problems == of_metrics == of_careful
    # and as curves, too
    curves = {
        (split, metric): each.set_index("epoch")["value"].reindex(record.epochs)
        for (split, metric), each in metrics.groupby(["split", "metric"], sort=False)
    }
    assert record.epochs.tolist() == sorted(set(metrics["epoch"]))
    assert record.curves.keys() == curves.keys()
    for key, curve in record.curves.items():
        np.testing.assert_array_equal(curve, curves[key])


@pytest.mark.parametrize(
    ("rows", "values", "said"),
    [
        (
            f"{GOOD}another-run,1,test,loss,0.1\nanother-run,2,test,loss,0.1\n",
            [0.5],
            "2 rows of another run.*another-run",
        ),
        (f"{GOOD}{R},100,test,loss,0.1\n", [0.5], "1 row of epochs after the last"),
        (f"{GOOD}{R},0,test,loss,0.2\n{GOOD.replace('0.5', '0.4')}", [0.2, 0.4], "1 row twice"),
    ],
)
def test_rows_that_do_not_count_are_named_wherever_they_are_read(
    tmp_path: Path, rows: str, values: list[float], said: str
) -> None:
    folder = RunFolder(tmp_path, CONFIG)
    folder.create()
    folder.write_config(CONFIG, {}, {})
    folder.metrics_file.write_text(HEADER + rows)
    metrics, problems = folder.read_metrics()
    assert metrics["value"].tolist() == values
    assert len(problems) == 1
    assert re.search(said, problems[0])
    with pytest.warns(UserWarning, match=said):
        assert load_results(tmp_path)["value"].tolist() == values
    record, problems = read_record(folder.path, CONFIG)
    assert sorted(record.curves["test", "loss"]) == sorted(values)
    assert re.search(said, " ".join(problems))


def test_rows_under_the_id_that_config_json_gives_the_run_are_its_own(tmp_path: Path) -> None:
    """An older version may have given it another one."""
    folder = RunFolder(tmp_path, CONFIG)
    folder.create()
    (folder.path / "config.json").write_text(json.dumps({"run_id": "old", "config": CONFIG.model_dump(mode="json")}))
    folder.metrics_file.write_text(HEADER + "old,1,test,loss,0.5\n" + GOOD.replace("loss", "ssim"))
    metrics, problems = folder.read_metrics()
    assert (len(metrics), problems) == (2, [])


def test_semicolons_are_called_by_their_name(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text((HEADER + GOOD).replace(",", ";").replace("0.5", "0,5"))
    metrics, problems = read_metrics(tmp_path, CONFIG)
    assert metrics.empty
    assert len(problems) == 1
    assert "semicolons" in problems[0]


@given(
    st.sets(
        st.tuples(st.integers(0, 3), st.sampled_from(["train", "test"]), st.sampled_from(["loss", "ece"])), max_size=4
    )
)
def test_whichever_rows_are_lost_a_run_does_not_go_on_without_them(
    tmp_path_factory: pytest.TempPathFactory, lost: set[tuple[int, str, str]]
) -> None:
    folder = RunFolder(tmp_path_factory.mktemp("results"), CONFIG)
    folder.create()
    for epoch in range(4):
        folder.append_metrics(epoch, {split: {"loss": 0.5, "ece": 0.25} for split in ("train", "test")})
    lines = folder.metrics_file.read_text().splitlines(keepends=True)
    gone = tuple(f"{R},{epoch},{split},{metric}," for epoch, split, metric in lost)
    left = "".join(line for line in lines if not gone or not line.startswith(gone))
    folder.metrics_file.write_text(left)
    if lost:
        with pytest.raises(UserError, match=r"has lost .*--overwrite"):
            folder.keep_metrics_before(4, 16)
        with pytest.raises(UserError, match="has lost"):
            folder.check_metrics(16)
        assert folder.metrics_file.read_text() == left
        if len(lost) == 1:  # nor without a record of their number, as others of the kind have it
            with pytest.raises(UserError, match="has lost 1 row of"):
                folder.keep_metrics_before(4)
    else:
        assert folder.keep_metrics_before(4, 16) == (16, [])
        assert folder.keep_metrics_before(4) == (16, [])


def test_epochs_of_version_01_need_have_no_more_than_the_others_of_their_kind(tmp_path: Path) -> None:
    config = resolve({"epochs": 4, "warmup_epochs": 2})
    folder = RunFolder(tmp_path, config)
    folder.create()
    for epoch in range(4):
        folder.append_metrics(
            epoch, {"train": {"loss": 1.0} | ({"delta_l2": 1.0} if epoch >= 2 else {}), "test": {"loss": 1.0}}
        )
    folder.append_metrics(3, {"test": {"fid": 1.0}})
    assert folder.keep_metrics_before(4)[0] == 11


def test_a_finished_run_that_has_lost_rows_since_is_named(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, CONFIG)
    folder.create()
    folder.write_config(CONFIG, {}, {})
    folder.append_metrics(0, {"test": {"loss": 0.5}})
    folder.write_status("finished", epoch=1, rows=3)
    _, problems = read_runs(tmp_path)
    assert any("metrics.csv lacks 2 of the rows" in problem for problem in problems)


@pytest.mark.parametrize(
    "content",
    ['{"state": "fini', "[1]", '{"state": 5}', '{"state": "done"}', '{"state": "finished", "epoch": NaN}', '{"notes": 5}',
     '{"error": "\\ud800"}', "[" * 100_000],
)  # fmt: skip
def test_a_damaged_status_is_named_and_says_nothing(folder: RunFolder, tmp_path: Path, content: str) -> None:
    (folder.path / "status.json").write_text(content)
    assert folder.status() == {}
    _, problems = read_runs(tmp_path)
    assert any("status.json is damaged" in problem for problem in problems)


def test_a_status_with_a_byte_order_mark_is_read(folder: RunFolder) -> None:
    (folder.path / "status.json").write_bytes(b'\xef\xbb\xbf{"state": "finished"}')
    assert folder.is_finished()


@pytest.mark.parametrize("sessions", ["null", "5", '"x"', "[1, null]"])
def test_sessions_of_another_type_are_begun_anew(folder: RunFolder, sessions: str) -> None:
    file = folder.path / "config.json"
    content = json.loads(file.read_text()) | {"sessions": json.loads(sessions)}
    file.write_text(json.dumps(content))
    folder.write_config(resolve({"dataset": "folder:/données/pictures"}), {}, {"commit": "new"})
    assert json.loads(file.read_text())["sessions"] == [{"commit": "new"}]


def test_which_data_a_run_was_trained_on(folder: RunFolder) -> None:
    assert folder.trained_on() is None
    folder.write_config(resolve({"dataset": "folder:/données/pictures"}), {"data": {"fingerprint": "f1"}}, {})
    assert folder.trained_on() is None  # it has begun, and nothing of it would be kept
    (folder.checkpoints / "last.pt").write_bytes(b"")
    assert folder.trained_on() == "f1"
    folder.write_status("finished")
    assert folder.trained_on() == "f1"
    for content in ("", '{"data": 5}', '{"data": {"fingerprint": null}}'):
        (folder.path / "config.json").write_text(content)
        with pytest.raises(UserError, match=r"config\.json is missing or damaged"):
            folder.trained_on()


def test_junk_pipes_and_loops_in_a_results_folder_stop_nothing(folder: RunFolder, tmp_path: Path) -> None:
    folder.append_metrics(0, {"test": {"loss": 0.5}})
    for number in range(50):
        (tmp_path / f"junk{number}").mkdir()
        (tmp_path / f"junk{number}.txt").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "up").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    for name in ("config.json", "status.json", "metrics.csv"):
        (tmp_path / f"with {name}").mkdir()
        os.mkfifo(tmp_path / f"with {name}" / name)
    os.mkfifo(folder.path / "status.json")
    records, problems = read_runs(tmp_path)
    assert [record.config.run_id for record in records] == [folder.run_id]
    assert len(problems) <= 10
    assert any("48 more folders" in problem for problem in problems)
    with pytest.warns(UserWarning, match="more folders"):
        assert len(load_results(tmp_path)) == 1


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
    with pytest.warns(UserWarning, match="torn"):
        assert load_results(tmp_path)["value"].tolist() == [0.5, math.inf]
    assert read_runs(folder.path)[0][0].config == records[0].config


def test_no_results(tmp_path: Path) -> None:
    assert load_results(tmp_path).empty
    with pytest.raises(UserError, match="no results folder"):
        read_runs(tmp_path / "missing")


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


@pytest.mark.parametrize("line", ["x", "a,b,c,d,e,f,g", 'r,"torn', "r;best;test;accuracy;0,5", "é\udce9,1"])
def test_lines_of_eval_csv_that_cannot_be_parsed_are_kept(folder: RunFolder, line: str) -> None:
    last = {"checkpoint": "last", "split": "test"}
    file = write_evaluation(folder.path, last, {"accuracy": 0.1})
    with file.open("a", errors="surrogateescape") as opened:
        opened.write(f"{line}\r\n")
    write_evaluation(folder.path, last | {"split": "val"}, {"accuracy": 0.2})
    write_evaluation(folder.path, last, {"accuracy": 0.3})
    header, *lines = file.read_text(errors="surrogateescape").splitlines()
    assert header == "run_id,checkpoint,split,metric,value"
    r = folder.run_id
    assert lines == [line, f"{r},last,val,accuracy,0.2", f"{r},last,test,accuracy,0.3"]


def test_columns_of_eval_csv_that_others_added_or_that_came_since_are_kept(folder: RunFolder) -> None:
    file = folder.path / "eval.csv"
    r = folder.run_id
    file.write_text(f"\ufeffrun_id,split,metric,value,note\n{r},test,accuracy,0.1,mine\n{r},val,accuracy,0.2,\n")
    write_evaluation(folder.path, {"split": "val", "samples": ""}, {"accuracy": 0.3})
    assert file.read_text().splitlines() == [
        "run_id,split,metric,value,note,samples",
        f"{r},test,accuracy,0.1,mine,",
        f"{r},val,accuracy,0.3,,",
    ]


@pytest.mark.parametrize("content", ["damaged\n", "run_id;checkpoint;split;metric;value\nr;last;test;accuracy;0,5\n"])
def test_what_is_no_table_of_evaluations_is_left_as_it_is(folder: RunFolder, content: str) -> None:
    (folder.path / "eval.csv").write_text(content)
    with pytest.raises(UserError, match=r"eval\.csv does not begin with the names of its columns"):
        write_evaluation(folder.path, {"checkpoint": "best", "split": "test"}, {"accuracy": 0.3})
    assert (folder.path / "eval.csv").read_text() == content


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
