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
LEAF = {"cpu": 192}  # size at which the recursion of `factor_of_inverse` hands over to the library
LEAF_ELSEWHERE = 2048
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


class Pruned(NamedTuple):
    """Result of a solver: weight and mask `[rows, columns]`, loss `[rows]`.

    With D the change of one row of the weight, its loss is `D H D^T` for SparseGPT (exact on the calibration
    tokens, before rounding to the model's dtype), `sum_j D_j^2 ||x_j||^2` for Wanda (inputs taken as uncorrelated)
    and `||D||^2` for magnitude.
    """

    weight: Tensor
    mask: Tensor
    loss: Tensor


class Factor(NamedTuple):
    """Upper triangular `upper` `[d, d]` with `upper.T @ upper = (H + added * I)^-1`.

    `damping` is `added` as a share of H's mean diagonal; `dead` `[d]` marks the columns whose input is always zero.
    """

    upper: Tensor
    damping: float
    added: float
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
            self._factors[key] = inverse_factor(self.gram, damping, _scale(self, reference), reference)
        return self._factors[key]


def _scale(statistics: InputStatistics, reference: bool) -> float:
    """Factor between Gram and Hessian: 1, or 2 / windows as in the published code (where dead columns get H = 1)."""
    return 2 / statistics.windows if reference else 1.0


def inverse_factor(gram: Tensor, damping: float, scale: float = 1.0, reference: bool = False) -> Factor:
    """Upper Cholesky factor of the inverse of the damped Hessian `H = scale * gram`, by one factorisation.

    (The published code inverts H and factorises the inverse: three factorisations for the same factor.)

    Columns whose input is always zero are decoupled: they get the mean diagonal, so no weight there influences
    another; with `reference` they get 1, as in the published code.
    If the factorisation fails, the damping is raised by `DAMPING_STEPS`.

    Raises:
        NumericalError: non-finite Gram, or still not positive definite after the last step (names the rank).
    """
    diagonal = gram.diagonal()
    if not torch.isfinite(diagonal).all():
        raise NumericalError("the Gram matrix of the inputs is not finite")
    hessian = gram * scale
    dead = diagonal == 0
    live_mean = hessian.diagonal().sum() / max(1, int((~dead).sum()))
    hessian.diagonal()[dead] = 1.0 if reference or live_mean == 0 else live_mean
    mean = float(hessian.diagonal().mean())
    upper = torch.zeros_like(hessian)
    used = 0.0
    for step in DAMPING_STEPS:
        hessian.diagonal().add_(mean * (damping * step - used))
        used = damping * step
        if factor_of_inverse(hessian, upper):
            return Factor(upper, used, used * mean, dead)
    rank = int(torch.linalg.matrix_rank(gram.double(), hermitian=True))
    raise NumericalError(
        f"the Hessian (rank {rank} of {len(gram)}) is not positive definite even with damping {used:g}: "
        "use more calibration tokens or a larger damping"
    )


def factor_of_inverse(matrix: Tensor, upper: Tensor, leaf: int | None = None) -> bool:
    """Writes the upper triangular U with `U^T U = matrix^-1` `[d, d]` to the upper half of `upper`.

    Returns False if the matrix is not positive definite. With J the reversal of the order of columns and
    `J matrix J = L L^T`, U is `J L^-1 J`. Factorisation and inversion are one recursion over halves, so that nearly
    all work is matrix products: with `matrix = [[A, B], [., C]]` and U_C known, `M = B U_C^T`; U_A belongs to the
    Schur complement `A - M M^T`; the block between them is `-U_A M U_C`.
    """
    size = len(matrix)
    leaf = leaf or LEAF.get(matrix.device.type, LEAF_ELSEWHERE)
    if size <= leaf:
        lower, failed = torch.linalg.cholesky_ex(matrix.flip(0, 1))
        identity = torch.eye(size, dtype=matrix.dtype, device=matrix.device)
        inverse = torch.linalg.solve_triangular(lower, identity, upper=False)
        upper.copy_(inverse.flip(0, 1))
        return not failed and bool(torch.isfinite(inverse).all())
    half = size // 2
    first, second = upper[:half, :half], upper[half:, half:]
    if not factor_of_inverse(matrix[half:, half:], second, leaf):
        return False
    beside = matrix[:half, half:] @ second.t()
    if not factor_of_inverse(torch.addmm(matrix[:half, :half], beside, beside.t(), alpha=-1), first, leaf):
        return False
    torch.mm(first, beside @ second, out=upper[:half, half:]).neg_()
    return True


def magnitude(
    W: Tensor, statistics: InputStatistics | None, sparsity: float, pattern: Pattern | None = None, *,
    parts: Sequence[int] | None = None, damping: float = 0.01, reference: bool = False,
) -> Pruned:
    """Prunes the smallest |W| of each Linear (no statistics needed). `reference` prunes one more, as published."""
    score = W.abs()
    if pattern:
        mask = smallest_of_groups(score, pattern)
    else:
        mask = _per_part(score, parts, lambda s: smallest(s, *_counts(s.numel(), sparsity, reference)))
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


def sparsegpt(
    W: Tensor, statistics: InputStatistics, sparsity: float, pattern: Pattern | None = None, *,
    parts: Sequence[int] | None = None, damping: float = 0.01, reference: bool = False,
) -> Pruned:
    """SparseGPT (Frantar and Alistarh 2023, arXiv 2301.00774, algorithm 1).

    Columns are visited from left to right in blocks of 128. In each block the weights with the smallest
    `w^2 / [H^-1]_jj` (with H restricted to the columns not yet visited, that is `w^2 / U_jj^2`) are pruned; the
    columns to the right of a pruned weight take over its part of the output: `w_k -= w_j U_jk / U_jj`.

    Works on `W^T`, where one column of W is contiguous in memory. Weights of columns whose input is always zero
    are pruned first; `reference` zeroes them all and thresholds at the k-th score inclusively, as published.
    """
    upper, _, added, dead = statistics.factor(damping, reference)
    rows, columns = W.shape
    work = W.t().clone(memory_format=torch.contiguous_format)
    dense = work.clone()
    mask = torch.zeros_like(work, dtype=torch.bool)
    loss = torch.zeros(rows, device=W.device)
    size = BLOCK // pattern.group * pattern.group if pattern else BLOCK
    any_dead = bool(dead.any())
    for start in range(0, columns, size):
        stop = min(start + size, columns)
        block, chosen, factor = work[start:stop], mask[start:stop], upper[start:stop, start:stop]
        if not pattern:
            score = (block / factor.diagonal()[:, None]).square_()
            if any_dead:
                score[dead[start:stop]] = 0
            _choose(score, chosen, parts or [rows], start, sparsity, reference)
        errors = solve_block(block, factor, chosen, pattern)
        work[stop:].addmm_(upper[start:stop, stop:].t(), errors, alpha=-1)
        if any_dead:
            errors[dead[start:stop]] = 0  # an input that is always zero costs nothing
        loss += errors.square_().sum(0)
    if reference:
        work[dead] = 0
    change = dense.sub_(work).square_()
    change[dead] = 0
    loss -= added * change.sum(0)  # the errors add up to D (H + added I) D^T
    return Pruned(work.t(), mask.t(), loss / _scale(statistics, reference))


def _choose(score: Tensor, chosen: Tensor, parts: Sequence[int], start: int, sparsity: float, reference: bool) -> None:
    """Marks in `chosen` `[columns, rows]` the smallest scores of one block of columns, for each Linear of its own."""
    stop = start + len(score)
    for part, mask, rows in zip(score.split(list(parts), 1), chosen.split(list(parts), 1), parts, strict=True):
        if reference:
            mask[:] = smallest(part, *_counts(part.numel(), sparsity, True))
        else:  # the difference of cumulative counts, so that the Linear as a whole is exact
            mask[:] = smallest(part, exact_count(stop * rows, sparsity) - exact_count(start * rows, sparsity))


Solver = Callable[..., Pruned]
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
    mask = score <= threshold
    excess = int(torch.count_nonzero(mask)) - count
    if excess:  # of the entries equal to the threshold, the last ones stay
        ties = (score == threshold).flatten()
        keep = ties.flip(0).cumsum(0).flip(0) <= excess
        mask &= ~(ties & keep).view_as(mask)
    return mask


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
