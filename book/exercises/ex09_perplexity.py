"""ex09 ★ Perplexity of a calibration set

Page: book/primer-information

A model has scored windows of different lengths: `losses` holds the mean loss of each window in nats
per *predicted* token, and `lengths` its number of tokens. The first token of a window has no
context and is not predicted. Write `perplexity(losses, lengths)`, the exponential of the mean loss
over all predicted tokens.
"""

import numpy as np


def perplexity(losses, lengths):
    """exp of the token-weighted mean loss."""
    # BEGIN: weigh each window by the tokens it predicts
    predicted = np.asarray(lengths) - 1
    return float(np.exp(np.sum(np.asarray(losses) * predicted) / predicted.sum()))
    # END


# CHECK


def check():
    assert np.isclose(perplexity([np.log(20.0)], [8]), 20), "a loss of log 20 is a choice among 20 tokens"
    equal = perplexity([1.0, 3.0], [11, 11])
    assert not np.isclose(equal, (np.e + np.e**3) / 2), "average the losses first, take the exponential last"
    assert np.isclose(equal, np.e**2), "equal windows have equal weight"
    found = perplexity([1.0, 3.0], [2, 4])
    assert not np.isclose(found, np.exp((1 * 2 + 3 * 4) / 6)), "a window of 4 tokens predicts 3 of them"
    assert np.isclose(found, np.exp((1 * 1 + 3 * 3) / 4)), "weigh each window by its predicted tokens"
    assert np.isclose(perplexity([0.7] * 3, [5, 9, 2]), np.exp(0.7)), "equal losses do not depend on the lengths"
