"""Why the records say what they say: families of sources, what each measure shows, and what could have been seen."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from igsp.assets import whole_or_nothing
from igsp.scoring.correlation import spearman
from igsp.scoring.retention import Estimate, Luck, difference
from igsp.scoring.suites import BITS_PER_BYTE
from igsp.scoring.trivial import unigram
from igsp.study.analysis import LIKELIHOOD, gap, luck_of, spreads
from igsp.study.recorded import Reference, reference
from igsp.text.catalogue import DIMENSIONS, source


def record_unigram(profile: str, root: Path) -> Path:
    """Writes `unigram.json` beside a profile's records: `trivial.unigram` on the texts of its suite (needs them)."""
    s = reference(profile, root).settings
    with whole_or_nothing(root / "unigram.json") as path:
        path.write_text(json.dumps(unigram(s.suite, s.model).to_dict()) + "\n", encoding="utf8")
    return root / "unigram.json"


def families(names: Sequence[str]) -> pd.Series:
    """The family of each source: the dimension whose kind of text it is."""
    return pd.Series({name: source(name).dimension for name in names})


def r_squared(y: pd.Series, *predictors: pd.Series) -> float:
    """Share of the variance of `y` that a linear model of numbers and categories explains."""
    columns = [np.ones((len(y), 1))]
    for x in predictors:
        numeric = pd.api.types.is_numeric_dtype(x)
        columns.append(x.to_numpy(float)[:, None] if numeric else pd.get_dummies(x, drop_first=True).to_numpy(float))
    design = np.hstack(columns)
    rest = y - design @ np.linalg.lstsq(design, y.to_numpy(), rcond=None)[0]
    return float(1 - (rest**2).sum() / ((y - y.mean()) ** 2).sum())


def within(x: pd.Series, y: pd.Series, groups: pd.Series) -> tuple[float, float]:
    """Correlation of ranks within groups, and its exact p over all permutations inside the groups.

    Both are ranked over all points; ranks are then taken as distances to the mean rank of their group.
    """
    a, b = (v.rank() - v.rank().groupby(groups).transform("mean") for v in (x, y))
    sums = np.zeros(1)
    for _, names in groups.groupby(groups).groups.items():
        orders = _permutations(len(names))
        sums = np.add.outer(sums, b[names].to_numpy()[orders] @ a[names].to_numpy()).ravel()
    observed = float((a * b).sum())
    rho = observed / float(((a**2).sum() * (b**2).sum()) ** 0.5)
    return rho, float(np.mean(np.abs(sums) >= abs(observed) - 1e-9))


@functools.cache
def _permutations(n: int) -> np.ndarray:
    if n == 0:
        return np.zeros((1, 0), int)
    return np.concatenate([np.insert(_permutations(n - 1), i, n - 1, axis=1) for i in range(n)])


def family_table(run: Reference, method: str | None = None) -> pd.DataFrame:
    """What of the perplexity trade-off is left inside families, one row per dimension.

    Columns: shares of variance over the sources explained by `family`, by log `perplexity` and by `both`; `rho within`
    families and its exact `p`; `rho mismatch` and `share mismatch` of the distance of a source's tokens to held-out
    text of the same dimension (which is computed on exam text: it explains, it cannot select).
    """
    kept = run.by_draw(method).groupby("source").mean()
    about, kind = run.information.groupby("strategy").mean().loc[kept.index], families(list(kept.index))
    log = np.log(about.calibration_perplexity)
    rows = {}
    for d in DIMENSIONS:
        y, near = kept[d], about[f"mismatch_{d}"]
        rho, p = within(log, y, kind)
        rows[d] = {"family": r_squared(y, kind), "perplexity": r_squared(y, log), "both": r_squared(y, kind, log),
                   "rho within": rho, "p": p, "rho mismatch": spearman(near.to_numpy(), y.to_numpy()).rho,
                   "share mismatch": r_squared(y, near)}
    return pd.DataFrame(rows).T


def task_table(run: Reference, method: str | None = None) -> pd.DataFrame:
    """Spearman's rho of perplexity with likelihood retention task by task: a dimension is only what its tasks share."""
    known, rows = run.information.calibration_perplexity.groupby("strategy").mean(), []
    for task in (t for t in run.dense if t.metric == BITS_PER_BYTE):
        kept = {n: np.mean([100 * task.value / s[task.task].value for s in run.draws(n, method)])
                for n in run.settings.sources}
        found = spearman(known[list(kept)].to_numpy(), np.array(list(kept.values())))
        rows.append({"task": task.task, "dimension": task.dimension, **vars(found)})
    return pd.DataFrame(rows)


def by_measure(
    run: Reference, pairs: Sequence[tuple[str, str, float]], method: str | None = None
) -> pd.DataFrame:
    """Differences of strategies in total under every measure of likelihood, and whether all of them agree.

    Args:
        pairs: strategy, rival, sparsity.

    Returns:
        One row per pair: an `Estimate` a measure, in points (`excess`: bits per byte, less is better), and `agree`.
    """
    rows = []
    for a, b, sparsity in pairs:
        found = {m: gap(run, a, b, method, sparsity, m)[0]["total"] for m in LIKELIHOOD}
        sides = {m: (-1 if m == "excess" else 1) * (int(e.low > 0) - int(e.high < 0)) for m, e in found.items()}
        agree = "yes" if len(set(sides.values())) == 1 else "no"
        rows.append({"difference": f"{a} minus {b}", "sparsity": sparsity, **found, "agree": agree})
    return pd.DataFrame(rows)


def spread_table(run: Reference, method: str | None = None) -> pd.DataFrame:
    """Range over the sources by dimension (and total) under every measure of likelihood: a column of estimates each."""
    return pd.DataFrame({measure: spreads(run, method, measure) for measure in LIKELIHOOD})


def equivalence(
    run: Reference, a: str, b: str, margin: float, method: str | None = None
) -> tuple[Estimate, bool]:
    """The difference of two strategies in total with its 90 % interval, and whether that lies within +-`margin` points.

    Two one-sided tests at 5 % (TOST, Schuirmann 1987).
    """
    one, other = run.draws(a, method), run.draws(b, method)
    found = difference(one, other, run.dense, luck=luck_of(run, a, b, method), level=0.9)["total"]
    return found, -margin < found.low and found.high < margin


def detectable(luck: Luck, items: float, draws: int, power: float = 0.8) -> float:
    """Smallest true difference, in points, that a test at 5 % (two-sided) finds with that power.

    Args:
        luck: spread of one difference between draws.
        items: standard error that the items give the difference.
    """
    drawn = luck.sd**2 / draws
    error = (drawn + items**2) ** 0.5
    df = luck.df * ((drawn + items**2) / drawn) ** 2 if drawn else np.inf
    return float((stats.t.ppf(0.975, df) + stats.t.ppf(power, df)) * error)


def detectable_table(run: Reference, draws: Sequence[int] = (3, 5, 10, 20), method: str | None = None) -> pd.DataFrame:
    """`detectable` differences in total, by kind of comparison: two mixes or sources, two self-written, one pool."""
    kinds = {"real text": ("uniform", run.settings.web), "self-written": ("igsp", "self-cal"),
             "choices from one pool": ("igsp", "pool-random")}
    rows = []
    for kind, (a, b) in kinds.items():
        luck = luck_of(run, a, b, method)
        still: Mapping[str, Luck] = {name: Luck(0.0, 1.0) for name in luck}
        if not luck or not (found := gap(run, a, b, method, luck=still)[0]):
            continue
        items = (found["total"].high - found["total"].low) / 2 / float(stats.norm.ppf(0.975))
        rows.append({"comparison": kind, "sd of a difference": luck["total"].sd, "sd by items": items,
                     **{f"{n} draws": detectable(luck["total"], items, n) for n in draws}})
    return pd.DataFrame(rows)


def noise_shares(run: Reference, method: str | None = None) -> pd.DataFrame:
    """What makes a source's total uncertain: its draws, the items, or the tasks (crossed variance components).

    Percent kept of each piece, `y[source, draw, task, piece]`; draws lie within sources, pieces within tasks, tasks
    within dimensions, and all but the draws are crossed with the sources. Components by equating mean squares
    (negative: 0).

    Returns:
        Per component: `sd` in points of a piece, `variance` that it gives the total of one source over its draws, and
        `share` of their sum. *Task* is how differently the tasks of one dimension see the sources.
    """
    tasks = [t for t in run.dense if t.metric == BITS_PER_BYTE]
    full = {t.task: np.array(t.items)[:, 0] for t in tasks}
    y = np.array([[[100 * full[t.task] / np.array(s[t.task].items)[:, 0] for t in tasks] for s in run.draws(n, method)]
                  for n in run.settings.sources])
    sources, draws, count, pieces = y.shape
    same = np.equal.outer(kinds := [t.dimension for t in tasks], kinds).astype(float)
    mean = same / same.sum(0)  # of the tasks of one dimension
    groups = len(set(kinds))
    by_task, by_piece = y.mean(3), y.mean(1)  # [source, draw, task], [source, task, piece]
    rest = y - by_task[..., None] - by_piece[:, None] + by_piece.mean(2)[:, None, :, None]
    residual = (rest**2).sum() / (sources * (draws - 1) * count * (pieces - 1))
    moved = by_task - by_task.mean(1, keepdims=True)
    draw_task = ((moved - moved @ mean) ** 2).sum() / (sources * (draws - 1) * (count - groups)) - residual / pieces
    draw = (moved.mean(2) ** 2).sum() / (sources * (draws - 1)) - draw_task / count - residual / count / pieces
    seen = by_piece - by_piece.mean(2, keepdims=True)
    item = ((seen - seen.mean(0)) ** 2).sum() / ((sources - 1) * count * (pieces - 1)) - residual / draws
    kept = by_task.mean(1) - by_task.mean((0, 1))
    task = ((kept - kept @ mean) ** 2).sum() / ((sources - 1) * (count - groups))
    task -= item / pieces + draw_task / draws + residual / draws / pieces
    variances = {"draw": (draw, draws), "draw by task": (draw_task, draws * count), "item": (item, count * pieces),
                 "task": (task, count), "rest": (residual, draws * count * pieces)}
    table = pd.DataFrame({name: {"sd": max(v, 0) ** 0.5, "variance": max(v, 0) / n}
                          for name, (v, n) in variances.items()}).T
    return table.assign(share=table.variance / table.variance.sum())
