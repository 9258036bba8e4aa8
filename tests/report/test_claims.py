"""Planned claims in a report: against scipy and statsmodels, and what is said of the rest."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reports import printed, write_run
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import ttost_paired

from icpctl.ablate import command, deciding
from icpctl.config import RunConfig
from icpctl.errors import UserError
from icpctl.report import Report, build, write
from icpctl.report.figures import draw
from icpctl.report.formats import render
from icpctl.report.page import page
from icpctl.statistics import paired
from icpctl.statistics.sequential import running_p

SETTINGS = {"dataset": "digits", "epochs": 1, "warmup_epochs": 0}
CLAIMS = [
    "optimizer=adam better than baseline in accuracy",
    "optimizer=sgd better than baseline in accuracy",
    "optimizer=ademamix level with baseline in accuracy",
    "optimizer=adam better than optimizer=sgd in f1_macro",
]
GAINS = {"none": 0.0, "adam": 0.05, "sgd": -0.02, "ademamix": 0.001}


def write_planned(
    output: Path, seeds: int = 6, margin: float | None = 3.0, claims: list[str] = CLAIMS, **plan: object
) -> None:
    """A study with claims, all of whose runs are finished."""
    given = {"claims": claims, "margin": margin, **plan}
    definition = command.define(SETTINGS, ["optimizer=none,adam,sgd,ademamix"], seeds=str(seeds), plan=given)
    planned, _ = deciding.plan(definition, output)
    planned.keep(output)
    for run in planned.runs():
        write_run(output, run.config, [value(run.config)])


def value(config: RunConfig) -> float:
    base = np.random.default_rng(config.seed).standard_normal()
    own = np.random.default_rng([config.seed, [*GAINS].index(config.optimizer)]).standard_normal()
    return float(0.5 + 0.05 * base + GAINS[config.optimizer] + 0.008 * own)


def values(report: Report, optimizer: str, metric: str = "accuracy") -> np.ndarray:
    runs = report.runs[report.runs["optimizer"] == optimizer].sort_values("seed")
    return runs[metric].to_numpy(float)


def test_claims_are_one_family_with_the_tests_of_scipy_and_statsmodels(tmp_path: Path) -> None:
    write_planned(tmp_path)
    report = build(tmp_path)
    table = report.claims.table
    pairs = [
        ("adam", "none", "accuracy"),
        ("sgd", "none", "accuracy"),
        ("ademamix", "none", "accuracy"),
        ("adam", "sgd", "f1_macro"),
    ]
    arrays = [(values(report, a, m), values(report, b, m)) for a, b, m in pairs]
    p = [stats.ttest_rel(a, b).pvalue for a, b in arrays]
    level = arrays[2][0] - arrays[2][1]  # a level claim is refuted by a difference beyond the margin alone
    beyond = [stats.ttest_1samp(sign * level, 0.03, alternative="greater").pvalue for sign in (1, -1)]
    p[2] = min(1.0, 2 * min(beyond))
    p_level = [ttost_paired(a, b, -0.03, 0.03)[0] for a, b in arrays]
    np.testing.assert_allclose(table["p"], p, rtol=1e-6)
    np.testing.assert_allclose(table["p_level"], p_level, rtol=1e-6)
    np.testing.assert_allclose(table["p_holm"], multipletests(p, method="holm")[1], rtol=1e-6)
    np.testing.assert_allclose(table["p_level_holm"], multipletests(p_level, method="holm")[1], rtol=1e-6)
    assert table["verdict"].tolist() == ["better", "worse", "level", "better"]
    assert table["outcome"].tolist() == ["supported", "refuted", "supported", "supported"]
    half = stats.t.isf(0.025, 5) * (arrays[0][0] - arrays[0][1]).std(ddof=1) / np.sqrt(6)
    assert table["high"][0] - table["low"][0] == pytest.approx(2 * half)


def test_the_rest_is_exploratory_and_has_no_verdict(tmp_path: Path) -> None:
    write_planned(tmp_path)
    report = build(tmp_path)
    rest = report.comparisons[report.comparisons["verdict"] == "exploratory"]
    claimed = report.comparisons.drop(rest.index)
    assert claimed.set_index("label")["verdict"].to_dict() == {
        "Adam-ICP": "better",
        "SGD-ICP": "worse",
        "AdEMAMix-ICP": "level",
    }
    assert len(rest) > 3
    assert rest["p_holm"].isna().all()
    assert rest["low"].notna().all()
    text = printed(report)
    assert max(map(len, text.splitlines())) <= 80
    flat = " ".join(text.split())
    assert flat.startswith(
        "Planned claims Of 4 planned claims, 3 supported, 1 refuted. All other comparisons are exploratory"
    )
    assert "by verdict" not in flat
    for sentence in rest[rest["metric"] == "accuracy"]["sentence"]:
        assert "Exploratory: no claim was planned about it." in sentence
        assert not any(word in sentence for word in ("better", "worse", "level", "cannot tell"))
    shown = page(report, draw(report)[0], [tmp_path], [])
    markdown, parsed = render(report, "markdown"), json.loads(render(report, "json"))
    for sentence, claim in zip(report.claims.table["sentence"], parsed["claims"], strict=True):
        assert claim["sentence"] == sentence
        assert sentence.split(": ", 1)[1][:40] in shown
    assert "Of 4 planned claims" in markdown
    assert [file.name for file in write(tmp_path, report)][-1] == "claims.csv"
    assert pd.read_csv(tmp_path / "claims.csv")["verdict"].tolist() == report.claims.table["verdict"].tolist()


def test_where_and_by_change_no_claim(tmp_path: Path) -> None:
    write_planned(tmp_path)
    whole = build(tmp_path).claims.table
    for options in ({"where": ["optimizer=adam"]}, {"by": ["epochs"]}, {"metric": "f1_macro"}):
        pd.testing.assert_frame_equal(build(tmp_path, **options).claims.table, whole)


def test_a_margin_is_planned_or_is_of_a_report_without_claims(tmp_path: Path) -> None:
    write_planned(tmp_path / "planned")
    with pytest.raises(UserError, match="no look at the results can change them"):
        build(tmp_path / "planned", margin=1.0)
    for margin in (0.0, -1.0, float("nan")):
        with pytest.raises(UserError, match="has to be above 0"):
            build(tmp_path / "planned", margin=margin)
    write_planned(tmp_path / "plain", claims=[], margin=None)
    without, with_margin = build(tmp_path / "plain"), build(tmp_path / "plain", margin=3.0)
    verdicts = [
        report.comparisons.query("metric == 'accuracy' and against == 'baseline'")
        .set_index("label")["verdict"]
        .to_dict()
        for report in (without, with_margin)
    ]
    assert verdicts[0]["AdEMAMix-ICP"] == "cannot tell"
    assert verdicts[1]["AdEMAMix-ICP"] == "level"
    assert verdicts[1]["Adam-ICP"] == "better"
    row = with_margin.comparisons.query(
        "metric == 'accuracy' and label == 'AdEMAMix-ICP' and against == 'baseline'"
    ).iloc[0]
    assert "is level with the baseline, as the difference is smaller than 3.00 points" in row["sentence"]
    assert not with_margin.comparisons.query("metric != 'accuracy'")["verdict"].isin(["level"]).any()


def test_the_path_of_a_claim_is_drawn_with_what_held_at_each_look(tmp_path: Path) -> None:
    write_planned(tmp_path, seeds=3, until_decided=True, max_seeds=10)
    for seed in range(3, 10):
        for optimizer in GAINS:
            config = build(tmp_path).records
            first = next(each.config for each in config.values() if each.config.optimizer == optimizer)
            write_run(tmp_path, first.altered(seed=seed), [value(first.altered(seed=seed))])
    report = build(tmp_path)
    (drawing,) = [each for each in draw(report)[0] if each.name == "claims-by-seed"]
    path = drawing.data[drawing.data["claim"] == CLAIMS[1]]
    last = report.claims.table.iloc[1]
    x = (values(report, "sgd") - values(report, "none"))[: last["seeds"]]
    assert 3 < len(x) < 10  # it is not followed beyond its verdict
    np.testing.assert_allclose(path["p"], running_p(x, 3, 10))
    looks = range(3, len(x) + 1)
    assert path["seeds"].tolist() == [*looks]
    np.testing.assert_allclose(path["difference"], [x[:n].mean() for n in looks])
    assert (path["low"].iloc[-1], path["high"].iloc[-1]) == (last["low"], last["high"])
    wide = last["high"] - last["low"]
    assert wide > 2 * stats.t.isf(0.025, len(x) - 1) * x.std(ddof=1) / np.sqrt(
        len(x)
    )  # it is valid for all looks together
    assert "valid for all looks together" in last["sentence"]


def test_a_run_of_a_claim_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_planned(tmp_path, seeds=3, until_decided=True, max_seeds=10)
    monkeypatch.setattr(deciding, "read_record", lambda folder, config: pytest.fail(f"{folder} is read again"))
    assert len(build(tmp_path).claims.evidence) > 0


def test_a_planned_comparison_has_the_interval_of_its_claim_everywhere(tmp_path: Path) -> None:
    write_planned(tmp_path, seeds=3, until_decided=True, max_seeds=10)
    for record in build(tmp_path).records.values():
        for seed in range(3, 10):
            config = record.config.altered(seed=seed)
            write_run(tmp_path, config, [value(config)])
    report = build(tmp_path)
    claims = report.claims.table.set_index("claim")
    table = report.comparisons.query("metric == 'accuracy' and against == 'baseline'").set_index("label")
    for claim, label in zip(CLAIMS[:3], ("Adam-ICP", "SGD-ICP", "AdEMAMix-ICP"), strict=True):
        for name in ("seeds", "difference", "std", "low", "high", "p", "p_holm", "effect", "sentence"):
            assert table[name][label] == claims[name][claim], name
    row = claims.loc[CLAIMS[1]]
    x = (values(report, "sgd") - values(report, "none"))[: row["seeds"]]
    assert len(x) < 10
    assert row["high"] - row["low"] > 2.1 * stats.t.isf(0.025, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x))
    low, high = (f"{100 * row[end]:+.2f}".replace("-", "−") for end in ("low", "high"))
    drawings, _ = draw(report)
    shown = [
        printed(report, 120),
        render(report, "markdown"),
        page(report, drawings, [tmp_path], []).replace("\u00a0", " "),
    ]
    for text in shown:
        assert text.count(f"{low} to {high}") == 2  # in the sentence and in the table
        assert "The interval and p of a planned claim hold for all its looks together." in " ".join(text.split())
    assert f"[{low}, {high}]".replace("−", "-") in render(report, "latex")
    (forest,) = [each.data for each in drawings if each.name == "accuracy-differences"]
    drawn = forest[(forest["label"] == "SGD-ICP") & (forest["against"] == "baseline")]
    assert drawn[["low", "high"]].to_numpy().tolist() == [[row["low"], row["high"]]]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(3, 12), st.floats(0.2, 3))
def test_level_is_the_interval_of_one_less_two_alpha_within_the_margin(seed: int, seeds: int, margin: float) -> None:
    x = np.random.default_rng(seed).standard_normal(seeds)
    table = paired.compare(pd.DataFrame({"m": x}), pd.DataFrame({"m": 0 * x}), pd.Series(["g"] * seeds))
    (p,) = paired.level_p(table, pd.Series(margin, index=table.index))
    assert p == pytest.approx(ttost_paired(x, 0 * x, -margin, margin)[0], rel=1e-9)
    half = stats.t.isf(0.05, seeds - 1) * x.std(ddof=1) / np.sqrt(seeds)
    assert (p <= 0.05) == (abs(x.mean()) + half <= margin)


@pytest.mark.parametrize(("effect", "margin"), [(0.8, np.nan), (0.1, 0.8), (0.0, 0.5), (1.5, 0.3)])
def test_the_seeds_that_settle_a_comparison_do_so_in_four_of_five_simulated_studies(
    effect: float, margin: float
) -> None:
    seeds = paired.seeds_to_settle(effect, margin, 0.05)
    assert seeds is not None
    shares = []
    for n in (seeds, max(3, seeds // 2)):
        x = np.random.default_rng(7).standard_normal((4000, n)) + effect
        mean, error = x.mean(1), x.std(1, ddof=1) / np.sqrt(n)
        differs = 2 * stats.t.sf(np.abs(mean / error), n - 1) <= 0.05
        level = stats.t.sf((margin - np.abs(mean)) / error, n - 1) <= 0.05
        shares.append(max(differs.mean(), level.mean()))
    assert shares[0] >= 0.78
    assert shares[1] < 0.78 or seeds == 3
    assert paired.seeds_to_settle(0.0, float("nan"), 0.05) is None


def test_a_damaged_study_file_is_noted_and_the_runs_are_reported(tmp_path: Path) -> None:
    write_planned(tmp_path)
    (tmp_path / "study.toml").write_text("claims = 3\n")
    report = build(tmp_path)
    assert not report.claims
    assert any(note.startswith(f"The study in {tmp_path} and its claims are not reported.") for note in report.notes)
    assert report.comparisons["verdict"].isin(["better", "worse", "cannot tell"]).all()


def test_runs_on_other_data_are_not_weighed(tmp_path: Path) -> None:
    write_planned(tmp_path)
    folder = next(tmp_path.glob("*-adam-*-s2-*"))
    facts = json.loads((folder / "config.json").read_text())
    facts["data"]["fingerprint"] = "0" * 16
    (folder / "config.json").write_text(json.dumps(facts))
    table = build(tmp_path).claims.table.set_index("claim")
    assert "were not trained on the same data" in table["sentence"][CLAIMS[0]]
    assert table["outcome"][CLAIMS[0]] == "undecided"
    assert table["outcome"][CLAIMS[1]] == "refuted"
