"""A study: which runs it means, in which order, what each is there for; and its file, which gives it back."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icpctl.ablate.command import define, executed_by
from icpctl.ablate.study import STUDY_FILE, Definition, Execution, PlannedRun, Study, parse_seeds
from icpctl.ablate.table import write_study_table
from icpctl.config import RunConfig, resolve
from icpctl.config.cost import compute_matched, passes
from icpctl.config.grid import parse_grid
from icpctl.errors import UserError


def study(settings: dict[str, object], grid: list[str], seeds: int = 1, **more: object) -> Study:
    return Study(settings, parse_grid(grid), seeds=tuple(range(seeds)), **more)  # type: ignore[arg-type]


def configs(planned: list[PlannedRun]) -> list[RunConfig]:
    return [run.config for run in planned]


def test_each_baseline_is_run_once_a_seed_and_one_seed_is_completed_before_the_next() -> None:
    planned = study({"epochs": 4}, ["steps=1,3", "lr=0.1,0.01"], seeds=2).runs()
    assert [(config.seed, config.steps, config.lr) for config in configs(planned)] == [
        (seed, steps, lr)
        for seed in (0, 1)
        for steps, lr in ((0, 0.1), (1, 0.1), (0, 0.01), (1, 0.01), (3, 0.1), (3, 0.01))
    ]
    assert {config.epochs for config in configs(planned)} == {4}


def test_combinations_that_come_to_the_same_run_are_one() -> None:
    planned = study({}, ["optimizer=none,adam,ademamix", "steps=1,2", "alpha=1,5"]).runs()
    assert sorted((c.optimizer, c.steps, c.alpha) for c in configs(planned)) == [
        ("adam", 1, 5),
        ("adam", 2, 5),
        *(("ademamix", steps, alpha) for steps in (1, 2) for alpha in (1, 5)),
        ("none", 0, 5),
    ]


def test_layers_of_a_grid_are_joined_with_plus() -> None:
    planned = study({}, ["layers=layer1+layer2,layer3"]).runs()
    assert [config.layers for config in configs(planned)[1:]] == [("layer1", "layer2"), ("layer3",)]


def test_a_baseline_is_planned_for_every_configuration() -> None:
    planned = configs(study({}, ["optimizer=sgd,adam", "epochs=4,8", "recipe=paper,strong"], seeds=2).runs())
    ids = {config.run_id for config in planned}
    assert all(config.baseline().run_id in ids for config in planned)
    assert resolve({"epochs": 8, "optimizer": "none", "seed": 1}).run_id in ids


def test_controls_stand_beside_each_run_that_descends() -> None:
    planned = study({"optimizer": "adam"}, ["steps=1,2"], controls=True).runs()
    assert [(run.role, run.config.steps, run.config.direction) for run in planned] == [
        ("baseline", 0, "descend"),
        *(("method", 1, "descend"), ("control", 1, "ascend"), ("control", 1, "random")),
        ("method", 0, "descend"),  # the schedule alone, which is the control of both
        *(("method", 2, "descend"), ("control", 2, "ascend"), ("control", 2, "random")),
    ]
    assert Counter(run.role for run in study({}, ["direction=descend,ascend"], controls=True).runs()) == {
        "baseline": 1,
        "method": 2,
        "control": 2,
    }


def test_compute_matched_baselines_have_as_many_passes() -> None:
    planned = study({"epochs": 12}, ["steps=1,5", "icp_lr=0.001,0.01"], seeds=2, compute_matched=True).runs()
    matched = [run.config for run in planned if run.role == "compute-matched"]
    assert [(config.seed, config.epochs, config.optimizer) for config in matched] == [
        (seed, epochs, "none") for seed in (0, 1) for epochs in (3 + 9 * 2, 3 + 9 * 14 // 3)
    ]


@given(st.integers(1, 60), st.integers(0, 59), st.integers(1, 30), st.booleans())
def test_passes_are_those_of_every_step(epochs: int, warmup: int, steps: int, extra: bool) -> None:
    warmup = min(warmup, epochs - 1)
    method = resolve({"epochs": epochs, "warmup_epochs": warmup, "steps": steps, "extra_task_grad": extra})
    # forward and backward for the inputs in each perturbation step; the teacher; the student with both backwards
    each_epoch = [3 if e < warmup else 2 * steps + 1 + 3 + 3 * extra for e in range(epochs)]
    assert passes(method) == sum(each_epoch)
    assert passes(method, epochs / 2) <= passes(method)
    assert passes(method, warmup + 1) == sum(each_epoch[: warmup + 1])
    assert passes(method.baseline()) == 3 * epochs
    assert abs(passes(compute_matched(method)) - passes(method)) <= 1.5


def test_a_baseline_that_is_also_compute_matched_is_a_baseline() -> None:
    # T = 1 costs 2 plain epochs, so the matched baseline of 2 epochs is the baseline of 4.
    planned = study({"steps": 1, "warmup_epochs": 0}, ["epochs=2,4"], compute_matched=True).runs()
    assert [(run.role, run.config.epochs) for run in planned if run.config.optimizer == "none"] == [
        ("baseline", 2),
        ("baseline", 4),
        ("compute-matched", 8),
    ]


def test_a_condition_leaves_out_combinations_and_what_stood_beside_them_alone() -> None:
    planned = study({}, ["steps=1,2", "lr=0.1,0.2"], where=["steps * lr < 0.25", "seed == 0"], seeds=2).runs()
    assert {(c.steps, c.lr) for c in configs(planned)} == {(0, 0.1), (1, 0.1), (2, 0.1), (0, 0.2), (1, 0.2)}
    assert {c.seed for c in configs(planned)} == {0}


def test_a_condition_can_leave_out_what_is_no_configuration() -> None:
    grid = ["epochs=4,8", "warmup_epochs=2,6"]
    planned = study({}, grid, where=["warmup_epochs < epochs"]).runs()
    assert {(c.epochs, c.warmup_epochs) for c in configs(planned) if c.optimizer != "none"} == {(4, 2), (8, 2), (8, 6)}
    with pytest.raises(UserError, match="--grid epochs=4 --grid warmup-epochs=6: --warmup-epochs is 6"):
        study({}, grid, where=["steps > 0"]).runs()


@pytest.mark.parametrize(
    ("settings", "grid", "more", "said"),
    [
        ({"steps": 5}, ["steps=1,3"], {}, "--steps is set to 5 for all runs, and varied"),
        ({"epochs": 4}, ["warmup-epochs=1,4"], {}, "--grid warmup-epochs=4: --warmup-epochs is 4"),
        ({}, ["steps=3,0"], {}, "--grid steps=0: --steps is 0"),
        ({}, ["steps=1,2"], {"where": ["steps > 5"]}, "no combination of the grid is left"),
        ({"direction": "ascend"}, ["steps=1,2"], {"controls": True}, "--controls: no run of this study has controls"),
        (
            {"optimizer": "none"},
            ["lr=1,2"],
            {"compute_matched": True},
            "--compute-matched: no run of this study costs more",
        ),
        ({"optimizer": "adam"}, ["alpha=1,5"], {}, "--grid alpha=1,5: this changes no run"),
        ({}, ["steps=1..1000", "lr=0.1..1:lin200"], {}, "The grid has 200,000 combinations"),
    ],
)
def test_an_invalid_study_is_refused(
    settings: dict[str, object], grid: list[str], more: dict[str, object], said: str
) -> None:
    with pytest.raises(UserError) as caught:
        study(settings, grid, **more).runs()  # type: ignore[arg-type]
    assert said in str(caught.value)


def test_seeds() -> None:
    assert parse_seeds("3") == (0, 1, 2)
    assert parse_seeds("3", 5) == (5, 6, 7)
    assert parse_seeds("0,3,7") == (0, 3, 7)
    assert parse_seeds("3.0") == parse_seeds("+3") == parse_seeds(" 003 ") == parse_seeds(3) == (0, 1, 2)
    assert parse_seeds([5]) == (5,)
    assert parse_seeds("2..4") == (2, 3, 4)
    assert [c.seed for c in configs(define({"seed": "5"}, seeds="2", grid=["steps=1"]).runs())] == [5, 5, 6, 6]
    assert {c.seed for c in configs(define({}, ["steps=1", "seed=1,2"]).runs())} == {1, 2}


@given(st.text() | st.from_regex(r"[0-9.,eE+_-]+", fullmatch=True) | st.lists(st.text() | st.integers() | st.floats()))
def test_any_seeds_are_read_or_refused(given: object) -> None:
    with suppress(UserError):
        seeds = parse_seeds(given)
        assert 1 <= len(seeds) == len(set(seeds)) <= 100_000


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"seeds": "0"}, "--seeds 0"),
        ({"seeds": "x"}, "--seeds x: give how many seeds, 1 to 100,000, or which"),
        ({"seeds": "²"}, "--seeds ²: give how many"),
        ({"seeds": "1,1"}, "--seeds 1,1: give how many"),
        ({"seeds": "0,00"}, "is given once"),
        ({"seeds": "9" * 5000}, "give how many"),
        *(({"seeds": text}, "give how many") for text in ("5.5", "1e3", "0x5", "-1", "٣", "5..3", "5..5")),
        ({"seeds": "1,,2"}, "--seeds 1,,2: give how many"),
        ({"seeds": "0,1", "settings": {"seed": 3}}, "--seeds 0,1 and --seed 3 both"),
        ({"seeds": "2", "grid": ["seed=1,2"]}, "--grid seed=… and --seeds both"),
        ({"grid": ["seed=1,2"], "settings": {"seed": 3}}, "--grid seed=… and --seed both"),
        ({"seeds": "2", "settings": {"seed": 2**31 - 1}}, "A seed is a whole number"),
        ({}, "There is nothing to vary"),
        ({"settings": {"epochs": "many"}, "seeds": "2"}, "--epochs got 'many'"),
    ],
)
def test_options_that_are_no_study_are_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(UserError) as caught:
        define(**{"settings": {}, **options}).runs()  # type: ignore[arg-type]
    assert said in str(caught.value)


WRITTEN = """
seeds = [0, 2]
where = "steps < 5 or icp_lr <= 0.01"
controls = true
compute-matched = true

[settings]
model = "resnet20"
dataset = "digits"
teacher-statistics = false
layers = ["layer1", "layer3"]

[grid]
steps = "1..5"
icp-lr = ["1e-3..1e-2:log2", 0.1]
extra-task-grad = [true, false]

[execution]
executor = "slurm"
jobs = 4
slurm = { slurm_partition = "gpu", timeout_min = 60 }
"""


def test_a_study_is_read_from_its_file_and_kept_in_the_results_folder(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(WRITTEN)
    definition = Definition.read(tmp_path / "mine.toml")
    (written,) = definition.studies
    assert written.grid == {
        "steps": ["1", "2", "3", "4", "5"],
        "icp_lr": ["1e-3", "1e-2", "0.1"],
        "extra_task_grad": ["true", "false"],
    }
    assert written.settings["teacher_statistics"] is False
    assert written.seeds == (0, 2)
    assert definition.execution == Execution(
        executor="slurm", jobs=4, slurm={"slurm_partition": "gpu", "timeout_min": 60}
    )
    definition.keep(tmp_path / "results")
    again = Definition.read(tmp_path / "results" / STUDY_FILE, recorded=True)
    assert again == in_order(definition)
    assert again.runs() == definition.runs()


def in_order(definition: Definition) -> Definition:
    """As a results folder keeps it: with the order of the passes."""
    studies = [replace(each, settings={"pass_order": "student-first", **each.settings}) for each in definition.studies]
    return Definition(studies, definition.execution)


def test_a_study_of_version_0_1_goes_on_in_its_own_order(tmp_path: Path) -> None:
    # What 0.1 kept of `--optimizer adam --seeds 2`, and the ids of the runs that it had trained.
    old = 'seeds = [0]\n[settings]\ndataset = "digits"\noptimizer = "adam"\nsteps = 3\n'
    (tmp_path / STUDY_FILE).write_text(old)
    ids = {run.role: run.config.run_id for run in define({}, resume=tmp_path).runs()}
    assert ids["method"] == "resnet20-digits-adam-T3-s0-56c839b2"
    # The same settings given anew are another study, with runs of their own beside the old ones.
    Definition([study({"dataset": "digits", "optimizer": "adam", "steps": 3}, [])]).keep(tmp_path)
    both = define({}, resume=tmp_path).runs()
    assert [run.config.pass_order for run in both if run.role == "method"] == ["student-last", "student-first"]
    assert len({run.config.run_id for run in both if run.role == "baseline"}) == 1


def test_studies_of_a_folder_add_up(tmp_path: Path) -> None:
    first, second = study({"epochs": 4}, ["steps=1,3"]), study({"epochs": 4}, ["steps=3,5"], seeds=2)
    Definition([first]).keep(tmp_path)
    Definition([second], Execution(jobs=3)).keep(tmp_path)
    moved = study({"epochs": 4, "device": "cpu", "data_dir": Path("/elsewhere")}, ["steps=1,3"])
    Definition([moved], Execution(jobs=2)).keep(tmp_path)  # the same study, on another machine
    kept = Definition.read(tmp_path / STUDY_FILE, recorded=True)
    assert [dict(each.settings) for each in kept.studies] == [
        {"pass_order": "student-first", "epochs": 4, "device": "cpu", "data_dir": Path("/elsewhere")},
        {"pass_order": "student-first", "epochs": 4},
    ]
    assert kept.execution.jobs == 2
    assert [(c.seed, c.steps) for c in configs(kept.runs())] == [(0, 0), (0, 1), (0, 3), (0, 5), (1, 0), (1, 3), (1, 5)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seeds = ", "is not valid TOML"),
        ("steps = 5", "steps belongs under [settings], or with several values under [grid]"),
        ("sedes = 5", "Did you mean 'seeds'?"),
        ("controls = 1", "controls cannot be 1. It is true or false."),
        ("[study.execution]\njobs = 2", "several studies"),
        ("[[study]]\nexecution = 2", "[execution] stands once in the file"),
        ("seeds = true", "seeds cannot be True"),
        ("seeds = 0", "seeds 0: give how many"),
        ("seeds = '5.5'", "seeds 5.5: give how many"),
        ("seeds = [0x" + "f" * 5000 + "]", "a huge int: give how many"),
        ("seeds = [[1], {a = 2}, 2020-01-01]", "give how many"),
        ("where = [1]\nseeds = 2", "where cannot be [1]. It is a text or a list of texts"),
        ("[grid]\nsteps = [[1, 2]]", "grid cannot be {'steps': [[1, 2]]}. It is a table of values and lists of values"),
        ("where = 1979-05-27", "where cannot be 1979-05-27. It is a text or a list"),
        ("seeds.a = 0x" + "f" * 5000, "seeds cannot be a huge dict"),
        ('[settings]\ndata-dir = "a\\u0000b"', "NUL"),
        ("[settings]\nepochs = 0x" + "f" * 5000, "--epochs got 'a huge int'"),
        ("[settings]\nmodel = { a = 1 }", "MODEL got"),
        ("grid = 5", "grid cannot be 5"),
        ("[settings]\nstpes = 5", "[settings]: Unknown hyper-parameter 'stpes'"),
        ("[settings]\nsteps = true", "--steps got true"),
        ("[settings]\nepochs = 0", "[settings]: --epochs got '0'"),
        ("[grid]\nsteps = '1..x'", "[grid] steps: 1..x is not a range"),
        ("[grid]\nsteps = []", "[grid] steps: steps has no value"),
        ("[grid]\nicp-lr = 1\nicp_lr = 2", "icp_lr is given twice"),
        ("seeds = 2\n[grid]\nseed = [1, 2]", "both say which seeds"),
        ("seeds = [1, 2]\n[settings]\nseed = 3", "both say which seeds"),
        ("[execution]\nexecutor = 'cloud'", "[execution] executor"),
        ("[execution]\njobbs = 3", "[execution] jobbs: Unknown key 'jobbs'. Did you mean 'jobs'?"),
        ("execution = 3", "[execution]"),
        ("", "there is nothing to vary"),
        ("[execution]\njobs = 2", "there is nothing to vary"),
        ("study = 3", "several studies are written as [[study]] tables"),
        ("seeds = 3\n[[study]]\n", "seeds stands beside [[study]]"),
        ("[[study]]\nseeds = 2\n[[study]]\nsedes = 3", "study 2: Unknown key 'sedes'"),
    ],
)
def test_what_is_wrong_with_a_study_file_is_said(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "study.toml"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        Definition.read(file)
    assert said in str(caught.value)
    assert str(file) in str(caught.value)


def test_the_command_line_goes_before_the_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("seeds = 3\n[settings]\nepochs = 8\n[grid]\nsteps = [1, 2]\n[execution]\njobs = 4\nretries = 2")
    definition = define({"epochs": "4"}, where=["steps > 1"], seeds="2", controls=True, study=file)
    (changed,) = definition.studies
    assert (changed.settings["epochs"], changed.seeds, changed.controls) == (4, (0, 1), True)
    assert {c.steps for c in configs(definition.runs())} == {0, 2}
    assert executed_by(definition, {"jobs": 1}, []).execution == Execution(jobs=1, retries=2)
    with pytest.raises(UserError, match="both say what varies"):
        define({}, ["steps=1"], study=file)
    file.write_text("[grid]\nseed = [1, 2]")
    with pytest.raises(UserError, match=r"--seeds 2 and seed under \[grid\]"):
        define({}, seeds="2", study=file)


def test_where_the_data_are_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert define({"data_dir": "data"}, seeds="2").studies[0].settings == {"data_dir": tmp_path / "data"}
    monkeypatch.setenv("ICPCTL_DATA_DIR", "elsewhere")
    begun = define({}, seeds="2")
    assert begun.studies[0].settings == {"data_dir": tmp_path / "elsewhere"}
    begun.keep(tmp_path)
    monkeypatch.delenv("ICPCTL_DATA_DIR")
    assert define({}, resume=tmp_path) == in_order(begun)
    monkeypatch.setenv("ICPCTL_DATA_DIR", "another")
    assert define({}, resume=tmp_path) == in_order(begun)
    (tmp_path / "mine.toml").write_text("seeds = 2\n[settings]\ndata-dir = '/data'")
    assert define({}, study=tmp_path / "mine.toml").studies[0].settings == {"data_dir": Path("/data")}


def test_resuming_takes_the_studies_as_they_are(tmp_path: Path) -> None:
    begun = study({"epochs": 4}, ["steps=1,3"])
    Definition([begun], Execution(jobs=3)).keep(tmp_path)
    assert define({}, resume=tmp_path) == in_order(Definition([begun], Execution(jobs=3)))
    resumed = define({"device": "cpu"}, resume=tmp_path).studies[0].settings
    assert resumed == {"pass_order": "student-first", "epochs": 4, "device": "cpu"}
    for options in ({"settings": {"epochs": 5}}, {"grid": ["steps=1"]}, {"seeds": "3"}, {"controls": True}):
        said = ", ".join({"settings": "--epochs"}.get(name, f"--{name}") for name in options)
        with pytest.raises(UserError, match=f"and {said} would change them. Leave out --resume, and give --output"):
            define(**{"settings": {}, "resume": tmp_path, **options})  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"there is no study\.toml"):
        define({}, resume=tmp_path / "nothing")


@pytest.mark.parametrize(
    ("options", "slurm", "said"),
    [
        ({"address": "host:1"}, [], "--address is for --executor ray"),
        ({"executor": "ray"}, ["timeout_min=5"], "--slurm is for --executor slurm"),
        ({"executor": "slurm"}, ["timeout_min"], "write KEY=VALUE"),
        ({"executor": "ray"}, ["a=--5"], "--slurm is for --executor slurm"),
    ],
)
def test_options_of_another_executor_are_refused(options: dict[str, object], slurm: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        executed_by(Definition([]), options, slurm)


def test_a_results_folder_that_was_removed_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"study\.toml is gone, .* The same command begins anew\."):
        write_study_table(tmp_path)
    assert not (tmp_path / "study.csv").exists()
