"""What a report makes of runs that are damaged, foreign, or not comparable: said, and no number that misleads."""

from __future__ import annotations

import html
import io
import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from reports import configs, write_run
from rich.console import Console

from icpctl.config import RunConfig, resolve
from icpctl.errors import UserError
from icpctl.report import Report, build
from icpctl.report.cells import at_best_epoch, sentences
from icpctl.report.command import Request, write_report
from icpctl.report.formats import render
from icpctl.runs.folder import RunFolder
from icpctl.runs.measures import falls, measure_of, p_text


def adam(seed: int, **settings: object) -> RunConfig:
    return resolve({"epochs": 1, "optimizer": "adam", "seed": seed, **settings})


def write_pairs(output: Path, ours: list[float], theirs: list[float] | None = None) -> None:
    """Runs of the method and of the baseline, one a seed."""
    for seed, value in enumerate(ours):
        write_run(output, adam(seed), [value])
        write_run(output, adam(seed).baseline(), [theirs[seed] if theirs else 0.5 + seed / 1000])


def of(report: Report, metric: str = "accuracy") -> pd.DataFrame:
    return report.comparisons[report.comparisons["metric"] == metric]


def noted(report: Report, words: str) -> bool:
    return any(words in note for note in report.notes)


def everything(folder: Path, *, width: int = 80, metric: str | None = None) -> tuple[str, Report]:
    """What `icpctl report` prints, notes included, in all formats; its files are written."""
    printed = io.StringIO()
    console = Console(file=printed, width=width, force_terminal=False)
    request = Request((folder,), metric=metric, output=folder.parent / "written")
    write_report(request, console, lambda kind, text: console.print(kind, text, markup=False, soft_wrap=True))
    report = request.build()
    for form in ("csv", "json", "markdown", "latex"):
        assert render(report, form)
    return printed.getvalue(), report


# ── Values that are missing


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_where_a_seed_has_no_finite_value_nothing_is_claimed_and_it_is_said(tmp_path: Path, value: float) -> None:
    write_pairs(tmp_path, [0.6, 0.601, 0.6, 0.603, value])
    report = build(tmp_path)
    (row,) = of(report).to_dict("records")
    assert (row["seeds"], row["lacking"], row["verdict"]) == (4, 1, "cannot tell")
    assert row["p_holm"] < 0.05
    assert "Nothing is claimed from the seeds that remain: 1 of 5 has no finite value." in row["sentence"]
    assert noted(report, "Without a finite accuracy, so they are in no mean of it, and nothing is claimed")
    assert noted(report, adam(4).run_id)


def test_what_is_measured_after_the_last_epoch_alone_has_no_best_epoch(tmp_path: Path) -> None:
    """Else FID at the best epoch would be that of the runs whose best epoch is the last: a choice by outcome."""
    for seed in range(4):
        config = resolve({"model": "vae", "dataset": "digits", "epochs": 2, "optimizer": "none", "seed": seed})
        best_is_last = [0.1, 0.2] if seed % 2 else [0.2, 0.1]
        folder = write_run(tmp_path, config, [0.5, 0.6], best_is_last)
        folder.append_metrics(1, {"test": {"fid_prior": 40.0 + seed}})
    report = build(tmp_path)
    assert "fid_prior" in set(report.summary["metric"])
    assert "fid_prior_best" not in report.runs
    assert "ssim_best" in report.runs


def test_a_run_without_its_metric_is_left_out_and_the_others_are_reported(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "runs", resolve({"epochs": 1}))
    folder.create()
    folder.write_config(resolve({"epochs": 1}), {}, {})
    folder.append_metrics(0, {"train": {"loss": 1.0}})
    folder.write_status("finished")
    printed, report = everything(tmp_path / "runs")
    assert "Left out: 1 run of classification without accuracy at the last epoch." in printed
    assert report.metrics == {}


def test_rows_after_the_last_epoch_are_left_out_and_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path, adam(0), [0.6])
    folder.append_metrics(99, {"test": {"accuracy": 0.01}})
    report = build(tmp_path)
    assert report.summary["mean"][report.summary["metric"] == "accuracy"].tolist() == [0.6]
    assert noted(report, "has 1 row of epochs after the last")


@pytest.mark.parametrize(
    "name", ["run_id", "seed", "lr", "passes", "state", "group_id", "task", "metric", "label", "f1_best"]
)
def test_a_metric_with_the_name_of_another_column_is_left_out_and_named(tmp_path: Path, name: str) -> None:
    write_pairs(tmp_path / "runs", [0.6, 0.7], [0.5, 0.5])
    RunFolder(tmp_path / "runs", adam(0)).append_metrics(0, {"test": {name: 7.0}})
    printed, report = everything(tmp_path / "runs")
    assert f"name of another column are left out of the tables: {name}." in printed
    assert of(report)["seeds"].tolist() == [2]


def test_what_the_best_epoch_says_otherwise_is_shown(tmp_path: Path) -> None:
    """The last epoch of the method is better, its best one worse: luck, or the last."""
    for seed in range(4):
        noise = seed / 1000
        for optimizer, accuracies in (("adam", [0.5 + noise, 0.7]), ("none", [0.8, 0.6 + noise * noise])):
            config = adam(seed, epochs=2).altered(optimizer=optimizer)
            write_run(tmp_path / "runs", config, accuracies, [1.0, 0.5])
    printed, report = everything(tmp_path / "runs")
    (changed,) = at_best_epoch(report, "classification").to_dict("records")
    assert (of(report)["verdict"].item(), changed["verdict"]) == ("better", "worse")
    said = printed.index("At the best epoch, these have another verdict")
    assert said < printed.index("Test split, last epoch") < printed.index("Note:")  # verdicts first, notes last
    assert "accuracy, best epoch" in printed[said:]
    page = (tmp_path / "written" / "report.html").read_text()
    assert "At the best epoch, 1 comparison has another verdict" in page
    assert html.escape(changed["sentence"]) in page


# ── What cannot be compared


def test_copies_that_differ_are_left_out_whatever_the_order_of_the_folders(tmp_path: Path) -> None:
    for name, value in (("a", 0.6), ("b", 0.7)):
        write_pairs(tmp_path / name, [value, value])
        write_run(tmp_path / name, adam(7), [0.5])  # equal in both
    for names in ("ab", "ba"):
        report = build([tmp_path / name for name in names])
        assert set(report.runs["run_id"]) == {adam(7).run_id, adam(0).baseline().run_id, adam(1).baseline().run_id}
        assert noted(report, f"Left out: {adam(0).run_id}. Its copies differ")
        assert sum("Left out, because they are copies of the run in" in note for note in report.notes) == 3
    again = build([tmp_path / "a", tmp_path / "a" / ".." / "a"])
    assert not noted(again, "cop")


def test_runs_on_other_data_are_not_compared(tmp_path: Path) -> None:
    write_pairs(tmp_path, [0.6, 0.61, 0.62])
    for path in tmp_path.iterdir():
        content = json.loads((path / "config.json").read_text())
        content["data"] = {"fingerprint": "A" if "-none-" in path.name else "B"}
        (path / "config.json").write_text(json.dumps(content))
    report = build(tmp_path)
    assert report.comparisons.empty
    assert noted(report, "were not trained on the same data")
    assert noted(report, "Not compared with a baseline, because none with the same settings, seed and data is finished")


def test_where_settings_are_pooled_only_a_seed_whose_runs_all_have_twins_is_compared(tmp_path: Path) -> None:
    for seed in range(3):
        for rate, value in ((0.001, 0.5), (0.01, 0.9)):
            write_run(tmp_path, adam(seed, icp_lr=rate), [value + seed / 1000])
        write_run(tmp_path, adam(seed, icp_lr=0.01, direction="random"), [0.6])
        write_run(tmp_path, adam(seed).baseline(), [0.5])
    assert set(of(build(tmp_path))["against"]) == {"baseline", "random"}
    report = build(tmp_path, by=["optimizer"])
    assert of(report)[["label", "against"]].to_numpy().tolist() == [
        ["Adam-ICP", "baseline"],
        ["Adam-ICP random", "baseline"],
    ]
    assert noted(report, "Not compared with its control in a random direction")


def test_that_no_baseline_has_the_same_compute_is_said(tmp_path: Path) -> None:
    write_pairs(tmp_path, [0.6, 0.7])
    assert noted(
        build(tmp_path), "a gain may come from more compute: `icpctl ablate --compute-matched` trains such baselines."
    )
    for config in configs(["steps=1"], compute_matched=True):
        write_run(tmp_path / "matched", config, [0.5] * config.epochs)
    assert not noted(build(tmp_path / "matched"), "more compute")


def test_rows_have_different_names(tmp_path: Path) -> None:
    runs = [adam(0, dataset=f"folder:/{name}/photos") for name in "ab"]
    runs += [adam(0, icp_lr=rate) for rate in (0.0012345678, 0.0012345679, 0.00123456780001)]
    for config in runs:
        write_run(tmp_path, config, [0.5])
    labels = build(tmp_path).grouping.table["label"].tolist()
    assert len(set(labels)) == len(runs)
    assert any("folder:/a/photos" in label for label in labels)


def test_a_setting_that_is_only_sometimes_its_default_is_said(tmp_path: Path) -> None:
    for config in configs(["epochs=8,16"], warmup_epochs=2):
        write_run(tmp_path, config, [0.5] * config.epochs)
    assert "warmup_epochs 2" in build(tmp_path).common  # the default of 8 epochs, and not of 16


def test_a_seed_is_no_row(tmp_path: Path) -> None:
    write_pairs(tmp_path, [0.6])
    with pytest.raises(UserError, match="--by seed: a row is a mean over the seeds"):
        build(tmp_path, by=["seed"])


# ── Damage, and names that are more than names


def spoil_status(path: Path) -> None:
    (path / "status.json").write_text("[" * 100_000)


def spoil_config(path: Path) -> None:
    (path / "config.json").write_text('{"config": ' + "[" * 100_000)


def half_a_character(path: Path) -> None:
    (path / "config.json").write_text('{"config": {"dataset": "folder:/x/\\ud800y"}}')


def pipe(path: Path) -> None:
    (path / "status.json").unlink()
    os.mkfifo(path / "status.json")


def pipe_of_metrics(path: Path) -> None:
    (path / "metrics.csv").unlink()
    os.mkfifo(path / "metrics.csv")


@pytest.mark.parametrize("spoil", [spoil_status, spoil_config, half_a_character, pipe, pipe_of_metrics])
@pytest.mark.timeout(300)  # a pipe that is waited for is waited for without end
def test_a_spoilt_run_is_named_and_the_others_are_reported(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    write_pairs(tmp_path / "runs", [0.6, 0.7, 0.65])
    spoil(RunFolder(tmp_path / "runs", adam(2)).path)
    printed, report = everything(tmp_path / "runs")
    assert adam(2).run_id in printed
    assert of(report)["seeds"].tolist() == [2]


def test_nothing_from_a_file_commands_the_terminal(tmp_path: Path) -> None:
    evil = "\x1b]0;title\x07\x1b[2J\r\x9b31m"
    folder = write_run(tmp_path / "runs", adam(0, dataset=f"folder:/x/{evil}"), [0.5], notes=[evil])
    folder.append_metrics(0, {"test": {"[/red]\x1b[1m": 0.5}})
    for metric in (None, "[/red]\x1b[1m"):
        printed, report = everything(tmp_path / "runs", metric=metric)
        for text in (printed, render(report, "markdown"), render(report, "latex")):
            assert not set(text) & set("\x1b\x07\r\x9b")
    assert "[/red]" in printed


def test_a_folder_that_is_a_file_is_called_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file is a file"):
        build(tmp_path / "file")


def test_links_that_lead_to_themselves_are_no_folders(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "self").symlink_to(".")
    with pytest.raises(UserError, match="There is no results folder"):
        build([tmp_path / "loop", tmp_path])
    with pytest.raises(UserError, match="There is no run"):
        build([tmp_path, tmp_path / "self"])


def test_hidden_folders_and_reports_are_no_runs(tmp_path: Path) -> None:
    write_pairs(tmp_path, [0.6])
    for name in (".git", ".ipynb_checkpoints", "report", "figures", "wandb"):
        (tmp_path / name).mkdir()
    assert not noted(build(tmp_path), "not the folder of a run")


@pytest.mark.parametrize("metric", ["loss", "accuracy", "f1_macro"])
def test_comparisons_keep_to_80_columns(tmp_path: Path, metric: str) -> None:
    for config in configs(["steps=1,3"], seeds=3, controls=True, compute_matched=True):
        write_run(tmp_path / "runs", config, [0.5 + config.seed * config.steps] * config.epochs)
    printed, _ = everything(tmp_path / "runs", metric=metric)
    lines = [line for line in printed.splitlines() if not line.startswith(("Note:", "[yellow]", "Written:"))]
    assert max(len(line.rstrip()) for line in lines) <= 80
    assert "…" not in printed


def test_of_many_comparisons_claims_come_first_and_then_those_with_the_baselines(tmp_path: Path) -> None:
    for config in configs(["steps=1,3"], seeds=3, controls=True, compute_matched=True):
        value = 0.5 + config.seed * config.steps / 100 + (0.3 if config.direction == "random" else 0.0)
        write_run(tmp_path, config, [value] * config.epochs)
    table = of(build(tmp_path))
    said = sentences(table, 8)
    claims = table["sentence"][table["verdict"].isin(["better", "worse"])].tolist()
    method = table[(table["role"] == "method") & table["against"].isin(["baseline", "compute-matched"])]
    assert 0 < len(claims) < 8
    assert set(claims) < set(said)
    assert set(said[:-1]) & set(method["sentence"])
    assert said[-1] == f"{len(table) - 8} more are in comparisons.csv and report.html."


# ── How metrics are shown


@pytest.mark.parametrize(
    ("metric", "less_is_better"),
    [
        *((name, False) for name in ("accuracy", "accuracy_top5", "f1_macro", "precision_macro", "recall_macro")),
        *((name, False) for name in ("ssim", "psnr", "images_per_second")),
        *((name, True) for name in ("loss", "ece", "reconstruction_loss", "kl", "seconds", "passes")),
        *((f"{kind}_{of}", True) for kind in ("fid", "kid") for of in ("prior", "reconstruction")),
        ("fid_prior_by_resnet20-x", True),
        ("loss_best", True),
        ("accuracy_best", False),
        ("something_else", False),
    ],
)
def test_less_is_better_of_these(metric: str, less_is_better: bool) -> None:
    assert falls(metric) == less_is_better
    assert measure_of(metric).falls == less_is_better


def test_p_values_on_both_sides_of_the_level_look_different() -> None:
    assert [p_text(p) for p in (0.0496, 0.0504, 0.0004, 0.2, math.nan)] == ["0.0496", "0.0504", "< 0.001", "0.20", "–"]
