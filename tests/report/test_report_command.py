"""`icpctl report` as a user meets it: what it prints and writes, several folders, watching runs go on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from commands import PATIENCE, Command, Forked, begin, icpctl_command
from reports import configs, write_run

from icpctl.ablate.study import Definition, Study
from icpctl.config import resolve

FILES = {"runs.csv", "summary.csv", "comparisons.csv", "report.html"}


def report(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return icpctl_command("report", *map(str, arguments), cwd=cwd, COLUMNS="80")


QUICK = """
import sys; from icpctl.report import command; command.REFRESH = 0.2
from icpctl.cli.app import main; sys.argv[0] = "icpctl"; main()
"""


def watch(folder: Path) -> Command:
    """It looks at the folder several times a second."""
    script = folder.parent / f"{folder.name}.py"
    script.write_text(QUICK)
    return Forked([sys.executable, script, "report", folder, "--watch"])


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    for config in configs(["steps=1,3"], seeds=3, controls=True, compute_matched=True):
        value = 0.5 + config.steps / 100 + config.seed / 50
        run = write_run(folder, config, [value] * config.epochs, [value] * config.epochs)
        run.append_metrics(config.epochs - 1, {"fit": {"accuracy": value}})
    return folder


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_file()}


def test_the_report_is_printed_and_its_files_are_written(results: Path) -> None:
    done = report("results", cwd=results.parent)
    assert done.returncode == 0, done.stderr
    assert files(results) == FILES
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "Differences in accuracy (points), paired by seed" in done.stdout
    for name in FILES:
        assert f"Written: results/{name}" in done.stderr
    page = (results / "report.html").read_text()
    assert "by <code>icpctl report results</code>" in page
    for name in FILES - {"report.html"}:
        assert len(pd.read_csv(results / name)) > 0


def test_the_selection_is_that_of_all_files_and_of_the_command_in_the_page(results: Path) -> None:
    options = ["--where", "steps=3,seed=0..1", "--by", "steps", "--metric", "f1_macro", "--format", "json"]
    done = report(results, *options, cwd=results.parent)
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert printed["metrics"] == {"classification": "f1_macro"}
    assert files(results) == set()  # what is a part is not written over the whole
    summary = pd.read_csv(results.parent / "report" / "summary.csv")
    assert set(summary["seeds"]) == {2}
    assert set(summary["steps"].dropna()) == {3}
    assert set(summary["role"]) == {"baseline", "compute-matched", "method", "control"}
    page = (results.parent / "report" / "report.html").read_text()
    assert "--where steps=3,seed=0..1 --by steps --metric f1_macro" in page


@pytest.mark.parametrize("option", [("--by", "optimizer"), ("--metric", "f1_macro"), ("--margin", "1")])
def test_a_report_of_another_kind_is_not_written_over_the_whole_one(results: Path, option: tuple[str, str]) -> None:
    whole = report("results", cwd=results.parent)
    before = (results / "report.html").read_bytes()
    done = report("results", *option, cwd=results.parent)
    assert (whole.returncode, done.returncode) == (0, 0), done.stderr
    assert (results / "report.html").read_bytes() == before
    assert files(results.parent / "report") == FILES


def test_several_folders_have_their_files_beside_them(results: Path) -> None:
    other = results.with_name("other")
    (next(results.glob("*none*"))).rename(other)
    nested = results.with_name("more")
    nested.mkdir()
    other.rename(nested / other.name)
    done = report("results", "more", cwd=results.parent)
    assert done.returncode == 0, done.stderr
    assert files(results.parent / "report") == FILES
    assert files(results) == set()
    done = report("results", "more", "-o", "elsewhere/deep", cwd=results.parent)
    assert files(results.parent / "elsewhere" / "deep") == FILES


def test_figures_and_exports_go_beside_the_tables(results: Path) -> None:
    done = report(results, "--figures", "--export", "tensorboard")
    assert done.returncode == 0, done.stderr
    drawn = {path.name for path in (results / "figures").iterdir()}
    assert {"figure1.png", "figure1.svg", "figure1.csv"} <= drawn
    assert len(list((results / "tensorboard").glob("*/events*"))) == len(list(results.glob("resnet20-*")))
    again = report(results)
    assert again.returncode == 0
    assert "Note" not in again.stderr  # figures and exports are no damaged runs


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["missing"], "missing"),
        (["results", "missing"], "missing"),
        (["results", "--where", "steps=9"], "no run fulfils this"),
        (["results", "--where", "step=3"], "Did you mean 'steps'"),
        (["results", "--by", "step"], "Did you mean 'steps'"),
        (["results", "--metric", "accurcy"], "Did you mean 'accuracy'"),
        (["results", "-o", "results/report.txt/x"], "Cannot write"),
        (["results", "--watch", "--format", "json"], "--watch"),
    ],
)
def test_what_is_wrong_is_one_paragraph_and_status_2(results: Path, arguments: list[str], said: str) -> None:
    (results / "report.txt").write_text("in the way")
    done = report(*arguments, cwd=results.parent)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1
    assert said in done.stderr
    assert files(results) == {"report.txt"}  # nothing half-written


def until_said(process: Command, text: str) -> None:
    assert process.stderr is not None
    assert any(text in line for line in process.stderr)
    assert process.poll() is None


def test_watching_draws_anew_until_all_runs_are_at_their_end(tmp_path: Path) -> None:
    config = resolve({"epochs": 2})
    write_run(tmp_path, config.baseline(), [0.5, 0.6])
    folder = write_run(tmp_path, config, [0.5], state="running")
    watching = watch(tmp_path)
    until_said(watching, "1 of 2 runs are at their end")
    first = (tmp_path / "report.html").read_text()
    folder.append_metrics(1, {"test": {"accuracy": 0.75}})
    folder.write_status("finished")
    output, errors = watching.communicate(timeout=PATIENCE)
    assert watching.returncode == 0, errors
    assert "75.00" in output
    assert (tmp_path / "report.html").read_text() != first


def test_watching_waits_for_the_runs_of_a_study_that_have_not_begun(tmp_path: Path) -> None:
    study = Study({"epochs": 2}, {"steps": ["1", "2"]})
    Definition([study]).keep(tmp_path)
    first, *others = [run.config for run in study.runs()]
    watching = watch(tmp_path)
    until_said(watching, "0 of 3 runs are at their end")
    assert not (tmp_path / "report.html").exists()
    write_run(tmp_path, first, [0.5, 0.6])
    until_said(watching, "1 of 3 runs are at their end")
    assert (tmp_path / "report.html").exists()
    for config in others:
        write_run(tmp_path, config, [0.5, 0.6])
    _, errors = watching.communicate(timeout=PATIENCE)
    assert watching.returncode == 0, errors
    assert "3 of 3 runs are at their end" in errors


def test_watching_ends_when_it_is_asked_to(tmp_path: Path) -> None:
    write_run(tmp_path, resolve({"epochs": 2}), [0.5], state="running")
    watching = begin("report", str(tmp_path), "--watch")
    until_said(watching, "0 of 1 runs are at their end")
    watching.terminate()
    _, errors = watching.communicate(timeout=PATIENCE)
    assert watching.returncode == 143
    assert "Traceback" not in errors
