"""The page of results: every table is computed from the runs of its study, and every number of the text is in a table."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import results
from scipy.stats import ttest_rel

PAGE = results.PAGE.read_text(encoding="utf-8").replace("\u00a0", " ")


def test_the_page_is_current_and_has_no_number_of_its_own() -> None:
    assert results.main(["--check"]) == 0


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        ("6.31 points over plain", "6.32 points over plain", "where the gain comes from: 6.32"),
        ("| 84.42 ± 3.81 |", "| 84.43 ± 3.81 |", "not current"),
    ],
)
def test_a_wrong_number_is_seen(
    right: str,
    wrong: str,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert right in PAGE
    page = tmp_path / "results.md"
    page.write_text(PAGE.replace(right, wrong), encoding="utf-8")
    monkeypatch.setattr(results, "PAGE", page)
    assert results.main(["--check"]) == 1
    assert said in capsys.readouterr().err


def test_a_difference_is_that_of_the_runs_of_each_seed() -> None:
    """By scipy, from the CSV alone."""
    runs = pd.read_csv(results.RESULTS / "digits-20-seeds.csv", keep_default_na=False)
    longest = runs[(runs["optimizer"] == "none") & (runs["epochs"] == 30)]
    random = runs[(runs["optimizer"] == "ademamix") & (runs["direction"] == "random")]
    ours, theirs = (100 * part.set_index("seed")["accuracy"].sort_index() for part in (random, longest))
    interval = ttest_rel(ours, theirs).confidence_interval(0.95)
    numbers = [f"{value:+.2f}".replace("-", "−") for value in ((ours - theirs).mean(), interval.low, interval.high)]
    (row,) = [line for line in PAGE.splitlines() if line.startswith("| AdEMAMix-ICP, random | 90 | 20 |")]
    assert row.endswith("| {} ({} to {}) |".format(*numbers))


def test_the_claims_of_a_study_come_out_as_its_report_had_them() -> None:
    """The figures of docs/claims.md, which are the output of `icpctl report`."""
    found = results.study("digits-three-verdicts")
    assert found is not None
    rows = [
        line.split(" | ")
        for line in results.claims(found, "digits-three-verdicts", "accuracy").replace("\u00a0", " ").splitlines()[2:]
    ]
    assert [row[1:4] for row in rows] == [
        ["10", "+5.19 (+0.93 to +9.46)", "0.034"],
        ["7", "−17.50 (−27.89 to −7.11)", "0.012"],
        ["6", "+0.51 (−1.63 to +2.65)", "1.000"],
    ]
    assert [row[5].strip(" |") for row in rows] == ["supported: better", "refuted: worse", "supported: level"]


def test_what_a_part_adds_is_its_difference_from_the_schedule_alone() -> None:
    def group(name: str, method: str, *values: float) -> results.Group:
        seeds = pd.RangeIndex(len(values), name="seed")
        return results.Group(name, pd.DataFrame({"method": method, "accuracy": values}, index=seeds))

    study = results.Study(
        [
            group("baseline", "plain", 0.5, 0.5, 0.5),
            group("its schedule", "schedule", 0.1, 0.2, 0.3),
            group("ICP", "icp", 0.2, 0.31, 0.39),
        ]
    )
    rows = results.parts(study, "", "accuracy").replace("\u00a0", " ").splitlines()
    # The differences are 10, 11 and 9 points: a standard deviation of 1, and 4.303 of its standard errors by t.
    assert [rows[0], *rows[2:]] == ["|  | − its schedule |", "| ICP | +10.00 (+7.52 to +12.48) * |"]
