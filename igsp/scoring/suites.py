"""Suites and task files as data: what they may say, checked whole when they enter; nothing in them is run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from igsp.assets import below, read_yaml
from igsp.errors import UnknownName, UsageError, checked
from igsp.text.catalogue import DIMENSIONS

BITS_PER_BYTE = "bits_per_byte"


def _task_name(given: str) -> str:
    """A task's name; `./name.yaml`, for a file beside the suite, is taken too."""
    name = given.removeprefix("./").removesuffix(".yaml").removesuffix(".yml")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+:-]*", name) or ".." in name:
        raise ValueError(f"must be the name of a task: its file, NAME.yaml, lies beside the suite file; got {given!r}")
    return name


def _file_name(given: str) -> str:
    if Path(given).name != given:
        raise ValueError(f"must be the name of a file beside this one, got {given!r}")
    return below(given)


Name = Annotated[str, AfterValidator(_task_name)]
Below = Annotated[str, Field(min_length=1), AfterValidator(below)]
FileName = Annotated[str, AfterValidator(_file_name)]


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class SuiteTask(_Data):
    """One line of a suite: an lm-eval task, the dimension it stands for and the metric to take from it.

    Attributes:
        chance: score of a guess, 0 where the answer is written; None for bits per byte.
        limit: number of items, the first ones of the task; None for all. A group's members give in proportion.
        shots: worked examples before each item; None for what a task file of ours says, else none.
        filter: which of a generating task's ways to read the answer off the text.
        runs_code: whether the task runs programs that the model writes.
        only_for: strategies that it is scored for, beside the dense model; None for all.
        note: where this line departs from common practice, and why.
    """

    task: Name
    dimension: str
    metric: str
    chance: float | None = Field(None, ge=0, lt=1, allow_inf_nan=False)
    limit: int | None = Field(None, ge=1)
    higher_is_better: bool = True
    shots: int | None = Field(None, ge=0)
    filter: str | None = None
    runs_code: bool = False
    only_for: Annotated[tuple[str, ...], Field(strict=False)] | None = None
    note: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _direction(cls, given: Any) -> Any:
        return {"higher_is_better": given.get("metric") != BITS_PER_BYTE, **given} if isinstance(given, dict) else given

    @field_validator("only_for")
    @classmethod
    def _asked(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if names is not None and not set(names) - {"dense"}:
            raise ValueError("names no strategy, so that nothing asks for this task: name one, or leave the task out")
        return names


class _SuiteFile(_Data):
    about: str = ""
    dimensions: list[str] = []
    tasks: list[SuiteTask] = Field(min_length=1)

    @field_validator("tasks")
    @classmethod
    def _once(cls, tasks: list[SuiteTask]) -> list[SuiteTask]:
        names = [task.task for task in tasks]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"names a task twice: {', '.join(twice)}")
        return tasks


@dataclass(frozen=True)
class Suite:
    """A named list of tasks. `folder` is where the suite file lies; its task files may lie beside it."""

    name: str
    about: str
    tasks: tuple[SuiteTask, ...]
    folder: Path


def _catalog_folder(name: str) -> Path:
    return Path(str(resources.files("igsp"))) / "catalog" / name


def suites() -> dict[str, Path]:
    """Files of the suites that come with the package, by name."""
    return {path.stem: path for path in sorted(_catalog_folder("suites").glob("*.yaml"))}


def load_suite(suite: str | Path) -> Suite:
    """Reads a suite: a name of the catalogue or the path of a YAML file.

    Raises:
        UnknownName: no such suite or dimension, or a field that suites do not have (names file and field).
        UsageError: the file is no suite, or a field is missing or wrong.
    """
    path = suites().get(str(suite), Path(str(suite)))
    if path.is_dir():
        inside = ", ".join(sorted(file.name for file in path.glob("*.yaml"))) or "none"
        raise UsageError(f"suite '{suite}' is a folder: name a suite file in it (YAML files there: {inside})")
    if not path.is_file():
        raise UnknownName("suite", str(suite), suites(), "(or give the path of a suite file)")
    content, _ = read_yaml(path)
    if "tasks" not in content and ({"output_type", "doc_to_text", "metric_list"} & set(content)):
        raise UsageError(f"'{path}' is a task file, no suite: a suite file beside it names it in its field 'tasks', "
                         f"as {{task: {path.stem}, dimension: ..., metric: ...}}")
    file = checked(_SuiteFile, content, f"suite file '{path}'")
    dimensions = (*DIMENSIONS, *file.dimensions)
    for task in file.tasks:
        if task.dimension not in dimensions:
            hint = "(a new one is declared once, in the suite's field `dimensions`)"
            kind = f"dimension of task '{task.task}' of suite file '{path}':"
            raise UnknownName(kind, task.dimension, dimensions, hint)
    return Suite(path.stem, file.about, tuple(file.tasks), path.parent)


def choose(suite: Suite, tasks: Sequence[str] | None) -> list[SuiteTask]:
    """The suite's lines of some tasks, in its order; all for None."""
    names = None if tasks is None else [name.removeprefix("./").removesuffix(".yaml") for name in tasks]
    by_name = {task.task: task for task in suite.tasks}
    for name in names or ():
        if name not in by_name:
            raise UnknownName(f"task of suite '{suite.name}':", name, by_name)
    if names == []:
        raise UsageError(f"no task of suite '{suite.name}' is asked for: name some of {', '.join(by_name)}")
    return [task for task in suite.tasks if names is None or task.task in names]


def tasks_for(suite: str | Path, strategy: str) -> list[str]:
    """Names of the tasks that a suite wants scored for a strategy (`dense`: the model before pruning: all of them)."""
    return [task.task for task in load_suite(suite).tasks
            if task.only_for is None or strategy == "dense" or strategy in task.only_for]


def task_folders(suite: Suite) -> list[Path]:
    """Where the task files of a suite are looked for: beside it, then in the catalogue."""
    return [suite.folder, _catalog_folder("tasks")]


# --- task files -------------------------------------------------------------------------------------------------


class _Rows(_Data):
    """Options of a data set: files by split, or what the hub is asked for."""

    data_files: dict[str, Below] | None = None
    data_dir: Below | None = None
    revision: str | None = None


class _Metric(_Data):
    model_config = ConfigDict(extra="allow")  # options of the metric

    metric: str
    aggregation: str | None = None
    higher_is_better: bool | None = None
    hf_evaluate: Literal[False] = False  # such a metric is a program of the hub


class _Filter(_Data):
    model_config = ConfigDict(extra="allow")

    function: str


class _Filters(_Data):
    name: str
    filter: list[_Filter]


class _Writing(_Data):
    """How text is written: nothing that loads code (`custom_generate`)."""

    until: str | list[str] | None = None
    max_gen_toks: int | None = Field(None, ge=1)
    max_new_tokens: int | None = Field(None, ge=1)
    do_sample: bool | None = None
    temperature: float | None = Field(None, ge=0, allow_inf_nan=False)
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    num_beams: int | None = Field(None, ge=1)


class _Metadata(_Data):
    model_config = ConfigDict(extra="allow")

    items: str | None = None
    piece_bytes: int | None = Field(None, ge=1)
    based_on: Name | None = None


class TaskFile(_Data):
    """A task file in lm-eval's format: its fields but those that run or load programs (`use_prompt`, `class`)."""

    task: Name | None = None
    task_alias: str | None = None
    tag: str | list[str] | None = None
    include: FileName | list[FileName] | None = None
    dataset_path: Below | None = None
    dataset_name: Below | None = None
    dataset_kwargs: _Rows | None = None
    training_split: Below | None = None
    validation_split: Below | None = None
    test_split: Below | None = None
    fewshot_split: Below | None = None
    output_type: Literal["loglikelihood", "loglikelihood_rolling", "multiple_choice", "generate_until"] | None = None
    doc_to_text: str | int | None = None
    doc_to_target: str | int | list[Any] | None = None
    doc_to_choice: str | list[Any] | dict[str, Any] | None = None
    process_docs: str | None = None
    process_results: str | None = None
    unsafe_code: bool = False
    description: str = ""
    target_delimiter: str = " "
    fewshot_delimiter: str = "\n\n"
    gen_prefix: str | None = None
    fewshot_config: dict[str, Any] | None = None
    num_fewshot: int | None = Field(None, ge=0)
    metric_list: list[_Metric] | None = Field(None, min_length=1)
    filter_list: list[_Filters] | None = None
    generation_kwargs: _Writing | None = None
    repeats: int = Field(1, ge=1)
    should_decontaminate: bool = False
    doc_to_decontamination_query: str | None = None
    metadata: _Metadata | None = None


class NamesFunction(UsageError):
    """A task file that names a function, which is no data."""


def read_task_file(path: Path, including: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A task file with those it includes, checked, without any function.

    Raises:
        NamesFunction: it names a function.
        UsageError: it is no task file, or includes itself.
    """
    if path in including:
        raise UsageError(f"task file '{path}' includes itself, by way of {', '.join(p.name for p in including)}")
    try:
        content, _ = read_yaml(path)
    except UsageError as error:
        if "!function" not in str(error):
            raise
        raise NamesFunction(
            f"task file '{path}' names a function (!function), and a suite is data: leave it out, or allow this code "
            "to run with run_code=True (`igsp evaluate --run-code`) if you trust whoever wrote it"
        ) from None
    checked(TaskFile, content, f"task file '{path}'")
    names = content.pop("include", None) or []
    merged: dict[str, Any] = {}
    for name in [names] if isinstance(names, str) else names:
        merged |= read_task_file(path.parent / name, (*including, path))
    return merged | content
