"""Candidate pools: windows that the model wrote itself, with what selection needs to know about them."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from igsp.assets import whole_or_nothing
from igsp.errors import IgspError, UnknownName, UsageError
from igsp.text.ngrams import window_aggregation
from igsp.text.windows import CalibrationSet, Window, largest_remainder

DIMENSIONS = ("general", "commonsense", "code", "math")


class NotEnoughCandidates(IgspError):
    """Fewer candidates are left than windows are wanted; the message says which filter removed how many."""


@dataclass(frozen=True)
class CandidatePool:
    """Candidate windows of one model.

    Attributes:
        input_ids: int64 `[n, seqlen]`.
        pools: name of each window's pool, such as `self:math`.
        dimensions: capability dimension of each window.
        names: name of each window, unique within its pool.
        log_perplexity: float32 `[n]`, mean loss of the window under the model that wrote it, nats per token.
        tokenizer: fingerprint of the tokenizer.
        spec: what was asked for; after screening also how many windows each filter removed (`removed`).
    """

    input_ids: torch.Tensor
    pools: tuple[str, ...]
    dimensions: tuple[str, ...]
    names: tuple[str, ...]
    log_perplexity: torch.Tensor
    tokenizer: str
    spec: dict[str, Any]

    def __post_init__(self) -> None:
        n = len(self.input_ids)
        lengths = {n, len(self.pools), len(self.dimensions), len(self.names), len(self.log_perplexity)}
        if self.input_ids.ndim != 2 or lengths != {n} or not self.log_perplexity.isfinite().all():
            raise UsageError("a candidate pool needs ids [n, seqlen] and per window: pool, dimension, name, loss")

    @property
    def n(self) -> int:
        return self.input_ids.shape[0]

    @property
    def seqlen(self) -> int:
        return self.input_ids.shape[1]

    def subset(self, indices: Sequence[int] | NDArray[np.integer], **spec: Any) -> CandidatePool:
        """The windows `indices`, in that order; `spec` is added to the spec."""
        rows = [int(i) for i in indices]
        pools, dimensions, names = (
            tuple(labels[i] for i in rows) for labels in (self.pools, self.dimensions, self.names)
        )
        return CandidatePool(
            self.input_ids[rows], pools, dimensions, names, self.log_perplexity[rows], self.tokenizer,
            {**self.spec, **spec},
        )

    def part(self, n: int, pools: Sequence[str] | None = None, oversample: float | None = None) -> CandidatePool:
        """The candidates of some pools, and of each dimension the first `oversample` per window of a choice of `n`.

        First in the order of writing, the pools of a dimension in turn. None: all of them.

        Raises:
            UnknownName: no such pool here. UsageError: an oversample below 1, or more than was written.
            NotEnoughCandidates: a dimension has fewer candidates than its quota.
        """
        part = self
        if pools is not None:
            for name in pools:
                if name not in self.pools:
                    raise UnknownName("candidate pool", name, dict.fromkeys(self.pools))
            rows = [i for i, name in enumerate(self.pools) if name in pools]
            left = {self.dimensions[i] for i in rows}
            removed = {stage: {d: c for d, c in counts.items() if d in left}
                       for stage, counts in self.spec.get("removed", {}).items()}
            part = self.subset(rows, chosen_pools=list(pools), **({"removed": removed} if removed else {}))
        if oversample is None:
            return part
        written = part.spec.get("oversample", math.inf)
        if not 1 <= oversample <= written:
            raise UsageError(f"oversample must lie between 1 and the {written:g} that this pool was written for, "
                             f"got {oversample}")
        seen: Counter[str] = Counter()
        turns = []
        for i, name in enumerate(part.pools):
            turns.append((seen[name], i))
            seen[name] += 1
        rows = []
        for dimension, count in quotas(part, n).items():
            rows += [i for _, i in sorted(t for t in turns if part.dimensions[t[1]] == dimension)][
                : math.ceil(count * oversample)
            ]
        return part.subset(sorted(rows), oversample=oversample)

    def calibration(self, indices: Sequence[int] | NDArray[np.integer], spec: dict[str, Any]) -> CalibrationSet:
        """The windows `indices` as a calibration set."""
        draw = int(self.spec.get("seed", 0))
        windows = tuple(Window(self.pools[int(i)], (self.names[int(i)],), draw) for i in indices)
        return CalibrationSet(self.input_ids[[int(i) for i in indices]], windows, self.tokenizer, spec)

    def save(self, folder: str | Path) -> Path:
        """Writes `pool.safetensors` and `pool.json` into `folder`."""
        folder = Path(folder)
        with whole_or_nothing(folder / "pool.safetensors") as path:
            tensors = {"input_ids": self.input_ids, "log_perplexity": self.log_perplexity}
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
        manifest = {
            "format": 1, "tokenizer": self.tokenizer, "spec": self.spec,
            "pools": self.pools, "dimensions": self.dimensions, "names": self.names,
        }
        with whole_or_nothing(folder / "pool.json") as path:
            path.write_text(json.dumps(manifest), encoding="utf8")
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> CandidatePool:
        """Reads what `save` wrote; raises `UsageError` if it is not there."""
        folder = Path(folder)
        try:
            manifest = json.loads((folder / "pool.json").read_text(encoding="utf8"))
            tensors = load_file(folder / "pool.safetensors")
            pools, dimensions, names = (tuple(manifest[name]) for name in ("pools", "dimensions", "names"))
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise UsageError(f"'{folder}' holds no candidate pool (pool.safetensors + pool.json): {error}") from None
        return cls(
            tensors["input_ids"], pools, dimensions, names, tensors["log_perplexity"], manifest["tokenizer"],
            manifest["spec"],
        )


def screen(pool: CandidatePool, drop_share: float, loop_limit: float, order: int = 4) -> CandidatePool:
    """Removes unlikely text and loops.

    Inside each pool the `drop_share` of the windows with the highest perplexity go (the rule of SGS; the number
    kept is rounded up), then the windows in which more than `loop_limit` of the n-grams repeat an earlier one.

    Raises:
        UsageError: shares outside [0, 1).
    """
    if not (0 <= drop_share < 1 and 0 <= loop_limit <= 1):
        raise UsageError(f"drop_share must lie in [0, 1) and loop_limit in [0, 1], got {drop_share} and {loop_limit}")
    loops = window_aggregation(pool.input_ids, order) > loop_limit
    losses = pool.log_perplexity.numpy()
    labels = np.array(pool.pools)
    likely = np.zeros(pool.n, dtype=bool)
    for name in dict.fromkeys(pool.pools):
        members = np.flatnonzero(labels == name)
        kept = int(np.ceil(len(members) * (1 - drop_share) - 1e-9))
        likely[members[np.argsort(losses[members], kind="stable")[:kept]]] = True
    dimensions = np.array(pool.dimensions)
    removed = {
        "candidates": dict(Counter(pool.dimensions)),
        "perplexity": {str(k): int(v) for k, v in Counter(dimensions[~likely]).items()},
        "loops": {str(k): int(v) for k, v in Counter(dimensions[likely & loops]).items()},
    }
    return pool.subset(np.flatnonzero(likely & ~loops), removed=removed)


def quotas(pool: CandidatePool, n: int) -> dict[str, int]:
    """Windows to choose per dimension: equal shares of `n` by largest remainder over the dimensions written for.

    Raises:
        UsageError: n below 1. NotEnoughCandidates: a dimension has fewer candidates than its quota.
    """
    if n < 1:
        raise UsageError(f"n must be at least 1, got {n}")
    written = pool.spec.get("removed", {}).get("candidates") or dict.fromkeys(pool.dimensions)
    present = sorted(written, key=lambda d: DIMENSIONS.index(d) if d in DIMENSIONS else len(DIMENSIONS))
    if not present:
        raise NotEnoughCandidates("the candidate pool is empty")
    wanted = {d: count for d, count in largest_remainder(dict.fromkeys(present, 1.0), n).items() if count}
    left = Counter(pool.dimensions)
    for dimension, count in wanted.items():
        if left[dimension] < count:
            raise NotEnoughCandidates(
                f"dimension '{dimension}' has {left[dimension]} candidates left{_account(pool, dimension)}, "
                f"{count} are wanted: raise oversample or loosen the screens"
            )
    return wanted


def _account(pool: CandidatePool, dimension: str) -> str:
    removed = pool.spec.get("removed")
    if not removed:
        return ""
    counts = [removed[stage].get(dimension, 0) for stage in ("candidates", "perplexity", "loops")]
    return " of {} ({} dropped for high perplexity, {} for repeating themselves)".format(*counts)
