"""The tables of a report's page in a real browser: sorting and filters, by pointer and by keyboard."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from browsing import CHROMIUM, chromium, column, opened, sorting
from reports import configs, write_run

from icpctl.report import build
from icpctl.report.page import page

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium and playwright"),
    pytest.mark.xdist_group("browser"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


def written(results: Path) -> Path:
    """The page of a results folder, without figures."""
    file = results / "report.html"
    file.write_text(page(build(results), (), [results], ()), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def unruly(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of runs with values that are negative, infinite, and missing."""
    results = tmp_path_factory.mktemp("unruly")
    values = {1: 0.9, 2: float("inf"), 3: -0.5, 4: float("nan"), 5: 0.1, 6: float("-inf"), 10: 0.09}
    for config in configs(["steps=1..6,10"]):
        write_run(results, config, [0.1, values[config.steps] if config.optimizer != "none" else 0.2], [0.1, 0.2])
    return written(results)


def test_numbers_sort_by_value_and_what_is_missing_comes_last(browser: Browser, unruly: Path) -> None:
    with opened(browser, unruly) as report:
        table = report.page.locator("#summary-classification")
        button = sorting(table, "accuracy %")
        button.click()
        rising, missing = ["−50.00", "9.00", "10.00", "20.00", "90.00"], ["–", "–", "–"]
        assert column(table, "accuracy %") == [*rising, *missing]
        button.click()
        assert column(table, "accuracy %") == [*rising[::-1], *missing]
        sorting(table, "steps").click()  # a setting that means nothing in a baseline
        assert column(table, "steps") == ["1", "2", "3", "4", "5", "6", "10", "–"]
        sorting(table, "steps").click()
        assert column(table, "steps") == ["10", "6", "5", "4", "3", "2", "1", "–"]


def test_text_sorts_as_people_do_and_a_second_click_reverses(browser: Browser, unruly: Path) -> None:
    with opened(browser, unruly) as report:
        table = report.page.locator("#summary-classification")
        sorting(table, "group").click()
        rising = [*(f"AdEMAMix-ICP, T={steps}" for steps in (1, 2, 3, 4, 5, 6, 10)), "baseline"]
        assert column(table, "group") == rising
        sorting(table, "group").click()
        assert column(table, "group") == rising[::-1]


def test_seeds_needed_beyond_all_counting_are_more_than_any(browser: Browser, tmp_path: Path) -> None:
    for config in configs(["steps=1,3"], 4):
        gain = {1: (1e-6, 2e-2), 3: (1e-2, 2e-2)}[config.steps] if config.optimizer != "none" else (0.0, 0.0)
        write_run(tmp_path, config, [0.1, 0.5 + gain[0] + gain[1] * (-1) ** config.seed])
    file = written(tmp_path)
    with opened(browser, file) as report:
        table = report.page.locator("#comparisons-classification")
        for _ in range(2):
            sorting(table, "seeds needed").click()
        needed = column(table, "seeds needed")
        assert needed[0] == "> 10,000"
        assert len(needed) == 2
        assert needed[1].isdecimal()


def test_the_heading_that_a_table_is_sorted_by_is_told_and_no_other(browser: Browser, unruly: Path) -> None:
    with opened(browser, unruly) as report:
        table = report.page.locator("#summary-classification")

        def told() -> list[tuple[str, str]]:
            script = "(cells) => cells.map((cell) => [cell.innerText.trim(), cell.getAttribute('aria-sort')])"
            return [tuple(pair) for pair in table.locator("thead [aria-sort]").evaluate_all(script)]

        assert told() == []
        for heading, direction in (
            ("accuracy %", "ascending"),
            ("accuracy %", "descending"),
            ("steps", "ascending"),
            ("accuracy %", "ascending"),
        ):
            sorting(table, heading).click()
            assert told() == [(heading, direction)]
        assert report.page.locator("#table-runs [aria-sort]").count() == 0


def test_a_table_is_sorted_by_keyboard(browser: Browser, unruly: Path) -> None:
    with opened(browser, unruly) as report:
        table = report.page.locator("#summary-classification")
        report.page.locator("#filter-summary-classification").focus()
        for _ in range(4):  # the region that scrolls, group, seeds, accuracy
            report.page.keyboard.press("Tab")
        assert report("document.activeElement.textContent") == "accuracy %"
        assert report("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        report.page.keyboard.press("Enter")
        assert column(table, "accuracy %")[0] == "−50.00"
        report.page.keyboard.press("Space")
        assert column(table, "accuracy %")[0] == "90.00"
        assert report("document.activeElement.textContent") == "accuracy %"


def test_a_filter_takes_rows_that_have_all_words_says_how_many_and_stays_while_sorting(
    browser: Browser, unruly: Path
) -> None:
    with opened(browser, unruly) as report:
        table, words = report.page.locator("#summary-classification"), report.page.get_by_label("Filter").first
        count = report.page.locator("#count-summary-classification")
        assert count.get_attribute("aria-live") == "polite"
        assert count.inner_text() == "8 rows"
        words.fill("  t=1   ADEMAMIX ")
        assert column(table, "group") == ["AdEMAMix-ICP, T=1", "AdEMAMix-ICP, T=10"]
        assert count.inner_text() == "2 of 8 rows"
        sorting(table, "accuracy %").click()
        assert column(table, "group") == ["AdEMAMix-ICP, T=10", "AdEMAMix-ICP, T=1"]
        assert len(column(report.page.locator("#table-runs"), "run")) == 8  # its own table alone
        words.fill(".*")
        assert (column(table, "group"), count.inner_text()) == ([], "0 of 8 rows")
        words.fill("")
        assert (len(column(table, "group")), count.inner_text()) == (8, "8 rows")
        assert column(table, "accuracy %")[0] == "−50.00"  # sorted as it was
