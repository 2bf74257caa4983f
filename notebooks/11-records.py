# ---
# jupyter:
#   igsp:
#     needs: []
#     reads: [small, small-gemma, benchmarks, advice]
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The tables of this book
#
# Other pages show tables of sources, protocols, speed, costs and advice. They are made here, from the catalogue and the
# committed records alone, so that no number in them is typed by hand. Each cell is short: change it and see.

# %% tags=["parameters"]
profile: str = "quick"  # the profile of this build
measured: str = "small"  # the profile whose times are on record
planned: str = "paper"  # the profile whose costs are estimated

# %%
import json
from collections import Counter

import pandas as pd

from igsp import figures
from igsp.assets import catalog
from igsp.provenance import repository_root
from igsp.text.catalogue import catalogue

figures.use_style()
results = repository_root() / "book" / "results"
code = figures.code

# %% [markdown]
# ## Calibration sources
#
# *Profiles* names the profiles of scale that use a source.

# %%
users = {
    name: catalog(f"profiles/{name}")["sources"] for name in ("quick", "small", "paper")
}
sources = pd.DataFrame(
    {
        "source": code(one.id),
        "dimension": one.dimension,
        "what it is": one.about + " (generated)" * one.generated,
        "profiles": ", ".join(p for p, used in users.items() if one.id in used)
        or "none",
        "licence": str(one.licence),
        "origin": "hub" if one.origin == "hub" else "packages",
    }
    for one in catalogue().values()
)
for origin, rows in sources.groupby("origin"):
    figures.show_table(
        rows.drop(columns="origin"),
        f"{len(rows)} calibration sources",
        name=f"tab-sources-{origin}",
        classes="igsp-stack",
    )


# %% [markdown]
# ## Settings of the protocols
#
# *Known from* tells what is published, what was read from released code, and what is our definition.


# %%
def plain(value):
    """A setting in words."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {plain(inner)}" for key, inner in value.items())
    if isinstance(value, list):
        return ", ".join(map(plain, value))
    return "none" if value is None else "a space" if value == " " else str(value)


known = {
    "published": "published",
    "released": "released code",
    "ours": "our definition",
}
for protocol, settings in catalog("protocols").items():
    rows = pd.DataFrame(
        {
            "setting": code(name),
            "value": plain(about["value"]),
            "known from": known[about["status"]],
            "source or remark": about.get("source") or about.get("note") or "",
        }
        for name, about in settings.items()
    )
    figures.show_table(
        rows,
        f"Settings of {figures.title(protocol.replace('_', '-'))}",
        name=f"tab-protocol-{protocol}",
        classes="igsp-stack",
    )

# %% [markdown]
# ## Speed
#
# One table per record in `book/results/benchmarks`, and one of the ratios within the record. Seconds of a run that was repeated
# carry their range.

# %%
names = {
    "cpu": "Pruning on a processor",
    "gpu": "Pruning on a GPU",
    "scheduler": "Running a study",
    "generate": "Writing text",
    "protocols": "Writing calibration sets",
}
floors = {
    "two_pass_seconds": "the counted floor",
    "model_two_pass_seconds": "the floor with the model's own forward",
}
columns = {
    "seconds": "{:.3g}",
    "cpu_seconds": "{:.3g}",
    "solve_seconds": "{:.3g}",
    "peak_bytes": "{:.3g} B",
    "tokens_per_second": "{:.0f}",
    "zeros": "{:.2%}",
    "heldout_loss": "{:.3f}",
    "runs": "{:.0f}",
}


def runs(record):
    """The timed runs of a record by name."""
    rows = record.get("rows", [])
    grid = {
        f"{r['method']}, {r['varied']} {r[r['varied']]}": r for r in rows if "varied" in r
    }
    found = grid or record.get("contenders") or record
    return {
        k: v for k, v in found.items() if isinstance(v, dict) and "seconds" in v
    }


def cell(field, run):
    """One number with its unit, '' where the record has none."""
    if run.get(field) is None:
        return ""
    if field == "peak_bytes":
        return f"{run[field] / 1e9:.2f} GB"
    text = columns[field].format(run[field])
    if field == "seconds" and run.get("runs", 1) > 1:
        text += f" ({run['fastest']:.3g} to {run['slowest']:.3g})"
    return text


def name(text):
    """A run as prose writes it; `igsp` is the program here, not the protocol."""
    words = (w if w == "igsp" else figures.title(w) for w in text.split())
    return " ".join(words)


def words(record):
    """Machine and setting in words."""
    facts = {**(record.get("setting") or {}), **(record.get("machine") or {})}
    plain = {k: v for k, v in facts.items() if isinstance(v, str | int | float)}
    return ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in plain.items())


# %%
for path in sorted((results / "benchmarks").glob("*.json")):
    record = json.loads(path.read_text(encoding="utf8"))
    about = names.get(record.get("benchmark"), path.stem)
    timed = runs(record)
    if timed:
        rows = pd.DataFrame(
            {"run": name(k), **{c.replace("_", " "): cell(c, v) for c in columns}}
            for k, v in timed.items()
        )
        rows = rows.loc[:, (rows != "").any()]
        figures.show_table(
            rows, f"{about}: {words(record)}", name=f"tab-speed-{path.stem}"
        )
    ratios = [
        {
            "ratio of": f"{name(a)} to {floors.get(b, name(b))}",
            "by the clock": ratio,
            "by CPU seconds": record.get("cpu_ratios", {}).get(pair, float("nan")),
        }
        for pair, ratio in record.get("ratios", {}).items()
        for a, b in [pair.split(" / ")]
    ]
    if ratios:
        figures.show_table(
            pd.DataFrame(ratios),
            f"{about}: ratios within that record",
            name=f"tab-ratios-{path.stem}",
        )

# %% [markdown]
# Pruned checkpoints in other programs, each in an environment of its own (`tests/interop/check.py`).

# %%
record = json.loads((results / "benchmarks" / "interop.json").read_text(encoding="utf8"))
rows = [
    {
        "tool": row["tool"],
        "versions": ", ".join(f"{k} {v}" for k, v in row["versions"].items()),
        "checkpoint": row["checkpoint"],
        "result": row["result"],
    }
    for row in record["rows"]
]
figures.show_table(
    pd.DataFrame(rows),
    "Greedy tokens, zeros, templates and round trips of pruned checkpoints",
    name="tab-interop",
)

# %% [markdown]
# All methods on every layer of one model, from the same statistics of the dense model: the squared change of a layer's output
# over the calibration tokens, as a multiple of Wanda's, averaged over the layers; and seconds of one thread in the solvers.

# %%
for path in sorted((results / "benchmarks").glob("layers-*.json")):
    record = json.loads(path.read_text(encoding="utf8"))
    rows = pd.DataFrame(
        {
            "error, Wanda = 1": record["mean_error_to_wanda"],
            "solver seconds": record["solver_seconds"],
        }
    )
    figures.show_table(
        rows.rename_axis("method").reset_index(),
        f"Output error of the layers: {words(record)}",
        name="tab-layers",
    )

# %% [markdown]
# What a run on a graphics card should take, by arithmetic: launches, bytes and operations are counted, rates are those that the
# makers publish. *Estimated* until a card was used.

# %%
for path in sorted((results / "benchmarks").glob("roofline-*.json")):
    record = json.loads(path.read_text(encoding="utf8"))
    rows = pd.DataFrame(record["seconds"])
    rows.loc["all"] = rows.sum()
    figures.show_table(
        rows.rename_axis("stage").reset_index(),
        f"Estimated seconds of {figures.title(record['method'])} by stage: {record['model']}, "
        f"{record['setting']['n']} windows of {record['setting']['seqlen']} tokens",
        digits=1,
        name=f"tab-{path.stem}",
    )

# %% [markdown]
# ## What a study costs
#
# Tasks by kind, with the median seconds that one of them took on a worker.

# %%
from igsp.study.engine import Pace
from igsp.study.records import Store
from igsp.study.study import Study

records = list(Store(results / measured).records())
pace = Pace.of(records)
counts, others = (
    Counter(task.kind for task in Study(p, results / measured).tasks())
    for p in (measured, planned)
)
costs = pd.DataFrame(
    {
        "task": code(kind),
        f"tasks of {measured}": count,
        "seconds of one": pace.typical(kind),
        "worker hours": count * (pace.typical(kind) or float("nan")) / 3600,
        f"tasks of {planned}": others[kind],
    }
    for kind, count in sorted(counts.items())
)
everything = ["all", counts.total(), None, pace.left(counts) / 3600, others.total()]
costs.loc[len(costs)] = everything
made = Counter(
    (r.provenance.get("processor"), r.provenance.get("threads")) for r in records
)
processor, threads = made.most_common(1)[0][0]
figures.show_table(
    costs.astype({"seconds of one": float}),
    f"Tasks by kind, median seconds on a worker ({processor}, threads: {threads})",
    name="tab-study-costs",
)

# %%
scored = 1 + sum(n for kind, n in others.items() if kind.startswith("cell"))
figures.show_text(
    f"{scored} tasks of {planned} score a model on its suite: the cells, and the dense model. If the suite takes half an "
    f"hour, that makes {scored / 2:.1f} GPU hours, which cost {3 * scored / 2:.0f} at a price of 3 an hour.",
    name="tab-study-bill",
)

# %% [markdown]
# ## A newcomer's first session
#
# Recorded on a machine that had nothing installed.

# %%
record = json.loads((results / "benchmarks" / "newcomer.json").read_text(encoding="utf8"))
machine, session = record["machine"], record["session"]
figures.show_text(
    "\n\n".join(
        f"$ {step['command']}\n{step['output'].rstrip()}\n# {step['seconds']:.0f} s"
        for step in session
    ),
    name="tab-newcomer",
    tag="pre",
)
figures.show_text(
    f"{sum(step['seconds'] for step in session):.0f} seconds in all; {machine['cores']} cores ({machine['processor']}), "
    f"threads in use: {machine['threads']}, torch {machine['torch']}. {record['note']}",
    name="tab-newcomer-machine",
)
