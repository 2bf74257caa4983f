"""ex19 ★★ Paired differences

Page: book/notebooks/06-baselines

Two pruned models were scored on the same items: `a` and `b` `[n]`. Write `standard_errors(a, b,
resamples, seed)`, bootstrap standard errors of the difference of the two means. The first resamples
items and keeps both scores of an item together (paired); the second resamples the items of `a` and
of `b` independently (unpaired). Return both. Which of them belongs in a comparison of two
calibration sets?
"""

import numpy as np


def standard_errors(a, b, resamples=2000, seed=0):
    """Paired and unpaired standard error of mean(a) - mean(b)."""
    # BEGIN: the same indices for both, then different ones
    rng = np.random.default_rng(seed)
    a, b = np.asarray(a), np.asarray(b)
    first, second = rng.integers(0, len(a), (2, resamples, len(a)))
    paired = a[first].mean(1) - b[first].mean(1)
    unpaired = a[first].mean(1) - b[second].mean(1)
    return float(paired.std()), float(unpaired.std())
    # END


# CHECK


def check():
    rng = np.random.default_rng(0)
    difficulty = rng.standard_normal(200)
    a, b = difficulty + 0.1 * rng.standard_normal(200) + 0.05, difficulty + 0.1 * rng.standard_normal(200)
    paired, unpaired = standard_errors(a, b)
    assert np.isclose(paired, (a - b).std() / np.sqrt(200), rtol=0.1), "paired: std of the differences over sqrt(n)"
    expected = np.sqrt((a.var() + b.var()) / 200)
    assert np.isclose(unpaired, expected, rtol=0.1), "unpaired: the variances of the two means add up"
    assert unpaired > 5 * paired, "a hard item is hard for both: pairing takes the difficulty out"
    assert standard_errors(a, a)[0] < 1e-12, "a model does not differ from itself on any item"
    assert standard_errors(a, b, seed=5) == standard_errors(a, b, seed=5), "one seed, one answer"
