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
# of a difference is the luck of the draw, and, as far as they are recorded, which conclusions survive another pruning method
# and another model.
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

# %%
import matplotlib.pyplot as plt
import pandas as pd

from igsp import figures
from igsp.reference import noise_floor, recorded, reference
from igsp.retention import difference
from igsp.store import Store, repository_root
from igsp.study import cells, frame, score_table

figures.use_style()
run = reference(shown)
s = run.settings
values = {}
print(f"{len(run.results)} of the profile's {len(cells(s))} cells are recorded")
print(f"{s.model}, {s.n} windows of {s.seqlen} tokens, {s.draws} draws")

# %% [markdown]
# Where *this code* says no, the solver or the scoring has been edited since; such cells are measurements all the same, but
# making them again could move them.

# %%
figures.show_table(run.makers(), "What made the recorded cells")

# %% [markdown]
# ## The dense model
#
# Multiple-choice tasks stay in the suite only where the dense model beats solvers that know nothing by three standard errors
# ({doc}`01-source-profiling` says what they do). HellaSwag, PIQA, WinoGrande and CommonsenseQA are not among them: they are
# calibration sources here, and a source must not be its own examiner.

# %%
figures.show_table(score_table(run.dense), "Scores of the dense model", digits=3)
if run.trivial is not None:
    figures.show_table(
        run.trivial,
        "The dense model against trivial solvers; z is its lead in standard errors",
    )

# %% [markdown]
# ## What each source keeps
#
# Likelihood retention per dimension: $100 \cdot \text{bits per byte (dense)} / \text{bits per byte (pruned)}$ on text that
# comes from none of the fifteen sources, mean over the draws ({doc}`/book/primer-calibration` defines it).

# %%
names = [*s.sources, "uniform", "all-sources"]
kept = run.retentions(names=names)
table = frame(kept)
columns = [*figures.DIMENSIONS, "total", "minimum"]
best = table.total[list(s.sources)].idxmax()
figures.show(
    figures.heatmap(table[columns], "retention (%)", fmt=".1f"),
    alt=f"Heatmap of retention, {len(table)} strategies by four dimensions, total and minimum. Totals: "
    + figures.phrase(table.total.sort_values(ascending=False).items(), "{:.1f}")
    + ".",
    caption=f"Retention after {s.method} at {s.sparsity:.0%} sparsity, mean of {s.draws} draws. The best single source in "
    f"total is {best} with {table.total[best]:.1f} %, the uniform mix keeps {table.total['uniform']:.1f} %.",
    name="fig-reference-heatmap",
)

# %% [markdown]
# ## How much of that is the luck of the draw?
#
# A calibration set is a random sample of its source. The *noise floor* is the standard deviation between draws of one
# source; a difference between sources means something only above it. *Share* is the part of the variance of a single draw
# that is due to the source (the intraclass correlation).

# %%
by_draw = run.by_draw()
floor = noise_floor(by_draw)
shown_floor = floor.rename_axis("retention").reset_index()
figures.show_table(
    shown_floor, "Spread of the fifteen sources against the spread of their draws"
)

# %%
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
    caption="Coloured: range of the source means. Grey: two standard deviations of the draws of one source. Judged by the "
    f"total, sources lie {floor.range['total']:.1f} points apart; judged by Code, {floor.range['code']:.1f}.",
    name="fig-noise-floor",
)
for name, row in floor.iterrows():
    values[f"spread/{name}"] = {"value": row["range"], "unit": "points"}
    values[f"noise/{name}"] = {"value": row["within"], "unit": "points", "digits": 2}

# %% [markdown]
# The paper reports the contrast between an average and a dimension: the choice of calibration text moved averaged
# Commonsense accuracy by 2.85 points and Code retention by 51.9. The same ranges here, for both measures:

# %%
accuracy = frame(run.retentions("accuracy", names=names))
ranges = pd.DataFrame(
    {
        "retention": columns,
        "likelihood": [float(table[c].max() - table[c].min()) for c in columns],
        "accuracy": [float(accuracy[c].max() - accuracy[c].min()) for c in columns],
    }
)
figures.show_table(
    ranges, "Range over the fifteen sources and two mixes, in points of retention", digits=1
)
agreement = table.total.corr(accuracy.total, method="spearman")
values["agreement"] = {"value": agreement, "digits": 2, "n": len(table)}
print(f"Rank correlation of likelihood and accuracy retention in total: {agreement:+.2f}")

# %% [markdown]
# ## Does perplexity trade one capability for another?

# %%
paper = {"general": "+0.71", "math": "-0.53", "code": "-0.59"}
methods = run.methods
tables = {method: run.correlations(method) for method in methods}
rows = []
for method, found in tables.items():
    rows += [
        {"method": method, "paper": paper.get(row["dimension"], "not given"), **row}
        for row in found[found.metric == "calibration_perplexity"]
        .drop(columns="metric")
        .to_dict("records")
    ]
beside = pd.DataFrame(rows)
figures.show_table(
    beside[["method", "dimension", "paper", "rho", "low", "high", "p", "p_holm"]],
    "Spearman's rho of calibration perplexity with retention over 15 sources, 95 % intervals, Holm over the whole table",
)

# %%
main = tables[s.method]
perplexity = main[main.metric == "calibration_perplexity"].set_index("dimension")
notes = {
    d: f"$\\rho$ = {perplexity.rho[d]:+.2f}, p = {perplexity.p[d]:.3f}"
    for d in figures.DIMENSIONS
}
means = by_draw.groupby("source").mean()
figures.show(
    figures.rank_scatter(
        run.information.calibration_perplexity.groupby("strategy").mean()[means.index],
        means,
        notes,
        "calibration perplexity (log scale)",
    ),
    alt="Four scatter plots of retention against calibration perplexity, a point per source. Spearman's rho: "
    + figures.phrase(perplexity.rho[list(figures.DIMENSIONS)].items())
    + ".",
    caption=f"Retention against calibration perplexity under {s.method}, means of {s.draws} draws. Rank correlation: "
    + figures.phrase(perplexity.rho[list(figures.DIMENSIONS)].items())
    + ".",
    name="fig-reference-scatter",
)

# %%
grid = main.pivot(index="metric", columns="dimension", values="rho")[
    [*figures.DIMENSIONS, "total"]
]
survivors = main[main.p_holm < 0.05]
figures.show(
    figures.heatmap(grid, "Spearman's rho", center=0.0, fmt="+.2f"),
    alt=f"Heatmap of rank correlations, seven metrics by four dimensions and the total; {len(survivors)} of {len(main)} "
    "pass Holm's correction.",
    caption=f"Every metric against every dimension under {s.method}. {len(survivors)} of {len(main)} correlations pass Holm's "
    "correction at 0.05.",
    name="fig-reference-correlations",
)
for row in main.to_dict("records"):
    entry = {key: row[key] for key in ("low", "high", "p", "p_holm", "n")} | {
        "value": row["rho"],
        "digits": 2,
    }
    values[f"spearman/{row['metric']}/{row['dimension']}"] = entry | {"draws": s.draws}
values["spearman/tests"] = {"value": len(main), "digits": 0}
values["spearman/survivors"] = {"value": len(survivors), "digits": 0}

# %% [markdown]
# ## The mix against single sources
#
# Differences are paired: the same items, the same draw numbers, resampled together. "Best single" is chosen after looking
# at all fifteen totals, which favours it.

# %%
gaps = {}
for method in methods:
    totals = frame(run.retentions(method=method, names=s.sources)).total
    for key, other in (("best single", totals.idxmax()), ("web text", s.web)):
        for mix in ("uniform", "all-sources"):
            gaps[method, mix, f"{key}: {other}"] = difference(
                run.draws(mix, method), run.draws(other, method), run.dense
            )
figures.show_table(
    pd.DataFrame(
        {"method": m, "mix": a, "against": b, **{d: str(e) for d, e in gap.items()}}
        for (m, a, b), gap in gaps.items()
    ),
    "Paired differences in points of retention, with 95 % intervals",
)
for (method, mix, other), gap in gaps.items():
    if (method, mix) == (s.method, "uniform"):
        key, label = other.split(": ")
        values[f"uniform-minus-{'web' if key == 'web text' else 'best-single'}"] = {
            **vars(gap["total"]),
            "unit": "points",
            "label": label,
            "draws": s.draws,
        }
for name, key in (
    ("uniform", "uniform"),
    ("all-sources", "all-sources"),
    (best, "best-single"),
    (s.web, "web"),
):
    values[f"{key}/total"] = {
        **vars(kept[name].total),
        "unit": "%",
        "label": name,
        "draws": s.draws,
    }

# %% [markdown]
# ## Does the margin grow with sparsity?
#
# The paper's margin of the mix over C4 grows from +4.6 points at 30 % to +18.8 at 60 %.

# %%
published = {0.3: 4.6, 0.6: 18.8}
fig, axes = plt.subplots(figsize=(figures.WIDTH, 3.2))
margins = {method: run.margins("uniform", s.web, method) for method in methods}
for method, shape in zip(methods, "so", strict=False):
    found = {x: gap["total"] for x, gap in margins[method].items()}
    axes.errorbar(
        [100 * x for x in found],
        [e.value for e in found.values()],
        capsize=3,
        marker=shape,
        label=method,
        yerr=[
            [e.value - e.low for e in found.values()],
            [e.high - e.value for e in found.values()],
        ],
    )
axes.plot(
    [100 * x for x in published],
    list(published.values()),
    "D",
    color="#222222",
    label="paper (8B)",
)
axes.axhline(0, color="#888888", lw=0.8)
axes.set(xlabel="sparsity (%)", ylabel="uniform mix minus C4 (points)")
axes.legend()
steps = {f"{x:.0%}": gap["total"].value for x, gap in margins[s.method].items()}
figures.show(
    fig,
    alt="Margin of the uniform mix over C4 in points of total retention against sparsity. "
    + f"{s.method}: "
    + figures.phrase(steps.items())
    + ".",
    caption="Margin of the uniform mix over C4 in total retention. "
    + figures.phrase(steps.items(), "{:+.1f} points")
    + ".",
    name="fig-margin",
)
for sparsity, gap in margins[s.method].items():
    values[f"margin/{round(100 * sparsity)}"] = {
        **vars(gap["total"]),
        "unit": "points",
        "draws": s.draws,
    }

# %% [markdown]
# ## Do different sources remove different weights?
#
# The share of the weights removed under one source that are removed under another, too. Two masks drawn at random would share
# the sparsity itself; two draws of one source share what the last line says.

# %%
shared = run.mask_overlap()
same, other = run.mask_overlap_of_draws(), shared.where(shared < 1).stack().mean()
figures.show(
    figures.heatmap(100 * shared.where(shared < 1), "overlap (%)"),
    alt=f"Overlap of masks between sources, mean {100 * other:.1f} %; between draws of one source {100 * same:.1f} %; "
    f"by chance {100 * s.sparsity:.0f} %.",
    caption=f"Overlap of the masks of two sources under {s.method}: {100 * other:.1f} % on average, against "
    f"{100 * same:.1f} % for two draws of one source and {100 * s.sparsity:.0f} % by chance.",
    name="fig-mask-overlap",
)
values["overlap/sources"] = {"value": 100 * other, "unit": "%"}
values["overlap/draws"] = {"value": 100 * same, "unit": "%"}

# %% [markdown]
# ## A second family
#
# The same study with `gemma3-270m`, a base model with sliding-window layers, at one draw. A conclusion that holds for one
# model of one family is an anecdote.

# %%
if family and recorded(family):
    second = reference(family)
    both = {s.model: main, second.settings.model: second.correlations()}
    rows = [
        {"model": model, **row}
        for model, found in both.items()
        for row in found[found.metric == "calibration_perplexity"]
        .drop(columns="metric")
        .to_dict("records")
    ]
    figures.show_table(
        pd.DataFrame(rows), "Calibration perplexity against retention, two families"
    )
    other_table = frame(second.retentions())
    alike = table[columns].corrwith(
        other_table[columns].loc[table.index], method="spearman"
    )
    figures.show_table(
        alike.rename_axis("retention").rename("rho").reset_index(),
        "Do the two families rank the strategies alike? Spearman's rho over 17 strategies",
    )
    top = other_table.total.idxmax()
    print(
        f"{second.settings.model}: uniform mix {other_table.total['uniform']:.1f} %, best of all {top} {other_table.total[top]:.1f} %"
    )
    for name, found in both[second.settings.model].groupby("dimension"):
        row = found[found.metric == "calibration_perplexity"].iloc[0]
        values[f"family/spearman/{name}"] = {
            "value": row.rho,
            "low": row.low,
            "high": row.high,
            "p": row.p,
            "n": int(row.n),
            "digits": 2,
        }
    values["family/agreement"] = {"value": alike["total"], "digits": 2, "n": len(table)}

# %% tags=["hide-input"]
seconds = pd.Series([sum(r.record.metrics["seconds"].values()) for r in run.results])
values["cells"] = {"value": len(run.results), "digits": 0}
values["seconds-per-cell"] = {"value": seconds.median(), "unit": "s", "digits": 0}
store = Store(repository_root() / "book" / "results" / profile)
store.publish("08-reference-run", {f"small/{key}": entry for key, entry in values.items()})

# %% [markdown]
# ## What it means, and what it does not
#
# Judged by the total, the fifteen sources lie {result}`small/spread/total` apart; judged by one dimension, up to
# {result}`small/spread/code`. Two draws of one source differ by a standard deviation of {result}`small/noise/total` in total:
# a comparison of single draws that is closer than twice that says nothing.
#
# Perplexity ranks with retention at {result}`small/spearman/calibration_perplexity/general:interval` for general,
# {result}`small/spearman/calibration_perplexity/commonsense:interval` for commonsense,
# {result}`small/spearman/calibration_perplexity/code:interval` for code and
# {result}`small/spearman/calibration_perplexity/math:interval` for math. {result}`small/spearman/survivors` of
# {result}`small/spearman/tests` correlations survive Holm's correction.
#
# The uniform mix keeps {result}`small/uniform/total:interval`, {result}`small/uniform-minus-web:signed-interval` against web
# text and {result}`small/uniform-minus-best-single:signed-interval` against the best single source.
#
# The intervals rest on three draws and on the items that were scored. Fifteen sources are fifteen points: a rank
# correlation of 0.5 among them is missed about every second time ({doc}`/book/primer-rank-correlation`). And text of one
# kind helps text of its kind: a source shares vocabulary and layout with the held-out text of its dimension, even
# where the two come from different data sets.
#
# ## Exercises
#
# 1. ★ Read the noise floor of Code. How many draws would halve the standard error of a source's mean?
# 2. ★★ Two masks of different sources agree far more than chance would have it, and yet one capability collapses. How can
#    both be true? Which weights would you look at first?
# 3. ★★★ The fifteen sources were chosen by us. Choose fifteen others from the catalogue (`igsp sources`), compute them
#    (`igsp study run --profile small -p sources "[...]"`) and see which sign survives.
