"""Checkpoints: written whole or not at all, and verified before they are believed.

A folder has `last.pt`, the one before it as `previous.pt`, and `best.pt`. Each is a zip archive with a checksum for
every entry, read with weights_only=True: a checkpoint from a stranger runs no code.
"""

from __future__ import annotations

import io
import os
import uuid
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

import torch
from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from torch import Tensor
from torch.utils._pytree import tree_map_only
from typing_extensions import TypedDict

from icpctl.errors import UserError, is_out_of_memory
from icpctl.files import not_writable, write_atomic, write_beside

FORMAT = "icpctl-checkpoint-1"


def _of_channels(tensor: Tensor) -> Tensor:
    if tensor.shape != (3, 1, 1) or not tensor.is_floating_point() or not tensor.isfinite().all():
        raise ValueError("it is three finite numbers of shape (3, 1, 1)")
    return tensor


Count = Annotated[int, Field(ge=0)]
PerChannel = Annotated[Tensor, AfterValidator(_of_channels)]


class _Best(TypedDict):
    epoch: Count
    value: float


class _Meter(TypedDict):
    """See `icpctl.meter.Meter.state`."""

    sums: dict[str, Tensor]
    counts: dict[str, Annotated[int, Field(gt=0)]]
    records: NotRequired[list[Tensor]]
    outputs: NotRequired[list[Tensor]]
    first_bad: Tensor | None


class _Optimizer(TypedDict):
    state: dict[int, dict[str, Any]]
    param_groups: list[dict[str, Any]]


class _Entries(TypedDict):
    """What a checkpoint holds."""

    __pydantic_config__ = ConfigDict(strict=True, extra="allow", arbitrary_types_allowed=True)
    format: Literal["icpctl-checkpoint-1"]
    config: dict[str, Any]
    fingerprint: str
    classes: Annotated[list[str], Field(min_length=1)]
    mean: PerChannel
    std: PerChannel
    image_size: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=2, max_length=2)]
    epoch: Count
    batch: Count
    best: _Best | Annotated[dict[str, float], Field(max_length=0)]
    meter: _Meter
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    rows: NotRequired[Count]
    """Of metrics.csv before this epoch; not in checkpoints of version 0.1."""
    model: dict[str, Tensor]
    optimizer: _Optimizer
    icp_state: dict[str, Any]


_ENTRIES: TypeAdapter[_Entries] = TypeAdapter(_Entries)

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
        link = folder / f".{uuid.uuid4().hex}.tmp"
        try:
            try:
                os.link(path, link)
            except OSError:  # a file system without hard links
                link = write_beside(previous, path.read_bytes(), durable=True)
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
        MemoryError, RuntimeError: there is no room for it in memory.
    """
    try:
        content = _load(path)
    except FileNotFoundError:
        raise UserError(f"There is no checkpoint {path}.") from None
    except zipfile.BadZipFile:
        raise UserError(f"The checkpoint {path} is truncated, or is no checkpoint of icpctl.") from None
    except UserError:
        raise
    except Exception as error:  # whatever a damaged archive makes the libraries do
        if is_out_of_memory(error):
            raise
        raise UserError(f"The checkpoint {path} cannot be read: it is damaged, or of another program.") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{path} holds something else than a checkpoint of icpctl.")
    try:
        _ENTRIES.validate_python(content)
    except (ValidationError, RecursionError) as error:
        fault: Any = (
            error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": "nested too deeply"}
        )
        place = ".".join(map(str, fault["loc"]))[:80]
        raise UserError(
            f"The checkpoint {path} is damaged: its entry {place!r} is not valid ({fault['msg']})."
        ) from None
    return tree_map_only(Tensor, lambda tensor: tensor.to(device), content)  # type: ignore[no-any-return]


def _load(path: Path) -> Any:
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise UserError(f"The checkpoint {path} is no file.")
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        # torch compresses nothing; so no entry can claim more room than the file has.
        stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
        if not stored or sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise UserError(f"The checkpoint {path} is damaged: its directory is not as it was written.")
        if damaged := archive.testzip():
            raise UserError(f"The checkpoint {path} is damaged: the checksum of {damaged!r} is wrong.")
    return torch.load(path, map_location="cpu", weights_only=True)


def check_optimizer(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """Make sure that the state of an optimizer fits what it is restored to.

    Raises:
        ValueError: it does not.
    """
    for group, before in zip(optimizer.state_dict()["param_groups"], saved["param_groups"], strict=True):
        if any(type(before.get(name)) is not type(value) for name, value in group.items()):
            raise ValueError("other settings of the optimizer")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, state in saved["state"].items():
        for value in state.values():
            if isinstance(value, Tensor) and value.dim() and value.shape != parameters[number].shape:
                raise ValueError("a state of another shape than its parameter")


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
