"""Files that are written whole or not at all, and read whatever has become of them.

Others may write to a results folder too: another command, a person, a stranger. So a temporary file has a name that
nobody can foresee, and is never opened through a link.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from icpctl.errors import UserError

LEFTOVER_AGE = 3600.0
"""Seconds after which a temporary file counts as left over by a process that was killed."""
LARGEST_JSON = 2**26
"""Bytes of a JSON file beyond which it cannot be one of icpctl."""


def write_atomic(path: Path, content: bytes, check: Callable[[], None] = lambda: None) -> None:
    """Write a whole file or leave the old one: a temporary file beside it, flushed to the disk, then renamed.

    A symbolic link at `path` is replaced by the file; what it points to stays as it is.

    Args:
        path: the file.
        content: of it.
        check: called at the last moment before the old one is replaced; raises if this process may not.

    Raises:
        UserError: it cannot be written.
    """
    try:
        temporary = write_beside(path, content, durable=True)
        try:
            check()
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise not_writable(path, error) from error
    with suppress(OSError):  # not every file system can flush a folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_beside(path: Path, content: bytes, durable: bool = False) -> Path:
    """Write a new file in the folder of `path`, to be renamed or linked to it; removes what killed writers left there.

    Args:
        durable: flush it to the disk.

    Raises:
        OSError: it cannot be written; nothing is left of it.
    """
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:  # never through a link, and with the permissions of any new file
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
            now = os.fstat(file.fileno()).st_mtime
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    with suppress(OSError), os.scandir(path.parent) as entries:
        for entry in entries:
            if re.fullmatch(r"\.[0-9a-f]{32}\.tmp", entry.name):
                with suppress(OSError):  # another process has removed it
                    if now - entry.stat(follow_symlinks=False).st_mtime > LEFTOVER_AGE:
                        Path(entry).unlink()
    return temporary


def not_writable(path: Path, error: OSError) -> UserError:
    """The error for a file or folder of the results that cannot be written."""
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return UserError(
                f"The disk is full: {path} could not be written. Make room (for bytes, or for files), or choose another folder "
                "with --output, and give the same command again: the run goes on from its last checkpoint."
            )
        case errno.ENOENT if isinstance(error.filename, str) and Path(error.filename).parent.is_dir():
            return UserError(
                f"Cannot write {path}: {error.filename} cannot be made there. Take another results folder, with --output."
            )
        case errno.ENOENT | errno.ESTALE:
            return UserError(
                f"Cannot write {path}: its folder is gone, as if it had been removed or unmounted. Bring it back, and give "
                "the same command again; without the folder, the run starts anew."
            )
        case errno.EMFILE | errno.ENFILE:
            return UserError(f"Cannot write {path}: too many files are open. Raise the limit, with ulimit -n.")
        case errno.EFBIG:
            return UserError(
                f"Cannot write {path}: the file would be too large. Raise the limit, with ulimit -f, or take a results folder on "
                "another file system, with --output."
            )
    return UserError(
        f"Cannot write {path}: {error.strerror or error}. Make that folder writable, or take another results folder, with --output."
    )


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold a lock file, for which this waits.

    Raises:
        UserError: it cannot be locked.
    """
    lock = FileLock(file)
    try:
        lock.acquire()
    except (OSError, NotImplementedError) as error:  # the latter from a file system without locks
        raise not_lockable(file, error) from error
    try:
        yield
    finally:
        lock.release()


def not_lockable(file: Path, error: OSError | NotImplementedError) -> UserError:
    """The error for a lock file that cannot be locked."""
    if isinstance(error, OSError):
        return not_writable(file, error)
    return UserError(f"Cannot lock {file}: {error}. Take a results folder on another file system, with --output.")


def load_json(file: Path) -> dict[str, Any]:
    """What a JSON file says.

    Raises:
        OSError: it is not there, or cannot be read.
        ValueError: it is damaged, or is no file.
    """
    status = file.stat()
    if not stat.S_ISREG(status.st_mode) or status.st_size > LARGEST_JSON:  # a pipe would be waited for
        raise ValueError(f"{file} is no JSON file of icpctl")
    try:
        content = json.loads(file.read_bytes().decode("utf-8-sig"))
        json.dumps(content, ensure_ascii=False).encode()  # half a character is damage, too
    except RecursionError as error:
        raise ValueError(f"{file} is nested too deeply") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds something else than names with values")
    return content


def read_json(file: Path) -> dict[str, Any]:
    """What a JSON file says; empty where there is none, or none that can be read."""
    with suppress(OSError, ValueError):
        return load_json(file)
    return {}
