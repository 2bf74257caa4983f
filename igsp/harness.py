"""The one file that knows lm-evaluation-harness (lm-eval 0.4.13): tasks from local rows, a live model as scorer.

Imported only when something is evaluated: lm-eval takes seconds to import.
"""

from __future__ import annotations

import copy
import gzip
import hashlib
import json
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import lm_eval.api.model
import lm_eval.api.task
import lm_eval.models.huggingface
import torch
from lm_eval.api.task import ConfigurableTask, Task
from lm_eval.evaluator import evaluate as lm_eval_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml
from tqdm import tqdm

from igsp.errors import NumericalError, UnknownName, UsageError
from igsp.items import rows as item_rows
from igsp.models import LanguageModel

Request = tuple[Any, list[int], list[int]]  # key, tokens of the context, tokens of the continuation


@dataclass(frozen=True)
class Group:
    """Requests with a common prefix: its tokens, the input tokens of each request after it, the requests' indices."""

    prefix: tuple[int, ...]
    tails: list[list[int]]
    requests: list[int]

    @property
    def longest(self) -> int:
        """Length of the longest tail."""
        return max(map(len, self.tails))

    def parts(self) -> list[Group]:
        """The group itself, or its requests one by one where no prefix is shared."""
        if self.prefix and len(self.tails) > 1:
            return [self]
        return [Group((), [[*self.prefix, *tail]], [i]) for tail, i in zip(self.tails, self.requests, strict=True)]


class RowsTask(ConfigurableTask):
    """An lm-eval task whose rows are given, per split: no data set is downloaded or cached."""

    def __init__(self, config: dict[str, Any], rows: Mapping[str, Sequence[dict[str, Any]]]) -> None:
        self._rows = rows
        super().__init__(config=config)

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        self.dataset = {split: datasets.Dataset.from_list(list(rows)) for split, rows in self._rows.items()}


def load_task(name: str, folders: Sequence[Path]) -> Task:
    """An lm-eval task: `<name>.yaml` of the first folder that has one, else the task that lm-eval itself ships.

    A task file is in lm-eval's format. Where its rows come from:
    `metadata: {items: <builder>}`: built by `igsp.items`;
    `dataset_path: json` with `dataset_kwargs: {data_files: {<split>: <file>}}`: JSON lines (or `.jsonl.gz`), looked
    for beside the task file, then below the folder `$IGSP_DATA`;
    otherwise as lm-eval defines (the hub).

    Raises:
        UnknownName: neither a file nor a task of lm-eval.
        UsageError: a data file that is missing or no JSON lines.
    """
    path = _task_file(name, folders)
    if path:
        config = load_yaml(path, resolve_func=True)
        config["task"] = name
        rows = _local_rows(path, config)
        return RowsTask(config, rows) if rows else ConfigurableTask(config=config)
    manager = TaskManager()
    if name not in manager.all_subtasks:
        local = [path.stem for folder in folders for path in folder.glob("*.yaml")]
        raise UnknownName("task", name, {*local, *manager.all_subtasks})
    return manager.load([name])["tasks"][name]


def _task_file(name: str, folders: Sequence[Path]) -> Path | None:
    return next((path for folder in folders if (path := folder / f"{name}.yaml").is_file()), None)


def _local_rows(path: Path, config: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Rows per split of a task file, empty if they are not local."""
    builder = (config.get("metadata") or {}).get("items")
    if builder:
        return {config["test_split"]: item_rows(builder)}
    files = (config.get("dataset_kwargs") or {}).get("data_files")
    if config.get("dataset_path") != "json" or not isinstance(files, dict):
        return {}
    return {split: _read_jsonl(path, name) for split, name in files.items()}


def _read_jsonl(task_file: Path, name: str) -> list[dict[str, Any]]:
    mirror = os.environ.get("IGSP_DATA")
    places = [folder / name for folder in (task_file.parent, *([Path(mirror)] if mirror else []))]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise UsageError(
            f"task file '{task_file}': there is no data file {' nor '.join(map(str, places))}; "
            "put it there, or set IGSP_DATA to the folder of a mirror"
        )
    try:
        content = gzip.decompress(found.read_bytes()) if found.suffix == ".gz" else found.read_bytes()
        return [json.loads(line) for line in content.decode("utf8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise UsageError(f"data file '{found}' is not in JSON lines: {error}") from None


def task_sha256(name: str, folders: Sequence[Path], limit: int | None) -> str:
    """SHA-256 of a task file and of its first `limit` local rows; of the name alone for a task of lm-eval."""
    path = _task_file(name, folders)
    if path is None:
        return hashlib.sha256(name.encode()).hexdigest()
    rows = {split: found[:limit] for split, found in _local_rows(path, load_yaml(path, resolve_func=False)).items()}
    return hashlib.sha256(path.read_bytes() + json.dumps(rows, sort_keys=True).encode()).hexdigest()


class Scorer(HFLM):
    """lm-eval's Hugging Face model, scoring with less work and in float32.

    Against the stock class: choices that share a context run it once, the language-model head runs on the scored
    positions alone and a cache-sized block at a time, log-probabilities are float32 whatever the model computes
    in, and batches are filled by tokens.
    """

    def __init__(self, lm: LanguageModel, batch_size: int | None, tokens: int, progress: bool) -> None:
        with _quiet():
            super().__init__(
                pretrained=lm.model, backend="causal", add_bos_token=False, max_length=lm.max_positions,
                tokenizer=copy.deepcopy(lm.tokenizer),  # lm-eval may add a pad token to it
                batch_size=1 << 30,  # all requests in one call: batches are cut below
            )
        self._sequences, self._tokens, self._progress, self._name = batch_size or 1 << 30, tokens, progress, lm.name
        self._block = 128 if lm.device.type == "cpu" else 4096  # positions whose logits fit the processor's cache
        self._decoder = _decoder(lm.model)
        self._shares = _full_attention(lm.model.config)

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """Log-probability (nats) of each continuation and whether greedy decoding would write it."""
        scores: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        with tqdm(total=len(requests), desc="scoring", disable=not self._progress, leave=False) as bar:
            for batch in batches(self._groups(requests), self._sequences, self._tokens):
                indices = [i for group in batch for i in group.requests]
                for i, answer in zip(indices, self._score(batch, [requests[i][2] for i in indices]), strict=True):
                    scores[i] = answer
                bar.update(len(indices))
        return scores

    def _groups(self, requests: Sequence[Request]) -> list[Group]:
        """Requests by shared prefix: all tokens of the context but the last, which predicts the first scored one."""
        groups: dict[tuple[int, ...], Group] = {}
        for index, (_, context, continuation) in enumerate(requests):
            tokens = (context + continuation)[-(self.max_length + 1) :]
            cut = len(tokens) - len(continuation) - 1 if self._shares else 0
            group = groups.setdefault(tuple(tokens[:cut]), Group(tuple(tokens[:cut]), [], []))
            group.tails.append(tokens[cut:-1])
            group.requests.append(index)
        found = [part for group in groups.values() for part in group.parts()]
        return sorted(found, key=lambda group: (-len(group.prefix), -group.longest, group.requests))

    @torch.inference_mode()
    def _score(self, batch: Sequence[Group], continuations: Sequence[list[int]]) -> list[tuple[float, bool]]:
        """Scores the tails of groups, row after row; a continuation is what its tail predicts at its end."""
        body = self._decoder or self.model
        owner = torch.tensor([row for row, group in enumerate(batch) for _ in group.tails], device=self.device)
        tails = [tail for group in batch for tail in group.tails]
        ids, mask = self._padded(tails)
        if batch[0].prefix:
            shared, before = self._padded([group.prefix for group in batch])
            cache = body(shared, attention_mask=before, use_cache=True).past_key_values
            cache.batch_select_indices(owner)
            positions = before.sum(1)[owner][:, None] + torch.arange(ids.shape[1], device=self.device)
            mask = torch.cat([before[owner], mask], 1)
            states = body(ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True)[0]
        else:  # padding lies to the right of everything that is scored: causal attention needs no mask for it
            states = body(ids, use_cache=False)[0]
        sizes = [len(tokens) for tokens in continuations]
        ends = [len(tail) for tail in tails]
        spans = [states[row, end - size : end] for row, (end, size) in enumerate(zip(ends, sizes, strict=True))]
        targets = torch.tensor([token for tokens in continuations for token in tokens], device=self.device)
        likelihood, greedy = self._likelihood(torch.cat(spans), targets)
        totals = [part.sum(dtype=torch.float64).item() for part in likelihood.split(sizes)]
        if not all(map(math.isfinite, totals)):
            raise NumericalError(
                f"model '{self._name}' gives a text no finite likelihood: its weights or activations are not finite"
            )
        return list(zip(totals, [bool(part.all()) for part in greedy.split(sizes)], strict=True))

    def _padded(self, rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows padded on the right to one length, and their attention mask, both `[rows, length]`."""
        length = max(map(len, rows))
        ids = torch.tensor([[*row, *[0] * (length - len(row))] for row in rows], device=self.device)
        mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows], device=self.device)
        return ids, mask

    def _likelihood(self, states: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probability of each target `[positions]`, and whether it is the most likely token."""
        likelihood, greedy = [], []
        for part, target in zip(states.split(self._block), targets.split(self._block), strict=True):
            logits = (self.model.get_output_embeddings()(part) if self._decoder else part).float()
            own = logits.gather(1, target[:, None])[:, 0]
            likelihood.append(own - logits.logsumexp(-1))
            greedy.append(own == logits.amax(-1))
        return torch.cat(likelihood), torch.cat(greedy)


@torch.inference_mode()
def _decoder(model: Any) -> Any:
    """The model without its head, if output embeddings after it give the model's logits; else None.

    They do not where a model scales or caps its logits; such a model is called as a whole.
    """
    head, decoder = model.get_output_embeddings(), model.get_decoder()
    if head is None or decoder is None or decoder is model:
        return None
    probe = torch.arange(1, 9, device=model.device)[None]
    whole, split = model(probe, use_cache=False).logits.float(), head(decoder(probe, use_cache=False)[0]).float()
    return decoder if (whole - split).abs().max() <= 0.02 * whole.abs().max() else None


def _full_attention(config: Any) -> bool:
    """Whether every layer attends to all that came before: only then may padding stand inside a cached prefix."""
    kinds = getattr(config, "layer_types", None)
    return set(kinds) == {"full_attention"} if kinds else getattr(config, "sliding_window", None) is None


def batches(groups: Sequence[Group], sequences: int, tokens: int) -> Iterator[list[Group]]:
    """Cuts groups, ordered by length, into batches of at most `sequences` rows and `tokens` padded tokens.

    A group is never cut, and groups with and without a prefix are not mixed.
    """
    batch: list[Group] = []
    rows = longest = 0
    for group in groups:
        longest = max(longest, group.longest)
        rows += len(group.tails)
        full = rows > sequences or rows * (len((batch or [group])[0].prefix) + longest) > tokens
        if batch and (full or bool(group.prefix) != bool(batch[0].prefix)):
            yield batch
            batch, rows, longest = [], len(group.tails), group.longest
        batch.append(group)
    if batch:
        yield batch


@contextmanager
def _quiet() -> Iterator[None]:
    """Switches off lm-eval's own bars, one per task and step, for which it offers no argument, and its advice."""
    modules: tuple[Any, ...] = (lm_eval.api.task, lm_eval.api.model, lm_eval.models.huggingface)
    before = [module.tqdm for module in modules]
    log = logging.getLogger("lm_eval")
    level = log.level
    log.setLevel(logging.ERROR)
    for module in modules:
        module.tqdm = lambda *args, **options: tqdm(*args, **{**options, "disable": True})
    try:
        yield
    finally:
        log.setLevel(level)
        for module, bar in zip(modules, before, strict=True):
            module.tqdm = bar


def run(scorer: Scorer, tasks: dict[str, Task], limits: dict[str, int | None]) -> dict[str, list[dict[str, Any]]]:
    """lm-eval's per-item results of each task, in the order of its rows, for the first `limits[task]` of them."""
    chosen = {name: list(range(min(limit, len(tasks[name].eval_docs)))) for name, limit in limits.items() if limit}
    for task in tasks.values():
        task.set_config("num_fewshot", task.get_config("num_fewshot") or 0)
    with _quiet():
        found = lm_eval_evaluate(
            lm=scorer, task_dict={"tasks": tasks, "groups": {}}, samples=chosen, bootstrap_iters=0, log_samples=True
        )
    return {name: sorted(found["samples"][name], key=lambda item: item["doc_id"]) for name in tasks}
