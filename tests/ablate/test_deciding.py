"""Planned claims: how they are written down, and the seeds that are added until they are decided."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from commands import icpctl_command
from reports import write_run

from icpctl.ablate import command, deciding
from icpctl.ablate import scheduler as scheduling
from icpctl.ablate.scheduler import Scheduler, Stopped
from icpctl.ablate.study import Definition
from icpctl.ablate.table import write_study_table
from icpctl.ablate.worker import Job, Outcome
from icpctl.config import RunConfig
from icpctl.errors import UserError
from icpctl.report import build
from icpctl.runs.claims import PlannedClaim
from icpctl.statistics.sequential import running_p

Value = Callable[[RunConfig], float]
BETTER = "method=icp better than baseline in accuracy"


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduling, "TICK", 0.001)


class Made:
    """An executor of `size` jobs at once that ends them in a random order, each with the value that `value` says."""

    def __init__(self, output: Path, value: Value, size: int = 2, order: int = 0) -> None:
        self.output, self.value, self.size = output, value, size
        self.random = random.Random(order)
        self.at_work: list[Job] = []
        self.stopped = False
        self.done: list[RunConfig] = []

    @property
    def room(self) -> int:
        return self.size - len(self.at_work)

    def submit(self, job: Job) -> None:
        self.at_work.append(job)

    def wait(self, seconds: float) -> list[tuple[str, Outcome]]:
        job = self.at_work.pop(self.random.randrange(len(self.at_work)))
        if self.stopped:
            return [(run_id, Outcome("interrupted")) for run_id in job.runs]
        state = "finished"
        for config in map(RunConfig.recorded, job.runs.values()):
            self.done.append(config)
            value = self.value(config)
            state = "finished" if np.isfinite(value) else "failed"
            write_run(self.output, config, [value] * config.epochs, state=state)
        return [(run_id, Outcome("finished" if state == "finished" else "failed")) for run_id in job.runs]

    def stop(self) -> None:
        self.stopped = True

    def close(self) -> None:
        """Nothing is open."""


def define(claims: Sequence[str] = (BETTER,), seeds: str | None = None, **plan: object) -> Definition:
    settings = {"dataset": "digits", "epochs": 1, "warmup_epochs": 0, "optimizer": "adam"}
    given = {"claims": list(claims), "until_decided": True, "max_seeds": 12, **plan}
    return command.define(settings, seeds=seeds, plan=given)


def run(definition: Definition, executor: Made, stop_after: int | None = None) -> Definition:
    """Execute a study, or so many runs of it."""
    planned, _ = deciding.plan(definition, executor.output)
    planned.keep(executor.output)
    scheduler = Scheduler(deciding.planned_runs(planned, executor.output), executor.output)
    scheduler.run(
        executor,
        0,
        lambda *_: None,
        lambda: stop_after is not None and len(executor.done) >= stop_after,
        more=lambda: deciding.planned_runs(planned, executor.output),
    )
    return planned


def by_seed(gain: float, noise: float, first: int = 0) -> Value:
    """A value of a run: the baseline's, which has noise of its own, and a gain with its noise."""

    def value(config: RunConfig) -> float:
        base, own = np.random.default_rng(first + config.seed).standard_normal(2)
        return float(0.5 + 0.05 * base + (0 if config.method == "plain" else gain + noise * own))

    return value


def seeds_run(output: Path) -> list[int]:
    return sorted({record.config.seed for record in build(output).records.values()})


@pytest.mark.parametrize(
    ("gain", "verdict", "outcome", "stops"),
    [
        (0.03, "better", "supported", True),
        (-0.03, "worse", "refuted", True),
        (0.0, "level", "refuted", True),
        (0.016, "cannot tell", "undecided", False),
    ],
)
def test_seeds_are_added_until_the_claim_is_decided(
    gain: float, verdict: str, outcome: str, stops: bool, tmp_path: Path
) -> None:
    noise = 0.006 if stops else 0.03
    run(define(margin=2.0), Made(tmp_path, by_seed(gain, noise)))
    (row,) = build(tmp_path).claims.table.to_dict("records")
    assert (row["verdict"], row["outcome"]) == (verdict, outcome)
    assert seeds_run(tmp_path) == list(range(row["seeds"]))
    assert (3 <= row["seeds"] < 12) if stops else (row["seeds"] == 12)
    if stops:  # not a seed more than it takes
        noises = [np.random.default_rng(seed).standard_normal(2)[1] for seed in range(row["seeds"])]
        x = gain + noise * np.array(noises)
        p = running_p(x, 3, 12)
        below, above = (running_p(sign * x + 0.02, 3, 12, "greater") for sign in (1, -1))
        decided = [min(a, max(b, c)) <= 0.05 for a, b, c in zip(p, below, above, strict=True)]
        assert decided == [False] * (len(decided) - 1) + [True]


@pytest.mark.parametrize("order", range(6))
def test_the_seeds_do_not_depend_on_what_ends_first_or_on_stops(order: int, tmp_path: Path) -> None:
    """Two claims, one of which is decided sooner: the runs are those of a study that nothing disturbed."""
    claims = [BETTER, "direction=random better than baseline in accuracy"]

    def value(config: RunConfig) -> float:
        if config.method == "plain":
            return by_seed(0, 0)(config)
        return by_seed(0.05, 0.01)(config) if config.direction == "descend" else by_seed(0.01, 0.012, 50)(config)

    settings = {"dataset": "digits", "epochs": 1, "warmup_epochs": 0, "optimizer": "adam"}
    plan = {"claims": claims, "until_decided": True, "max_seeds": 12}
    definition = command.define(settings, controls=True, plan=plan)
    run(definition, Made(tmp_path / "calm", value, size=1))
    rng = random.Random(order)
    for part in range(100):
        executor = Made(tmp_path / "stopped", value, size=rng.randint(1, 5), order=order + part)
        try:
            run(definition, executor, stop_after=rng.randint(1, 6))
        except Stopped:
            continue
        break
    ids = [{path.name for path in (tmp_path / name).iterdir() if path.is_dir()} for name in ("calm", "stopped")]
    assert ids[0] == ids[1]
    tables = [build(tmp_path / name).claims.table.drop(columns=["written", "sentence"]) for name in ("calm", "stopped")]
    assert tables[0].to_csv() == tables[1].to_csv()
    assert tables[0]["seeds"].nunique() == 2  # the decided claim has no seed more


def test_a_claim_is_not_looked_at_beyond_a_seed_that_is_not_there(tmp_path: Path) -> None:
    planned, _ = deciding.plan(define(seeds="5"), tmp_path)
    planned.keep(tmp_path)
    for each in planned.runs():
        if each.config.seed != 1:
            write_run(tmp_path, each.config, [by_seed(0.3, 0.001)(each.config)])
    (row,) = build(tmp_path).claims.table.to_dict("records")
    assert (row["seeds"], row["outcome"]) == (1, "undecided")
    assert "It is tested once it has 5 seeds; it has 1." in row["sentence"]
    assert [run.config.seed for run in deciding.planned_runs(planned, tmp_path)].count(5) == 0


def test_a_run_that_failed_ends_a_claim_without_a_verdict(tmp_path: Path) -> None:
    value = by_seed(0.01, 0.03)
    run(define(), Made(tmp_path, lambda config: float("nan") if config.seed == 4 else value(config)))
    (row,) = build(tmp_path).claims.table.to_dict("records")
    assert (row["seeds"], row["verdict"], row["outcome"]) == (4, "cannot tell", "undecided")
    assert "A run of the next seed failed or has no finite value" in row["sentence"]
    assert seeds_run(tmp_path) == [0, 1, 2, 3]


def test_a_plan_is_written_down_and_kept_once_a_run_is_finished(tmp_path: Path) -> None:
    first, _ = deciding.plan(define(margin=2.0), tmp_path)
    first.keep(tmp_path)
    (claim,) = Definition.kept(tmp_path).claims  # type: ignore[union-attr]
    assert (claim.margin, claim.seeds, claim.max_seeds, claim.measured) == (2.0, (0, 1, 2), 12, 0)
    assert abs(datetime.fromisoformat(claim.written).timestamp() - datetime.now().timestamp()) < 600
    deciding.plan(define(margin=1.0), tmp_path)[0].keep(tmp_path)  # nothing is known yet
    assert Definition.kept(tmp_path).claims[0].margin == 1.0  # type: ignore[union-attr]

    for each in first.runs()[:2]:
        write_run(tmp_path, each.config, [0.5])
    changed, notes = deciding.plan(define([BETTER, "method=icp worse than baseline in f1_macro"], margin=9.0), tmp_path)
    (note,) = notes
    assert "a margin of 1, 3 seeds, at most 12." in note
    changed.keep(tmp_path)
    kept, added = Definition.kept(tmp_path).claims  # type: ignore[union-attr]
    assert (kept.margin, kept.measured) == (1.0, 0)
    assert (added.margin, added.measured) == (9.0, 2)
    early, late = build(tmp_path).claims.table["sentence"]
    assert early.endswith("before any run was measured.")
    assert late.endswith("when 2 runs had been measured already, so it was not planned in advance.")
    assert command.define({}, resume=tmp_path).until_decided


def test_seeds_that_were_not_planned_are_in_no_test(tmp_path: Path) -> None:
    """More runs after a look at the results are what a fixed plan must not use."""
    planned, _ = deciding.plan(define(until_decided=False, max_seeds=None, seeds="3"), tmp_path)
    planned.keep(tmp_path)
    value = by_seed(0.004, 0.02)
    for seed in range(30):
        for each in planned.runs()[:2]:
            config = each.config.altered(seed=seed)
            write_run(tmp_path, config, [value(config)])
    report = build(tmp_path)
    (row,) = report.claims.table.to_dict("records")
    assert (row["seeds"], row["max_seeds"]) == (3, 3)
    assert report.comparisons.query("metric == 'accuracy'")["seeds"].tolist() == [3]


FAULTS = [
    (["method=icp is better"], {}, "cannot be read. Write RUNS better than OTHERS in METRIC"),
    (["method=sam better than baseline in accuracy"], {}, "no run fits method=sam"),
    (["icp better than baseline in accuracy"], {}, r"icp alone is no condition\. Write method=icp\."),
    (["method=icp better than plain in accuracy"], {}, r"plain alone is no condition\. Write method=plain\."),
    (["cs-kd better than baseline in accuracy"], {}, r"Write method=cs-kd\."),
    (["adam better than baseline in accuracy"], {}, r"Write optimizer=adam\."),
    (["method=icp better than compute-matched in accuracy"], {}, "--compute-matched adds it"),
    (["method=icp better than random in accuracy"], {}, "--controls adds it"),
    (["method=icp better than sam in accuracy"], {}, "is compared with no sam"),
    (["method=icp better than optimizer=adam in accuracy"], {}, "compares a group with itself"),
    (["method=icp,nonsense=3 better than baseline in accuracy"], {}, "nonsense"),
    ([BETTER, BETTER], {}, "is given twice"),
    ([BETTER], {"seeds": "2"}, "it takes 3 seeds or more to test it, and both groups are planned with 2"),
    ([BETTER], {"seeds": "5", "max_seeds": 4}, "--max-seeds is 4, but 5 seeds are planned already"),
    ([BETTER], {"until_decided": False, "seeds": "3"}, "--max-seeds is for --until-decided"),
    ([], {"max_seeds": None}, "--until-decided adds seeds until the claims are decided, and there is none"),
    ([], {"until_decided": False, "max_seeds": None, "margin": 1.0, "seeds": "3"}, "--margin is of claims"),
]


@pytest.mark.parametrize(("claims", "plan", "message"), FAULTS)
def test_what_cannot_be_planned_is_said_before_the_first_run(
    claims: list[str], plan: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        deciding.plan(define(claims, **plan), tmp_path)  # type: ignore[arg-type]
    assert not [*tmp_path.iterdir()]


def test_a_claim_without_anything_to_vary_is_read_first(tmp_path: Path) -> None:
    definition = command.define({}, plan={"claims": ["icp better than baseline in accuracy"]})
    with pytest.raises(UserError, match="Write method=icp"):
        deciding.plan(definition, tmp_path)
    with pytest.raises(UserError, match="it takes 3 seeds or more"):
        deciding.plan(command.define({}, plan={"claims": [BETTER]}), tmp_path)


def test_a_claim_that_fits_several_groups_says_what_tells_them_apart(tmp_path: Path) -> None:
    definition = command.define({"dataset": "digits"}, ["steps=1,3"], seeds="3", plan={"claims": [BETTER]})
    with pytest.raises(UserError, match=r"method=icp fits 2 groups of runs, and has to fit one\. They differ in steps"):
        deciding.plan(definition, tmp_path)


def test_a_claim_can_compare_any_two_groups(tmp_path: Path) -> None:
    text = "method=plain,lr=0.1 better than method=plain,lr=0.01 in accuracy"
    settings = {"dataset": "digits", "method": "plain", "epochs": 1}
    plan = {"claims": [text], "until_decided": True}
    definition = command.define(settings, ["lr=0.1,0.01"], plan=plan)
    run(definition, Made(tmp_path, lambda c: by_seed(0, 0)(c) + (c.lr > 0.05) * (0.1 + c.seed % 2 / 100)))
    (row,) = build(tmp_path).claims.table.to_dict("records")
    assert (row["outcome"], row["against"], row["max_seeds"]) == ("supported", "", 40)


@pytest.mark.parametrize(
    "text",
    ["a=1 better than b=2 in x_y", "steps > 3 and lr < 1 level with baseline in ece", "a worse than random in f1"],
)
def test_the_words_of_a_claim_are_the_same_when_they_are_read_again(text: str) -> None:
    claim = PlannedClaim.parse(f"  {text} ")
    assert claim.claim == text
    assert PlannedClaim.parse(claim.claim) == claim
    assert f"{claim.subject} {claim.relation}" in text


def test_a_file_has_the_same_plan_as_the_options(tmp_path: Path) -> None:
    file = tmp_path / "study.toml"
    file.write_text(
        f'claims = ["{BETTER}"]\nmargin = 2.0\nuntil-decided = true\nmax-seeds = 12\nseeds = 3\n'
        '[settings]\ndataset = "digits"\nepochs = 1\nwarmup_epochs = 0\noptimizer = "adam"\n'
    )
    from_file = command.define({}, study=file)
    assert from_file.claims == define(margin=2.0).claims
    assert from_file.until_decided
    changed = command.define({}, study=file, plan={"claims": ["method=icp level with baseline in ece"], "margin": 1.0})
    assert [(claim.metric, claim.margin, claim.max_seeds) for claim in changed.claims] == [
        ("accuracy", 1.0, 12),
        ("ece", 1.0, 12),
    ]
    file.write_text(file.read_text().replace("margin = 2.0", "margin = -1"))
    with pytest.raises(UserError, match=r"margin cannot be -1\. It is a number above 0"):
        command.define({}, study=file)
    file.write_text('[[study]]\nseeds = 3\nclaims = ["x"]\n')
    with pytest.raises(UserError, match="claims stands once in the file, beside the studies"):
        command.define({}, study=file)


def test_runs_that_are_added_change_no_claim(tmp_path: Path) -> None:
    """A claim is bound to its groups: a second study that its words fit too, and one that they do not fit."""
    definition = define(until_decided=False, max_seeds=None, seeds="4")
    planned, _ = deciding.plan(definition, tmp_path)
    planned.keep(tmp_path)
    value = by_seed(-0.05, 0.002)
    for each in planned.runs():
        write_run(tmp_path, each.config, [value(each.config)])
    named = ["group", "other", "sentence"]  # which have the settings that tell groups apart
    before = build(tmp_path).claims.table.drop(columns=named)
    assert before["outcome"].tolist() == ["refuted"]
    settings = {"dataset": "digits", "epochs": 1, "warmup_epochs": 0}
    for other in ({"optimizer": "adam", "lr": 0.02}, {"optimizer": "sgd"}):
        added, notes = deciding.plan(command.define({**settings, **other}, seeds="3"), tmp_path)
        assert not notes
        added.keep(tmp_path)
        for run_ in added.runs():
            if not (tmp_path / run_.config.run_id).exists():
                write_run(tmp_path, run_.config, [0.9])
        write_study_table(tmp_path)
        assert deciding.planned_runs(added, tmp_path)
        assert build(tmp_path).claims.table.drop(columns=named).to_csv() == before.to_csv()
        part = build(tmp_path, only=[run_.config.run_id for run_ in added.runs()])
        assert part.claims.table.drop(columns=named).to_csv() == before.to_csv()


def test_of_several_folders_the_earliest_plan_counts(tmp_path: Path) -> None:
    for name, margin in (("a", 0.5), ("b", 9.0)):
        planned, _ = deciding.plan(
            define(until_decided=False, max_seeds=None, seeds="3", margin=margin), tmp_path / name
        )
        written = "2026-01-01T00:00:00+00:00" if name == "a" else "2026-02-01T00:00:00+00:00"
        claims = tuple(claim.model_copy(update={"written": written}) for claim in planned.claims)
        replace(planned, claims=claims).keep(tmp_path / name)
        for each in planned.runs():
            write_run(tmp_path / name, each.config, [by_seed(0.01, 0.02)(each.config)])
    for order in ("ab", "ba"):
        report = build([tmp_path / name for name in order])
        assert report.claims.table["margin"].tolist() == [0.005]
        assert any(
            "has several plans in these folders. The earliest one, of 2026-01-01T00:00:00+00:00, counts." in note
            for note in report.notes
        )


@pytest.mark.parametrize("metric", ["acuracy", "model", "seed", "epochs", "state", "passes", "ssim", "fid_prior"])
def test_a_metric_that_the_runs_do_not_have_is_refused(metric: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"Unknown metric '{metric}'"):
        deciding.plan(define([f"method=icp better than baseline in {metric}"]), tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--margin", "nan"], "margin cannot be nan"),
        (["--margin=-1"], "margin cannot be -1"),
        (["--margin", "0"], "margin cannot be 0"),
        (["--margin", "inf"], "margin cannot be inf"),
        (["--max-seeds", "2", "--until-decided"], "--max-seeds cannot be 2. It is a whole number from 3 to 100"),
        (["--max-seeds", "0", "--until-decided"], "--max-seeds cannot be 0"),
        (["--max-seeds", "1000", "--until-decided"], "--max-seeds cannot be 1000"),
        (["--max-seeds", "9"], "--max-seeds is for --until-decided"),
    ],
)
def test_a_number_that_a_plan_cannot_have_is_refused(options: list[str], message: str, tmp_path: Path) -> None:
    done = icpctl_command(
        "ablate",
        "resnet20",
        "digits",
        "--seeds",
        "3",
        "--claim",
        BETTER,
        *options,
        "-o",
        str(tmp_path / "r"),
        "--dry-run",
    )
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "r").exists()


def test_a_level_claim_needs_a_margin(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"differ by less than a margin\. Give --margin"):
        deciding.plan(define(["method=icp level with baseline in accuracy"]), tmp_path)


def test_a_claim_does_not_name_what_tuning_chooses(tmp_path: Path) -> None:
    plan = {"claims": ["method=icp,lr=0.0003 better than baseline in accuracy"]}
    definition = command.define({"dataset": "digits"}, seeds="3", plan=plan, tune=["lr=1e-4..1e-1:log"], trials=2)
    with pytest.raises(UserError, match="names lr, which tuning chooses"):
        deciding.plan(definition, tmp_path)


def test_what_was_measured_and_not_only_what_is_finished_freezes_a_plan(tmp_path: Path) -> None:
    planned, _ = deciding.plan(define(margin=2.0), tmp_path)
    planned.keep(tmp_path)
    config = planned.runs()[0].config.altered(epochs=3)
    write_run(tmp_path, config, [0.5], state="interrupted")
    changed, notes = deciding.plan(define(margin=9.0), tmp_path)
    assert changed.claims[0].margin == 2.0
    assert len(notes) == 1


def test_the_study_file_of_a_results_folder_can_be_used_for_another(tmp_path: Path) -> None:
    planned, _ = deciding.plan(define(margin=2.0), tmp_path)
    planned.keep(tmp_path)
    (claim,) = command.define({}, study=tmp_path / "study.toml").claims
    assert (claim.margin, claim.max_seeds, claim.written, claim.groups) == (2.0, 12, "", ())


@pytest.mark.parametrize(
    "text",
    [
        'claims = ["method=icp better than baseline in accuracy"]',
        "[[claims]]\nclaim = 'x better than y in z'",
        "[[claims]]\nclaim = 'garbage'",
    ],
)
def test_claims_that_are_written_by_hand_into_a_results_folder_have_no_plan(text: str, tmp_path: Path) -> None:
    for config in (each.config for each in define(until_decided=False, max_seeds=None, seeds="3").runs()):
        write_run(tmp_path, config, [0.5 + config.seed / 10])
    (tmp_path / "study.toml").write_text(
        f"seeds = 3\n{text}\n" if text.startswith("claims") else f"{text}\n[[study]]\nseeds = 3\n"
    )
    report = build(tmp_path)
    assert not report.claims
    assert ("garbage" in text) == any("and its claims are not reported" in note for note in report.notes)


def test_of_several_studies_one_seed_is_completed_before_the_next(tmp_path: Path) -> None:
    """As a study is executed: what `ablate` trains first can be compared when it is stopped."""
    first, second = (define(until_decided=False, max_seeds=None, seeds="3", claims=[]).studies[0] for _ in "ab")
    both = Definition([first, replace(second, settings={**second.settings, "lr": 0.02})])
    assert [run.config.seed for run in deciding.planned_runs(both, tmp_path)] == [0] * 4 + [1] * 4 + [2] * 4
