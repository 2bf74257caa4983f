"""`solve_block` as one Triton kernel: a block of columns stays in registers while it is eliminated.

The plain loop launches a dozen kernels per column; this one launches once per block. It is imported only where
Triton is installed, and runs on a CPU under `TRITON_INTERPRET=1`, where the tests hold it against the plain loop.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 16  # rows of W a program holds: 16 x 128 floats are 8 registers for each of its 256 threads
WARPS = 8  # with 4 the 2:4 form spills registers on sm_80


@triton.jit
def _eliminate(block, upper, mask, errors, columns, rows, block_stride, upper_stride, mask_stride,
               SIZE: tl.constexpr, TILE: tl.constexpr, KEEP: tl.constexpr, GROUP: tl.constexpr):
    row = tl.program_id(0) * TILE + tl.arange(0, TILE)
    column = tl.arange(0, SIZE)
    inside = (column < columns)[:, None] & (row < rows)[None, :]
    weight = tl.load(block + column[:, None] * block_stride + row[None, :], inside, other=0.0)
    places = mask + column[:, None] * mask_stride + row[None, :]
    chosen = tl.load(places, inside, other=0).to(tl.int32)
    diagonal = tl.load(upper + column * (upper_stride + 1), column < columns, other=1.0)
    for j in range(columns):
        if GROUP > 0:  # noqa: SIM102 (this one is decided at compile time, the next is not)
            if j % GROUP == 0:
                member = ((column >= j) & (column < j + GROUP))[:, None]
                share = weight / diagonal[:, None]
                score = tl.where(member, share * share, float("inf"))
                for _ in tl.static_range(GROUP - KEEP):
                    lowest = tl.min(score, 0)
                    ties = tl.where(score == lowest[None, :], column[:, None], SIZE)
                    hit = column[:, None] == tl.min(ties, 0)[None, :]
                    chosen = tl.where(hit, 1, chosen)
                    score = tl.where(hit, float("inf"), score)
        here = (column == j)[:, None]
        value = tl.sum(tl.where(here, weight, 0.0), 0)
        prune = tl.sum(tl.where(here, chosen, 0), 0)
        error = tl.where(prune != 0, value / tl.load(upper + j * (upper_stride + 1)), 0.0)
        tl.store(errors + j * rows + row, error, row < rows)
        factors = tl.load(upper + j * upper_stride + column, (column > j) & (column < columns), other=0.0)
        weight -= factors[:, None] * error[None, :]
    tl.store(block + column[:, None] * block_stride + row[None, :], tl.where(chosen != 0, 0.0, weight), inside)
    tl.store(places, chosen.to(tl.int8), inside)


def solve_block_fused(block: Tensor, upper: Tensor, mask: Tensor, pattern: tuple[int, int] | None) -> Tensor:
    """As `kernels.solve_block`; the rows of the arguments must be contiguous."""
    columns, rows = block.shape
    assert block.stride(1) == upper.stride(1) == mask.stride(1) == 1
    errors = torch.empty(columns, rows, dtype=torch.float32, device=block.device)
    keep, group = pattern or (0, 0)
    _eliminate[(triton.cdiv(rows, ROWS),)](
        block, upper, mask.view(torch.int8), errors, columns, rows, block.stride(0), upper.stride(0), mask.stride(0),
        SIZE=triton.next_power_of_2(columns), TILE=ROWS, KEEP=keep, GROUP=group, num_warps=WARPS,
    )
    return errors
