"""Class folders in the layouts that people have: train and val without a test, and no split at all."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from small_runs import write_photos

import icpctl
from icpctl.data import ImageData, load
from icpctl.errors import UserError


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    write_photos(tmp_path / "photos")
    return tmp_path / "photos"


@pytest.fixture
def unsplit(photos: Path) -> Path:
    """Eight cats and eight dogs in two class folders."""
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (photos / name).mkdir(exist_ok=True)
            for file in (photos / split / name).iterdir():
                file.rename(photos / name / f"{split}{file.name}")
        shutil.rmtree(photos / split)
    return photos


def names(images: ImageData) -> tuple[int, int]:
    return len(images.train.labels), len(images.test.labels)


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_a_validation_folder_takes_the_place_of_a_missing_test_folder_and_that_is_said(name: str, photos: Path) -> None:
    before = load(f"folder:{photos}")
    (photos / "test").rename(photos / name)
    after = load(f"folder:{photos}")
    assert after.fingerprint == before.fingerprint
    assert f"There is no folder test: {name} takes its place." in after.summary()


def test_a_test_folder_goes_before_a_validation_folder(photos: Path) -> None:
    shutil.copytree(photos / "test", photos / "val")
    assert "Only train and test are used, not 'val' beside them." in load(f"folder:{photos}").summary()


def test_folders_that_are_not_split_are_split_always_the_same_and_that_is_said(unsplit: Path) -> None:
    images = load(f"folder:{unsplit}")
    assert images.classes == ("cat", "dog")
    assert names(images) == (13, 3)
    assert "80 % of the images of each class are for training, always the same ones (--split)" in images.summary()
    moved = unsplit.rename(unsplit.with_name("moved"))
    assert load(f"folder:{moved}").fingerprint == images.fingerprint
    half = load(f"folder:{moved}", split=0.5)
    assert names(half) == (8, 8)
    assert half.test.labels.tolist() == [0] * 4 + [1] * 4
    pixels = [image.tobytes() for part in (half.train, half.test) for image in part.images]
    assert len(set(pixels)) == 16  # each image is in one part


def test_a_share_is_part_of_the_run_and_is_trained_and_evaluated(unsplit: Path, tmp_path: Path) -> None:
    settings = {"dataset": f"folder:{unsplit}", "epochs": 1, "val_fraction": 0, "batch_size": 4, "steps": 1}
    one, other = (icpctl.RunConfig(**settings, split=share) for share in (None, 0.5))
    assert one.run_id != other.run_id
    run = icpctl.train(other, tmp_path)
    assert icpctl.evaluate(run.path)["accuracy"] == pytest.approx(
        run.metrics.query("split == 'test' and metric == 'accuracy'")["value"].item()
    )


def test_what_cannot_be_split_says_why(unsplit: Path, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"class 'cat' .* has 8 images, too few .* --split 0.99"):
        load(f"folder:{unsplit}", split=0.99)
    with pytest.raises(UserError, match="split is given, but digits is split already"):
        icpctl.RunConfig(dataset="digits", split=0.5)
    with pytest.raises(UserError, match=r"digits is split already\. Leave out --split"):
        load("digits", split=0.5)
    write_photos(tmp_path / "more")
    with pytest.raises(UserError, match=r"is split already, into train and test\. Leave out --split"):
        load(f"folder:{tmp_path / 'more'}", split=0.5)
    shutil.rmtree(tmp_path / "more" / "test")
    with pytest.raises(UserError, match=r"test' is missing, and so are val and valid.* or in CLASS/, not split"):
        load(f"folder:{tmp_path / 'more'}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"has no class folders.* or in CLASS/, not split"):
        load(f"folder:{tmp_path / 'empty'}")
