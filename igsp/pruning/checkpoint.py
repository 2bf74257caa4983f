"""Block-level checkpoints of a pruning run: one file per finished block, so that a killed run resumes there."""

from __future__ import annotations

import errno
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from igsp.assets import whole_or_nothing
from igsp.errors import IgspError, UsageError
from igsp.pruning.report import ModuleReport


class Checkpoint:
    """Finished blocks of one run in a folder; refuses a folder that belongs to other settings."""

    def __init__(self, folder: str | Path, key: dict[str, Any]) -> None:
        """`key` is everything the numbers depend on; it is written once and compared on resuming."""
        self.folder = Path(folder)
        path = self.folder / "run.json"
        if path.exists():
            found = json.loads(path.read_text())
            differing = sorted(name for name in key if found.get(name) != key[name])
            if differing:
                raise UsageError(
                    f"checkpoint '{folder}' belongs to another run (it differs in {', '.join(differing)}): "
                    "give another folder or delete this one"
                )
        else:
            with whole_or_nothing(path) as temporary:
                temporary.write_text(json.dumps(key, indent=1))

    @staticmethod
    def batch_size(folder: str | Path | None) -> int | None:
        """Micro-batch of the run that is to be resumed: the same one is needed for the same bits."""
        path = Path(folder) / "run.json" if folder is not None else None
        return json.loads(path.read_text())["batch_size"] if path is not None and path.exists() else None

    def save(self, block: int, tensors: dict[str, Tensor], modules: list[ModuleReport]) -> None:
        """Writes one finished block: its weights and masks (`weight/NAME`, `mask/NAME`) and report rows.

        Raises:
            IgspError: the disk is full (the blocks before stay, the run can be resumed).
        """
        try:
            with whole_or_nothing(self._path(block)) as temporary:
                save_file(tensors, temporary, {"modules": json.dumps([asdict(m) for m in modules])})
        except (OSError, SafetensorError) as error:
            full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
            reason = "the disk is full" if full else str(error)
            raise IgspError(
                f"block {block} could not be written to checkpoint '{self.folder}': {reason}. The blocks before it "
                "are kept: free space (or load the model again), call prune with the same arguments, and it resumes"
            ) from error

    def load(self, block: int) -> tuple[dict[str, Tensor], list[ModuleReport]] | None:
        """What `save` wrote for this block, or None if it is not finished."""
        if not self._path(block).exists():
            return None
        with safe_open(self._path(block), "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            modules = [ModuleReport(**row) for row in json.loads((file.metadata() or {})["modules"])]
        return tensors, modules

    def _path(self, block: int) -> Path:
        return self.folder / f"block-{block:04d}.safetensors"
