"""Additions to mkdocs: pages from files outside of docs/, formulas without a script, tables and code for small screens.

README.md is the home page; CHANGELOG.md and CONTRIBUTING.md are pages, too. The benchmarks and their results are copied, as
pages link to them. On GitHub all links lead to the same files. Formulas become MathML, which browsers draw themselves.
"""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, SubElement

from latex2mathml.converter import convert
from markdown import Extension, Markdown
from markdown.treeprocessors import Treeprocessor
from markdown.util import AtomicString
from mkdocs.structure.files import File, Files
from pygments.lexers.shell import BashSessionLexer

ROOT = Path(__file__).resolve().parent.parent
PAGES = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
COPIED = ("benchmarks/*.py", "benchmarks/results/*", "benchmarks/studies/*", "LICENSE", "CITATION.cff")

LABEL = 18
"""The first column of a table is as wide as its labels, up to this many characters."""
LABEL_CHARACTER = 0.37
"""The width of a character of a label, in rem."""
PROSE, SHORT = 9, 5
"""The least widths of a column of sentences, and of one of few words, in rem: shorter texts have less, by their lengths."""
WORD = 34
"""A longer word of code may be broken: this many characters fit a telephone."""

BashSessionLexer._ps1rgx = re.compile(r"^(\$ )(.*\n?)")  # else a line of output that begins with "% " is a command


def on_config(config: Any) -> None:
    """Add our own step to the conversion of Markdown."""
    config.markdown_extensions.append(_Readable())


class _Readable(Extension):
    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802 - Markdown's name
        md.treeprocessors.register(_Widths(md), "widths", 4)  # when the cells and the table of contents are there


class _Widths(Treeprocessor):
    def run(self, root: Element) -> None:
        """Words of code that are not broken at their hyphens; columns of tables that are not one word wide."""
        for code in root.iter("code"):
            if "-" in (code.text or "") and not len(code):
                _unbroken(code)
        for table in root.iter("table"):
            for place, (head, *cells) in enumerate(zip(*table.iter("tr"), strict=True)):
                if cells and not head.get("style"):  # numbers are aligned, and narrow
                    head.set("style", f"min-width: {_width(cells, is_label=place == 0):.1f}rem;")


def _width(cells: list[Element], is_label: bool) -> float:
    """The least width of a column of text, so that a sentence is not set one word a line."""
    lengths = [len("".join(cell.itertext())) for cell in cells]
    of_prose = min(PROSE, 0.2 * sum(lengths) / len(lengths))
    of_words = min(SHORT, 0.13 * max(lengths))
    of_label = LABEL_CHARACTER * min(max(lengths), LABEL) if is_label else 0
    return max(of_prose, of_words, of_label)


def _unbroken(code: Element) -> None:
    """Make an element of each word, so that a line ends between words alone."""
    words, code.text = (code.text or "").split(" "), ""
    for number, word in enumerate(words):
        part = SubElement(code, "span", {"class": "word"} if len(word) <= WORD else {})
        part.text = AtomicString(word)
        part.tail = " " if number < len(words) - 1 else ""


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
