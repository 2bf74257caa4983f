"""ex04 ★★ Exactly 60 per cent

Page: book/primer-pruning

"Prune 29 % of 100 weights" means 29 weights, yet `int(100 * 0.29)` is 28 in binary floating point.
Write two functions.

- `count(total, sparsity)`: `floor(total * sparsity)`, with `sparsity` read as the decimal number
  that it prints as.
- `block_counts(columns, rows, block, sparsity)`: SparseGPT chooses its mask in blocks of columns.
  Return a list, the number of weights to prune in each block of a `[rows, columns]` matrix, such
  that after *every* block the weights pruned so far are `count(weights so far, sparsity)`. The last
  block may be narrower.
"""

import math
from fractions import Fraction


def count(total, sparsity):
    """floor(total * sparsity) in exact decimal arithmetic."""
    # BEGIN: Fraction("0.29") is exact
    return math.floor(total * Fraction(str(sparsity)))
    # END


def block_counts(columns, rows, block, sparsity):
    """Weights to prune in each block of columns."""
    # BEGIN: differences of cumulative counts
    ends = [min(start + block, columns) for start in range(0, columns, block)]
    done = [count(end * rows, sparsity) for end in ends]
    return [after - before for before, after in zip([0, *done], done, strict=False)]
    # END


# CHECK


def check():
    assert count(100, 0.29) == 29, "0.29 has no finite binary expansion: go through its decimal text"
    assert count(100, 0.57) == 57 and count(1000, 0.001) == 1, "go through the decimal text of the number"
    assert count(128, 0.6) == 76, "round down: 76.8 is 76"
    assert count(10, 0.0) == 0, "nothing to prune"
    wrong = [n for n in range(1, 100) if count(100, n / 100) != n]
    assert not wrong, f"count(100, n / 100) is not n for n = {wrong}"
    for columns, rows, block, sparsity in ((300, 7, 128, 0.6), (256, 3, 128, 0.29), (5, 1, 2, 0.5)):
        counts = block_counts(columns, rows, block, sparsity)
        assert len(counts) == -(-columns // block), "one number per block; the last block may be narrower"
        assert sum(counts) == count(columns * rows, sparsity), "the blocks together miss the count: rounding adds up"
        for index in range(len(counts)):
            seen = min((index + 1) * block, columns) * rows
            assert sum(counts[: index + 1]) == count(seen, sparsity), "the count must hold after every block"
