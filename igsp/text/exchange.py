"""Calibration sets to and from other programs: folders of Hugging Face `datasets`, and JSON lines.

A row is a window. A `datasets` folder has the columns `input_ids` and `attention_mask` and nothing else, which is what
compression libraries take as tokenised text (llm-compressor's `oneshot(dataset=...)`); where the windows came from
travels in the data set's description. A JSON line holds `input_ids` and the window's origin.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, DatasetInfo, disable_progress_bars, enable_progress_bars, load_from_disk
from pydantic import BaseModel, ConfigDict
from transformers import PreTrainedTokenizerBase

from igsp.assets import output_path, whole_or_nothing
from igsp.errors import AssetError, NotEnoughText, TokenizerMismatch, UnknownName, UsageError, checked
from igsp.models import leading_tokens, tokenizer_fingerprint
from igsp.text import rows as files
from igsp.text.rows import sound
from igsp.text.windows import SEPARATOR, CalibrationSet, Origin, Window, conversation, cut, whole_numbers

FORMATS = ("igsp", "datasets", "jsonl")


def to_dataset(calibration: CalibrationSet) -> Dataset:
    """The windows as a `datasets.Dataset` of `n` rows: `input_ids` and an `attention_mask` of ones, `[seqlen]` each."""
    ids = calibration.input_ids
    columns = {"input_ids": ids.tolist(), "attention_mask": torch.ones_like(ids).tolist()}
    return Dataset.from_dict(columns, info=DatasetInfo(description=json.dumps({"igsp": calibration.origin()})))


def export(calibration: CalibrationSet, path: str | Path, form: str = "datasets") -> Path:
    """Writes a calibration set for other programs (or for this one, `form="igsp"`), whole or not at all.

    Args:
        form: `igsp` (as `CalibrationSet.save`), `datasets` (a folder) or `jsonl` (a file).

    Raises:
        UsageError: no such format, or the path exists or cannot be written (`assets.output_path`).
    """
    if form not in FORMATS:
        raise UnknownName("format", form, FORMATS)
    path = output_path(path)
    if form == "igsp":
        return calibration.save(path)
    if form == "jsonl":
        rows = zip(calibration.input_ids.tolist(), calibration.windows, strict=True)
        lines = [json.dumps({"input_ids": ids, **asdict(w), "tokenizer": calibration.tokenizer}) for ids, w in rows]
        with whole_or_nothing(path) as temporary:
            temporary.write_text("\n".join(lines) + "\n", encoding="utf8")
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as scratch:
        disable_progress_bars()
        try:
            to_dataset(calibration).save_to_disk(f"{scratch}/made")
        finally:
            enable_progress_bars()
        os.replace(f"{scratch}/made", path)
    return path


def read(
    path: str | Path, tokenizer: PreTrainedTokenizerBase, n: int | None = None, seqlen: int | None = None
) -> CalibrationSet:
    """A calibration set from a folder of ours, a folder written by `datasets`, or JSON lines (`.jsonl`, `.jsonl.gz`).

    Rows hold `input_ids`, `text` or `messages`. Rows of ids are windows: all of one length, or cut to `seqlen`. Texts
    are joined by an empty line, conversations laid out by the tokenizer's chat template; both are tokenised and cut
    into windows of `seqlen` as `sample` does. Other columns are not looked at.

    Args:
        n: the first n windows; all by default.

    Raises:
        UsageError: nothing that holds windows, rows of different lengths, padding, ids outside the vocabulary, text
            without a `seqlen`, messages without a chat template (names the file and the row).
        TokenizerMismatch: the rows say that another tokenizer cut them.
        NotEnoughText: fewer than `n` windows.
    """
    whole_numbers(**{name: value for name, value in (("n", n), ("seqlen", seqlen)) if value is not None})
    path = Path(path)
    if (path / "windows.safetensors").exists():
        made = CalibrationSet.load(path)
    elif (path / "state.json").exists() or (path / "dataset_dict.json").exists():
        made = _from_dataset(path, tokenizer, seqlen)
    elif path.is_file() and path.name.endswith((".jsonl", ".jsonl.gz")):
        made = _from_rows(_file_rows(path), path, tokenizer, seqlen)
    else:
        raise UsageError(
            f"'{path}' holds no calibration set: give a folder written by `igsp calibrate` or by "
            "datasets.save_to_disk, or a file of JSON lines (.jsonl, .jsonl.gz)"
        )
    if n is not None and n > made.n:
        raise NotEnoughText(str(path), made.n, n, made.seqlen)
    return made if n in (None, made.n) else CalibrationSet(
        made.input_ids[:n].clone(), made.windows[:n], made.tokenizer, {**made.spec, "first": n}
    )


class _Turn(BaseModel):
    """What a chat template needs of a turn; it may hold more."""

    model_config = ConfigDict(strict=True, extra="allow")

    role: str
    content: str


class _Row(BaseModel):
    """A row that enters: ids, text or messages, and where a window of ours came from."""

    model_config = ConfigDict(strict=True)

    input_ids: list[int] = []
    attention_mask: list[int] | None = None
    text: str = ""
    messages: list[_Turn] = []
    tokenizer: str | None = None
    source: str | None = None
    documents: list[str | int] | None = None
    draw: int | None = None


LOOKED_AT = {  # what a row holds -> the columns that count beside it
    "input_ids": ("attention_mask", "tokenizer", "source", "documents", "draw"),
    "text": ("tokenizer",), "messages": ("tokenizer",),
}


def _from_dataset(folder: Path, tokenizer: PreTrainedTokenizerBase, seqlen: int | None) -> CalibrationSet:
    try:
        data = load_from_disk(str(folder))
        if not isinstance(data, Dataset):
            raise UsageError(f"'{folder}' holds the splits {', '.join(data)}: give the folder of one")
        rows = list(data.with_format(None))
    except UsageError:
        raise
    except Exception as error:  # the library and Arrow raise a dozen kinds for a damaged folder
        raise UsageError(f"'{folder}' is no folder that `datasets` can read: {type(error).__name__}: {error}") from None
    made = _from_rows(rows, folder, tokenizer, seqlen)
    try:
        described = json.loads(data.info.description)["igsp"]
    except (ValueError, KeyError, TypeError, RecursionError):  # a data set of other people
        return made
    origin = checked(Origin, described, f"'{folder}', its description")
    if origin.tokenizer != made.tokenizer:
        raise TokenizerMismatch(f"'{folder}' was cut with another tokenizer than this one: sample it again")
    if origin.sha256 != made.sha256:  # some of the rows, or cut shorter
        return made
    return CalibrationSet(made.input_ids, origin.windows, made.tokenizer, origin.spec)


def _file_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    try:
        yield from files.rows(path)
    except AssetError as error:
        raise UsageError(str(error)) from None


def _from_rows(
    rows: Iterable[Mapping[str, Any]], path: Path, tokenizer: PreTrainedTokenizerBase, seqlen: int | None
) -> CalibrationSet:
    fingerprint = tokenizer_fingerprint(tokenizer)
    ids: list[list[int]] = []
    windows: list[Window] = []
    pieces: list[tuple[str, list[int]]] = []
    for number, given in enumerate(rows, 1):
        where = f"'{path}', row {number}"
        holds = next((name for name in LOOKED_AT if given.get(name) is not None), None)
        if holds is None:
            columns = ", ".join(given) or "nothing"
            raise UsageError(f"{where} has neither 'input_ids' nor 'text' nor 'messages'; it has {columns}")
        row = checked(_Row, {k: v for k, v in given.items() if k == holds or k in LOOKED_AT[holds]}, where)
        if row.tokenizer not in (None, fingerprint):
            raise TokenizerMismatch(f"{where} was cut with another tokenizer than this one: sample it again")
        if holds == "input_ids":
            seqlen = seqlen or len(row.input_ids)
            ids.append(_full(row, seqlen, len(tokenizer), where))
            documents = (number,) if row.documents is None else row.documents
            windows.append(Window(row.source or path.stem, tuple(map(str, documents)), row.draw or 0))
        elif seqlen is None:
            raise UsageError(f"{where} holds text: say how long the windows are to be (seqlen)")
        elif holds == "messages":
            turns = [turn.model_dump() for turn in row.messages]
            pieces.append((str(number), conversation(tokenizer, turns, where)))
        else:
            text = SEPARATOR + sound(row.text)
            pieces.append((str(number), tokenizer.encode(text, add_special_tokens=False, verbose=False)))
    if pieces:
        found, labels = cut(pieces, leading_tokens(tokenizer), seqlen or 1)
        ids += found
        windows += [Window(path.stem, documents, 0) for documents in labels]
    if not ids:
        raise NotEnoughText(str(path), 0, 1, seqlen or 1)
    spec = {"kind": "file", "file": path.name, "n": len(ids), "seqlen": seqlen}
    return CalibrationSet(torch.tensor(ids), tuple(windows), fingerprint, spec)


def _full(row: _Row, seqlen: int, vocabulary: int, where: str) -> list[int]:
    """The first `seqlen` ids of a row that holds at least so many real ones."""
    ids, mask = row.input_ids[:seqlen], row.attention_mask
    if not ids or len(ids) < seqlen:
        raise UsageError(f"{where} has {len(ids)} tokens, fewer than {seqlen}: windows are of one length, give seqlen")
    if mask is not None and (len(mask) < seqlen or not all(mask[:seqlen])):
        raise UsageError(f"{where} is padded: calibration windows are full, drop the padding or give a shorter seqlen")
    if not all(0 <= token < vocabulary for token in ids):
        raise UsageError(f"{where} has ids outside the tokenizer's {vocabulary}: it was cut with another tokenizer")
    return ids
