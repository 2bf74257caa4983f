"""Seconds of one whole cell (sample, prune, score), beside its counted floor and the same cell made of stock parts.

    python tests/benchmarks/cell.py                              # profile `quick`'s sizes, some minutes
    python tests/benchmarks/cell.py --n 4 --limit 4              # a quick look

The floor counts 2 operations a weight and token at this machine's own matrix rate (`igsp.pruning.cost`). Stock parts:
lm-eval's `HFLM` in batches of 8 with float32 softmax on the very same items, and llm-compressor's `oneshot` where it is
installed. Every part runs in this process and in this order, one after the other; the record holds wall-clock and
processor seconds and their ratios, and goes to `book/results/benchmarks/`.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import time
from collections.abc import Callable
from typing import Any

from cpu import RECORDS, machine
from lm_eval.evaluator import evaluate as lm_eval_evaluate
from lm_eval.models.huggingface import HFLM

from igsp.assets import whole_or_nothing
from igsp.models import load_model
from igsp.pruning.cost import plan, reading
from igsp.pruning.driver import prune
from igsp.scoring.evaluation import evaluate, suite_texts
from igsp.scoring.suites import load_suite, task_folders
from igsp.scoring.tasks import load_tasks, shares
from igsp.text.windows import CalibrationSet, sample


def timed(work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    started, cpu = time.perf_counter(), time.process_time()
    found = work()
    return found, {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu}


def stock_scores(lm: Any, suite: str, limit: int | None) -> None:
    """The same items through lm-eval's own model class."""
    loaded = load_suite(suite)
    tasks: dict[str, Any] = {}
    samples: dict[str, list[int]] = {}
    for entry in loaded.tasks:
        members = load_tasks(entry.task, task_folders(loaded), entry.shots, entry.runs_code)
        tasks |= members
        few = min((n for n in (entry.limit, limit) if n), default=None)
        samples |= {name: list(range(n)) for name, n in shares(members, few).items()}
    stock = HFLM(pretrained=lm.model, tokenizer=copy.deepcopy(lm.tokenizer), batch_size=8, softmax_dtype="float32")
    lm_eval_evaluate(lm=stock, task_dict={"tasks": tasks, "groups": {}}, samples=samples, bootstrap_iters=0)


def stock_prune(lm: Any, calibration: CalibrationSet, sparsity: float) -> None:
    """The same windows through llm-compressor's SparseGPT."""
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.pruning import SparseGPTModifier

    rows = Dataset.from_dict({"input_ids": calibration.ids.tolist()})
    recipe = SparseGPTModifier(sparsity=sparsity, targets="Linear", ignore=["lm_head"])
    oneshot(model=lm.model, dataset=rows, recipe=recipe, num_calibration_samples=len(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--source", default="stdlib")
    parser.add_argument("--suite", default="quick")
    parser.add_argument("--n", type=int, default=16)
    parser.add_argument("--seqlen", type=int, default=256)
    parser.add_argument("--sparsity", type=float, default=0.6)
    parser.add_argument("--limit", type=int, help="items a task, below the suite's own limits")
    options = parser.parse_args()

    lm, spare = load_model(options.model), load_model(options.model)
    parts: dict[str, dict[str, float]] = {}
    calibration, parts["sample"] = timed(lambda: sample(options.source, lm.tokenizer, options.n, options.seqlen))
    _, parts["prune"] = timed(lambda: prune(lm, calibration, sparsity=options.sparsity))
    _, parts["score"] = timed(lambda: evaluate(lm, options.suite, limit=options.limit, progress=False))
    _, parts["score, stock"] = timed(lambda: stock_scores(lm, options.suite, options.limit))
    if importlib.util.find_spec("llmcompressor"):
        _, parts["prune, stock"] = timed(lambda: stock_prune(spare, calibration, options.sparsity))
    texts = set().union(*suite_texts(options.suite).values())
    tokens = sum(map(len, lm.tokenizer(sorted(texts))["input_ids"]))
    floor = {"prune": plan(options.model, options.n, options.seqlen).floor}
    if options.limit is None:
        floor["score"] = reading(options.model, tokens).floor
    ratios = {f"{name} over its floor": parts[name]["seconds"] / seconds for name, seconds in floor.items()}
    ratios |= {f"{name} over {name.split(',')[0]}": parts[name]["seconds"] / parts[name.split(",")[0]]["seconds"]
               for name in parts if "stock" in name}
    record = {"settings": vars(options), "machine": machine(), "parts": parts, "floor": floor, "ratios": ratios}
    path = RECORDS / f"cell-{options.model}-{options.suite}.json"
    if options.limit is None:
        with whole_or_nothing(path) as place:
            place.write_text(json.dumps(record, indent=1) + "\n", encoding="utf8")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
