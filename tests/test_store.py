"""Records: content-addressed, whole or not at all, damage set aside, one worker per cell."""

import json
import multiprocessing
import os
import signal
import time

import fsspec
import pytest

from igsp.assets import whole_or_nothing
from igsp.cli import main
from igsp.errors import UsageError
from igsp.provenance import canonical, key_of
from igsp.study.records import Record, Store, differences


def record(value=1.0, **spec):
    return Record({"stage": "cell", **spec}, {"value": value}, {})


def test_a_record_comes_back_by_its_specification(tmp_path):
    store = Store(tmp_path)
    store.put(record(2.5, draw=1))
    found = store.get({"draw": 1, "stage": "cell"})
    assert found is not None and found.metrics == {"value": 2.5}
    assert store.get({"stage": "cell", "draw": 2}) is None
    assert [r.key for r in store.records()] == [key_of({"stage": "cell", "draw": 1})]


def test_key_ignores_order_and_sees_every_value():
    assert key_of({"a": 1, "b": [1, 2]}) == key_of({"b": [1, 2], "a": 1})
    assert key_of({"a": 1}) != key_of({"a": 2})
    with pytest.raises(ValueError):
        canonical({"a": float("nan")})


@pytest.mark.parametrize("damage", ["", "{", '{"spec": {}}', '{"spec": {"x": 1}, "metrics": {}, "provenance": {}}'])
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


@pytest.mark.parametrize("root, reason", [("nope://x", "cannot be reached: Protocol"), (__file__, "is a file")])
def test_what_cannot_be_a_store_is_refused(root, reason):
    with pytest.raises(UsageError, match=reason):
        Store(root)


def test_a_failure_is_kept_until_the_record_is_there(address):
    store = Store(address)
    store.fail(record().key, "cell recipes 0", "out of memory")
    assert store.failures() == {record().key: "out of memory"}
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
    metrics = {"scores": {"tasks": tasks}, "seconds": {"prune": 1.0, "evaluate": 2.0}, "labels": {"strategy": "c4"}}
    store.put(Record({"stage": "cell", "method": "wanda", "versions": {}}, metrics, {}))
    store.put(record(1.0))
    frame = store.frame().set_index("method")
    row = frame.loc["wanda"]
    assert len(frame) == 2 and (row.strategy, row.text_code, row.seconds) == ("c4", 1.5, 3.0)


def cell(value, strategy="c4", versions="1", **metrics):
    scores = {"tasks": [{"task": "text_code", "value": value, "items": [[value, 1.0]]}]}
    labels = {"strategy": strategy, "draw": 0, "seed": 0}
    made = {"versions": {"torch": versions}, "calibration": versions}
    spec = {"stage": "cell", "method": "wanda", "sparsity": 0.6, **made}
    return Record(spec, {"scores": scores, "labels": labels, **metrics}, {"code": "x"})


def test_stores_are_compared_number_by_number_across_versions(tmp_path):
    a, b = Store(tmp_path / "a"), Store(tmp_path / "b")
    a.put(cell(2.0, seconds={"prune": 1.0}))
    b.put(cell(2.0 + 1e-9, versions="2", seconds={"prune": 9.0}))
    a.publish("n", {"x": {"value": 50.0}, "y": {"value": 1.0}})
    b.publish("n", {"x": {"value": 50.04}})
    assert [row["key"] for row in differences(a, b)] == ["y"]
    exact = {row["key"] for row in differences(a, b, tolerance=0, relative=0)}
    name = "cell c4 0 wanda 0.6: scores/tasks/text_code"
    assert exact == {"x", "y", f"{name}/value", f"{name}/items/0/0"}
    a.put(cell(1.0, strategy="piqa"))
    assert {"key": "cell piqa 0 wanda 0.6", "a": True, "b": None} in differences(a, b)
    a.put(record(None)), b.put(record(None))  # without a number
    assert "cell" not in {row["key"] for row in differences(a, b)}


def test_diff_command_exits_by_what_it_finds(tmp_path, capsys):
    a, b = Store(tmp_path / "a"), Store(tmp_path / "b")
    a.put(cell(2.0))
    assert main(["diff", str(a.root), str(b.root)]) == 2
    b.put(cell(2.0))
    assert main(["diff", str(a.root), str(b.root)]) == 0
    b.put(cell(2.5))
    assert main(["diff", str(a.root), str(b.root), "--json"]) == 1
    assert main(["diff", str(a.root), str(b.root), "--relative", "0.5"]) == 0
