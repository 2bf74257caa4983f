"""Rows of data sets: read one at a time from a file, a mirror or the hub, and laid out as texts by a template."""

from __future__ import annotations

import gzip
import json
import logging
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from string import Formatter
from typing import Any

from igsp.errors import AssetError

log = logging.getLogger(__name__)

Text = tuple[str, str]  # document id within the source, text
Row = dict[str, Any]  # column -> value
TEXT_PIECE = 8000  # characters of a document cut out of a plain text file


def rows(path: Path) -> Iterator[Row]:
    """Rows of a file, one at a time: `.jsonl` and `.json` lines (also `.gz`), `.parquet`, or `.txt` (column `text`).

    Bytes that are no UTF-8 become U+FFFD; how many lines had some is logged. (Read here and not by `datasets`, which
    names no line in its errors and makes one type of a column.)

    Raises:
        AssetError: missing, damaged, of another kind, or a line that is no JSON object (names file and line).
    """
    kinds = {".parquet": _parquet_rows, ".txt": _text_rows, ".jsonl": _json_rows, ".json": _json_rows}
    kind = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if kind not in kinds:
        raise AssetError(f"'{path}' is of no known kind: use {', '.join(kinds)} (all but parquet also as .gz)")
    try:
        yield from kinds[kind](path)
    except (OSError, EOFError, zlib.error) as error:
        raise AssetError(f"'{path}' cannot be read: {error}") from None


class NotAtHand(AssetError):
    """Data sets that neither a mirror nor the hub gives; `hub_answers` is false where the hub cannot be reached."""

    def __init__(self, missing: Sequence[str], hub_answers: bool) -> None:
        super().__init__(
            "\n  ".join(["data sets that are not at hand:", *dict.fromkeys(missing)])
            + "\nWay out: connect to the hub, or put gzip'd JSON lines at each place named; $IGSP_DATA is the folder "
            f"of a mirror (now: {os.environ.get('IGSP_DATA') or 'not set'})"
        )
        self.missing, self.hub_answers = list(missing), hub_answers


def mirror(*parts: str) -> Path:
    """A place in the mirror `$IGSP_DATA` (named so if that is unset)."""
    return Path(os.environ.get("IGSP_DATA") or "$IGSP_DATA", *parts)


def hub_rows(what: str, place: Path, *arguments: Any, **options: Any) -> Iterator[Row]:
    """Rows that `datasets.load_dataset(*arguments, **options)` gives.

    Args:
        what: names the data set in errors.
        place: where a mirror would have it.

    Raises:
        NotAtHand: the hub cannot be reached, or does not give them.
    """
    import datasets  # takes a second

    try:
        if datasets.config.HF_DATASETS_OFFLINE and "hf://" in str(options):  # which only HF_HUB_OFFLINE would stop
            raise ConnectionError("HF_DATASETS_OFFLINE is set")
        yield from datasets.load_dataset(*arguments, **options)
    except Exception as error:  # the library raises a dozen kinds: not found, gated, offline, no such split, ...
        why = f"{type(error).__name__}: {str(error).split(chr(10))[0]}"
        why += " (accept its terms on the hub and set HF_TOKEN)" * ("gated" in str(error))
        raise NotAtHand([f"{what}: {why}; its place: {place}"], not isinstance(error, ConnectionError)) from error


def _lines(path: Path) -> Iterator[str]:
    broken = 0
    with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as lines:
        for line in lines:
            try:
                yield line.decode("utf-8-sig")
            except UnicodeDecodeError:
                broken += 1
                yield line.decode("utf8", "replace")
    if broken:
        log.warning("'%s': %d lines hold bytes that are no UTF-8, read as U+FFFD: convert the file", path, broken)


def _json_rows(path: Path) -> Iterator[Row]:
    for number, line in enumerate(_lines(path), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise AssetError(f"'{path}', line {number}: no JSON ({error})") from None
            if not isinstance(row, dict):
                raise AssetError(f"'{path}', line {number}: a row is a JSON object, not {type(row).__name__}")
            yield row


def pieces(text: str, size: int) -> Iterator[str]:
    held: list[str] = []
    for paragraph in text.split("\n\n"):
        held.append(paragraph)
        if len(piece := "\n\n".join(held)) >= size:
            yield piece
            held = []
    if held:
        yield "\n\n".join(held)


def _text_rows(path: Path) -> Iterator[Row]:
    yield from ({"text": piece} for piece in pieces("".join(_lines(path)).replace("\r\n", "\n"), TEXT_PIECE))


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=256):
            yield from batch.to_pylist()
    except (pyarrow.ArrowException, ValueError, ArithmeticError) as error:
        raise AssetError(f"'{path}' is no Parquet file: {error}") from None


def plain(template: str) -> str:
    """A `str.format` template that reaches columns and their items by name or number alone; else ValueError.

    Attributes would lead from a column's value to everything that Python holds, wide formats to endless text.
    """
    for _, name, form, _ in Formatter().parse(template):
        if name is not None and not re.fullmatch(r"[^\d\W][^.\[\]]*(\[[^.\[\]]+\])*", name):
            raise ValueError(f"'{{{name}}}' is no name of a column: write {{column}}, {{column[key]}} or {{column[0]}}")
        if form and re.search(r"[{}]|\d{4}", form):
            raise ValueError(f"format ':{form}' of '{{{name}}}' is not allowed: no braces, widths below 1000")
    return template


def sound(text: str) -> str:
    """Text with lone surrogates (halves of a character, which no tokenizer takes) replaced by `?`."""
    return text.encode("utf8", "replace").decode("utf8")


def lay_out(
    numbered: Iterable[tuple[str, Row]], template: str = "{text}", characters: int = 4_000_000,
    answer: Mapping[str, Any] | None = None,
) -> list[Text]:
    """Rows as texts: a `str.format` template over the columns, until `characters` of text are read.

    Paragraphs of the template whose columns are all empty are left out, list columns become bulleted lines, the last
    text is cut at the limit, and texts that were there before are dropped and counted in the log. `answer` adds a
    column `right`, see `right_answer`.

    Raises:
        AssetError: a column that the rows do not have (names it and those there are).
    """
    texts: dict[str, str] = {}
    duplicates = 0
    plain(template)
    for key, row in numbered:
        try:
            columns = {**row, "right": right_answer(row, **answer)} if answer else row
            text = _paragraphs(template, {name: flat(value, False) for name, value in columns.items()})
        except KeyError as error:
            raise AssetError(f"no column {error} in row {key}; its columns are {', '.join(row)}") from None
        except (ValueError, TypeError, IndexError, AttributeError, OverflowError, RecursionError) as error:
            raise AssetError(f"row {key} does not fit template or answer: {error}") from None
        if text in texts:
            duplicates += 1
        elif text:
            texts[text[:characters]] = key
            characters -= len(text)
        if characters <= 0:
            break
    if duplicates:
        log.info("%d duplicates were dropped, %d texts are left", duplicates, len(texts))
    return [(key, text) for text, key in texts.items()]


def flat(value: object, numbered: bool) -> object:
    if not isinstance(value, list):
        return "" if value is None else value
    marks = (f"{i}." for i in range(1, len(value) + 1)) if numbered else ("-" for _ in value)
    return "\n".join(f"{mark} {str(item).strip()}" for mark, item in zip(marks, value, strict=True))


def _paragraphs(template: str, columns: Row) -> str:
    parts = (part.format(**columns) for part in template.split("\n\n"))
    filled = (part.replace("\r\n", "\n").replace("\r", "\n").strip() for part in parts)
    return "\n\n".join(part for part in filled if part)


def right_answer(
    row: Row, column: str, choices: str | Sequence[str] = (), words: Sequence[str] = (), labels: Sequence[str] = (),
    blank: str = "",
) -> str:
    """Text of the right choice of a multiple-choice row.

    Args:
        column: holds the label of the right choice.
        choices: the column of all choices (a list, or `{text: [...], label: [...]}`), or one column per choice.
        words: the choices themselves, where no column has them (`[no, yes]`).
        labels: labels of the choices in order; default 0, 1, 2, ...
        blank: column of a sentence with a gap `_`: the answer is this sentence with the gap filled.

    Raises:
        KeyError, ValueError: a column that the row does not have, a label that is none.
    """
    found = words or (row[choices] if isinstance(choices, str) else [row[name] for name in choices])
    if isinstance(found, Mapping):
        found, labels = found["text"], found["label"]
    label = str(row[column])
    if isinstance(found, str):
        raise ValueError(f"column '{choices}' holds a text where choices belong")
    known = [str(name) for name in labels or range(len(found))]
    if label not in known:
        raise ValueError(f"column '{column}' holds '{label}', which is none of the labels {', '.join(known)}")
    right = str(found[known.index(label)])
    return row[blank].replace("_", right) if blank else right
