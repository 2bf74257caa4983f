"""Calibration sources: catalogue entry -> documents, split into a calibration and a held-out side.

A source is text of one capability dimension. Its documents come out of pinned wheels or of installed
packages, whole and in a stable order. The split is made here, on documents, before any window is cut, so
that nothing later can put held-out text into a calibration set.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import logging
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from igsp.assets import cache_dir, catalog, wheels, whole_or_nothing
from igsp.errors import AssetError, UnknownName, UsageError
from igsp.readers import READERS, Files, installed_files, wheel_files

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
    """One catalogue entry (`catalog/sources.yaml`).

    Attributes:
        id: the name to ask for it by.
        dimension: the capability it stands for, one of `DIMENSIONS`. A label, not a measurement.
        origin: `wheel` (read inside a pinned wheel) or `installed` (read from installed packages).
        packages: name of the wheel, or names of the installed packages (`stdlib`: the standard library).
        licence: licence of the text.
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
    packages: tuple[str, ...]
    reader: str
    options: dict[str, Any] = field(default_factory=dict, hash=False)
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


def _open_wheel(packages: Sequence[str]) -> Files:
    return wheel_files(packages[0])


ORIGINS: dict[str, Callable[[Sequence[str]], Files]] = {"wheel": _open_wheel, "installed": installed_files}


@functools.cache
def catalogue() -> dict[str, Source]:
    """All sources by id, in the order of the catalogue.

    Raises:
        UsageError: an entry with an unknown field, dimension, origin or reader (names entry and field).
    """
    return {name: _entry(name, entry) for name, entry in catalog("sources").items()}


def _entry(name: str, entry: dict[str, Any]) -> Source:
    known = {f.name for f in fields(Source)} - {"id"}
    where = f"field of source '{name}' (sources.yaml)"
    for key in entry:
        if key not in known:
            raise UnknownName(where, key, known)
    for key, allowed in (("dimension", DIMENSIONS), ("origin", ORIGINS), ("reader", READERS)):
        if key not in entry:
            raise UsageError(f"source '{name}' (sources.yaml) lacks the field '{key}'")
        if entry[key] not in allowed:
            raise UnknownName(f"{key} of source '{name}' (sources.yaml):", entry[key], allowed)
    return Source(id=name, **{**entry, "packages": tuple(entry["packages"])})


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
    return [d for d in _all_documents(source_id) if split == "all" or _is_heldout(entry, d) == (split == "heldout")]


def _is_heldout(entry: Source, document: Document) -> bool:
    if entry.heldout_templates is not None:
        return int(document.id.split("/")[0]) >= entry.heldout_templates
    digest = hashlib.sha256(f"{document.id}\n{document.text}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % HELDOUT_SHARE == 0


@functools.cache
def _all_documents(source_id: str) -> tuple[Document, ...]:
    entry = source(source_id)
    found = _cached(entry) if entry.slow else _read(entry)
    _check(entry, _sha256(found))
    return found


def _read(entry: Source) -> tuple[Document, ...]:
    texts = READERS[entry.reader](ORIGINS[entry.origin](entry.packages), **entry.options)
    return tuple(Document(name, text) for name, text in texts if text)


def _cached(entry: Source) -> tuple[Document, ...]:
    """Documents through a file in the cache, named by all that the text depends on; a damaged file is made again."""
    python = platform.python_version()  # docstrings are found by the interpreter's own parser
    key = json.dumps([entry.reader, entry.options, entry.installed_versions(), python], sort_keys=True)
    path = cache_dir() / "sources" / f"{entry.id}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.jsonl"
    found = _load_jsonl(path)
    if found is None:
        found = _read(entry)
        with whole_or_nothing(path) as temporary:
            lines = [json.dumps({"sha256": _sha256(found)}), *(json.dumps([d.id, d.text]) for d in found)]
            temporary.write_text("\n".join(lines), encoding="utf8")
    return found


def _load_jsonl(path: Path) -> tuple[Document, ...] | None:
    """Documents of a cache file, or None if it is missing or not what was written."""
    try:
        head, *lines = path.read_text(encoding="utf8").split("\n")
        found = tuple(Document(*json.loads(line)) for line in lines)
        return found if _sha256(found) == json.loads(head)["sha256"] else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def text_sha256(source_id: str) -> str:
    """SHA-256 of a source's assembled text: id, newline, text, NUL of every document in order, as UTF-8."""
    return _sha256(_all_documents(source_id))


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
