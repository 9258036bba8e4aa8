"""The curves on training images beside those on the test images."""

from __future__ import annotations

from pathlib import Path

import pytest
from drawn import figures, write_run

from icpctl.config import resolve
from icpctl.report import build
from icpctl.runs.folder import RunFolder

ICP = {"dataset": "digits", "epochs": 3, "warmup_epochs": 1, "optimizer": "adam"}


def test_both_are_drawn_for_a_method_and_its_baseline(tmp_path: Path) -> None:
    for seed in range(2):
        icp = resolve({**ICP, "seed": seed})
        for config, above in ((icp, 0.1), (icp.baseline(), 0.2)):
            curve = [0.1, 0.2, 0.3 + seed / 10]
            write_run(tmp_path, config, curve)
            with RunFolder(tmp_path, config).metrics_file.open("a") as file:
                for epoch, value in enumerate(curve):
                    file.write(f"{config.run_id},{epoch},fit,accuracy,{value + above}\n")
    drawing = figures(build(tmp_path))["accuracy-fit-and-test"]
    last = drawing.data[drawing.data["epoch"] == 2].set_index(["label", "split"])["mean"]
    assert last["Adam-ICP", "test"] == pytest.approx(0.35)
    assert last["Adam-ICP", "fit"] == pytest.approx(0.45)
    assert last["baseline", "fit"] == pytest.approx(0.55)
    (axes,) = drawing.figure.axes
    styles = sorted((line.get_color(), line.get_linestyle()) for line in axes.lines)
    assert styles == [("#000000", "-"), ("#000000", ":"), ("#0072B2", "-"), ("#0072B2", ":")]


def test_runs_without_it_have_no_such_figure(tmp_path: Path) -> None:
    write_run(tmp_path, resolve(ICP), [0.1, 0.2, 0.3])
    assert "accuracy-fit-and-test" not in figures(build(tmp_path))
