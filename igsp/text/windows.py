"""Calibration sets: full windows of tokens that know where they came from, and weighted mixtures of sources."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerBase

from igsp.assets import read_yaml, whole_or_nothing
from igsp.errors import NotEnoughText, TokenizerMismatch, UsageError, checked
from igsp.models import LanguageModel, leading_tokens, tokenizer_fingerprint
from igsp.text.catalogue import documents
from igsp.text.catalogue import source as source_entry
from igsp.text.rows import sound

SEPARATOR = "\n\n"  # between documents inside a window
NUMBER = r"-?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?"


@dataclass(frozen=True)
class Window:
    """Where one window came from: source id, ids of the documents in it, draw."""

    source: str
    documents: tuple[str, ...]
    draw: int


@dataclass(frozen=True)
class CalibrationSet:
    """Token windows for calibration.

    Attributes:
        input_ids: int64 `[n, seqlen]`, full windows, no padding.
        windows: origin of each row, `n` of them.
        tokenizer: fingerprint of the tokenizer that cut them (`models.tokenizer_fingerprint`).
        spec: what was asked for; enough to make the set again.
    """

    input_ids: torch.Tensor
    windows: tuple[Window, ...]
    tokenizer: str
    spec: dict[str, Any]

    def __post_init__(self) -> None:
        ids = self.input_ids
        shape = ids.ndim == 2 and ids.numel() and len(ids) == len(self.windows)
        if not shape or ids.dtype != torch.int64 or ids.min() < 0:
            raise UsageError(
                f"a calibration set needs int64 ids [n, seqlen] from 0 and one origin per row; got {ids.dtype} "
                f"{list(ids.shape)} with {len(self.windows)} origins"
            )

    @property
    def n(self) -> int:
        return self.input_ids.shape[0]

    @property
    def seqlen(self) -> int:
        return self.input_ids.shape[1]

    @property
    def sha256(self) -> str:
        """SHA-256 of the ids (little-endian int64, row by row)."""
        return hashlib.sha256(self.input_ids.contiguous().numpy().astype("<i8").tobytes()).hexdigest()

    def check(self, lm: LanguageModel) -> None:
        """Raises if this set does not fit `lm`: other tokenizer or ids, or windows over the model's positions."""
        if self.tokenizer != tokenizer_fingerprint(lm.tokenizer):
            raise TokenizerMismatch(
                f"this calibration set was cut with another tokenizer than that of '{lm.name}': "
                "sample it again with lm.tokenizer"
            )
        if self.input_ids.max() >= vocabulary_size(lm):
            raise UsageError(f"this calibration set holds ids outside the {vocabulary_size(lm)} tokens of '{lm.name}'")
        if self.seqlen > lm.max_positions:
            raise UsageError(
                f"seqlen {self.seqlen} is over the {lm.max_positions} positions of '{lm.name}': use a shorter seqlen"
            )

    def save(self, folder: str | Path) -> Path:
        """Writes `windows.safetensors` and `manifest.json` into `folder`."""
        folder = Path(folder)
        with whole_or_nothing(folder / "windows.safetensors") as path:
            save_file({"input_ids": self.input_ids.contiguous()}, path)
        manifest = {"format": 1, "n": self.n, "seqlen": self.seqlen, **self.origin()}
        with whole_or_nothing(folder / "manifest.json") as path:
            path.write_text(json.dumps(manifest, indent=1), encoding="utf8")
        return folder

    def origin(self) -> dict[str, Any]:
        """Where the windows came from, as `Origin` reads it."""
        about = {"sha256": self.sha256, "tokenizer": self.tokenizer, "spec": self.spec}
        return {**about, "windows": [asdict(window) for window in self.windows]}

    @classmethod
    def load(cls, folder: str | Path) -> CalibrationSet:
        """Reads what `save` wrote; raises `UsageError` if a file is missing or the ids are not the manifest's."""
        folder = Path(folder)
        try:
            manifest = json.loads((folder / "manifest.json").read_text(encoding="utf8"))
            ids = load_file(folder / "windows.safetensors")["input_ids"]
        except (OSError, ValueError, KeyError, RecursionError, SafetensorError) as error:
            raise UsageError(
                f"'{folder}' holds no calibration set (windows.safetensors + manifest.json): {error}"
            ) from None
        origin = checked(Origin, manifest, f"'{folder / 'manifest.json'}'")
        loaded = cls(ids, origin.windows, origin.tokenizer, origin.spec)
        if loaded.sha256 != origin.sha256:
            raise UsageError(f"calibration set '{folder}' is damaged: its ids are not those of its manifest")
        return loaded


class Origin(BaseModel):
    """Where the rows of a set came from, as it stands in a manifest: see `CalibrationSet`."""

    sha256: str
    tokenizer: str
    spec: dict[str, Any]
    windows: tuple[Window, ...]


def sample(
    source: str, tokenizer: PreTrainedTokenizerBase, n: int = 128, seqlen: int = 2048, draw: int = 0,
    without: frozenset[str] = frozenset(), chat: bool = False,
) -> CalibrationSet:
    """Draws `n` windows of `seqlen` tokens from the calibration side of one source.

    The documents are visited in an order that depends on source and draw alone; from each, a random
    crop of at most `seqlen` tokens is appended to one stream, which is cut into windows. Only when all
    documents were visited are further, non-overlapping pieces of the long ones used. Text is therefore
    never repeated, long documents do not crowd out short ones, and the first windows of a larger set are
    those of a smaller one. A tokenizer that begins every text with a special token (BOS) begins every window with it:
    models trained so, Gemma above all, are out of their distribution without. Documents whose ids are in `without` are
    passed over (see `igsp.contamination`).

    Args:
        source: id of the catalogue; `math[algebra]` is one config of several.
        chat: each document is a user's turn, laid out by the tokenizer's chat template (and then begins its crop).

    Raises:
        UnknownName: no such source.
        NotEnoughText: the source yields fewer windows (the error says how many).
        UsageError: n or seqlen below 1, or `chat` with a tokenizer that has no chat template.
    """
    start = leading_tokens(tokenizer)
    whole_numbers(n=n, seqlen=seqlen)
    rows, labels = cut(_pieces(source, tokenizer, seqlen, draw, without, chat), start, seqlen, n)
    if len(rows) < n:
        raise NotEnoughText(source, len(rows), n, seqlen)
    spec = {"kind": "source", "source": source, "n": n, "seqlen": seqlen, "draw": draw}
    spec |= {"without": sorted(without)} if without else {}
    spec |= {"chat": True} if chat else {}
    origins = tuple(Window(source.partition("[")[0], documents, draw) for documents in labels)
    return CalibrationSet(torch.tensor(rows), origins, tokenizer_fingerprint(tokenizer), spec)


def vocabulary_size(lm: LanguageModel) -> int:
    """Rows of the embedding: token ids lie below it."""
    return int(lm.model.get_input_embeddings().weight.shape[0])  # type: ignore[union-attr,index]


def whole_numbers(**given: Any) -> None:
    """Raises `UsageError` unless each is a whole number from 1."""
    for name, value in given.items():
        if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
            raise UsageError(f"{name} must be a whole number of at least 1, got {value!r}")


def cut(
    pieces: Iterable[tuple[str, list[int]]], start: list[int], seqlen: int, n: int | None = None
) -> tuple[list[list[int]], list[tuple[str, ...]]]:
    """The stream of `(document, tokens)` as full windows of `seqlen`, at most `n`, and the documents in each.

    Every window begins with `start`, which is not put before text that brings it along (a chat template's BOS).
    """
    if seqlen <= len(start):
        raise UsageError(f"seqlen must be at least {len(start) + 1}: {len(start)} tokens begin every window")
    rows: list[list[int]] = []
    documents: list[tuple[str, ...]] = []
    buffer: list[int] = []
    labels: list[str] = []  # document of each token of the buffer
    for document, piece in pieces:
        buffer += piece
        labels += [document] * len(piece)
        at = 0
        while n is None or len(rows) < n:
            head = [] if buffer[at : at + len(start)] == start else start
            end = at + seqlen - len(head)
            if end > len(buffer):
                break
            rows.append(head + buffer[at:end])
            documents.append(tuple(dict.fromkeys(labels[at:end])))
            at = end
        del buffer[:at], labels[:at]
        if len(rows) == n:
            break
    return rows, documents


def conversation(tokenizer: PreTrainedTokenizerBase, turns: Sequence[dict[str, str]], where: str) -> list[int]:
    """Tokens of a conversation, laid out by the tokenizer's chat template, BOS and all.

    Raises:
        UsageError: the tokenizer has no template, or the template refuses the turns (names `where`).
    """
    if not tokenizer.chat_template:
        raise UsageError(f"{where}: this tokenizer has no chat template: give plain text, or take an instruct model")
    try:
        text = str(tokenizer.apply_chat_template(list(turns), tokenize=False))
        return tokenizer.encode(sound(text), add_special_tokens=False, verbose=False)
    except Exception as error:  # templates are programs: they raise what they like
        raise UsageError(f"{where}: the chat template refuses it: {error}") from None


def _pieces(
    source: str, tokenizer: PreTrainedTokenizerBase, seqlen: int, draw: int, without: frozenset[str], chat: bool
) -> Iterator[tuple[str, list[int]]]:
    """(document id, tokens) in random order: first one crop of every document, then the rest of the long ones."""
    stream = np.random.default_rng(_seed(source, draw))
    texts = documents(source, split="calibration")
    rest: list[tuple[str, list[int]]] = []
    for index in stream.permutation(len(texts)):
        document = texts[index]
        if chat:
            ids = conversation(tokenizer, [{"role": "user", "content": document.text}], f"source '{source}'")
        else:
            ids = tokenizer.encode(SEPARATOR + document.text, add_special_tokens=False, verbose=False)
        start = int(stream.integers(0, max(1, len(ids) - seqlen + 1))) * (not chat)
        if document.id in without:  # after its random number, so that the crops of the others stay
            continue
        yield document.id, ids[start : start + seqlen]
        for other in (ids[:start], ids[start + seqlen :]):
            rest += [(document.id, other[i : i + seqlen]) for i in range(0, len(other), seqlen)]
    for index in stream.permutation(len(rest)):
        yield rest[index]


def _seed(*parts: object) -> int:
    """A seed that depends on its parts alone: SHA-256 of their text."""
    return int.from_bytes(hashlib.sha256("|".join(map(str, parts)).encode()).digest()[:8], "big")


def largest_remainder(weights: Mapping[str, float], n: int) -> dict[str, int]:
    """Splits `n` in proportion to `weights`, exactly: floors first, then one more to the largest remainders.

    Ties go to the name that comes first in `weights`. (Hamilton's method of apportionment.)

    Raises:
        UsageError: a negative or non-finite weight, weights that sum to nothing, or more than 10^9 to split.

    >>> largest_remainder({"c4": 1, "gsm8k": 1, "piqa": 1}, 16)
    {'c4': 6, 'gsm8k': 5, 'piqa': 5}
    """
    values = np.array([value if isinstance(value, Real) else np.nan for value in weights.values()], dtype=float)
    if not np.isfinite(values).all() or (values < 0).any() or not 0 < values.sum() < np.inf:
        raise UsageError(f"mixture weights must be finite, not negative and not all zero: {dict(weights)}")
    if n > 10**9:
        raise UsageError(f"a mixture of {n} windows is more than any source has: lower n")
    shares = values / values.sum() * n
    counts = np.floor(shares + 1e-9).astype(int)
    for index in np.argsort(-np.round(shares - counts, 9), kind="stable")[: n - counts.sum()]:
        counts[index] += 1
    return dict(zip(weights, counts.tolist(), strict=True))


def parse_mix(text: str, ready: Mapping[str, Mapping[str, float]] | None = None) -> tuple[dict[str, float], int | None]:
    """Weights by source of a mix as people write it, and the number of windows where it says counts.

    Args:
        text: weights (`a=2,b`: 1 where none is said), counts (`a:64,b:32`), either with one config of a source
            (`math[algebra]`), the name of a ready mix, or a YAML file with `weights`.
        ready: mixes by name.

    Raises:
        UsageError: none of these; a source twice; a weight that is no number. UnknownName: no such source or part.
    """
    if text in (ready or {}):
        return dict((ready or {})[text]), None
    if text.endswith((".yaml", ".yml")):
        weights, signs = read_yaml(Path(text))[0].get("weights"), {"="}
        if not isinstance(weights, dict):
            raise UsageError(f"'{text}' holds no mix (weights: {{source: number}})")
    else:
        weights, signs = {}, set()
        for part in text.split(","):
            match = re.fullmatch(rf"\s*([^=:\s]+)\s*(?:([=:])\s*({NUMBER})\s*)?", part, re.ASCII)
            if not match or match[1] in weights or (match[2] == ":" and not match[3].isdecimal()):
                raise UsageError(f"a mix is made of name:count or name=weight pairs, got '{part}'; each name once")
            weights[match[1]] = float(match[3] or 1)
            signs.add(match[2] or "=")
    if len(signs) > 1:
        raise UsageError(f"a mix has weights (=) or counts (:), not both: '{text}'")
    for name in weights:
        source_entry(name)
    n = int(sum(weights.values())) if signs == {":"} else None
    largest_remainder(weights, n or 1)
    return {str(name): float(weight) for name, weight in weights.items()}, n


def mix(
    weights: Mapping[str, float], tokenizer: PreTrainedTokenizerBase, n: int = 128, seqlen: int = 2048, draw: int = 0,
    without: Mapping[str, frozenset[str]] | None = None, chat: bool = False,
) -> CalibrationSet:
    """A weighted mixture of sources: window counts by largest remainder, `n` in total.

    The windows of each source are the first ones of `sample(source, ..., draw)`, so a mixture shares them
    with the single-source set of the same draw. `without` holds, per source, ids of documents to pass over; `chat` as
    in `sample`.

    Raises:
        UsageError: weights that sum to nothing. UnknownName, NotEnoughText: as `sample`.
    """
    whole_numbers(n=n)
    counts = largest_remainder(weights, n)
    left_out = {source: ids for source, ids in (without or {}).items() if ids and counts.get(source)}
    parts = [
        sample(source, tokenizer, count, seqlen, draw, left_out.get(source, frozenset()), chat)
        for source, count in counts.items() if count
    ]
    spec = {"kind": "mix", "weights": dict(weights), "n": n, "seqlen": seqlen, "draw": draw}
    spec |= {"without": {source: sorted(ids) for source, ids in left_out.items()}} if left_out else {}
    return concatenate(parts, spec | ({"chat": True} if chat else {}))


def concatenate(parts: Sequence[CalibrationSet], spec: dict[str, Any]) -> CalibrationSet:
    """Joins calibration sets of one tokenizer and seqlen, row after row."""
    if len({(p.tokenizer, p.seqlen) for p in parts}) != 1:
        raise UsageError("calibration sets of different tokenizers or lengths cannot be joined")
    windows = tuple(window for part in parts for window in part.windows)
    return CalibrationSet(torch.cat([p.input_ids for p in parts]), windows, parts[0].tokenizer, spec)
