"""The report as text: LaTeX that compiles, JSON and Markdown that are whole, tables that fit the terminal and cut nothing."""

from __future__ import annotations

import html
import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from reports import ODD, configs, printed, write_everything, write_run

from icpctl.config import RunConfig, resolve
from icpctl.report import Report, build
from icpctl.report.cells import compared
from icpctl.report.formats import Format, render
from icpctl.report.groups import short_dataset
from icpctl.report.latex import _latex_text
from icpctl.report.terminal import _stacked
from icpctl.runs.measures import measure_of
from icpctl.runs.table import records

TEX = shutil.which("pdflatex")
needs_tex = pytest.mark.skipif(TEX is None, reason="needs pdflatex")


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Two tasks, controls, odd names, damaged runs."""
    folder = tmp_path_factory.mktemp("odd")
    write_everything(folder)
    return build(folder)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Report:
    folder = tmp_path_factory.mktemp("small")
    for config in configs(["steps=1,3"], 5, dataset="digits"):
        write_study(folder, config)
    return build(folder)


def write_study(folder: Path, config: RunConfig) -> None:
    gain = 0.0 if config.optimizer == "none" else config.steps / 100
    write_run(
        folder, config, [0.1, 0.6 + gain + config.seed / 100 + (config.steps * config.seed) % 3 / 1000], [0.1, 0.2]
    )


def typeset(folder: Path, body: str, options: str = "") -> tuple[str, str]:
    """What pdflatex says of a document that has `body`, and the text of what it makes."""
    packages = r"\usepackage{booktabs,graphicx,longtable}"
    text = f"\\documentclass{{article}}\n{options}{packages}\n\\begin{{document}}\n{body}\n\\end{{document}}\n"
    (folder / "paper.tex").write_text(text, encoding="utf-8")
    command = [str(TEX), "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "paper.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True, timeout=600)
    log = done.stdout.decode(errors="replace")
    assert done.returncode == 0, log[-2000:]
    if shutil.which("pdftotext") is None:
        return log, ""
    command = ["pdftotext", "-layout", "paper.pdf", "-"]
    return log, subprocess.run(command, cwd=folder, capture_output=True, check=True).stdout.decode()


def overfull(log: str) -> list[float]:
    """Of boxes that stick out, by how many points; to the side alone."""
    return [float(points) for points in re.findall(r"Overfull \\hbox \(([\d.]+)pt", log)]


# LaTeX


def rows_of(table: str) -> list[list[str]]:
    """The cells of a LaTeX table, its heading first."""
    return [line.removesuffix(r" \\").split(" & ") for line in table.splitlines() if line.endswith(r" \\")]


def test_latex_has_a_table_of_means_and_one_of_differences(small: Report) -> None:
    latex = render(small, "latex")
    assert latex.startswith("% \\usepackage{booktabs,graphicx}\n\\begin{table}")
    means, differences = latex.split(r"\end{table}")[:2]
    assert r"\caption{Model resnet20, dataset digits, seeds 5. Test split" in means
    summary = small.summary[small.summary["metric"] == "accuracy"]
    heading, *rows = rows_of(means)
    assert heading[:3] == ["group", r"accuracy \%", r"macro F1 \%"]
    assert [row[1] for row in rows] == [
        f"${100 * mean:.2f} \\pm {100 * std:.2f}$" for mean, std in summary[["mean", "std"]].to_numpy()
    ]
    heading, *rows = rows_of(differences)
    table = compared(small, "classification")
    assert heading == ["group", "minus", "seeds", "difference", r"95 \% interval", "p (Holm)", "verdict"]
    ends = 100 * table[["difference", "low", "high"]]
    assert [row[3:5] for row in rows] == [
        [f"${mean:+.2f}$", f"$[{low:+.2f}, {high:+.2f}]$"] for mean, low, high in ends.to_numpy()
    ]
    assert [row[-1] for row in rows] == table["verdict"].tolist()
    assert "p: two-sided paired t tests." in differences  # one of the two has no spread
    assert latex.rstrip().splitlines()[-1].startswith("% Note: No run of classification")


def test_latex_says_among_how_many_comparisons_p_is_corrected(odd: Report) -> None:
    tested = compared(odd, "classification")["p"].notna().sum()
    assert f"corrected for {tested} comparisons (Holm)." in render(odd, "latex").split(r"\end{table}")[1]


@needs_tex
def test_latex_compiles_and_keeps_to_the_page(tmp_path: Path, small: Report) -> None:
    log, _ = typeset(tmp_path, render(small, "latex"))
    assert [points for points in overfull(log) if points > 5] == []


def test_without_a_test_latex_promises_none(tmp_path: Path) -> None:
    for config in configs(["steps=1"]):
        write_study(tmp_path, config)
    latex = render(build(tmp_path), "latex")
    assert r"\caption{Differences in accuracy (points), paired by seed.}" in latex
    assert "Holm" not in latex
    assert "interval" not in latex


def test_latex_keeps_quotation_marks_signs_and_letters_and_loses_accents_before_letters() -> None:
    assert _latex_text("“a”, ‘b’ − 1 ± 2 ≤ 3 … – —") == r"``a'', `b' $-$ 1 $\pm$ 2 $\leq$ 3 \ldots{} -- ---"
    assert _latex_text("η=0.1, λ₁, Ω") == r"$\eta$=0.1, $\lambda$$_1$, $\Omega$"
    assert _latex_text("Müller, Ørsted, Wałęsa, Ａ") == "Müller, Ørsted, Wałesa, A"
    assert _latex_text("中") == "?"


@needs_tex
@pytest.mark.parametrize("options", ["", "\\usepackage[T1]{fontenc}\n"])
def test_latex_with_odd_names_compiles_and_shows_them(tmp_path: Path, odd: Report, options: str) -> None:
    latex = render(odd, "latex")
    log, text = typeset(tmp_path, latex, options)
    assert "root:" not in log + text
    assert latex.count(r"\caption{") == 2 * 2
    if text and options:  # fonts that have all characters as one
        text = text.replace("∗", "*").replace(" *", "*").replace("* ", "*")
        for name in (
            r"passwd} $x_1$ 50% a~b^2 #1 {c} a\\b",
            "{{ 7*7 }}{% raw %}",
            "mice ? ???? ???? ??",
            "&amp; &lt;i&gt;",
        ):
            assert f"resnet20 on folder:{name}" in text


@needs_tex
@pytest.mark.parametrize("options", ["", "\\usepackage[T1]{fontenc}\n"])
def test_every_character_compiles_as_latex(tmp_path: Path, options: str) -> None:
    characters = [*map(chr, range(0x500)), *"’“”–—…×±≤≥≠→−αβεημσ₁₂₃🐭中ש\u202e\ud800\ufffde\u0301"]
    body = "\n\n".join(_latex_text(f"({character})") for character in [*characters, *ODD, "".join(ODD)])
    _, text = typeset(tmp_path, body, options)
    assert _latex_text("e\u0301") == "é"
    if text and options:
        assert "(é)" in text
        assert "(ü)" in text
        assert r"\input{/etc/passwd} $x" in text


@needs_tex
def test_a_long_latex_table_goes_on_over_pages_with_its_heading(tmp_path: Path) -> None:
    for config in configs(["steps=1..65"]):
        write_study(tmp_path, config)
    latex = render(build(tmp_path), "latex")
    assert latex.startswith("% \\usepackage{booktabs,longtable}\n")
    assert latex.count(r"\begin{longtable}") == 2
    assert latex.count("Mean $\\pm$ standard deviation") == 1  # on the first page
    (tmp_path / "tex").mkdir()
    for _ in range(2):  # until the widths of the columns stay
        log, text = typeset(tmp_path / "tex", latex)
    assert [points for points in overfull(log) if points > 5] == []
    if text:
        assert "Continued." in text
        assert text.count("accuracy %") + text.count("minus") >= text.count("\f") >= 3  # a heading a page
        assert all(f"T={steps}" in text for steps in range(1, 66))


def test_a_heading_is_broken_after_commas_and_never_before_its_unit() -> None:
    headings = [
        "accuracy, best epoch %",
        "accuracy %",
        "macro F1 %",
        "95 % interval",
        "top-5 accuracy %",
        "FID rec. (a)",
    ]
    broken = [
        "accuracy,\nbest epoch %",
        "accuracy %",
        "macro F1 %",
        "95 %\ninterval",
        "top-5\naccuracy %",
        "FID rec. (a)",
    ]
    assert [_stacked(heading) for heading in headings] == broken


# JSON, CSV, Markdown


def test_json_is_whole_and_has_null_for_what_is_missing(odd: Report) -> None:
    def refuse(constant: str) -> float:
        raise AssertionError(constant)

    content = json.loads(render(odd, "json"), parse_constant=refuse)
    assert list(content) == ["metrics", "settings", "notes", "runs", "summary", "comparisons"]
    assert (len(content["summary"]), len(content["comparisons"])) == (len(odd.summary), len(odd.comparisons))
    for column in ("mean", "std", "high", "seeds"):
        read = [float("nan") if row[column] is None else row[column] for row in content["summary"]]
        assert read == pytest.approx(odd.summary[column].tolist(), abs=1e-14, nan_ok=True)
    untested = [row for row in content["comparisons"] if row["verdict"] == "no test"]
    assert untested
    assert all(row["p"] is None and row["p_holm"] is None for row in untested)
    assert {row["dataset"] for row in content["summary"]} >= {f"folder:/data/{name}" for name in ODD}
    assert content["notes"] == odd.notes


def test_values_that_json_has_no_number_for_are_null(tmp_path: Path) -> None:
    for config in configs(["steps=1"], 2):
        write_run(tmp_path, config, [0.1, float("inf") if config.seed else 0.5])
    content = json.loads(render(build(tmp_path), "json"), parse_constant=lambda constant: pytest.fail(constant))
    accuracies = [row for row in content["summary"] if row["metric"] == "accuracy"]
    assert [(row["seeds"], row["mean"], row["std"]) for row in accuracies] == [(1, 0.5, None)] * 2
    assert [row["accuracy"] for row in content["runs"]].count(None) == 2


def cells(line: str) -> list[str]:
    """Of a row of a Markdown table, as GitHub reads it: a bar that is escaped is none."""
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def test_markdown_rows_have_as_many_cells_as_their_heading_and_names_make_no_markup(odd: Report) -> None:
    markdown = render(odd, "markdown")
    lines = markdown.splitlines()
    tables = [list(rows) for is_row, rows in itertools.groupby(lines, lambda line: line.startswith("|")) if is_row]
    assert len(tables) == 3 * 2  # groups, differences, verdicts, of two tasks
    for table in tables:
        assert {len(cells(line)) for line in table} == {len(cells(table[0]))}
        assert set(re.sub(r"[\s|:-]", "", table[1])) == set()
    rows = [cells(line) for line in tables[0][2:]]
    assert len(rows) == (odd.grouping.table["task"] == "classification").sum()
    assert not set("<>") & set(markdown)
    assert not re.search(r"(?<!\\)[\[\]`$]", markdown)  # no link, no code, no mathematics
    read = [html.unescape(re.sub(r"\\([\\`*\[\]|$~])", r"\1", cell)) for row in rows for cell in row]
    for name in ODD:
        assert short_dataset(f"folder:/data/{name}") in read, name


# The terminal


def check_fit(report: Report, width: int = 80) -> str:
    """Nothing is wider than the terminal or cut, and of each group the numbers of the chosen metric are whole."""
    text = printed(report, width)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width
    assert "…" not in text
    for task, metric in report.metrics.items():
        measure = measure_of(metric)
        groups = report.summary[(report.summary["task"] == task) & (report.summary["metric"] == metric)]
        numbers = [measure.value(row["mean"]) for row in records(groups)]
        numbers += [measure.value(row["difference"], signed=True) for row in records(compared(report, task))]
        for number in numbers:
            assert re.search(rf"(?<![\d.]){re.escape(number)}(?!\d)", text), number
    for match in re.finditer(r"No room for ([^:]*): see summary\.csv", " ".join(text.split())):
        assert set(match[1].split(", ")) <= {"images/s", "KID", "time", "95 % interval", "passes", "macro F1 %"}
    return text


MANY = ["steps=1,3", "icp_lr=0.001,0.02", "lr=0.001,0.003", "beta2=0.99,0.999", "layer_weights=uniform,cosine"]


@pytest.mark.parametrize("seeds", [1, 2])
@pytest.mark.parametrize("number", [1, 2, 3, 5])
def test_tables_of_any_number_of_settings_fit_80_columns(tmp_path: Path, number: int, seeds: int) -> None:
    for config in configs(MANY[:number], seeds):
        write_study(tmp_path, config)
    report = build(tmp_path)
    text = check_fit(report)
    assert text.count("± 0.7") >= (len(report.grouping.table) if seeds > 1 else 0)
    assert ("±" in text.replace("Mean ± standard", "")) == (seeds > 1)


def test_tables_with_long_and_odd_names_fit_80_columns(odd: Report) -> None:
    text = check_fit(odd)
    for name in ODD:
        if "/" not in name:  # of a folder the last part is shown
            assert f"folder:{name}" in text
    assert "[f](http:" not in text


def test_what_there_is_no_room_for_is_said_and_shown_where_there_is(tmp_path: Path) -> None:
    for seed in range(3):
        for optimizer, kind in (("none", ""), ("adam", "_by_resnet20-x"), ("sgd", "_by_resnet20-y")):
            config = resolve({"model": "vae", "dataset": "digits", "epochs": 2, "optimizer": optimizer, "seed": seed})
            folder = write_run(tmp_path, config, [0.5, 0.6 + seed / 100 + len(optimizer) / 1000])
            for metric in (f"{name}_{of}" for name in ("fid", "kid") for of in ("reconstruction", "prior")):
                folder.append_metrics(1, {"test": {metric: 1234.5 + seed, f"{metric}{kind}": 0.5 + seed}})
    report = build(tmp_path)
    narrow = " ".join(check_fit(report).split())
    assert "No room for images/s, KID" in narrow
    assert narrow.count("1235.50") == 2 * 2  # FID of the reconstructions and of the prior, of the two rows that have it
    assert "FID and KID (a): in the features of resnet20-x. FID and KID (b): in the features of resnet20-y." in narrow
    wide = printed(report, 400)
    assert "No room" not in wide
    assert all(f" {heading} " in wide.replace("\n", " ") for heading in ("KID prior (a)", "KID rec. (b)", "images/s"))


def test_rows_beyond_those_that_are_shown_are_counted(tmp_path: Path) -> None:
    for config in configs(["steps=1..110"]):
        write_study(tmp_path, config)
    text = " ".join(printed(build(tmp_path)).split())
    assert "summary.csv and report.html have 11 more rows; --where and --by choose." in text
    assert "comparisons.csv and report.html have 10 more comparisons; --where and --by choose." in text


@pytest.mark.parametrize("form", ["csv", "json", "markdown", "latex"])
def test_without_a_finished_run_every_format_is_still_one(tmp_path: Path, form: Format) -> None:
    write_run(tmp_path, resolve({}), [], state="running")
    text = render(build(tmp_path), form)
    assert text.endswith("\n")
    if form == "json":
        assert json.loads(text)["summary"] == []
    if form == "latex":
        assert text.startswith("%")
