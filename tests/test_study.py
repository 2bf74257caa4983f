"""Studies: settings refused early, every cell computed once, whoever asks, and nothing finished lost."""

import json
import multiprocessing
import os
import re
import signal
import time
from collections import Counter

import pytest
from toy import ToySet, ToyStudy, ToyTexts, log

from igsp import pruning, scoring, text
from igsp.errors import IgspError, UnknownName, UsageError
from igsp.provenance import repository_root
from igsp.study import study as study_module
from igsp.study.settings import _profile_text
from igsp.study.study import Cell, Study, Task, cells, frame, profiles, settings
from igsp.text import metrics


@pytest.fixture
def toy(tmp_path):
    return lambda **options: ToyStudy("quick", store=tmp_path, **options)


def test_cells_are_computed_once_and_shared_by_content(toy, tmp_path):
    results = toy(draws=2).run(["recipes", "uniform"], progress=False)
    assert [(r.strategy, r.draw) for r in results] == [("recipes", 0), ("recipes", 1), ("uniform", 0), ("uniform", 1)]
    toy(draws=1).run(["uniform", "recipes"], progress=False)
    assert log(tmp_path) == [f"{name} {draw} sparsegpt 0.6" for name in ("recipes", "uniform") for draw in (0, 1)]
    assert sum(record.spec["stage"] == "cell" for record in toy().store.records()) == 4


def test_method_sparsity_pattern_and_draws_are_part_of_a_name_and_other_settings_are_refused(toy, tmp_path):
    toy().run(["recipes"], progress=False)
    for overrides in ({"sparsity": 0.5}, {"method": "wanda"}, {"pattern": "2:4"}, {"draws": 2}):
        toy(**overrides).run(["recipes"], progress=False)
    names = {path.name for path in (tmp_path / "cells").iterdir()}
    assert names == {f"recipes-{end}.json" for end in (
        "0-sparsegpt-0.6", "0-sparsegpt-0.5", "0-wanda-0.6", "0-sparsegpt-2of4", "1-sparsegpt-0.6")}
    with pytest.raises(UsageError, match=r"sets/recipes-0\.json .* n: 16 there, 8 asked\. Way out: .*--store"):
        toy(n=8).run(["recipes"], progress=False)
    with pytest.raises(UsageError, match=r"detail\.weights\.gsm_symbolic: 1 there, nothing asked"):
        toy().run(["uniform"], progress=False)
        toy(uniform={"recipes": 1, "stdlib": 1}).run(["uniform"], progress=False)


def test_a_pattern_is_recorded_with_the_sparsity_that_it_has(toy):
    (result,) = toy(pattern="2:4").run(["recipes"], progress=False)
    assert (result.record.spec["pattern"], result.record.spec["sparsity"]) == ("2:4", 0.5)
    both = settings("quick", grid=[{"strategies": ["alice"], "patterns": ["2:4", "1:4"], "sparsities": [0.7]}])
    assert [(c.sparsity, c.pattern, c.amount) for c in cells(both)] == [
        (0.7, None, "0.7"), (0.5, "2:4", "2:4"), (0.75, "1:4", "1:4")]
    assert settings("quick", pattern="2:4", sparsity=0.6).sparsity == 0.5


def test_overrides_that_make_other_records_have_a_folder_of_their_own(monkeypatch, tmp_path):
    monkeypatch.setattr(study_module, "repository_root", lambda: tmp_path)
    def folder(**overrides):
        return Study("quick", dtype="float32", device="cpu", **overrides).store.root.name.replace("+dtype=float32", "")
    assert folder() == folder(n=16, draws=3, sparsity=0.5, measure="accuracy") == "quick"
    assert folder(n=8, order="dense") == "quick+n=8+order=dense"
    weights = folder(uniform={"recipes": 1})
    assert re.fullmatch(r"quick\+uniform=[0-9a-f]{8}", weights) and weights != folder(uniform={"recipes": 2})
    assert Study("quick", tmp_path / "mine", n=8).store.root == tmp_path / "mine"


def test_a_cell_on_record_is_found_without_its_set(toy, tmp_path, monkeypatch):
    first = toy().run(["recipes"], progress=False)
    (tmp_path / "sets" / "recipes-0.json").unlink()
    monkeypatch.setattr(ToyTexts, "_set", None)
    assert toy().run(["recipes"], progress=False)[0].scores == first[0].scores
    assert toy().done(Task("cell", "recipes", 0, toy().cell("recipes")))


@pytest.mark.parametrize("stage, cells_again", [(scoring, True), (pruning, True), (text, True), (metrics, False)])
def test_a_raised_version_computes_again_what_went_through_that_stage(toy, tmp_path, monkeypatch, stage, cells_again):
    study = toy()
    study.run(["recipes"], progress=False), study.information(["recipes"], progress=False)
    monkeypatch.setattr(stage, "VERSION", 2)
    study = toy()
    assert study.done(Task("cell", "recipes", 0, study.cell("recipes"))) is not cells_again
    assert study.done(Task("metrics", "recipes")) is (stage in (scoring, pruning))
    study.run(["recipes"], progress=False), study.information(["recipes"], progress=False)
    assert len(log(tmp_path)) == 1 + cells_again
    monkeypatch.setattr(stage, "VERSION", 1)
    with pytest.raises(UsageError, match=r"versions\.\w+: 2 there, 1 asked"):
        toy().run(["recipes"], progress=False), toy().information(["recipes"], progress=False)


def test_other_code_packages_and_machines_leave_every_record_usable(toy, tmp_path, monkeypatch):
    """As a change of a comment, a docstring or a plot does: nothing of it is in a specification."""
    toy().run(["recipes"], progress=False)
    other = {"commit": "0" * 12, "dirty": True, "versions": {"torch": "9.9"}, "python": "4.0", "processor": "other"}
    monkeypatch.setattr(study_module, "provenance", lambda: other)
    toy().run(["recipes", "alice"], progress=False)
    assert log(tmp_path) == ["alice 0 sparsegpt 0.6", "recipes 0 sparsegpt 0.6"]
    specs = {record.name: json.dumps(record.spec) for record in toy().store.records()}
    assert not any(word in spec for spec in specs.values() for word in ("torch", "commit", "python", "9.9"))


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


def test_the_grid_of_the_paper_is_counted():
    counts = Counter(task.stage for task in ToyStudy("paper", store="nowhere").tasks())
    assert counts == {"dense": 1, "cell": 168, "calibration": 66, "metrics": 66, "pool": 3}


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
    monkeypatch.setattr(ToyTexts, "_set", lambda self, strategy, draw: ToySet(strategy.name, "other"))
    study = toy()
    assert study.run(["recipes"], progress=False)  # on record: nothing has to be made
    with pytest.raises(IgspError, match="'recipes', draw 0, cannot be made again"):
        study.complete([Cell("recipes", 0, "wanda", 0.6)], progress=False)


def test_a_suite_of_other_content_is_refused_in_the_same_store(toy, tmp_path):
    toy().run(["recipes"], progress=False)
    study = toy()
    study._suite = "another"
    with pytest.raises(UsageError, match="suite: suite there, another asked"):
        study.run(["recipes"], progress=False)


def test_planning_neither_loads_the_model_nor_needs_its_device(tmp_path, make_model):
    folder = tmp_path / "model"
    lm = make_model()
    lm.model.save_pretrained(folder)
    study = Study("quick", store=tmp_path, model=str(folder), device="cuda", dtype="auto")
    assert (study.numbers["device"], study.numbers["dtype"]) == ("cuda", "bfloat16")
    assert "lm" not in vars(study)
    here = Study("quick", store=tmp_path, model=str(folder), device="cpu", dtype="float32")
    assert here.numbers["model"] == study.numbers["model"] and here.numbers["dtype"] == "float32"


def test_settings_of_every_profile_load():
    for profile in profiles():
        loaded = settings(profile)
        assert loaded.profile == profile and loaded.web in loaded.sources
        assert set(loaded.uniform) <= set(loaded.sources)


@pytest.mark.parametrize(
    "overrides, error, message",
    [
        ({"sparsity": 1.0}, UsageError, r"quick\.yaml: sparsity must be less than 1, got 1\.0"),
        ({"sparsity": "high"}, UsageError, "sparsity must be a number, got 'high'"),
        ({"sparsity": float("nan")}, UsageError, "sparsity must be a finite number, got nan"),
        ({"n": 0}, UsageError, "n must be greater than or equal to 1, got 0"),
        ({"n": True}, UsageError, "n must be a whole number, got True"),
        ({"seed": -1}, UsageError, "seed"),
        ({"model": ["a"]}, UsageError, r"model must be a string, got \['a'\]"),
        ({"suite": 5}, UsageError, "suite must be a string, got 5"),
        ({"method": "sparsgpt"}, UnknownName, "sparsegpt"),
        ({"dtype": "bf16"}, UnknownName, "bfloat16"),
        ({"sources": ["recipies"]}, UnknownName, "recipes"),
        ({"sparcity": 0.5}, UnknownName, "sparsity"),
        ({"pattern": "4:2"}, UsageError, "4:2"),
        ({"pattern": 24}, UsageError, "24"),
        ({"run_code": "yes"}, UsageError, "run_code must be a boolean"),
        ({"measure": "accurate"}, UnknownName, "accuracy"),
        ({"uniform": {"recipes": -1}}, UsageError, r"uniform\.recipes must be greater than 0"),
        ({"uniform": {"recipes": float("nan")}}, UsageError, r"uniform\.recipes must be a"),
        ({"uniform": {"recipes": "x"}}, UsageError, r"uniform\.recipes must be a number"),
        ({"uniform": {}}, UsageError, "uniform"),
        ({"uniform": ["recipes"]}, UsageError, "uniform must be a mapping"),
        ({"protocols": {"sgs": {"prefix": 4}}}, UnknownName, "prefix_tokens"),
        ({"protocols": {"selfcal": {}}}, UnknownName, "self-cal"),
        ({"protocols": {"../../x": {"protocol": "sgs"}}}, UsageError, "cannot name a strategy"),
        ({"protocols": {"recipes": {"protocol": "sgs"}}}, UsageError, "cannot name a strategy"),
        ({"pool": {"oversample": -1}}, UsageError, "pool: oversample cannot be -1"),
        ({"selections": {"a": {"rule": "randm"}}}, UnknownName, "random"),
        ({"selections": {"a": {"rule": "igsp", "lam": float("inf")}}}, UsageError, "lam cannot be inf"),
        ({"grid": [{"strategy": ["recipes"]}]}, UnknownName, r"strategies.*grid\.0"),
        ({"grid": [{}, {"strategies": ["recipies"]}]}, UnknownName, "part 2 of the grid 'recipies': .*recipes"),
        ({"grid": [{"strategies": "recipes"}]}, UsageError, r"grid\.0\.strategies must be a list"),
        ({"grid": [{"methods": ["wander"]}]}, UnknownName, "wanda"),
        ({"grid": [{"sparsities": [60]}]}, UsageError, r"grid\.0\.sparsities\.0 must be less than 1, got 60"),
        ({"grid": [{"patterns": ["4:2"]}]}, UsageError, "4:2"),
        ({"grid": [{"draws": 0}]}, UsageError, r"grid\.0\.draws must be greater than or equal to 1"),
        ({"grid": 5}, UsageError, r"quick\.yaml: grid must be a list, got 5"),
        ({"grid": []}, UsageError, "grid .*at least 1 item"),
        ({"grid": ["recipes"]}, UsageError, r"grid\.0 must be a mapping"),
        ({"sources": "recipes"}, UsageError, "sources must be a list"),
        ({"device": "cuuda"}, UsageError, "device: must be auto, cpu, cuda or cuda:N"),
    ],
)
def test_bad_settings_name_the_key(overrides, error, message):
    with pytest.raises(error, match=message):
        settings("quick", **overrides)


def test_a_profile_may_be_a_file_of_ones_own(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(_profile_text("quick")[1].replace("draws: 1", "draws: 4"))
    assert settings(str(file)).draws == 4 and settings(str(file)).profile == "mine"
    file.write_text("model: [")
    with pytest.raises(UsageError, match=r"mine\.yaml is no YAML"):
        settings(str(file))
    file.write_text("- model")
    with pytest.raises(UsageError, match=r"mine\.yaml must be a mapping"):
        settings(str(file))
    file.write_text("model: !!python/object:os.system x")
    with pytest.raises(UsageError, match=r"mine\.yaml is no YAML"):
        settings(str(file))
    file.write_text("profile: other\n")
    with pytest.raises(UnknownName, match="unknown key 'profile'"):
        settings(str(file))
    file.write_bytes(b"model: \xff")
    for unreadable in (file, tmp_path / "absent.yaml"):
        with pytest.raises(UsageError, match=r"cannot read the profile"):
            settings(str(unreadable))


def test_unknown_profile_and_strategy(toy):
    with pytest.raises(UnknownName, match="quick"):
        settings("quik")
    with pytest.raises(UnknownName, match="uniform"):
        toy().run(["unifrom"], progress=False)
