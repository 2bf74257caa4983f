"""Slides and hand-outs of the course: Markdown to HTML files that stand alone and request nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape
from pathlib import Path
from string import Template

from markdown_it import MarkdownIt

from igsp_book.questions import Question, questions

TEMPLATE = Path(__file__).with_name("page.html")
ROLE = re.compile(r"\{[\w:]+\}`([^`<]+?)(?: <[^`>]*>)?`")  # {term}`text <target>` -> text
LOCAL_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?:)[^)]*\)")  # a link into the book -> its text
DIRECTIVE = re.compile(r"^```\{([\w-]+)\}[^\n]*\n(.*?)^```\n", re.DOTALL | re.MULTILINE)


def document(title: str, pages: Iterable[str]) -> str:
    """One hand-out from pages of the book: quizzes become lists with folded answers, links into the book plain text."""
    text = "\n\n".join(DIRECTIVE.sub(_block, page) for page in pages)
    parser = _markdown()
    tokens = parser.parse(LOCAL_LINK.sub(r"\1", ROLE.sub(r"\1", text)))
    for token in tokens:
        if token.type.startswith("heading"):
            token.tag = f"h{int(token.tag[1]) + 1}"  # h1 is the title of the hand-out
    return _page(title, "document", f"<h1>{escape(title)}</h1>\n{parser.renderer.render(tokens, parser.options, {})}")


def deck(text: str) -> str:
    """Slides out of Markdown: a line `---` begins a new slide, the first heading is the title of the deck."""
    parts = [part for part in re.split(r"^---\n", text, flags=re.MULTILINE) if part.strip()]
    title = re.search(r"^# (.+)$", text, re.MULTILINE)
    body = "\n".join(f"<section>\n{_markdown().render(part)}</section>" for part in parts)
    return _page(title[1] if title else "Slides", "deck", body)


def decks(folder: Path) -> dict[str, str]:
    """All decks of a folder by file name."""
    return {f"{path.stem}.html": deck(path.read_text(encoding="utf8")) for path in sorted(folder.glob("*.md"))}


def _page(title: str, kind: str, body: str) -> str:
    return Template(TEMPLATE.read_text(encoding="utf8")).substitute(title=escape(title), kind=kind, body=body)


def _markdown() -> MarkdownIt:
    return MarkdownIt("commonmark", {"html": True, "typographer": True}).enable(["table", "smartquotes"])


def _block(match: re.Match[str]) -> str:
    """A directive of the book: a quiz as Markdown, anything else nothing."""
    if match[1] != "quiz":
        return ""
    return "\n\n".join(_question(number, one) for number, one in enumerate(questions(match[2]), 1)) + "\n"


def _question(number: int, one: Question) -> str:
    options = "\n".join(f"- {option.text}" for option in one.options)
    right = "; ".join(option.text for option in one.options if option.right)
    answer = f"<details><summary>Answer to question {number}</summary>\n\n{right} {one.why}\n\n</details>"
    return f"**Question {number}.** {one.text}\n\n{options}\n\n{answer}"
