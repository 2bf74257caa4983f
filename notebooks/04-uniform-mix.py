# ---
# jupyter:
#   igsp:
#     needs: []
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
# # Mix the sources
#
# **What you will learn.** Whether a calibration set made of several sources keeps more than any single one.
#
# **Which claim this answers.** At 60 % sparsity on LLaMA-3.1-8B a uniform multi-source mix keeps 58.8 % in total, the
# best single source (MetaMath) 50.0 %, C4 40.0 % {cite:p}`xu2026calibration`.
#
# The *uniform mix* takes equal shares of one source per dimension; the *all-sources mix* equal shares of all fifteen.
# Both have exactly as many windows as every single-source set, and share those windows with them.

# %% tags=["remove-cell"]
from typing import Optional

# %% tags=["parameters"]
profile: str = "quick"  # scale profile; it gives every value below that is None
model: Optional[str] = None  # alias, hub id or local folder
method: Optional[str] = None  # sparsegpt, wanda or magnitude
sparsity: Optional[float] = None  # share of weights set to zero, in [0, 1)
n: Optional[int] = None  # calibration windows per strategy
seqlen: Optional[int] = None  # tokens per window
draws: Optional[int] = None  # independent calibration sets per strategy
seed: Optional[int] = None  # first random stream

# %% tags=["hide-input"]
import pandas as pd

from igsp import figures
from igsp.text.windows import largest_remainder
from igsp.scoring.retention import difference
from igsp.study.study import Study, frame

figures.use_style()
study = Study(
    profile,
    model=model,
    method=method,
    sparsity=sparsity,
    n=n,
    seqlen=seqlen,
    draws=draws,
    seed=seed,
)

# %% tags=["hide-input"]
parts = [
    {"mix": name, "source": source, "windows": windows}
    for name in ("uniform", "all-sources")
    for source, windows in largest_remainder(
        study.strategies[name].detail["weights"], study.settings.n
    ).items()
]
figures.show_table(pd.DataFrame(parts), "Composition of the two mixes, in windows")

# %% [markdown]
# ## Retention of the mixes beside the single sources

# %%
dense = study.dense()
singles = study.run(study.settings.sources)
mixes = study.run(["uniform", "all-sources"])
kept = study.retentions(singles + mixes)
table = frame(kept)
best, web = table.total[list(study.settings.sources)].idxmax(), study.settings.web

# %% tags=["hide-input"]
labels = {
    "uniform": "uniform mix",
    "all-sources": "all-sources mix",
    best: f"best single:\n{best}",
}
labels |= {web: f"web text:\n{web}"} if web != best else {}
chosen = {label: kept[name].estimates() for name, label in labels.items()}
totals = {label.replace("\n", " "): e["total"].value for label, e in chosen.items()}
figures.show(
    figures.bars(chosen, "retention (%), 95 % interval"),
    alt="Retention per dimension and in total. Totals: "
    + figures.phrase(totals.items(), "{:.1f} %")
    + ".",
    caption="Retention of the mixes beside the best single source and plain web text. Total: "
    + figures.phrase(totals.items(), "{:.1f} %")
    + ".",
    name="fig-mix-bars",
)

# %% [markdown]
# ## Is the margin larger than the noise?
#
# Every pruned model is scored on the same held-out items, so the difference of two of them can be resampled item by
# item. The interval says how far the margin depends on the items; only several draws say how far it depends on the
# windows that happened to be drawn.

# %%
by_name = {}
for result in singles + mixes:
    by_name.setdefault(result.strategy, []).append(result.scores)
gaps = {
    f"{a} minus {b}": difference(by_name[a], by_name[b], dense, study.settings.measure)
    for a in ("uniform", "all-sources")
    for b in dict.fromkeys((best, web))
}
rows = [{"difference": name, **gap} for name, gap in gaps.items()]
title = "Paired differences in points of retention, with 95 % intervals"
figures.show_table(pd.DataFrame(rows), title, digits=1)

# %% [markdown]
# ## The weakest capability
#
# A total can hide a collapse. The minimum over the four dimensions cannot.

# %% tags=["hide-input"]
ranked = table.sort_values("minimum", ascending=False).head(8)
shown = ranked.copy()
shown.insert(0, "strategy", shown.index)
figures.show_table(
    shown, "The eight strategies with the highest minimum over the dimensions", digits=1
)

# %% tags=["hide-input"]
values = {
    f"uniform/{d}": {**vars(e), "unit": "%"} for d, e in kept["uniform"].estimates().items()
}
values["all-sources/total"] = {**vars(kept["all-sources"].total), "unit": "%"}
values["uniform/rank"] = {
    "value": int((table.total > table.total["uniform"]).sum()) + 1,
    "digits": 0,
    "n": len(table),
}
for key, name in (("best-single", best), ("web", web)):
    gap = gaps[f"uniform minus {name}"]["total"]
    values[f"uniform-minus-{key}"] = {
        **vars(gap),
        "unit": "points",
        "label": name,
        "draws": study.settings.draws,
    }
study.store.publish("04-uniform-mix", values)

# %% [markdown]
# ## What it means, and what it does not
#
# The uniform mix keeps {result}`uniform/total:interval` in total. Against the best single source that is a difference of
# {result}`uniform-minus-best-single:signed-interval`, against web text {result}`uniform-minus-web:signed-interval`. Mind the
# comparison: the best single source was *chosen* for being best on these very items, the mix was not.
#
# The held-out text covers the dimensions that the mix was built from. About a capability outside them nothing is said
# here.
#
# ## Exercises
#
# - ★ Which dimension pays for the mix? Compare it with the best source of each dimension in {doc}`01-source-profiling`.
# - ★★ Replace the Code source of the mix by another one (`igsp.mix`). Does the order of the strategies change?
# - ★★★ Find weights that raise the minimum over the dimensions. How many evaluations did you spend, and on which text
#   would you confirm the result?
