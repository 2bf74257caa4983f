"""What the committed records of a profile say: read from the store alone, without a model and without text.

A study computes what it lacks; a reader of the book has neither the data nor the hours. Here the records are taken as
they are, and whatever is missing stays missing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from igsp.correlation import spearman_table
from igsp.errors import AssetError
from igsp.evaluation import Scores
from igsp.information import CORRELATED
from igsp.masks import overlap
from igsp.retention import Estimate, Retention, difference, retention
from igsp.sources import DIMENSIONS
from igsp.store import Record, Store, repository_root
from igsp.study import Cell, Result, Settings, against_trivial, frame, settings


@dataclass(frozen=True)
class Reference:
    """Recorded results of one profile.

    Attributes:
        dense: scores of the dense model.
        results: every recorded cell of the profile's size (windows, tokens), by strategy and draw.
        information: OIT metrics, one row per (strategy, draw).
        trivial: trivial solvers beside the dense model (`Study.trivial`), None if not recorded.
    """

    settings: Settings
    dense: Scores
    results: tuple[Result, ...]
    information: pd.DataFrame
    trivial: pd.DataFrame | None = None

    @property
    def methods(self) -> list[str]:
        """Pruning methods under which every source was scored, the profile's own first."""
        known = dict.fromkeys([self.settings.method, *sorted({r.cell.method for r in self.results})])
        return [m for m in known if set(self.settings.sources) <= {r.strategy for r in self.at(m)}]

    def at(
        self, method: str | None = None, sparsity: float | None = None, names: Sequence[str] | None = None
    ) -> list[Result]:
        """Results at a method and sparsity (default: the profile's), of the strategies `names` (default: all)."""
        s = self.settings
        wanted = (method or s.method, s.sparsity if sparsity is None else sparsity)
        return [
            r for r in self.results
            if (r.cell.method, r.cell.sparsity) == wanted and (names is None or r.strategy in names)
        ]

    def draws(self, name: str, method: str | None = None, sparsity: float | None = None) -> list[Scores]:
        """Scores of one strategy, one per draw, in the order of the draws."""
        return [r.scores for r in self.at(method, sparsity, [name])]

    def retentions(
        self, measure: str = "likelihood", method: str | None = None, sparsity: float | None = None,
        names: Sequence[str] | None = None,
    ) -> dict[str, Retention]:
        """Retention per strategy over its draws."""
        found = dict.fromkeys(r.strategy for r in self.at(method, sparsity, names))
        return {name: retention(self.draws(name, method, sparsity), self.dense, measure) for name in found}

    def by_draw(self, method: str | None = None, measure: str = "likelihood") -> pd.DataFrame:
        """Retention of every source and draw: one row per (source, draw), columns the dimensions and `total`."""
        rows = {
            (r.strategy, r.draw): frame({"": retention(r.scores, self.dense, measure)}).iloc[0]
            for r in self.at(method, names=self.settings.sources)
        }
        return pd.DataFrame(rows).T.rename_axis(["source", "draw"])[[*DIMENSIONS, "total"]]

    def correlations(self, method: str | None = None, measure: str = "likelihood") -> pd.DataFrame:
        """Spearman's table of OIT metrics against retention, both averaged over the draws of each source."""
        kept = self.by_draw(method, measure).groupby("source").mean()
        return spearman_table(self.information[list(CORRELATED)].groupby("strategy").mean(), kept)

    def margins(self, a: str, b: str, method: str | None = None) -> dict[float, dict[str, Estimate]]:
        """Paired difference of two strategies' retention by sparsity, where both have the same draws."""
        found = {}
        for sparsity in sorted({r.cell.sparsity for r in self.results}):
            left, right = self.draws(a, method, sparsity), self.draws(b, method, sparsity)
            if left and len(left) == len(right):
                found[sparsity] = difference(left, right, self.dense)
        return found

    def makers(self) -> pd.DataFrame:
        """What made the cells: code, machine, when, how many; and whether the code is that of this installation."""
        rows = Counter[tuple[str, ...]]()
        times: dict[tuple[str, ...], list[str]] = {}
        for r in self.results:
            about = r.record.provenance
            key = (str(about.get("code"))[:12], "no" if r.record.stale else "yes", str(about.get("processor")))
            rows[key] += 1
            times.setdefault(key, []).append(str(about.get("finished")))
        columns = ["code", "this code", "processor"]
        return pd.DataFrame(
            [dict(zip(columns, key, strict=True)) | {"cells": n, "first": min(times[key]), "last": max(times[key])}
             for key, n in rows.items()]
        )

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

    Records of other sizes than the profile's are left out, and so are those of another model, device or number
    format than most have.

    Raises:
        AssetError: the store holds no dense scores or no cells of the profile.
    """
    chosen = settings(profile)
    place = Store(store or repository_root() / "book" / "results" / profile)
    by_stage: dict[str, list[Record]] = {}
    for record in place.records():
        by_stage.setdefault(record.spec["stage"], []).append(record)
    cells = [record for record in by_stage.get("cell", ()) if _size(record) == (chosen.n, chosen.seqlen)]
    if not cells or "dense" not in by_stage:
        raise AssetError(
            f"'{place.root}' holds no records of profile '{profile}': run `igsp study run --profile {profile}`"
        )
    common = Counter(map(_numbers, cells)).most_common(1)[0][0]
    dense = next((record for record in by_stage["dense"] if _numbers(record) == common), None)
    if dense is None:
        raise AssetError(f"'{place.root}' holds no dense scores of the model that its cells were pruned from")
    results = [
        Result(Cell(_label(r, "strategy"), _label(r, "draw"), r.spec["method"], r.spec["sparsity"]),
               Scores.from_dict(r.metrics["scores"]), r)
        for r in cells if _numbers(r) == common
    ]
    information = {
        (_label(r, "strategy"), _label(r, "draw")): r.metrics["information"]
        for r in by_stage.get("profile", ()) if _numbers(r) == common and _size(r) == (chosen.n, chosen.seqlen)
    }
    order = {name: place for place, name in enumerate(chosen.sources)}
    results.sort(key=lambda r: (order.get(r.strategy, len(order)), r.strategy, r.draw))
    names = pd.MultiIndex.from_tuples(information, names=["strategy", "draw"])
    table = pd.DataFrame(list(information.values()), index=names)
    scores = Scores.from_dict(dense.metrics["scores"])
    solvers = next((r for r in by_stage.get("trivial", ()) if _numbers(r) == common), None)
    trivial = against_trivial(solvers.metrics["rows"], scores) if solvers else None
    return Reference(chosen, scores, tuple(results), table, trivial)


def _label(record: Record, name: str) -> Any:
    return record.metrics["labels"][name]


def _size(record: Record) -> tuple[int, int]:
    spec = record.metrics["labels"]["calibration"]
    return spec["n"], spec["seqlen"]


def _numbers(record: Record) -> tuple[str, ...]:
    return tuple(str(record.spec[key]) for key in ("model", "suite", "device", "dtype"))


def noise_floor(by_draw: pd.DataFrame) -> pd.DataFrame:
    """How far sources differ beyond the luck of the draw, by one-way analysis of variance.

    Args:
        by_draw: retention per (source, draw), one column per dimension (`Reference.by_draw`).

    Returns:
        One row per column of `by_draw`, in points of retention: `range` of the source means, `between` and
        `within` (standard deviations of the source effect and of the draws of one source), `share` of the variance
        of a single draw that is due to the source (intraclass correlation), and the `p` of the F test.
    """
    rows = {}
    for name, values in by_draw.items():
        groups = [group.to_numpy() for _, group in values.groupby(level=0)]
        means, size = np.array([g.mean() for g in groups]), len(groups[0])
        within = float(np.mean([g.var(ddof=1) for g in groups]))
        between = max(0.0, float(means.var(ddof=1)) - within / size)
        rows[name] = {
            "range": float(np.ptp(means)), "between": between**0.5, "within": within**0.5,
            "share": between / (between + within), "p": float(stats.f_oneway(*groups).pvalue),
        }
    return pd.DataFrame(rows).T
