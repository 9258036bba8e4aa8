"""The documentation as a site: it builds with every link checked, needs nothing from outside, and its pictures are current."""

from __future__ import annotations

import functools
import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import findings
import method_picture
import pandas as pd
import pytest
import record
import results
from browsing import CHROMIUM, chromium, opened
from scipy.stats import ttest_rel
from statsmodels.stats.multitest import multipletests

from icpctl.ablate.command import define
from icpctl.config import RunConfig
from icpctl.config.cost import passes

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
TUTORIAL = ROOT / "docs" / "tutorial.md"
REPRODUCE = ROOT / "docs" / "reproduce"
FOREIGN = re.compile(r"""(?:<(?:script|img|iframe|source)[^>]*\ssrc|<link[^>]*\shref)=["']?(?:https?:)?//""")
"""What a browser would load from elsewhere by itself; links that a reader may follow are none."""


def build(folder: Path, configuration: Path = ROOT / "mkdocs.yml") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--config-file", str(configuration), "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=configuration.parent)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs") / "site"
    done = build(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def pages(site: Path) -> list[Path]:
    return sorted(path for path in site.rglob("*.html") if path.name not in ("404.html", "example-report.html"))


def test_every_page_is_built_and_in_the_navigation(site: Path) -> None:
    names = {path.stem for path in (ROOT / "docs").glob("*.md")} | {"index", "changelog", "contributing"}
    assert {path.stem for path in pages(site)} == names
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    assert {*re.findall(r": ([\w-]+)\.md$", navigation, re.M)} == names


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    for page in pages(site):
        assert not FOREIGN.search(page.read_text(encoding="utf-8")), page.name
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import )[\"']?(?:https?:)?//", sheet.read_text(encoding="utf-8")), sheet.name


def test_formulas_are_drawn_without_a_script(site: Path) -> None:
    text = (site / "method.html").read_text(encoding="utf-8")
    assert text.count("<math") > 50
    assert not re.search(r"arithmatex|\$\$|\\frac", text)


def test_code_is_broken_between_words_and_a_column_of_sentences_is_not_one_word_wide(site: Path) -> None:
    text = (site / "cli.html").read_text(encoding="utf-8")
    assert '<span class="word">--compute-matched</span>' in text
    widths = [float(width) for width in re.findall(r'<th style="min-width: ([\d.]+)rem;">meaning</th>', text)]
    assert len(widths) == text.count(">meaning</th>") > 10
    assert max(widths) == 9


def test_no_line_of_output_is_drawn_as_a_command(site: Path) -> None:
    """Pygments takes "% interval", where an output is wrapped, for a prompt and a command."""
    prompts = re.findall(r'<span class="gp">([^<]*)</span>', (site / "tutorial.html").read_text(encoding="utf-8"))
    assert {*prompts} == {"$ "}


def test_what_a_function_returns_is_one_row(site: Path) -> None:
    assert re.search(r"of\s+the\s+model's\s+own\s+structure", (site / "api.html").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("[there](nowhere.md)", "nowhere.md"),
        ("[there](data.md#no-such-part)", "no-such-part"),
        ("[](#nor-here)", "nor-here"),
    ],
)
def test_a_broken_link_or_anchor_fails_the_build(broken: str, said: str, tmp_path: Path) -> None:
    for name in ("docs", "benchmarks"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("mkdocs.yml", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "CITATION.cff"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "docs" / "api.md").write_text(f"# API\n\n{broken}\n")  # mkdocstrings has nothing to read there
    done = build(tmp_path / "site", tmp_path / "mkdocs.yml")
    assert done.returncode != 0
    assert said in done.stdout + done.stderr


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def served(site: Path) -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.skipif(CHROMIUM is None, reason="there is no browser")
@pytest.mark.slow
def test_a_browser_shows_every_page_and_asks_nobody_else(site: Path, served: str) -> None:
    with chromium() as browser:
        for page in pages(site):
            for width in (1280, 400):
                address = f"{served}/{page.relative_to(site).as_posix()}"
                with opened(browser, address, viewport={"width": width, "height": 900}) as it:
                    it.page.wait_for_load_state("networkidle")
                    assert not [
                        request for request in it.requests if not request.startswith((served, "data:", "blob:"))
                    ]
                    assert not it.messages, page.name
                    assert it("document.documentElement.scrollWidth") <= width, (
                        f"{page.name} is wider than {width} pixels"
                    )


def test_the_pictures_and_the_table_of_findings_are_current() -> None:
    assert findings.main(["--check"]) == 0
    assert method_picture.FILE.read_text(encoding="utf-8") == method_picture.picture().svg()


def test_the_readme_says_what_the_runs_of_the_study_say() -> None:
    """Computed anew with scipy and statsmodels, from the table of the study alone."""
    runs = pd.read_csv(results.RESULTS / f"{findings.STUDY}.csv").set_index("run_id", drop=False)
    accuracy = 100 * runs["accuracy"]
    of = {"ICP": runs[runs["role"] == "method"]}
    of |= {name: runs[(runs["role"] == "control") & (runs["direction"] == name)] for name in ("ascend", "random")}
    pairs = {
        (name, column): (part["run_id"], part[column])
        for name, part in of.items()
        for column in ("baseline_run", "matched_run")
    }
    pairs |= {("ICP", name): (of[name]["method_run"], of[name]["run_id"]) for name in ("ascend", "random")}
    tests = {
        key: ttest_rel(accuracy[ours].to_numpy(), accuracy[theirs].to_numpy()) for key, (ours, theirs) in pairs.items()
    }
    corrected = dict(zip(tests, multipletests([test.pvalue for test in tests.values()], method="holm")[1], strict=True))
    expected = []
    for key in (
        ("ICP", "baseline_run"),
        ("ICP", "matched_run"),
        ("ICP", "random"),
        ("ICP", "ascend"),
        ("random", "baseline_run"),
    ):
        ours, theirs = pairs[key]
        difference = (accuracy[ours].to_numpy() - accuracy[theirs].to_numpy()).mean()
        interval = tests[key].confidence_interval(0.95)
        numbers = [f"{value:+.1f}".replace("-", "−") for value in (difference, interval.low, interval.high)]
        verdict = "cannot tell" if corrected[key] > 0.05 else "better" if difference > 0 else "worse"
        expected.append(["{} ({} to {})".format(*numbers), verdict])
    text = README.read_text(encoding="utf-8").partition("<!-- findings -->")[2].partition("<!-- end of findings -->")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")
    ][2:]
    assert [row[2:] for row in rows] == expected


@pytest.mark.parametrize(("table", "model", "dataset"), [("table1", "resnet20", "cifar100"), ("table2", "vae", "cub")])
def test_the_studies_of_the_paper_mean_the_runs_of_its_tables(table: str, model: str, dataset: str) -> None:
    path = REPRODUCE / f"{table}.toml"
    runs = define({}, study=path).runs()
    assert len(runs) == 20
    kinds = {(run.config.optimizer, run.config.seed) for run in runs}
    assert kinds == {(optimizer, seed) for optimizer in ("none", "sgd", "adam", "ademamix") for seed in range(5)}
    for run in runs:
        config = run.config
        assert (config.model, config.dataset, config.epochs, config.recipe) == (model, dataset, 100, "paper")
        assert (config.model_optimizer, config.lr, config.batch_size, config.clip_grad_norm) == ("adamw", 3e-4, 32, 5)
        if config.optimizer != "none":
            assert (config.warmup_epochs, config.steps, config.icp_lr) == (25, 5, 0.002)
            assert (config.layer_weights, config.pass_order, config.direction) == ("cosine", "student-first", "descend")
    whole = define({}, study=path, controls=True, compute_matched=True).runs()
    assert {run.role for run in whole} == {"baseline", "method", "control", "compute-matched"}
    assert {config.run_id for config in (run.config for run in runs)} <= {run.config.run_id for run in whole}
    costs = {passes(run.config) for run in whole}
    assert costs == {300, 1125}
    page = (ROOT / "docs" / "reproduce.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith(f"| Table {table[-1]}") and " hours" not in line]
    assert [f"| {len(study)} |" in row for study, row in zip((runs, whole), rows[-2:], strict=True)] == [True, True]


def test_a_recording_shows_the_part_that_is_asked_for() -> None:
    output = ["one", "two", "three", "four"]
    assert record._part(output, "lines", "", 2) == ["one", "two", "…"]
    assert record._part(output, "from", "tw", 2) == ["…", "two", "three", "…"]
    assert record._part(output, "to", "four", 2) == ["…", "three", "four"]
    assert record._part(output, "lines", "", 9) == output
    with pytest.raises(SystemExit, match="five"):
        record._part(output, "from", "five", 2)


def test_a_page_is_filled_with_what_its_commands_print(tmp_path: Path) -> None:
    page = 'Before.\n\n<!-- output: from "b" 1 -->\n```console\n$ printf "%s\\n" a b \\\n    c\nold\n```\n\nAfter.\n'
    assert record.recorded(page, tmp_path) == page.replace("old\n", "…\nb\n…\n")


@pytest.mark.parametrize("page", [README, TUTORIAL], ids=lambda page: page.name)
def test_every_console_block_is_recorded(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert len(record.BLOCK.findall(text)) == text.count("```console\n") > 0
    shown = [
        line for block in record.BLOCK.findall(text) for line in block[3].splitlines() if not line.startswith("$ ")
    ]
    assert max(map(len, shown)) <= record.WIDTH


def test_the_tutorial_and_the_readme_train_what_they_report() -> None:
    assert f"--output {record.STUDY}\n" in README.read_text(encoding="utf-8")
    assert f"--output {record.STUDY}\n" in TUTORIAL.read_text(encoding="utf-8")
    assert RunConfig(dataset="digits", epochs=8).warmup_epochs == 2  # as the tutorial says
