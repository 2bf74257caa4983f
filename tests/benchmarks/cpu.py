"""igsp against llm-compressor on a CPU: same model, tokens, machine and threads; interleaved runs, medians, ratios.

    python -m venv peer && peer/bin/pip install torch==2.13.0 llmcompressor==0.14.0.1
    python tests/benchmarks/cpu.py --peer peer/bin/python

Every run is a process of its own (`contender.py`), timed from the loaded model to the pruned one. The runs of all
contenders alternate, so that what else the machine does falls on all of them; on a busy machine compare the CPU
seconds and set OMP_NUM_THREADS=1. The record names the machine and the versions and goes to `book/results/benchmarks/`.
It holds two floors of block-order SparseGPT, measured between the runs: `two_pass_seconds`, the FLOPs of two forward
passes and of the full Gram matrices at the rates of plain matrix products; and `model_two_pass_seconds`, which takes
the forward passes as long as the model's own code needs for them (attention, norms and activations included).

Peak memory counts what an environment's libraries map (Triton alone 70 MB), so compare what is added since loading.
The first sparsity is timed `--runs` times; the others run once, for the table of held-out losses.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from igsp.assets import whole_or_nothing
from igsp.models import load_model
from igsp.pruning.kernels import gram_route, matmul_precision
from igsp.text.catalogue import documents
from igsp.text.windows import sample

HERE = Path(__file__).parent
RECORDS = HERE.parent.parent / "book" / "results" / "benchmarks"
CONTENDERS = {  # name -> (tool, method, order)
    "igsp sparsegpt block": ("igsp", "sparsegpt", "block"),
    "igsp sparsegpt true-sequential": ("igsp", "sparsegpt", "true-sequential"),
    "igsp sparsegpt dense": ("igsp", "sparsegpt", "dense"),
    "llmcompressor sparsegpt block": ("llmcompressor", "sparsegpt", "block"),
    "igsp wanda block": ("igsp", "wanda", "block"),
    "llmcompressor wanda block": ("llmcompressor", "wanda", "block"),
    "igsp magnitude": ("igsp", "magnitude", "block"),
}
RATIOS = [  # (slower, faster)
    ("llmcompressor sparsegpt block", "igsp sparsegpt block"),
    ("llmcompressor sparsegpt block", "igsp sparsegpt true-sequential"),
    ("llmcompressor sparsegpt block", "igsp sparsegpt dense"),
    ("llmcompressor wanda block", "igsp wanda block"),
]


def machine() -> dict[str, Any]:
    """What a reader needs to compare with their own machine."""
    name = platform.processor()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf8").splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
        flags = next(line for line in lines if line.startswith("flags")).split()
    except (OSError, StopIteration):
        flags = []
    return {
        "processor": name, "cores": os.cpu_count(), "threads": torch.get_num_threads(),
        "bf16": [flag for flag in ("avx512_bf16", "amx_bf16") if flag in flags], "torch": torch.__version__,
    }


def heldout_windows(source: str, tokenizer: PreTrainedTokenizerBase, n: int, seqlen: int) -> torch.Tensor:
    """The first `n` windows of the held-out documents of a source, joined by blank lines."""
    text = "\n\n".join(document.text for document in documents(source, split="heldout"))
    ids = tokenizer.encode(text, add_special_tokens=False, verbose=False)[: n * seqlen]
    return torch.tensor(ids[: len(ids) // seqlen * seqlen]).view(-1, seqlen)


def rate(product: Any, flops: float, repeats: int = 5) -> float:
    """FLOP/s of a call: the median of some, after one that warms up."""
    product()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        product()
        times.append(time.perf_counter() - started)
    return flops / statistics.median(times)


@torch.no_grad()
def floor(model: PreTrainedModel, n: int, seqlen: int) -> dict[str, float]:
    """Seconds that the counted FLOPs of a Llama-like model take at the rates measured right now."""
    config = model.config
    width, inner, blocks = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    kv = width * config.num_key_value_heads // config.num_attention_heads
    tokens = n * seqlen
    sample_tokens = min(tokens, 4096)
    x = {d: torch.randn(sample_tokens, d, dtype=torch.bfloat16) for d in (width, inner)}
    weight = torch.randn(inner, width, dtype=torch.bfloat16)
    linear = rate(lambda: torch.nn.functional.linear(x[width], weight), 2 * sample_tokens * width * inner)
    grams = {d: rate(lambda d=d: product(x[d]), 2 * sample_tokens * d * d) for d in x}
    forward = 2 * tokens * blocks * (width * (2 * width + 2 * kv) + 3 * width * inner)
    attention = 2 * tokens * blocks * seqlen * width * 2 / 2  # QK^T and PV, causal half
    one_pass = (forward + attention) / linear
    windows = torch.zeros(max(1, 2048 // seqlen), seqlen, dtype=torch.long)
    own_pass = tokens / rate(lambda: model.base_model(windows, use_cache=False), windows.numel())
    gram_seconds = 2 * tokens * blocks * (3 * width**2 / grams[width] + inner**2 / grams[inner])
    return {
        "linear_flops_per_second": linear, "gram_flops_per_second": grams[inner], "forward_seconds": one_pass,
        "gram_seconds": gram_seconds, "one_pass_seconds": one_pass + gram_seconds,
        "two_pass_seconds": 2 * one_pass + gram_seconds,
        "model_forward_seconds": own_pass, "model_two_pass_seconds": 2 * own_pass + gram_seconds,
    }


def product(x: torch.Tensor) -> torch.Tensor:
    """`x.T @ x` as one plain matrix product on the route that `add_gram` takes."""
    full = x.float()
    if gram_route(x) == "openblas":
        return torch.from_numpy(full.numpy().T @ full.numpy())
    with matmul_precision("medium"):
        return full.t() @ full


def run(python: str, arguments: list[str]) -> dict[str, Any]:
    """One contender in its own process; its `RESULT` line."""
    done = subprocess.run([python, str(HERE / "contender.py"), *arguments], capture_output=True, text=True)
    line = next((line for line in done.stdout.splitlines() if line.startswith("RESULT ")), None)
    if line is None:
        raise SystemExit(f"{' '.join(arguments)} failed:\n{done.stderr[-3000:]}")
    return json.loads(line.removeprefix("RESULT "))


def summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Median, smallest and largest seconds, median CPU seconds; the rest from the run of median seconds."""
    ordered = sorted(results, key=lambda result: result["seconds"])
    middle = ordered[len(ordered) // 2]
    seconds = [result["seconds"] for result in ordered]
    return middle | {
        "seconds": statistics.median(seconds), "fastest": seconds[0], "slowest": seconds[-1], "runs": len(seconds),
        "cpu_seconds": statistics.median(result["cpu_seconds"] for result in results),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="python of an environment with llmcompressor; without it igsp runs alone")
    parser.add_argument("--peer-batch", type=int, default=1, help="its batch size (default: its own default)")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--source", default="openwebtext", help="of the calibration and the held-out windows")
    parser.add_argument("--n", type=int, default=64)
    parser.add_argument("--seqlen", type=int, default=512)
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.6, 0.5], help="the first is timed")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=list(CONTENDERS), help="some of the contenders")
    parser.add_argument("--out", type=Path, help="record to write (default: named by the setting)")
    options = parser.parse_args()
    lm = load_model(options.model, device="cpu", dtype="bfloat16")
    folder = str(lm.folder)
    chosen = {name: entry for name, entry in CONTENDERS.items()
              if (options.peer or entry[0] == "igsp") and (not options.only or name in options.only)}
    timed, *others = options.sparsity
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in chosen}
    once: dict[float, dict[str, dict[str, Any]]] = {}
    floors = []
    with tempfile.TemporaryDirectory() as scratch:
        windows = str(Path(scratch) / "windows.safetensors")
        calibration = sample(options.source, lm.tokenizer, options.n, options.seqlen)
        heldout = heldout_windows(options.source, lm.tokenizer, 16, options.seqlen)
        save_file({"calibration": calibration.input_ids, "heldout": heldout}, windows)
        common = ["--model", folder, "--windows", windows, "--batch", str(options.peer_batch)]
        dense = run(sys.executable, [*common, "--tool", "dense"])

        def contend(name: str, sparsity: float) -> dict[str, Any]:
            tool, method, order = chosen[name]
            python = sys.executable if tool == "igsp" else options.peer
            arguments = ["--tool", tool, "--method", method, "--order", order, "--sparsity", str(sparsity)]
            result = run(python, [*common, *arguments])
            print(f"{sparsity:.0%} {name:32} {result['seconds']:7.1f} s  CPU {result['cpu_seconds']:7.1f} s  "
                  f"loss {result['heldout_loss']:.3f}  peak {result['peak_bytes'] / 1e9:.2f} GB, "
                  f"{result['added_bytes'] / 1e9:.2f} of it since loading", flush=True)
            return result

        for _ in range(options.runs):
            floors.append(floor(lm.model, options.n, options.seqlen))
            for name in chosen:
                results[name].append(contend(name, timed))
        for sparsity in others:
            once[sparsity] = {name: contend(name, sparsity) for name in chosen}
    medians = {name: summary(found) for name, found in results.items()}
    named = ("model", "source", "n", "seqlen", "peer_batch")
    setting = {name: getattr(options, name) for name in named} | {"sparsity": timed}
    route = gram_route(torch.empty(0, dtype=torch.bfloat16))
    record = {
        "benchmark": "cpu", "setting": setting | {"dtype": "bfloat16", "gram_route": route}, "machine": machine(),
        "dense_heldout_loss": dense["heldout_loss"], "contenders": medians,
        "heldout": [
            {"sparsity": share, "contender": name, "loss": r["heldout_loss"], "perplexity": math.exp(r["heldout_loss"])}
            for share, found in {timed: medians, **once}.items() for name, r in found.items()
        ],
        "floor": {key: statistics.median(f[key] for f in floors) for key in floors[0]},
        "ratios": {f"{slow} / {fast}": medians[slow]["seconds"] / medians[fast]["seconds"]
                   for slow, fast in RATIOS if slow in medians and fast in medians},
        "cpu_ratios": {f"{slow} / {fast}": medians[slow]["cpu_seconds"] / medians[fast]["cpu_seconds"]
                       for slow, fast in RATIOS if slow in medians and fast in medians},
    }
    block = medians.get("igsp sparsegpt block")
    if block:
        for kind in ("two_pass_seconds", "model_two_pass_seconds"):
            record["ratios"][f"igsp sparsegpt block / {kind}"] = block["seconds"] / record["floor"][kind]
    default = f"cpu-{options.model.replace('/', '--')}-{options.n}x{options.seqlen}-{timed:g}.json"
    with whole_or_nothing(options.out or RECORDS / default) as path:
        path.write_text(json.dumps(record, indent=1) + "\n")
    for row in record["heldout"]:
        print(f"{row['sparsity']:.0%} {row['contender']:32} loss {row['loss']:.3f}  perplexity {row['perplexity']:.1f}")
    print(json.dumps(record["ratios"], indent=1))


if __name__ == "__main__":
    main()
