"""ex01 ★ Remove one weight by hand

Page: book/primer-pruning

Given are a row of weights `w` `[d]` and a positive definite matrix `hessian` `[d, d]`. Write
`remove(w, hessian, q)`: it sets weight `q` to zero and changes the others such that the error `(v -
w) H (v - w)` of the new row `v` is as small as possible (Optimal Brain Surgeon). It returns the new
row and its error. Do the example of the page with pencil and paper first.
"""

import numpy as np


def remove(w, hessian, q):
    """New row `[d]` without weight `q`, and its error."""
    # BEGIN: the update and the error of the section on the Optimal Brain Surgeon
    inverse = np.linalg.inv(hessian)
    new = w - w[q] / inverse[q, q] * inverse[q]
    new[q] = 0.0
    return new, w[q] ** 2 / inverse[q, q]
    # END


# CHECK


def check():
    w, hessian = np.array([1.0, 1.1, 1.2]), np.array([[4.0, 2, 0], [2, 3, 1], [0, 1, 2]])
    for q, row, error in ((1, [1.55, 0, 1.75], 1.815), (2, [0.7, 1.7, 0], 2.16)):
        found, cost = remove(w.copy(), hessian, q)
        assert found[q] == 0, "the removed weight must be exactly zero, not nearly"
        assert np.allclose(found, row), f"without weight {q} the row is {row}: use row q of the INVERSE of the Hessian"
        assert np.isclose(cost, error), f"without weight {q} the error is {error}: w_q squared over [H^-1]_qq"
    rng = np.random.default_rng(0)
    x = rng.standard_normal((6, 20))
    w, hessian = rng.standard_normal(6), x @ x.T
    found, cost = remove(w.copy(), hessian, 3)
    change = found - w
    assert np.isclose(change @ hessian @ change, cost), "the returned error is not that of the returned row"
    slope = hessian @ change
    assert np.allclose(np.delete(slope, 3), 0, atol=1e-9), "the other weights can still be improved"
