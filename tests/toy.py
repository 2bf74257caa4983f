"""A study without a model: cells take as long as they are told to, and write a line to a log, one per computation."""

from __future__ import annotations

import functools
import os
import signal
import time
from pathlib import Path

from igsp.scoring.evaluation import Scores, TaskScore
from igsp.study.records import Store
from igsp.study.study import Study
from igsp.study.texts import Texts


def toy_scores(factor: float) -> Scores:
    tasks = tuple(
        TaskScore(
            f"text_{d}", d, "bits_per_byte", factor, 4, 0.1, None, False, tuple((factor * b, 1.0) for b in (1, 2, 3, 4))
        )
        for d in ("general", "commonsense", "code", "math")
    )
    return Scores("toy", "toy", tasks)


class ToySet:
    """Stands in for a calibration set."""

    def __init__(self, name, draw):
        self.sha256 = f"{name}-{draw}"
        self.windows = ()
        self.spec = {"kind": "toy"}


class ToyPool:
    n = 8


class ToyTexts(Texts):
    numbers = {"model": "toy", "device": "cpu", "dtype": "float32"}  # noqa: RUF012

    def _set(self, strategy, draw):
        if strategy.kind == "selection":
            self.pool(draw)
        return ToySet(strategy.name, draw)

    def _pool(self, draw):
        return ToyPool()


class ToyStudy(Study):
    """`behave` maps a strategy to what its cell does besides: a number of seconds, `fail`, `die` or `die once`."""

    _suite = "suite"

    def __init__(self, profile="quick", store=None, seconds=0.0, behave=None, texts=ToyTexts, **overrides):
        super().__init__(profile, store, **overrides)
        self.seconds, self.behave, self.texts = seconds, behave or {}, texts(self.settings)

    def _score_dense(self):
        return {"scores": toy_scores(1.0).to_dict()}

    def _information(self, calibration):
        return {"metric": float(len(calibration.sha256))}

    def note(self, text):
        self.store.root.mkdir(parents=True, exist_ok=True)
        with open(self.store.root / "log", "a", encoding="utf8") as log:
            log.write(text + "\n")

    def _compute(self, cell, calibration):
        how = self.behave.get(cell.strategy, self.seconds)
        if how and isinstance(how, (int, float)):
            time.sleep(how)
        if how == "fail":
            raise RuntimeError("a bad cell")
        if how == "die" or (how == "die once" and not (self.store.root / "died").exists()):
            (self.store.root / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        self.note(f"{cell.strategy} {cell.draw} {cell.method} {cell.amount}")
        value = 1 + len(cell.strategy) / 7 + cell.draw / 3 + cell.sparsity
        return {"scores": toy_scores(value).to_dict(), "seconds": {"prune": 0.0}}


def maker(store, **options):
    """What makes the study anew in a worker."""
    return functools.partial(ToyStudy, store=str(store), **options)


def log(root):
    """Lines of the log, sorted: one per cell that was computed."""
    path = Path(root) / "log"
    return sorted(path.read_text().splitlines()) if path.exists() else []


def numbers(root):
    """Metrics of every record by name: what has to be equal bit for bit."""
    return {record.name: record.metrics for record in Store(root).records()}
