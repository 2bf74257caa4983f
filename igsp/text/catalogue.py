"""Calibration sources: catalogue entry -> documents, split into a calibration and a held-out side.

A source is text of one capability dimension. Its documents come out of pinned wheels, installed packages, the
hub (or a mirror of it) or files of the user's, in a stable order. The split is made here, on documents, before
any window is cut, so that nothing later can put held-out text into a calibration set.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import logging
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from importlib import resources
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from string import Formatter
from typing import Any, Literal

import yaml

from igsp.assets import cache_dir, cached_json, wheels
from igsp.errors import AssetError, UnknownName, UsageError
from igsp.text import readers
from igsp.text.readers import READERS, NotAtHand, Row

log = logging.getLogger(__name__)

DIMENSIONS = ("general", "commonsense", "code", "math")
HELDOUT_SHARE = 5  # about one document in five is held out

Split = Literal["calibration", "heldout", "all"]


@dataclass(frozen=True)
class Document:
    """One document: its id, stable and unique within the source, and its text."""

    id: str
    text: str


@dataclass(frozen=True)
class Source:
    """One catalogue entry (`catalog/sources.yaml`, `catalog/real.yaml` or the user's file `$IGSP_SOURCES`).

    Attributes:
        id: the name to ask for it by.
        dimension: the capability it stands for, one of `DIMENSIONS` (in the user's file: any). A label, not a
            measurement.
        origin: `wheel` (read inside a pinned wheel), `installed` (read from installed packages), `hub` or `file`.
        packages: name of the wheel, or names of the installed packages (`stdlib`: the standard library).
        reader: how files of packages are read, with `options`.
        hub: id of the data set, with `config` (several are joined), `split` and `revision` (a commit).
        file: path of the data below `$IGSP_DATA/<hub>`, without `.jsonl.gz`; `{config}` stands for each config.
        data_files: files of the hub's repository to read instead of `config` and `split`.
        files: for `file`, JSON lines, Parquet or text, relative to the user's file.
        template: layout of a row, with `answer`: see `readers.lay_out`.
        characters: of text at most.
        licence: licence of the text.
        paper: named in the paper.
        generated: written by a program, not by people.
        sha256: of the assembled text, see `text_sha256`.
        versions: for `installed`, the versions that `sha256` belongs to.
        heldout_templates: first template that is held out, for text made from templates.
    """

    id: str
    dimension: str
    about: str
    licence: str
    origin: str
    packages: tuple[str, ...] = ()
    reader: str = ""
    options: dict[str, Any] = field(default_factory=dict, hash=False)
    hub: str = ""
    config: tuple[str, ...] = ()
    split: str = "train"
    revision: str = ""
    file: str = ""
    data_files: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    template: str = "{text}"
    answer: dict[str, Any] = field(default_factory=dict, hash=False)
    characters: int = 4_000_000
    paper: bool = False
    generated: bool = False
    slow: bool = False
    sha256: str = ""
    versions: dict[str, str] = field(default_factory=dict, hash=False)
    heldout_templates: int | None = None

    def installed_versions(self) -> dict[str, str]:
        """Versions that this source's text depends on, as they are here."""
        if self.origin == "wheel":
            return {name: wheels()[name].version for name in self.packages}
        return {n: platform.python_version() if n == "stdlib" else importlib.metadata.version(n) for n in self.packages}

    def mirror_files(self) -> list[Path]:
        """Where a mirror has the data: one file per config below `$IGSP_DATA` (named so if that is unset)."""
        name = self.file or ("{config}/" if self.config else "") + self.split
        return [readers.mirror(self.hub, f"{name.format(config=config)}.jsonl.gz") for config in self.config or ("",)]

    def at_hand(self) -> str:
        """Where the text is: `wheel cached`, `installed`, `mirror`, `hub cache`, `file`, or `no`."""
        if self.origin == "installed":
            return "installed" if all(name == "stdlib" or find_spec(name) for name in self.packages) else "no"
        if self.origin == "wheel":
            places = {"wheel cached": [wheels()[name].path for name in self.packages]}
        elif self.origin == "hub":
            places = {"mirror": self.mirror_files(), "hub cache": [_cache_file(self)]}
        else:
            places = {"file": [Path(name) for name in self.files]}
        return next((name for name, paths in places.items() if all(path.exists() for path in paths)), "no")


OPENERS: dict[str, Callable[[Sequence[str]], readers.Files]] = {
    "wheel": lambda packages: readers.wheel_files(packages[0]), "installed": readers.installed_files,
}
ORIGINS = {"wheel": ("packages", "reader"), "installed": ("packages", "reader"), "hub": ("hub",), "file": ("files",)}
"""Where text can come from, and the fields that such an entry needs."""
TYPES = {"str": str, "bool": bool, "int": int, "tuple[str, ...]": list, "dict[str, Any]": dict, "dict[str, str]": dict}


def catalogue() -> dict[str, Source]:
    """All sources by id: those of the package in their order, then those of the file `$IGSP_SOURCES`.

    Raises:
        UsageError: an entry with an unknown or missing field, or a wrong value (names file, line and field).
    """
    return _catalogue(os.environ.get("IGSP_SOURCES") or None)


@functools.cache
def _catalogue(own: str | None) -> dict[str, Source]:
    folder = Path(str(resources.files("igsp"))) / "catalog"
    found: dict[str, Source] = {}
    for path in (folder / "sources.yaml", folder / "real.yaml", *([Path(own)] if own else [])):
        for entry in _entries(path, () if str(path) == own else DIMENSIONS):
            if entry.id in found:
                raise UsageError(f"{path.name}: there is a source '{entry.id}' already, choose another id")
            found[entry.id] = entry
    return found


def _entries(path: Path, dimensions: Sequence[str]) -> Iterator[Source]:
    """Checked entries of a YAML file; paths in `files` become absolute. `dimensions` is empty where any is allowed."""
    try:
        loader = yaml.SafeLoader(path.read_text(encoding="utf8"))
        tree = loader.get_single_node()
        content = loader.construct_document(tree) if tree else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"catalogue of sources '{path}' cannot be read: {error}") from None
    if not isinstance(content, dict) or not all(isinstance(entry, dict) for entry in content.values()):
        raise UsageError(f"catalogue of sources '{path}' must map each id to the fields of its source")
    if len(tree.value) > len(content):
        raise UsageError(f"catalogue of sources '{path}' gives an id twice: {[key.value for key, _ in tree.value]}")
    for (name, entry), (key, value) in zip(content.items(), tree.value, strict=True):
        lines = {"": key.start_mark.line, **{k.value: k.start_mark.line for k, _ in value.value}}
        places = {field: f"{path.name}, line {line + 1}" for field, line in lines.items()}
        found = _entry(str(name), entry, places, dimensions)
        yield replace(found, files=tuple(str(path.parent.absolute() / file) for file in found.files))


def _entry(name: str, entry: dict[str, Any], places: dict[str, str], dimensions: Sequence[str]) -> Source:
    """A source from its fields, checked; `places` says where each stands, and under '' where the entry begins."""
    def where(key: str) -> str:
        return f"source '{name}' ({places[key]})"

    known = {f.name: str(f.type) for f in fields(Source) if f.name != "id"}
    for key, value in entry.items():
        if key not in known:
            raise UnknownName(f"field of {where(key)}:", key, known)
        wanted = TYPES.get(known[key], object)
        inside = value if wanted is list and isinstance(value, list) else []
        if not isinstance(value, wanted) or not all(isinstance(part, str) for part in inside):
            raise UsageError(f"{where(key)}: field '{key}' must be a {wanted.__name__}, got {value!r}")
    for key in ("dimension", "about", "licence", "origin", *ORIGINS.get(entry.get("origin", ""), ())):
        if not entry.get(key):
            raise UsageError(f"{where(key if key in entry else '')} lacks the field '{key}'")
    for key, allowed in (("dimension", dimensions), ("origin", ORIGINS), ("reader", READERS)):
        if entry.get(key) and allowed and entry[key] not in allowed:
            raise UnknownName(f"{key} of {where(key)}:", entry[key], allowed)
    if entry.get("characters", 1) < 1:
        raise UsageError(f"{where('characters')}: field 'characters' must be at least 1")
    try:
        key = "template"
        list(Formatter().parse(entry.get(key, "")))
        key = "answer"
        signature(readers.right_answer).bind({}, **entry.get(key) or {"column": ""})
    except (ValueError, TypeError) as error:
        raise UsageError(f"{where(key)}: field '{key}': {error}") from None
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
    return Source(id=name, **values)


def source(source_id: str) -> Source:
    """One entry of the catalogue; raises `UnknownName` for an id that is not in it."""
    try:
        return catalogue()[source_id]
    except KeyError:
        raise UnknownName("source", source_id, catalogue()) from None


def documents(source_id: str, split: Split = "calibration") -> list[Document]:
    """Documents of a source, in a stable order.

    The held-out side is about one document in five, chosen by a hash of id and text (for text made from
    templates: the templates from `heldout_templates` on). The two sides have no document in common and a
    document keeps its side for as long as its text stays the same.

    Args:
        source_id: id of the catalogue.
        split: `calibration`, `heldout` or `all`.

    Raises:
        UnknownName: no such source, or no such split.
        AssetError: the wheel cannot be fetched, a package is missing, or the text is not the pinned one.
    """
    if split not in ("calibration", "heldout", "all"):
        raise UnknownName("split", split, ("calibration", "heldout", "all"))
    entry = source(source_id)
    return [d for d in _all(source_id) if split == "all" or _is_heldout(entry, d) == (split == "heldout")]


def _is_heldout(entry: Source, document: Document) -> bool:
    if entry.heldout_templates is not None:
        return int(document.id.split("/")[0]) >= entry.heldout_templates
    digest = hashlib.sha256(f"{document.id}\n{document.text}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % HELDOUT_SHARE == 0


def _all(source_id: str) -> tuple[Document, ...]:
    return _all_documents(source(source_id), os.environ.get("IGSP_DATA"))


@functools.cache
def _all_documents(entry: Source, mirror: str | None) -> tuple[Document, ...]:
    fetched = entry.origin == "hub" and entry.at_hand() != "mirror"
    found = _cached(entry) if entry.slow or fetched else _read(entry)
    _check(entry, _sha256(found))
    return found


def _read(entry: Source) -> tuple[Document, ...]:
    if entry.reader:
        texts = READERS[entry.reader](OPENERS[entry.origin](entry.packages), **entry.options)
    else:
        try:
            texts = readers.lay_out(_numbered(_tables(entry)), entry.template, entry.characters, entry.answer)
        except NotAtHand:
            raise
        except AssetError as error:
            raise AssetError(f"source '{entry.id}': {error}") from None
    found = tuple(Document(name, text) for name, text in texts if text)
    if not found:
        raise AssetError(f"source '{entry.id}' holds no text: its split or files are empty")
    return found


def _numbered(tables: Sequence[tuple[str, Iterable[Row]]]) -> Iterator[tuple[str, Row]]:
    """Rows with their ids: the row number, after the table's name where there are several."""
    for name, table in tables:
        for number, row in enumerate(table):
            yield (f"{name}/{number}" if len(tables) > 1 else str(number)), row


def _tables(entry: Source) -> list[tuple[str, Iterable[Row]]]:
    if entry.origin == "file":
        return [(Path(name).name, readers.rows(Path(name))) for name in entry.files]
    places = zip(entry.config or ("",), entry.mirror_files(), strict=True)
    if entry.at_hand() == "mirror":
        return [(name, readers.rows(place)) for name, place in places]
    return [(name, _from_hub(entry, name, place)) for name, place in places]


def _from_hub(entry: Source, config: str, place: Path) -> Iterator[Row]:
    """Rows of the hub that a mirror would have at `place`, as a stream: what is not read is not downloaded."""
    what: tuple[Any, ...] = (entry.hub, config or None)
    options: dict[str, Any] = {"split": entry.split, "revision": entry.revision or None}
    if entry.data_files:
        root = f"hf://datasets/{entry.hub}{'@' * bool(entry.revision)}{entry.revision}"
        what, options = ("json",), {"data_files": [f"{root}/{file}" for file in entry.data_files], "split": "train"}
    return readers.hub_rows(_title(entry), place, *what, **options, streaming=True)


def _title(entry: Source) -> str:
    return f"source '{entry.id}', {entry.hub} (revision {entry.revision or 'newest'})"


def fetch(source_ids: Iterable[str]) -> None:
    """Reads the sources of the hub into the cache.

    Raises:
        NotAtHand: names every source that cannot be had; a hub that does not answer is asked once.
    """
    missing: list[str] = []
    answers = True
    for entry in [entry for entry in map(source, source_ids) if entry.origin == "hub" and entry.at_hand() == "no"]:
        try:
            if not answers:
                raise NotAtHand([f"{_title(entry)}; its place: {entry.mirror_files()[0]}"], False)
            documents(entry.id)
        except NotAtHand as error:
            missing += error.missing
            answers = error.hub_answers
    if missing:
        raise NotAtHand(missing, answers)


def _cache_file(entry: Source) -> Path:
    """A file named by all that the text depends on."""
    python = platform.python_version()  # docstrings are found by the interpreter's own parser
    key = json.dumps([asdict(entry), entry.installed_versions(), python], sort_keys=True)
    return cache_dir() / "sources" / f"{entry.id}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def _cached(entry: Source) -> tuple[Document, ...]:
    """Documents through a file in the cache."""
    pairs = cached_json(_cache_file(entry), lambda: [(d.id, d.text) for d in _read(entry)])
    return tuple(Document(*pair) for pair in pairs)


def text_sha256(source_id: str) -> str:
    """SHA-256 of a source's assembled text: id, newline, text, NUL of every document in order, as UTF-8."""
    return _sha256(_all(source_id))


def _sha256(found: Sequence[Document]) -> str:
    digest = hashlib.sha256()
    for document in found:
        digest.update(f"{document.id}\n{document.text}\0".encode(errors="surrogatepass"))
    return digest.hexdigest()


def _check(entry: Source, sha256: str) -> None:
    """Compares the text with the catalogue: an error where it is pinned, a warning where it follows a version."""
    if not entry.sha256 or sha256 == entry.sha256:
        return
    if entry.origin == "wheel":
        raise AssetError(
            f"source '{entry.id}': the text read from {', '.join(entry.packages)} has SHA-256 {sha256[:16]}..., "
            f"pinned is {entry.sha256[:16]}...: its reader or its catalogue entry was changed"
        )
    log.warning(
        "source '%s' differs from the reference text: made from %s here, from %s there; numbers will differ a little",
        entry.id, _spell(entry.installed_versions()), _spell(entry.versions),
    )


def _spell(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())
