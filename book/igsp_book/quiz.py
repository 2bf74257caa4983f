"""Directives of the teaching pages: questions with answers, the exercises, and the files of the course.

A quiz is YAML in the page: a list of questions, each with `question`, `options` (two or more; the right ones as
`right: text`, the others as plain text) and `why`. Without JavaScript the answers fold out below the questions; with it
a button compares the reader's choice.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.osutil import relative_uri

from igsp.errors import UnknownName, UsageError
from igsp_book import course
from igsp_book.base import BookDirective
from igsp_book.questions import Question, questions
from igsp_book.tables import code

FOLDER = "_static/course"
LIST_PAGE = "book/exercises"


class Quiz(BookDirective):
    """A quiz as a form: one field set per question, its answer folded below it."""

    has_content = True

    def build(self) -> list[nodes.Node]:
        self.env.metadata[self.env.docname]["igsp_quiz"] = True
        name = f"quiz-{self.env.new_serialno('igsp-quiz')}"
        found = questions("\n".join(self.content))
        return [nodes.container("", *(n for i, q in enumerate(found, 1) for n in self._ask(f"{name}-{i}", i, q)),
                                classes=["igsp-quiz"])]

    def _ask(self, name: str, number: int, question: Question) -> Iterator[nodes.Node]:
        kind = "checkbox" if sum(option.right for option in question.options) > 1 else "radio"
        yield from (_html(f"<fieldset><legend><strong>{number}.</strong> "), self._text(question.text))
        yield _html("</legend>")
        for option in question.options:
            value = "right" if option.right else "wrong"
            yield _html(f'<label><input type="{kind}" name="{escape(name)}" value="{value}">')
            yield from (self._text(option.text), _html("</label>"))
        yield _html('<p data-feedback aria-live="polite"></p>')
        yield _html(f"<details><summary>Answer to question {number}</summary><p>")
        for option in question.options:
            if option.right:
                yield from (_html("<strong>"), self._text(option.text), _html("</strong> "))
        yield from (self._text(question.why), _html("</p></details></fieldset>"))

    def _text(self, text: str) -> nodes.inline:
        return nodes.inline("", "", *self.inline(text))


def _html(text: str) -> nodes.raw:
    return nodes.raw("", text, format="html")


class Exercises(BookDirective):
    """All exercises with their tasks, or with `:page:` a list of those that belong to one page."""

    option_spec: ClassVar = {"page": directives.unchanged}  # type: ignore[misc]

    def build(self) -> list[nodes.Node]:
        folder = Path(self.env.srcdir) / "book" / "exercises"
        for path in folder.glob("*.py"):
            self.env.note_dependency(str(path))
        known = list(course.exercises(folder).values())
        if "page" not in self.options:
            return [self._section(one) for one in known]
        items = [one for one in known if one.page == self.options["page"]]
        if not items:
            raise UsageError(f"no exercise belongs to page '{self.options['page']}'")
        return [nodes.bullet_list("", *(nodes.list_item("", nodes.paragraph("", "", *self._link(e))) for e in items))]

    def _link(self, one: course.Exercise) -> list[nodes.Node]:
        target = f"{self._uri(LIST_PAGE)}#{one.id}"
        return [nodes.Text(f"{one.stars} "), nodes.reference("", f"{one.id}: {one.title}", refuri=target)]

    def _section(self, one: course.Exercise) -> nodes.section:
        section = nodes.section("", nodes.title("", f"{one.id} {one.stars} {one.title}"), ids=[one.id])
        file = f"{FOLDER}/exercises/{one.name}"
        section += nodes.paragraph(
            "", "", nodes.Text("Belongs to "), *self._page(one.page), nodes.Text(". File: "),
            nodes.reference("", "", code(one.name), refuri=self._uri(None, file)), nodes.Text(". Check: "),
            code(f"igsp check {one.id}"), nodes.Text("."),
        )
        self.state.nested_parse(StringList(one.task.split("\n"), source=one.name), 0, section)
        return section

    def _page(self, name: str) -> list[nodes.Node]:
        """A link that shows the page's title; a book without that page shows its name."""
        return self.inline(f"{{doc}}`/{name}`") if name in self.env.found_docs else [code(name)]

    def _uri(self, page: str | None, file: str = "") -> str:
        builder = self.env.app.builder
        return relative_uri(builder.get_target_uri(self.env.docname), builder.get_target_uri(page) if page else file)


class CourseFile(Exercises):
    """Link to a file of the course: its path under the course folder, then the text of the link."""

    required_arguments = 1
    final_argument_whitespace = True

    def build(self) -> list[nodes.Node]:
        path, _, text = self.arguments[0].partition(" ")
        known = course_files(Path(self.env.srcdir) / "book")
        if path not in known:
            raise UnknownName("course file", path, known)
        link = nodes.reference("", text or path, refuri=self._uri(None, f"{FOLDER}/{path}"))
        return [nodes.paragraph("", "", link)]


def course_files(book: Path) -> dict[str, bytes]:
    """What the site offers: the students' pack, the slides and the exercises, by path; nothing with a solution."""
    from igsp_book.slides import decks

    exercises = {f"exercises/{e.name}": course.stub(e.source) for e in course.exercises(book / "exercises").values()}
    texts = {**exercises, **{f"slides/{name}": page for name, page in decks(book / "slides").items()}}
    return {course.STUDENTS: course.packs(book)[course.STUDENTS]} | {k: v.encode() for k, v in texts.items()}


def write_course(app: Sphinx) -> None:
    """Puts the files of the course under `_static` of an HTML build."""
    book = Path(app.srcdir) / "book"
    if app.builder.format != "html" or not (book / "exercises").is_dir():
        return
    for name, content in course_files(book).items():
        target = Path(app.outdir) / FOLDER / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
