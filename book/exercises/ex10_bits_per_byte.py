"""ex10 ★ Bits per byte

Page: book/primer-calibration

Perplexities of two models with different tokenizers cannot be compared, bits per byte can. Write
two functions.

- `bits_per_byte(loss, predicted, text)`: the model needs `loss` nats per token for `predicted`
  tokens, which spell `text`. Return the bits that it needs per byte of the text in UTF-8.
- `likelihood_retention(dense, pruned)`: retention in per cent from the bits per byte of the two
  models.
"""

import math


def bits_per_byte(loss, predicted, text):
    """Bits per byte of `text` in UTF-8."""
    # BEGIN: nats to bits, tokens to bytes
    return loss * predicted / math.log(2) / len(text.encode())
    # END


def likelihood_retention(dense, pruned):
    """`100 * dense / pruned`: fewer bits are better, so the pruned model's stand below."""
    # BEGIN: which of the two is larger after pruning?
    return 100 * dense / pruned
    # END


# CHECK


def check():
    assert math.isclose(bits_per_byte(math.log(2), 8, "12345678"), 1), "log 2 nats for every byte is one bit per byte"
    accents = bits_per_byte(math.log(2), 6, "éèà")
    assert math.isclose(accents, 1), "an accented letter has two bytes in UTF-8: count bytes, not characters"
    fine, coarse = bits_per_byte(1.0, 12, "x" * 12), bits_per_byte(3.0, 4, "x" * 12)
    assert math.isclose(fine, coarse), "the same total cost in fewer tokens is the same number of bits per byte"
    assert math.isclose(likelihood_retention(0.8, 0.8), 100), "an unchanged model keeps everything"
    assert math.isclose(likelihood_retention(0.9, 1.5), 60), "0.9 bits dense and 1.5 pruned is a retention of 60 %"
