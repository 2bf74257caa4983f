"""The pruning methods as pure functions of one signature.

    method(W, statistics, sparsity, pattern, *, parts, damping, reference) -> (W, mask)

`W` is float32 `[rows, columns]`, a Linear's weight with one output per row; `statistics` describes the
Linear's input; the result is a new `W` and a boolean mask of the same shape that is True where the weight
was pruned. `parts` are the row counts of several Linears that share one input and are stacked in `W`; each
is pruned to the sparsity on its own. Counts are exact (`exact_count`) and ties go to the earlier position,
unless `reference=True` asks for the rule of the published code.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from igsp.errors import NumericalError, UnknownName, UsageError
from igsp.pruning.kernels import solve_block

DAMPING_STEPS = (1.0, 10.0, 100.0)  # multiples of the asked damping, tried in this order
BLOCK = 128  # columns that share one mask decision in SparseGPT (its published default)


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
    pieces = str(text).split(":")
    if len(pieces) == 2 and all(p.isdigit() for p in pieces) and 0 < int(pieces[0]) < int(pieces[1]) <= BLOCK:
        return Pattern(int(pieces[0]), int(pieces[1]))
    raise UsageError(f"pattern '{text}' is no N:M pattern: write N:M with 0 < N < M <= {BLOCK}, such as 2:4, or None")


def check_sparsity(sparsity: float) -> float:
    """The sparsity itself; raises `UsageError` outside [0, 1)."""
    if not (isinstance(sparsity, int | float) and 0 <= sparsity < 1):
        raise UsageError(f"sparsity {sparsity!r} is outside [0, 1): 0.6 prunes 60 % of the weights")
    return float(sparsity)


def exact_count(total: int, sparsity: float) -> int:
    """floor(total * sparsity) in exact decimal arithmetic: 0.29 of 100 is 29, where binary floats give 28."""
    return math.floor(total * Fraction(repr(float(sparsity))))


class Factor(NamedTuple):
    """Upper triangular `upper` `[d, d]` with `upper.T @ upper = (H + damping * mean(diag H) * I)^-1`."""

    upper: Tensor
    damping: float
    dead: Tensor


@dataclass
class InputStatistics:
    """Second moments of one Linear's input over the calibration tokens.

    Attributes:
        tokens: number of token positions summed over.
        windows: number of calibration windows they came from.
        squares: float32 `[columns]`, sum over tokens of x_j^2.
        gram: float32 `[columns, columns]`, sum over tokens of x x^T; None when only norms were collected.
    """

    tokens: int
    windows: int
    squares: Tensor
    gram: Tensor | None = None

    @functools.cached_property
    def _factors(self) -> dict[tuple[float, bool], Factor]:
        return {}

    def factor(self, damping: float, reference: bool = False) -> Factor:
        """`inverse_factor` of this Gram matrix, computed once per setting."""
        if self.gram is None:
            raise UsageError("these statistics hold norms only: SparseGPT needs them collected with gram=True")
        key = (damping, reference)
        if key not in self._factors:
            self._factors[key] = inverse_factor(self.gram, damping, 2 / self.windows if reference else None)
        return self._factors[key]


def inverse_factor(gram: Tensor, damping: float, reference_scale: float | None = None) -> Factor:
    """Upper Cholesky factor of the inverse of the damped Hessian, by one factorisation.

    With J the reversal of the order of columns and `J H J = L L^T`, the factor is `U = J L^-1 J`: upper
    triangular with `U^T U = H^-1`. (The published code inverts H and factorises the inverse: three
    factorisations for the same U.)

    Columns whose input is always zero are decoupled: they get the mean diagonal, so no weight there influences
    another. With `reference_scale` the Gram is scaled by it first and dead columns get 1, as in the published code.
    If the factorisation fails, the damping is raised by `DAMPING_STEPS`.

    Raises:
        NumericalError: non-finite Gram, or still not positive definite after the last step (names the rank).
    """
    diagonal = gram.diagonal()
    if not torch.isfinite(diagonal).all():
        raise NumericalError("the Gram matrix of the inputs is not finite")
    hessian = gram * (reference_scale or 1.0)
    dead = diagonal == 0
    live_mean = hessian.diagonal().sum() / max(1, int((~dead).sum()))
    hessian.diagonal()[dead] = 1.0 if reference_scale or live_mean == 0 else live_mean
    mean = hessian.diagonal().mean()
    reversed_hessian = hessian.flip(0, 1)
    tried = 0.0
    for step in DAMPING_STEPS:
        reversed_hessian.diagonal().add_(mean * (damping * step - tried))
        tried = damping * step
        lower, failed = torch.linalg.cholesky_ex(reversed_hessian)
        if not failed:
            inverse = torch.linalg.solve_triangular(lower, torch.eye(len(gram), device=gram.device), upper=False)
            if torch.isfinite(inverse.diagonal()).all():
                return Factor(inverse.flip(0, 1), tried, dead)
    rank = int(torch.linalg.matrix_rank(gram.double(), hermitian=True))
    raise NumericalError(
        f"the Hessian (rank {rank} of {len(gram)}) is not positive definite even with damping {tried:g}: "
        "use more calibration tokens or a larger damping"
    )


def magnitude(
    W: Tensor, statistics: InputStatistics | None, sparsity: float, pattern: Pattern | None = None, *,
    parts: Sequence[int] | None = None, damping: float = 0.01, reference: bool = False,
) -> tuple[Tensor, Tensor]:
    """Prunes the smallest |W| of each Linear (no statistics needed). `reference` prunes one more, as published."""
    score = W.abs()
    if pattern:
        mask = smallest_of_groups(score, pattern)
    else:
        mask = _per_part(score, parts, lambda s: smallest(s, *_counts(s.numel(), sparsity, reference)))
    return W.masked_fill(mask, 0), mask


def wanda(
    W: Tensor, statistics: InputStatistics, sparsity: float, pattern: Pattern | None = None, *,
    parts: Sequence[int] | None = None, damping: float = 0.01, reference: bool = False,
) -> tuple[Tensor, Tensor]:
    """Prunes in each row the smallest |W_ij| * ||x_j||_2 (Sun et al. 2024, arXiv 2306.11695, eq. 1).

    Every row loses the same count, so `parts` does not matter; `reference` differs only in rounding the count
    in binary floats.
    """
    score = W.abs() * (statistics.squares / statistics.tokens).sqrt()
    columns = W.shape[1]
    if pattern:
        mask = smallest_of_groups(score, pattern)
    else:
        mask = smallest_of_rows(score, int(columns * sparsity) if reference else exact_count(columns, sparsity))
    return W.masked_fill(mask, 0), mask


def sparsegpt(
    W: Tensor, statistics: InputStatistics, sparsity: float, pattern: Pattern | None = None, *,
    parts: Sequence[int] | None = None, damping: float = 0.01, reference: bool = False,
) -> tuple[Tensor, Tensor]:
    """SparseGPT (Frantar and Alistarh 2023, arXiv 2301.00774, algorithm 1).

    Columns are visited from left to right in blocks of 128. In each block the weights with the smallest
    `w^2 / [H^-1]_jj` (with H restricted to the columns not yet visited, that is `w^2 / U_jj^2`) are pruned; the
    columns to the right of a pruned weight take over its part of the output: `w_k -= w_j U_jk / U_jj`.

    Works on `W^T`, where one column of W is contiguous in memory. Weights of columns whose input is always zero
    are pruned first; `reference` zeroes them all and thresholds at the k-th score inclusively, as published.
    """
    upper, _, dead = statistics.factor(damping, reference)
    columns, rows = W.shape[1], W.shape[0]
    work = W.t().contiguous()
    mask = torch.zeros_like(work, dtype=torch.bool)
    if reference:
        work[dead] = 0
    size = BLOCK // pattern.group * pattern.group if pattern else BLOCK
    parts = parts or [rows]
    pruned = [0] * len(parts)
    for start in range(0, columns, size):
        stop = min(start + size, columns)
        block, factor = work[start:stop], upper[start:stop, start:stop]
        if not pattern:
            score = (block / factor.diagonal()[:, None]).square_().masked_fill_(dead[start:stop, None], 0)
            for index, (part, chosen) in enumerate(zip(score.split(parts, 1), mask[start:stop].split(parts, 1))):
                if reference:
                    chosen[:] = smallest(part, *_counts(part.numel(), sparsity, True))
                else:  # cumulative, so that the Linear as a whole is exact
                    count = exact_count(stop * parts[index], sparsity) - pruned[index]
                    chosen[:] = smallest(part, count)
                    pruned[index] += count
        errors = solve_block(block, factor, mask[start:stop], tuple(pattern) if pattern else None)
        work[stop:].addmm_(upper[start:stop, stop:].t(), errors, alpha=-1)
    return work.t(), mask.t()


Solver = Callable[..., tuple[Tensor, Tensor]]
SOLVERS: dict[str, Solver] = {"magnitude": magnitude, "wanda": wanda, "sparsegpt": sparsegpt}
NEEDS = {"magnitude": "nothing", "wanda": "norms", "sparsegpt": "gram"}  # of the inputs


def solver(method: str) -> Solver:
    """The solver of that name; raises `UnknownName`."""
    if method not in SOLVERS:
        raise UnknownName("method", method, SOLVERS)
    return SOLVERS[method]


def _counts(total: int, sparsity: float, reference: bool) -> tuple[int, bool]:
    """(k, inclusive): the published code takes everything up to the value at index int(total * sparsity)."""
    return (int(total * sparsity), True) if reference else (exact_count(total, sparsity), False)


def _per_part(score: Tensor, parts: Sequence[int] | None, choose: Callable[[Tensor], Tensor]) -> Tensor:
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
    below = score < threshold
    missing = count - int(below.sum())
    ties = score == threshold
    if int(ties.sum()) > missing:
        ties &= ties.flatten().cumsum(0).view_as(ties) <= missing
    return below | ties


def _kth(score: Tensor, index: int) -> Tensor:
    """Entry at `index` of the sorted entries, without sorting."""
    if score.device.type == "cpu":  # numpy's quick-select is vectorised and an order faster than kthvalue
        flat = score.numpy().reshape(-1)
        return torch.from_numpy(np.partition(flat, index)[index : index + 1])[0]
    return torch.kthvalue(score.flatten(), index + 1).values


def smallest_of_rows(score: Tensor, count: int) -> Tensor:
    """Mask of the `count` smallest entries of every row of `[rows, columns]`, ties to the earlier column."""
    if count == 0:
        return torch.zeros_like(score, dtype=torch.bool)
    if score.device.type == "cpu":
        threshold = torch.from_numpy(np.partition(score.numpy(), count - 1, axis=1)[:, count - 1 : count].copy())
    else:
        threshold = torch.kthvalue(score, count, dim=1, keepdim=True).values
    mask = score <= threshold
    excess = mask.sum(1) > count
    if excess.any():
        below, ties = score[excess] < threshold[excess], score[excess] == threshold[excess]
        missing = count - below.sum(1, keepdim=True)
        mask[excess] = below | (ties & (ties.cumsum(1) <= missing))
    return mask


def smallest_of_groups(score: Tensor, pattern: Pattern) -> Tensor:
    """Mask of all but the `keep` largest of every `group` consecutive columns, ties pruned at the earlier column."""
    rows, columns = score.shape
    grouped = score.reshape(rows * columns // pattern.group, pattern.group)
    return smallest_of_rows(grouped, pattern.group - pattern.keep).view(rows, columns)
