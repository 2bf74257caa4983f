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
# # Fifteen sources, four capabilities
#
# **What you will learn.** What a calibration source is, how differently fifteen of them treat one model, and why an
# averaged score hides it.
#
# **Which claim this answers.** The paper reports a spread of 2.85 points of averaged commonsense accuracy between
# calibration strategies, and of 51.9 points of Code retention, with SparseGPT at 60 % sparsity {cite:p}`xu2026calibration`.
#
# A *calibration source* is a body of text from which windows of tokens are drawn. One-shot pruning looks at the
# activations that these windows cause, and at nothing else, when it decides which weights to remove. Here each source
# in turn prunes a fresh copy of the model; the pruned model is then judged on held-out text of four *capability
# dimensions*: General, Commonsense, Code and Math.

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

# %%
import pandas as pd

from igsp import figures
from igsp.scoring.contamination import contamination
from igsp.text.catalogue import catalogue, documents
from igsp.study.study import Study, frame, score_table

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

# %% [markdown]
# ## The sources
#
# Documents are split by a hash into a calibration side and a held-out side before any window is cut, so no window
# can contain text that the model is later scored on. *Removed* counts the documents that are passed over all the same,
# because a text of the evaluation occurs in them letter for letter. {doc}`/book/sources` says what each source is.

# %%
rows = []
for name in study.settings.sources:
    texts = documents(name)
    size = sum(len(d.text.encode()) for d in texts) / 1e6
    rows.append(
        {
            "source": name,
            "dimension": catalogue()[name].dimension,
            "documents": len(texts),
            "removed": contamination(name, study.settings.suite)[0],
            "MB": size,
        }
    )
sources = pd.DataFrame(rows).set_index("source", drop=False)
figures.show_table(
    sources, "Calibration sources: documents and size of the calibration side"
)

# %% [markdown]
# ## The dense model
#
# Before anything is removed: bits per byte on held-out text (lower is better) and accuracy on multiple-choice items.
# *Bits per byte* is the number of bits the model needs for one byte of text; unlike perplexity per token it does
# not depend on the tokenizer.

# %%
dense = study.dense()
figures.show_table(score_table(dense), "Scores of the dense model", digits=3)

# %% [markdown]
# A multiple-choice score means something only above solvers that know nothing: the longest choice, the choice that shares
# most words with the question, and a word-trigram model of the calibration text. Tasks on which the dense model does not beat
# the best of them by three standard errors were left out of the suite.

# %% tags=["hide-input"]
figures.show_table(
    study.trivial(),
    "The dense model against trivial solvers; z is its lead over the best of them in standard errors",
)

# %% [markdown]
# ## Prune with each source
#
# *Likelihood retention* is what the pruned model keeps, in percent: $100 \cdot b_\text{dense} / b_\text{pruned}$ with
# $b$ the bits per byte on held-out text of a dimension. 100 means nothing was lost. (**Our definition**: at this
# scale accuracies have too little resolution.) The figure has a row per source, grouped by the source's own dimension.

# %%
results = study.run(study.settings.sources)
kept = study.retentions(results)
table = frame(kept)

# %% tags=["hide-input"]
order = sources.sort_values(
    "dimension", key=lambda d: d.map(figures.DIMENSIONS.index)
).index
shown = table.loc[order, [*figures.DIMENSIONS, "total"]]
shown.index = [f"{name} ({sources.dimension[name].capitalize()})" for name in order]
best = {d: table[d].idxmax() for d in figures.DIMENSIONS}
figures.show(
    figures.heatmap(shown, "Retention of a dimension or in total (%)"),
    alt="Heatmap of retention by source and dimension. Best source: "
    + ", ".join(f"{d} {best[d]} at {table[d].max():.0f} %" for d in figures.DIMENSIONS)
    + f". Total retention runs {figures.spread_phrase(table.total)}.",
    caption="Retention of each dimension after calibrating on one source. Best source: "
    + ", ".join(f"{best[d]} for {d.capitalize()}" for d in figures.DIMENSIONS)
    + f". In total it is {table.total.idxmax()}.",
    name="fig-sources-heatmap",
)

# %% [markdown]
# ## What the average hides
#
# The spread is the distance between the best and the worst source. If calibration text did not matter, every spread
# would be as small as the noise. The total averages the four dimensions and so looks calmer than they are.

# %% tags=["hide-input"]
spread = table[[*figures.DIMENSIONS, "total"]].agg(
    lambda column: column.max() - column.min()
)
figures.show_table(
    pd.DataFrame(
        {
            "dimension": spread.index,
            "spread (points)": spread.values,
            "worst": [table[d].idxmin() for d in spread.index],
            "best": [table[d].idxmax() for d in spread.index],
        }
    ),
    "Spread of retention over the sources",
    digits=1,
)

# %% tags=["hide-input"]
best_total, web = table.total.idxmax(), study.settings.web
values = {
    f"spread/{d}": {"value": spread[d], "unit": "points", "n": len(table)}
    for d in spread.index
}
for task in dense.tasks:
    if task.metric == "bits_per_byte":
        values[f"dense/{task.dimension}/bpb"] = {
            "value": task.value,
            "unit": "bits per byte",
            "digits": 3,
            "n": task.n,
        }
for key, name in (("best-single", best_total), ("web", web)):
    total = kept[name].total
    values[f"{key}/total"] = {**vars(total), "unit": "%", "label": name}
study.store.publish("01-source-profiling", values)

# %% [markdown]
# ## What it means, and what it does not
#
# The four dimensions do not agree on a best source, and their spreads ({result}`spread/code` for Code against
# {result}`spread/total` for the total) are not the same. That is the paper's starting point. It is not yet a trade-off:
# for that, the *same property* of a source has to help one dimension and harm another. {doc}`03-spearman` tests it.
#
# The scores rest on held-out text of the same broad kind as the sources, a small model and few windows. A single draw
# per source (see the parameters above) cannot separate the source from the luck of the draw.
#
# ## Exercises
#
# - ★ Which dimension loses most on average, and which source protects it best? Read it off {numref}`fig-sources-heatmap`.
# - ★★ Run the notebook with `-p seed 1`. Which of your statements survive?
# - ★★★ Run it with `-p sparsity 0.3`. Does the spread of Code shrink faster than that of General? Why might it?
