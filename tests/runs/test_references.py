"""Which run of another method, and which control, a run is compared with."""

from __future__ import annotations

import pandas as pd
import pytest

from icpctl import RunConfig, UserError
from icpctl.ablate.study import Study
from icpctl.config.cost import compute_matched
from icpctl.report.groups import group
from icpctl.runs.references import comparisons, controls_of, of_controls, references, rivals
from icpctl.runs.table import COSTS


def of(method: str, **settings: object) -> RunConfig:
    return RunConfig.model_validate({"method": method, "dataset": "digits", "epochs": 20, **settings})


def chosen(*configs: RunConfig) -> dict[str, RunConfig]:
    """The rivals of the only run of ICP among these."""
    (found,) = rivals(configs).values()
    return found


def test_icp_is_compared_with_what_differs_in_the_method_alone() -> None:
    icp = of("icp")
    assert chosen(icp, of("sam"), of("dlb", lr=0.1), of("mixup", batch_size=64)) == {"sam": of("sam")}
    assert chosen(of("icp", label_smoothing=0.2), of("sam"), of("cs-kd", label_smoothing=0.2)).keys() == {"cs-kd"}
    assert rivals([of("sam"), of("plain")]) == {}


@pytest.mark.parametrize("method", ["cutmix", "mixup", "label-smoothing", "ps-kd", "sam"])
def test_of_several_the_default_one_counts(method: str) -> None:
    other = {
        "cutmix": {"mix_alpha": 0.5},
        "mixup": {"mix_probability": 0.5},
        "label-smoothing": {"label_smoothing": 0.2},
        "ps-kd": {"ps_kd_alpha": 0.5},
        "sam": {"sam_rho": 0.5},
    }[method]
    usual, unusual = of(method), of(method, **other)
    assert chosen(of("icp"), unusual, usual) == {method: usual}
    assert chosen(of("icp"), unusual) == {method: unusual}
    assert chosen(of("icp"), unusual, of(method, **dict.fromkeys(other, 0.3))) == {}


def test_comparisons_are_counted_as_a_report_makes_them() -> None:
    from icpctl.report.comparison import comparison_table

    grid = {"method": ["icp", "sam", "cs-kd", "ps-kd"], "optimizer": ["adam", "sgd"], "model": ["resnet20", "resnet32"]}
    study = Study({"dataset": "digits"}, grid, seeds=(0, 1, 2), controls=True, compute_matched=True)
    configs = [run.config for run in study.runs()]
    runs = pd.DataFrame(
        [
            {"group_id": c.group_id, "seed": c.seed, "task": c.task, "state": "finished"}
            | {"accuracy": place % 7 / 10, **dict.fromkeys(COSTS, 1.0)}
            for place, c in enumerate(configs)
        ]
    )
    table = comparison_table(runs, group({config.group_id: config for config in configs}))
    assert comparisons(configs) == len(table) > 40
    assert comparisons([config for config in configs if config.method == "plain"]) == 0


def test_settings_that_both_read_are_the_same() -> None:
    views = [of("two-views", warmup_epochs=k, augmentation="pad-crop-flip") for k in (2, 5)]
    for k, expected in ((2, views[0]), (5, views[1])):
        assert chosen(of("icp", warmup_epochs=k, augmentation="pad-crop-flip"), *views) == {"two-views": expected}


def test_a_control_belongs_to_its_run_whatever_the_settings() -> None:
    byot = of("byot", byot_alpha=0.5)
    controls = controls_of(byot)
    assert controls["heads"].byot_alpha == controls["heads"].byot_lambda == 0
    assert controls["heads"].control == "heads"
    assert of_controls([byot]) == {controls["heads"].group_id: byot}
    assert controls_of(controls["heads"]) == {}
    grouping = group({config.group_id: config for config in (byot, controls["heads"], byot.baseline())})
    assert grouping.twins[controls["heads"].group_id]["method"] == byot.group_id
    assert grouping.table["label"].tolist() == ["baseline", "BYOT heads", "BYOT"]


def test_smoothed_labels_are_no_control_where_all_labels_are_smoothed() -> None:
    assert "label-smoothing" in references(of("cs-kd"))
    assert "label-smoothing" not in references(of("cs-kd", label_smoothing=0.2))


def test_a_method_that_costs_nothing_is_compared_with_one_baseline() -> None:
    assert list(references(of("ps-kd"))) == ["baseline", "label-smoothing"]
    assert list(references(of("sam"))) == ["baseline", "compute-matched"]
    assert compute_matched(of("byot", byot_share=0.5)).epochs == 30


def test_pooled_rows_are_of_one_method() -> None:
    methods = ("plain", "icp", "sam", "label-smoothing")
    configs = [of(method, batch_size=size) for method in methods for size in (32, 64)]
    table = group({config.group_id: config for config in configs}, by=["batch_size"]).table
    assert table["label"].tolist() == [
        f"{name}, batch_size={size}"
        for size in (32, 64)
        for name in ("baseline", "AdEMAMix-ICP", "label smoothing", "SAM")
    ]


def test_the_cost_of_heads_is_measured_for_each_run_of_a_study() -> None:
    grid = {"method": ["icp", "byot"], "image_size": ["16", "32"], "model": ["resnet20", "vae"]}
    study = Study({"dataset": "digits"}, grid, ("image_size == 32 and model == 'resnet20'",), compute_matched=True)
    runs = {run.config.method: run.config for run in study.runs()}
    assert runs["byot"].byot_share == pytest.approx(0.087, abs=0.002)
    assert {run.role for run in study.runs()} == {"baseline", "method", "compute-matched"}


def test_options_that_change_nothing_are_refused() -> None:
    with pytest.raises(UserError, match="--controls: no run of this study has controls; icp, ps-kd"):
        Study({"method": "sam"}, {"sam_rho": ["0.1", "0.2"]}, controls=True).runs()
    with pytest.raises(UserError, match="--compute-matched: no run of this study costs more than its baseline"):
        Study({}, {"method": ["mixup", "cutmix"]}, compute_matched=True).runs()
    with pytest.raises(UserError, match="Unknown value for --method: 'foo'"):
        Study({}, {"method": ["byot", "foo"]}).runs()
    with pytest.raises(UserError, match="Unknown value for --method: 'foo'"):
        RunConfig().altered(method="foo")
    with pytest.raises(UserError, match="robustness is for classifiers, and vae is none"):
        RunConfig(model="vae", robustness=True)
