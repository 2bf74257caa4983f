"""The pruning methods as pure functions of one signature.

    method(W, statistics, sparsity, pattern, *, parts, damping, reference) -> (W, mask, loss)

`W` is float32 `[rows, columns]`, a Linear's weight with one output per row; `statistics` describes the
Linear's input. The result is a new `W`, a boolean mask of the same shape that is True where the weight was
pruned, and `loss` `[rows]`, the squared output error summed over the calibration tokens as far as the method
knows the inputs (`Pruned`). `parts` are the row counts of several Linears that share one input and are stacked
in `W`; each is pruned to the sparsity on its own. Counts are exact (`exact_count`) and ties go to the earlier
position, unless `reference=True` asks for the rule of the published code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from igsp.errors import UnknownName
from igsp.pruning.admm import admm
from igsp.pruning.hessian import InputStatistics, Pruned, inverse_factor, scale_of
from igsp.pruning.kernels import solve_block
from igsp.pruning.selection import (
    BLOCK,
    Pattern,
    check_sparsity,
    counts,
    exact_count,
    parse_pattern,
    per_part,
    smallest,
    smallest_of_groups,
    smallest_of_rows,
)
from igsp.pruning.swaps import refit, sparseswaps

__all__ = [
    "NEEDS", "SOLVERS", "InputStatistics", "Pattern", "Pruned", "admm", "check_sparsity", "exact_count",
    "inverse_factor", "magnitude", "parse_pattern", "refit", "ria", "solver", "sparsegpt", "sparseswaps", "wanda",
]


def magnitude(
    W: Tensor, statistics: InputStatistics | None, sparsity: float, pattern: Pattern | None = None, *,
    parts: Sequence[int] | None = None, damping: float = 0.01, reference: bool = False,
) -> Pruned:
    """Prunes the smallest |W| of each Linear (no statistics needed). `reference` prunes one more, as published."""
    score = W.abs()
    if pattern:
        mask = smallest_of_groups(score, pattern)
    else:
        mask = per_part(score, parts, lambda s: smallest(s, *counts(s.numel(), sparsity, reference)))
    return Pruned(W * ~mask, mask, score.mul_(mask).square_().sum(1))


def wanda(
    W: Tensor, statistics: InputStatistics, sparsity: float, pattern: Pattern | None = None, *,
    parts: Sequence[int] | None = None, damping: float = 0.01, reference: bool = False,
) -> Pruned:
    """Prunes in each row the smallest |W_ij| * ||x_j||_2 (Sun et al. 2024, arXiv 2306.11695, eq. 1).

    Every row loses the same count, so `parts` does not matter; `reference` differs only in rounding the count
    in binary floats.
    """
    score = W.abs() * statistics.squares.sqrt()
    columns = W.shape[1]
    if pattern:
        mask = smallest_of_groups(score, pattern)
    else:
        mask = smallest_of_rows(score, int(columns * sparsity) if reference else exact_count(columns, sparsity))
    return Pruned(W * ~mask, mask, score.mul_(mask).square_().sum(1))


def ria(
    W: Tensor, statistics: InputStatistics, sparsity: float, pattern: Pattern | None = None, *,
    parts: Sequence[int] | None = None, damping: float = 0.01, reference: bool = False, power: float = 0.5,
) -> Pruned:
    """Prunes in each Linear the smallest relative importance times input norm (Zhang et al. 2024, ICLR, "RIA").

    The score is `(|W_ij| / sum_i |W_ij| + |W_ij| / sum_j |W_ij|) * ||x_j||_2^power`: the weight as a share of its
    column and of its row. (Without the channel permutation of the paper.) `reference` prunes one more, as published.
    """
    size = W.abs()
    relative = [part / part.sum(0).clamp(min=1e-30) + part / part.sum(1, keepdim=True).clamp(min=1e-30)
                for part in size.split(list(parts or [len(W)]))]
    score = torch.cat(relative) * statistics.squares.pow(power / 2)
    if pattern:
        mask = smallest_of_groups(score, pattern)
    else:
        mask = per_part(score, parts, lambda s: smallest(s, *counts(s.numel(), sparsity, reference)))
    return Pruned(W * ~mask, mask, (size.square_() * statistics.squares).mul_(mask).sum(1))


def sparsegpt(
    W: Tensor, statistics: InputStatistics, sparsity: float, pattern: Pattern | None = None, *,
    parts: Sequence[int] | None = None, damping: float = 0.01, reference: bool = False,
) -> Pruned:
    """SparseGPT (Frantar and Alistarh 2023, arXiv 2301.00774, algorithm 1).

    Columns are visited from left to right in blocks of 128. In each block the weights with the smallest
    `w^2 / [H^-1]_jj` (with H restricted to the columns not yet visited, that is `w^2 / U_jj^2`) are pruned; the
    columns to the right of a pruned weight take over its part of the output: `w_k -= w_j U_jk / U_jj`.

    Works on `W^T`, where one column of W is contiguous in memory. Weights of columns whose input is always zero
    are pruned first, of an N:M group too; `reference` zeroes them all and thresholds at the k-th score inclusively, as
    published.
    """
    upper, damped, added, dead = statistics.factor(damping, reference)
    rows, columns = W.shape
    dense, dead = W.t(), dead[:, None]
    work = dense.masked_fill(dead, 0).contiguous()  # an input that is always zero: its weights score 0, cost nothing
    mask = torch.zeros_like(work, dtype=torch.bool)
    loss = torch.zeros(rows, device=W.device)
    size = BLOCK // pattern.group * pattern.group if pattern else BLOCK
    for start in range(0, columns, size):
        stop = min(start + size, columns)
        block, chosen, factor = work[start:stop], mask[start:stop], upper[start:stop, start:stop]
        if not pattern:
            score = (block / factor.diagonal()[:, None]).square_()
            _choose(score, chosen, parts or [rows], start, sparsity, reference)
        errors = solve_block(block, factor, chosen, pattern)
        work[stop:].addmm_(upper[start:stop, stop:].t(), errors, alpha=-1)
        loss += errors.square_().sum(0)
    change = (dense - work).masked_fill_(dead, 0).square_()
    loss -= added * change.sum(0)  # the errors add up to D (H + added I) D^T
    if not reference:  # the published code zeroes them all
        work = torch.where(dead & ~mask, dense, work)
    return Pruned(work.t(), mask.t(), loss / scale_of(statistics, reference), damped)


def _choose(score: Tensor, chosen: Tensor, parts: Sequence[int], start: int, sparsity: float, reference: bool) -> None:
    """Marks in `chosen` `[columns, rows]` the smallest scores of one block of columns, for each Linear of its own."""
    stop = start + len(score)
    for part, mask, rows in zip(score.split(list(parts), 1), chosen.split(list(parts), 1), parts, strict=True):
        if reference:
            mask[:] = smallest(part, *counts(part.numel(), sparsity, True))
        else:  # the difference of cumulative counts, so that the Linear as a whole is exact
            mask[:] = smallest(part, exact_count(stop * rows, sparsity) - exact_count(start * rows, sparsity))


def _swapped(
    W: Tensor, statistics: InputStatistics, sparsity: float, pattern: Pattern | None = None, *,
    parts: Sequence[int] | None = None, damping: float = 0.01, reference: bool = False,
) -> Pruned:
    """Wanda's mask improved by swaps (`sparseswaps`); the weights that stay are as they were."""
    start = wanda(W, statistics, sparsity, pattern, parts=parts).mask
    return sparseswaps(W, statistics, start, pattern)


def _swapped_and_refit(
    W: Tensor, statistics: InputStatistics, sparsity: float, pattern: Pattern | None = None, *,
    parts: Sequence[int] | None = None, damping: float = 0.01, reference: bool = False,
) -> Pruned:
    """`_swapped`, then the weights that stay solved anew for that mask (`refit`)."""
    return refit(W, statistics, _swapped(W, statistics, sparsity, pattern).mask, damping)


Solver = Callable[..., Pruned]
SOLVERS: dict[str, Solver] = {
    "magnitude": magnitude, "wanda": wanda, "ria": ria, "sparsegpt": sparsegpt, "admm": admm, "sparseswaps": _swapped,
    "sparseswaps-refit": _swapped_and_refit,
}
NEEDS = {"magnitude": "nothing", "wanda": "norms", "ria": "norms"} | dict.fromkeys(
    ("sparsegpt", "admm", "sparseswaps", "sparseswaps-refit"), "gram")  # of the inputs


def solver(method: str) -> Solver:
    """The solver of that name; raises `UnknownName`."""
    if method not in SOLVERS:
        raise UnknownName("method", method, SOLVERS)
    return SOLVERS[method]
