"""What the protocols share: hyper-parameters from the catalogue, prompts, seeds, windows from generated text."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from igsp.assets import catalog
from igsp.errors import IgspError, UnknownName, UsageError
from igsp.models import LanguageModel
from igsp.text.windows import SEPARATOR
from igsp.writing.generation import Generated
from igsp.writing.sampling import Sampling, Schedule


def defaults(protocol: str) -> dict[str, Any]:
    """Hyper-parameters of a protocol by name (`catalog/protocols.yaml`, which also gives source and status)."""
    return {name: entry["value"] for name, entry in catalog("protocols")[protocol].items()}


def check_size(n: int, seqlen: int) -> None:
    """Refuses n or seqlen that no window can have."""
    if n < 1 or seqlen < 2:
        raise UsageError(f"n must be at least 1 and seqlen at least 2, got n={n}, seqlen={seqlen}")


def changed(protocol: str, changes: dict[str, Any], allowed: set[str]) -> dict[str, Any]:
    """Hyper-parameters of a protocol with some of them replaced; raises `UnknownName` on a name that is not allowed."""
    for name in changes:
        if name not in allowed:
            raise UnknownName(f"hyper-parameter of {protocol}", name, allowed)
    return {**defaults(protocol), **changes}


def sampling(settings: dict[str, Any]) -> Sampling:
    """The sampling settings among the hyper-parameters; a temperature schedule may be plain data."""
    temperature = settings["temperature"]
    if isinstance(temperature, dict):
        temperature = Schedule(**temperature)
    return Sampling(settings["repetition_penalty"], temperature, settings["top_k"], settings["top_p"])


def start_token(lm: LanguageModel) -> int:
    """What a text begins with: the BOS token, else the model's own document separator.

    Some tokenizers have no BOS (Qwen); the model's configuration or the end-of-text token then names what its training
    texts were separated by. Raises `UsageError` if there is neither.
    """
    text = lm.model.config.get_text_config()
    for holder, name in ((lm.tokenizer, "bos_token_id"), (text, "bos_token_id"), (lm.tokenizer, "eos_token_id")):
        found = getattr(holder, name, None)
        if found is not None:
            return int(found)
    raise UsageError(
        f"the tokenizer of '{lm.name}' has neither a BOS nor an end-of-text token, and its configuration names none: "
        "set lm.tokenizer.bos_token to the token that its training texts begin with"
    )


def started(lm: LanguageModel) -> dict[str, int]:
    """For the specification of a set: the separator that stood in for BOS, if one did."""
    return {} if lm.tokenizer.bos_token_id is not None else {"start_token": start_token(lm)}


def stem_prompts(lm: LanguageModel, stems: Sequence[str], seqlen: int) -> list[list[int]]:
    """Stems as token ids, led by BOS where the tokenizer puts one; raises `UsageError` if one fills a window."""
    prompts = [lm.tokenizer.encode(stem) for stem in stems]
    if lm.tokenizer.eos_token_id is not None:
        prompts = [p[:-1] if p and p[-1] == lm.tokenizer.eos_token_id else p for p in prompts]
    longest = max(map(len, prompts))
    if longest >= seqlen:
        raise UsageError(f"a stem of {longest} tokens leaves no room in a window of {seqlen}: use a longer seqlen")
    return prompts


def window(lm: LanguageModel, text: Generated, seqlen: int) -> list[int]:
    """One window of exactly `seqlen` tokens from a generated text of at least so many.

    Pieces are joined as documents are elsewhere (`calibration.SEPARATOR`); prompts stay where they are text,
    special tokens do not.
    """
    special = set(lm.tokenizer.all_special_ids)
    separator = lm.tokenizer.encode(SEPARATOR, add_special_tokens=False)
    ids: list[int] = []
    for piece in text.pieces:
        ids += separator if ids else []
        ids += [token for token in (*piece.prompt, *piece.ids) if token not in special]
    if len(ids) < seqlen:
        raise IgspError(f"text {text.seed} fills {len(ids)} of {seqlen} tokens: special tokens were written as text")
    return ids[:seqlen]


def text_seed(*parts: object) -> int:
    """A 63-bit seed that depends on its parts alone."""
    return int.from_bytes(hashlib.sha256("|".join(map(str, parts)).encode()).digest()[:8], "big") >> 1
