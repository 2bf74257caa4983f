"""Retention: what share of the dense model's score a pruned model keeps, per capability dimension.

Measures, never mixed: `likelihood` (from bits per byte on held-out text) and `accuracy` (from multiple-choice tasks);
beside likelihood `knowledge`, the share kept of what the dense model saves over a unigram model, and `excess`, the bits
per byte lost. Intervals add two variances: that of the items, by resampling them with the same indices for every model
so that differences are paired, and that of the draws of the calibration set, by a t quantile.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from igsp.errors import UsageError
from igsp.scoring.evaluation import Scores, TaskScore
from igsp.scoring.suites import BITS_PER_BYTE

MEASURES = {"likelihood": (BITS_PER_BYTE,), "accuracy": ("acc", "acc_norm", "exact_match", "pass@1")}
BESIDE = {"knowledge": (BITS_PER_BYTE,), "excess": (BITS_PER_BYTE,)}  # shown beside likelihood, never a study's own
RESAMPLES = 1000


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.1f} [{self.low:.1f}, {self.high:.1f}]"


@dataclass(frozen=True)
class Retention:
    """Retention in percent of the dense score.

    Attributes:
        measure: `likelihood` or `accuracy`.
        dimensions: per dimension, the mean over its tasks.
        total: plain mean over the dimensions.
        minimum: the smallest dimension.
        corrected: per dimension, `100 (pruned - chance) / (dense - chance)`; accuracy only, else empty.
        draws: number of calibration draws behind it.
    """

    measure: str
    dimensions: dict[str, Estimate]
    total: Estimate
    minimum: Estimate
    corrected: dict[str, float]
    draws: int

    def estimates(self) -> dict[str, Estimate]:
        """The dimensions and `total`, by name."""
        return {**self.dimensions, "total": self.total}


@dataclass(frozen=True)
class Luck:
    """Standard deviation between draws of one strategy, in points, and the degrees of freedom it was estimated with."""

    sd: float
    df: float

    def twice(self) -> Luck:
        """Of the difference of two strategies whose spread is this same pooled one."""
        return Luck(2**0.5 * self.sd, self.df)

    def plus(self, other: Luck) -> Luck:
        """Of the difference of two strategies with spreads of their own; degrees of freedom by Satterthwaite."""
        variance = self.sd**2 + other.sd**2
        weight = self.sd**4 / self.df + other.sd**4 / other.df
        return Luck(variance**0.5, variance**2 / weight if weight else self.df + other.df)


def retention(
    scores: Scores | Sequence[Scores], dense: Scores, measure: str = "likelihood", *,
    floor: Scores | None = None, luck: Mapping[str, Luck] | None = None, seed: int = 0,
) -> Retention:
    """Retention of a pruned model (or of several draws of it) against its dense self.

    A task keeps `100 * pruned / dense` of an accuracy and `100 * dense / pruned` of its bits per byte (likelihood
    retention is our definition: at small scale accuracy has no resolution). Of `knowledge` it keeps
    `100 * (floor - pruned) / (floor - dense)` bits per byte; `excess` is `pruned - dense`. A dimension is the mean over
    its tasks, the total the plain mean of the dimensions.

    Args:
        floor: scores of a model that knows word frequencies alone, on the same items; `knowledge` needs them.
        luck: spread between draws by dimension, `total` and `minimum`, pooled over strategies; default: of these draws
            alone, which for three gives wide intervals. One draw without it: the interval holds the items alone.

    Raises:
        UsageError: unknown measure, no task of that measure, or scores of different items.
    """
    draws = [scores] if isinstance(scores, Scores) else list(scores)
    each = [_resampled(s, dense, measure, floor, seed) for s in draws]
    found = _estimates([{**v, **_summary(v)} for v in each], luck)
    total, minimum = found.pop("total"), found.pop("minimum")
    corrected = _chance_corrected(draws, dense) if measure == "accuracy" else {}
    return Retention(measure, found, total, minimum, corrected, len(draws))


def plain(
    scores: Scores, dense: Scores, measure: str = "likelihood", *, floor: Scores | None = None
) -> dict[str, float]:
    """The values of `retention` without intervals: the dimensions, `total` and `minimum`."""
    values = _resampled(scores, dense, measure, floor, seed=0, resamples=0)
    return {name: float(v[0]) for name, v in {**values, **_summary(values)}.items()}


def difference(
    a: Scores | Sequence[Scores], b: Scores | Sequence[Scores], dense: Scores, measure: str = "likelihood", *,
    weights: Mapping[str, float] | None = None, floor: Scores | None = None,
    luck: Mapping[str, Luck] | None = None, level: float = 0.95, seed: int = 0,
) -> dict[str, Estimate]:
    """Retention of `a` minus retention of `b` in points, per dimension and `total`, paired over draws and items.

    `total` is the mean over the dimensions, weighted by `weights` where they are given (0 for a dimension left out).
    `luck` is that of one such difference; default: of these differences alone.
    """
    left = [a] if isinstance(a, Scores) else list(a)
    right = [b] if isinstance(b, Scores) else list(b)
    if len(left) != len(right):
        raise UsageError(f"a paired difference needs as many draws on both sides, got {len(left)} and {len(right)}")
    gaps = []
    for one, other in zip(left, right, strict=True):
        x, y = (_resampled(s, dense, measure, floor, seed) for s in (one, other))
        gap = {name: x[name] - y[name] for name in x}
        share = None if weights is None else [weights.get(name, 0.0) for name in gap]
        gaps.append({**gap, "total": np.average(list(gap.values()), axis=0, weights=share)})
    return _estimates(gaps, luck, level)


def spread(
    sets: Mapping[str, Sequence[Scores]], dense: Scores, measure: str = "likelihood", *,
    floor: Scores | None = None, luck: Mapping[str, Luck] | None = None, seed: int = 0,
) -> dict[str, Estimate]:
    """Range over strategies of their mean retention, in points, per dimension and `total`.

    The basic bootstrap interval: items are resampled for all strategies alike, and each mean is moved by what the
    draws do to it (`luck` of one draw, by dimension). Noise widens a range, which the basic interval turns back.
    """
    each = []
    for draws in sets.values():
        kept = [_resampled(s, dense, measure, floor, seed) for s in draws]
        mean = {name: np.mean([k[name] for k in kept], axis=0) for name in kept[0]}
        each.append({**mean, "total": np.mean(list(mean.values()), axis=0)})
    rng = np.random.default_rng(seed)
    sizes = np.array([len(draws) for draws in sets.values()])[:, None]
    found = {}
    for name in each[0]:
        means = np.stack([row[name] for row in each])  # [strategies, 1 + RESAMPLES]
        sd, df = (luck[name].sd, luck[name].df) if luck and name in luck else (0.0, 1.0)
        means[:, 1:] += sd / sizes**0.5 * rng.standard_t(df, (len(means), RESAMPLES))
        ranges = np.ptp(means, axis=0)
        high, low = 2 * ranges[0] - np.percentile(ranges[1:], [2.5, 97.5])
        found[name] = Estimate(float(ranges[0]), float(max(0.0, low)), float(high))
    return found


def interval(value: float, items: float, draws: int, luck: Luck | None, level: float = 0.95) -> Estimate:
    """The mean over `draws` with its interval at `level`, by a t quantile with Satterthwaite's degrees of freedom.

    Args:
        items: standard error that the choice of items gives the mean.
        luck: spread of one draw; None leaves the draws out.
    """
    drawn = luck.sd**2 / draws if luck else 0.0
    variance = drawn + items**2
    df = luck.df * (variance / drawn) ** 2 if luck and drawn else np.inf
    half = float(stats.t.ppf((1 + level) / 2, df)) * variance**0.5
    return Estimate(value, value - half, value + half)


def pooled_luck(by_draw: pd.DataFrame) -> dict[str, Luck]:
    """Spread between draws within strategies, pooled over them (one-way analysis of variance).

    Args:
        by_draw: one row per (strategy, draw), one column per dimension.

    Returns:
        By column; none where no strategy has two draws.
    """
    groups = by_draw.groupby(level=0)
    df = len(by_draw) - groups.ngroups
    if df < 1:
        return {}
    squares = (by_draw - groups.transform("mean")).pow(2).sum()
    return {str(name): Luck(float((square / df) ** 0.5), df) for name, square in squares.items()}


def paired_luck(by_draw: pd.DataFrame) -> dict[str, Luck]:
    """Spread, from draw to draw, of the difference of two strategies that share what is drawn (one pool of candidates).

    The residual of strategy by draw in a two-way layout without replication, times the square root of 2.

    Args:
        by_draw: as in `pooled_luck`; draws that some strategy lacks are left out.
    """
    found = {}
    for name, values in by_draw.items():
        table = values.unstack().dropna(axis=1)  # [strategies, draws]
        df = (table.shape[0] - 1) * (table.shape[1] - 1)
        if df > 0:
            rest = table.sub(table.mean(axis=1), axis=0) - table.mean(axis=0) + table.to_numpy().mean()
            found[str(name)] = Luck(float((2 * rest.pow(2).to_numpy().sum() / df) ** 0.5), df)
    return found


def _summary(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    stacked = np.stack(list(values.values()))  # [dimensions, 1 + RESAMPLES]
    return {"total": stacked.mean(0), "minimum": stacked.min(0)}


def _estimates(
    draws: Sequence[Mapping[str, np.ndarray]], luck: Mapping[str, Luck] | None, level: float = 0.95
) -> dict[str, Estimate]:
    """Estimates by name, of draws `[1 + RESAMPLES]`: plain in the first entry, over resampled items in the others."""
    found = {}
    for name in draws[0]:
        stacked = np.stack([d[name] for d in draws])  # [draws, 1 + RESAMPLES]
        plain, mean = stacked[:, 0], stacked.mean(0)
        own = Luck(float(plain.std(ddof=1)), len(draws) - 1) if len(draws) > 1 else None
        items = float(mean[1:].std(ddof=1))
        found[name] = interval(float(mean[0]), items, len(draws), (luck or {}).get(name, own), level)
    return found


def _chance_corrected(draws: Sequence[Scores], dense: Scores) -> dict[str, float]:
    kept: dict[str, list[float]] = {}
    for scores in draws:
        for pruned, full in _pairs(scores, dense, "accuracy"):
            if full.chance is not None and full.value > full.chance:
                share = 100 * (pruned.value - full.chance) / (full.value - full.chance)
                kept.setdefault(pruned.dimension, []).append(share)
    return {name: float(np.mean(values)) for name, values in kept.items()}


def _pairs(scores: Scores, dense: Scores, measure: str) -> list[tuple[TaskScore, TaskScore]]:
    known = {**MEASURES, **BESIDE}
    if measure not in known:
        raise UsageError(f"unknown measure '{measure}': {' or '.join(known)}")
    by_name = {t.task: t for t in dense.tasks}
    pairs = [(t, by_name[t.task]) for t in scores.tasks if t.metric in known[measure] and t.task in by_name]
    if not pairs:
        raise UsageError(f"the two scores share no task measured in {' or '.join(known[measure])}")
    for pruned, full in pairs:
        if len(pruned.items) != len(full.items):
            raise UsageError(
                f"task '{pruned.task}' was scored on {len(pruned.items)} items, the dense on {len(full.items)}"
            )
    return pairs


def _resampled(
    scores: Scores, dense: Scores, measure: str, floor: Scores | None, seed: int, resamples: int = RESAMPLES
) -> dict[str, np.ndarray]:
    """Per dimension `[1 + resamples]`: retention on all items, then on bootstrap samples of them.

    The resampled indices depend on task name, item count and seed alone: calls are paired with one another.
    """
    if measure == "knowledge" and floor is None:
        raise UsageError("the measure 'knowledge' needs the scores of a unigram model: give floor")
    kept: dict[str, list[np.ndarray]] = {}
    for pruned, full in _pairs(scores, dense, measure):
        n = len(pruned.items)
        rng = np.random.default_rng([seed, n, *pruned.task.encode()])
        index = np.vstack([np.arange(n), rng.integers(0, n, (resamples, n))])
        items = [np.array(task.items)[index].sum(1) for task in (pruned, full)]  # [1 + RESAMPLES, 1 or 2] each
        if floor is not None and measure == "knowledge":
            items.append(np.array(floor[pruned.task].items)[index].sum(1))
        kept.setdefault(pruned.dimension, []).append(_kept(measure, *items))
    return {name: np.mean(values, axis=0) for name, values in kept.items()}


def _kept(measure: str, pruned: np.ndarray, dense: np.ndarray, floor: np.ndarray | None = None) -> np.ndarray:
    """A measure from sums over items: of (bits, bytes) of the same texts, or of scores."""
    p, d = pruned[:, 0], dense[:, 0]
    if measure == "accuracy":
        return 100 * p / np.maximum(d, 1e-9)
    if measure == "likelihood":
        return 100 * d / p
    if measure == "excess" or floor is None:
        return (p - d) / dense[:, 1]
    return 100 * (floor[:, 0] - p) / (floor[:, 0] - d)
