"""Prunes a language model block by block: orders, memory, progress, checkpoints, report.

Three orders decide on which activations a Linear's statistics are taken:

`block`            (SparseGPT's and Wanda's default) those of its block before any of the block is pruned; then the
                   block's outputs are computed again with the pruned weights and feed the next block. Two passes.
`true-sequential`  those left by every Linear before it, the ones of the same block included. One pass when
                   all windows fit one batch (each Linear is pruned when its input arrives, then the pass goes on);
                   otherwise one partial pass per group of Linears.
`dense`            those of the unpruned model. One pass, and the statistics of several sources can be added
                   (`collect_statistics`, `combine`); the error of earlier blocks is not seen.
"""

from __future__ import annotations

import functools
import time
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from igsp.checkpoints import refuse_not_finite
from igsp.errors import IgspError, UnknownName, UsageError
from igsp.models import LanguageModel, resolve_device
from igsp.pruning.activations import Activations, choose_batch, keep_freed_memory, resident
from igsp.pruning.blocks import Block, coverage, find_blocks, weight_matrix, weight_of
from igsp.pruning.card import save
from igsp.pruning.checkpoint import Checkpoint
from igsp.pruning.kernels import gram_route
from igsp.pruning.report import ERROR_MEASURES, PruneReport, peak_memory
from igsp.pruning.solvers import (
    NEEDS,
    SOLVERS,
    InputStatistics,
    check_sparsity,
    parse_pattern,
    solver,
)
from igsp.pruning.statistics import Statistics, combine
from igsp.pruning.steps import STEPS, Settings, Step, from_statistics, moved
from igsp.text.windows import CalibrationSet

__all__ = ["METHODS", "PruneReport", "Statistics", "collect_statistics", "combine", "prune", "save"]

METHODS = tuple(SOLVERS)
DEFAULT_SPARSITY = 0.6


def prune(
    lm: LanguageModel,
    calibration: CalibrationSet | None = None,
    method: str = "sparsegpt",
    sparsity: float = DEFAULT_SPARSITY,
    pattern: str | None = None,
    order: str = "block",
    reference: bool = False,
    damping: float = 0.01,
    batch_size: int | None = None,
    checkpoint: str | Path | Checkpoint | None = None,
    statistics: Statistics | None = None,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> PruneReport:
    """Prunes the Linear layers of all decoder blocks of `lm`, in place.

    Embeddings, norms, biases and the output head are left alone. The solve is done in float32 and the
    result cast back to the model's dtype.

    Args:
        calibration: windows to take input statistics from; not needed for `magnitude` or with `statistics`.
        method: a name of `METHODS`: `sparsegpt`, `wanda`, `magnitude`, `ria`, `admm`, `sparseswaps`, ...
        sparsity: share of each Linear's weights to prune, in [0, 1).
        pattern: None (unstructured) or `"N:M"`: N of every M consecutive weights of a row stay. It implies the
            sparsity 1 - N/M: the default sparsity then gives way, any other value that differs is refused.
        order: `block`, `true-sequential` or `dense` (see the module's docstring).
        reference: the rules of the published code in place of exact counts.
        damping: share of the Hessian's mean diagonal that is added to its diagonal (SparseGPT).
        batch_size: windows per forward pass; chosen from the free memory by default.
        checkpoint: folder for finished blocks. A run that was killed is resumed by the same call on a freshly
            loaded model and ends in the same bits. The folder is left in place. (Or a `Checkpoint`: see `streaming`.)
        statistics: stored dense statistics (`collect_statistics`, `combine`); implies `order="dense"`.
        device: where to compute; blocks are moved there one at a time. The model's own device by default.
        progress: show a bar.

    Raises:
        UsageError: sparsity outside [0, 1), an unusable pattern, no calibration, a calibration set of another
            tokenizer, a model without prunable blocks, a checkpoint of another run.
        UnknownName: no such method or order.
        NumericalError: non-finite weights or activations, or a singular Hessian; names the layer.
    """
    settings = _settings(lm, calibration, method, sparsity, pattern, order, reference, damping, statistics)
    blocks = find_blocks(lm.model)
    _check_shapes(blocks, settings)
    compute = resolve_device(device) if device is not None else lm.device
    store = Checkpoint(checkpoint) if isinstance(checkpoint, str | Path) else checkpoint
    if calibration is None or statistics is not None or settings.needs == "nothing":
        return _prune(lm, blocks, None, settings, 1, store, statistics, compute, progress)
    resumed = store.batch_size if store else None
    size = batch_size or resumed or choose_batch(lm, blocks, calibration, order, compute)
    while True:
        untouched = _versions(blocks)
        try:
            return _prune(lm, blocks, calibration, settings, size, store, None, compute, progress)
        except (RuntimeError, MemoryError) as error:
            if not _out_of_memory(error):
                raise
            if size == 1 or (store and store.started) or untouched != _versions(blocks):
                way_out = "set a lower batch_size" if size > 1 else "use a shorter seqlen"
                raise IgspError(
                    f"out of memory with batch_size={size}: {way_out} (and load the model again if it was half pruned, "
                    "and give another checkpoint folder if there is one)"
                ) from error
            size //= 2
            warnings.warn(f"out of memory: trying again with batch_size={size}", stacklevel=2)


def _out_of_memory(error: BaseException) -> bool:
    """torch says it with a type on accelerators, with these words alone on a CPU."""
    said = any(words in str(error) for words in ("not enough memory", "can't allocate memory"))
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or said


def collect_statistics(
    lm: LanguageModel,
    calibration: CalibrationSet,
    gram: bool = True,
    batch_size: int | None = None,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> Statistics:
    """Input statistics of the dense model: pass them, or a `combine` of several, to `prune(statistics=...)`.

    Args:
        gram: collect Gram matrices (SparseGPT); else the norms alone (enough for Wanda, and small).

    Raises: as `prune`.
    """
    calibration.check(lm)
    blocks = find_blocks(lm.model)
    compute = resolve_device(device) if device is not None else lm.device
    size = batch_size or choose_batch(lm, blocks, calibration, "dense", compute)
    inputs: dict[str, InputStatistics] = {}
    grouped: list[list[list[str]]] = []
    with torch.no_grad():
        activations = Activations(lm, blocks, calibration, size, compute)
        for block in tqdm(blocks, desc="statistics", unit="block", disable=not progress):
            with resident(block, compute):
                groups = activations.groups(block)
                found = activations.collect(block, groups, "gram" if gram else "norms", keep=True)
                for leader, item in found.items():
                    inputs[f"{block.name}.{leader}"] = moved(item, torch.device("cpu"))
                grouped.append(groups)
    return Statistics(inputs, grouped, lm.fingerprint)


def _settings(
    lm: LanguageModel, calibration: CalibrationSet | None, method: str, sparsity: float, pattern: str | None,
    order: str, reference: bool, damping: float, statistics: Statistics | None,
) -> Settings:
    solver(method)
    parsed = parse_pattern(pattern)
    wanted = check_sparsity(sparsity)
    if parsed:
        if wanted != DEFAULT_SPARSITY and abs(wanted - parsed.sparsity) > 1e-9:
            raise UsageError(
                f"pattern {parsed} prunes {parsed.sparsity:g} of the weights, not {wanted:g}: leave the sparsity out"
            )
        wanted = parsed.sparsity
    if order not in STEPS:
        raise UnknownName("order", order, STEPS)
    if not damping > 0:
        raise UsageError(f"damping {damping!r} must be positive: 0.01 adds 1 % of the mean diagonal")
    if NEEDS[method] != "nothing":
        if calibration is None and statistics is None:
            raise UsageError(f"method '{method}' needs a calibration set (or collected statistics)")
        if calibration is not None:
            calibration.check(lm)
        if statistics is not None:
            order = "dense"
            if statistics.fingerprint != lm.fingerprint:
                raise UsageError(f"these statistics are of another model than '{lm.name}': collect them again")
    return Settings(method, wanted, parsed, order, reference, float(damping))


def _check_shapes(blocks: Sequence[Block], settings: Settings) -> None:
    if settings.pattern is None:
        return
    for block in blocks:
        for name, linear in block.linears.items():
            columns = weight_matrix(linear).shape[1]
            if columns % settings.pattern.group:
                raise UsageError(
                    f"pattern {settings.pattern}: the {columns} columns of {block.name}.{name} are no multiple of "
                    f"{settings.pattern.group}; choose an M that divides them"
                )


def _versions(blocks: Sequence[Block]) -> int:
    """Changes whenever a weight is written to (torch counts in-place writes)."""
    return sum(linear.weight._version for block in blocks for linear in block.linears.values())  # type: ignore[union-attr,operator]


def _prune(
    lm: LanguageModel, blocks: Sequence[Block], calibration: CalibrationSet | None, settings: Settings, size: int,
    store: Checkpoint | None, statistics: Statistics | None, compute: torch.device, progress: bool,
) -> PruneReport:
    started = time.perf_counter()
    keep_freed_memory()
    report = _empty_report(lm, blocks, calibration, settings, size, compute)
    _warn_few_tokens(report, calibration, blocks, settings)
    if store:
        store.claim({k: v for k, v in report.to_dict().items() if k in CHECKPOINT_KEY})
    loaded = store.loaded if store else nullcontext
    pool = _mask_pool(blocks)
    step: Step = STEPS[settings.order] if calibration is not None else functools.partial(from_statistics, statistics)
    with torch.no_grad(), peak_memory(compute) as peak:
        activations = None
        if calibration is not None:
            with loaded(blocks[0]):
                activations = Activations(lm, blocks, calibration, size, compute)
        title = f"{settings.method} {settings.sparsity:.0%}"
        for block in tqdm(blocks, desc=title, unit="block", disable=not progress):
            with loaded(block), resident(block, compute):
                done = store.load(block) if store else None
                if done is not None:
                    weights, masks, modules = done
                    _restore(block, weights, activations, settings)
                    report.resumed_blocks += 1
                else:
                    refuse_not_finite({f"{block.name}.{name}": weight_of(m) for name, m in block.linears.items()})
                    solved = step(block, activations, settings)
                    modules = [module for module, _ in solved]
                    masks = {module.name: packed for module, packed in solved}
                    if store:
                        store.save(block, masks, modules)
            report.modules += modules
            report.masks |= {name: pool[name].copy_(mask) for name, mask in masks.items()}
    report.peak_memory, report.seconds = peak[0], time.perf_counter() - started
    report.warnings += _damping_raised(report, settings)
    return report


CHECKPOINT_KEY = {"method", "sparsity", "pattern", "order", "reference", "damping", "fingerprint", "calibration",
                  "dtype", "batch_size", "gram_route"}


def _mask_pool(blocks: Sequence[Block]) -> dict[str, Tensor]:
    """Places for the packed masks of all Linear layers, by name, in one stretch of memory.

    They live as long as the report. Each in memory of its own would sit between the large temporaries of the solves and
    keep the allocator from reusing the space (200 MB on a model of 135 M parameters).
    """
    sizes = {f"{block.name}.{name}": -(-weight_matrix(linear).numel() // 8)
             for block in blocks for name, linear in block.linears.items()}
    places = torch.empty(sum(sizes.values()), dtype=torch.uint8).split(list(sizes.values()))
    return dict(zip(sizes, places, strict=True))


def _restore(block: Block, weights: dict[str, Tensor], activations: Activations | None, settings: Settings) -> None:
    """Takes a finished block from its checkpoint and moves the activations past it, as the unbroken run did."""
    if activations is not None and settings.order == "dense":
        activations.advance(block)
    for name, linear in block.linears.items():
        weight_of(linear).copy_(weights[name])
    if activations is not None and settings.order != "dense":
        activations.advance(block)


def _empty_report(
    lm: LanguageModel, blocks: Sequence[Block], calibration: CalibrationSet | None, settings: Settings, size: int,
    compute: torch.device,
) -> PruneReport:
    seen = None
    if calibration is not None:
        seen = {name: getattr(calibration, name) for name in ("sha256", "n", "seqlen", "spec")}
    route = gram_route(torch.empty(0, dtype=lm.dtype, device=compute)) if settings.needs == "gram" else None
    return PruneReport(
        method=settings.method, sparsity=settings.sparsity, order=settings.order, reference=settings.reference,
        pattern=str(settings.pattern) if settings.pattern else None, damping=settings.damping, model=lm.name,
        fingerprint=lm.fingerprint, calibration=seen, device=str(compute), dtype=str(lm.dtype).removeprefix("torch."),
        batch_size=size, gram_route=route, error_measure=ERROR_MEASURES[settings.needs], coverage=coverage(blocks),
    )


def _warn_few_tokens(
    report: PruneReport, calibration: CalibrationSet | None, blocks: Sequence[Block], settings: Settings
) -> None:
    if calibration is None or settings.needs != "gram":
        return
    tokens = calibration.input_ids.numel()
    columns = max(weight_matrix(linear).shape[1] for block in blocks for linear in block.linears.values())
    if tokens < columns:
        report.warnings.append(
            f"{tokens} calibration tokens for up to {columns} columns: the Hessians are singular and solved by damping "
            "alone; use more or longer windows"
        )
        warnings.warn(report.warnings[-1], stacklevel=4)


def _damping_raised(report: PruneReport, settings: Settings) -> list[str]:
    raised = [m for m in report.modules if m.damping is not None and m.damping > settings.damping * 1.5]
    return [f"damping was raised to {m.damping:g} for {m.name}" for m in raised]
