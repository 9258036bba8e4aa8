"""As much of Slurm's commands as submitit and the executor use, on this machine; the command is the name it is called by.

Jobs are folders of $FAKE_SLURM. While that has a file `full`, sbatch refuses; while it has a file `hold`, jobs are queued.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path


def root() -> Path:
    return Path(os.environ["FAKE_SLURM"])


def state(job: Path) -> str:
    if (job / "cancelled").exists():
        return "CANCELLED"
    if (job / "status").exists():
        return "COMPLETED" if (job / "status").read_text().strip() == "0" else "FAILED"
    return "RUNNING" if (job / "session").exists() else "PENDING"


def start(job: Path) -> None:
    (job / "status").unlink(missing_ok=True)
    environment = os.environ | {"SLURM_JOB_ID": job.name, "SLURM_NTASKS": "1", "SLURM_JOB_NUM_NODES": "1"}
    command = f"bash {job}/script; echo $? > {job}/status"
    nowhere = subprocess.DEVNULL
    shell = subprocess.Popen(
        ["bash", "-c", command], env=environment, start_new_session=True, stdin=nowhere, stdout=nowhere, stderr=nowhere
    )
    (job / "session").write_text(str(shell.pid))


def sbatch(script: str) -> None:
    if (root() / "full").exists():
        sys.exit("sbatch: error: QOSMaxSubmitJobPerUserLimit")
    job = root() / str(time.time_ns())  # submitit remembers the jobs of the process, and so those of other tests
    job.mkdir()
    (job / "script").write_text(Path(script).read_text())
    if not (root() / "hold").exists():
        start(job)
    print(f"Submitted batch job {job.name}")


def srun(*arguments: str) -> None:
    """Becomes the job's step."""
    command = list(arguments[arguments.index("--error") + 2 :])
    place = os.environ["SLURM_JOB_ID"]
    for option, stream in (("--output", 1), ("--error", 2)):
        file = arguments[arguments.index(option) + 1].replace("%j", place).replace("%t", "0")
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    (root() / place / "step").write_text(str(os.getpid()))
    os.execvp(command[0], command)


def scancel(*arguments: str) -> None:
    wanted = next((re.sub("--state=", "", text) for text in arguments if text.startswith("--state=")), "")
    for job in [root() / text for text in arguments if text.isdigit()]:
        if wanted not in ("", state(job)) or state(job) not in ("PENDING", "RUNNING"):
            continue
        with suppress(ProcessLookupError, FileNotFoundError):
            if "--signal=TERM" in arguments:
                os.kill(int((job / "step").read_text()), signal.SIGTERM)
            else:
                (job / "cancelled").touch()
                os.killpg(int((job / "session").read_text()), signal.SIGKILL)


def sacct(*arguments: str) -> None:
    print("JobID|State|NodeList")
    for job in [root() / text for text in arguments if text.isdigit()]:
        print(f"{job.name}|{state(job)}|here")


def scontrol(what: str, number: str) -> None:
    assert what == "requeue"
    start(root() / number)


if __name__ == "__main__":
    globals()[Path(sys.argv[0]).name](*sys.argv[1:])
