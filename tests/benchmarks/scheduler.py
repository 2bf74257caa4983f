"""What the study runner adds to the work itself.

    python tests/benchmarks/scheduler.py simulate --cells 100000
    python tests/benchmarks/scheduler.py overhead --executor local --jobs 2 --seconds 5 --cells 16

`simulate` runs a grid through the real planner, scheduler and store; only the workers are made up: their times are
sampled and pass on a clock of their own, some tasks fail and some workers are lost. `overhead` runs cells that sleep on
real workers and compares with the sum of their sleeps.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import light
from toy import ToyStudy

from igsp import executors
from igsp.executors import Done, Failed, LocalPool, Lost, Ready

METHODS = ["sparsegpt", "wanda", "magnitude"]


class Simulated:
    """An executor whose workers exist on paper: log-normal times by stage, rare failures and losses."""

    def __init__(self, study: ToyStudy, slots: int, failing: float, losing: float, seed: int = 0) -> None:
        self.study, self.slots, self.failing, self.losing = study, slots, failing, losing
        self.random, self.now, self.queue, self.count, self.busy = random.Random(seed), 0.0, [], 0, 0.0

    def _later(self, seconds: float, slot: int, message: Any) -> None:
        self.count += 1
        heapq.heappush(self.queue, (self.now + seconds, self.count, slot, message))

    def start(self, make: Callable[[], Any]) -> None:
        for slot in range(self.slots):
            self._later(self.random.uniform(10, 30), slot, Ready(executors.about(self.study)))

    def submit(self, slot: int, task: Any, spec: dict[str, Any], sets: Any) -> None:
        seconds = self.random.lognormvariate(6 if task.cell else 3, 0.5)  # median 400 s a cell, 20 s anything else
        self.busy += seconds
        luck = self.random.random()
        if luck < self.losing:
            self._later(seconds / 2, slot, Lost("was lost"))
            self._later(seconds / 2 + 30, slot, Ready(executors.about(self.study)))
        elif luck < self.losing + self.failing:
            self._later(seconds, slot, Failed("sampled failure"))
        else:
            record, product = self.study.perform(task, spec, sets)
            self._later(seconds, slot, Done(record, product))

    def events(self, timeout: float) -> list[tuple[int, Any]]:
        if not self.queue:
            return []
        self.now, _, slot, message = heapq.heappop(self.queue)
        return [(slot, message)]

    def restart(self, slot: int) -> None:
        self._later(30, slot, Ready(executors.about(self.study)))

    def stop(self) -> None:
        self.queue = []


class Quiet(ToyStudy):
    def note(self, text: str) -> None:
        """No log: it is the runner that is measured."""


def simulate(cells: int, slots: int, root: Path) -> dict[str, Any]:
    """One run with failures, and the rerun that finishes it."""
    draws = 50
    names = len(Quiet(store=root).strategies)
    steps = -(-cells // (draws * names * len(METHODS)))
    grid = [{"methods": METHODS, "sparsities": [round(i / (steps + 1), 6) for i in range(1, steps + 1)]}]
    result: dict[str, Any] = {}
    for name, failing in (("first", 1e-3), ("rerun", 0.0)):
        study = Quiet(store=root, draws=draws, grid=grid)
        begun = time.perf_counter()
        tasks = study.tasks()
        workers = Simulated(study, slots, failing, losing=1e-3)
        scheduler = executors.Scheduler(study, tasks, workers, progress=name == "first")
        planned = time.perf_counter()
        summary = scheduler.run(lambda: study)  # noqa: B023
        ended = time.perf_counter()
        count = sum(task.cell is not None for task in tasks)
        result[name] = {
            "cells": count, "tasks": summary.total, "computed": summary.computed, "failed": len(summary.failed),
            "planning_seconds": planned - begun, "running_seconds": ended - planned,
            "milliseconds_per_cell": 1000 * (ended - begun) / count, "workers": slots,
            "simulated_hours": workers.now / 3600, "busy": workers.busy / max(1e-9, workers.now * slots),
        }
    begun = time.perf_counter()
    frame = study.store.frame()
    result["frame"] = {"records": len(frame), "seconds": time.perf_counter() - begun}
    return result


def overhead(executor: str, jobs: int, seconds: float, cells: int, root: Path) -> dict[str, Any]:
    """Sleeping cells on real workers; the start of the workers is told apart."""
    names = tuple(f"cell-{i}" for i in range(cells))
    make = light.maker(root, seconds=seconds, names=names)
    study = make()
    tasks = study.tasks()
    workers: executors.Executor
    if executor == "ray":
        from igsp.cluster import RayCluster

        workers = RayCluster(None, jobs)
    else:
        workers = LocalPool(jobs, 1)
    begun = time.perf_counter()
    scheduler = executors.Scheduler(study, tasks, workers, progress=False)
    marks: list[float] = []
    keep, assign = scheduler._keep, workers.submit
    workers.submit = lambda *a: (marks.append(time.perf_counter()), assign(*a))[1]  # type: ignore[method-assign]
    scheduler._keep = lambda *a: (keep(*a), marks.append(time.perf_counter()))[0]  # type: ignore[method-assign]
    scheduler.run(make)
    wall, work = marks[-1] - marks[0], seconds * cells / jobs
    return {
        "executor": executor, "workers": jobs, "cells": cells, "seconds_per_cell": seconds,
        "seconds": wall, "bare_seconds": work, "overhead": wall / work - 1, "start_seconds": marks[0] - begun,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["simulate", "overhead"])
    parser.add_argument("--cells", type=int, default=16)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--executor", choices=["local", "ray"], default="local")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.what == "simulate":
            result = simulate(options.cells, options.jobs, Path(folder))
        else:
            result = overhead(options.executor, options.jobs, options.seconds, options.cells, Path(folder))
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
