"""ex07 ★ Share out the windows

Page: book/primer-calibration

Write `share(weights, n)`: `weights` maps source names to numbers, and `n` windows are to be
distributed in proportion. Give everybody the whole part of its share; the windows that are left go,
one each, to the largest remainders; of equal remainders the source named first wins. Return a
dictionary of the same names in the same order. Do 16 windows with weights 3 : 1 : 1 : 1 by hand
first.
"""

from fractions import Fraction


def share(weights, n):
    """Windows by source; they sum to `n`."""
    # BEGIN: whole parts, then the largest remainders
    total = sum(map(Fraction, weights.values()))
    shares = {name: n * Fraction(weight) / total for name, weight in weights.items()}
    counts = {name: int(value) for name, value in shares.items()}
    by_remainder = sorted(shares, key=lambda name: counts[name] - shares[name])
    for name in by_remainder[: n - sum(counts.values())]:
        counts[name] += 1
    return counts
    # END


# CHECK


def check():
    assert share({"a": 3, "b": 1, "c": 1, "d": 1}, 16) == {"a": 8, "b": 3, "c": 3, "d": 2}, (
        "shares 8, 2.67, 2.67, 2.67: two windows are left for three equal remainders"
    )
    assert share({"a": 1, "b": 1, "c": 1, "d": 1}, 16) == dict.fromkeys("abcd", 4), "equal weights, equal windows"
    assert list(share({"z": 1, "a": 1, "m": 1}, 2).items()) == [("z", 1), ("a", 1), ("m", 0)], "ties: first named wins"
    assert share({"a": 10, "b": 4, "c": 1}, 10) == {"a": 7, "b": 3, "c": 0}, (
        "shares 6.67, 2.67, 0.67: two windows for three equal remainders"
    )
    assert share({"a": 0, "b": 2}, 5) == {"a": 0, "b": 5}, "a weight of zero gets nothing"
    for n in range(60):
        assert sum(share({"a": 0.3, "b": 0.3, "c": 0.4}, n).values()) == n, f"the windows do not sum to n = {n}"
