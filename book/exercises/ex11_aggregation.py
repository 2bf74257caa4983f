"""ex11 ★★ 4-gram aggregation

Page: book/primer-information

Write `aggregation(windows, order=4)` for a list of windows, each a list of tokens: one minus the
number of distinct n-grams over the number of n-gram occurrences, in the whole set. No n-gram
crosses the border between two windows. Raise `ValueError` if there is no n-gram.
"""


def aggregation(windows, order=4):
    """`1 - distinct / total` n-grams."""
    # BEGIN: collect the n-grams of every window as tuples
    grams = [tuple(w[i : i + order]) for w in windows for i in range(len(w) - order + 1)]
    if not grams:
        raise ValueError(f"no window has {order} tokens")
    return 1 - len(set(grams)) / len(grams)
    # END


# CHECK


def check():
    words = ["to", "be", "or", "not", "to", "be", "or", "not", "to", "be"]
    assert abs(aggregation([words]) - 3 / 7) < 1e-12, "the example of the page: four distinct 4-grams of seven"
    fresh = [list(range(i, i + 9)) for i in (0, 100, 200)]
    assert aggregation(fresh) == 0, "no 4-gram occurs twice, so nothing is repeated"
    assert abs(aggregation(fresh + fresh) - 0.5) < 1e-12, "a set and its copy: repetitions BETWEEN windows count"
    assert aggregation([[1, 2, 3, 4], [5, 6, 7, 8], [3, 4, 5, 6]]) == 0, "an n-gram must not cross two windows"
    assert abs(aggregation([[1, 1, 1, 1, 1]], order=1) - 0.8) < 1e-12, "order 1 counts single tokens"
    assert aggregation([[1, 2], [1, 2, 3, 4]]) == 0, "a window shorter than the order holds no n-gram"
    try:
        aggregation([[1, 2, 3]])
    except ValueError:
        return
    raise AssertionError("without any n-gram the ratio is undefined: raise ValueError")
