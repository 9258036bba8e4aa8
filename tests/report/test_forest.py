"""The forest plot has the numbers of comparisons.csv, and the first sentence those of the verdicts."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from drawn import figures, write_run
from matplotlib.axes import Axes

from icpctl.config import resolve
from icpctl.config.catalogue import METHODS, Control, Variant
from icpctl.config.cost import compute_matched
from icpctl.report import Report, build
from icpctl.report.cells import lead
from icpctl.report.figures import forest

ICP = {"dataset": "digits", "epochs": 3, "warmup_epochs": 1, "optimizer": "adam"}
OTHERS = ("label-smoothing", "ps-kd", "sam")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """ICP far above its baseline, far below the compute-matched one, and near the other methods."""
    folder = tmp_path_factory.mktemp("forest")
    generator = np.random.default_rng(0)
    for seed in range(6):
        icp = resolve({**ICP, "seed": seed})
        level = 0.5 + seed / 100
        values = {icp: 0.0, icp.baseline(): -0.2, compute_matched(icp): 0.2}
        values |= {icp.altered(method=method): 0.001 for method in OTHERS}
        for config, above in values.items():
            end = level + above + generator.normal(0, 0.004)
            write_run(folder, config, np.linspace(0.1, end, config.epochs).tolist())
    return build(folder)


def test_a_method_that_is_added_later_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own = Variant("Own method", "#999999", "P")
    control = Control({"sam_rho": 0.5}, "its control of its own", "its own control", "--", "none")
    row = replace(METHODS["sam"], label="Own method", variants={"own": own}, controls={"turned": control})
    monkeypatch.setitem(METHODS, "own", row)
    for seed in range(3):
        icp = resolve({**ICP, "seed": seed})
        own_run = icp.altered(method="own")
        for place, config in enumerate((icp, icp.baseline(), own_run, own_run.altered(sam_rho=0.5))):
            write_run(tmp_path, config, [0.5, 0.6, 0.5 + place / 10 + seed / 100])
    report = build(tmp_path)
    figures(report)
    said = " ".join(report.comparisons["sentence"])
    assert "Own method" in said
    assert "its control of its own" in said


def drawn(axes: Axes) -> pd.DataFrame:
    """What stands in each row of the plot: its label, the point and the ends of the bar, in points."""
    labels = dict(zip(axes.get_yticks(), [label.get_text() for label in axes.get_yticklabels()], strict=True))
    rows: dict[float, dict[str, object]] = {place: {"label": label} for place, label in labels.items()}
    for line in axes.lines:
        x, y = np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)
        if len(x) == 1:
            rows[y[0]]["difference"] = x[0]
        elif y[0] in rows and y[0] == y[1]:
            rows[y[0]] |= {"low": x[0], "high": x[1]}
    return pd.DataFrame([rows[place] for place in sorted(rows)])


def test_its_numbers_are_those_of_the_comparisons(report: Report) -> None:
    drawing = figures(report)["accuracy-differences"]
    assert drawing.verdicts
    table = report.comparisons[report.comparisons["metric"] == "accuracy"]
    keys = ["group_id", "against"]
    merged = drawing.data.merge(table, on=keys, suffixes=("", "_of_table"), validate="one_to_one")
    assert len(merged) == len(drawing.data) == len(table)
    for name in ("difference", "low", "high", "p", "p_holm", "seeds", "verdict"):
        assert (merged[name] == merged[f"{name}_of_table"]).all()
    seen = drawn(drawing.figure.axes[0])
    for name in ("difference", "low", "high"):
        assert seen[name].to_numpy(float) == pytest.approx(100 * drawing.data[name].to_numpy(float))
    labels = [label.split(" − ")[0] for label in seen["label"]]
    assert labels == drawing.data["label"].tolist()
    assert "Adam-ICP − PS-KD" in seen["label"].tolist()
    headings = [text.get_text() for text in drawing.figure.axes[0].texts]
    assert headings == [
        "minus the baseline",
        "minus the compute-matched baseline",
        "minus label smoothing",
        "minus other methods",
    ]
    assert "right: better" in drawing.figure.axes[0].get_xlabel()
    legend = [text.get_text() for text in drawing.figure.legends[0].get_texts()]
    assert legend == ["better", "worse", "cannot tell"]


def test_of_many_the_claims_come_first(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forest, "MOST_ROWS", 3)
    drawing = figures(report)["accuracy-differences"]
    table = report.comparisons[report.comparisons["metric"] == "accuracy"]
    assert len(drawing.data) == 3
    assert drawing.data["verdict"].isin(["better", "worse"]).all()
    assert f"Of {len(table)} comparisons, 3 are drawn" in drawing.text


def test_without_a_comparison_there_is_none(tmp_path: Path) -> None:
    write_run(tmp_path, resolve(ICP), [0.1, 0.2, 0.3])
    alone = build(tmp_path)
    assert "accuracy-differences" not in figures(alone)
    assert lead(alone, "classification") == ""


@pytest.mark.parametrize("seeds", [1, 2])
def test_of_one_seed_or_two_there_is_a_point_and_no_bar(seeds: int, tmp_path: Path) -> None:
    for seed in range(seeds):
        icp = resolve({**ICP, "seed": seed})
        for config, end in ((icp, 0.5 + seed / 100), (icp.baseline(), 0.4 + seed / 100 + seed / 1000)):
            write_run(tmp_path, config, [0.1, 0.2, end])
    seen = drawn(figures(build(tmp_path))["accuracy-differences"].figure.axes[0])
    assert seen["difference"].tolist() == pytest.approx([10.0], abs=0.1)
    assert "low" not in seen


def test_the_first_sentence_says_what_is_claimed(report: Report) -> None:
    sentence = lead(report, "classification")
    table = report.comparisons[report.comparisons["metric"] == "accuracy"]
    claims = table[table["verdict"].isin(["better", "worse"])]
    assert sentence.startswith(
        f"In accuracy, {len(claims)} of {table['p'].notna().sum()} comparisons of 6 seeds show a difference:"
    )
    assert re.search(r"Adam-ICP is better than the baseline, by (19|20)\.\d+ points", sentence)
    assert re.search(r"Adam-ICP is worse than the compute-matched baseline, by (19|20)\.\d+ points", sentence)
    undecided = (table["verdict"] == "cannot tell").sum()
    assert (
        f"{undecided} cannot be decided with these seeds, which does not show that there is no difference." in sentence
    )
