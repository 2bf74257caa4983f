"""What the self-generation protocols cost on this machine: writing, screening and choosing; and a large choice alone.

    python tests/benchmarks/protocols.py                   # 64 windows of 512 tokens, about 15 minutes on 2 cores
    python tests/benchmarks/protocols.py --n 8 --seqlen 128 --candidates 500 --length 256     # a quick look

The large choice takes 128 windows from made-up candidates: Zipf-distributed tokens in which stretches recur, as they do
in what models write. It runs in a process of its own, so that its peak memory is its own. The record goes to
`book/results/benchmarks/`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cpu import RECORDS, machine

from igsp.assets import whole_or_nothing
from igsp.models import load_model
from igsp.writing.igsp import igsp, select
from igsp.writing.pool import DIMENSIONS, CandidatePool
from igsp.writing.self_cal import self_cal
from igsp.writing.sgs import sgs

CHOSEN = 128


def timed(work: Callable[[], Any]) -> dict[str, float]:
    started, cpu = time.perf_counter(), time.process_time()
    work()
    return {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu}


def made_up(count: int, length: int, vocabulary: int = 49152, seed: int = 0) -> CandidatePool:
    """Candidates of Zipf-distributed tokens; a third of the 64-token stretches come from a common stock of 5,000."""
    stream = np.random.default_rng(seed)
    ids = np.minimum(stream.zipf(1.2, (count, length)), vocabulary) - 1
    stock = np.minimum(stream.zipf(1.2, (5000, 64)), vocabulary) - 1
    parts = ids[:, : length // 64 * 64].reshape(-1, 64)
    recur = np.flatnonzero(stream.random(len(parts)) < 1 / 3)
    parts[recur] = stock[stream.integers(0, len(stock), len(recur))]
    ids[:, : length // 64 * 64] = parts.reshape(count, -1)
    dimensions = tuple(DIMENSIONS[i % len(DIMENSIONS)] for i in range(count))
    return CandidatePool(
        torch.from_numpy(ids), tuple(f"self:{d}" for d in dimensions), dimensions, tuple(map(str, range(count))),
        torch.from_numpy(stream.normal(2.5, 0.4, count)).float(), "made up", {},
    )


def large_choice(count: int, length: int, results: Any) -> None:
    pool = made_up(count, length)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    measured = timed(partial(select, pool, CHOSEN))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    results.put(measured | {"peak_bytes": 1024 * peak, "peak_bytes_before": 1024 * before})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--n", type=int, default=64, help="windows of a calibration set")
    parser.add_argument("--seqlen", type=int, default=512)
    parser.add_argument("--candidates", type=int, default=10_000, help="candidates of the large choice")
    parser.add_argument("--length", type=int, default=2048, help="tokens in each of these")
    parser.add_argument("--source", default="wiki_leads", help="where the beginnings of SGS come from")
    parser.add_argument("--out", type=Path, help="record to write (default: named by the setting)")
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    choice = context.Process(target=large_choice, args=(options.candidates, options.length, results))
    choice.start()
    contenders = {f"choice of {CHOSEN} from {options.candidates:,} x {options.length:,}": results.get()}
    choice.join()
    lm = load_model(options.model, device="cpu", dtype="bfloat16")
    size = {"n": options.n, "seqlen": options.seqlen}
    protocols: dict[str, Callable[..., Any]] = {
        "IGSP": igsp, "Self-Cal": self_cal, "SGS": partial(sgs, source=options.source)
    }
    for name, protocol in protocols.items():
        contenders[f"{name}, from nothing to {options.n} windows"] = timed(partial(protocol, lm, **size))
        print(json.dumps(contenders, indent=1), flush=True)
    record = {
        "benchmark": "protocols", "setting": {"model": options.model, **size, "dtype": "bfloat16"},
        "machine": machine(), "contenders": contenders,
    }
    default = f"protocols-{options.model.replace('/', '--')}-{options.n}x{options.seqlen}.json"
    with whole_or_nothing(options.out or RECORDS / default) as path:
        path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
