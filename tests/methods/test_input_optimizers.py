"""An input optimizer is a class and a row of the catalogue: one is added as CONTRIBUTING.md says, trained and reported."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from icpctl.config import RunConfig, choices
from icpctl.config.catalogue import INPUT_OPTIMIZERS, METHODS, InputOptimizer, Variant, variants
from icpctl.errors import UserError
from icpctl.methods.icp.method import input_optimizer
from icpctl.methods.icp.perturbation import OPTIMIZERS, Adam, AdEMAMix

ROOT = Path(__file__).resolve().parents[2]


def recipe() -> str:
    (text,) = re.findall(r"### An input optimizer\n(.*?)\n### ", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.S)
    return str(text)


def example(number: int) -> str:
    """One of its pieces of code: the class, or its row."""
    return textwrap.dedent(re.findall(r"    ```python\n(.*?)    ```\n", recipe(), re.S)[number])


def icpctl(where: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command of the copy of the package that is there."""
    environment = os.environ | {"PYTHONPATH": str(where), "COLUMNS": "200"}
    command = [sys.executable, "-m", "icpctl", *arguments]
    return subprocess.run(command, cwd=where, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module", params=["in the dict", pytest.param("afterwards", marks=pytest.mark.slow)])
def changed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with one more input optimizer, in the files that the recipe names and no others."""
    where = tmp_path_factory.mktemp("copy")
    shutil.copytree(ROOT / "icpctl", where / "icpctl", ignore=shutil.ignore_patterns("__pycache__"))
    code, catalogue = re.findall(r"`(icpctl/[a-z_/]+\.py)`", recipe())
    text = (where / code).read_text("utf-8")
    table = re.search(r"^OPTIMIZERS.*\n", text, re.M)
    assert table is not None
    (where / code).write_text(f"{text[: table.end()]}\n\n{example(0)}{text[table.end() :]}", "utf-8")
    text = (where / catalogue).read_text("utf-8")
    begin = "INPUT_OPTIMIZERS: dict[str, InputOptimizer] = {\n"
    assert begin in text
    row = example(1)
    late = re.sub(r'("signum"): (.*),\n', r"\nINPUT_OPTIMIZERS[\1] = \2\n", row)
    text = text.replace(begin, f"{begin}    {row}") if request.param == "in the dict" else text + late
    (where / catalogue).write_text(text, "utf-8")
    return where


def test_one_more_is_trained_and_reported(changed: Path) -> None:
    small = ("resnet20", "digits", "--train-size", "64", "--val-fraction", "0", "--epochs", "1")
    values = ("--steps", "2", "--icp-lr", "0.01", "--grid", "optimizer=sgd,signum", "--seeds", "2")
    done = icpctl(changed, "ablate", *small, *values, "--jobs", "1", "--output", "results")
    assert done.returncode == 0, done.stderr
    reported = icpctl(changed, "report", "results", "--figures")
    assert reported.returncode == 0, reported.stderr
    assert "Signum-ICP" in reported.stdout
    assert "Signum-ICP" in (changed / "results" / "report.html").read_text("utf-8")
    moved = {}
    for name in ("sgd", "signum"):
        (run,) = (changed / "results").glob(f"resnet20-digits-{name}-*-s0-*")
        moved[name] = float(re.findall(r",train,delta_linf,(.*)", (run / "metrics.csv").read_text("utf-8"))[0])
    assert moved["signum"] == pytest.approx(2 * 0.01, rel=0.01)  # T·η: each step is a sign
    assert moved["sgd"] < 0.5 * moved["signum"]  # no SGD under another name


def test_what_the_others_read_means_nothing_with_it(changed: Path) -> None:
    program = (
        "from icpctl import RunConfig as R; one, other = (R(optimizer='signum', alpha=a, beta2=b) for a, b in ((1, 0.5), (2, 0.6)));"
        "assert one == other and one != R(optimizer='signum', beta1=0.5);"
        "assert R(optimizer='adam', beta1=0.5) != R(optimizer='adam')"
    )
    environment = os.environ | {"PYTHONPATH": str(changed)}
    done = subprocess.run([sys.executable, "-c", program], cwd=changed, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_recipe_has_its_last_step_where_such_tests_are() -> None:
    assert re.findall(r"`(tests/[a-z_/]+\.py)`", recipe()) == ["tests/methods/test_icp.py"]


def test_each_row_has_its_class_and_each_class_its_row() -> None:
    assert [*INPUT_OPTIMIZERS] == [*OPTIMIZERS] == [*METHODS["icp"].variants]
    for name in INPUT_OPTIMIZERS:
        assert type(input_optimizer(RunConfig(optimizer=name))) is OPTIMIZERS[name]


def test_a_row_that_is_added_later_is_in_every_list(monkeypatch: pytest.MonkeyPatch) -> None:
    own = InputOptimizer(Variant("Own-ICP", "#999999", "P"))
    monkeypatch.setitem(INPUT_OPTIMIZERS, "own", own)
    assert "own" in choices("optimizer")
    assert variants()["own"] == own.variant
    assert [*variants()].index(RunConfig(optimizer="own").variant) == len(INPUT_OPTIMIZERS)


def test_settings_reach_the_arguments_that_the_row_names() -> None:
    adam = input_optimizer(RunConfig(optimizer="adam", beta1=0.1, beta2=0.2, eps=0.3))
    assert isinstance(adam, Adam)
    assert (adam.betas, adam.eps) == ((0.1, 0.2), 0.3)
    slow = input_optimizer(RunConfig(beta1=0.1, beta2=0.2, beta3=0.4, eps=0.3, alpha=2, icp_weight_decay=0.5))
    assert isinstance(slow, AdEMAMix)
    assert (slow.betas, slow.beta3, slow.eps, slow.alpha, slow.weight_decay) == ((0.1, 0.2), 0.4, 0.3, 2, 0.5)


def test_an_unknown_name_is_refused_wherever_it_is_given() -> None:
    assert choices("optimizer") == (*INPUT_OPTIMIZERS, "none")
    with pytest.raises(UserError, match="Unknown value for --optimizer: 'signum'"):
        RunConfig(optimizer="signum")
    slipped = RunConfig().model_copy(update={"optimizer": "signum"})
    for use in (input_optimizer, lambda config: config.variant and METHODS["icp"].variants[config.variant]):
        with pytest.raises(KeyError, match="signum"):
            use(slipped)
