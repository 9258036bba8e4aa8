"""Checkpoints that are damaged, foreign or cut short, and a disk that fills up while one is written."""

from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path

import pytest
import torch

from icpctl import checkpoint
from icpctl.errors import UserError


def save(folder: Path, name: str, content: dict[str, object]) -> None:
    checkpoint.save(folder, name, dict.fromkeys(checkpoint.KEYS) | content)


def test_what_is_saved_is_loaded_and_the_one_before_is_kept(tmp_path: Path) -> None:
    for i in range(3):
        save(tmp_path, "last", {"value": torch.full((2,), i)})
    assert torch.equal(checkpoint.load(tmp_path / "last.pt")["value"], torch.full((2,), 2))
    assert torch.equal(checkpoint.load(tmp_path / "previous.pt")["value"], torch.full((2,), 1))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["last.pt", "previous.pt"]


def test_a_truncated_file_falls_back(tmp_path: Path) -> None:
    for i in range(2):
        save(tmp_path, "last", {"value": torch.full((2,), i)})
    last = tmp_path / "last.pt"
    whole, before = last.read_bytes(), (tmp_path / "previous.pt").read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        last.write_bytes(whole[:length])
        (tmp_path / "previous.pt").write_bytes(before)
        content, faults = checkpoint.load_last(tmp_path)
        assert content is not None
        assert int(content["value"][0]) == 0
        assert "last.pt" in faults[0]
        assert last.read_bytes() == before  # so that the next save does not put the damaged one in its place


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    save(tmp_path, "last", {"value": torch.arange(10_000.0)})
    path = tmp_path / "last.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="checksum"):
        checkpoint.load(path)


def test_foreign_files_are_refused_and_run_no_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "was here"),)

    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps(Evil()))
    torch.save(Evil(), tmp_path / "evil.pt")
    torch.save({"state_dict": {}}, tmp_path / "other.pt")
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    for name in ("text", "pickle", "evil", "other", "tensor", "missing"):
        with pytest.raises(UserError, match=name):
            checkpoint.load(tmp_path / f"{name}.pt")
    assert not (tmp_path / "was here").exists()


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, "last", {"value": torch.zeros(1)})

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="disk is full"):
        save(tmp_path, "last", {"value": torch.ones(1)})
    assert float(checkpoint.load(tmp_path / "last.pt")["value"]) == 0
    assert not list(tmp_path.glob("*.tmp"))
