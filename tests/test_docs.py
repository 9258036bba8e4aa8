"""The documentation says what the code does: generated pages are current, commands parse, snippets run, names exist."""

from __future__ import annotations

import importlib
import inspect
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
from icpctl.config import GROUPS, RunConfig, declaration, resolve
from icpctl.config.catalogue import METHODS
from icpctl.config.cost import step_passes
from icpctl.config.settings import read_toml

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
CLI_PAGE = ROOT / "docs" / "cli.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *DOCS]
CLI: Any = get_command(app)
COMMANDS = tuple(CLI.commands)
CARD = (
    "icpctl train resnet20 cifar100 --optimizer ademamix --steps 5",
    "icpctl ablate --grid steps=1,3,5",
    "icpctl report results/",
)
"""The commands that every README of the tool has."""


def blocks(language: str, page: Path) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


def blocks_of_all(language: str) -> list[Any]:
    return [
        pytest.param(text, id=f"{page.name}-{n}") for page in PAGES for n, text in enumerate(blocks(language, page))
    ]


def printed_commands(page: Path) -> list[str]:
    """The commands of icpctl in the blocks of a page, long ones on one line."""
    lines = "".join(blocks("sh", page)).replace("\\\n", " ").splitlines()
    shown = "".join(blocks("console", page)).replace("\\\n", " ").splitlines()
    lines += [line.removeprefix("$ ") for line in shown if line.startswith("$ ")]
    return [re.split(r"  #| && | > ", line)[0].strip() for line in lines if line.startswith("icpctl ")]


def commands_of_all() -> list[Any]:
    shown = [(page.name, line) for page in PAGES for line in printed_commands(page)]
    return [pytest.param(line, id=f"{name}: {line[:60]}") for name, line in dict.fromkeys(shown)]


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


@pytest.mark.parametrize("command", COMMANDS)
def test_the_section_of_a_command_has_all_its_options(command: str) -> None:
    page = CLI_PAGE.read_text(encoding="utf-8")
    (section,) = re.findall(rf"^## icpctl {command}\n(.*?)(?=^## )", page, re.M | re.S)
    if {*RunConfig.model_fields} <= {parameter.name for parameter in parameters(command)}:
        section += page[page.index("## Every hyper-parameter") :]
    for parameter in parameters(command):
        named = [text for text in parameter.opts if text.startswith("-")] or [
            parameter.metavar or parameter.name.upper()
        ]
        assert all(f"`{text}`" in section for text in named), parameter.name


def test_every_hyper_parameter_is_on_the_cli_page() -> None:
    page = CLI_PAGE.read_text(encoding="utf-8")
    for name in RunConfig.model_fields:
        assert f"### {GROUPS[declaration(name).group]}\n" in page
        assert str(RunConfig.model_fields[name].description).replace("|", r"\|") in page


def test_the_readme_fits_and_shows_every_command() -> None:
    lines = README.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150
    shown = printed_commands(README)
    assert {*CARD} <= {*lines}, "the commands of the card stand word for word, each on its own line"
    assert {line.split()[1] for line in shown} | {*re.findall("`icpctl ([a-z]+)", "\n".join(lines))} >= {*COMMANDS}


def test_continuous_integration_runs_the_command_of_the_readme() -> None:
    assert "`make test`" in README.read_text(encoding="utf-8")
    assert re.search(r"^test:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)


@pytest.mark.parametrize("line", commands_of_all())
def test_a_command_of_the_pages_parses(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    command, *arguments = shlex.split(re.sub("<run>|RUN", "run", line))[1:]
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
        elif "study" in values and Path(values["study"]).parent.name == "reproduce":
            assert len(define(settings, **study, study=values["study"]).runs()) > 1


@pytest.mark.parametrize("text", blocks_of_all("toml"))
def test_a_toml_block_of_the_pages_is_valid(text: str, tmp_path: Path) -> None:
    (tmp_path / "it.toml").write_text(text)
    studies = [path.read_text(encoding="utf-8") for path in (ROOT / "benchmarks" / "studies").glob("*.toml")]
    if "[grid]" in text or "[[study]]" in text:
        assert len(define({}, study=tmp_path / "it.toml").runs()) > 1
    elif not any(text in study for study in studies):  # else it shows a part of one
        resolve(read_toml(tmp_path / "it.toml"))


@pytest.mark.parametrize("snippet", blocks_of_all("python"))
def test_a_snippet_of_the_pages_runs(snippet: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a snippet writes results/
    exec(compile(snippet, "snippet", "exec"), {})


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


def test_the_page_of_the_run_folder_has_the_files_and_metrics_of_a_run(tmp_path: Path) -> None:
    import icpctl

    config = icpctl.RunConfig(dataset="digits", optimizer="adam", steps=1, epochs=1, train_size=100)
    run = icpctl.train(config, tmp_path)
    written = set(re.findall(r"`(\w+)`", (ROOT / "docs" / "run-folder.md").read_text(encoding="utf-8")))
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
    packages = [
        "cli",
        "report",
        "ablate",
        "training",
        "tasks",
        "models",
        "methods",
        "runs",
        "data",
        "config",
        "statistics",
    ]
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


def options_that_exist() -> set[str]:
    """Those of icpctl, and those of the scripts in benchmarks/ and docs/."""
    every = [*CLI.params, *(each for command in COMMANDS for each in parameters(command))]
    ours = {text for each in every for text in (*each.opts, *each.secondary_opts)} | {"--help", "--help-all"}
    scripts = [
        path.read_text(encoding="utf-8") for folder in ("benchmarks", "docs") for path in (ROOT / folder).glob("*.py")
    ]
    return ours | set(re.findall(r"--[a-z][a-z-]+", "\n".join(scripts)))


@pytest.mark.parametrize("page", [README, *DOCS], ids=lambda page: page.name)
def test_options_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    inline = re.findall(r"(?<!`)`(--[a-z][^`\n]*)`", text)
    named = {
        word for code in (*inline, *printed_commands(page)) for word in re.findall(r"(?<![\w-])--[a-z][a-z-]+", code)
    }
    assert named <= options_that_exist()


@pytest.mark.parametrize("page", [README, *DOCS], ids=lambda page: page.name)
def test_modules_and_names_that_a_page_names_exist(page: Path) -> None:
    """`icpctl.a.b`, and `module.name` where icpctl has a module of this name."""
    folders = [path.relative_to(ROOT).with_suffix("") for path in (ROOT / "icpctl").rglob("*.py")]
    modules: dict[str, list[str]] = {}
    for path in folders:
        parts = [part for part in path.parts if part != "__init__"]
        modules.setdefault(parts[-1], []).append(".".join(parts))
    for code in re.findall(r"`([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+)(?:\([^`]*\))?`", page.read_text(encoding="utf-8")):
        first, *names = code.split(".")
        if first in modules and names[-1] not in ("py", "md", "csv", "toml", "html", "json", "txt"):
            assert any(_found(module, names) for module in modules[first]), f"{page.name}: {code}"


def _found(module: str, names: list[str]) -> bool:
    """Whether a module has these attributes or modules, one in the other."""
    found: Any = importlib.import_module(module)
    for name in names:
        if inspect.ismodule(found) and not hasattr(found, name):
            try:
                importlib.import_module(f"{found.__name__}.{name}")
            except ImportError:
                return False
        if not hasattr(found, name) and name not in getattr(found, "__annotations__", {}):
            return False
        found = getattr(found, name, None)
    return True


@pytest.mark.parametrize("page", [README, *DOCS], ids=lambda page: page.name)
def test_one_word_for_one_thing(page: Path) -> None:
    """The compute-matched baseline has one name; in what a command printed it is that of the command."""
    text = re.sub(r"```console.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert not re.findall(r"[^\n]*equal[- ]compute[^\n]*", text, re.IGNORECASE)


@pytest.mark.parametrize("page", [README, ROOT / "CONTRIBUTING.md", *DOCS], ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    names = set(re.findall(r"`((?:icpctl|tests|docs|benchmarks)/[^`\s]*)`", text))
    named = [name for name in names if not re.search(r"NAME|DATE|[*…]", name)]
    named += [f"tests/**/{name}.py" for name in re.findall(r"`(test_\w+)`", text)]
    assert not [name for name in named if not any(ROOT.glob(name.rstrip("/")))]
