"""Retention over mixes of sources: what `igsp advise` measured, and an interpolation between the measured mixes."""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

import numpy as np
from docutils import nodes

from igsp.errors import AssetError
from igsp.study.values import number
from igsp_book.base import BookDirective, results_folder
from igsp_book.explorer import to_json
from igsp_book.tables import folded, table, titled

FORMS = {
    "quadratic": "a quadratic mixture polynomial (Scheffé)",
    "linear": "a linear mixture polynomial (Scheffé)",
    "nearest": "the nearest measured mix",
}


@dataclass(frozen=True)
class Surface:
    """Retention as a function of shares.

    Attributes:
        form: key of `FORMS`.
        coefficients: by dimension, in points, in the order of `terms`; empty for `nearest`.
        error: by dimension, root mean square of the leave-one-out errors in points.
    """

    form: str
    coefficients: dict[str, list[float]]
    error: dict[str, float]


def terms(shares: np.ndarray, form: str) -> np.ndarray:
    """Columns of Scheffé's mixture polynomials (1958) at shares `[n, k]`: the shares, then products of pairs.

    There is no constant, because shares sum to 1.
    """
    pairs = itertools.combinations(shares.T, 2) if form == "quadratic" else ()
    return np.column_stack([shares, *(a * b for a, b in pairs)])


def left_out(shares: np.ndarray, kept: np.ndarray, form: str) -> np.ndarray | None:
    """Errors `[n, d]` at each mix of the fit to all others; None if these do not determine the fit."""
    if form == "nearest":
        apart = np.linalg.norm(shares[:, None] - shares[None], axis=2) + np.diag(np.full(len(shares), np.inf))
        return np.asarray(kept - kept[apart.argmin(1)])
    x = terms(shares, form)
    leverage = np.einsum("ij,ji->i", x, np.linalg.pinv(x))
    if np.linalg.matrix_rank(x) < x.shape[1] or leverage.max() > 1 - 1e-9:
        return None
    return np.asarray((kept - x @ np.linalg.pinv(x) @ kept) / (1 - leverage)[:, None])


def fit(shares: np.ndarray, kept: np.ndarray, dimensions: list[str]) -> Surface:
    """The form of `FORMS` with the smallest leave-one-out error over retention `[n, d]` at shares `[n, k]`."""
    tried = {form: left_out(shares, kept, form) for form in FORMS}
    errors = {form: np.sqrt((found**2).mean(0)) for form, found in tried.items() if found is not None}
    form = min(errors, key=lambda name: float(np.linalg.norm(errors[name])))
    solved = [] if form == "nearest" else np.linalg.lstsq(terms(shares, form), kept, rcond=None)[0].T.tolist()
    error = dict(zip(dimensions, errors[form].tolist(), strict=True))
    return Surface(form, dict(zip(dimensions, solved, strict=False)), error)


class MixExplorer(BookDirective):
    """For each file of `book/results/advice`: a slider per source of the mix, and a table of all measured mixes.

    Without such a file nothing, not even a heading. Without JavaScript the table alone.
    """

    def build(self) -> list[nodes.Node]:
        self.env.metadata[self.env.docname] |= {"igsp_reads_results": True, "igsp_explorer": True}
        result: list[nodes.Node] = []
        for path in sorted((results_folder(self.env) / "advice").glob("*.json")):
            try:
                result.append(self._panel(path.stem, json.loads(path.read_text(encoding="utf8"))))
            except (KeyError, ValueError, TypeError) as error:
                raise AssetError(f"{path.name} is no advice ({error!r}): write it again with `igsp advise`") from None
        return result

    def _panel(self, name: str, advice: dict[str, Any]) -> nodes.section:
        trials, about = advice["trials"], advice["settings"]
        data, amount = measured(trials), about.get("pattern") or f"{100 * about['sparsity']:g} %"
        section = nodes.section("", nodes.title("", f"Mixes for {titled(name)}"), ids=[f"mixes-{nodes.make_id(name)}"])
        section += nodes.paragraph(
            "", "Each slider is the number of calibration windows from one source; the shares follow from the numbers. "
            f"{len(trials)} mixes were measured ({titled(about['method'])} {amount}, "
            f"{about['n']} × {about['seqlen']} tokens). One of these shows its measured retention. Any other mix shows "
            f"{FORMS[data['form']]}, the form with the smallest leave-one-out error here; ± is that error.")
        section += nodes.raw("", html(about["n"], data), format="html")
        rows = [[str(index), *(f"{100 * share:.1f}" for share in mix["shares"]), *(f"{v:.2f}" for v in mix["kept"]),
                 number(trial["gain"]["value"], 2, signed=True)]
                for index, (mix, trial) in enumerate(zip(data["trials"], trials, strict=True), 1)]
        headings = ["Mix", *(f"{s}, %" for s in data["sources"]), *(d.capitalize() for d in data["dimensions"]), "Gain"]
        caption = "Shares and retention in percent, gain over equal parts (mix 1) on the asked dimensions in points."
        section += folded(f"The {len(rows)} measured mixes", table(headings, rows, caption, classes="igsp-dense"))
        return section


def measured(trials: list[dict[str, Any]]) -> dict[str, Any]:
    """What the sliders need: sources, dimensions, shares and retention of each trial, and the fitted surface."""
    sources, dimensions = list(trials[0]["weights"]), list(trials[0]["retention"])
    shares = [[trial["weights"][s] for s in sources] for trial in trials]
    kept = [[trial["retention"][d] for d in dimensions] for trial in trials]
    mixes = [{"shares": s, "kept": k} for s, k in zip(shares, kept, strict=True)]
    surface = fit(np.array(shares), np.array(kept), dimensions)
    return {"sources": sources, "dimensions": dimensions, "trials": mixes, **asdict(surface)}


def html(n: int, data: dict[str, Any]) -> str:
    """The panel: sliders, a row per dimension that the script fills, and the data; hidden until the script runs."""
    sliders = "".join(
        f'<label>{escape(source)}<input type="range" min="0" max="{n}" value="{round(share * n)}">'
        '<span aria-hidden="true"></span></label>'
        for source, share in zip(data["sources"], data["trials"][0]["shares"], strict=True)
    )
    rows = "".join(f'<tr><th scope="row">{d.capitalize()}</th><td></td><td></td></tr>' for d in data["dimensions"])
    return (
        f'<div class="igsp-explorer igsp-mixes" hidden><form onsubmit="return false">{sliders}</form>'
        f'<table class="table igsp-table igsp-dense"><caption>Retention of the chosen mix</caption>'
        f'<thead><tr><th scope="col">Dimension</th><th scope="col">Retention, %</th>'
        f'<th scope="col">Against equal parts, points</th></tr></thead><tbody>{rows}</tbody></table>'
        '<p data-summary aria-live="polite"></p>'
        f'<script type="application/json">{to_json(data)}</script></div>'
    )
