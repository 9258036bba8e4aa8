"""A study that is not finished: how many of its runs are, what continues it, and no advice that its definition has already."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from reports import configs, write_run

from icpctl.ablate.study import Definition, Study
from icpctl.report import Report, build

SETTINGS = {"epochs": 2, "dataset": "digits"}


def begun(output: Path, number: int, compute_matched: bool = True, **last: Any) -> list[str]:
    """The notes on a study of twelve runs of which the first few are finished, and the next one is as `last` says."""
    study = Study(SETTINGS, {"steps": ["1", "3"]}, (), (0, 1, 2), compute_matched=compute_matched)
    Definition([study]).keep(output)
    runs = [run.config for run in study.runs()]
    for config in runs[:number]:
        write_run(output, config, [0.5] * config.epochs)
    if last:
        write_run(output, runs[number], [0.5], **last)
    return build(output).notes


@pytest.mark.parametrize("number", [1, 4])
@pytest.mark.parametrize("state", ["running", "interrupted", "failed"])
def test_the_runs_that_are_finished_are_counted_and_the_command_that_goes_on_is_named(
    tmp_path: Path, number: int, state: str
) -> None:
    folder = tmp_path / "a study"
    notes = begun(folder, number, state=state)
    are = "is" if number == 1 else "are"
    command = f"`icpctl ablate --resume '{folder}'`"
    assert f"{number} of 15 runs of the study in {folder} {are} finished: {command} continues it." in notes


def test_a_study_that_is_finished_has_no_such_note(tmp_path: Path) -> None:
    assert not [note for note in begun(tmp_path, 15) if "--resume" in note]


def test_what_the_study_has_planned_is_not_advised(tmp_path: Path) -> None:
    (note,) = [note for note in begun(tmp_path / "planned", 3) if "more compute" in note]
    assert note.endswith("so a gain may come from more compute.")
    (note,) = [note for note in begun(tmp_path / "not", 3, compute_matched=False) if "more compute" in note]
    assert note.endswith("`icpctl ablate --compute-matched` trains such baselines.")


def test_what_trains_a_baseline_is_named_unless_the_study_does(tmp_path: Path) -> None:
    def note(report: Report) -> str:
        (found,) = [note for note in report.notes if note.startswith("Not compared with a baseline")]
        return found

    runs = [config for config in configs(["steps=1"], dataset="digits") if config.method == "icp"]
    write_run(tmp_path, runs[0], [0.5, 0.6])
    assert "`icpctl train --method plain`" in note(build(tmp_path))
    Definition([Study(SETTINGS, {"steps": ["1"]})]).keep(tmp_path)
    assert "icpctl train" not in note(build(tmp_path))


def test_a_study_that_cannot_be_planned_is_noted_and_its_runs_are_reported(tmp_path: Path) -> None:
    begun(tmp_path, 3)
    file = tmp_path / "study.toml"
    file.write_text(file.read_text().replace('"3"', '"three"'))
    report = build(tmp_path)
    assert any("three" in note for note in report.notes)
    assert len(report.records) == 3
