"""Mask and values apart: a better mask by swaps of single weights, and the best values for a given mask.

Both need the Gram matrix G of the inputs alone. A row w with the mask P loses `d G d^T`, d being w on P and 0
elsewhere, as long as its other weights stay as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from igsp.errors import NumericalError, UsageError
from igsp.pruning.hessian import InputStatistics, Pruned
from igsp.pruning.selection import Pattern

COLUMNS_PER_SWAP = 16  # a row is given one swap for so many columns; most rows stop before
ENTRIES = 1 << 24  # floats that the rows swapped at the same time work on (64 MB)
STEPS, TOLERANCE = 200, 1e-5  # of `refit`


def _gram(statistics: InputStatistics, W: Tensor, mask: Tensor) -> Tensor:
    if statistics.gram is None:
        raise UsageError("these statistics hold norms only: this method needs them collected with gram=True")
    if mask.shape != W.shape or mask.dtype != torch.bool:
        raise UsageError(f"the start mask must be boolean {list(W.shape)} like the weight, got {mask.dtype} "
                         f"{list(mask.shape)}: take the mask of the same Linear")
    return statistics.gram


def sparseswaps(
    W: Tensor, statistics: InputStatistics, start: Tensor, pattern: Pattern | None = None, swaps: int | None = None
) -> Pruned:
    """Improves a mask row by row by swaps of a pruned for a kept weight (after Zimmer et al. 2025, arXiv 2512.10922).

    With `c = G d`, taking p back costs `a_p = -2 w_p c_p + w_p^2 G_pp`, pruning q costs `b_q = 2 w_q c_q + w_q^2 G_qq`,
    and both together `a_p + b_q - 2 w_p w_q G_pq`, exactly. In each turn every row makes one swap: in turn from the
    cheapest p or the cheapest q, the best partner for it, then the best partner for that; under an N:M pattern both
    lie in one group. A swap is made only if it lowers the loss of its row; a row stops when two turns find none. So
    the loss never rises, and the sparsity of every row (and group) stays what it was.

    Args:
        start: boolean `[rows, columns]`, True where pruned; of any method.
        swaps: most swaps of one row; one for 16 columns by default.

    Returns:
        The original weights under the new mask, and the loss under the Gram matrix.

    Raises:
        UsageError: statistics without a Gram matrix, or a mask of another shape.
    """
    gram = _gram(statistics, W, start)
    mask, loss = start.clone(), torch.empty(len(W), device=W.device)
    swaps = W.shape[1] // COLUMNS_PER_SWAP if swaps is None else swaps
    for part in torch.arange(len(W), device=W.device).split(max(1, ENTRIES // (8 * W.shape[1]))):
        loss[part] = _swap_rows(W[part], gram, mask, part, pattern, swaps)
    return Pruned(W.masked_fill(mask, 0), mask, loss)


def _swap_rows(
    W: Tensor, gram: Tensor, mask: Tensor, rows: Tensor, pattern: Pattern | None, swaps: int
) -> Tensor:
    """Swaps in the rows of one batch, in place in `mask`; their final loss."""
    pruned = mask[rows]
    removed = W.masked_fill(~pruned, 0)
    towards = removed @ gram
    loss = (removed * towards).sum(1)
    energy = W.square() * gram.diagonal()
    active = torch.arange(len(W), device=W.device)
    idle = torch.zeros_like(active)
    for turn in range(swaps):
        w, p = W[active], pruned[active]
        pull = 2 * w * towards[active]
        back = (energy[active] - pull).masked_fill_(~p, torch.inf)
        out = (energy[active] + pull).masked_fill_(p, torch.inf)
        if turn % 2:
            away, _ = _partner(out, w, gram, _cheapest(back, out, pattern), pattern)
            first, gain = _partner(back, w, gram, away, pattern)
            gain += out.gather(1, away)
        else:
            first, _ = _partner(back, w, gram, _cheapest(out, back, pattern), pattern)
            away, gain = _partner(out, w, gram, first, pattern)
            gain += back.gather(1, first)
        better = gain < -1e-6 * loss[active, None]
        w_first, w_away = (w.gather(1, index).where(better, 0) for index in (first, away))
        towards[active] += w_away * gram[away[:, 0]] - w_first * gram[first[:, 0]]
        loss[active] += gain.where(better, 0)[:, 0]
        pruned[active] = p.scatter(1, first, ~better).scatter(1, away, better)
        idle[active] = (idle[active] + 1).where(~better[:, 0], 0)
        if W.device.type == "cpu":  # elsewhere a look at the result would cost more than idle rows do
            active = active[idle[active] < 2]
            if not len(active):
                break
        if turn % 16 == 15:  # rounding: the sums of many swaps are made anew
            towards[active] = W[active].masked_fill(~pruned[active], 0) @ gram
    mask[rows] = pruned
    removed = W.masked_fill(~pruned, 0)
    return (removed @ gram).mul_(removed).sum(1)


def _cheapest(cost: Tensor, other: Tensor, pattern: Pattern | None) -> Tensor:
    """Index `[rows, 1]` of the lowest cost; with a pattern, of the group where it and the lowest `other` sum least."""
    if pattern is None:
        return cost.argmin(1, keepdim=True)
    groups = cost.unflatten(1, (-1, pattern.group))
    best = groups.amin(2) + other.unflatten(1, (-1, pattern.group)).amin(2)
    group = best.argmin(1, keepdim=True)
    inside = groups.gather(1, group[..., None].expand(-1, -1, pattern.group))[:, 0].argmin(1, keepdim=True)
    return group * pattern.group + inside


def _partner(cost: Tensor, w: Tensor, gram: Tensor, other: Tensor, pattern: Pattern | None) -> tuple[Tensor, Tensor]:
    """The weight of lowest `cost` together with a swap of `other`, `[rows, 1]`, and that cost."""
    joint = cost - 2 * w.gather(1, other) * w * gram[other[:, 0]]
    if pattern is not None:
        column = torch.arange(cost.shape[1], device=cost.device)
        joint = joint.masked_fill(column // pattern.group != other // pattern.group, torch.inf)
    best = joint.argmin(1, keepdim=True)
    return best, joint.gather(1, best)


def refit(W: Tensor, statistics: InputStatistics, mask: Tensor, damping: float = 0.01) -> Pruned:
    """The values of the kept weights that lose least for a given mask: least squares on the support of every row.

    With H the damped Gram matrix and K the kept columns of a row, `H_KK v_K = (H w)_K`: what SparseGPT approaches
    column by column (Frantar and Alistarh 2023, section 3.1). All rows are solved together by conjugate gradients,
    preconditioned by the kept part of H^-1, until the residual of every row is below `TOLERANCE` of its right side;
    the loss then agrees with a direct solution to about 1e-6. (On a CPU two to four times as fast as a Cholesky
    factor for every row, which has to gather a matrix of its own.) Weights whose input is always zero stay as they are.

    Args:
        mask: boolean `[rows, columns]`, True where pruned; of any method and any calibration text.

    Raises:
        UsageError: statistics without a Gram matrix, or a mask of another shape.
        NumericalError: the Hessian is not positive definite (as `inverse_factor`), or the steps do not converge.
    """
    gram = _gram(statistics, W, mask)
    upper, damped, added, dead = statistics.factor(damping)
    upper = upper.triu()
    inverse = upper.t() @ upper
    hessian = gram.clone()
    hessian.diagonal().add_(added)
    kept = (~mask & ~dead).to(W.dtype)
    target = (W @ hessian).mul_(kept)
    bound = (TOLERANCE * target.norm(dim=1)).clamp_(min=1e-30)
    value = W * kept
    residual = torch.addmm(target, value, hessian, alpha=-1).mul_(kept)
    step = (residual @ inverse).mul_(kept)
    energy = (residual * step).sum(1, keepdim=True)
    for turn in range(1, STEPS + 1):
        product = (step @ hessian).mul_(kept)
        length = energy / (step * product).sum(1, keepdim=True).clamp_(min=1e-30)
        value += length * step
        residual -= length * product
        if turn % 4 == 0 and bool((residual.norm(dim=1) <= bound).all()):
            break
        better = (residual @ inverse).mul_(kept)
        before, energy = energy, (residual * better).sum(1, keepdim=True)
        step = better + (energy / before.clamp(min=1e-30)) * step
    if not bool((residual.norm(dim=1) <= 100 * bound).all()):
        raise NumericalError(f"the kept weights are not solved after {STEPS} steps (damping {damped:g}): use more "
                             "calibration tokens or a larger damping")
    weight = torch.where(dead & ~mask, W, value)
    change = weight - W
    return Pruned(weight, mask, (change @ gram).mul_(change).sum(1), damped)
