"""ex22 ★★★ Confounded by kind

Page: book/primer-rank-correlation

Sources come in families, and a correlation over 15 sources may be nothing but a difference between
families. Write `within_p(x, y, family, resamples, seed)`: a permutation p-value (two-sided, add-one
rule, as in ex13) that shuffles `y` only *inside* each family, so that differences between families
cannot make a result look significant. The statistic is the sum of `x * y` after the mean rank of
its family was taken off each rank.

Apply it to the published ranks of your own run: is anything left of the trade-off?
"""

import numpy as np
from scipy.stats import rankdata


def within_p(x, y, family, resamples=1999, seed=0):
    """p-value of the association inside the families."""
    # BEGIN: centre the ranks by family, shuffle by family
    rng = np.random.default_rng(seed)
    family = np.asarray(family)
    groups = [np.flatnonzero(family == name) for name in np.unique(family)]
    a, b = rankdata(x), rankdata(y)
    for group in groups:
        a[group] -= a[group].mean()
        b[group] -= b[group].mean()
    shuffled = np.tile(b, (resamples, 1))
    for group in groups:
        shuffled[:, group] = rng.permuted(shuffled[:, group], axis=1)
    extreme = np.sum(np.abs(shuffled @ a) >= abs(a @ b) - 1e-9)
    return float((1 + extreme) / (1 + resamples))
    # END


# CHECK


def check():
    rng = np.random.default_rng(0)
    family = np.repeat(["code", "math", "stories", "web"], 4)
    level = np.repeat([0.0, 10, 20, 30], 4)

    def confounded():
        return level + rng.standard_normal(16), level + rng.standard_normal(16)

    shares = [within_p(*confounded(), family, 199, seed=s) for s in range(60)]
    assert np.mean(np.array(shares) <= 0.05) < 0.15, "families alone must not look significant: shuffle inside them"
    inside = np.tile([1.0, 2, 3, 4], 4)
    assert within_p(level + inside, -level + inside, family) < 0.01, "a trend inside every family must be found"
    assert within_p(level, level, family) == 1, "without spread inside the families there is no evidence at all"
    pairs, two = [1, 2, 11, 12], ["a", "a", "b", "b"]
    assert abs(within_p(pairs, pairs, two) - 0.5) < 0.05, "two pairs can be shuffled in 4 ways, 2 are as extreme"
    x, y = confounded()
    assert within_p(x, y, family, seed=2) == within_p(x, y, family, seed=2), "one seed, one answer"
    order = rng.permutation(16)
    a, b = within_p(x, y, family), within_p(x[order], y[order], family[order])
    assert abs(a - b) < 0.05, "the order in which the sources are listed must not matter"
