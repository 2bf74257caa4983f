"""What every command shares: groups of options, tables, dry runs."""

from __future__ import annotations

import functools
import inspect
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
from typer import Option

from igsp.errors import IgspError, UnknownName, UsageError

WINDOWS, SEQLEN = 128, 2048  # of a calibration set by default, as in the published codes

Quiet = Annotated[bool, Option("--quiet", help="no progress bars")]
Json = Annotated[bool, Option("--json", help="print JSON instead of a table")]
Profile = Annotated[str, Option(help="settings to use: a name, or a YAML file")]
Draw = Annotated[int, Option(help="which independent draw; the seed of a protocol")]
Windows = Annotated[int | None, Option(min=1, help="windows (default 128; all of a set that is read)")]
Seqlen = Annotated[int | None, Option(min=1, help="tokens per window (default 2048, or what the model takes)")]
Out = Annotated[Path, Option(help="what to write; must not exist")]
Suite = Annotated[str, Option(help="tasks to score: a name, or a YAML file")]


def command(app: typer.Typer, *examples: str, name: str | None = None) -> Callable[[Callable[..., Any]], Any]:
    """Adds a function to `app` as a command; its docstring is the help.

    A parameter whose type is a dataclass becomes one option for each field. Every command takes `--quiet`.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        hints = get_type_hints(function, include_extras=True)
        groups: dict[str, Any] = {key: kind for key, kind in hints.items() if is_dataclass(kind)}
        spelt: dict[str, inspect.Parameter] = {}
        for key, parameter in inspect.signature(function).parameters.items():
            kind = groups.get(key)
            inner = inspect.signature(kind).parameters if kind else {key: parameter}
            types = get_type_hints(kind, include_extras=True) if kind else hints
            spelt |= {k: p.replace(annotation=types[k], kind=p.KEYWORD_ONLY) for k, p in inner.items()}
        given = "quiet" in spelt
        spelt.setdefault("quiet", inspect.Parameter("quiet", inspect.Parameter.KEYWORD_ONLY, default=False))
        spelt["quiet"] = spelt["quiet"].replace(annotation=Quiet)

        @functools.wraps(function)
        def run(**values: Any) -> Any:
            if values["quiet"] if given else values.pop("quiet"):
                os.environ.setdefault("TQDM_DISABLE", "1")
            for key, kind in groups.items():
                values[key] = kind(**{field: values.pop(field) for field in inspect.signature(kind).parameters})
            try:
                return function(**values)
            except KeyboardInterrupt:
                raise IgspError("stopped; what was finished is kept, run the same command to go on") from None

        run.__signature__ = inspect.Signature(list(spelt.values()))  # type: ignore[attr-defined]
        run.__annotations__ = {key: parameter.annotation for key, parameter in spelt.items()}
        app.command(name, epilog="\b\n" + "\n  ".join(["examples:", *examples]))(run)
        return function

    return register


@dataclass(kw_only=True, frozen=True)
class How:
    """How to go about it, and what to print."""

    dry_run: Annotated[bool, Option(
        "--dry-run", help="say what would be read, computed and written; do nothing")] = False
    json: Json = False
    quiet: Quiet = False


@dataclass(kw_only=True)
class Model:
    """Which model, and where it runs."""

    model: Annotated[str, Option(help="alias, hub id or local folder")] = "smollm2-135m"
    device: Annotated[str, Option(help="auto, cpu, cuda, cuda:N")] = "auto"
    dtype: Annotated[str, Option(help="auto, float32, bfloat16, float16")] = "auto"

    def load(self) -> Any:
        """The model itself."""
        from igsp.models import load_model

        return load_model(self.model, self.device, self.dtype)

    def tokenizer(self) -> Any:
        """Its tokenizer, without its weights."""
        from igsp.checkpoints import load_tokenizer
        from igsp.models import resolve_folder

        return load_tokenizer(resolve_folder(self.model), self.model)


@dataclass(kw_only=True)
class Pruning:
    """How to prune; refused here if no solver takes it."""

    method: Annotated[str, Option(
        help="sparsegpt, wanda, ria, magnitude, admm, sparseswaps or sparseswaps-refit")] = "sparsegpt"
    sparsity: Annotated[float, Option(help="share of zeros, in [0, 1)")] = 0.6
    pattern: Annotated[str | None, Option(help="N:M such as 2:4, instead of an unstructured mask")] = None

    def __post_init__(self) -> None:
        from igsp.pruning.solvers import check_sparsity, parse_pattern, solver

        solver(self.method)
        parse_pattern(self.pattern)
        check_sparsity(self.sparsity)


def one_of(kind: str, name: str, known: Sequence[str]) -> str:
    """The name itself; raises `UnknownName`."""
    if name not in known:
        raise UnknownName(kind, name, known)
    return name


def pairs(text: str, flag: str) -> dict[str, float]:
    """`a=2,b` as `{"a": 2.0, "b": 1.0}`."""
    weights = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        try:
            weights[name.strip()] = float(value or 1)
        except ValueError:
            raise UsageError(f"{flag} takes name=weight pairs, got '{part}'") from None
    return weights


def table(rows: Sequence[dict[str, Any]], json_wanted: bool) -> None:
    """Prints rows, as a table or as JSON."""
    if json_wanted:
        print(json.dumps(list(rows), indent=1))
    elif rows:
        import pandas as pd

        shown = [{name: "-" if value is None else value for name, value in row.items()} for row in rows]
        print(pd.DataFrame(shown).to_string(index=False))


def dry(
    how: How, model: str, reads: Sequence[str], plan: Any, out: Path | None, written: str, computes: str = "",
) -> bool:
    """Refuses a plan that does not fit. Whether this is a dry run, of which it prints what would be done."""
    if how.dry_run:
        rows = [{"step": "reads", "what": text} for text in (f"model {model}", *reads)]
        rows += [{"step": "computes", "what": computes}] if computes else []
        rows += [*(plan.rows() if plan else ()), {"step": "writes", "what": written}]
        print(json.dumps(rows, indent=1) if how.json else "\n".join(f"{r['step']:<9} {r['what']}" for r in rows))
    if plan:
        plan.check(out or ".")
    return how.dry_run
