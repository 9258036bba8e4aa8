"""The declaration of the hyper-parameters: what is refused, and which runs are the same."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icpctl.config import RunConfig, choices, declaration, default_text, resolve
from icpctl.config.recipes import RECIPES, STAGES, default_layers
from icpctl.config.settings import read_toml
from icpctl.errors import UserError

METHOD = {
    "optimizer": st.sampled_from(["sgd", "adam", "ademamix"]),
    "steps": st.integers(1, 10_000),
    "icp_lr": st.floats(1e-9, 1e3),
    "direction": st.sampled_from(choices("direction")),
    "alpha": st.floats(0.5, 100),
    "layers": st.lists(st.sampled_from(["layer1", "layer2", "layer3"]), min_size=1, unique=True),
    "warmup_epochs": st.integers(0, 9),
    "teacher_statistics": st.booleans(),
}
TRAINING = {
    "model": st.sampled_from(["resnet20", "resnet18", "vgg16_bn"]),
    "dataset": st.sampled_from(["cifar10", "folder:/data/my images"]),
    "epochs": st.integers(10, 500),
    "recipe": st.sampled_from(list(RECIPES)),
    "lr": st.floats(1e-6, 1),
    "train_size": st.none() | st.integers(2, 50_000),
}
method = st.fixed_dictionaries({}, optional=METHOD)
training = st.fixed_dictionaries({}, optional=TRAINING)
settings = st.builds(lambda a, b: a | b, method, training)
seeds = st.integers(0, 2**31 - 1)

garbage = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text() | st.lists(st.text())


@given(st.dictionaries(st.sampled_from([*RunConfig.model_fields]) | st.text(), garbage, max_size=5))
def test_whatever_is_given_is_a_configuration_or_a_user_error(values: dict[str, Any]) -> None:
    with suppress(UserError):
        config = resolve(values)
        assert "/" not in config.run_id
        assert config == RunConfig.model_validate_json(config.model_dump_json())


@given(settings)
def test_a_configuration_survives_json_with_its_id(values: dict[str, Any]) -> None:
    config = resolve(values)
    again = RunConfig.model_validate_json(config.model_dump_json())
    assert again == config
    assert (again.run_id, again.group_id) == (config.run_id, config.group_id)


@given(settings, seeds, seeds)
def test_the_seed_makes_another_run_of_the_same_group(values: dict[str, Any], one: int, other: int) -> None:
    first, second = resolve({**values, "seed": one}), resolve({**values, "seed": other})
    assert first.group_id == second.group_id
    assert (first.run_id == second.run_id) == (one == other)


@given(settings, settings)
def test_only_equal_configurations_have_equal_ids(one: dict[str, Any], other: dict[str, Any]) -> None:
    first, second = resolve(one), resolve(other)
    assert (first.run_id == second.run_id) == (first == second)


@given(training, method, method)
def test_a_baseline_is_one_run_whatever_the_method(
    values: dict[str, Any], one: dict[str, Any], other: dict[str, Any]
) -> None:
    baseline = resolve(values | one).baseline()
    assert (
        baseline == resolve(values | other).baseline() == baseline.baseline() == resolve(values | {"optimizer": "none"})
    )
    assert baseline.steps == 0
    assert baseline.lr == resolve(values).lr


def test_the_machine_is_not_part_of_the_run() -> None:
    assert resolve({"device": "cuda:1", "data_dir": "/elsewhere"}).run_id == resolve({}).run_id
    assert resolve({"precision": "bf16"}).run_id != resolve({}).run_id


def test_text_means_what_the_value_means() -> None:
    text = {"steps": "3", "icp_lr": "1e-3", "layers": "layer1+layer2", "extra_task_grad": "true"}
    values = {"steps": 3, "icp_lr": 0.001, "layers": ["layer1", "layer2"], "extra_task_grad": True}
    assert resolve(text) == resolve(values)
    assert resolve({"layers": "layer1, layer2,"}).layers == ("layer1", "layer2")


def test_defaults_follow_from_recipe_model_and_epochs() -> None:
    config = resolve({"recipe": "strong", "model": "vgg16_bn", "epochs": 40, "lr": 0.05})
    assert (config.model_optimizer, config.batch_size, config.lr) == ("sgd", 128, 0.05)
    assert config.warmup_epochs == 10
    assert config.layers == tuple(STAGES["vgg16_bn"].split(","))


def test_the_longest_family_name_gives_the_stages() -> None:
    assert default_layers("vit_l_16") == tuple(STAGES["vit_l"].split(","))
    assert default_layers("vit_b_16") == tuple(STAGES["vit"].split(","))
    assert default_layers("resnet110") == ("layer1", "layer2", "layer3")
    assert default_layers("nothing_known") == ()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"stepss": 3}, "'steps'"),
        ({"steps": 0}, "steps is 0"),
        ({"steps": "three"}, "--steps got 'three'"),
        ({"optimizer": "adm"}, "'adam'"),
        ({"epochs": 5, "warmup_epochs": 5}, "--warmup-epochs < 5"),
        ({"model": "../resnet20"}, "MODEL got '../resnet20'"),
        ({"lr": float("nan")}, "--lr got 'nan'"),
        ({"beta1": 1}, "--beta1 got '1'"),
        ({"recipe": "papr"}, "'paper'"),
    ],
)
def test_what_is_wrong_is_said(values: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        resolve(values, "--grid here")
    assert said in str(caught.value)
    assert str(caught.value).startswith("--grid here: ")
    assert "default_factory" not in str(caught.value)


def test_every_hyper_parameter_is_documented() -> None:
    for name, field in RunConfig.model_fields.items():
        assert field.description, name
        assert declaration(name).group, name
        assert default_text(name) or field.default is None, name


def test_toml_is_read_and_its_faults_said(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('icp-lr = 0.01\nlayers = ["layer1"]\n')
    assert read_toml(file) == {"icp_lr": 0.01, "layers": ("layer1",)}
    file.write_text("steps: 5")
    with pytest.raises(UserError, match="not valid TOML"):
        read_toml(file)
    with pytest.raises(UserError, match="Cannot read"):
        read_toml(tmp_path / "missing.toml")


RUNS_OF_0_1: dict[str, dict[str, object]] = {
    "resnet20-cifar100-ademamix-T5-s0-0d767258": {},
    "resnet20-cifar100-none-s0-50f6ffaa": {"optimizer": "none"},
    "resnet20-digits-adam-T3-s0-56c839b2": {"optimizer": "adam", "steps": 3, "dataset": "digits"},
    "vae-digits-ademamix-T5-s0-75f76944": {"model": "vae", "dataset": "digits"},
    "resnet20-folder-b-none-s0-1d5c55b7": {"dataset": "folder:/a/b", "optimizer": "none"},
}


@pytest.mark.parametrize("run_id", RUNS_OF_0_1)
def test_runs_of_version_0_1_keep_their_ids_and_are_told_apart(run_id: str) -> None:
    config = resolve(RUNS_OF_0_1[run_id])
    values = config.model_dump()
    del values["pass_order"]  # 0.1 had no such setting
    recorded = RunConfig.recorded(values)
    assert recorded.run_id == run_id
    plain = config.optimizer == "none"
    assert recorded.pass_order == ("student-first" if plain else "student-last")  # plain training has one pass
    assert (config.run_id == run_id) is plain
    assert (config.group_id == recorded.group_id) is plain
    assert recorded.baseline() == config.baseline()
    assert resolve({**RUNS_OF_0_1[run_id], "pass_order": "student-last"}).run_id == run_id


def test_a_folder_of_images_is_one_data_set_however_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "b").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    names = ("photos", "./photos", "photos/", "b/../photos", "~/photos", f"{tmp_path}/photos", " photos ")
    assert {resolve({"dataset": f"folder:{name}"}).dataset for name in names} == {f"folder:{tmp_path}/photos"}
    recorded = resolve({}).model_dump() | {"dataset": "folder:photos"}
    assert RunConfig.recorded(recorded).altered(seed=1).dataset == "folder:photos"  # and so its id stays
    assert resolve({"dataset": "folder:"}).dataset == "folder:"  # refused where data sets are known


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("steps = 5\n".encode("utf-16"), "is encoded as UTF-16. Save it as UTF-8"),
        (b"model = '\xe9'", "is not encoded as UTF-8, at byte 10"),
        (b"a = " + b"[" * 3000 + b"]" * 3000, "nested too deeply"),
        (b"a" + b".a" * 100_000 + b" = 1", "nested too deeply"),
        (b"seed = " + b"9" * 5000, "a number in it has thousands of digits"),
        (b"seed = 0x" + b"f" * 5000, "--seed got 'a huge int'"),
        (b"steps = 5\0", "not valid TOML"),
        (b"steps = 5\nsteps = 6", "not valid TOML"),
        (b"steps = 1979-05-27", "--steps got '1979-05-27'"),
        (b"[steps]\na = 1", "--steps got"),
        (b'data-dir = "~no-such-user/data"', "home directory in ~no-such-user/data is not known"),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else value,
)
def test_a_file_of_any_shape_is_refused_in_words(content: bytes, said: str, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_toml(file)
    assert said in str(caught.value)
    assert str(file) in str(caught.value)


def test_what_other_editors_write_is_read(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_bytes(b"\xef\xbb\xbfsteps = 5\r\nepochs = 4\r\n")
    assert read_toml(file) == {"steps": 5, "epochs": 4}


def test_what_is_no_file_of_settings_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, said in ((tmp_path / "pipe", "named pipe"), (tmp_path, "Is a directory"), (Path("/dev/zero"), "larger")):
        with pytest.raises(UserError, match=said):
            read_toml(path)


@given(st.binary() | st.text().map(str.encode) | st.builds("{} = {}".format, st.text(), st.text()).map(str.encode))
def test_any_file_is_read_or_refused(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder, suppress(UserError):
        (Path(folder) / "run.toml").write_bytes(content)
        assert isinstance(read_toml(Path(folder) / "run.toml"), dict)
