"""Rank correlation with few points: Spearman's rho, exact permutation p-value, bootstrap interval, Holm correction."""

from __future__ import annotations

import functools
import warnings
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from igsp.errors import UsageError

EXACT, EXACT_TIED = 15, 10  # pairs up to which the null distribution is exact, without and with ties
PAIRINGS = 1_000_000  # random pairings behind a p-value of more pairs


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's rho of `n` pairs, its bootstrap interval `[low, high]` and two-sided permutation p-value."""

    rho: float
    low: float
    high: float
    p: float
    n: int


def spearman(
    x: np.ndarray, y: np.ndarray, *, seed: int = 0, resamples: int = 9999, confidence: float = 0.95
) -> RankCorrelation:
    """Spearman's rank correlation of two vectors `[n]`.

    rho is Pearson's correlation of mid-ranks. p is the share of all n! pairings whose `|rho|` is at least as large as
    the observed one (two-sided): exact, so never below 1 / n!, for up to 15 pairs (10 with ties). For more it comes
    from a million random pairings, always the same ones, with the observed one counted in. No seed moves it; `seed` and
    `resamples` are those of the interval, the bias-corrected and accelerated (BCa) bootstrap over pairs (Efron 1987).

    Raises:
        UsageError: lengths that differ, fewer than 4 pairs, a non-finite or constant vector.

    >>> found = spearman([1, 2, 3, 4, 5], [2, 1, 4, 3, 5])
    >>> round(found.rho, 3), round(found.p, 3), found.n
    (0.8, 0.133, 5)
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    if x.shape != y.shape or x.ndim != 1 or len(x) < 4:
        raise UsageError(f"rank correlation needs two vectors of one length >= 4, got {x.shape} and {y.shape}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise UsageError("rank correlation of non-finite values")
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        raise UsageError("rank correlation of a constant vector is undefined: leave such metrics out")
    rho = float(_rho(x, y))
    p = _permutation_p(x, y)
    rng = np.random.default_rng(seed)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)  # such an interval is replaced below
        interval = stats.bootstrap(
            (x, y),
            _rho,
            paired=True,
            vectorized=True,
            n_resamples=resamples,
            confidence_level=confidence,
            method="BCa",
            rng=rng,
        ).confidence_interval
    low, high = float(interval.low), float(interval.high)
    if abs(rho) == 1.0 or not np.isfinite([low, high]).all():  # every resample is degenerate
        low, high = (rho, rho) if abs(rho) == 1.0 else (-1.0, 1.0)
    return RankCorrelation(rho, low, high, p, len(x))


def _permutation_p(x: np.ndarray, y: np.ndarray) -> float:
    """Share of pairings whose sum of rank products lies at least as far from its mean as the observed one."""
    a, b = ((2 * stats.rankdata(v)).astype(int) for v in (x, y))  # mid-ranks are halves
    sums, counts, observed = _null(tuple(sorted(a)), tuple(sorted(b)))
    centre = a.sum() * b.sum() / len(a)
    hits = counts[np.abs(sums - centre) >= abs(a @ b - centre)].sum()
    return float((hits + observed) / (counts.sum() + observed))


@functools.cache
def _null(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, int]:
    """Sums of `a @ permuted(b)`, how often each occurs, and 1 if the observed one is to be added to random ones."""
    n = len(a)
    step = 2 if len(set(a)) == len(set(b)) == n else 1  # without ties every doubled rank is even
    if n > (EXACT if step == 2 else EXACT_TIED):
        rng, left = np.random.default_rng(0), np.array(a)
        drawn = np.concatenate([rng.permuted(np.tile(b, (PAIRINGS // 10, 1)), axis=1) @ left for _ in range(10)])
        return *np.unique(drawn, return_counts=True), 1
    left, right = np.array(a) // step, np.array(b) // step
    counts = _count_sums(left, right)
    return step**2 * np.arange(len(counts)), counts, 0


def _count_sums(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """How many of the n! pairings of whole numbers `a` and `b` `[n]` have each sum of products, `[largest sum + 1]`.

    The permanent of the matrix `x ** (a_i b_j)` by dynamic programming over the subsets of `b` that the first k of `a`
    are paired with: 2^n n / 2 additions of polynomials instead of n! sums.
    """
    n, length = len(a), int(np.sort(a) @ np.sort(b)) + 1
    subsets = np.arange(2**n)
    sizes, place = np.bitwise_count(subsets), np.empty(2**n, int)
    counts = np.zeros((1, length))
    counts[0, 0], place[0] = 1, 0
    for k, value in enumerate(a):
        members = subsets[sizes == k + 1]
        place[members] = np.arange(len(members))
        grown = np.zeros((len(members), length))
        for j, shift in enumerate(value * b):
            rows = np.flatnonzero(members >> j & 1)
            grown[rows, shift:] += counts[place[members[rows] ^ (1 << j)], : length - shift]
        counts = grown
    return counts[0]


def _pearson(a: np.ndarray, b: np.ndarray, axis: int = -1) -> np.ndarray:
    a = a - a.mean(axis=axis, keepdims=True)
    b = b - b.mean(axis=axis, keepdims=True)
    norm = np.sqrt((a * a).sum(axis=axis) * (b * b).sum(axis=axis))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.clip((a * b).sum(axis=axis) / norm, -1.0, 1.0)


def _rho(x: np.ndarray, y: np.ndarray, axis: int = -1) -> np.ndarray:
    rho = _pearson(stats.rankdata(x, axis=axis), stats.rankdata(y, axis=axis), axis)
    return np.nan_to_num(rho) if np.ndim(rho) else rho  # a resample of one repeated point carries no rank order


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's step-down adjusted p-values `[m]` (Holm 1979): family-wise error at most alpha, no assumption.

    >>> holm([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(p, float)
    order = np.argsort(p, kind="stable")
    factors = len(p) - np.arange(len(p))
    adjusted = np.minimum(1.0, np.maximum.accumulate(p[order] * factors))
    out = np.empty_like(adjusted)
    out[order] = adjusted
    return out


def spearman_table(metrics: pd.DataFrame, retention: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """Every metric against every dimension over the sources both frames share.

    Args:
        metrics: one row per source, one column per metric; constant columns are left out.
        retention: one row per source, one column per dimension.

    Returns:
        One row per (metric, dimension): rho, low, high, p, p_holm (over the whole table), n.
    """
    shared = metrics.index.intersection(retention.index)
    metrics, retention = metrics.loc[shared], retention.loc[shared]
    rows = [
        {"metric": metric, "dimension": dimension, **vars(spearman(metrics[metric], retention[dimension], seed=seed))}
        for metric in metrics
        if metrics[metric].nunique() > 1
        for dimension in retention
    ]
    table = pd.DataFrame(rows)
    table["p_holm"] = holm(table["p"].to_numpy())
    return table[["metric", "dimension", "rho", "low", "high", "p", "p_holm", "n"]]
