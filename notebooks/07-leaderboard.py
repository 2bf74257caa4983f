# ---
# jupyter:
#   igsp:
#     needs: [01-source-profiling, 02-oit-metrics, 03-spearman, 04-uniform-mix, 05-igsp, 06-baselines]
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
# # Leaderboard: every strategy on one page
#
# **What you will learn.** How all calibration strategies compare in total, in their weakest dimension and in accuracy, and
# how sure one can be of the order.
#
# **Which claim this answers.** The paper's summary: the uniform multi-source mix is best among sets of real text, and IGSP is
# best among self-written ones {cite:p}`xu2026calibration`.

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

# %% [markdown]
# ## Totals with intervals

# %%
dense = study.dense()
results = study.run(study.strategies)
kept = study.retentions(results)
table = frame(kept).sort_values("total", ascending=False)
series = {"source": "single source", "mix": "mix"}
kinds = {
    name: series.get(study.strategies[name].kind, "self-written") for name in table.index
}

# %% tags=["hide-input"]
points = [
    {"label": name, "series": kinds[name], **vars(kept[name].total)} for name in table.index
]
figures.show(
    figures.intervals(pd.DataFrame(points), "total retention (%), 95 % interval"),
    alt=f"Total retention of {len(table)} strategies with intervals. First: "
    + figures.phrase(table.total.head(3).items(), "{:.1f} %")
    + f"; last: {table.index[-1]} {table.total.iloc[-1]:.1f} %.",
    caption=f"Total retention of every strategy. Most is kept by {figures.title(table.index[0])}: {table.total.iloc[0]:.1f} %; "
    f"the uniform mix is number {list(table.index).index('uniform') + 1} of {len(table)}.",
    name="fig-leaderboard",
)

# %% [markdown]
# ## The whole table
#
# *Minimum* is the weakest of the four dimensions. *Accuracy* is retention of the multiple-choice accuracies. Its resolution
# at this scale is low, so only a few strategies are scored on the choices (those that the suite names; the others have no
# value). *Above chance* corrects it for guessing: $100 \cdot (\text{pruned} - \text{chance}) / (\text{dense} -
# \text{chance})$.

# %%
examined = [r for r in results if any(task.metric == "acc" for task in r.scores)]
accuracy = study.retentions(examined, "accuracy")
board = table.copy()
board.insert(0, "strategy", board.index)
board["accuracy"] = pd.Series({name: kept.total.value for name, kept in accuracy.items()})
board["above chance"] = pd.Series(
    {name: pd.Series(kept.corrected).mean() for name, kept in accuracy.items()}
)
figures.show_table(board, "Leaderboard: retention in percent of the dense model", digits=1)

# %% [markdown]
# ## How long does a cell take?

# %% tags=["hide-input"]
seconds = pd.Series(
    {r.strategy: sum(r.record.metrics["seconds"].values()) for r in results}
)
leader = board.index[0]
values = {
    "leaderboard/first": {**vars(kept[leader].total), "unit": "%", "label": leader},
    "leaderboard/examined": {"value": len(accuracy), "digits": 0},
    "leaderboard/cells": {"value": len(results), "digits": 0},
    "leaderboard/seconds-per-cell": {"value": seconds.median(), "unit": "s", "digits": 0},
}
study.store.publish("07-leaderboard", values)
print(f"Median time of a cell (prune and score): {seconds.median():.0f} s")

# %% [markdown]
# ## What it means, and what it does not
#
# {result}`leaderboard/first:interval` is the best total of {result}`leaderboard/cells` cells. Neighbours on this board
# overlap; trust differences that were paired ({doc}`04-uniform-mix`, {doc}`06-baselines`), not ranks. Accuracy is known of
# {result}`leaderboard/examined` strategies and decides nothing here. {doc}`09-self-written` shows the board of the
# reference run.
#
# ## Exercises
#
# - ★ Sort the board by *minimum* instead of *total*. Which strategy moves most, and why?
# - ★★ Re-run at `-p method wanda`. Wanda never updates a weight. Is its board flatter or steeper?
# - ★★★ Reduce four dimensions to one number in another way than their mean. Defend it to somebody who needs code.
