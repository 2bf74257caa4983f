"""What the study runner adds to the work itself.

    python tests/benchmarks/scheduler.py simulate --cells 100000 --jobs 64
    python tests/benchmarks/scheduler.py overhead --executor local --jobs 2 --seconds 10 --cells 16
    python tests/benchmarks/scheduler.py study --profile quick --jobs 2

`simulate` runs a grid through the real planner, scheduler and store; only the workers are made up: their times are
sampled and pass on a clock of their own, some tasks fail and some workers are lost. `overhead` runs cells that sleep on
real workers, `study` all tasks of a profile in a fresh store. Both compare with a bare loop: the time that tasks took
inside the workers, shared out evenly. `--out` adds the runs to a record that the book shows.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import light
from toy import ToyStudy

from igsp.assets import whole_or_nothing
from igsp.study import engine
from igsp.study.study import Study
from igsp.study.workers import Executor, LocalPool, RayCluster

METHODS = ["sparsegpt", "wanda", "magnitude"]


class Quiet(ToyStudy):
    def note(self, text: str) -> None:
        """No log: it is the runner that is measured."""


def simulate(cells: int, slots: int, root: Path) -> dict[str, Any]:
    """One run with failures, the rerun that finishes it, and reading what they left."""
    draws = 50
    names = len(Quiet(store=root).strategies)
    steps = -(-cells // (draws * names * len(METHODS)))
    grid = [{"methods": METHODS, "sparsities": [round(i / (steps + 1), 6) for i in range(1, steps + 1)]}]
    runs: dict[str, Any] = {}
    for name, failing in (("some of them failing", 1e-3), ("run again", 0.0)):
        clock = Clock()
        study = Quiet(store=root, draws=draws, grid=grid)
        tasks = study.tasks()
        workers = light.Simulated(study, slots, failing, losing=1e-3)
        summary = light.OnPaper(study, tasks, workers, progress=False).run(lambda: study)  # noqa: B023
        count = sum(task.cell is not None for task in tasks)
        runs[f"{count:,} cells, {name}"] = clock.read() | {
            "tasks": summary.total, "computed": summary.computed, "failed": len(summary.failed),
            "cpu_milliseconds_per_cell": 1000 * clock.read()["cpu_seconds"] / count,
            "simulated_hours": workers.now / 3600, "busy": workers.busy / max(1e-9, workers.now * slots),
        }
    clock = Clock()
    table = study.store.frame()
    runs[f"{len(table):,} records into a table"] = clock.read()
    return runs


class Clock:
    """Seconds since it was made, on the wall and of this process."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float]:
        return {"seconds": time.perf_counter() - self.wall, "cpu_seconds": time.process_time() - self.cpu}


def measure(name: str, study: Any, workers: Executor, make: Callable[[], Any]) -> dict[str, Any]:
    """A run, and the same tasks in a bare loop; the start of the workers is left out of both."""
    summary = engine.run(study, study.tasks(), workers, make)
    bare = sum(record.seconds for record in study.store.records()) / summary.workers
    return {
        f"{name}, runner": {"seconds": bare / summary.busy, "busy": summary.busy, "overhead": 1 / summary.busy - 1,
                            "tasks": summary.computed, "failed": len(summary.failed)},
        f"{name}, bare loop": {"seconds": bare},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["simulate", "overhead", "study"])
    parser.add_argument("--cells", type=int, default=16)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--profile", default="quick")
    parser.add_argument("--executor", choices=["local", "ray"], default="local")
    parser.add_argument("--out", type=Path, help="record to add to, book/results/benchmarks/scheduler.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.what == "simulate":
            runs = simulate(options.cells, options.jobs, Path(folder))
        else:
            name = f"{options.jobs} workers ({options.executor}), "
            if options.what == "overhead":
                cells = tuple(f"cell-{i}" for i in range(options.cells))
                make: Any = light.maker(folder, seconds=options.seconds, names=cells)
                name += f"{options.cells} cells of {options.seconds:g} s"
            else:
                make = functools.partial(Study, options.profile, folder)
                name += f"profile {options.profile}"
            workers = RayCluster(None, options.jobs) if options.executor == "ray" else LocalPool(options.jobs, 1)
            runs = measure(name, make(), workers, make)
    print(json.dumps(runs, indent=1))
    if options.out:
        record = json.loads(options.out.read_text()) if options.out.exists() else {"contenders": {}}
        record |= {"benchmark": "scheduler", "machine": {"cores": os.cpu_count(), "python": platform.python_version()}}
        record["contenders"] |= runs
        with whole_or_nothing(options.out) as temporary:
            temporary.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
