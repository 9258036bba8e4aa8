"""Data that have changed since a run was trained, or a part of a study: the fingerprint decides, everywhere."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

import icpctl
from icpctl import data
from icpctl.ablate.command import define, execute
from icpctl.ablate.preview import dry_run
from icpctl.ablate.study import STUDY_FILE, Definition
from icpctl.ablate.table import study_table
from icpctl.ablate.worker import Job, work
from icpctl.config import RunConfig
from icpctl.runs.fingerprints import OtherDataError, namesake
from icpctl.runs.folder import RunFolder

SETTINGS = {"model": "resnet20", "dataset": "digits", "train_size": "100", "epochs": "1"}


def never() -> bool:
    return False


def record(output: Path, config: RunConfig, fingerprint: str, state: str = "finished") -> RunFolder:
    """A run as it is left behind: finished, or begun with a checkpoint."""
    folder = RunFolder(output, config)
    folder.create()
    folder.write_config(config, {"data": {"fingerprint": fingerprint}}, {})
    folder.write_status(state)
    (folder.checkpoints / "last.pt").write_bytes(b"")
    return folder


def write_images(folder: Path, seed: int) -> None:
    values = np.random.default_rng(seed)
    for split in ("train", "test"):
        for name in ("a", "b"):
            (folder / split / name).mkdir(parents=True)
            for i in range(4):
                pixels = values.integers(0, 255, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{i}.png")


def test_a_finished_run_is_no_answer_for_other_data(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    config = RunConfig(dataset=f"folder:{photos}", optimizer="none", epochs=1, batch_size=4, val_fraction=0.25)
    write_images(photos, 1)
    run = icpctl.train(config, tmp_path / "results")
    before = (run.path / "metrics.csv").read_bytes()
    assert icpctl.train(config, tmp_path / "results").skipped
    shutil.rmtree(photos)
    with pytest.raises(icpctl.UserError, match="is finished, but whether its data are still the same cannot be told"):
        icpctl.train(config, tmp_path / "results")
    write_images(photos, 2)
    with pytest.raises(OtherDataError, match=r"was trained on other data: .*--overwrite.*--output"):
        icpctl.train(config, tmp_path / "results")
    assert (run.path / "metrics.csv").read_bytes() == before
    anew = icpctl.train(config, tmp_path / "results", overwrite=True)
    assert not anew.skipped
    assert icpctl.train(config, tmp_path / "results").skipped


@pytest.mark.parametrize("state", ["finished", "interrupted"])
@pytest.mark.parametrize("look", [execute, dry_run])
def test_a_study_is_refused_where_a_run_was_trained_on_other_data(
    tmp_path: Path, look: Callable[..., object], state: str
) -> None:
    definition = define(SETTINGS, ["steps=1,2"], seeds="2")
    for run in definition.runs()[:5]:
        record(tmp_path, run.config, "other", state)
    before = sorted(tmp_path.rglob("*"))
    stop = () if look is dry_run else (never,)
    with pytest.raises(OtherDataError, match=r"digits has changed.*5 runs of this study.*and 2 more.*--output"):
        look(definition, tmp_path, Console(file=io.StringIO()), *stop)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_finished_study_of_other_data_is_no_answer_either(tmp_path: Path) -> None:
    definition = define(SETTINGS, ["steps=1"])
    now = data.load("digits").fingerprint
    folders = [record(tmp_path, run.config, now) for run in definition.runs()]
    assert execute(definition, tmp_path, Console(file=io.StringIO()), never) == {f.run_id: None for f in folders}
    record(tmp_path, definition.runs()[1].config, "other")
    with pytest.raises(OtherDataError, match="1 runs of this study"):
        execute(definition, tmp_path, Console(file=io.StringIO()), never)
    (folders[0].path / "config.json").unlink()
    with pytest.raises(icpctl.UserError, match="nothing says which data"):
        execute(definition, tmp_path, Console(file=io.StringIO()), never)


def test_a_worker_with_other_data_begins_nothing(tmp_path: Path) -> None:
    (planned, *_) = define(SETTINGS, ["steps=1"]).runs()
    config = planned.config
    define(SETTINGS, ["steps=1"]).keep(tmp_path)
    outcome = work(Job.of([config], tmp_path, {config.run_id: "other"}), never)[config.run_id]
    assert outcome.ending == "refused"
    assert "digits is not what the study was started with" in outcome.error
    assert RunFolder(tmp_path, config).status() == {}


def test_study_csv_names_no_reference_of_other_data(tmp_path: Path) -> None:
    planned = define(SETTINGS, ["steps=1"], seeds="2").runs()
    for number, run in enumerate(planned):
        record(tmp_path, run.config, "other" if number == 0 else "now")
    table = study_table(planned, tmp_path).set_index("run_id")
    named = [table.loc[run.config.run_id, "baseline_run"] for run in planned if run.role == "method"]
    assert named == ["", planned[2].config.run_id]
    assert set(table["fingerprint"]) == {"other", "now"}


def test_a_study_file_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / STUDY_FILE)
    with pytest.raises(icpctl.UserError, match="is no file"):
        Definition.kept(tmp_path)


def test_the_fingerprint_is_written_where_it_is_looked_for(tmp_path: Path) -> None:
    config = RunConfig(dataset="digits", train_size=100, epochs=1, optimizer="none")
    path = icpctl.train(config, tmp_path).path
    fingerprint = data.load("digits").fingerprint
    assert json.loads((path / "config.json").read_text())["data"]["fingerprint"] == fingerprint
    assert RunFolder(tmp_path, config).trained_on() == fingerprint


def test_another_folder_of_the_same_name_is_said(tmp_path: Path) -> None:
    configs = {}
    for place in ("here", "there"):
        write_images(tmp_path / place / "photos", len(place))
        given = {**SETTINGS, "dataset": f"folder:{tmp_path}/{place}/photos", "train_size": "6", "val_fraction": "0"}
        configs[place] = RunConfig.model_validate(given)
    output = tmp_path / "results"
    record(output, configs["here"], "0123")
    (output / "junk").mkdir()
    (output / "junk" / "config.json").write_text("[1]")
    said = namesake(RunFolder(output, configs["there"]))
    assert (
        said
        == f"{output} also has runs on other data of this name: {configs['here'].dataset}. This run is on {configs['there'].dataset}."
    )
    assert namesake(RunFolder(output, configs["here"])) == ""
    assert namesake(RunFolder(output, RunConfig.model_validate(SETTINGS))) == ""
