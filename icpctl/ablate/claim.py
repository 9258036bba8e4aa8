"""Who trains a run: a claim file in its folder, kept alive by a heartbeat, so that machines share a results folder.

A claim is made by giving a written file its name, which succeeds for one process alone. Whose heartbeat has stopped, or
whose process is gone from this machine, has lost it: the next one takes the run over. All ages are by the clock of the
file system that holds the folder, so the clocks of the machines may differ. A claim that says something else than one of
icpctl would is nobody's, and has its age alone.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Self

import psutil
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from icpctl.files import read_json, write_beside

CLAIM_FILE = "claim.json"
HEARTBEAT = 5.0
"""Seconds between two signs of life."""
DEAD_AFTER = 60.0
"""Seconds without one after which a claimant on another machine counts as dead."""


class ClaimLostError(BaseException):
    """Another process has taken the run over: nothing of this one may be written any more, not even that it stopped."""


class Claim:
    """The claim that this process has on a run; leaving the context gives it up.

    The file says who holds it and how far the run is; `progress` is written with each heartbeat.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.owner = path, uuid.uuid4().hex
        self.progress: Mapping[str, Any] = {}
        self._lost = False
        self._beaten = time.time()
        self._released = threading.Event()
        self._pulse = threading.Thread(target=self._beat_on, name="heartbeat", daemon=True)

    @classmethod
    def take(cls, folder: Path) -> Self | None:
        """Claim the run of a folder, which is made; None if a living process holds it.

        Raises:
            OSError: the folder cannot be written to.
        """
        folder.mkdir(parents=True, exist_ok=True)
        claim = cls(folder / CLAIM_FILE)
        while not claim._create(claim.path):
            found = read_claim(folder)
            if _is_alive(claim.path, found) or claim._take_over(found):
                break
        if read_claim(folder).get("owner") != claim.owner:
            return None
        claim._pulse.start()
        return claim

    def check(self) -> None:
        """To be called before anything is written.

        Raises:
            ClaimLostError: another process was told that this one is dead, as after a long sleep of the machine.
        """
        if time.time() - self._beaten > 2 * HEARTBEAT:
            self._beat()
        if self._lost:
            raise ClaimLostError

    def _create(self, path: Path) -> bool:
        """Write the claim to a file that is not there yet, whole; whether this process was the one to do so."""
        temporary = write_beside(path, self._text().encode())
        try:
            try:
                os.link(temporary, path)
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
                    raise
                with path.open("x", encoding="utf-8") as file:  # a file system without hard links
                    file.write(self._text())
        except FileExistsError:
            return False
        finally:
            temporary.unlink(missing_ok=True)
        return True

    def _text(self) -> str:
        process = psutil.Process()
        who = {"owner": self.owner, "host": socket.gethostname(), "machine": _machine(), "pid": process.pid}
        return json.dumps(who | {"started": process.create_time(), "progress": self.progress})

    def _take_over(self, dead: dict[str, Any]) -> bool:
        """Put this claim in the place of a dead one, unless another process is doing so or has done it.

        The right to it is a file named after the dead one's owner: one process at a time has it, and it looks again
        before it acts. So a claim that has just taken the place of the dead one is never taken for it.
        """
        right = self.path.with_name(f"{CLAIM_FILE}.after.{dead.get('owner', 'nobody')}")
        if not self._create(right):
            with suppress(FileNotFoundError):
                if _age(right) > DEAD_AFTER:  # who had it died with it
                    right.unlink()
            return True
        try:
            if read_claim(self.path.parent) != dead:
                return False
            right.replace(self.path)
            return True
        finally:
            right.unlink(missing_ok=True)

    def _beat_on(self) -> None:
        while not self._lost and not self._released.wait(HEARTBEAT):
            self._beat()

    def _beat(self) -> None:
        looked = time.time()
        owner = read_claim(self.path.parent).get("owner")
        # A file that cannot be read for a moment is no sign of another owner. After a long sleep it is: one may have come
        # and gone.
        if owner != self.owner and (owner or looked - self._beaten > DEAD_AFTER):
            self._lost = True
            return
        if owner:
            self._beaten = looked
        with suppress(OSError):  # a full disk stops the run by itself
            os.utime(self.path)
            temporary = write_beside(self.path, self._text().encode())
            if time.time() - looked < DEAD_AFTER / 2:
                temporary.replace(self.path)
                self._beaten = looked
            else:  # this process slept since it looked
                temporary.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._released.set()
        self._pulse.join()
        if read_claim(self.path.parent).get("owner") == self.owner:
            self.path.unlink(missing_ok=True)


class _Progress(TypedDict, total=False):
    epoch: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    epochs: Annotated[int, Field(ge=1)]


@with_config(ConfigDict(strict=True, extra="allow", defer_build=True))
class _Content(TypedDict, total=False):
    """What claim.json may say."""

    owner: Annotated[str, Field(pattern=r"^\w{1,64}$")]
    """It becomes a part of a file's name."""
    host: str
    machine: str
    pid: Annotated[int, Field(ge=1, lt=2**31)]
    started: Annotated[float, Field(allow_inf_nan=False)]
    progress: _Progress


_CONTENT: TypeAdapter[_Content] = TypeAdapter(_Content)


def read_claim(folder: Path) -> dict[str, Any]:
    """What the claim on a run says, its holder dead or alive: host, pid, progress. Empty where it says nothing."""
    try:
        return dict(_CONTENT.validate_python(read_json(folder / CLAIM_FILE)))
    except ValidationError:
        return {}


def holder(folder: Path) -> dict[str, Any] | None:
    """What the claim on a run says of its living holder. None if nobody holds it."""
    claim = read_claim(folder)
    return claim if _is_alive(folder / CLAIM_FILE, claim) else None


def _is_alive(path: Path, claim: dict[str, Any]) -> bool:
    if claim.get("machine") == _machine() and claim.keys() >= {"pid", "started"}:
        return _is_running(claim["pid"], claim["started"])
    try:
        age = _age(path)
        if age < -DEAD_AFTER:
            # By a clock that was wrong, or a copy that kept the date. From now on it has the time that any claim has: one
            # whose holder lives is renewed.
            with suppress(PermissionError):
                os.utime(path, follow_symlinks=False)
        return age < DEAD_AFTER
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:  # it is there, and cannot be judged from here
        return True


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
    beat = path.lstat().st_mtime
    probe = write_beside(path, b"")
    try:
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
