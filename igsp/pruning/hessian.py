"""What the solvers know about a Linear's input: its second moments, and the factor of the inverse Hessian from them."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from igsp.errors import NumericalError, UsageError

DAMPING_STEPS = (1.0, 10.0, 100.0)  # multiples of the asked damping, tried in this order
LEAF = {"cpu": 192}  # size at which the recursion of `factor_of_inverse` hands over to the library
LEAF_ELSEWHERE = 2048


class Pruned(NamedTuple):
    """Result of a solver: weight and mask `[rows, columns]`, loss `[rows]`.

    With D the change of one row of the weight, its loss is `D G D^T` for methods that know the Gram matrix G (exact on
    the calibration tokens, before rounding to the model's dtype), `sum_j D_j^2 ||x_j||^2` for those that know the norms
    alone (inputs taken as uncorrelated) and `||D||^2` for magnitude. `damping`: share of the mean diagonal that was
    added, where a Hessian was factorised.
    """

    weight: Tensor
    mask: Tensor
    loss: Tensor
    damping: float | None = None


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
            raise UsageError("these statistics hold norms only: this method needs them collected with gram=True")
        key = (damping, reference)
        if key not in self._factors:
            self._factors[key] = inverse_factor(self.gram, damping, scale_of(self, reference), reference)
        return self._factors[key]


def scale_of(statistics: InputStatistics, reference: bool) -> float:
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
    hessian = gram * scale
    diagonal = hessian.diagonal()
    dead = diagonal == 0
    live_mean = diagonal.sum() / (~dead).sum().clamp(min=1)
    ones = torch.ones_like(live_mean)
    diagonal.copy_(diagonal.where(~dead, ones if reference else live_mean.where(live_mean != 0, ones)))
    mean = float(diagonal.mean())
    if not math.isfinite(mean):
        raise NumericalError("the Gram matrix of the inputs is not finite")
    upper = torch.zeros_like(hessian)
    used = 0.0
    for step in DAMPING_STEPS:
        diagonal.add_(mean * (damping * step - used))
        used = damping * step
        if bool(factor_of_inverse(hessian, upper)):
            return Factor(upper, used, used * mean, dead)
    rank = int(torch.linalg.matrix_rank(gram.double(), hermitian=True))
    raise NumericalError(
        f"the Hessian (rank {rank} of {len(gram)}) is not positive definite even with damping {used:g}: "
        "use more calibration tokens or a larger damping"
    )


def factor_of_inverse(matrix: Tensor, upper: Tensor, leaf: int | None = None) -> Tensor:
    """Writes the upper triangular U with `U^T U = matrix^-1` `[d, d]` to the upper half of `upper`.

    Returns one boolean: False if the matrix is not positive definite (`upper` then holds nothing of use). With J the
    reversal of the order of columns and `J matrix J = L L^T`, U is `J L^-1 J`. Factorisation and inversion are one
    recursion over halves, so that nearly all work is matrix products: with `matrix = [[A, B], [., C]]` and U_C known,
    `M = B U_C^T`; U_A belongs to the Schur complement `A - M M^T`; the block between them is `-U_A M U_C`.
    """
    size = len(matrix)
    leaf = leaf or LEAF.get(matrix.device.type, LEAF_ELSEWHERE)
    if size <= leaf:
        lower, failed = torch.linalg.cholesky_ex(matrix.flip(0, 1))
        identity = torch.eye(size, dtype=matrix.dtype, device=matrix.device)
        inverse = torch.linalg.solve_triangular(lower, identity, upper=False)
        upper.copy_(inverse.flip(0, 1))
        return (failed == 0) & torch.isfinite(inverse).all()
    half = size // 2
    first, second = upper[:half, :half], upper[half:, half:]
    good = factor_of_inverse(matrix[half:, half:], second, leaf)
    beside = matrix[:half, half:] @ second.t()
    good = good & factor_of_inverse(torch.addmm(matrix[:half, :half], beside, beside.t(), alpha=-1), first, leaf)
    torch.mm(first, beside @ second, out=upper[:half, half:]).neg_()
    return good
