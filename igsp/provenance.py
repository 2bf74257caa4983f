"""What made a number: commit, versions, machine, time; and the one way to name a specification by its hash."""

from __future__ import annotations

import datetime
import functools
import hashlib
import importlib.metadata
import json
import platform
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Packages that can change a number; their versions stand in the provenance of every record.
NUMERIC_PACKAGES = ("torch", "transformers", "lm-eval", "numpy", "scipy", "tokenizers")


def canonical(spec: Mapping[str, Any]) -> str:
    """The one JSON text of a specification: sorted keys, no spaces."""
    return json.dumps(spec, sort_keys=True, separators=(",", ":"), allow_nan=False)


def key_of(spec: Mapping[str, Any]) -> str:
    """SHA-256 of a canonical specification."""
    return hashlib.sha256(canonical(spec).encode()).hexdigest()


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
    """What made a number: commit, dirty flag, versions, Python, processor kind, thread count."""
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
        "versions": versions(),
        "python": platform.python_version(),
        "processor": device,
        "threads": torch.get_num_threads(),
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


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


def duration(seconds: float) -> str:
    """A time in the unit that suits it.

    >>> duration(40), duration(600), duration(9000)
    ('40 s', '10 min', '2.5 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def gigabytes(size: float) -> str:
    """A number of bytes in GB.

    >>> gigabytes(2_500_000_000)
    '2.5 GB'
    """
    return f"{size / 1e9:.{1 if size >= 1e9 else 2}f} GB"
