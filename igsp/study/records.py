"""Result records: one JSON file per cell, named by the hash of its specification, written whole or not at all.

A store lies in a local folder or at any address that fsspec knows (`s3://bucket/study`, `memory://study`).
"""

from __future__ import annotations

import fcntl
import functools
import json
import logging
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec

from igsp.assets import whole_or_nothing
from igsp.errors import UsageError
from igsp.provenance import canonical, key_of, now

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

@dataclass(frozen=True)
class Record:
    """One finished cell: its specification, what was measured, and what made it."""

    spec: dict[str, Any]
    metrics: dict[str, Any]
    provenance: dict[str, Any]

    @functools.cached_property
    def key(self) -> str:
        return key_of(self.spec)

    @property
    def seconds(self) -> float:
        """What it took to compute, by a clock that never jumps."""
        known = self.metrics.get("seconds", {})
        return float(self.provenance.get("seconds", sum(known.values())))


class Store:
    """Records, `<root>/cells/<key>.json`, published values, `<root>/values/<notebook>.json`, and why cells failed.

    Args:
        root: a local folder, or an address that fsspec knows. Processes divide cells by locks in local folders only:
            elsewhere two of them may compute one cell twice, and the last one's record stays.

    Raises:
        UsageError: a file, or an address of which no installed package knows how to read it.
    """

    def __init__(self, root: str | Path) -> None:
        try:
            self.fs, name = fsspec.core.url_to_fs(str(root))
        except (ImportError, ValueError) as error:
            raise UsageError(f"the store '{root}' cannot be reached: {error}") from None
        self.local = "file" in self.fs.protocol
        self.root = Path(name) if "://" in str(root) else Path(root)
        if self.local and self.root.is_file():
            raise UsageError(f"'{root}' is a file: a store is a folder, or an address such as s3://bucket/study")

    def path(self, key: str) -> Path:
        return self.root / "cells" / f"{key}.json"

    def get(self, spec: Mapping[str, Any]) -> Record | None:
        """The record of a specification, or None. A damaged file is set aside as `*.damaged` and counts as none."""
        return self._read(self.path(key_of(spec)))

    def _read(self, path: Path) -> Record | None:
        try:
            data = json.loads(self.fs.cat_file(str(path)))
            record = Record(data["spec"], data["metrics"], data["provenance"])
            if record.key == path.stem:
                return record
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            pass
        log.warning("%s is damaged or not the record of its name: set aside as *.damaged", path)
        with suppress(FileNotFoundError):  # another process was quicker
            self.fs.mv(str(path), str(path.with_suffix(".damaged")))
        return None

    def put(self, record: Record) -> Path:
        """Writes a record under its key; an earlier failure is forgotten."""
        path = self.path(record.key)
        body = {"key": record.key, "spec": record.spec, "metrics": record.metrics, "provenance": record.provenance}
        self._write(path, body)
        with suppress(FileNotFoundError):
            self.fs.rm_file(str(self._failure(record.key)))
        return path

    def _write(self, path: Path, body: Any) -> None:
        text = json.dumps(body, indent=1, sort_keys=True, allow_nan=False) + "\n"
        if self.local:
            with whole_or_nothing(path) as temporary:
                temporary.write_text(text, encoding="utf8")
            return
        draft = str(path.with_name(f".{path.name}.{uuid.uuid4().hex}"))
        self.fs.makedirs(str(path.parent), exist_ok=True)
        self.fs.pipe_file(draft, text.encode())
        self.fs.mv(draft, str(path))

    def _files(self, folder: str) -> list[Path]:
        self.fs.invalidate_cache()
        try:
            names = self.fs.ls(str(self.root / folder), detail=False)
        except FileNotFoundError:
            return []
        return sorted(path for path in map(Path, names) if path.suffix == ".json" and path.name[0] != ".")

    def records(self) -> Iterator[Record]:
        """Every readable record, by key."""
        for path in self._files("cells"):
            record = self._read(path)
            if record is not None:
                yield record

    def frame(self) -> pd.DataFrame:
        """One row per record: what it was made from, seconds, and the score of every task."""
        import pandas as pd

        rows = []
        for record in self.records():
            plain = {k: v for k, v in record.spec.items() if not isinstance(v, (dict, list))}
            labels = {k: v for k, v in record.metrics.get("labels", {}).items() if not isinstance(v, (dict, list))}
            scores = {task["task"]: task["value"] for task in record.metrics.get("scores", {}).get("tasks", ())}
            made = {"key": record.key, "seconds": record.seconds}
            rows.append({**made, **plain, **labels, **scores})
        return pd.DataFrame(rows)

    def _failure(self, key: str) -> Path:
        return self.root / "failed" / f"{key}.json"

    def fail(self, key: str, task: str, reason: str) -> None:
        """Notes why a cell could not be computed."""
        self._write(self._failure(key), {"key": key, "task": task, "reason": reason, "when": now()})

    def failures(self) -> dict[str, str]:
        """Reasons of the failed cells by key."""
        return {path.stem: json.loads(self.fs.cat_file(str(path)))["reason"] for path in self._files("failed")}

    def running(self, key: str) -> bool:
        """Whether some process holds the right to compute a cell; always False where there are no locks."""
        if not (self.local and self._lock(key).exists()):
            return False
        with self.claim(key) as free:
            return not free

    def _lock(self, key: str) -> Path:
        return self.root / "locks" / f"{key}.lock"

    @contextmanager
    def claim(self, key: str, wait: bool = False) -> Iterator[bool]:
        """Holds the right to compute a cell; yields False at once if another process holds it and `wait` is off.

        The lock is the operating system's: it ends with the process that holds it, however that ends.
        """
        if not self.local:
            yield True
            return
        path = self._lock(key)
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
        body = {key: {**empty, **entry, "notebook": notebook} for key, entry in values.items()}
        self._write(self.root / "values" / f"{notebook}.json", body)

    def values(self) -> dict[str, dict[str, Any]]:
        """All published values by key."""
        merged: dict[str, dict[str, Any]] = {}
        for path in self._files("values"):
            merged |= json.loads(self.fs.cat_file(str(path)))
        return merged


# Parts of a specification that another machine or another library changes: two stores are compared across them.
_MACHINE = ("versions", "device", "dtype", "calibration", "scope")
_UNCOMPARED = ("seconds", "labels", "peak_memory", "batch_size", "gram_route", "mask")


def differences(a: Store, b: Store, tolerance: float = 0.05, relative: float = 1e-6) -> list[dict[str, Any]]:
    """What differs between two stores: one row per number, `a` and `b`; None where one store lacks it.

    Records of the same strategy, draw, method, sparsity, model and suite are compared, whatever machine made them.

    Args:
        tolerance: largest absolute difference of published values that counts as none.
        relative: the same for the numbers in records, as a share of the larger one. 0 asks for equal bits.
    """
    rows = []
    left, right = ({k: v["value"] for k, v in store.values().items()} for store in (a, b))
    for key in sorted(left.keys() | right.keys()):
        x, y = left.get(key), right.get(key)
        if x is None or y is None or abs(x - y) > tolerance:
            rows.append({"key": key, "a": x, "b": y})
    ours, theirs = ({_identity(r): r for r in sorted(s.records(), key=_finished)} for s in (a, b))
    for name in sorted(ours.keys() | theirs.keys()):
        label = _name(ours.get(name) or theirs[name])
        if name not in ours or name not in theirs:
            rows.append({"key": label, "a": name in ours or None, "b": name in theirs or None})
            continue
        numbers = [dict(_numbers(side[name].metrics)) for side in (ours, theirs)]
        for key in sorted(numbers[0].keys() | numbers[1].keys()):
            x, y = numbers[0].get(key), numbers[1].get(key)
            if x is None or y is None or abs(x - y) > relative * max(abs(x), abs(y)):
                rows.append({"key": f"{label}: {key}", "a": x, "b": y})
    return rows


def _finished(record: Record) -> str:
    return str(record.provenance.get("finished", ""))


def _identity(record: Record) -> str:
    labels = {k: v for k, v in record.metrics.get("labels", {}).items() if k in ("strategy", "draw", "seed")}
    return canonical({**{k: v for k, v in record.spec.items() if k not in _MACHINE}, "labels": labels})


def _name(record: Record) -> str:
    labels = record.metrics.get("labels", {})
    parts = (record.spec.get("stage"), labels.get("strategy"), labels.get("draw"), record.spec.get("method"))
    return " ".join(str(part) for part in (*parts, record.spec.get("sparsity")) if part is not None)


def _numbers(value: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """Every number of nested metrics with its path; a task of a suite goes by its name."""
    if isinstance(value, Mapping):
        for key in value:
            if key not in _UNCOMPARED:
                yield from _numbers(value[key], f"{path}/{key}".lstrip("/"))
    elif isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            part = inner["task"] if isinstance(inner, Mapping) and "task" in inner else index
            yield from _numbers(inner, f"{path}/{part}")
    elif isinstance(value, (int, float)):
        yield path, float(value)
