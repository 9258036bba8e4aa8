"""Checkpoints: written whole or not at all, and verified before they are believed.

A folder has `last.pt`, the one before it as `previous.pt`, and `best.pt`. Each is a zip archive with a checksum for
every entry, read with weights_only=True: a checkpoint from a stranger runs no code by itself. The factory of a user's own model, which its
configuration names, is imported where the network is built.
"""

from __future__ import annotations

import io
import os
import uuid
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

import torch
from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError, with_config
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from typing_extensions import TypedDict

from icpctl.errors import UserError, is_out_of_memory
from icpctl.files import not_writable, write_atomic, write_beside

FORMAT = "icpctl-checkpoint-1"


def _of_channels(tensor: Tensor) -> Tensor:
    if tensor.shape != (3, 1, 1) or not tensor.is_floating_point():
        raise ValueError("it is three numbers of shape (3, 1, 1)")
    return tensor


Count = Annotated[int, Field(ge=0)]
PerChannel = Annotated[Tensor, AfterValidator(_of_channels)]


class _Best(TypedDict):
    epoch: Count
    value: float


class _Meter(TypedDict):
    """See `icpctl.training.meter.Meter.state`."""

    sums: dict[str, Tensor]
    counts: dict[str, Annotated[int, Field(gt=0)]]
    records: NotRequired[list[Tensor]]
    outputs: NotRequired[list[Tensor]]
    first_bad: NotRequired[Tensor | None]
    """In checkpoints of earlier versions, where it is −1: none is saved of a run whose loss is not finite."""


class _Optimizer(TypedDict):
    state: dict[int, dict[str, Any]]
    param_groups: list[dict[str, Any]]


@with_config(ConfigDict(strict=True, extra="allow", arbitrary_types_allowed=True))
class _Entries(TypedDict):
    """The entries of a checkpoint."""

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
    notes: NotRequired[list[str]]
    """What the report says of the run, as far as it is known by now."""
    model: dict[str, Tensor]
    heads: NotRequired[dict[str, Tensor]]
    """What the method adds to the model; not in checkpoints of version 0.1, whose methods add nothing."""
    optimizer: _Optimizer
    icp_state: dict[str, Any]


_ENTRIES: TypeAdapter[_Entries] = TypeAdapter(_Entries)

Checkpoint = dict[str, Any]


def save(folder: Path, name: str, content: Checkpoint, check: Callable[[], None] = lambda: None) -> None:
    """Write `name`.pt; a `last` that is there already stays as `previous`.

    Args:
        folder: of the checkpoints of a run.
        name: last or best.
        content: see `_Entries`.
        check: called at the last moment before a file is replaced; raises if this process may not.

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
            try:
                check()
                link.replace(previous)
            finally:
                link.unlink(missing_ok=True)  # of two names of one file, the system keeps both
        except OSError as error:
            raise not_writable(previous, error) from error
    write_atomic(path, buffer.getvalue(), check)


def _without_the_rest(tensor: Tensor) -> Tensor:
    """A part of a larger tensor, such as a member's of a stack, for itself: torch saves the larger one whole."""
    return tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor


class DamagedError(UserError):
    """A checkpoint is not as it was written, or was never one."""


def load(path: Path, device: torch.device | str = "cpu") -> Checkpoint:
    """Read and verify one checkpoint.

    Raises:
        DamagedError: it is truncated, damaged, or not a checkpoint of icpctl.
        UserError: it is missing, or cannot be read.
        MemoryError, RuntimeError: there is no room for it in memory.
    """
    try:
        content = _load(path)
    except FileNotFoundError:
        raise UserError(f"There is no checkpoint {path}.") from None
    except zipfile.BadZipFile:
        raise DamagedError(f"The checkpoint {path} is truncated, or is no checkpoint of icpctl.") from None
    except UserError:
        raise
    except PermissionError as error:
        raise UserError(f"The checkpoint {path} cannot be read: {error.strerror}.") from None
    except Exception as error:  # whatever a damaged archive makes the libraries do
        if is_out_of_memory(error):
            raise
        raise DamagedError(f"The checkpoint {path} cannot be read: it is damaged, or of another program.") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DamagedError(f"{path} holds something else than a checkpoint of icpctl.")
    try:
        _ENTRIES.validate_python(content)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, fault["loc"]))[:80]
        raise DamagedError(
            f"The checkpoint {path} is damaged: its entry {place!r} is not valid ({fault['msg']})."
        ) from None
    return tree_map_only(Tensor, lambda tensor: tensor.to(device), content)  # type: ignore[no-any-return]


def _load(path: Path) -> Any:
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise UserError(f"The checkpoint {path} is no file. Remove it.")
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        # torch compresses nothing, so no entry can claim more room than the file has; and gives no entry attributes, one bit
        # of which would make its reader skip an entry as a folder and take whatever the memory holds for the weights.
        stored = all(entry.compress_type == zipfile.ZIP_STORED and not entry.external_attr for entry in entries)
        if not stored or sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise DamagedError(f"The checkpoint {path} is damaged: its directory is not as it was written.")
        if damaged := archive.testzip():
            raise DamagedError(f"The checkpoint {path} is damaged: the checksum of {damaged!r} is wrong.")
    return torch.load(path, map_location="cpu", weights_only=True)


def weights_of(saved: Checkpoint, model: nn.Module) -> dict[str, Tensor]:
    """The weights of a checkpoint for `load_state_dict` of its model.

    Some models, such as MNASNet, ask for the versions of their layers, which torch keeps beside the weights and a
    checkpoint does not: they are the model's own.
    """
    weights: Any = OrderedDict(saved["model"])
    weights._metadata = getattr(model.state_dict(), "_metadata", None)
    return weights  # type: ignore[no-any-return]


_STATES: dict[type[torch.optim.Optimizer], set[str]] = {
    torch.optim.AdamW: {"step", "exp_avg", "exp_avg_sq"},
    torch.optim.SGD: {"momentum_buffer"},
}


def check_optimizer(optimizer: torch.optim.Optimizer, groups: Sequence[Mapping[str, Any]]) -> None:
    """Make sure that the restored state of an optimizer is one that it can go on with.

    Args:
        groups: its parameter groups before, as of `state_dict`.

    Raises:
        ValueError: it is not.
    """
    for group, before in zip(optimizer.state_dict()["param_groups"], groups, strict=True):
        if any(type(group.get(name)) is not type(value) for name, value in before.items()):
            raise ValueError("the optimizer's settings are of other types")
    for parameter, state in optimizer.state.items():
        fits = all(isinstance(value, Tensor) and value.shape in ((), parameter.shape) for value in state.values())
        if state and not (fits and state.keys() == _STATES[type(optimizer)]):
            raise ValueError("the optimizer's state does not fit its parameters")


def load_last(folder: Path, device: torch.device | str = "cpu") -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that can be believed, or None; and a sentence for each that is damaged.

    Where that is `previous`, it takes the place of the damaged `last`, so that the next save does not replace it.

    Raises:
        UserError: one is there and cannot be read, which is no reason to go on without it.
    """
    faults: list[str] = []
    for name in ("last", "previous"):
        path = folder / f"{name}.pt"
        if path.exists():
            try:
                content = load(path, device)
            except DamagedError as error:
                faults.append(str(error))
                continue
            if faults:
                try:
                    path.replace(folder / "last.pt")
                except OSError as error:
                    raise not_writable(folder / "last.pt", error) from error
            return content, faults
    return None, faults
