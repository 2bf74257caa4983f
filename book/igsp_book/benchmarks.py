"""The speed records: a table of runs, and one of ratios where there are some, per file of `book/results/benchmarks`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from docutils import nodes

from igsp_book.base import BookDirective, results_folder
from igsp_book.tables import Cell, table, titled

NAMES = {"cpu": "Pruning on a processor", "gpu": "Pruning on a GPU", "scheduler": "Running a study",
         "generate": "Writing text", "protocols": "Writing calibration sets"}
SHOWN = {"n": "{} windows", "seqlen": "{} tokens each", "sparsity": "{:.0%} sparsity", "cores": "{} cores",
         "processor": "{}", "device": "{}", "model": "{}", "dtype": "{}"}  # the others: name and value
FLOORS = {"two_pass_seconds": "the counted floor", "model_two_pass_seconds": "the floor with the model's own forward"}
NBSP = "\N{NO-BREAK SPACE}"
COLUMNS = {  # heading by field of a run
    "seconds": "Seconds", "cpu_seconds": "CPU seconds", "solve_seconds": "Solver seconds", "peak_bytes": "Peak memory",
    "tokens_per_second": "Tokens per second", "zeros": "Zeros", "heldout_loss": "Held-out loss", "runs": "Runs",
}


class Benchmarks(BookDirective):
    """What each record measured, on which machine and at which setting; fields that a record lacks are left out."""

    def build(self) -> list[nodes.Node]:
        paths = sorted((results_folder(self.env) / "benchmarks").glob("*.json"))
        for path in paths:
            self.env.note_dependency(str(path))
        records = {path.stem: json.loads(path.read_text(encoding="utf8")) for path in paths}
        tables = [made(name, record) for name, record in records.items() for made in (benchmark_table, ratio_table)]
        return [*filter(None, tables)] or [nodes.paragraph("", "This build holds no speed records.")]


def benchmark_table(name: str, record: Mapping[str, Any]) -> nodes.table | None:
    """One record as a table, a row per timed run; None if it holds none."""
    grid = {f"{row['method']}, {row['varied']} {row[row['varied']]}": row for row in record.get("rows", [])}
    runs = {key: value for key, value in (grid or record.get("contenders") or record).items() if is_run(value)}
    columns = [field for field in COLUMNS if any(field in run for run in runs.values())]
    if not runs:
        return None
    rows: list[list[Cell]] = [[run_title(key), *(shown(field, run) for field in columns)] for key, run in runs.items()]
    about = NAMES.get(record.get("benchmark", name), name)
    return table(["Run", *(COLUMNS[field] for field in columns)], rows, f"{about}: {setting(record)}.", "igsp-dense")


def ratio_table(name: str, record: Mapping[str, Any]) -> nodes.table | None:
    """How many times longer (or, of texts, faster) the first of two runs was, by the clock and by CPU seconds."""
    rows: list[list[Cell]] = [
        [f"{run_title(first)} to {FLOORS.get(second, run_title(second))}", f"{ratio:.2f}",
         f"{record['cpu_ratios'][pair]:.2f}" if pair in record.get("cpu_ratios", {}) else ""]
        for pair, ratio in record.get("ratios", {}).items() for first, second in [pair.split(" / ")]
    ]
    caption = f"{NAMES.get(record.get('benchmark', name), name)}: ratios within that record."
    return table(["Ratio of", "By the clock", "By CPU seconds"], rows, caption, "igsp-dense") if rows else None


def run_title(key: str) -> str:
    """Methods as prose writes them; `igsp` is the program here, not the protocol."""
    return " ".join(word if word == "igsp" else titled(word) for word in key.split())


def is_run(value: Any) -> bool:
    return isinstance(value, Mapping) and "seconds" in value


def shown(field: str, run: Mapping[str, Any]) -> str:
    """A field with its unit; seconds of repeated runs with their range."""
    value = run.get(field)
    if value is None:
        return ""
    if field == "peak_bytes":
        return f"{value / 1e9:.2f}{NBSP}GB"
    if field == "zeros":
        return f"{100 * value:.2f}{NBSP}%"
    if field == "heldout_loss":
        return f"{value:.3f}"
    text = str(value) if isinstance(value, int) else f"{value:.3g}" if value < 100 else f"{value:.0f}"
    if field == "seconds" and run.get("runs", 1) > 1:
        text += f" ({run['fastest']:.3g} to {run['slowest']:.3g})"
    return text


def setting(record: Mapping[str, Any]) -> str:
    """Machine and setting of a record in words."""
    machine = record.get("machine") or {"device": record.get("device"), "torch": record.get("torch")}
    parts = [SHOWN.get(key, f"{key} {{}}").format(value).replace("%", " %")
             for key, value in {**(record.get("setting") or {}), **machine}.items()
             if isinstance(value, str | int | float) and not isinstance(value, bool)]
    return titled(", ".join(parts).replace("_", " "))
