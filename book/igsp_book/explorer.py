"""Data of the explorer page: one row per strategy and setting, out of the stored records; plain numbers, no model."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

import numpy as np

from igsp.study.records import Record
from igsp.text.catalogue import DIMENSIONS, catalogue
from igsp_book.tables import titled

FIRST = ("calibration_perplexity", "aggregation_4")  # the metrics that the paper names lead the list
DIGITS = 4  # significant enough for a picture and a rank


@dataclass(frozen=True)
class Point:
    """One strategy at one setting, averaged over its draws.

    Attributes:
        run: method, sparsity and size of the calibration set, in words.
        strategy: source id, mix or protocol, as prose writes it.
        kind: the dimension of a source, else `mix` or `self-written`.
        metrics: OIT metrics by name, means over the draws that have them.
        retention: likelihood retention in percent by dimension, and `total`.
        draws: calibration draws behind the retention.
    """

    run: str
    strategy: str
    kind: str
    metrics: Mapping[str, float]
    retention: Mapping[str, float]
    draws: int


def points(records: Iterable[Record]) -> list[Point]:
    """The points that a store of records holds, by run (that with the most strategies first) and strategy.

    A store can hold several generations of scores (another suite, other versions): the one whose dense model was
    scored last is shown. A pruned cell counts if the metrics of its calibration set are in the store.
    """
    everything = list(records)
    dense = [r for r in everything if r.spec.get("stage") == "dense"]
    if not dense:
        return []
    newest = max(dense, key=lambda record: str(record.provenance.get("finished", "")))
    metrics = {r.spec["calibration"]: r.metrics["information"] for r in everything if r.spec.get("stage") == "metrics"}
    groups: dict[tuple[str, str], list[tuple[dict[str, float], Record]]] = {}
    for record in everything:
        if record.spec.get("stage") == "cell" and _setting(record) == _setting(newest):
            kept = likelihood_retention(record.metrics["scores"], newest.metrics["scores"])
            key = (run_name(record.spec), record.spec["strategy"])
            groups.setdefault(key, []).append((kept, record))
    found = []
    sizes = Counter(run for run, _ in groups)
    for (run, strategy), cells in sorted(groups.items(), key=lambda item: (-sizes[item[0][0]], item[0])):
        known = [metrics[record.spec["calibration"]] for _, record in cells if record.spec["calibration"] in metrics]
        if known:
            kept = _means([cell for cell, _ in cells])
            found.append(Point(run, titled(strategy), _kind(strategy, cells[0][1]), _means(known), kept, len(cells)))
    return found


def _means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: _round(np.mean([row[name] for row in rows])) for name in rows[0]}


def likelihood_retention(pruned: Mapping[str, Any], dense: Mapping[str, Any]) -> dict[str, float]:
    """`100 * bits per byte of the dense model / of the pruned model` per dimension, and their mean as `total`."""
    full = {task["task"]: task for task in dense["tasks"] if task["metric"] == "bits_per_byte"}
    shares: dict[str, list[float]] = {}
    for task in pruned["tasks"]:
        if task["task"] in full:
            shares.setdefault(task["dimension"], []).append(100 * full[task["task"]]["value"] / task["value"])
    kept = {name: float(np.mean(shares[name])) for name in DIMENSIONS if name in shares}
    return {**kept, "total": float(np.mean(list(kept.values())))}


def html(found: Sequence[Point]) -> str:
    """The explorer as HTML: five choices, an empty drawing and legend that the script fills, and the data."""
    shared = set.intersection(*(set(p.metrics) for p in found))
    metrics = sorted(shared, key=lambda name: (FIRST.index(name) if name in FIRST else len(FIRST), name))
    choices = {
        "run": ("Run", [(run, run) for run in dict.fromkeys(p.run for p in found)]),
        "metric": ("Metric", [(name, titled(name).replace("_", " ")) for name in metrics]),
        "dimension": ("Retention of", [(name, name.capitalize()) for name in (*DIMENSIONS, "total")]),
        "scale": ("Axes", [("values", "values"), ("ranks", "ranks")]),
        "strategy": ("Highlight", [("", "nothing")]),
    }
    form = "".join(_select(name, title, options) for name, (title, options) in choices.items())
    data = to_json([asdict(p) for p in found])
    return (
        f'<div class="igsp-explorer"><form onsubmit="return false">{form}</form>'
        '<svg viewBox="0 0 520 350" role="img" aria-label="Scatter plot of the chosen metric and retention"></svg>'
        '<p class="igsp-legend"></p><p data-summary aria-live="polite"></p>'
        f'<script type="application/json">{data}</script></div>'
    )


def to_json(data: Any) -> str:
    """JSON that can stand in a script element."""
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")


def _select(name: str, title: str, options: Iterable[tuple[str, str]]) -> str:
    items = "".join(f'<option value="{escape(value)}">{escape(text)}</option>' for value, text in options)
    return f'<label>{title}<select data-control="{name}">{items}</select></label>'


def run_name(spec: Mapping[str, Any]) -> str:
    """Method and sparsity, the size of the calibration set, and pattern and order where they are not the usual ones."""
    extra = [f"{spec['n']} × {spec['seqlen']} tokens"] if {"n", "seqlen"} <= spec.keys() else []
    extra += [str(spec[key]) for key in ("pattern", "order") if spec.get(key) not in (None, "block")]
    return titled(", ".join([f"{spec['method']} {100 * spec['sparsity']:g} %", *extra]))


def _setting(record: Record) -> str:
    return str([record.spec.get(key) for key in ("model", "device", "dtype", "suite")])


def _kind(strategy: str, record: Record) -> str:
    source = catalogue().get(strategy)
    written = not {"source", "weights"} & record.spec.get("detail", {"weights": 1}).keys()
    return source.dimension if source else "self-written" if written else "mix"


def _round(value: Any) -> float:
    return float(f"{float(value):.{DIGITS}g}")
