"""`icpctl` as a user meets it: real processes, what they print, and how they leave.

Python takes seconds to import torch and what comes with it. Most of these processes are therefore forked, from one that
has imported all that: `icpctl_command` and `begin`. What they do from then on is what `python -m icpctl` does, in a
process with streams, an environment, signals and an end of its own; the workers that they start are forked in the same
way. `fresh=True` starts Python anew, where the beginning of a process is what a test is about.
"""

from __future__ import annotations

import atexit
import gc
import itertools
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any

PROCESSES = multiprocessing.get_context("forkserver")
"""Its server has imported what takes long, for every test of this process of pytest."""
PROCESSES.set_forkserver_preload(
    [
        "icpctl.ablate.command",
        "icpctl.ablate.estimate",
        "icpctl.ablate.executors.local",
        "icpctl.ablate.scheduler",
        "icpctl.ablate.worker",
        "icpctl.training.engine",
        "icpctl.training.evaluation",
        "icpctl.report.figures",
        "icpctl.report.command",
        "torch.distributed.run",
        "torchmetrics",
        "torchvision",
    ]
)
PATIENCE = 600.0
"""Seconds that a command may take on a machine that has much else to do."""


def icpctl_command(
    *arguments: str, cwd: Path | None = None, fresh: bool = False, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    process = begin(*arguments, cwd=cwd, fresh=fresh, **{"COLUMNS": "100", "TERM": "dumb"} | environment)
    output, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode is not None
    return subprocess.CompletedProcess(["icpctl", *arguments], process.returncode, output, errors)


def refused(*arguments: str, cwd: Path | None = None, fresh: bool = False, **environment: str) -> str:
    """The message of a command that has to fail as errors do: one paragraph, status 2, no traceback."""
    result = icpctl_command(*arguments, cwd=cwd, fresh=fresh, **environment)
    assert result.returncode == 2, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


def begin(*arguments: str, cwd: Path | None = None, fresh: bool = False, **environment: str) -> Command:
    """Start a command, and leave it to the test."""
    command = [sys.executable, "-m", "icpctl", *arguments]
    if not fresh:
        return Forked(command, cwd, environment)
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=cwd, env=os.environ | environment, stdout=pipe, stderr=pipe, text=True)


class Forked:
    """A Python command in a forked process; as much of `subprocess.Popen` as tests need.

    `together`: what it says on either stream is the output. `session`: it leads a session, and so a group, of its own.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
        together: bool = False,
        session: bool = False,
    ) -> None:
        read_output, write_output = PROCESSES.Pipe(duplex=False)
        read_errors, write_errors = PROCESSES.Pipe(duplex=False)
        where = os.environ | (environment or {})
        streams = (write_output, write_output if together else write_errors)
        given = (list(map(str, command)), str(cwd or Path.cwd()), dict(where), streams, session)
        self._process = PROCESSES.Process(target=_run, args=given)
        self._process.start()
        self.stdout, self.stderr = (_reader(each, _encoding(where)) for each in (read_output, read_errors))
        for connection in (read_output, write_output, read_errors, write_errors):
            connection.close()
        atexit.register(self.kill)  # a test that fails leaves it behind
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("icpctl", timeout or 0)
        return self._process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        if self._process.is_alive():
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self._process.kill()

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it has said until its end, on each stream."""
        said: dict[IO[str], str] = {}
        readers = [
            threading.Thread(target=lambda file=file: said.update({file: file.read()}), daemon=True)
            for file in (self.stdout, self.stderr)
        ]
        for reader in readers:
            reader.start()
        self.wait(timeout)
        for reader in readers:
            reader.join()
        for file in (self.stdout, self.stderr):
            file.close()
        return said[self.stdout], said[self.stderr]


Command = subprocess.Popen[str] | Forked


def leave_disk() -> None:
    """Do not wait until what was written is on the disk."""
    os.fsync = lambda fd: None


def _reader(connection: Connection[Any, Any], encoding: str) -> IO[str]:
    return os.fdopen(os.dup(connection.fileno()), encoding=encoding)


def _encoding(environment: Mapping[str, str]) -> str:
    return environment.get("PYTHONIOENCODING", "utf-8")


def _run(
    command: list[str], cwd: str, environment: dict[str, str], streams: tuple[Connection, Connection], session: bool
) -> None:
    leave_disk()
    if session:
        os.setsid()
    os.chdir(cwd)
    with Path(os.devnull).open() as nothing:
        for number, source in enumerate((nothing.fileno(), *(stream.fileno() for stream in streams))):
            os.dup2(source, number)
    for stream in streams:
        stream.close()
    os.environ.clear()
    os.environ.update(environment)
    _become(command)


def _become(command: list[str]) -> None:
    """Do what a fresh Python would do with these arguments; standard streams and environment are those to have."""
    sys.stdin, sys.stdout, sys.stderr = (
        open(number, mode, encoding=_encoding(os.environ), errors=handling, closefd=False, buffering=buffering)  # noqa: SIM115
        for number, mode, handling, buffering in (
            (0, "r", "strict", -1),
            (1, "w", "strict", -1),
            (2, "w", "backslashreplace", 1),
        )
    )
    if original := getattr(subprocess, "_fork_exec", None):
        subprocess._fork_exec = partial(_fork_exec, getattr(original, "args", (original,))[0])  # type: ignore[attr-defined]
    arguments = list(itertools.dropwhile(lambda option: option in ("-P", "-u"), command[1:]))
    if arguments[0] == "-m":
        name, sys.argv = arguments[1], arguments[1:]
        sys.modules.pop(name, None)
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        sys.path.insert(0, str(Path(arguments[0]).parent))
        runpy.run_path(arguments[0], run_name="__main__")


def _fork_exec(original: Callable[..., int], args: list[str], *rest: Any) -> int:
    """In the place of what `subprocess` starts programs with: Python is forked."""
    cwd, environment, *pipes = rest[3:11]
    if args[0] != sys.executable or args[1] == "-c":
        return original(args, *rest)
    sys.stdout.flush()
    sys.stderr.flush()
    if pid := os.fork():
        return pid
    status = 1
    try:
        _take_place(pipes, rest[14], cwd, environment)
        _become(args)
        status = 0
    except SystemExit as leaving:
        status = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
        if isinstance(leaving.code, str):
            sys.stderr.write(leaving.code + "\n")
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _take_place(pipes: list[int], session: bool, cwd: str | None, environment: list[bytes] | None) -> None:
    """Streams, signals, session, folder and environment as the start of a program sets them."""
    gc.freeze()  # what the parent has open is closed here at once, and not once more when it is forgotten
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for source, target in zip((pipes[0], pipes[3], pipes[5]), range(3), strict=True):
        if source != -1:
            os.dup2(source, target)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    if session:
        os.setsid()
    if cwd is not None:
        os.chdir(cwd)
    if environment is not None:
        os.environb.clear()
        os.environb.update(dict(entry.split(b"=", 1) for entry in environment))
