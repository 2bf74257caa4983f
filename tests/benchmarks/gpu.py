"""Times pruning of a random LLaMA-3.1-8B-shaped model on one GPU, stage by stage; nothing is downloaded.

    python tests/benchmarks/gpu.py                          # 128 x 2048, SparseGPT and Wanda
    python tests/benchmarks/gpu.py --blocks 4 --n 16        # a quick look
    peer/bin/python tests/benchmarks/gpu.py --llmcompressor # the same shapes through llm-compressor, where installed

A first part checks and times the kernels alone (Gram against float64, fused columns against the plain loop,
factorisation); a second prunes all blocks. The record goes to `book/results/benchmarks/`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

RECORDS = Path(__file__).parent.parent.parent / "book" / "results" / "benchmarks"
SHAPE = {  # LLaMA-3.1-8B but for the vocabulary, which pruning never touches
    "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8,
    "vocab_size": 32000, "max_position_embeddings": 8192, "rope_theta": 500000.0,
}


def seconds_of(call: Callable[[], Any], repeats: int = 3) -> float:
    """Median seconds of a call on the device, after one that warms up."""
    call()
    times = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        started = time.perf_counter()
        call()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def build(blocks: int) -> LlamaForCausalLM:
    """A random bfloat16 model made on the device."""
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = LlamaForCausalLM._from_config(LlamaConfig(num_hidden_layers=blocks, **SHAPE), dtype=torch.bfloat16)
    model.requires_grad_(False)
    return model.eval()


def kernels(tokens: int) -> dict[str, Any]:
    """Rates and errors of the parts, each against its plain twin."""
    from igsp.pruning.kernels import add_gram, has_triton, mirror
    from igsp.pruning.solvers import inverse_factor

    result: dict[str, Any] = {"triton": has_triton()}
    for width in (4096, 14336):
        x = torch.randn(tokens, width, device="cuda", dtype=torch.bfloat16)
        gram = torch.zeros(width, width, device="cuda")
        took = seconds_of(lambda x=x, gram=gram: add_gram(gram, x))
        gram.zero_()
        add_gram(gram, x)
        mirror(gram)
        exact = x[:, :512].double().T @ x[:, :512].double()
        error = float((gram[:512, :512] - exact).abs().max() / exact.abs().max())
        result[f"gram {width}"] = {"seconds": took, "flops_per_second": 2 * tokens * width**2 / took, "error": error}
        result[f"factor {width}"] = {"seconds": seconds_of(lambda gram=gram: inverse_factor(gram, 0.01))}
    for rows in (4096, 28672):
        for pattern in (None, (2, 4)):
            result[f"columns {rows} {pattern}"] = columns(rows, pattern)
    return result


def columns(rows: int, pattern: tuple[int, int] | None) -> dict[str, Any]:
    """The fused kernel and the plain loop on one block of 128 columns: seconds and difference."""
    from igsp.pruning.kernels import solve_block, solve_block_plain

    upper = 1.5 * torch.eye(128, device="cuda") + 0.1 * torch.randn(128, 128, device="cuda").triu(1)
    block = torch.randn(128, rows, device="cuda")
    mask = (torch.rand(128, rows, device="cuda") < 0.6) & (pattern is None)
    fused, plain, fused_mask, plain_mask = block.clone(), block.clone(), mask.clone(), mask.clone()
    solve_block(fused, upper, fused_mask, pattern)
    solve_block_plain(plain, upper, plain_mask, pattern)
    return {
        "fused_seconds": seconds_of(lambda: solve_block(block.clone(), upper, fused_mask, pattern)),
        "plain_seconds": seconds_of(lambda: solve_block_plain(block.clone(), upper, plain_mask, pattern)),
        "difference": float((fused - plain).abs().max()), "masks_equal": torch.equal(fused_mask, plain_mask),
    }


def words() -> PreTrainedTokenizerFast:
    """A tokenizer that nobody asks anything of."""
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0}, unk_token="a")))


def prune_igsp(
    model: LlamaForCausalLM, ids: torch.Tensor, method: str, order: str, pattern: str | None
) -> dict[str, Any]:
    from igsp.models import LanguageModel, tokenizer_fingerprint
    from igsp.pruning.driver import prune
    from igsp.text.windows import CalibrationSet, Window

    tokenizer = words()
    calibration = CalibrationSet(ids, (Window("random", (), 0),) * len(ids), tokenizer_fingerprint(tokenizer), {})
    lm = LanguageModel(model, tokenizer, "random-8b", "random-8b")
    report = prune(lm, calibration, method=method, order=order, pattern=pattern, device="cuda", progress=False)
    solving = sum(module.seconds for module in report.modules)
    return {
        "seconds": report.seconds, "solve_seconds": solving, "forward_and_gram_seconds": report.seconds - solving,
        "peak_bytes": report.peak_memory, "batch_size": report.batch_size, "reached": report.reached,
    }


def prune_llmcompressor(model: LlamaForCausalLM, ids: torch.Tensor, method: str) -> dict[str, Any]:
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier

    modifier = {"sparsegpt": SparseGPTModifier, "wanda": WandaPruningModifier}[method]
    dataset = Dataset.from_dict({"input_ids": ids.tolist(), "attention_mask": torch.ones_like(ids).tolist()})
    torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    oneshot(
        model=model, dataset=dataset, recipe=[modifier(sparsity=0.6, targets=["Linear"], ignore=["re:.*lm_head.*"])],
        num_calibration_samples=len(ids), max_seq_length=ids.shape[1], shuffle_calibration_samples=False,
        pipeline="sequential", tokenizer=words(),
    )
    torch.cuda.synchronize()
    return {"seconds": time.perf_counter() - started, "peak_bytes": torch.cuda.max_memory_allocated()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=128)
    parser.add_argument("--seqlen", type=int, default=2048)
    parser.add_argument("--blocks", type=int, default=32)
    parser.add_argument("--streaming", action="store_true", help="keep the weights on the CPU, one block on the device")
    parser.add_argument("--llmcompressor", action="store_true", help="time llm-compressor in place of igsp")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device: this benchmark needs one (tests/benchmarks/cpu.py does not)")
    tool = "llmcompressor" if options.llmcompressor else "igsp"
    record: dict[str, Any] = {
        "benchmark": "gpu", "tool": tool, "device": torch.cuda.get_device_name(), "torch": torch.__version__,
        "setting": {"n": options.n, "seqlen": options.seqlen, "blocks": options.blocks, "sparsity": 0.6,
                    "streaming": options.streaming} | SHAPE,
    }
    ids = torch.randint(0, SHAPE["vocab_size"], (options.n, options.seqlen))
    if options.llmcompressor:
        runs = {f"{m} block": (lambda model, m=m: prune_llmcompressor(model, ids, m)) for m in ("sparsegpt", "wanda")}
    else:
        record["kernels"] = kernels(min(32768, ids.numel()))
        cases = [("sparsegpt", "block", None), ("sparsegpt", "true-sequential", None), ("sparsegpt", "dense", None),
                 ("sparsegpt", "block", "2:4"), ("wanda", "block", None), ("magnitude", "block", None)]
        runs = {" ".join(filter(None, case)): (lambda model, c=case: prune_igsp(model, ids, *c)) for case in cases}
    for name, call in runs.items():
        model = build(options.blocks)
        if options.streaming:
            model.cpu()
        record[name] = call(model)
        print(name, json.dumps(record[name]), flush=True)
        del model
        torch.cuda.empty_cache()
    path = options.out or RECORDS / f"gpu-{tool}-{options.blocks}-blocks-{options.n}x{options.seqlen}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf8")


if __name__ == "__main__":
    main()
