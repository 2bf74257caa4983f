"""Runs the notebooks with papermill: refused early, two at a time, resumable, written whole or not at all.

`notebooks/*.py` (py:percent) is the source, `*.ipynb` beside it the same without outputs. Executed copies go
to `book/notebooks/`, which the book reads. A notebook is skipped when its executed copy carries the same key:
a hash over source, parameters, package, lock file, model and data.
"""

from __future__ import annotations

import ast
import concurrent.futures as futures
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import papermill
from jupyter_client.manager import AsyncKernelManager
from jupytext.compare import NotebookDifference, compare_notebooks
from papermill.exceptions import PapermillExecutionError
from tqdm import tqdm

from igsp.assets import whole_or_nothing
from igsp.errors import IgspError, UnknownName, UsageError
from igsp.provenance import repository_root
from igsp.study.study import Settings, settings
from igsp_book import facts

SETTING_NAMES = set(Settings.model_fields)


@dataclass(frozen=True)
class Parameter:
    """A parameter of a notebook: name, type as written, default, help (its trailing comment)."""

    name: str
    type: str
    default: Any
    help: str


@dataclass(frozen=True)
class Notebook:
    """A paired notebook: name, `.py` source, notebooks that it needs, profiles whose stored records it reads."""

    name: str
    source: Path
    needs: tuple[str, ...]
    reads: tuple[str, ...] = ()

    def read(self) -> nbformat.NotebookNode:
        """The notebook as its source defines it."""
        return jupytext.read(self.source)

    def parameters(self) -> list[Parameter]:
        """The typed parameters of its `parameters` cell."""
        found = papermill.inspect_notebook(str(self.source.with_suffix(".ipynb")))
        return [
            Parameter(name, p["inferred_type_name"].strip(), ast.literal_eval(p["default"]), p["help"].strip())
            for name, p in found.items()
        ]


def notebooks(root: Path | None = None) -> list[Notebook]:
    """The notebooks of the checkout, by name; raises if there are none or a pair is out of step."""
    folder = (root or repository_root()) / "notebooks"
    found = []
    for source in sorted(folder.glob("*.py")):
        header = jupytext.read(source).metadata.get("igsp", {})
        found.append(Notebook(source.stem, source, tuple(header.get("needs", ())), tuple(header.get("reads", ()))))
    if not found:
        raise UsageError(f"no notebooks (*.py) in {folder}: run this inside a checkout of the project")
    return found


def out_of_sync(found: Sequence[Notebook]) -> list[str]:
    """Names whose `.ipynb` is missing, differs from its `.py`, or carries outputs."""
    bad = []
    for notebook in found:
        pair = notebook.source.with_suffix(".ipynb")
        try:
            paired = nbformat.read(pair, as_version=4)
            compare_notebooks(paired, notebook.read(), fmt="py:percent", compare_outputs=False)
            clean = not any(c.get("outputs") or c.get("execution_count") for c in paired.cells)
        except (OSError, NotebookDifference, nbformat.reader.NotJSONError):
            clean = False
        if not clean:
            bad.append(notebook.name)
    return bad


def sync(found: Sequence[Notebook]) -> list[Path]:
    """Writes every `.ipynb` anew from its `.py`, without outputs."""
    written = []
    for notebook in found:
        node = notebook.read()
        for index, cell in enumerate(node.cells):
            cell["id"] = f"cell-{index:02d}"  # stable ids: the same source gives the same file
        target = notebook.source.with_suffix(".ipynb")
        with whole_or_nothing(target) as temporary:
            temporary.write_text(jupytext.writes(node, fmt="ipynb"), encoding="utf8")
        written.append(target)
    return written


def check_parameters(found: Sequence[Notebook], profile: str, given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Values per notebook, or an error before anything runs: unknown name, wrong type, value out of range."""
    declared = {notebook.name: {p.name: p for p in notebook.parameters()} for notebook in found}
    every = {name for parameters in declared.values() for name in parameters} - {"profile"}
    for name, value in given.items():
        if name not in every:
            raise UnknownName("parameter", name, every)
        for parameters in declared.values():
            if name in parameters and not _fits(value, parameters[name].type):
                raise UsageError(f"parameter {name} must be {parameters[name].type}, got {value!r}")
    resolved = settings(profile, **{k: v for k, v in given.items() if k in SETTING_NAMES})
    values = {}
    for notebook in found:
        own = declared[notebook.name]
        values[notebook.name] = {
            name: profile
            if name == "profile"
            else given.get(name, getattr(resolved, name) if name in SETTING_NAMES else own[name].default)
            for name in own
        }
    return values


def _fits(value: Any, type_name: str) -> bool:
    """Whether a value has a parameter's type, as written: `int`, `Optional[float]`, ...; an int is a float too."""
    kinds: dict[str, tuple[type, ...]] = {"int": (int,), "float": (float, int), "str": (str,), "bool": (bool,)}
    optional = type_name.removeprefix("Optional[").removesuffix("]")
    if value is None:
        return optional != type_name
    allowed = kinds.get(optional, (object,))
    return isinstance(value, allowed) and (not isinstance(value, bool) or optional in ("bool", "Any"))


class IpcKernelManager(AsyncKernelManager):
    """Kernels on their own file sockets (TCP ports collide when several start at once), with their share of cores."""

    threads = 1

    def __init__(self, **options: Any) -> None:
        super().__init__(transport="ipc", **options)
        self.ip = os.path.join(tempfile.mkdtemp(prefix="igsp-kernel-"), "k")

    async def _async_pre_start_kernel(self, **options: Any) -> Any:
        environment = dict(options.pop("env", None) or os.environ)
        environment |= {
            "OMP_NUM_THREADS": str(self.threads),
            "MKL_NUM_THREADS": str(self.threads),
            "TQDM_DISABLE": "1",
            "PYTHONWARNINGS": "ignore:IProgress not found",  # it prints a path of this machine
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "TRANSFORMERS_VERBOSITY": "error",
        }
        return await super()._async_pre_start_kernel(env=environment, **options)

    async def _async_cleanup_resources(self, restart: bool = False) -> None:
        await super()._async_cleanup_resources(restart)
        if not restart:
            shutil.rmtree(os.path.dirname(self.ip), ignore_errors=True)


def run(
    profile: str = "quick",
    parameters: Mapping[str, Any] | None = None,
    only: Sequence[str] | None = None,
    jobs: int = 2,
    out: Path | None = None,
    root: Path | None = None,
    force: bool = False,
    timeout: int = 7200,
    say: Callable[[str], None] = print,
) -> list[Path]:
    """Executes the notebooks and returns the executed copies, in order.

    Args:
        profile: which profile of scale.
        parameters: values for parameters of the notebooks; each goes to every notebook that declares it.
        only: names (or their leading numbers) of the notebooks to run; default all.
        jobs: notebooks at a time; each kernel gets its share of the cores.
        out: folder of the executed copies, default `book/notebooks/`.
        force: run again even where nothing has changed.
        timeout: seconds one notebook cell may take.

    Raises:
        UnknownName, UsageError: before anything runs.
        IgspError: a notebook failed (the others were finished first); the error names cell and cause.
    """
    root = root or repository_root()
    out = out or root / "book" / "notebooks"
    found = _select(notebooks(root), only)
    stale = out_of_sync(found)
    if stale:
        raise UsageError(f"out of step with their .py source: {', '.join(stale)}. Run `igsp notebooks sync`")
    values = check_parameters(found, profile, parameters or {})
    resolved = settings(profile, **{k: v for k, v in (parameters or {}).items() if k in SETTING_NAMES})
    base = facts.common(profile, resolved, root, any(not notebook.reads for notebook in found))
    plan = {}
    for notebook in found:
        about = facts.of(notebook, values[notebook.name], {*(parameters or {}), "profile"}, base, root)
        target = out / f"{notebook.name}.ipynb"
        sums_up = notebook.reads and notebook.needs  # it shows what others publish, which its key does not hold
        if not force and not sums_up and finished(target, about["key"]):
            say(f"{notebook.name}: up to date")
        else:
            plan[notebook.name] = (notebook, about, target)
    _execute(plan, values, jobs, timeout, say)
    return [out / f"{notebook.name}.ipynb" for notebook in found]


def _select(found: list[Notebook], only: Sequence[str] | None) -> list[Notebook]:
    if not only:
        return found
    chosen = set()
    for name in only:
        match = [n.name for n in found if n.name == name or n.name.split("-")[0] == str(name).zfill(2)]
        if not match:
            raise UnknownName("notebook", name, [n.name for n in found])
        chosen |= set(match)
    return [n for n in found if n.name in chosen]


def _execute(
    plan: dict[str, Any], values: Mapping[str, Any], jobs: int, timeout: int, say: Callable[[str], None]
) -> None:
    """Runs the planned notebooks, `jobs` at a time, each after those it needs; all that can finish do."""
    IpcKernelManager.threads = max(1, (os.cpu_count() or 1) // max(1, min(jobs, len(plan) or 1)))
    total = sum(sum(c.cell_type == "code" for c in item[0].read().cells) for item in plan.values())
    waiting, done = dict(plan), set()
    running: dict[futures.Future[float], str] = {}
    failed: dict[str, IgspError] = {}
    with (
        futures.ThreadPoolExecutor(max(1, jobs)) as pool,
        tqdm(total=total, unit="cell", desc="notebooks", disable=not plan or not sys.stderr.isatty()) as bar,
    ):
        try:
            while waiting or running:
                for name in list(waiting):
                    notebook, about, target = waiting[name]
                    needed = [n for n in notebook.needs if n in plan]
                    if any(n in failed for n in needed):
                        failed[name] = IgspError(
                            f"{name}: not run, it needs {', '.join(n for n in needed if n in failed)}"
                        )
                        del waiting[name]
                    elif len(running) < jobs and all(n in done for n in needed):
                        say(f"{name}: started")
                        running[pool.submit(_execute_one, notebook, about, target, values[name], timeout, bar)] = name
                        del waiting[name]
                bar.set_postfix_str(" + ".join(running.values()))
                finished_now, _ = futures.wait(running, timeout=1.0, return_when=futures.FIRST_COMPLETED)
                for future in finished_now:
                    name = running.pop(future)
                    try:
                        say(f"{name}: done in {future.result():.0f} s")
                        done.add(name)
                    except IgspError as error:
                        failed[name] = error
                        say(str(error))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if failed:
        raise IgspError(
            f"{len(failed)} of {len(plan)} notebooks failed: " + ", ".join(failed) + f"\n{next(iter(failed.values()))}"
        )


def _execute_one(
    notebook: Notebook, about: dict[str, Any], target: Path, values: Mapping[str, Any], timeout: int, bar: tqdm
) -> float:
    """Executes one notebook and puts it in place; returns its seconds."""
    node = notebook.read()
    started, clock = time.time(), time.perf_counter()

    def executed(**_: Any) -> None:
        bar.update()

    with tempfile.TemporaryDirectory(prefix="igsp-notebook-") as scratch:
        source, result = Path(scratch) / f"{notebook.name}.ipynb", Path(scratch) / "executed.ipynb"
        jupytext.write(node, source, fmt="ipynb")
        for attempt in (1, 2):
            try:
                papermill.execute_notebook(
                    str(source),
                    str(result),
                    parameters=dict(values),
                    kernel_name="python3",
                    progress_bar=False,
                    execution_timeout=timeout,
                    cwd=str(notebook.source.parent),
                    kernel_manager_class=IpcKernelManager,
                    on_cell_executed=executed,
                    log_output=False,
                )
                break
            except PapermillExecutionError as error:
                kept = repository_root() / "_build" / "failed" / f"{notebook.name}.ipynb"
                kept.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(result, kept)
                last = str(error.evalue).strip().splitlines()[-1] if str(error.evalue).strip() else ""
                raise IgspError(
                    f"{notebook.name}: cell {error.exec_count} failed: {error.ename}: {last} (see {kept})"
                ) from None
            except RuntimeError as error:
                if attempt == 2 or "Kernel died" not in str(error):
                    raise IgspError(f"{notebook.name}: {error}") from error
            except Exception as error:
                raise IgspError(f"{notebook.name}: {type(error).__name__}: {error}") from error
        done = nbformat.read(result, as_version=4)
    for key in ("input_path", "output_path"):
        done.metadata.papermill[key] = f"{notebook.name}.ipynb"
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(started))
    done.metadata["igsp"] = {
        **done.metadata.get("igsp", {}),
        **about,
        "started": stamp,
        "seconds": round(time.perf_counter() - clock, 1),
    }
    with whole_or_nothing(target) as temporary:
        nbformat.write(done, temporary)
    return time.perf_counter() - clock


def problems(path: Path) -> list[str]:
    """What is wrong with an executed notebook: missing, unfinished, an error in a cell. Empty when it is good."""
    try:
        node = nbformat.read(path, as_version=4)
    except FileNotFoundError:
        return [f"{path.name}: not executed yet, run `igsp notebooks run`"]
    except Exception as error:
        return [f"{path.name}: unreadable ({error})"]
    found = []
    run_facts = node.metadata.get("papermill", {})
    if not run_facts.get("end_time") or run_facts.get("exception"):
        found.append(f"{path.name}: its run did not finish")
    for index, cell in enumerate(node.cells):
        if cell.cell_type != "code":
            continue
        if cell.metadata.get("papermill", {}).get("status") != "completed":
            found.append(f"{path.name}: cell {index} was not completed")
        if any(
            output.output_type == "error" for output in cell.outputs
        ) or "papermill-error-cell-tag" in cell.metadata.get("tags", []):
            found.append(f"{path.name}: cell {index} holds an error")
    return found


def finished(path: Path, key: str | None = None) -> bool:
    """Whether an executed notebook is good, and (if given) carries this key."""
    if problems(path):
        return False
    return key is None or json.loads(path.read_text(encoding="utf8"))["metadata"].get("igsp", {}).get("key") == key
