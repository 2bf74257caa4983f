"""Text written by vLLM, for models that deserve it: the same requests, settings and endings as `generation`.

vLLM draws with noise of its own, seeded per text and stretch: its texts are not those of the package's own decoder,
and it promises them only for one version and one shape of batch.
"""

from __future__ import annotations

import gc
import importlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from igsp.errors import UsageError
from igsp.models import LanguageModel
from igsp.writing.generation import Ending, Generated, Request, Row, refuse_stutter, stop_tokens
from igsp.writing.sampling import Schedule, stream_key

NEVER = -100.0  # the lowest bias that vLLM takes


def write(
    lm: LanguageModel, todo: Sequence[Request], new_tokens: int, eos: Ending, capacity: int
) -> Iterator[tuple[Request, Generated]]:
    """Yields texts as they end; arguments as `generation.write_texts`, `capacity` in tokens with the prompt.

    A temperature schedule is followed token by token (vLLM keeps what it has read), the rest in one stretch. The
    transformers model waits in main memory meanwhile.

    Raises:
        UsageError: vLLM is not installed, or the model has no folder on disk.
    """
    try:
        vllm = importlib.import_module("vllm")
    except ImportError as error:
        raise UsageError(f"engine 'vllm' needs vLLM ({error}): pip install 'igsp[vllm]', or engine 'igsp'") from error
    if lm.folder is None:
        raise UsageError(f"engine 'vllm' reads a model from its folder, and '{lm.name}' has none: use engine 'igsp'")
    stops, rows, device = stop_tokens(lm), [Row(request) for request in todo], lm.device
    lm.model.to("cpu")  # type: ignore[arg-type]
    llm = vllm.LLM(
        model=str(lm.folder), dtype=str(lm.dtype).removeprefix("torch."), max_model_len=capacity,
        enable_prefix_caching=True,
    )
    try:
        while rows:
            settings = [vllm.SamplingParams(**_settings(row, new_tokens, eos, stops)) for row in rows]
            outputs = llm.generate([{"prompt_token_ids": row.context} for row in rows], settings, use_tqdm=False)
            for row, output in zip(rows, outputs, strict=True):
                text = _take(lm, row, list(output.outputs[0].token_ids), new_tokens, eos, stops)
                if text:
                    yield row.request, text
            rows = [row for row in rows if not row.done]
    finally:
        del llm
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        lm.model.to(device)  # type: ignore[arg-type]


def _settings(row: Row, new_tokens: int, eos: Ending, stops: list[int]) -> dict[str, Any]:
    """Arguments of `vllm.SamplingParams` for the next stretch of a text, over which the temperature is constant."""
    sampling, left = row.request.sampling, new_tokens - row.written - row.in_piece
    falling = isinstance(sampling.temperature, Schedule) and row.in_piece < sampling.temperature.steps
    return {
        "seed": int(stream_key([row.request.seed], [row.drawn])[0]) & 0x7FFFFFFFFFFFFFFF,
        "max_tokens": 1 if falling else left, "temperature": row.temperature, "top_k": sampling.top_k or -1,
        "top_p": sampling.top_p or 1.0, "repetition_penalty": sampling.repetition_penalty, "detokenize": False,
        "ignore_eos": eos == "ignore", "stop_token_ids": [] if eos == "ignore" else stops,
        "logit_bias": dict.fromkeys(stops, NEVER) if eos == "ignore" else None,
    }


def _take(
    lm: LanguageModel, row: Row, ids: list[int], new_tokens: int, eos: Ending, stops: list[int]
) -> Generated | None:
    """Adds what was written to a text; the text if that ends it."""
    row.drawn += len(ids)
    ended = bool(ids) and ids[-1] in stops
    row.context += ids[:-1] if ended else ids
    if ended and eos == "restart":
        row.end_piece()
        refuse_stutter(lm, row)
    row.done = row.written + row.in_piece >= new_tokens or (ended and eos == "stop")
    return row.finished(ended and eos == "stop") if row.done else None
