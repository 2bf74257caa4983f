"""What the records of a run say: differences with intervals, spreads, noise, and the values that the book cites."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from igsp.scoring.correlation import spearman
from igsp.scoring.retention import BESIDE, Estimate, Luck, difference, paired_luck, spread
from igsp.study.recorded import Reference
from igsp.study.study import frame, strategies
from igsp.text.catalogue import DIMENSIONS

LIKELIHOOD = ("likelihood", *BESIDE)  # a margin or a spread is claimed under all three


def luck_of(
    run: Reference, a: str, b: str, method: str | None = None, sparsity: float | None = None,
    measure: str = "likelihood",
) -> dict[str, Luck]:
    """Spread between draws of the difference of two strategies, in points, by dimension and `total`.

    Choices from one pool share what is drawn, so that theirs is the paired spread; else the two add up.
    """
    chosen = [s.name for s in strategies(run.settings).values() if s.kind == "selection"]
    if a in chosen and b in chosen:
        known = run.each(method, measure, sparsity)
        return paired_luck(known[known.index.get_level_values("source").isin(chosen)])
    one, other = (run.luck(run.written(name), method, measure, sparsity) for name in (a, b))
    if one is other:
        return {name: luck.twice() for name, luck in one.items()}
    return {name: one[name].plus(other[name]) for name in one if name in other}


def gap(
    run: Reference, a: str, b: str, method: str | None = None, sparsity: float | None = None,
    measure: str = "likelihood", luck: Mapping[str, Luck] | None = None,
) -> tuple[dict[str, Estimate], int]:
    """Paired difference of two strategies' retention over the draws that both have, and how many these are.

    `luck` defaults to `luck_of` the pair.
    """
    left, right = ({r.draw: r.scores for r in run.at(method, sparsity, [name])} for name in (a, b))
    both = sorted(left.keys() & right.keys())
    if not both:
        return {}, 0
    luck = luck_of(run, a, b, method, sparsity, measure) if luck is None else luck
    one, other = ([side[d] for d in both] for side in (left, right))
    return difference(one, other, run.dense, measure, floor=run.unigram, luck=luck), len(both)


def margins(
    run: Reference, a: str, b: str, method: str | None = None, measure: str = "likelihood"
) -> dict[float, tuple[dict[str, Estimate], int]]:
    """`gap` by sparsity, where both strategies are recorded."""
    found = {x: gap(run, a, b, method, x, measure) for x in sorted({r.cell.sparsity for r in run.results})}
    return {sparsity: row for sparsity, row in found.items() if row[1]}


def agreement(run: Reference, other: Reference, method: str | None = None, theirs: str | None = None) -> pd.Series:
    """Spearman's rho of two rankings of the same strategies, per column of `study.frame`."""
    ours, rest = frame(run.retentions(method=method)), frame(other.retentions(method=theirs))
    shared = [name for name in ours.index if name in rest.index]
    return ours.loc[shared].corrwith(rest.loc[shared], method="spearman")


def spreads(run: Reference, method: str | None = None, measure: str = "likelihood") -> dict[str, Estimate]:
    """How far apart the sources lie by a measure, best minus worst, by dimension and `total`, with intervals."""
    sets = {name: run.draws(name, method) for name in run.settings.sources}
    return spread(sets, run.dense, measure, floor=run.unigram, luck=run.luck(False, method, measure))


def headline(run: Reference, method: str | None = None) -> dict[str, dict[str, Any]]:
    """What the book cites of one method: values by key, as `Store.publish` takes them.

    A margin or a spread stands behind its measure, where that is not likelihood: `margin/knowledge/60`.
    """
    s = run.settings
    found: dict[str, dict[str, Any]] = {}
    table, draws = run.correlations(method), len(run.complete_draws(method or s.method))
    for name, luck in run.luck(False, method).items():
        found[f"noise/{name}"] = {"value": luck.sd, "unit": "points", "digits": 2}
    for row in table.to_dict("records"):
        entry = {key: row[key] for key in ("low", "high", "p", "p_holm", "n")} | {"draws": draws, "digits": 2}
        found[f"spearman/{row['metric']}/{row['dimension']}"] = {"value": row["rho"], **entry}
    found["spearman/survivors"] = {"value": int((table.p_holm < 0.05).sum()), "digits": 0}
    found["spearman/tests"] = {"value": len(table), "digits": 0}
    kept = run.retentions(method=method)
    singles = {"best-single": max(s.sources, key=lambda name: kept[name].total.value), "web": s.web}
    for key, name in ({name: name for name in kept if name not in s.sources} | singles).items():
        about = {"unit": "%", "label": name, "draws": kept[name].draws}
        found[f"{key}/total"] = {**vars(kept[name].total), **about}
    for measure in LIKELIHOOD if run.unigram else LIKELIHOOD[:1]:
        behind = "" if measure == "likelihood" else f"{measure}/"
        unit = {"unit": "bits per byte", "digits": 3} if measure == "excess" else {"unit": "points"}
        for name, range_ in spreads(run, method, measure).items():
            found[f"spread/{behind}{name}"] = {**vars(range_), **unit}
        for mix in ("uniform", "all-sources"):
            for key, name in singles.items():
                about = {**unit, "label": name}
                found |= published(f"{behind}{mix}-minus-{key}", *_noisy(run, mix, name, method, measure), about)
        for sparsity, row in margins(run, "uniform", s.web, method, measure).items():
            found |= published(f"margin/{behind}{round(100 * sparsity)}", *row, None, unit)
    masks = {"sources": run.mask_overlap(method).where(lambda x: x < 1).stack().mean(),
             "draws": run.mask_overlap_of_draws(method)}
    return found | {f"overlap/{k}": {"value": 100 * v, "unit": "%"} for k, v in masks.items() if np.isfinite(v)}


def published(
    key: str, gap: Mapping[str, Estimate], draws: int, noise: float | None, about: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """The total of a difference as an entry for `Store.publish`; nothing where it was not measured."""
    if not draws:
        return {}
    known = {} if noise is None or np.isnan(noise) else {"noise": noise}
    return {key: {**vars(gap["total"]), "draws": draws, **about, **known}}


def _noisy(
    run: Reference, a: str, b: str, method: str | None, measure: str = "likelihood"
) -> tuple[dict[str, Estimate], int, float]:
    """`gap`, and the standard deviation that the luck of the draw gives its total (nan: unknown)."""
    luck = luck_of(run, a, b, method, None, measure)
    found, n = gap(run, a, b, method, None, measure, luck)
    return found, n, luck["total"].sd / n**0.5 if n and "total" in luck else np.nan


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
    run: Reference, names: Sequence[str], rivals: Mapping[str, str], method: str | None = None,
    luck: Mapping[str, Luck] | None = None,
) -> list[dict[str, Any]]:
    """Paired differences of each of `names` to each rival (a key and its strategy), where both are recorded.

    Args:
        luck: of such differences, from other records, where these have one draw; default: `luck_of` each pair.

    Returns:
        One row per pair: `method`, `name`, `key`, `rival`, `draws`, `gap`, `noise` (what the luck of the draw gives its
        total, a standard deviation) and `verdict` on the total.
    """
    rows = []
    for name in names:
        for key, rival in rivals.items():
            known = luck_of(run, name, rival, method) if luck is None else luck
            found, n = gap(run, name, rival, method, luck=known)
            if n:
                noise = known["total"].sd / n**0.5 if "total" in known else np.nan
                row = {"method": method or run.settings.method, "name": name, "key": key, "rival": rival, "draws": n}
                rows.append({**row, "gap": found, "noise": noise, "verdict": verdict(found["total"], noise)})
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
