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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from importlib import resources
from inspect import Parameter, signature
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_type_hints

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    create_model,
    model_validator,
)

from igsp.assets import NAME, below, cache_dir, cached_json, read_yaml, wheels
from igsp.errors import AssetError, UnknownName, UsageError, brief, checked
from igsp.text import readers, rows
from igsp.text.readers import READERS
from igsp.text.rows import NotAtHand, Row

log = logging.getLogger(__name__)

DIMENSIONS = ("general", "commonsense", "code", "math")
HELDOUT_SHARE = 5  # about one document in five is held out

Split = Literal["calibration", "heldout", "all"]


class Document(NamedTuple):
    """One document: its id, stable and unique within the source, and its text."""

    id: str
    text: str


def _options(function: Callable[..., Any]) -> type[BaseModel]:
    """Names and types of what a function takes after its first argument, and patterns of files, as a model."""
    hints, taken = get_type_hints(function, include_extras=True), list(signature(function).parameters.values())[1:]
    must = Parameter.empty
    fields: dict[str, Any] = {p.name: (hints[p.name], ... if p.default is must else p.default) for p in taken}
    fields |= {name: (list[str], []) for name in ("members", "exclude") if function.__name__ in READERS}
    return create_model(function.__name__, __config__=ConfigDict(strict=True, extra="forbid"), **fields)


FUNCTIONS: dict[str, Callable[..., Any]] = {**READERS, "right_answer": rows.right_answer}
OPTIONS = {name: _options(function) for name, function in FUNCTIONS.items()}
ORIGINS = {"wheel": ("packages", "reader"), "installed": ("packages", "reader"), "hub": ("hub",), "file": ("files",)}
"""Where text can come from, and the fields that such an entry needs."""


def _taken(given: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
    """Refuses options that their reader does not take, and an `answer` that `right_answer` does not."""
    function = info.data.get("reader") if info.field_name == "options" else given and "right_answer"
    if function:
        checked(OPTIONS[function], given, f"{info.field_name} of '{function}'")
    return given


Listed = BeforeValidator(lambda given: tuple(given) if isinstance(given, list) else given)
Text = Annotated[str, Field(min_length=1)]
Named = Annotated[str, Field(pattern=NAME)]
Inside = Annotated[str, AfterValidator(below)]
Options = Annotated[dict[str, Any], AfterValidator(_taken)]


class Source(BaseModel):
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
        files: for `file`, JSON lines, Parquet or text, beside or below the user's file.
        template: layout of a row, with `answer`: see `rows.lay_out`.
        characters: of text at most.
        licence: licence of the text.
        paper: named in the paper.
        generated: written by a program, not by people.
        sha256: of the assembled text, see `text_sha256`.
        versions: for `installed`, the versions that `sha256` belongs to.
        heldout_templates: first template that is held out, for text made from templates.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    id: Named
    dimension: Text
    about: Text
    licence: Text
    origin: Literal["wheel", "installed", "hub", "file"]
    packages: Annotated[tuple[Named, ...], Listed] = ()
    reader: Literal[("", *READERS)] = ""  # type: ignore[valid-type]
    options: Options = Field({}, validate_default=True)
    hub: Inside = ""
    config: Annotated[tuple[Inside, ...], Listed] = ()
    split: Inside = "train"
    revision: Inside = ""
    file: Inside = ""
    data_files: Annotated[tuple[Inside, ...], Listed] = ()
    files: Annotated[tuple[Inside, ...], Listed] = ()
    template: Annotated[str, AfterValidator(rows.plain)] = "{text}"
    answer: Options = {}
    characters: readers.Positive = 4_000_000
    paper: bool = False
    generated: bool = False
    slow: bool = False
    sha256: str = ""
    versions: dict[str, str] = {}
    heldout_templates: readers.Natural | None = None

    def __hash__(self) -> int:
        return hash(self.id)

    @model_validator(mode="after")
    def _complete(self) -> Source:
        """Refuses an entry without the fields of its origin."""
        for key in ORIGINS[self.origin]:
            if not getattr(self, key):
                raise UsageError(f"origin '{self.origin}' needs the field '{key}'")
        if self.origin == "wheel" and self.packages[0] not in wheels():
            raise UnknownName("wheel", self.packages[0], wheels())
        return self

    def installed_versions(self) -> dict[str, str]:
        """Versions that this source's text depends on, as they are here."""
        if self.origin == "wheel":
            return {name: wheels()[name].version for name in self.packages}
        return {name: _installed(name) for name in self.packages}

    def mirror_files(self) -> list[Path]:
        """Where a mirror has the data: one file per config below `$IGSP_DATA` (named so if that is unset)."""
        name = self.file or ("{config}/" if self.config else "") + self.split
        return [rows.mirror(self.hub, f"{name.replace('{config}', c)}.jsonl.gz") for c in self.config or ("",)]

    def at_hand(self) -> str:
        """Where the text is: `wheel cached`, `installed`, `mirror`, `hub cache`, `file`, or `no`."""
        if self.origin == "installed":
            return "installed" if all(map(_installed, self.packages)) else "no"
        if self.origin == "wheel":
            places = {"wheel cached": [wheels()[name].path for name in self.packages]}
        elif self.origin == "hub":
            places = {"mirror": self.mirror_files(), "hub cache": [_cache_file(self)]}
        else:
            places = {"file": [Path(name) for name in self.files]}
        return next((name for name, paths in places.items() if all(path.exists() for path in paths)), "no")


def _installed(package: str) -> str:
    """Version of an installed package; empty if there is none."""
    with suppress(importlib.metadata.PackageNotFoundError):
        return platform.python_version() if package == "stdlib" else importlib.metadata.version(package)
    return ""


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
    content, lines = read_yaml(path)
    for name, fields in content.items():
        where = f"{path.name}: source '{name}'"
        if not isinstance(fields, Mapping):
            raise UsageError(f"{where} must be a mapping of fields, got {brief(fields)}")
        entry = checked(Source, {"id": str(name), **fields}, where, lines[name])
        if dimensions and entry.dimension not in dimensions:
            raise UnknownName(f"dimension of {where}:", entry.dimension, dimensions)
        yield entry.model_copy(update={"files": tuple(str(path.parent.absolute() / file) for file in entry.files)})


def source(source_id: str) -> Source:
    """One entry of the catalogue, also for a part of it (`math[algebra]`); raises `UnknownName` if there is none."""
    return _entry_and_part(source_id)[0]


def _entry_and_part(source_id: str) -> tuple[Source, str]:
    """An entry, and in brackets the config of it or the split that was asked for."""
    name, bracket, part = str(source_id).partition("[")
    if name not in catalogue():
        raise UnknownName("source", name, catalogue())
    entry = catalogue()[name]
    known = [f"{known}]" for known in (*entry.config, entry.split) if entry.origin == "hub"]
    if bracket and part not in known:
        raise UnknownName(f"part of source '{name}'", f"[{part}", [f"[{known}" for known in known] or ["none"])
    return entry, part[:-1]


def documents(source_id: str, split: Split = "calibration") -> list[Document]:
    """Documents of a source, in a stable order.

    The held-out side is about one document in five, chosen by a hash of id and text (for text made from
    templates: the templates from `heldout_templates` on). The two sides have no document in common and a
    document keeps its side for as long as its text stays the same.

    Args:
        source_id: id of the catalogue; in brackets one config of several, `math[algebra]`.
        split: `calibration`, `heldout` or `all`.

    Raises:
        UnknownName: no such source, or no such split.
        AssetError: the wheel cannot be fetched, a package is missing, or the text is not the pinned one.
    """
    if split not in ("calibration", "heldout", "all"):
        raise UnknownName("split", split, ("calibration", "heldout", "all"))
    entry, part = _entry_and_part(source_id)
    start = f"{part}/" if part in entry.config and entry.config[1:] else ""
    found = [document for document in _all(source_id) if document.id.startswith(start)]
    return [d for d in found if split == "all" or _is_heldout(entry, d) == (split == "heldout")]


def _is_heldout(entry: Source, document: Document) -> bool:
    if entry.heldout_templates is not None:
        template = document.id.split("/")[0]
        if not template.isdecimal():
            raise UsageError(f"source '{entry.id}' is not made from templates: leave out 'heldout_templates'")
        return int(template) >= entry.heldout_templates
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
    try:
        if entry.reader:
            options, names = dict(entry.options), ("members", "exclude")
            patterns = [options.pop(name, ()) for name in names]
            files = (readers.wheel_files(entry.packages[0], *patterns) if entry.origin == "wheel"
                     else readers.installed_files(entry.packages, *patterns))
            texts = READERS[entry.reader](files, **options)
        else:
            texts = rows.lay_out(_numbered(_tables(entry)), entry.template, entry.characters, entry.answer)
    except NotAtHand:
        raise
    except AssetError as error:
        raise AssetError(f"source '{entry.id}': {error}") from None
    except Exception as error:  # a reader over files of another form raises a dozen kinds
        raise AssetError(f"source '{entry.id}': its files do not fit reader '{entry.reader}': {error!r}") from error
    found = tuple(Document(rows.sound(name), rows.sound(text)) for name, text in texts if text)
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
        return [(Path(name).name, rows.rows(Path(name))) for name in entry.files]
    places = zip(entry.config or ("",), entry.mirror_files(), strict=True)
    if entry.at_hand() == "mirror":
        return [(name, rows.rows(place)) for name, place in places]
    return [(name, _from_hub(entry, name, place)) for name, place in places]


def _from_hub(entry: Source, config: str, place: Path) -> Iterator[Row]:
    """Rows of the hub that a mirror would have at `place`, as a stream: what is not read is not downloaded."""
    what: tuple[Any, ...] = (entry.hub, config or None)
    options: dict[str, Any] = {"split": entry.split, "revision": entry.revision or None}
    if entry.data_files:
        root = f"hf://datasets/{entry.hub}{'@' * bool(entry.revision)}{entry.revision}"
        what, options = ("json",), {"data_files": [f"{root}/{file}" for file in entry.data_files], "split": "train"}
    return rows.hub_rows(_title(entry), place, *what, **options, streaming=True)


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
    key = json.dumps([entry.model_dump(), entry.installed_versions(), python], sort_keys=True)
    return cache_dir() / "sources" / f"{entry.id}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def _cached(entry: Source) -> tuple[Document, ...]:
    """Documents through a file in the cache."""
    return tuple(Document(*pair) for pair in cached_json(_cache_file(entry), lambda: _read(entry)))


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
