# ---
# jupyter:
#   igsp:
#     needs: [01-source-profiling, 02-oit-metrics, 03-spearman, 04-uniform-mix, 05-igsp, 06-baselines, 07-leaderboard, 08-reference-run, 09-self-written]
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
# # The claims, judged
#
# One row per claim of the paper, with the paper's number, ours and the verdict by a rule that was fixed beforehand in a data
# file. The page [](../claims.md) explains how to read the table; this notebook makes it from the published values.

# %% tags=["parameters"]
profile: str = "quick"  # the profile of this build, whose values stand in the last column

# %%
import matplotlib.pyplot as plt
import pandas as pd
from markdown_it import MarkdownIt
from markupsafe import Markup

from igsp import figures
from igsp.provenance import repository_root
from igsp.study import claims as ledger
from igsp.study.values import interval, p_text, read_values, signed_form
from igsp.text.catalogue import DIMENSIONS

figures.use_style()
published = read_values(repository_root() / "book" / "results" / profile / "values")
kinds = {
    ledger.HOLDS: "holds",
    ledger.DIFFERS: "differs",
    ledger.UNTESTABLE: "untestable",
}


def markdown(text):
    """A sentence of `claims.yaml` as HTML."""
    return figures.Html(Markup(MarkdownIt().renderInline(text)))


# %% [markdown]
# ## Every claim


# %%
def ours(row, tests=True):
    """The values of a judged claim with their intervals, and their p-values where they have some."""
    told = []
    for key, value in row.values.items():
        dimension = key.rpartition("/")[2]
        many = len(row.values) > 1 and dimension in DIMENSIONS
        text = dimension.capitalize() + " " if many else ""
        text += interval(value, signed_form(key) == "signed-interval")
        for mark, p in (("p", value.p), ("Holm p", value.p_holm)):
            text += f", {mark} = {p_text(p)}".replace("= <", "<") if tests and p else ""
        told.append(text)
    return "; ".join(told)


def verdict(row, method="", reason=True):
    """Method, verdict, values and reason of one judged claim."""
    status = row.verdict.status
    said = Markup(" ").join(filter(None, [ours(row), row.verdict.reason * reason]))
    badge = figures.badge(status, kinds[status])
    told = Markup("<p><strong>{}</strong> {} {}</p>").format(method, badge, said)
    return figures.Html(told)


def here(claim):
    """The verdict on the values of this build; those may not be there."""
    if not published.keys() >= set(claim.ours):
        badge = figures.badge("not executed in this build", "stale")
        return figures.Html(Markup("{} make book runs its notebook").format(badge))
    return verdict(ledger.judge(claim, published, profile))


def by_method(claim):
    """The verdicts of the reference run, a paragraph per method."""
    return figures.Html(Markup("").join(verdict(r, m) for m, r in runs[claim.id].items()))


def anchored(claim):
    """The statement of a claim, which other pages can link to."""
    place = Markup('<span id="claim-{}">{}</span>')
    return figures.Html(place.format(claim.id, markdown(claim.statement)))


def short(row):
    """Verdict and values of one judged claim, without tests and reasons."""
    if row is None or not row.values:
        return "not measured"
    badge = figures.badge(row.verdict.status, kinds[row.verdict.status])
    return figures.Html(Markup("{} {}").format(badge, ours(row, tests=False)))


claims = ledger.claims()
runs = {claim.id: ledger.judge_runs(claim, published) for claim in claims}
sources = {
    "primary": "Claims of the paper's abstract",
    "secondary": "Claims of the paper's body, at second hand",
    "check": "Controls and checks of our own",
}
for status, source in sources.items():
    figures.show_table(
        pd.DataFrame(
            {
                "claim": anchored(claim),
                "paper": markdown(f"{claim.paper} [{claim.locator}]"),
                f"reference run ({ledger.REFERENCE})": by_method(claim),
                f"this build ({profile})": here(claim),
            }
            for claim in claims
            if claim.status == status
        ),
        source,
        name=f"tab-claims-{status}",
        classes="igsp-ledger",
    )

# %% [markdown]
# ## The claims of the abstract in short

# %%
methods = [name for name in ledger.RUNS if any(name in r for r in runs.values())]
figures.show_table(
    pd.DataFrame(
        {"claim": markdown(claim.statement), "paper": markdown(claim.paper)}
        | {
            name: short(runs[claim.id].get(name))
            for name in methods
        }
        for claim in claims
        if claim.status == "primary"
    ),
    "What the abstract claims, and what the reference run measured, with 95 % intervals",
    name="tab-findings",
    classes="igsp-ledger",
)

# %% [markdown]
# ## Perplexity and what is kept
#
# Each pruning method beside the value that the paper gives for that method, where it gives one.

# %%
paper = {
    ("sparsegpt", "general"): 0.55,
    ("wanda", "general"): 0.71,
    ("wanda", "math"): -0.53,
    ("sparsegpt", "code"): -0.59,
}
colours, marks = figures.palette(), figures.markers()
fig, grid = plt.subplots(1, len(methods), figsize=(figures.WIDTH, 2.6), sharey=True)
told = []
for axes, (method, prefix) in zip(grid, ledger.RUNS.items(), strict=True):
    axes.axvline(0, color="#666666", lw=1)
    for row, dimension in enumerate(DIMENSIONS):
        value = published[f"{prefix}/spearman/calibration_perplexity/{dimension}"]
        error = [[value.value - value.low], [value.high - value.value]]
        style = {"color": colours[dimension], "fmt": marks[dimension]}
        axes.errorbar(value.value, row, xerr=error, ms=8, lw=3, **style)
        told.append(f"{method} {dimension.capitalize()} {interval(value, signed=True)}")
        theirs = paper.get((method.lower(), dimension))
        if theirs is not None:
            axes.plot(theirs, row - 0.3, "D", ms=8, mfc="none", mec="#222222")
            told[-1] += f", paper {theirs:+.2f}".replace("-", "−")
    axes.set(xlim=(-1, 1), title=method, xlabel="rank correlation")
    axes.set_yticks(range(len(DIMENSIONS)), [d.capitalize() for d in DIMENSIONS])
axes.set_ylim(len(DIMENSIONS) - 0.5, -0.7)
fig.tight_layout()
figures.show(
    fig,
    alt="Rank correlation of calibration perplexity with retention, with 95 % intervals. " + "; ".join(told) + ".",
    caption="Right of zero, hard text goes with more kept; left of zero, with less. Dots and bars: the reference run. Hollow "
    "diamonds: the paper's value for the same pruning method.",
    name="fig-tradeoff",
)

# %% [markdown]
# ## Rules and notes
#
# Setting of the paper's number, the rule that decides the claim here, and what to keep in mind.


# %%
rules = {
    "sign": "holds when the correlation lies {side} zero, with p below 0.05 after correction for the whole table",
    "greater": "holds when the whole interval lies above {than}",
    "ordered": "holds when `{smaller}` lies below `{larger}`, with intervals apart where both have one",
    "opposite": "holds when the first correlation is positive and one of the others negative, both by corrected p",
    "within": "holds when the value lies within {by} of {of}",
}


def rule(claim):
    """A rule of `claims.yaml` in words."""
    about = claim.rule
    side = "above" if about.get("expect") == "+" else "below"
    text = rules.get(about["kind"], about["kind"]).format(**{"side": side, **about})
    measures = " and ".join(about.get("measures", []))
    text += f"; under {measures} too, where published" if measures else ""
    text += f"; at least {about['draws']} draws" if about.get("draws") else ""
    where = " or ".join(about.get("profiles", []))
    return text + f"; decided only at profile {where}" * bool(where)


figures.show_table(
    pd.DataFrame(
        {
            "claim": claim.title,
            "paper's setting": markdown(claim.setting),
            "rule": markdown(rule(claim)),
            "note": markdown(claim.note),
        }
        for claim in claims
    ),
    "How each claim is decided",
    name="tab-claim-rules",
    classes="igsp-stack",
)

# %% [markdown]
# ## Why our numbers differ, claim by claim
#
# The claims that do not hold under every method of the reference run, with the likely reasons.

# %%
figures.show_table(
    pd.DataFrame(
        {
            "claim": claim.title,
            "paper": markdown(f"{claim.paper} ({claim.setting})"),
            "reference run": by_method(claim),
            "likely reasons": markdown(claim.differs),
        }
        for claim in claims
        if any(r.verdict.status != ledger.HOLDS for r in runs[claim.id].values())
    ),
    "Claims that do not hold everywhere",
    name="tab-claims-that-differ",
    classes="igsp-stack",
)
