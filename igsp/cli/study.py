"""Commands about a study: its grid of cells, and what two stores of records differ in."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from typer import Argument, Option

from igsp.cli import common as c
from igsp.errors import UsageError

app = typer.Typer()
group = typer.Typer(help="the grid of strategies, resumable")
app.add_typer(group, name="study")

Store = Annotated[str | None, Option(help="folder or address of the records (default book/results/PROFILE)")]
Parameters = Annotated[list[str] | None, Option(
    "-p", "--parameter", metavar="NAME VALUE", show_default=False,
    help="set a parameter, as -p sparsity 0.5; may be repeated")]


@dataclass(kw_only=True)
class Cells:
    """Which study, and which of its cells."""

    profile: c.Profile = "quick"
    store: Store = None
    only: Annotated[list[str] | None, Option(
        metavar="KEY=VALUE,...", show_default=False,
        help="cells that meet all conditions (strategy, source, kind, draw, method, sparsity); repeat it for more "
             "cells")] = None
    methods: Annotated[str | None, Option(help="pruning methods to keep, as a,b")] = None
    parameter: Parameters = None

    def find(self) -> tuple[Any, Any, Any]:
        """The study, the tasks that the filters let through, and what makes the study anew on a worker."""
        from igsp.study.study import Study

        store = self.store if self.store is None or "://" in self.store else str(Path(self.store).resolve())
        make = partial(Study, self.profile, store, **parameters(self.parameter))
        study = make()
        return study, study.tasks(study.select(self.only or (), self.methods.split(",") if self.methods else ())), make


def parameters(words: list[str] | None) -> dict[str, Any]:
    """`["n=4"]` as `{"n": 4}`; values are YAML."""
    found = {}
    for word in words or ():
        name, equals, value = word.partition("=")
        if not equals:
            raise UsageError(f"-p takes a name and a value, as -p sparsity 0.5, got '{word}'")
        try:
            found[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UsageError(f"-p {name}: '{value}' is no YAML: {error}") from None
    return found


@c.command(group, "igsp study plan --profile small", name="plan")
def plan(
    cells: Cells,
    times: Annotated[str | None, Option(
        metavar="STORE", help="plan with the times recorded there, where the study has none of its own")] = None,
    json_wanted: c.Json = False,
) -> None:
    """how many tasks there are, what is done, and how long the rest will take"""
    from igsp.study.progress import plan

    study, tasks, _ = cells.find()
    rows = plan(study, tasks, _filled(times).records() if times else ())
    c.table(rows, json_wanted)
    if json_wanted:
        return
    missing = sum(row["count"] - row["done"] for row in rows)
    hours = sum(row["hours"] or 0.0 for row in rows)
    unknown = [row["task"] for row in rows if row["hours"] is None]
    print(f"tasks to do: {missing}{f', {hours:.2f} hours on one worker' if hours else ''}")
    if unknown:
        print(f"no time is on record of: {', '.join(unknown)} (--times STORE takes those of another study)")


@c.command(group, "igsp study run --profile small --only kind=mix --jobs 2",
         "igsp study run --profile small --executor ray --address auto")
def run(
    cells: Cells, executor: Annotated[str, Option(help="local or ray")] = "local",
    jobs: Annotated[int | None, Option(min=1, help="workers (default one per GPU, or per core without one)")] = None,
    threads: Annotated[int | None, Option(min=1, help="cores per worker (default cores / jobs; ray: 1)")] = None,
    address: Annotated[str | None, Option(help="of a Ray cluster to join, as auto (default: start one here)")] = None,
    *, how: c.How,
) -> int | None:
    """compute the missing tasks of a profile on many workers"""
    from igsp.study import workers
    from igsp.study.engine import run as compute

    c.one_of("executor", executor, ("local", "ray"))
    if how.dry_run:
        return plan(cells, None, how.json)
    study, tasks, make = cells.find()
    cuda = study.numbers["device"] == "cuda"
    pool: workers.Executor
    if executor == "ray":
        pool = workers.RayCluster(address, jobs, threads or 1, gpus=int(cuda))
    else:
        gpus = workers.visible_gpus() if cuda and ":" not in study.settings.device else []
        jobs = jobs or (1 if cuda and not gpus else None)  # one GPU by number, as cuda:1: not for many workers
        pool = workers.LocalPool(jobs, threads, gpus)
    summary = compute(study, tasks, pool, make, progress=not how.quiet)
    if how.json:
        print(json.dumps(asdict(summary), indent=1))
    else:
        by = f" (workers: {summary.workers}, {100 * summary.busy:.0f} % busy)" if summary.computed else ""
        print(f"{summary.done} of {summary.total} tasks on record, {summary.computed} of them computed now{by}")
        for name, reason in summary.failed.items():
            print(f"failed: {name}: {reason}")
        if summary.blocked:
            print(f"{summary.blocked} tasks wait for a failed one")
    return 1 if summary.failed else 0


@c.command(group, "igsp study status --profile small --json")
def status(cells: Cells, json_wanted: c.Json = False) -> None:
    """what is done, running, left, and why tasks failed"""
    from igsp.study.progress import survey

    study, tasks, _ = cells.find()
    rows = survey(study, tasks)
    if json_wanted:
        print(json.dumps(rows, indent=1))
        return
    counts: dict[str, Counter[str]] = {}
    for row in rows:
        counts.setdefault(row["strategy"] or row["stage"], Counter())[row["state"]] += 1
    states = ("done", "running", "failed", "left")
    c.table([{"strategy": name, "tasks": n.total(), **{s: n[s] for s in states}} for name, n in counts.items()], False)
    for row in rows:
        if row["state"] == "running":
            print(f"running: {row['task']}")
        elif row["reason"]:
            print(f"failed: {row['task']}: {row['reason']}")


@c.command(group, "igsp study verify --profile small --sample 3")
def verify(
    profile: c.Profile = "small", store: Store = None,
    sample: Annotated[int, Option(min=1, help="cells of each pruning method")] = 3,
    seed: Annotated[int, Option(help="which cells")] = 0, json_wanted: c.Json = False,
) -> None:
    """compute a random sample of cells that other code made again, and compare"""
    from igsp.study.recorded import verify

    c.table(verify(profile, store, sample, seed).to_dict("records"), json_wanted)


@c.command(app, "igsp diff before book/results/quick")
def diff(
    a: Annotated[str, Argument(help="folder or address")], b: Annotated[str, Argument(help="folder or address")],
    tolerance: Annotated[float, Option(help="published values: absolute difference that counts as none")] = 0.05,
    relative: Annotated[float, Option(
        help="numbers in records: the same as a share; 0 asks for equal bits")] = 1e-6,
    json_wanted: c.Json = False,
) -> int:
    """records and published values that differ between two result stores"""
    from igsp.study.records import differences

    for name, value in {"tolerance": tolerance, "relative": relative}.items():
        if not (math.isfinite(value) and value >= 0):
            raise UsageError(f"--{name} must be a number of at least 0, got {value}")
    one, other = _filled(a), _filled(b)
    rows = differences(one, other, tolerance, relative)
    c.table(rows, json_wanted)
    if not rows and not json_wanted:
        print(f"no difference in {len(one.values())} published values and {sum(1 for _ in one.records())} records")
    return 1 if rows else 0


def _filled(name: str) -> Any:
    """A store that holds something."""
    from igsp.study.records import Store

    store = Store(name)
    if not store.values() and not any(store.records()):
        raise UsageError(f"'{name}' holds neither records (cells/*.json) nor published values (values/*.json)")
    return store
