"""Prunes one model once, with one tool, in a process of its own; prints one JSON line.

Run by `cpu.py` in the environment of each tool; imports `igsp` only where that is the tool.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

HEAD = ["re:.*lm_head.*"]


def reset_peak() -> None:
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf8")


def resident(mark: str) -> int:
    """Bytes of the process: `VmHWM` (peak) or `VmRSS` (now)."""
    lines = Path("/proc/self/status").read_text(encoding="utf8").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(mark)).split()[1])


def prune_igsp(folder: str, model: Any, ids: torch.Tensor, method: str, sparsity: float, order: str) -> None:
    from igsp.models import LanguageModel, tokenizer_fingerprint
    from igsp.pruning.driver import prune
    from igsp.text.windows import CalibrationSet, Window

    tokenizer = AutoTokenizer.from_pretrained(folder)
    lm = LanguageModel(model, tokenizer, "benchmark", "benchmark")
    windows = (Window("benchmark", (), 0),) * len(ids)
    calibration = CalibrationSet(ids, windows, tokenizer_fingerprint(tokenizer), {"kind": "benchmark"})
    prune(lm, calibration, method=method, sparsity=sparsity, order=order, progress=False)


def prune_llmcompressor(
    folder: str, model: Any, ids: torch.Tensor, method: str, sparsity: float, order: str, batch: int
) -> None:
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier

    # Its module names end in a dot ("lm_head."), so ignore=["lm_head"] would match nothing and the head be pruned.
    modifier = {"sparsegpt": SparseGPTModifier, "wanda": WandaPruningModifier}[method]
    rows = ids.tolist()
    dataset = Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]})
    oneshot(
        model=model, dataset=dataset, recipe=[modifier(sparsity=sparsity, targets=["Linear"], ignore=HEAD)],
        num_calibration_samples=len(rows), max_seq_length=ids.shape[1], shuffle_calibration_samples=False,
        batch_size=batch, pipeline="sequential", propagate_error=order == "block", tokenizer=folder,
    )


@torch.no_grad()
def loss(model: Any, ids: torch.Tensor) -> float:
    """Mean next-token loss in nats over windows `[n, seqlen]`."""
    return sum(float(model(row[None], labels=row[None]).loss) for row in ids) / len(ids)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tool", choices=["igsp", "llmcompressor", "dense"], required=True)
    parser.add_argument("--model", required=True, help="folder")
    parser.add_argument("--windows", required=True, help="safetensors with `calibration` and `heldout` [n, seqlen]")
    parser.add_argument("--method", default="sparsegpt")
    parser.add_argument("--sparsity", type=float, default=0.6)
    parser.add_argument("--order", default="block")
    parser.add_argument("--batch", type=int, default=1, help="batch size of llm-compressor (igsp chooses its own)")
    options = parser.parse_args()
    windows = load_file(options.windows)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.bfloat16).eval()
    model.requires_grad_(False)
    settings = (options.method, options.sparsity, options.order)
    before = resident("VmRSS")
    reset_peak()
    started, worked = time.perf_counter(), time.process_time()
    if options.tool == "igsp":
        prune_igsp(options.model, model, windows["calibration"], *settings)
    elif options.tool == "llmcompressor":
        prune_llmcompressor(options.model, model, windows["calibration"], *settings, options.batch)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - worked
    peak = resident("VmHWM")
    linears = [m.weight for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"]
    zeros = sum(int((w == 0).sum()) for w in linears) / sum(w.numel() for w in linears)
    packages = ["torch", "transformers"] + (["llmcompressor"] if options.tool == "llmcompressor" else [])
    print("RESULT " + json.dumps({
        "seconds": seconds, "cpu_seconds": cpu_seconds, "zeros": zeros,
        "peak_bytes": peak, "added_bytes": peak - before,
        "heldout_loss": loss(model, windows["heldout"]), "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in packages} | {"python": platform.python_version()},
    }))


if __name__ == "__main__":
    main()
