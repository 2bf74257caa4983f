"""Choosing weights: how many to prune (exact counts, N:M patterns) and which have the smallest scores.

Ties go to the earlier position. On an accelerator nothing here waits for a result.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from igsp.errors import UsageError

BLOCK = 128  # columns that share one mask decision in SparseGPT (its published default); the largest M of a pattern


class Pattern(NamedTuple):
    """N:M sparsity: `keep` weights stay in every `group` consecutive columns (2:4 keeps 2 of 4)."""

    keep: int
    group: int

    @property
    def sparsity(self) -> float:
        return 1 - self.keep / self.group

    def __str__(self) -> str:
        return f"{self.keep}:{self.group}"


def parse_pattern(text: str | Pattern | None) -> Pattern | None:
    """`"2:4"` -> Pattern(2, 4); None stays None (unstructured). Raises `UsageError` unless 0 < N < M <= 128."""
    if text is None or isinstance(text, Pattern):
        return text
    found = re.fullmatch(r"([0-9]{1,3}):([0-9]{1,3})", str(text))
    if found and 0 < int(found[1]) < int(found[2]) <= BLOCK:
        return Pattern(int(found[1]), int(found[2]))
    raise UsageError(f"pattern '{text}' is no N:M pattern: write N:M with 0 < N < M <= {BLOCK}, such as 2:4, or None")


def check_sparsity(sparsity: float) -> float:
    """The sparsity itself; raises `UsageError` outside [0, 1)."""
    if not (isinstance(sparsity, int | float) and 0 <= sparsity < 1):
        raise UsageError(f"sparsity {sparsity!r} is outside [0, 1): 0.6 prunes 60 % of the weights")
    return float(sparsity)


def exact_count(total: int, sparsity: float) -> int:
    """floor(total * sparsity) in exact decimal arithmetic: 0.29 of 100 is 29, where binary floats give 28."""
    return math.floor(total * Fraction(repr(float(sparsity))))


def counts(total: int, sparsity: float, reference: bool) -> tuple[int, bool]:
    """(k, inclusive): the published code takes everything up to the value at index int(total * sparsity)."""
    return (int(total * sparsity), True) if reference else (exact_count(total, sparsity), False)


def per_part(score: Tensor, parts: Sequence[int] | None, choose: Callable[[Tensor], Tensor]) -> Tensor:
    return torch.cat([choose(part) for part in score.split(list(parts or [len(score)]))])


def smallest(score: Tensor, count: int, inclusive: bool = False) -> Tensor:
    """Mask of the `count` smallest entries of a whole tensor, ties to the earlier position (row by row).

    `inclusive` is the published rule instead: everything <= the entry at sorted index `count`, so `count + 1`
    entries, and all ties with it.
    """
    if inclusive:
        return score <= _kth(score, min(count, score.numel() - 1))
    if count == 0:
        return torch.zeros_like(score, dtype=torch.bool)
    threshold = _kth(score, count - 1)
    mask = score <= threshold
    if score.device.type == "cpu" and int(torch.count_nonzero(mask)) == count:  # no ties, the usual case
        return mask
    below, ties = score < threshold, score == threshold  # of the entries equal to the threshold, the first ones go
    return below | (ties & (ties.flatten().cumsum(0).view_as(ties) <= count - below.sum()))


def _kth(score: Tensor, index: int) -> Tensor:
    """Entry at `index` of the sorted entries."""
    if score.device.type == "cpu":  # numpy's quick-select is vectorised and an order faster than kthvalue
        flat = score.numpy().reshape(-1)
        return torch.from_numpy(np.partition(flat, index)[index : index + 1])[0]
    return score.flatten().sort().values[index]  # a radix sort; kthvalue of one long row runs on a single block


def smallest_of_rows(score: Tensor, count: int) -> Tensor:
    """Mask of the `count` smallest entries of every row of `[rows, columns]`, ties to the earlier column."""
    if count == 0:
        return torch.zeros_like(score, dtype=torch.bool)
    if score.device.type == "cpu":
        threshold = torch.from_numpy(np.partition(score.numpy(), count - 1, axis=1)[:, count - 1 : count].copy())
        mask = score <= threshold
        tied = mask.sum(1) > count
        if tied.any():
            mask[tied] = _with_ties(score[tied], threshold[tied], count)
        return mask
    return _with_ties(score, torch.kthvalue(score, count, dim=1, keepdim=True).values, count)


def _with_ties(score: Tensor, threshold: Tensor, count: int) -> Tensor:
    below, ties = score < threshold, score == threshold
    return below | (ties & (ties.cumsum(1) <= count - below.sum(1, keepdim=True)))


def smallest_of_groups(score: Tensor, pattern: Pattern) -> Tensor:
    """Mask of all but the `keep` largest of every `group` consecutive columns, ties pruned at the earlier column."""
    rows, columns = score.shape
    grouped = score.reshape(rows * columns // pattern.group, pattern.group)
    return smallest_of_rows(grouped, pattern.group - pattern.keep).view(rows, columns)
