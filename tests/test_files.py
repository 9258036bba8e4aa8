"""Files that are written whole or not at all, whoever else writes to the folder."""

from __future__ import annotations

import errno
import multiprocessing
import os
import stat
from pathlib import Path

import pytest

from icpctl.errors import UserError
from icpctl.files import LEFTOVER_AGE, locked, not_writable, write_atomic


def test_who_reads_a_file_while_it_is_replaced_sees_the_old_one(tmp_path: Path) -> None:
    file = tmp_path / "status.json"
    write_atomic(file, b"old")
    with file.open("rb") as reader:
        write_atomic(file, b"new")
        assert reader.read() == b"old"
    assert file.read_bytes() == b"new"


@pytest.mark.parametrize(
    ("number", "said"),
    [(errno.ENOSPC, "disk is full"), (errno.EFBIG, "too large.*ulimit -f"), (errno.EIO, "Cannot write")],
)
def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, said: str
) -> None:
    file = tmp_path / "status.json"
    write_atomic(file, b"old")

    def fail(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UserError, match=said):
        write_atomic(file, b"new and longer")
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_folder_that_was_never_there_is_not_said_to_be_gone(tmp_path: Path) -> None:
    """/proc has no room for a folder, and says ENOENT, as one does that was removed."""
    with pytest.raises(UserError, match=r"its folder is gone.*Bring it back"):
        write_atomic(tmp_path / "removed" / "status.json", b"new")
    for make in (lambda: Path("/proc/nowhere/run").mkdir(parents=True), lambda: Path("/proc/nowhere").write_text("")):
        with pytest.raises(FileNotFoundError) as failed:
            make()
        message = str(not_writable(Path("/proc/nowhere/run"), failed.value))
        assert "/proc/nowhere cannot be made there. Take another results folder" in message
        assert "gone" not in message


def test_links_are_not_written_through(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_text("precious")
    results = tmp_path / "results"
    results.mkdir()
    (results / "report.html").symlink_to(mine)
    (results / "report.html.tmp").symlink_to(mine)  # a name that could be foreseen once
    write_atomic(results / "report.html", b"new")
    assert mine.read_text() == "precious"
    assert not (results / "report.html").is_symlink()
    assert (results / "report.html").read_bytes() == b"new"


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_a_file_has_the_permissions_of_any_new_file(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        write_atomic(tmp_path / "file", b"content")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode


def test_what_killed_writers_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    old, new, other = (tmp_path / f"{name}.tmp" for name in ("." + "0" * 32, "." + "1" * 32, "notes"))
    for file in (old, new, other):
        file.write_text("")
    for file in (old, other):
        os.utime(file, (1, new.stat().st_mtime - 2 * LEFTOVER_AGE))
    write_atomic(tmp_path / "file", b"content")
    assert sorted(tmp_path.iterdir()) == sorted([new, other, tmp_path / "file"])


def _write_often(file: Path, content: bytes) -> None:
    for _ in range(50):
        write_atomic(file, content)


def test_two_processes_write_one_file_at_the_same_time(tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    fork = multiprocessing.get_context("spawn")
    writers = [fork.Process(target=_write_often, args=(file, bytes([letter]) * 10_000)) for letter in b"ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert file.read_bytes() in (b"a" * 10_000, b"b" * 10_000)
    assert list(tmp_path.iterdir()) == [file]


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "file", b"content")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_gone_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="its folder is gone"):
        write_atomic(tmp_path / "results" / "status.json", b"")


def test_a_lock_that_is_a_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / ".lock").mkdir()
    with pytest.raises(UserError, match=r"Cannot write .*\.lock"), locked(tmp_path / ".lock"):
        pass
