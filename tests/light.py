"""A stand-in for a study that imports neither torch nor transformers: processes that run it start at once.

It has what `igsp.study.engine` asks of a study. A cell takes as long as it is told to and writes a line to a log.
"""

from __future__ import annotations

import functools
import heapq
import os
import random
import signal
import time
from collections import Counter
from concurrent.futures import BrokenExecutor, Future
from dataclasses import dataclass
from pathlib import Path

from igsp.study import engine, workers
from igsp.study.records import Record, Store, name_of

NAMES = ("recipes", "stdlib", "uniform", "igsp")


@dataclass(frozen=True)
class LightTask:
    """Stages as in a study: the cell of a strategy waits for its calibration set."""

    stage: str
    strategy: str = ""
    draw: int = 0
    cell: None = None

    @property
    def kind(self):
        return self.stage

    def __str__(self):
        return f"{self.stage} {self.strategy}".strip()


class LightStudy:
    """`behave` maps a strategy to what its cell does besides: a number of seconds, `fail`, `die` or `die once`."""

    def __init__(self, store, seconds=0.0, behave=None, numbers=None, names=NAMES):
        self.store, self.seconds, self.behave, self.names = Store(store), seconds, behave or {}, names
        self.numbers = numbers or {"model": "toy", "device": "cpu"}

    def tasks(self):
        found = {LightTask("dense"): ()}
        for name in self.names:
            found[LightTask("calibration", name)] = ()
            found[LightTask("cell", name)] = (LightTask("calibration", name),)
        return found

    def specification(self, task):
        return {"stage": task.stage, "strategy": task.strategy, "model": "toy"}

    def done(self, task):
        return self.store.get(self.specification(task)) is not None

    def perform(self, task, spec, sets=()):
        begun = time.perf_counter()
        made = dict((name, made) for name, _, made in sets).get(task.strategy) or [len(task.strategy)] * 3
        if task.stage == "cell":
            self._compute(task.strategy)
        metrics = {"value": sum(made) / 7, "seconds": {}}
        record = Record(spec, metrics, {"seconds": time.perf_counter() - begun})
        return record, made if task.stage == "calibration" else None

    def _compute(self, name):
        how = self.behave.get(name, self.seconds)
        time.sleep(how if isinstance(how, (int, float)) else 0)
        if how == "fail":
            raise RuntimeError("a bad cell")
        if how == "die" or (how == "die once" and not (self.store.root / "died").exists()):
            (self.store.root / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        with open(self.store.root / "log", "a", encoding="utf8") as log:
            log.write(name + "\n")


def maker(store, **options):
    """What makes the study anew in a worker."""
    return functools.partial(LightStudy, str(store), **options)


def log(root):
    """Strategies of the cells that were computed, sorted, one entry per computation."""
    path = Path(root) / "log"
    return sorted(path.read_text().split()) if path.exists() else []


def twice(root):
    """How many computations were repetitions."""
    counts = Counter(log(root))
    return sum(counts.values()) - len(counts)


def numbers(root):
    """Metrics of every record by name: what has to be equal bit for bit."""
    return {record.name: record.metrics for record in Store(root).records()}


def wait_for_cells(root, count, limit=120):
    end = time.monotonic() + limit
    while len(log(root)) < count:
        assert time.monotonic() < end, "nothing is computed"
        time.sleep(0.02)


class Inline:
    """An executor in this process; notes the tasks that it was given, and loses the worker at some of them."""

    def __init__(self, study, slots=1, lose=()):
        self.study, self.slots, self.lose, self.seen = study, slots, list(lose), []

    def submit(self, slot, call, *arguments):
        future = Future()
        if call is workers.begin:
            arguments = (lambda: self.study,)
        else:
            task, _, sets = arguments
            self.seen.append((str(task), [(name, draw) for name, draw, _ in sets]))
            if str(task) in self.lose:
                self.lose.remove(str(task))
                future.set_exception(BrokenExecutor())
                return future
        future.set_result(workers.answer(call, *arguments))
        return future

    def replace(self, slot):
        return "was lost"

    def stop(self):
        pass


class Simulated:
    """An executor whose workers exist on paper: log-normal times, rare failures and deaths, a clock of its own."""

    def __init__(self, study, slots, failing=0.0, losing=0.0, seed=0):
        self.study, self.slots, self.failing, self.losing = study, slots, failing, losing
        self.random, self.now, self.queue, self.busy, self.deaths = random.Random(seed), 0.0, [], 0.0, 0

    def _later(self, seconds, call, *arguments):
        future = Future()
        heapq.heappush(self.queue, (self.now + seconds, self.random.random(), future, call, *arguments))
        return future

    def submit(self, slot, call, *arguments):
        if call is workers.begin:
            return self._later(self.random.uniform(10, 30), lambda: (self.study.numbers, "", False))
        task, spec, _ = arguments
        seconds = self.random.lognormvariate(6 if task.stage == "cell" else 3, 0.5)  # median 400 s a cell, 20 s others
        self.busy += seconds
        luck = self.random.random()
        if luck < self.losing:
            self.deaths += 1
            return self._later(seconds / 2, self._die)
        if luck < self.losing + self.failing:
            return self._later(seconds, lambda: (None, "sampled failure", False))
        return self._later(seconds, lambda: (self.study.perform(task, spec), "", False))

    def _die(self):
        raise BrokenExecutor

    def advance(self):
        """The next thing happens."""
        if self.queue:
            self.now, _, future, call = heapq.heappop(self.queue)
            try:
                future.set_result(call())
            except BrokenExecutor as error:
                future.set_exception(error)

    def replace(self, slot):
        return "was lost"

    def stop(self):
        self.queue = []


class OnPaper(engine.Scheduler):
    """The scheduler, on the clock of simulated workers."""

    def _wait(self):
        self.executor.advance()
        super()._wait()


class Grid(LightStudy):
    """Many cells for each calibration set, and a store that answers one request in twenty with an error."""

    def __init__(self, root, cells, errors=0.05):
        super().__init__(root, names=tuple(f"set-{i}" for i in range(50)))
        self.cells, self.errors, self.random, self.begun = cells, errors, random.Random(1), Counter()
        for name in ("get", "put", "claim"):
            setattr(self.store, name, functools.partial(self._ask, getattr(self.store, name)))

    def _ask(self, request, *arguments):
        luck = self.random.random()
        if luck < self.errors / 2:
            raise OSError("no answer")
        answer = request(*arguments)
        if luck < self.errors and request.__name__ == "put":
            raise OSError("an answer that was lost")
        return answer

    def tasks(self):
        sets = {LightTask("calibration", name): () for name in self.names}
        return sets | {
            LightTask("cell", self.names[i % 50], i): (LightTask("calibration", self.names[i % 50]),)
            for i in range(self.cells)
        }

    def specification(self, task):
        return super().specification(task) | {"draw": task.draw}

    def perform(self, task, spec, sets=()):
        assert not Path(self.store.path(name_of(spec))).exists(), "computed though it was on record"
        self.begun[task] += 1
        return Record(spec, {"value": task.draw}, {"seconds": 0.0}), None


def finish(root, **options):
    """Runs what is missing, in this process."""
    study = LightStudy(str(root), **options)
    return engine.run(study, study.tasks(), Inline(study), maker(root), progress=False)


def run(root, jobs=2, **options):
    """Runs what is missing on local workers."""
    study = LightStudy(str(root), **options)
    return engine.run(study, study.tasks(), workers.LocalPool(jobs, 1), maker(root, **options), progress=False)


def dies():
    """A study that takes its worker along."""
    os.kill(os.getpid(), signal.SIGKILL)
