"""A study: which strategies to prune with, computed once per cell and kept as records.

A *strategy* names a way to choose calibration text (a source, a mixture, a protocol). A *cell* is one
strategy and one draw: sample, prune, score. What is on record is read, so every notebook that asks for a cell
shares it, and several processes that ask at the same time divide the missing ones among themselves.

What cells share (calibration sets, the pool of candidates, the dense scores, the metrics of a set) are *tasks* of
their own beside them, each with its record; `igsp.study.engine` runs the tasks of a study on many workers.
"""

from __future__ import annotations

import copy
import functools
import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from igsp import pruning, scoring, text, writing
from igsp.errors import IgspError
from igsp.models import LanguageModel
from igsp.provenance import Stopwatch, now, provenance, repository_root
from igsp.pruning.driver import prune
from igsp.pruning.masks import mask_sample
from igsp.scoring.evaluation import Scores, evaluate, heldout_texts, suite_sha256
from igsp.scoring.retention import Retention, retention
from igsp.scoring.suites import tasks_for
from igsp.scoring.trivial import baselines
from igsp.study import grid
from igsp.study.grid import Cell, Strategy, Task, cells, strategies
from igsp.study.records import Record, Store, name_of
from igsp.study.settings import PROTOCOLS, Settings, profiles, settings
from igsp.study.texts import Texts
from igsp.text import metrics
from igsp.text.metrics import reference_counts
from igsp.text.windows import CalibrationSet
from igsp.writing import CandidatePool, Selection

__all__ = ["PROTOCOLS", "Cell", "Result", "Settings", "Strategy", "Study", "Task", "against_trivial", "cells", "frame",
           "profiles", "score_table", "settings", "store_of", "strategies"]

_IN_SPEC = {"calibration", "device", "dtype", "fingerprint", "method", "model", "order", "pattern", "sparsity"}


@dataclass(frozen=True)
class Result:
    """A finished cell."""

    cell: Cell
    scores: Scores
    record: Record

    @property
    def strategy(self) -> str:
        return self.cell.strategy

    @property
    def draw(self) -> int:
        return self.cell.draw


def store_of(profile: str, store: str | Path | None = None, suffix: str = "") -> Store:
    """The store of a profile: by default `book/results/<profile>/` of the checkout."""
    return Store(store or repository_root() / "book" / "results" / f"{Path(profile).stem}{suffix}")


class Study:
    """The cells of one profile with its overrides, computed on demand.

    A record has a name (`cells/c4-0-sparsegpt-0.6.json`) and says what decided its numbers: content (hashes of set,
    suite and model), settings, and the `VERSION` of the stages it went through. It counts as long as these agree with
    what is asked, whatever code, packages or machine made it. Where a version was raised, it is computed again; where
    a setting differs, that is an error which says what is there and what was asked.

    Args:
        profile: `quick`, ..., or a YAML file.
        store: where records are kept, a folder or an address; default `book/results/<profile>/` of the checkout, or
            a folder of its own beside it where overrides make other records (`quick+n=8`).
        overrides: any field of `Settings`; None means the profile's value.
    """

    def __init__(self, profile: str = "quick", store: str | Path | None = None, **overrides: Any) -> None:
        self.settings = settings(profile, **overrides)
        suffix = self.settings.leaves(settings(profile)) if overrides and store is None else ""
        self.store = store_of(profile, store, suffix)
        self.texts = Texts(self.settings)

    @property
    def lm(self) -> LanguageModel:
        """The dense model, loaded once."""
        return self.texts.lm

    @property
    def numbers(self) -> dict[str, str]:
        """Model, device and number format: what all numbers of this study share."""
        return self.texts.numbers

    @property
    def strategies(self) -> dict[str, Strategy]:
        """Every strategy of the profile by name."""
        return self.texts.strategies

    @functools.cached_property
    def _suite(self) -> str:
        return suite_sha256(self.settings.suite)

    def cells(self) -> list[Cell]:
        """The grid of the profile."""
        return cells(self.settings)

    def select(self, only: Sequence[str] = (), methods: Sequence[str] = ()) -> list[Cell]:
        """Cells of the grid that a filter lets through; see `grid.select`."""
        return grid.select(self.settings, only, methods)

    def tasks(self, cells: Sequence[Cell] | None = None) -> dict[Task, tuple[Task, ...]]:
        """The tasks behind cells (default: the grid); see `grid.tasks`."""
        return grid.tasks(self.settings, self.cells() if cells is None else cells)

    def cell(self, name: str, draw: int = 0) -> Cell:
        """The cell of a strategy and draw at the profile's method and sparsity or pattern."""
        return Cell(name, draw, self.settings.method, self.settings.sparsity, self.settings.pattern)

    def calibration(self, name: str, draw: int = 0) -> CalibrationSet:
        """The calibration set of a strategy and draw. What a model wrote is kept in the cache.

        Raises:
            IgspError: it is not the set that the records of this study were made with.
        """
        recorded = self.store.get(self.specification(Task("calibration", name, draw)))
        return self._verified(name, draw, recorded.metrics["sha256"] if recorded else None)

    def _verified(self, name: str, draw: int, sha256: str | None) -> CalibrationSet:
        made = self.texts.calibration(name, draw)
        if sha256 not in (None, made.sha256):
            raise IgspError(
                f"the calibration set '{name}', draw {draw}, cannot be made again as it was recorded (sha256 "
                f"{str(sha256)[:12]}, now {made.sha256[:12]}): text or code has changed. Way out: give another store, "
                "or restore what made it; mixing both would compare unlike cells"
            )
        return made

    def pool(self, draw: int = 0) -> CandidatePool:
        """The candidates that the model wrote for a draw, screened."""
        return self.texts.pool(draw)

    def selection(self, name: str, draw: int = 0) -> Selection:
        """What a selection rule took from the pool, with its trace where it has one."""
        return self.texts.selection(name, draw)

    def specification(self, task: Task) -> dict[str, Any]:
        """What decides the numbers of a task. While its set is not on record, `calibration` is `...`: any."""
        s, stage = self.settings, task.stage
        size = {"draw": task.draw, "seed": s.seed, "n": s.n, "seqlen": s.seqlen}
        scored = {"suite": self._suite, **({"run_code": True} if s.run_code else {}), **self.numbers}
        if stage == "dense":
            return {"stage": stage, **scored, "versions": {"scoring": scoring.VERSION}}
        wrote = {"text": text.VERSION, "writing": writing.VERSION}
        if stage == "pool":
            return {"stage": stage, "pool": s.pool, **size, **self.numbers, "versions": wrote}
        strategy = self.texts.strategy(task.strategy)
        written = strategy.kind in ("protocol", "selection")
        versions = wrote if written else {"text": text.VERSION}
        made: dict[str, Any] = {"stage": stage, "strategy": strategy.name, "detail": strategy.detail, **size}
        made |= {"pool": s.pool} if strategy.kind == "selection" else {}
        if stage == "calibration":
            made |= self.numbers if written else {"suite": self._suite, "model": self.numbers["model"]}
            return made | {"kind": strategy.kind, "versions": versions}
        recorded = self.store.get(self.specification(Task("calibration", task.strategy, task.draw)))
        made |= {"calibration": recorded.metrics["sha256"] if recorded else ..., **scored}
        if task.cell is None:
            return made | {"versions": versions | {"metrics": metrics.VERSION}}
        amount = {"method": task.cell.method, "sparsity": task.cell.sparsity, "pattern": task.cell.pattern}
        versions |= {"pruning": pruning.VERSION, "scoring": scoring.VERSION}
        return made | amount | {"order": s.order, "versions": versions}

    def done(self, task: Task) -> bool:
        """Whether a task is on record, so that nothing has to be computed for it."""
        return self.store.get(self.specification(task)) is not None

    def compute(self, task: Task, spec: Mapping[str, Any]) -> dict[str, Any]:
        """Metrics of a task."""
        if task.stage == "dense":
            return self._score_dense()
        if task.stage == "pool":
            return {"windows": self.texts.pool(task.draw).n}
        made = self._verified(task.strategy, task.draw, spec.get("calibration"))
        if task.cell:
            return self._compute(task.cell, made)
        if task.stage == "metrics":
            return {"information": self._information(made)}
        return {"sha256": made.sha256, "scope": [len(w.documents) for w in made.windows], "calibration": made.spec}

    def perform(self, task: Task, spec: dict[str, Any], sets: Collection[Any] = ()) -> tuple[Record, Any]:
        """Computes a task on a worker: its record (not stored), and the set or pool that others need of it.

        Args:
            sets: calibration sets and pools that other workers made, as `(name or "", draw, set or pool)`.
        """
        self.texts.take(sets)
        record = _record(spec, functools.partial(self.compute, task, spec))
        if task.stage == "calibration":
            return record, self.texts.calibration(task.strategy, task.draw)
        return record, self.texts.pool(task.draw) if task.stage == "pool" else None

    def record(self, task: Task, wait: bool = True) -> Record | None:
        """The record of a task, computed if it is missing; None if another process is at it and `wait` is off."""
        spec = self.specification(task)
        if spec.get("calibration") is ... and self.store.get(spec) is None:
            self.record(Task("calibration", task.strategy, task.draw))
            spec = self.specification(task)
        return self._once(spec, functools.partial(self.compute, task, spec), wait)

    def _once(self, spec: dict[str, Any], compute: Callable[[], dict[str, Any]], wait: bool = True) -> Record | None:
        record = self.store.get(spec)
        if record is None:
            with self.store.claim(name_of(spec), wait) as mine:
                if not mine:
                    return None
                if (record := self.store.get(spec)) is None:
                    self.store.put(_record(spec, compute))
                    record = self.store.get(spec)
        return record

    def dense(self) -> Scores:
        """Scores of the dense model on the suite."""
        return _scores(self.record(Task("dense")))

    def _score_dense(self) -> dict[str, Any]:
        watch = Stopwatch()
        with watch("evaluate"):
            scores = evaluate(self.lm, self.settings.suite, progress=False, run_code=self.settings.run_code)
        return {"scores": scores.to_dict(), "seconds": watch.seconds}

    def _compute(self, cell: Cell, calibration: CalibrationSet) -> dict[str, Any]:
        s, watch = self.settings, Stopwatch()
        amount: dict[str, Any] = {"pattern": cell.pattern} if cell.pattern else {"sparsity": cell.sparsity}
        pruned = copy.copy(self.lm)
        pruned.model = copy.deepcopy(self.lm.model)
        with watch("prune"):
            report = prune(pruned, calibration, method=cell.method, order=s.order, progress=False, **amount)
        with watch("evaluate"):
            asked = tasks_for(s.suite, cell.strategy)
            scores = evaluate(pruned, s.suite, asked, progress=False, run_code=s.run_code)
        told = {key: value for key, value in report.totals().items() if key not in _IN_SPEC}
        return {"scores": scores.to_dict(), "prune": told, "mask": mask_sample(report), "seconds": watch.seconds}

    def trivial(self) -> pd.DataFrame:
        """Scores of solvers that know nothing on the suite's choices, beside the dense model's (`baselines`).

        `z` is the dense model's lead over the best of them in its standard errors.
        """
        s = self.settings
        versions = {"text": text.VERSION, "scoring": scoring.VERSION}
        spec = {"stage": "trivial", "suite": self._suite, "sources": list(s.sources), "versions": versions}
        record = self._once(spec, lambda: {"rows": baselines(s.suite, s.sources)})
        return against_trivial(record.metrics["rows"], self.dense())  # type: ignore[union-attr]

    def writing(self, draw: int = 0, tokens: int = 32) -> list[dict[str, Any]]:
        """Samples of what the model writes, recorded: `Texts.samples`."""
        about = {"stage": "writing", "protocols": self.settings.protocols, "tokens": tokens}
        spec = self.specification(Task("pool", "", draw)) | about
        record = self._once(spec, functools.partial(self.texts.samples, draw, tokens))
        return list(record.metrics["samples"])  # type: ignore[union-attr]

    def run(self, names: Iterable[str], draws: Sequence[int] | None = None, progress: bool = True) -> list[Result]:
        """Results of strategies at the profile's method and sparsity, in the order asked for."""
        return self.complete([self.cell(n, d) for n in names for d in draws or range(self.settings.draws)], progress)

    def complete(self, wanted: Sequence[Cell], progress: bool = True) -> list[Result]:
        """Results of cells, in the order asked for; missing ones are computed and recorded.

        A cell that another process is computing is left to it and read when it is there.
        """
        done: dict[Cell, Record] = {}
        with tqdm(total=len(wanted), desc="cells", disable=not progress or _silent()) as bar:
            while len(done) < len(set(wanted)):
                before = len(done)
                for cell in wanted:
                    if cell in done:
                        continue
                    bar.set_postfix_str(f"{cell.strategy} {cell.draw}")
                    record = self.record(Task("cell", cell.strategy, cell.draw, cell), wait=False)
                    if record is not None:
                        done[cell] = record
                        bar.update()
                if len(done) == before:
                    time.sleep(1.0)
        return [Result(cell, _scores(done[cell]), done[cell]) for cell in wanted]

    def information(self, names: Iterable[str], draw: int = 0, progress: bool = True) -> pd.DataFrame:
        """OIT metrics, one row per strategy."""
        names = tqdm(list(names), desc="metrics", disable=not progress or _silent())
        found = {name: self.record(Task("metrics", name, draw)) for name in names}
        return pd.DataFrame({name: record.metrics["information"] for name, record in found.items() if record}).T

    def _information(self, calibration: CalibrationSet) -> dict[str, float]:
        return metrics.profile(calibration, self.lm, self._heldout)

    @functools.cached_property
    def _heldout(self) -> Mapping[str, Any]:
        return reference_counts(heldout_texts(self.settings.suite), self.lm)

    def retentions(self, results: Sequence[Result], measure: str | None = None) -> dict[str, Retention]:
        """Retention per strategy, over its draws; by the profile's measure unless another is asked for."""
        dense = self.dense()
        grouped: dict[str, list[Scores]] = {}
        for result in results:
            grouped.setdefault(result.strategy, []).append(result.scores)
        return {name: retention(scores, dense, measure or self.settings.measure) for name, scores in grouped.items()}


def _record(spec: dict[str, Any], compute: Callable[[], dict[str, Any]]) -> Record:
    started, clock = now(), time.perf_counter()
    found = compute()
    seconds = round(time.perf_counter() - clock, 3)
    return Record(spec, found, {**provenance(), "started": started, "finished": now(), "seconds": seconds})


def _scores(record: Record | None) -> Scores:
    assert record is not None
    return Scores.from_dict(record.metrics["scores"])


def _silent() -> bool:
    """`TQDM_DISABLE=1` silences bars: the runner sets it, so that executed notebooks hold results alone."""
    return os.environ.get("TQDM_DISABLE", "") not in ("", "0")


def against_trivial(rows: Sequence[Mapping[str, Any]], dense: Scores) -> pd.DataFrame:
    """Rows of `baselines` with the dense model's score and its lead over the best solver in standard errors."""
    table = pd.DataFrame(rows)
    table["dense"] = [dense[task].value for task in table.task]
    table["z"] = [(dense[t].value - best) / dense[t].stderr for t, best in zip(table.task, table.best, strict=True)]
    return table[["task", "n", "chance", "longest", "overlap", "trigram", "dense", "z"]]


def score_table(scores: Scores) -> pd.DataFrame:
    """Scores as a table, one row per task."""
    names = {"task": "task", "dimension": "dimension", "metric": "metric", "value": "value", "stderr": "standard error",
             "n": "items", "chance": "chance"}
    return pd.DataFrame([{title: getattr(task, name) for name, title in names.items()} for task in scores])


def frame(retentions: Mapping[str, Retention]) -> pd.DataFrame:
    """Point values: one row per strategy, columns the dimensions, `total` and `minimum`."""
    return pd.DataFrame(
        {
            name: {
                **{d: e.value for d, e in kept.dimensions.items()},
                "total": kept.total.value,
                "minimum": kept.minimum.value,
            }
            for name, kept in retentions.items()
        }
    ).T
