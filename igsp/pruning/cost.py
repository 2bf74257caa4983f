"""What a pruning run would cost, by arithmetic on the model's shapes, before any weight is read.

Bytes are what must be in memory or on disk at the same time (on a GPU; on a CPU the program itself comes on top).
Seconds are the counted operations over
the rate of a matrix product measured here, a floor as well.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from igsp.assets import catalog
from igsp.checkpoints import open_checkpoint
from igsp.errors import UnknownName, UsageError
from igsp.models import resolve_device, resolve_dtype, resolve_folder
from igsp.provenance import duration, gigabytes
from igsp.pruning.activations import CPU_TOKENS, GPU_TOKENS, free_memory
from igsp.pruning.blocks import Block, find_blocks, weight_matrix
from igsp.pruning.driver import STEPS
from igsp.pruning.solvers import NEEDS, solver

SEQLEN = 2048  # tokens per window by default, as in the published codes
SLOWDOWN = (1.5, 4.0)  # measured runs take that many times the floor (tests/benchmarks/cpu.py)


@dataclass(frozen=True)
class Plan:
    """Cost of one pruning.

    Attributes:
        weights, activations, working: bytes of the model, of the hidden states of all windows, and of the largest
            block's statistics and solve.  gram: bytes of the statistics of all blocks together.
        spare: bytes that one window a forward pass would save.  disk: bytes of the checkpoint and its masks.
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
    spare: int = 0

    @property
    def memory(self) -> int:
        """Bytes that are needed at the same time."""
        return self.weights + self.activations + self.working

    def rows(self) -> list[dict[str, str]]:
        """What would be computed, as table rows."""
        low, high = (duration(self.floor * factor) for factor in SLOWDOWN)
        work = f"{self.linears} Linear layers" if self.linears else "forward passes"
        return [
            {"step": "computes",
             "what": f"{work} of a model of {self.parameters / 1e6:,.0f} M weights, on {self.device}"},
            {"step": "memory", "what": f"about {gigabytes(self.memory)}: weights {gigabytes(self.weights)}, hidden "
                                       f"states {gigabytes(self.activations)}, one block {gigabytes(self.working)}"},
            {"step": "time", "what": f"{low} to {high} (estimate; loading and text not counted)"},
        ]

    def repeated(self, times: int, sources: int) -> Plan:
        """Cost of that many prunings, a copy of the model each, with stored statistics of so many sources."""
        stored = self.gram * (sources + 1)  # and those of the mix
        return replace(self, weights=2 * self.weights, working=self.working + stored, floor=times * self.floor, disk=0)

    def check(self, out: str | Path) -> None:
        """Raises `UsageError` if memory or the disk of `out` is too small for the plan; names the way out."""
        free = torch.cuda.mem_get_info()[0] if self.device.startswith("cuda") else free_memory()
        least = self.memory - self.spare
        if least > free:
            raise UsageError(
                f"this needs at least {gigabytes(least)} of memory, {gigabytes(free)} are free: take fewer or "
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

    Memory: the weights, the hidden states of all windows, and for one block what `_working` says; the forward of a
    micro-batch holds three of the widest inputs and two hidden states for each token.
    Forward passes: two over the blocks (one in order `dense`), 2 operations per weight and token. Statistics: one Gram
    matrix per input of c columns, 2 c^2 operations per token and 4 c^2 bytes (inputs of one width inside one module are
    taken for one). Solve: 2 c^3 for the Cholesky factor of the inverse and 2 r c^2 for updating r rows, in float32.

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
    longest = int(getattr(net.config.get_text_config(), "max_position_embeddings", None) or 1 << 30)
    seqlen = seqlen or min(SEQLEN, longest)
    if seqlen > longest:
        raise UsageError(f"seqlen {seqlen} is over the {longest} positions of '{model}': use a shorter seqlen")
    return plan_skeleton(net, n, seqlen, method, order, compute, kind, stream)


def plan_skeleton(
    net: PreTrainedModel, n: int, seqlen: int, method: str, order: str, compute: torch.device, kind: torch.dtype,
    stream: bool = False,
) -> Plan:
    """`plan` for a model of these shapes, which needs no memory of its own (`meta`)."""
    blocks = find_blocks(net)
    hidden = int(net.config.get_text_config().hidden_size)
    groups = [_groups(block) for block in blocks]
    gram = NEEDS[method] == "gram"
    tokens = n * seqlen if NEEDS[method] != "nothing" else 0
    pruned = sum(rows * columns for block in groups for columns, rows in block)
    parameters = sum(p.numel() for p in net.parameters())
    elsewhere = sum(p.numel() for block in blocks[1:] for p in block.module.parameters()) if stream else 0
    forward = (1 if order == "dense" else 2) * 2.0 * pruned * tokens / _rate(compute, kind)
    batch = max(seqlen, CPU_TOKENS if compute.type == "cpu" else GPU_TOKENS) if order != "true-sequential" else tokens
    widths = [(3 * max((c for c, _ in block), default=0) + 2 * hidden) * kind.itemsize for block in groups]
    working = [
        max(_working(block, gram, min(batch, tokens) * width) for block, width in zip(groups, widths, strict=True))
        for batch in (batch, seqlen)
    ]
    return Plan(
        weights=(parameters - elsewhere) * kind.itemsize,
        activations=tokens * hidden * kind.itemsize,
        working=working[0],
        spare=working[0] - working[1],
        disk=parameters * kind.itemsize + pruned // 8,
        linears=sum(len(block.linears) for block in blocks),
        parameters=parameters,
        gram=sum(4 * c * (c if gram else 1) for block in groups for c, _ in block),
        floor=forward + (_hessian(groups, tokens, compute, kind) if gram else 0.0),
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


def _groups(block: Block) -> list[tuple[int, int]]:
    """Columns and rows of the inputs of a block; inputs of one width inside one module are taken for one."""
    rows: Counter[tuple[str, int]] = Counter()
    for name, linear in block.linears.items():
        shape = weight_matrix(linear).shape
        rows[name.rpartition(".")[0], shape[1]] += shape[0]
    return [(columns, count) for (_, columns), count in rows.items()]


def _working(groups: list[tuple[int, int]], gram: bool, forward: int) -> int:
    """Bytes of one block at its turn: Gram matrices, where there are any, with a micro-batch or the largest solve.

    A solve holds the damped matrix, its factor and the halves of the recursion, or five copies of its weights.
    """
    solve = max((max(11 * c * c * gram, 4 * c * c * gram + 20 * r * c) for c, r in groups), default=0)
    return sum(4 * c * c for c, _ in groups) * gram + max(forward, solve)


def _hessian(groups: list[list[tuple[int, int]]], tokens: int, device: torch.device, dtype: torch.dtype) -> float:
    """Seconds for Gram matrices in the model's type and solves in float32, at the measured rates."""
    gram = sum(2.0 * c * c * tokens for block in groups for c, _ in block)
    solve = sum(2.0 * c**3 + 2.0 * r * c * c for block in groups for c, r in block)
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


def roofline(work: Mapping[str, Mapping[str, float]], device: str) -> dict[str, float]:
    """Expected seconds, stage by stage, of counted work on a device of `catalog/devices.yaml`: an estimate.

    A stage takes as long as its matrix products at the published rate of their type, times the share of it that such
    products reach, plus its other bytes at the published bandwidth; but no less than its launches, one after the other.

    Args:
        work: by stage: `flops_half`, `flops_float32`, `bytes`, `launches` and `copied` (bytes to and from the host).

    Raises:
        UnknownName: no such device in the catalogue.
    """
    devices = catalog("devices")
    if device not in devices["devices"]:
        raise UnknownName("device", device, devices["devices"])
    published, assumed = devices["devices"][device], devices["assumed"]
    seconds = {}
    for stage, counted in work.items():
        products = counted["flops_half"] / published["half"] + counted["flops_float32"] / published["float32"]
        busy = products / assumed["reached"] + counted["bytes"] / published["bandwidth"]
        waited = counted["copied"] / published["host"]
        seconds[stage] = max(busy, counted["launches"] * assumed["launch_seconds"]) + waited
    return seconds
