"""Block-level checkpoints of a pruning run: one file per finished block, so that a killed run resumes there."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from igsp.assets import whole_or_nothing
from igsp.checkpoints import read_tensors
from igsp.errors import CheckpointError, IgspError, UsageError
from igsp.pruning.blocks import Block, weight_of
from igsp.pruning.report import ModuleReport


class Checkpoint:
    """Finished blocks of one run in a folder; refuses a folder that belongs to other settings."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.key: dict[str, Any] | None = None
        path = self.folder / "run.json"
        if self.started:
            try:
                self.key = dict(json.loads(path.read_text(encoding="utf8")))
            except (OSError, ValueError, TypeError, RecursionError) as error:
                raise CheckpointError(f"'{path}' is damaged ({error}): delete that folder") from None

    def claim(self, key: dict[str, Any]) -> None:
        """`key` is everything the numbers depend on; it is written with the first block and compared on resuming."""
        if not self.started:
            self.key = key
            return
        assert self.key is not None
        differing = sorted(name for name in key if self.key.get(name) != key[name])
        if differing:
            raise UsageError(
                f"checkpoint '{self.folder}' belongs to another run (it differs in {', '.join(differing)}): "
                "give another folder or delete this one"
            )

    @property
    def started(self) -> bool:
        """Whether it holds a block."""
        return (self.folder / "run.json").exists()

    @property
    def batch_size(self) -> int | None:
        """Micro-batch of the run that is to be resumed: the same one is needed for the same bits."""
        return self.key.get("batch_size") if self.key is not None and self.started else None

    @contextmanager
    def loaded(self, block: Block) -> Iterator[None]:
        """Here the weights are in memory all the time (`streaming.Stream` holds those of one block)."""
        yield

    def save(self, block: Block, masks: dict[str, Tensor], modules: list[ModuleReport]) -> None:
        """Writes one finished block: its weights, packed masks by full name and report rows.

        Raises:
            IgspError: the disk is full (the blocks before stay, the run can be resumed).
        """
        tensors = {f"mask/{name}": mask for name, mask in masks.items()}
        tensors |= {f"weight/{name}": weight_of(linear).cpu() for name, linear in block.linears.items()}
        self._write(self._path(block), tensors, rows(modules))

    def load(self, block: Block) -> tuple[dict[str, Tensor], dict[str, Tensor], list[ModuleReport]] | None:
        """Weights by name inside the block, masks by full name and rows as `save` wrote them; None if unfinished."""
        if not self._path(block).exists():
            return None
        tensors, metadata = read_tensors(self._path(block), "finished block")
        found: dict[str, dict[str, Tensor]] = {"weight": {}, "mask": {}}
        try:
            for key, tensor in tensors.items():
                kind, name = key.split("/", 1)
                found[kind][name] = tensor
            modules = [ModuleReport(**row) for row in json.loads(metadata["modules"])]
        except (KeyError, ValueError, TypeError) as error:
            raise CheckpointError(f"'{self._path(block)}' is no finished block ({error}): delete it") from None
        weights = self._whole(block, found["weight"]) if found["weight"] else {}
        if {m.name for m in modules} != {f"{block.name}.{n}" for n in block.linears} or set(found["mask"]) != {
            m.name for m in modules
        }:
            raise CheckpointError(f"'{self._path(block)}' holds the layers of another model: give another folder")
        return weights, found["mask"], modules

    def _whole(self, block: Block, weights: dict[str, Any]) -> dict[str, Tensor]:
        """These weights by name inside the block, if they are those of its Linear layers."""
        shapes = {name: getattr(weight, "shape", None) for name, weight in weights.items()}
        if shapes != {name: weight_of(linear).shape for name, linear in block.linears.items()}:
            raise CheckpointError(f"'{self._path(block)}' holds the weights of another model: give another folder")
        return weights

    def _write(self, path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        try:
            if not self.started:
                with whole_or_nothing(self.folder / "run.json") as temporary:
                    temporary.write_text(json.dumps(self.key, indent=1), encoding="utf8")
            with whole_or_nothing(path) as temporary:
                save_file(tensors, temporary, metadata)
        except (OSError, SafetensorError) as error:
            full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
            reason = "the disk is full" if full else str(error)
            raise IgspError(
                f"'{path}' could not be written: {reason}. The blocks finished before it are kept in that folder: "
                "free space (or load the model again), call prune with the same arguments, and it resumes"
            ) from error

    def _path(self, block: Block) -> Path:
        return self.folder / f"block-{block.index:04d}.safetensors"


def rows(modules: list[ModuleReport]) -> dict[str, str]:
    """Report rows as the metadata of a safetensors file."""
    return {"modules": json.dumps([asdict(m) for m in modules])}
