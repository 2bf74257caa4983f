"""Published numbers of one profile: read, looked up by key, printed.

Each notebook writes `book/results/<profile>/values/<notebook>.json`, a mapping from key to entry. The book types no
number of its own: it asks for a key, and an unknown key fails the build.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from igsp.errors import AssetError, UnknownName, UsageError

NBSP = "\N{NO-BREAK SPACE}"
MINUS = "\N{MINUS SIGN}"
FORMATS = ("value", "interval", "signed", "signed-interval", "number", "n", "p", "p-holm", "label")


@dataclass(frozen=True)
class Value:
    """One published number.

    Attributes:
        value: the number itself, in `unit`.
        low, high: ends of its interval in the same unit, or None.
        unit: printed after the number, may be empty.
        digits: decimals to print.
        n: size of the sample behind it.
        label: a name that belongs to it, such as the id of the best source.
        notebook: stem of the notebook that published it.
        p, p_holm: p-value, alone and corrected for the whole table.
        draws: independent calibration sets behind it, where that matters.
        noise: of a difference between strategies, the standard deviation that the luck of the draw gives it.
    """

    value: float
    low: float | None = None
    high: float | None = None
    unit: str = ""
    digits: int = 2
    n: int | None = None
    label: str | None = None
    notebook: str = ""
    p: float | None = None
    p_holm: float | None = None
    draws: int | None = None
    noise: float | None = None

    @property
    def has_interval(self) -> bool:
        return self.low is not None and self.high is not None


_FIELDS = {field.name for field in fields(Value)}


def read_values(folder: Path) -> dict[str, Value]:
    """Every value published in `folder/*.json`, by key.

    Raises:
        AssetError: a file that is not such a mapping, or a key published twice.
    """
    found: dict[str, Value] = {}
    for path in sorted(folder.glob("*.json")):
        try:
            entries = json.loads(path.read_text(encoding="utf8"))
            values = {key: Value(**{k: v for k, v in entry.items() if k in _FIELDS}) for key, entry in entries.items()}
        except (ValueError, TypeError, AttributeError) as error:
            raise AssetError(f"{path.name} is no file of published values ({error}): run its notebook again") from None
        twice = sorted(found.keys() & values.keys())
        if twice:
            raise AssetError(f"{path.name} publishes {twice[0]} again, first published by {found[twice[0]].notebook}")
        found |= values
    return found


def look_up(values: Mapping[str, Value], key: str) -> Value:
    """The value of `key`; raises `UnknownName` with the nearest keys."""
    if key not in values:
        raise UnknownName("result", key, values, hint="" if values else "(nothing is published: run the notebooks)")
    return values[key]


def number(x: float, digits: int, signed: bool = False) -> str:
    """`x` with `digits` decimals and a true minus sign; never a negative zero."""
    text = f"{x:{'+' if signed else ''}.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return text.replace("-", MINUS)


def quantity(value: Value, signed: bool = False) -> str:
    """Number and unit, as in `58.8 %`."""
    text = number(value.value, value.digits, signed)
    return f"{text}{NBSP}{value.unit}" if value.unit else text


def interval(value: Value, signed: bool = False) -> str:
    """Number, unit and interval, as in `58.8 % (57.1 to 60.2)`; without an interval just number and unit."""
    if value.low is None or value.high is None:
        return quantity(value, signed)
    ends = [number(end, value.digits, signed) for end in (value.low, value.high)]
    return f"{quantity(value, signed)} ({ends[0]} to {ends[1]})"


def p_text(p: float | None) -> str:
    """A p-value with three decimals, `< 0.001` below that."""
    if p is None:
        return "not computed"
    return f"<{NBSP}0.001" if p < 0.001 else f"{p:.3f}"


def render(value: Value, form: str = "value") -> str:
    """`value` in one of `FORMATS`; raises `UsageError` for another, or for a field that the value does not have."""
    if form not in FORMATS:
        raise UnknownName("format", form, FORMATS)
    field = {"n": value.n, "label": value.label, "p": value.p, "p-holm": value.p_holm}
    if form in field and field[form] is None:
        raise UsageError(f"this result has no {form}: publish it in the notebook {value.notebook}")
    shown: dict[str, Any] = {
        "n": value.n, "label": value.label, "p": p_text(value.p), "p-holm": p_text(value.p_holm),
        "number": number(value.value, value.digits),
        "value": quantity(value), "signed": quantity(value, signed=True),
        "interval": interval(value), "signed-interval": interval(value, signed=True),
    }
    return str(shown[form])


def explain(key: str, value: Value) -> str:
    """One line about a value for the hover text: key, interval, sample size, notebook."""
    parts = [key]
    if value.has_interval:
        parts.append(f"95{NBSP}% interval {interval(value).split('(', 1)[1].rstrip(')')}")
    if value.n is not None:
        parts.append(f"n = {value.n}")
    if value.p is not None:
        parts.append(f"p = {p_text(value.p)}, Holm {p_text(value.p_holm)}")
    return "; ".join([*parts, f"notebook {value.notebook}"])


def signed_form(key: str) -> str:
    """The format for a key in generated tables: differences and correlations carry their sign."""
    return "signed-interval" if "-minus-" in key or "spearman/" in key or "margin/" in key else "interval"
