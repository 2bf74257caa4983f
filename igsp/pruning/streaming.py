"""Prunes a model that need not fit in memory: one block at a time comes from its files and goes to new ones.

The flow is that of `driver.prune`; only the weights of a block live while its turn lasts. What memory must hold, with
the numbers of an 8B-shaped model (LLaMA-3.1-8B: blocks of 218.1 M weights, width 4096, inner width 14336; 128 windows
of 2048 tokens, bfloat16), in GB:

    always:  hidden states of all windows, 128 * 2048 * 4096 * 2 bytes                              2.1
             one block, 218.1e6 * 2 bytes                                                           0.4
             Gram matrices of one block, (3 * 4096^2 + 14336^2) * 4 bytes                           1.0
    then     forward: a micro-batch, 0.23 MB a token, as many windows as fit 60 % of free memory    0.5 a window
    or       solve of `down_proj`: damped Hessian, its factor and the halves of the recursion,
             14336^2 * 4 bytes each; its weights dense, compensated, changed, 0.23 each             3.4
    or       solve of `gate_proj` with `up_proj`: 28672 * 4096 weights, five times in float32       2.5
    in CPU memory besides: packed masks of all blocks 0.9, embedding 1.1 (with the head 2.1)

So a device needs about 7 GB with one window a forward, and stays under 24 GB with the micro-batch that is chosen for
one of that size (27 windows, 13 GB).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from igsp.assets import whole_or_nothing
from igsp.checkpoints import ModelFolder, load_tokenizer, open_checkpoint, read_tensors
from igsp.errors import UsageError
from igsp.models import LanguageModel, folder_fingerprint, resolve_device, resolve_dtype, resolve_folder
from igsp.pruning.blocks import Block, find_blocks
from igsp.pruning.card import new_folder, write_records
from igsp.pruning.checkpoint import Checkpoint, rows
from igsp.pruning.driver import prune
from igsp.pruning.report import ModuleReport, PruneReport
from igsp.text.windows import CalibrationSet


def prune_folder(
    model: str,
    out: str | Path,
    calibration: CalibrationSet | None = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    **options: Any,
) -> PruneReport:
    """Prunes a model from its files to new files, in memory for one block (see the module's docstring).

    The result is what `driver.prune` and `driver.save` make of the loaded model, bit by bit. Until all is done the
    files grow in `.OUT.partial` beside `out`; the same call resumes a run that was killed at its last finished block.

    Args:
        model: a folder, alias or hub id, as for `load_model`.
        out: folder to write.
        device: where to compute, one block at a time.
        dtype: of the pruned model.
        options: method, sparsity and the other arguments of `driver.prune`.

    Raises:
        UsageError: `out` exists and is not empty; the folder's files name their tensors in another way;
            as `load_model` and `driver.prune`.
    """
    out = new_folder(out)
    work = out.parent / f".{out.name}.partial"
    compute = resolve_device(device)
    files = open_checkpoint(resolve_folder(model), model)
    lm = skeleton(model, files, resolve_dtype(dtype, compute))
    stream = Stream(files, work, find_blocks(lm.model), lm.dtype)
    report = prune(lm, calibration, checkpoint=stream, device=compute, **options)
    stream.complete()
    lm.model.config.save_pretrained(work)
    lm.tokenizer.save_pretrained(work)
    if (files.folder / "generation_config.json").exists():
        shutil.copy(files.folder / "generation_config.json", work)
    write_records(lm, work, report, calibration)
    stream.forget()
    if out.exists():
        out.rmdir()
    os.replace(work, out)
    return report


def skeleton(name: str, files: ModelFolder, dtype: torch.dtype) -> LanguageModel:
    """The model with its embedding and norms, but blocks and head without memory (`meta`).

    Raises:
        UsageError: a tensor is not in the files under the model's own name.
    """
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(files.config, dtype=dtype)
    model.eval().requires_grad_(False)
    model.config.dtype = dtype
    inside = {name for block in find_blocks(model) for name in tensor_names(block)}
    base = {n for n, _ in model.named_parameters() if n.startswith(model.base_model_prefix + ".")}
    missing = sorted(base - set(files.tensors))
    if missing:
        raise UsageError(
            f"the files of '{name}' name their tensors in another way than the model (no '{missing[0]}'): "
            "load it with `load_model` and write it with `save_pretrained` once, then stream that folder"
        )
    assign(model, files.read(sorted(base - inside), dtype))
    folder = files.folder
    return LanguageModel(model, load_tokenizer(folder, name), name, folder_fingerprint(folder), folder)


def tensor_names(block: Block) -> list[str]:
    """Full names of the parameters of a block."""
    return [f"{block.name}.{name}" for name, _ in block.module.named_parameters()]


def assign(root: nn.Module, parameters: dict[str, nn.Parameter]) -> None:
    """Puts parameters in the place of those of these names."""
    for name, parameter in parameters.items():
        owner, _, leaf = name.rpartition(".")
        setattr(root.get_submodule(owner), leaf, parameter)


class Stream(Checkpoint):
    """A checkpoint whose blocks are at the same time the files of the pruned model, and live only for their turn."""

    def __init__(self, files: ModelFolder, folder: Path, blocks: Sequence[Block], dtype: torch.dtype) -> None:
        super().__init__(folder)
        self.files, self.blocks, self.dtype = files, blocks, dtype

    @contextmanager
    def loaded(self, block: Block) -> Iterator[None]:
        """Holds the block's dense weights in memory for a while."""
        empty = dict(block.module.named_parameters())
        prefix = len(block.name) + 1
        assign(block.module, {n[prefix:]: t for n, t in self.files.read(tensor_names(block), self.dtype).items()})
        try:
            yield
        finally:
            assign(block.module, empty)

    def save(self, block: Block, masks: dict[str, Tensor], modules: list[ModuleReport]) -> None:
        """Writes the block to the pruned model's file of its own, then masks and rows for resuming."""
        tensors = {f"{block.name}.{n}": p.data.cpu() for n, p in block.module.named_parameters()}
        self._write(self._shard(block.index), tensors, {"format": "pt"})
        self._write(self._path(block), {f"mask/{name}": mask for name, mask in masks.items()}, rows(modules))

    def load(self, block: Block) -> tuple[dict[str, Tensor], dict[str, Tensor], list[ModuleReport]] | None:
        """As `Checkpoint.load`."""
        found = super().load(block)
        if found is None:
            return None
        tensors, _ = read_tensors(self._shard(block.index), "finished block")
        return self._whole(block, {n: tensors.get(f"{block.name}.{n}.weight") for n in block.linears}), *found[1:]

    def complete(self) -> None:
        """Writes what lies outside the blocks, and the index."""
        places = {name: self._shard(block.index) for block in self.blocks for name in tensor_names(block)}
        outside, last = [name for name in self.files.tensors if name not in places], self._shard(len(self.blocks))
        self._write(last, {n: p.data for n, p in self.files.read(outside, self.dtype).items()}, {"format": "pt"})
        places |= dict.fromkeys(outside, last)
        size = sum(path.stat().st_size for path in set(places.values()))
        with whole_or_nothing(self.folder / "model.safetensors.index.json") as path:
            path.write_text(json.dumps({
                "metadata": {"total_size": size}, "weight_map": {name: place.name for name, place in places.items()},
            }, indent=1), encoding="utf8")

    def forget(self) -> None:
        """Drops what only resuming needs."""
        for path in (self.folder / "run.json", *map(self._path, self.blocks)):
            path.unlink()

    def _shard(self, index: int) -> Path:
        total = len(self.blocks) + 1
        return self.folder / f"model-{index + 1:05d}-of-{total:05d}.safetensors"
