"""Calibration sets to and from other programs: folders of Hugging Face `datasets`, and JSON lines.

A row is a window. A `datasets` folder has the columns `input_ids` and `attention_mask` and nothing else, which is what
compression libraries take as tokenised text (llm-compressor's `oneshot(dataset=...)`); where the windows came from
travels in the data set's description. A JSON line holds `input_ids` and the window's origin.
"""

from __future__ import annotations

import gzip
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, DatasetInfo, disable_progress_bars, enable_progress_bars, load_from_disk
from transformers import PreTrainedTokenizerBase

from igsp.assets import output_path, whole_or_nothing
from igsp.errors import NotEnoughText, TokenizerMismatch, UnknownName, UsageError
from igsp.models import tokenizer_fingerprint
from igsp.text.windows import SEPARATOR, CalibrationSet, Window

FORMATS = ("igsp", "datasets", "jsonl")


def to_dataset(calibration: CalibrationSet) -> Dataset:
    """The windows as a `datasets.Dataset` of `n` rows: `input_ids` and an `attention_mask` of ones, `[seqlen]` each."""
    origin = {
        "sha256": calibration.sha256, "tokenizer": calibration.tokenizer, "spec": calibration.spec,
        "windows": [asdict(window) for window in calibration.windows],
    }
    ids = calibration.input_ids
    columns = {"input_ids": ids.tolist(), "attention_mask": torch.ones_like(ids).tolist()}
    return Dataset.from_dict(columns, info=DatasetInfo(description=json.dumps({"igsp": origin})))


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

    Rows hold `input_ids` or `text`. Rows of ids are windows: all of one length, or cut to `seqlen`. Texts are joined by
    an empty line, tokenised and cut into windows of `seqlen`.

    Args:
        n: the first n windows; all by default.

    Raises:
        UsageError: nothing that holds windows, rows of different lengths, padding, ids outside the vocabulary, or
            text without a `seqlen`.
        TokenizerMismatch: the rows say that another tokenizer cut them.
        NotEnoughText: fewer than `n` windows.
    """
    path = Path(path)
    if (path / "windows.safetensors").exists():
        made = CalibrationSet.load(path)
    elif (path / "state.json").exists() or (path / "dataset_dict.json").exists():
        made = _from_dataset(path, tokenizer, seqlen)
    elif path.is_file() and path.name.endswith((".jsonl", ".jsonl.gz")):
        made = _from_rows(_json_lines(path), path, tokenizer, seqlen)
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


def _from_dataset(folder: Path, tokenizer: PreTrainedTokenizerBase, seqlen: int | None) -> CalibrationSet:
    data = load_from_disk(str(folder))
    if not isinstance(data, Dataset):
        raise UsageError(f"'{folder}' holds the splits {', '.join(data)}: give the folder of one")
    made = _from_rows(data, folder, tokenizer, seqlen)
    try:
        origin = json.loads(data.info.description)["igsp"]
    except (ValueError, KeyError, TypeError):  # a data set of other people
        return made
    if origin["tokenizer"] != made.tokenizer:
        raise TokenizerMismatch(f"'{folder}' was cut with another tokenizer than this one: sample it again")
    if origin["sha256"] != made.sha256:  # some of the rows, or cut shorter
        return made
    windows = tuple(Window(w["source"], tuple(w["documents"]), w["draw"]) for w in origin["windows"])
    return CalibrationSet(made.input_ids, windows, made.tokenizer, origin["spec"])


def _json_lines(path: Path) -> Iterator[Mapping[str, Any]]:
    opener = gzip.open if path.suffix == ".gz" else open
    number = 0
    try:
        with opener(path, "rt", encoding="utf8") as lines:
            for number, line in enumerate(lines, 1):
                row = json.loads(line) if line.strip() else None
                if isinstance(row, dict):
                    yield row
                elif row is not None:
                    raise UsageError(f"'{path}', line {number}: a row is a JSON object, not {type(row).__name__}")
    except json.JSONDecodeError as error:
        raise UsageError(f"'{path}', line {number}: no JSON ({error})") from None
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise UsageError(f"'{path}' cannot be read after line {number}: {error}") from None


def _from_rows(
    rows: Iterable[Mapping[str, Any]], path: Path, tokenizer: PreTrainedTokenizerBase, seqlen: int | None
) -> CalibrationSet:
    fingerprint = tokenizer_fingerprint(tokenizer)
    ids: list[list[int]] = []
    windows: list[Window] = []
    buffer: list[int] = []
    for number, row in enumerate(rows, 1):
        where = f"'{path}', row {number}"
        if row.get("tokenizer", fingerprint) != fingerprint:
            raise TokenizerMismatch(f"{where} was cut with another tokenizer than this one: sample it again")
        if "input_ids" in row:
            seqlen = seqlen or len(row["input_ids"])
            ids.append(_checked(row, seqlen, len(tokenizer), where))
            documents = tuple(map(str, row.get("documents", (str(number),))))
            windows.append(Window(str(row.get("source", path.stem)), documents, int(row.get("draw", 0))))
        elif isinstance(row.get("text"), str):
            if seqlen is None:
                raise UsageError(f"{where} holds text: say how long the windows are to be (seqlen)")
            buffer += tokenizer.encode(SEPARATOR + row["text"], add_special_tokens=False, verbose=False)
            while len(buffer) >= seqlen:
                ids.append(buffer[:seqlen])
                windows.append(Window(path.stem, (str(number),), 0))  # the row in which the window ends
                buffer = buffer[seqlen:]
        else:
            raise UsageError(f"{where} has neither 'input_ids' nor 'text'; it has {', '.join(row) or 'nothing'}")
    if not ids:
        raise NotEnoughText(str(path), 0, 1, seqlen or 1)
    spec = {"kind": "file", "file": path.name, "n": len(ids), "seqlen": seqlen}
    return CalibrationSet(torch.tensor(ids), tuple(windows), fingerprint, spec)


def _checked(row: Mapping[str, Any], seqlen: int, vocabulary: int, where: str) -> list[int]:
    """The first `seqlen` ids of a row that holds at least so many real ones."""
    ids = list(row["input_ids"])[:seqlen]
    if len(ids) < seqlen:
        raise UsageError(f"{where} has {len(ids)} tokens, fewer than {seqlen}: windows are of one length, give seqlen")
    if not all(list(row.get("attention_mask", ()))[:seqlen]):
        raise UsageError(f"{where} is padded: calibration windows are full, drop the padding or give a shorter seqlen")
    if not all(isinstance(i, int) and 0 <= i < vocabulary for i in ids):
        raise UsageError(f"{where} has ids outside the tokenizer's {vocabulary}: it was cut with another tokenizer")
    return ids
