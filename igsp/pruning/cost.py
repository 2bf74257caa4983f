"""What a pruning run would cost, by arithmetic on the model's shapes, before any weight is read.

Bytes are lower bounds: what must be in memory or on disk at the same time. Seconds are the counted operations over
the rate of a matrix product measured here, a floor as well.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from igsp.checkpoints import open_checkpoint
from igsp.errors import UnknownName, UsageError
from igsp.models import resolve_device, resolve_dtype, resolve_folder
from igsp.provenance import duration, gigabytes
from igsp.pruning.blocks import find_blocks, weight_matrix
from igsp.pruning.driver import STEPS, _free_memory
from igsp.pruning.solvers import NEEDS, solver

SEQLEN = 2048  # tokens per window by default, as in the published codes
SLOWDOWN = (1.5, 4.0)  # measured runs take that many times the floor (tests/benchmarks/cpu.py)


@dataclass(frozen=True)
class Plan:
    """Cost of one pruning.

    Attributes:
        weights, activations, working: bytes of the model, of the hidden states of all windows, and of the largest
            block's statistics and solve.  gram: bytes of the statistics of all blocks together.
        disk: bytes of the checkpoint and its masks.
        linears, parameters: Linear layers to prune (0: the model is only read), weights of the whole model.
        floor: seconds at the measured rate of matrix products.
        seqlen: tokens per window, cut to what the model takes.
    """

    weights: int
    activations: int
    working: int
    disk: int
    linears: int
    parameters: int
    floor: float
    seqlen: int
    device: str
    gram: int = 0

    @property
    def memory(self) -> int:
        """Bytes that are needed at the same time, at least."""
        return self.weights + self.activations + self.working

    def rows(self) -> list[dict[str, str]]:
        """What would be computed, as table rows."""
        low, high = (duration(self.floor * factor) for factor in SLOWDOWN)
        work = f"{self.linears} Linear layers" if self.linears else "forward passes"
        return [
            {"step": "computes",
             "what": f"{work} of a model of {self.parameters / 1e6:,.0f} M weights, on {self.device}"},
            {"step": "memory", "what": f"at least {gigabytes(self.memory)}: weights {gigabytes(self.weights)}, hidden "
                                       f"states {gigabytes(self.activations)}, solving {gigabytes(self.working)}"},
            {"step": "time", "what": f"{low} to {high} (estimate; loading and text not counted)"},
        ]

    def repeated(self, times: int, sources: int) -> Plan:
        """Cost of that many prunings, a copy of the model each, with stored statistics of so many sources."""
        stored = self.gram * (sources + 1)  # and those of the mix
        return replace(self, weights=2 * self.weights, working=self.working + stored, floor=times * self.floor, disk=0)

    def check(self, out: str | Path) -> None:
        """Raises `UsageError` if memory or the disk of `out` is too small for the plan; names the way out."""
        free = torch.cuda.mem_get_info()[0] if self.device.startswith("cuda") else _free_memory()
        if self.memory > free:
            raise UsageError(
                f"this needs at least {gigabytes(self.memory)} of memory, {gigabytes(free)} are free: take fewer or "
                "shorter windows (--n, --seqlen), a smaller dtype, method wanda, --stream, or a larger machine"
            )
        folder = next(p for p in (Path(out).absolute(), *Path(out).absolute().parents) if p.is_dir())
        space = shutil.disk_usage(folder).free
        if self.disk > space:
            raise UsageError(
                f"the checkpoint takes {gigabytes(self.disk)}, '{folder}' has {gigabytes(space)} free: "
                "free some, or give another folder"
            )


def plan(
    model: str, n: int, seqlen: int | None = None, method: str = "sparsegpt", order: str = "block",
    device: str = "auto", dtype: str = "auto", stream: bool = False,
) -> Plan:
    """Cost of pruning `model` with `n` windows of `seqlen` tokens; reads its configuration, no weights.

    Forward passes: two over the blocks (one in order `dense`), 2 operations per weight and token. Statistics: one Gram
    matrix per input of c columns, 2 c^2 operations per token and 4 c^2 bytes (inputs of one width inside one module are
    taken for one). Solve: 2 c^3 for the Cholesky factor of the inverse and 2 r c^2 for updating r rows, in float32 with
    a factor and three copies of the weight.

    Args:
        seqlen: None is 2048, or what the model takes.
        stream: one block in memory at a time (`streaming.prune_folder`).

    Raises:
        UsageError, UnknownName, AssetError: as `load_model` for a model that cannot be pruned; no such method or order;
            windows longer than the model takes.
    """
    solver(method)
    if order not in STEPS:
        raise UnknownName("order", order, STEPS)
    compute = resolve_device(device)
    kind = resolve_dtype(dtype, compute)
    net = open_checkpoint(resolve_folder(model), model).skeleton
    text = net.config.get_text_config()
    longest = int(getattr(text, "max_position_embeddings", None) or 1 << 30)
    seqlen = seqlen or min(SEQLEN, longest)
    if seqlen > longest:
        raise UsageError(f"seqlen {seqlen} is over the {longest} positions of '{model}': use a shorter seqlen")
    blocks = find_blocks(net)
    shapes = [[_shape(linear) for linear in block.linears.values()] for block in blocks]
    inputs = [[c for _, c in {(name.rpartition(".")[0], _shape(linear)[1]) for name, linear in block.linears.items()}]
              for block in blocks]
    gram = NEEDS[method] == "gram"
    tokens = n * seqlen if NEEDS[method] != "nothing" else 0
    pruned = sum(r * c for block in shapes for r, c in block)
    parameters = sum(p.numel() for p in net.parameters())
    elsewhere = sum(p.numel() for block in blocks[1:] for p in block.module.parameters()) if stream else 0
    forward = (1 if order == "dense" else 2) * 2.0 * pruned * tokens / _rate(compute, kind)
    return Plan(
        weights=(parameters - elsewhere) * kind.itemsize,
        activations=tokens * int(text.hidden_size) * kind.itemsize,
        working=max(_working(*block, gram) for block in zip(shapes, inputs, strict=True)),
        disk=parameters * kind.itemsize + pruned // 8,
        linears=sum(map(len, shapes)),
        parameters=parameters,
        gram=sum(4 * c * (c if gram else 1) for block in inputs for c in block),
        floor=forward + (_hessian(shapes, inputs, tokens, compute, kind) if gram else 0.0),
        seqlen=seqlen,
        device=str(compute),
    )


def reading(model: str, tokens: int, device: str = "auto", dtype: str = "auto") -> Plan:
    """Cost of running `tokens` tokens through `model`, 2 operations per weight and token; raises as `plan`."""
    compute = resolve_device(device)
    kind = resolve_dtype(dtype, compute)
    parameters = sum(p.numel() for p in open_checkpoint(resolve_folder(model), model).skeleton.parameters())
    floor = 2.0 * parameters * tokens / _rate(compute, kind)
    return Plan(parameters * kind.itemsize, 0, 0, 0, 0, parameters, floor, 0, str(compute))


def _shape(linear: torch.nn.Module) -> tuple[int, int]:
    rows, columns = weight_matrix(linear).shape
    return rows, columns


def _working(shapes: list[tuple[int, int]], inputs: list[int], gram: bool) -> int:
    """Bytes of one block's Gram matrices, where there are any, and of its largest solve."""
    return sum(4 * c * c for c in inputs) * gram + max((4 * c * gram + 12 * r) * c for r, c in shapes)


def _hessian(
    shapes: list[list[tuple[int, int]]], inputs: list[list[int]], tokens: int, device: torch.device, dtype: torch.dtype
) -> float:
    """Seconds for Gram matrices in the model's type and solves in float32, at the measured rates."""
    gram = sum(2.0 * c * c * tokens for block in inputs for c in block)
    solve = sum(2.0 * c**3 for block in inputs for c in block) + sum(2.0 * r * c * c for b in shapes for r, c in b)
    return gram / _rate(device, dtype) + solve / _rate(device, torch.float32)


def _rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of a matrix product of 1024 x 1024, measured for a fifth of a second."""
    a = torch.randn(1024, 1024, device=device).to(dtype)

    def finished() -> Any:
        return (a @ a)[0, 0].item()  # waits for the device

    finished()
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < 0.2:
        finished()
        count += 1
    return count * 2 * 1024**3 / (time.perf_counter() - started)
