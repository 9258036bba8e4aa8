"""Checkpoints: written whole or not at all, and verified before they are believed.

A folder has `last.pt`, the one before it as `previous.pt`, and `best.pt`. Each is a zip archive with a checksum for
every entry, read with weights_only=True: a checkpoint from a stranger runs no code.
"""

from __future__ import annotations

import io
import os
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from icpctl.errors import UserError
from icpctl.results import not_writable, write_atomic

FORMAT = "icpctl-checkpoint-1"
KEYS = frozenset(
    [
        "config",
        "fingerprint",
        "classes",
        "mean",
        "std",
        "image_size",
        "epoch",
        "batch",
        "best",
        "meter",
        "seconds",
        "model",
        "optimizer",
        "icp_state",
    ]
)

Checkpoint = dict[str, Any]


def save(folder: Path, name: str, content: Checkpoint) -> None:
    """Write `name`.pt; a `last` that is there already stays as `previous`.

    Raises:
        UserError: it could not be written; the old files are as they were.
    """
    buffer = io.BytesIO()
    torch.save(tree_map_only(Tensor, _without_the_rest, {"format": FORMAT, **content}), buffer)
    path, previous = folder / f"{name}.pt", folder / "previous.pt"
    if name == "last" and path.exists():
        # A second name for the old file, so that at no moment there is neither.
        link = folder / "previous.pt.tmp"
        try:
            link.unlink(missing_ok=True)
            try:
                os.link(path, link)
            except OSError:  # a file system without hard links
                shutil.copyfile(path, link)
            link.replace(previous)
        except OSError as error:
            raise not_writable(previous, error) from error
    write_atomic(path, buffer.getvalue())


def _without_the_rest(tensor: Tensor) -> Tensor:
    """A part of a larger tensor, such as a member's of a stack, for itself: torch saves the larger one whole."""
    return tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor


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
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, ValueError):
        raise UserError(f"The checkpoint {path} cannot be read: it is damaged, or of another program.") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT or not content.keys() >= KEYS:
        raise UserError(f"{path} holds something else than a checkpoint of icpctl.")
    return content


def load_last(folder: Path, device: torch.device | str = "cpu") -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that can be believed, or None; and a sentence for each that cannot.

    Where that is `previous`, it takes the place of the damaged `last`, so that the next save does not replace it.
    """
    faults: list[str] = []
    for name in ("last", "previous"):
        path = folder / f"{name}.pt"
        if path.exists():
            try:
                content = load(path, device)
                path.replace(folder / "last.pt")
                return content, faults
            except UserError as error:
                faults.append(str(error))
    return None, faults
