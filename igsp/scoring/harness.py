"""The one file that knows lm-evaluation-harness (lm-eval 0.4.13): tasks from local rows, a live model as scorer.

Imported only when something is evaluated: lm-eval takes seconds to import.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import logging
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import datasets
import jinja2
import lm_eval.api.model
import lm_eval.api.task
import torch
from lm_eval.api.task import ConfigurableTask, Task
from lm_eval.evaluator import evaluate as lm_eval_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import Entry, Kind, TaskIndex
from lm_eval.tasks._yaml_loader import load_yaml
from lm_eval.utils import env as templates
from tqdm import tqdm

from igsp.errors import NumericalError, UnknownName, UsageError
from igsp.models import LanguageModel, leading_tokens
from igsp.scoring.items import NotAtHand, Row, cut, file_rows, in_fixed_order, pack, table
from igsp.scoring.items import rows as item_rows
from igsp.text.windows import largest_remainder

PASS_AT_1 = "pass@1"
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

    def __init__(self, config: dict[str, Any], rows: Mapping[str, Sequence[Row]], parts: Sequence[str] = ()) -> None:
        self._rows, self._parts = rows, parts
        super().__init__(config=config)

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        self.dataset = {split: datasets.Dataset.from_list(list(rows)) for split, rows in self._rows.items()}

    @functools.cached_property
    def eval_docs(self) -> datasets.Dataset:
        """The rows to score; lm-eval would process them anew at every look."""
        return super().eval_docs

    def texts(self, limit: int) -> list[str]:
        """What pieces are made of; else texts of at least 25 characters of the first rows, shared by at most 5 rows."""
        if self._parts:
            return list(self._parts)
        rows = [list(_strings(row)) for row in self._rows[self.config.test_split]]
        counts = Counter(text for row in rows for text in row)
        return list(dict.fromkeys(text for row in rows[:limit] for text in row if counts[text] <= 5))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str) and len(value) >= 25:
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)


def load_tasks(
    name: str, folders: Sequence[Path], shots: int | None = None, run_code: bool = False, hub: bool = True
) -> dict[str, RowsTask]:
    """The tasks behind a name: one, or the members of a group or tag of lm-eval.

    The file is `<name>.yaml` of the first folder that has one, else lm-eval's own, in lm-eval's format. Of ours,
    `metadata: {based_on: <task of lm-eval>}` takes over whatever the file does not say. Where the rows come from:
    `metadata: {items: <builder>}`: built by `igsp.items`;
    `dataset_path: json` with `dataset_kwargs: {data_files: {<split>: <file>}}`: JSON lines (or `.jsonl.gz`), looked
    for beside the task file, then below the folder `$IGSP_DATA`;
    otherwise the mirror `$IGSP_DATA`, then the hub (`igsp.scoring.items.table`), in a fixed pseudo-random order.
    `metadata: {piece_bytes: n}` cuts and joins the texts to be scored (`doc_to_target`) to pieces of about n bytes.

    Args:
        shots: worked examples in the prompt; None for the task's own number in a file of ours, else none.
        run_code: whether a task may run programs that the model writes.
        hub: whether to ask the hub for what the mirror lacks.

    Raises:
        UnknownName: neither a file nor a name of lm-eval.
        UsageError: a data file that is missing; rows whose columns are not those that the task reads;
            a task that runs programs, without `run_code`; a package missing that the task imports.
        NotAtHand: data sets that neither the mirror nor the hub gives, all of them in one message.
    """
    missing, tasks = [], {}
    for member, path in _files(name, folders):
        try:
            tasks[member] = _build(member, path, shots, run_code, hub)
        except NotAtHand as error:
            missing += error.missing
            hub = hub and error.hub_answers  # it tried for half a minute: once is enough
    if missing:
        raise NotAtHand(missing, hub)
    return tasks


def load_task(name: str, folders: Sequence[Path], shots: int | None = None, run_code: bool = False) -> RowsTask:
    """As `load_tasks`, for the name of a single task."""
    tasks = load_tasks(name, folders, shots, run_code)
    if len(tasks) > 1:
        raise UsageError(f"'{name}' is a group of {len(tasks)} tasks, one task is wanted here")
    return next(iter(tasks.values()))


def _files(name: str, folders: Sequence[Path]) -> list[tuple[str, Path]]:
    """Name and file of each task behind a name."""
    path = _task_file(name, folders)
    if path:
        return [(name, path)]
    index = _lm_eval_index(name)
    if name not in index:
        local = [path.stem for folder in folders for path in folder.glob("*.yaml")]
        raise UnknownName("task", name, {*local, *TaskManager().all_tasks})
    return _members(index, name)


def _members(index: Mapping[str, Entry], name: str) -> list[tuple[str, Path]]:
    entry = index[name]
    if entry.kind is Kind.TASK and entry.yaml_path:
        return [(name, entry.yaml_path)]
    inside = entry.tags if entry.kind is Kind.TAG else (entry.cfg or {}).get("task")
    if not isinstance(inside, list | set) or not all(isinstance(member, str) for member in inside):
        raise UsageError(f"task '{name}' of lm-eval is made by a program of its own: name its members one by one")
    return [task for member in sorted(inside) for task in _members(index, member)]


@functools.lru_cache(maxsize=32)
def _lm_eval_index(name: str) -> dict[str, Entry]:
    """lm-eval's index of tasks, of the one folder that defines `name`: reading all its files takes 15 s."""
    root = Path(str(importlib.util.find_spec("lm_eval").submodule_search_locations[0])) / "tasks"  # type: ignore
    line = re.compile(rf"^['\"]?(?:task|group)['\"]?: *['\"]?{re.escape(name)}['\"]? *$", re.MULTILINE)
    found = next((path for path in sorted(root.rglob("*.yaml")) if line.search(path.read_text("utf8"))), None)
    with _quiet():
        return TaskIndex.build([root / found.relative_to(root).parts[0]]) if found else TaskManager().task_index


def _build(name: str, path: Path, shots: int | None, run_code: bool, hub: bool) -> RowsTask:
    config = _config(name, path, run_code)
    shots = (config.get("num_fewshot") or 0) if shots is None else shots
    split = config["test_split"] = config.get("test_split") or config.get("validation_split")
    if not split:
        raise UsageError(f"task '{name}' ({path.name}) names neither a test_split nor a validation_split")
    rows = _local_rows(path, config, hub) or _hub_rows(config, split, shots, hub)
    parts: list[str] = []
    try:
        if size := (config.get("metadata") or {}).get("piece_bytes"):
            template = templates.from_string(config["doc_to_target"])
            parts = [cut(template.render(**row).strip(), size) for row in rows[split]]
            rows, config["doc_to_target"] = {split: [{"text": piece} for piece in pack(parts, size)]}, "text"
        with _quiet():
            task = RowsTask({**config, "task": name, "num_fewshot": shots}, rows, parts)
    except (KeyError, TypeError, AttributeError, ValueError, jinja2.UndefinedError) as error:
        columns = ", ".join(rows[split][0]) if rows.get(split) else "none, it has no rows"
        raise UsageError(
            f"task '{name}' ({path.name}) does not fit the rows of '{config.get('dataset_path', path)}': {error}; "
            f"columns there: {columns}"
        ) from error
    task.set_fewshot_seed(1234)  # lm-eval's own default
    return task


def _config(name: str, path: Path, run_code: bool) -> dict[str, Any]:
    """A task file with the functions it names, on top of the one it is based on."""
    plain = load_yaml(path, resolve_func=False)
    base = (plain.get("metadata") or {}).get("based_on")
    if base:
        return _config(name, _members(_lm_eval_index(base), base)[0][1], run_code) | load_yaml(path)
    if not plain.get("unsafe_code"):
        return _import_config(name, path)
    if not run_code:
        raise UsageError(
            f"task '{name}' runs programs that the model writes: mark it 'runs_code: true' in the suite and allow it "
            "with run_code=True (`igsp evaluate --run-code`; they run in a sandbox), or leave it out"
        )
    # on import lm-eval asks the hub for a metric that would run the programs right here: the sandbox runs them instead
    with mock.patch("evaluate.load"):
        config = _import_config(name, path)
    config["metric_list"] = [{"metric": _not_run_yet, "aggregation": "mean", "higher_is_better": True}]
    return config


def _import_config(name: str, path: Path) -> dict[str, Any]:
    try:
        return load_yaml(path)
    except ImportError as error:
        raise UsageError(f"task '{name}' needs packages that are not installed: {error}") from error


def _not_run_yet(references: list[str], predictions: list[Any]) -> dict[str, float]:
    return {PASS_AT_1: math.nan}


def _task_file(name: str, folders: Sequence[Path]) -> Path | None:
    return next((path for folder in folders if (path := folder / f"{name}.yaml").is_file()), None)


def _local_rows(path: Path, config: dict[str, Any], hub: bool = True) -> dict[str, list[Row]]:
    """Rows per split of a task file, empty if they are not local."""
    builder = (config.get("metadata") or {}).get("items")
    if builder:
        return {config["test_split"]: item_rows(builder, hub)}
    files = (config.get("dataset_kwargs") or {}).get("data_files")
    if config.get("dataset_path") != "json" or not isinstance(files, dict):
        return {}
    return {split: list(file_rows(_data_file(path, name))) for split, name in files.items()}


def _data_file(task_file: Path, name: str) -> Path:
    mirror = os.environ.get("IGSP_DATA")
    places = [folder / name for folder in (task_file.parent, *([Path(mirror)] if mirror else []))]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise UsageError(
            f"task file '{task_file}': there is no data file {' nor '.join(map(str, places))}; "
            "put it there, or set IGSP_DATA to the folder of a mirror"
        )
    return found


def _hub_rows(config: dict[str, Any], split: str, shots: int, hub: bool) -> dict[str, list[Row]]:
    """Rows of the evaluated split and, where examples are drawn from one, of that split; no other is read."""
    path, name, options = config.get("dataset_path"), config.get("dataset_name"), config.get("dataset_kwargs") or {}
    if not path:
        raise UsageError(f"task '{config['task']}' names no rows: neither a dataset_path nor metadata: {{items: ...}}")
    options = {key: value for key, value in options.items() if key != "trust_remote_code"}
    own = (config.get("fewshot_config") or {}).get("samples")
    examples = config.get("fewshot_split") or config.get("training_split") or config.get("validation_split")
    examples = examples if shots and not own else None
    config |= {"training_split": None, "validation_split": None, "fewshot_split": examples}
    rows = {part: table(path, name, part, hub, **options) for part in dict.fromkeys([split, examples]) if part}
    return {part: in_fixed_order(found) if part == split else list(found) for part, found in rows.items()}


def task_sha256(name: str, folders: Sequence[Path], limit: int | None) -> str:
    """SHA-256 of a task's file (for a task of lm-eval: of its name and lm-eval's version) and of its first rows."""
    path = _task_file(name, folders)
    if path and (rows := _local_rows(path, load_yaml(path, resolve_func=False))):
        few = {split: found[:limit] for split, found in rows.items()}
        return hashlib.sha256(path.read_bytes() + json.dumps(few, sort_keys=True).encode()).hexdigest()
    made_from = path.read_text("utf8") if path else f"{name} of lm-eval {importlib.metadata.version('lm-eval')}"
    return _published_sha256(name, tuple(folders), limit, made_from, os.environ.get("IGSP_DATA"))


@functools.lru_cache(maxsize=256)
def _published_sha256(
    name: str, folders: tuple[Path, ...], limit: int | None, made_from: str, mirror: str | None
) -> str:
    tasks = load_tasks(name, folders, shots=0, run_code=True)
    few = {member: list(tasks[member].eval_docs)[:n] for member, n in shares(tasks, limit).items()}
    return hashlib.sha256(json.dumps([made_from, few], sort_keys=True, default=str).encode()).hexdigest()


def shares(tasks: Mapping[str, Task], limit: int | None) -> dict[str, int]:
    """How many items each of the members of a group gives to `limit` items: in proportion to their sizes."""
    sizes = {name: len(task.eval_docs) for name, task in tasks.items()}
    total = sum(sizes.values())
    return largest_remainder(sizes, limit) if limit and limit < total else sizes


class Scorer(HFLM):
    """lm-eval's Hugging Face model, scoring with less work and in float32.

    Against the stock class: choices that share a context run it once, the language-model head runs on the scored
    positions alone and a cache-sized block at a time, log-probabilities are float32 whatever the model computes
    in, and batches are filled by tokens.
    """

    def __init__(self, lm: LanguageModel, batch_size: int | None, tokens: int, progress: bool) -> None:
        with _quiet():
            super().__init__(
                pretrained=lm.model, backend="causal", max_length=lm.max_positions,
                add_bos_token=bool(leading_tokens(lm.tokenizer)),
                tokenizer=copy.deepcopy(lm.tokenizer),  # lm-eval may add a pad token to it
                batch_size=1 << 30,  # all requests in one call: batches are cut below
            )
        self._sequences, self._tokens, self.progress, self._name = batch_size or 1 << 30, tokens, progress, lm.name
        self._at_once = batch_size or tokens // 1024  # sequences that are written at the same time
        self._block = 128 if lm.device.type == "cpu" else 4096  # positions whose logits fit the processor's cache
        self._decoder = _decoder(lm.model)
        self._shares = _full_attention(lm.model.config)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Text that greedy decoding (or what the task says) writes after each context."""
        before: int = self.batch_size
        self.batch_size_per_gpu = self._at_once
        try:
            return super().generate_until(requests, disable_tqdm=not self.progress)
        finally:
            self.batch_size_per_gpu = before

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood (nats) of each whole text."""
        return super().loglikelihood_rolling(requests, disable_tqdm=True)  # the bar is that of the scoring below

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """Log-probability (nats) of each continuation and whether greedy decoding would write it."""
        scores: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        with tqdm(total=len(requests), desc="scoring", disable=not self.progress, leave=False) as bar:
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
            split = len(tokens) - len(continuation) - 1 if self._shares else 0
            group = groups.setdefault(tuple(tokens[:split]), Group(tuple(tokens[:split]), [], []))
            group.tails.append(tokens[split:-1])
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
    modules: tuple[Any, ...] = (lm_eval.api.task, lm_eval.api.model)
    before = [module.tqdm for module in modules]
    log = logging.getLogger("lm_eval")
    level, bars = log.level, datasets.are_progress_bars_disabled()
    log.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    for module in modules:
        module.tqdm = lambda *args, **options: tqdm(*args, **{**options, "disable": True})
    try:
        yield
    finally:
        log.setLevel(level)
        if not bars:
            datasets.enable_progress_bars()
        for module, bar in zip(modules, before, strict=True):
            module.tqdm = bar


def run(
    scorer: Scorer, tasks: Mapping[str, Task], limits: Mapping[str, int], part: tuple[int, int] = (0, 1)
) -> dict[str, list[dict[str, Any]]]:
    """lm-eval's per-item results of each task, in the order of its rows, for a part of the first `limits[task]`.

    A task with several filters gives one result per item and filter.
    """
    chosen = {name: list(range(n))[part[0] :: part[1]] for name, n in limits.items() if n > part[0]}
    with _quiet():
        found = lm_eval_evaluate(
            lm=scorer, task_dict={"tasks": {name: tasks[name] for name in chosen}, "groups": {}}, samples=chosen,
            bootstrap_iters=0, log_samples=True, confirm_run_unsafe_code=True,
        )["samples"]
    for name in chosen:
        if tasks[name].get_config("unsafe_code"):
            _run_programs(found[name], scorer.progress)
    return {name: sorted(found.get(name, []), key=lambda item: item["doc_id"]) for name in tasks}


def _run_programs(results: Sequence[dict[str, Any]], progress: bool) -> None:
    """Fills in pass@1: whether the program that was written passes the task's tests in the sandbox."""
    from igsp.scoring.sandbox import run_programs

    answers = [item["filtered_resps"][0] for item in results]
    texts = [answer if isinstance(answer, str) else answer[0] for answer in answers]
    programs = [f"{text}\n{item['target']}" for text, item in zip(texts, results, strict=True)]
    outcomes = run_programs(programs, progress=progress)
    for item, outcome in zip(results, outcomes, strict=True):
        item[PASS_AT_1] = float(outcome.passed)
