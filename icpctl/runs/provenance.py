"""Where a result comes from: versions, device, commit, command line, time."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = (
    "icpctl",
    "torch",
    "torchvision",
    "timm",
    "torchmetrics",
    "torch-fidelity",
    "numpy",
    "scikit-image",
    "scikit-learn",
    "scipy",
)


def provenance(device: torch.device) -> dict[str, Any]:
    """What config.json says beside the configuration: all that helps to make the same numbers again."""
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else (platform.processor() or "cpu"),
        "threads": torch.get_num_threads(),
    }


def commit() -> str | None:
    """The commit of icpctl's own source tree, with "-dirty" where it was changed; None for an installed package."""
    source = Path(__file__).resolve().parent
    git = ["git", "-C", str(source)]
    try:
        tracked = [*git, "ls-files", "--error-unmatch", __file__]
        subprocess.run(tracked, capture_output=True, check=True, timeout=10)
        described = [*git, "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(described, capture_output=True, check=True, timeout=10, text=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
