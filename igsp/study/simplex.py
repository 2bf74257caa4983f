"""Search over mixtures: a simplex-centroid design (Scheffe 1963), then steps from the best towards each source."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations, islice

from igsp.scoring.retention import Estimate
from igsp.text.windows import largest_remainder

Weights = dict[str, float]


@dataclass(frozen=True)
class Trial:
    """One mix of the search: shares by source (sum 1, in whole windows), retention by dimension in percent, asked mean.

    `gain` is that mean minus the uniform mix's, paired over items.
    """

    weights: Weights
    retention: dict[str, float]
    asked: float
    gain: Estimate


def climb(trial: Callable[[Weights], Trial], start: Weights, n: int, budget: int) -> list[Trial]:
    """At most `budget` trials: the design, then from the best so far steps towards each source; no gain: half the step.

    Every mix tried is one that `n` windows can have, so that what is found is what `mix` makes of it.
    """
    found = [trial(weights) for weights in islice(design(start, n), max(1, 2 * budget // 3))]
    best, step = max(found, key=lambda t: t.asked), 1 / 3
    while len(found) < budget and step * n >= 1:
        known = [t.weights for t in found]
        moves = [whole(towards(best.weights, name, step), n) for name in start]
        new = [w for i, w in enumerate(moves) if w not in known + moves[:i]][: budget - len(found)]
        found += [trial(weights) for weights in new]
        top = max(found, key=lambda t: t.asked)
        if top is best:
            step /= 2
        best = top
    return found


def design(names: Iterable[str], n: int) -> Iterator[Weights]:
    """Simplex-centroid design in whole windows: equal shares of all names, then of every one, every two, ...

    >>> [list(w.values()) for w in design("ab", 4)]
    [[0.5, 0.5], [1.0, 0.0], [0.0, 1.0]]
    """
    names = list(names)
    for size in (len(names), *range(1, len(names))):
        for part in combinations(names, size):
            yield whole({name: float(name in part) for name in names}, n)


def towards(weights: Weights, name: str, step: float) -> Weights:
    """Weights a share `step` of the way to `name` alone.

    >>> towards({"a": 0.5, "b": 0.5}, "a", 0.5)
    {'a': 0.75, 'b': 0.25}
    """
    return {key: (1 - step) * w + step * (key == name) for key, w in weights.items()}


def whole(weights: Weights, n: int) -> Weights:
    """Shares that `n` windows can have: the counts of `largest_remainder` over `n`.

    >>> whole({"a": 2, "b": 1}, 4)
    {'a': 0.75, 'b': 0.25}
    """
    return {name: count / n for name, count in largest_remainder(weights, n).items()}
