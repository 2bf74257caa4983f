"""The two inner loops worth a special form: the Gram matrix and the column-by-column elimination.

Every fast route has a plain twin here that it is tested against.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

CHUNK = 4096  # tokens cast to float32 at a time
PANELS = 6  # at most, of a Gram matrix: of 6 x 6 blocks 21 are computed
NARROWEST = {"cpu": 192}  # panel: below it a matrix product loses more speed than symmetry saves
NARROWEST_ELSEWHERE = 1024
SUBBLOCK = 16  # columns eliminated one by one before the rest of the block is updated by one matrix product
FEW_ROWS = 8192  # below this the columns are too short for a second thread to pay for its synchronisation


@functools.cache
def cpu_has_bf16() -> bool:
    """Whether oneDNN multiplies bfloat16 natively on this CPU (AVX512-BF16 or AMX)."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """Sets torch's float32 matmul precision for a while. It is the whole process's: never call this from a pool."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(min(before, count))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def gram_route(x: Tensor) -> str:
    """Name of the route `add_gram` takes for inputs like `x`.

    It depends on device and dtype alone, not on a timing, so that a run repeats bit by bit.
    """
    if x.device.type != "cpu":
        return "half-in-float-out" if x.dtype in (torch.bfloat16, torch.float16) else "float32"
    return "bf16-products" if x.dtype == torch.bfloat16 and cpu_has_bf16() else "openblas"


def add_gram(gram: Tensor, x: Tensor) -> None:
    """Adds the lower half of `x.T @ x` to `gram` in float32, for `x` `[tokens, columns]` of any float dtype, in place.

    Above the diagonal `gram` is unspecified until `mirror` completes it, once all tokens are added: the matrix is
    computed in panels of rows, each as far as the diagonal.

    `bf16-products`: the inputs are bfloat16 already, so oneDNN may multiply them as bfloat16 and add up in
    float32; no input is rounded, only the order of summation differs from a float32 product.
    `half-in-float-out`: the same on an accelerator. `openblas`: numpy's BLAS, which on many processors is
    faster than the one torch links (and which sees the symmetry by itself).
    """
    route = gram_route(x)
    if route == "half-in-float-out":
        for start, stop in _panels(gram):
            part = gram[start:stop, :stop]
            torch.addmm(part, x[:, start:stop].t(), x[:, :stop], out_dtype=torch.float32, out=part)
    elif route == "float32":
        for start, stop in _panels(gram):
            gram[start:stop, :stop].addmm_(x[:, start:stop].t(), x[:, :stop])
    elif route == "openblas":
        for chunk in x.split(CHUNK):
            part = chunk.float().numpy()
            gram += torch.from_numpy(part.T @ part)
    else:
        with matmul_precision("medium"):
            for chunk in x.split(CHUNK):
                part = chunk.float()
                for start, stop in _panels(gram):
                    gram[start:stop, :stop].addmm_(part[:, start:stop].t(), part[:, :stop])


def mirror(gram: Tensor) -> None:
    """Copies the lower half of a symmetric matrix to the upper one, in place."""
    for start, stop in _panels(gram):
        gram[:start, start:stop] = gram[start:stop, :start].t()
        block = gram[start:stop, start:stop]
        block.copy_(block.tril() + block.tril(-1).t())


def _panels(gram: Tensor) -> list[tuple[int, int]]:
    """Rows (start, stop) of the panels that `add_gram` computes."""
    columns = len(gram)
    width = max(NARROWEST.get(gram.device.type, NARROWEST_ELSEWHERE), -(-columns // PANELS))
    return [(start, min(start + width, columns)) for start in range(0, columns, width)]


def solve_block(block: Tensor, upper: Tensor, mask: Tensor, pattern: tuple[int, int] | None) -> Tensor:
    """Eliminates one block of columns; returns the scaled errors `[columns, rows]` for the columns to the right.

    Args:
        block: float32 `[columns, rows]`, a slice of W^T, changed in place: compensated, zero where pruned.
        upper: float32 `[columns, columns]`, the diagonal block of the factor of H^-1.
        mask: bool `[columns, rows]`, True where to prune; for an N:M `pattern` (keep, group) it is chosen here,
            group by group, from the compensated weights, and written.
    """
    if block.device.type == "cuda" and has_triton():
        from igsp.pruning.fused import solve_block_fused

        return solve_block_fused(block, upper, mask, pattern)
    return solve_block_plain(block, upper, mask, pattern)


@functools.cache
def has_triton() -> bool:
    """Whether the fused kernel can be compiled here (torch's CUDA builds for Linux bring Triton along)."""
    return importlib.util.find_spec("triton") is not None


def solve_block_plain(block: Tensor, upper: Tensor, mask: Tensor, pattern: tuple[int, int] | None) -> Tensor:
    """`solve_block` in plain torch: two small operations per column, one matrix product per sub-block."""
    columns, rows = block.shape
    errors = torch.empty_like(block)
    inverse_diagonal = upper.diagonal().reciprocal()[:, None]
    width = pattern[1] if pattern else SUBBLOCK
    with threads(1 if rows < FEW_ROWS else torch.get_num_threads()):
        for start in range(0, columns, width):
            part = block[start : start + width]
            stop = start + len(part)
            if start:
                part.addmm_(upper[:start, start:stop].t(), errors[:start], alpha=-1)
            if pattern:
                score = (part * inverse_diagonal[start:stop]).square_()
                mask[start:stop] = smallest_along_columns(score, pattern[1] - pattern[0])
            share = mask[start:stop] * inverse_diagonal[start:stop]
            for j, (weight, kept, error) in enumerate(zip(part, share, errors[start:stop], strict=True)):
                torch.mul(weight, kept, out=error)
                if j + 1 < len(part):
                    part[j + 1 :].addr_(upper[start + j, start + j + 1 : stop], error, alpha=-1)
    block.mul_(~mask)
    return errors


def smallest_along_columns(score: Tensor, count: int) -> Tensor:
    """Mask of the `count` smallest of each of the columns of a small `[group, rows]` tensor, ties to the first."""
    order = score.sort(dim=0, stable=True).indices[:count]
    return torch.zeros_like(score, dtype=torch.bool).scatter_(0, order, True)
