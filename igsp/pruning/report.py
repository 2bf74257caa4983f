"""What a pruning run did: exact counts per Linear, errors, damping, time and memory; masks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from igsp.checkpoints import read_tensors
from igsp.errors import CheckpointError, UsageError
from igsp.models import LanguageModel
from igsp.pruning.blocks import find_blocks, weight_matrix

MASKS = "masks/masks.safetensors"  # not beside the weights: loaders take every such file there for weights


@dataclass(frozen=True)
class ModuleReport:
    """One pruned Linear.

    Attributes:
        layer: index of its block.  name: full name in the model.  rows, columns: shape of its weight.
        pruned: weights the mask removes (exact).  zeros: weights that are zero in the end (a dense weight
            may have been zero before).  sparsity: pruned / (rows * columns).
        error: relative output error on the calibration tokens, `||(W - W') X||^2 / ||W X||^2`, by the measure
            named in `PruneReport.error_measure`.
        damping: share of the mean diagonal that was added to the Hessian; None where no Hessian was used.
        tokens: calibration tokens behind the statistics.
        seconds: time of the solve, shared equally by the Linears that were solved together.
    """

    layer: int
    name: str
    rows: int
    columns: int
    pruned: int
    zeros: int
    sparsity: float
    error: float
    damping: float | None
    tokens: int
    seconds: float


ERROR_MEASURES = {  # how the relative output error is known, by what the method needs to know of the inputs
    "gram": "exact on the calibration tokens",
    "norms": "inputs taken as uncorrelated",
    "nothing": "share of the squared weights (no inputs seen)",
}


@dataclass
class PruneReport:
    """Result of `prune`.

    Attributes:
        modules: one row per pruned Linear.  coverage: share of the blocks' matrix weights in those Linears.
        seconds: wall-clock of the whole call.  peak_memory: bytes, of the process on CPU, of the device on GPU.
        batch_size: windows per forward.  gram_route: how Gram matrices were computed (`kernels.gram_route`).
        masks: bit-packed masks by Linear name (`mask` unpacks one); not part of `to_dict`.
    """

    method: str
    sparsity: float
    pattern: str | None
    order: str
    reference: bool
    damping: float
    model: str
    fingerprint: str
    calibration: dict[str, Any] | None
    device: str
    dtype: str
    batch_size: int
    gram_route: str | None
    error_measure: str
    coverage: float = 0.0
    seconds: float = 0.0
    peak_memory: int = 0
    resumed_blocks: int = 0
    warnings: list[str] = field(default_factory=list)
    modules: list[ModuleReport] = field(default_factory=list)
    masks: dict[str, Tensor] = field(default_factory=dict, repr=False)

    @property
    def weights(self) -> int:
        """Number of weights in the pruned Linears."""
        return sum(m.rows * m.columns for m in self.modules)

    @property
    def pruned(self) -> int:
        """Number of weights removed."""
        return sum(m.pruned for m in self.modules)

    @property
    def reached(self) -> float:
        """Sparsity reached over all pruned Linears."""
        return self.pruned / self.weights if self.weights else 0.0

    @property
    def error(self) -> float:
        """Mean relative output error over the Linears."""
        return sum(m.error for m in self.modules) / len(self.modules) if self.modules else 0.0

    def mask(self, name: str) -> Tensor:
        """Boolean mask `[rows, columns]` of one Linear, True where pruned."""
        module = next((m for m in self.modules if m.name == name), None)
        if module is None:
            raise UsageError(f"no Linear named '{name}' was pruned; the first is '{self.modules[0].name}'")
        return unpack_mask(self.masks[name], module.rows, module.columns)

    def totals(self) -> dict[str, Any]:
        """Everything about the run as a whole, ready for JSON."""
        plain = {k: v for k, v in self.__dict__.items() if k not in ("masks", "modules")}
        return {**plain, "weights": self.weights, "pruned": self.pruned, "reached": self.reached, "error": self.error}

    def to_dict(self) -> dict[str, Any]:
        """`totals` and the rows of all Linears, ready for JSON (the masks are not)."""
        return {**self.totals(), "modules": [asdict(m) for m in self.modules]}


def pack_mask(mask: Tensor) -> Tensor:
    """Bit-packs a boolean mask row by row, on its device: uint8, eight weights a byte, first in the highest bit."""
    if mask.device.type == "cpu":
        return torch.from_numpy(np.packbits(mask.numpy()))
    bits = torch.nn.functional.pad(mask.flatten(), (0, -mask.numel() % 8)).view(-1, 8)
    places = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8, device=mask.device)
    return (bits * places).sum(1, dtype=torch.uint8)


def unpack_mask(packed: Tensor, rows: int, columns: int) -> Tensor:
    """The boolean mask `[rows, columns]` that `pack_mask` packed."""
    return torch.from_numpy(np.unpackbits(packed.numpy(), count=rows * columns).astype(bool)).view(rows, columns)


def load_masks(folder: str | Path, lm: LanguageModel | None = None) -> dict[str, Tensor]:
    """Boolean masks by Linear name from a folder written by `save`.

    Args:
        lm: the model they are for: masks of other layers or shapes are refused.

    Raises:
        CheckpointError: no masks there, damaged ones, or those of another model.
    """
    path = Path(folder) / MASKS
    packed, metadata = read_tensors(path, "file of masks")
    try:
        shapes = {name: (int(rows), int(columns)) for name, (rows, columns) in json.loads(metadata["shapes"]).items()}
        if shapes.keys() != packed.keys() or any(len(packed[n]) != -(-r * c // 8) for n, (r, c) in shapes.items()):
            raise ValueError("its masks are not of the shapes that it names")
        masks = {name: unpack_mask(packed[name], *shape) for name, shape in shapes.items()}
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"'{path}' holds no masks: {error}; prune the model again") from None
    if lm is not None:
        found = {f"{block.name}.{name}": tuple(weight_matrix(linear).shape)
                 for block in find_blocks(lm.model) for name, linear in block.linears.items()}
        differing = sorted(n for n in found.keys() | shapes.keys() if found.get(n) != shapes.get(n))
        if differing:
            raise CheckpointError(f"the masks in '{path}' are of another model than '{lm.name}': {differing[0]} is "
                                  f"{found.get(differing[0])} there, {shapes.get(differing[0])} in the masks")
    return masks


@contextmanager
def peak_memory(device: torch.device) -> Iterator[list[int]]:
    """Yields a list that holds the peak memory in bytes once the block is left.

    On a CUDA device its allocator's peak; on CPU the peak resident size of the process since entry where the
    system can reset that mark (Linux), else since the start of the process.
    """
    result: list[int] = []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="utf8")
    try:
        yield result
    finally:
        result.append(torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _peak_resident())


def _peak_resident() -> int:
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/self/status").read_text(encoding="utf8").splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
