"""Checkpoints: written whole or not at all, and verified before they are believed.

A folder has `last.pt`, the one before it as `previous.pt`, and `best.pt`. Each is a zip archive with a checksum for
every entry, read with weights_only=True: a checkpoint from a stranger runs no code.
"""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from icpctl.errors import UserError
from icpctl.results import write_atomic

FORMAT = "icpctl-checkpoint-1"

Checkpoint = dict[str, Any]


def save(folder: Path, name: str, content: Checkpoint) -> None:
    """Write `name`.pt; a `last` that is there already stays as `previous`.

    Raises:
        UserError: it could not be written; the old files are as they were.
    """
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **content}, buffer)
    path, previous = folder / f"{name}.pt", folder / "previous.pt"
    if name == "last" and path.exists():
        # A second name for the old file, so that at no moment there is neither.
        link = folder / "previous.pt.tmp"
        link.unlink(missing_ok=True)
        os.link(path, link)
        link.replace(previous)
    write_atomic(path, buffer.getvalue())


def load(path: Path, device: torch.device | str = "cpu") -> Checkpoint:
    """Read and verify one checkpoint.

    Raises:
        UserError: it is missing, truncated, damaged, or not a checkpoint of icpctl.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged:
            raise UserError(f"The checkpoint {path} is damaged: the checksum of {damaged} is wrong.")
        content = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise UserError(f"There is no checkpoint {path}.") from None
    except zipfile.BadZipFile:
        raise UserError(f"The checkpoint {path} is truncated, or is no checkpoint of icpctl.") from None
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, ValueError) as error:
        reason = str(error).split(".")[0].split("\n")[0]
        raise UserError(f"The checkpoint {path} cannot be read: {reason}.") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(
            f"{path} holds something else than a checkpoint of icpctl. Give a run folder, or a file in its checkpoints/."
        )
    return content


def load_last(folder: Path, device: torch.device | str = "cpu") -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that can be believed, or None; and a sentence for each that cannot."""
    faults: list[str] = []
    for name in ("last", "previous"):
        path = folder / f"{name}.pt"
        if path.exists():
            try:
                return load(path, device), faults
            except UserError as error:
                faults.append(str(error))
    return None, faults
