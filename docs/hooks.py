"""What mkdocs does not do by itself: pages from files outside of docs/, formulas without a script.

README.md is the home page; CHANGELOG.md and CONTRIBUTING.md are pages, too. The benchmarks and their results are copied, as
pages link to them. On GitHub all links lead to the same files. Formulas become MathML, which browsers draw themselves.
"""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
PAGES = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
COPIED = ("benchmarks/*.py", "benchmarks/results/*", "benchmarks/studies/*", "LICENSE", "CITATION.cff")


def on_files(files: Files, config: Any) -> Files:
    """Add the files of the repository that are pages, and those that pages link to."""
    for name, page in PAGES.items():
        text = _moved((ROOT / name).read_text(encoding="utf-8"))
        files.append(File.generated(config, page, content=text))
    for pattern in COPIED:
        for path in ROOT.glob(pattern):
            name = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, _uri(name), content=path.read_bytes()))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Lead the links of a page to where `on_files` put the files."""
    return re.sub(r"\]\(\.\./([^)#\s]+)", lambda link: f"]({_uri(link[1])}", markdown)


def on_page_content(content: str, **_: Any) -> str:
    """Make MathML of the formulas that arithmatex marked."""
    marked = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
    return marked.sub(lambda found: _formula(html.unescape(found[2]), found[1] == "div"), content)


def _moved(text: str) -> str:
    """The links of a file in the root, for a page in docs/."""
    return re.sub(r"\]\((?![a-z]+:|#)([^)#\s]+)", lambda link: f"]({_uri(link[1].removeprefix('docs/'))}", text)


def _uri(name: str) -> str:
    """Where a file of the repository is in the site: Markdown that is no page, as of a benchmark, stays as it is."""
    if name in PAGES:
        return PAGES[name]
    return f"{name}.txt" if name.startswith("benchmarks/") and name.endswith(".md") else name


def _formula(latex: str, block: bool) -> str:
    return str(convert(latex, display="block" if block else "inline"))
