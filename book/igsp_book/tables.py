"""Small docutils builders shared by the directives: tables with row headings, definition lists, badges."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TypeAlias

from docutils import nodes

Cell: TypeAlias = str | nodes.Node | Sequence[nodes.Node]


def as_nodes(cell: Cell) -> list[nodes.Node]:
    """A cell as inline nodes; plain strings become text."""
    if isinstance(cell, str):
        return [nodes.Text(cell)]
    return [cell] if isinstance(cell, nodes.Node) else list(cell)


def table(headings: Sequence[str], rows: Sequence[Sequence[Cell]], caption: str = "", classes: str = "") -> nodes.table:
    """A table whose first column holds the row headings (`<th>`)."""
    result = nodes.table(classes=["igsp-table", "colwidths-auto", *classes.split()])
    if caption:
        result += nodes.title(caption, caption)
    group = nodes.tgroup(cols=len(headings))
    result += group
    for index in range(len(headings)):
        spec = nodes.colspec(colwidth=1)
        if index == 0:
            spec["stub"] = 1
        group += spec
    group += nodes.thead("", _row(headings))
    group += nodes.tbody("", *(_row(row) for row in rows))
    return result


def _row(cells: Sequence[Cell]) -> nodes.row:
    entries = []
    for cell in cells:
        content = as_nodes(cell)
        block = content if content and isinstance(content[0], nodes.Body) else [nodes.paragraph("", "", *content)]
        entries.append(nodes.entry("", *block))
    return nodes.row("", *entries)


def definitions(items: Sequence[tuple[str, Cell]], classes: str = "") -> nodes.definition_list:
    """A definition list, terms in the given order."""
    result = nodes.definition_list(classes=classes.split())
    for term, cell in items:
        paragraph = nodes.paragraph("", "", *as_nodes(cell))
        result += nodes.definition_list_item("", nodes.term("", term), nodes.definition("", paragraph))
    return result


def badge(text: str, kind: str) -> nodes.inline:
    """A small label, coloured by `kind` (see igsp.css); its meaning is in the text, never in the colour alone."""
    return nodes.inline("", text, classes=["igsp-badge", f"igsp-{kind}"])


def code(text: str) -> nodes.literal:
    return nodes.literal("", text)


def folded(summary: str, *content: nodes.Node) -> list[nodes.Node]:
    """`content` below a line that unfolds it, with or without JavaScript."""
    opening = nodes.raw("", f"<details><summary>{escape(summary)}</summary>", format="html")
    return [opening, *content, nodes.raw("", "</details>", format="html")]
