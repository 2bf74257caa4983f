"""ex17 ★★★ Greedy is good, not best

Page: book/protocols

IGSP adds the window that covers most new 4-grams. Write two functions.

- `greedy(sets, k)`: indices of `k` of the given sets, chosen one at a time, each with the most
  elements not yet covered; of equal gains the earlier set wins; no set twice.
- `trap()`: a list of sets and a `k` for which the greedy choice covers *less* than the best choice
  of `k` sets.

Coverage is submodular: what a set adds never grows as others are added. It follows that greedy
covers at least `1 - 1/e` of the best. How close to that bound can you bring your trap?
"""

from itertools import combinations


def greedy(sets, k):
    """Indices of the chosen sets in the order of the choice."""
    # BEGIN: the largest gain, k times
    chosen, covered = [], set()
    for _ in range(k):
        best = max((i for i in range(len(sets)) if i not in chosen), key=lambda i: (len(sets[i] - covered), -i))
        chosen.append(best)
        covered |= sets[best]
    return chosen
    # END


def trap():
    """Sets and a k on which greedy is not best."""
    # BEGIN: tempt it with a set that overlaps both parts of the best choice
    return [{1, 2, 3, 4}, {1, 2, 5}, {3, 4, 6}], 2
    # END


# CHECK


def check():
    import math
    import random

    def covered(sets, chosen):
        return len(set().union(*(sets[i] for i in chosen)))

    def best(sets, k):
        return max(covered(sets, c) for c in combinations(range(len(sets)), k))

    assert list(greedy([{1}, {1, 2, 3}, {3, 4}], 2)) == [1, 2], "first the largest set, then what adds most to it"
    assert list(greedy([{1, 2, 3, 4}, {1, 2, 3}, {5, 6}], 2)) == [0, 2], "count the elements that are NEW"
    assert list(greedy([{1, 2}, {3, 4}, {1, 2}], 2)) == [0, 1], "a set that adds nothing is worth nothing"
    dice = random.Random(0)
    for _ in range(60):
        sets = [set(dice.sample(range(20), dice.randint(1, 7))) for _ in range(8)]
        chosen = list(greedy(sets, 3))
        assert len(set(chosen)) == 3, "choose k different sets"
        share = covered(sets, chosen) / best(sets, 3)
        assert share >= 1 - 1 / math.e, f"greedy must reach 63 % of the best, this choice has {share:.0%}"
    sets, k = trap()
    assert 0 < k <= len(sets) <= 12, "keep the trap small, so that all choices can be tried"
    assert covered(sets, greedy(sets, k)) < best(sets, k), "greedy finds the best choice here: tempt it with an overlap"
