"""ex20 ★★★ The noise floor

Page: book/why-different

Two calibration strategies were tried with several draws each; `a` and `b` hold the retentions.
Write two functions.

- `p_value(a, b)`: the exact two-sided permutation p-value of the difference of the means: the
  share, among *all* ways to split the pooled draws into groups of these sizes, of differences at
  least as large in absolute value (treat values within 1e-9 as equal; the observed split is one of
  them).
- `draws_needed(alpha)`: the smallest number of draws per strategy for which this test can reach `p
  <= alpha` at all.

What does the second function say about tables with one draw per source? And with three?
"""

from itertools import combinations
from math import comb


def p_value(a, b):
    """Share of splits at least as extreme."""
    # BEGIN: all combinations of len(a) positions of the pooled draws
    pool = [*a, *b]

    def gap(chosen):
        left = sum(pool[i] for i in chosen)
        return abs(left / len(a) - (sum(pool) - left) / len(b))

    splits = list(combinations(range(len(pool)), len(a)))
    observed = gap(range(len(a)))
    return sum(gap(split) >= observed - 1e-9 for split in splits) / len(splits)
    # END


def draws_needed(alpha):
    """Smallest number of draws per side whose smallest possible p-value is at most alpha."""
    # BEGIN: with k draws a side, the most extreme split and its mirror image are two of comb(2k, k)
    k = 1
    while 2 / comb(2 * k, k) > alpha:
        k += 1
    return k
    # END


# CHECK


def check():
    assert abs(p_value([1, 2, 3], [11, 12, 13]) - 0.1) < 1e-12, "3 against 3: the best possible is 2 splits of 20"
    assert abs(p_value([1], [2]) - 1) < 1e-12, "one draw a side can show nothing"
    assert p_value([5, 5], [5, 5]) == 1, "without any difference every split is as extreme"
    assert abs(p_value([1, 2, 3, 4], [9, 8, 7, 6]) - 2 / 70) < 1e-12, "4 against 4: 2 splits of 70"
    assert abs(p_value([1, 2], [3, 4, 5]) - 0.2) < 1e-12, "groups of two and three: 2 splits of 10 are as extreme"
    same = p_value([60.1, 58.2, 59.5], [59.9, 58.8, 59.3])
    assert same > 0.5, "a difference inside the spread of the draws is no effect"
    assert draws_needed(0.1) == 3 and draws_needed(0.05) == 4 and draws_needed(0.01) == 5, (
        "find the smallest k with 2 / comb(2k, k) <= alpha"
    )
