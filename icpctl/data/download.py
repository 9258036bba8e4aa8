"""What the data sets that can be downloaded have in common: one process at a time, MD5 sums, and the error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from filelock import FileLock

from icpctl.errors import UserError

_forbidden = ContextVar("_forbidden", default=False)


class AbsentError(UserError):
    """The data set would have to be downloaded, and nothing is downloaded now."""


@contextmanager
def no_downloads() -> Iterator[None]:
    """Data sets that are not there are refused, rather than downloaded."""
    before = _forbidden.set(True)
    try:
        yield
    finally:
        _forbidden.reset(before)


def may_download() -> bool:
    return not _forbidden.get()


def alone(data_dir: Path, name: str, *targets: Path) -> FileLock:
    """Held while downloading to `targets`, since two runs that start together must not write the same file.

    Raises:
        AbsentError: nothing is to be downloaded now.
        UserError: at the place of a file is something else.
    """
    if not may_download():
        raise AbsentError(f"the data set {name} is not there, and nothing is downloaded now")
    for target in targets:
        if target.exists() and not target.is_file():
            raise UserError(f"'{target}' is not a file. Move it away: a file of the data set {name} belongs there.")
    data_dir.mkdir(parents=True, exist_ok=True)
    return FileLock(data_dir / f".{name}.lock")


def intact(path: Path, md5: str) -> bool:
    """Whether the file is there, readable, and has that MD5 sum."""
    from torchvision.datasets.utils import check_integrity

    try:
        return bool(check_integrity(path, md5))
    except OSError:  # unreadable
        return False


def unavailable(
    name: str, places: list[Path], target: Path, files: dict[Path, str], url: str, problem: Exception
) -> UserError:
    """`places` were looked at, `target` is where a download belongs, `files` are all files with their MD5 sums."""
    looked = ", ".join(f"'{place}'" for place in places)
    broken = ", ".join(f"'{path}'" for path, md5 in files.items() if path.exists() and not intact(path, md5))
    if broken:
        return UserError(
            f"The data set {name} cannot be read. Damaged (wrong MD5 sum) or unreadable: {broken}. Downloading it again from {url} "
            f"failed: {problem}. Replace what is damaged, or name the folder that has the data set with --data-dir or "
            "ICPCTL_DATA_DIR."
        )
    kind = AbsentError if isinstance(problem, AbsentError) else UserError
    return kind(
        f"The data set {name} is neither at {looked} nor in class folders like "
        f"'{places[0].with_name(name) / 'train' / 'CLASS'}', and downloading it from {url} failed: {problem}. "
        f"Put a download of it into '{target}', or name the folder that has the data set with --data-dir or "
        "ICPCTL_DATA_DIR."
    )
