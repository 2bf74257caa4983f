"""What an executed notebook says of its run (code, lock file, model, data, machine), and the key that dates it."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from igsp.assets import sha256_file, wheels
from igsp.models import folder_fingerprint, resolve_device, resolve_dtype, resolve_folder
from igsp.provenance import key_of, provenance

if TYPE_CHECKING:
    from igsp.study.settings import Settings
    from igsp_book.notebooks import Notebook


def lock_sha256(root: Path) -> str | None:
    """Hash of the lock file of a checkout."""
    path = root / "requirements.lock"
    return sha256_file(path) if path.exists() else None


def package_sha256() -> str:
    """SHA-256 over the files of the installed package, but for those that only steer it."""
    root = Path(str(resources.files("igsp")))
    steering = ("cli/", "study/engine.py", "study/workers.py", "study/progress.py")
    files = {path.relative_to(root).as_posix(): path for path in sorted(root.rglob("*.*"))}
    return key_of({name: sha256_file(path) for name, path in files.items()
                   if name.endswith((".py", ".yaml")) and not name.startswith(steering)})


def data_sha256() -> str:
    """Hash of what the pip-shipped text depends on: the wheels' hashes, and the Python whose library is read."""
    pins = {name: wheel.sha256 for name, wheel in wheels().items()}
    return key_of({"wheels": pins, "python": platform.python_version()})


def records_sha256(profile: str, root: Path) -> str:
    """Hash of a checkout's records of a profile, with those that verify them, by name and content."""
    folder = root / "book" / "results" / profile
    return key_of({str(path.relative_to(folder)): sha256_file(path) for path in sorted(folder.rglob("*.json"))})


def common(profile: str, resolved: Settings, root: Path, model: bool) -> dict[str, Any]:
    """What all notebooks of a run share; the model only if one of them computes with it."""
    device = resolve_device(resolved.device)
    made_by = provenance()
    return {
        "profile": profile,
        "commit": made_by["commit"],
        "dirty": made_by["dirty"],
        "lock": lock_sha256(root),
        "package": package_sha256(),
        "data": data_sha256(),
        "device": device.type,
        "processor": made_by["processor"],
        "dtype": str(resolve_dtype(resolved.dtype, device)).removeprefix("torch."),
        "seed": resolved.seed,
        "model": {"name": resolved.model, "fingerprint": folder_fingerprint(resolve_folder(resolved.model))}
        if model
        else None,
        "versions": {**made_by["versions"], "python": made_by["python"]},
    }


def of(
    notebook: Notebook, values: Mapping[str, Any], given: set[str], base: Mapping[str, Any], root: Path
) -> dict[str, Any]:
    """What one notebook adds to `base`: its key, its source and its parameters with their values."""
    base = {**base, "model": None} if notebook.reads else base  # what reads records computes with no model
    source = notebook.source.read_text(encoding="utf8")
    decided = {name: base[name] for name in ("package", "lock", "model", "data", "device", "dtype")}
    records = {profile: records_sha256(profile, root) for profile in notebook.reads}
    key = key_of({"source": source, "parameters": dict(values), "records": records, **decided})
    panel = [
        {"name": p.name, "type": p.type, "default": p.default, "value": values[p.name], "help": p.help,
         "given": p.name in given and values[p.name] != p.default}
        for p in notebook.parameters()
    ]
    return {**base, "key": key, "notebook": notebook.name, "source": f"notebooks/{notebook.source.name}",
            "parameters": panel}
