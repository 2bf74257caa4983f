# ---
# jupyter:
#   igsp:
#     needs: [07-leaderboard]
#     reads: [small, small-gemma, advice]
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
# # Explore the records
#
# Each point is one calibration set: where its text lies by a metric of the text alone, and how much of a capability the
# model keeps after pruning with it. Choose the run, the metric and the capability; point at a mark to read its name.

# %% tags=["parameters"]
profile: str = "quick"  # the profile of this build, shown as well if it has records
shown: str = "small, small-gemma"  # the profiles whose committed records are shown

# %%
import json

import altair as alt
import pandas as pd

from igsp import figures
from igsp.provenance import repository_root
from igsp.study import mixtures
from igsp.study.recorded import recorded, reference
from igsp.study.study import strategies
from igsp.text.catalogue import DIMENSIONS, catalogue
from igsp.text.metrics import CORRELATED

figures.use_style()
known = [p.strip() for p in shown.split(",")]
results = repository_root() / "book" / "results"
KEPT = [*DIMENSIONS, "total"]

# %% [markdown]
# ## Four strategies
#
# *Web text* is one source that was long the default. The *best single source* was chosen after looking, which favours it. The
# *uniform mix* takes one source of each kind, and *all sources* takes all fifteen, so that nothing has to be chosen.

# %%
run = reference(known[0])
s = run.settings
kept = run.retentions()
best = max(s.sources, key=lambda name: kept[name].total.value)
titles = {
    s.web: f"web text ({figures.title(s.web)})",
    best: f"best single source ({figures.title(best)})",
    "uniform": "uniform mix",
    "all-sources": "all sources",
}
rows = [
    {"strategy": title, "dimension": d.capitalize(), "kept": e.value, "low": e.low, "high": e.high}
    for name, title in titles.items()
    for d, e in kept[name].estimates().items()
]
four = pd.DataFrame(rows).round(2)

# %%
names = list(titles.values())
tints = alt.Scale(domain=names, range=["#777777", "#CC8800", "#4477AA", "#AA3377"])
signs = alt.Scale(domain=names, range=["circle", "square", "triangle-up", "diamond"])
offset = alt.YOffset("strategy:N", sort=names)
side = alt.Y("dimension:N", sort=None, title=None)
base = alt.Chart(four).encode(side, yOffset=offset)
bars = base.mark_rule(strokeWidth=2).encode(
    alt.X("low:Q"), x2="high:Q", color=alt.Color("strategy:N", scale=tints)
)
marks = base.mark_point(filled=True, size=80, opacity=1).encode(
    alt.X("kept:Q", title="kept of the dense model, %", scale=alt.Scale(zero=False)),
    alt.Color("strategy:N", scale=tints, title=None, legend=alt.Legend(orient="top", columns=2, labelLimit=260)),
    alt.Shape("strategy:N", scale=signs, title=None),
    tooltip=["strategy", "dimension", "kept", "low", "high"],
)
text = base.mark_text(align="left", dx=8, fontSize=11).encode(
    alt.X("high:Q"), text=alt.Text("kept:Q", format=".0f")
)
told = "; ".join(
    f"{d}: " + ", ".join(f"{r.strategy} {r.kept:.1f} %" for r in part.itertuples())
    for d, part in four.groupby("dimension", sort=False)
)
figures.show_chart(
    (bars + marks + text).properties(width=440, height=alt.Step(16)),
    alt=f"What four calibration texts keep, by capability. {told}.",
    caption=f"What the pruned model keeps of the dense one after pruning with four calibration texts ({figures.title(s.method)}, "
    f"{100 * s.sparsity:g} % zeros, {kept['uniform'].draws} draws, 95 % intervals). Point at a mark for its numbers.",
    name="fig-strategies",
)

# %%
wide = four.assign(
    told=[f"{r.kept:.1f} ({r.low:.1f} to {r.high:.1f})" for r in four.itertuples()]
)
wide = wide.pivot(index="strategy", columns="dimension", values="told")
wide = wide.loc[names, list(dict.fromkeys(four.dimension))].reset_index()
wide.columns.name = None
figures.show_table(wide, "Retention in percent with 95 % intervals", name="tab-strategies")


# %% [markdown]
# ## One row per strategy
#
# Retention is the mean over the draws, with its 95 % interval; so are the metrics of the text.


# %%
def kind(strategy, run):
    """The dimension of a source; other strategies mix sources or were written by the model."""
    if strategy in catalogue():
        return catalogue()[strategy].dimension.capitalize()
    known = strategies(run.settings)
    mixed = strategy in known and known[strategy].kind == "mix"
    return "Mix" if mixed else "Self-written"


rows, correlations = [], []
for name in dict.fromkeys([*known, profile]):
    if not recorded(name):
        continue
    run = reference(name)
    s = run.settings
    text = run.information.groupby("strategy").mean()
    for method in run.methods:
        place = f"{name}: {figures.title(method)} {100 * s.sparsity:g} %, {s.n} × {s.seqlen} tokens"
        rho = run.correlations(method)
        correlations.append(rho[["metric", "dimension", "rho", "p"]].assign(run=place))
        for sparsity in sorted({r.cell.sparsity for r in run.results}):
            kept = run.retentions(method=method, sparsity=sparsity)
            for strategy, value in kept.items():
                if strategy not in text.index:
                    continue
                setting = f"{figures.title(method)} {100 * sparsity:g} %"
                row = {
                    "run": f"{name}: {setting}, {s.n} × {s.seqlen} tokens",
                    "strategy": figures.title(strategy),
                    "kind": kind(strategy, run),
                    "draws": value.draws,
                    **text.loc[strategy, list(CORRELATED)].round(4),
                }
                for dimension in KEPT:
                    found = value.estimates()[dimension]
                    row[dimension] = round(found.value, 2)
                    row[f"{dimension} low"] = round(found.low, 2)
                    row[f"{dimension} high"] = round(found.high, 2)
                rows.append(row)
points = pd.DataFrame(rows)
size = points.groupby("run").strategy.transform("size")
points = points.iloc[(-size).argsort(kind="stable")]  # the run with most strategies first
print(f"{len(points)} rows in {points.run.nunique()} runs")

# %% [markdown]
# ## The chart
#
# Perplexities are drawn on a logarithmic axis. *Ranks* shows what Spearman's correlation sees: single sources alone.

# %%
metrics = list(CORRELATED)
choose = {
    "run": list(points.run.unique()),
    "metric": metrics,
    "dimension": KEPT,
    "axes": ["values", "ranks"],
}
bound = {
    key: alt.param(
        name=key,
        value=options[0],
        bind=alt.binding_select(
            options=options,
            labels=[figures.heading(o).replace("_", " ") for o in options],
            name=key.capitalize() + " ",
        ),
    )
    for key, options in choose.items()
}
highlight = alt.param(
    name="highlight",
    value="",
    bind=alt.binding_select(
        options=["", *sorted(points.strategy.unique())], name="Highlight "
    ),
)
colours = figures.palette()
kinds = [*(d.capitalize() for d in DIMENSIONS), "Mix", "Self-written"]
scale = alt.Scale(
    domain=kinds, range=[*(colours[d] for d in DIMENSIONS), "#444444", "#7A5195"]
)
shapes = alt.Scale(
    domain=kinds,
    range=["circle", "square", "triangle-up", "diamond", "cross", "triangle-down"],
)
ranked = "axes == 'ranks'"
logged = "metric == 'calibration_perplexity' && axes == 'values'"
label = f"{logged} ? format(pow(10, datum.value), '.2~r') : format(datum.value, '.3~r')"
hover = alt.selection_point(on="pointerover", nearest=True, empty=False, fields=["strategy"])
found = (
    alt.Chart(points)
    .transform_filter("datum.run == run")
    .transform_filter(f"!({ranked}) || indexof(['Mix', 'Self-written'], datum.kind) < 0")
    .transform_calculate(
        metric_value="datum[metric]",
        kept="datum[dimension]",
        kept_low="datum[dimension + ' low']",
        kept_high="datum[dimension + ' high']",
    )
    .transform_window(rank_x="rank()", sort=[alt.SortField("metric_value")])
    .transform_window(rank_y="rank()", sort=[alt.SortField("kept")])
    .transform_calculate(
        x=f"{ranked} ? datum.rank_x : {logged} ? log(datum.metric_value) / LN10 : datum.metric_value",
        y=f"{ranked} ? datum.rank_y : datum.kept",
        low=f"{ranked} ? datum.rank_y : datum.kept_low",
        high=f"{ranked} ? datum.rank_y : datum.kept_high",
        named="datum.strategy == highlight",
    )
)
x = alt.X("x:Q", scale=alt.Scale(zero=False), axis=alt.Axis(labelExpr=label, tickCount=6))
x = x.title("metric of the calibration text")
y = alt.Y("y:Q", scale=alt.Scale(zero=False), title="retention, %, or rank")
tip = ["strategy", "kind", "kept:Q", "kept_low:Q", "kept_high:Q", "metric_value:Q", "draws"]
bars = found.mark_rule(opacity=0.6).encode(x, alt.Y("low:Q").title(""), y2="high:Q")
marks = found.mark_point(filled=True, opacity=1).add_params(hover).encode(
    x,
    y,
    alt.Color("kind:N", scale=scale, title=None, legend=alt.Legend(orient="bottom", columns=3)),
    alt.Shape("kind:N", scale=shapes, title=None),
    tooltip=tip,
    size=alt.when("datum.named").then(alt.value(260)).otherwise(alt.value(90)),
)
labels = found.mark_text(dy=-13, fontSize=13).encode(
    x,
    y,
    text="strategy:N",
    opacity=alt.when(hover).then(alt.value(1)).when("datum.named").then(alt.value(1)).otherwise(alt.value(0)),
)
told = (
    alt.Chart(pd.concat(correlations).round(3))
    .transform_filter("datum.run == run && datum.metric == metric && datum.dimension == dimension")
    .transform_calculate(
        told="'rank correlation over single sources ' + format(datum.rho, '+.2f') + ', p ' + (datum.p < 0.001 ? '< 0.001' : '= ' + format(datum.p, '.3f'))"
    )
    .mark_text(align="left", fontSize=13)
    .encode(x=alt.value(6), y=alt.value(-10), text="told:N")
)
chart = alt.layer(bars, marks, labels, told).add_params(*bound.values(), highlight)
chart = chart.properties(width=480, height=320)
first = points[points.run == points.run.iloc[0]].sort_values("general")
ends = first.iloc[[0, -1]]
figures.show_chart(
    chart,
    alt=f"Scatter plot of {len(first)} calibration sets: {figures.heading(metrics[0])} against General retention, "
    + " to ".join(f"{r.general:.1f} % ({r.strategy})" for r in ends.itertuples())
    + ".",
    caption="Calibration sets by a metric of their text and by what is kept after pruning with them, mean over the draws, bars: "
    "95 % intervals.",
    name="fig-explorer",
)

# %% [markdown]
# ## The same data as tables

# %%
columns = ["strategy", "kind", *KEPT, "calibration_perplexity", "aggregation_4", "draws"]
for place, (run, rows) in enumerate(points.groupby("run", sort=False)):
    figures.show_table(
        rows[columns],
        f"{run}: likelihood retention in percent, perplexity and 4-gram aggregation",
        name=f"tab-explorer-{place}",
        digits=3,
    )

# %% [markdown]
# ## Mixes on record
#
# What `igsp advise` measured on its way to an answer: for each file of `book/results/advice` the two mixes that it confirmed, all
# mixes that it tried, and an interpolation between these by the mixture polynomial (Scheffé) with the smallest leave-one-out
# error.

# %%
from igsp.advise import Advice, picture
from igsp.study.values import number

for path in sorted((results / "advice").glob("*.json")):
    advice = Advice.from_json(path.read_text(encoding="utf8"))
    about, uniform = advice.settings, advice.trials[0].weights
    amount = about.get("pattern") or f"{100 * about['sparsity']:g} %"
    asked = ", ".join(f"{d.capitalize()} {100 * w:.0f} %" for d, w in advice.keep.items())
    setting = f"{figures.title(about['model'])}, {figures.title(about['method'])} at {amount}, {about['n']} windows of {about['seqlen']} tokens, suite {about['suite']}"
    figures.show_text(f"{setting}; asked for: {asked}; {len(advice.trials)} mixes were tried. {advice.verdict}", name=f"tab-verdict-{path.stem}")
    rows = [{"source": figures.code(k), "best found, %": 100 * advice.best[k], "uniform, %": 100 * uniform[k]} for k in advice.best]
    figures.show_table(pd.DataFrame(rows), "The two mixes that were confirmed", digits=1, name=f"tab-advice-{path.stem}")
    rows = [
        {"dimension": d, "asked, %": f"{100 * advice.keep.get(d, 0):.0f}"}
        | {name: f"{e[d].value:.1f} ({e[d].low:.1f} to {e[d].high:.1f})" for name, e in advice.compared.items()}
        | {"difference": advice.gain[d]}
        for d in advice.compared["uniform"]
    ]
    floor = "unknown" if advice.noise_floor is None else f"{number(advice.noise_floor, 1)} points"
    figures.show_table(
        pd.DataFrame(rows),
        f"Retention in percent on items that the search did not see, {about['draws']} draws each, {about['order']['confirm']} order; difference in points, paired; noise floor {floor}",
        digits=1,
        name=f"tab-compared-{path.stem}",
    )
    fig = picture(advice)
    fig.suptitle("")
    figures.show(
        fig,
        alt=f"{len(advice.trials)} mixes: retention by share of a dimension's own sources, and the price of it. {advice.verdict}",
        caption=f"Small points are the mixes of the search ({about['order']['search']} order), the two large ones the confirmed ones "
        f"({about['order']['confirm']} order, other items), with intervals: levels differ, so compare within each.",
        name=f"fig-advice-{path.stem}",
    )

# %% [markdown]
# ### Between the mixes
#
# Each slider is a number of windows from one source; the shares follow from the numbers. Bars: the interpolation, with its
# leave-one-out error. Ticks: the nearest mix that was measured.

# %%
for path in sorted((results / "advice").glob("*.json")):
    advice = json.loads(path.read_text(encoding="utf8"))
    data = mixtures.measured(advice["trials"])
    n, names = advice["settings"]["n"], data["sources"]
    order_of = advice["settings"]["order"]["search"]
    sliders = [
        alt.param(name=f"w{i}", value=round(n * share), bind=alt.binding_range(min=0, max=n, step=1, name=f"{name} "))
        for i, (name, share) in enumerate(zip(names, data["trials"][0]["shares"], strict=True))
    ]
    total = "max(1, " + " + ".join(f"w{i}" for i in range(len(names))) + ")"
    shares = [f"(w{i} / {total})" for i in range(len(names))]
    products = mixtures.terms_as_text(shares, data["form"])
    fitted = [
        {"dimension": d.capitalize(), "error": data["error"][d]} | {f"c{k}": c for k, c in enumerate(data["coefficients"].get(d, []))}
        for d in data["dimensions"]
    ]
    tried = pd.DataFrame(
        {"dimension": d.capitalize(), "kept": kept, "mix": place} | {f"s{i}": share for i, share in enumerate(mix["shares"])}
        for place, mix in enumerate(data["trials"], 1)
        for d, kept in zip(data["dimensions"], mix["kept"], strict=True)
    )
    apart = " + ".join(f"pow(datum.s{i} - {share}, 2)" for i, share in enumerate(shares))
    order = alt.Y("dimension:N", sort=None, title=None)
    nearest = (
        alt.Chart(tried)
        .transform_calculate(apart=apart)
        .transform_joinaggregate(nearest="min(apart)", groupby=["dimension"])
        .transform_filter("datum.apart <= datum.nearest + 1e-9")
        .mark_tick(thickness=3, size=34)
        .encode(alt.X("kept:Q"), order, tooltip=["mix", "kept"])
    )
    layers = [nearest]
    if products:
        kept = " + ".join(f"datum.c{k} * {term}" for k, term in enumerate(products))
        drawn = alt.Chart(pd.DataFrame(fitted)).transform_calculate(
            kept=kept, low="datum.kept - datum.error", high="datum.kept + datum.error"
        )
        spot = drawn.mark_bar(opacity=0.55).encode(
            alt.X("kept:Q", title="retention, %", scale=alt.Scale(zero=False, domain=[40, 80], clamp=True)),
            order,
            alt.Color("dimension:N", legend=None, scale=alt.Scale(domain=[d.capitalize() for d in DIMENSIONS], range=[colours[d] for d in DIMENSIONS])),
        )
        layers = [spot, drawn.mark_rule(strokeWidth=2).encode(alt.X("low:Q"), order, x2="high:Q"), nearest]
        layers.append(drawn.mark_text(align="left", dx=6).encode(alt.X("high:Q"), order, text=alt.Text("kept:Q", format=".1f")))
    figures.show_chart(
        alt.layer(*layers).add_params(*sliders).properties(width=420, height=170),
        alt=f"Interpolated retention of a mix of {', '.join(names)} by dimension, beside the nearest of {len(advice['trials'])} measured mixes.",
        caption=f"Retention of any mix of {', '.join(names)}: {mixtures.FORMS[data['form']]}, fitted to {len(advice['trials'])} measured mixes. "
        f"They were pruned in {order_of} order and scored on half of the items: other settings give other levels.",
        name=f"fig-mixes-{path.stem}",
    )
    rows = [
        {"mix": place} | {f"{s}, %": 100 * share for s, share in zip(names, mix["shares"], strict=True)}
        | {d.capitalize(): kept for d, kept in zip(data["dimensions"], mix["kept"], strict=True)}
        | {"gain": number(trial["gain"]["value"], 2, signed=True)}
        for place, (mix, trial) in enumerate(zip(data["trials"], advice["trials"], strict=True), 1)
    ]
    figures.show_table(
        pd.DataFrame(rows),
        "Shares and retention in percent of every measured mix; gain over equal parts (mix 1) on the asked dimensions, in points",
        name=f"tab-mixes-{path.stem}",
    )
