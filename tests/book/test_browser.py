"""The built site in a headless browser: requests, console, accessibility, phone width, mathematics, search."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pytest
from igsp_book import mixtures

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
    tab.locator("details:has(table) > summary").first.focus()
    tab.keyboard.press("Enter")
    boxes = tab.locator('details [role="region"][tabindex="0"]:has(table)')
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
    if tab.locator(".igsp-explorer").count() == 0:
        tab.close()
        pytest.skip("the store of this profile holds no records")
    marks, summary = tab.locator(".igsp-mark"), tab.locator(".igsp-explorer:not(.igsp-mixes) [data-summary]")
    before = summary.inner_text()
    assert marks.count() >= 3 and "rank correlation" in before
    for name in ("metric", "dimension"):
        tab.locator(f"[data-control={name}]").focus()
        tab.keyboard.press("ArrowDown")
    assert summary.inner_text() != before
    assert tab.locator(".igsp-explorer svg[role]").get_attribute("aria-label") == summary.inner_text()
    chosen = "uniform"  # in every run; a source may be missing in the one that is shown
    tab.locator("[data-control=strategy]").select_option(chosen)
    assert tab.locator(".igsp-mark-chosen").count() <= 1 and f" {chosen}: " in summary.inner_text()
    tab.locator("[data-control=scale]").select_option("ranks")
    assert tab.locator(".igsp-mark-mix").count() == 0, "only single sources are ranked"
    tab.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_mix_sliders_tell_measured_from_interpolated(contexts: dict[str, Any], axe: str, scheme: str) -> None:
    """Retention 60 + 8 ab at shares a and b: the fit is exact, so that the sliders must show it between the mixes."""
    trials = [{"weights": {"web": a, "maths": 1 - a}, "retention": {"general": 60 + 8 * a * (1 - a)}}
              for a in (0.5, 0.0, 0.25, 0.75, 1.0)]
    static = Path(mixtures.__file__).parent / "static"
    style, script = ((static / name).read_text(encoding="utf8") for name in ("igsp.css", "explorer.js"))
    panel = mixtures.html(8, mixtures.measured(trials))
    tab = contexts[scheme].new_page()
    tab.set_content(f"<html lang=en><title>t</title><style>{style}</style><main><h1>t</h1>{panel}</main>"
                    f"<script>{script}</script>")
    first, summary, sliders = tab.locator("tbody td").first, tab.locator("[data-summary]"), tab.locator("input")
    assert first.inner_text() == "62.00" and summary.inner_text() == "Measured: mix 1 of the table below."
    sliders.first.focus()
    tab.keyboard.press("ArrowLeft")
    share = 3 / 7
    assert sliders.first.get_attribute("aria-valuetext") == "3 windows, 42.9 %"
    assert first.inner_text() == f"{60 + 8 * share * (1 - share):.2f} ± 0.00"
    assert summary.inner_text().startswith("Interpolated")
    tab.keyboard.press("Home")
    assert first.inner_text() == "60.00" and tab.locator("tbody td").nth(1).inner_text() == "−2.00"
    sliders.last.focus()
    tab.keyboard.press("Home")
    assert first.inner_text() == "" and "at least one" in summary.inner_text()
    tab.evaluate(axe)
    report = tab.evaluate("rules => axe.run(document, {runOnly: {type: 'tag', values: rules}})", RULES)
    tab.close()
    assert [violation["id"] for violation in report["violations"]] == []
