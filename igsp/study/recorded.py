"""What the committed records of a profile say: read from the store alone, without a model and without text.

A study computes what it lacks; a reader of the book has neither the data nor the hours. Here the records are taken as
they are, and whatever is missing stays missing.
"""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from igsp.errors import AssetError, UsageError
from igsp.provenance import provenance
from igsp.pruning.masks import overlap
from igsp.scoring.correlation import spearman_table
from igsp.scoring.evaluation import Scores
from igsp.scoring.retention import Luck, Retention, plain, pooled_luck, retention
from igsp.study.grid import Cell, cells, strategies
from igsp.study.records import AGAIN, VERIFIED, Record, Store
from igsp.study.settings import Settings, settings
from igsp.study.study import Result, Study, against_trivial, store_of
from igsp.text.catalogue import DIMENSIONS
from igsp.text.metrics import CORRELATED


@dataclass(frozen=True, eq=False)
class Reference:
    """Recorded results of one profile.

    Attributes:
        dense: scores of the dense model.
        results: every recorded cell of the profile's size (windows, tokens), by strategy and draw.
        information: OIT metrics, one row per (strategy, draw).
        trivial: trivial solvers beside the dense model (`Study.trivial`), None if not recorded.
        again: cells that `verify` computed again.
        writing: samples of what the model writes (`Study.writing`), None if not recorded.
        unigram: scores of a unigram model on the texts of the suite (`analysis.unigram`), None if not recorded.
    """

    settings: Settings
    dense: Scores
    results: tuple[Result, ...]
    information: pd.DataFrame
    trivial: pd.DataFrame | None = None
    again: tuple[Result, ...] = ()
    writing: pd.DataFrame | None = None
    unigram: Scores | None = None

    @property
    def methods(self) -> list[str]:
        """Pruning methods under which every source was scored, the profile's own first."""
        known = dict.fromkeys([self.settings.method, *sorted({r.cell.method for r in self.results})])
        return [m for m in known if self.complete_draws(m)]

    @functools.cache  # noqa: B019
    def complete_draws(self, method: str) -> list[int]:
        """Draws of which every source of the grid is recorded at the profile's sparsity: comparisons are balanced."""
        wanted = {cell.strategy for cell in cells(self.settings)} & set(self.settings.sources)
        known = {(r.draw, r.strategy) for r in self.results if self._at(r, method, self.settings.sparsity)}
        draws = sorted({draw for draw, _ in known})
        return [draw for draw in draws if all((draw, name) in known for name in wanted)]

    def _at(self, result: Result, method: str, sparsity: float) -> bool:
        """Whether a cell is of a method and sparsity; the profile's own sparsity is its pattern, if it has one."""
        pattern = self.settings.pattern if sparsity == self.settings.sparsity else None
        return (result.cell.method, result.cell.sparsity, result.cell.pattern) == (method, sparsity, pattern)

    def at(
        self, method: str | None = None, sparsity: float | None = None, names: Sequence[str] | None = None
    ) -> list[Result]:
        """Results at a method and sparsity (default: the profile's), of the strategies `names` (default: all).

        At the profile's sparsity, only of the draws that are complete.
        """
        method, own = method or self.settings.method, self.settings.sparsity
        sparsity = own if sparsity is None else sparsity
        return [
            r for r in self.results
            if self._at(r, method, sparsity) and (names is None or r.strategy in names)
            and (sparsity != own or r.draw in self.complete_draws(method))
        ]

    def draws(self, name: str, method: str | None = None, sparsity: float | None = None) -> list[Scores]:
        """Scores of one strategy, one per draw, in the order of the draws."""
        return [r.scores for r in self.at(method, sparsity, [name])]

    def retentions(
        self, measure: str = "likelihood", method: str | None = None, sparsity: float | None = None,
        names: Sequence[str] | None = None,
    ) -> dict[str, Retention]:
        """Retention per strategy over its draws; intervals take the spread between draws pooled over strategies."""
        found = dict.fromkeys(r.strategy for r in self.at(method, sparsity, names))
        return {
            name: retention(self.draws(name, method, sparsity), self.dense, measure, floor=self.unigram,
                            luck=self.luck(self.written(name), method, measure, sparsity))
            for name in found
        }

    @functools.cache  # noqa: B019
    def each(
        self, method: str | None = None, measure: str = "likelihood", sparsity: float | None = None
    ) -> pd.DataFrame:
        """Retention per (strategy, draw) at a setting: the dimensions, `total` and `minimum`."""
        rows = {
            (r.strategy, r.draw): plain(r.scores, self.dense, measure, floor=self.unigram)
            for r in self.at(method, sparsity)
        }
        return pd.DataFrame(rows).T.rename_axis(["source", "draw"])[[*DIMENSIONS, "total", "minimum"]]

    def by_draw(
        self, method: str | None = None, measure: str = "likelihood", names: tuple[str, ...] | None = None
    ) -> pd.DataFrame:
        """Retention per (source, draw), columns the dimensions and `total`; `names` takes other strategies instead."""
        known = self.each(method, measure).drop(columns="minimum")
        return known[known.index.get_level_values("source").isin(names or self.settings.sources)]

    def written(self, name: str) -> bool:
        """Whether a strategy's text is written by the model."""
        return strategies(self.settings)[name].kind in ("protocol", "selection")

    @functools.cache  # noqa: B019
    def luck(
        self, written: bool, method: str | None = None, measure: str = "likelihood", sparsity: float | None = None
    ) -> dict[str, Luck]:
        """Spread between draws of one strategy, by dimension, pooled over the self-written or all other strategies."""
        known = self.each(method, measure, sparsity)
        names = known.index.get_level_values("source")
        return pooled_luck(known[[self.written(name) == written for name in names]])

    @functools.cache  # noqa: B019
    def correlations(self, method: str | None = None, measure: str = "likelihood") -> pd.DataFrame:
        """Spearman's table of OIT metrics against retention, both averaged over the draws of each source."""
        kept = self.by_draw(method, measure)
        known = self.information[list(CORRELATED)]
        known = known[known.index.get_level_values("draw").isin(kept.index.get_level_values("draw"))]
        return spearman_table(known.groupby("strategy").mean(), kept.groupby("source").mean())

    def checks(self, method: str | None = None) -> pd.DataFrame:
        """The recorded cells (of one method) that were computed again, beside what is recorded.

        Columns: the cell, `same set` (whether the calibration windows are those on record), `same processor` (whether
        one kind of processor made both: another one sums in another order), `bits per byte` (largest relative
        difference of a task), `total` (difference of total retention in points) and `mask` (overlap).
        """
        recorded = {r.cell: r for r in self.results}
        rows = []
        for new in (r for r in self.again if method in (None, r.cell.method)):
            old = recorded[new.cell]
            totals = [retention(r.scores, self.dense).total.value for r in (new, old)]
            bits = [abs(t.value / old.scores[t.task].value - 1) for t in new.scores if t.metric == "bits_per_byte"]
            sets, makers = ([one.record.spec["calibration"] for one in (new, old)],
                            [one.record.provenance.get("processor") for one in (new, old)])
            rows.append(vars(new.cell) | {
                "same set": "yes" if sets[0] == sets[1] else "no",
                "same processor": "yes" if makers[0] == makers[1] else "no",
                "bits per byte": max(bits), "total": totals[0] - totals[1], "mask": overlap(_mask(new), _mask(old)),
            })
        return pd.DataFrame(rows)

    def verified(self, method: str | None = None) -> bool:
        """Whether three cells or more of a method, made again, differ from the record by less than two draws do."""
        checks, within = self.checks(method or self.settings.method), pooled_luck(self.by_draw(method))["total"].sd
        return len(checks) >= 3 and bool((checks["same set"] == "yes").all() and checks.total.abs().max() < within)

    def note(self, method: str | None = None) -> str:
        """What computing some cells of a method again showed; nothing if none was."""
        method = method or self.settings.method
        checks = self.checks(method)
        if checks.empty:
            return ""
        last = max(str(r.record.provenance.get("finished", ""))[:10] for r in self.again if r.cell.method == method)
        when = f", the last on {last}" if last else ""
        told = [f"{len(part)} on {kind} processor as the record, within {part.total.abs().max():.1g} points"
                for kind, answer in (("the same kind of", "yes"), ("another kind of", "no"))
                if len(part := checks[checks["same processor"] == answer])]
        return f"{len(checks)} cells computed again{when}: {' and '.join(told)}"

    def makers(self) -> pd.DataFrame:
        """What made the cells: commit, machine, how many of them, the first and the last."""
        made = [{key: str(r.record.provenance.get(key)) for key in ("commit", "processor", "finished")}
                for r in self.results]
        kinds = pd.DataFrame(made).groupby(["commit", "processor"], sort=False).finished
        return kinds.agg(cells="count", first="min", last="max").reset_index()

    def mask_overlap(self, method: str | None = None, draw: int = 0) -> pd.DataFrame:
        """Share of the weights removed under the row's source that are removed under the column's, one draw."""
        masks = {r.strategy: _mask(r) for r in self.at(method, names=self.settings.sources) if r.draw == draw}
        return pd.DataFrame({b: {a: overlap(masks[a], masks[b]) for a in masks} for b in masks})

    def mask_overlap_of_draws(self, method: str | None = None) -> float:
        """Mean overlap of the masks of two draws of one source: the noise floor of `mask_overlap`."""
        masks: dict[str, list[str]] = {}
        for r in self.at(method, names=self.settings.sources):
            masks.setdefault(r.strategy, []).append(_mask(r))
        pairs = [overlap(a, b) for found in masks.values() for i, a in enumerate(found) for b in found[i + 1 :]]
        return float(np.mean(pairs)) if pairs else float("nan")


def _mask(result: Result) -> str:
    return str(result.record.metrics["mask"])


def recorded(profile: str, store: str | Path | None = None) -> bool:
    """Whether the store holds cells of a profile."""
    try:
        return bool(reference(profile, store).results)
    except AssetError:
        return False


def reference(profile: str, store: str | Path | None = None) -> Reference:
    """Reads the records of a profile.

    Records of other sizes than the profile's are left out, and so are those of another model, suite, device or number
    format than most have.

    Raises:
        AssetError: the store holds no dense scores or no cells of the profile.
    """
    chosen, place = settings(profile), store_of(profile, store)
    found: dict[str, list[Record]] = {}
    for record in place.records():
        found.setdefault(str(record.spec.get("stage")), []).append(record)

    def fits(record: Record) -> bool:
        return all(record.spec.get(key) == getattr(chosen, key) for key in ("n", "seqlen"))

    cells = list(filter(fits, found.get("cell", ())))
    if not cells or "dense" not in found:
        raise AssetError(
            f"'{place.root}' holds no records of profile '{profile}': run `igsp study run --profile {profile}`"
        )
    common = Counter(map(_numbers, cells)).most_common(1)[0][0]
    dense = next((record for record in found["dense"] if _numbers(record) == common), None)
    if dense is None:
        raise AssetError(f"'{place.root}' holds no dense scores of the model that its cells were pruned from")
    order = {name: place for place, name in enumerate(chosen.sources)}
    results = sorted((_result(record) for record in cells if _numbers(record) == common),
                     key=lambda r: (order.get(r.strategy, len(order)), r.strategy, r.draw))
    known = {r.cell for r in results}
    again = [_result(r) for r in Store(f"{place.root}/{AGAIN}").records() if r.spec["stage"] == "cell"]
    information = {(r.spec["strategy"], r.spec["draw"]): r.metrics["information"]
                   for r in filter(fits, found.get("metrics", ())) if _numbers(r) == common}
    names = pd.MultiIndex.from_tuples(information, names=["strategy", "draw"])
    table = pd.DataFrame(list(information.values()), index=names)
    scores = Scores.from_dict(dense.metrics["scores"])
    rows = [r.metrics["rows"] for r in found.get("trivial", ()) if r.spec["suite"] == dense.spec["suite"]]
    samples = [r.metrics["samples"] for r in filter(fits, found.get("writing", ()))]
    floor = place.read("unigram")
    return Reference(
        chosen, scores, tuple(results), table, against_trivial(rows[0], scores) if rows else None,
        tuple(r for r in again if r.cell in known), pd.DataFrame(samples[0]) if samples else None,
        Scores.from_dict(floor) if floor else None,
    )


def verify(profile: str, store: str | Path | None = None, sample: int = 3, seed: int = 0) -> pd.DataFrame:
    """Computes a random sample of the recorded cells again, so many of each pruning method.

    The new records go to `<store>/verified`, date and result to `<store>/verified.json` (`verification`). What this
    very commit computed there before is kept, so that a larger sample holds the smaller.

    Returns:
        `Reference.checks`: the repeated cells beside the recorded ones.

    Raises:
        AssetError: no records of the profile.
        UsageError: a sample of no cell.
    """
    if sample < 1:
        raise UsageError(f"--sample must be at least 1, got {sample}")
    run, place, made_by = reference(profile, store), store_of(profile, store), provenance()
    by_luck = sorted((r.cell for r in run.results), key=lambda cell: hashlib.sha256(f"{seed} {cell}".encode()).digest())
    chosen = [c for m in run.methods for c in [c for c in by_luck if c.method == m][:sample]]
    again = Store(f"{place.root}/{AGAIN}")
    for record in list(again.records()):
        if made_by["dirty"] or record.provenance.get("commit") != made_by["commit"]:
            again.remove(record.name)
    Study(profile, str(again.root)).complete(chosen)
    run = reference(profile, store)
    place.write(VERIFIED, _result_of(run))
    return run.checks()


def _result_of(run: Reference) -> dict[str, Any]:
    checks, made = run.checks(), [r.record.provenance for r in run.again]
    return {
        "date": max(str(about.get("finished", "")) for about in made), "cells": len(checks),
        "commits": sorted({str(about.get("commit")) for about in made}),
        "same processor": int((checks["same processor"] == "yes").sum()),
        "bits per byte": float(checks["bits per byte"].abs().max()), "total": float(checks.total.abs().max()),
        "same sets": bool((checks["same set"] == "yes").all()),
    }


def verification(profile: str, store: str | Path | None = None) -> dict[str, Any] | None:
    """The last verification of a profile's records, None if there was none.

    Keys: `date`, `commits`, `cells` (computed again; `same processor`: so many on the record's kind), `bits per byte`
    (largest relative difference of a task), `total` (largest difference of total retention, in points), `same sets`
    (whether all calibration sets were the same).
    """
    return store_of(profile, store).read(VERIFIED)


def _result(record: Record) -> Result:
    spec = record.spec
    cell = Cell(spec["strategy"], spec["draw"], spec["method"], spec["sparsity"], spec.get("pattern"))
    return Result(cell, Scores.from_dict(record.metrics["scores"]), record)


def _numbers(record: Record) -> tuple[str, ...]:
    return tuple(str(record.spec[key]) for key in ("model", "suite", "device", "dtype"))
