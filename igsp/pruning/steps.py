"""One block at its turn, in each of the orders (see `driver`): its statistics, then the solve of its Linear layers."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from igsp.errors import NumericalError
from igsp.pruning.activations import Activations
from igsp.pruning.blocks import Block, watch, weight_matrix
from igsp.pruning.kernels import cpu_has_bf16
from igsp.pruning.report import ModuleReport, pack_mask
from igsp.pruning.solvers import NEEDS, InputStatistics, Pattern, solver
from igsp.pruning.statistics import Statistics, accumulate, complete, empty, refuse_not_finite_input


@dataclass(frozen=True)
class Settings:
    """What decides the numbers of a run."""

    method: str
    sparsity: float
    pattern: Pattern | None
    order: str
    reference: bool
    damping: float

    @property
    def needs(self) -> str:
        return NEEDS[self.method]


Solved = list[tuple[ModuleReport, Tensor]]
Step = Callable[[Block, Any, Settings], Solved]  # the Any: Activations, or None where no forward pass is needed


def _block_order(block: Block, activations: Activations, settings: Settings) -> Solved:
    groups = activations.groups(block)
    found = activations.collect(block, groups, settings.needs)
    solved = _solve_all(block, groups, found, settings)
    activations.advance(block)
    return solved


def _dense_order(block: Block, activations: Activations, settings: Settings) -> Solved:
    groups = activations.groups(block)
    found = activations.collect(block, groups, settings.needs, keep=True)
    return _solve_all(block, groups, found, settings)


def _true_sequential(block: Block, activations: Activations, settings: Settings) -> Solved:
    groups = activations.groups(block)
    if len(activations.batches) == 1:
        return _on_arrival(block, activations, groups, settings)
    solved: Solved = []
    for group in groups:
        found = activations.collect(block, [group], settings.needs)
        solved += _solve(block, group, found[group[0]], settings)
    activations.advance(block)
    return solved


def _on_arrival(
    block: Block, activations: Activations, groups: Sequence[Sequence[str]], settings: Settings
) -> Solved:
    """One pass: each group of Linear layers is pruned when its input arrives, then the same pass goes on."""
    by_leader = {group[0]: group for group in groups}
    solved: Solved = []
    _, hidden, call = next(activations._each(block))

    def see(name: str, x: Tensor) -> None:
        found = empty(x.shape[-1], settings.needs, x.device)
        refuse_not_finite_input(f"{block.name}.{name}", accumulate(found, x, len(hidden)), 0, x.flatten(1))
        complete(found)
        solved.extend(_solve(block, by_leader[name], found, settings))

    last = block.index == len(activations.blocks) - 1
    output = watch(block, hidden, call, see, list(by_leader), stop=last)
    if output is not None:
        activations._keep(0, output)
    return solved


STEPS: dict[str, Step] = {"block": _block_order, "true-sequential": _true_sequential, "dense": _dense_order}


def from_statistics(
    statistics: Statistics | None, block: Block, activations: Activations | None, settings: Settings
) -> Solved:
    """No forward pass: stored statistics, or none at all for a method that needs none."""
    if statistics is None:
        groups = [[name] for name in block.linears]
        nothing = InputStatistics(0, 0, torch.empty(0))
        return _solve_all(block, groups, dict.fromkeys(block.linears, nothing), settings)
    groups = statistics.groups[block.index]
    device = weight_matrix(block.linears[groups[0][0]]).device
    return _solve_all(
        block, groups, {g[0]: moved(statistics.inputs[f"{block.name}.{g[0]}"], device) for g in groups}, settings
    )


def _solve_all(
    block: Block, groups: Sequence[Sequence[str]], found: dict[str, InputStatistics], settings: Settings
) -> Solved:
    """Solves the groups of one block.

    On a CPU they are solved side by side with one thread each: their many small operations gain little from a
    second thread, and lose much where other programs keep the cores busy. Results do not depend on it.
    """
    workers = min(torch.get_num_threads(), len(groups))
    if workers < 2 or found[groups[0][0]].squares.device.type != "cpu":
        return [row for group in groups for row in _solve(block, group, found.pop(group[0]), settings)]
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        order = sorted(groups, key=lambda group: -len(found[group[0]].squares))  # the longest first
        futures = {group[0]: pool.submit(_solve, block, group, found.pop(group[0]), settings) for group in order}
        return [row for group in groups for row in futures[group[0]].result()]


@torch.no_grad()
def _solve(block: Block, group: Sequence[str], found: InputStatistics, settings: Settings) -> Solved:
    """Prunes the Linear layers of one shared input together, in place; one report row and packed mask for each."""
    started = time.perf_counter()
    names = [f"{block.name}.{name}" for name in group]
    matrices = [weight_matrix(block.linears[name]) for name in group]
    parts = [len(matrix) for matrix in matrices]
    W = torch.cat(matrices).float()
    try:
        pruned = solver(settings.method)(
            W, found, settings.sparsity, settings.pattern, parts=parts, damping=settings.damping,
            reference=settings.reference,
        )
    except NumericalError as error:
        raise NumericalError(f"{', '.join(names)}: {error}") from error
    seconds = (time.perf_counter() - started) / len(names)
    energy = _energy(W, found).split(parts)
    numbers: list[Tensor] = []  # they and the masks leave the device in one copy each
    packed: list[Tensor] = []
    for matrix, weight, mask, lost, whole in zip(
        matrices, pruned.weight.split(parts), pruned.mask.split(parts), pruned.loss.split(parts), energy, strict=True
    ):
        matrix.copy_(weight)
        packed.append(pack_mask(mask.contiguous()))
        numbers += [lost.sum(), whole.sum(), torch.count_nonzero(mask), torch.count_nonzero(matrix)]
    told = torch.stack([number.double() for number in numbers]).view(-1, 4).tolist()
    masks = torch.cat(packed).cpu().split([len(mask) for mask in packed])
    return [
        (ModuleReport(block.index, name, len(matrix), matrix.shape[1], int(count), matrix.numel() - int(nonzero),
                      int(count) / matrix.numel(), max(0.0, lost) / max(whole, 1e-30), pruned.damping, found.tokens,
                      seconds), mask)
        for name, matrix, (lost, whole, count, nonzero), mask in zip(names, matrices, told, masks, strict=True)
    ]


def _energy(W: Tensor, found: InputStatistics) -> Tensor:
    """Squared norm `[rows]` of each row's output over the calibration tokens, by the measure of `Pruned.loss`."""
    if found.gram is not None:
        coarse = torch.bfloat16 if W.device.type == "cpu" and cpu_has_bf16() else W.dtype  # a scale for the report
        return (W.to(coarse) @ found.gram.to(coarse)).mul(W).sum(1)
    return (W.square() * found.squares if len(found.squares) else W.square()).sum(1)


def moved(item: InputStatistics, device: torch.device) -> InputStatistics:
    gram = None if item.gram is None else item.gram.to(device)
    return replace(item, squares=item.squares.to(device) if gram is None else gram.diagonal(), gram=gram)
