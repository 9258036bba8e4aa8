"""Runs as TensorBoard itself reads them back, and from the records that wandb wrote."""

from __future__ import annotations

import csv
import json
import struct
from pathlib import Path
from typing import Any

from icpctl.runs.folder import RunFolder

Table = dict[tuple[int, str], float]
"""What metrics.csv says: (epoch, split/metric) to value."""


def table(folder: RunFolder) -> Table:
    with folder.metrics_file.open() as file:
        return {(int(r["epoch"]), f"{r['split']}/{r['metric']}"): float(r["value"]) for r in csv.DictReader(file)}


def tensorboard_events(path: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(path), size_guidance={"scalars": 0})
    return events.Reload()


def tensorboard_table(path: Path) -> tuple[Table, dict[int, float]]:
    """Scalars, and when each epoch ended. Duplicates are faults."""
    events = tensorboard_events(path)
    scalars = [(event, tag) for tag in events.Tags()["scalars"] for event in events.Scalars(tag)]
    found = {(event.step, tag): event.value for event, tag in scalars}
    assert len(found) == len(scalars)
    return found, {event.step: event.wall_time for event, _ in scalars}


def wandb_records(path: Path, run_id: str) -> list[Any]:
    """The records of the one offline run of this id: a log as LevelDB writes it, after seven bytes of its own."""
    from wandb.proto import wandb_internal_pb2

    proto: Any = wandb_internal_pb2
    (file,) = path.glob(f"offline-run-*/run-{run_id}.wandb")
    content, block, at = file.read_bytes(), 1 << 15, 7
    records, parts = [], b""
    while at + 7 <= len(content):
        if block - at % block < 7:
            at += block - at % block
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # full, or the last part
            records.append(proto.Record.FromString(parts))
            parts = b""
    return records


def wandb_items(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def wandb_table(path: Path, run_id: str) -> tuple[Table, dict[int, float]]:
    rows = [record.history for record in wandb_records(path, run_id) if record.HasField("history")]
    steps = [(row.step.num, wandb_items(row.item)) for row in rows]
    assert len({step for step, _ in steps}) == len(steps)
    found = {(step, tag): float(value) for step, row in steps for tag, value in row.items() if tag[0] != "_"}
    return found, {step: row["_timestamp"] for step, row in steps}
