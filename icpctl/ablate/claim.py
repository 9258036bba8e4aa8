"""Who trains a run: a claim file in its folder, kept alive by a heartbeat, so that machines share a results folder.

A claim is made by creating the file, which succeeds for one process alone. Whose heartbeat has stopped, or whose
process is gone from this machine, has lost it: the next one takes the run over. All ages are by the clock of the file
system that holds the folder, so the clocks of the machines may differ.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

CLAIM_FILE = "claim.json"
HEARTBEAT = 5.0
"""Seconds between two signs of life."""
DEAD_AFTER = 60.0
"""Seconds without one after which a claimant on another machine counts as dead."""


class Claim:
    """The claim that this process has on a run; leaving the context gives it up.

    The file says who holds it and how far the run is; `progress` is written with each heartbeat.
    """

    def __init__(self, path: Path, owner: str) -> None:
        self.path, self.owner = path, owner
        self.progress: Mapping[str, Any] = {}
        self.lost = False
        """Whether another process has taken the run over, as this one was thought to be dead."""
        self._released = threading.Event()
        self._pulse = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    @classmethod
    def take(cls, folder: Path) -> Self | None:
        """Claim the run of a folder, which is made; None if a living process holds it.

        Raises:
            OSError: the folder cannot be written to.
        """
        folder.mkdir(parents=True, exist_ok=True)
        claim = cls(folder / CLAIM_FILE, uuid.uuid4().hex)
        while True:
            try:
                with claim.path.open("x", encoding="utf-8") as file:
                    file.write(claim._text())
                claim._pulse.start()
                return claim
            except FileExistsError:
                found = _read(claim.path)
                if _is_alive(claim.path, found):
                    return None
                claim._remove_dead(found)

    def _text(self) -> str:
        process = psutil.Process()
        who = {"owner": self.owner, "host": socket.gethostname(), "machine": _machine(), "pid": process.pid}
        return json.dumps(who | {"started": process.create_time(), "progress": self.progress})

    def _remove_dead(self, dead: dict[str, Any]) -> None:
        """Take the file of a dead claimant out of the way; of several who try, one does."""
        grave = self.path.with_name(f"{CLAIM_FILE}.{self.owner}")
        with suppress(FileNotFoundError):
            self.path.rename(grave)
            if _read(grave) != dead:  # another one was faster, and this is its claim: give it back
                with suppress(FileExistsError):
                    os.link(grave, self.path)
            grave.unlink()

    def _beat(self) -> None:
        while not self._released.wait(HEARTBEAT):
            if _read(self.path).get("owner") != self.owner:
                self.lost = True
                return
            with suppress(OSError):  # a full disk stops the run by itself
                os.utime(self.path)
                temporary = self.path.with_name(f"{CLAIM_FILE}.{self.owner}")
                temporary.write_text(self._text(), encoding="utf-8")
                temporary.replace(self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._released.set()
        self._pulse.join()
        if not self.lost and _read(self.path).get("owner") == self.owner:
            self.path.unlink(missing_ok=True)


def holder(folder: Path) -> dict[str, Any] | None:
    """What the claim on a run says of its living holder: host, pid, progress. None if nobody holds it."""
    claim = _read(folder / CLAIM_FILE)
    return claim if _is_alive(folder / CLAIM_FILE, claim) else None


def _is_alive(path: Path, claim: dict[str, Any]) -> bool:
    if claim.get("machine") == _machine():
        return _is_running(claim["pid"], claim["started"])
    try:
        return _age(path) < DEAD_AFTER
    except FileNotFoundError:
        return False


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # gone; or just created, and empty still
        return {}
    return content if isinstance(content, dict) else {}


def _is_running(pid: int, started: float) -> bool:
    try:
        process = psutil.Process(pid)
        same = abs(process.create_time() - started) < 1
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def _age(path: Path) -> float:
    """Seconds since the last heartbeat, by the clock of the file system."""
    beat = path.stat().st_mtime
    probe = path.with_name(f"{CLAIM_FILE}.{uuid.uuid4().hex}")
    try:
        probe.touch()
        return probe.stat().st_mtime - beat
    finally:
        probe.unlink(missing_ok=True)


def _machine() -> str:
    """Where a process id means the same process: this boot of this host, this container."""
    parts = [socket.gethostname()]
    for file in (Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")):
        with suppress(OSError):
            parts.append(str(file.readlink()) if file.is_symlink() else file.read_text().strip())
    return " ".join(parts)
