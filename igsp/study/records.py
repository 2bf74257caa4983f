"""Records: one JSON file per result under a name that people can read, written whole or not at all.

A store lies in a local folder or at any address that fsspec knows (`s3://bucket/study`, `memory://study`).
"""

from __future__ import annotations

import json
import logging
import math
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
from filelock import FileLock, Timeout

from igsp.assets import whole_or_nothing
from igsp.errors import AssetError, UsageError
from igsp.provenance import key_of, now

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

# Folder of what is recorded of a calibration set or one of its cells, by stage; names of the other stages' records.
FOLDERS = {"cell": "cells", "calibration": "sets", "metrics": "metrics"}
ROOTED = ("dense", "trivial", "writing-")
SINGLE = {"dense": "dense", "trivial": "trivial", "pool": "pools/{draw}", "writing": "writing-{draw}"}
AGAIN, VERIFIED = "verified", "verified"  # what `recorded.verify` computed again (a folder), and its result (a file)
_DIGITS, _ITEM_DIGITS, _WIDTH = 8, 7, 150
_SECONDS = ("seconds", "evaluate", "prune")


def name_of(spec: Mapping[str, Any]) -> str:
    """Name of a specification's record: `cells/c4-0-sparsegpt-0.6`, `sets/c4-0`, `dense`; of any other its hash."""
    stage = spec.get("stage")
    if stage in SINGLE:
        return SINGLE[stage].format_map({"draw": 0, **spec})
    if stage not in FOLDERS or "strategy" not in spec:
        return f"other/{key_of(spec)}"
    parts = [spec["strategy"], spec.get("draw", 0)]
    if stage == "cell" and "method" in spec:
        amount = str(spec.get("pattern") or f"{spec['sparsity']:g}").replace(":", "of")
        parts += [spec["method"], amount]
    return f"{FOLDERS[stage]}/{'-'.join(map(str, parts))}"


@dataclass(frozen=True)
class Record:
    """One result: its specification (what decides its numbers), what was measured, and what made it."""

    spec: dict[str, Any]
    metrics: dict[str, Any]
    provenance: dict[str, Any]

    @property
    def name(self) -> str:
        """File of the record in its store, without ending."""
        return name_of(self.spec)

    @property
    def seconds(self) -> float:
        """What it took to compute, by a clock that never jumps."""
        return float(self.provenance.get("seconds", sum(self.metrics.get("seconds", {}).values())))


class OtherSettings(UsageError):
    """A record that stands under the name asked for, but was made with other settings."""


class Store:
    """Records `<root>/<name>.json`, published values `<root>/values/<notebook>.json`, and why tasks failed.

    Args:
        root: a local folder, or an address that fsspec knows. Processes divide cells by locks in local folders only:
            elsewhere two of them may compute one cell twice, and the last one's record stays.

    Raises:
        UsageError: a file, or an address of which no installed package knows how to read it.
    """

    def __init__(self, root: str | Path) -> None:
        try:
            self.fs, name = fsspec.core.url_to_fs(str(root))
        except Exception as error:  # each file system of fsspec has errors of its own
            raise UsageError(f"the store '{root}' cannot be reached: {error}") from None
        self.local = "file" in self.fs.protocol
        self.root = Path(name) if "://" in str(root) else Path(root)
        if self.local and self.root.is_file():
            raise UsageError(f"'{root}' is a file: a store is a folder, or an address such as s3://bucket/study")

    def path(self, name: str) -> Path:
        return self.root / f"{name}.json"

    def get(self, spec: Mapping[str, Any]) -> Record | None:
        """The record of a specification; None if there is none, or if it has to be made again.

        A value `...` fits anything. A record of a lower version of a stage (`versions`) counts as none: its numbers
        would be others today. A damaged file is set aside as `*.damaged` and counts as none.

        Raises:
            OtherSettings: the record of that name was made with other settings; says which.
        """
        record = self._read(self.path(name_of(spec)))
        if record is None:
            return None
        asked, there = _flat(spec), _flat(record.spec)
        other = {k for k in asked.keys() | there.keys() if asked.get(k) is not ... and asked.get(k) != there.get(k)}
        raised = {k for k in other if k.startswith("versions.") and (there.get(k) or 0) < (asked.get(k) or 0)}
        if raised and other <= raised | {"calibration"}:
            log.info("%s is of an older version (%s): computed again", record.name, ", ".join(sorted(raised)))
            return None
        if other:
            told = "; ".join(f"{k}: {_brief(there.get(k))} there, {_brief(asked.get(k))} asked" for k in sorted(other))
            raise OtherSettings(
                f"{record.name}.json in '{self.root}' was made with other settings: {told}. Way out: ask for what is "
                "there, give a store of its own (--store), or remove the file"
            )
        return record

    def _read(self, path: Path) -> Record | None:
        try:
            data = json.loads(self.fs.cat_file(str(path)), parse_constant=_refuse)
            record = Record(data["spec"], data["metrics"], data["provenance"])
            if all(isinstance(part, dict) for part in data.values()) and self.path(record.name) == path:
                return record
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            pass
        log.warning("%s is damaged or not the record of its name: set aside as *.damaged", path)
        with suppress(FileNotFoundError):  # another process was quicker
            self.fs.mv(str(path), str(path.with_name(f"{path.stem}.damaged")))
        return None

    def put(self, record: Record) -> Path:
        """Writes a record under its name; an earlier failure is forgotten."""
        path = self.path(record.name)
        body = {"spec": record.spec, "provenance": record.provenance, "metrics": _rounded(record.metrics)}
        self._write(path, _layout(body) + "\n")
        self.remove(self._failure(record.name))
        return path

    def _write(self, path: Path, text: str) -> None:
        if self.local:
            with whole_or_nothing(path) as temporary:
                temporary.write_text(text, encoding="utf8")
            return
        draft = str(path.with_name(f".{path.name}.{uuid.uuid4().hex}"))
        try:
            self.fs.makedirs(str(path.parent), exist_ok=True)
            self.fs.pipe_file(draft, text.encode())
            self.fs.mv(draft, str(path))
        except NotImplementedError:
            raise AssetError(f"the store '{self.root}' can be read only: give another one with --store") from None

    def write(self, name: str, body: Any) -> None:
        """Writes a small JSON file that is no record."""
        self._write(self.path(name), json.dumps(body, indent=1, sort_keys=True, allow_nan=False) + "\n")

    def read(self, name: str) -> Any:
        """What `write` wrote, None if it is not there or damaged."""
        with suppress(FileNotFoundError, ValueError):
            return json.loads(self.fs.cat_file(str(self.path(name))), parse_constant=_refuse)
        return None

    def remove(self, name: str) -> None:
        """Removes a record or file, if it is there."""
        with suppress(FileNotFoundError):
            self.fs.rm_file(str(self.path(name)))

    def _files(self, folder: str) -> list[Path]:
        self.fs.invalidate_cache()
        try:
            names = self.fs.ls(str(self.root / folder), detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(path for path in map(Path, names) if path.suffix == ".json" and path.name[0] != ".")

    def records(self) -> Iterator[Record]:
        """Every readable record, by name."""
        for folder in ("", *FOLDERS.values(), "pools", "other"):
            for path in self._files(folder):
                if (folder or path.stem.startswith(ROOTED)) and (record := self._read(path)) is not None:
                    yield record

    def frame(self) -> pd.DataFrame:
        """One row per record: what it was made from, seconds, and the score of every task."""
        import pandas as pd

        rows = []
        for record in self.records():
            plain = {k: v for k, v in record.spec.items() if not isinstance(v, (dict, list))}
            scores = {task["task"]: task["value"] for task in record.metrics.get("scores", {}).get("tasks", ())}
            rows.append({"name": record.name, "seconds": record.seconds, **plain, **scores})
        return pd.DataFrame(rows)

    def _failure(self, name: str) -> str:
        return f"failed/{name.replace('/', '+')}"

    def fail(self, name: str, task: object, reason: str) -> None:
        """Notes why a task could not be computed."""
        self.write(self._failure(name), {"name": name, "task": str(task), "reason": reason, "when": now()})

    def failures(self) -> dict[str, str]:
        """Reasons of the failed tasks by the name of their record; a damaged note is passed over."""
        found = {}
        for path in self._files("failed"):
            with suppress(KeyError, TypeError):
                note = self.read(f"failed/{path.stem}")
                found[str(note["name"])] = str(note["reason"])
        return found

    def running(self, name: str) -> bool:
        """Whether some process holds the right to compute a record; always False where there are no locks."""
        if not (self.local and self._lock(name).exists()):
            return False
        with self.claim(name) as free:
            return not free

    def _lock(self, name: str) -> Path:
        return self.root / "locks" / f"{name.replace('/', '+')}.lock"

    @contextmanager
    def claim(self, name: str, wait: bool = False) -> Iterator[bool]:
        """Holds the right to compute a record; yields False at once if another process holds it and `wait` is off.

        The lock is the operating system's: it ends with the process that holds it, however that ends.
        """
        if not self.local:
            yield True
            return
        path = self._lock(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(blocking=wait)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def publish(self, notebook: str, values: Mapping[str, Mapping[str, Any]]) -> None:
        """Writes the headline values of one notebook; the book's prose reads them by key.

        Each value: `value`, and optionally `low`, `high`, `unit`, `digits`, `n`, `label`, `p`, `p_holm`.
        """
        empty = {"low": None, "high": None, "unit": "", "digits": 1, "n": None, "label": None}
        body = {key: {**empty, **entry, "notebook": notebook} for key, entry in values.items()}
        self.write(f"values/{notebook}", body)

    def values(self) -> dict[str, dict[str, Any]]:
        """All published values by key.

        Raises:
            AssetError: a file that is no mapping of entries with a finite `value`.
        """
        merged: dict[str, dict[str, Any]] = {}
        for path in self._files("values"):
            entries = self.read(f"values/{path.stem}")
            try:
                [float(entry["value"]) for entry in entries.values()]
            except (ValueError, KeyError, TypeError, AttributeError):
                raise AssetError(f"'{path}' is no file of published values: run its notebook again") from None
            merged |= entries
        return merged


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")


def _flat(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A specification with the keys of its mappings joined by dots; as JSON has it, without empty entries."""
    found: dict[str, Any] = {}
    for key, value in spec.items():
        if isinstance(value, Mapping):
            found |= {f"{key}.{inner}": kept for inner, kept in _flat(value).items()}
        elif value is not None:
            found[key] = list(value) if isinstance(value, tuple) else value
    return found


def _brief(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."


def _rounded(value: Any, digits: int = _DIGITS) -> Any:
    """Numbers to the digits that they are good for: items 7, seconds 4, all others 8 significant ones."""
    if isinstance(value, Mapping):
        special = {"items": _ITEM_DIGITS, **dict.fromkeys(_SECONDS, 4)}
        return {key: _rounded(inner, special.get(key, digits)) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(inner, digits) for inner in value]
    if not isinstance(value, float) or not math.isfinite(value):
        return value
    return int(value) if value.is_integer() and abs(value) < 1e15 else float(f"{value:.{digits}g}")


def _layout(value: Any, depth: int = 0) -> str:
    """JSON with a line for what fits on one, and for every task with its items; NaN is refused."""
    flat = json.dumps(value, ensure_ascii=False, allow_nan=False)
    if len(flat) <= _WIDTH or depth > 3:
        return flat
    pad, end = "\n" + " " * (depth + 1), "\n" + " " * depth
    if isinstance(value, dict):
        lines = [f"{json.dumps(key)}: {_layout(one, depth + 1)}" for key, one in value.items()]
        return f"{{{pad}{f',{pad}'.join(lines)}{end}}}"
    if isinstance(value, list) and any(isinstance(one, dict) for one in value):
        return f"[{pad}{f',{pad}'.join(_layout(one, depth + 1) for one in value)}{end}]"
    return flat


# What may differ between two machines, and what no number of a result is.
_MACHINE = ("device", "dtype", "calibration")
_MAKERS = ("versions", "python", "processor")
_UNCOMPARED = ("seconds", "peak_memory", "batch_size", "gram_route", "mask", "calibration", "settings")


def differences(a: Store, b: Store, tolerance: float = 0.05, relative: float = 1e-6) -> list[dict[str, Any]]:
    """What differs between two stores: one row per fact, `a` and `b`; None where one store lacks it.

    Records of one name are compared, whatever machine made them: numbers where both were made with the same settings,
    else the settings. If anything differs, rows about the makers (versions, Python, processor) end the list.

    Args:
        tolerance: largest absolute difference of published values that counts as none.
        relative: the same for the numbers in records, as a share of the larger one. 0 asks for equal bits.

    Raises:
        UsageError: a tolerance that is negative or no number.
    """
    for limit in (tolerance, relative):
        if not 0 <= limit < math.inf:
            raise UsageError(f"a tolerance must be a number of at least 0, got {limit}")
    rows = []
    left, right = ({k: float(v["value"]) for k, v in store.values().items()} for store in (a, b))
    rows += [{"key": key, "a": x, "b": y} for key, x, y in _pairs(left, right) if not _near(x, y, tolerance, 0)]
    ours, theirs = ({record.name: record for record in store.records()} for store in (a, b))
    makers: dict[tuple[str, str, str], None] = {}
    for name in sorted(ours.keys() | theirs.keys()):
        if name not in ours or name not in theirs:
            rows.append({"key": name, "a": name in ours or None, "b": name in theirs or None})
            continue
        specs = [_flat({k: v for k, v in side[name].spec.items() if k not in _MACHINE}) for side in (ours, theirs)]
        found = [{"key": f"{name}: {k}", "a": x, "b": y} for k, x, y in _pairs(*specs) if x != y]
        if not found:
            numbers = [dict(_numbers(side[name].metrics)) for side in (ours, theirs)]
            other = [(k, x, y) for k, x, y in _pairs(*numbers) if not _near(x, y, 0, relative)]
            found = [{"key": f"{name}: {k}", "a": x, "b": y} for k, x, y in other]
        if found:
            about = [_flat({k: side[name].provenance.get(k) for k in _MAKERS}) for side in (ours, theirs)]
            makers |= dict.fromkeys((f"made by: {k}", x, y) for k, x, y in _pairs(*about) if x != y)
        rows += found
    return rows + [{"key": key, "a": x, "b": y} for key, x, y in makers]


def _pairs(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    return [(key, a.get(key), b.get(key)) for key in sorted(a.keys() | b.keys())]


def _near(x: float | None, y: float | None, tolerance: float, relative: float) -> bool:
    return x is not None and y is not None and abs(x - y) <= tolerance + relative * max(abs(x), abs(y))


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
