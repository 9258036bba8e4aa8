"""Which data a run was trained on, and whether they are still the same: the fingerprint decides."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from icpctl import data
from icpctl.config import RunConfig, is_path, short_name
from icpctl.errors import UserError
from icpctl.files import read_json
from icpctl.runs.folder import RunFolder

MOST_LOOKED_AT = 100
"""Runs beside one that begins whose data sets are compared with its own."""


class OtherDataError(UserError):
    """The data set is not the one that a run, or a study, was trained on."""


def data_source(config: RunConfig) -> tuple[str, Path | None, int | None, str, str | None, float | None]:
    """What `icpctl.data.load` is told of a run's data; equal for runs that have the same."""
    return config.dataset, config.data_dir, config.image_size, config.crop, config.columns, config.split


def load_data(config: RunConfig, expected: str = "") -> data.ImageData:
    """The data set of a run.

    Args:
        config: of the run.
        expected: the fingerprint that the study saw at its start; empty: whatever is there.

    Raises:
        OtherDataError: it has another fingerprint.
        UserError: as `icpctl.data.load`.
    """
    images = data.load(*data_source(config))
    if expected not in ("", images.fingerprint):
        raise OtherDataError(
            f"{config.dataset} is not what the study was started with. Restore the data, where every machine has the same, and "
            "go on with --resume."
        )
    return images


def namesake(folder: RunFolder) -> str:
    """A sentence on runs beside this one that were trained on another folder of the same name; empty where there are none."""
    own = folder.config.dataset
    if not is_path(own):
        return ""
    for path in islice(folder.path.parent.glob("*/config.json"), MOST_LOOKED_AT):
        recorded = read_json(path).get("config")
        other = str(recorded.get("dataset")) if isinstance(recorded, dict) else ""
        if other != own and short_name(other) == short_name(own):
            return f"{folder.path.parent} also has runs on other data of this name: {other}. This run is on {own}."
    return ""


def is_finished(folder: RunFolder) -> bool:
    """Whether a run is finished, on the data that are there now.

    Raises:
        OtherDataError: it was trained on others.
        UserError: its data are not there, or nothing says which they were.
    """
    if not folder.is_finished():
        return False
    before = folder.trained_on()
    try:
        now = load_data(folder.config).fingerprint
    except UserError as error:
        raise UserError(
            f"{folder.path} is finished, but whether its data are still the same cannot be told: {error} `icpctl report "
            f"{folder.path}` shows its figures."
        ) from None
    if before != now:
        raise OtherDataError(
            f"{folder.path} is finished, but was trained on other data: {folder.config.dataset} has changed since, or is "
            "another folder of that name. Restore the data, train the run anew with --overwrite, or choose another "
            "results folder with --output."
        )
    return True


def refuse_other_data(folders: Sequence[tuple[RunFolder, str]]) -> None:
    """Make sure that no run of a study was trained, finished or up to a checkpoint, on other data than are there now.

    Args:
        folders: of each run, and the fingerprint of its data now.

    Raises:
        OtherDataError: some were; says which.
    """
    others = [folder for folder, now in folders if folder.trained_on() not in (None, now)]
    if others:
        names = ", ".join(folder.run_id for folder in others[:3])
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        raise OtherDataError(
            f"{others[0].config.dataset} has changed, or is another folder of that name: {len(others)} runs of this study in "
            f"{others[0].path.parent} were trained on other data ({names}{more}). Their figures and new ones cannot stand in "
            "one table. Restore the data, choose another results folder with --output, or remove the folders of these runs, "
            "which are then trained anew."
        )
