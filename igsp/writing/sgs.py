"""SGS, self-generating then sampling: the model continues short beginnings of encyclopaedic text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from igsp.errors import NotEnoughText, UsageError
from igsp.models import LanguageModel, tokenizer_fingerprint
from igsp.text.catalogue import documents
from igsp.text.likelihood import text_losses
from igsp.text.windows import CalibrationSet, Window
from igsp.writing.common import changed, check_size, sampling, text_seed
from igsp.writing.generation import Generated, Request, write_texts

CHANGEABLE = {"prefix_tokens", "temperature", "top_k", "top_p", "repetition_penalty", "drop_share", "texts"}
ROUNDS = 8


def sgs(
    lm: LanguageModel, n: int = 128, seqlen: int = 2048, seed: int = 0, source: str | None = None,
    progress: bool = True, resume: str | Path | None = None, **changes: Any,
) -> CalibrationSet:
    """Self-generating then sampling (Ji et al. 2025), after its released code (`catalog/protocols.yaml`).

    The model continues the first few tokens of documents; the fifth of the texts that it finds least likely is
    dropped; the rest is joined and cut into windows. Two things are ours: three texts are written per window, and more
    if those do not fill the windows (`texts` sets a fixed number instead); and windows do not overlap.

    Args:
        source: where the beginnings come from; None: the catalogue's choice.
        resume: JSONL file of the texts, written as they end (`generation.write_texts`).
        changes: other values for the hyper-parameters of `CHANGEABLE`.

    Raises:
        UnknownName: no such source or hyper-parameter. UsageError: windows over the model's positions.
        NotEnoughText: the texts that pass the filter do not fill n windows.
    """
    settings = changed("sgs", changes, CHANGEABLE)
    check_size(n, seqlen)
    settings |= {"source": source or settings["source"], "new_tokens": seqlen}
    requests = _requests(lm, settings, seed)
    count = min(settings["texts"] or 3 * n, len(requests))
    texts: list[Generated] = []
    for _ in range(ROUNDS):
        more = requests[len(texts) : count]
        texts += write_texts(lm, more, seqlen, "stop", progress=progress, resume=resume)
        kept = _likely(lm, texts, settings["drop_share"], progress)
        ids, labels = _join(lm, kept, settings["separator"])
        if len(ids) >= n * seqlen or settings["texts"] or count >= len(requests):
            break
        count = min(len(requests), int(np.ceil(count * max(1.5, 1.1 * n * seqlen / max(1, len(ids))))))
    return _windows(lm, ids, labels, n, seqlen, seed, settings)


def _requests(lm: LanguageModel, settings: dict[str, Any], seed: int) -> list[Request]:
    """One request per document long enough to give a prefix, in random order."""
    length = settings["prefix_tokens"]
    if length < 1:
        raise UsageError(f"prefix_tokens must be at least 1, got {length}")
    texts = documents(settings["source"], split="calibration")
    order = np.random.default_rng(text_seed("sgs", seed)).permutation(len(texts))
    prefixes = (tuple(lm.tokenizer.encode(texts[i].text[: 32 * length])[:length]) for i in order)
    how = sampling(settings)
    return [Request(text_seed("sgs", seed, i), p, how) for i, p in enumerate(prefixes) if len(p) == length]


def _likely(lm: LanguageModel, texts: list[Generated], drop_share: float, progress: bool) -> list[Generated]:
    """Texts whose perplexity lies below the percentile that drops `drop_share` of them (all if it drops none)."""
    texts = [text for text in texts if len(_tokens(text)) >= 2]
    if not drop_share or not texts:
        return texts
    losses = text_losses(lm, [_tokens(text) for text in texts], progress=progress).numpy()
    limit = np.quantile(losses, 1 - drop_share)
    return [text for text, loss in zip(texts, losses, strict=True) if loss < limit]


def _tokens(text: Generated) -> list[int]:
    return [*text.pieces[0].prompt, *text.ids]


def _join(lm: LanguageModel, texts: list[Generated], separator: str) -> tuple[list[int], list[str]]:
    """All texts as one stream of tokens, each led by the separator, and the text that each token is from."""
    ids: list[int] = []
    labels: list[str] = []
    for text in texts:
        written = str(lm.tokenizer.decode(_tokens(text), skip_special_tokens=True))
        piece = lm.tokenizer.encode(separator + written, add_special_tokens=False)
        ids += piece
        labels += [f"sgs/{text.seed:016x}"] * len(piece)
    return ids, labels


def _windows(
    lm: LanguageModel, ids: list[int], labels: list[str], n: int, seqlen: int, seed: int, settings: dict[str, Any]
) -> CalibrationSet:
    whole = len(ids) // seqlen
    if whole < n:
        raise NotEnoughText(f"self:sgs (prefixes of {settings['source']})", whole, n, seqlen)
    stream = np.random.default_rng(text_seed("sgs windows", seed))
    offset = int(stream.integers(0, len(ids) - whole * seqlen + 1))
    starts = offset + seqlen * stream.permutation(whole)[:n]
    windows = tuple(Window("self:sgs", tuple(dict.fromkeys(labels[s : s + seqlen])), seed) for s in starts)
    spec = {"kind": "protocol", "protocol": "sgs", "n": n, "seqlen": seqlen, "seed": seed,
            "model": lm.fingerprint, **settings}
    rows = torch.tensor([ids[s : s + seqlen] for s in starts])
    return CalibrationSet(rows, windows, tokenizer_fingerprint(lm.tokenizer), spec)
