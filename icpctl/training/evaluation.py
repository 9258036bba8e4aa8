"""Evaluate a trained run: its own data set, or another one of the same kind."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

from icpctl import data, tasks
from icpctl.config import located
from icpctl.data.streaming import choose_split
from icpctl.errors import UserError
from icpctl.models.network import load_trained, set_precision
from icpctl.runs.fingerprints import data_source

SPLITS = ("train", "val", "test")


def evaluate(
    path: str | Path,
    dataset: str | None = None,
    *,
    columns: str | None = None,
    split: str = "test",
    which: str = "last",
    samples: int | None = None,
    fid_weights: Path | None = None,
    fid_features: Path | None = None,
    data_dir: Path | None = None,
    data_memory: float | None = None,
    device: str = "auto",
    robustness: bool = False,
    say: Callable[[str], None] = lambda message: None,
    warn: Callable[[str], None] = warnings.warn,
) -> dict[str, float]:
    """Measure a trained network on a split of a data set.

    Args:
        path: a run folder, or a checkpoint file.
        dataset: another data set than the one it was trained on; its images are resized to the size of the training's.
        columns: IMAGE,LABEL of that data set, of Hugging Face; those of the run if it is the run's own.
        split: test; or train or val (the held-out part) of the run's own data set.
        which: last or best, for a run folder.
        samples: images that a generative model draws for FID and KID; as many as the split has by default.
        fid_weights: file with the Inception weights for FID and KID; the run's own setting by default.
        fid_features: folder of a classifier's run whose features take Inception's place; the run's own setting by default.
        data_dir: where the data sets are; the run's own setting by default.
        data_memory: GiB that the images may take on the device, beyond which they are streamed from the disk; the run's
            own setting by default.
        device: cpu, cuda, cuda:N or auto.
        robustness: whether a classifier's accuracy on attacked, noisy and blurred images is measured too.
        say: told what takes long.
        warn: told which metrics are missing or not to be trusted, and why.

    Returns:
        Metrics by name; fractions in [0, 1].

    Raises:
        UserError: no such run or split, a checkpoint that cannot be read, data that changed, classes that do not match,
            fewer than 2 samples, weights or a classifier for FID that are not what they should be.
    """
    if split not in SPLITS:
        raise UserError(f"There is no split '{split}'. It can be one of: {', '.join(SPLITS)}.")
    trained = load_trained(path, which, device)
    config = trained.config
    if trained.code_change:
        warn(f"{trained.code_change} The figures are those of its weights in today's code.")
    if data_dir is not None:
        config = config.model_copy(update={"data_dir": data_dir})
    if data_memory is not None:
        config = config.altered(data_memory=data_memory)
    if fid_weights or fid_features:  # in the place of the run's own, of whichever kind
        config = config.altered(fid_weights=fid_weights, fid_features=fid_features)
    if samples is not None and samples < 2:
        raise UserError(f"{samples} samples cannot be compared with anything. Draw 2 or more.")
    if config.task != "generation" and (samples, fid_weights, fid_features) != (None, None, None):
        raise UserError(
            f"{trained.file} is of the classifier {config.model}: --samples, --fid-weights and --fid-features are for runs of "
            "the VAE. Leave them out."
        )
    if robustness and config.task != "classification":
        raise UserError(
            f"{trained.file} is of the model {config.model}: --robustness is for classifiers. Leave it out."
        )
    config = config.altered(robustness=robustness)
    if columns and dataset is None:
        raise UserError("--columns is about another data set, which --dataset names. Give that too.")
    if dataset is None:
        images = data.load(*data_source(config))
        if images.fingerprint != trained.fingerprint:
            raise UserError(
                f"The data set {config.dataset} is not what {trained.file} was trained on: it was changed since. Restore "
                f"it, or evaluate on it as on another data set, with --dataset {config.dataset}."
            )
    else:
        if split != "test":
            raise UserError(f"--split {split} is a part of the run's own data set; of {dataset}, take the test split.")
        height, width = trained.image_size
        own = located(dataset) == config.dataset
        crop, columns = (config.crop, columns or config.columns) if own else ("none", columns)
        share = config.split if own else None
        images = data.load(dataset, config.data_dir, height if height == width else None, crop, columns, share)
    task, images = tasks.build(config, images, samples)
    if fid_weights or fid_features:
        task.check()
    _check_classes(trained.classes, images.classes, config.dataset, images.name)

    set_precision(config.precision)
    target = trained.network.device
    source, indices = images.test, np.arange(len(images.test.labels))
    if split != "test":
        train_part, val_part = data.split_train(
            images.train.labels, config.train_size, config.val_fraction, images.classes
        )
        source, indices = images.train, train_part if split == "train" else val_part
    if not len(indices):
        raise UserError(f"The run held out no images (--val-fraction 0), so there is no split 'val' in {trained.file}.")
    needed = len(indices) * source.images[0].nbytes
    part = choose_split(needed, target, config.data_memory, say)(source, target, indices)
    return task.evaluate(trained.network, part) | task.evaluate_last(trained.network, part, say, warn, lambda: None)


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
