"""What the site says about itself: descriptions, previews for links, indexes for programs, licence and citation."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from bs4 import BeautifulSoup
from docutils import nodes
from igsp_book import site as tools

from igsp.study.claims import claims

ROOT = Path(__file__).parents[2]


def test_a_description_is_the_first_paragraph_cut_at_a_word() -> None:
    document = nodes.document(None, None)
    document += nodes.note("", nodes.paragraph("", "A note does not count."))
    document += nodes.paragraph("", "word " * 60)
    found = tools.description(document)
    assert found.startswith("word word") and len(found) <= 161 and found.endswith("word\N{HORIZONTAL ELLIPSIS}")
    assert tools.description(None) == ""


@pytest.mark.parametrize(("repository", "words"), [("", "release archive"), ("https://example.org/x", 'href="https://')])
def test_the_footer_has_a_place_for_the_source(repository: str, words: str) -> None:
    found = tools.footer(repository, lambda name, resource=False: name)
    assert words in found and "LICENSE.txt" in found and "#cite" in found


def test_the_sitemap_follows_from_the_address_alone(tmp_path: Path) -> None:
    page = nodes.document(None, None)
    page += nodes.paragraph("", "What it says.")
    env = SimpleNamespace(found_docs={"book/index"}, titles={"book/index": nodes.title("", "First")},
                          get_doctree=lambda name: page)
    builder = SimpleNamespace(format="html", get_target_uri=lambda name: f"{name}.html")
    for base, known in (("", False), ("https://example.org/book/", True)):
        config = SimpleNamespace(html_title="Book", root_doc="book/index", html_baseurl=base)
        tools.write_indexes(SimpleNamespace(builder=builder, outdir=tmp_path, config=config, env=env), None)
        assert f"- [First]({base}book/index.html): What it says." in (tmp_path / "llms.txt").read_text(encoding="utf8")
        assert (tmp_path / "sitemap.xml").exists() == known
    sitemap = (tmp_path / "sitemap.xml").read_text(encoding="utf8")
    assert "<loc>https://example.org/book/book/index.html</loc>" in sitemap


def test_the_citation_box_fits_the_citation_file() -> None:
    box = (ROOT / "book" / "index.md").read_text(encoding="utf8")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf8"))
    assert f"version = {{{citation['version']}}}" in box and f"title   = {{{citation['title']}}}" in box
    assert citation["authors"][0]["name"] in box and "2606.03328" in box


@pytest.mark.book
def test_a_page_tells_programs_what_it_is(site: Path, page: str) -> None:
    found = BeautifulSoup((site / page).read_text(encoding="utf8"), "lxml")
    assert len(found.select("meta[name=viewport]")) == 1
    assert len(found.select("meta[name=description]")) == 1 and found.select_one("meta[property='og:title']")
    title = found.title.text
    assert title.count("Calibration data and what pruning keeps") <= 1
    footer = found.select_one("footer")
    assert footer is not None and "Apache License" in found.text and "Cite" in found.text


@pytest.mark.book
def test_the_site_has_its_indexes(site: Path) -> None:
    assert "Page not found" in (site / "404.html").read_text(encoding="utf8")
    listed = re.findall(r"^- \[", (site / "llms.txt").read_text(encoding="utf8"), re.MULTILINE)
    told = json.loads((site / "claims.json").read_text(encoding="utf8"))
    assert {"claim", "verdict", "values", "records", "command"} <= told[0].keys() and {c.id for c in claims()} == {
        row["id"] for row in told}
    assert len(listed) > 30 and (site / "_static" / "LICENSE.txt").exists()


@pytest.mark.book
def test_numbers_link_to_the_row_that_holds_them(site: Path, page: str) -> None:
    found = BeautifulSoup((site / page).read_text(encoding="utf8"), "lxml")
    for link in found.select("a.igsp-number"):
        target, _, name = link["href"].partition("#")
        assert name.startswith("value-") and link["title"]
        other = BeautifulSoup(((site / page).parent / target).read_text(encoding="utf8"), "lxml") if target else found
        row = other.find(id=name)
        assert row is not None and row.find_parent("tr") is not None, link
