"""The book from the committed records alone: no model, no cache, no network; and the same bytes from two builds."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from bs4 import BeautifulSoup
from igsp_book import build
from igsp_book.notebooks import notebooks

from igsp.study.claims import claims

pytestmark = pytest.mark.book

ROOT = Path(__file__).parents[2]
SECONDS = 180  # of processor time, so that a busy machine does not fail the test (120 were measured)


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two builds of one staged copy, the first within the promised time."""
    folder = tmp_path_factory.mktemp("preview")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"IGSP_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1", "PIP_NO_INDEX": "1"}.items():
            patch.setenv(name, value)
        start = _cpu()
        build.stage(ROOT, folder / "copy")
        first = build.site(folder / "copy", "quick", folder / "a", build.PREVIEW)
        assert _cpu() - start < SECONDS
        second = build.site(folder / "copy", "quick", folder / "b", build.PREVIEW)
    assert not list((folder / "cache").rglob("*.whl"))
    return first, second


def _cpu() -> float:
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def page(site: Path, name: str) -> BeautifulSoup:
    return BeautifulSoup((site / "book" / f"{name}.html").read_text(encoding="utf8"), "lxml")


def test_a_preview_shows_records_and_marks_what_was_not_executed(sites: tuple[Path, Path]) -> None:
    site, _ = sites
    for notebook in notebooks(ROOT):
        shown = page(site, f"notebooks/{notebook.name}")
        assert bool(shown.select(".igsp-provenance")) == bool(notebook.reads)
        assert ("Not executed in this build" in shown.text) == (not notebook.reads)
        assert shown.select(".highlight-ipython3, .highlight-python"), "the code is there"
    ledger = page(site, "claims").select("table.igsp-ledger tbody tr")
    assert len(ledger) == len(claims())
    assert all("not executed in this build" in row.select("td")[-1].text for row in ledger)
    drawn = next(image["alt"] for image in page(site, "claims").select("figure#fig-tradeoff img"))
    for method, paper in (("SparseGPT General", "+0.55"), ("Wanda General", "+0.71"), ("SparseGPT Code", "−0.59")):
        assert f"paper {paper}" in drawn.partition(f"{method} ")[2].partition(";")[0], "not another method's value"
    assert page(site, "index").select("figure#fig-strategies svg")
    explorer = page(site, "explorer")
    assert explorer.select("figure.igsp-chart svg") and explorer.select("table.igsp-dense tbody tr")
    pending = page(site, "notebooks/04-uniform-mix").select("abbr.igsp-stale")
    assert pending and all("make book" in mark["title"] for mark in pending)


def test_two_builds_have_the_same_bytes(sites: tuple[Path, Path]) -> None:
    first, second = ({p.relative_to(s).as_posix(): p for p in s.rglob("*") if p.is_file()} for s in sites)
    assert first.keys() == second.keys() and len(first) > 50
    assert [name for name in first if first[name].read_bytes() != second[name].read_bytes()] == []
