"""Exact n-gram counting in windows of tokens.

An n-gram becomes one integer without hashing: token ids are packed side by side; where the next one does not fit
into 64 bits, what is there is replaced by its rank among those that occur. Equal integers therefore mean equal
n-grams, always.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray

from igsp.errors import UsageError

Ids = torch.Tensor | NDArray[np.integer]


def gram_keys(input_ids: Ids, order: int) -> NDArray[np.uint64]:
    """One key per n-gram occurrence: equal keys are equal n-grams.

    Args:
        input_ids: token ids, not negative, `[n, seqlen]`. No n-gram crosses a window.
        order: n, at least 1.

    Returns:
        `[n, seqlen - order + 1]`; no columns if the windows are shorter than `order`.

    Raises:
        UsageError: ids that are not a matrix of integers from 0, or an order below 1.
    """
    ids = np.asarray(input_ids)
    if order < 1:
        raise UsageError(f"an n-gram has at least one token: order {order} was asked for")
    if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer) or (ids.size and ids.min() < 0):
        raise UsageError(f"n-grams need token ids from 0 as [n, seqlen], got {ids.dtype} {list(ids.shape)}")
    if ids.shape[1] < order:
        return np.empty((len(ids), 0), dtype=np.uint64)
    bits = max(1, int(ids.max()).bit_length()) if ids.size else 1
    keys, ids = ids.astype(np.uint64), ids.astype(np.uint64)
    width = bits
    for offset in range(1, order):
        keys = keys[:, :-1]
        if width + bits > 64:
            keys, width = _ranks(keys)
        assert width + bits <= 64  # ranks are below the number of occurrences
        keys, width = keys << np.uint64(bits) | ids[:, offset:], width + bits
    return keys


def _ranks(keys: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], int]:
    """Keys replaced by their rank among the distinct keys, and the bits that a rank needs."""
    distinct, inverse = np.unique(keys, return_inverse=True)
    return inverse.reshape(keys.shape).astype(np.uint64), max(1, (len(distinct) - 1).bit_length())


def distinct_and_total(input_ids: Ids, order: int) -> tuple[int, int]:
    """Number of distinct n-grams and of n-gram occurrences in windows `[n, seqlen]`, exactly.

    Only n-grams inside a window count. Raises `UsageError` as `gram_keys`.
    """
    keys = np.sort(gram_keys(input_ids, order), axis=None)
    return int(np.count_nonzero(keys[1:] != keys[:-1])) + (keys.size > 0), keys.size


def aggregation(input_ids: Ids, order: int) -> float:
    """`A_n = 1 - distinct / total` n-grams within windows (our definition): 0 if no n-gram occurs twice.

    Raises `UsageError` as `gram_keys`, and for windows shorter than `order`.

    >>> round(aggregation(np.array([[1, 2, 3, 4, 1, 2, 3, 4]]), 4), 3)  # 5 four-grams, the first comes twice
    0.2
    """
    distinct, total = distinct_and_total(input_ids, order)
    if not total:
        raise UsageError(f"windows of {np.asarray(input_ids).shape[-1]} tokens hold no {order}-gram: use a lower order")
    return 1.0 - distinct / total


def window_aggregation(input_ids: Ids, order: int) -> NDArray[np.float64]:
    """`A_n` of each window by itself, `[n]`: near 1 for a loop."""
    keys = np.sort(gram_keys(input_ids, order), axis=1)
    if not keys.shape[1]:
        raise UsageError(f"windows of {np.asarray(input_ids).shape[-1]} tokens hold no {order}-gram: use a lower order")
    return (keys[:, 1:] == keys[:, :-1]).sum(axis=1) / keys.shape[1]


class Coverage:
    """Which distinct items (n-grams, words) a growing choice of rows covers; all counts are exact.

    Items that occur in one row only always count as new, so just their number is kept.

    Args:
        keys: item keys of each row, `[n, m]`; repeats within a row are allowed.
    """

    def __init__(self, keys: NDArray[np.uint64]) -> None:
        ids, _ = _ranks(keys) if keys.size else (keys, 0)
        ids = np.sort(ids.astype(np.uint32), axis=1)
        first = np.ones(ids.shape, dtype=bool)
        first[:, 1:] = ids[:, 1:] != ids[:, :-1]
        rows_with = np.bincount(ids[first].astype(np.int64))
        shared = first & (rows_with[ids] > 1) if keys.size else first
        self.own = (first & ~shared).sum(axis=1)
        self.size = self.own + shared.sum(axis=1)
        self._items = ids[shared]
        self._ends = np.concatenate([[0], np.cumsum(shared.sum(axis=1))])
        self._covered = np.zeros(len(rows_with), dtype=bool)
        self.total = 0

    @classmethod
    def of_ngrams(cls, input_ids: Ids, order: int) -> Coverage:
        """Coverage of the n-grams of windows `[n, seqlen]`."""
        return cls(gram_keys(input_ids, order))

    def _shared(self, row: int) -> NDArray[np.unsignedinteger]:
        return self._items[self._ends[row] : self._ends[row + 1]]

    def gain(self, row: int) -> int:
        """Items that `row` would add. It never grows as rows are added (coverage is submodular)."""
        items = self._shared(row)
        return int(self.own[row]) + len(items) - int(np.count_nonzero(self._covered[items]))

    def add(self, row: int) -> int:
        """Adds `row` and returns the number of distinct items now covered. A row is added at most once."""
        self.total += self.gain(row)
        self._covered[self._shared(row)] = True
        return self.total

    def count(self, rows: Iterable[int]) -> int:
        """Distinct items that `rows` cover together; starts from nothing and leaves nothing covered."""
        self.clear()
        for row in rows:
            self.add(row)
        total = self.total
        self.clear()
        return total

    def clear(self) -> None:
        """Forgets all rows added."""
        self._covered[:] = False
        self.total = 0
