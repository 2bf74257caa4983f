# ---
# jupyter:
#   igsp:
#     needs: []
#     reads: [small]
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
# # What does perplexity stand for?
#
# **What you will learn.** Why calibration perplexity goes with more of one capability and less of another: mostly because it
# tells which *kind* of text a source is. And what that means for the mix, for the measure, and for the next experiment.
#
# **Which claim this answers.** "The same property of calibration data helps one capability and harms another"
# {cite:p}`xu2026calibration`. {doc}`08-reference-run` finds the correlation; this page asks what is behind it. It reads the
# records of the reference run, and needs neither a model nor data.

# %% tags=["parameters"]
profile: str = "quick"  # where this build publishes its values
shown: str = "small"  # the profile whose records are read

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from igsp import figures
from igsp.provenance import repository_root
from igsp.scoring.retention import retention
from igsp.study import analysis, explained
from igsp.study.recorded import reference
from igsp.study.records import Store

figures.use_style()
run = reference(shown)
s = run.settings
kept = run.by_draw().groupby("source").mean()
about = run.information.groupby("strategy").mean().loc[kept.index]
family = explained.families(list(kept.index))
values = {}

# %% [markdown]
# ## Look at the families
#
# Every point is a source, its colour the family it belongs to. Follow one colour: does it rise or fall?

# %% tags=["hide-input"]
def panels(x, label, log):
    """Retention of each dimension against `x`, a panel each, points coloured by family."""
    size = (figures.WIDTH, 4.8)
    fig, axes = plt.subplots(2, 2, figsize=size, sharex=True, layout="constrained")
    for axis, d in zip(axes.flat, figures.DIMENSIONS, strict=True):
        for kind in figures.DIMENSIONS:
            names = family.index[family == kind]
            axis.scatter(
                x(d)[names],
                kept[d][names],
                s=26,
                color=figures.palette()[kind],
                marker=figures.markers()[kind],
                label=kind.capitalize(),
            )
        axis.set(title=f"{d.capitalize()} kept", ylabel="retention (%)")
        if log:
            axis.set_xscale("log")
            axis.set_xticks([5, 10, 20, 40], ["5", "10", "20", "40"], minor=False)
            axis.xaxis.set_minor_formatter("")
    fig.supxlabel(label, fontsize=10)
    handles, names = axes.flat[0].get_legend_handles_labels()
    fig.legend(handles, names, loc="outside upper center", ncol=4, title="family of the source")
    return fig


table = explained.family_table(run)
figures.show(
    panels(lambda d: about.calibration_perplexity, "calibration perplexity (log scale)", True),
    alt="Four scatter plots of retention against calibration perplexity, a point per source, coloured by family. Rank "
    "correlation inside the families: " + figures.phrase(table["rho within"].items()) + ".",
    caption="Retention against perplexity. The trend is the distance between the colours: the family alone explains "
    + figures.phrase((100 * table.family).items(), "{:.0f} %")
    + " of the variance between sources.",
    name="fig-families",
)

# %% [markdown]
# ## How much is left inside a family?
#
# *Family*, *perplexity* and *both* are shares of the variance between the fifteen sources that a linear model explains.
# *Rho within* correlates ranks after the mean of each family is taken away; its *p* is exact, over all ways to shuffle the
# sources inside their families. *Mismatch* is the distance of a source's tokens to held-out text of the same dimension. It is
# computed on exam text, so it explains and must not be used to select.

# %%
for method in run.methods:
    table = explained.family_table(run, method)
    title = f"What explains retention over 15 sources, under {figures.title(method)}"
    figures.show_table(table.rename_axis("dimension").reset_index(), title)
    key = "" if method == s.method else f"{method}/"
    for d, row in table.iterrows():
        for name in ("family", "perplexity", "both", "share mismatch"):
            entry = {"value": 100 * row[name], "unit": "%", "digits": 0, "n": len(kept)}
            values[f"{key}explained/{name.replace(' ', '-')}/{d}"] = entry
        within = {"value": row["rho within"], "p": row["p"], "n": len(kept), "digits": 2}
        values[f"{key}explained/within/{d}"] = within
        values[f"{key}explained/mismatch/{d}"] = {"value": row["rho mismatch"], "n": len(kept), "digits": 2}

# %% [markdown]
# The family explains {result}`small/explained/family/general` of General and {result}`small/explained/family/code` of Code under
# SparseGPT. Perplexity adds little to it: together they explain {result}`small/explained/both/general` and
# {result}`small/explained/both/code`. Inside the families perplexity has a rank correlation of
# {result}`small/explained/within/general:signed` with General (p = {result}`small/explained/within/general:p`) and
# {result}`small/explained/within/code:signed` with Code (p = {result}`small/explained/within/code:p`). Fifteen sources cannot
# tell these from zero.
#
# So perplexity stands for *what kind of text this is*. A better name for the kind is likeness to what is examined:

# %% tags=["hide-input"]
near = explained.family_table(run)["rho mismatch"]
figures.show(
    panels(lambda d: about[f"mismatch_{d}"], "distance of the source's tokens to held-out text of that dimension", False),
    alt="Four scatter plots of retention against the distance to held-out text of the same dimension, coloured by family. "
    "Rank correlations: " + figures.phrase(near.items()) + ".",
    caption="Retention against the Jensen-Shannon distance to held-out text of the dimension. Rank correlations: "
    + figures.phrase(near.items())
    + ".",
    name="fig-mismatch",
)

# %% [markdown]
# ## Task by task
#
# A dimension is the mean of two tasks. Where their correlations differ much, the dimension is a mixture of things.

# %%
tasks = explained.task_table(run)
title = "Rank correlation of perplexity with retention, task by task (SparseGPT)"
figures.show_table(figures.with_intervals(tasks), title)

# %% [markdown]
# ## Does the answer depend on the measure?
#
# Likelihood retention has a floor. A model that knows nothing but how often each token of an exam occurs already "keeps" a
# good part of the dense model's bits per byte, and more of one dimension than of another. *Knowledge* takes that floor off:
#
# $$ K = 100\,\frac{\text{bpb}_{\text{unigram}} - \text{bpb}_{\text{pruned}}}{\text{bpb}_{\text{unigram}} - \text{bpb}_{\text{dense}}} $$
#
# *Excess* is the plain loss, $\text{bpb}_{\text{pruned}} - \text{bpb}_{\text{dense}}$: less is better.

# %%
floor = run.unigram and retention(run.unigram, run.dense).dimensions
spread = explained.spread_table(run)
rows = {"floor": pd.Series({d: e.value for d, e in floor.items()}), **spread}
title = "What a unigram model keeps (%), and the range of the fifteen sources by three measures"
figures.show_table(pd.DataFrame(rows).reindex([*figures.DIMENSIONS, "total"]).rename_axis("dimension").reset_index(), title)
values |= {f"unigram/{d}": {"value": e.value, "unit": "%", "digits": 0} for d, e in floor.items()}

# %%
best = max(s.sources, key=lambda name: kept.total[name])
pairs = [("uniform", s.web, x) for x in (0.3, 0.4, 0.5)]
pairs += [(a, b, s.sparsity) for a in ("uniform", "all-sources") for b in (s.web, best)]
pairs += [("igsp", b, s.sparsity) for b in ("self-cal", "sgs", "pool-random", "uniform")]
for method in run.methods:
    recorded = [pair for pair in pairs if all(run.draws(name, method, pair[2]) for name in pair[:2])]
    found = explained.by_measure(run, recorded, method)
    title = f"Differences in total under every measure, {figures.title(method)}: points, points, bits per byte"
    figures.show_table(found, title)
    count = {"value": int((found.agree == "no").sum()), "digits": 0, "n": len(found)}
    values[("" if method == s.method else f"{method}/") + "measures/change"] = count

# %% tags=["hide-input"]
fig, axes = plt.subplots(1, 3, figsize=(figures.WIDTH, 2.8), layout="constrained")
told = {}
for axis, measure in zip(axes, analysis.LIKELIHOOD, strict=True):
    found = {100 * x: gap["total"] for x, (gap, _) in analysis.margins(run, "uniform", s.web, None, measure).items()}
    points = np.array([[e.value, e.value - e.low, e.high - e.value] for e in found.values()])
    axis.errorbar(list(found), points[:, 0], yerr=points[:, 1:].T, marker="o", capsize=3, color="#222222")
    axis.axhline(0, color="#888888", lw=0.8)
    axis.set(title=measure.capitalize(), xticks=list(found), ylabel="bits per byte" if measure == "excess" else "points", xlabel="sparsity (%)")
    told[measure] = figures.phrase(((f"{x:.0f} %", e.value) for x, e in found.items()), "{:+.3g}")
figures.show(
    fig,
    alt="Margin of the uniform mix over web text against sparsity by three measures. "
    + "; ".join(f"{measure}: {text}" for measure, text in told.items())
    + ".",
    caption="Margin of the uniform mix over web text. By likelihood retention it stops growing at 50 %; by what is known "
    "beyond word frequencies, and by bits per byte lost, it goes on. The plateau belongs to the measure.",
    name="fig-margin-measures",
)

# %% [markdown]
# By likelihood retention the sources lie {result}`small/spread/commonsense:interval` apart in Commonsense and
# {result}`small/spread/code:interval` in Code. By knowledge these are {result}`small/spread/knowledge/commonsense:interval`
# and {result}`small/spread/knowledge/code:interval`: the contrast is gone. Of the differences in the tables,
# {result}`small/measures/change` under SparseGPT and {result}`small/wanda/measures/change` under Wanda change their side with
# the measure.
#
# ## Accuracy, where it can decide
#
# At 60 % sparsity the accuracies of this suite cannot tell sources apart. At 50 % they can, just:

# %%
rows = []
for method, sparsity in [(s.method, 0.5), *((m, s.sparsity) for m in run.methods)]:
    gap, draws = analysis.gap(run, "uniform", s.web, method, sparsity, "accuracy")
    rows.append({"method": method, "sparsity": sparsity, "draws": draws, **gap})
    for name in ("total", "code"):
        key = f"{'' if method == s.method else f'{method}/'}accuracy/{100 * sparsity:.0f}/{name}"
        values[key] = {**vars(gap[name]), "unit": "points", "digits": 1, "draws": draws}
title = "Uniform mix minus web text in accuracy retention, points"
figures.show_table(pd.DataFrame(rows), title, digits=1)

# %% [markdown]
# ## What could these records have shown?
#
# The smallest true difference in total that a test at 5 % finds four times out of five, by the number of draws; what makes
# the total of one source uncertain; and which pairs are *equivalent*: the 90 % interval of their difference lies within
# one point (two one-sided tests at 5 %).

# %%
for method in run.methods:
    title = f"Detectable differences in total, in points, under {figures.title(method)}"
    found = explained.detectable_table(run, method=method)
    figures.show_table(found, title)
    for row in found.to_dict("records"):
        key = f"{'' if method == s.method else f'{method}/'}detectable/{row['comparison'].replace(' ', '-')}"
        values |= {f"{key}/{n}": {"value": row[f"{n} draws"], "unit": "points"} for n in (3, 20)}

# %%
shares = explained.noise_shares(run)
figures.show_table(shares.rename_axis("component").reset_index(), "What makes a source's total uncertain (SparseGPT)", 4)
values |= {f"noise-share/{n.replace(' ', '-')}": {"value": 100 * x, "unit": "%", "digits": 0} for n, x in shares.share.items()}

# %%
rows = []
for method in run.methods:
    for a, b in (("uniform", "all-sources"), ("igsp", "pool-random"), ("igsp", "uniform"), ("pool-random", "uniform")):
        gap, same = explained.equivalence(run, a, b, 1.0, method)
        rows.append({"method": method, "pair": f"{a} minus {b}", "difference": gap, "within a point": "yes" if same else "no"})
        key = f"{'' if method == s.method else f'{method}/'}equivalence/{a}/{b}"
        values[key] = {**vars(gap), "unit": "points", "label": "yes" if same else "no"}
figures.show_table(pd.DataFrame(rows), "Equivalent within one point? Differences in total with 90 % intervals")

# %% tags=["remove-cell"]
store = Store(repository_root() / "book" / "results" / profile)
store.publish("10-what-perplexity-stands-for", {f"small/{key}": entry for key, entry in values.items()})

# %% [markdown]
# With three draws a difference of {result}`small/detectable/real-text/3` between two sources is found under SparseGPT, with
# twenty one of {result}`small/detectable/real-text/20`: the items set the limit then. If the two tasks of a dimension stand for
# all tasks that could have been chosen, the choice of tasks makes {result}`small/noise-share/task` of the uncertainty of a
# total, the draws {result}`small/noise-share/draw`. More draws will not help much; more tasks will.
#
# ## What it means, and what it does not
#
# - Mix *kinds*, not perplexities. The mix of all sources asks for no choice at all, and it keeps as much as the uniform mix of
#   four ({result}`small/equivalence/uniform/all-sources:signed-interval` under SparseGPT, 90 % interval).
# - The sign between sources is not a lever inside a kind. IGSP lowers aggregation within its pool, and what changes does not
#   follow the correlations over sources.
# - Nothing here shows that perplexity *causes* anything. That needs the same documents at several levels of perplexity.
#
# ## Exercises
#
# - ★ Find the family whose points lie closest together in Math. Is it the same family in Code?
# - ★★ Take the four code sources away. What is the rank correlation of perplexity with Code over the other eleven?
# - ★★★ Write a measure of likeness that uses no exam text, correlate it with retention over the fifteen sources, and say
#   beforehand which correlation would convince you.
