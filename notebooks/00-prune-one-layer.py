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
# # Prune one layer by hand
#
# **What you will learn.** What a calibration set is, how it enters a pruning method, and why other text removes other weights. You
# compute everything yourself: two windows of text, the input of one layer, Wanda in ten lines, SparseGPT column by column. At the
# end the package prunes the whole model three times and answers four prompts.
#
# The notebook takes about two minutes on two processor cores.

# %% tags=["parameters"]
profile: str = "quick"  # the profile of this build: model and sparsity
windows: int = 8  # calibration windows of each source
tokens: int = 256  # tokens of each window
block: int = 12  # the decoder block that is looked at
prose: str = "wiki_leads"  # a source of general text
program: str = "stdlib"  # a source of programs

# %%
import copy

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.ticker import LogLocator

import igsp
from igsp import figures
from igsp.study.study import settings

figures.use_style()
chosen = settings(profile)
sparsity = chosen.sparsity
lm = igsp.load_model(chosen.model, dtype="float32")

# %% [markdown]
# ## 1. A calibration set is a few windows of text
#
# `igsp.sample` cuts windows of equal length out of documents of a source. The model sees tokens, not words. Below are the first
# tokens of one window of each source; a middle dot stands for a space.

# %%
text = {
    name: igsp.sample(name, lm.tokenizer, n=windows, seqlen=tokens)
    for name in (prose, program)
}
pieces = {
    name: lm.tokenizer.convert_ids_to_tokens(found.input_ids[0, :9].tolist())
    for name, found in text.items()
}
rows = [
    {"source": name, "first tokens of a window": " | ".join(found).replace("Ġ", "·").replace("Ċ", "⏎")}
    | {"different tokens": len(text[name].input_ids.unique())}
    for name, found in pieces.items()
]
figures.show_table(
    pd.DataFrame(rows), f"Two calibration sets of {windows} windows of {tokens} tokens", name="tab-windows"
)

# %% [markdown]
# ## 2. What the layer sees
#
# A linear layer computes $y = W x$. For every token it receives a vector $x$. We run the windows through the model and keep all
# inputs of one layer: the matrix $X$, a row per token.

# %%
layer = lm.model.model.layers[block].mlp.down_proj
W = layer.weight.detach()


def inputs(found, layers):
    """Inputs of some layers over all tokens of a calibration set: `[tokens, columns]` each."""
    seen = {}

    def keep(module, arguments):
        seen[module] = arguments[0].detach().flatten(0, 1)

    hooks = [one.register_forward_pre_hook(keep) for one in layers]
    with torch.inference_mode():
        lm.model.model(found.input_ids)  # the blocks alone, without the output head
    for hook in hooks:
        hook.remove()
    return [seen[one] for one in layers]


X = {name: inputs(found, [layer])[0] for name, found in text.items()}
print({name: tuple(x.shape) for name, x in X.items()}, "weights:", tuple(W.shape))

# %% [markdown]
# Pruning methods need little of $X$. Wanda needs the length of each column, $\lVert X_j \rVert$; SparseGPT needs $H = X^\top X$,
# whose diagonal holds the squares of these lengths. Each point below is one input column under both texts. Columns on the line
# matter equally to both. Those off the line are where the text decides.

# %%
H = {name: x.T @ x for name, x in X.items()}
size = {name: h.diagonal().sqrt() for name, h in H.items()}
ratio = (size[program] / size[prose]).log2()
far = ratio.abs().topk(2).indices.tolist()

fig, axes = plt.subplots(figsize=(figures.WIDTH, 3.6))
axes.loglog(size[prose], size[program], "o", ms=4, color="#4477AA", mec="white", mew=0.3)
ends = [float(min(s.min() for s in size.values())), float(max(s.max() for s in size.values()))]
axes.loglog(ends, ends, color="#666666", lw=1)
for j in far:
    axes.annotate(f"column {j}", (size[prose][j], size[program][j]), textcoords="offset points", xytext=(6, -10))
axes.set(xlabel=f"size of the input column on {prose}", ylabel=f"on {program}")
for axis in (axes.xaxis, axes.yaxis):
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter("")
share = 100 * float((ratio.abs() > 0.5).float().mean())
figures.show(
    fig,
    alt=f"Length of each of {len(ratio)} input columns on {prose} and on {program}, both axes logarithmic; {share:.0f} % of the "
    "columns differ by more than a factor of 1.4.",
    caption=f"The same layer on two texts: {share:.0f} % of its input columns differ in size by more than a factor of 1.4.",
    name="fig-columns",
)

# %% [markdown]
# ## 3. Wanda in ten lines
#
# Wanda asks of each weight: how large is it, and how large is what it is multiplied with? In every row the smallest products go.


# %%
def wanda(W, size, sparsity):
    """True where a weight goes: in each row the smallest |weight| x size of its input."""
    score = W.abs() * size
    count = int(sparsity * W.shape[1])
    smallest = score.argsort(dim=1)[:, :count]
    gone = torch.zeros_like(W, dtype=torch.bool)
    return gone.scatter_(1, smallest, True)


gone = {name: wanda(W, size[name], sparsity) for name in X}
same = float((gone[prose] & gone[program]).sum() / gone[prose].sum())
print(f"{100 * same:.1f} % of the removed weights are removed under both texts")

# %% [markdown]
# The package computes the same mask, with exact counts and for patterns such as 2:4 as well.

# %%
from igsp.pruning.hessian import InputStatistics
from igsp.pruning.solvers import wanda as published

count = windows * tokens
statistics = InputStatistics(count, windows, size[prose].square(), H[prose])
agree = (published(W, statistics, sparsity).mask == gone[prose]).float().mean()
print(f"agreement with igsp: {100 * agree:.2f} %")
assert agree > 0.999

# %% [markdown]
# A corner of the mask under both texts. Dark: kept under both. Light: removed under both. Red: the text decides.

# %%
corner = {name: mask[:64, :64].numpy() for name, mask in gone.items()}
differ = corner[prose] != corner[program]
shade = np.where(corner[prose], 0.93, 0.25)[..., None].repeat(3, axis=2)
red = shade.copy()
red[differ] = (0.85, 0.1, 0.15)
pictures = {
    prose: np.where(corner[prose], 0.93, 0.25)[..., None].repeat(3, axis=2),
    program: np.where(corner[program], 0.93, 0.25)[..., None].repeat(3, axis=2),
    "the difference": red,
}
fig, grid = plt.subplots(1, 3, figsize=(figures.WIDTH, 2.3))
for axes, (name, picture) in zip(grid, pictures.items(), strict=True):
    axes.imshow(picture, interpolation="nearest")
    axes.set_title(name, fontsize=10)
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)
fig.tight_layout()
figures.show(
    fig,
    alt=f"Three pictures of a block of 64 by 64 weights: the mask under {prose}, under {program}, and their difference, "
    f"{int(differ.sum())} of 4096 weights, in red.",
    caption=f"64 x 64 weights: {int(differ.sum())} of 4096 are kept under one text and removed under the other.",
    name="fig-corner",
)

# %% [markdown]
# ## 4. SparseGPT column by column
#
# SparseGPT repairs what it breaks. It visits the columns from left to right, and when a weight goes, the columns still to come take
# over its part of the output. What it needs for that is the inverse of $H$, in the form of a triangular factor $U$ with
# $H^{-1} = U^\top U$ ([](../primer-pruning.md) derives it).


# %%
def sparsegpt(W, H, sparsity, damping=0.01, width=128):
    """The pruned matrix, and after each block of columns the error of the output so far."""
    damped = H + damping * H.diagonal().mean() * torch.eye(len(H))
    U = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    new, errors = W.clone(), []
    for start in range(0, W.shape[1], width):
        here = slice(start, start + width)
        score = (new[:, here] / U.diagonal()[here]).square()
        limit = score.flatten().kthvalue(round(sparsity * score.numel())).values
        gone = score <= limit
        for j in range(start, min(start + width, W.shape[1])):
            lost = torch.where(gone[:, j - start], new[:, j], 0.0) / U[j, j]
            new[:, j:] -= lost[:, None] * U[j, j:]
        new[:, here][gone] = 0.0
        errors.append(error(W, new, H))
    return new, errors


def error(W, new, H):
    """Squared change of the output, as a share of the output: tr(D H D^T) / tr(W H W^T) with D = new - W."""
    D = new - W
    return float(((D @ H) * D).sum() / ((W @ H) * W).sum())


# %%
new, errors = sparsegpt(W, H[prose], sparsity)
plain = W.masked_fill(new == 0, 0.0)
by_wanda = W.masked_fill(gone[prose], 0.0)
rows = pd.DataFrame(
    [
        {"what is done": "Wanda's mask, nothing repaired", "error of the output, %": 100 * error(W, by_wanda, H[prose])},
        {"what is done": "SparseGPT's mask, nothing repaired", "error of the output, %": 100 * error(W, plain, H[prose])},
        {"what is done": "SparseGPT, repaired", "error of the output, %": 100 * error(W, new, H[prose])},
    ]
)
figures.show_table(rows, f"One layer at {100 * sparsity:g} % zeros, on the text it was pruned with", name="tab-repair")

# %%
steps = np.minimum(np.arange(1, len(errors) + 1) * 128, W.shape[1])
fig, axes = plt.subplots(figsize=(figures.WIDTH, 2.6))
axes.plot(steps, 100 * np.array(errors), "o-", color="#AA3377", label="SparseGPT")
without = []
for stop in steps:
    half = W.clone()
    half[:, :stop] = plain[:, :stop]
    without.append(error(W, half, H[prose]))
axes.plot(steps, 100 * np.array(without), "s--", color="#4477AA", label="the same mask, nothing repaired")
axes.set(xlabel="columns visited", ylabel="error of the output (%)", ylim=(0, None))
axes.legend()
figures.show(
    fig,
    alt=f"Error of the output as columns are visited: at the end {100 * errors[-1]:.1f} % with SparseGPT and "
    f"{100 * without[-1]:.1f} % with the same mask and no repair.",
    caption=f"Repairing the weights that stay: the error ends at {100 * errors[-1]:.1f} % in place of {100 * without[-1]:.1f} %.",
    name="fig-steps",
)

# %% [markdown]
# ## 5. The error depends on the text
#
# We prune the same layer of every third block with one text, and measure the error of its output on both texts.

# %%
places = range(0, len(lm.model.model.layers), 3)
layers = [lm.model.model.layers[place].mlp.down_proj for place in places]
seen = {name: inputs(found, layers) for name, found in text.items()}
rows = []
for depth, one in enumerate(layers):
    weight = one.weight.detach()
    grams = {name: x[depth].T @ x[depth] for name, x in seen.items()}
    for calibrated in seen:
        mask = wanda(weight, grams[calibrated].diagonal().sqrt(), sparsity)
        for measured in seen:
            found = error(weight, weight.masked_fill(mask, 0.0), grams[measured])
            rows.append({"block": places[depth], "calibrated on": calibrated, "measured on": measured, "error": 100 * found})
depths = pd.DataFrame(rows)

# %%
fig, grid = plt.subplots(1, 2, figsize=(figures.WIDTH, 2.7), sharey=True)
means = depths.groupby(["measured on", "calibrated on"]).error.mean()
for axes, measured in zip(grid, seen, strict=True):
    for calibrated, style, colour in zip(seen, ("-", "--"), ("#4477AA", "#228833"), strict=True):
        part = depths[(depths["measured on"] == measured) & (depths["calibrated on"] == calibrated)]
        axes.plot(part.block, part.error, f"o{style}", ms=4, color=colour, label=f"pruned with {calibrated}")
    axes.set(title=f"measured on {measured}", xlabel="block")
grid[0].set_ylabel("error of the output (%)")
handles, names = grid[0].get_legend_handles_labels()
fig.legend(handles, names, loc="lower center", ncol=2, frameon=False)
fig.tight_layout(rect=(0, 0.1, 1, 1))
told = "; ".join(f"measured on {m}, pruned with {c}: {e:.1f} %" for (m, c), e in means.items())
figures.show(
    fig,
    alt=f"Error of one layer per block under two calibration texts, measured on both. Means: {told}.",
    caption=f"Each text protects itself. Mean errors: {told}.",
    name="fig-depth",
)

# %% [markdown]
# ## 6. The whole model, in five lines
#
# The package does this for every layer, block after block, each on the outputs of the blocks pruned before it:

# %%
mix = dict.fromkeys((prose, program), 1)
text["both"] = igsp.mix(mix, lm.tokenizer, n=windows, seqlen=tokens)
models = {"dense": lm}
for name, calibration in text.items():
    models[name] = copy.copy(lm)
    models[name].model = copy.deepcopy(lm.model)
    report = igsp.prune(models[name], calibration, method="sparsegpt", sparsity=sparsity, progress=False)
    print(f"pruned with {name}: {100 * report.sparsity:.1f} % zeros")

# %% [markdown]
# ## 7. Where it hurts
#
# The loss of each token tells how surprised a model is. We wrote two short texts: a function and a paragraph. Dark tokens surprise.

# %%
function = """def area(width, height):
    if width < 0 or height < 0:
        raise ValueError("negative length")
    return width * height
"""
paragraph = """The river rises in the hills and flows south through the old town.
In spring it floods the meadows, and the farmers move their sheep to higher ground.
"""


def losses(one, words):
    """Loss of each token after the first, in nats, and the tokens."""
    ids = one.tokenizer(words, return_tensors="pt").input_ids
    with torch.inference_mode():
        found = one.model(ids).logits[0, :-1]
    loss = torch.nn.functional.cross_entropy(found, ids[0, 1:], reduction="none")
    names = one.tokenizer.convert_ids_to_tokens(ids[0, 1:].tolist())
    return loss, [n.replace("Ġ", "·").replace("Ċ", "⏎") for n in names]


# %%
means = {}
for label, words in (("function", function), ("paragraph", paragraph)):
    found = {name: losses(one, words) for name, one in models.items()}
    grid = np.array([loss.numpy() for loss, _ in found.values()])
    names = next(iter(found.values()))[1]
    means[label] = {name: float(loss.mean()) for name, (loss, _) in found.items()}
    fig, axes = plt.subplots(figsize=(figures.WIDTH * 1.25, 2.2))
    axes.imshow(grid, aspect="auto", cmap="Purples", vmin=0, vmax=8)
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    axes.set_yticks(range(len(found)), list(found))
    axes.grid(visible=False)
    fig.tight_layout()
    told = ", ".join(f"{name} {value:.2f}" for name, value in means[label].items())
    figures.show(
        fig,
        alt=f"Loss of each token of our {label} under the dense model and three pruned ones. Mean loss in nats: {told}.",
        caption=f"Loss by token of our {label}, dark = surprised. Mean loss in nats: {told}.",
        name=f"fig-loss-{label}",
    )

# %% [markdown]
# ## 8. What the pruned models write
#
# One prompt per capability, answered greedily: no chance is involved. The prompts were written before the answers were seen.

# %%
prompts = {
    "general": "The capital of France is",
    "commonsense": "If you drop a glass on a stone floor, it will",
    "code": "def add(a, b):\n    return",
    "math": "Tom has 3 apples and buys 4 more. Now he has",
}


def answer(one, prompt, length=14):
    """What the model writes after the prompt, always taking the likeliest token."""
    ids = one.tokenizer(prompt, return_tensors="pt").input_ids
    with torch.inference_mode():
        made = one.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=length, do_sample=False,
            pad_token_id=one.tokenizer.eos_token_id,
        )
    return one.tokenizer.decode(made[0, ids.shape[1] :]).replace("\n", " ⏎ ")


rows = [
    {"dimension": dimension, "prompt": prompt.replace("\n", " ⏎ ")}
    | {("dense" if name == "dense" else f"pruned with {name}"): answer(one, prompt) for name, one in models.items()}
    for dimension, prompt in prompts.items()
]
figures.show_table(pd.DataFrame(rows), "Before and after: four prompts, four models", name="tab-answers", classes="igsp-stack")

# %% [markdown]
# ## What to take along
#
# - A calibration set enters through one small matrix per layer. Nothing else of the text survives.
# - Other text gives other column sizes, and therefore other masks: some weights stay under one text and go under the other.
# - A layer keeps best what it was pruned with. A mix of both texts is the simplest way out.
#
# How much of a *capability* is kept needs an exam. `igsp.evaluate` scores a model and `igsp.retention` compares it with the dense
# one; the [next notebook](01-source-profiling.ipynb) begins there.
#
# ## Exercises
#
# - ★ Set `block` to 0 and to the last block. Where do the two texts differ most?
# - ★★ Write `magnitude(W, sparsity)`, which never looks at the text, and add its row to the table of section 4.
# - ★★★ In section 5 replace Wanda by `sparsegpt`. Does a text still protect itself, and by how much more?
