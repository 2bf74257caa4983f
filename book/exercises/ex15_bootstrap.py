"""ex15 ★★ How sure is rho?

Page: book/primer-rank-correlation

Write `interval(x, y, resamples, seed)`: the 95 % percentile bootstrap interval of Spearman's rho.
Draw as many sources as there are, with replacement; compute rho (mid-ranks, as resampling makes
ties); repeat; return the 2.5 % and the 97.5 % point.

Then look at its width for 15 and for 150 sources. (The book uses the refined BCa interval; this is
its plain ancestor.)
"""

import numpy as np
from scipy.stats import rankdata


def interval(x, y, resamples=2000, seed=0):
    """Lower and upper end."""
    # BEGIN: one set of indices for both vectors
    rng = np.random.default_rng(seed)
    picks = rng.integers(0, len(x), (resamples, len(x)))
    a, b = (rankdata(np.asarray(v)[picks], axis=1) for v in (x, y))
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    rho = (a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))
    low, high = np.nanpercentile(rho, [2.5, 97.5])
    return float(low), float(high)
    # END


# CHECK


def check():
    line = np.arange(15.0)
    assert np.allclose(interval(line, line), 1), "resample the PAIRS: a perfect order stays perfect"
    rng = np.random.default_rng(0)

    def sample(n):
        x = rng.standard_normal(n)
        return x, 0.7 * x + 0.7 * rng.standard_normal(n)

    x, y = sample(15)
    low, high = interval(x, y)
    assert -1 <= low < high <= 1, "return the lower end first"
    assert interval(x, y, seed=4) == interval(x, y, seed=4), "one seed, one answer"
    narrow, wide = np.diff(interval(*sample(150)))[0], np.mean([np.diff(interval(*sample(15), 500)) for _ in range(10)])
    assert wide > 2 * narrow, "ten times the sources make the interval about three times narrower"
    inside = [a <= 0.683 <= b for a, b in (interval(*sample(15), 400, seed=s) for s in range(150))]
    assert np.mean(inside) > 0.85, "the interval misses the true value too often: is it the 95 % interval of rho?"
