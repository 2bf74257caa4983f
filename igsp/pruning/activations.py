"""Where calibration text becomes activations: hidden states in micro-batches, moved past one block after the other."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from igsp.models import LanguageModel
from igsp.pruning.blocks import (
    Block,
    Call,
    capture_calls,
    first_inputs,
    replay,
    shared_inputs,
    watch,
    weight_matrix,
)
from igsp.pruning.hessian import InputStatistics
from igsp.pruning.statistics import accumulate, complete, empty, not_finite_input, refuse_not_finite_input
from igsp.text.windows import CalibrationSet

CPU_TOKENS = 2048  # tokens per forward on a CPU: enough for full speed, few enough to stay near the caches
GPU_TOKENS = 32768  # and on a GPU: products of that many rows are at full speed, more would only take memory


class Activations:
    """Hidden states of all calibration windows at one depth of the model, in micro-batches.

    They stay on the compute device if they take less than a quarter of its free memory, else on the CPU.
    """

    def __init__(
        self, lm: LanguageModel, blocks: Sequence[Block], calibration: CalibrationSet, size: int, compute: torch.device
    ) -> None:
        self.model, self.blocks, self.compute = lm.model, blocks, compute
        self.seqlen = calibration.seqlen
        batches = calibration.input_ids.to(lm.device).split(size)
        self.calls: dict[int, list[Call]] = {}
        for ids in {len(ids): ids for ids in batches}.values():
            calls, moved = capture_calls(self.model, blocks, ids), dict[int, Tensor]()
            self.calls[len(ids)] = [call.to(compute, moved) for call in calls]
        first = first_inputs(self.model, blocks, batches[0])
        fits = compute.type == "cpu" or 4 * first.nbytes * len(batches) < torch.cuda.mem_get_info(compute)[0]
        self.home = compute if fits else torch.device("cpu")
        self.batches = [first_inputs(self.model, blocks, ids).to(self.home) for ids in batches]
        if self.home.type != compute.type:  # copies to and from locked pages need no wait
            self.batches = [hidden.pin_memory() for hidden in self.batches]
        self._groups: dict[tuple[str, ...], list[list[str]]] = {}

    def _each(self, block: Block) -> Iterator[tuple[int, Tensor, Call]]:
        for index, hidden in enumerate(self.batches):
            yield index, hidden.to(self.compute, non_blocking=True), self.calls[len(hidden)][block.index]

    def groups(self, block: Block) -> list[list[str]]:
        """Groups of the block's Linear layers that share an input, in the order they run."""
        key = (type(block.module).__name__, *block.linears)
        if key not in self._groups:
            _, hidden, call = next(self._each(block))
            self._groups[key] = shared_inputs(block, hidden, call)
        return self._groups[key]

    def collect(
        self, block: Block, groups: Sequence[Sequence[str]], needs: str, keep: bool = False
    ) -> dict[str, InputStatistics]:
        """Statistics of the groups' inputs, by the first name of each; `keep` also moves on to the block's outputs."""
        leaders = [group[0] for group in groups]
        found = {name: empty(weight_matrix(block.linears[name]).shape[1], needs, self.compute) for name in leaders}
        checks: list[tuple[str, str, Tensor]] = []
        window = 0
        for index, hidden, call in self._each(block):

            def see(name: str, x: Tensor, batch: int = len(hidden), first: int = window) -> None:
                finite = accumulate(found[name], x, batch)
                if x.device.type == "cpu":
                    refuse_not_finite_input(f"{block.name}.{name}", finite, first, x.reshape(batch, -1))
                else:
                    checks.append((f"{block.name}.{name}", f"{first} to {first + batch - 1}", finite))

            output = watch(block, hidden, call, see, leaders, stop=not keep)
            if keep and output is not None:
                self._keep(index, output)
            window += len(hidden)
        if checks and not torch.stack([finite for *_, finite in checks]).all():  # one wait for all of them
            name, windows, _ = next(check for check in checks if not check[2])
            raise not_finite_input(name, windows)
        for item in found.values():
            complete(item)
        return found

    def advance(self, block: Block) -> None:
        """Moves on to the outputs of the block as it is now. Nothing reads those of the last block."""
        if block.index == len(self.blocks) - 1:
            return
        for index, hidden, call in self._each(block):
            self._keep(index, replay(block, hidden, call))

    def _keep(self, index: int, output: Tensor) -> None:
        """Puts the hidden states of one micro-batch in the place of those it had."""
        if self.home.type == self.compute.type:
            self.batches[index] = output
        else:
            self.batches[index].copy_(output, non_blocking=True)


@contextmanager
def resident(block: Block, compute: torch.device) -> Iterator[None]:
    """Holds one block on the compute device for a while (nothing moves if it is there already)."""
    home = next((parameter.device for parameter in block.module.parameters()), compute)
    if home != compute:
        block.module.to(compute)
    try:
        yield
    finally:
        if home != compute:
            block.module.to(home)


def choose_batch(
    lm: LanguageModel, blocks: Sequence[Block], calibration: CalibrationSet, order: str, compute: torch.device
) -> int:
    """Windows per forward pass: all in `true-sequential` if they fit, else enough tokens for full speed.

    Estimated peak of one block's forward, our own rule: a token needs the input and output of every Linear and four
    float32 copies of the hidden state; 60 % of the free memory may be used.
    """
    shapes = [weight_matrix(linear).shape for linear in blocks[0].linears.values()]
    per_token = lm.dtype.itemsize * sum(c + r for r, c in shapes) + 16 * min(c for _, c in shapes)
    free = torch.cuda.mem_get_info(compute)[0] if compute.type == "cuda" else free_memory()
    fitting = max(1, int(0.6 * free / (per_token * calibration.seqlen)))
    if order != "true-sequential":
        fitting = min(fitting, max(1, (CPU_TOKENS if compute.type == "cpu" else GPU_TOKENS) // calibration.seqlen))
    return min(fitting, calibration.n)


def free_memory() -> int:
    """Bytes of memory that programs may still take (an estimate; 4 GiB where the system does not say)."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf8").splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])
    except (OSError, StopIteration):
        pages = os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
        return pages * os.sysconf("SC_PAGE_SIZE") // 2 if pages else 4 << 30


def keep_freed_memory() -> None:
    """Lets the C library reuse freed temporaries instead of handing them back to the system one by one.

    Every page that comes back would be faulted in and cleared anew (a quarter of the time of a forward pass).
    Freeing a block of nearly 32 MiB raises glibc's threshold for that as far as it goes (M_MMAP_THRESHOLD in
    mallopt(3)); elsewhere this does nothing.
    """
    torch.empty(31 << 20, dtype=torch.uint8)
