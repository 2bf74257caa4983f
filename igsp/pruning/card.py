"""Saving a pruned model: its checkpoint, and beside it masks, a manifest for programs and a model card for people."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import tempfile
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from igsp import __version__
from igsp.assets import output_path
from igsp.models import LanguageModel, tokenizer_fingerprint
from igsp.provenance import now, versions
from igsp.pruning.report import MASKS, PruneReport
from igsp.text.catalogue import catalogue
from igsp.text.windows import CalibrationSet

# What identifies the text of a source: the fields of its catalogue entry that say which text it is.
REVISION = ("origin", "packages", "hub", "config", "split", "revision", "files", "licence", "sha256", "versions")


def manifest(lm: LanguageModel, report: PruneReport, calibration: CalibrationSet | None) -> dict[str, Any]:
    """Model, tokenizer, versions, calibration data down to the hash of each window, and the report of every layer."""
    made: dict[str, Any] = {
        "format": 1, "made": now(),
        "model": {"name": lm.name, "fingerprint": lm.fingerprint, "tokenizer": tokenizer_fingerprint(lm.tokenizer)},
        "versions": {"igsp": __version__, "python": platform.python_version(), **versions()},
        "report": report.to_dict(),
    }
    if calibration is not None:
        rows = zip(calibration.windows, calibration.input_ids, strict=True)
        made["calibration"] = {
            "n": calibration.n, "seqlen": calibration.seqlen, "sha256": calibration.sha256,
            "tokenizer": calibration.tokenizer, "spec": calibration.spec, "sources": source_revisions(calibration),
            "windows": [{**asdict(w), "sha256": hashlib.sha256(ids.numpy().tobytes()).hexdigest()} for w, ids in rows],
        }
    return made


def source_revisions(calibration: CalibrationSet) -> dict[str, dict[str, Any]]:
    """Per source of a calibration set: its windows, and what the catalogue says about its text (if it is in it)."""
    known = catalogue()
    counts = Counter(window.source for window in calibration.windows)
    return {
        name: {"windows": count, **({k: v for k, v in dict(known[name]).items() if v and k in REVISION}
                                    if name in known else {})}
        for name, count in counts.items()
    }


def model_card(lm: LanguageModel, report: PruneReport, calibration: CalibrationSet | None) -> str:
    """Model card in the hub's format: what was pruned, on which text, how far the layers are off, how to load it."""
    pattern = f"{report.pattern} pattern" if report.pattern else "unstructured"
    worst = sorted(report.modules, key=lambda m: -m.error)[:5]
    base = f"base_model: {lm.name}\n" if lm.name.count("/") == 1 and not lm.name.startswith((".", "/", "~")) else ""
    parts = [
        f"---\nlibrary_name: transformers\n{base}tags: [pruned, {report.method}]\n---",
        f"# {lm.name}, pruned\n\n{report.reached:.1%} of the weights in the Linear layers of the decoder blocks are "
        f"zero ({report.method}, {pattern}, order `{report.order}`; {report.pruned:,} of {report.weights:,} weights). "
        "Embeddings, norms, biases and the output head are as they were. The licence of the base model holds.",
        "## Load it\n\nThis is a plain checkpoint: `AutoModelForCausalLM.from_pretrained(folder)`. The zeros are "
        "stored, so file and memory are as large as before; unstructured zeros save time only in a runtime that "
        "skips them. Fine-tuning fills them again unless the masks (`masks/masks.safetensors`, read by "
        "`igsp.pruning.report.load_masks`) are kept.",
    ]
    if calibration is not None:
        rows = [f"| {name} | {about['windows']} | {about.get('licence', 'not known')} |"
                for name, about in source_revisions(calibration).items()]
        parts.append(
            f"## Calibration data\n\n{calibration.n} windows of {calibration.seqlen} tokens, SHA-256 "
            f"`{calibration.sha256}`. What a model keeps depends on this text.\n\n"
            "| source | windows | licence of the text |\n|---|---|---|\n" + "\n".join(rows)
        )
    parts.append(
        f"## Error\n\nMean relative output error of a layer: {report.error:.3f} ({report.error_measure}). The largest:"
        "\n\n| layer | error |\n|---|---|\n" + "\n".join(f"| `{m.name}` | {m.error:.3f} |" for m in worst)
        + "\n\nThese are errors of layers, not scores of the model: evaluate it before use. `manifest.json` has every "
        "layer, the versions and the seeds."
    )
    return "\n\n".join(parts) + "\n"


def save(
    lm: LanguageModel, folder: str | Path, report: PruneReport, calibration: CalibrationSet | None = None,
    max_shard_size: str = "5GB",
) -> Path:
    """Writes the pruned model to a new folder, whole or not at all.

    The folder holds a plain safetensors checkpoint and the tokenizer (any transformers program loads it; files larger
    than `max_shard_size` are split), `masks/masks.safetensors` (bit-packed, see `load_masks`), `manifest.json` (model,
    data, versions and report, see `manifest`) and a model card, `README.md`.

    Raises:
        UsageError: the folder exists and is not empty.
    """
    folder = new_folder(folder)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        lm.model.save_pretrained(temporary, max_shard_size=max_shard_size)
        lm.tokenizer.save_pretrained(temporary)
        write_records(lm, temporary, report, calibration)
        temporary.chmod(0o755)
        if folder.exists():
            folder.rmdir()
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def new_folder(folder: str | Path) -> Path:
    """The folder as a path whose parent exists; raises `UsageError` as `assets.output_path`."""
    folder = output_path(folder, empty_folder=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    return folder


def write_records(
    lm: LanguageModel, folder: Path, report: PruneReport, calibration: CalibrationSet | None = None
) -> None:
    """Writes masks, manifest and model card beside the weights in a folder."""
    shapes = {m.name: [m.rows, m.columns] for m in report.modules}
    masks = {name: mask.clone() for name, mask in report.masks.items()}  # safetensors wants memory of its own
    (folder / MASKS).parent.mkdir(exist_ok=True)
    save_file(masks, folder / MASKS, {"shapes": json.dumps(shapes)})
    (folder / "manifest.json").write_text(json.dumps(manifest(lm, report, calibration), indent=1), encoding="utf8")
    (folder / "README.md").write_text(model_card(lm, report, calibration), encoding="utf8")
