# ---
# jupyter:
#   igsp:
#     needs: [02-oit-metrics]
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
# # Does perplexity trade one capability for another?
#
# **What you will learn.** How to test, with fifteen points, whether a property of the calibration text helps one
# capability and harms another, and how little fifteen points can prove.
#
# **Which claim this answers.** Over 15 sources the paper finds that calibration perplexity correlates with retention at
# $\rho = +0.71$ for General, $-0.53$ for Math and $-0.59$ for Code, each with $p < 0.05$ {cite:p}`xu2026calibration`.

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
from igsp import figures
from igsp.scoring.correlation import spearman_table
from igsp.text.metrics import CORRELATED
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
# ## Metrics and retentions of the sources
#
# Both were computed in the notebooks before; here they are read from the records (or computed, if they are missing).

# %%
sources = list(study.settings.sources)
info = study.information(sources)[list(CORRELATED)]
kept = frame(study.retentions(study.run(sources)))[[*figures.DIMENSIONS, "total"]]
table = spearman_table(info, kept)

# %% [markdown]
# ## Calibration perplexity against retention
#
# *Spearman's* $\rho$ is the correlation of ranks: $+1$ if more perplexing sources always keep more, $-1$ if they always
# keep less. The $p$-value is the share of random pairings of metrics and retentions with a $\rho$ at least as extreme.

# %% tags=["hide-input"]
perplexity = table[table.metric == "calibration_perplexity"].set_index("dimension")
notes = {
    d: figures.rank_note(perplexity.rho[d], perplexity.p[d]) for d in figures.DIMENSIONS
}
figures.show(
    figures.rank_scatter(
        info.calibration_perplexity, kept, notes, "calibration perplexity (log scale)"
    ),
    alt="Four scatter plots of retention against calibration perplexity, a point per source. Spearman's rho: "
    + figures.phrase(perplexity.rho[list(figures.DIMENSIONS)].items())
    + ".",
    caption="Retention against calibration perplexity, one point per source. Rank correlation: "
    + figures.phrase(perplexity.rho[list(figures.DIMENSIONS)].items())
    + ".",
    name="fig-spearman-scatter",
)

# %% [markdown]
# ## Beside the paper
#
# Intervals are bootstrap intervals over sources (BCa, 95 %). *Holm* adjusts the $p$-values for the number of tests in
# the whole table below: seven metrics times four dimensions and the total.

# %% tags=["hide-input"]
paper = {"general": 0.71, "math": -0.53, "code": -0.59}
beside = perplexity.reset_index()
beside.insert(
    1,
    "paper",
    [
        "not given" if d not in paper else f"{paper[d]:+.2f}".replace("-", "−")
        for d in beside.dimension
    ],
)
figures.show_table(
    figures.with_intervals(beside.drop(columns="metric")),
    "Calibration perplexity against retention: Spearman's ρ, the paper's and ours",
)

# %% [markdown]
# ## Every metric against every dimension

# %% tags=["hide-input"]
grid = table.pivot(index="metric", columns="dimension", values="rho").loc[
    list(CORRELATED), [*figures.DIMENSIONS, "total"]
]
strongest = table.loc[table.rho.abs().idxmax()]
figures.show(
    figures.heatmap(grid, "Spearman's ρ", center=0.0, fmt="+.2f"),
    alt=f"Heatmap of rank correlations, seven metrics by four dimensions and the total. Strongest: {figures.title(strongest.metric)} "
    f"with {strongest.dimension} at {strongest.rho:+.2f}. {int((table.p_holm < 0.05).sum())} of {len(table)} pass Holm at 0.05.",
    caption=f"Rank correlation of every metric with every dimension over {len(kept)} sources. After Holm's correction "
    f"{int((table.p_holm < 0.05).sum())} of {len(table)} remain below 0.05.",
    name="fig-spearman-heatmap",
)

# %% tags=["hide-input"]
figures.show_table(
    figures.with_intervals(table.sort_values("p").head(10)),
    f"The ten smallest p-values of {len(table)}",
)

# %% tags=["hide-input"]
values = {}
for row in table.to_dict("records"):
    values[f"spearman/{row['metric']}/{row['dimension']}"] = {
        "value": row["rho"],
        "low": row["low"],
        "high": row["high"],
        "p": row["p"],
        "p_holm": row["p_holm"],
        "n": row["n"],
        "digits": 2,
    }
values["spearman/tests"] = {"value": len(table), "digits": 0}
values["spearman/survivors"] = {"value": int((table.p_holm < 0.05).sum()), "digits": 0}
study.store.publish("03-spearman", values)

# %% [markdown]
# ## What it means, and what it does not
#
# The rank correlation of perplexity with retention is here
# {result}`spearman/calibration_perplexity/general:signed-interval` for General,
# {result}`spearman/calibration_perplexity/commonsense:signed-interval` for Commonsense,
# {result}`spearman/calibration_perplexity/code:signed-interval` for Code and
# {result}`spearman/calibration_perplexity/math:signed-interval` for Math. Read the intervals before the values: with fifteen
# sources the interval round a $\rho$ of 0.5 just includes zero. Of {result}`spearman/tests` tests,
# {result}`spearman/survivors` survive Holm's correction.
#
# Coverage and mismatch are measured against the same held-out text that retention is scored on. A high correlation there
# says that a calibration set should contain the words it will be judged on; it is no property of the set alone.
#
# A correlation over sources is not a cause. Perplexity, family and style go together ({doc}`02-oit-metrics`), and the
# held-out text of a dimension resembles the sources of that dimension.
#
# ## Exercises
#
# - ★ Which sign would you expect for $A_4$ if low perplexity and repetition went together? Look it up.
# - ★★ Leave out all sources of one dimension and compute the table again (`spearman_table` on a subset).
#   What happens to that dimension's correlation, and what does it say about the claim?
# - ★★★ How many sources would be needed for $\rho = 0.5$ to reach $p < 0.05$ with a probability of 80 %? Simulate.
