"""Readers: from the files of a pinned wheel or of an installed package, or from rows of a data set, to texts.

A reader takes the files of one source, as `(name, content)`, and the options of its catalogue entry and returns
`(id, text)` pairs. Rows (of the hub, a mirror or a user's file) are read one at a time and laid out by a template
(`lay_out`). Files are read as they lie, never imported: an import would run foreign code, need its dependencies and
cost seconds. The one exception is `gsm_templates`, which has to run the generator functions of a wheel
whose SHA-256 is pinned.
"""

from __future__ import annotations

import ast
import gzip
import html
import importlib
import importlib.metadata
import itertools
import json
import logging
import os
import random
import re
import sys
import sysconfig
import types
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from string import Formatter
from typing import Annotated, Any

from pydantic import Field

from igsp.assets import fetch_wheel
from igsp.errors import AssetError

log = logging.getLogger(__name__)

Text = tuple[str, str]  # document id within the source, text
Files = Iterable[tuple[str, str]]  # name, content
Row = dict[str, Any]  # column -> value
Positive = Annotated[int, Field(ge=1)]
TEXT_PIECE = 8000  # characters of a document cut out of a plain text file


def _matching(known: Iterable[str], members: Sequence[str], exclude: Sequence[str], where: object) -> list[str]:
    """Names, sorted, that match one of the shell patterns and none of `exclude` (`*` crosses folders)."""
    chosen = [n for n in known if any(fnmatch(n, p) for p in members) and not any(fnmatch(n, p) for p in exclude)]
    if not chosen:
        raise AssetError(f"{where} holds no file like {', '.join(members)}")
    return sorted(chosen)


def _content(name: str, data: bytes) -> str:
    """Content of a file (UTF-8, undecodable bytes replaced, line ends `\\n`, `.gz` unpacked)."""
    return (gzip.decompress(data) if name.endswith(".gz") else data).decode("utf8", "replace").replace("\r\n", "\n")


def wheel_files(wheel: str, members: Sequence[str], exclude: Sequence[str] = ()) -> Files:
    """Name and content of the files of a pinned wheel (fetched and verified if need be) that match the patterns."""
    with zipfile.ZipFile(fetch_wheel(wheel)) as archive:
        for name in _matching(archive.namelist(), members, exclude, wheel):
            yield name, _content(name, archive.read(name))


def installed_files(packages: Sequence[str], members: Sequence[str], exclude: Sequence[str] = ()) -> Files:
    """The same for installed packages, `stdlib` being the standard library; names are `<package>/<path below it>`.

    Raises:
        AssetError: a package is not installed.
    """
    places: dict[str, Path] = {}
    for package in packages:
        try:
            folder = (
                Path(sysconfig.get_paths()["stdlib"]) if package == "stdlib"
                else Path(str(importlib.metadata.distribution(package).locate_file(package)))
            )
        except importlib.metadata.PackageNotFoundError:
            raise AssetError(f"package '{package}' is not installed: `pip install {package}`") from None
        places |= {f"{package}/{path.relative_to(folder).as_posix()}": path for path in _walk(folder)}
    for name in _matching(places, members, exclude, ", ".join(packages)):
        yield name, _content(name, places[name].read_bytes())


def _walk(folder: Path) -> Iterator[Path]:
    """Files below `folder`, without the installed packages that may lie below the standard library."""
    for place, folders, names in os.walk(folder):
        folders[:] = [f for f in folders if f not in {"site-packages", "dist-packages", "__pycache__"}]
        yield from (Path(place) / name for name in names)


def _json_lines(files: Files) -> Iterator[Any]:
    return (json.loads(line) for _, text in files for line in text.splitlines() if line)


def json_records(files: Files, template: str, numbered: Sequence[str] = ()) -> list[Text]:
    """Records of a JSON object or list, each laid out by a `str.format` template; the keys are the ids.

    List fields become bulleted lines, those named in `numbered` become numbered ones.
    """
    texts = []
    plain(template)
    for _, content in files:
        data = json.loads(content)
        pairs = data.items() if isinstance(data, dict) else ((str(i), row) for i, row in enumerate(data))
        for key, row in pairs:
            fields = {name: _flat(value, name in numbered) for name, value in row.items()}
            texts.append((key, template.format(**fields).strip()))
    return texts


def _flat(value: object, numbered: bool) -> object:
    if not isinstance(value, list):
        return "" if value is None else value
    marks = (f"{i}." for i in range(1, len(value) + 1)) if numbered else ("-" for _ in value)
    return "\n".join(f"{mark} {str(item).strip()}" for mark, item in zip(marks, value, strict=True))


def json_rows(files: Files, field: str) -> list[Text]:
    """One field of each row of JSON-lines files."""
    return [(str(i), row[field].strip()) for i, row in enumerate(_json_lines(files))]


def json_prose(files: Files, min_chars: int) -> list[Text]:
    """One document per JSON file: its strings of at least `min_chars` characters, without HTML tags."""
    texts = []
    for name, content in files:
        strings = (html.unescape(re.sub(r"<[^>]+>", " ", s)) for s in _strings(json.loads(content)))
        paragraphs = [p for s in strings if len(p := re.sub(r"\s+", " ", s).strip()) >= min_chars]
        if paragraphs:
            texts.append((Path(name).stem, "\n\n".join(paragraphs)))
    return texts


def _strings(node: object) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict):
        for value in node.values():
            yield from _strings(value)
    elif isinstance(node, list):
        for value in node:
            yield from _strings(value)


def line_groups(files: Files, group: Positive = 1) -> list[Text]:
    """Non-empty lines; `group` of them, one per line, make a document."""
    lines = [line.strip() for _, text in files for line in text.splitlines() if line.strip()]
    return [(str(i // group), "\n".join(lines[i : i + group])) for i in range(0, len(lines), group)]


def stories(files: Files, stop: str) -> list[Text]:
    """The story of each row (the user's message up to `stop`), duplicates left out."""
    unique = dict.fromkeys(row["input"][1]["content"].split(stop)[0].strip() for row in _json_lines(files))
    return [(str(i), story) for i, story in enumerate(unique)]


def aiml(files: Files) -> list[Text]:
    """Question and answer pairs of AIML files that hold no wildcard and no markup."""
    pair = re.compile(r"<category>\s*<pattern>(.*?)</pattern>(.*?)<template>(.*?)</template>", re.DOTALL)
    unique: dict[str, None] = {}
    for _, content in files:
        for pattern, between, template in pair.findall(content):
            question, answer = (html.unescape(" ".join(part.split())) for part in (pattern, template))
            # `X foo` patterns are internal redirections, `that` restricts a pair to one preceding answer
            plain = not re.search(r"[<*_]", question + answer) and "<that>" not in between
            if plain and question and answer and not re.match(r"X[A-Z]+ ", question):
                unique[f"User: {question.capitalize()}\nAlice: {answer}"] = None
    return [(str(i), text) for i, text in enumerate(unique)]


def whole_files(files: Files, min_bytes: int = 0, piece_chars: Positive | None = None) -> list[Text]:
    """One document per file of at least `min_bytes` bytes, or one per piece of about `piece_chars` characters.

    Pieces end at blank lines; they let a source of few, long files be split into two sides.
    """
    texts = [(name, text) for name, text in files if len(text.encode()) >= min_bytes]
    if piece_chars is None:
        return texts
    return [(f"{name}:{i}", p) for name, text in texts for i, p in enumerate(_pieces(text, piece_chars))]


def _pieces(text: str, size: int) -> Iterator[str]:
    held: list[str] = []
    for paragraph in text.split("\n\n"):
        held.append(paragraph)
        if len(piece := "\n\n".join(held)) >= size:
            yield piece
            held = []
    if held:
        yield "\n\n".join(held)


def literal_dict(files: Files) -> list[Text]:
    """Values, in the order of their keys, of the dictionary literal that a Python file assigns."""
    texts: list[Text] = []
    for _, content in files:
        for node in _parse(content).body:
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
                texts += sorted(ast.literal_eval(node.value).items())
    return texts


def docstrings(files: Files, min_chars: int) -> list[Text]:
    """Docstrings of modules, classes and functions with at least `min_chars` characters, duplicates left out."""
    unique: dict[str, str] = {}
    for name, content in files:
        for node in ast.walk(_parse(content)):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node)
                if text and len(text) >= min_chars:
                    unique.setdefault(text, f"{name}:{getattr(node, 'name', '')}:{getattr(node, 'lineno', 0)}")
    return [(place, text) for text, place in unique.items()]


def _parse(code: str) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # other people's escapes
        return ast.parse(code)


_GSM = "reasoning_gym.arithmetic.gsm_symbolic"


def gsm_templates(files: Files, rounds: Positive, seed: int) -> list[Text]:
    """Word problems with worked solutions from 100 templates, `rounds` times over; ids `template/round`.

    No file is read: code of the pinned wheel runs, the only foreign code that does. The generators need the standard
    library alone, their package's `__init__` much more, so they are imported under empty parent packages, straight
    from the wheel (zipimport). `sys.modules` is restored.
    """
    rng = random.Random(seed)
    texts: dict[str, str] = {}
    with _stub_packages(str(fetch_wheel("reasoning-gym")), _GSM):
        halves = [importlib.import_module(f"{_GSM}.generators_{part}") for part in ("00_49", "50_99")]
        generators = [getattr(halves[i // 50], f"generate_{i}") for i in range(100)]
        for turn, template in itertools.product(range(rounds), range(100)):
            with suppress(ValueError):  # a draw of numbers that a template finds no question for
                item = generators[template](rng, 1.0)
                text = f"Question: {item['question']}\nAnswer: {item['metadata']['answer_cot']}"
                texts.setdefault(text, f"{template}/{turn}")
    return [(name, text) for text, name in texts.items()]


@contextmanager
def _stub_packages(wheel: str, dotted: str) -> Iterator[None]:
    """Empty packages named `dotted` and its parents, whose submodules are found inside `wheel`."""
    parts = dotted.split(".")
    before = {name: module for name, module in sys.modules.items() if name.split(".")[0] == parts[0]}
    for name in before:
        del sys.modules[name]
    for depth in range(1, len(parts) + 1):
        stub = types.ModuleType(".".join(parts[:depth]))
        stub.__path__ = ["/".join([wheel, *parts[:depth]])]
        sys.modules[stub.__name__] = stub
    try:
        yield
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == parts[0]]:
            del sys.modules[name]
        sys.modules.update(before)


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


def _text_rows(path: Path) -> Iterator[Row]:
    yield from ({"text": piece} for piece in _pieces("".join(_lines(path)).replace("\r\n", "\n"), TEXT_PIECE))


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
            text = _paragraphs(template, {name: _flat(value, False) for name, value in columns.items()})
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


READERS: dict[str, Callable[..., list[Text]]] = {
    reader.__name__: reader
    for reader in (json_records, json_rows, json_prose, line_groups, stories, aiml, whole_files, literal_dict,
                   docstrings, gsm_templates)
}
