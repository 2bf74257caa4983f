"""The page of the package: every room and every formula is where it says."""

from __future__ import annotations

import ast
import re

import pytest

from igsp.provenance import repository_root

PACKAGE = repository_root() / "igsp"
PAGE = (PACKAGE / "README.md").read_text(encoding="utf8")
LINKS = re.findall(r"\[`([\w/]+\.py):(\w+)`\]\(([\w/]+\.py)#L(\d+)\)", PAGE)


@pytest.mark.parametrize("file, name, target, line", LINKS)
def test_a_formula_is_where_the_table_says(file, name, target, line):
    tree = ast.parse((PACKAGE / file).read_text(encoding="utf8"))
    found = {node.name: node.lineno for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    assert file == target and name in found, f"{file} has no {name}"
    assert found[name] == int(line), f"write {file}#L{found[name]} in igsp/README.md"


def test_the_table_is_whole():
    rows = PAGE.partition("## Where each formula is")[2].count("\n| ") - 1
    assert len(LINKS) == rows >= 25


def test_every_room_is_named():
    rooms = {path.name + "/" for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    rooms |= {path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__"}
    named = set(re.findall(r"`([\w/]+)`", PAGE.partition("## The way of the data")[0]))
    assert rooms <= named, rooms - named
