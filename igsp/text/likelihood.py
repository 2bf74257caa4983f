"""How likely a model finds given tokens: mean loss per window, with little memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from igsp.errors import NumericalError, UsageError
from igsp.models import LanguageModel

TOKENS_PER_PASS = 2048  # logits of so many tokens exist at once, in the model's dtype
LOGITS_PER_CHUNK = 1 << 23  # of which so many are cast to float32 at once (32 MB)


def window_losses(
    lm: LanguageModel, input_ids: torch.Tensor, batch_size: int | None = None, progress: bool = True
) -> torch.Tensor:
    """Mean loss of each window in nats per token, float32 `[n]` on the CPU.

    A window of `seqlen` tokens has `seqlen - 1` predictions (its first token has no context), so the plain
    mean over equal windows is the token-weighted mean, and exp of it the calibration perplexity.

    Args:
        input_ids: int64 `[n, seqlen]`, no padding.
        batch_size: windows per forward pass; None: as many as hold 2,048 tokens.

    Raises:
        UsageError: windows shorter than 2 tokens or longer than the model's positions.
        NumericalError: a loss that is not finite (names the window).
    """
    if input_ids.ndim != 2 or input_ids.shape[1] < 2:
        raise UsageError(f"losses need windows [n, seqlen] of at least 2 tokens, got {list(input_ids.shape)}")
    return text_losses(lm, input_ids.tolist(), batch_size, progress)


def text_losses(
    lm: LanguageModel, texts: Sequence[Sequence[int]], batch_size: int | None = None, progress: bool = True
) -> torch.Tensor:
    """As `window_losses`, for token sequences of any lengths of at least 2; float32 `[len(texts)]`.

    Shorter ones are padded on the right, where a causal model never looks.
    """
    lengths = [len(text) for text in texts]
    if lengths and min(lengths) < 2:
        raise UsageError("the loss of a text needs at least 2 tokens: its first one is only context")
    if lengths and max(lengths) > lm.max_positions:
        raise UsageError(
            f"a text of {max(lengths)} tokens is over the {lm.max_positions} positions of '{lm.name}': "
            "use a shorter seqlen"
        )
    if batch_size is not None and batch_size < 1:
        raise UsageError(f"batch_size must be at least 1, got {batch_size}")
    losses = torch.zeros(len(texts))
    order = sorted(range(len(texts)), key=lambda i: -lengths[i])
    with torch.inference_mode(), tqdm(total=sum(lengths), unit="tok", desc="loss", disable=not progress) as bar:
        while order:
            size = batch_size or max(1, TOKENS_PER_PASS // lengths[order[0]])
            batch, order = order[:size], order[size:]
            losses[batch] = _batch_losses(lm, [texts[i] for i in batch]).cpu()
            bar.update(sum(lengths[i] for i in batch))
    broken = (~losses.isfinite()).nonzero().flatten().tolist()
    if broken:
        raise NumericalError(f"the loss of '{lm.name}' is not finite on window {broken[0]} (of {len(broken)} such): "
                             "load the model in float32 or bfloat16, or look at that text")
    return losses


def _batch_losses(lm: LanguageModel, texts: list[Sequence[int]]) -> torch.Tensor:
    width = max(map(len, texts))
    padded = torch.tensor([[*text, *[0] * (width - len(text))] for text in texts], device=lm.device)
    counts = torch.tensor([len(text) - 1 for text in texts], device=lm.device)
    logits = lm.model(input_ids=padded, use_cache=False).logits[:, :-1].flatten(0, 1)
    targets = padded[:, 1:].flatten()
    step = max(1, LOGITS_PER_CHUNK // logits.shape[-1])
    nats = torch.cat([
        cross_entropy(logits[i : i + step].float(), targets[i : i + step], reduction="none")
        for i in range(0, len(targets), step)
    ]).view(len(texts), width - 1)
    real = torch.arange(width - 1, device=lm.device) < counts[:, None]
    return nats.where(real, nats.new_zeros(())).sum(1) / counts
