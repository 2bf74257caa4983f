"""ex06 ★★★ SparseGPT for one row

Page: book/primer-pruning

Write `sparsegpt_row(w, hessian, k)`. Let `U` be the upper triangular factor with `U.T @ U = H^-1`.
Choose the `k` weights with the smallest `w_j^2 / U_jj^2` once, at the start. Then go through the
columns from left to right: when column `j` is to be pruned, divide its *current* weight by `U_jj`,
call the result `e_j`, and subtract `e_j U_jk` from every weight `k` from `j` on. Return the new
row, the mask (True = pruned) and the sum of all `e_j^2`.

Then think: why is that sum the exact error of the row? (The check tests it.) And how far from the
best row with the same mask is it?
"""

import numpy as np


def sparsegpt_row(w, hessian, k):
    """New row `[d]`, mask `[d]`, error."""
    # BEGIN: factor, mask, one pass over the columns
    upper = np.linalg.cholesky(np.linalg.inv(hessian)).T
    mask = np.zeros(len(w), dtype=bool)
    mask[np.argsort((w / upper.diagonal()) ** 2, kind="stable")[:k]] = True
    new, error = w.astype(float), 0.0
    for j in np.flatnonzero(mask):
        e = new[j] / upper[j, j]
        new[j:] -= e * upper[j, j:]
        new[j] = 0.0
        error += e * e
    return new, mask, error
    # END


# CHECK


def check():
    w, hessian = np.array([1.0, 1.1, 1.2]), np.array([[4.0, 2, 0], [2, 3, 1], [0, 1, 2]])
    new, mask, error = sparsegpt_row(w.copy(), hessian, 1)
    assert list(mask) == [True, False, False], "the example of the page: SparseGPT removes the first weight"
    assert np.allclose(new, [0, 1.9, 0.8]) and np.isclose(error, 2.4), "the row is (0, 1.9, 0.8) with error 2.400"
    rng = np.random.default_rng(0)
    gains = []
    for _ in range(40):
        x, w = rng.standard_normal((10, 10)) @ rng.standard_normal((10, 30)), rng.standard_normal(10)
        hessian = x @ x.T
        new, mask, error = sparsegpt_row(w.copy(), hessian, 5)
        assert sum(mask) == 5 and not np.asarray(new)[np.asarray(mask)].any(), "exactly k weights must be zero"
        assert np.isclose((new - w) @ hessian @ (new - w), error), "the sum of e_j^2 must be the error of the row"
        first = np.flatnonzero(mask)[0]
        assert np.allclose(new[:first], w[:first]), "columns that were passed are never touched again"
        plain = np.where(mask, 0, w) - w
        gains.append(error / (plain @ hessian @ plain))
    assert np.median(gains) < 0.9, "the later columns do not compensate: update every column from j on"
