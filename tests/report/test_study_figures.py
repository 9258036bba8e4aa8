"""The figures of a report: what they draw against plain computations, and what they say and do where there is little."""

from __future__ import annotations

import io
import math
import statistics
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from drawn import (
    BASELINE,
    METHOD,
    Grid,
    assert_row,
    bars,
    figures,
    make_grid,
    measured,
    of,
    points_of,
    svg,
    words,
    write_run,
    write_study,
    xs,
    ys,
)
from matplotlib.colors import to_hex
from matplotlib.image import imread

from icpctl.config import resolve
from icpctl.config.cost import passes
from icpctl.report import build
from icpctl.report.figures.study import study_figures
from icpctl.report.figures.style import encode
from icpctl.runs.folder import RunFolder


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Grid:
    return make_grid(tmp_path_factory.mktemp("grid"))


def test_names_titles_and_texts(grid: Grid) -> None:
    drawn = grid.drawn
    assert list(drawn) == [
        "accuracy-differences",
        "accuracy-by-epoch",
        "accuracy-by-passes",
        "accuracy-by-steps",
        "accuracy-by-icp-lr",
        "accuracy-by-optimizer-and-steps",
        "accuracy-by-optimizer-and-icp-lr",
        "accuracy-by-steps-and-icp-lr",
        "diagnostics",
    ]
    for drawing in drawn.values():
        assert drawing.title[0].isupper()
        assert drawing.text.endswith(".")
        assert drawing.figure.get_size_inches()[0] <= 7.2
        assert all(size >= 9 for size in words(drawing).values())
        assert not drawing.data.empty


def test_curves(grid: Grid) -> None:
    report, configs = grid.report, grid.configs
    drawing = grid.drawn["accuracy-by-epoch"]
    axes = drawing.figure.axes
    assert len(axes) == 12
    assert [one.get_title() for one in axes] == report.grouping.table.query("role == 'method'")["label"].tolist()
    for config in of(configs, seed=0):
        shown = drawing.data[drawing.data["group_id"] == config.group_id]
        if config.optimizer == "none" and config.epochs != 3:
            assert shown.empty  # of other epochs
            continue
        panel = "SGD-ICP, T=1, η=0.001" if config.optimizer == "none" else shown["panel"].iloc[0]
        seeds = [resolve({**config.model_dump(), "seed": seed}) for seed in range(3)]
        for epoch in range(3):
            values = [measured(each, epoch) for each in seeds]
            assert_row(drawing.data, values, group_id=config.group_id, epoch=epoch, panel=panel)
    first = drawing.data[drawing.data["panel"] == "SGD-ICP, T=1, η=0.001"]
    assert first["role"].unique().tolist() == ["baseline", "control", "method"]
    means = [ys(line) for line in axes[0].lines]
    np.testing.assert_allclose(means, 100 * first["mean"].to_numpy().reshape(4, 3))
    bands = [collection.get_paths()[0].vertices for collection in axes[0].collections]
    for band, (_, data) in zip(bands, first.groupby("group_id", sort=False), strict=True):
        corners = {(round(x), round(y, 6)) for x, y in np.asarray(band)}
        ends = pd.concat([data["low"], data["high"]])
        assert {(e, round(100 * y, 6)) for e, y in zip([*data["epoch"]] * 2, ends, strict=True)} <= corners
    looks = {(to_hex(line.get_color()), line.get_linestyle()) for line in axes[0].lines}
    assert len({colour for colour, _ in looks}) == len({style for _, style in looks}) == 4
    assert ("#000000", "-.") in looks


def test_curves_in_turn_of_each_optimizer_where_they_are_too_many(tmp_path: Path) -> None:
    runs = [{**METHOD, "epochs": 2, "icp_lr": (i + 1) / 1000} for i in range(12)]
    write_study(tmp_path, *runs[:4], *({**run, "optimizer": "sgd"} for run in runs), seeds=1)
    drawing = figures(build(tmp_path))["accuracy-by-epoch"]
    titles = [one.get_title() for one in drawing.figure.axes]
    assert [title.split("-")[0] for title in titles] == ["SGD"] * 8 + ["Adam"] * 4
    assert "Of 16 rows, 12 are drawn, in turn of each optimizer; --where chooses others." in drawing.text


def test_a_control_without_its_method_has_a_panel(tmp_path: Path) -> None:
    write_study(tmp_path, BASELINE, {**METHOD, "direction": "ascend"})
    drawing = figures(build(tmp_path))["accuracy-by-epoch"]
    (axes,) = drawing.figure.axes
    assert axes.get_title() == "Adam-ICP ascend"
    assert len(axes.lines) == 2


def test_baselines_alone_have_one_panel(tmp_path: Path) -> None:
    write_study(tmp_path, *({**BASELINE, "lr": (i + 1) / 1000} for i in range(9)), seeds=1)
    drawn = figures(build(tmp_path))
    assert list(drawn) == ["accuracy-by-epoch", "accuracy-by-passes"]
    (axes,) = drawn["accuracy-by-epoch"].figure.axes
    assert len({(line.get_color(), line.get_linestyle()) for line in axes.lines}) == 8
    assert len({line.get_linestyle() for line in axes.lines[:4]}) == 4
    assert "Of 9 baselines, 8 are drawn" in drawn["accuracy-by-epoch"].text
    assert len(drawn["accuracy-by-passes"].figure.axes) == 6  # one for each learning rate
    assert "Of 9 panels, 6 are drawn" in drawn["accuracy-by-passes"].text


def test_compute(grid: Grid) -> None:
    report, configs = grid.report, grid.configs
    drawing = grid.drawn["accuracy-by-passes"]
    (axes,) = drawing.figure.axes
    for config in of(configs, seed=0):
        values = [measured(each, each.epochs - 1) for each in configs.values() if each.group_id == config.group_id]
        assert_row(drawing.data, values, group_id=config.group_id, passes=passes(config))
    assert len(drawing.data) == len(report.grouping.table)
    drawn = np.array(bars(axes))
    np.testing.assert_allclose(drawn[:, 1:], 100 * drawing.data[["mean", "low", "high"]].to_numpy(float))
    baselines = drawing.data["role"].isin(["baseline", "compute-matched"]).to_numpy()
    true = drawing.data["passes"].to_numpy(float)
    np.testing.assert_array_equal(drawn[baselines, 0], true[baselines])
    assert (np.diff(true[baselines]) > 0).all()
    assert (np.abs(drawn[:, 0] - true) < np.diff(np.unique(true)).min()).all()
    assert len(set(drawn[~baselines, 0])) == (~baselines).sum()  # none hides another
    (joined,) = [line for line in points_of(axes) if line.get_linestyle() != "None"]
    assert to_hex(joined.get_color()) == "#000000"
    (legend,) = drawing.figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["baseline", "SGD-ICP", "SGD-ICP ascend", "SGD-ICP random", "Adam-ICP"]
    markers = {(line.get_marker(), line.get_fillstyle()) for line in points_of(axes)}
    assert len(markers) == 5


def test_a_panel_of_compute_for_each_plain_training(tmp_path: Path) -> None:
    plain = [{"lr": 0.001}, {"lr": 0.01}]
    write_study(tmp_path, *({**run, **lr} for lr in plain for run in (BASELINE, METHOD)))
    drawing = figures(build(tmp_path))["accuracy-by-passes"]
    assert [axes.get_title() for axes in drawing.figure.axes] == ["lr=0.001", "lr=0.01"]
    assert [len(bars(axes)) for axes in drawing.figure.axes] == [2, 2]


def test_diagnostics(grid: Grid) -> None:
    drawing = grid.drawn["diagnostics"]
    axes = {one.get_title(): one for one in drawing.figure.axes}
    change = "loss after − before the perturbation"
    assert set(drawing.data["epoch"][drawing.data["diagnostic"] == change]) == {1, 2}  # not in the warm-up
    for epoch in (1, 2):
        values = [1.5 - epoch / 10 - (2.0 + seed) for seed in range(3)]
        where: dict[str, Any] = {"diagnostic": change, "optimizer": "adam", "direction": "descend", "epoch": epoch}
        assert_row(drawing.data, values, **where)
        for diagnostic, value in {
            "feature shift, largest stage": 0.3 + epoch,
            "feature shift, smallest stage": 0.1,
            "error of the feature shift, largest": 2e-3,
            "largest change of an input": 0.01,
            "weight of the task loss": 1 - epoch / 10,
        }.items():
            assert_row(drawing.data, [value] * 3, **{**where, "diagnostic": diagnostic})
    assert len(axes) == 6
    adam = axes[change].lines[-2]
    assert [*xs(adam), *ys(adam)] == pytest.approx([1, 2, -1.6, -1.7])
    noise = axes["error of the feature shift, largest"]
    assert noise.get_yscale() == "log"
    assert ys(noise.lines[-1]) == [1, 1]
    assert len(axes["feature shift, largest stage"].lines) == 8  # of each optimizer and direction two


def test_pooled_rows(tmp_path: Path) -> None:
    runs = [
        {**METHOD, "optimizer": o, "steps": s, "icp_lr": lr}
        for o in ("sgd", "adam")
        for s in (1, 3)
        for lr in (0.01, 0.1)
    ]
    configs = write_study(tmp_path, BASELINE, *runs)
    report = build(tmp_path, by=["steps"])
    drawn = figures(report)
    assert list(drawn) == [
        "accuracy-differences",
        "accuracy-by-epoch",
        "accuracy-by-passes",
        "accuracy-by-steps",
        "diagnostics",
    ]
    (row,) = report.grouping.table.query("steps == 3").index
    rows: list[tuple[str, dict[str, Any]]] = [
        ("accuracy-by-epoch", {"group_id": row, "epoch": 2}),
        ("accuracy-by-passes", {"group_id": row}),
        ("accuracy-by-steps", {"steps": 3}),
    ]
    for name, where in rows:
        values = [statistics.fmean(measured(c, 2) for c in of(configs, steps=3, seed=seed)) for seed in range(3)]
        assert_row(drawn[name].data, values, **where)
    assert "ICP" in words(drawn["accuracy-by-steps"])
    assert [len(axes.lines) for axes in drawn["accuracy-by-epoch"].figure.axes] == [2, 2]


def test_a_pooled_line_ends_with_its_shortest_run(tmp_path: Path) -> None:
    write_study(
        tmp_path, {**METHOD, "steps": 1}, {**METHOD, "steps": 1, "epochs": 5}, {**METHOD, "steps": 2, "epochs": 5}
    )
    drawing = figures(build(tmp_path, by=["steps"]))["accuracy-by-epoch"]
    ends = drawing.data.groupby("label")["epoch"].max()
    assert ends.to_dict() == {"Adam-ICP, T=1": 2, "Adam-ICP, T=2": 4}
    assert "ends with the shortest" in drawing.text


def test_the_best_epoch(tmp_path: Path) -> None:
    for seed in range(2):
        write_run(tmp_path, resolve({**METHOD, "seed": seed}), [0.1, 0.6 + seed / 10, 0.3], val=[0.1, 0.9, 0.2])
    drawn = figures(build(tmp_path, metric="accuracy_best"))
    assert list(drawn) == ["accuracy-by-epoch", "accuracy-best-by-passes", "diagnostics"]
    assert_row(drawn["accuracy-by-epoch"].data, [0.3, 0.3], epoch=2)
    assert_row(drawn["accuracy-best-by-passes"].data, [0.6, 0.7])
    assert "at the best epoch" in drawn["accuracy-best-by-passes"].text


def test_models_and_data_sets_apart(tmp_path: Path) -> None:
    write_study(tmp_path, METHOD, {**METHOD, "dataset": "folder:/a/x"}, {**METHOD, "dataset": "folder:/b/x"}, seeds=1)
    drawn = figures(build(tmp_path))
    assert {name for name in drawn if "epoch" in name} == {
        "accuracy-by-epoch-resnet20-on-digits",
        "accuracy-by-epoch-resnet20-on-folder-x",
        "accuracy-by-epoch-resnet20-on-folder-x-3",
    }
    assert {drawn[name].title for name in drawn if "passes" in name} == {
        "Accuracy by compute – resnet20 on digits",
        "Accuracy by compute – resnet20 on folder:x",
    }


def test_odd_names_are_drawn_as_they_are(tmp_path: Path) -> None:
    odd = r"folder:/data/a$b_c^{<&$"
    write_study(
        tmp_path, *({**METHOD, "dataset": name, "steps": s} for name in (odd, "digits") for s in (1, 2)), seeds=1
    )
    drawn = [drawing for name, drawing in figures(build(tmp_path)).items() if "epoch" in name]
    assert len(drawn) == 2
    for drawing in drawn:
        root = ET.fromstring(svg(drawing))
        assert root.get("fill") == "#000000"
        titles = [axes.get_title() for axes in drawing.figure.axes]
        assert all("$" not in title.replace(r"\$", "") for title in titles)


def test_one_run_of_one_epoch(tmp_path: Path) -> None:
    config = resolve({**METHOD, "epochs": 1, "warmup_epochs": 0})
    write_run(tmp_path, config, [0.5])
    drawn = figures(build(tmp_path))
    assert list(drawn) == ["accuracy-by-epoch", "accuracy-by-passes", "diagnostics"]
    (line,) = drawn["accuracy-by-epoch"].figure.axes[0].lines
    assert (ys(line), line.get_marker()) == ([50], "o")
    for drawing in drawn.values():
        svg(drawing)


@pytest.mark.filterwarnings("error")
def test_values_that_are_not_finite(tmp_path: Path) -> None:
    settings = [BASELINE, *({**METHOD, "optimizer": o, "steps": s} for o in ("sgd", "adam") for s in (1, 3))]
    for of_group in settings:
        for seed, last in enumerate((math.nan, math.inf, 0.5)):
            write_run(tmp_path, resolve({**of_group, "seed": seed}), [0.1, -math.inf, last])
    drawn = figures(build(tmp_path))
    assert_row(drawn["accuracy-by-steps"].data, [0.5], optimizer="adam", steps=3)
    assert drawn["accuracy-by-epoch"].data["epoch"].unique().tolist() == [0, 2]
    for drawing in drawn.values():
        svg(drawing)


def test_without_a_finished_run_there_is_none(tmp_path: Path) -> None:
    write_run(tmp_path, config := resolve(METHOD), [0.1])
    RunFolder(tmp_path, config).write_status("running")
    assert study_figures(build(tmp_path)) == []


def test_hundreds_of_groups(tmp_path: Path) -> None:
    for index in range(200):
        config = resolve({**METHOD, "epochs": 1, "warmup_epochs": 0, "icp_lr": (index + 1) / 1000})
        write_run(tmp_path, config, [index / 200])
    drawn = figures(build(tmp_path))
    (axes,) = drawn["accuracy-by-icp-lr"].figure.axes
    labels = [label.get_text() for label in axes.get_xticklabels() if label.get_text()]
    assert 3 < len(labels) < 40
    compute = drawn["accuracy-by-passes"]
    assert "bars of the method and its controls are left out" in compute.text
    assert len(bars(compute.figure.axes[0])) == 200
    svg(compute)


def test_the_same_report_gives_the_same_bytes(tmp_path: Path) -> None:
    write_study(tmp_path, BASELINE, *({**METHOD, "steps": steps} for steps in (1, 3)), seeds=2)
    again = figures(build(tmp_path))
    for name, drawing in figures(build(tmp_path)).items():
        assert svg(drawing) == svg(again[name])


@pytest.mark.parametrize("name", ["accuracy-by-epoch", "accuracy-by-steps", "accuracy-by-steps-and-icp-lr"])
def test_black_is_named_and_nothing_is_white(grid: Grid, name: str) -> None:
    content = svg(grid.drawn[name])
    assert "#ffffff" not in content
    assert content.count("#000000") > 2  # of the root, which texts have theirs from; and of lines


def test_png_is_on_white(grid: Grid) -> None:
    pixels = imread(io.BytesIO(encode(grid.drawn["accuracy-by-steps"].figure, "png")))
    assert pixels[0, 0].tolist() == [1, 1, 1, 1]


def test_torch_is_not_imported() -> None:
    code = "import sys, icpctl.report.figures.study; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
