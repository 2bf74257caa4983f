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
# # What is in a calibration set? Measures of information
#
# **What you will learn.** How Objective Information Theory (OIT) describes a set of texts by numbers, which of these
# numbers can be computed for calibration windows, and how they differ between sources.
#
# **Which claim this answers.** None by itself: it produces the quantities that the paper correlates with retention.
# Only two of the paper's metrics are named in public, calibration perplexity and 4-gram aggregation; every formula here is
# **our definition** of the OIT quantity it stands for.

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
from igsp.text.metrics import CORRELATED, METRICS
from igsp.text.catalogue import catalogue
from igsp.study.study import Study

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
# ## The metrics
#
# OIT names eleven quantities. *Delay*, *duration* and *sampling rate* speak of time and are not defined for static
# text; *volume* is constant here because every set has the same number of tokens.

# %% tags=["hide-input"]
figures.show_table(
    pd.DataFrame(
        {
            "metric": list(METRICS),
            "OIT quantity: our definition": list(METRICS.values()),
            "in the correlations": ["yes" if m in CORRELATED else "no" for m in METRICS],
        }
    ),
    "OIT metrics of a calibration set",
)

# %% [markdown]
# Two of them carry the argument. *Calibration perplexity* is $\exp$ of the dense model's mean loss per token on
# exactly the calibration windows: how surprising the text is to the model. *4-gram aggregation* is
#
# $$
# A_4 = 1 - \frac{\text{distinct 4-grams}}{\text{all 4-grams}},
# $$ (eq-a4)
#
# counted in the model's tokens and within windows: the share of 4-gram occurrences that repeat an earlier one.

# %%
info = study.information(study.settings.sources)
dimension = pd.Series({name: catalogue()[name].dimension for name in info.index})
shown = info[list(CORRELATED)].copy()
shown.insert(0, "source", shown.index)
figures.show_table(shown, "OIT metrics of each source", digits=3)

# %% [markdown]
# ## How they are distributed
#
# A metric that does not vary between sources cannot explain anything; one that only separates the four families
# cannot be told apart from the family itself.

# %% tags=["hide-input"]
labels = {m: figures.title(m) for m in CORRELATED}
figures.show(
    figures.distributions(info[list(CORRELATED)], labels, dimension),
    alt=f"Seven strips, one per metric, a mark per source. Calibration perplexity runs "
    f"{figures.spread_phrase(info.calibration_perplexity)}; aggregation "
    f"from {info.aggregation_4.min():.2f} ({info.aggregation_4.idxmin()}) to {info.aggregation_4.max():.2f} ({info.aggregation_4.idxmax()}).",
    caption="Each metric over the sources, one row of marks per dimension. Perplexity is highest for "
    f"{info.calibration_perplexity.idxmax()} and lowest for {info.calibration_perplexity.idxmin()}.",
    name="fig-oit-distributions",
)

# %% [markdown]
# ## How they depend on each other
#
# Metrics that rank the sources alike carry one piece of evidence between them, not several.

# %% tags=["hide-input"]
ranks = info[list(CORRELATED)].corr(method="spearman")
with_perplexity = ranks.calibration_perplexity.drop("calibration_perplexity")
nearest = with_perplexity.abs().idxmax()
figures.show(
    figures.heatmap(ranks, "Spearman's ρ", center=0.0, fmt=".2f"),
    alt="Rank correlation between metrics over the sources; with perplexity: "
    + figures.phrase(with_perplexity.items())
    + ".",
    caption="Rank correlation between the metrics. Closest to perplexity is "
    f"{figures.title(nearest)} ($\\rho = {with_perplexity[nearest]:+.2f}$).",
    name="fig-oit-correlation",
)

# %% tags=["hide-input"]
families = info.groupby(dimension)[["calibration_perplexity", "aggregation_4"]].median()
values = {
    f"oit/{d}/perplexity": {"value": families.calibration_perplexity[d], "digits": 1}
    for d in families.index
}
values |= {
    f"oit/{d}/a4": {"value": families.aggregation_4[d], "digits": 3} for d in families.index
}
study.store.publish("02-oit-metrics", values)

# %% [markdown]
# ## What it means, and what it does not
#
# The median calibration perplexity is {result}`oit/general/perplexity` for General sources,
# {result}`oit/commonsense/perplexity` for Commonsense, {result}`oit/code/perplexity` for Code and
# {result}`oit/math/perplexity` for Math. Where families differ this much, a correlation between perplexity and
# retention is in part a difference between families: keep that in mind in {doc}`03-spearman`.
#
# *Coverage* and *mismatch* compare a set with held-out text of all four dimensions, the same text that retention is scored
# on in the other notebooks. They describe a set's distance to a use, not the set alone.
#
# Perplexity is measured by the very model that is pruned. Text that was in its training data looks easy to it.
#
# ## Exercises
#
# - ★ A set repeats one window sixteen times. What are its $A_4$, its scope and its entropy? Check with
#   `igsp.text.metrics.aggregation`.
# - ★★ Show that $A_1 \ge A_2 \ge A_3 \ge A_4$ need not hold exactly when windows are short. When does it?
# - ★★★ Variety and entropy both measure diversity. Construct two sets that they rank in opposite order.
