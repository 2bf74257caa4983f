"""What the calibration text decides: masks of one text, values of the kept weights of another, every pair scored.

    IGSP_DATA=... python tests/benchmarks/mask_or_values.py [--part 0/2]

SparseGPT's mask under the dense statistics of one text; the kept weights solved anew (`refit`) under those of another.
One JSON per pair goes to `book/results/mask-or-values/`, with likelihood retention by dimension; pairs that are there
already are passed over, so a stopped run goes on. `--part k/m` takes every m-th pair, for several processes.
"""

from __future__ import annotations

import argparse
import copy
import functools
import itertools
import json
import time
from pathlib import Path

import torch

from igsp.assets import whole_or_nothing
from igsp.models import LanguageModel, load_model
from igsp.provenance import provenance
from igsp.pruning.blocks import find_blocks, weight_matrix
from igsp.pruning.driver import collect_statistics, prune
from igsp.pruning.masks import mask_sample, overlap
from igsp.pruning.report import PruneReport
from igsp.pruning.solvers import refit
from igsp.pruning.statistics import Statistics
from igsp.scoring.contamination import contaminated
from igsp.scoring.evaluation import evaluate
from igsp.scoring.retention import retention
from igsp.scoring.suites import BITS_PER_BYTE, load_suite
from igsp.text.windows import mix

FOLDER = Path(__file__).parents[2] / "book" / "results" / "mask-or-values"
UNIFORM = {"c4": 1, "hellaswag": 1, "codealpaca": 1, "gsm8k": 1}
TEXTS = {"c4": {"c4": 1}, "codealpaca": {"codealpaca": 1}, "gsm8k": {"gsm8k": 1}, "uniform": UNIFORM}
SUITE, N, SEQLEN, SPARSITY, DRAW = "small", 32, 512, 0.6, 0


def copied(lm: LanguageModel) -> LanguageModel:
    other = copy.copy(lm)
    other.model = copy.deepcopy(lm.model)
    return other


def statistics(lm: LanguageModel, name: str) -> Statistics:
    """Gram matrices of the dense model's inputs over one text."""
    without = {source: contaminated(source, SUITE) for source in TEXTS[name]}
    windows = mix(TEXTS[name], lm.tokenizer, N, SEQLEN, DRAW, without)
    return collect_statistics(lm, windows, progress=False)


def values_for(lm: LanguageModel, report: PruneReport, found: Statistics) -> tuple[LanguageModel, list[float]]:
    """A model with the masks of `report` and values solved under `found`; the relative output error of each block."""
    model, errors = copied(lm), []
    with torch.no_grad():
        for block, groups in zip(find_blocks(model.model), found.groups, strict=True):
            lost = whole = 0.0
            for group in groups:
                inputs = found.inputs[f"{block.name}.{group[0]}"]
                for name in group:
                    matrix = weight_matrix(block.linears[name])
                    dense = matrix.float()
                    solved = refit(dense, inputs, report.mask(f"{block.name}.{name}"))
                    matrix.copy_(solved.weight)
                    lost += float(solved.loss.sum())
                    whole += float(((dense @ inputs.gram) * dense).sum())
            errors.append(lost / whole)
    return model, errors


def shared(a: PruneReport, b: PruneReport) -> dict[str, float]:
    """By Linear, the share of the weights removed in `a` that `b` removes too."""
    return {m.name: round(float((a.mask(m.name) & b.mask(m.name)).sum()) / m.pruned, 4) for m in a.modules}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", default="0/1", help="k/m: every m-th pair from number k")
    first, step = map(int, parser.parse_args().part.split("/"))
    lm = load_model("smollm2-135m")
    tasks = [task.task for task in load_suite(SUITE).tasks if task.metric == BITS_PER_BYTE]
    score = functools.partial(evaluate, suite=SUITE, tasks=tasks, progress=False)
    dense = functools.cache(lambda: score(lm))
    known = functools.cache(lambda name: statistics(lm, name))

    @functools.cache
    def pruned(name: str) -> PruneReport:
        return prune(copied(lm), statistics=known(name), sparsity=SPARSITY, progress=False)

    for mask, values in list(itertools.product(TEXTS, repeat=2))[first::step]:
        path = FOLDER / f"{mask}-{values}.json"
        if path.exists():
            continue
        started = time.process_time()
        model, errors = values_for(lm, pruned(mask), known(values))
        kept = retention(score(model), dense())
        record = {
            "mask": mask, "values": values, "model": lm.name, "sparsity": SPARSITY, "n": N, "seqlen": SEQLEN,
            "draw": DRAW, "suite": SUITE,
            "retention": {name: round(found.value, 3) for name, found in kept.estimates().items()},
            "error_by_block": [round(error, 5) for error in errors],
            "mask_sample": mask_sample(pruned(mask)), "cpu_seconds": round(time.process_time() - started, 1),
            "provenance": provenance(),
        }
        if mask == values:
            others = {other: pruned(other) for other in TEXTS if other != mask}
            record["overlap_by_linear"] = {other: shared(pruned(mask), report) for other, report in others.items()}
        with whole_or_nothing(path) as temporary:
            temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf8")
        print(f"mask {mask}, values {values}: total {kept.total.value:.1f}", flush=True)
    print({name: round(overlap(mask_sample(pruned("uniform")), mask_sample(pruned(name))), 3) for name in TEXTS})


if __name__ == "__main__":
    main()
