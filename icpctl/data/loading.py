"""Data sets by name."""

from __future__ import annotations

import os
from pathlib import Path

from icpctl.config import FOLDER, HUGGING_FACE, as_folder, choices, expanded, is_path
from icpctl.config.recipes import dataset_row
from icpctl.data.cache import ImageData, decoded, user_cache
from icpctl.data.folders import class_folders, not_utf8
from icpctl.data.huggingface import check_hub_name, hugging_face
from icpctl.data.named import NAMED, find
from icpctl.errors import UserError, unknown

DATASETS = NAMED
"""The data sets that need no path; `folder:PATH`, `hf:OWNER/NAME` and `hf:PATH` are the other forms of a name."""

CROPS = choices("crop")
"""What is cut out of an image before the resize: nothing, or the square around the object's bounding box."""


def check_name(name: str) -> None:
    """Raise UserError unless `name` is one of `DATASETS` or has one of the other forms, whose path need not be there."""
    if name.startswith(HUGGING_FACE) and not is_path(name):
        check_hub_name(name)
    elif is_path(name):
        path = name.partition(":")[2]
        if not path.strip():
            raise UserError(
                "The data set 'folder:' lacks its path. Write folder:PATH, with train/CLASS/ and test/CLASS/, or CLASS/, in PATH."
            )
        try:
            path.encode()
        except UnicodeEncodeError as problem:
            raise not_utf8("data folder", path) from problem
        if "\0" in path:
            raise UserError(
                f"The path of the data set has a NUL character. Write {name.partition(':')[0]}:PATH with a path that there is."
            )
    elif name in DATASETS:
        return
    elif written := as_folder(name):
        raise UserError(f"'{name}' is no data set, but a folder. Write {written} for the images in it.")
    elif "/" in name:
        raise UserError(
            f"'{name}' is no data set, and no folder. Images in a folder are folder:PATH, and a data set of the Hugging Face hub is hf:OWNER/NAME."
        )
    else:
        raise unknown("data set", name, (*DATASETS, "folder:PATH", "hf:OWNER/NAME"))


def default_data_dir() -> Path:
    """Where named data sets are looked for and downloaded to: ICPCTL_DATA_DIR, else a folder of the user's cache."""
    if chosen := os.environ.get("ICPCTL_DATA_DIR"):
        return expanded(Path(chosen))
    return user_cache() / "data"


def load(
    name: str,
    data_dir: Path | None = None,
    image_size: int | None = None,
    crop: str = "none",
    columns: str | None = None,
    split: float | None = None,
) -> ImageData:
    """The data set `name`, downloaded and decoded on the first call, memory-mapped from the cache on later ones.

    Args:
        name: one of `DATASETS`; or `folder:PATH` with the images of each class in PATH/train/CLASS and PATH/test/CLASS, or in PATH/CLASS; or
            `hf:OWNER/NAME` of the Hugging Face hub, or `hf:PATH` (see `icpctl.data.huggingface`).
        data_dir: where named data sets are looked for first and downloaded to (None: `default_data_dir()`).
        image_size: side N in pixels; every image is resized to shorter side N and centre-cropped to N×N. With None
            the images keep their size, which has to be the same for all.
        crop: one of `CROPS`. "box" cuts the square around the bounding box out of each image, before the resize;
            its side is the longer one of the box, or the image's shorter side if that is less.
        columns: "IMAGE,LABEL" of a data set `hf:…`, where their types do not tell.
        split: the share for training of `folder:PATH` without train/ and test/; None: `folders.DEFAULT_SPLIT`.

    Raises:
        UserError: unknown name or crop, data missing and not to be downloaded, damaged file, images of different
            sizes, no bounding boxes, or no room for the decoded images.
    """
    check_name(name)
    if image_size is not None and image_size < 1:
        raise UserError(f"The image size has to be at least 1 pixel, not {image_size}.")
    if crop not in CROPS:
        raise unknown("crop", crop, CROPS)
    if crop == "box" and not dataset_row(name).boxes:  # said before anything is downloaded
        raise _no_boxes(f"data set {name}")
    if columns and not name.startswith(HUGGING_FACE):
        raise UserError(f"The data set {name} has no columns. Leave out --columns.")
    if split is not None and not name.startswith(FOLDER):
        raise UserError(f"The data set {name} is split already. Leave out --split.")
    if name.startswith(HUGGING_FACE):
        source = hugging_face(name, columns)
    elif name.startswith(FOLDER):
        source = class_folders(expanded(Path(name.removeprefix(FOLDER))), split)
    else:
        source = find(name, expanded(data_dir or default_data_dir()))
    if crop == "box" and not source.boxes:
        raise _no_boxes(f"data set {name} in class folders, '{source.origin}',")
    return decoded(name, source, image_size, crop)


def _no_boxes(what: str) -> UserError:
    return UserError(f"The {what} has no bounding boxes; only cub has them, in its official files. Use --crop none.")
