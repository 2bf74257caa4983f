"""ex14 ★ Many tests

Page: book/primer-rank-correlation

Write `holm(p)`: Holm's corrected p-values, in the order of the given ones. Do 0.003, 0.021, 0.034,
0.042 by hand first.
"""

import numpy as np


def holm(p):
    """Corrected p-values `[m]`."""
    # BEGIN: sort, multiply by m, m - 1, ..., never go down, never over 1, and undo the sorting
    p = np.asarray(p, float)
    order = np.argsort(p, kind="stable")
    corrected = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1)
    result = np.empty(len(p))
    result[order] = corrected
    return result
    # END


# CHECK


def check():
    found = np.asarray(holm([0.003, 0.021, 0.034, 0.042]))
    assert np.isclose(found[0], 0.012), "the smallest is multiplied by the number of tests"
    assert np.isclose(found[3], 0.068), "a corrected value may not fall below the one before"
    assert np.allclose(found, [0.012, 0.063, 0.068, 0.068]), "multiply by 4, 3, 2, 1"
    assert np.allclose(holm([0.042, 0.003, 0.034, 0.021]), [0.068, 0.012, 0.068, 0.063]), "keep the given order"
    assert np.allclose(holm([0.9, 0.8]), [1, 1]), "a p-value is at most 1"
    rng = np.random.default_rng(0)
    tables = np.array([holm(row).min() <= 0.05 for row in rng.random((4000, 8))])
    assert 0.03 < tables.mean() < 0.065, "in 8 tests without effect, any false alarm should come in 5 % of the tables"
