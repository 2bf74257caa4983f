"""ex05 ★★ Damp until it works

Page: book/primer-pruning

SparseGPT needs an upper triangular `U` with `U.T @ U = (H + a I)^-1`. With little calibration text
`H` is singular, so a share of its mean diagonal is added to the diagonal. Write
`damped_factor(hessian, damping)`: try `a = damping * mean diagonal`; if the matrix is not positive
definite, try 10 and then 100 times that damping. Return `U` and the damping that worked; raise
`ValueError` if none does.
"""

import numpy as np


def damped_factor(hessian, damping=0.01):
    """Upper factor `[d, d]` of the inverse of the damped Hessian, and the damping used."""
    # BEGIN: numpy.linalg.cholesky raises LinAlgError for a matrix that is not positive definite
    for used in (damping, 10 * damping, 100 * damping):
        damped = hessian + used * hessian.diagonal().mean() * np.eye(len(hessian))
        try:
            np.linalg.cholesky(damped)
            return np.linalg.cholesky(np.linalg.inv(damped)).T, used
        except np.linalg.LinAlgError:
            continue
    raise ValueError("not positive definite even with the largest damping")
    # END


# CHECK


def check():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((8, 40))
    upper, used = damped_factor(x @ x.T)
    assert np.isclose(used, 0.01), "a well-conditioned matrix needs no more than the asked damping"
    assert np.allclose(upper, np.triu(upper)), "U must be upper triangular: numpy's Cholesky factor is the lower one"
    damped = x @ x.T + 0.01 * (x @ x.T).diagonal().mean() * np.eye(8)
    assert np.allclose(upper.T @ upper @ damped, np.eye(8)), "U.T @ U is not the inverse of the damped Hessian"
    few = rng.standard_normal((8, 3))
    upper, _ = damped_factor(few @ few.T)
    assert np.isfinite(upper).all(), "three inputs cannot excite eight features: damping must make up for it"
    rotation = np.linalg.qr(rng.standard_normal((4, 4)))[0]
    spoilt = rotation @ np.diag([-0.05, 1.0, 1.0, 2.05]) @ rotation.T
    assert np.isclose(damped_factor(spoilt)[1], 0.1), "when 1 % is not enough, 10 % comes next"
    try:
        damped_factor(-np.eye(3) * 100 + np.ones((3, 3)) * 1.0)
    except ValueError as error:
        assert not isinstance(error, np.linalg.LinAlgError), "raise a ValueError of your own"
    else:
        raise AssertionError("a negative definite matrix must be refused with ValueError")
