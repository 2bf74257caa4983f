"""Drawing the next token: temperature, repetition penalty, top-k, top-p, and noise that needs no state.

Tokens are drawn by the Gumbel-max rule: add independent Gumbel noise to the log-probabilities, take the
largest. The noise is a pure function of (seed, position, token), so a text depends on its own seed and on
nothing else that happens in the batch; and a small change of the logits rarely changes the draw.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch

from igsp.errors import UsageError

BLOCK = 64  # tokens per block of the two-stage draw
ROWS = 4
GOLDEN, MIX1, MIX2 = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15  # SplitMix64, as signed 64-bit


@dataclass(frozen=True)
class Schedule:
    """Temperature that goes in a straight line from `initial` to `final` over the first `steps` tokens of a text."""

    initial: float
    final: float
    steps: int

    def at(self, written: int) -> float:
        """Temperature of the next token after `written` tokens."""
        if written >= self.steps:
            return self.final
        return self.initial + (self.final - self.initial) * written / self.steps


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. The filters act in the order of the fields, as in `transformers`.

    Attributes:
        repetition_penalty: logits of tokens already in the text are divided (if positive) or multiplied
            (if negative) by it; 1 is none. (Keskar et al. 2019.)
        temperature: a number or a `Schedule`; 0 takes the most likely token.
        top_k: draw among the k most likely tokens (and those tied with the k-th); None is all.
        top_p: then among the smallest set of most likely tokens whose probability reaches p; None is all.
    """

    repetition_penalty: float = 1.0
    temperature: float | Schedule = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        ends = self.temperature
        for value in (ends.initial, ends.final) if isinstance(ends, Schedule) else (ends,):
            if not (math.isfinite(value) and value >= 0):
                raise UsageError(f"temperature must be finite and not negative, got {value}")
        if isinstance(ends, Schedule) and ends.steps < 0:
            raise UsageError(f"a temperature schedule needs steps >= 0, got {ends.steps}")
        if self.top_k is not None and self.top_k < 1:
            raise UsageError(f"top_k must be at least 1 or None (all tokens), got {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UsageError(f"top_p must lie in (0, 1] or be None, got {self.top_p}")
        if not (math.isfinite(self.repetition_penalty) and self.repetition_penalty > 0):
            raise UsageError(f"repetition_penalty must be positive, got {self.repetition_penalty}")

    def temperature_at(self, written: int) -> float:
        """Temperature of the next token of a text that has `written` tokens (its prompt not counted)."""
        return self.temperature.at(written) if isinstance(self.temperature, Schedule) else self.temperature

    def arguments(self) -> dict[str, Any]:
        """The settings as arguments of `generation.generate`."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def describe(self) -> dict[str, Any]:
        """The settings as plain data, for manifests."""
        return asdict(self)


def mix64(x: torch.Tensor) -> torch.Tensor:
    """The finaliser of SplitMix64 on int64 (Steele, Lea, Flood 2014): a bijection that scrambles every bit."""
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * MIX1
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * MIX2
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


def stream_key(seeds: Sequence[int], positions: Sequence[int], device: torch.device | None = None) -> torch.Tensor:
    """One int64 key per (seed, position), `[rows]`; seeds are taken modulo 2^64."""
    signed = [(seed + (1 << 63)) % (1 << 64) - (1 << 63) for seed in seeds]
    scrambled = mix64(torch.tensor(signed, dtype=torch.int64, device=device) * GOLDEN + 1)
    return mix64(scrambled + torch.tensor(positions, dtype=torch.int64, device=device) * GOLDEN)


def gumbel(keys: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Standard Gumbel noise of each (key, token), float64 `[rows, m]`.

    Args:
        keys: int64 `[rows]` from `stream_key`. tokens: int64 `[rows, m]` or `[m]`.
    """
    bits = mix64(keys[:, None] + (tokens + 1) * GOLDEN)
    uniform = (((bits >> 11) & 0x1FFFFFFFFFFFFF).double() + 0.5) * 2.0**-53
    return -torch.log(-torch.log(uniform))


def draw(
    logits: torch.Tensor, temperatures: torch.Tensor, keys: torch.Tensor, sampling: Sampling,
    context: torch.Tensor | None = None, banned: torch.Tensor | None = None,
) -> torch.Tensor:
    """Draws one token per row, int64 `[rows]`.

    Args:
        logits: `[rows, vocabulary]`, any float dtype.
        temperatures: float64 `[rows]`.
        keys: int64 `[rows]` from `stream_key`.
        context: int64 `[rows, m]`, tokens of each text so far (repeats allowed); for the repetition penalty.
        banned: int64 `[b]`, tokens that are never drawn.
    """
    scores = logits
    if sampling.repetition_penalty != 1.0 and context is not None:
        scores = logits.to(torch.float32, copy=True)
        seen = scores.gather(1, context)
        penalised = torch.where(seen < 0, seen * sampling.repetition_penalty, seen / sampling.repetition_penalty)
        scores.scatter_(1, context, penalised)
    if banned is not None and len(banned):
        scores = scores.index_fill(1, banned, -math.inf)
    cold = temperatures == 0
    warm = temperatures.where(~cold, temperatures.new_ones(()))
    if sampling.top_k is None and sampling.top_p is None:
        chosen = _draw_from_all(scores, warm, keys)
    else:
        chosen = _draw_from_top(scores, warm, keys, sampling)
    return chosen if not cold.any() else torch.where(cold, scores.argmax(1), chosen)


def _draw_from_all(scores: torch.Tensor, temperatures: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Exact draw in two stages, a block by its mass, then a token: noise is needed for blocks and 64 tokens only."""
    rows, size = scores.shape
    if size % BLOCK:
        scores = torch.nn.functional.pad(scores, (0, -size % BLOCK), value=-math.inf)
    blocks = scores.view(rows, -1, BLOCK)
    mass = blocks.new_empty(blocks.shape[:2], dtype=torch.float32)
    for start in range(0, rows, ROWS):  # a few rows at a time stay in the processor's cache
        few = slice(start, start + ROWS)
        part = blocks[few].float()
        shifted = part - part.amax((1, 2), keepdim=True)
        torch.sum(shifted.div_(temperatures[few].float()[:, None, None]).exp_(), 2, out=mass[few])
    index = torch.arange(mass.shape[1], device=scores.device)
    block = (mass.double().log() + gumbel(~keys, index)).argmax(1)
    inside = blocks[torch.arange(rows, device=scores.device), block].double() / temperatures[:, None]
    tokens = block[:, None] * BLOCK + torch.arange(BLOCK, device=scores.device)
    return tokens.gather(1, (inside + gumbel(keys, tokens)).argmax(1, keepdim=True)).squeeze(1)


def _draw_from_top(
    scores: torch.Tensor, temperatures: torch.Tensor, keys: torch.Tensor, sampling: Sampling
) -> torch.Tensor:
    values, tokens = _ranked(scores, min(sampling.top_k or scores.shape[1], scores.shape[1]))
    values = values.double() / temperatures[:, None]
    if sampling.top_p is not None and sampling.top_p < 1:
        share = values.softmax(1)
        values = values.masked_fill(share.cumsum(1) - share >= sampling.top_p, -math.inf)
    return tokens.gather(1, (values + gumbel(keys, tokens)).argmax(1, keepdim=True)).squeeze(1)


def _ranked(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k highest scores of each row and all those tied with the k-th, highest first, ties by token.

    Returns:
        scores and tokens, `[rows, m]` with m >= k; rows with fewer ties are filled with -inf.
    """
    rows, size = scores.shape
    if k * 4 > size // BLOCK:
        values, tokens = scores.sort(dim=1, descending=True, stable=True)
        return values.masked_fill(values < values[:, k - 1 : k], -math.inf), tokens
    # The k-th largest maximum of the blocks is a lower bound of the k-th score: only the blocks that reach it are
    # looked into, and only the tokens that reach it are sorted.
    blocks = torch.nn.functional.pad(scores, (0, -size % BLOCK), value=-math.inf).view(rows, -1, BLOCK)
    maxima = blocks.amax(2)
    bound = maxima.topk(k, dim=1).values[:, -1:]
    most = int((maxima >= bound).sum(1).max())
    reached = maxima.topk(most, dim=1).indices.sort(dim=1).values
    scores = blocks[torch.arange(rows, device=scores.device)[:, None], reached].flatten(1)
    row, column = ((scores >= bound) & (scores > -math.inf)).nonzero(as_tuple=True)
    token = reached[row, column // BLOCK] * BLOCK + column % BLOCK
    found = scores[row, column]
    counts = torch.bincount(row, minlength=rows)
    column = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
    width = max(k, int(counts.max()))
    values = scores.new_full((rows, width), -math.inf)
    tokens = token.new_zeros((rows, width))
    values[row, column], tokens[row, column] = found, token
    values, order = values.sort(dim=1, descending=True, stable=True)
    return values.masked_fill(values < values[:, k - 1 : k], -math.inf), tokens.gather(1, order)
