"""ex13 ★★ Is it chance?

Page: book/primer-rank-correlation

Write `p_value(x, y, resamples, seed)`: the two-sided permutation p-value of Spearman's rho. Draw
`resamples` random pairings of `x` with `y`, count those whose absolute rho is at least the observed
one, and include the observed pairing itself in the count and in the total (the add-one rule;
without it a p-value could be zero). Allow for rounding: treat values within 1e-9 as equal.
"""

import numpy as np
from scipy.stats import rankdata


def p_value(x, y, resamples=9999, seed=0):
    """Share of pairings at least as extreme, the observed one included."""
    # BEGIN: permute one of the two vectors of ranks
    rng = np.random.default_rng(seed)
    a, b = rankdata(x), rankdata(y)
    a, b = a - a.mean(), b - b.mean()
    observed = abs(a @ b)
    shuffled = rng.permuted(np.tile(b, (resamples, 1)), axis=1)
    extreme = np.sum(np.abs(shuffled @ a) >= observed - 1e-9)
    return float((1 + extreme) / (1 + resamples))
    # END


# CHECK


def check():
    line = np.arange(12.0)
    assert p_value(line, line, 999) > 0, "a p-value is never zero: count the observed pairing"
    assert p_value(line, line, 999) <= 0.002, "twelve points in perfect order are not chance"
    assert np.isclose(p_value(np.arange(5), np.arange(5), 40000), 2 / 120, atol=0.004), (
        "of the 120 orders of 5 points, two have |rho| = 1: the test is two-sided"
    )
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal(15), rng.standard_normal(15)
    assert abs(p_value(x, y) - p_value(x, -y)) < 0.02, "two-sided: the sign must not matter"
    assert p_value(x, y, seed=3) == p_value(x, y, seed=3), "one seed, one answer"
    noise = [p_value(rng.standard_normal(15), rng.standard_normal(15), 199, seed=s) for s in range(400)]
    assert 0.02 < np.mean(np.array(noise) <= 0.05) < 0.085, "without an effect, about 5 % of p-values are below 0.05"
