"""What made a number: versions, commit, machine, time; and the one way to name a specification by its hash."""

from __future__ import annotations

import ast
import datetime
import functools
import hashlib
import importlib.metadata
import io
import json
import platform
import subprocess
import time
import tokenize
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Versions that can change a number; part of every record's specification.
NUMERIC_PACKAGES = ("torch", "transformers", "lm-eval", "numpy", "scipy", "tokenizers")


def canonical(spec: Mapping[str, Any]) -> str:
    """The one JSON text of a specification: sorted keys, no spaces."""
    return json.dumps(spec, sort_keys=True, separators=(",", ":"), allow_nan=False)


def key_of(spec: Mapping[str, Any]) -> str:
    """SHA-256 of a canonical specification."""
    return hashlib.sha256(canonical(spec).encode()).hexdigest()


# Modules that only show or steer; a change in them leaves every number as it is.
_PRESENTATION = (
    "sphinxext/", "advise.py", "card.py", "cli.py", "cluster.py", "completion.py", "course.py", "exchange.py",
    "executors.py", "figures.py", "notebooks.py", "plan.py",
    "catalog/claims.yaml", "catalog/palette.yaml",
)

_RECORD_CODE = ("pruning/", "evaluation.py", "harness.py", "information.py", "likelihood.py", "ngrams.py")
_SET_CODE = ("calibration.py", "sources.py", "readers.py", "catalog/sources")
_WRITTEN_CODE = (
    "protocols/", "generation.py", "sampling.py", "decoding.py", "vllm_engine.py", "catalog/protocols", "catalog/stems",
)
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def package_sha256() -> str:
    """SHA-256 over the package's own sources that can change a published value (presentation code left out)."""
    return _sources_sha256(("",), _PRESENTATION)


def record_code() -> str:
    """SHA-256 over the sources that turn a specification into a record's numbers.

    Few, because the rest of what a cell depends on (calibration windows, tasks and their items, model, versions)
    is in its specification by content.
    """
    return _sources_sha256(_RECORD_CODE, ())


def written_code() -> str:
    """SHA-256 over the sources that decide which text a model writes for calibration."""
    return _sources_sha256(_WRITTEN_CODE, ())


def set_code() -> str:
    """SHA-256 over the sources that decide which windows a calibration set holds."""
    return _sources_sha256((*_SET_CODE, *_WRITTEN_CODE), ())


@functools.cache
def _sources_sha256(included: tuple[str, ...], excluded: tuple[str, ...]) -> str:
    root = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted([*root.rglob("*.py"), *root.rglob("*.yaml")]):
        name = path.relative_to(root).as_posix()
        if name.startswith(included) and not name.startswith(excluded):
            digest.update(f"{name}\0{_instructions(path)}\0".encode())
    return digest.hexdigest()


def _instructions(path: Path) -> str:
    """A source file without what says nothing to the machine: docstrings, comments and empty lines of Python."""
    text = path.read_text(encoding="utf8")
    if path.suffix != ".py":
        return text
    lines = text.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column].rstrip()
    for node in ast.walk(ast.parse(text)):
        first = node.body[0] if isinstance(node, _DOCUMENTED) and node.body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            lines[first.lineno - 1 : first.end_lineno] = [""] * (first.end_lineno - first.lineno + 1)  # type: ignore[operator]
    return "\n".join(filter(str.strip, lines))


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
        "code": record_code(),
        "sets": set_code(),
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
