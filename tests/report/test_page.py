"""The page of a report in a real browser: what names can do to it, its use by keyboard and without scripts,
narrow and wide, light and dark."""

from __future__ import annotations

import base64
import functools
import http.server
import io
import itertools
import json
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
from browsing import CHROMIUM, chromium, column, opened
from matplotlib.figure import Figure
from PIL import Image
from reports import ODD, configs, write_everything, write_run

from icpctl.config import resolve
from icpctl.report import Report, build
from icpctl.report.cells import compared
from icpctl.report.figures.style import Drawing, styled
from icpctl.report.groups import short_dataset
from icpctl.report.page import OPEN, page

if TYPE_CHECKING:
    from playwright.sync_api import Browser


pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium and playwright"),
    pytest.mark.xdist_group("browser"),
]

ODD_NAME = ODD[0] + ODD[1]
DATA = pd.DataFrame(
    {
        "name": [*ODD[:3], 'a,"b"\nc'],
        "value": [1 / 3, float("nan"), -2.0, 1e9],
        "count": pd.array([None, 2, 3, 4], "Int64"),
        "on": True,
    }
)
PATTERN = pd.DataFrame({"x": np.arange(300), "y": np.arange(300) / 7})


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


def drawing(name: str, title: str, data: pd.DataFrame, plate: bool = False) -> Drawing:
    with styled():
        figure = Figure(figsize=(9, 3))
        figure.subplots().plot([0, 1], [0, 1], color="black", linewidth=9)
    return Drawing(name, title, f"A line of {title}.", figure, data, plate)


DRAWINGS = (
    drawing("first", f"Curves {ODD_NAME}", DATA),
    drawing("second", "Ways", PATTERN),
    drawing("third", "Pictures", pd.DataFrame(), plate=True),
)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page") / '"><b>all & {{ 7*7 }}'
    folder.mkdir()
    write_everything(folder)
    return folder


@pytest.fixture(scope="module")
def report(results: Path) -> Report:
    return build(results)


@pytest.fixture(scope="module")
def file(results: Path, report: Report) -> Path:
    """The page of runs with odd names, with figures."""
    return written(results.parent / "report.html", report, results)


def written(file: Path, report: Report, results: Path, drawings: tuple[Drawing, ...] = DRAWINGS) -> Path:
    file.write_text(page(report, drawings, [results], ["--where", "steps>0 & 'x'"]), encoding="utf-8")
    return file


# What names can do


def test_names_make_no_element_run_no_script_and_fetch_nothing(browser: Browser, file: Path) -> None:
    with opened(browser, file) as report:
        report.page.wait_for_load_state("networkidle")
        assert {url for url in report.requests if not url.startswith("data:")} == {file.as_uri()}
        assert report.messages == []
        assert report("document.scripts.length") == 1
        assert report("document.querySelectorAll('style').length") == 1
        assert report("document.querySelectorAll('b, i, body svg, iframe, object, [onerror], [onload]').length") == 0
        assert report("document.images.length") == len(DRAWINGS)
        assert report("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
        links = report("[...document.links].map((link) => link.getAttribute('href'))")
        assert all(link.startswith(("#", "data:text/csv;base64,")) for link in links)


def test_names_are_shown_as_they_are(browser: Browser, file: Path, results: Path) -> None:
    with opened(browser, file) as report:
        text = report("document.body.textContent")
        assert report.page.title() == f"icpctl report: {results}"
        for button in report.page.locator("button.more").all():
            button.click()
        datasets = column(report.page.locator("#summary-classification"), "dataset")
        for name in ODD:
            assert f"Note: {name}" in text
            assert short_dataset(f"folder:/data/{name}") in datasets
        assert f"Curves {ODD_NAME}" in text
        assert "{<script>" not in text  # what a damaged file has is not repeated


def test_an_odd_metric_can_be_what_the_report_is_about(browser: Browser, tmp_path: Path) -> None:
    name = "<img src=x onerror=alert(1)>{{ 7*7 }}'"
    for config in configs(["steps=1"], 3):
        write_run(tmp_path, config, [0.1, 0.2]).append_metrics(1, {"test": {name: config.seed**2 / 10 + config.steps}})
    file = written(tmp_path / "report.html", build(tmp_path, metric=name), tmp_path, ())
    with opened(browser, file) as report:
        assert name in report.page.locator(".card caption").inner_text()
        assert report.page.locator("#summary-classification thead").get_by_role("button", name=name).count() == 1
        assert (report.messages, report("document.images.length")) == ([], 0)


def test_a_page_that_is_served_asks_for_nothing_else(browser: Browser, file: Path) -> None:
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_request(self, code: object = "-", size: object = "-") -> None:
            asked.append((self.path, code))

    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=str(file.parent))
    ) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with opened(browser, f"http://127.0.0.1:{server.server_port}/{file.name}") as report:
            report.page.wait_for_load_state("networkidle")
            assert report.messages == []
        server.shutdown()
    assert asked == [(f"/{file.name}", 200)]


def test_what_cannot_be_encoded_or_is_damaged_makes_no_page_fail(tmp_path: Path) -> None:
    folder = write_run(
        tmp_path / "runs", resolve({"epochs": 1}), [0.5], notes=["torn \ud800 \x00; see `icpctl <model>` & more"]
    )
    content = json.loads((folder.path / "config.json").read_text())
    for sessions in (5, [None, "started", {"started": 7}], {"started": "<b>"}):
        (folder.path / "config.json").write_text(json.dumps(content | {"sessions": sessions}))
        report = build(tmp_path / "runs")
        assert page(report, (), [Path(os.fsdecode(b"r\xe9sultats"))], ()).encode()


def test_a_command_in_a_note_is_shown_as_code(tmp_path: Path) -> None:
    for config in configs(["steps=1"]):
        write_run(tmp_path, config, [0.1, 0.2])
    shown = written(tmp_path / "report.html", build(tmp_path), tmp_path, ())
    assert "<code>icpctl ablate --compute-matched</code>" in shown.read_text()


# What is on the page, and where


def test_verdicts_come_first_and_those_that_are_folded_open_by_keyboard(
    browser: Browser, file: Path, report: Report
) -> None:
    table = compared(report, "classification")
    claimed = table["verdict"].isin(["better", "worse"])
    assert len(table) > OPEN
    assert 0 < claimed.sum() < len(table)
    with opened(browser, file) as opened_page:
        section = opened_page.page.locator("main > section").first
        assert section.locator("h2").inner_text() == "Verdicts"
        items = section.locator(".verdicts:not(.changed) li")
        texts = [re.sub(r"\s+", " ", text).strip() for text in items.all_text_contents()]
        expected = {f"{verdict} {sentence}" for verdict, sentence in table[["verdict", "sentence"]].to_numpy()}
        assert expected <= set(texts)
        assert items.count() == sum(len(compared(report, task)) for task in report.metrics)
        hidden = items.filter(has_text=str(table["sentence"][~claimed].iloc[-1]))
        shown = items.filter(has_text=str(table["sentence"][claimed].iloc[-1]))
        assert (hidden.is_visible(), shown.is_visible()) == (False, True)
        summary = section.locator("summary").first
        summary.focus()
        opened_page.page.keyboard.press("Enter")
        assert hidden.is_visible()
        assert summary.inner_text() == f"{(~claimed).sum()} comparisons that are neither better nor worse"


def test_the_scorecard_counts_all_comparisons_of_the_method_and_names_the_tests(file: Path, report: Report) -> None:
    table = compared(report, "classification")
    tested = int(table["p"].notna().sum())
    assert tested < len(table)
    text = file.read_text(encoding="utf-8")
    assert f"corrected over all {tested} tests of this report</span></caption>" in text


def test_reports_of_one_seed_of_no_pair_and_of_no_finished_run_have_a_page(browser: Browser, tmp_path: Path) -> None:
    for config in configs(["steps=1"]):
        write_run(tmp_path / "one", config, [0.1, 0.5])
    write_run(tmp_path / "none", resolve({}), [], state="running")
    write_run(tmp_path / "alone", resolve({"epochs": 1}), [0.5])
    for name, said in (
        ("one", "One seed cannot tell"),
        ("none", "No run is finished"),
        ("alone", "There is nothing to compare"),
    ):
        results = tmp_path / name
        with opened(browser, written(tmp_path / f"{name}.html", build(results), results, ())) as report:
            assert said in report.page.locator("main > section").first.inner_text()
            assert "corrected" not in report.page.locator("main > section").first.inner_text()
            assert report.page.locator("#table-runs tbody tr").count() == (2 if name == "one" else 1)
            assert report.messages == []


def test_each_figure_has_its_data_its_command_and_words(browser: Browser, file: Path, results: Path) -> None:
    with opened(browser, file) as report:
        figures = report.page.locator("figure")
        assert figures.count() == len(DRAWINGS)
        for number, each in enumerate(DRAWINGS):
            image, beside = figures.nth(number).locator("img"), report.page.locator("figure + details").nth(number)
            assert image.get_attribute("alt") == f"{each.title}. {each.text}"
            assert figures.nth(number).locator("figcaption").inner_text() == each.text
            command = beside.locator("code").first.text_content()
            assert command == f"""icpctl report '{results}' --where 'steps>0 & '"'"'x'"'"'' --figures"""
            link = beside.locator("a[download]")
            assert link.count() == bool(len(each.data))
            if len(each.data):
                href = link.get_attribute("href") or ""
                content = base64.b64decode(href.removeprefix("data:text/csv;base64,"))
                pd.testing.assert_frame_equal(pd.read_csv(io.BytesIO(content)), each.data, check_dtype=False)
                assert link.get_attribute("download") == f"{each.name}.csv"
                assert beside.locator("tbody tr").count() == min(len(each.data), 200)
        beside = report.page.locator("figure + details").first
        beside.locator("summary").click()
        assert column(beside.locator("table"), "value") == ["0.33333", "–", "-2", "1e+09"]
        assert column(beside.locator("table"), "count") == ["–", "2", "3", "4"]
        assert column(beside.locator("table"), "name")[:3] == list(ODD[:3])
        assert report.page.locator("figure + details caption").nth(1).text_content() == "The first 200 rows"


# Access


def test_headings_labels_captions_and_language_are_there(browser: Browser, file: Path) -> None:
    with opened(browser, file) as report:
        assert report("document.documentElement.lang") == "en"
        levels = [
            int(level) for level in report("[...document.querySelectorAll('h1,h2,h3,h4')].map((h) => h.tagName[1])")
        ]
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
        assert report("[...document.querySelectorAll('table')].every((t) => t.caption && t.caption.textContent !== '')")
        assert report("[...document.querySelectorAll('th')].every((th) => ['col', 'row'].includes(th.scope))")
        assert report(
            "[...document.querySelectorAll('.sortable tbody tr')].every((row) => row.cells[0].scope === 'row')"
        )
        assert report("[...document.querySelectorAll('input')].every((input) => input.labels.length === 1)")
        assert report("[...document.images].every((image) => image.alt.length > 5)")
        ids = report("[...document.querySelectorAll('[id]')].map((element) => element.id)")
        assert len(ids) == len(set(ids))
        targets = report("[...document.querySelectorAll('a[href^=\"#\"]')].map((link) => link.hash.slice(1))")
        assert targets
        assert set(targets) <= set(ids)


def test_the_skip_link_shows_at_the_first_tab_and_leads_to_the_verdicts(browser: Browser, file: Path) -> None:
    with opened(browser, file) as report:
        report.page.keyboard.press("Tab")
        box = report.page.locator(":focus").bounding_box()
        assert report("document.activeElement.textContent") == "To the verdicts"
        assert box is not None
        assert box["x"] >= 0
        report.page.keyboard.press("Enter")
        assert report.page.url.endswith("#verdicts")
        report.page.keyboard.press("Tab")
        assert report("document.querySelector('main').contains(document.activeElement)")


@pytest.mark.parametrize("width", [320, 400, 1280])
def test_the_page_never_scrolls_sideways_but_wide_tables_do_in_a_region_with_a_name(
    browser: Browser, file: Path, width: int
) -> None:
    with opened(browser, file, viewport={"width": width, "height": 800}) as report:
        report("document.querySelectorAll('details').forEach((each) => (each.open = true))")
        assert report("document.scrollingElement.scrollWidth") <= width
        wide = report(
            """[...document.querySelectorAll('body *')].filter((each) => each.scrollWidth > each.clientWidth + 1
            && getComputedStyle(each).overflowX !== 'visible' && each.matches(':not(input)'))
            .map((each) => [each.tabIndex, each.getAttribute('role'), each.getAttribute('aria-label') || ''])"""
        )
        assert len(wide) >= (3 if width < 1280 else 1)
        assert all(tab == 0 and role == "region" and name for tab, role, name in wide)
        region = report.page.locator(".scroll", has=report.page.locator("#summary-classification"))
        region.focus()
        region.evaluate("(each) => (each.scrollLeft = 10000)")
        heading, room = region.locator("tbody th").first.bounding_box(), region.bounding_box()
        assert heading is not None
        assert room is not None
        assert 0 <= heading["x"] - room["x"] < 3  # the name of a row stays in sight
        assert heading["width"] < room["width"] / 2


_CONTRAST = """() => {
  const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (rgb) => {
    const [r, g, b] = rgb.map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let each = element; each; each = each.parentElement) {
      const colour = channels(getComputedStyle(each).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour.slice(0, 3);
    }
    return [255, 255, 255];
  };
  const measured = (element, pseudo) => {
    const style = getComputedStyle(element, pseudo);
    const [a, b] = [light(channels(style.color).slice(0, 3)), light(behind(element))];
    return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), element.tagName + "." + element.className + (pseudo || "")];
  };
  document.querySelectorAll("details").forEach((each) => (each.open = true));
  const own = (e) => [...e.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  const found = [...document.querySelectorAll("body *")].filter((e) => own(e) && e.checkVisibility());
  const inputs = [...document.querySelectorAll("input")];
  return found.map((e) => measured(e)).concat(inputs.map((e) => measured(e, "::placeholder")));
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_stands_out_from_its_ground_in_both_colour_schemes(browser: Browser, file: Path, scheme: str) -> None:
    with opened(browser, file, color_scheme=scheme) as report:
        measured = report(_CONTRAST)
        kinds = {kind for _, kind in measured}
        assert {"BUTTON.", "SPAN.", "STRONG.", "A.", "SUMMARY.", "TD.number", "INPUT.::placeholder"} <= kinds
        assert [(ratio, kind) for ratio, kind in measured if ratio < 4.5] == []
        ground = report("getComputedStyle(document.body).backgroundColor")
        assert (ground == "rgb(255, 255, 255)") == (scheme == "light")
        # The browser draws fields and bars in the scheme too.
        assert report("getComputedStyle(document.documentElement).colorScheme") == "light dark"


def test_figures_are_drawn_in_the_ink_and_on_the_ground_of_the_scheme(browser: Browser, file: Path) -> None:
    pixels: dict[tuple[str, int], tuple[int, float]] = {}
    for scheme in ("light", "dark"):
        with opened(browser, file, color_scheme=scheme) as report:
            for number in (0, 2):
                shot = report.page.locator("figure img").nth(number).screenshot()
                grey = np.asarray(Image.open(io.BytesIO(shot)).convert("L")).astype(int)
                ground = int(np.median(grey))
                pixels[scheme, number] = ground, float((abs(grey - ground) > 150).mean())
    assert pixels["light", 0][0] > 250
    assert pixels["dark", 0][0] < 20
    assert pixels["light", 0][1] > 0.01
    assert pixels["dark", 0][1] == pytest.approx(pixels["light", 0][1], rel=0.2)
    assert pixels["dark", 2] == pytest.approx(
        pixels["light", 2], rel=0.2
    )  # a plate stays as it is, but for its corners
    assert pixels["dark", 2][0] > 250


def test_without_scripts_all_is_readable_and_what_needs_them_is_not_shown(browser: Browser, file: Path) -> None:
    with opened(browser, file, java_script_enabled=False) as report:
        assert report.page.locator("input").count() == 4 + 1
        assert not any(field.is_visible() for field in report.page.locator("input, output").all())
        assert report.page.locator("th button").count() == 0
        for table in report.page.locator(".sortable").all():
            assert table.locator("tbody tr").last.is_visible()
        summary = report.page.locator("section summary").first
        summary.click()
        assert report.page.locator("details .verdicts:not(.changed) li").last.is_visible()
        assert report.messages == []


def test_the_page_can_be_printed(browser: Browser, file: Path) -> None:
    with opened(browser, file) as report:
        report.page.emulate_media(media="print")
        assert not report.page.locator("nav").is_visible()
        assert report(
            "[...document.querySelectorAll('.scroll')].every((each) => getComputedStyle(each).overflowY === 'visible')"
        )
