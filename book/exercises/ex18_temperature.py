"""ex18 ★★ Temperature

Page: book/protocols

Write two functions.

- `distribution(logits, temperature)`: probabilities `[v]` of the next token. A temperature of 0
  puts all probability on the largest logit (the first of equal ones). Large logits must not
  overflow.
- `schedule(written, initial, final, steps)`: the temperature of the next token after `written`
  tokens, on a straight line from `initial` to `final` over the first `steps` tokens, and `final`
  from then on.
"""

import numpy as np


def distribution(logits, temperature):
    """Probabilities `[v]`."""
    # BEGIN: take off the largest logit before dividing
    logits = np.asarray(logits, float)
    if temperature == 0:
        return np.eye(len(logits))[np.argmax(logits)]
    weights = np.exp((logits - logits.max()) / temperature)
    return weights / weights.sum()
    # END


def schedule(written, initial, final, steps):
    """Temperature of the next token."""
    # BEGIN: a line, then a constant
    return final if written >= steps else initial + (final - initial) * written / steps
    # END


# CHECK


def check():
    logits = np.log([0.5, 0.3, 0.2])
    assert np.allclose(distribution(logits, 1), [0.5, 0.3, 0.2]), "temperature 1 leaves the model's probabilities"
    assert np.allclose(distribution(logits, 0.5), np.array([25, 9, 4]) / 38), "temperature 1/2 squares the odds"
    entropies = [-(p * np.log(p)).sum() for p in (distribution(logits, t) for t in (0.3, 1, 3, 30))]
    assert np.all(np.diff(entropies) > 0), "a higher temperature spreads the probability"
    assert np.allclose(distribution([3.0, 7.0, 7.0], 0), [0, 1, 0]), "temperature 0: the first of the largest logits"
    with np.errstate(all="raise"):
        huge = distribution([1000.0, 999.0], 0.5)
    assert np.isfinite(huge).all() and huge[0] > huge[1], "exp(2000) overflows: take off the largest logit first"
    assert [schedule(i, 2.0, 1.0, 4) for i in (0, 1, 2, 4, 9)] == [2.0, 1.75, 1.5, 1.0, 1.0], "a line, then constant"
    assert schedule(0, 2.0, 1.0, 0) == 1.0, "no steps: the final temperature from the start"
