"""Self-Cal: the model that will be pruned writes its own calibration text, from nothing but BOS."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from igsp.models import LanguageModel, tokenizer_fingerprint
from igsp.text.windows import CalibrationSet, Window
from igsp.writing.common import changed, check_size, sampling, start_token, started, text_seed, window
from igsp.writing.generation import Request, write_texts


def self_cal(
    lm: LanguageModel, n: int = 128, seqlen: int = 2048, seed: int = 0, progress: bool = True,
    resume: str | Path | None = None, **changes: Any,
) -> CalibrationSet:
    """Self-calibration (Williams, Chrysostomou, Aletras 2025): text sampled from BOS alone.

    Every window is one text of `seqlen` tokens. Where the model ends a text, it starts again from BOS with no
    memory of what it wrote, and the pieces are packed. Temperature and packing are our definition
    (`catalog/protocols.yaml`).

    Args:
        resume: JSONL file of the texts, written as they end (`generation.write_texts`).
        changes: other values for the hyper-parameters `temperature`, `top_k`, `top_p`, `repetition_penalty`.

    Raises:
        UsageError: no token to begin with, windows over the model's positions, an unknown hyper-parameter.
        GenerationError: the model ends its texts at once.
    """
    settings = changed("self_cal", changes, {"temperature", "top_k", "top_p", "repetition_penalty"})
    start = start_token(lm)
    check_size(n, seqlen)
    how = sampling(settings)
    requests = [Request(text_seed("self_cal", seed, i), (start,), how) for i in range(n)]
    texts = write_texts(lm, requests, seqlen, "restart", progress=progress, resume=resume)
    windows = tuple(Window("self:bos", (f"self_cal/{seed}/{i}",), seed) for i in range(n))
    spec = {"kind": "protocol", "protocol": "self_cal", "n": n, "seqlen": seqlen, "seed": seed,
            "model": lm.fingerprint, **settings, **started(lm)}
    ids = torch.tensor([window(lm, text, seqlen) for text in texts])
    return CalibrationSet(ids, windows, tokenizer_fingerprint(lm.tokenizer), spec)
