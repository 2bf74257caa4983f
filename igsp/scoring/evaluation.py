"""Scores of a live model per task and capability dimension, through lm-evaluation-harness, from local items.

Two measures per dimension. *Bits per byte* of text that no calibration source contains (ours): total bits the
model needs for the text over its total bytes, so tokenizers compare; it moves long before a choice flips.
*Accuracy* on multiple-choice items, scored by likelihood: the direction, in the paper's kind of unit.
Why text from outside the calibration sources and not their held-out fifth: the held-out fifth of a source is
the same distribution again, so each source would be its own examiner for a quarter of its dimension. A
capability is what carries over to text that no source favours.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from igsp.errors import UnknownName, UsageError
from igsp.models import LanguageModel, leading_tokens
from igsp.scoring.suites import BITS_PER_BYTE, SuiteTask, choose, load_suite, task_folders
from igsp.text.rows import NotAtHand

RESAMPLES = 1000  # for the standard error of bits per byte


@dataclass(frozen=True)
class TaskScore:
    """Score of one task.

    Attributes:
        value: bits per byte (total bits / total bytes) or the mean of the items.
        stderr: standard error of `value` over items: by resampling for bits per byte, else of the mean.
        items: per item, in the fixed order of the task: `[bits, bytes]` for bits per byte, else `[score]`. The
            same items for every model, so that differences can be paired.
    """

    task: str
    dimension: str
    metric: str
    value: float
    n: int
    stderr: float
    chance: float | None
    higher_is_better: bool
    items: tuple[tuple[float, ...], ...] = field(repr=False)


@dataclass(frozen=True)
class Scores:
    """Scores of one model on one suite; `settings` holds what changes the numbers (versions, dtype, BOS)."""

    model: str
    suite: str
    tasks: tuple[TaskScore, ...]
    settings: dict[str, Any] = field(default_factory=dict)

    def __iter__(self) -> Iterator[TaskScore]:
        return iter(self.tasks)

    def __getitem__(self, task: str) -> TaskScore:
        for score in self.tasks:
            if score.task == task:
                return score
        raise UnknownName("task", task, [score.task for score in self.tasks])

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionaries, lists and numbers, for JSON."""
        plain = asdict(self)
        plain["tasks"] = [{**task, "items": [list(item) for item in task["items"]]} for task in plain["tasks"]]
        return plain

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Scores:
        """The inverse of `to_dict`."""
        tasks = tuple(TaskScore(**{**task, "items": tuple(map(tuple, task["items"]))}) for task in plain["tasks"])
        return cls(plain["model"], plain["suite"], tasks, dict(plain["settings"]))


def suite_sha256(suite: str | Path = "quick") -> str:
    """SHA-256 of what a suite measures: its lines (without their notes), its task files and the items.

    Raises:
        AssetError: as `evaluate`.
    """
    from igsp.scoring.tasks import task_sha256  # imports lm-eval, which takes seconds

    loaded = load_suite(suite)
    parts = []
    for task in loaded.tasks:
        line = task.model_dump(exclude={"note", "only_for"})  # neither changes what a score is
        for name in ("shots", "filter", "runs_code"):
            if not line[name]:
                del line[name]
        parts.append([line, task_sha256(task.task, task_folders(loaded), task.limit)])
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def heldout_texts(suite: str | Path = "quick") -> dict[str, list[str]]:
    """Texts per dimension that the suite scores in bits per byte."""
    from igsp.scoring.tasks import load_task  # imports lm-eval, which takes seconds

    loaded = load_suite(suite)
    texts: dict[str, list[str]] = {}
    for entry in loaded.tasks:
        if entry.metric == BITS_PER_BYTE:
            task = load_task(entry.task, task_folders(loaded))
            found = [task.doc_to_target(row) for row in list(task.eval_docs)[: entry.limit]]
            texts.setdefault(entry.dimension, []).extend(found)
    return texts


def suite_items(suite: str | Path) -> dict[str, list[str]]:
    """Texts of each task's items that no calibration document should contain.

    Of a task scored in bits per byte: all texts its pieces are made of. Of any other: every text of 25 characters or
    more in the rows it scores (question, passage, answers, solution), each by itself because calibration sources put
    the same fields together in another way. A text that over 5 rows share (a category, a subject) is left out.

    Raises:
        AssetError: as `evaluate`.
    """
    from igsp.scoring.tasks import shares  # imports lm-eval, which takes seconds

    loaded = load_suite(suite)
    built = _load(loaded.tasks, task_folders(loaded))
    found = {}
    for entry in loaded.tasks:
        limits = shares(built[entry.task], entry.limit)
        found[entry.task] = [text for name, task in built[entry.task].items() for text in task.texts(limits[name])]
    return found


def suite_texts(suite: str | Path) -> dict[str, set[str]]:
    """What a suite gives a model to read, by task: contexts, once each, and continuations; raises as `evaluate`."""
    from igsp.scoring.tasks import load_tasks, quiet, shares  # imports lm-eval, which takes seconds

    loaded = load_suite(suite)
    found = {}
    for entry in loaded.tasks:
        members = load_tasks(entry.task, task_folders(loaded), entry.shots, entry.runs_code)
        for name, limit in shares(members, entry.limit).items():
            with quiet():
                members[name].build_all_requests(limit=limit)
        requests = [request.args for task in members.values() for request in task.instances]
        found[entry.task] = {text for texts in requests for text in texts if isinstance(text, str)}
    return found


def evaluate(
    lm: LanguageModel, suite: str | Path = "quick", tasks: Sequence[str] | None = None, limit: int | None = None,
    batch_size: int | None = None, progress: bool = True, run_code: bool = False,
    part: tuple[int, int] = (0, 1),
) -> Scores:
    """Scores a model on the tasks of a suite.

    Every model sees the same items in the same order, without chat template, after as many worked examples as the
    suite says (none, if nothing). A BOS token stands before a query where the tokenizer puts one itself; text for
    bits per byte is always scored after one, as lm-eval does for rolling likelihood.

    Args:
        lm: the model, dense or pruned.
        suite: a suite of the catalogue, or the path of a suite file.
        tasks: only these tasks of the suite.
        limit: at most this many items per task, below the suite's own limits.
        batch_size: most sequences per forward pass; None fills batches by tokens for the device.
        progress: show a bar.
        run_code: allow tasks that run programs which the model writes (HumanEval, MBPP), in `igsp.scoring.sandbox`,
            and functions that a task file of the suite names (`!function`), right here.
        part: `(k, m)`: of those items, only number k, k + m, k + 2m, ... Parts with one m have no item in common.

    Raises:
        UnknownName: no such suite, task, or metric or filter of a task.
        UsageError: a malformed suite file, limit or batch size below 1, a task that runs programs without
            `run_code`, rows without a column that the task reads.
        AssetError: data sets that neither the mirror `$IGSP_DATA` nor the hub gives: all of them, in one message.
        NumericalError: the model gives a text no finite likelihood.
    """
    loaded = load_suite(suite)
    chosen = choose(loaded, tasks)
    for name, value in (("limit", limit), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise UsageError(f"{name} must be at least 1, got {value}")
    programs = [task.task for task in chosen if task.runs_code]
    if programs and not run_code:
        raise UsageError(
            f"{', '.join(programs)} of suite '{loaded.name}' run programs that the model writes: allow it with "
            "run_code=True (`igsp evaluate --run-code`; they run in a sandbox), or choose other tasks with tasks=[...]"
        )
    from igsp.scoring.scorer import Scorer  # imports lm-eval, which takes seconds
    from igsp.scoring.tasks import run, shares

    built = _load(chosen, task_folders(loaded), run_code)
    limits: dict[str, int] = {}
    for task in chosen:
        limits |= shares(built[task.task], min((n for n in (task.limit, limit) if n), default=None))
        if sum(limits[name] for name in built[task.task]) < part[1]:
            raise UsageError(f"task '{task.task}' has too few items for {part[1]} parts: raise its limit")
    members = {name: member for group in built.values() for name, member in group.items()}
    results = run(Scorer(lm, batch_size, progress=progress), members, limits, part, progress)
    shots = {task.task: next(iter(built[task.task].values())).get_config("num_fewshot") for task in chosen}
    settings = {
        "lm_eval": importlib.metadata.version("lm-eval"), "add_bos_token": bool(leading_tokens(lm.tokenizer)),
        "num_fewshot": shots if any(shots.values()) else 0,
        "dtype": str(lm.dtype).removeprefix("torch."), "device": lm.device.type, "limit": limit,
    }
    scores = [_task_score(task, [r for name in built[task.task] for r in results[name]]) for task in chosen]
    return Scores(lm.name, loaded.name, tuple(scores), settings)


def _load(chosen: Sequence[SuiteTask], folders: Sequence[Path], functions: bool = False) -> dict[str, dict[str, Any]]:
    """Tasks by name behind each line of a suite."""
    from igsp.scoring.tasks import load_tasks

    built: dict[str, dict[str, Any]] = {}
    missing: list[str] = []
    hub = True
    for task in chosen:
        try:
            built[task.task] = load_tasks(task.task, folders, task.shots, task.runs_code, hub, functions)
        except NotAtHand as error:
            missing += error.missing
            hub = hub and error.hub_answers
    if missing:
        raise NotAtHand(missing, hub)
    return built


def _task_score(task: SuiteTask, results: list[dict[str, Any]]) -> TaskScore:
    if task.metric not in results[0]:
        raise UnknownName(f"metric of task '{task.task}':", task.metric, results[0]["metrics"])
    filters = sorted({result["filter"] for result in results})
    chosen = task.filter or filters[0]
    if chosen not in filters or (len(filters) > 1 and not task.filter):
        raise UnknownName(f"filter of task '{task.task}':", str(task.filter), filters)
    results = [result for result in results if result["filter"] == chosen]
    values = [result[task.metric] for result in results]
    if task.metric == BITS_PER_BYTE:
        items: tuple[tuple[float, ...], ...] = tuple((-nats / math.log(2), float(size)) for nats, size in values)
        value, stderr = ratio_with_stderr(np.array(items))
    else:
        items = tuple((float(value),) for value in values)
        value, stderr = mean_with_stderr(np.array(items)[:, 0])
    return TaskScore(
        task.task, task.dimension, task.metric, value, len(items), stderr, task.chance, task.higher_is_better, items
    )


def ratio_with_stderr(items: np.ndarray) -> tuple[float, float]:
    """Total of the first column over total of the second, `[n, 2]`, with its standard error over resampled rows."""
    value = items[:, 0].sum() / items[:, 1].sum()
    if len(items) < 2:
        return float(value), math.nan
    draws = np.random.default_rng(0).integers(len(items), size=(RESAMPLES, len(items)))
    totals = items[draws].sum(axis=1)
    return float(value), float((totals[:, 0] / totals[:, 1]).std(ddof=1))


def mean_with_stderr(values: np.ndarray) -> tuple[float, float]:
    """Mean of `[n]` values and its standard error (sample deviation over root n)."""
    stderr = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return float(values.mean()), float(stderr)
