"""What a pointer on a figure of the page, or the arrow keys, show: the numbers of its data; and the page on paper and at its widths."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
from browsing import CHROMIUM, Opened, chromium, opened
from drawn import make_grid

from icpctl.report.figures.style import Drawing, encode
from icpctl.report.page import UNSAID, page
from icpctl.text import value_text

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium and playwright"),
    pytest.mark.xdist_group("browser"),
]
FIGURES = (
    "accuracy-differences",
    "accuracy-by-epoch",
    "accuracy-by-passes",
    "accuracy-by-icp-lr",
    "accuracy-by-steps-and-icp-lr",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Drawing]]:
    folder = tmp_path_factory.mktemp("numbers")
    grid = make_grid(folder)
    file = folder / "report.html"
    file.write_text(page(grid.report, [*grid.drawn.values()], [folder], []), encoding="utf-8")
    return file, grid.drawn


def said(row: pd.Series) -> set[str]:
    """What is to be shown of a row of a figure's data, by the rules of the table below it."""
    lines = set()
    for name, value in row.items():
        text = f"{value:.5g}" if isinstance(value, float) and not np.isnan(value) else value_text(value)
        if name not in UNSAID and text not in ("", "–"):
            lines.add(f"{name}: {text}")
    return lines


def plot(site: Opened, name: str) -> tuple[Locator, Locator]:
    figure = site.page.locator(f"#figure-{name}")
    return figure.locator(".cover"), figure.locator(".tip")


def lines(tip: Locator) -> list[set[str]]:
    return [set(text.split("\n")) for text in tip.locator("p").all_inner_texts()]


@pytest.mark.parametrize("name", FIGURES)
def test_a_pointer_on_a_spot_shows_the_row_of_the_data_that_is_drawn_there(
    browser: Browser, drawn: tuple[Path, dict[str, Drawing]], name: str
) -> None:
    file, drawings = drawn
    drawing = drawings[name]
    encode(drawing.figure, "svg")
    places = drawing.places()
    rows = np.flatnonzero(np.isfinite(places).all(axis=1))
    assert len(rows) > 5
    with opened(browser, file) as site:
        cover, tip = plot(site, name)
        assert not tip.is_visible()
        for row in rows[:: max(1, len(rows) // 6)]:
            cover.scroll_into_view_if_needed()
            x, y = places[row]
            box = cover.bounding_box()
            assert box is not None
            cover.hover(position={"x": float(x * box["width"]), "y": float(y * box["height"])})
            shown = lines(tip)
            same = (np.abs(places - places[row]) < 2e-4).all(axis=1).sum()
            if same <= 3:
                assert said(drawing.data.iloc[row]) in shown
            assert len(shown) == min(same, 4)
        site.page.mouse.move(0, 0)
        assert not tip.is_visible()
        assert site.messages == []
        assert {url for url in site.requests if not url.startswith("data:")} == {file.as_uri()}


def test_the_spots_are_where_the_marks_are_drawn(drawn: tuple[Path, dict[str, Drawing]]) -> None:
    for name in FIGURES[:3]:
        drawing = drawn[1][name]
        encode(drawing.figure, "svg")
        width, height = drawing.figure.bbox.size
        marks = [
            axes.transData.transform(np.column_stack([line.get_xdata(), line.get_ydata()])) / (width, height)
            for axes in drawing.figure.axes
            for line in axes.lines
            if line.get_transform() == axes.transData
        ]
        there = np.concatenate(marks)
        there[:, 1] = 1 - there[:, 1]
        away = [np.hypot(*(there - place).T).min() for place in drawing.places()]
        assert max(away) < 1e-3, name


def test_the_arrow_keys_go_through_all_numbers_and_tell_them(
    browser: Browser, drawn: tuple[Path, dict[str, Drawing]]
) -> None:
    file, drawings = drawn
    data = drawings["accuracy-differences"].data
    with opened(browser, file) as site:
        cover, tip = plot(site, "accuracy-differences")
        site.page.locator("#figure-accuracy-differences .scroll").focus()
        site.page.keyboard.press("Tab")
        assert site("document.activeElement.className") == "cover"
        assert site("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        for row in range(len(data)):
            assert lines(tip)[0] == said(data.iloc[row])
            told = cover.get_attribute("aria-valuetext") or ""
            assert all(line in told for line in said(data.iloc[row]))
            assert cover.get_attribute("aria-valuenow") == str(row + 1)
            site.page.keyboard.press("ArrowDown")
        assert cover.get_attribute("aria-valuenow") == cover.get_attribute("aria-valuemax") == str(len(data))
        site.page.keyboard.press("Home")
        assert cover.get_attribute("aria-valuenow") == "1"
        site.page.keyboard.press("PageDown")
        site.page.keyboard.press("ArrowLeft")
        assert cover.get_attribute("aria-valuenow") == "10"
        site.page.keyboard.press("Escape")
        assert not tip.is_visible()
        site.page.keyboard.press("End")
        assert tip.is_visible()
        site.page.keyboard.press("Tab")
        assert not tip.is_visible()
        assert site.messages == []


def test_beside_a_row_of_the_forest_plot_the_pointer_is_on_it(
    browser: Browser, drawn: tuple[Path, dict[str, Drawing]]
) -> None:
    file, drawings = drawn
    drawing = drawings["accuracy-differences"]
    encode(drawing.figure, "svg")
    with opened(browser, file) as site:
        cover, tip = plot(site, drawing.name)
        for row in (0, len(drawing.data) - 1):
            cover.scroll_into_view_if_needed()
            box = cover.bounding_box()
            assert box is not None
            y = float(drawing.places()[row, 1] * box["height"])
            cover.hover(position={"x": 12.0, "y": y})  # where its name is
            assert lines(tip)[0] == said(drawing.data.iloc[row])


@pytest.mark.parametrize("width", [400, 1280])
def test_what_is_shown_is_in_sight_at_each_width(
    browser: Browser, drawn: tuple[Path, dict[str, Drawing]], width: int
) -> None:
    file, _ = drawn
    with opened(browser, file, viewport={"width": width, "height": 700}) as site:
        for name in FIGURES:
            cover, tip = plot(site, name)
            cover.focus()
            for key in ("Home", "End"):
                site.page.keyboard.press(key)
                site.page.wait_for_function("document.querySelector('.ring:not([hidden])') !== null")
                ring = site.page.locator(f"#figure-{name} .ring").bounding_box()
                box = tip.bounding_box()
                assert box is not None
                assert ring is not None
                assert box["x"] >= 0
                assert box["x"] + box["width"] <= width
                assert box["y"] >= 0
                assert box["y"] + box["height"] <= 700
                assert 0 <= ring["x"] < width
        assert site("document.scrollingElement.scrollWidth") <= width


def test_a_finger_shows_numbers_that_stay(browser: Browser, drawn: tuple[Path, dict[str, Drawing]]) -> None:
    with opened(browser, drawn[0], viewport={"width": 400, "height": 700}, has_touch=True) as site:
        cover, tip = plot(site, "accuracy-by-epoch")
        cover.tap(position={"x": 150.0, "y": 60.0})
        assert tip.is_visible()


def test_without_scripts_the_figures_are_pictures(browser: Browser, drawn: tuple[Path, dict[str, Drawing]]) -> None:
    with opened(browser, drawn[0], java_script_enabled=False) as site:
        assert site.page.locator(".cover, .tip, .ring").count() == 0
        assert site.page.locator("#figure-accuracy-differences img").is_visible()


def test_no_column_of_a_table_is_cut_at_1280_pixels(browser: Browser, drawn: tuple[Path, dict[str, Drawing]]) -> None:
    with opened(browser, drawn[0]) as site:
        site("document.querySelectorAll('details').forEach((each) => (each.open = true))")
        cut = site(
            """[...document.querySelectorAll('.scroll')].filter((each) => each.scrollWidth > each.clientWidth + 1)
            .map((each) => each.getAttribute('aria-label'))"""
        )
        assert cut == []


A4 = {"width": 688, "height": 970}
"""Pixels between the margins of the page."""


def test_on_paper_nothing_is_cut_or_folded_and_no_control_is_shown(
    browser: Browser, drawn: tuple[Path, dict[str, Drawing]]
) -> None:
    with opened(browser, drawn[0], viewport=A4, color_scheme="dark") as site:
        cover, _ = plot(site, "accuracy-differences")
        cover.focus()
        site.page.keyboard.press("ArrowDown")
        site.page.emulate_media(media="print", color_scheme="dark")
        site("window.dispatchEvent(new Event('beforeprint'))")
        controls = ".tools, nav, .skip, .more, .data, .cover, .ring, .tip, input"
        assert not any(each.is_visible() for each in site.page.locator(controls).all())
        wide = site(
            f"""[...document.querySelectorAll('main *')].filter((each) => each.getClientRects().length
            && each.getBoundingClientRect().right > {A4["width"]} + 1).map((each) => each.tagName)"""
        )
        assert wide == []
        tall = site("[...document.images].map((image) => image.getBoundingClientRect().height)")
        assert max(tall) <= A4["height"]
        assert site("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert site("[...document.querySelectorAll('main details:not(.data)')].every((each) => each.open)")
        site("window.dispatchEvent(new Event('afterprint'))")
        assert not site("[...document.querySelectorAll('main details:not(.data)')].every((each) => each.open)")
        assert site.messages == []
