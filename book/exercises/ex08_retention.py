"""ex08 ★ What is left?

Page: book/primer-calibration

Write `retention(pruned, dense, chance, dimension)`. The first three map task names to accuracies
between 0 and 1 (`chance` to the accuracy of guessing), the last one maps task names to dimensions.
Return a dictionary with four entries, all in per cent:

- `"plain"`: by dimension, the mean over its tasks of `100 * pruned / dense`;
- `"corrected"`: the same with the chance level taken off both;
- `"total"`: the plain mean of the plain dimensions;
- `"minimum"`: the smallest plain dimension.

Which of the four would you print in an abstract, and what would it hide?
"""


def retention(pruned, dense, chance, dimension):
    """Plain and chance-corrected retention by dimension, their total and minimum."""
    # BEGIN: per task first, then per dimension, then over the dimensions
    def by_dimension(keep):
        values = {}
        for task, name in dimension.items():
            values.setdefault(name, []).append(keep(task))
        return {name: sum(v) / len(v) for name, v in values.items()}

    plain = by_dimension(lambda t: 100 * pruned[t] / dense[t])
    corrected = by_dimension(lambda t: 100 * (pruned[t] - chance[t]) / (dense[t] - chance[t]))
    return {"plain": plain, "corrected": corrected, "total": sum(plain.values()) / len(plain),
            "minimum": min(plain.values())}
    # END


# CHECK


def check():
    def close(a, b):
        return abs(a - b) < 1e-9

    tasks = {"q": "general", "r": "general", "c": "code"}
    dense, chance = {"q": 0.5, "r": 0.75, "c": 0.4}, {"q": 0.25, "r": 0.25, "c": 0.0}
    found = retention({"q": 0.25, "r": 0.75, "c": 0.1}, dense, chance, tasks)
    assert set(found) == {"plain", "corrected", "total", "minimum"}, "return the four named entries"
    assert close(found["plain"]["general"], 75), "General: tasks keep 50 % and 100 %, the mean is 75 %"
    assert close(found["corrected"]["general"], 50), "corrected: guessing keeps 0 %, so General keeps 50 %"
    assert close(found["plain"]["code"], 25) and close(found["corrected"]["code"], 25), "without a floor both agree"
    assert close(found["total"], 50), "the total is the mean of DIMENSIONS, not of tasks: (75 + 25) / 2"
    assert close(found["minimum"], 25), "the minimum is that of the plain dimensions"
    same = retention(dense, dense, chance, tasks)
    assert close(same["total"], 100) and close(same["corrected"]["general"], 100), "an unpruned model keeps 100 %"
