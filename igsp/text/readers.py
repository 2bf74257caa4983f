"""Readers: from the files of a pinned wheel or of an installed package to texts.

A reader takes the files of one source, as `(name, content)`, and the options of its catalogue entry and returns
`(id, text)` pairs. Files are read as they lie, never imported: an import would run foreign code, need its
dependencies and cost seconds. The one exception is `gsm_templates`, which has to run the generator functions of a wheel
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
import os
import random
import re
import sys
import sysconfig
import types
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from igsp.assets import fetch_wheel
from igsp.errors import AssetError
from igsp.text.rows import Text, flat, pieces, plain

Files = Iterable[tuple[str, str]]  # name, content
Natural = Annotated[int, Field(ge=0, le=10**12)]
Positive = Annotated[int, Field(ge=1, le=10**12)]


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
            fields = {name: flat(value, name in numbered) for name, value in row.items()}
            texts.append((key, template.format(**fields).strip()))
    return texts


def json_rows(files: Files, field: str) -> list[Text]:
    """One field of each row of JSON-lines files."""
    return [(str(i), row[field].strip()) for i, row in enumerate(_json_lines(files))]


def json_prose(files: Files, min_chars: Natural) -> list[Text]:
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


def whole_files(files: Files, min_bytes: Natural = 0, piece_chars: Positive | None = None) -> list[Text]:
    """One document per file of at least `min_bytes` bytes, or one per piece of about `piece_chars` characters.

    Pieces end at blank lines; they let a source of few, long files be split into two sides.
    """
    texts = [(name, text) for name, text in files if len(text.encode()) >= min_bytes]
    if piece_chars is None:
        return texts
    return [(f"{name}:{i}", p) for name, text in texts for i, p in enumerate(pieces(text, piece_chars))]


def literal_dict(files: Files) -> list[Text]:
    """Values, in the order of their keys, of the dictionary literal that a Python file assigns."""
    texts: list[Text] = []
    for _, content in files:
        for node in _parse(content).body:
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
                texts += sorted(ast.literal_eval(node.value).items())
    return texts


def docstrings(files: Files, min_chars: Natural) -> list[Text]:
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


def gsm_templates(files: Files, rounds: Positive, seed: Natural) -> list[Text]:
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


READERS: dict[str, Callable[..., list[Text]]] = {
    reader.__name__: reader
    for reader in (json_records, json_rows, json_prose, line_groups, stories, aiml, whole_files, literal_dict,
                   docstrings, gsm_templates)
}
