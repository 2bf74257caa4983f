"""ex16 ★★ What can 15 points show?

Page: book/primer-rank-correlation

Write `power(rho, n, trials, seed)`: the chance that `n` sources with a true rank correlation `rho`
give a Spearman correlation that is significant at 5 % (two-sided). Simulate: draw `trials` samples
of two normal variables whose ordinary correlation is `2 sin(pi rho / 6)`; take the limit from
samples without any correlation. Then find the number of sources that would give a power of 90 % for
`rho = 0.5`.
"""

import numpy as np


def power(rho, n, trials=4000, seed=0):
    """Chance of a significant result."""
    # BEGIN: ranks by argsort twice, a limit from independent samples, a share beyond it
    rng = np.random.default_rng(seed)

    def correlations(x, y):
        gaps = x.argsort(1).argsort(1) - y.argsort(1).argsort(1)
        return 1 - 6 * (gaps.astype(float) ** 2).sum(1) / (n * (n * n - 1))

    x, noise = rng.standard_normal((2, trials, n))
    limit = np.quantile(np.abs(correlations(x, noise)), 0.95)
    r = 2 * np.sin(np.pi * rho / 6)
    y = r * x + np.sqrt(1 - r * r) * rng.standard_normal((trials, n))
    return float(np.mean(np.abs(correlations(x, y)) >= limit))
    # END


# CHECK


def check():
    assert abs(power(0.0, 15) - 0.05) < 0.03, "without an effect 5 % are significant by definition"
    assert abs(power(0.5, 15) - 0.46) < 0.07, "the table of the page says 46 % for rho = 0.5 and 15 sources"
    assert abs(power(0.8, 15) - 0.95) < 0.04, "the table of the page says 95 % for rho = 0.8 and 15 sources"
    assert abs(power(-0.5, 15) - power(0.5, 15)) < 0.07, "two-sided: the sign must not matter"
    assert abs(power(0.5, 42) - 0.9) < 0.06, "some 42 sources give a power of 90 %"
