"""`icpctl.report` in Python and in a notebook: data frames, and tables that show themselves."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pandas as pd
import pytest
from reports import write_run

import icpctl
from icpctl.config import resolve
from icpctl.report import Report, build

DOCS = Path(__file__).resolve().parents[2] / "docs"
ICP = {"dataset": "digits", "epochs": 3, "steps": 1}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    for seed in range(3):
        icp = resolve({**ICP, "seed": seed})
        write_run(tmp_path, icp, [0.1, 0.2, 0.5 + seed / 100])
        write_run(tmp_path, icp.baseline(), [0.1, 0.2, 0.4 + seed / 90])
    return tmp_path


def test_it_is_the_report_of_the_command_line_as_data_frames(results: Path) -> None:
    given, expected = icpctl.report(str(results)), build(results)
    assert isinstance(given, Report)
    for name in ("runs", "summary", "comparisons"):
        pd.testing.assert_frame_equal(getattr(given, name), getattr(expected, name))
    assert len(icpctl.report([results], where="seed=0", by="steps").runs) == 2
    with pytest.raises(icpctl.UserError, match="nowhere"):
        icpctl.report(results.parent / "nowhere")


def test_it_is_a_public_name_and_still_a_package() -> None:
    assert "report" in dir(icpctl)
    from icpctl.report.command import Request

    assert Request().target == Path("results")


def test_it_shows_its_tables_and_nothing_in_them_is_markup(results: Path) -> None:
    write_run(results, resolve({**ICP, "dataset": "folder:/a/<b>x"}), [0.1, 0.2, 0.3])
    report = icpctl.report(results)
    shown = report._repr_html_()
    assert "AdEMAMix-ICP, resnet20 on digits is better than the baseline" in shown
    assert shown.count("<table") == 2
    assert "<b>x" not in shown
    assert "&lt;b&gt;x" in shown
    for label in report.grouping.table["label"]:
        assert label.replace("<", "&lt;").replace(">", "&gt;") in shown
    assert "Mean ± standard deviation over the seeds" in shown


def test_it_is_printed_as_the_report_in_markdown(results: Path) -> None:
    write_run(results, resolve({**ICP, "dataset": "folder:/a/\x1b[31m"}), [0.1, 0.2, 0.3])
    text = str(icpctl.report(results))
    assert "| AdEMAMix-ICP, resnet20 on digits |" in text
    assert "better" in text
    assert "\x1b" not in text
    assert len(text) < 10_000


def test_the_notebook_of_the_documentation_runs(tmp_path: Path) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.read(DOCS / "notebook.ipynb", as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}})
    client.execute(env=os.environ | {"IPYTHONDIR": str(tmp_path / "ipython")})
    (shown,) = [
        output["data"]["text/html"]
        for cell in notebook.cells
        if cell["cell_type"] == "code" and cell["source"].endswith("\nreport")
        for output in cell["outputs"]
    ]
    assert "AdEMAMix-ICP" in shown
    assert "baseline" in shown
    assert len(list((tmp_path / "results").glob("*/metrics.csv"))) == 6


def test_the_notebook_is_kept_without_outputs() -> None:
    cells = json.loads((DOCS / "notebook.ipynb").read_text("utf-8"))["cells"]
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in cells)
