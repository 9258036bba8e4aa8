"""Two sides beside each other: which groups are paired, with what numbers, and what is said of those that are not."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from commands import icpctl_command
from reports import write_run
from scipy.stats import ttest_rel

from icpctl.ablate import deciding
from icpctl.ablate.command import define
from icpctl.config import RunConfig, resolve
from icpctl.errors import UserError
from icpctl.report import Report, build
from icpctl.report.figures.study import study_figures
from icpctl.report.page import page
from icpctl.report.pair import build_pair

ICP = {"dataset": "digits", "epochs": 2, "optimizer": "adam"}
NOISE = (0.013, -0.002, 0.007, 0.001)


def accuracy(config: RunConfig, above: float = 0.0) -> float:
    gain = 0.0 if config.method == "plain" else config.steps / 100 + config.icp_lr + NOISE[config.seed % 4]
    return 0.5 + config.seed / 50 + config.lr + gain + above


def write(
    output: Path, settings: list[dict[str, Any]], seeds: range = range(4), above: float = 0.0, **facts: Any
) -> None:
    for of in settings:
        for seed in seeds:
            config = resolve({**ICP, **of, "seed": seed})
            last = accuracy(config, above * (1 + NOISE[seed % 4]))
            write_run(output, config, [0.1, last], [0.1, 0.2], **facts)


GRID = [{"steps": steps, "lr": lr} for steps in (1, 3) for lr in (0.01, 0.02)]
PLAIN = [{"method": "plain", "lr": lr} for lr in (0.01, 0.02)]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    write(folder, [*GRID, *PLAIN])
    return folder


def pairs(report: Report) -> set[tuple[str, str]]:
    return set(report.comparisons[["label", "counterpart"]].itertuples(index=False, name=None))


def row(report: Report, **where: str) -> pd.Series:
    table = report.comparisons[report.comparisons["metric"] == "accuracy"]
    for name, value in where.items():
        table = table[table[name] == value]
    (found,) = [each for _, each in table.iterrows()]
    return found


def said(report: Report, text: str) -> str:
    (note,) = [note for note in report.notes if text in note]
    return note


def test_groups_are_paired_that_are_equal_in_what_the_selections_do_not_name(results: Path) -> None:
    report = build_pair(("steps=3", "steps=1"), [results])
    assert pairs(report) == {(f"Adam-ICP, T=3, lr={lr} (A)", f"Adam-ICP, T=1, lr={lr} (B)") for lr in (0.01, 0.02)}
    assert report.sides is not None
    assert report.sides.about[0].startswith("The groups that are compared differ in steps (A: 3; B: 1)")
    # A setting that one side does not read keeps no pair apart, nor does the input optimizer, which says the method.
    for other in ("method=plain", "optimizer=none"):
        report = build_pair(("steps=3", other), [results])
        assert pairs(report) == {(f"Adam-ICP, T=3, lr={lr} (A)", f"baseline, lr={lr} (B)") for lr in (0.01, 0.02)}


def test_the_numbers_are_those_of_scipy_on_the_differences_by_seed(results: Path) -> None:
    report = build_pair(("steps=3", "steps=1"), [results])
    found = row(report, label="Adam-ICP, T=3, lr=0.01 (A)")
    ours, theirs = (
        [accuracy(resolve({**ICP, "steps": steps, "lr": 0.01, "seed": seed})) for seed in range(4)] for steps in (3, 1)
    )
    assert found["difference"] == pytest.approx(statistics.fmean(a - b for a, b in zip(ours, theirs, strict=True)))
    assert [found["mean_a"], found["std_a"]] == pytest.approx([statistics.fmean(ours), statistics.stdev(ours)])
    assert [found["mean_b"], found["std_b"]] == pytest.approx([statistics.fmean(theirs), statistics.stdev(theirs)])
    report = build_pair(("steps=3,lr=0.01", "method=plain"), [results])
    found = row(report)
    base = [accuracy(resolve({**ICP, "method": "plain", "lr": 0.01, "seed": seed})) for seed in range(4)]
    tested = ttest_rel(ours, base)
    assert found["p"] == pytest.approx(tested.pvalue)
    assert (found["low"], found["high"]) == pytest.approx(tuple(tested.confidence_interval()))
    assert found["comparisons"] == 1
    assert found["sentence"].startswith("Adam-ICP, T=3, lr=0.01 (A) is better than baseline, lr=0.01 (B): accuracy ")


def test_the_same_comparison_has_the_numbers_of_the_ordinary_report(results: Path) -> None:
    ordinary = build(results).comparisons
    ordinary = ordinary[(ordinary["against"] == "baseline") & (ordinary["metric"] == "accuracy")].reset_index(drop=True)
    sides = build_pair(("method=icp", "method=plain"), [results]).comparisons
    sides = sides[sides["metric"] == "accuracy"].reset_index(drop=True)
    assert (sides["group_id"].str[2:] == ordinary["group_id"]).all()
    for name in ("difference", "std", "low", "high", "p", "effect", "seeds"):
        assert sides[name].to_numpy(float) == pytest.approx(ordinary[name].to_numpy(float), nan_ok=True)
    assert (sides["p_holm"] <= ordinary["p_holm"]).all()  # of fewer comparisons: a family of its own


def test_a_group_is_named_by_its_label_or_its_id(results: Path) -> None:
    table = build(results).grouping.table
    for name in ("baseline, lr=0.02", str(table.index[table["label"] == "baseline, lr=0.02"][0])):
        report = build_pair(("Adam-ICP, T=3, lr=0.01", name), [results])
        assert pairs(report) == {("Adam-ICP, T=3, lr=0.01 (A)", "baseline, lr=0.02 (B)")}
        assert report.sides is not None
        assert "lr (A: 0.01; B: 0.02)" in report.sides.about[0]  # what else differs is said


def test_seeds_that_no_two_groups_share_are_named(results: Path) -> None:
    report = build_pair(("seed=0..1,method=plain", "seed=2..3,method=icp"), [results])
    assert report.comparisons.empty
    assert "no seed in common" in said(report, "Not paired")
    assert "(A: 0, 1; B: 2, 3)" in said(report, "Not paired")
    assert not report.summary.empty  # the means stand beside each other all the same


def test_a_setting_that_keeps_the_groups_apart_is_named_with_the_way_out(tmp_path: Path) -> None:
    write(tmp_path, [{"steps": 3, "lr": 0.01}, {"method": "plain", "lr": 0.02}])
    report = build_pair(("steps=3", "method=plain"), [tmp_path])
    assert report.comparisons.empty
    note = said(report, "differ in")
    assert "lr (A: 0.01; B: 0.02)" in note
    assert "as in lr=0.01" in note
    assert pairs(build_pair(("steps=3,lr=0.01", "method=plain"), [tmp_path])) != set()


def test_two_folders_are_paired_by_the_settings_of_their_groups(tmp_path: Path) -> None:
    write(tmp_path / "a", GRID)
    write(tmp_path / "b", [*GRID[:2], *PLAIN[:1]], above=-0.05)
    report = build_pair((str(tmp_path / "a"), str(tmp_path / "b")), [])
    assert set(report.comparisons["label"]) == {f"Adam-ICP, T=1, lr={lr} in A" for lr in (0.01, 0.02)}
    found = row(report, label="Adam-ICP, T=1, lr=0.01 in A")
    assert found["difference"] == pytest.approx(0.05 * (1 + statistics.fmean(NOISE)))
    assert found["verdict"] == "better"
    assert found["sentence"].startswith("Adam-ICP, T=1, lr=0.01 in A is better than that in B: accuracy +5.0")
    assert "2 groups, Adam-ICP, T=3, lr=0.01; Adam-ICP, T=3, lr=0.02" in said(report, "Only in A")
    assert "1 group, baseline, lr=0.01" in said(report, "Only in B")
    assert len(report.records) == len(report.runs) == 28  # a run of each side, though their ids are the same
    assert report.sides is not None
    assert report.sides.about == [
        "0 of 8 runs that both have are equal in every epoch, to the last digit, apart from times. The others differ, the first of them in test "
        "loss, test accuracy, test f1_macro."
    ]


def test_equal_folders_are_said_to_be_equal(tmp_path: Path) -> None:
    for side in "ab":
        write(tmp_path / side, GRID[:1])
    report = build_pair((str(tmp_path / "a"), str(tmp_path / "b")), [])
    assert report.sides is not None
    assert report.sides.about[-1].startswith(
        "All 4 runs of A have a run of the same settings and seed in B with the same metrics"
    )
    assert set(report.comparisons["verdict"]) == {"equal"}


def test_how_the_runs_were_made_is_told_where_it_differs(tmp_path: Path) -> None:
    for side, torch, fast in (("a", "2.8.0", True), ("b", "2.9.1", False)):
        write(tmp_path / side, GRID[:1])
        for file in (tmp_path / side).glob("*/config.json"):
            content = json.loads(file.read_text())
            content["config"]["fast"] = fast
            content["sessions"] = [{"packages": {"torch": torch, "numpy": "2.0"}, "device": "cpu"}]
            file.write_text(json.dumps(content))
    report = build_pair((str(tmp_path / "a"), str(tmp_path / "b")), [])
    assert report.sides is not None
    assert (
        report.sides.about[0]
        == "The runs of A and of B were made differently: torch (A: 2.8.0; B: 2.9.1), fast (A: true; B: false)."
    )


def test_runs_on_other_data_are_not_paired_and_their_means_stand_beside_each_other(tmp_path: Path) -> None:
    write(tmp_path / "a", GRID[:1])
    write(tmp_path / "b", GRID[:1], fingerprint="ffff3c4d5e6f7a8b")
    report = build_pair((str(tmp_path / "a"), str(tmp_path / "b")), [])
    assert report.comparisons.empty
    assert "trained on different data: 1 group, Adam-ICP" in said(report, "Not paired")
    assert "ffff3c4d" in said(report, "fingerprints differ")
    assert [key[0] for key in report.grouping.table.index] == ["A", "B"]
    assert len(report.summary[report.summary["metric"] == "accuracy"]) == 2


def test_other_data_sets_are_not_paired(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write(tmp_path, [{"dataset": f"folder:/data/{name}", "steps": 1}])
    report = build_pair(("dataset=folder:/data/one", "dataset=folder:/data/two"), [tmp_path])
    assert report.comparisons.empty
    assert "different data sets" in said(report, "Nothing is paired")


def test_folders_of_other_settings_get_the_command_that_pairs_them(tmp_path: Path) -> None:
    write(tmp_path / "a", GRID[:1])
    write(tmp_path / "b", [{"steps": 1, "lr": 0.04}])
    paths = (str(tmp_path / "a"), str(tmp_path / "b"))
    note = said(build_pair(paths, []), "differ in lr (A: 0.01; B: 0.04)")
    assert note.endswith(f"`icpctl report {paths[0]} {paths[1]} --compare lr=0.01 lr=0.04`.")
    assert len(pairs(build_pair(("lr=0.01", "lr=0.04"), [tmp_path / "a", tmp_path / "b"]))) == 1


def test_seeds_of_one_side_alone_are_in_no_difference_and_are_named(tmp_path: Path) -> None:
    write(tmp_path / "a", GRID[:1])
    write(tmp_path / "b", GRID[:1], range(1, 6), above=-0.01)
    report = build_pair((str(tmp_path / "a"), str(tmp_path / "b")), [])
    assert row(report)["seeds"] == 3
    assert "Adam-ICP (A: 0; B: 4, 5)" in said(report, "Seeds that only one side has")


def test_a_seed_that_failed_is_an_outcome(tmp_path: Path) -> None:
    write(tmp_path / "a", GRID[:1])
    write(tmp_path / "b", GRID[:1], range(3), above=-0.05)
    write(tmp_path / "b", GRID[:1], range(3, 4), state="failed")
    found = row(build_pair((str(tmp_path / "a"), str(tmp_path / "b")), []))
    assert (found["seeds"], found["lacking"], found["failed"], found["verdict"]) == (3, 1, 1, "cannot tell")


def test_a_group_of_both_sides_is_not_compared_with_itself(results: Path) -> None:
    report = build_pair(("steps=3", "method=icp"), [results], where=["lr=0.01"])
    assert pairs(report) == {("Adam-ICP, T=3 (A)", "Adam-ICP, T=1 (B)")}
    assert "1 group, Adam-ICP, T=3" in said(report, "On both sides")
    with pytest.raises(UserError, match="both are the same 8 runs"):
        build_pair(("steps=3", "steps==3"), [results])


def test_in_a_study_with_claims_groups_have_no_verdict(tmp_path: Path) -> None:
    given = {"claims": ["steps=3 better than baseline in accuracy"], "margin": 1.0}
    settings = {**ICP, "warmup_epochs": 0}
    planned, _ = deciding.plan(define(settings, ["steps=1,3"], seeds="3", plan=given), tmp_path)
    planned.keep(tmp_path)
    for run in planned.runs():
        write_run(tmp_path, run.config, [0.1, accuracy(run.config)])
    report = build_pair(("steps=3", "steps=1"), [tmp_path])
    assert set(report.comparisons["verdict"]) == {"exploratory"}
    assert row(report)["sentence"].endswith("Exploratory: no claim was planned about it.")
    html = page(report, study_figures(report), [tmp_path], [])
    assert "Exploratory: no claim was planned about it." in html
    with pytest.raises(UserError, match="planned with their own margins"):
        build_pair(("steps=3", "steps=1"), [tmp_path], margin=1.0)


def test_a_margin_makes_level_a_verdict(tmp_path: Path) -> None:
    write(tmp_path / "a", GRID[:1])
    write(tmp_path / "b", GRID[:1], above=-0.01)
    paths = (str(tmp_path / "a"), str(tmp_path / "b"))
    assert row(build_pair(paths, [], margin=5.0))["verdict"] == "level"
    assert row(build_pair(paths, []))["verdict"] == "better"


def test_the_figures_are_of_the_pairs(results: Path) -> None:
    report = build_pair(("steps=3", "steps=1"), [results])
    drawn = {drawing.name: drawing for drawing in study_figures(report)}
    assert set(drawn) == {"accuracy-differences", "accuracy-by-epoch"}
    forest = drawn["accuracy-differences"].data
    table = report.comparisons[report.comparisons["metric"] == "accuracy"]
    assert forest["difference"].tolist() == table["difference"].tolist()
    curves = drawn["accuracy-by-epoch"].data
    last = curves[(curves["epoch"] == 1) & (curves["label"] == "Adam-ICP, T=3, lr=0.01 (A)")]
    assert last["mean"].tolist() == pytest.approx([row(report, label="Adam-ICP, T=3, lr=0.01 (A)")["mean_a"]])
    assert set(curves["panel"]) == {f"Adam-ICP, T=3, lr={lr} (A) − Adam-ICP, T=1, lr={lr} (B)" for lr in (0.01, 0.02)}


# The command


def command(*arguments: str | Path, cwd: Path, width: int = 80) -> Any:
    return icpctl_command("report", *map(str, arguments), cwd=cwd, COLUMNS=str(width))


def test_it_is_printed_in_80_columns_and_written_beside_the_reports_of_the_folders(
    results: Path, tmp_path: Path
) -> None:
    done = command(results, "--compare", "steps=3", "steps=1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "A: steps=3\nB: steps=1\n" in done.stdout
    assert "Adam-ICP, T=3, lr=0.01 − Adam-ICP, T=1, lr=0.01" in done.stdout
    for word in ("accuracy %", "macro F1 %", "accuracy, best", "better"):
        assert word in done.stdout
    assert {path.name for path in (tmp_path / "report").iterdir()} == {
        "runs.csv",
        "summary.csv",
        "comparisons.csv",
        "report.html",
    }
    assert not list(results.glob("*.csv"))
    page = (tmp_path / "report" / "report.html").read_text()
    assert f"icpctl report {results} --compare steps=3 steps=1" in page
    assert "Means over the seeds of each side, and the differences paired by seed" in page


def test_the_formats_have_the_same_numbers(results: Path, tmp_path: Path) -> None:
    asked = (results, "--compare", "steps=3", "steps=1")
    table = build_pair(("steps=3", "steps=1"), [results]).comparisons
    done = command(*asked, "--format", "csv", cwd=tmp_path)
    (tmp_path / "printed.csv").write_text(done.stdout)
    printed = pd.read_csv(tmp_path / "printed.csv")
    for name in ("difference", "mean_a", "mean_b", "p_holm"):
        assert printed[name].to_numpy(float) == pytest.approx(table[name].to_numpy(float), nan_ok=True)
    content = json.loads(command(*asked, "--format", "json", cwd=tmp_path).stdout)
    assert (content["sides"]["A"], content["sides"]["B"]) == ("steps=3", "steps=1")
    assert [each["difference"] for each in content["comparisons"]] == pytest.approx(table["difference"].tolist())
    first = row(build_pair(("steps=3", "steps=1"), [results]), label="Adam-ICP, T=3, lr=0.01 (A)")
    mean = f"{100 * first['mean_a']:.2f} ± {100 * first['std_a']:.2f}"
    markdown = command(*asked, "--format", "markdown", cwd=tmp_path).stdout
    assert any(mean in line and "Adam-ICP, T=3" in line and "+2.00" in line for line in markdown.splitlines())
    latex = command(*asked, "--format", "latex", cwd=tmp_path).stdout
    assert mean.replace("±", "\\pm") in latex
    assert "A $-$ B" in latex
    assert math.isclose(first["difference"], 0.02)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--compare", "results", "results"], "both are the same folder"),
        (["results", "--compare", "results", "other"], "names two results folders"),
        (["results", "--compare", "steps=3", "steps=9"], "no run fulfils 'steps=9'"),
        (["results", "--compare", "steps=3", "step=1"], "Did you mean 'steps'"),
        (["results", "--compare", "steps=3", "nothing"], "no label or id of a group"),
        (["results", "--compare", "steps=3", "steps=1", "--by", "steps"], "--by does not go with --compare"),
        (["results", "--compare", "steps=3", "steps=1", "--export", "wandb"], "--export does not go with --compare"),
        (["results", "--compare", "steps=3", "steps=1", "--watch"], "--watch"),
    ],
)
def test_what_is_wrong_is_one_paragraph_and_status_2(
    results: Path, tmp_path: Path, arguments: list[str], words: str
) -> None:
    (tmp_path / "results").symlink_to(results)
    (tmp_path / "other").mkdir()
    done = command(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1
    assert words in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"results", "other"}
