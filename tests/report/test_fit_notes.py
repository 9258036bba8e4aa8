"""One note on runs that were not measured on training images, and one on runs that were on different numbers of them."""

from __future__ import annotations

from pathlib import Path

from reports import write_run

from icpctl.config import resolve
from icpctl.report import build


def write(output: Path, seed: int, fit: bool = True, **settings: object) -> None:
    run = write_run(output, resolve({"dataset": "digits", "epochs": 2, "seed": seed, **settings}), [0.1, 0.2])
    if fit:
        run.append_metrics(1, {"fit": {"accuracy": 0.4}})


def notes(output: Path) -> list[str]:
    return [note for note in build(output).notes if "fit" in note]


def test_runs_that_all_have_the_fit_get_no_note(tmp_path: Path) -> None:
    for seed in range(2):
        write(tmp_path, seed)
    assert notes(tmp_path) == []


def test_old_runs_get_one_note_and_are_reported_as_before(tmp_path: Path) -> None:
    for seed in range(6):
        write(tmp_path, seed, fit=seed < 2)
    (note,) = notes(tmp_path)
    assert "4 runs, resnet20-digits-ademamix-T5-s2-" in note
    assert note.startswith("Not measured on training images without augmentation (split fit)")
    summary = build(tmp_path).summary
    assert summary[summary["metric"] == "accuracy"]["seeds"].tolist() == [6]


def test_different_numbers_of_images_get_one_note_whatever_the_data_sets(tmp_path: Path) -> None:
    for dataset in ("digits", "folder:/data/one"):
        write(tmp_path, 0, dataset=dataset)
        write(tmp_path, 1, dataset=dataset, fit_images=1200)
        write(tmp_path, 2, dataset=dataset, fit_images=1200)
    (note,) = notes(tmp_path)
    assert "(--fit-images)" in note
    assert note.count("the default: 1 run, ") == note.count("1,200: 2 runs, ") == 2


def test_data_sets_need_not_have_as_many(tmp_path: Path) -> None:
    write(tmp_path, 0)
    write(tmp_path, 0, dataset="folder:/data/one", fit_images=1200)
    assert notes(tmp_path) == []
