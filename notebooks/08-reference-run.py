# ---
# jupyter:
#   igsp:
#     needs: []
#     reads: [small, small-gemma]
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
# # The reference run: fifteen real sources, three draws
#
# **What you will learn.** What the paper's claims look like on real calibration sources and real benchmark text, how much
# of a difference is the luck of the draw, and which conclusions survive another pruning method and, as far as it is
# recorded, another model.
#
# **Which claims this answers.** All of the abstract's that a small model can answer {cite:p}`xu2026calibration`. The notebooks
# before this one were computed when the book was built; this one reads the *records* of a longer run (profile `small`), which
# are part of the repository. It needs neither a model nor data, and every record names the code, the versions and the
# machine that made it.

# %% tags=["remove-cell"]
from typing import Optional

# %% tags=["parameters"]
profile: str = "quick"  # where this build publishes its values
shown: str = "small"  # the profile whose records are read
family: Optional[str] = "small-gemma"  # a second family's profile, or None

# %% tags=["hide-input"]
import matplotlib.pyplot as plt
import pandas as pd

from igsp import figures
from igsp.study import analysis
from igsp.study.recorded import recorded, reference
from igsp.study.claims import side_by_side
from igsp.study.values import Value
from igsp.provenance import repository_root
from igsp.study.records import Store
from igsp.study.study import cells, frame, score_table

figures.use_style()
run = reference(shown)
s = run.settings
methods = run.methods
names = {method: figures.title(method) for method in methods}
at = f"{100 * s.sparsity:g} %"
headlines = {method: analysis.headline(run, method) for method in methods}
values = {}
print(f"{len(run.results)} of the profile's {len(cells(s))} cells are recorded")
print(f"{figures.title(s.model)}, {s.n} windows of {s.seqlen} tokens, {at} sparsity")
for method, name in names.items():
    print(f"{name}: {len(run.complete_draws(method))} of {s.draws} draws are complete")

# %% [markdown]
# ## The dense model
#
# Multiple-choice tasks stay in the suite only where the dense model beats solvers that know nothing by three standard errors
# ({doc}`01-source-profiling` says what they do). HellaSwag, PIQA, WinoGrande and CommonsenseQA are not among them: they are
# calibration sources here, and a source must not be its own examiner.

# %% tags=["hide-input"]
figures.show_table(score_table(run.dense), "Scores of the dense model", digits=3)
if run.trivial is not None:
    figures.show_table(
        run.trivial,
        "The dense model against trivial solvers; z is its lead in standard errors",
    )

# %% [markdown]
# ## What each source keeps
#
# Likelihood retention per dimension, the bits per byte of the dense model in percent of those of the pruned one, on text from
# other data sets than the fifteen sources, mean over the draws. Other data sets are not other worlds: WikiText is Wikipedia,
# and the source `wikipedia` is best on it. {doc}`/book/primer-calibration` defines retention. *Minimum* is the weakest of the
# four dimensions.

# %% tags=["hide-input"]
shown_names = [*s.sources, "uniform", "all-sources"]
columns = [*figures.DIMENSIONS, "total", "minimum"]
tables = {m: frame(run.retentions(method=m, names=shown_names)) for m in methods}
for method, table in tables.items():
    best = table.total[list(s.sources)].idxmax()
    figures.show(
        figures.heatmap(table[columns], "Retention (%)", fmt=".1f"),
        alt=f"Heatmap of retention under {names[method]}, {len(table)} strategies by four dimensions, total and minimum. Totals: "
        + figures.phrase(table.total.sort_values(ascending=False).items(), "{:.1f}")
        + ".",
        caption=f"Retention under {names[method]} at {at} sparsity, mean over the draws. The best single source in "
        f"total is {best} with {table.total[best]:.1f} %, the uniform mix keeps {table.total.get('uniform', float('nan')):.1f} %.",
        name="fig-reference-heatmap" + f"-{method}" * (method != s.method),
    )

# %% [markdown]
# Do the pruning methods rank the strategies alike? The correlation is one of ranks, over all strategies that both have.

# %% tags=["hide-input"]
alike = {m: analysis.agreement(run, run, s.method, m)[columns] for m in methods if m != s.method}
figures.show_table(
    pd.DataFrame(alike).rename_axis("retention").reset_index(),
    f"Spearman's ρ of the strategies' retention under {names[s.method]} with that under another method",
)
for method, found in alike.items():
    values |= {
        f"{method}/agreement/{name}": {"value": rho, "digits": 2, "n": len(tables[method])}
        for name, rho in found.items()
    }

# %% [markdown]
# ## How much of that is the luck of the draw?
#
# A calibration set is a random sample of its source. The *noise floor* is the standard deviation between draws of one
# source; a difference between sources means something only above it. In the table, *range* is the distance between the best
# and the worst source, *between* and *within* are the standard deviations of the sources and of the draws of one source, in
# points. *Share* is the part of the variance of a single draw that is due to the source (the intraclass correlation), and
# *p* belongs to the F test of equal sources.

# %% tags=["hide-input"]
floors = {method: analysis.noise_floor(run.by_draw(method)) for method in methods}
figures.show_table(
    pd.concat(floors, names=["method", "retention"]).reset_index(),
    "Spread of the fifteen sources against the spread of their draws",
)
by_draw, floor = run.by_draw(), floors[s.method]

# %% tags=["hide-input"]
fig, axes = plt.subplots(figsize=(figures.WIDTH, 3.0))
for place, dimension in enumerate(floor.index):
    colour, shape = figures.palette()[dimension], figures.markers()[dimension]
    means = by_draw[dimension].groupby("source").mean()
    axes.errorbar(
        place - 0.15,
        means.mean(),
        yerr=[[means.mean() - means.min()], [means.max() - means.mean()]],
        fmt=shape,
        color=colour,
        capsize=4,
    )
    axes.errorbar(
        place + 0.15,
        means.mean(),
        yerr=2 * floor.within[dimension],
        fmt="_",
        color="#555555",
        capsize=4,
    )
axes.set(
    xticks=range(len(floor)),
    xticklabels=[d.capitalize() for d in floor.index],
    ylabel="retention (%)",
)
figures.show(
    fig,
    alt="For each dimension and the total, the range of the fifteen source means beside plus and minus two standard "
    "deviations of the draws. Ranges in points: "
    + figures.phrase(floor.range.items(), "{:.1f}")
    + "; draws: "
    + figures.phrase(floor.within.items(), "{:.2f}")
    + ".",
    caption=f"Sources under {names[s.method]} lie {floor.range['total']:.1f} points apart in total and "
    f"{floor.range['code']:.1f} in Code. Coloured: range of the source means. Grey: plus and minus two standard deviations of "
    "the draws of one source.",
    name="fig-noise-floor",
)

# %% [markdown]
# The paper reports the contrast between an average and a dimension: the choice of calibration text moved averaged
# Commonsense accuracy by 2.85 points and Code retention by 51.9. The same ranges here, for both measures:

# %% tags=["hide-input"]
accuracy = {m: frame(run.retentions("accuracy", m, names=shown_names)) for m in methods}
ranges = {
    f"{names[method]}, {measure}": found[columns].max() - found[columns].min()
    for method in methods
    for measure, found in (("likelihood", tables[method]), ("accuracy", accuracy[method]))
}
figures.show_table(
    pd.DataFrame(ranges).rename_axis("retention").reset_index(),
    "Range over the fifteen sources and two mixes, in points of retention",
    digits=1,
)
for method in methods:
    rho = tables[method].total.corr(accuracy[method].total, method="spearman")
    headlines[method]["agreement"] = {"value": rho, "digits": 2, "n": len(tables[method])}
    print(
        f"{names[method]}: rank correlation of likelihood and accuracy in total {rho:+.2f}"
    )

# %% [markdown]
# ## Does perplexity trade one capability for another?

# %% tags=["hide-input"]
paper = {"general": "+0.71", "math": "−0.53", "code": "−0.59"}
every = pd.concat({m: run.correlations(m) for m in methods}, names=["method"])
every = every.reset_index(level=0)
perplexity = every[every.metric == "calibration_perplexity"].drop(columns="metric")
perplexity.insert(2, "paper", perplexity.dimension.map(paper).fillna("not given"))
title = "Spearman's ρ of calibration perplexity with retention over 15 sources, 95 % intervals, Holm over each method's table"
figures.show_table(figures.with_intervals(perplexity), title)

# %% tags=["hide-input"]
main = perplexity[perplexity.method == s.method].set_index("dimension")
notes = {d: figures.rank_note(main.rho[d], main.p[d]) for d in figures.DIMENSIONS}
means = by_draw.groupby("source").mean()
known = run.information.calibration_perplexity.groupby("strategy").mean()
figures.show(
    figures.rank_scatter(
        known[means.index], means, notes, "calibration perplexity (log scale)"
    ),
    alt="Four scatter plots of retention against calibration perplexity, a point per source. Spearman's rho: "
    + figures.phrase(main.rho[list(figures.DIMENSIONS)].items())
    + ".",
    caption=f"Retention against calibration perplexity under {names[s.method]}, means over the draws. Rank correlation: "
    + figures.phrase(main.rho[list(figures.DIMENSIONS)].items())
    + ".",
    name="fig-reference-scatter",
)

# %% tags=["hide-input"]
for method in methods:
    found = every[every.method == method]
    grid = found.pivot(index="metric", columns="dimension", values="rho")
    survivors = found[found.p_holm < 0.05]
    figures.show(
        figures.heatmap(
            grid[[*figures.DIMENSIONS, "total"]], "Spearman's ρ", center=0.0, fmt="+.2f"
        ),
        alt=f"Heatmap of rank correlations under {names[method]}, seven metrics by four dimensions and the total; "
        f"{len(survivors)} of {len(found)} pass Holm's correction.",
        caption=f"Every metric against every dimension under {names[method]}: {len(survivors)} of {len(found)} correlations "
        "pass Holm's correction at 0.05.",
        name="fig-reference-correlations" + f"-{method}" * (method != s.method),
    )
survivors = figures.with_intervals(every[every.p_holm < 0.05])
figures.show_table(survivors, "The correlations that pass Holm's correction at 0.05")

# %% [markdown]
# ## The mix against single sources
#
# Differences are paired: the same items, the same draw numbers, resampled together. "Best single" is chosen after looking
# at all fifteen totals, which favours it.

# %% tags=["hide-input"]
rows = []
for method in methods:
    best = tables[method].total[list(s.sources)].idxmax()
    for other in dict.fromkeys((best, s.web)):
        for mix in ("uniform", "all-sources"):
            gap, draws = analysis.gap(run, mix, other, method)
            pair = f"{mix} minus {other}"
            rows.append({"difference": pair, "method": method, "draws": draws, **gap})
title = "Paired differences in points of retention, with 95 % intervals"
figures.show_table(pd.DataFrame(rows), title, digits=1)

# %% [markdown]
# ## Does the margin grow with sparsity?
#
# The paper's margin of the mix over C4 grows from +4.6 points at 30 % to +18.8 at 60 %.

# %% tags=["hide-input"]
published = {0.3: 4.6, 0.6: 18.8}
margins = {
    m: {100 * x: gap["total"] for x, (gap, _) in analysis.margins(run, "uniform", s.web, m).items()}
    for m in methods
}
fig, axes = plt.subplots(figsize=(figures.WIDTH, 3.2))
for (method, found), shape in zip(margins.items(), "so^", strict=False):
    errors = [[e.value - e.low, e.high - e.value] for e in found.values()]
    axes.errorbar(
        list(found),
        [e.value for e in found.values()],
        yerr=list(zip(*errors, strict=True)) or None,
        capsize=3,
        marker=shape,
        label=names[method],
    )
axes.plot(
    [100 * x for x in published],
    list(published.values()),
    "D",
    color="#222222",
    label="the paper (8B)",
)
axes.axhline(0, color="#888888", lw=0.8)
axes.set(xlabel="sparsity (%)", ylabel="uniform mix minus C4 (points)")
axes.legend()
steps = "; ".join(
    f"{names[m]} "
    + figures.phrase(((f"at {x:.0f} %", e.value) for x, e in found.items()), "{:+.1f}")
    for m, found in margins.items()
)
figures.show(
    fig,
    alt=f"Margin of the uniform mix over C4 in points of total retention against sparsity. {steps}.",
    caption=f"Margin of the uniform mix over C4 in points of total retention, by sparsity: {steps}.",
    name="fig-margin",
)

# %% [markdown]
# ## Do different sources remove different weights?
#
# The share of the weights removed under one source that are removed under another, too. Of two masks drawn at random that
# share is the sparsity itself; for two draws of one source the caption gives it.

# %% tags=["hide-input"]
for method in methods:
    shared = run.mask_overlap(method)
    same, other = run.mask_overlap_of_draws(method), shared.where(shared < 1).stack().mean()
    figures.show(
        figures.heatmap(100 * shared.where(shared < 1), "overlap (%)"),
        alt=f"Overlap of masks between sources under {names[method]}, mean {100 * other:.1f} %; between draws of one source "
        f"{100 * same:.1f} %; by chance {100 * s.sparsity:.0f} %.",
        caption=f"Overlap of the masks of two sources under {names[method]}: {100 * other:.1f} % on average, against "
        f"{100 * same:.1f} % for two draws of one source and {100 * s.sparsity:.0f} % by chance.",
        name="fig-mask-overlap" + f"-{method}" * (method != s.method),
    )

# %% [markdown]
# ## Which conclusions carry over?
#
# A conclusion that holds for one method and one model is an anecdote. Below, each claim with its verdict under every method
# recorded, and under a second family where that is recorded: Gemma 3 with 270 million parameters, a base model with sliding-window layers, with
# one draw. The rules are those of the {doc}`claim ledger </book/claims>`; one draw decides no claim that asks for three, and
# then the number alone must speak.

# %% tags=["hide-input"]
sides = {f"{figures.title(s.model)}, {names[m]}": found for m, found in headlines.items()}
second = reference(family) if family and recorded(family) else None
if second and second.methods:
    theirs = analysis.headline(second)
    alike = analysis.agreement(run, second)[columns]
    other = figures.title(second.settings.model)
    sides[f"{other}, {figures.title(second.settings.method)}"] = theirs
    values |= {f"family/{key}": entry for key, entry in theirs.items()}
    values |= {f"family/agreement/{d}": {"value": x, "digits": 2} for d, x in alike.items()}
figures.show_table(
    pd.DataFrame(
        side_by_side(
            {
                n: {k: Value(**{"digits": 1, **e}) for k, e in found.items()}
                for n, found in sides.items()
            }
        )
    ),
    "Each claim under every method and model that is recorded",
)
if second and second.methods:
    figures.show_table(
        alike.rename_axis("retention").rename("rho").reset_index(),
        f"Do {figures.title(s.model)} and {other} rank the strategies alike? Spearman's ρ",
    )
else:
    print("A second family is not recorded, or not yet in full.")

# %% [markdown]
# ## Which code made the records?
#
# Records outlive the code that made them, as long as the `VERSION` of each stage stands. Whether the numbers do is
# measured: `igsp study verify` computes a random sample of the cells again with the present code. *Mask* is the share of the removed weights that both runs removed.

# %% tags=["hide-input"]
makers = run.makers()
for name in ("first", "last"):
    makers[name] = makers[name].str[:16].str.replace("T", " ")
figures.show_table(makers, "What made the recorded cells, and when (UTC)")
checks = run.checks()
if len(checks):
    title = "Cells made again with this code: relative difference in bits per byte, points of total retention, shared mask"
    figures.show_table(checks, title, digits=4)
about = "; ".join(f"{name}: {run.note(m) or 'not computed again'}" for m, name in names.items())
values["records"] = {"value": len(checks), "digits": 0, "label": about}

# %% [markdown]
# Computed again, by pruning method: {result}`small/records:label`. Beside this stands the noise floor in total
# retention, {result}`small/noise/total` under SparseGPT: a difference far below it cannot change a conclusion.

# %% tags=["hide-input"]
seconds = pd.Series([sum(r.record.metrics["seconds"].values()) for r in run.results])
values["cells"] = {"value": len(run.results), "digits": 0}
values["seconds-per-cell"] = {"value": seconds.median(), "unit": "s", "digits": 0}
for method, found in headlines.items():
    values |= {f"{method}/{k}" if method != s.method else k: e for k, e in found.items()}
store = Store(repository_root() / "book" / "results" / profile)
store.publish("08-reference-run", {f"small/{key}": entry for key, entry in values.items()})

# %% [markdown]
# ## What it means, and what it does not
#
# *Spread.* Judged by the total, the fifteen sources lie {result}`small/spread/total` apart under SparseGPT and
# {result}`small/wanda/spread/total` under Wanda; judged by Code, {result}`small/spread/code` and
# {result}`small/wanda/spread/code`. That fits what the methods do: SparseGPT also repairs the weights that it keeps, with the
# help of the calibration text, while Wanda only chooses among them. Their rankings of the strategies by total retention
# have a rank correlation of {result}`small/wanda/agreement/total`. Draws of one source scatter with a standard deviation of
# {result}`small/noise/total` and {result}`small/wanda/noise/total` in total; the difference of two single draws has $\sqrt 2$
# times that, so single draws that are closer than about three times the noise floor are not told apart.
#
# *Perplexity.* Its rank correlation with retention, under SparseGPT and under Wanda:
#
# | Dimension | SparseGPT | Wanda |
# |---|---|---|
# | General | {result}`small/spearman/calibration_perplexity/general:signed-interval` | {result}`small/wanda/spearman/calibration_perplexity/general:signed-interval` |
# | Commonsense | {result}`small/spearman/calibration_perplexity/commonsense:signed-interval` | {result}`small/wanda/spearman/calibration_perplexity/commonsense:signed-interval` |
# | Code | {result}`small/spearman/calibration_perplexity/code:signed-interval` | {result}`small/wanda/spearman/calibration_perplexity/code:signed-interval` |
# | Math | {result}`small/spearman/calibration_perplexity/math:signed-interval` | {result}`small/wanda/spearman/calibration_perplexity/math:signed-interval` |
#
# {result}`small/spearman/survivors` of {result}`small/spearman/tests` correlations survive Holm's correction under SparseGPT,
# {result}`small/wanda/spearman/survivors` of {result}`small/wanda/spearman/tests` under Wanda.
#
# *The mix.* Under SparseGPT the uniform mix keeps {result}`small/uniform/total:interval`,
# {result}`small/uniform-minus-web:signed-interval` against web text and
# {result}`small/uniform-minus-best-single:signed-interval` against the best single source. Under Wanda it keeps
# {result}`small/wanda/uniform/total:interval`, {result}`small/wanda/uniform-minus-web:signed-interval` and
# {result}`small/wanda/uniform-minus-best-single:signed-interval` against the same two.
#
# The intervals rest on the draws and on the items that were scored. Fifteen sources are fifteen points: a rank
# correlation of 0.5 among them is missed about every second time ({doc}`/book/primer-rank-correlation`). And text of one
# kind helps text of its kind: a source shares vocabulary and layout with the held-out text of its dimension, even
# where the two come from different data sets.
#
# ## Exercises
#
# - ★ Read the noise floor of Code. How many draws would halve the standard error of a source's mean?
# - ★★ Two masks of different sources agree far more than chance would have it, and yet one capability collapses. How can
#   both be true? Which weights would you look at first?
# - ★★★ The fifteen sources were chosen by us. Choose fifteen others from the catalogue (`igsp sources`), compute them
#   (`igsp study run --profile small -p sources "[...]"`) and see which sign survives.
