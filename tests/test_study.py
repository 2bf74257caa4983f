"""Studies: settings refused early, every cell computed once, whoever asks, and nothing finished lost."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from igsp import study as study_module
from igsp.errors import UnknownName, UsageError
from igsp.evaluation import Scores, TaskScore
from igsp.store import package_sha256
from igsp.study import Study, frame, profiles, settings


def toy_scores(factor):
    tasks = tuple(
        TaskScore(
            f"text_{d}", d, "bits_per_byte", factor, 4, 0.1, None, False, tuple((factor * b, 1.0) for b in (1, 2, 3, 4))
        )
        for d in ("general", "commonsense", "code", "math")
    )
    return Scores("toy", "toy", tasks)


class ToySet:
    """Stands in for a calibration set: its hash is all that a specification needs."""

    def __init__(self, name, draw):
        self.sha256 = f"{name}-{draw}"
        self.windows = ()


class ToyStudy(Study):
    """A study whose cells take `seconds` and write a line to a log, one per computation."""

    seconds = 0.0

    def calibration(self, name, draw=0):
        self._strategy(name)
        return ToySet(name, draw)

    def _numbers(self):
        return {"model": "toy"}

    def _score_dense(self):
        return {"scores": toy_scores(1.0).to_dict()}

    def _compute(self, name, draw):
        time.sleep(self.seconds)
        with open(self.store.root / "log", "a") as log:
            log.write(f"{name} {draw}\n")
        return {"scores": toy_scores(2.0).to_dict()}


@pytest.fixture
def toy(tmp_path, monkeypatch):
    monkeypatch.setattr(study_module, "suite_sha256", lambda suite: "suite")
    return lambda **options: ToyStudy("quick", store=tmp_path, **options)


def log(root):
    path = Path(root) / "log"
    return sorted(path.read_text().splitlines()) if path.exists() else []


def test_cells_are_computed_once_and_shared_by_content(toy, tmp_path):
    results = toy(draws=2).run(["recipes", "uniform"], progress=False)
    assert [(r.strategy, r.draw) for r in results] == [("recipes", 0), ("recipes", 1), ("uniform", 0), ("uniform", 1)]
    toy(draws=1).run(["uniform", "recipes"], progress=False)
    assert log(tmp_path) == ["recipes 0", "recipes 1", "uniform 0", "uniform 1"]
    assert len(list(toy().store.records())) == 4


def test_other_settings_are_other_cells(toy):
    assert toy().spec("recipes") != toy(sparsity=0.5).spec("recipes")
    assert toy().spec("recipes") != toy(method="wanda").spec("recipes")
    assert toy().spec("recipes") == toy(draws=3).spec("recipes")


def test_retention_of_the_toy(toy):
    study = toy()
    kept = study.retentions(study.run(["recipes"], progress=False))
    table = frame(kept)
    assert table.loc["recipes", ["general", "total", "minimum"]].tolist() == pytest.approx([50, 50, 50])


def test_a_record_of_other_code_is_computed_again_or_accepted_as_the_profile_says(toy, tmp_path, monkeypatch):
    study = toy()
    study.run(["recipes"], progress=False)
    monkeypatch.setattr(study_module, "provenance", lambda: {"package": "older"})
    for path in (tmp_path / "cells").glob("*.json"):
        path.write_text(path.read_text().replace(package_sha256(), "older"))
    toy(stale="accept").run(["recipes"], progress=False)
    assert len(log(tmp_path)) == 1
    toy(stale="recompute").run(["recipes"], progress=False)
    assert len(log(tmp_path)) == 2


def _work(root, seconds, names):
    study_module.suite_sha256 = lambda suite: "suite"
    study = ToyStudy("quick", store=root)
    study.seconds = seconds
    study.run(names, progress=False)


def test_two_processes_divide_the_cells_and_a_killed_one_loses_only_its_own(tmp_path):
    names = ["recipes", "stdlib", "alice", "parables", "uniform", "openwebtext"]
    workers = [multiprocessing.Process(target=_work, args=(tmp_path, 0.5, names)) for _ in range(2)]
    for worker in workers:
        worker.start()
    while len(log(tmp_path)) < 2:
        time.sleep(0.02)
    os.kill(workers[0].pid, signal.SIGKILL)
    workers[0].join()
    workers[1].join(60)
    assert workers[1].exitcode == 0
    assert log(tmp_path) == sorted(f"{name} 0" for name in names)  # each exactly once


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
    ],
)
def test_bad_settings_name_the_key(overrides, error, message):
    with pytest.raises(error, match=message):
        settings("quick", **overrides)


def test_unknown_profile_and_strategy(toy):
    with pytest.raises(UnknownName, match="quick"):
        settings("quik")
    with pytest.raises(UnknownName, match="uniform"):
        toy().run(["unifrom"], progress=False)
