"""Typed errors. Each one names the thing that is wrong and the way out.

`UsageError` means that the caller asked for something impossible (exit code 2 on the command line);
every other `IgspError` means that the work itself failed (exit code 1).
"""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, get_args


class IgspError(Exception):
    """The work failed. Base class of every error this package raises on purpose."""

    exit_code = 1


class UsageError(IgspError, ValueError):
    """The caller asked for something that cannot be done as stated."""

    exit_code = 2


class UnknownName(UsageError):
    """A name (source, model, method, task, ...) that is not known; the nearest known ones are listed."""

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        known = sorted(known)
        near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.4)
        tail = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
        super().__init__(f"unknown {kind} '{name}': {tail}{' ' + hint if hint else ''}")
        self.kind, self.name, self.near, self.known = kind, str(name), near, known


class NotEnoughText(UsageError):
    """A source that yields fewer windows than were asked for."""

    def __init__(self, source: str, windows: int, wanted: int, seqlen: int) -> None:
        way_out = f"lower n to {windows} or" if windows else "give more text, or"
        super().__init__(
            f"source '{source}' yields {windows} windows of {seqlen} tokens, {wanted} were asked for: "
            f"{way_out} use a shorter seqlen"
        )
        self.windows, self.wanted = windows, wanted


class TokenizerMismatch(UsageError):
    """A calibration set that was cut with another tokenizer than the model's."""


class CheckpointError(UsageError):
    """A model folder, or a file beside one, whose parts are missing, damaged or do not agree."""


class AssetError(IgspError):
    """A pinned file that is missing and cannot be fetched, or whose content is not the pinned one."""


class NumericalError(IgspError):
    """Non-finite activations, or a Hessian that stays singular after the whole damping ladder."""


T = TypeVar("T")


def brief(value: Any) -> str:
    """A value in a few words, whatever it is (YAML can unfold to more than memory holds)."""
    words = reprlib.Repr()
    words.maxlevel = 2
    try:
        return words.repr(value)
    except ValueError:  # a whole number of thousands of digits
        return type(value).__name__


def checked(model: type[T], given: Any, where: str, lines: Mapping[str, int] | None = None) -> T:
    """An instance of a pydantic model made from data that enters (YAML, JSON, options); the first fault is told.

    Args:
        given: a mapping whose keys are those of `model`.
        where: file or option that the data come from, as the message names it.
        lines: line of each key of the mapping in that file, where known.

    Raises:
        UnknownName: a key that the model does not have, or a name that is none of the known ones.
        UsageError: everything else; `where`, the key, the rule and what was given are in the message. What a validator
            of the model raises as one of the two comes through as it is, with `where` added.
    """
    from pydantic import ValidationError

    if not isinstance(given, Mapping):
        keys = ", ".join(getattr(model, "model_fields", ()))
        raise UsageError(f"{where} must be a mapping of {keys}, got {brief(given)}")
    try:
        return model.model_validate(dict(given))  # type: ignore[attr-defined, no-any-return]
    except ValidationError as error:
        faults: Any = error.errors(include_url=False)
        fault = next((f for f in faults if f["type"] == "extra_forbidden"), faults[0])  # a misspelt key is missing too
    path = [part for part in fault["loc"] if part != "[key]"]
    key = ".".join(map(str, path))
    if lines and path and path[0] in lines and path[0] in given:
        where = f"{where}, line {lines[path[0]]}"
    told, kind = fault.get("ctx", {}), fault["type"]
    raised = told.get("error")
    if kind == "extra_forbidden":
        inside = f", in {'.'.join(map(str, path[:-1]))}" if path[1:] else ""
        raise UnknownName("key", path[-1], _keys(model, path[:-1]), f"({where}{inside})") from None
    if kind == "missing":
        raise UsageError(f"{where}: {key} is missing") from None
    if kind == "literal_error":
        known = re.findall(r"'([^']*)'", told["expected"])
        given = fault["input"] if isinstance(fault["input"], str) else brief(fault["input"])
        raise UnknownName(key, given, known, f"({where})") from None
    if isinstance(raised, UnknownName):
        place = f"({where}: {key})" if key else f"({where})"
        raise UnknownName(raised.kind, raised.name, raised.known, place) from None
    if isinstance(raised, ValueError):
        raise UsageError(f"{where}: {f'{key}: ' if key else ''}{raised}") from None
    rule = re.sub(" or (an )?instance of .*", "", fault["msg"]).replace("Input should", "must").replace(" valid ", " ")
    for theirs, ours in {"a integer": "a whole number", "a dictionary": "a mapping", "a tuple": "a list"}.items():
        rule = rule.replace(theirs, ours)
    raise UsageError(f"{where}: {key} {rule}, got {brief(fault['input'])}") from None


def _keys(model: Any, path: Iterable[Any]) -> set[str]:
    """Keys of the model that lies at `path` inside another."""
    models = _models(model)
    for part in path:
        inner = [m.model_fields[part].annotation for m in models if part in m.model_fields]
        models = [m for kind in inner for m in _models(kind)] or models
    return {name for m in models for name in m.model_fields}


def _models(kind: Any) -> list[Any]:
    return [kind] if hasattr(kind, "model_fields") else [m for part in get_args(kind) for m in _models(part)]
