"""Made-up studies and their figures, for the tests of what is drawn."""

from __future__ import annotations

import math
import re
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, QuadMesh
from matplotlib.container import ErrorbarContainer
from matplotlib.lines import Line2D
from matplotlib.text import Text
from scipy.stats import t as student

from icpctl.config import RunConfig, resolve
from icpctl.config.cost import compute_matched
from icpctl.report import Report, build
from icpctl.report.figures.study import Drawing, study_figures
from icpctl.report.figures.style import encode
from icpctl.runs.folder import RunFolder

SMALL = {"dataset": "digits", "epochs": 3, "warmup_epochs": 1, "layers": "layer1"}
METHOD = {**SMALL, "optimizer": "adam"}
BASELINE = {"dataset": "digits", "epochs": 3, "optimizer": "none"}


def write_run(output: Path, config: RunConfig, accuracy: list[float], val: list[float] | None = None) -> None:
    """A finished run with this test accuracy, epoch by epoch; a run of the method has diagnostics after its warm-up."""
    folder = RunFolder(output, config)
    folder.create()
    folder.write_config(config, {}, {})
    for epoch, value in enumerate(accuracy):
        train = {"task_weight": 1 - epoch / 10}
        if config.optimizer != "none" and epoch >= config.warmup_epochs:
            train |= {"icp_loss_before": 2.0 + config.seed, "icp_loss_after": 1.5 - epoch / 10, "delta_linf": 0.01}
            train |= {
                "feature_loss": 0.2,
                "feature_shift_1": 0.1,
                "feature_shift_2": 0.3 + epoch,
                "feature_shift_10": 0.2,
            }
            train |= {"feature_shift_error_1": 1e-3, "feature_shift_error_2": 2e-3}
        metrics = {"train": train, "test": {"accuracy": value, "loss": 2 - value}}
        folder.append_metrics(epoch, metrics | ({"val": {"accuracy": val[epoch]}} if val else {}))
    folder.write_status("finished")


def measured(config: RunConfig, epoch: int) -> float:
    """Some number that differs from run to run."""
    parts = [
        config.optimizer,
        config.direction,
        config.steps,
        config.icp_lr,
        config.lr,
        config.epochs,
        config.seed,
        epoch,
    ]
    return 0.5 + 0.4 * math.sin(sum(ord(c) * (i + 1) for i, c in enumerate(repr(parts))))


def write_study(output: Path, *settings: dict[str, Any], seeds: int = 3) -> dict[str, RunConfig]:
    configs = [resolve({**of, "seed": seed}) for of in settings for seed in range(seeds)]
    for config in configs:
        write_run(output, config, [measured(config, epoch) for epoch in range(config.epochs)])
    return {config.run_id: config for config in configs}


def figures(report: Report) -> dict[str, Drawing]:
    drawn = study_figures(report)
    named = {each.name: each for each in drawn}
    assert len(named) == len(drawn)
    assert all(re.fullmatch("[a-z0-9-]+", name) for name in named)
    return named


def interval(values: list[float]) -> tuple[int, float, float, float]:
    """Seeds, mean, low, high; of one seed or two no interval is drawn."""
    mean = statistics.fmean(values)
    if len(values) < 3:
        return len(values), mean, math.nan, math.nan
    half = student.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return len(values), mean, mean - half, mean + half


def assert_row(data: pd.DataFrame, values: list[float], mean: str = "mean", **where: Any) -> None:
    """The one row where these columns have these values is of these values over the seeds."""
    found = data
    for name, value in where.items():
        found = found[found[name].isna()] if value is None else found[found[name] == value]
    (row,) = found[["seeds", mean, "low", "high"]].to_numpy(float).tolist()
    assert row == pytest.approx(interval(values), nan_ok=True)


def svg(drawing: Drawing) -> str:
    return encode(drawing.figure, "svg").decode()


def words(drawing: Drawing) -> dict[str, float]:
    """The texts of a figure and their size."""
    found = [text for text in drawing.figure.findobj(Text) if isinstance(text, Text) and text.get_text()]
    return {text.get_text(): float(text.get_fontsize()) for text in found}


@dataclass(frozen=True)
class Grid:
    """A study, its report, and the figures of it."""

    configs: dict[str, RunConfig]
    report: Report
    drawn: dict[str, Drawing]


def make_grid(output: Path) -> Grid:
    """Two optimizers × two numbers of steps × three η with controls of one, baselines of equal epochs and compute-matched ones."""
    runs = [
        {**METHOD, "optimizer": optimizer, "steps": steps, "icp_lr": icp_lr}
        for optimizer in ("sgd", "adam")
        for steps in (1, 3)
        for icp_lr in (0.001, 0.01, 0.1)
    ]
    controls = [{**runs[0], "direction": direction} for direction in ("ascend", "random")]
    matched = [{**BASELINE, "epochs": compute_matched(resolve(runs[index])).epochs} for index in (0, -1)]
    configs = write_study(output, BASELINE, *matched, *runs, *controls)
    report = build(output)
    return Grid(configs, report, figures(report))


def of(configs: dict[str, RunConfig], **values: object) -> list[RunConfig]:
    return [
        config for config in configs.values() if all(getattr(config, name) == value for name, value in values.items())
    ]


def xs(line: Line2D) -> list[float]:
    return [float(x) for x in np.asarray(line.get_xdata())]


def ys(line: Line2D) -> list[float]:
    return [float(y) for y in np.asarray(line.get_ydata())]


def mesh_of(drawing: Drawing) -> QuadMesh:
    (mesh,) = [each for each in drawing.figure.axes[0].collections if isinstance(each, QuadMesh)]
    return mesh


def containers(axes: Axes) -> list[ErrorbarContainer]:
    return [container for container in axes.containers if isinstance(container, ErrorbarContainer)]


def points_of(axes: Axes) -> list[Line2D]:
    return [line for container in containers(axes) if (line := container.lines[0]) is not None]


def bars(axes: Axes) -> list[tuple[float, float, float, float]]:
    """x, mean, low and high of each point with a bar."""
    points = []
    for container in containers(axes):
        line, _, (collection,) = container.lines
        assert line is not None
        assert isinstance(collection, LineCollection)
        segments = collection.get_segments()
        ends = [segment[:, 1] if len(segment) else (math.nan, math.nan) for segment in segments]
        points += [(x, y, *end) for x, y, end in zip(xs(line), ys(line), ends, strict=True)]
    return points
