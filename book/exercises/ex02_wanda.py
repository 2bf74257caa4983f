"""ex02 ★ Wanda in three lines

Page: book/primer-pruning

Write `wanda_mask(W, X, sparsity)`. `W` `[rows, d]` holds one output per row, `X` `[d, m]` one
calibration token per column. The score of a weight is its magnitude times the length of its input,
a row of `X`. In each row prune the `floor(d * sparsity)` weights with the smallest score; of equal
scores the earlier column goes first. Return a boolean mask `[rows, d]`, True where a weight is
pruned.
"""

import numpy as np


def wanda_mask(W, X, sparsity):
    """True where Wanda prunes `W` `[rows, d]`, given inputs `X` `[d, m]`."""
    # BEGIN: scores, the order of each row, and the first ones of it
    score = np.abs(W) * np.linalg.norm(X, axis=1)
    order = np.argsort(score, axis=1, kind="stable")
    mask = np.zeros(W.shape, dtype=bool)
    np.put_along_axis(mask, order[:, : int(W.shape[1] * sparsity)], True, axis=1)
    return mask
    # END


# CHECK


def check():
    w, x = np.array([[1.0, 1.1, 1.2]]), np.array([[2.0, 0, 0, 0], [1, 1, 1, 0], [0, 1, 0, 1]])
    mask = np.asarray(wanda_mask(w, x, 1 / 3))
    assert mask.dtype == bool and mask.shape == w.shape, "return a boolean mask of the shape of W"
    assert mask.tolist() == [[False, False, True]], "the example of the page: Wanda removes the third weight"
    rng = np.random.default_rng(0)
    weights, inputs = rng.standard_normal((5, 8)), rng.standard_normal((8, 30))
    mask = wanda_mask(weights, inputs, 0.5)
    assert (mask.sum(1) == 4).all(), "every ROW loses the same number of weights"
    assert (wanda_mask(-weights, inputs, 0.5) == mask).all(), "the sign of a weight does not matter"
    loud = inputs.copy()
    loud[2] *= 1000
    assert not wanda_mask(weights, loud, 0.5)[:, 2].any(), "a loud input protects the weights that read it"
    ties = wanda_mask(np.ones((1, 4)), np.ones((4, 2)), 0.5)
    assert ties.tolist() == [[True, True, False, False]], "of equal scores the earlier column goes first"
    assert not wanda_mask(weights, inputs, 0.1).any(), "the count is rounded down: 0.8 of a weight is none"
