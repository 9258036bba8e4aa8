"""The documentation says what the code does: generated pages are current, commands parse, snippets run, links resolve."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from icpctl.ablate.command import define
from icpctl.cli.app import app
from icpctl.config import GROUPS, RunConfig, declaration, option, resolve
from icpctl.config.catalogue import METHODS
from icpctl.config.cost import step_passes
from icpctl.config.settings import read_toml

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
CLI: Any = get_command(app)
COMMANDS = ("train", "eval", "ablate", "report", "list")


def blocks(language: str, page: Path = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


def printed_commands() -> list[str]:
    lines = "".join(blocks("sh")).splitlines()
    return [line.split("  #")[0].strip() for line in lines if line.startswith("icpctl ")]


def given(command: str, arguments: list[str]) -> dict[str, Any]:
    """What a command line says, parsed as the command does, without running it."""
    with CLI.commands[command].make_context(command, arguments) as context:
        return {name: value for name, value in context.params.items() if value is not None}


def parameters(command: str) -> list[Any]:
    """The arguments and options of a command; they are made when it is called."""
    return list(CLI.commands[command].make_context(command, [], resilient_parsing=True).command.params)


def test_cli_page_is_current() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "generate.py"), "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_every_option_and_group_is_on_the_cli_page() -> None:
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    words = set(re.findall(r"--[a-z0-9-]+", page))
    declared = {option(name) for name in RunConfig.model_fields if name not in ("model", "dataset")}
    of_commands = {
        text
        for parameter in [*CLI.params, *(each for command in COMMANDS for each in parameters(command))]
        for text in parameter.opts
        if text.startswith("--")
    }
    assert declared <= of_commands
    assert of_commands <= words
    assert {"`MODEL`", "`DATASET`"} <= set(re.findall("`[A-Z]+`", page))
    for name in RunConfig.model_fields:
        assert GROUPS[declaration(name).group] in page
        assert str(RunConfig.model_fields[name].description) in page


def test_readme_has_the_four_commands() -> None:
    assert {line.split()[1] for line in printed_commands()} >= set(COMMANDS)


@pytest.mark.parametrize("line", printed_commands())
def test_readme_command_parses(line: str) -> None:
    command, *arguments = shlex.split(line.replace("<run>", "run"))[1:]
    if command not in COMMANDS:
        assert command in {text for parameter in CLI.params for text in parameter.opts}
        return
    values = given(command, arguments)
    settings = {name: value for name, value in values.items() if name in RunConfig.model_fields}
    if command == "train":
        resolve(settings)
    elif command == "ablate":
        study = {
            name: values[name] for name in ("grid", "where", "seeds", "controls", "compute_matched") if name in values
        }
        if not {"study", "resume"} & values.keys():
            assert len(define(settings, **study).runs()) > 1


@pytest.mark.parametrize("text", blocks("toml"))
def test_readme_configuration_file_is_valid(text: str, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(text)
    resolve(read_toml(tmp_path / "run.toml"))


@pytest.mark.parametrize("text", blocks("toml study"))
def test_readme_study_is_valid(text: str, tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text(text)
    assert len(define({}, study=tmp_path / "study.toml").runs()) > 100


@pytest.mark.parametrize("snippet", blocks("python"))
def test_readme_snippet_runs(snippet: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a snippet writes results/
    exec(compile(snippet, "README.md", "exec"), {})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_resolve(page: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    relative = [target.partition("#")[0] for target in targets if not re.match(r"[a-z]+:", target)]
    missing = [target for target in relative if target and not (page.parent / target).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_path_of_the_machine_it_was_written_on(page: Path) -> None:
    lines = page.read_text(encoding="utf-8").splitlines()
    assert not [line for line in lines if re.search(r"(?<![\w.])/(work|tmp|root|home|mnt|Users)\b", line)]


def test_metrics_of_a_run_are_in_the_readme(tmp_path: Path) -> None:
    import icpctl

    config = icpctl.RunConfig(dataset="digits", optimizer="adam", steps=1, epochs=1, train_size=100)
    run = icpctl.train(config, tmp_path)
    written = set(re.findall(r"`(\w+)`", README.read_text(encoding="utf-8")))
    names = {re.sub(r"_\d+$", "_1", name) for name in run.metrics["metric"]}
    assert names <= written
    assert {path.name for path in run.path.iterdir()} <= {
        ".lock",
        "config.json",
        "metrics.csv",
        "status.json",
        "checkpoints",
    }


DESIGN = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")


def test_the_tree_of_the_design_has_every_module() -> None:
    tree = blocks("text", ROOT / "docs" / "design.md")[0]
    for path in (ROOT / "icpctl").rglob("*.py"):
        named = path.parent.name + "/" if path.parent.name in ("executors", "figures") else path.name
        assert named in tree or path.name in ("__init__.py", "__main__.py"), path


def test_the_imports_of_the_design_are_those_of_the_code() -> None:
    grimp = pytest.importorskip("grimp")
    graph = grimp.build_graph("icpctl")
    packages = ["cli", "report", "ablate", "training", "tasks", "models", "methods", "runs", "data", "config"]
    rows = []
    for package in packages:
        modules = {f"icpctl.{package}", *graph.find_descendants(f"icpctl.{package}")}
        imported: set[str] = set().union(*map(graph.find_modules_directly_imported_by, modules))
        rooms = {name.split(".")[1] for name in imported if name.count(".")}
        below = [other for other in packages if other in rooms - {package}]
        rows.append(f"| {package} | {', '.join(below) or '–'} |")
    assert "\n".join(rows) in DESIGN, "The table has to be:\n" + "\n".join(rows)


def test_the_page_of_the_methods_says_what_the_catalogue_says() -> None:
    page = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in page.splitlines()
        if re.match(r"\| `[a-z]", line)
    ]
    of_idea = {row[0].strip("`"): row for row in rows if len(row) == 5}
    of_needs = {name: row for row in rows if len(row) == 6 for name in re.findall("`([^`]+)`", row[0])}
    assert [*of_idea] == [*of_needs] == [*METHODS]
    for name, row in METHODS.items():
        *_, processes, stacked, vae = of_needs[name]
        assert (processes == "yes") == (not row.single_process), name
        assert (stacked == "yes") == row.stacked, name
        assert vae.startswith("yes") == ("generation" in row.tasks), name
        *_, passes, source = of_idea[name]
        assert source == "–" or source in row.summary or name == "icp", name
        if name not in ("icp", "byot"):
            assert passes == f"{step_passes(RunConfig(method=name)):g}", name
    assert all(
        f"`{method}`" in page and f"`{key}`" in page
        for method in METHODS
        for key in METHODS[method].controls
        if key != "heads"
    )
