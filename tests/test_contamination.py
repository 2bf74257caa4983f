"""What a reader can rely on about contamination: found exactly, and kept out of the windows."""

from __future__ import annotations

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igsp.scoring import contamination as module
from igsp.scoring.contamination import SHORTEST, contaminated, contamination, normalise, overlaps
from igsp.text.catalogue import Document, documents

ITEM = "How many legs do three spiders have, all together?"


def found(text: str, *items: str) -> bool:
    return bool(overlaps({"s": [Document("0", text)]}, items)["s"])


def test_letters_and_digits_decide():
    assert normalise("Wie _viel_: 3 Äpfel?\n") == "wieviel3äpfel"
    assert found("Q: how MANY legs do three spiders\nhave (all together)? A: 24", ITEM)
    assert not found("How many legs do four spiders have, all together?", ITEM)
    assert not found(ITEM[: len(ITEM) // 2], ITEM), "half an item is none"


def test_short_items_do_not_count():
    item = "abcdefghijklmnopqrstuvwxyz"
    assert len(item) == SHORTEST and found(f"12{item}34", item)
    assert not found(item, item[:-1])


@given(st.lists(st.text("ab", min_size=20, max_size=40), max_size=8), st.lists(st.text("ab", max_size=60), max_size=4))
def test_the_same_as_a_plain_search(items, texts):
    found = overlaps({"s": [Document(str(i), text) for i, text in enumerate(texts)]}, items)["s"]
    assert found == {str(i) for i, text in enumerate(texts) if any(len(a) >= SHORTEST and a in text for a in items)}


def test_sources_are_told_apart():
    documents = {"a": [Document("0", ITEM), Document("1", "x")], "b": [Document("0", "y")]}
    assert overlaps(documents, [ITEM]) == {"a": frozenset("0"), "b": frozenset()}


@pytest.fixture
def suite(tmp_path):
    """A suite with the texts of two calibration documents of `parables` as its items."""
    texts = [d.text for d in documents("parables")[:3]]
    rows = [{"query": text, "choices": ["a", "b"], "gold": 0} for text in texts]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "tales.yaml").write_text(
        "task: tales\ndataset_path: json\ndataset_kwargs: {data_files: {test: rows.jsonl}}\ntest_split: test\n"
        "output_type: multiple_choice\ndoc_to_text: query\ndoc_to_target: gold\ndoc_to_choice: choices\n"
    )
    path = tmp_path / "mine.yaml"
    path.write_text("tasks: [{task: tales, dimension: general, metric: acc, limit: 2}]")
    return path


def test_the_items_that_a_suite_scores_are_found_in_a_source(suite):
    ids = {d.id for d in documents("parables")[:2]}
    assert contaminated("parables", suite) == ids, "the third item is beyond the limit"
    assert contamination("parables", suite) == (2, len(documents("parables")))
    assert contamination("recipes", suite)[0] == 0


def test_what_was_found_is_kept_and_found_again_if_damaged(suite, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "cache_dir", lambda: tmp_path)
    first = contaminated.__wrapped__("parables", suite)
    (path,) = (tmp_path / "contamination").iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(module, "evaluation_texts", None)
        assert contaminated.__wrapped__("parables", suite) == first, "read, not computed"
    path.write_text("[")
    assert contaminated.__wrapped__("parables", suite) == first and path.read_text() != "["


def test_what_is_found_stays_out_of_the_windows_and_leaves_the_rest(monkeypatch):
    from tiny import tiny_model

    from igsp.text import windows as calibration

    texts = [Document(str(i), f"{i} " * 40) for i in range(30)]
    monkeypatch.setattr(calibration, "documents", lambda source, split: texts)
    tokenizer = tiny_model("llama").tokenizer
    whole = calibration.sample("s", tokenizer, n=8, seqlen=16)
    out = frozenset(whole.windows[0].documents)
    rest = calibration.sample("s", tokenizer, n=8, seqlen=16, without=out)
    assert out.isdisjoint(name for window in rest.windows for name in window.documents)
    assert rest.spec["without"] == sorted(out) and "without" not in whole.spec
    mixed = calibration.mix({"s": 1}, tokenizer, n=8, seqlen=16, without={"s": out, "other": out})
    assert mixed.sha256 == rest.sha256 and mixed.spec["without"] == {"s": sorted(out)}


@pytest.mark.skipif(not os.environ.get("IGSP_DATA"), reason="needs a mirror of the data (IGSP_DATA)")
def test_published_overlaps_are_found():
    """BoolQ's training and validation questions share passages; the test is the validation split's own passages."""
    from igsp.text.catalogue import catalogue
    from igsp.text.rows import rows

    path = catalogue()["boolq"].mirror_files()[0].with_name("validation.jsonl.gz")
    passages = {normalise(row["passage"]) for row in rows(path)}
    expected = {d.id for d in documents("boolq") if normalise(d.text.split("\n\n")[0]) in passages}
    assert expected and expected <= overlaps({"boolq": documents("boolq")}, [r["passage"] for r in rows(path)])["boolq"]
