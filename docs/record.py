"""Run the commands that README.md and the tutorial show, and put what they print into the pages; then take the pictures.

    python docs/record.py        some five minutes on two cores

Each `console` block begins with its commands, `$ icpctl …`. A comment before it says which part of the output is shown:

    <!-- output: lines 12 -->                the first 12 lines
    <!-- output: from "Differences" 8 -->    8 lines from the first one with this text
    <!-- output: to "Everything" 3 -->       the 3 lines up to the first one with this text

The pictures need Chromium and playwright.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parent.parent
TUTORIAL, README = ROOT / "docs" / "tutorial.md", ROOT / "README.md"
IMAGES = ROOT / "docs" / "images"
STUDY = "results/tutorial"
BLOCK = re.compile(r'<!-- output: (lines|from|to) ?(?:"([^"]*)" )?(\d+) -->\n```console\n(.*?)```', re.DOTALL)
COMMAND = re.compile(r"^\$ (?:.*\\\n)*.*", re.MULTILINE)
"""A command, on several lines where they end with a backslash."""
WIDTH = 80
OMITTED = "…"


def recorded(page: str, folder: Path) -> str:
    """The text of a page with the output of its commands, which run in this folder."""

    def filled(found: re.Match[str]) -> str:
        commands = COMMAND.findall(found[4])
        output: list[str] = []
        for command in commands:
            print(command, flush=True)
            output += _output(command.removeprefix("$ "), folder)
        shown = _part(output, found[1], found[2] or "", int(found[3]))
        head = found[0].partition("```console\n")[0]
        return "\n".join([f"{head}```console", *commands, *shown, "```"])

    return BLOCK.sub(filled, page)


def _output(command: str, folder: Path) -> list[str]:
    environment = os.environ | {"COLUMNS": str(WIDTH), "NO_COLOR": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    environment.pop("FORCE_COLOR", None)
    done = subprocess.run(
        command, shell=True, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        sys.exit(f"{command} left with status {done.returncode}:\n{done.stdout}")
    lines = [line.rstrip() for line in done.stdout.strip("\n").splitlines()]
    return [part for line in lines for part in (textwrap.wrap(line, WIDTH) if len(line) > WIDTH else [line])]


def _part(output: list[str], kind: str, text: str, number: int) -> list[str]:
    place = next((index for index, line in enumerate(output) if text in line), None)
    if place is None:
        sys.exit(f"No line of the output has {text!r}.")
    first = {"lines": 0, "from": place, "to": max(0, place + 1 - number)}[kind]
    last = min(first + number, len(output))
    before = [OMITTED] if first else []
    after = [OMITTED] if last < len(output) else []
    return [*before, *output[first:last], *after]


def photograph(report: Path) -> None:
    """Pictures of a report.html, as a browser shows it."""
    shots = {
        "tutorial-differences.png": "#figure-accuracy-differences",
        "tutorial-epochs.png": "#figure-accuracy-by-epoch",
    }
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium") or shutil.which("google-chrome"), args=["--no-sandbox"]
        )
        page = browser.new_page(viewport={"width": 1000, "height": 640})
        page.goto(report.resolve().as_uri())
        page.screenshot(path=IMAGES / "report.png")
        for name, selector in shots.items():
            page.locator(f"{selector} img").screenshot(path=IMAGES / name)
        browser.close()


def main() -> None:
    """Record the tutorial, and then the README, which shows the report of the tutorial's study."""
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        _record(TUTORIAL, Path(first))
        shutil.copytree(Path(first) / STUDY, Path(second) / STUDY)
        _record(README, Path(second))
        photograph(Path(second) / STUDY / "report.html")


def _record(page: Path, folder: Path) -> None:
    page.write_text(recorded(page.read_text(encoding="utf-8"), folder), encoding="utf-8")


if __name__ == "__main__":
    main()
