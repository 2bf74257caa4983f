"""Every method on every Linear of a model, from the same dense statistics: output error beside Wanda's, seconds.

    python tests/benchmarks/layers.py [--mix c4=1] [--blocks 30]

The error of a layer is the squared change of its output over the calibration tokens. Seconds are processor time of one
thread in the solver. The record goes to `book/results/benchmarks/layers-<model>-<sparsity>.json`.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
import torch
from cpu import RECORDS, machine

from igsp.assets import whole_or_nothing
from igsp.models import load_model
from igsp.pruning.blocks import find_blocks, weight_matrix
from igsp.pruning.driver import collect_statistics
from igsp.pruning.solvers import refit, solver, sparseswaps, wanda
from igsp.text.windows import mix, parse_mix

METHODS = ("wanda", "ria", "sparsegpt", "admm", "sparseswaps", "sparseswaps-refit")


def runs(W, found, parts, sparsity):
    """Result and processor seconds of every method on stacked Linear layers; refits share what they start from."""
    made = {}

    def timed(name, compute, before=0.0):
        started = time.process_time()
        made[name] = (compute(), time.process_time() - started + before)

    for name in ("wanda", "ria", "sparsegpt", "admm"):
        timed(name, lambda name=name: solver(name)(W, found, sparsity, parts=parts))
    start = wanda(W, found, sparsity).mask
    timed("sparseswaps", lambda: sparseswaps(W, found, start), made["wanda"][1])
    timed("sparseswaps-refit", lambda: refit(W, found, made["sparseswaps"][0].mask), made["sparseswaps"][1])
    timed("sparsegpt mask, refit", lambda: refit(W, found, made["sparsegpt"][0].mask), made["sparsegpt"][1])
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--mix", default="wiki_leads=1,recipes=1,stdlib=1,gsm_symbolic=1")
    parser.add_argument("--n", type=int, default=32)
    parser.add_argument("--seqlen", type=int, default=512)
    parser.add_argument("--sparsity", type=float, default=0.6)
    parser.add_argument("--blocks", type=int, default=0, help="only every so many blocks (0: all)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lm = load_model(options.model, "cpu")
    weights, _ = parse_mix(options.mix, {})
    found = collect_statistics(lm, mix(weights, lm.tokenizer, options.n, options.seqlen))
    rows = []
    for block, groups in list(zip(find_blocks(lm.model), found.groups, strict=True))[:: options.blocks or 1]:
        for group in groups:
            matrices = [weight_matrix(block.linears[name]).float() for name in group]
            inputs, parts = found.inputs[f"{block.name}.{group[0]}"], [len(matrix) for matrix in matrices]
            W = torch.cat(matrices)
            made = runs(W, inputs, parts, options.sparsity)
            lost = {}
            for name, (result, _) in made.items():
                change = result.weight - W
                lost[name] = float(((change @ inputs.gram) * change).sum())
            rows.append({"block": block.index, "group": group[0],
                         "error": {name: round(value / lost["wanda"], 4) for name, value in lost.items()},
                         "seconds": {name: round(seconds, 3) for name, (_, seconds) in made.items()}})
            print(block.index, group[0], rows[-1]["error"], flush=True)
    names = list(rows[0]["error"])
    record = {
        "benchmark": "layers",
        "setting": {"model": options.model, "mix": options.mix, "n": options.n, "seqlen": options.seqlen,
                    "sparsity": options.sparsity, "order": "dense", "layers": len(rows)},
        "machine": machine(),
        "mean_error_to_wanda": {n: round(float(np.mean([r["error"][n] for r in rows])), 4) for n in names},
        "solver_seconds": {n: round(sum(r["seconds"][n] for r in rows), 1) for n in names},
        "by_layer": rows,
    }
    path = RECORDS / f"layers-{options.model}-{options.sparsity:g}.json"
    with whole_or_nothing(path) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf8")
    print(json.dumps({key: record[key] for key in ("mean_error_to_wanda", "solver_seconds")}, indent=1), path)


if __name__ == "__main__":
    main()
