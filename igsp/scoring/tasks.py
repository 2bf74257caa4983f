"""Tasks of lm-evaluation-harness (lm-eval 0.4.13) from rows at hand, and its evaluation of them.

Beside `scorer`, the one file that knows lm-eval. Imported only when something is evaluated: that takes seconds.

Trust: task files that come with lm-eval are part of that package and may name functions. Any other is data: it is read
without functions, its templates are rendered in Jinja's sandbox, and its metrics are those that lm-eval registers.
"""

from __future__ import annotations

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import datasets
import jinja2
import lm_eval.api.model
import lm_eval.api.task
import lm_eval.utils
from jinja2.sandbox import ImmutableSandboxedEnvironment
from lm_eval.api.model import LM
from lm_eval.api.registry import metric_registry
from lm_eval.api.task import ConfigurableTask, Task
from lm_eval.evaluator import evaluate as lm_eval_evaluate
from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import Entry, Kind, TaskIndex
from lm_eval.tasks._yaml_loader import load_yaml
from tqdm import tqdm

from igsp.errors import UnknownName, UsageError
from igsp.scoring.items import rows as item_rows
from igsp.scoring.published import cut, file_rows, in_fixed_order, pack, table
from igsp.scoring.suites import NamesFunction, read_task_file
from igsp.text.rows import NotAtHand, Row
from igsp.text.windows import largest_remainder

PASS_AT_1 = "pass@1"
LM_EVAL = Path(str(importlib.util.find_spec("lm_eval").submodule_search_locations[0])) / "tasks"  # type: ignore
BROKEN = (KeyError, TypeError, AttributeError, ValueError, IndexError, SyntaxError, jinja2.TemplateError)

templates = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
templates.filters.update(lm_eval.utils.env.filters)
lm_eval.utils.env = templates  # for all that lm-eval renders: a template reaches the row's values alone


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
    name: str, folders: Sequence[Path], shots: int | None = None, programs: bool = False, hub: bool = True,
    functions: bool = False,
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
        programs: whether a task may run programs that the model writes.
        hub: whether to ask the hub for what the mirror lacks.
        functions: whether a task file that is not lm-eval's own may name functions, which run here.

    Raises:
        UnknownName: neither a file nor a name of lm-eval.
        UsageError: a data file that is missing; rows whose columns are not those that the task reads;
            a task that runs programs, without `programs`, or a file with functions, without `functions`; what a task
            file may not say; a package missing that the task imports.
        NotAtHand: data sets that neither the mirror nor the hub gives, all of them in one message.
    """
    missing, tasks = [], {}
    for member, path in _files(name, folders):
        try:
            tasks[member] = _build(member, path, shots, programs, hub, functions)
        except NotAtHand as error:
            missing += error.missing
            hub = hub and error.hub_answers  # it tried for half a minute: once is enough
    if missing:
        raise NotAtHand(missing, hub)
    return tasks


def load_task(name: str, folders: Sequence[Path], shots: int | None = None, programs: bool = False) -> RowsTask:
    """As `load_tasks`, for the name of a single task."""
    tasks = load_tasks(name, folders, shots, programs)
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
    line = re.compile(rf"^['\"]?(?:task|group)['\"]?: *['\"]?{re.escape(name)}['\"]? *$", re.MULTILINE)
    found = next((path for path in sorted(LM_EVAL.rglob("*.yaml")) if line.search(path.read_text("utf8"))), None)
    with quiet():
        return TaskIndex.build([LM_EVAL / found.relative_to(LM_EVAL).parts[0]]) if found else TaskManager().task_index


def _build(name: str, path: Path, shots: int | None, programs: bool, hub: bool, functions: bool) -> RowsTask:
    config = _config(name, path, programs, functions)
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
        with quiet():
            task = RowsTask({**config, "task": name, "num_fewshot": shots}, rows, parts)
        if not _is_lm_evals(path):
            _check_columns(task)
    except UsageError:
        raise
    except BROKEN as error:
        columns = ", ".join(rows[split][0]) if rows.get(split) else "none, it has no rows"
        raise UsageError(
            f"task '{name}' ({path.name}) does not fit the rows of '{config.get('dataset_path', path)}': {error}; "
            f"columns there: {columns}"
        ) from error
    task.set_fewshot_seed(1234)  # lm-eval's own default
    return task


def _is_lm_evals(path: Path) -> bool:
    return path.resolve().is_relative_to(LM_EVAL.resolve())


def _check_columns(task: RowsTask) -> None:
    """Refuses a field that names a column which the rows lack; lm-eval would take the name itself as the text."""
    for field in ("doc_to_text", "doc_to_target", "doc_to_choice"):
        value = task.get_config(field)
        if isinstance(value, str) and value.isidentifier() and value not in task.features:
            raise KeyError(f"{field} names the column '{value}', which is not there (a fixed text needs '{{{{...}}}}')")


def _config(name: str, path: Path, programs: bool, functions: bool) -> dict[str, Any]:
    """A task file with the functions it names, on top of the one it is based on."""
    plain, whole = _read(name, path, functions)
    if base := (plain.get("metadata") or {}).get("based_on"):
        index = _lm_eval_index(base)
        found = _members(index, base) if base in index else []
        if len(found) != 1:
            known = [task for task, entry in index.items() if entry.kind is Kind.TASK]
            raise UnknownName(f"task of lm-eval that '{name}' ({path.name}) is based on:", base, known)
        return _config(*found[0], programs, functions) | whole()
    if not plain.get("unsafe_code"):
        return whole()
    if not programs:
        raise UsageError(
            f"task '{name}' runs programs that the model writes: mark it 'runs_code: true' in the suite and allow it "
            "with run_code=True (`igsp evaluate --run-code`; they run in a sandbox), or leave it out"
        )
    # on import lm-eval asks the hub for a metric that would run the programs right here: the sandbox runs them instead
    with mock.patch("evaluate.load"):
        config = whole()
    config["metric_list"] = [{"metric": _not_run_yet, "aggregation": "mean", "higher_is_better": True}]
    return config


def _read(name: str, path: Path, functions: bool) -> tuple[dict[str, Any], Callable[[], dict[str, Any]]]:
    """A task file as data, and what makes it whole: the same, or with the functions it names where they may run."""
    if not _is_lm_evals(path):
        try:
            plain = read_task_file(path)
        except NamesFunction:
            if not functions:
                raise
        else:
            for metric in plain.get("metric_list") or ():  # an unknown one would be a program, looked for on the hub
                if metric["metric"] not in metric_registry:
                    raise UnknownName(f"metric of task '{name}' ({path.name}):", metric["metric"], metric_registry)
            return plain, lambda: dict(plain)

    def whole() -> dict[str, Any]:
        try:
            return load_yaml(path)
        except ImportError as error:
            raise UsageError(f"task '{name}' needs packages that are not installed: {error}") from error

    return load_yaml(path, resolve_func=False), whole


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
    if path and (rows := _local_rows(path, read_task_file(path))):
        few = {split: found[:limit] for split, found in rows.items()}
        return hashlib.sha256(path.read_bytes() + json.dumps(few, sort_keys=True).encode()).hexdigest()
    made_from = path.read_text("utf8") if path else f"{name} of lm-eval {importlib.metadata.version('lm-eval')}"
    return _published_sha256(name, tuple(folders), limit, made_from, os.environ.get("IGSP_DATA"))


@functools.lru_cache(maxsize=256)
def _published_sha256(
    name: str, folders: tuple[Path, ...], limit: int | None, made_from: str, mirror: str | None
) -> str:
    tasks = load_tasks(name, folders, shots=0, programs=True)
    few = {member: list(tasks[member].eval_docs)[:n] for member, n in shares(tasks, limit).items()}
    return hashlib.sha256(json.dumps([made_from, few], sort_keys=True, default=str).encode()).hexdigest()


def shares(tasks: Mapping[str, Task], limit: int | None) -> dict[str, int]:
    """How many items each of the members of a group gives to `limit` items: in proportion to their sizes."""
    sizes = {name: len(task.eval_docs) for name, task in tasks.items()}
    total = sum(sizes.values())
    return largest_remainder(sizes, limit) if limit and limit < total else sizes


@contextmanager
def quiet() -> Iterator[None]:
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
    scorer: LM, tasks: Mapping[str, Task], limits: Mapping[str, int], part: tuple[int, int] = (0, 1),
    progress: bool = False,
) -> dict[str, list[dict[str, Any]]]:
    """lm-eval's per-item results of each task, in the order of its rows, for a part of the first `limits[task]`.

    A task with several filters gives one result per item and filter.
    """
    chosen = {name: list(range(n))[part[0] :: part[1]] for name, n in limits.items() if n > part[0]}
    try:
        with quiet():
            found = lm_eval_evaluate(
                lm=scorer, task_dict={"tasks": {name: tasks[name] for name in chosen}, "groups": {}}, samples=chosen,
                bootstrap_iters=0, log_samples=True, confirm_run_unsafe_code=True,
            )["samples"]
    except jinja2.TemplateError as error:
        raise UsageError(f"a template of {', '.join(chosen)} cannot be rendered for one of its rows: {error}") from None
    for name in chosen:
        if tasks[name].get_config("unsafe_code"):
            _run_programs(found[name], progress)
    return {name: sorted(found.get(name, []), key=lambda item: item["doc_id"]) for name in tasks}


def _run_programs(results: Sequence[dict[str, Any]], progress: bool) -> None:
    """Fills in pass@1: whether the program that was written passes the task's tests in the sandbox."""
    from igsp.scoring.sandbox import run_programs

    answers = [item["filtered_resps"][0] for item in results]
    texts = [answer if isinstance(answer, str) else answer[0] for answer in answers]
    outcomes = run_programs(texts, [item["target"] for item in results], progress=progress)
    for item, outcome in zip(results, outcomes, strict=True):
        item[PASS_AT_1] = float(outcome.passed)
