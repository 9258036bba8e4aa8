"""Hugging Face data sets: saved ones, parquet files, and those of the hub as far as that goes without a network."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import icpctl
from icpctl.config import RunConfig, resolve, short_name
from icpctl.data import ImageData, check_name, huggingface, load
from icpctl.data.download import no_downloads
from icpctl.errors import UserError
from icpctl.training.evaluation import evaluate

datasets = pytest.importorskip("datasets")

CLASSES = ["cat", "ant"]
LABELS = {"train": [0, 1, 1, 0, 1, 0], "test": [1, 0]}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))
    huggingface._from_hub.cache_clear()
    return tmp_path


def png(number: int, mode: str = "RGBA", size: tuple[int, int] = (8, 8)) -> bytes:
    content = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(content, "png")
    return content.getvalue()


def table(split: str = "train", labels: list[Any] | None = None, **more: list[Any]) -> Any:
    """Images that differ, with transparent pixels, which have a rule of their own."""
    labels = LABELS[split] if labels is None else labels
    images = [{"bytes": png(100 * len(split) + i), "path": None} for i in range(len(labels))]
    made = datasets.Dataset.from_dict({"picture": images, "kind": labels, **more})
    return made.cast_column("picture", datasets.Image()).cast_column("kind", datasets.ClassLabel(names=CLASSES))


def plain(split: str, labels: list[Any], **more: list[Any]) -> Any:
    """The same with labels of no declared class."""
    images = [png(100 * len(split) + i) for i in range(len(labels))]
    return datasets.Dataset.from_dict({"picture": images, "kind": labels, **more})


def save(root: Path, **splits: Any) -> str:
    datasets.DatasetDict(splits or {"train": table(), "test": table("test")}).save_to_disk(str(root))
    return f"hf:{root}"


def in_class_folders(root: Path) -> str:
    for split, labels in LABELS.items():
        for i, label in enumerate(labels):
            file = root / split / CLASSES[label] / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(png(100 * len(split) + i))
    return f"folder:{root}"


def saved(root: Path) -> str:
    return save(root)


def parquet_folder(root: Path) -> str:
    (root / "data [1]").mkdir(parents=True)
    table().select(range(4)).to_parquet(root / "data [1]/train-00000-of-00002.parquet")
    table().select([4, 5]).to_parquet(root / "data [1]/train-00001-of-00002.parquet")
    table("test").to_parquet(root / "data [1]/test-00000-of-00001.parquet")
    (root / "README.md").write_text("train")
    return f"hf:{root}"


def one_file(root: Path) -> str:
    tables = [t.to_pandas().assign(split=split) for split, t in (("test", table("test")), ("train", table()))]
    features = datasets.Features(table().features | {"split": datasets.Value("string")})
    root.mkdir()
    whole = datasets.concatenate_datasets([datasets.Dataset.from_pandas(t, features=features) for t in tables])
    whole.to_parquet(root / "all.parquet")
    return f"hf:{root}/all.parquet"


def pairs(data: ImageData) -> set[tuple[str, str, bytes]]:
    splits = (("train", data.train), ("test", data.test))
    return {
        (name, data.classes[label], image.tobytes())
        for name, split in splits
        for image, label in zip(split.images, split.labels, strict=True)
    }


def message(name: str, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        load(name, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("write", [saved, parquet_folder, one_file])
def test_the_images_are_those_of_class_folders(
    tmp_path: Path, write: Callable[[Path], str], capfd: pytest.CaptureFixture[str]
) -> None:
    name = write(tmp_path / "data")
    capfd.readouterr()  # of the package, when it writes
    data = load(name)
    assert capfd.readouterr() == ("", "")
    assert data.classes == tuple(CLASSES)  # as declared
    assert list(data.train.labels) == LABELS["train"]
    assert list(data.test.labels) == LABELS["test"]
    assert pairs(data) == pairs(load(in_class_folders(tmp_path / "folders")))
    assert data.notes == ()


def test_an_image_of_any_depth_and_size(tmp_path: Path) -> None:
    deep = io.BytesIO()
    Image.fromarray(np.full((8, 8), 257 * 100, np.uint16)).save(deep, "png")
    images = [deep.getvalue(), png(1, "RGB", (12, 9)), png(2, "1"), png(3, "P")]
    train = datasets.Dataset.from_dict({"image": images, "label": [0, 1, 0, 1]})
    name = save(tmp_path / "data", train=train, test=train)
    assert "--image-size" in message(name)
    assert (load(name, image_size=8).train.images[0] == 100).all()


def test_labels_of_no_declared_class(tmp_path: Path) -> None:
    name = save(tmp_path / "n", train=plain("train", [10, 9, 10, 9]), test=plain("test", [9, 10]))
    data = load(name)
    assert (data.classes, list(data.train.labels)) == (("9", "10"), [1, 0, 1, 0])
    name = save(tmp_path / "s", train=plain("train", ["b", "a"]), test=plain("test", ["a", "b", "a"]))
    data = load(name)
    assert (data.classes, list(data.test.labels)) == (("a", "b"), [0, 1, 0])
    name = save(tmp_path / "d", train=plain("train", ["b", "a"]), test=plain("test", ["a", "c"]))
    assert "test/ lacks 'b'. train/ lacks 'c'." in message(name)


def test_classes_in_another_order_are_the_same_classes(tmp_path: Path) -> None:
    turned = table("test").cast_column("kind", datasets.ClassLabel(names=CLASSES[::-1]))
    data = load(save(tmp_path / "data", train=table(), test=turned))
    assert list(data.test.labels) == [1 - label for label in LABELS["test"]]


def test_columns_are_found_or_named(tmp_path: Path) -> None:
    more: dict[str, Any] = {"id": [1, 2], "file": ["a", "b"], "mask": [png(8), png(9)]}
    name = save(tmp_path / "a", train=table(labels=[0, 1], **more), test=table("test", **more))
    load(name)  # of the types Image and ClassLabel there are one each
    assert load(name, columns="mask,id").classes == ("1", "2")
    assert not np.array_equal(load(name, columns="mask,kind").train.images, load(name).train.images)
    assert "no column 'x'. The columns are 'picture' (Image), 'kind' (ClassLabel), 'id' (integer)" in message(
        name, columns="x,kind"
    )
    assert "no images in the column 'id'" in message(name, columns="id,kind")
    assert "Write the names of two columns" in message(name, columns="mask")
    name = save(tmp_path / "b", train=plain("train", [0, 1], **more), test=plain("test", [0, 1], **more))
    found = message(name)
    assert "several columns that can be the images" in found
    assert "'mask' (binary). Name the two with --columns IMAGE,LABEL." in found
    load(name, columns=" mask , kind")
    lone = datasets.Dataset.from_dict({"text": ["a", "b"]})
    assert "no column that can be the images" in message(save(tmp_path / "c", train=lone, test=lone))


def test_splits(tmp_path: Path) -> None:
    test = table("test")
    data = load(save(tmp_path / "a", train=table(), validation=test, extra=test))
    assert data.notes == (
        "There is no split test: validation takes its place.",
        "Only train and validation are used, not 'extra' beside them.",
    )
    assert load(save(tmp_path / "a", train=table(), validation=test, extra=test)).notes == data.notes  # of the cache
    unlabelled = table("test", labels=[-1, -1, -1])
    data = load(save(tmp_path / "b", train=table(), validation=test, test=unlabelled))
    assert data.notes[0] == "The split test has no labels: validation takes its place."
    assert len(data.test.labels) == 2
    found = message(save(tmp_path / "c", train=table(), other=test))
    assert "lacks the split test or validation. There is: 'train' (6 rows), 'other' (2 rows)." in found
    table().save_to_disk(str(tmp_path / "d"))
    assert "A single table can have it in a column 'split'" in message(f"hf:{tmp_path}/d")


@pytest.mark.parametrize("none", [None, -1])
def test_rows_without_a_label_or_an_image_are_counted(tmp_path: Path, none: int | None) -> None:
    test = table("test")
    name = save(tmp_path / "a", train=table(labels=[0, none, none, 1]), test=test)
    found = message(name)
    assert f"2 of the 4 rows of the split train of {name} have no label" in found
    assert "row 1 (from 0)" in found
    name = save(tmp_path / "b", train=plain("train", [0, 1, none]), test=plain("test", [0, 1]))
    assert "1 of the 3 rows" in message(name)


def test_rows_whose_image_is_missing_or_damaged(tmp_path: Path) -> None:
    def changed(value: object) -> str:
        columns = table().to_dict()
        columns["picture"][4] = value
        train = datasets.Dataset.from_dict(columns, features=table().features)
        return message(save(tmp_path / str(len(list(tmp_path.iterdir()))), train=train, test=table("test")))

    assert "1 of the 6 rows of the split train" in changed(None)
    assert "Cannot read the image 'row 4 (from 0) of the split train of hf:" in changed(
        {"bytes": png(1)[:60], "path": None}
    )
    (tmp_path / "x.png").write_bytes(png(1))
    by_path = pa.table({"picture": [{"bytes": None, "path": str(tmp_path / "x.png")}] * 2, "kind": [0, 1]})
    (tmp_path / "p").mkdir()
    for split in ("train", "test"):
        pq.write_table(by_path, tmp_path / f"p/{split}.parquet")
    assert "has no bytes of an image" in message(f"hf:{tmp_path}/p")


def test_a_change_on_the_disk_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = save(tmp_path / "data")
    before = load(name)
    with monkeypatch.context() as without:  # the package is not needed for what was decoded before
        without.setitem(sys.modules, "datasets", None)
        assert load(name).fingerprint == before.fingerprint
    for labels in ([0, 1], [1, 0]):
        save(tmp_path / "data", train=table(), test=table("test", labels=labels))
        assert list(load(name).test.labels) == labels
    assert load(name).fingerprint == before.fingerprint


def test_a_parquet_file_of_the_same_size_and_time_is_read_anew(tmp_path: Path) -> None:
    name = parquet_folder(tmp_path / "data")
    before = load(name)
    file = tmp_path / "data/data [1]/test-00000-of-00001.parquet"
    status = file.stat()
    table("test", labels=[0, 1]).to_parquet(file)
    assert file.stat().st_size == status.st_size
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert list(load(name).test.labels) == [0, 1]
    assert list(before.test.labels) == [1, 0]


@pytest.mark.parametrize(
    "name", ["hf:", "hf:mnist", "hf:a/b/c/d", "hf:a//b", "hf:a/b c", "hf:-a/b", "hf:a/b/", "hf:ä/b"]
)
def test_names_that_can_be_none(name: str) -> None:
    with pytest.raises(UserError, match=r"Write hf:OWNER/NAME.*hf:\./PATH"):
        check_name(name)


def test_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("hf:ylecun/mnist", "hf:a/b.c-d/config_1", "hf:./x", "hf:/x", "hf:~/x", "hf:../x"):
        check_name(name)
    names = {resolve({"dataset": name}).dataset for name in ("hf:./x", "hf:~/x", f"hf:{tmp_path}/y/../x", " hf: ./x")}
    assert names == {f"hf:{tmp_path}/x"}
    assert resolve({"dataset": "hf:a/b"}).dataset == "hf:a/b"
    assert [short_name(name) for name in ("hf:/a/b", "hf:a/b", "folder:/a/b", "cub")] == [
        "hf:b",
        "hf:a/b",
        "folder:b",
        "cub",
    ]
    assert resolve({"dataset": "hf:a/b/c.d"}).run_id.startswith("resnet20-hf-a-b-c-d-ademamix-T5-s0-")
    Path("a/b").mkdir(parents=True)
    assert "'a/b' is also a path here. Write hf:./a/b" in message("hf:a/b")
    assert "neither a folder that save_to_disk wrote" in message("hf:./a/b")
    assert "hf:OWNER/NAME for a data set of the hub" in message("hf:./nowhere")


def test_columns_are_part_of_what_a_run_is() -> None:
    found, named = (resolve({"dataset": "hf:a/b", "columns": c}) for c in (None, "x,y"))
    assert found.run_id != named.run_id
    assert found.run_id == RunConfig.recorded({k: v for k, v in found.model_dump().items() if k != "columns"}).run_id
    with pytest.raises(UserError, match="only the data sets hf:… have them"):
        resolve({"dataset": "cifar10", "columns": "x,y"})
    with pytest.raises(UserError, match="Leave out --columns"):
        load("digits", columns="x,y")
    with pytest.raises(UserError, match="--columns got 'x'"):
        resolve({"dataset": "hf:a/b", "columns": "x"})


@pytest.mark.parametrize("file", ["train/data-00000-of-00001.arrow", "train/dataset_info.json", "dataset_dict.json"])
def test_damaged_saved_data(tmp_path: Path, file: str) -> None:
    name = save(tmp_path / "data")
    (tmp_path / "data" / file).write_bytes(b"{")
    assert "Cannot read the Hugging Face data set at" in message(name)


def test_damaged_parquet(tmp_path: Path) -> None:
    name = parquet_folder(tmp_path / "data")
    file = next((tmp_path / "data").rglob("train-00001*"))
    file.write_bytes(file.read_bytes()[:-50])
    found = message(name)
    assert "Parquet" in found
    assert found.endswith("Replace it by a complete copy.")


def test_the_package_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = save(tmp_path / "data")
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "pip install 'icpctl[hf]'" in message(name)


def test_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []

    def load_dataset(*args: str) -> Any:
        calls.append((*args, datasets.config.HF_HUB_OFFLINE))
        return {"train": table(), "test": in_files}

    pictures = [{"bytes": None, "path": str(tmp_path / f"{i}.png")} for i in range(2)]
    for i, picture in enumerate(pictures):
        Path(str(picture["path"])).write_bytes(png(400 + i))
    in_files = table("test").remove_columns("picture").add_column("picture", pictures, feature=datasets.Image())

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.chdir(tmp_path)
    data = load("hf:a/b/c")
    assert pairs(data) == pairs(load(in_class_folders(tmp_path / "folders")))
    assert load("hf:a/b/c").fingerprint == data.fingerprint
    assert calls == [("a/b", "c", False)]  # the hub is asked once
    with no_downloads():
        load("hf:a/b")
    assert calls[1:] == [("a/b", True)]
    assert datasets.config.HF_HUB_OFFLINE is False


def test_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    with no_downloads():
        found = message("hf:nobody/nothing")
    assert found.startswith("Cannot load the data set nobody/nothing from the Hugging Face hub: Couldn't reach")
    assert "`hf auth login`" in found
    assert capfd.readouterr() == ("", "")


def test_train_and_eval(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    more: dict[str, Any] = {"id": [0, 1] * 8}
    name = save(tmp_path / "data", train=plain("train", [0, 1] * 8, **more), test=plain("test", [1, 0], id=[0, 1]))
    capfd.readouterr()
    settings = {"dataset": name, "columns": "picture,kind", "optimizer": "none", "epochs": 1, "batch_size": 4}
    run = icpctl.train(resolve(settings), tmp_path / "results")
    assert run.path.name.startswith("resnet20-hf-data-none-s0-")
    metrics = evaluate(run.path)
    assert metrics["accuracy"] == run.metrics.query("split == 'test' and metric == 'accuracy'")["value"].iloc[-1]
    assert evaluate(run.path, name) == metrics  # with the columns of the run
    assert evaluate(run.path, name, columns="picture,id")["accuracy"] == 1 - metrics["accuracy"]
    with pytest.raises(UserError, match="--dataset names"):
        evaluate(run.path, columns="picture,id")
    assert capfd.readouterr().err == ""
