"""Rank correlation: against scipy, by enumeration, and at its edges."""

import math
from itertools import permutations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from igsp.errors import UsageError
from igsp.scoring import correlation
from igsp.scoring.correlation import holm, spearman, spearman_table


def test_rho_is_scipys_with_ties():
    rng = np.random.default_rng(0)
    for _ in range(20):
        x, y = rng.integers(0, 6, 15), rng.normal(size=15)
        if np.ptp(x):
            assert spearman(x, y, resamples=99).rho == pytest.approx(stats.spearmanr(x, y).statistic)


@pytest.mark.parametrize("x, y", [([1, 2, 3, 4, 5], [2, 1, 4, 3, 5]), ([1, 2, 2, 4, 5, 6], [3, 3, 1, 2, 6, 5])])
def test_small_n_gives_the_exact_permutation_p_with_and_without_ties(x, y):
    observed = abs(stats.spearmanr(x, y).statistic)
    every = [abs(stats.spearmanr(x, p).statistic) for p in permutations(y)]
    assert spearman(x, y).p == pytest.approx(np.mean(np.array(every) >= observed - 1e-12))


def test_p_at_15_points_is_exact_and_no_seed_moves_it():
    """The printed tables (Zar 1972) give 0.521 as the two-sided 5 % limit at n = 15."""
    x = np.arange(15.0)
    sums, counts, _ = correlation._null(tuple(range(2, 32, 2)), tuple(range(2, 32, 2)))
    assert counts.sum() == math.factorial(15)
    rho = (sums / 4 - 15 * 16**2 / 4) / ((15**3 - 15) / 12)
    limits = [r for r in rho[rho > 0.4] if counts[np.abs(rho) >= r - 1e-12].sum() <= 0.05 * counts.sum()]
    assert min(limits) == pytest.approx(0.521, abs=5e-4)
    y = np.random.default_rng(3).permutation(15)
    found = [spearman(x, y, seed=seed, resamples=99).p for seed in range(3)]
    assert len(set(found)) == 1
    assert found[0] == pytest.approx(stats.spearmanr(x, y).pvalue, abs=0.01)
    assert spearman(x, x).p == pytest.approx(2 / math.factorial(15)), "this order and its reverse"


def test_p_of_more_points_counts_the_observed_pairing_and_no_seed_moves_it():
    x, y = np.arange(25.0), np.random.default_rng(1).permutation(25)
    found = {spearman(x, y, seed=seed, resamples=99).p for seed in range(3)}
    assert len(found) == 1 and found.pop() == pytest.approx(stats.spearmanr(x, y).pvalue, abs=0.005)
    assert spearman(x, -x).p == pytest.approx(1 / (correlation.PAIRINGS + 1))


def test_interval_covers_the_true_value_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    normal = rng.multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], size=(60, 30))
    true = 6 / np.pi * np.arcsin(0.3)  # Spearman's rho of a bivariate normal with correlation 0.6
    inside = [s.low <= true <= s.high for s in (spearman(d[:, 0], d[:, 1], resamples=499) for d in normal)]
    assert 0.85 <= np.mean(inside) <= 1.0


def test_perfect_order_has_a_finite_interval():
    found = spearman(np.arange(8.0), np.arange(8.0) ** 3)
    assert found.rho == pytest.approx(1.0)
    assert found.low <= found.rho <= found.high + 1e-12


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_holm_by_its_definition(p):
    """Adjusted p is the smallest level at which the step-down procedure rejects."""
    adjusted = holm(np.array(p))
    assert (adjusted >= np.array(p) - 1e-15).all() and (adjusted <= 1).all()
    for alpha in (0.01, 0.05, 0.3):
        order, rejected = np.argsort(p, kind="stable"), set()
        for step, index in enumerate(order):
            if p[index] > alpha / (len(p) - step):
                break
            rejected.add(int(index))
        clear = np.abs(adjusted - alpha) > 1e-9
        assert {int(i) for i in np.flatnonzero((adjusted <= alpha) & clear)} == {i for i in rejected if clear[i]}


def test_table_leaves_constant_metrics_out_and_corrects_over_all_rows():
    rng = np.random.default_rng(0)
    sources = [f"s{i}" for i in range(12)]
    metrics = pd.DataFrame({"a": rng.normal(size=12), "constant": 1.0}, index=sources)
    kept = pd.DataFrame({"general": rng.normal(size=12), "code": rng.normal(size=12)}, index=sources[::-1])
    table = spearman_table(metrics, kept)
    assert list(table.metric.unique()) == ["a"] and len(table) == 2
    aligned = kept.loc[sources]
    assert table.rho[0] == pytest.approx(stats.spearmanr(metrics.a, aligned.general).statistic)
    assert table.p_holm.to_numpy() == pytest.approx(holm(table.p.to_numpy()))


@pytest.mark.parametrize(
    "x, y",
    [
        ([1, 2, 3], [1, 2, 3]),
        ([1, 1, 1, 1], [1, 2, 3, 4]),
        ([1, 2, np.nan, 4], [1, 2, 3, 4]),
        ([1, 2, 3, 4], [1, 2, 3]),
    ],
)
def test_bad_input_is_refused(x, y):
    with pytest.raises(UsageError):
        spearman(np.array(x), np.array(y))
