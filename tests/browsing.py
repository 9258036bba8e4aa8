"""A real browser for the tests of pages: Chromium, driven by playwright, if both are there."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
try:
    from playwright.sync_api import sync_playwright
except ImportError:
    CHROMIUM = None


@contextmanager
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@dataclass
class Opened:
    """A page that is open, and all that it did which a report has no reason to do."""

    page: Page
    requests: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)

    def __call__(self, script: str) -> Any:
        return self.page.evaluate(script)


@contextmanager
def opened(browser: Browser, address: Path | str, **options: Any) -> Iterator[Opened]:
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}} | options)
    context.set_default_timeout(120_000)
    opened = Opened(context.new_page())
    opened.page.on("request", lambda request: opened.requests.append(request.url))
    opened.page.on("console", lambda message: opened.messages.append(f"{message.type}: {message.text}"))
    opened.page.on("pageerror", lambda error: opened.messages.append(f"error: {error}"))

    def refuse(dialog: Any) -> None:
        opened.messages.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    opened.page.on("dialog", refuse)
    opened.page.goto(address.as_uri() if isinstance(address, Path) else address)
    try:
        yield opened
    finally:
        context.close()


def column(table: Locator, heading: str) -> list[str]:
    """The cells of a column that are in sight, from top to bottom."""
    headings = [text.strip() for text in table.locator("thead th").all_inner_texts()]
    place = headings.index(heading) + 1
    script = """(cells) => cells.filter((cell) => cell.checkVisibility()).map((cell) => cell.innerText.trim())"""
    return [str(text) for text in table.locator(f"tbody tr > :nth-child({place})").evaluate_all(script)]


def sorting(table: Locator, heading: str) -> Locator:
    return table.get_by_role("button", name=heading, exact=True)
