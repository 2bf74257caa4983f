"""What a class uses, in a browser: slides turned with the keyboard, quizzes with and without JavaScript."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.book

RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
DECKS = [f"session-{number}" for number in range(1, 5)]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", DECKS)
def test_slides_are_accessible_and_request_nothing(browser: Any, site: Path, name: str, scheme: str) -> None:
    package = pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is not installed")
    tab = browser.new_page(viewport={"width": 1280, "height": 720}, color_scheme=scheme)
    requested: list[str] = []
    tab.on("request", lambda request: requested.append(request.url))
    tab.goto((site / "_static" / "course" / "slides" / f"{name}.html").as_uri())
    tab.evaluate((Path(package.__file__).parent / "axe.min.js").read_text(encoding="utf8"))
    report = tab.evaluate("rules => axe.run(document, {runOnly: {type: 'tag', values: rules}})", RULES)
    high = tab.evaluate("Math.max(...[...document.querySelectorAll('section')].map(s => s.offsetHeight))")
    tab.close()
    assert not [(v["id"], [node["target"] for node in v["nodes"]][:3]) for v in report["violations"]]
    assert len([url for url in requested if not url.startswith("data:")]) == 1, "the file itself and nothing else"
    assert high <= 720, "every slide fits on a screen"


def test_arrow_keys_turn_the_slides(browser: Any, site: Path) -> None:
    tab = browser.new_page(viewport={"width": 1280, "height": 720}, reduced_motion="reduce")
    tab.goto((site / "_static" / "course" / "slides" / "session-1.html").as_uri())
    top = "document.querySelectorAll('section')[{}].getBoundingClientRect().top"

    def shows(index: int) -> None:
        tab.wait_for_function(f"Math.abs({top.format(index)}) < 2")

    for key, index in (("ArrowRight", 1), ("PageDown", 2), ("ArrowLeft", 1), ("Home", 0), ("ArrowLeft", 0)):
        tab.keyboard.press(key)
        shows(index)
    tab.keyboard.press("End")
    shows(tab.locator("section").count() - 1)
    tab.close()


def test_a_quiz_answers_to_the_keyboard(browser: Any, site: Path) -> None:
    tab = browser.new_page()
    tab.goto((site / "book" / "course-1.html").as_uri())
    question = tab.locator(".igsp-quiz fieldset").first
    button, feedback = question.locator("button"), question.locator("[data-feedback]")
    button.focus()
    tab.keyboard.press("Enter")
    assert feedback.inner_text() == "Choose an answer first."
    question.locator("input[value=wrong]").first.focus()
    tab.keyboard.press("Space")
    button.focus()
    tab.keyboard.press("Enter")
    assert feedback.inner_text().startswith("Not quite") and question.locator("details[open]").count() == 0
    question.locator("input[value=right]").check()
    assert feedback.inner_text() == "", "a new choice takes the old word back"
    button.click()
    assert feedback.inner_text() == "Right." and question.locator("details[open]").count() == 1
    tab.close()


def test_a_quiz_works_without_javascript(browser: Any, site: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto((site / "book" / "course-1.html").as_uri())
    question = tab.locator(".igsp-quiz fieldset").first
    assert question.locator("button").count() == 0
    question.locator("summary").click()
    assert question.locator("details strong").is_visible()
    context.close()
