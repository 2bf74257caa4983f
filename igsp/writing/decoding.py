"""One token at a time for many texts at once: a static key-value cache whose rows are independent texts.

This file knows transformers' cache and attention interfaces. Two things keep a row's numbers apart from its
neighbours': matrix products see the same number of rows (`WIDTH`), whatever the number of texts, and attention reads
each row's own positions only. Where products of several heights are seen to agree to the bit, the least that holds
the texts is taken. On a CPU in bfloat16 the weights are kept once more in the layout that the matrix kernel wants,
instead of being brought into it at every step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from igsp.errors import UsageError
from igsp.models import LanguageModel

WIDTH = 128  # rows of every matrix product; part of the numerics, so fixed
WIDTHS = (64, 128, 192, 256)  # the choices where they agree
SPAN = 32  # keys are read in multiples of this many positions
PACKED_BYTES = 4 << 30  # a model with more weights than this keeps no second copy of them
CACHE_BYTES = 4 << 30  # for keys and values on a CPU; elsewhere half of the free memory
ATTENTION_TYPES = {"full_attention", "sliding_attention"}


class Slots:
    """A decoder for rows of at most `capacity` positions each, one text a row.

    Args:
        lm: a model with full or sliding-window attention.
        texts: rows wanted for texts; `texts` of the object are those that rows and memory allow.
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
        self.lm = lm
        self.capacity = -(-capacity // SPAN) * SPAN
        self.span = SPAN
        self.masks: dict[int | None, torch.Tensor] = {}
        self.places: dict[int, torch.Tensor] = {}
        self.cache = Cache(layers=[_SlotLayer(self) for _ in range(config.num_hidden_layers)])
        # Any four-dimensional mask is handed through by transformers; the attention below makes its own.
        self.no_mask = torch.zeros(1, 1, 1, 1, dtype=lm.dtype, device=lm.device)
        self.packed = _packed_layers(lm)
        choices = self._row_choices()
        self.texts = max(1, min(texts, choices[-1], _fitting(lm, self.capacity)))
        self.width = min(rows for rows in choices if rows >= self.texts)
        self.lengths = torch.zeros(self.texts, dtype=torch.int64, device=lm.device)

    def step(self, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Logits after one more token a row, `[texts, vocabulary]`.

        Args:
            tokens: int64 `[texts]`. lengths: int64 `[texts]`, tokens that each row already holds (0 starts it anew).
        """
        self.lengths = lengths
        self.places.clear()
        self.span = min(self.capacity, -(-(int(lengths.max()) + 1) // SPAN) * SPAN)
        self.masks.clear()
        extra = (0, self.width - self.texts)
        with torch.inference_mode(), self._attention(), _forwards(self.packed):
            output = self.lm.model(
                input_ids=pad(tokens, extra)[:, None], position_ids=pad(lengths, extra)[:, None],
                attention_mask=self.no_mask, past_key_values=self.cache, use_cache=True,
            )
        return output.logits[: self.texts, -1]

    def mask(self, window: int | None) -> torch.Tensor:
        """0 where a row may read, -inf elsewhere, in the model's dtype, `[texts, 1, 1, span]`."""
        if window not in self.masks:
            positions = torch.arange(self.span, device=self.lengths.device)
            seen = positions <= self.lengths[:, None]
            if window is not None:
                seen &= positions > self.lengths[:, None] - window
            self.masks[window] = self.no_mask.new_zeros(seen.shape).masked_fill_(~seen, -torch.inf)[:, None, None]
        return self.masks[window]

    def place(self, heads: int) -> torch.Tensor:
        """Where the new keys go among all positions of a layer's cache, int64 `[texts * heads]`."""
        if heads not in self.places:
            rows = torch.arange(self.texts * heads, device=self.lengths.device)
            self.places[heads] = rows * self.capacity + self.lengths.repeat_interleave(heads)
        return self.places[heads]

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
            scores = scores + mask
            if s_aux is not None:  # a learned extra score per head that takes attention and gives nothing
                sink = s_aux.float().view(1, key.shape[1], -1, 1).expand(texts, -1, -1, -1)
                share = torch.cat([scores, sink], -1).softmax(-1)[..., :-1]
            else:
                share = scores.softmax(-1)
            out = share.to(value.dtype) @ value
        out = out.reshape(texts, 1, heads, -1)
        return (pad(out, (0, 0, 0, 0, 0, 0, 0, self.width - texts)) if texts < self.width else out), None

    def _row_choices(self) -> tuple[int, ...]:
        """Heights of the matrix products that give a token the same logits, to the bit, as seen on one batch each."""
        if self.lm.device.type != "cpu":
            return (WIDTH,)
        vocabulary = int(self.lm.model.get_input_embeddings().num_embeddings)  # type: ignore[arg-type]
        with torch.inference_mode(), _forwards(self.packed):
            found = [
                self.lm.model(input_ids=torch.arange(rows)[:, None] % WIDTHS[0] % vocabulary, use_cache=False).logits
                for rows in WIDTHS
            ]
        same = all(torch.equal(logits, found[0].repeat(len(logits) // WIDTHS[0], 1, 1)) for logits in found)
        return WIDTHS if same else (WIDTH,)

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


Packed = list[tuple[torch.nn.Linear, Callable[..., torch.Tensor]]]


def _packed_layers(lm: LanguageModel) -> Packed:
    """Linear layers and their product with packed weights; none where it does not help."""
    size = sum(p.numel() * p.element_size() for p in lm.model.parameters())
    if lm.device.type != "cpu" or lm.dtype != torch.bfloat16 or size > PACKED_BYTES:
        return []
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return []
    heights: dict[torch.Size, int] = {}

    def product(layer: torch.nn.Linear) -> Callable[..., torch.Tensor]:
        weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight, WIDTH)

        def multiply(x: torch.Tensor) -> torch.Tensor:
            return torch.ops.mkldnn._linear_pointwise(x, weight, layer.bias, "none", [], "")

        if weight.shape not in heights:
            heights[weight.shape] = _agreeing_height(multiply, layer.weight.new_empty(max(WIDTHS), layer.in_features))
        height = heights[weight.shape]
        return lambda x: multiply(x) if len(x) <= height else torch.cat([multiply(part) for part in x.split(height)])

    return [(m, product(m)) for m in lm.model.modules() if type(m) is torch.nn.Linear]


def _agreeing_height(multiply: Callable[..., torch.Tensor], x: torch.Tensor) -> int:
    """The tallest product up to which all of `WIDTHS` give a row the same result; taller ones are done in parts."""
    x.normal_(generator=torch.Generator().manual_seed(0))
    parts = torch.cat([multiply(part) for part in x.split(WIDTHS[0])])
    height = WIDTHS[0]
    for rows in WIDTHS[1:]:
        if not torch.equal(multiply(x[:rows]), parts[:rows]):
            break
        height = rows
    return height


@contextmanager
def _forwards(packed: Packed) -> Iterator[None]:
    for layer, forward in packed:
        layer.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer, _ in packed:
            del layer.forward


def _fitting(lm: LanguageModel, capacity: int) -> int:
    """Texts whose keys and values, `capacity` positions each, fit into memory."""
    config = lm.model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    each = 2 * config.num_hidden_layers * heads * size * capacity * lm.dtype.itemsize
    free = torch.cuda.mem_get_info(lm.device)[0] // 2 if lm.device.type == "cuda" else CACHE_BYTES
    return int(free // each)


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
        for cache, new in ((self.keys, key_states), (self.values, value_states)):
            cache.view(-1, cache.shape[-1])[slots.place(cache.shape[1])] = new[: slots.texts].flatten(0, 2)
        return self.keys[:, :, : slots.span], self.values[:, :, : slots.span]

    def get_seq_length(self) -> int:
        return self.slots.span - 1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.slots.span, 0

    def get_max_length(self) -> int:
        return self.slots.capacity
