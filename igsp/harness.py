"""The one file that knows lm-evaluation-harness (lm-eval 0.4.13): tasks from local rows, a live model as scorer.

Imported only when something is evaluated: lm-eval takes seconds to import.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import lm_eval.api.model
import lm_eval.api.task
import torch
from lm_eval.api.task import ConfigurableTask, Task
from lm_eval.evaluator import evaluate as lm_eval_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml
from torch.nn.functional import pad
from tqdm import tqdm

from igsp.errors import NumericalError, UnknownName
from igsp.items import rows as item_rows
from igsp.models import LanguageModel

Request = tuple[Any, list[int], list[int]]  # key, tokens of the context, tokens of the continuation


class RowsTask(ConfigurableTask):
    """An lm-eval task whose rows are given: no data set is downloaded or cached."""

    def __init__(self, config: dict[str, Any], rows: Sequence[dict[str, Any]]) -> None:
        self._rows = list(rows)
        super().__init__(config=config)

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        self.dataset = {self.config.test_split: datasets.Dataset.from_list(self._rows)}


def load_task(name: str, folders: Sequence[Path]) -> Task:
    """An lm-eval task: `<name>.yaml` of the first folder that has one, else the task that lm-eval itself ships.

    A task file is in lm-eval's format. `metadata: {items: <builder>}` takes its rows from `igsp.items`;
    without it `dataset_path` says where the rows are, as lm-eval defines.

    Raises:
        UnknownName: neither a file nor a task of lm-eval.
    """
    for folder in folders:
        path = folder / f"{name}.yaml"
        if path.exists():
            config = load_yaml(path, resolve_func=True)
            builder = (config.get("metadata") or {}).get("items")
            return RowsTask(config, item_rows(builder)) if builder else ConfigurableTask(config=config)
    manager = TaskManager()
    if name not in manager.all_subtasks:
        local = [path.stem for folder in folders for path in folder.glob("*.yaml")]
        raise UnknownName("task", name, {*local, *manager.all_subtasks})
    return manager.load([name])["tasks"][name]


class Scorer(HFLM):
    """lm-eval's Hugging Face model, scoring with less work and in float32.

    Against the stock class: the language-model head runs on the scored positions alone (for a short answer
    after a long context that is most of its cost), log-probabilities are float32 whatever the
    model computes in, equal inputs run once, and batches are filled by tokens.
    """

    def __init__(self, lm: LanguageModel, batch_size: int | None, tokens: int, progress: bool) -> None:
        # lm-eval may add a pad token to the tokenizer it is given
        super().__init__(
            pretrained=lm.model, tokenizer=copy.deepcopy(lm.tokenizer), backend="causal", add_bos_token=False,
            batch_size=1 << 30, max_length=lm.max_positions,  # one call for all requests: batches are cut below
        )
        self._sequences, self._tokens, self._progress, self._name = batch_size or 1 << 30, tokens, progress, lm.name
        self._keeps = "logits_to_keep" in inspect.signature(lm.model.forward).parameters

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """Log-probability (nats) of each continuation and whether greedy decoding would write it."""
        inputs: dict[tuple[int, ...], list[int]] = {}
        for index, (_, context, continuation) in enumerate(requests):
            inputs.setdefault(tuple((context + continuation)[-(self.max_length + 1) :][:-1]), []).append(index)
        scores: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        with tqdm(total=len(requests), desc="scoring", disable=not self._progress, leave=False) as bar:
            for batch in batches(sorted(inputs, key=lambda tokens: (-len(tokens), tokens)), self._sequences, self._tokens):
                wanted = [(row, i) for row, tokens in enumerate(batch) for i in inputs[tokens]]
                answers = self._score_batch(batch, [(row, requests[i][2], requests[i][0] is not None) for row, i in wanted])
                for (_, i), answer in zip(wanted, answers, strict=True):
                    scores[i] = answer
                bar.update(len(wanted))
        return scores

    @torch.inference_mode()
    def _score_batch(
        self, batch: Sequence[tuple[int, ...]], wanted: Sequence[tuple[int, list[int], bool]]
    ) -> list[tuple[float, bool]]:
        """Scores `wanted` = (row, continuation tokens, greedy asked for) on one right-padded batch."""
        length = max(map(len, batch))
        first = min(len(batch[row]) - len(continuation) for row, continuation, _ in wanted)
        ids = torch.stack([pad(torch.tensor(tokens), (0, length - len(tokens))) for tokens in batch]).to(self.device)
        keep = {"logits_to_keep": length - first} if self._keeps else {}
        # padding lies to the right of everything that is scored, so causal attention needs no mask for it
        logits = self.model(ids, use_cache=False, **keep).logits  # [batch, positions kept, vocabulary]
        first = length - logits.shape[1]
        results = []
        for row, continuation, greedy in wanted:
            end = len(batch[row]) - first
            scored = torch.log_softmax(logits[row, end - len(continuation) : end], -1, dtype=torch.float32)
            target = torch.tensor(continuation, device=self.device)
            own = scored.gather(1, target[:, None])[:, 0]
            results.append((own.sum(dtype=torch.float64), (own == scored.amax(-1)).all() if greedy else None))
        values = [(total.item(), bool(best) if best is not None else False) for total, best in results]
        if not all(torch.isfinite(torch.tensor([total for total, _ in values]))):
            raise NumericalError(f"model '{self._name}' gives a text no finite likelihood: its weights or activations overflow")
        return values


def batches(inputs: Sequence[tuple[int, ...]], sequences: int, tokens: int) -> Iterator[list[tuple[int, ...]]]:
    """Cuts inputs, longest first, into batches of at most `sequences` rows and `tokens` padded tokens (one row at least)."""
    start = 0
    while start < len(inputs):
        rows = max(1, min(sequences, tokens // max(1, len(inputs[start]))))
        yield list(inputs[start : start + rows])
        start += rows


@contextmanager
def _no_bars() -> Iterator[None]:
    """Switches off lm-eval's own bars, one per task and step, which it offers no argument for."""
    modules: tuple[Any, ...] = (lm_eval.api.task, lm_eval.api.model)
    before = [module.tqdm for module in modules]
    for module in modules:
        module.tqdm = functools.partial(tqdm, disable=True)
    try:
        yield
    finally:
        for module, bar in zip(modules, before, strict=True):
            module.tqdm = bar


def run(scorer: Scorer, tasks: dict[str, Task], limits: dict[str, int | None]) -> dict[str, list[dict[str, Any]]]:
    """lm-eval's per-item results of each task, in the order of its rows, for the first `limits[task]` of them."""
    chosen = {name: list(range(min(limit, len(tasks[name].eval_docs)))) for name, limit in limits.items() if limit}
    for task in tasks.values():
        task.set_config("num_fewshot", task.get_config("num_fewshot") or 0)
    with _no_bars():
        found = lm_eval_evaluate(
            lm=scorer, task_dict={"tasks": tasks, "groups": {}}, samples=chosen, bootstrap_iters=0, log_samples=True
        )
    return {name: sorted(found["samples"][name], key=lambda item: item["doc_id"]) for name in tasks}
