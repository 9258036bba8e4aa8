"""Figures by setting and heat maps: what they draw against plain computations, and what they say."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawn import (
    BASELINE,
    METHOD,
    Grid,
    assert_row,
    bars,
    figures,
    interval,
    make_grid,
    measured,
    mesh_of,
    of,
    write_study,
    ys,
)
from matplotlib.collections import QuadMesh
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from icpctl.config import RunConfig
from icpctl.report import build
from icpctl.report.figures.study import Drawing


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Grid:
    return make_grid(tmp_path_factory.mktemp("grid"))


def test_a_setting_of_the_method(grid: Grid) -> None:
    configs = grid.configs
    drawing = grid.drawn["accuracy-by-icp-lr"]
    (axes,) = drawing.figure.axes
    for optimizer in ("sgd", "adam"):
        for icp_lr in (0.001, 0.01, 0.1):
            pooled = [
                statistics.fmean(
                    measured(config, 2)
                    for config in of(configs, optimizer=optimizer, direction="descend", icp_lr=icp_lr, seed=seed)
                )
                for seed in range(3)
            ]
            assert_row(drawing.data, pooled, optimizer=optimizer, icp_lr=icp_lr)
    baseline = [measured(config, 2) for config in of(configs, optimizer="none", epochs=3)]
    assert_row(drawing.data, baseline, optimizer="none", icp_lr=None)
    assert len(drawing.data) == 7  # the controls have one value alone
    drawn = np.array(bars(axes))
    shown = drawing.data[drawing.data["optimizer"] != "none"]
    order = shown.assign(place=shown["optimizer"].map({"sgd": 0, "adam": 1})).sort_values(["place", "icp_lr"])
    np.testing.assert_allclose(drawn[:, 1:], 100 * order[["mean", "low", "high"]].to_numpy(float))
    np.testing.assert_allclose(drawn[:, 0], np.log10(order["icp_lr"].to_numpy(float)), atol=0.1)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.001", "0.01", "0.1"]
    _, mean, low, high = interval(baseline)
    (line,) = [line for line in axes.lines if ys(line)[0] == ys(line)[-1] and len(ys(line)) == 2]
    assert ys(line)[0] == pytest.approx(100 * mean)
    (band,) = axes.patches
    assert isinstance(band, Rectangle)
    assert (band.get_y(), band.get_y() + band.get_height()) == pytest.approx((100 * low, 100 * high))
    assert "Not all values" not in drawing.text
    linear = grid.drawn["accuracy-by-steps"].figure.axes[0]
    np.testing.assert_allclose(linear.get_xticks(), [1, 3])


def test_a_setting_of_plain_training_has_a_line_of_baselines(tmp_path: Path) -> None:
    plain = [{"recipe": "paper"}, {"recipe": "strong"}]
    configs = write_study(tmp_path, *({**run, **of_plain} for of_plain in plain for run in (BASELINE, METHOD)))
    drawing = figures(build(tmp_path))["accuracy-by-recipe"]
    (axes,) = drawing.figure.axes
    assert not axes.patches
    assert len(bars(axes)) == 4
    assert [label.get_text() for label in axes.get_xticklabels()] == ["paper", "strong"]
    values = [measured(config, 2) for config in of(configs, optimizer="none", recipe="strong")]
    assert_row(drawing.data, values, optimizer="none", recipe="strong")


def test_a_switch(tmp_path: Path) -> None:
    write_study(tmp_path, *({**METHOD, "teacher_statistics": value} for value in (True, False)), seeds=1)
    (axes,) = figures(build(tmp_path))["accuracy-by-teacher-statistics"].figure.axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["false", "true"]


def test_a_value_that_is_not_given_is_drawn(tmp_path: Path) -> None:
    configs = write_study(tmp_path, METHOD, {**METHOD, "train_size": 100}, seeds=2)
    drawing = figures(build(tmp_path))["accuracy-by-train-size"]
    assert [label.get_text() for label in drawing.figure.axes[0].get_xticklabels()] == ["–", "100"]
    assert_row(drawing.data, [measured(config, 2) for config in of(configs, train_size=None)], train_size="–")


def test_values_that_have_other_runs_are_said(tmp_path: Path) -> None:
    runs = [{**METHOD, "steps": steps, "icp_lr": icp_lr} for steps, icp_lr in ((1, 0.01), (1, 0.1), (3, 0.1))]
    write_study(tmp_path, *runs)
    assert "Not all values have the same runs" in figures(build(tmp_path))["accuracy-by-steps"].text


@pytest.mark.parametrize(
    ("pair", "key"),
    [
        ("accuracy-by-optimizer-and-icp-lr", lambda c: (c.optimizer, c.icp_lr)),
        ("accuracy-by-steps-and-icp-lr", lambda c: (c.steps, c.icp_lr)),
    ],
)
def test_heat_maps(grid: Grid, pair: str, key: Callable[[RunConfig], tuple[Any, Any]]) -> None:
    configs = grid.configs
    drawing = grid.drawn[pair]
    a, b = drawing.data.columns[:2]
    cells: dict[tuple[Any, Any], dict[int, list[float]]] = {}
    for config in configs.values():
        if config.optimizer != "none" and config.direction == "descend":
            difference = measured(config, 2) - measured(config.baseline(), 2)
            cells.setdefault(key(config), {}).setdefault(config.seed, []).append(difference)
    assert len(drawing.data) == len(cells) == 6
    for (first, second), seeds in cells.items():
        values = [statistics.fmean(of_seed) for of_seed in seeds.values()]
        assert_row(drawing.data, values, mean="difference", **{a: first, b: second})
    axes, mesh = drawing.figure.axes[0], mesh_of(drawing)
    across = drawing.data.assign(place=drawing.data[a].map({"sgd": 0, "adam": 1, 1: 0, 3: 1})).sort_values([b, "place"])
    expected = 100 * across["difference"].to_numpy(float)
    np.testing.assert_allclose(np.ravel(np.asarray(mesh.get_array())), expected)
    assert mesh.get_clim() == pytest.approx((-np.abs(expected).max(), np.abs(expected).max()))
    numbers = [text.get_text().split(" ± ")[0].replace("−", "-") for text in axes.texts]
    assert [float(number) for number in numbers] == pytest.approx(expected, abs=0.06)
    assert {to_hex(text.get_color()) for text in axes.texts} <= {"#111111", "#f7f7f7"}


def test_pairs_that_are_left_out_are_said(tmp_path: Path) -> None:
    values = {"steps": (1, 3), "icp_lr": (0.01, 0.1), "beta1": (0.5, 0.6), "beta2": (0.7, 0.8)}
    runs = [dict(zip(values, of_run, strict=True)) for of_run in itertools.product(*values.values())]
    optimizers = ({**METHOD, **run, "optimizer": optimizer} for run in runs for optimizer in ("adam", "ademamix"))
    write_study(tmp_path, BASELINE, *optimizers, seeds=1)
    drawn = figures(build(tmp_path))
    maps = {name: drawing for name, drawing in drawn.items() if "-and-" in name}
    assert len(maps) == 6
    assert all("Of 10 pairs of settings, 6 are drawn" in drawing.text for drawing in maps.values())


def test_less_is_better_where_a_metric_falls(grid: Grid, tmp_path: Path) -> None:
    write_study(tmp_path, BASELINE, *({**METHOD, "optimizer": o, "steps": s} for o in ("sgd", "adam") for s in (1, 3)))
    drawn = figures(build(tmp_path, metric="loss"))
    assert "A point below the line" in drawn["loss-by-passes"].text
    assert "A point above the line" in grid.drawn["accuracy-by-passes"].text

    def colours(drawing: Drawing) -> str:
        (mesh,) = [each for each in drawing.figure.axes[0].collections if isinstance(each, QuadMesh)]
        return mesh.get_cmap().name

    assert (
        colours(drawn["loss-by-optimizer-and-steps"]) == colours(grid.drawn["accuracy-by-optimizer-and-steps"]) + "_r"
    )
