"""Records: found by name, whole or not at all, damage set aside, one worker per cell."""

import json
import multiprocessing
import os
import signal
import time

import fsspec
import pytest

from igsp.assets import whole_or_nothing
from igsp.cli import main
from igsp.errors import AssetError, UsageError
from igsp.provenance import canonical, key_of
from igsp.study.records import Record, Store, differences, name_of


def record(value=1.0, **spec):
    return Record({"stage": "cell", **spec}, {"value": value}, {})


def test_a_record_comes_back_by_its_specification(tmp_path):
    store = Store(tmp_path)
    store.put(record(2.5, draw=1))
    found = store.get({"draw": 1, "stage": "cell"})
    assert found is not None and found.metrics == {"value": 2.5}
    assert store.get({"stage": "cell", "draw": 2}) is None
    assert [r.name for r in store.records()] == [name_of({"stage": "cell", "draw": 1})]


def test_key_ignores_order_and_sees_every_value():
    assert key_of({"a": 1, "b": [1, 2]}) == key_of({"b": [1, 2], "a": 1})
    assert key_of({"a": 1}) != key_of({"a": 2})
    with pytest.raises(ValueError):
        canonical({"a": float("nan")})


@pytest.mark.parametrize(("spec", "name"), [
    ({"stage": "dense", "suite": "s"}, "dense"), ({"stage": "trivial"}, "trivial"),
    ({"stage": "pool", "draw": 2}, "pools/2"), ({"stage": "writing", "draw": 0}, "writing-0"),
    ({"stage": "calibration", "strategy": "c4", "draw": 1}, "sets/c4-1"),
    ({"stage": "metrics", "strategy": "c4", "draw": 1}, "metrics/c4-1"),
    ({"stage": "cell", "strategy": "c4", "draw": 0, "method": "wanda", "sparsity": 0.6}, "cells/c4-0-wanda-0.6"),
    ({"stage": "cell", "strategy": "c4", "draw": 0, "method": "wanda", "sparsity": 0.5, "pattern": "2:4"},
     "cells/c4-0-wanda-2of4"),
])
def test_a_record_has_a_name_that_people_can_read(tmp_path, spec, name):
    assert Store(tmp_path).put(Record(spec, {}, {})) == tmp_path / f"{name}.json"
    assert [record.spec for record in Store(tmp_path).records()] == [spec]


def test_other_settings_are_told_and_a_lower_version_counts_as_none(tmp_path):
    store = Store(tmp_path)
    there = {"stage": "dense", "n": 32, "pattern": None, "detail": {"weights": {"c4": 1}}, "versions": {"scoring": 1}}
    store.put(Record(there, {}, {}))
    assert store.get({**there, "n": ...}) is not None
    assert store.get({**there, "versions": {"scoring": 2}}) is None
    other = {"n": 16, "detail": {"weights": {"c4": 2}}, "order": "layer"}
    with pytest.raises(UsageError) as told:
        store.get({**there, **other})
    for part in ("n: 32 there, 16 asked", "detail.weights.c4: 1 there, 2 asked", "order: nothing there, layer asked",
                 "dense.json", "Way out"):
        assert part in str(told.value)
    with pytest.raises(UsageError, match="n: 32 there, 16 asked"):
        store.get({**there, "n": 16, "versions": {"scoring": 2}})


def test_a_record_is_rounded_to_what_its_numbers_are_good_for_and_has_a_line_per_task(tmp_path):
    items = [[1541.6554583220072, 792.0], [1553.8338566466518, 796.0]] * 40
    task = {"task": "wikitext_text", "value": 1.773572037789058, "items": items}
    metrics = {"scores": {"tasks": [task, task]}, "seconds": {"prune": 45.41999}}
    path = Store(tmp_path).put(Record({"stage": "dense"}, metrics, {}))
    text = path.read_text()
    assert sum('"items"' in line for line in text.splitlines()) == 2 and len(text.splitlines()) < 15
    assert '"value": 1.773572, "items": [[1541.655, 792], ' in text and '"prune": 45.42' in text


@pytest.mark.parametrize("damage", ["", "{", '{"spec": {}}', '{"spec": {"x": 1}, "metrics": {}, "provenance": {}}',
    '{"spec": {"stage": "cell"}, "metrics": {"x": NaN}, "provenance": {}}', "[" * 100_000,
    '{"spec": {"stage": "cell"}, "metrics": [], "provenance": {}}'])
def test_a_damaged_or_foreign_record_is_set_aside(tmp_path, damage):
    store = Store(tmp_path)
    path = store.put(record())
    path.write_text(damage)
    assert store.get({"stage": "cell"}) is None
    assert not path.exists() and path.with_suffix(".damaged").read_text() == damage
    store.put(record())
    assert store.get({"stage": "cell"}) is not None


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    target = tmp_path / "file.json"
    target.write_text("old")
    with pytest.raises(RuntimeError), whole_or_nothing(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["file.json"]


def _hold(root, started):
    with Store(root).claim("cell") as mine:
        assert mine
        started.set()
        time.sleep(60)


def test_a_claim_is_exclusive_and_ends_with_its_process(tmp_path):
    started = multiprocessing.Event()
    other = multiprocessing.Process(target=_hold, args=(tmp_path, started))
    other.start()
    assert started.wait(20)
    with Store(tmp_path).claim("cell") as mine:
        assert not mine
    os.kill(other.pid, signal.SIGKILL)
    other.join()
    with Store(tmp_path).claim("cell") as mine:
        assert mine


def test_values_are_published_with_their_maker(tmp_path):
    store = Store(tmp_path)
    store.publish("04-uniform-mix", {"uniform/total": {"value": 58.8, "unit": "%"}})
    value = store.values()["uniform/total"]
    assert value["value"] == 58.8 and value["low"] is None and value["notebook"] == "04-uniform-mix"
    with pytest.raises(ValueError):
        store.publish("x", {"bad": {"value": float("nan")}})
    assert json.loads((tmp_path / "values" / "04-uniform-mix.json").read_text())
    assert [p.name for p in (tmp_path / "values").iterdir()] == ["04-uniform-mix.json"]


@pytest.fixture(params=["folder", "memory"])
def address(request, tmp_path):
    """A store in a local folder, and one at an address of fsspec."""
    if request.param == "folder":
        return str(tmp_path)
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    return "memory://bucket/study"


def test_any_file_system_keeps_records_values_and_failures(address):
    store = Store(address)
    assert list(store.records()) == [] and store.values() == {} and store.failures() == {}
    store.put(record(2.5, draw=1))
    store.put(record(2.5, draw=1))  # again over itself
    store.publish("notebook", {"key": {"value": 1.0}})
    other = Store(address)
    assert [r.metrics for r in other.records()] == [{"value": 2.5}] and other.values()["key"]["value"] == 1.0
    with other.claim("x") as mine:
        assert mine


@pytest.mark.parametrize("root, reason", [
    ("nope://x", "cannot be reached: Protocol"), ("github://x", "cannot be reached"), (__file__, "is a file")])
def test_what_cannot_be_a_store_is_refused(root, reason):
    with pytest.raises(UsageError, match=reason):
        Store(root)


def test_a_failure_is_kept_until_the_record_is_there(address):
    store = Store(address)
    store.fail(record().name, "cell recipes 0", "out of memory")
    assert store.failures() == {record().name: "out of memory"}
    store.put(record())
    assert store.failures() == {}


def test_a_damaged_record_is_named_and_set_aside_anywhere(address, caplog):
    store = Store(address)
    path = store.put(record())
    store.fs.pipe_file(str(path), b"\xff{")
    assert store.get({"stage": "cell"}) is None and path.name in caplog.text
    assert store.fs.exists(str(path.with_suffix(".damaged"))) and list(store.records()) == []


def test_a_write_that_breaks_off_leaves_no_record(monkeypatch):
    store = Store("memory://bucket/broken")

    def full(path, value, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store.fs, "pipe_file", full)
    with pytest.raises(OSError, match="No space left"):
        store.put(record())
    assert store._files("cells") == []


def test_the_frame_has_a_row_per_record_and_a_column_per_task(tmp_path):
    store = Store(tmp_path)
    tasks = [{"task": "text_code", "value": 1.5, "items": [[1.0, 2.0]]}]
    metrics = {"scores": {"tasks": tasks}, "seconds": {"prune": 1.0, "evaluate": 2.0}}
    spec = {"stage": "cell", "strategy": "c4", "method": "wanda", "sparsity": 0.6, "versions": {}}
    store.put(Record(spec, metrics, {}))
    store.put(record(1.0))
    frame = store.frame().set_index("method")
    row = frame.loc["wanda"]
    assert len(frame) == 2 and (row.strategy, row.text_code, row.seconds) == ("c4", 1.5, 3.0)


def cell(value, strategy="c4", torch="1", n=32, **metrics):
    scores = {"tasks": [{"task": "text_code", "value": value, "items": [[value, 1.0]]}]}
    spec = {"stage": "cell", "strategy": strategy, "draw": 0, "n": n, "method": "wanda", "sparsity": 0.6}
    return Record(spec | {"calibration": torch}, {"scores": scores, **metrics}, {"versions": {"torch": torch}})


def test_stores_are_compared_number_by_number_across_machines(tmp_path):
    a, b = Store(tmp_path / "a"), Store(tmp_path / "b")
    a.put(cell(2.0, seconds={"prune": 1.0}))
    b.put(cell(2.0 + 1e-7, torch="2", seconds={"prune": 9.0}))
    a.publish("n", {"x": {"value": 50.0}, "y": {"value": 1.0}})
    b.publish("n", {"x": {"value": 50.04}})
    assert [row["key"] for row in differences(a, b)] == ["y"]
    exact = {row["key"]: (row["a"], row["b"]) for row in differences(a, b, tolerance=0, relative=0)}
    name = "cells/c4-0-wanda-0.6"
    assert exact.keys() == {"x", "y", f"{name}: scores/tasks/text_code/value", "made by: versions.torch"}
    assert exact["made by: versions.torch"] == ("1", "2")
    a.put(cell(1.0, strategy="piqa"))
    assert {"key": "cells/piqa-0-wanda-0.6", "a": True, "b": None} in differences(a, b)
    b.put(cell(1.0, strategy="piqa", n=16))
    assert {"key": "cells/piqa-0-wanda-0.6: n", "a": 32, "b": 16} in differences(a, b)


@pytest.mark.parametrize("limits", [{"tolerance": -1}, {"tolerance": float("nan")}, {"relative": float("nan")}])
def test_a_tolerance_that_is_none_is_refused(tmp_path, limits):
    with pytest.raises(UsageError, match="at least 0"):
        differences(Store(tmp_path), Store(tmp_path), **limits)


@pytest.mark.parametrize("damage", ["{", "[1]", '{"x": 1}', '{"x": {"value": NaN}}', '{"x": {"value": null}}'])
def test_damaged_values_are_named_and_a_damaged_failure_is_passed_over(tmp_path, damage):
    store = Store(tmp_path)
    store.publish("n", {"x": {"value": 1.0}}), store.fail("dense", "dense", "broken")
    for file in ("values/n.json", "failed/dense.json"):
        (tmp_path / file).write_text(damage)
    assert store.failures() == {}
    with pytest.raises(AssetError, match=r"n\.json.*run its notebook again"):
        store.values()


def test_diff_command_exits_by_what_it_finds(tmp_path, capsys):
    a, b = Store(tmp_path / "a"), Store(tmp_path / "b")
    a.put(cell(2.0))
    assert main(["diff", str(a.root), str(b.root)]) == 2
    b.put(cell(2.0))
    assert main(["diff", str(a.root), str(b.root)]) == 0
    b.put(cell(2.5))
    assert main(["diff", str(a.root), str(b.root), "--json"]) == 1
    assert main(["diff", str(a.root), str(b.root), "--relative", "0.5"]) == 0
