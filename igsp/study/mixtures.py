"""Retention over mixes of sources: an interpolation between the mixes that `igsp advise` measured (Scheffé, 1958)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from igsp.errors import AssetError

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


def terms_as_text(shares: Sequence[str], form: str) -> list[str]:
    """The columns of `terms` as expressions over named shares; none for `nearest`.

    >>> terms_as_text(["a", "b"], "quadratic")
    ['a', 'b', 'a * b']
    """
    if form == "nearest":
        return []
    pairs = itertools.combinations(shares, 2) if form == "quadratic" else ()
    return [*shares, *(f"{a} * {b}" for a, b in pairs)]


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


def measured(trials: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of the trials of an advice: sources, dimensions, shares and retention of each, and the fitted `Surface`.

    Raises:
        AssetError: these are no trials of an advice.
    """
    try:
        sources, dimensions = list(trials[0]["weights"]), list(trials[0]["retention"])
        shares = [[trial["weights"][s] for s in sources] for trial in trials]
        kept = [[trial["retention"][d] for d in dimensions] for trial in trials]
    except (LookupError, TypeError) as error:
        raise AssetError(f"this is no advice ({error!r}): write it again with `igsp advise`") from None
    mixes = [{"shares": s, "kept": k} for s, k in zip(shares, kept, strict=True)]
    surface = fit(np.array(shares), np.array(kept), dimensions)
    return {"sources": sources, "dimensions": dimensions, "trials": mixes, **asdict(surface)}
