"""Records: content-addressed, whole or not at all, damage set aside, one worker per cell."""

import json
import multiprocessing
import os
import signal
import time

import pytest

from igsp.assets import whole_or_nothing
from igsp.store import Record, Store, canonical, key_of, package_sha256


def record(value=1.0, **spec):
    return Record({"stage": "cell", **spec}, {"value": value}, {"package": package_sha256()})


def test_a_record_comes_back_by_its_specification(tmp_path):
    store = Store(tmp_path)
    store.put(record(2.5, draw=1))
    found = store.get({"draw": 1, "stage": "cell"})
    assert found is not None and found.metrics == {"value": 2.5} and not found.stale
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


def test_a_record_of_other_code_is_stale(tmp_path):
    store = Store(tmp_path)
    store.put(Record({"stage": "cell"}, {}, {"package": "other"}))
    found = store.get({"stage": "cell"})
    assert found is not None and found.stale


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
    assert value["package"] == package_sha256()
    with pytest.raises(ValueError):
        store.publish("x", {"bad": {"value": float("nan")}})
    assert json.loads((tmp_path / "values" / "04-uniform-mix.json").read_text())
    assert [p.name for p in (tmp_path / "values").iterdir()] == ["04-uniform-mix.json"]
