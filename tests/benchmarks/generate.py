"""Text from igsp against `transformers.generate` on a CPU: same model, sampling and length; interleaved runs, medians.

    python tests/benchmarks/generate.py                           # 512 tokens a text, about 15 minutes
    python tests/benchmarks/generate.py --tokens 64 --runs 1      # a quick look

`transformers` writes `--batch` texts at once; igsp writes as many, and once more as many as fill its own width (a
multiple of the batch). Every text starts from BOS and has exactly `--tokens` tokens. On a busy machine compare the CPU
seconds and set OMP_NUM_THREADS=1. The record goes to `book/results/benchmarks/`.
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
from cpu import RECORDS, machine

from igsp.assets import whole_or_nothing
from igsp.models import LanguageModel, load_model
from igsp.writing.decoding import Slots
from igsp.writing.generation import generate, stop_tokens

SAMPLINGS: dict[str, dict[str, Any]] = {  # what Self-Cal and IGSP's stems ask for
    "all": {"temperature": 1.0, "top_k": None, "top_p": None},
    "top": {"temperature": 0.8, "top_k": 50, "top_p": 0.95},
}


def ours(lm: LanguageModel, texts: int, tokens: int, sampling: dict[str, Any], seed: int) -> int:
    start = [lm.tokenizer.bos_token_id]
    seeds = range(seed * texts, (seed + 1) * texts)
    written = generate(lm, [start] * texts, tokens, seeds, eos="ignore", progress=False, **sampling)
    return sum(len(text.ids) for text in written)


def theirs(lm: LanguageModel, texts: int, tokens: int, sampling: dict[str, Any], seed: int) -> int:
    torch.manual_seed(seed)
    ids = torch.full((texts, 1), lm.tokenizer.bos_token_id, device=lm.device)
    settings = {"temperature": sampling["temperature"], "top_k": sampling["top_k"] or 0,
                "top_p": sampling["top_p"] or 1.0, "suppress_tokens": stop_tokens(lm)}
    written = lm.model.generate(  # type: ignore[operator]
        ids, attention_mask=torch.ones_like(ids), do_sample=True, min_new_tokens=tokens, max_new_tokens=tokens,
        pad_token_id=0, **settings,
    )
    return written[:, 1:].numel()


def timed(write: Callable[..., int], *arguments: Any) -> dict[str, float]:
    started, cpu = time.perf_counter(), time.process_time()
    tokens = write(*arguments)
    return {"tokens": tokens, "seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu}


def summary(runs: list[dict[str, float]]) -> dict[str, float]:
    middle = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    seconds = sorted(run["seconds"] for run in runs)
    return middle | {"tokens_per_second": middle["tokens"] / middle["seconds"],
                     "tokens_per_cpu_second": middle["tokens"] / middle["cpu_seconds"],
                     "fastest": seconds[0], "slowest": seconds[-1], "runs": len(runs)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--tokens", type=int, default=512, help="tokens a text")
    parser.add_argument("--batch", type=int, default=32, help="texts that transformers writes at once")
    parser.add_argument("--sampling", choices=SAMPLINGS, default="all")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--out", type=Path, help="record to write (default: named by the setting)")
    options = parser.parse_args()
    lm = load_model(options.model, device="cpu", dtype="bfloat16")
    sampling = SAMPLINGS[options.sampling]
    wide = options.batch * max(1, Slots(lm, 1 << 20, options.tokens + 1).texts // options.batch)
    contenders = {f"transformers {options.batch}": (theirs, options.batch),
                  f"igsp {options.batch}": (ours, options.batch), f"igsp {wide}": (ours, wide)}
    results: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    for write, texts in contenders.values():
        write(lm, texts, 2, sampling, 0)  # warms up
    for turn in range(options.runs):
        for name, (write, texts) in contenders.items():
            results[name].append(timed(write, lm, texts, options.tokens, sampling, turn))
            last = results[name][-1]
            print(f"{turn + 1}/{options.runs} {name:16} {last['tokens'] / last['seconds']:6.0f} tokens/s, "
                  f"{last['tokens'] / last['cpu_seconds']:6.0f} per CPU second", flush=True)
    medians = {name: summary(runs) for name, runs in results.items()}
    base, *rest = medians

    def ratios(key: str) -> dict[str, float]:
        return {f"{name} / {base}": medians[name][key] / medians[base][key] for name in rest}

    named = ("model", "tokens", "batch", "sampling")
    record = {
        "benchmark": "generate", "setting": {name: getattr(options, name) for name in named} | {"dtype": "bfloat16"},
        "machine": machine(), "contenders": medians,
        "ratios": ratios("tokens_per_second"), "cpu_ratios": ratios("tokens_per_cpu_second"),
    }
    default = f"generate-{options.model.replace('/', '--')}-{options.batch}x{options.tokens}-{options.sampling}.json"
    with whole_or_nothing(options.out or RECORDS / default) as path:
        path.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps({key: record[key] for key in ("ratios", "cpu_ratios")}, indent=1))


if __name__ == "__main__":
    main()
