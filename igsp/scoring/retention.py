"""Retention: what share of the dense model's score a pruned model keeps, per capability dimension.

Two measures, never mixed: `likelihood` (from bits per byte on held-out text) and `accuracy` (from
multiple-choice tasks). Intervals come from resampling the evaluation items and, where there are several,
the draws of the calibration set. The dense and every pruned model are scored on the same items and
resampled with the same indices, so that differences are paired.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from igsp.errors import UsageError
from igsp.scoring.evaluation import Scores, TaskScore

MEASURES = {"likelihood": ("bits_per_byte",), "accuracy": ("acc", "acc_norm", "exact_match", "pass@1")}
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


def retention(
    scores: Scores | Sequence[Scores], dense: Scores, measure: str = "likelihood", *, seed: int = 0
) -> Retention:
    """Retention of a pruned model (or of several draws of it) against its dense self.

    A task keeps `100 * pruned / dense` of an accuracy and `100 * dense / pruned` of its bits per byte
    (likelihood retention is our definition: at small scale accuracy has no resolution). A dimension is the
    mean over its tasks, the total the plain mean of the dimensions. Percentile bootstrap over draws and items.

    Raises:
        UsageError: unknown measure, no task of that measure, or scores of different items.
    """
    draws = [scores] if isinstance(scores, Scores) else list(scores)
    values = _over_draws([_resampled(s, dense, measure, seed) for s in draws], seed)
    stacked = np.stack(list(values.values()))  # [dimensions, 1 + RESAMPLES]
    return Retention(
        measure,
        {name: _estimate(v) for name, v in values.items()},
        _estimate(stacked.mean(0)),
        _estimate(stacked.min(0)),
        _chance_corrected(draws, dense) if measure == "accuracy" else {},
        len(draws),
    )


def difference(
    a: Scores | Sequence[Scores],
    b: Scores | Sequence[Scores],
    dense: Scores,
    measure: str = "likelihood",
    *,
    weights: Mapping[str, float] | None = None,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Retention of `a` minus retention of `b` in points, per dimension and `total`, paired over draws and items.

    `total` is the mean over the dimensions, weighted by `weights` where they are given (0 for a dimension left out).
    """
    left = [a] if isinstance(a, Scores) else list(a)
    right = [b] if isinstance(b, Scores) else list(b)
    if len(left) != len(right):
        raise UsageError(f"a paired difference needs as many draws on both sides, got {len(left)} and {len(right)}")
    gaps = []
    for one, other in zip(left, right, strict=True):
        x, y = _resampled(one, dense, measure, seed), _resampled(other, dense, measure, seed)
        gaps.append({name: x[name] - y[name] for name in x})
    values = _over_draws(gaps, seed)
    share = None if weights is None else [weights.get(name, 0.0) for name in values]
    return {name: _estimate(v) for name, v in values.items()} | {
        "total": _estimate(np.average(list(values.values()), axis=0, weights=share))
    }


def _over_draws(draws: Sequence[Mapping[str, np.ndarray]], seed: int) -> dict[str, np.ndarray]:
    """Mean over draws `[1 + RESAMPLES]`: plain in the first entry, over resampled draws in the others."""
    rng = np.random.default_rng([seed, len(draws)])
    picks = rng.integers(0, len(draws), (RESAMPLES, len(draws)))
    columns = np.arange(1, RESAMPLES + 1)[:, None]
    pooled = {}
    for name in draws[0]:
        stacked = np.stack([d[name] for d in draws])  # [draws, 1 + RESAMPLES]
        pooled[name] = np.concatenate([[stacked[:, 0].mean()], stacked[picks, columns].mean(1)])
    return pooled


def _estimate(values: np.ndarray) -> Estimate:
    low, high = np.percentile(values[1:], [2.5, 97.5])
    return Estimate(float(values[0]), float(low), float(high))


def _chance_corrected(draws: Sequence[Scores], dense: Scores) -> dict[str, float]:
    kept: dict[str, list[float]] = {}
    for scores in draws:
        for pruned, full in _pairs(scores, dense, "accuracy"):
            if full.chance is not None and full.value > full.chance:
                share = 100 * (pruned.value - full.chance) / (full.value - full.chance)
                kept.setdefault(pruned.dimension, []).append(share)
    return {name: float(np.mean(values)) for name, values in kept.items()}


def _pairs(scores: Scores, dense: Scores, measure: str) -> list[tuple[TaskScore, TaskScore]]:
    if measure not in MEASURES:
        raise UsageError(f"unknown measure '{measure}': {' or '.join(MEASURES)}")
    by_name = {t.task: t for t in dense.tasks}
    pairs = [(t, by_name[t.task]) for t in scores.tasks if t.metric in MEASURES[measure] and t.task in by_name]
    if not pairs:
        raise UsageError(f"the two scores share no task measured in {' or '.join(MEASURES[measure])}")
    for pruned, full in pairs:
        if len(pruned.items) != len(full.items):
            raise UsageError(
                f"task '{pruned.task}' was scored on {len(pruned.items)} items, the dense on {len(full.items)}"
            )
    return pairs


def _resampled(scores: Scores, dense: Scores, measure: str, seed: int) -> dict[str, np.ndarray]:
    """Per dimension `[1 + RESAMPLES]`: retention on all items, then on bootstrap samples of them.

    The resampled indices depend on task name, item count and seed alone: calls are paired with one another.
    """
    kept: dict[str, list[np.ndarray]] = {}
    for pruned, full in _pairs(scores, dense, measure):
        n = len(pruned.items)
        rng = np.random.default_rng([seed, n, *pruned.task.encode()])
        index = np.vstack([np.arange(n), rng.integers(0, n, (RESAMPLES, n))])
        ratio = _likelihood_ratio if measure == "likelihood" else _accuracy_ratio
        kept.setdefault(pruned.dimension, []).append(100 * ratio(np.array(pruned.items), np.array(full.items), index))
    return {name: np.mean(values, axis=0) for name, values in kept.items()}


def _likelihood_ratio(pruned: np.ndarray, dense: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Bits per byte, dense over pruned; items are (bits, bytes) of the same texts, so the bytes cancel."""
    return dense[:, 0][index].sum(1) / pruned[:, 0][index].sum(1)


def _accuracy_ratio(pruned: np.ndarray, dense: np.ndarray, index: np.ndarray) -> np.ndarray:
    return pruned[:, 0][index].mean(1) / np.maximum(dense[:, 0][index].mean(1), 1e-9)
