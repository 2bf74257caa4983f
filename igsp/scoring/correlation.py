"""Rank correlation with few points: Spearman's rho, permutation p-value, bootstrap interval, Holm correction."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from igsp.errors import UsageError


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

    rho is Pearson's correlation of mid-ranks. p is the share of random pairings at least as extreme
    (add-one rule; exact when all n! pairings are fewer than `resamples`). The interval is the
    bias-corrected and accelerated (BCa) bootstrap over pairs, Efron 1987.

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
    rng = np.random.default_rng(seed)
    y_ranks = stats.rankdata(y)
    permuted = stats.permutation_test(
        (stats.rankdata(x),),
        lambda a, axis=-1: _pearson(a, y_ranks, axis),
        permutation_type="pairings",
        n_resamples=resamples,
        vectorized=True,
        rng=rng,
    )
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
    return RankCorrelation(rho, low, high, float(permuted.pvalue), len(x))


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
