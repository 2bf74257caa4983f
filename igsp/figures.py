"""Seaborn figures for the notebooks. Every figure is shown with a computed alternative text and a caption."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import display
from markupsafe import Markup, escape
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from igsp.assets import catalog
from igsp.study.values import MINUS, NBSP, Value, interval, number, p_text

if TYPE_CHECKING:
    from igsp.scoring.retention import Estimate

DIMENSIONS = ("general", "commonsense", "code", "math")
WIDTH = 5.4  # inches; the book shows 100 CSS pixels per inch


def palette() -> dict[str, str]:
    """Colour by dimension (and `total`)."""
    return dict(catalog("palette")["dimensions"])


def markers() -> dict[str, str]:
    """Marker by dimension (and `total`): colour is never the only sign."""
    return dict(catalog("palette")["markers"])


def use_style() -> None:
    """Seaborn theme of the book: white ground, light grid, 10-point type."""
    sns.set_theme(
        style="whitegrid",
        context="notebook",
        font_scale=0.9,
        rc={
            "figure.facecolor": "white",
            "axes.titleweight": "bold",
            "axes.titlesize": 11,
            "axes.labelsize": 10.5,
            "xtick.labelsize": 10,
            "ytick.labelsize": 10,
            "legend.fontsize": 10,
            "grid.alpha": 0.5,
            "axes.edgecolor": "#888888",
        },
    )


def show(fig: Figure, alt: str, caption: str, name: str | None = None) -> None:
    """Displays a figure with its alternative text and caption, and closes it.

    Args:
        alt: plain text with computed values, 20 characters or more: what the figure shows.
        caption: one paragraph of Markdown that states the finding.
        name: label for cross references, `fig-...`.
    """
    if len(alt) < 20:
        raise ValueError(f"the alternative text must say what the figure shows, got '{alt}'")
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=200, bbox_inches="tight", facecolor="white", metadata={"Software": None})
    plt.close(fig)
    data = base64.b64encode(buffer.getvalue()).decode()
    width = round(fig.get_figwidth() * 100)
    display(
        {"image/png": data, "text/plain": f"Figure: {alt}"},
        raw=True,
        metadata={"image/png": {"width": width, "alt": alt}, "igsp": {"alt": alt, "caption": caption, "name": name}},
    )
    display(
        {"text/markdown": f"*{caption}*", "text/plain": caption},
        raw=True,
        metadata={"igsp": {"caption_of": name or "figure"}},
    )


def show_chart(chart: Any, alt: str, caption: str, name: str) -> None:
    """Displays an Altair chart as a still picture that a page of the book brings to life; arguments as for `show`."""
    import vl_convert

    spec = chart.to_dict()
    still = vl_convert.vegalite_to_svg(spec).replace('id="clip', f'id="{name}-clip').replace("#clip", f"#{name}-clip")
    data = json.dumps(spec, separators=(",", ":")).replace("<", "\\u003c")
    page = Markup(
        '<figure class="igsp-chart" id="{}"><div class="igsp-drawn" role="img" aria-label="{}">{}</div>'
        '<figcaption>{}</figcaption><script type="application/json">{}</script></figure>'
    ).format(name, alt, Markup(still), caption, Markup(data))
    show_html(page, f"Figure: {alt}", name)


def title(name: str) -> str:
    """A name as prose writes it: `sparsegpt` is `SparseGPT`; sources and others stay as they are."""
    return str(catalog("palette")["titles"].get(name, name))


def heading(name: str) -> str:
    """`title`, and dimensions with a capital; not for names of sources, one of which is `math`."""
    return name.capitalize() if name in (*DIMENSIONS, "total", "minimum") else title(name)


def show_table(frame: pd.DataFrame, caption: str, digits: int = 2, name: str = "", classes: str = "") -> None:
    """Displays a data frame as an accessible table with a caption.

    Floats have `digits` decimals, or fewer where these hold all of a column; an `Estimate` is a signed number with its
    interval; names are written by `title` and `heading`. `Html` goes in as it is, all other text is escaped.

    Args:
        name: label of the table, `tab-...`: a link can point to it, and other pages can show it.
        classes: further classes of the table; `igsp-stack` for tables of text.
    """
    columns = [(str(name), frame.iloc[:, place].tolist()) for place, name in enumerate(frame.columns)]
    cells = [_cells(name, values, digits) for name, values in columns]
    kinds = [' class="igsp-num"' * all(isinstance(v, int | float) for v in values) for _, values in columns]
    names = (heading(name) for name, _ in columns)
    heads = [escape(n[0].upper() + n[1:] if n[1:2].isalpha() else n) for n in names]
    head = "".join(f'<th scope="col"{kind}>{h}</th>' for kind, h in zip(kinds, heads, strict=True))
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>'
        + "".join(f"<td{kind}>{cell}</td>" for kind, cell in zip(kinds[1:], row[1:], strict=True)) + "</tr>"
        for row in zip(*cells, strict=True)
    )
    usual = "igsp-dense" if len(columns) > 6 else "igsp-narrow" if len(columns) < 4 else ""
    shape = f"igsp-table {classes or usual}".strip()
    label = f' id="{escape(name)}"' if name else ""
    table = (
        f'<table{label} class="{shape}"><caption>{escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    )
    show_html(table, frame.to_string(index=False), name)


def show_html(page: str, text: str, name: str = "") -> None:
    """Displays a piece of HTML, `text` where that is not possible; `name` is how other pages refer to it."""
    display({"text/html": str(page), "text/plain": text}, raw=True, metadata={"igsp": {"name": name}})


def show_text(text: str, name: str = "", tag: str = "p") -> None:
    """Displays a sentence, or with `tag="pre"` a listing, that other pages can show."""
    show_html(Markup("<{0}>{1}</{0}>").format(Markup(tag), text), text, name)


@dataclass(frozen=True)
class Html:
    """Markup that a table shows as it is; not a `str`, which pandas would turn into plain text."""

    text: Markup

    def __html__(self) -> str:
        return self.text

    def __str__(self) -> str:
        return self.text.striptags()


def code(text: str) -> Html:
    """`text` set as code in a table."""
    return Html(Markup("<code>{}</code>").format(text))


def badge(text: str, kind: str) -> Html:
    """A small label, coloured by `kind` (`holds`, `differs`, `untestable`, `stale`); the meaning is in the text."""
    return Html(Markup('<span class="igsp-badge igsp-{}">{}</span>').format(kind, text))


def _cells(name: str, values: list[object], digits: int) -> list[str]:
    """The values of one column as HTML."""
    known = [v for v in values if isinstance(v, float) and not np.isnan(v)]
    digits = min(digits, 1) if known and min(map(abs, known)) >= 100 else digits
    enough = next((d for d in range(digits) if all(round(v, d) == v for v in known)), digits)

    def text(value: Any) -> str:
        if hasattr(value, "low"):  # an Estimate; its module imports torch, which takes seconds
            told = interval(Value(value.value, value.low, value.high, digits=digits), signed=True)
            return told.replace(" to ", f"{NBSP}to{NBSP}")
        if isinstance(value, Html):
            return value.text
        if not isinstance(value, float):
            return (heading if name in ("dimension", "retention") else title)(str(value))
        return "" if np.isnan(value) else p_text(value) if name in ("p", "p_holm") else number(value, enough)

    return [str(escape(text(value))) for value in values]


def with_intervals(frame: pd.DataFrame) -> pd.DataFrame:
    """A table of rank correlations whose `rho` holds the interval, instead of columns `low` and `high`."""
    from igsp.scoring.retention import Estimate

    rho = [Estimate(*ends) for ends in zip(frame.rho, frame.low, frame.high, strict=True)]
    return frame.assign(rho=rho).drop(columns=["low", "high"])


def heatmap(frame: pd.DataFrame, label: str, center: float | None = None, fmt: str = ".0f") -> Figure:
    """Heatmap of a frame `[rows, columns]`: numbers in the cells up to ten columns, else a colour scale for `label`."""
    roomy = len(frame.columns) <= 10
    shown = frame.rename(columns=heading if roomy else title, index=title)
    fig, axes = plt.subplots(figsize=(WIDTH, 0.32 * len(frame) + 1.5))
    sns.heatmap(
        shown,
        annot=shown.map(lambda value: f"{value:{fmt}}".replace("-", MINUS)) if roomy else False,
        fmt="",
        cmap="vlag" if center is not None else "crest",
        center=center,
        linewidths=0.5,
        cbar=not roomy,
        cbar_kws={"label": label, "shrink": 0.8},
        ax=axes,
        annot_kws={"size": 10},
    )
    axes.set(xlabel="", ylabel="")
    if roomy:
        axes.set_title(label, fontsize=10, fontweight="normal")
    axes.grid(visible=False)
    axes.tick_params(axis="x", length=0)
    plt.setp(axes.get_xticklabels(), rotation=25 if roomy else 60, ha="right", rotation_mode="anchor")
    axes.tick_params(axis="y", rotation=0, length=0)
    fig.tight_layout()
    return fig


def rank_note(rho: float, p: float) -> str:
    """`ρ = +0.71, p = 0.003`, as a title."""
    return f"$\\rho$ = {number(rho, 2, signed=True)}, p {'' if p < 0.001 else '= '}{p_text(p)}"


def rank_scatter(x: pd.Series, retention: pd.DataFrame, notes: dict[str, str], xlabel: str, log: bool = True) -> Figure:
    """One small scatter per dimension, 2 x 2: a source per point, `notes[dimension]` (rho and p) as title."""
    colours, shapes = palette(), markers()
    fig, grid = plt.subplots(2, 2, figsize=(WIDTH, 5.2), sharex=True)
    for axes, dimension in zip(grid.flat, DIMENSIONS, strict=True):
        axes.scatter(
            x, retention[dimension], s=34, color=colours[dimension], marker=shapes[dimension], edgecolor="white"
        )
        axes.set_title(f"{dimension.capitalize()}\n{notes[dimension]}", color=colours[dimension])
        if log:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 4)))
            axes.xaxis.set_major_formatter(ScalarFormatter())
            axes.xaxis.set_minor_formatter(NullFormatter())
    fig.supxlabel(xlabel, fontsize=10.5)
    fig.supylabel("retention (%)", fontsize=10.5)
    fig.tight_layout()
    return fig


def bars(estimates: dict[str, dict[str, Estimate]], xlabel: str) -> Figure:
    """Dot plot with intervals: one row per strategy, one mark per dimension and the total."""
    colours, shapes = palette(), markers()
    keys = list(next(iter(estimates.values())))
    fig, axes = plt.subplots(figsize=(WIDTH, 0.62 * len(estimates) + 1.4))
    offsets = np.linspace(-0.3, 0.3, len(keys))
    for offset, key in zip(offsets, keys, strict=True):
        rows = [e[key] for e in estimates.values()]
        x = np.array([r.value for r in rows])
        error = np.array([[r.value - r.low, r.high - r.value] for r in rows]).T
        axes.errorbar(
            x,
            np.arange(len(rows)) + offset,
            xerr=np.maximum(error, 0),
            fmt=shapes[key],
            color=colours[key],
            ms=5.5,
            capsize=2,
            lw=1.2,
            label=key.capitalize(),
        )
    axes.set(yticks=range(len(estimates)), yticklabels=list(estimates), xlabel=xlabel)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    for edge in np.arange(0.5, len(estimates) - 1):
        axes.axhline(edge, color="#cccccc", lw=0.8)
    below = (1.0, -0.62 / fig.get_figheight())
    axes.legend(loc="upper right", bbox_to_anchor=below, ncol=5, frameon=False, handletextpad=0.1, columnspacing=0.8)
    fig.tight_layout()
    return fig


def intervals(frame: pd.DataFrame, xlabel: str, band: float | None = None) -> Figure:
    """Dot plot of estimates with intervals: a row per label, a colour and marker per series.

    Args:
        frame: columns `label`, `series`, `value`, `low`, `high`; labels, by `title`, in the order given.
        band: half the width of a grey band around zero.
    """
    labels, series = list(dict.fromkeys(frame.label)), sorted(set(frame.series))
    apart = 0.24 if frame.label.duplicated().any() else 0.0
    fig, axes = plt.subplots(figsize=(WIDTH, (0.3 + apart / 2) * len(labels) + 1.3))
    if band is not None:
        axes.axvspan(-band, band, color="#dddddd")
        axes.axvline(0, color="#888888", lw=0.8)
    for place, name in enumerate(series):
        rows = frame[frame.series == name]
        y = [labels.index(label) + apart * (place - (len(series) - 1) / 2) for label in rows.label]
        error = np.maximum([rows.value - rows.low, rows.high - rows.value], 0)
        colour, shape = ("#4477AA", "#AA3377", "#777777", "#CC8800")[place], "sDo^"[place]
        axes.errorbar(rows.value, y, xerr=error, fmt=shape, color=colour, ms=5.5, capsize=2, lw=1.2, label=name)
    axes.set(yticks=range(len(labels)), yticklabels=map(title, labels), xlabel=xlabel, ylim=(len(labels) - 0.4, -0.6))
    if len(series) > 1:
        axes.legend(loc="upper center", bbox_to_anchor=(0.4, -0.6 / fig.get_figheight()), ncol=3, frameon=False)
    fig.tight_layout()
    return fig


def distributions(frame: pd.DataFrame, labels: dict[str, str], hue: pd.Series) -> Figure:
    """Strip of every metric over the sources, standardised axis by axis, coloured by dimension."""
    colours, shapes = palette(), markers()
    fig, grid = plt.subplots(len(frame.columns), 1, figsize=(WIDTH, 1.1 * len(frame.columns) + 0.9))
    for axes, metric in zip(np.atleast_1d(grid), frame.columns, strict=True):
        for i, dimension in enumerate(DIMENSIONS):
            values = frame.loc[hue == dimension, metric]
            axes.scatter(
                values,
                np.full(len(values), -i),
                color=colours[dimension],
                marker=shapes[dimension],
                s=36,
                edgecolor="white",
                label=dimension.capitalize(),
            )
        axes.set(yticks=[], ylim=(-3.7, 0.7), ylabel="")
        axes.set_title(labels[metric], loc="left", fontsize=10, fontweight="normal")
    handles, names = np.atleast_1d(grid)[0].get_legend_handles_labels()
    fig.legend(handles, names, loc="lower center", ncol=4, frameon=False, handletextpad=0.2, columnspacing=1.0)
    fig.tight_layout(rect=(0, 0.45 / fig.get_figheight(), 1, 1))
    return fig


def spread_phrase(values: pd.Series) -> str:
    """`from 41 (stdlib) to 70 (recipes)`: the ends of a series with their labels, for alternative texts."""
    return f"from {values.min():.1f} ({values.idxmin()}) to {values.max():.1f} ({values.idxmax()})"


def phrase(items: Iterable[tuple[str, float]], fmt: str = "{:+.2f}") -> str:
    """`General +0.71, Code −0.59`: names with values, for captions and alternative texts."""
    return ", ".join(f"{heading(name)} {fmt.format(value).replace('-', MINUS)}" for name, value in items)
