"""Long tables of the page are folded, in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from browsing import CHROMIUM, Opened, chromium, opened
from drawn import write_run

from icpctl.config import resolve
from icpctl.report import build
from icpctl.report.page import page

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium and playwright")
RUNS = 40


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("long")
    for seed in range(RUNS):
        write_run(folder, resolve({"dataset": "digits", "epochs": 1, "optimizer": "none", "seed": seed}), [seed / 100])
    path = folder / "report.html"
    path.write_text(page(build(folder), [], [folder], []), encoding="utf-8")
    return path


def seeds(site: Opened) -> list[int]:
    """Of the runs that are in sight, in their order."""
    script = """Array.from(document.querySelectorAll('#table-runs tbody tr')).filter((row) => row.offsetParent !== null)
        .map((row) => Number(row.cells[2].textContent))"""
    found: list[int] = site(script)
    return found


def test_a_table_shows_thirty_rows_and_all_when_asked_by_keyboard(browser: Browser, file: Path) -> None:
    with opened(browser, file) as site:
        assert len(seeds(site)) == 30
        button = site.page.get_by_role("button", name="Show all 40 rows")
        button.focus()
        site.page.keyboard.press("Enter")
        assert sorted(seeds(site)) == list(range(RUNS))
        again = site.page.get_by_role("button", name="Show the first 30 rows")
        assert again.get_attribute("aria-expanded") == "true"
        again.press("Enter")
        assert len(seeds(site)) == 30
        assert site.page.locator("#summary-classification + button.more").count() == 0  # one row
        assert not site.messages


def test_sorting_and_filtering_reach_the_rows_that_are_folded(browser: Browser, file: Path) -> None:
    with opened(browser, file) as site:
        heading = site.page.locator("#table-runs th button", has_text="accuracy %").first
        heading.click()
        heading.click()
        assert seeds(site) == list(range(RUNS - 1, RUNS - 31, -1))
        site.page.locator("#filter-table-runs").fill("-s3")
        assert sorted(seeds(site)) == [3, *range(30, 40)]
        site.page.locator("#filter-table-runs").fill("")
        assert len(seeds(site)) == 30


def test_all_rows_are_printed_and_read_without_scripts(browser: Browser, file: Path) -> None:
    with opened(browser, file) as site:
        site.page.emulate_media(media="print")
        assert len(seeds(site)) == RUNS
        assert not site.page.locator("button.more").is_visible()
    with opened(browser, file, java_script_enabled=False) as site:
        assert site.page.locator("#table-runs tbody tr:visible").count() == RUNS
