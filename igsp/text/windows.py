"""Calibration sets: full windows of tokens that know where they came from, and weighted mixtures of sources."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerBase

from igsp.assets import whole_or_nothing
from igsp.errors import NotEnoughText, TokenizerMismatch, UsageError
from igsp.models import LanguageModel, leading_tokens, tokenizer_fingerprint
from igsp.text.catalogue import documents

SEPARATOR = "\n\n"  # between documents inside a window


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
        if ids.ndim != 2 or ids.dtype != torch.int64 or len(ids) != len(self.windows) or ids.numel() == 0:
            raise UsageError(
                f"a calibration set needs int64 ids [n, seqlen] and one origin per row; got {ids.dtype} "
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
        """Raises if this set does not fit `lm`: other tokenizer, or windows longer than the model's positions."""
        if self.tokenizer != tokenizer_fingerprint(lm.tokenizer):
            raise TokenizerMismatch(
                f"this calibration set was cut with another tokenizer than that of '{lm.name}': "
                "sample it again with lm.tokenizer"
            )
        if self.seqlen > lm.max_positions:
            raise UsageError(
                f"seqlen {self.seqlen} is over the {lm.max_positions} positions of '{lm.name}': use a shorter seqlen"
            )

    def save(self, folder: str | Path) -> Path:
        """Writes `windows.safetensors` and `manifest.json` into `folder`."""
        folder = Path(folder)
        with whole_or_nothing(folder / "windows.safetensors") as path:
            save_file({"input_ids": self.input_ids.contiguous()}, path)
        manifest = {
            "format": 1,
            "n": self.n,
            "seqlen": self.seqlen,
            "sha256": self.sha256,
            "tokenizer": self.tokenizer,
            "spec": self.spec,
            "windows": [asdict(w) for w in self.windows],
        }
        with whole_or_nothing(folder / "manifest.json") as path:
            path.write_text(json.dumps(manifest, indent=1))
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> CalibrationSet:
        """Reads what `save` wrote; raises `UsageError` if a file is missing or the ids are not the manifest's."""
        folder = Path(folder)
        try:
            manifest = json.loads((folder / "manifest.json").read_text())
            ids = load_file(folder / "windows.safetensors")["input_ids"]
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise UsageError(
                f"'{folder}' holds no calibration set (windows.safetensors + manifest.json): {error}"
            ) from None
        windows = tuple(Window(w["source"], tuple(w["documents"]), w["draw"]) for w in manifest["windows"])
        loaded = cls(ids, windows, manifest["tokenizer"], manifest["spec"])
        if loaded.sha256 != manifest["sha256"]:
            raise UsageError(f"calibration set '{folder}' is damaged: its ids are not those of its manifest")
        return loaded


def sample(
    source: str, tokenizer: PreTrainedTokenizerBase, n: int = 128, seqlen: int = 2048, draw: int = 0,
    without: frozenset[str] = frozenset(),
) -> CalibrationSet:
    """Draws `n` windows of `seqlen` tokens from the calibration side of one source.

    The documents are visited in an order that depends on source and draw alone; from each, a random
    crop of at most `seqlen` tokens is appended to one stream, which is cut into windows. Only when all
    documents were visited are further, non-overlapping pieces of the long ones used. Text is therefore
    never repeated, long documents do not crowd out short ones, and the first windows of a larger set are
    those of a smaller one. A tokenizer that begins every text with a special token (BOS) begins every window with it:
    models trained so, Gemma above all, are out of their distribution without. Documents whose ids are in `without` are
    passed over (see `igsp.contamination`).

    Raises:
        UnknownName: no such source.
        NotEnoughText: the source yields fewer windows (the error says how many).
        UsageError: n or seqlen below 1.
    """
    if n < 1 or seqlen < 1 + len(leading_tokens(tokenizer)):
        raise UsageError(f"n and seqlen must be at least 1 (seqlen without BOS), got n={n}, seqlen={seqlen}")
    start = leading_tokens(tokenizer)
    body = seqlen - len(start)
    rows: list[list[int]] = []
    origins: list[Window] = []
    buffer: list[int] = []
    labels: list[str] = []  # document of each token of the buffer
    for document, piece in _pieces(source, tokenizer, seqlen, draw, without):
        buffer += piece
        labels += [document] * len(piece)
        while len(buffer) >= body and len(rows) < n:
            rows.append(start + buffer[:body])
            origins.append(Window(source, tuple(dict.fromkeys(labels[:body])), draw))
            buffer, labels = buffer[body:], labels[body:]
        if len(rows) == n:
            break
    else:
        raise NotEnoughText(source, len(rows), n, seqlen)
    spec = {"kind": "source", "source": source, "n": n, "seqlen": seqlen, "draw": draw}
    spec |= {"without": sorted(without)} if without else {}
    return CalibrationSet(torch.tensor(rows), tuple(origins), tokenizer_fingerprint(tokenizer), spec)


def _pieces(
    source: str, tokenizer: PreTrainedTokenizerBase, seqlen: int, draw: int, without: frozenset[str]
) -> Iterator[tuple[str, list[int]]]:
    """(document id, tokens) in random order: first one crop of every document, then the rest of the long ones."""
    stream = np.random.default_rng(_seed(source, draw))
    texts = documents(source, split="calibration")
    rest: list[tuple[str, list[int]]] = []
    for index in stream.permutation(len(texts)):
        document = texts[index]
        ids = tokenizer.encode(SEPARATOR + document.text, add_special_tokens=False, verbose=False)
        start = int(stream.integers(0, max(1, len(ids) - seqlen + 1)))
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
        UsageError: a negative or non-finite weight, or weights that sum to nothing.

    >>> largest_remainder({"c4": 1, "gsm8k": 1, "piqa": 1}, 16)
    {'c4': 6, 'gsm8k': 5, 'piqa': 5}
    """
    values = np.array(list(weights.values()), dtype=float)
    if not len(values) or not np.isfinite(values).all() or (values < 0).any() or values.sum() <= 0:
        raise UsageError(f"mixture weights must be finite, not negative and not all zero: {dict(weights)}")
    shares = values / values.sum() * n
    counts = np.floor(shares + 1e-9).astype(int)
    for index in np.argsort(-np.round(shares - counts, 9), kind="stable")[: n - counts.sum()]:
        counts[index] += 1
    return dict(zip(weights, counts.tolist(), strict=True))


def mix(
    weights: Mapping[str, float], tokenizer: PreTrainedTokenizerBase, n: int = 128, seqlen: int = 2048, draw: int = 0,
    without: Mapping[str, frozenset[str]] | None = None,
) -> CalibrationSet:
    """A weighted mixture of sources: window counts by largest remainder, `n` in total.

    The windows of each source are the first ones of `sample(source, ..., draw)`, so a mixture shares them
    with the single-source set of the same draw. `without` holds, per source, ids of documents to pass over.

    Raises:
        UsageError: weights that sum to nothing. UnknownName, NotEnoughText: as `sample`.
    """
    counts = largest_remainder(weights, n)
    left_out = {source: ids for source, ids in (without or {}).items() if ids and counts.get(source)}
    parts = [
        sample(source, tokenizer, count, seqlen, draw, left_out.get(source, frozenset()))
        for source, count in counts.items() if count
    ]
    spec = {"kind": "mix", "weights": dict(weights), "n": n, "seqlen": seqlen, "draw": draw}
    spec |= {"without": {source: sorted(ids) for source, ids in left_out.items()}} if left_out else {}
    return concatenate(parts, spec)


def concatenate(parts: Sequence[CalibrationSet], spec: dict[str, Any]) -> CalibrationSet:
    """Joins calibration sets of one tokenizer and seqlen, row after row."""
    if len({(p.tokenizer, p.seqlen) for p in parts}) != 1:
        raise UsageError("calibration sets of different tokenizers or lengths cannot be joined")
    windows = tuple(window for part in parts for window in part.windows)
    return CalibrationSet(torch.cat([p.input_ids for p in parts]), windows, parts[0].tokenizer, spec)
