"""One token at a time for many texts at once: a static key-value cache whose rows are independent texts.

This file knows transformers' cache and attention interfaces. Two things keep a row's numbers apart from its
neighbours': matrix products always see the same number of rows (`WIDTH`), whatever the number of texts, and
attention reads each row's own positions only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from igsp.errors import UsageError
from igsp.models import LanguageModel

WIDTH = {"cpu": 64}  # rows of every matrix product; part of the numerics, so fixed per kind of device
WIDTH_ELSEWHERE = 128
SPAN = 64  # keys are read in multiples of this many positions
ATTENTION_TYPES = {"full_attention", "sliding_attention"}


def width(lm: LanguageModel) -> int:
    """Texts that are written at once on the model's device."""
    return WIDTH.get(lm.device.type, WIDTH_ELSEWHERE)


class Slots:
    """A decoder for up to `texts` rows of at most `capacity` positions each.

    Args:
        lm: a model with full or sliding-window attention.
        texts: rows that hold texts, at most `width(lm)`.
        capacity: positions per row, in tokens.

    Raises:
        UsageError: a model whose layers keep other state than keys and values, or whose attention cannot be replaced.
    """

    def __init__(self, lm: LanguageModel, texts: int, capacity: int) -> None:
        config = lm.model.config.get_text_config()
        foreign = set(getattr(config, "layer_types", None) or []) - ATTENTION_TYPES
        if foreign or not getattr(lm.model, "_supports_attention_backend", False):
            reason = f"layers of type {', '.join(sorted(foreign))}" if foreign else "attention of its own making"
            raise UsageError(
                f"model '{lm.name}' ({config.model_type}) has {reason}: text can be generated with models whose layers "
                "are full or sliding-window attention through transformers' attention interface"
            )
        self.lm, self.texts, self.width = lm, texts, max(texts, width(lm))
        self.capacity = -(-capacity // SPAN) * SPAN
        self.lengths = torch.zeros(texts, dtype=torch.int64, device=lm.device)
        self.rows = torch.arange(texts, device=lm.device)
        self.span = SPAN
        self.masks: dict[int | None, torch.Tensor] = {}
        self.cache = Cache(layers=[_SlotLayer(self) for _ in range(config.num_hidden_layers)])
        # Any four-dimensional mask is handed through by transformers; the attention below makes its own.
        self.no_mask = torch.zeros(1, 1, 1, 1, dtype=lm.dtype, device=lm.device)

    def step(self, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Logits after one more token a row, `[texts, vocabulary]`.

        Args:
            tokens: int64 `[texts]`. lengths: int64 `[texts]`, tokens that each row already holds (0 starts it anew).
        """
        self.lengths = lengths
        self.span = min(self.capacity, -(-(int(lengths.max()) + 1) // SPAN) * SPAN)
        self.masks.clear()
        extra = (0, self.width - self.texts)
        with torch.inference_mode(), self._attention():
            output = self.lm.model(
                input_ids=pad(tokens, extra)[:, None], position_ids=pad(lengths, extra)[:, None],
                attention_mask=self.no_mask, past_key_values=self.cache, use_cache=True,
            )
        return output.logits[: self.texts, -1]

    def mask(self, window: int | None) -> torch.Tensor:
        """Positions that each row may read, bool `[texts, 1, 1, span]`."""
        if window not in self.masks:
            positions = torch.arange(self.span, device=self.lengths.device)
            seen = positions <= self.lengths[:, None]
            if window is not None:
                seen &= positions > self.lengths[:, None] - window
            self.masks[window] = seen[:, None, None]
        return self.masks[window]

    def attend(
        self, module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
        attention_mask: torch.Tensor | None, scaling: float | None = None, sliding_window: int | None = None,
        softcap: float | None = None, s_aux: torch.Tensor | None = None, **unused: Any,
    ) -> tuple[torch.Tensor, None]:
        """Attention of one new token a row; transformers calls it in place of its own.

        Args:
            query: `[width, heads, 1, d]`. key, value: `[texts, kv_heads, span, d]`, as the cache returned them.

        Returns:
            `[width, 1, heads, d]`; zeros in the rows beyond `texts`.
        """
        texts, heads = key.shape[0], query.shape[1]
        query, mask = query[:texts], self.mask(sliding_window)
        if softcap is None and s_aux is None:
            if query.device.type == "cpu":
                out = scaled_dot_product_attention(query, key, value, mask, scale=scaling, enable_gqa=True)
            else:  # the masked GPU kernels know no grouped heads: a group's queries stand where positions do
                grouped = query.view(texts, key.shape[1], -1, query.shape[-1])
                out = scaled_dot_product_attention(grouped, key, value, mask, scale=scaling)
        else:
            grouped = query.view(texts, key.shape[1], -1, query.shape[-1])
            scores = (grouped @ key.transpose(2, 3)).float() * (scaling or query.shape[-1] ** -0.5)
            scores = softcap * torch.tanh(scores / softcap) if softcap is not None else scores
            scores = scores.masked_fill(~mask, -torch.inf)
            if s_aux is not None:  # a learned extra score per head that takes attention and gives nothing
                sink = s_aux.float().view(1, key.shape[1], -1, 1).expand(texts, -1, -1, -1)
                share = torch.cat([scores, sink], -1).softmax(-1)[..., :-1]
            else:
                share = scores.softmax(-1)
            out = share.to(value.dtype) @ value
        out = out.reshape(texts, 1, heads, -1)
        return (pad(out, (0, 0, 0, 0, 0, 0, 0, self.width - texts)) if texts < self.width else out), None

    @contextmanager
    def _attention(self) -> Iterator[None]:
        config, name = self.lm.model.config, f"slots-{id(self)}"
        before = _attention_names(config)
        ALL_ATTENTION_FUNCTIONS.register(name, self.attend)
        try:
            for part, _ in before:
                part._attn_implementation_internal = name
            yield
        finally:
            for part, old in before:
                part._attn_implementation_internal = old
            del type(ALL_ATTENTION_FUNCTIONS)._global_mapping[name]


def _attention_names(config: Any) -> list[tuple[Any, str | None]]:
    parts = [config]
    text = config.get_text_config()
    if text is not config:
        parts.append(text)
    return [(part, part._attn_implementation_internal) for part in parts]


class _SlotLayer(CacheLayerMixin):
    """Keys and values of one layer, `[texts, kv_heads, capacity, d]`, written in place."""

    is_sliding = False
    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, slots: Slots) -> None:
        super().__init__()
        self.slots = slots

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        texts, capacity = self.slots.texts, self.slots.capacity
        self.keys = key_states.new_zeros(texts, key_states.shape[1], capacity, key_states.shape[-1])
        self.values = value_states.new_zeros(texts, value_states.shape[1], capacity, value_states.shape[-1])
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        slots = self.slots
        self.keys[slots.rows, :, slots.lengths] = key_states[: slots.texts, :, 0]
        self.values[slots.rows, :, slots.lengths] = value_states[: slots.texts, :, 0]
        return self.keys[:, :, : slots.span], self.values[:, :, : slots.span]

    def get_seq_length(self) -> int:
        return self.slots.span - 1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.slots.span, 0

    def get_max_length(self) -> int:
        return self.slots.capacity
