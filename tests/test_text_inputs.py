"""Whatever enters the text room is read rightly or refused by a typed error that names it; never a traceback."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import tiny_calibration, tiny_model

import igsp
from igsp.errors import AssetError, IgspError, UnknownName, UsageError
from igsp.text import catalogue as sources
from igsp.text import rows, windows
from igsp.text.catalogue import Document, Source, catalogue, documents
from igsp.text.exchange import export, read
from igsp.text.windows import CalibrationSet, mix, parse_mix, sample

CASES = int(os.environ.get("IGSP_CASES", 150))  # per property
few = settings(max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck))
ENTRY = {"dimension": "law", "about": "a", "licence": "b", "origin": "file", "files": ["a.jsonl"]}
WHEEL = {"dimension": "law", "about": "a", "licence": "b", "origin": "wheel", "packages": ["evals"]}
SECRET = "{text} {when.normalize.__globals__[warnings].sys.modules[os].environ[HF_TOKEN]}"


@pytest.fixture(scope="module")
def lm():
    return tiny_model()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("inputs")


@pytest.fixture
def own(folder, monkeypatch):
    """The user's catalogue, from its text; nothing else of it is kept from one test to the next."""
    monkeypatch.setenv("IGSP_SOURCES", str(folder / "own.yaml"))
    monkeypatch.setenv("IGSP_CACHE", str(folder / "cache"))
    monkeypatch.delenv("IGSP_DATA", raising=False)

    def write(content: str | bytes | dict) -> Path:
        text = yaml.safe_dump(content) if isinstance(content, dict) else content
        (folder / "own.yaml").write_bytes(text.encode("utf8", "surrogatepass") if isinstance(text, str) else text)
        sources._catalogue.cache_clear()
        sources._all_documents.cache_clear()
        return folder

    yield write
    sources._catalogue.cache_clear()


# --- the catalogue -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../../x", "/etc/x", "a/b", ".hidden", "a\nb", "", "x" * 200, "a[b]", "a b"])
def test_an_id_that_is_no_name_is_refused(own, name):
    own({name: ENTRY})
    with pytest.raises(UsageError, match=r"own\.yaml"):
        catalogue()


@pytest.mark.parametrize(
    "change",
    [
        {"files": ["../a.jsonl"]}, {"files": ["/etc/passwd.txt"]}, {"files": ["~/a.txt"]}, {"files": ["a\x00.txt"]},
        {"file": "../../x"}, {"hub": "../../etc"}, {"hub": "/etc"}, {"config": ["../x"]}, {"split": "../x"},
        {"data_files": ["a/../../x"]}, {"packages": ["../x"]}, {"packages": ["/x"]}, {"revision": "a\nb"},
        {"packages": [["a"]]}, {"options": [1]}, {"options": {1: 2}}, {"characters": True}, {"characters": 2.5},
        {"paper": "yes"}, {"versions": {"a": 1}}, {"sha256": 5}, {"heldout_templates": "x"}, {"config": {"a": 1}},
        {"template": SECRET}, {"template": "{0}"}, {"template": "{}"}, {"template": "{text:>1000000000}"},
        {"template": "{text:{text.x}}"}, {"template": "{text.__class__}"}, {"template": "{text[a].b}"},
        {"answer": {"column": 1}}, {"answer": {"column": "a", "choices": 5}}, {"reader": "lay_out"}, {1: 2},
    ],
)
def test_a_field_of_the_wrong_kind_is_refused(own, change):
    own({"mine": ENTRY | change})
    with pytest.raises(UsageError, match=r"own\.yaml.*mine|mine.*own\.yaml|options|answer"):
        catalogue()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"reader": "json_rows"}, "field is missing"), ({"reader": "json_rows", "options": {"feld": "a"}}, "field"),
        ({"reader": "json_rows", "options": {"field": 1}}, "field"), ({"reader": "json_row"}, "json_rows"),
        ({"reader": "line_groups", "options": {"group": 0}}, "group"),
        ({"reader": "line_groups", "options": {"group": "2"}}, "group"),
        ({"reader": "line_groups", "options": {"members": "a"}}, "members"),
        ({"reader": "whole_files", "options": {"piece_chars": -1}}, "piece_chars"),
        ({"reader": "line_groups", "packages": ["evalz"]}, "evals"), ({}, "'reader'"),
        ({"reader": "json_records", "options": {"template": 3}}, "template"),
    ],
)
def test_options_that_a_reader_does_not_take_are_refused_before_anything_is_read(own, change, match):
    own({"mine": WHEEL | change})
    with pytest.raises(UsageError, match=match):
        catalogue()


@pytest.mark.parametrize(
    "change",
    [
        {"reader": "json_prose", "options": {"members": ["*.py"], "min_chars": 1}},
        {"reader": "stories", "options": {"members": ["evals/registry/data/schelling_point/owt_5.jsonl"], "stop": "x"}},
        {"reader": "literal_dict", "options": {"members": ["*/owt_5.jsonl"]}},
        {"reader": "json_records", "options": {"members": ["*/owt_5.jsonl"], "template": "{a.b}"}},
        {"reader": "line_groups", "options": {"members": ["no such"]}}, {"reader": "line_groups"},
    ],
)
def test_files_that_do_not_fit_their_reader_name_the_source(own, monkeypatch, change):
    monkeypatch.delenv("IGSP_CACHE")
    own({"mine": WHEEL | change})
    with pytest.raises(AssetError, match="source 'mine'"):
        documents("mine")


@pytest.mark.parametrize("package", ["no-such-package", "xml.no_such", "os.path"])
def test_a_package_that_is_not_installed_is_named_and_not_imported(own, package):
    own({"mine": WHEEL | {"origin": "installed", "packages": [package], "reader": "line_groups", "slow": True}})
    assert catalogue()["mine"].at_hand() == "no"
    with pytest.raises(AssetError, match=package):
        documents("mine")


@pytest.mark.parametrize(
    "text",
    ["a: !!int ''", "a: !!timestamp x", "a: !!python/object/apply:os.system [ls]", "? [a]\n: b", "a: &a [*a]",
     "[" * 5000, "a: " + "9" * 5000, "x: {about: !!set {a, b}}", "a: !!binary x", b"\xff\xfe\x00a", b"\x00\x01",
     "\u0085a: b"],
)
def test_yaml_that_is_no_catalogue_is_refused(own, text):
    own(text)
    with pytest.raises(UsageError, match=r"own\.yaml"):
        catalogue()


@pytest.mark.parametrize("field", ["origin", "about", "files", "options", "template", "heldout_templates", "x"])
def test_a_value_that_unfolds_into_a_billion_is_refused_in_a_few_words(own, field):
    bomb = "\n".join(f"b{i}: &b{i} [{', '.join([f'*b{i - 1}'] * 9) if i else 'x'}]" for i in range(12))
    others = "".join(f"  {key}: {json.dumps(value)}\n" for key, value in ENTRY.items() if key != field)
    own(f"{bomb}\nmine:\n{others}  {field}: *b11\n")
    content, _ = sources.read_yaml(Path(os.environ["IGSP_SOURCES"]))
    with pytest.raises(UsageError) as error:
        sources.checked(Source, {"id": "mine", **content["mine"]}, "own.yaml")
    assert len(str(error.value)) < 600


@pytest.mark.parametrize("field", ["about", "characters", "heldout_templates", "paper", "origin"])
def test_a_number_of_thousands_of_digits_is_refused(own, field):
    own({"mine": {key: value for key, value in ENTRY.items() if key != field}})
    with open(os.environ["IGSP_SOURCES"], "a", encoding="utf8") as file:
        file.write(f"  {field}: 0x{'f' * 9000}\n")
    with pytest.raises(UsageError, match=r"own\.yaml"):
        catalogue()


def test_a_catalogue_that_is_a_folder_or_missing_is_named(folder, monkeypatch):
    for path in (folder, folder / "nowhere.yaml"):
        monkeypatch.setenv("IGSP_SOURCES", str(path))
        with pytest.raises(UsageError, match=path.name):
            catalogue()


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
    | st.sampled_from(["{text}", "{a[0]}", "../x", "a", SECRET, "wheel", "hub"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=5,
)


@few
@given(st.dictionaries(st.sampled_from([*Source.model_fields, "x"]), VALUES, max_size=5), st.text(max_size=10))
def test_any_entry_is_taken_or_refused(own, change, name):
    path = own({name or "mine": ENTRY | change}) / "own.yaml"
    try:
        (entry,) = sources._entries(path, ())
        sources._read(entry)
    except IgspError as error:
        assert len(str(error)) > 20


@few
@given(st.text(alphabet="{}[].!:0123ab>_ rs\n", max_size=14), VALUES)
def test_any_template_reaches_columns_alone_or_is_refused(template, value):
    try:
        rows.plain(template)
    except ValueError:
        return
    try:
        rows.lay_out([("0", {"a": value, "b": "text"})], template)
    except AssetError as error:
        assert "row 0" in str(error)


# --- files of rows ------------------------------------------------------------------------------------------------

LINE = b'{"text": "some words", "n": 1}'
HOSTILE = {
    "deep": b'{"text": ' + b"[" * 200_000, "huge number": b'{"text": ' + b"9" * 5000 + b"}",
    "utf16": "{}".encode("utf16"),
    "zeros": bytes(100), "list": b"[1]", "null": b"null", "cut": LINE[:-3],
}


@pytest.mark.parametrize("damage", HOSTILE)
@pytest.mark.parametrize("packed", [False, True])
def test_a_line_that_is_no_row_is_named(own, folder, lm, damage, packed):
    name = "a.jsonl.gz" if packed else "a.jsonl"
    content = LINE + b"\n" + HOSTILE[damage]
    own({"mine": ENTRY | {"files": [name]}})
    (folder / name).write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(AssetError, match=rf"'mine'.*{name}', line 2"):
        documents("mine")
    with pytest.raises(UsageError, match=rf"{name}', line 2"):
        read(folder / name, lm.tokenizer, seqlen=4)


def test_byte_order_mark_line_ends_null_columns_and_half_characters_are_read(own, folder, lm):
    rows = [LINE, b'{"text": null, "messages": [1]}', b'{"text": "w1 \\ud83d w2"}', b""]
    (folder / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(rows))
    own({"mine": ENTRY})
    assert [d.text for d in documents("mine", "all")] == ["some words", "w1 ? w2"]
    (folder / "b.jsonl").write_bytes(b"\xef\xbb\xbf" + b"\r\n".join([rows[0], rows[2]]))
    assert read(folder / "b.jsonl", lm.tokenizer, seqlen=5).n == 1


def test_one_line_of_a_hundred_megabytes_is_read(own, folder):
    (folder / "a.jsonl").write_bytes(b'{"text": "' + b"word " * 20_000_000 + b'"}')
    own({"mine": ENTRY | {"characters": 1000}})
    assert [len(d.text) for d in documents("mine", "all")] == [1000]
    (folder / "a.jsonl").unlink()


@pytest.mark.parametrize(
    "change", [lambda b: b[:-20], lambda b: b[:200] + bytes(50) + b[250:], lambda b: b"", lambda b: b"PAR1"]
)
def test_damaged_parquet_is_named(own, folder, change):
    path = folder / "a.parquet"
    datasets.Dataset.from_list([{"text": f"row {i}" * 9} for i in range(90)]).to_parquet(path)
    path.write_bytes(change(path.read_bytes()))
    own({"mine": ENTRY | {"files": ["a.parquet"]}})
    with pytest.raises(AssetError, match=r"'mine'.*a\.parquet"):
        documents("mine")


@few
@given(st.lists(
    st.binary(max_size=20) | st.sampled_from([LINE, b"{", b"\xef\xbb\xbf", b"\r", *HOSTILE.values()]), max_size=5
))
def test_any_bytes_are_rows_or_refused(folder, lm, lines):
    path = folder / "any.jsonl"
    path.write_bytes(b"\n".join(lines))
    for reader in (lambda: list(rows.rows(path)), lambda: read(path, lm.tokenizer, seqlen=3)):
        try:
            reader()
        except IgspError as error:
            assert "any.jsonl" in str(error)


# --- calibration sets ---------------------------------------------------------------------------------------------

IDS = {"input_ids": [5, 6, 7, 8]}


@pytest.mark.parametrize(
    "row",
    [
        {"input_ids": 5}, {"input_ids": {"a": 1}}, {"input_ids": "5678"}, {"input_ids": []}, {"input_ids": [1.0, 2.0]},
        {"input_ids": [True, False]}, {"input_ids": [-1, 2]}, {"input_ids": [10**30]}, {"input_ids": [[1], [2]]},
        {"input_ids": [None]}, {**IDS, "attention_mask": 1}, {**IDS, "attention_mask": [1]}, {**IDS, "documents": 5},
        {**IDS, "draw": "x"}, {**IDS, "tokenizer": 5}, {"text": 5}, {"text": ["a"]}, {"messages": "hi"},
        {"messages": []}, {"messages": [{"role": "user"}]}, {"messages": [["user", "hi"]]}, {},
        {"messages": [{"role": "user", "content": None}]}, {"input_ids": None, "text": None},
    ],
)
def test_a_row_that_is_no_window_is_named(folder, lm, row):
    (folder / "rows.jsonl").write_text(json.dumps(IDS) + "\n" + json.dumps(row), encoding="utf8")
    with pytest.raises(UsageError, match=r"rows\.jsonl', row 2"):
        read(folder / "rows.jsonl", lm.tokenizer, seqlen=4)


def test_a_column_that_is_not_needed_is_not_looked_at(folder, lm):
    rows = [{**IDS, "messages": [{"role": "user", "content": "a"}], "text": ["x"]}] * 2
    shutil.rmtree(folder / "wide", ignore_errors=True)
    datasets.Dataset.from_list(rows).with_format("numpy").save_to_disk(folder / "wide")
    assert read(folder / "wide", lm.tokenizer).input_ids.tolist() == [IDS["input_ids"]] * 2


@pytest.mark.parametrize(
    ("n", "seqlen"), [(0, 4), (-1, 4), (2.0, 4), (True, 4), ("3", 4), (10**30, 4), (1, 0), (1, 10**30)]
)
def test_numbers_of_windows_that_cannot_be(folder, lm, n, seqlen, monkeypatch):
    (folder / "rows.jsonl").write_text(json.dumps({"text": "w1 " * 40}), encoding="utf8")
    monkeypatch.setattr(windows, "documents", lambda source, split: [Document("0", "w1 " * 40)])
    for make in (lambda: read(folder / "rows.jsonl", lm.tokenizer, n, seqlen),
                 lambda: sample("any", lm.tokenizer, n, seqlen), lambda: mix({"any": 1}, lm.tokenizer, n, seqlen)):
        with pytest.raises(UsageError) as error:
            make()
        assert "to 0" not in str(error.value)


@pytest.mark.parametrize("damage", ["state.json", "dataset_info.json", "arrow"])
@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_folder_of_datasets_is_named(folder, lm, damage, content):
    shutil.rmtree(folder / "set", ignore_errors=True)
    export(tiny_calibration(lm, n=3), folder / "set", "datasets")
    (path,) = (folder / "set").glob("*" + damage)
    path.write_bytes(content)
    try:
        assert read(folder / "set", lm.tokenizer).n == 3  # what was damaged is not needed
    except UsageError as error:
        assert "set'" in str(error)


@few
@given(st.dictionaries(st.sampled_from(["sha256", "tokenizer", "spec", "windows", "n"]), VALUES, max_size=3),
       st.lists(st.dictionaries(st.sampled_from(["source", "documents", "draw"]), VALUES), max_size=3) | st.none(),
       st.sets(st.sampled_from(["sha256", "tokenizer", "spec", "windows"]), max_size=1))
def test_any_manifest_is_taken_or_refused(folder, lm, change, rows, without):
    if not (folder / "ours").exists():
        tiny_calibration(lm, n=3).save(folder / "ours")
        shutil.copy(folder / "ours" / "manifest.json", folder / "right.json")
    manifest = json.loads((folder / "right.json").read_text(encoding="utf8")) | change
    manifest |= {"windows": rows} if rows is not None else {}
    manifest = {key: value for key, value in manifest.items() if key not in without}
    (folder / "ours" / "manifest.json").write_text(json.dumps(manifest), encoding="utf8")
    try:
        found = CalibrationSet.load(folder / "ours")
    except UsageError:
        return
    assert found.n == 3 and not without


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"[" * 100_000, b"\xff\xfe", b'{"sha256": NaN}', b"9" * 5000])
@pytest.mark.parametrize("name", ["manifest.json", "windows.safetensors"])
def test_a_damaged_set_of_ours_is_named(folder, lm, content, name):
    tiny_calibration(lm, n=3).save(folder / "broken")
    (folder / "broken" / name).write_bytes(content)
    with pytest.raises(UsageError, match="broken"):
        CalibrationSet.load(folder / "broken")


def test_ids_outside_the_models_vocabulary_are_refused_before_they_reach_it(lm):
    made = tiny_calibration(lm, n=3)
    made.input_ids[0, 0] = 10**9
    with pytest.raises(UsageError, match="outside"):
        igsp.profile(made, lm)


# --- mixes and conversations --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "weights", "n"),
    [
        ("c4:64,codealpaca:32", {"c4": 64, "codealpaca": 32}, 96), ("c4=2, gsm8k", {"c4": 2, "gsm8k": 1}, None),
        ("c4", {"c4": 1}, None), ("math[algebra]:3,c4[en]:1", {"math[algebra]": 3, "c4[en]": 1}, 4),
        ("gsm8k[train]=.5", {"gsm8k[train]": 0.5}, None), ("uniform", {"c4": 1, "math": 1}, None),
    ],
)
def test_a_mix_as_people_write_it(text, weights, n):
    assert parse_mix(text, {"uniform": {"c4": 1, "math": 1}}) == (weights, n)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("c4:1,gsm8k=2", "not both"), ("c4:1,gsm8k", "not both"), ("c4:1.5", "count"), ("c4=x", "pairs, got"),
        ("", "weight"), ("c4=1,c4=2", "each name once"), ("c4=-1", "negative"), ("c4=0", "zero"),
        ("c4[fr]", r"unknown part.*\[en\]"), ("c5", "c4"), ("math[algebra", r"\[algebra\]"),
        ("recipes[train]", "part"), ("c4=\u0661", "weight"),
        ("nowhere.yaml", "nowhere"), ("c4:" + "9" * 40, "more than any"),
    ],
)
def test_a_mix_that_is_none_is_refused(text, match):
    with pytest.raises(UsageError, match=match):
        parse_mix(text)


def test_a_file_of_weights_is_a_mix(folder):
    (folder / "mix.yaml").write_text("weights: {c4: 1, gsm8k: 0.5}\nelse: 3", encoding="utf8")
    assert parse_mix(str(folder / "mix.yaml")) == ({"c4": 1, "gsm8k": 0.5}, None)
    for content in ("weights: [c4]", "weights: {c4: x}", "weights: {c5: 1}", "- a", "weights: {c4: .nan}", "a: b"):
        (folder / "mix.yaml").write_text(content, encoding="utf8")
        with pytest.raises(UsageError):
            parse_mix(str(folder / "mix.yaml"))


@few
@given(st.text(alphabet="c4gsm8k:=,[]. 12en-\n\u0661", max_size=16))
def test_any_text_is_a_mix_or_refused(text):
    try:
        weights, n = parse_mix(text)
    except UsageError:
        return
    assert sum(weights.values()) > 0 and (n is None or n == sum(weights.values()))


def test_a_part_of_a_source_holds_its_documents_on_their_side(own, folder, monkeypatch):
    own({"mine": {**ENTRY, "origin": "hub", "hub": "o/n", "config": ["x", "y"], "files": []}})
    monkeypatch.setenv("IGSP_DATA", str(folder))
    for name in "xy":
        path = folder / "o" / "n" / name / "train.jsonl.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress("\n".join(json.dumps({"text": f"{name} {i}"}) for i in range(20)).encode()))
    for split in ("calibration", "heldout"):
        assert documents("mine[y]", split) == [d for d in documents("mine", split) if d.id.startswith("y/")]
    with pytest.raises(UnknownName, match=r"\[x\]"):
        documents("mine[z]")


TEMPLATE = "{% for m in messages %}w1 {{ m.role }} {{ m.content }} w2\n{% endfor %}"


@pytest.fixture
def chatty(lm):
    lm.tokenizer.chat_template = TEMPLATE
    yield lm.tokenizer
    lm.tokenizer.chat_template = None


def test_conversations_are_laid_out_by_the_chat_template(folder, chatty):
    turns = [{"role": "w3", "content": "w4 w5", "more": 1}, {"role": "w6", "content": "w7"}]
    (folder / "chat.jsonl").write_text("\n".join([json.dumps({"messages": turns, "text": None})] * 2), encoding="utf8")
    found = read(folder / "chat.jsonl", chatty, seqlen=9)
    words = ["w1", "w3", "w4", "w5", "w2", "w1", "w6", "w7", "w2"]
    assert chatty.convert_ids_to_tokens(found.input_ids.flatten().tolist()) == words * 2
    assert [w.documents for w in found.windows] == [("1",), ("2",)]


def test_documents_are_turns_of_a_user_if_asked(chatty, monkeypatch):
    monkeypatch.setattr(windows, "documents", lambda source, split: [Document(str(i), "w4 w5") for i in range(9)])
    made = sample("any", chatty, n=3, seqlen=5, chat=True)
    assert {tuple(chatty.convert_ids_to_tokens(row)) for row in made.input_ids.tolist()} == {
        ("w1", *chatty.convert_ids_to_tokens(chatty.encode("user", add_special_tokens=False)), "w4", "w5", "w2")
    }
    assert made.spec["chat"] and "chat" not in sample("any", chatty, n=3, seqlen=5).spec


def test_the_templates_own_first_token_is_not_doubled():
    rows, documents = windows.cut([("a", [1, 5, 6]), ("b", [1, 7, 8, 9, 2])], [1], 4)
    assert rows == [[1, 5, 6, 1], [1, 7, 8, 9]] and documents == [("a", "b"), ("b",)]
    assert windows.cut([("a", [5, 6, 7])], [], 3)[0] == [[5, 6, 7]], "a tokenizer without BOS"
    with pytest.raises(UsageError, match="seqlen must be at least 2"):
        windows.cut([], [1], 1)


def test_messages_need_a_template_that_takes_them(folder, lm, chatty):
    (folder / "chat.jsonl").write_text(json.dumps({"messages": [{"role": "a", "content": "b"}]}), encoding="utf8")
    for template, match in ((None, "no chat template"), ("{{ raise_exception('no a') }}", "no a"), ("{{", "refuses")):
        lm.tokenizer.chat_template = template
        with pytest.raises(UsageError, match=rf"chat\.jsonl', row 1.*{match}"):
            read(folder / "chat.jsonl", lm.tokenizer, seqlen=4)
    lm.tokenizer.chat_template = None
    with pytest.raises(UsageError, match="no chat template"):
        sample("recipes", lm.tokenizer, n=1, seqlen=4, chat=True)


# --- without a network --------------------------------------------------------------------------------------------

OFFLINE = """
import socket, sys
asked = []
def refuse(*what, **more):
    asked.append(what)
    raise OSError("no network")
socket.getaddrinfo = socket.socket.connect = socket.create_connection = refuse
from igsp.errors import AssetError
from igsp.text.catalogue import documents
for name in ("alpaca", "stackexchange"):
    try:
        documents(name)
    except AssetError as error:
        assert "IGSP_DATA" in str(error), error
    else:
        sys.exit("read from nowhere")
print("asked", asked)
"""


@pytest.mark.parametrize("switch", ["HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"])
def test_an_offline_switch_means_that_nothing_is_asked_of_the_network(folder, switch):
    environment = {k: v for k, v in os.environ.items() if k not in ("IGSP_DATA", "IGSP_SOURCES")}
    environment |= {switch: "1", "HF_HOME": str(folder / "hf"), "IGSP_CACHE": str(folder / "cache")}
    run = subprocess.run([sys.executable, "-c", OFFLINE], capture_output=True, text=True, env=environment, timeout=120)
    assert run.stdout.strip().endswith("asked []"), run.stdout + run.stderr[-2000:]
