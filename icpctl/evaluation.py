"""Evaluate a trained run: its own data set, or another one with the same classes."""

from __future__ import annotations

from pathlib import Path

import torch

from icpctl import checkpoint, data, models
from icpctl.config import resolve
from icpctl.data.device import DeviceSplit
from icpctl.errors import UserError
from icpctl.meter import to_floats
from icpctl.tasks.classification import Classification
from icpctl.trainer import autocast, choose_device, predict, set_precision

SPLITS = ("train", "val", "test")


def checkpoint_file(path: str | Path, which: str = "last") -> Path:
    """The checkpoint that a path means: a file itself, or `which` (last, best) of a run folder.

    Raises:
        UserError: neither a file nor a run folder, or one without that checkpoint.
    """
    path = Path(path)
    if path.is_file():
        return path
    if not path.is_dir():
        raise UserError(
            f"There is no run folder or checkpoint {path}. `icpctl report` lists the runs of a results folder."
        )
    if not (path / "checkpoints").is_dir():
        raise UserError(
            f"{path} is not the folder of a run: it has no checkpoints. Give results/<run-id>, or a .pt file."
        )
    file = path / "checkpoints" / f"{which}.pt"
    if which == "best" and not file.exists():
        raise UserError(
            f"{path} has no best checkpoint: it held out no images (--val-fraction 0), or no epoch has ended."
        )
    return file


def evaluate(
    path: str | Path,
    dataset: str | None = None,
    *,
    split: str = "test",
    which: str = "last",
    data_dir: Path | None = None,
    device: str = "auto",
) -> dict[str, float]:
    """The metrics of a checkpoint on a split.

    Args:
        path: a run folder, or a checkpoint file.
        dataset: another data set than the one it was trained on; its images are resized to the size of the training's.
        split: test; or train or val (the held-out part) of the run's own data set.
        which: last or best, for a run folder.
        data_dir: where the data sets are; the run's own setting by default.
        device: cpu, cuda, cuda:N or auto.

    Returns:
        Metrics by name, fractions in [0, 1].

    Raises:
        UserError: no such run or split, a checkpoint that cannot be read, data that changed, classes that do not match.
    """
    if split not in SPLITS:
        raise UserError(f"There is no split '{split}'. It can be one of: {', '.join(SPLITS)}.")
    target = choose_device(device)
    file = checkpoint_file(path, which)
    saved = checkpoint.load(file, target)
    config = resolve(saved["config"], str(file))
    size = saved["image_size"]
    if dataset is None:
        images = data.load(config.dataset, data_dir or config.data_dir, config.image_size)
        if images.fingerprint != saved["fingerprint"]:
            raise UserError(
                f"The data set {config.dataset} is not what {file} was trained on: it was changed since. Restore it, or "
                f"evaluate on it as on another data set, with --dataset {config.dataset}."
            )
    else:
        if split != "test":
            raise UserError(f"--split {split} is a part of the run's own data set; of {dataset}, take the test split.")
        images = data.load(dataset, data_dir or config.data_dir, size[0] if size[0] == size[1] else None)
    _check_classes(tuple(saved["classes"]), images.classes, config.dataset, images.name)

    with torch.random.fork_rng(devices=[]):  # fresh weights are drawn, and then replaced
        model = models.build(config.model, len(images.classes), config.stem)
    model.load_state_dict(saved["model"])
    model.to(target, memory_format=torch.channels_last)  # type: ignore[call-overload]
    set_precision(config.precision)
    if split == "test":
        part = DeviceSplit(images.test, target)
    else:
        train_part, val_part = data.split_train(images.train.labels, config.train_size, config.val_fraction)
        part = DeviceSplit(images.train, target, train_part if split == "train" else val_part)
        if not len(part):
            raise UserError(f"The run held out no images (--val-fraction 0), so there is no split 'val' in {file}.")
    outputs = predict(model, part.images, saved["mean"], saved["std"], autocast(config.precision, target))
    return to_floats(Classification(len(images.classes)).metrics(outputs, part.labels))


def _check_classes(trained: tuple[str, ...], found: tuple[str, ...], trained_on: str, name: str) -> None:
    if len(trained) != len(found):
        raise UserError(
            f"The run was trained on the {len(trained)} classes of {trained_on}, but {name} has {len(found)}. Evaluate on a "
            "data set with the same classes."
        )
    if trained != found:
        first = next(i for i in range(len(trained)) if trained[i] != found[i])
        raise UserError(
            f"The classes of {name} are not those that the run was trained on ({trained_on}): class {first} is "
            f"'{found[first]}' and was '{trained[first]}'. Give the class folders the same names."
        )
