"""Expected seconds of pruning LLaMA-3.1-8B on GPUs that are not here: counted work over published rates.

    python tests/benchmarks/roofline.py

The package's own code prunes a model of that shape on a pretended device that computes nothing and counts
(`tests/second_device.py`). Blocks are alike, so a run of one and of two blocks gives what a block costs. The record
goes to `book/results/benchmarks/`; every second in it is an estimate.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from igsp.models import LanguageModel, tokenizer_fingerprint
from igsp.pruning.cost import plan_skeleton, roofline
from igsp.pruning.driver import prune
from igsp.text.windows import CalibrationSet, Window

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
from gpu import RECORDS, SHAPE, words  # noqa: E402
from second_device import Device, second_device  # noqa: E402

LLAMA = SHAPE | {"vocab_size": 128256}
BLOCKS, SEQLEN = 32, 2048
STAGES = {
    "forward": ("replay", "first_inputs", "capture_calls", "_record_calls"),
    "Gram matrices": ("add_gram", "mirror", "accumulate", "empty"),
    "factors": ("inverse_factor", "factor_of_inverse"),
    "choice of weights": ("smallest", "_kth", "_choose", "smallest_of_rows", "_with_ties", "wanda"),
    "columns": ("sparsegpt", "solve_block"),
}


@dataclass
class Counted:
    """What a run of some blocks did: work by stage, peak bytes, and the bytes that the plan says."""

    work: dict[str, Counter[str]]
    peak: int
    planned: int
    launches: int
    syncs: int


def counted(method: str, blocks: int, n: int, memory: int = 80 << 30) -> Counted:
    """Prunes that many blocks of the shape on the pretended device."""
    with second_device(memory, shapes=True) as device:
        with torch.device("cuda"):
            config = LlamaConfig(num_hidden_layers=blocks, **LLAMA)
            model = LlamaForCausalLM._from_config(config, dtype=torch.bfloat16).eval()
        model.requires_grad_(False)
        planned = plan_skeleton(model, n, SEQLEN, method, "block", torch.device("cuda"), torch.bfloat16).memory
        device.reset()
        tokenizer = words()
        ids = torch.zeros(n, SEQLEN, dtype=torch.int64)
        calibration = CalibrationSet(ids, (Window("none", (), 0),) * n, tokenizer_fingerprint(tokenizer), {})
        lm = LanguageModel(model, tokenizer, "llama-3.1-8b", "shapes")
        prune(lm, calibration, method=method, progress=False)
    work = by_stage(device)
    return Counted(work, device.peak, planned, sum(device.launches.values()), sum(device.syncs.values()))


def by_stage(device: Device) -> dict[str, Counter[str]]:
    """Counted work under the names of `STAGES`; whatever belongs to none is `rest`."""
    stage_of = {name: stage for stage, names in STAGES.items() for name in names}
    work = {stage: Counter(flops_half=0, flops_float32=0, bytes=0, launches=0, copied=0) for stage in [*STAGES, "rest"]}
    for (place, dtype), flops in device.flops.items():
        work[stage_of.get(place, "rest")]["flops_float32" if dtype == "float32" else "flops_half"] += flops
    for place, size in device.traffic.items():
        work[stage_of.get(place, "rest")]["bytes"] += size
    for where, count in device.launches.items():
        place = where.split(" ", 1)[-1].partition(":")[0]
        work["columns" if where == "fused columns" else stage_of.get(place, "rest")]["launches"] += count
    work["rest"]["copied"] = sum(device.copied.values())
    return work


def whole(method: str, n: int) -> dict[str, dict[str, float]]:
    """Work of all blocks from runs of one and of two."""
    one, two = (counted(method, blocks, n) for blocks in (1, 2))
    return {
        stage: {kind: one.work[stage][kind] + (BLOCKS - 1) * (two.work[stage][kind] - one.work[stage][kind])
                for kind in one.work[stage]}
        for stage in one.work
    }


def main() -> None:
    n = 128
    work = whole("sparsegpt", n)
    record = {
        "benchmark": "roofline", "kind": "estimated", "model": "LLaMA-3.1-8B (shape)", "method": "sparsegpt",
        "setting": {"n": n, "seqlen": SEQLEN, "sparsity": 0.6, "blocks": BLOCKS} | LLAMA, "work": work,
        "seconds": {device: roofline(work, device) for device in ("H100", "H200")},
    }
    for device, seconds in record["seconds"].items():
        print(f"{device} (estimated): {sum(seconds.values()):.1f} s", {k: round(v, 2) for k, v in seconds.items()})
    (RECORDS / "roofline-llama-3.1-8b.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf8")


if __name__ == "__main__":
    main()
