"""What a report makes of runs that failed, of data that changed, of small numbers, and of text that other programs obey."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from reports import write_run

from icpctl.config import RunConfig, resolve
from icpctl.report import Report, build, write
from icpctl.report.figures.study import study_figures
from icpctl.report.formats import render
from icpctl.runs.measures import LEAST, MOST_DIGITS, measure_of
from icpctl.text import csv_text


def adam(seed: int, **changes: object) -> RunConfig:
    return resolve({"epochs": 2, "optimizer": "adam", "seed": seed, **changes})


def write_study(
    output: Path, seeds: int = 5, failed: tuple[int, ...] = (), of: str = "adam", state: str = "failed"
) -> None:
    """The method is better than its baseline in each seed, but for those that fail in the first epoch."""
    for seed in range(seeds):
        for config, value in ((adam(seed), 0.7 + seed / 1000), (adam(seed).baseline(), 0.5 + seed / 900)):
            fails = seed in failed and config.optimizer == of
            write_run(output, config, [0.9] if fails else [0.1, value], state=state if fails else "finished")


def row_of(table: pd.DataFrame, **values: object) -> dict[Hashable, Any]:
    for name, value in values.items():
        table = table[table[name] == value]
    (row,) = table.to_dict("records")
    return row


# ── Failure is an outcome


def test_without_a_failure_the_method_is_better(tmp_path: Path) -> None:
    write_study(tmp_path)
    report = build(tmp_path)
    assert row_of(report.comparisons, metric="accuracy")["verdict"] == "better"
    assert "†" not in render(report, "markdown")


@pytest.mark.parametrize("of", ["adam", "none"])
def test_nothing_is_claimed_of_the_seeds_that_did_not_fail(tmp_path: Path, of: str) -> None:
    write_study(tmp_path, failed=(1, 4), of=of)
    report = build(tmp_path)
    assert not set(report.comparisons["verdict"]) & {"better", "worse", "equal"}
    row = row_of(report.comparisons, metric="accuracy")
    assert (row["seeds"], row["lacking"], row["failed"], row["verdict"]) == (3, 2, 2, "cannot tell")
    assert "Nothing is claimed from the seeds that remain: 2 of 5 failed." in str(row["sentence"])
    label = "baseline" if of == "none" else "Adam-ICP"
    described = row_of(report.summary, metric="accuracy", label=label)
    assert (described["seeds"], described["lacking"], described["failed"]) == (3, 2, 2)
    assert described["mean"] > 0.49  # not of what was recorded before the failure
    assert np.isnan(report.summary["mean"]).sum() == 0
    markdown, latex = render(report, "markdown"), render(report, "latex")
    assert re.search(r"3/5.*†", markdown)
    assert r"^{\dagger}" in latex
    (drawing,) = (each for each in study_figures(report) if each.name == "accuracy-by-epoch")
    assert "2 have no finite accuracy, 2 of them as they failed" in drawing.text


def test_a_method_that_fails_in_all_seeds_is_in_the_tables(tmp_path: Path) -> None:
    write_study(tmp_path, 3, failed=(0, 1, 2))
    report = build(tmp_path)
    row = row_of(report.comparisons, metric="accuracy")
    assert (row["seeds"], row["failed"], row["verdict"]) == (0, 3, "no test")
    assert (
        "no seed has a value of accuracy for both. Nothing is claimed from the seeds that remain: 3 of 3 failed."
        in str(row["sentence"])
    )
    assert "Adam-ICP" in render(report, "latex")
    assert study_figures(report)


def test_a_difference_without_spread_is_not_called_equal_where_a_seed_failed(tmp_path: Path) -> None:
    for seed in range(4):
        write_run(tmp_path, adam(seed), [0.1, 0.5], state="failed" if seed == 3 else "finished")
        write_run(tmp_path, adam(seed).baseline(), [0.1, 0.5])
    assert row_of(build(tmp_path).comparisons, metric="accuracy")["verdict"] == "no test"


def test_where_a_pooled_run_failed_its_seed_has_no_value(tmp_path: Path) -> None:
    for seed in range(4):
        write_run(tmp_path, adam(seed).baseline(), [0.1, 0.5 + seed / 1000])
        for steps in (1, 3):
            state = "failed" if (seed, steps) == (2, 3) else "finished"
            write_run(tmp_path, adam(seed, steps=steps), [0.1, 0.6 + seed / 900], state=state)
    report = build(tmp_path, by=["optimizer"])
    row = row_of(report.comparisons, metric="accuracy")
    assert (row["seeds"], row["lacking"], row["failed"], row["verdict"]) == (3, 1, 1, "cannot tell")


def test_an_unfinished_run_counts_as_failed_only_if_its_loss_was_no_number(tmp_path: Path) -> None:
    write_study(tmp_path, failed=(4,), state="interrupted")
    assert row_of(build(tmp_path).comparisons, metric="accuracy")["verdict"] == "better"
    folder = next(path for path in tmp_path.iterdir() if path.name == adam(4).run_id)
    text = (folder / "metrics.csv").read_text()
    (folder / "metrics.csv").write_text(text.replace("0,train,loss,1.0", "0,train,loss,nan"))
    report = build(tmp_path)
    row = row_of(report.comparisons, metric="accuracy")
    assert (row["failed"], row["verdict"]) == (1, "cannot tell")
    assert any("Diverged and unfinished" in note and adam(4).run_id in note for note in report.notes)


# ── Data that changed


def two_versions(output: Path, versions: tuple[str, str]) -> Report:
    """Three seeds of each; the second version gives a fifth less."""
    for seed in range(6):
        fingerprint, level = versions[seed // 3], 0.8 - 0.2 * (seed // 3)
        for config, value in ((adam(seed), level + 0.03 + seed / 900), (adam(seed).baseline(), level + seed / 1000)):
            write_run(output, config, [0.1, value], fingerprint=fingerprint)
    return build(output)


@pytest.mark.parametrize("second", ["ffff0000aaaa1111", ""])
def test_versions_of_the_data_are_neither_averaged_nor_compared(tmp_path: Path, second: str) -> None:
    report = two_versions(tmp_path, ("0000ffff1111aaaa", second))
    name = second[:8] or "unknown"
    accuracy = report.summary[report.summary["metric"] == "accuracy"]
    assert accuracy["data"].tolist() == ["0000ffff"] * 2 + [name] * 2
    assert accuracy["seeds"].tolist() == [3] * 4
    assert accuracy["label"].tolist()[1] == "Adam-ICP, data 0000ffff"
    assert set(report.runs["group_id"]) == set(accuracy["group_id"])
    compared = report.comparisons[report.comparisons["metric"] == "accuracy"]
    assert compared["seeds"].tolist() == [3, 3]
    assert any("not trained on the same data" in note and f"{name}: 6 runs" in note for note in report.notes)
    by_epoch = [each for each in study_figures(report) if each.name.startswith("accuracy-by-epoch")]
    assert len(by_epoch) == 2
    assert all(each.data["seeds"].max() == 3 for each in by_epoch)
    pooled = build(tmp_path, by=["optimizer"])
    assert pooled.summary["seeds"].max() == 3


def test_runs_that_record_no_fingerprint_are_one_version_and_named(tmp_path: Path) -> None:
    report = two_versions(tmp_path, ("", ""))
    assert row_of(report.comparisons, metric="accuracy")["seeds"] == 6
    assert any("Taken to be trained on the same data" in note for note in report.notes)


# ── Numbers


@settings(deadline=None)
@given(
    number=st.floats(allow_nan=False, allow_infinity=False),
    half=st.floats(0, 1e300),
    metric=st.sampled_from(["accuracy", "kid_prior", "fid_prior", "seconds"]),
)
@example(number=0.001953125, half=1e-300, metric="accuracy")
def test_a_number_is_right_to_its_digits_and_zero_has_no_sign(number: float, half: float, metric: str) -> None:
    measure = measure_of(metric)
    for beside in (math.nan, half):
        text = measure.value(number, signed=True, beside=beside).replace("−", "-")
        if not math.isfinite(measure.scale * number):
            continue
        assert not re.fullmatch(r"[+-]0(\.0*)?", text)
        error = abs(float(text) - measure.scale * number)
        size = measure.scale * (beside if beside == beside and beside > 0 else abs(number))
        assert error <= max(
            0.51 * 10.0**-measure.decimals * (size >= 10.0**-measure.decimals),
            0.06 * size,
            1e-6 * abs(measure.scale * number),
            0.51 * 10.0**-MOST_DIGITS * (abs(measure.scale * number) >= LEAST),
        )


def test_a_small_difference_is_shown(tmp_path: Path) -> None:
    for seed in range(4):
        for optimizer, kid in (("none", 2e-5 + seed * 1e-7), ("adam", 1.5e-5 + seed * 1.1e-7)):
            config = resolve({"model": "vae", "dataset": "digits", "epochs": 1, "optimizer": optimizer, "seed": seed})
            write_run(tmp_path, config, [0.5]).append_metrics(0, {"test": {"kid_prior": kid}})
    report = build(tmp_path, metric="kid_prior")
    for form in ("markdown", "latex"):
        text = render(report, form)
        assert not re.search(r"[−-]0\.0+(?![0-9])", text)
        assert "KID prior" in text
    assert r"\times 10^{-6}" in render(report, "latex")
    assert "−4.985e−06" in row_of(report.comparisons, metric="kid_prior")["sentence"]


# ── Text


def test_cells_of_text_are_no_formulas_and_numbers_stay_numbers() -> None:
    odd = ["=cmd|'/C calc'!A0", "+1+1", "-1+1", "@SUM(A1)", "\t=1", "＝1", "plain", "-0.5", None]
    table = pd.DataFrame({"=name": odd, "value": [-1.5] * len(odd)})
    read = pd.read_csv(io.StringIO(csv_text(table)))
    assert list(read) == ["'=name", "value"]
    assert read["value"].tolist() == [-1.5] * len(odd)
    cells = read["'=name"].tolist()
    assert all(cell[0] in "'\\" for cell in cells[:6])
    assert cells[6:8] == ["plain", "-0.5"]


def test_names_from_files_reach_neither_a_spreadsheet_nor_a_terminal(tmp_path: Path) -> None:
    folder = write_run(tmp_path, adam(0), [0.1, 0.5])
    other = write_run(tmp_path, adam(1), [0.1, 0.5])
    folder.append_metrics(1, {"test": {"=cmd|'/C calc'!A0": 0.5, "\x1b]0;owned\x07\x9b2J": 0.5}})
    content = json.loads((other.path / "config.json").read_text())
    content["config"]["layers"] = ["layer1\x1b]0;owned\x07\x1b[2J"]
    (other.path / "config.json").write_text(json.dumps(content))
    report = build(tmp_path)
    files = [path.read_text() for path in write(tmp_path, report)]
    printed = [render(report, form) for form in ("csv", "json", "markdown", "latex")]
    for text in (*files, *printed):
        assert not set("\x1b\x07") & set(text)
    for text in files:
        assert not re.search(r"(?:^|,)\"?[=@]", text, re.MULTILINE)
    names = [row["metric"] for row in json.loads(printed[1])["summary"]]
    assert "\x1b]0;owned\x07\x9b2J" in names
