"""Result records: one JSON file per cell, named by the hash of its specification, written whole or not at all."""

from __future__ import annotations

import datetime
import fcntl
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from igsp.assets import whole_or_nothing

# Versions that can change a number; part of every record's specification.
NUMERIC_PACKAGES = ("torch", "transformers", "lm-eval", "numpy", "scipy", "tokenizers")
# Modules that only show or steer; a change in them leaves every number as it is.
_PRESENTATION = ("sphinxext/", "figures.py", "cli.py", "notebooks.py", "catalog/claims.yaml", "catalog/palette.yaml")


def canonical(spec: Mapping[str, Any]) -> str:
    """The one JSON text of a specification: sorted keys, no spaces."""
    return json.dumps(spec, sort_keys=True, separators=(",", ":"), allow_nan=False)


def key_of(spec: Mapping[str, Any]) -> str:
    """SHA-256 of a canonical specification."""
    return hashlib.sha256(canonical(spec).encode()).hexdigest()


@functools.cache
def package_sha256() -> str:
    """SHA-256 over the package's own sources that can change a number (presentation code left out)."""
    root = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted([*root.rglob("*.py"), *root.rglob("*.yaml")]):
        name = path.relative_to(root).as_posix()
        if not name.startswith(_PRESENTATION):
            digest.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Installed versions of the packages that can change a number, without local build tags."""
    return {name: importlib.metadata.version(name).split("+")[0] for name in NUMERIC_PACKAGES}


def repository_root() -> Path:
    """The checkout this package runs from (folder of `_toc.yml`), else the current folder."""
    for folder in (Path.cwd(), *Path.cwd().parents, Path(__file__).parents[1]):
        if (folder / "_toc.yml").exists():
            return folder
    return Path.cwd()


@functools.cache
def provenance() -> dict[str, Any]:
    """What made a number: commit, dirty flag, package hash, versions, Python, processor kind, thread count."""
    import torch

    def git(*arguments: str) -> str:
        try:
            run = subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=Path(__file__).parent)
        except OSError:
            return ""
        return run.stdout.strip() if run.returncode == 0 else ""

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()
    return {
        "commit": git("rev-parse", "--short=12", "HEAD") or None,
        "dirty": bool(git("status", "--porcelain")),
        "package": package_sha256(),
        "versions": versions(),
        "python": platform.python_version(),
        "processor": device,
        "threads": torch.get_num_threads(),
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


@dataclass(frozen=True)
class Record:
    """One finished cell: its specification, what was measured, and what made it."""

    spec: dict[str, Any]
    metrics: dict[str, Any]
    provenance: dict[str, Any]

    @property
    def key(self) -> str:
        return key_of(self.spec)

    @property
    def stale(self) -> bool:
        """Made by other code than the one that is installed now."""
        return bool(self.provenance.get("package") != package_sha256())


class Store:
    """A folder of records, `<root>/cells/<key>.json`, and of published values, `<root>/values/<notebook>.json`."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def path(self, key: str) -> Path:
        return self.root / "cells" / f"{key}.json"

    def get(self, spec: Mapping[str, Any]) -> Record | None:
        """The record of a specification, or None. A damaged file is set aside as `*.damaged` and counts as none."""
        return self._read(self.path(key_of(spec)))

    def _read(self, path: Path) -> Record | None:
        try:
            data = json.loads(path.read_text())
            record = Record(data["spec"], data["metrics"], data["provenance"])
            if record.key == path.stem:
                return record
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            pass
        path.rename(path.with_suffix(".damaged"))
        return None

    def put(self, record: Record) -> Path:
        """Writes a record under its key."""
        path = self.path(record.key)
        body = {"key": record.key, "spec": record.spec, "metrics": record.metrics, "provenance": record.provenance}
        with whole_or_nothing(path) as temporary:
            temporary.write_text(json.dumps(body, indent=1, sort_keys=True, allow_nan=False) + "\n")
        return path

    def records(self) -> Iterator[Record]:
        """Every readable record, by key."""
        for path in sorted((self.root / "cells").glob("*.json")):
            record = self._read(path)
            if record is not None:
                yield record

    @contextmanager
    def claim(self, key: str, wait: bool = False) -> Iterator[bool]:
        """Holds the right to compute a cell; yields False at once if another process holds it and `wait` is off.

        The lock is the operating system's: it ends with the process that holds it, however that ends.
        """
        path = self.root / "locks" / f"{key}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            yield True
        finally:
            os.close(handle)

    def publish(self, notebook: str, values: Mapping[str, Mapping[str, Any]]) -> None:
        """Writes the headline values of one notebook; the book's prose reads them by key.

        Each value: `value`, and optionally `low`, `high`, `unit`, `digits`, `n`, `label`, `p`, `p_holm`.
        """
        empty = {"low": None, "high": None, "unit": "", "digits": 1, "n": None, "label": None}
        body = {
            key: {**empty, **entry, "notebook": notebook, "package": package_sha256()} for key, entry in values.items()
        }
        path = self.root / "values" / f"{notebook}.json"
        with whole_or_nothing(path) as temporary:
            temporary.write_text(json.dumps(body, indent=1, sort_keys=True, allow_nan=False) + "\n")

    def values(self) -> dict[str, dict[str, Any]]:
        """All published values by key."""
        merged: dict[str, dict[str, Any]] = {}
        for path in sorted((self.root / "values").glob("*.json")):
            merged |= json.loads(path.read_text())
        return merged


def now() -> str:
    """UTC time, ISO 8601, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


class Stopwatch:
    """Seconds by name, on a clock that never jumps: `with watch("prune"): ...`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - start, 3)
