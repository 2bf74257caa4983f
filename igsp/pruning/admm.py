"""Pruning by the alternating direction method of multipliers: the weights that stay, solved while the mask grows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from igsp.errors import NumericalError, UsageError
from igsp.pruning.hessian import InputStatistics, Pruned
from igsp.pruning.selection import Pattern, exact_count, per_part, smallest, smallest_of_groups

ROUNDS, GROWING = 20, 15  # iterations, and in how many of them the mask grows (the published defaults)
DAMPING = 10.0  # times the asked damping: 0.1 of the mean diagonal where SparseGPT adds 0.01, as published
PENALTY = 1.0  # rho, on a Gram matrix of unit diagonal


def admm(
    W: Tensor, statistics: InputStatistics, sparsity: float, pattern: Pattern | None = None, *,
    parts: Sequence[int] | None = None, damping: float = 0.01, reference: bool = False,
) -> Pruned:
    """Weight update by ADMM with gradual pruning (Boza 2024, arXiv 2401.02938, algorithm 1).

    With inputs scaled to unit norm, H the damped Gram matrix and V the scaled weight, each iteration takes
    `Z = mask(V + U)`, `U += V - Z`, `V = (H + rho I)^-1 (H V_0 + rho (Z - U))`. In iteration t of the first 15 the mask
    holds the smallest |V + U| up to the share `s - s (1 - t / 15)^3`, of an N:M pattern only those that their group may
    lose; from then on it stays. `reference` prunes the final share from the start, as the released code does without a
    pattern. Weights of columns whose input is always zero are pruned first.

    Raises:
        UsageError: statistics without a Gram matrix.  NumericalError: a Gram matrix that is not finite.
    """
    gram = statistics.gram
    if gram is None:
        raise UsageError("these statistics hold norms only: ADMM needs them collected with gram=True")
    norm = gram.diagonal().sqrt()
    dead = norm == 0
    divisor = norm.where(~dead, torch.ones_like(norm))
    hessian = gram / divisor / divisor[:, None]
    damped = DAMPING * damping
    hessian.diagonal().add_(damped * hessian.diagonal().mean())
    dense = W * norm  # zero where the input is
    target = dense @ hessian
    hessian.diagonal().add_(PENALTY)
    lower, failed = torch.linalg.cholesky_ex(hessian)
    if bool(failed != 0) or not torch.isfinite(norm.sum()):
        raise NumericalError("the Gram matrix of the inputs is not finite")
    inverse = torch.cholesky_inverse(lower)
    value, dual = dense.clone(), torch.zeros_like(dense)
    mask = torch.zeros_like(dense, dtype=torch.bool)
    for turn in range(1, ROUNDS + 1):
        wanted = value + dual
        if turn <= GROWING:
            share = sparsity if reference else sparsity - sparsity * (1 - turn / GROWING) ** 3
            mask = _choose(wanted.abs(), sparsity if turn == GROWING else share, pattern, parts)
        kept = wanted.masked_fill(mask, 0)
        dual = wanted - kept
        value = (target + PENALTY * (kept - dual)) @ inverse
    weight = torch.where(dead, W, (value + dual) / divisor).masked_fill_(mask, 0)
    change = weight - W
    return Pruned(weight, mask, (change @ gram).mul_(change).sum(1), damped)


def _choose(score: Tensor, sparsity: float, pattern: Pattern | None, parts: Sequence[int] | None) -> Tensor:
    """Mask of the smallest scores of each Linear, of an N:M pattern among those that their group may lose."""
    if pattern:
        score = score.masked_fill(~smallest_of_groups(score, pattern), float("inf"))
    return per_part(score, parts, lambda part: smallest(part, exact_count(part.numel(), sparsity)))
