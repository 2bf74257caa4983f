"""What the committed records of a profile say: read from the store alone, without a model and without text.

A study computes what it lacks; a reader of the book has neither the data nor the hours. Here the records are taken as
they are, and whatever is missing stays missing.
"""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from igsp.errors import AssetError, UsageError
from igsp.provenance import repository_root
from igsp.pruning.masks import overlap
from igsp.scoring.correlation import spearman, spearman_table
from igsp.scoring.evaluation import Scores
from igsp.scoring.retention import Estimate, Retention, difference, retention
from igsp.study.records import Record, Store
from igsp.study.study import Cell, Result, Settings, Study, against_trivial, cells, frame, settings
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
    """

    settings: Settings
    dense: Scores
    results: tuple[Result, ...]
    information: pd.DataFrame
    trivial: pd.DataFrame | None = None
    again: tuple[Result, ...] = ()
    writing: pd.DataFrame | None = None

    @property
    def methods(self) -> list[str]:
        """Pruning methods under which every source was scored, the profile's own first."""
        known = dict.fromkeys([self.settings.method, *sorted({r.cell.method for r in self.results})])
        return [m for m in known if self.complete_draws(m)]

    @functools.cache  # noqa: B019
    def complete_draws(self, method: str) -> list[int]:
        """Draws of which every source of the grid is recorded at the profile's sparsity: comparisons are balanced."""
        wanted = {cell.strategy for cell in cells(self.settings)} & set(self.settings.sources)
        known = {(r.draw, r.strategy) for r in self.results if _at(r, method, self.settings.sparsity)}
        draws = sorted({draw for draw, _ in known})
        return [draw for draw in draws if all((draw, name) in known for name in wanted)]

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
            if _at(r, method, sparsity) and (names is None or r.strategy in names)
            and (sparsity != own or r.draw in self.complete_draws(method))
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

    @functools.cache  # noqa: B019
    def by_draw(
        self, method: str | None = None, measure: str = "likelihood", names: tuple[str, ...] | None = None
    ) -> pd.DataFrame:
        """Retention per (source, draw), columns the dimensions and `total`; `names` takes other strategies instead."""
        rows = {
            (r.strategy, r.draw): frame({"": retention(r.scores, self.dense, measure)}).iloc[0]
            for r in self.at(method, names=names or self.settings.sources)
        }
        return pd.DataFrame(rows).T.rename_axis(["source", "draw"])[[*DIMENSIONS, "total"]]

    @functools.cache  # noqa: B019
    def correlations(self, method: str | None = None, measure: str = "likelihood") -> pd.DataFrame:
        """Spearman's table of OIT metrics against retention, both averaged over the draws of each source."""
        kept = self.by_draw(method, measure)
        known = self.information[list(CORRELATED)]
        known = known[known.index.get_level_values("draw").isin(kept.index.get_level_values("draw"))]
        return spearman_table(known.groupby("strategy").mean(), kept.groupby("source").mean())

    def gap(
        self, a: str, b: str, method: str | None = None, sparsity: float | None = None
    ) -> tuple[dict[str, Estimate], int]:
        """Paired difference of two strategies' retention over the draws that both have, and how many these are."""
        left, right = ({r.draw: r.scores for r in self.at(method, sparsity, [name])} for name in (a, b))
        both = sorted(left.keys() & right.keys())
        return difference([left[d] for d in both], [right[d] for d in both], self.dense) if both else {}, len(both)

    def margins(self, a: str, b: str, method: str | None = None) -> dict[float, tuple[dict[str, Estimate], int]]:
        """`gap` by sparsity, where both strategies are recorded."""
        found = {x: self.gap(a, b, method, x) for x in sorted({r.cell.sparsity for r in self.results})}
        return {sparsity: gap for sparsity, gap in found.items() if gap[1]}

    def agreement(self, other: Reference, method: str | None = None, theirs: str | None = None) -> pd.Series:
        """Spearman's rho of two rankings of the same strategies, per column of `study.frame`."""
        ours, rest = frame(self.retentions(method=method)), frame(other.retentions(method=theirs))
        shared = [name for name in ours.index if name in rest.index]
        return ours.loc[shared].corrwith(rest.loc[shared], method="spearman")

    def headline(self, method: str | None = None) -> dict[str, dict[str, Any]]:
        """What the book cites of one method: values by key, as `Store.publish` takes them."""
        s = self.settings
        found: dict[str, dict[str, Any]] = {}
        floor = noise_floor(self.by_draw(method))
        for name, row in floor.iterrows():
            found[f"spread/{name}"] = {"value": row["range"], "unit": "points"}
            if np.isfinite(row["within"]):
                found[f"noise/{name}"] = {"value": row["within"], "unit": "points", "digits": 2}
        table, draws = self.correlations(method), len(self.complete_draws(method or s.method))
        for row in table.to_dict("records"):
            entry = {key: row[key] for key in ("low", "high", "p", "p_holm", "n")} | {"draws": draws, "digits": 2}
            found[f"spearman/{row['metric']}/{row['dimension']}"] = {"value": row["rho"], **entry}
        found["spearman/survivors"] = {"value": int((table.p_holm < 0.05).sum()), "digits": 0}
        kept = self.retentions(method=method)
        singles = {"best-single": max(s.sources, key=lambda name: kept[name].total.value), "web": s.web}
        for key, name in ({name: name for name in kept if name not in s.sources} | singles).items():
            about = {"unit": "%", "label": name, "draws": kept[name].draws}
            found[f"{key}/total"] = {**vars(kept[name].total), **about}
        for key, name in singles.items():
            gap, n = self.gap("uniform", name, method)
            if n:
                found[f"uniform-minus-{key}"] = {**vars(gap["total"]), "unit": "points", "label": name, "draws": n}
                if len(floor) and np.isfinite(floor.within["total"]):
                    found[f"uniform-minus-{key}"]["noise"] = floor.within["total"] * (2 / n) ** 0.5
        for sparsity, (gap, n) in self.margins("uniform", s.web, method).items():
            found[f"margin/{round(100 * sparsity)}"] = {**vars(gap["total"]), "unit": "points", "draws": n}
        masks = {"sources": self.mask_overlap(method).where(lambda x: x < 1).stack().mean(),
                 "draws": self.mask_overlap_of_draws(method)}
        found |= {f"overlap/{k}": {"value": 100 * v, "unit": "%"} for k, v in masks.items() if np.isfinite(v)}
        return found | {"spearman/tests": {"value": len(table), "digits": 0}}

    def checks(self, method: str | None = None) -> pd.DataFrame:
        """The recorded cells (of one method) that were computed again, beside what is recorded.

        Columns: the cell, `same set` (whether the calibration windows are those on record), `bits per byte` (largest
        relative difference of a task), `total` (difference of total retention in points) and `mask` (overlap).
        """
        recorded = {r.cell: r for r in self.results}
        rows = []
        for new in (r for r in self.again if method in (None, r.cell.method)):
            old = recorded[new.cell]
            totals = [retention(r.scores, self.dense).total.value for r in (new, old)]
            bits = [abs(t.value / old.scores[t.task].value - 1) for t in new.scores if t.metric == "bits_per_byte"]
            same = "yes" if new.record.spec["calibration"] == old.record.spec["calibration"] else "no"
            rows.append(vars(new.cell) | {"same set": same, "bits per byte": max(bits), "total": totals[0] - totals[1],
                                          "mask": overlap(_mask(new), _mask(old))})
        return pd.DataFrame(rows)

    def verified(self, method: str | None = None) -> bool:
        """Whether three cells or more of a method, made again, differ from the record by less than two draws do."""
        checks, within = self.checks(method or self.settings.method), noise_floor(self.by_draw(method)).within["total"]
        return len(checks) >= 3 and bool((checks["same set"] == "yes").all() and checks.total.abs().max() < within)

    def note(self, method: str | None = None) -> str:
        """What computing some cells of a method again showed; nothing if none was."""
        checks = self.checks(method or self.settings.method)
        return "" if checks.empty else f"{len(checks)} cells verified within {checks.total.abs().max():.1g} points"

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


def _at(result: Result, method: str, sparsity: float) -> bool:
    return (result.cell.method, result.cell.sparsity) == (method, sparsity)


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
    root = store or repository_root() / "book" / "results" / profile
    place = Store(root)
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
    results = [_result(record) for record in cells if _numbers(record) == common]
    repeated = Store(f"{root}/verified").records()
    again = [_result(r) for r in repeated if r.spec["stage"] == "cell"]
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
    known = {r.cell for r in results}
    size = (common[0], chosen.n, chosen.seqlen)
    writing = [r for r in by_stage.get("writing", ()) if tuple(r.spec[k] for k in ("model", "n", "seqlen")) == size]
    samples = pd.DataFrame(writing[0].metrics["samples"]) if writing else None
    checked = tuple(r for r in again if r.cell in known)
    return Reference(chosen, scores, tuple(results), table, trivial, checked, samples)


def verify(profile: str, store: str | Path | None = None, sample: int = 3, seed: int = 0) -> pd.DataFrame:
    """Computes a random sample of the recorded cells again, so many of each pruning method.

    The new records go to `<store>/verified`; what is there already is kept, so that a larger sample holds the smaller.

    Returns:
        `Reference.checks`: the repeated cells beside the recorded ones.

    Raises:
        AssetError: no records of the profile.
        UsageError: a sample of no cell.
    """
    if sample < 1:
        raise UsageError(f"--sample must be at least 1, got {sample}")
    run = reference(profile, store)
    by_luck = sorted((r.cell for r in run.results), key=lambda cell: hashlib.sha256(f"{seed} {cell}".encode()).digest())
    root = store or repository_root() / "book" / "results" / profile
    chosen = [c for m in run.methods for c in [c for c in by_luck if c.method == m][:sample]]
    Study(profile, f"{root}/verified").complete(chosen)
    return reference(profile, store).checks()


def _result(record: Record) -> Result:
    cell = Cell(_label(record, "strategy"), _label(record, "draw"), record.spec["method"], record.spec["sparsity"])
    return Result(cell, Scores.from_dict(record.metrics["scores"]), record)


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
        of a single draw that is due to the source (intraclass correlation), and the `p` of the F test. With one draw
        of each source all but the range are NaN.
    """
    rows = {}
    for name, values in by_draw.items():
        groups = [group.to_numpy() for _, group in values.groupby(level=0)]
        means, size = np.array([g.mean() for g in groups]), len(groups[0])
        if size < 2:
            rows[name] = {"range": float(np.ptp(means))}
            continue
        within = float(np.mean([g.var(ddof=1) for g in groups]))
        between = max(0.0, float(means.var(ddof=1)) - within / size)
        rows[name] = {
            "range": float(np.ptp(means)), "between": between**0.5, "within": within**0.5,
            "share": between / (between + within), "p": float(stats.f_oneway(*groups).pvalue),
        }
    return pd.DataFrame(rows, index=["range", "between", "within", "share", "p"]).T


def links(run: Reference, names: Sequence[str], method: str | None = None) -> pd.DataFrame:
    """Spearman's rho, over calibration sets, of what a set is like with what the model keeps.

    Aggregation and perplexity are ranked with the total, distance to held-out text of a dimension with that dimension.

    Returns:
        One row per pair: `metric`, `retention`, rho, low, high, p, n; none for fewer than 4 sets.
    """
    about, kept = run.information.groupby("strategy").mean(), frame(run.retentions(method=method, names=names))
    shared = about.index.intersection(kept.index)
    pairs = {"aggregation_4": "total", "calibration_perplexity": "total", **{f"mismatch_{d}": d for d in DIMENSIONS}}
    return pd.DataFrame([
        {"metric": m, "retention": r, **vars(spearman(about[m][shared].to_numpy(), kept[r][shared].to_numpy()))}
        for m, r in pairs.items() if len(shared) >= 4
    ])


def contrasts(
    run: Reference, names: Sequence[str], rivals: Mapping[str, str], noise: float, method: str | None = None
) -> list[dict[str, Any]]:
    """Paired differences of each of `names` to each rival (a key and its strategy), where both are recorded.

    Args:
        noise: standard deviation between draws of one strategy's total, in points; nan: unknown.

    Returns:
        One row per pair: `method`, `name`, `key`, `rival`, `draws`, `gap` (`Reference.gap`), `noise` of such a
        difference, and `verdict` on the total.
    """
    rows = []
    for name in names:
        for key, rival in rivals.items():
            gap, n = run.gap(name, rival, method)
            if n:
                row = {"method": method or run.settings.method, "name": name, "key": key, "rival": rival, "draws": n}
                luck = noise * (2 / n) ** 0.5
                rows.append({**row, "gap": gap, "noise": luck, "verdict": verdict(gap["total"], luck)})
    return rows


def verdict(gap: Estimate, noise: float) -> str:
    """`ahead` or `behind` if the interval of a difference excludes zero and its size is over twice `noise` (our rule).

    Args:
        noise: standard deviation of such a difference between draws, in points; nan: unknown.
    """
    if np.isnan(noise):
        return "noise unknown"
    sure = (gap.low > 0 or gap.high < 0) and abs(gap.value) > 2 * noise
    return "not told apart" if not sure else "ahead" if gap.value > 0 else "behind"
