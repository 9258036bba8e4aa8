"""The report: its tables against plain computations, and what it says of runs that it leaves out."""

from __future__ import annotations

import math
import re
import statistics
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reports import configs, printed, write_run
from scipy import stats

from icpctl.config import RunConfig, resolve
from icpctl.config.cost import compute_matched, passes
from icpctl.errors import UserError
from icpctl.report import Report, build, write
from icpctl.report.cells import scorecard
from icpctl.report.formats import render
from icpctl.runs.folder import RunFolder

Curve = list[float]


def of(table: pd.DataFrame, metric: str = "accuracy", **given: object) -> pd.DataFrame:
    """The rows of a metric, and of other values of columns."""
    chosen = table[table["metric"] == metric]
    for name, value in given.items():
        chosen = chosen[chosen[name] == value]
    return chosen


def test_a_run_is_one_row_of_last_and_best_epoch(tmp_path: Path) -> None:
    config = resolve({"epochs": 4, "layers": "layer1+layer2"})
    write_run(tmp_path, config, accuracy=[0.1, 0.2, 0.5, 0.4], val=[0.5, 0.8, math.nan, 0.8])
    (row,) = build(tmp_path).runs.to_dict("records")
    assert (row["run_id"], row["group_id"]) == (config.run_id, config.group_id)
    assert row["baseline_id"] == config.baseline().group_id
    assert (row["layers"], row["epochs"], row["state"]) == ("layer1+layer2", 4, "finished")
    assert (row["epochs_recorded"], row["last_epoch"], row["seconds"]) == (4, 3, 6.0)
    assert (row["passes"], row["images_per_second"]) == (passes(config), 101.5)
    assert row["accuracy"] == 0.4
    assert row["best_epoch"] == 1  # the earliest of equals
    assert row["accuracy_best"] == 0.2
    assert row["f1_macro_best"] == 0.2 - 0.1
    assert "icp_loss_before" not in row
    assert set(RunConfig.model_fields) <= set(row)


@pytest.mark.parametrize("val", [None, [math.nan, math.nan]])
def test_without_a_validation_accuracy_there_is_no_best_epoch(tmp_path: Path, val: Curve | None) -> None:
    write_run(tmp_path, resolve({"epochs": 2}), [0.1, 0.2], val)
    report = build(tmp_path)
    assert report.runs["best_epoch"].isna().all()
    assert "accuracy_best" not in set(report.summary["metric"])


fraction = st.floats(0, 1)


@settings(max_examples=15, deadline=None)
@given(
    ours=st.dictionaries(st.integers(0, 6), fraction, min_size=1, max_size=5),
    theirs=st.dictionaries(st.integers(0, 6), fraction, max_size=5),
)
def test_statistics_are_those_of_a_plain_computation(
    tmp_path_factory: pytest.TempPathFactory, ours: dict[int, float], theirs: dict[int, float]
) -> None:
    output = tmp_path_factory.mktemp("results")
    for seed, value in ours.items():
        write_run(output, resolve({"epochs": 1, "seed": seed}), [value], [1.0])
    for seed, value in theirs.items():
        write_run(output, resolve({"epochs": 1, "seed": seed, "optimizer": "none"}), [value], [1.0])
    report = build(output)
    row = of(report.summary, role="method").iloc[0]
    values = list(ours.values())
    assert row["seeds"] == len(values)
    assert row["mean"] == pytest.approx(statistics.fmean(values))
    assert row["std"] == pytest.approx(statistics.stdev(values) if len(values) > 1 else math.nan, nan_ok=True)
    assert of(report.summary, "f1_macro", role="method")["mean"].iloc[0] == pytest.approx(
        statistics.fmean(values) - 0.1
    )
    both = sorted(ours.keys() & theirs.keys())
    comparisons = of(report.comparisons)
    assert len(comparisons) == bool(both)
    if both:
        compared = comparisons.iloc[0]
        differences = [ours[seed] - theirs[seed] for seed in both]
        assert compared["seeds"] == len(both)
        assert compared["difference"] == pytest.approx(statistics.fmean(differences), abs=1e-6)
        if len(both) > 1 and not compared["constant"]:
            p = stats.ttest_rel([ours[seed] for seed in both], [theirs[seed] for seed in both]).pvalue
            assert compared["p"] == pytest.approx(p)
            assert compared["p_holm"] == pytest.approx(p)  # one comparison a metric
    alone = len(ours.keys() - theirs.keys())
    assert any("Not compared with a baseline" in note for note in report.notes) == bool(alone)


def write_study(output: Path, seeds: int = 3) -> dict[str, RunConfig]:
    """A method, its controls and baselines, with means of their own; the configurations of seed 0 by role."""
    method = resolve({"epochs": 8, "optimizer": "adam"})
    means = {
        "baseline": (method.baseline(), 0.5),
        "compute-matched": (compute_matched(method), 0.8),
        "method": (method, 0.6),
        "ascend": (method.altered(direction="ascend"), 0.3),
        "random": (method.altered(direction="random"), 0.55),
    }
    rng = np.random.default_rng(0)
    for config, mean in means.values():
        for seed in range(seeds):
            value = mean + rng.normal(0, 0.001)
            write_run(output, config.altered(seed=seed), [value] * config.epochs, [1.0] * config.epochs)
    return {role: config for role, (config, _) in means.items()}


def test_controls_and_baselines_at_equal_compute_stand_beside_the_method(tmp_path: Path) -> None:
    write_study(tmp_path)
    report = build(tmp_path)
    assert report.grouping.table["role"].tolist() == ["baseline", "compute-matched", "method", "control", "control"]
    table = of(report.comparisons)
    assert list(zip(table["label"], table["against"], table["verdict"], strict=True)) == [
        ("Adam-ICP", "baseline", "better"),
        ("Adam-ICP", "compute-matched", "worse"),
        ("Adam-ICP", "ascend", "better"),
        ("Adam-ICP", "random", "better"),
        ("Adam-ICP ascend", "baseline", "worse"),
        ("Adam-ICP ascend", "compute-matched", "worse"),
        ("Adam-ICP random", "baseline", "better"),
        ("Adam-ICP random", "compute-matched", "worse"),
    ]
    assert table["difference"].tolist() == pytest.approx([0.1, -0.2, 0.3, 0.05, -0.2, -0.5, 0.05, -0.25], abs=0.005)
    assert set(table["comparisons"]) == {8}
    card = scorecard(table)  # of the method: the controls' own comparisons are not counted
    assert card.to_dict("index") == {
        "baseline": {"better": 1, "worse": 0, "cannot tell": 0},
        "compute-matched": {"better": 0, "worse": 1, "cannot tell": 0},
        "ascend": {"better": 1, "worse": 0, "cannot tell": 0},
        "random": {"better": 1, "worse": 0, "cannot tell": 0},
    }
    loss = of(report.comparisons, "loss")
    assert loss["verdict"].tolist()[:2] == ["better", "worse"]  # less loss is better
    assert loss["difference"].iloc[0] < 0


def test_sentences_say_what_the_data_support(tmp_path: Path) -> None:
    found = write_study(tmp_path)
    (better,) = of(build(tmp_path).comparisons, label="Adam-ICP", against="baseline")["sentence"]
    assert better.startswith("Adam-ICP is better than the baseline: accuracy +")
    assert " points, 95 % interval +" in better
    assert "among 8 comparisons" in better
    assert better.endswith(", 3 seeds.")

    for config, values in ((found["method"], (0.5, 0.7, 0.6)), (found["baseline"], (0.6, 0.55, 0.62))):
        for seed, value in enumerate(values):
            write_run(tmp_path / "noise", config.altered(seed=seed), [value] * 8)
    report = build(tmp_path / "noise")
    (sentence,) = of(report.comparisons)["sentence"]
    (needed,) = of(report.comparisons)["seeds_needed"]
    assert sentence.startswith("3 seeds cannot tell Adam-ICP from the baseline: accuracy +1.00 points")
    assert f"If the difference is that large, {needed:,} seeds would show it." in sentence
    assert needed > 100

    for seeds, said in ((1, "One seed cannot tell"), (2, "A claim takes 3 seeds or more")):
        write_run(tmp_path / "few", found["method"].altered(seed=seeds), [0.9 + seeds / 1e4] * 8)
        write_run(tmp_path / "few", found["baseline"].altered(seed=seeds), [0.1] * 8)
        table = of(build(tmp_path / "few").comparisons)
        assert said in table["sentence"].iloc[0]
        assert table["verdict"].iloc[0] in ("no test", "cannot tell")
        assert math.isnan(table["low"].iloc[0])
        assert "interval" not in table["sentence"].iloc[0].replace("no interval", "")


def test_of_two_seeds_nothing_shows_an_interval(tmp_path: Path) -> None:
    for seed in range(2):
        for optimizer, value in (("none", 0.5), ("adam", 0.6 + seed / 50), ("sgd", 0.5)):  # one differs by nothing
            write_run(tmp_path, resolve({"epochs": 1, "optimizer": optimizer, "seed": seed}), [value])
    report = build(tmp_path)
    assert report.summary[["low", "high"]].isna().all(axis=None)
    assert report.comparisons[["low", "high"]].isna().all(axis=None)
    for text in (printed(report), render(report, "markdown"), render(report, "latex"), *report.comparisons["sentence"]):
        assert not re.search(r"\d to [−+]?\d|\[[−+-]?\d", text), text


def test_equal_runs_are_said_to_be_equal_and_a_constant_difference_is_not_tested(tmp_path: Path) -> None:
    for seed in range(3):
        for optimizer, value in (("none", 0.5), ("adam", 0.5), ("sgd", 0.6)):
            config = resolve({"epochs": 1, "optimizer": optimizer, "seed": seed})
            write_run(tmp_path, config, [value + seed / 10])
    table = of(build(tmp_path).comparisons)
    assert dict(zip(table["label"], table["verdict"], strict=True)) == {"SGD-ICP": "no test", "Adam-ICP": "equal"}
    assert "Adam-ICP is equal to the baseline in accuracy, in all 3 seeds" in table["sentence"].iloc[1]
    assert "Without any spread there is no test" in table["sentence"].iloc[0]


def test_rows_by_a_setting_count_a_seed_once(tmp_path: Path) -> None:
    values = {0.001: [0.5, 0.6, 0.8], 0.01: [0.7, 0.6, 0.9]}
    for rate, accuracies in values.items():
        for seed, value in enumerate(accuracies):
            write_run(tmp_path, resolve({"epochs": 1, "icp_lr": rate, "seed": seed}), [value])
            write_run(tmp_path, resolve({"epochs": 1, "optimizer": "none", "seed": seed}), [0.5 + seed / 10])
    report = build(tmp_path, by=["steps"])
    row = of(report.summary, role="method").iloc[0]
    means = [0.6, 0.6, 0.85]
    assert row["seeds"] == 3
    assert (row["mean"], row["std"]) == pytest.approx((np.mean(means), np.std(means, ddof=1)))
    compared = of(report.comparisons).iloc[0]
    assert compared["p"] == pytest.approx(stats.ttest_rel(means, [0.5, 0.6, 0.7]).pvalue)
    assert report.common.startswith("A row pools icp_lr: the runs of a seed are averaged, and count once.")
    assert "it need not be the difference of two rows" in report.common
    assert not any("do not have the same runs" in note for note in report.notes)
    write_run(tmp_path, resolve({"epochs": 1, "icp_lr": 0.1, "seed": 0}), [0.5])
    assert any("The seeds do not have the same runs in 1 row, " in note for note in build(tmp_path, by=["steps"]).notes)


def test_where_runs_are_pooled_a_run_without_its_twin_s_value_is_left_out_of_the_pair(tmp_path: Path) -> None:
    for seed in range(3):
        for rate, value in ((0.1, 0.9), (0.2, 0.5)):
            for optimizer, more in (("adam", 0.1 + seed / 100), ("none", 0.0)):
                config = resolve({"epochs": 1, "optimizer": optimizer, "lr": rate, "seed": seed})
                folder = write_run(tmp_path, config, [value + more])
                if (optimizer, rate) != ("none", 0.1):
                    folder.append_metrics(0, {"test": {"ece": value + more}})
    table = of(build(tmp_path, by=["steps"]).comparisons, "ece")
    assert table["difference"].tolist() == pytest.approx([0.11])  # of the runs with lr 0.2 alone


def test_another_metric_can_be_chosen(tmp_path: Path) -> None:
    write_study(tmp_path)
    assert build(tmp_path, metric="f1-macro").metrics == {"classification": "f1_macro"}
    with pytest.raises(UserError, match=r"--metric f1: .*f1_macro"):
        build(tmp_path, metric="f1")
    vae = resolve({"model": "vae", "dataset": "digits", "epochs": 1})
    write_run(tmp_path, vae, [0.5])
    report = build(tmp_path, metric="accuracy")
    assert report.metrics == {"classification": "accuracy"}
    assert "Left out: 1 run of generation without accuracy at the last epoch." in report.notes
    assert build(tmp_path).metrics == {"classification": "accuracy", "generation": "ssim"}
    assert build(tmp_path, metric="loss").metrics == {"classification": "loss", "generation": "loss"}


def test_runs_are_chosen_with_their_baselines(tmp_path: Path) -> None:
    write_study(tmp_path)
    report = build(tmp_path, where=["direction=descend,seed=0..1"])
    assert report.grouping.table["label"].tolist() == ["baseline", "baseline of 30 epochs", "Adam-ICP"]
    assert set(of(report.summary)["seeds"]) == {2}
    assert len(report.runs) == 6


def test_several_folders_are_one_report(tmp_path: Path) -> None:
    method, baseline = configs([])[::-1]
    write_run(tmp_path / "a", method, [0.1, 0.6])
    write_run(tmp_path / "b", baseline, [0.1, 0.5])
    write_run(tmp_path / "b", method, [0.1], state="running")  # the finished copy counts
    report = build([tmp_path / "a", tmp_path / "b"])
    assert of(report.comparisons)["difference"].tolist() == pytest.approx([0.1])
    said = f"{method.run_id}, and differs from it in the state, the number of epochs."
    assert any(str(tmp_path / "b") in note and note.endswith(said) for note in report.notes)
    with pytest.raises(UserError, match="missing"):
        build([tmp_path / "a", tmp_path / "missing"])


def test_only_settings_that_differ_are_columns(tmp_path: Path) -> None:
    for config in configs(["steps=1,3"], seeds=2, recipe="strong", device="cpu"):
        write_run(tmp_path, config, [0.1, 0.5 + config.steps / 100])
    report = build(tmp_path)
    assert report.grouping.settings == ["optimizer", "steps"]
    assert (
        report.common
        == "The same in all rows of a method: epochs 2, icp_lr 0.002, recipe strong. Other settings have their defaults."
    )


def test_each_configuration_has_the_baseline_of_its_own_training(tmp_path: Path) -> None:
    for config in configs(["lr=0.1,0.01"]):
        write_run(tmp_path, config, [0.0, config.lr + (0.2 if config.steps else 0)])
    assert of(build(tmp_path).comparisons)["difference"].tolist() == pytest.approx([0.2, 0.2])


def test_runs_that_are_not_whole_are_named_and_left_out(tmp_path: Path) -> None:
    good, failed, running, cut, silent = (resolve({"epochs": 2, "seed": seed}) for seed in range(5))
    write_run(tmp_path, good, [0.1, 0.6])
    write_run(tmp_path, failed, [0.1, 0.9], state="failed", error="ValueError: no")
    write_run(tmp_path, running, [0.1], state="running")
    write_run(tmp_path, cut, [0.1])
    (write_run(tmp_path, silent, [0.1, 0.9]).path / "status.json").write_text("{torn")
    (tmp_path / "broken").mkdir()
    with (tmp_path / good.run_id / "metrics.csv").open("a") as file:
        file.write("torn,2,te")
    report = build(tmp_path)
    assert of(report.summary)["mean"].tolist() == [0.6]
    assert len(report.runs) == 5
    assert set(report.records) == {good.run_id}
    assert set(report.left_out) == {config.run_id for config in (failed, running, cut, silent)}
    said = {
        "Failed (status.json in the folder of a run says why), so they are in no mean": failed,
        "Left out, because epochs are missing": cut,
        "Not compared with a baseline": good,
        "is damaged": good,
    }
    for words, config in said.items():
        assert any(words in note and config.run_id in note for note in report.notes), words
    assert any(f"2 runs, {running.run_id}, {silent.run_id}" in note for note in report.notes)
    assert any(str(tmp_path / "broken") in note for note in report.notes)


def test_a_status_of_any_form_is_survived(tmp_path: Path) -> None:
    folder = write_run(tmp_path, resolve({"epochs": 1}), [0.5])
    for content in ('{"state": 5, "notes": 7}', '{"state": "finished", "notes": {"a": 1}}', '{"notes": [null, 3]}'):
        (folder.path / "status.json").write_text(content)
        assert len(build(tmp_path).runs) == 1
    config = folder.path / "config.json"
    content = config.read_text()
    for sessions in ("5", "[5]", '["a"]', '[{"started": 5}]', "null"):
        config.write_text(content[: content.index('"sessions"')] + f'"sessions": {sessions}}}')
        assert len(build(tmp_path).runs) == 1


def test_a_copy_of_a_run_counts_once(tmp_path: Path) -> None:
    config = resolve({"epochs": 1})
    write_run(tmp_path, config, [0.5])
    for name, value in (("the copy", 0.5), ("the other", 0.9)):
        write_run(tmp_path / "elsewhere", config, [value]).path.rename(tmp_path / name)
    (tmp_path / "elsewhere").rmdir()
    report = build(tmp_path)
    assert of(report.summary)["mean"].tolist() == [0.5]
    assert any(
        "Left out, because they are copies of the run in" in note and note.endswith("the copy.")
        for note in report.notes
    )
    (said,) = (note for note in report.notes if "/the other." in note)
    assert "differs from it in test loss, test accuracy, test f1_macro." in said


def test_a_row_given_twice_counts_once_and_the_later_holds(tmp_path: Path) -> None:
    folder = write_run(tmp_path, resolve({"epochs": 1}), [0.5])
    folder.append_metrics(0, {"test": {"accuracy": 0.7}})
    assert of(build(tmp_path).summary)["mean"].tolist() == [0.7]


def test_no_run_is_finished(tmp_path: Path) -> None:
    write_run(tmp_path, resolve({}), [], state="running")
    report = build(tmp_path)
    assert report.summary.empty
    assert report.comparisons.empty
    assert any("nothing to compare yet" in note for note in report.notes)
    assert [file.read_text().count("\n") for file in write(tmp_path, report)] == [2, 1, 1]


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="icpctl train --output"):
        build(tmp_path)
    (tmp_path / "stray").mkdir()
    with pytest.raises(UserError, match="stray is not the folder of a run"):
        build(tmp_path)
    with pytest.raises(UserError, match="no results folder"):
        build(tmp_path / "missing")


def test_the_tables_are_read_again_by_pandas(tmp_path: Path) -> None:
    for config in [*configs(["train_size=100"]), *configs([])]:
        write_run(tmp_path, config, [0.1, 1 / 3])
    report = build(tmp_path)
    runs, summary, comparisons = (pd.read_csv(file) for file in write(tmp_path, report))
    assert runs["run_id"].tolist() == report.runs["run_id"].tolist()
    assert runs["accuracy"].tolist() == [1 / 3] * 4
    assert "100," in (tmp_path / "runs.csv").read_text()
    assert "100.0," not in (tmp_path / "runs.csv").read_text()
    assert summary["mean"].tolist() == report.summary["mean"].tolist()
    assert comparisons["sentence"].tolist() == report.comparisons["sentence"].tolist()
    assert len(build(tmp_path).runs) == 4  # the tables are in nobody's way


def test_a_study_is_reported_alone(tmp_path: Path) -> None:
    mine, other = configs(["steps=1"]), configs(["steps=3"])
    for config in {each.run_id: each for each in [*mine, *other]}.values():
        write_run(tmp_path, config, [0.1, 0.5])
    assert len(of(build(tmp_path).summary)) == 3
    assert len(of(build(tmp_path, [each.run_id for each in mine]).summary)) == 2


def test_generation_has_measures_of_its_own_and_kinds_of_fid_stay_apart(tmp_path: Path) -> None:
    common: dict[str, object] = {"model": "vae", "dataset": "digits", "epochs": 2}
    for seed in (0, 1):
        for optimizer, gain in (("none", 0.0), ("adam", 0.02), ("sgd", 0.03)):
            kind = "_by_resnet20-x" if optimizer == "adam" else ""
            config = resolve({**common, "optimizer": optimizer, "seed": seed})
            ssim = [0.5 + seed / 10, 0.6 + seed / 10 + gain]
            folder = write_run(tmp_path, config, ssim, [1 - value for value in ssim], notes=["FID is biased."])
            folder.append_metrics(1, {"test": {f"fid_prior{kind}": 7.0 + seed, f"kid_prior{kind}": 1.0}})
    write_run(tmp_path, resolve({"epochs": 2, "optimizer": "none"}), [0.1, 0.2])
    report: Report = build(tmp_path)
    summary = report.summary
    assert of(summary, "ssim", optimizer="adam")["mean"].tolist() == pytest.approx([0.67])
    assert of(summary, "ssim_best", optimizer="adam")["mean"].tolist() == pytest.approx(
        [0.55]
    )  # by the held-out images
    assert of(summary, "fid_prior_by_resnet20-x", optimizer="adam")["mean"].tolist() == [7.5]
    assert of(summary, "fid_prior", optimizer="adam").empty
    assert "fid_prior_best" not in set(summary["metric"])  # it is measured after the last epoch alone
    assert of(summary, "accuracy", task="classification")["mean"].tolist() == [0.2]
    assert "FID and KID (a): in the features of resnet20-x." in report.common
    assert report.notes[0].startswith("6 runs, for example vae-digits-adam")
    assert report.notes[0].endswith(": FID is biased.")


def test_unfinished_metrics_files_cannot_fill_the_memory(tmp_path: Path) -> None:
    folder: RunFolder = write_run(tmp_path, resolve({"epochs": 40_000}), [0.5])
    with folder.metrics_file.open("a") as file:
        file.writelines(f"{folder.run_id},{2 * epoch},test,m{epoch},0.5\n" for epoch in range(20_000))
    report = build(tmp_path)
    assert any("rows do not belong to epochs of the same metrics" in note for note in report.notes)
