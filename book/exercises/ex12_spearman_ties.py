"""ex12 ★ Spearman with ties

Page: book/primer-rank-correlation

The formula with the squared differences of ranks holds only without ties. Write `spearman(x, y)`
for vectors with ties, with numpy alone: equal values share the mean of the ranks that they occupy,
and rho is the ordinary correlation of these ranks. Raise `ValueError` when one vector is constant.
"""

import numpy as np


def spearman(x, y):
    """Correlation of mid-ranks."""
    # BEGIN: the rank of a value is the count of smaller values plus half of (the equal ones + 1)
    def ranks(values):
        values = np.asarray(values)
        smaller = (values[None] < values[:, None]).sum(1)
        equal = (values[None] == values[:, None]).sum(1)
        return smaller + (equal + 1) / 2

    a, b = ranks(x), ranks(y)
    if a.std() == 0 or b.std() == 0:
        raise ValueError("a constant vector has no ranks")
    return float(np.corrcoef(a, b)[0, 1])
    # END


# CHECK


def check():
    from scipy import stats

    assert np.isclose(spearman([1, 2, 3, 4], [10, 20, 30, 4000]), 1), "only the order counts"
    assert np.isclose(spearman([1, 2, 3], [3, 2, 1]), -1), "reversed orders have rho = -1"
    x, y = [1, 1, 2, 3], [1, 2, 3, 3]
    assert np.isclose(spearman(x, y), stats.spearmanr(x, y).statistic), "ties share the mean of their ranks: 1.5, 1.5"
    rng = np.random.default_rng(0)
    for _ in range(20):
        x, y = rng.integers(0, 4, 15), rng.integers(0, 4, 15)
        assert np.isclose(spearman(x, y), stats.spearmanr(x, y).statistic), f"wrong for x = {x}, y = {y}"
    try:
        spearman([1, 1, 1], [1, 2, 3])
    except ValueError:
        return
    raise AssertionError("a constant vector must be refused with ValueError")
