"""The report: its statistics against plain computations, and what it says of runs that it leaves out."""

from __future__ import annotations

import io
import json
import math
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from icpctl.ablate.grid import parse_grid
from icpctl.ablate.study import Study
from icpctl.config import RunConfig, resolve
from icpctl.errors import UserError
from icpctl.report import Format, Report, build, render, rich_table, rich_tables, write_runs
from icpctl.results import RunFolder

Curve = list[float]


def write_run(
    output: Path, config: RunConfig, accuracy: Curve, val: Curve | None = None, state: str = "finished", **status: Any
) -> RunFolder:
    """A run folder whose test accuracy, epoch by epoch, is `accuracy`; its macro F1 is a tenth below."""
    folder = RunFolder(output, config)
    folder.create()
    folder.write_config(config, {}, {})
    for epoch, value in enumerate(accuracy, start=1):
        metrics: dict[str, Mapping[str, float]] = {
            "train": {"accuracy": 1.0, "icp_loss_before": 2.0, "seconds": 1.5},
            "test": {"accuracy": value, "f1_macro": value - 0.1, "loss": 1 - value},
        }
        if val:
            metrics["val"] = {"accuracy": val[epoch - 1], "loss": 0.0}
        folder.append_metrics(epoch, metrics)
    folder.write_status(state, **status)
    return folder


def show(summary: pd.DataFrame, width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    console.print(rich_table(summary, width))
    output = console.file
    assert isinstance(output, io.StringIO)
    return output.getvalue()


def configs(grids: list[str], seeds: int = 1, **values: object) -> list[RunConfig]:
    grid = parse_grid(grids)
    shared = {name: value for name, value in {"epochs": 2, **values}.items() if name not in grid}
    study = Study(shared, grid, seeds=range(seeds))
    return [run.config for run in study.runs()]


def test_a_run_is_one_row_of_last_and_best_epoch(tmp_path: Path) -> None:
    config = resolve({"epochs": 4, "layers": "layer1+layer2"})
    write_run(tmp_path, config, accuracy=[0.1, 0.2, 0.3, 0.4], val=[0.5, 0.8, math.nan, 0.8])
    (row,) = build(tmp_path).runs.to_dict("records")
    assert (row["run_id"], row["group_id"]) == (config.run_id, config.group_id)
    assert row["baseline_id"] == config.baseline().group_id
    assert (row["layers"], row["epochs"], row["state"]) == ("layer1+layer2", 4, "finished")
    assert (row["epochs_recorded"], row["last_epoch"], row["seconds"]) == (4, 4, 6.0)
    assert row["accuracy"] == 0.4
    assert row["best_epoch"] == 2  # the earliest of equals
    assert row["accuracy_best"] == 0.2
    assert row["f1_macro_best"] == 0.2 - 0.1
    assert "icp_loss_before" not in row
    assert set(RunConfig.model_fields) <= set(row)


@pytest.mark.parametrize("val", [None, [math.nan, math.nan]])
def test_without_a_validation_accuracy_there_is_no_best_epoch(tmp_path: Path, val: Curve | None) -> None:
    write_run(tmp_path, resolve({"epochs": 2}), [0.1, 0.2], val)
    report = build(tmp_path)
    assert report.runs["best_epoch"].isna().all()
    assert report.summary["accuracy_best_mean"].isna().all()
    assert "best epoch" not in show(report.summary)


fraction = st.floats(0, 1)


@settings(max_examples=15, deadline=None)
@given(
    ours=st.dictionaries(st.integers(0, 6), fraction, min_size=1, max_size=5),
    theirs=st.dictionaries(st.integers(0, 6), fraction, max_size=5),
)
def test_statistics_are_those_of_a_plain_computation(
    tmp_path_factory: pytest.TempPathFactory, ours: dict[int, float], theirs: dict[int, float]
) -> None:
    output = tmp_path_factory.mktemp("results")
    for seed, value in ours.items():
        write_run(output, resolve({"epochs": 1, "seed": seed}), [value], [1.0])
    for seed, value in theirs.items():
        write_run(output, resolve({"epochs": 1, "seed": seed, "optimizer": "none"}), [value], [1.0])
    report = build(output)
    row = report.summary.iloc[-1]
    assert (len(report.summary), row["seeds"]) == (1 + bool(theirs), len(ours))
    values = np.array(list(ours.values()))
    differences = np.array([ours[seed] - theirs[seed] for seed in ours.keys() & theirs.keys()])

    def deviation(sample: np.ndarray[Any, Any]) -> float:
        return statistics.stdev(sample.tolist()) if len(sample) > 1 else math.nan

    expected = {
        "accuracy_mean": values.mean(),
        "accuracy_std": deviation(values),
        "f1_macro_mean": (values - 0.1).mean(),
        "accuracy_best_std": deviation(values),
        "difference_mean": differences.mean() if len(differences) else math.nan,
        "difference_std": deviation(differences),
        "difference_seeds": len(differences),
    }
    for name, value in expected.items():
        assert row[name] == pytest.approx(value, abs=1e-12, nan_ok=True), name
    if theirs:
        baseline = report.summary.iloc[0]
        assert baseline["accuracy_mean"] == pytest.approx(np.mean(list(theirs.values())))
        assert math.isnan(baseline["difference_mean"])
    alone = len(ours.keys() - theirs.keys())
    assert any("no finished baseline" in note for note in report.notes) == bool(alone)


def test_only_settings_that_differ_are_columns(tmp_path: Path) -> None:
    for config in configs(["steps=1,3"], seeds=2, recipe="strong", device="cpu"):
        write_run(tmp_path, config, [0.1, 0.5 + config.steps / 100])
    report = build(tmp_path)
    assert list(report.summary.columns[:7]) == ["group_id", "task", "model", "dataset", "optimizer", "steps", "seeds"]
    assert report.common == "The same in all rows: epochs 2, recipe strong. Other settings have their defaults."
    assert report.summary["optimizer"].tolist() == ["none", "ademamix", "ademamix"]
    assert report.summary["steps"].tolist()[1:] == [1, 3]
    assert pd.isna(report.summary["steps"].iloc[0])
    assert report.summary["difference_mean"].tolist()[1:] == pytest.approx([0.01, 0.03])


def test_defaults_that_follow_from_another_setting_are_no_columns(tmp_path: Path) -> None:
    for config in configs(["epochs=4,8", "model=resnet20,resnet18"]):
        write_run(tmp_path, config, [0.5] * config.epochs)
    summary = build(tmp_path).summary
    assert list(summary.columns[1:7]) == [
        "task",
        "model",
        "dataset",
        "epochs",
        "optimizer",
        "seeds",
    ]  # no warmup_epochs, layers
    assert summary["optimizer"].tolist() == ["none", "ademamix"] * 4  # each baseline above what is compared with it


def test_each_configuration_has_the_baseline_of_its_own_training(tmp_path: Path) -> None:
    for config in configs(["lr=0.1,0.01"]):
        write_run(tmp_path, config, [0.0, config.lr + (0.2 if config.steps else 0)])
    summary = build(tmp_path).summary
    assert summary["difference_mean"].dropna().tolist() == pytest.approx([0.2, 0.2])


def test_runs_that_are_not_whole_are_named_and_left_out(tmp_path: Path) -> None:
    good, failed, running, cut, silent = (resolve({"epochs": 2, "seed": seed}) for seed in range(5))
    write_run(tmp_path, good, [0.1, 0.6])
    write_run(tmp_path, failed, [0.1, 0.9], state="failed", error="ValueError: no")
    write_run(tmp_path, running, [0.1], state="running")
    write_run(tmp_path, cut, [0.1])
    (write_run(tmp_path, silent, [0.1, 0.9]).path / "status.json").write_text("{torn")
    (tmp_path / "broken").mkdir()
    with (tmp_path / good.run_id / "metrics.csv").open("a") as file:
        file.write("torn,2,te")
    report = build(tmp_path)
    assert report.summary["accuracy_mean"].tolist() == [0.6]
    assert len(report.runs) == 5
    said = {
        "Failed and left out": failed,
        "Left out, for epochs are missing": cut,
        "Not in the difference": good,
        "is damaged": good,
    }
    for words, config in said.items():
        assert any(words in note and config.run_id in note for note in report.notes), words
    assert any(f"2 runs, {running.run_id}, {silent.run_id}" in note for note in report.notes)
    assert any(str(tmp_path / "broken") in note for note in report.notes)


def test_a_copy_of_a_run_counts_once(tmp_path: Path) -> None:
    config = resolve({"epochs": 1})
    write_run(tmp_path, config, [0.5])
    write_run(tmp_path / "elsewhere", config, [0.9]).path.rename(tmp_path / "the copy")
    (tmp_path / "elsewhere").rmdir()
    report = build(tmp_path)
    assert report.summary["accuracy_mean"].tolist() == [0.5]
    assert any("1 folder with a copy" in note for note in report.notes)


def test_a_row_given_twice_counts_once_and_the_later_holds(tmp_path: Path) -> None:
    folder = write_run(tmp_path, resolve({"epochs": 1}), [0.5])
    folder.append_metrics(1, {"test": {"accuracy": 0.7}})
    assert build(tmp_path).summary["accuracy_mean"].tolist() == [0.7]


def test_no_run_is_finished(tmp_path: Path) -> None:
    write_run(tmp_path, resolve({}), [], state="running")
    report = build(tmp_path)
    assert report.summary.empty
    assert any("nothing to compare yet" in note for note in report.notes)
    assert write_runs(tmp_path, report.runs).read_text().count("\n") == 2
    assert show(report.summary)
    for form in ("csv", "json", "markdown", "latex"):
        assert render(report, form)


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="icpctl train --output"):
        build(tmp_path)
    (tmp_path / "stray").mkdir()
    with pytest.raises(UserError, match="stray is not the folder of a run"):
        build(tmp_path)
    with pytest.raises(UserError, match="no results folder"):
        build(tmp_path / "missing")


def test_the_table_of_runs_is_read_again_by_pandas(tmp_path: Path) -> None:
    for config in [*configs(["train_size=100"]), *configs([])]:
        write_run(tmp_path, config, [0.1, 1 / 3])
    report = build(tmp_path)
    table = pd.read_csv(write_runs(tmp_path, report.runs))
    assert table["run_id"].tolist() == report.runs["run_id"].tolist()
    assert table["accuracy"].tolist() == [1 / 3] * 4
    assert "100," in (tmp_path / "runs.csv").read_text()
    assert "100.0" not in (tmp_path / "runs.csv").read_text()
    assert len(build(tmp_path).runs) == 4  # runs.csv is in nobody's way


@pytest.fixture
def report(tmp_path: Path) -> Report:
    for config in configs(["steps=1,10000"], seeds=2, dataset="folder:/data/a_b|c & [red]"):
        write_run(tmp_path, config, [0.1, 0.5 + config.steps / 1e6 + config.seed / 100], [0.1, 0.2])
    return build(tmp_path)


def test_tidy_formats_hold_the_numbers(report: Report) -> None:
    summary = report.summary
    read = pd.read_csv(io.StringIO(render(report, "csv")), dtype={"group_id": str}, keep_default_na=False)
    assert read["accuracy_mean"].astype(float).tolist() == summary["accuracy_mean"].tolist()
    assert read["steps"].tolist() == ["", "1", "10000"]
    rows = json.loads(render(report, "json"))
    assert [row["steps"] for row in rows] == [None, 1, 10000]
    assert [row["accuracy_mean"] for row in rows] == pytest.approx(summary["accuracy_mean"].tolist(), abs=1e-14)
    assert rows[0]["difference_mean"] is None
    assert rows[0]["dataset"] == "folder:/data/a_b|c & [red]"


@pytest.mark.parametrize(
    ("form", "row"),
    [
        ("markdown", r"| resnet20 | folder:/data/a_b\|c & [red] | ademamix    | 10000   |       2 | 51.50 ± 0.71 |"),
        ("latex", r"resnet20 & folder:/data/a\_b|c \& [red] & ademamix & 10000 & $2$ & $51.50 \pm 0.71$ &"),
    ],
)
def test_tables_for_papers_are_escaped(report: Report, form: Format, row: str) -> None:
    text = render(report, form)
    assert row in text
    assert report.common in text  # what was run
    if form == "latex":
        assert r"\toprule" in text
        assert r"accuracy \%" in text


def test_the_table_says_what_is_compared(report: Report) -> None:
    lines = [line.rstrip() for line in show(report.summary).splitlines()]
    assert lines[0] == "model resnet20, dataset folder:/data/a_b|c & [red], seeds 2"
    assert lines[3] == "none       –      50.50 ± 0.71  40.50 ± 0.71  50.50 ± 0.71             –"
    assert lines[5] == "ademamix   10000  51.50 ± 0.71  41.50 ± 0.71  51.50 ± 0.71  +1.00 ± 0.00"


@pytest.mark.parametrize(
    "grids",
    [["steps=1,3"], ["steps=1,3", "icp_lr=0.001,0.02"], ["steps=1,3", "icp_lr=0.001,0.02", "warmup_epochs=0,1"]],
)
def test_the_table_keeps_to_80_columns_and_cuts_no_number(tmp_path: Path, grids: list[str]) -> None:
    for config in configs(grids, seeds=2):
        write_run(tmp_path, config, [0.1, 0.6883 + config.seed / 100], [0.1, 0.2])
    text = show(build(tmp_path).summary)
    rows = len(configs(grids))
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("69.33") == 2 * rows
    assert text.count("± 0.71") == 3 * rows
    assert text.count("± 0.00") == rows - 1


def test_names_are_shown_as_they_are(tmp_path: Path) -> None:
    for config in configs(["dataset=digits,folder:/[red]"]):
        write_run(tmp_path, config, [0.1, 0.5])
    text = show(build(tmp_path).summary)
    assert "folder:/[red]" in text
    assert "digits" in text


def test_one_seed_has_no_spread(tmp_path: Path) -> None:
    for config in configs([]):
        write_run(tmp_path, config, [0.1, 0.5])
    report = build(tmp_path)
    assert report.summary["accuracy_std"].isna().all()
    assert "±" not in show(report.summary)
    assert "+0.00" in show(report.summary)


def test_many_settings_share_a_column_in_80_characters(tmp_path: Path) -> None:
    for config in configs(
        ["steps=1,3", "icp_lr=0.001,0.002", "lr=0.001,0.003", "beta2=0.99,0.999", "layer_weights=uniform,cosine"]
    ):
        write_run(tmp_path, config, [0.1, 0.5])
    lines = show(build(tmp_path).summary).splitlines()
    assert max(map(len, lines)) <= 80
    assert "settings" in "".join(lines[1:4])
    assert any("layer_weights uniform" in line for line in lines)


def test_a_study_is_reported_alone(tmp_path: Path) -> None:
    mine, other = configs(["steps=1"]), configs(["steps=3"])
    for config in {each.run_id: each for each in [*mine, *other]}.values():
        write_run(tmp_path, config, [0.1, 0.5])
    assert len(build(tmp_path).summary) == 3
    assert len(build(tmp_path, [each.run_id for each in mine]).summary) == 2


def write_vae(output: Path, config: RunConfig, ssim: Curve, **of_last: float) -> None:
    folder = RunFolder(output, config)
    folder.create()
    folder.write_config(config, {}, {})
    for epoch, value in enumerate(ssim):
        test = {"ssim": value, "psnr": 100 * value, "loss": 1.0} | (of_last if epoch == len(ssim) - 1 else {})
        folder.append_metrics(epoch, {"train": {"loss": 1.0}, "val": {"ssim": 1 - value}, "test": test})
    folder.write_status("finished", notes=["FID is biased."])


def test_generation_has_measures_of_its_own_and_kinds_of_fid_stay_apart(tmp_path: Path) -> None:
    common: dict[str, object] = {"model": "vae", "dataset": "digits", "epochs": 2}
    for seed in (0, 1):
        for optimizer, gain in (("none", 0.0), ("adam", 0.02), ("sgd", 0.03)):
            kind = "_by_resnet20-x" if optimizer == "adam" else ""
            distances = {
                f"{name}_{of}{kind}": 7.0 + seed for name in ("fid", "kid") for of in ("prior", "reconstruction")
            }
            config = resolve({**common, "optimizer": optimizer, "seed": seed})
            write_vae(tmp_path, config, [0.5 + seed / 10, 0.6 + seed / 10 + gain], **distances)
    write_run(tmp_path, resolve({"epochs": 2, "optimizer": "none"}), [0.1, 0.2])

    report = build(tmp_path)
    rows = {(row["task"], row["optimizer"]): row for row in report.summary.to_dict("records")}
    ours = rows["generation", "adam"]
    assert ours["ssim_mean"] == pytest.approx(0.67)
    assert ours["ssim_best_mean"] == pytest.approx(0.55)  # chosen by the held-out images
    assert ours["difference_mean"] == pytest.approx(0.02)
    assert ours["fid_prior_by_resnet20-x_mean"] == 7.5
    assert pd.isna(ours["fid_prior_mean"])
    assert pd.isna(rows["generation", "sgd"]["fid_prior_by_resnet20-x_mean"])
    assert rows["classification", "none"]["accuracy_mean"] == 0.2
    assert "FID and KID (a): in the features of resnet20-x." in report.common
    assert report.notes[0] == "6 runs: FID is biased."

    tables = rich_tables(report.summary, 200)
    assert list(tables) == ["classification", "generation"]
    headings = [str(column.header) for column in tables["generation"].columns]
    assert {"SSIM", "FID prior", "FID prior (a)", "KID rec. (a)", "difference"} <= set(headings)
    assert "accuracy %" not in headings
    generation = report.summary[report.summary["task"] == "generation"]
    narrow = show(generation, 80)
    assert "No room for KID" in narrow
    assert max(map(len, narrow.splitlines())) <= 80
    markdown = render(report, "markdown")
    assert markdown.count("|:--") >= 2  # a table for each task
    assert "0.6700 ± 0.0707" in markdown
