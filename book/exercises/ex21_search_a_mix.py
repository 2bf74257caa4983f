"""ex21 ★★★ Search a mix, and confirm it

Page: book/notebooks/04-uniform-mix

`evaluate(weights, text)` prunes with a mixture and returns the retention of four dimensions, as a
list. It is noisy, and costs: you may call it `budget` times in all. `text` is `"search"` or
`"confirm"`, two disjoint halves of the held-out text. Write `search(evaluate, sources, budget,
seed)`: find weights over the sources (non-negative, sum 1) with a high *minimum* over the
dimensions. Look at the half `"search"` as often as the budget allows, and at `"confirm"` exactly
once, at the very end, for the weights you return. Return the weights (a dictionary) and that one
minimum.

Why is the minimum that the search itself saw for its winner too good to be true?
"""

import numpy as np


def search(evaluate, sources, budget, seed=0):
    """Weights by source, and the minimum over the dimensions on the half that the search has not seen."""
    # BEGIN: random neighbours of the best so far; any honest search will do
    rng = np.random.default_rng(seed)
    best = np.full(len(sources), 1 / len(sources))
    value = min(evaluate(dict(zip(sources, best, strict=True)), "search"))
    for _ in range(budget - 2):
        trial = rng.dirichlet(1 + 20 * best)
        found = min(evaluate(dict(zip(sources, trial, strict=True)), "search"))
        if found > value:
            best, value = trial, found
    weights = dict(zip(sources, (float(w) for w in best), strict=True))
    return weights, min(evaluate(weights, "confirm"))
    # END


# CHECK


def check():
    names = ["web", "stories", "code", "math", "mixed"]
    effect = np.array([[9, 3, 1, 1, 3], [3, 9, 1, 1, 3], [0.3, 0.2, 3, 1, 1], [0.3, 0.2, 1, 3, 1.0]])

    def respond(weights, noise):
        w = np.array([weights[name] for name in names])
        assert (w >= 0).all() and abs(w.sum() - 1) < 1e-6, "weights must be non-negative and sum to 1"
        return list(100 * (1 - np.exp(-effect @ w)) + noise)

    uniform = min(respond(dict.fromkeys(names, 0.2), 0))
    gains, claimed = [], []
    for seed in range(5):
        rng, calls = np.random.default_rng(seed), []

        def evaluate(weights, text, rng=rng, calls=calls):
            values = respond(weights, rng.normal(0, 1, 4))
            calls.append((text, min(values)))
            return values

        weights, confirmed = search(evaluate, names, 60, seed=seed)
        texts = [text for text, _ in calls]
        assert len(calls) <= 60, f"the budget is 60 evaluations, these are {len(calls)}"
        assert texts.count("confirm") == 1 and texts[-1] == "confirm", "look at 'confirm' once, at the very end"
        assert confirmed == calls[-1][1], "return the minimum measured on 'confirm', not that of the search"
        gains.append(min(respond(weights, 0)) - uniform)
        claimed.append(max(value for text, value in calls if text == "search") - min(respond(weights, 0)))
    gain = np.mean(gains)
    assert gain > 3, f"the found mix should beat the uniform one by more than 3 points, not {gain:.1f}"
    print(f"on the half it looked at, the search overstated its winner by {np.mean(claimed):.1f} points")
