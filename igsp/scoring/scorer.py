"""A live model as scorer for lm-evaluation-harness: its Hugging Face model with less work, in float32.

Against the stock class (`HFLM`): choices after one context share it in one row, texts of nearly equal length make a
batch, so that hardly any position is padding; the language-model head runs on the scored positions alone and a
cache-sized block at a time; log-probabilities are float32 whatever the model computes in.

In float32 a score does not depend on what else is scored beside it (beyond rounding, 1e-5 nats a token). In bfloat16 or
float16 it does by the rounding of that type: matrix products and attention add up in another order for another
batch shape. A fixed suite on a fixed device is always cut into the same batches, so that its scores repeat.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, islice, repeat
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from tqdm import tqdm

from igsp.errors import NumericalError
from igsp.models import LanguageModel, leading_tokens
from igsp.scoring.tasks import quiet

Request = tuple[Any, list[int], list[int]]  # key, tokens of the context, tokens of the continuation


@dataclass(frozen=True)
class Row:
    """A row of a batch: the tokens that its requests share, the input tokens of each after them, their indices."""

    prefix: tuple[int, ...]
    tails: list[list[int]]
    requests: list[int]

    def __len__(self) -> int:
        return len(self.prefix) + sum(map(len, self.tails))

    @property
    def ends(self) -> list[int]:
        """Where each tail ends in the row."""
        return list(accumulate(map(len, self.tails), initial=len(self.prefix)))[1:]


class Scorer(HFLM):
    """lm-eval's Hugging Face model for a model in memory.

    Args:
        batch_size: most rows per forward pass; None: as many as `tokens` allows.
        tokens: most tokens per forward pass, padding included; None: what suits the device.
    """

    def __init__(
        self, lm: LanguageModel, batch_size: int | None = None, tokens: int | None = None, progress: bool = False
    ) -> None:
        on_cpu = lm.device.type == "cpu"
        tokens = tokens or (1024 if on_cpu else 32768)  # a CPU gains nothing from more at once, and pads less with less
        with quiet():
            super().__init__(
                pretrained=lm.model, backend="causal", max_length=lm.max_positions,
                add_bos_token=bool(leading_tokens(lm.tokenizer)),
                tokenizer=copy.deepcopy(lm.tokenizer),  # lm-eval may add a pad token to it
                batch_size=1 << 30,  # all requests in one call: batches are cut below
            )
        self._rows_at_once, self._tokens, self.progress, self._name = batch_size or 1 << 30, tokens, progress, lm.name
        self._written_at_once = batch_size or (4 if on_cpu else 32)
        self._block = 128 if on_cpu else 4096  # positions whose logits fit the processor's cache
        self._decoder = _decoder(lm.model)
        self._shares = _may_share(lm.model, self._decoder or lm.model)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Text that greedy decoding (or what the task says) writes after each context."""
        before: int = self.batch_size
        self.batch_size_per_gpu = self._written_at_once
        try:
            return super().generate_until(requests, disable_tqdm=not self.progress)
        finally:
            self.batch_size_per_gpu = before

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood (nats) of each whole text."""
        return super().loglikelihood_rolling(requests, disable_tqdm=True)  # the bar is that of the scoring below

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """Log-probability (nats) of each continuation and whether greedy decoding would write it."""
        scores: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        with tqdm(total=len(requests), desc="scoring", disable=not self.progress, leave=False) as bar:
            for batch in batches(self._rows(requests), self._rows_at_once, self._tokens):
                indices = [i for row in batch for i in row.requests]
                for i, answer in zip(indices, self._score(batch, [requests[i][2] for i in indices]), strict=True):
                    scores[i] = answer
                bar.update(len(indices))
        return scores

    def _rows(self, requests: Sequence[Request]) -> list[Row]:
        """Requests by what they share: all tokens of the context but the last, which predicts the first scored one."""
        last: dict[tuple[int, ...], Row] = {}  # the row of each prefix that has room
        rows: list[Row] = []
        for index, (_, context, continuation) in enumerate(requests):
            tokens = (context + continuation)[-(self.max_length + 1) :]
            split = len(tokens) - len(continuation) - 1 if self._shares else 0
            prefix, tail = tuple(tokens[:split]), tokens[split:-1]
            row = last.get(prefix)
            if row is None or not prefix or len(row) + len(tail) > self.max_length:
                row = last[prefix] = Row(prefix, [], [])
                rows.append(row)
            row.tails.append(tail)
            row.requests.append(index)
        rows = [row if row.tails[1:] else Row((), [[*row.prefix, *row.tails[0]]], row.requests) for row in rows]
        return sorted(rows, key=lambda row: (bool(row.prefix), -len(row), row.requests))

    @torch.inference_mode()
    def _score(self, batch: Sequence[Row], continuations: Sequence[list[int]]) -> list[tuple[float, bool]]:
        """Scores the tails of rows, row after row; a continuation is what its tail predicts at its end."""
        states = _states(self._decoder or self.model, batch, self.device)
        ends = [(at, end) for at, row in enumerate(batch) for end in row.ends]
        sizes = [len(tokens) for tokens in continuations]
        spans = [states[at, end - size : end] for (at, end), size in zip(ends, sizes, strict=True)]
        targets = torch.tensor([token for tokens in continuations for token in tokens], device=self.device)
        likelihood, greedy = self._likelihood(torch.cat(spans), targets)
        totals = torch.stack([part.sum(dtype=torch.float64) for part in likelihood.split(sizes)]).tolist()
        exact = torch.stack([part.all() for part in greedy.split(sizes)]).tolist()
        if not all(map(math.isfinite, totals)):
            raise NumericalError(
                f"model '{self._name}' gives a text no finite likelihood: its weights or activations are not finite"
            )
        return list(zip(totals, exact, strict=True))

    def _likelihood(self, states: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probability of each target `[positions]`, and whether it is the most likely token."""
        likelihood, greedy = [], []
        for part, target in zip(states.split(self._block), targets.split(self._block), strict=True):
            logits = (self.model.get_output_embeddings()(part) if self._decoder else part).float()
            own = logits.gather(1, target[:, None])[:, 0]
            likelihood.append(own - logits.logsumexp(-1))
            greedy.append(own == logits.amax(-1))
        return torch.cat(likelihood), torch.cat(greedy)


def _states(body: Any, batch: Sequence[Row], device: torch.device) -> torch.Tensor:
    """Last states (of a model without a separate head: logits) of rows, `[rows, length, width]`.

    Padding lies to the right of everything that is scored, so that causal attention needs no mask for it. Where tails
    share a prefix, each sees the prefix and itself alone, and its positions go on from the prefix's.
    """
    length = max(map(len, batch))

    def padded(rows: Iterable[Iterable[int]], fill: int = 0) -> torch.Tensor:
        return torch.tensor([list(islice(chain(row, repeat(fill)), length)) for row in rows], device=device)

    ids = padded(chain(row.prefix, *row.tails) for row in batch)
    if not batch[0].prefix:
        return body(ids, use_cache=False)[0]
    first = [len(row.prefix) for row in batch]
    positions = padded(chain(range(at), *(range(at, at + len(tail)) for tail in row.tails))
                       for at, row in zip(first, batch, strict=True))
    part = padded((chain.from_iterable([k] * len(tokens) for k, tokens in enumerate((row.prefix, *row.tails)))
                   for row in batch), fill=-1)  # 0: the prefix, k: the k-th tail, -1: padding
    seen = (part[:, None, :] == 0) | (part[:, None, :] == part[:, :, None])
    seen &= torch.ones(length, length, dtype=torch.bool, device=device).tril()
    mask = torch.zeros(seen.shape, dtype=body.dtype, device=device).masked_fill(~seen, torch.finfo(body.dtype).min)
    return body(ids, attention_mask=mask[:, None], position_ids=positions, use_cache=False)[0]


@torch.inference_mode()
def _decoder(model: Any) -> Any:
    """The model without its head, if output embeddings after it give the model's logits; else None.

    They do not where a model scales or caps its logits; such a model is called as a whole.
    """
    head, decoder = model.get_output_embeddings(), model.get_decoder()
    if head is None or decoder is None or decoder is model:
        return None
    probe = torch.arange(1, 9, device=model.device)[None]
    whole, split = model(probe, use_cache=False).logits, head(decoder(probe, use_cache=False)[0])
    return decoder if (whole - split).abs().max() <= torch.finfo(whole.dtype).eps * whole.abs().max() else None


@torch.inference_mode()
def _may_share(model: Any, body: Any) -> bool:
    """Whether several tails after one prefix can stand in one row: every layer attends to all that came before,
    and heeds mask and positions.

    Tried on a row of three parts: its last tail must be what it is without the other one, to a tenth of the
    difference that seeing the other one makes. (A recurrence, ALiBi or flash attention fails.)
    """
    kinds = getattr(model.config.get_text_config(), "layer_types", None)
    window = getattr(model.config.get_text_config(), "sliding_window", None)
    if (set(kinds) != {"full_attention"}) if kinds else window is not None:
        return False
    prefix, other, tail = (1, 2, 3, 4), [5, 6, 7, 8], [9, 10, 11]
    rows = (Row((), [[*prefix, *other, *tail]], []), Row((), [[*prefix, *tail]], []), Row(prefix, [other, tail], []))
    try:
        with_other, alone, shared = (_states(body, [row], model.device)[0, -len(tail) :].float() for row in rows)
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):  # no mask or positions of this form
        return False
    return bool((shared - alone).abs().max() <= 0.1 * (with_other - alone).abs().max())


def batches(rows: Sequence[Row], most: int, tokens: int) -> Iterator[list[Row]]:
    """Cuts ordered rows into batches of at most `most` rows and `tokens` padded tokens, or of one longer row.

    Rows with and without a prefix are not mixed.
    """
    batch: list[Row] = []
    for row in rows:
        full = len(batch) >= most or (len(batch) + 1) * max(map(len, [*batch, row])) > tokens
        if batch and (full or bool(row.prefix) != bool(batch[0].prefix)):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch
