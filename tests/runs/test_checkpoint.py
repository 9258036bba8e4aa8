"""Checkpoints that are damaged, foreign or cut short, and a disk that fills up while one is written."""

from __future__ import annotations

import errno
import os
import pickle
import random
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from checkpoints import MakesFolder, checkpoint_entries

from icpctl.errors import UserError
from icpctl.runs import checkpoint


def save(folder: Path, name: str, **entries: Any) -> None:
    checkpoint.save(folder, name, checkpoint_entries(**entries))


def weight(value: float, size: int = 2) -> dict[str, torch.Tensor]:
    return {"w": torch.full((size,), float(value))}


def test_what_is_saved_is_loaded_and_the_one_before_is_kept(tmp_path: Path) -> None:
    for i in range(3):
        save(tmp_path, "last", model=weight(i))
    assert torch.equal(checkpoint.load(tmp_path / "last.pt")["model"]["w"], torch.full((2,), 2.0))
    assert torch.equal(checkpoint.load(tmp_path / "previous.pt")["model"]["w"], torch.full((2,), 1.0))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["last.pt", "previous.pt"]


def test_the_one_before_is_kept_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_links(source: Path, target: Path) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", without_links)
    for i in range(2):
        save(tmp_path, "last", model=weight(i))
    assert float(checkpoint.load(tmp_path / "previous.pt")["model"]["w"][0]) == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["last.pt", "previous.pt"]


def test_a_save_after_one_that_was_killed_half_way_leaves_nothing_beside_it(tmp_path: Path) -> None:
    """Killed when `previous` was the last one already, under a second name, and the new one was not there yet."""
    save(tmp_path, "last", model=weight(0))
    os.link(tmp_path / "last.pt", tmp_path / "previous.pt")
    save(tmp_path, "last", model=weight(1))
    assert float(checkpoint.load(tmp_path / "previous.pt")["model"]["w"][0]) == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["last.pt", "previous.pt"]


def test_a_truncated_file_falls_back(tmp_path: Path) -> None:
    for i in range(2):
        save(tmp_path, "last", model=weight(i))
    last = tmp_path / "last.pt"
    whole, before = last.read_bytes(), (tmp_path / "previous.pt").read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        last.write_bytes(whole[:length])
        (tmp_path / "previous.pt").write_bytes(before)
        content, faults = checkpoint.load_last(tmp_path)
        assert content is not None
        assert float(content["model"]["w"][0]) == 0
        assert "last.pt" in faults[0]
        assert last.read_bytes() == before  # so that the next save does not put the damaged one in its place


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    save(tmp_path, "last", model=weight(1, 10_000))
    path = tmp_path / "last.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="checksum"):
        checkpoint.load(path)


def directory_bits(content: bytes) -> list[int]:
    """All bits of the zip archive's directory, where nothing but its reader finds damage."""
    return list(range(8 * content.index(b"PK\x01\x02"), 8 * len(content)))


def test_no_flipped_bit_gives_other_weights_or_an_error_that_is_not_in_words(tmp_path: Path) -> None:
    """Among them the compression method of an entry, and the attribute by which torch would take one for a folder."""
    save(tmp_path, "last", model=weight(1), best={"epoch": 1, "value": 0.5})
    path, damaged = tmp_path / "last.pt", tmp_path / "damaged.pt"
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        entry = 8 * archive.start_dir
    drawn = random.Random(13)
    bits = {entry + 8 * 10 + 3, entry + 8 * 38 + 4, *drawn.sample(range(8 * len(content)), 150)}
    for bit in bits | set(drawn.sample(directory_bits(content), 350)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        damaged.write_bytes(flipped)
        try:
            found = checkpoint.load(damaged)
        except UserError:
            continue
        assert torch.equal(found["model"]["w"], torch.ones(2)), bit
        assert found["best"] == {"epoch": 1, "value": 0.5}, bit


def test_an_entry_that_torch_would_take_for_a_folder_is_damage(tmp_path: Path) -> None:
    save(tmp_path, "last", model=weight(1))
    path = tmp_path / "last.pt"
    content = path.read_bytes()
    for match in range(content.count(b"PK\x01\x02")):
        start = [i for i in range(len(content)) if content.startswith(b"PK\x01\x02", i)][match]
        flipped = bytearray(content)
        flipped[start + 38] ^= 0x10
        path.write_bytes(flipped)
        with pytest.raises(UserError, match="damaged"):
            checkpoint.load(path)


@pytest.mark.parametrize(
    "entries",
    [
        {"model": 5},
        {"model": {"w": [1.0]}},
        {"classes": 5},
        {"classes": []},
        {"classes": [1, 2]},
        {"mean": 5},
        {"mean": torch.zeros(7)},
        {"std": torch.zeros(3, 1, 1, dtype=torch.int64)},
        {"image_size": 5},
        {"image_size": [1, 2, 3]},
        {"image_size": [0, 8]},
        {"config": None},
        {"config": {1: 2}},
        {"fingerprint": None},
        {"epoch": -1},
        {"epoch": "1"},
        {"batch": 0.5},
        {"best": {"epoch": 1}},
        {"best": []},
        {"meter": {"sums": 5}},
        {"meter": {"sums": {}, "counts": {"loss": 0}, "records": [], "first_bad": None}},
        {"seconds": float("nan")},
        {"rows": "many"},
        {"optimizer": None},
        {"optimizer": {"state": {"x": 1}, "param_groups": []}},
        {"icp_state": []},
    ],
    ids=str,
)
def test_an_entry_of_another_type_or_shape_is_named(tmp_path: Path, entries: dict[str, Any]) -> None:
    save(tmp_path, "last", **entries)
    with pytest.raises(UserError, match=rf"last\.pt is damaged: its entry '{next(iter(entries))}"):
        checkpoint.load(tmp_path / "last.pt")


def test_where_memory_runs_out_nothing_is_taken_for_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(2):
        save(tmp_path, "last", model=weight(i))
    before = (tmp_path / "last.pt").read_bytes()

    def hungry(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(torch, "load", hungry)
    with pytest.raises(torch.OutOfMemoryError):
        checkpoint.load_last(tmp_path)
    assert (tmp_path / "last.pt").read_bytes() == before


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "last.pt")
    with pytest.raises(UserError, match="no file"):
        checkpoint.load_last(tmp_path)


def test_models_that_ask_for_the_versions_of_their_layers_can_be_restored(tmp_path: Path) -> None:
    model = torchvision.models.mnasnet0_5(num_classes=2)
    save(tmp_path, "last", model=model.state_dict())
    saved = checkpoint.load(tmp_path / "last.pt")
    again = torchvision.models.mnasnet0_5(num_classes=2)
    again.load_state_dict(checkpoint.weights_of(saved, again))
    assert torch.equal(again.state_dict()["layers.0.weight"], model.state_dict()["layers.0.weight"])


def test_foreign_files_are_refused_and_run_no_code(tmp_path: Path) -> None:
    evil = MakesFolder(tmp_path / "was here")
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps(evil))
    torch.save(evil, tmp_path / "evil.pt")
    torch.save({"state_dict": {}}, tmp_path / "other.pt")
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    for name in ("text", "pickle", "evil", "other", "tensor", "missing"):
        with pytest.raises(UserError, match=name):
            checkpoint.load(tmp_path / f"{name}.pt")
    assert not (tmp_path / "was here").exists()


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, "last", model=weight(0))

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="disk is full"):
        save(tmp_path, "last", model=weight(1))
    assert float(checkpoint.load(tmp_path / "last.pt")["model"]["w"][0]) == 0
    assert not list(tmp_path.glob("*.tmp"))
