"""Tables and phrases of the notebooks: what a reader sees of a number or a name."""

from __future__ import annotations

import pandas as pd
import pytest

from igsp import figures
from igsp.scoring.retention import Estimate


@pytest.fixture
def shown(monkeypatch):
    tables = []
    monkeypatch.setattr(figures, "display", lambda data, **_: tables.append(data["text/html"]))
    return tables


def test_a_table_prints_what_is_known_and_no_more(shown):
    frame = pd.DataFrame({
        "method": ["sparsegpt", "<b>"], "dimension": ["code", "math"], "rho": [-0.5, 0.75], "low": [-0.9, 0.2],
        "high": [-0.1, 0.9], "p": [0.00004, 0.0412], "share": [0.5, float("nan")], "windows": [16.0, 32.0],
    })
    figures.show_table(figures.with_intervals(frame), "Of <them> all")
    (text,) = shown
    assert '<th scope="row">SparseGPT</th><td>Code</td>' in text and "&lt;b&gt;" in text and "<b>" not in text
    assert "<caption>Of &lt;them&gt; all</caption>" in text
    assert "<td>\N{MINUS SIGN}0.50 (\N{MINUS SIGN}0.90\xa0to\xa0\N{MINUS SIGN}0.10)</td>" in text
    assert '<td class="igsp-num">&lt;\xa00.001</td><td class="igsp-num">0.5</td><td class="igsp-num">16</td>' in text
    assert '<td class="igsp-num">0.041</td><td class="igsp-num"></td><td class="igsp-num">32</td>' in text


def test_markup_stays_markup_and_text_is_escaped(shown):
    rows = [{"id": figures.code("c<4"), "verdict": figures.badge("holds", "holds"), "note": "a < b"}]
    figures.show_table(pd.DataFrame(rows), "One", name="tab-one", classes="igsp-stack")
    assert '<table id="tab-one" class="igsp-table igsp-stack">' in shown[0] and "a &lt; b" in shown[0]
    assert "<code>c&lt;4</code>" in shown[0] and '<span class="igsp-badge igsp-holds">holds</span>' in shown[0]


def test_names_are_those_of_prose_and_a_source_keeps_its_own():
    assert [figures.title(name) for name in ("wanda", "igsp", "math")] == ["Wanda", "IGSP", "math"]
    assert figures.heading("math") == "Math"
    assert figures.phrase([("code", -0.59)]) == "Code \N{MINUS SIGN}0.59"


def test_a_difference_carries_its_sign(shown):
    figures.show_table(pd.DataFrame({"pair": ["a minus b"], "total": [Estimate(1.25, -0.5, 3.0)]}), "Pairs", digits=1)
    assert "<td>+1.2 (\N{MINUS SIGN}0.5\xa0to\xa0+3.0)</td>" in shown[0]
