"""Input statistics of a whole model: collected, added over sources, saved.

The Gram matrix of a calibration set is the sum of those of its windows. With statistics of the dense model
(`order="dense"`) any mixture of sources is therefore pruned from their stored statistics without a forward pass:
`H = sum_s w_s H_s`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from igsp.assets import whole_or_nothing
from igsp.checkpoints import read_tensors
from igsp.errors import CheckpointError, NumericalError, UsageError
from igsp.pruning.kernels import CHUNK, add_gram, mirror
from igsp.pruning.solvers import InputStatistics


def empty(columns: int, needs: str, device: torch.device) -> InputStatistics:
    """Zero statistics of an input of that many columns; `needs` is `norms` or `gram`."""
    gram = torch.zeros(columns, columns, device=device) if needs == "gram" else None
    squares = gram.diagonal() if gram is not None else torch.zeros(columns, device=device)
    return InputStatistics(0, 0, squares, gram)


def accumulate(statistics: InputStatistics, x: Tensor, windows: int) -> Tensor:
    """Adds the inputs `x` `[..., columns]` of `windows` calibration windows, in place; `complete` comes last.

    Returns one boolean, on the device of `x`: whether all inputs so far were finite.
    """
    tokens = x.reshape(-1, x.shape[-1])
    if statistics.gram is not None:
        add_gram(statistics.gram, tokens)
    else:
        for chunk in tokens.split(CHUNK):
            statistics.squares += chunk.float().square_().sum(0)
    statistics.tokens += len(tokens)
    statistics.windows += windows
    return torch.isfinite(statistics.squares).all()


def refuse_not_finite_input(name: str, finite: Tensor, first: int, x: Tensor) -> None:
    """Raises `NumericalError` if not `finite`; names the Linear and the first such window of `x` `[windows, ...]`."""
    if not finite:
        wrong = torch.nonzero(~torch.isfinite(x).all(1))
        raise not_finite_input(name, str(first + int(wrong[0]) if len(wrong) else first))


def not_finite_input(name: str, windows: str) -> NumericalError:
    return NumericalError(
        f"non-finite input of {name} in calibration window {windows}: the model overflows on this text; "
        "load it in bfloat16 or float32, or drop the window"
    )


def complete(statistics: InputStatistics) -> None:
    """Fills in the half of a Gram matrix that `accumulate` leaves out."""
    if statistics.gram is not None:
        mirror(statistics.gram)


@dataclass
class Statistics:
    """Input statistics of every group of Linear layers of a model, from dense activations.

    Attributes:
        inputs: by the full name of the first Linear of each group that shares one input.
        groups: for each block, the names (inside the block) of the Linear layers of each group.
        fingerprint: of the model they were collected on.
    """

    inputs: dict[str, InputStatistics]
    groups: list[list[list[str]]]
    fingerprint: str

    def save(self, path: str | Path) -> Path:
        """Writes one safetensors file; of each symmetric Gram matrix the lower triangle alone."""
        tensors = {}
        for name, item in self.inputs.items():
            if item.gram is None:
                tensors[f"{name}.squares"] = item.squares.cpu().contiguous()
            else:
                rows, columns = torch.tril_indices(len(item.gram), len(item.gram))
                tensors[f"{name}.gram"] = item.gram.cpu()[rows, columns]
        counts = {name: [item.tokens, item.windows] for name, item in self.inputs.items()}
        with whole_or_nothing(Path(path)) as temporary:
            save_file(tensors, temporary, {
                "fingerprint": self.fingerprint, "counts": json.dumps(counts), "groups": json.dumps(self.groups),
            })
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> Statistics:
        """Reads what `save` wrote; raises `UsageError` if the file is no such thing."""
        try:
            tensors, metadata = read_tensors(path, "file of pruning statistics")
            counts, groups = json.loads(metadata["counts"]), json.loads(metadata["groups"])
            inputs = {name: _read(tensors, name, *map(int, pair)) for name, pair in counts.items()}
            known = all(isinstance(name, str) for block in groups for group in block for name in group)
            if not known or sum(map(len, groups)) != len(inputs):
                raise ValueError(f"{len(inputs)} inputs for {sum(map(len, groups))} groups of Linear layers")
            return cls(inputs, groups, metadata["fingerprint"])
        except (CheckpointError, KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"'{path}' holds no pruning statistics: {error}; collect them again") from None


def _read(tensors: Mapping[str, Tensor], name: str, tokens: int, windows: int) -> InputStatistics:
    packed = tensors.get(f"{name}.gram")
    gram = None if packed is None else _unpack(packed)
    return InputStatistics(tokens, windows, tensors[f"{name}.squares"] if gram is None else gram.diagonal(), gram)


def _unpack(packed: Tensor) -> Tensor:
    size = int((2 * len(packed) + 0.25) ** 0.5)
    rows, columns = torch.tril_indices(size, size)
    gram = torch.empty(size, size)
    gram[rows, columns] = packed
    gram[columns, rows] = packed
    return gram


def combine(statistics: Mapping[str, Statistics], weights: Mapping[str, float] | None = None) -> Statistics:
    """Statistics of a mixture: `H = sum_s w_s H_s / tokens_s`, scaled to the total number of tokens.

    Weights are shares of tokens and are normalised to sum 1; equal by default. Equal sets of equal weight give
    exactly the statistics of their concatenation.

    Raises:
        UsageError: nothing to combine, unusable weights, or statistics of different models.
    """
    weights = dict.fromkeys(statistics, 1.0) if weights is None else weights
    used = {name: float(weight) for name, weight in weights.items() if weight}
    if not used or not set(used) <= set(statistics) or min(used.values()) < 0:
        raise UsageError(f"mixture weights {dict(weights)} must be positive and name some of {list(statistics)}")
    parts = [statistics[name] for name in used]
    if len({part.fingerprint for part in parts}) != 1 or len({tuple(part.inputs) for part in parts}) != 1:
        raise UsageError("statistics of different models cannot be combined")
    total = sum(used.values())
    return Statistics(
        {
            name: _weighted([part.inputs[name] for part in parts], [weight / total for weight in used.values()])
            for name in parts[0].inputs
        },
        parts[0].groups,
        parts[0].fingerprint,
    )


def _weighted(parts: list[InputStatistics], weights: list[float]) -> InputStatistics:
    tokens = sum(part.tokens for part in parts)
    scales = [weight * tokens / part.tokens for part, weight in zip(parts, weights, strict=True)]
    windows = sum(part.windows for part in parts)
    if any(part.gram is None for part in parts):
        squares = sum(scale * part.squares for part, scale in zip(parts, scales, strict=True))
        return InputStatistics(tokens, windows, torch.as_tensor(squares))
    gram = torch.zeros_like(parts[0].gram)  # type: ignore[arg-type]
    for part, scale in zip(parts, scales, strict=True):
        gram.add_(part.gram, alpha=scale)  # type: ignore[arg-type]
    return InputStatistics(tokens, windows, gram.diagonal(), gram)
