"""The built site in a headless browser: requests, console, accessibility, phone width, mathematics, search."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pytest

pytestmark = pytest.mark.book

RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
PHONE = {"width": 375, "height": 812}
DESK = {"width": 1280, "height": 900}


@pytest.fixture(scope="module")
def contexts(browser: Any) -> Iterator[dict[str, Any]]:
    made = {
        "light": browser.new_context(viewport=DESK, color_scheme="light", reduced_motion="reduce"),
        "dark": browser.new_context(viewport=DESK, color_scheme="dark", reduced_motion="reduce"),
        "phone": browser.new_context(viewport=PHONE, reduced_motion="reduce"),
    }
    yield made
    for context in made.values():
        context.close()


@pytest.fixture(scope="module")
def axe() -> str:
    package = pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is not installed")
    return (Path(package.__file__).parent / "axe.min.js").read_text(encoding="utf8")


def open_page(context: Any, url: str) -> Any:
    """Opens a page and waits until its mathematics is set. `tab.complaints` collects what went wrong meanwhile."""
    tab = context.new_page()
    tab.complaints = []
    host = urlparse(url).netloc
    foreign = lambda r: urlparse(r.url).scheme in ("http", "https") and urlparse(r.url).netloc != host  # noqa: E731
    tab.on("request", lambda r: tab.complaints.append(f"foreign: {r.url}") if foreign(r) else None)
    tab.on("requestfailed", lambda r: tab.complaints.append(f"failed: {r.url}"))
    loud = ("error", "warning")
    tab.on("console", lambda m: tab.complaints.append(f"{m.text} {m.location['url']}") if m.type in loud else None)
    tab.on("pageerror", lambda error: tab.complaints.append(str(error)))
    tab.goto(url, wait_until="load")
    if tab.evaluate("Boolean(document.querySelector('.math'))"):
        tab.wait_for_function(
            "document.querySelectorAll('mjx-container').length >= document.querySelectorAll('.math').length"
        )
    return tab


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_is_accessible_and_quiet(
    contexts: dict[str, Any], address: str, axe: str, page: str, scheme: str
) -> None:
    """No finding of axe at WCAG 2.2 AA, no foreign or failed request, nothing on the console."""
    tab = open_page(contexts[scheme], f"{address}/{page}")
    tab.wait_for_timeout(350)  # the page marks its scrollable boxes 300 ms after it has loaded
    complaints = list(tab.complaints)  # before axe, which fetches style sheets on its own account
    tab.evaluate(axe)
    report = tab.evaluate("rules => axe.run(document, {runOnly: {type: 'tag', values: rules}})", RULES)
    tab.close()
    found = [(v["id"], [node["target"] for node in v["nodes"]][:3]) for v in report["violations"]]
    assert not found and not complaints


@pytest.mark.parametrize("name", ["index", "primer-pruning", "claims", "notebooks/01-source-profiling"])
def test_pages_work_without_a_server(contexts: dict[str, Any], site: Path, name: str) -> None:
    tab = open_page(contexts["light"], (site / "book" / f"{name}.html").as_uri())
    complaints = list(tab.complaints)
    tab.close()
    assert not complaints


def test_no_sideways_scrolling_on_a_phone(contexts: dict[str, Any], address: str, page: str) -> None:
    tab = open_page(contexts["phone"], f"{address}/{page}")
    over = tab.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    tab.close()
    assert over == 0


def test_mathematics_is_rendered(contexts: dict[str, Any], address: str) -> None:
    tab = open_page(contexts["light"], f"{address}/book/primer-pruning.html")
    assert tab.locator("mjx-container").count() > 20
    assert tab.locator("mjx-merror").count() == 0
    assert tab.locator("mjx-assistive-mml").count() > 20
    tab.close()


@pytest.mark.parametrize("over", ["http", "file"])
def test_search_finds_a_term(contexts: dict[str, Any], address: str, site: Path, over: str) -> None:
    base = address if over == "http" else site.as_uri()
    tab = contexts["light"].new_page()
    tab.goto(f"{base}/search.html?q=perplexity")
    tab.wait_for_selector("#search-results li a", timeout=10_000)
    assert tab.locator("#search-results li").count() >= 3
    tab.close()


def test_wide_tables_can_be_scrolled_with_the_keyboard(contexts: dict[str, Any], address: str) -> None:
    tab = open_page(contexts["phone"], f"{address}/book/explorer.html")
    boxes = tab.locator('[role="region"][tabindex="0"]:has(table)')
    boxes.first.wait_for()
    boxes.first.focus()
    tab.keyboard.press("ArrowRight")
    tab.wait_for_timeout(300)
    assert boxes.first.evaluate("box => box.scrollLeft") > 0
    tab.close()


def test_a_page_prints_with_its_solutions(contexts: dict[str, Any], address: str) -> None:
    tab = open_page(contexts["light"], f"{address}/book/primer-pruning.html")
    assert tab.pdf().count(b"/Type /Page\n") + tab.pdf().count(b"/Type /Page ") > 1
    tab.close()


def test_the_explorer_answers_to_the_keyboard(contexts: dict[str, Any], address: str) -> None:
    tab = open_page(contexts["light"], f"{address}/book/explorer.html")
    chart = tab.locator("#fig-explorer")
    chart.locator("select").first.wait_for()
    text = chart.locator("svg.marks")
    assert "rank correlation over single sources" in text.text_content()
    assert chart.locator("path[aria-label]").count() > 10, "each mark tells its values"
    before = text.inner_html()
    for name in ("metric", "dimension"):
        chart.locator(f"select[name={name}]").focus()
        tab.keyboard.press("ArrowDown")
    tab.wait_for_timeout(300)
    assert text.inner_html() != before
    chart.locator("select[name=highlight]").select_option("uniform")
    tab.wait_for_timeout(300)
    assert chart.locator("text[opacity='1']", has_text="uniform").count() or "uniform" in text.text_content()
    tab.close()


def test_the_sliders_of_mixes_answer_to_the_keyboard(contexts: dict[str, Any], address: str) -> None:
    tab = open_page(contexts["light"], f"{address}/book/explorer.html")
    chart = tab.locator("[id^=fig-mixes]").first
    slider = chart.locator("input[type=range]").first
    slider.wait_for()
    before = chart.locator("svg.marks").text_content()
    slider.focus()
    tab.keyboard.press("Home")
    tab.wait_for_timeout(300)
    assert chart.locator("svg.marks").text_content() != before
    tab.close()


NUMBER = "article a.igsp-number"


def test_a_number_tells_its_interval_by_mouse_keyboard_and_touch(
    browser: Any, contexts: dict[str, Any], address: str
) -> None:
    tab = open_page(contexts["light"], f"{address}/book/index.html")
    number, card = tab.locator(NUMBER).first, tab.locator("#igsp-card")
    number.hover()
    assert "95" in card.inner_text() and "interval" in card.inner_text()
    tab.mouse.move(0, 0)
    card.wait_for(state="hidden")
    number.focus()
    assert card.is_visible() and number.get_attribute("aria-describedby") == "igsp-card"
    tab.keyboard.press("Escape")
    assert not card.is_visible()
    tab.close()
    context = browser.new_context(viewport=PHONE, has_touch=True)
    tab = open_page(context, f"{address}/book/index.html")
    number, card = tab.locator(NUMBER).first, tab.locator("#igsp-card")
    number.tap()
    assert card.is_visible() and tab.url.endswith("index.html"), "the first tap explains"
    number.tap()
    tab.wait_for_url("**/notebooks/*#value-*")
    row = tab.locator(f"#{urlparse(tab.url).fragment}")
    row.wait_for(state="visible")  # the folded table of values has opened
    context.close()
