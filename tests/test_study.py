"""Studies: settings refused early, every cell computed once, whoever asks, and nothing finished lost."""

import json
import multiprocessing
import os
import re
import signal
import time
from collections import Counter

import pytest
from docutils import nodes
from igsp_book.costs import costs
from toy import ToySet, ToyStudy, log

from igsp.errors import IgspError, UnknownName, UsageError
from igsp.provenance import repository_root
from igsp.study import study as study_module
from igsp.study.records import Record, Store
from igsp.study.study import Cell, Task, frame, profiles, settings


@pytest.fixture
def toy(tmp_path):
    return lambda **options: ToyStudy("quick", store=tmp_path, **options)


def test_cells_are_computed_once_and_shared_by_content(toy, tmp_path):
    results = toy(draws=2).run(["recipes", "uniform"], progress=False)
    assert [(r.strategy, r.draw) for r in results] == [("recipes", 0), ("recipes", 1), ("uniform", 0), ("uniform", 1)]
    toy(draws=1).run(["uniform", "recipes"], progress=False)
    assert log(tmp_path) == [f"{name} {draw} sparsegpt 0.6" for name in ("recipes", "uniform") for draw in (0, 1)]
    assert sum(record.spec["stage"] == "cell" for record in toy().store.records()) == 4


def test_other_settings_are_other_cells(toy):
    def spec(**overrides):
        study = toy(**overrides)
        return study.spec(study.cell("recipes"))

    assert spec() != spec(sparsity=0.5)
    assert spec() != spec(method="wanda")
    assert spec() == spec(draws=3)


def test_retention_of_the_toy(toy):
    study = toy()
    kept = study.retentions(study.run(["recipes"], progress=False))
    value = 100 / (1 + 7 / 7 + 0.6)
    assert frame(kept).loc["recipes", ["general", "total", "minimum"]].tolist() == pytest.approx([value] * 3)


def _work(root, names):
    ToyStudy("quick", store=root, seconds=0.5).run(names, progress=False)


def test_two_processes_divide_the_cells_and_a_killed_one_loses_only_its_own(tmp_path):
    names = ["recipes", "stdlib", "alice", "parables", "uniform", "openwebtext"]
    workers = [multiprocessing.Process(target=_work, args=(tmp_path, names)) for _ in range(2)]
    for worker in workers:
        worker.start()
    while len(log(tmp_path)) < 2:
        time.sleep(0.02)
    os.kill(workers[0].pid, signal.SIGKILL)
    workers[0].join()
    workers[1].join(60)
    assert workers[1].exitcode == 0
    assert log(tmp_path) == sorted(f"{name} 0 sparsegpt 0.6" for name in names)  # each exactly once


def test_tasks_wait_for_what_they_share(toy):
    tasks = toy(draws=2).tasks()
    assert len(tasks) == len(set(tasks)) == 1 + 2 + 3 * 2 * len(toy().strategies)  # dense, pools, three per strategy
    order = list(tasks)
    for task, needs in tasks.items():
        assert all(order.index(need) < order.index(task) for need in needs)
    pool = Task("pool", "", 1)
    assert tasks[Task("calibration", "igsp", 1)] == (pool,) and tasks[Task("calibration", "recipes", 1)] == ()


def test_the_table_of_costs_counts_tasks_and_takes_times_from_records(tmp_path):
    counts = Counter(task.stage for task in ToyStudy("paper", store="nowhere").tasks())
    assert counts == {"dense": 1, "cell": 168, "calibration": 66, "profile": 66, "pool": 3}
    store = Store(tmp_path)
    assert "no records" in costs(store, "small", "paper")[0].astext()
    for seconds in (100.0, 360.0, 9999.0):  # one of them was paused
        store.put(Record({"stage": "cell", "method": "wanda", "x": seconds}, {}, {"seconds": seconds, "threads": 1}))
    grid, text = costs(store, "small", "paper")
    rows = [[entry.astext() for entry in row.findall(nodes.entry)] for row in grid.findall(nodes.row)]
    assert ["cell wanda", "93", "360", "9.30", "84"] in rows and ["all", "340", "", "9.30", "304"] in rows
    assert ["pool", "3", "-", "-", "3"] in rows and "169 tasks of paper score a model" in text.astext()


def test_every_fault_on_the_page_has_its_test():
    root = repository_root()
    named = set(re.findall(r"`(test_\w+)`", (root / "book" / "study.md").read_text()))
    tests = "".join(path.read_text() for path in (root / "tests").glob("test_*.py"))
    assert len(named) >= 10 and not [name for name in named if f"def {name}(" not in tests]


def test_a_filter_takes_cells_and_names_what_it_does_not_know(toy):
    study = toy(draws=2, grid=[{"methods": ["sparsegpt", "wanda"]}])
    assert study.select(["source=recipes"], ["wanda"]) == [Cell("recipes", d, "wanda", 0.6) for d in (0, 1)]
    assert {(c.strategy, c.draw) for c in study.select(["strategy=uniform,draw=0", "kind=protocol,draw=1"])} == {
        ("uniform", 0), ("self-cal", 1), ("sgs", 1)
    }
    assert len(study.select()) == len(study.cells())
    for only, methods, wrong in (
        (["source=recipies"], [], "recipes"), (["source=uniform"], [], "uniform"), (["strategie=c4"], [], "strategy"),
        (["draw"], [], "draw"), ([], ["wander"], "wanda"),
    ):
        with pytest.raises(UnknownName, match=wrong):
            study.select(only, methods)


def test_a_set_that_cannot_be_made_again_as_recorded_stops_its_cells(toy, tmp_path, monkeypatch):
    toy().run(["recipes"], progress=False)
    monkeypatch.setattr(ToyStudy, "_make_calibration", lambda self, strategy, draw: ToySet(strategy.name, "other"))
    study = toy()
    assert study.run(["recipes"], progress=False)  # on record: nothing has to be made
    with pytest.raises(IgspError, match="'recipes', draw 0, cannot be made again"):
        study.complete([Cell("recipes", 0, "wanda", 0.6)], progress=False)


class Screened(ToyStudy):
    """Its sets are without the documents that contain an item of its suite."""

    found = frozenset()

    def _without(self, strategy):
        return {"recipes": self.found} if strategy.name == "recipes" else {}

    def _make_calibration(self, strategy, draw):
        return ToySet(strategy.name, sorted(*self._without(strategy).values()))


def test_suites_that_remove_other_documents_have_sets_of_their_own_in_one_store(tmp_path):
    recorded = set()
    for suite, found in (("a", frozenset()), ("b", frozenset({"5"})), ("c", frozenset({"5", "7"}))):
        study = type("Other", (Screened,), {"_suite": suite, "found": found})(store=tmp_path)
        assert study.run(["recipes"], progress=False)
        recorded.add(study.recorded_set("recipes", 0)["sha256"])
    assert len(recorded) == len(log(tmp_path)) == 3


def test_a_store_without_records_of_its_sets_knows_them_by_the_labels_of_its_cells(toy):
    study = toy()
    study.run(["uniform", "self-cal"], progress=False)
    for record in list(study.store.records()):
        path = study.store.path(record.key)
        body = json.loads(path.read_text())
        if record.spec["stage"] == "calibration":
            path.unlink()
            continue
        labels = body["metrics"]["labels"]
        size = {"n": study.settings.n, "seqlen": study.settings.seqlen}
        labels["calibration"] = {**size, **study.strategies[labels["strategy"]].detail}
        path.write_text(json.dumps(body))
    cells = [Task("cell", name, 0, study.cell(name)) for name in ("uniform", "self-cal", "recipes")]
    assert [toy().done(cell) for cell in cells] == [True, True, False]
    assert not any(toy(n=8).done(cell) for cell in cells)
    assert not any(toy(seed=1).done(cell) for cell in cells)
    assert not toy(uniform={"recipes": 1}).done(cells[0])


def test_planning_neither_loads_the_model_nor_needs_its_device(tmp_path, make_model):
    folder = tmp_path / "model"
    lm = make_model()
    lm.model.save_pretrained(folder)
    study = study_module.Study("quick", store=tmp_path, model=str(folder), device="cuda", dtype="auto")
    assert (study.numbers["device"], study.numbers["dtype"]) == ("cuda", "bfloat16")
    assert "lm" not in vars(study)
    here = study_module.Study("quick", store=tmp_path, model=str(folder), device="cpu", dtype="float32")
    assert here.numbers["model"] == study.numbers["model"] and here.numbers["dtype"] == "float32"


def test_settings_of_every_profile_load():
    for profile in profiles():
        loaded = settings(profile)
        assert loaded.profile == profile and len(loaded.sources) == 15
        assert set(loaded.uniform) <= set(loaded.sources)


@pytest.mark.parametrize(
    "overrides, error, message",
    [
        ({"sparsity": 1.0}, UsageError, r"quick\.yaml: sparsity must be in \[0, 1\)"),
        ({"sparsity": "high"}, UsageError, "sparsity"),
        ({"n": 0}, UsageError, "n must be a whole number"),
        ({"seed": -1}, UsageError, "seed"),
        ({"method": "sparsgpt"}, UnknownName, "sparsegpt"),
        ({"sources": ["recipies"]}, UnknownName, "recipes"),
        ({"sparcity": 0.5}, UnknownName, "sparsity"),
        ({"grid": [{"strategy": ["recipes"]}]}, UnknownName, "strategies.*part 1 of the grid"),
        ({"grid": [{}, {"strategies": ["recipies"]}]}, UnknownName, "recipes.*part 2 of the grid"),
        ({"grid": [{"strategies": "recipes"}]}, UsageError, "strategies must be a list"),
        ({"grid": [{"methods": ["wander"]}]}, UnknownName, "wanda"),
        ({"grid": [{"sparsities": [60]}]}, UsageError, r"sparsities must be in \[0, 1\)"),
        ({"grid": [{"draws": 0}]}, UsageError, "draws must be a whole number"),
        ({"grid": 5}, UsageError, r"quick\.yaml: grid must be a list, got 5"),
        ({"grid": []}, UsageError, "grid must be a list of one part at least"),
        ({"sources": "recipes"}, UsageError, "sources must be a list"),
        ({"uniform": ["recipes"]}, UsageError, "uniform must be a mapping"),
        ({"device": "cuuda"}, UsageError, "device must be auto, cpu, cuda or cuda:N"),
        ({"grid": ["recipes"]}, UsageError, "part 1 of the grid must be a mapping"),
    ],
)
def test_bad_settings_name_the_key(overrides, error, message):
    with pytest.raises(error, match=message):
        settings("quick", **overrides)


def test_a_profile_may_be_a_file_of_ones_own(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(study_module._profile_text("quick")[1].replace("draws: 1", "draws: 4"))
    assert settings(str(file)).draws == 4 and settings(str(file)).profile == "mine"
    file.write_text("model: [")
    with pytest.raises(UsageError, match=r"mine\.yaml is no YAML"):
        settings(str(file))
    file.write_text("- model")
    with pytest.raises(UsageError, match=r"mine\.yaml must be a mapping"):
        settings(str(file))
    with pytest.raises(UsageError, match=r"cannot read the profile"):
        settings(str(tmp_path / "absent.yaml"))


def test_unknown_profile_and_strategy(toy):
    with pytest.raises(UnknownName, match="quick"):
        settings("quik")
    with pytest.raises(UnknownName, match="uniform"):
        toy().run(["unifrom"], progress=False)
