"""What pruning costs as n, seqlen, width and depth grow, on random Llama-like models; nothing is downloaded.

    python tests/benchmarks/cost.py

From one base setting each quantity is varied alone. Seconds are medians of interleaved runs. The record goes to
`book/results/benchmarks/cost.json`.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from cpu import RECORDS, machine
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from igsp.assets import whole_or_nothing
from igsp.models import LanguageModel, resolve_device, tokenizer_fingerprint
from igsp.pruning.driver import prune
from igsp.text.windows import CalibrationSet, Window


@dataclass(frozen=True)
class Case:
    """One setting: windows, tokens a window, width of the hidden state, number of blocks."""

    n: int = 16
    seqlen: int = 256
    width: int = 512
    depth: int = 4


BASE = Case()
VARIED = {"n": (8, 16, 32, 64), "seqlen": (128, 256, 512, 1024), "width": (256, 512, 1024), "depth": (2, 4, 8)}


def measure(case: Case, method: str, device: str) -> dict[str, float]:
    """Seconds in all and in the solvers of one pruning run."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256, hidden_size=case.width, intermediate_size=case.width * 8 // 3 // 64 * 64,
        num_hidden_layers=case.depth, num_attention_heads=case.width // 64, num_key_value_heads=case.width // 64,
        max_position_embeddings=case.seqlen,
    )
    model = LlamaForCausalLM._from_config(config, dtype=torch.bfloat16).eval().requires_grad_(False).to(device)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0}, unk_token="a")))
    ids = torch.randint(0, 256, (case.n, case.seqlen))
    windows = (Window("random", (), 0),) * case.n
    calibration = CalibrationSet(ids, windows, tokenizer_fingerprint(tokenizer), {})
    report = prune(LanguageModel(model, tokenizer, "random", "random"), calibration, method=method, progress=False)
    solving = sum(module.seconds for module in report.modules)
    return {"seconds": report.seconds, "solve_seconds": solving, "peak_bytes": report.peak_memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=RECORDS / "cost.json")
    options = parser.parse_args()
    device = str(resolve_device(options.device))
    cases = [(method, name, replace(BASE, **{name: value}))
             for method in ("sparsegpt", "wanda") for name, values in VARIED.items() for value in values]
    found: dict[int, list[dict[str, float]]] = {index: [] for index in range(len(cases))}
    measure(BASE, "sparsegpt", device)  # warm-up
    for _ in range(options.runs):
        for index, (method, _, case) in enumerate(cases):
            found[index].append(measure(case, method, device))
    rows = [
        {"method": method, "varied": name, **asdict(case)}
        | {key: statistics.median(run[key] for run in found[index]) for key in found[index][0]}
        for index, (method, name, case) in enumerate(cases)
    ]
    record = {"benchmark": "cost", "runs": options.runs, "device": device, "machine": machine(), "rows": rows}
    with whole_or_nothing(options.out) as path:
        path.write_text(json.dumps(record, indent=1) + "\n")
    for row in rows:
        print(f"{row['method']:10} {row['varied']:7} {row[row['varied']]:5}  {row['seconds']:7.2f} s")


if __name__ == "__main__":
    main()
