"""The built site read as files: links, alternative texts, downloads, nothing foreign, no trace of the build."""

from __future__ import annotations

import functools
import getpass
import itertools
import json
import re
from pathlib import Path
from urllib.parse import unquote, urlparse

import nbformat
import pytest
from bs4 import BeautifulSoup

pytestmark = pytest.mark.book

MAX_BYTES = 2_000_000  # of a page with its images
MACHINE = re.compile(r"(?<![\w.])/(?:home|root|work|tmp|Users|usr/lib|opt|mnt|srv)/[\w.-]+|[A-Z]:\\\\Users")


@functools.cache
def soup(path: Path) -> BeautifulSoup:
    return BeautifulSoup(path.read_text(encoding="utf8"), "lxml")


@functools.cache
def anchors(path: Path) -> frozenset[str]:
    return frozenset(str(tag[key]) for key in ("id", "name") for tag in soup(path).find_all(attrs={key: True}))


def notebook_pages(site: Path) -> list[Path]:
    return sorted(site.glob("book/notebooks/*.html"))


def test_internal_links_and_anchors_resolve(site: Path, page: str) -> None:
    path, broken = site / page, []
    for tag in soup(path).find_all(["a", "link", "img", "script"]):
        target = tag.get("href") or tag.get("src")
        if not target or urlparse(target).scheme or target.startswith("//"):
            continue
        parts = urlparse(target)
        file = (path.parent / unquote(parts.path)).resolve() if parts.path else path
        wanted = unquote(parts.fragment)
        if not file.exists() or (wanted and file.suffix == ".html" and wanted not in anchors(file)):
            broken.append(target)
    assert not broken


def test_nothing_is_loaded_from_another_host(site: Path, page: str) -> None:
    tags = soup(site / page).find_all(["img", "script", "iframe", "link"])
    loaded = [tag.get("src") or tag.get("href") for tag in tags if tag.get("rel") != ["canonical"]]
    assert not [target for target in loaded if target and urlparse(target).netloc]


def test_pictures_say_what_they_show(site: Path, page: str) -> None:
    article = soup(site / page).select_one("article.bd-article")
    texts = [image.get("alt", "") for image in article.find_all("img")]
    texts += [drawing.get("aria-label", "") for drawing in article.select('svg[role="img"]')]
    assert all(len(text) >= 20 for text in texts), texts
    assert not [text for text in texts if "_images/" in text or re.search(r"\.(png|svg|jpe?g)\b", text)]
    assert len(set(texts)) == len(texts)


def test_each_page_has_one_title_and_headings_in_order(site: Path, page: str) -> None:
    levels = [int(tag.name[1]) for tag in soup(site / page).select("article.bd-article :is(h1, h2, h3, h4, h5, h6)")]
    assert levels.count(1) == 1 and levels[0] == 1
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels))


def test_pages_are_light(site: Path, page: str) -> None:
    path = site / page
    local = [tag["src"] for tag in soup(path).find_all("img") if not urlparse(tag["src"]).scheme]
    pictures = {(path.parent / target).resolve() for target in local}
    assert path.stat().st_size + sum(p.stat().st_size for p in pictures) < MAX_BYTES


def test_no_trace_of_the_build_machine(site: Path) -> None:
    user = getpass.getuser()
    name = re.compile(rf"\b{re.escape(user)}\b") if len(user) > 3 and user not in ("root", "runner", "user") else None
    found = []
    for path in [*site.rglob("*.html"), *site.glob("_sources/**/*"), site / "searchindex.js"]:
        if path.is_file():
            text = path.read_text(encoding="utf8")
            found += [(path.name, hit) for hit in MACHINE.findall(text)]
            found += [(path.name, user)] if name and name.search(text) else []
    assert not found


def test_notebook_pages_say_what_made_them(site: Path) -> None:
    found = notebook_pages(site)
    assert len(found) == len(list((Path(__file__).parents[2] / "notebooks").glob("*.py")))
    for path in found:
        text = soup(path).select_one("article.bd-article")
        panel, origin = text.select_one(".igsp-panel"), text.select_one("dl.igsp-provenance")
        assert panel.select_one(".igsp-profile")
        assert "papermill" in panel.text and "igsp notebooks run" in panel.text
        assert len(panel.select("tbody tr")) >= 1, "the panel lists the parameters"
        terms = {term.text for term in origin.find_all("dt")}
        assert {"Source", "Commit", "Package source", "Model", "Data", "Device", "Seed", "Run time"} <= terms
        assert not text.select(".tag_parameters, .tag_injected-parameters, .output.traceback")


def test_the_download_is_the_executed_notebook(site: Path) -> None:
    for path in notebook_pages(site):
        download = next(tag["href"] for tag in soup(path).find_all("a", href=True) if tag["href"].endswith(".ipynb"))
        notebook = nbformat.read((path.parent / download).resolve(), as_version=4)
        nbformat.validate(notebook)
        run = notebook.metadata["papermill"]
        assert run["end_time"] and not run["exception"] and notebook.metadata["igsp"]["profile"]
        outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
        assert outputs and not [output for output in outputs if output.output_type == "error"]


def test_no_widget_output(site: Path) -> None:
    for path in site.glob("_sources/book/notebooks/*.ipynb"):
        assert "widget-view+json" not in path.read_text(encoding="utf8")


def test_the_ledger_has_a_row_and_a_verdict_for_each_claim(site: Path) -> None:
    from igsp.study.claims import claims

    page = soup(site / "book" / "claims.html")
    rows = page.select("table.igsp-ledger tbody tr")
    assert len(rows) == len(claims())
    assert all(row.select_one(".igsp-holds, .igsp-differs, .igsp-untestable") for row in rows)
    assert {f"claim-{claim.id}" for claim in claims()} <= anchors(site / "book" / "claims.html")


def test_sources_of_prose_type_no_result() -> None:
    """Percentages of retention in the prose are roles; typed ones belong to the paper or to a worked example."""
    folder = Path(__file__).parents[2] / "book"
    for name in ("index.md", "protocols.md", "why-different.md", "sources.md"):
        prose = re.sub(r"\{result\}`[^`]*`", "", (folder / name).read_text(encoding="utf8"))
        typed = set(re.findall(r"(?<![\d.])\d+\.\d+ ?%", prose))
        assert not typed, f"{name} types {typed}"


def test_searchable_text_is_indexed(site: Path) -> None:
    index = (site / "searchindex.js").read_text(encoding="utf8")
    names = json.loads(re.search(r'"?docnames"?:\s*(\[.*?\])', index).group(1))  # type: ignore[union-attr]
    assert {"book/index", "book/claims", "book/glossary"} <= set(names)
