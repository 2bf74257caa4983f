"""Advice: the mix of sources that keeps what matters of one model.

*Search.* Input statistics of the dense model add up over sources, so any mix is pruned from stored statistics without a
forward pass (`order="dense"`) and scored on one half of the suite's items. Up to two thirds of the trials are a
simplex-centroid design (Scheffe 1963, J. R. Stat. Soc. B 25:235): equal shares of all sources, of each one, of each
pair, and so on. They span the simplex, so that mixes in between can be interpolated. The others climb from the best so
far. *Confirm.* The best mix found and the uniform one are pruned in `block` order with other windows, and compared on
the other half. The winner of a search looks better than it is on the items that chose it; only the comparison on the
other half counts. Documents that contain an item of the suite are left out of all windows.
"""

from __future__ import annotations

import copy
import functools
import importlib.util
import json
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from tqdm import tqdm

from igsp import pruning, scoring, text
from igsp.assets import cache_dir, output_path, whole_or_nothing
from igsp.errors import UnknownName, UsageError
from igsp.models import LanguageModel
from igsp.provenance import provenance
from igsp.pruning.driver import DEFAULT_SPARSITY, Statistics, collect_statistics, combine, prune
from igsp.pruning.solvers import NEEDS, solver
from igsp.scoring.contamination import contaminated
from igsp.scoring.evaluation import Scores, evaluate, suite_sha256
from igsp.scoring.retention import Estimate, Luck, difference, plain, pooled_luck, retention
from igsp.scoring.suites import BITS_PER_BYTE, load_suite
from igsp.study.analysis import verdict
from igsp.study.records import Record, Store
from igsp.study.simplex import Trial, Weights, climb
from igsp.text.catalogue import source
from igsp.text.windows import CalibrationSet, mix, sample

SEARCH, CONFIRM = (0, 2), (1, 2)  # even and odd items of every task
MIN_DRAWS = 3  # fewer decide nothing


@dataclass(frozen=True)
class Advice:
    """What `advise` found.

    Attributes:
        weights: the recommended mix, shares by source: `best` if it was confirmed, else the uniform one.
        best: the mix that won the search.
        confirmed: whether `best` beats the uniform mix on the asked mean beyond the luck of the draw (`beats`).
        gain: `best` minus uniform in points of retention, by dimension; `total` is the asked mean.
        noise_floor: standard deviation of a mix's asked mean between draws, in points, pooled over both mixes; None for
            one draw.
        compared: retention of both mixes by dimension, with intervals.
        keep: the asked weights.  trials: every mix of the search, the uniform one first.
        settings: everything else the advice depends on.
    """

    weights: Weights
    best: Weights
    confirmed: bool
    gain: dict[str, Estimate]
    noise_floor: float | None
    compared: dict[str, dict[str, Estimate]]
    keep: Weights
    trials: tuple[Trial, ...]
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """What is recommended and why, and what it costs on each dimension that loses for sure."""
        gain = f"{self.gain['total']} points on the asked dimensions"
        if self.noise_floor is not None:
            gain += f", noise floor {self.noise_floor:.1f}"
        if self.best == self.trials[0].weights:
            return "The search found no mix better than the uniform one: use the uniform mix."
        if self.confirmed:
            return f"Use the optimised mix: on other items it beats the uniform one by {gain}. {self.price}"
        few = f", of {self.settings['draws']} draws where {MIN_DRAWS} are needed"
        return (f"Use the uniform mix: the optimised one does not beat it beyond the noise on other items ({gain}"
                f"{few if self.settings['draws'] < MIN_DRAWS else ''}).")

    @property
    def price(self) -> str:
        """The dimensions on which `best` lies below the uniform mix, the asked ones first, in one sentence."""
        lost = [name for name, e in self.gain.items() if name != "total" and e.high < 0]
        lost.sort(key=lambda name: name not in self.keep)
        told = [f"{name} ({'asked' if name in self.keep else 'not asked'}) {self.gain[name]}" for name in lost]
        return f"It costs: {', '.join(told)} points." if told else "No dimension pays for it beyond its interval."

    def rows(self) -> list[dict[str, Any]]:
        """The trials as table rows: shares, retention by dimension, asked mean and gain, rounded."""
        return [
            {**{f"share {s}": round(w, 3) for s, w in t.weights.items()},
             **{d: round(v, 2) for d, v in t.retention.items()}, "asked": round(t.asked, 2), "gain": str(t.gain)}
            for t in self.trials
        ]

    def to_json(self) -> str:
        """The verdict and everything behind it."""
        return json.dumps({"verdict": self.verdict, **asdict(self)}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Advice:
        """The inverse of `to_json`.

        Raises:
            UsageError: the text is no advice.
        """
        try:
            plain = json.loads(text)
            del plain["verdict"]
            plain["gain"] = _estimates(plain["gain"])
            plain["compared"] = {name: _estimates(found) for name, found in plain["compared"].items()}
            plain["trials"] = tuple(Trial(**{**t, "gain": Estimate(**t["gain"])}) for t in plain["trials"])
            return cls(**plain)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(f"this is no advice.json of `igsp advise` ({error}): run it again") from None

    def save(self, folder: str | Path) -> Path:
        """Writes `mix.yaml` (for `igsp prune --mix`), `advice.json` and, where seaborn is installed, `advice.png`.

        Raises:
            UsageError: the folder exists.
        """
        folder = Path(folder)
        output_path(folder, empty_folder=True)
        head = f"# {self.verdict}\n# Use: igsp prune --mix {folder.name}/mix.yaml\n"
        text = yaml.safe_dump({"weights": {name: round(w, 4) for name, w in self.weights.items()}}, sort_keys=False)
        if importlib.util.find_spec("seaborn"):
            with whole_or_nothing(folder / "advice.png") as path:
                picture(self).savefig(path, format="png", dpi=160, bbox_inches="tight")
        with whole_or_nothing(folder / "advice.json") as path:
            path.write_text(self.to_json(), encoding="utf8")
        with whole_or_nothing(folder / "mix.yaml") as path:
            path.write_text(head + text, encoding="utf8")
        return folder


def _estimates(plain: Mapping[str, Any]) -> dict[str, Estimate]:
    return {name: Estimate(**values) for name, values in plain.items()}


def advise(
    lm: LanguageModel, keep: Mapping[str, float], sources: Sequence[str], suite: str | Path = "quick",
    method: str = "sparsegpt", sparsity: float = DEFAULT_SPARSITY, pattern: str | None = None, n: int = 128,
    seqlen: int = 2048, draws: int = MIN_DRAWS, trials: int = 20, seed: int = 0, progress: bool = True,
) -> Advice:
    """Searches the mix of `sources` that keeps the dimensions in `keep`, and says whether it beats the uniform mix.

    The value of a mix is the mean retention of the asked dimensions, weighted by `keep`; dimensions that are not
    named count nothing (they are measured all the same, so that their price shows). For the search see the module. The
    best mix counts as better only by the ledger's rule (`beats`): the 95 % interval of the paired difference above 0,
    and the difference above twice what the luck of at least 3 draws gives it. Finished prunings are kept in the cache.

    Args:
        keep: weight by dimension, such as `{"code": 2, "math": 1}`.
        sources: at least two sources of the catalogue.
        suite: its tasks in bits per byte where all asked dimensions have one, else its other tasks.
        n, seqlen: windows of a mix and tokens per window; the search takes as many windows of every source.
        draws: pairs of calibration sets for the confirmation.
        trials: most mixes to search.

    Raises:
        UnknownName: no such dimension in the suite, source or method.
        UsageError: fewer than two sources, weights that sum to nothing, a method without statistics.
    """
    solver(method)
    if NEEDS[method] == "nothing":
        raise UsageError(f"method '{method}' uses no calibration data, so no mix is better than another")
    if len(set(sources)) < 2 or len(set(sources)) < len(sources):
        raise UsageError(f"a mix needs at least two different sources, got {', '.join(sources) or 'none'}")
    for name in sources:
        source(name)
    keep, measure, tasks = asked(keep, suite)
    amount: dict[str, Any] = {"pattern": pattern} if pattern else {"sparsity": sparsity}
    settings = {"method": method, **amount, "n": n, "seqlen": seqlen}
    bench = Bench(lm, suite, tasks, settings, seed + draws)
    uniform = {name: 1 / len(sources) for name in sorted(sources, key=lambda s: -keep.get(source(s).dimension, 0))}
    if n < len(sources):
        raise UsageError(f"{len(sources)} sources need at least as many windows, got n={n}")
    if trials < 1 or draws < 1:
        raise UsageError(f"trials and draws must be at least 1, got {trials} and {draws}")
    with tqdm(total=trials + 2 * draws, desc="prunings", disable=not progress) as bar:
        found = _search(bench, keep, measure, uniform, trials, bar)
        best = max(found, key=lambda trial: trial.asked).weights
        uniform = found[0].weights
        a, b = ([bench.confirm(weights, seed + draw, bar) for draw in range(draws)] for weights in (best, uniform))
    dense = bench.dense(CONFIRM)
    luck = _luck({"optimised": a, "uniform": b}, dense, measure, keep)
    gain = difference(a, b, dense, measure, weights=keep, luck={name: one.twice() for name, one in luck.items()})
    floor = luck["total"].sd if luck else None
    confirmed = beats(gain["total"], floor, draws)
    compared = {name: retention(s, dense, measure).dimensions for name, s in (("optimised", a), ("uniform", b))}
    settings |= {"model": lm.name, "fingerprint": lm.fingerprint, "suite": str(suite), "measure": measure,
                 "draws": draws, "seed": seed, "order": {"search": "dense", "confirm": "block"}}
    return Advice(best if confirmed else uniform, best, confirmed, gain, floor, compared, keep, tuple(found), settings)


def asked(keep: Mapping[str, float], suite: str | Path) -> tuple[Weights, str, list[str]]:
    """Checked weights by dimension (sum 1), the measure that covers them, and the suite's tasks of that measure."""
    every = load_suite(suite).tasks
    if not keep or not all(np.isfinite(w) and w >= 0 for w in keep.values()) or sum(keep.values()) <= 0:
        raise UsageError(f"what to keep must have weights that are not negative and not all zero, got {dict(keep)}")
    for name in keep:
        if name not in {task.dimension for task in every}:
            raise UnknownName(f"dimension of suite '{suite}':", name, {task.dimension for task in every})
    by_measure = {"likelihood": [t for t in every if t.metric == BITS_PER_BYTE],
                  "accuracy": [t for t in every if t.metric != BITS_PER_BYTE]}
    for measure, tasks in by_measure.items():
        if set(keep) <= {task.dimension for task in tasks}:
            total = sum(keep.values())
            return {name: w / total for name, w in keep.items()}, measure, [task.task for task in tasks]
    raise UsageError(f"suite '{suite}' has no one measure of {', '.join(keep)}: give each a task in bits per byte")


def _luck(
    mixes: Mapping[str, Sequence[Scores]], dense: Scores, measure: str, keep: Mapping[str, float]
) -> dict[str, Luck]:
    """Spread between the draws of a mix, pooled over the mixes, by dimension and `total`, the asked mean."""
    rows = {}
    for name, scores in mixes.items():
        for draw, one in enumerate(scores):
            kept = plain(one, dense, measure)
            rows[name, draw] = {**kept, "total": sum(kept[name] * weight for name, weight in keep.items())}
    return pooled_luck(pd.DataFrame(rows).T)


def beats(gain: Estimate, noise_floor: float | None, draws: int) -> bool:
    """Whether a paired gain counts: its 95 % interval above 0, itself above twice what the draws give it, enough draws.

    >>> beats(Estimate(2.0, 0.5, 3.0), 1.0, 3), beats(Estimate(1.5, 0.5, 2.5), 1.0, 3)
    (True, False)
    """
    if noise_floor is None or draws < MIN_DRAWS:
        return False
    return verdict(gain, noise_floor * (2 / draws) ** 0.5) == "ahead"


def mean_asked(kept: Mapping[str, Estimate], keep: Mapping[str, float]) -> float:
    """Mean retention of the asked dimensions, weighted."""
    return sum(kept[name].value * weight for name, weight in keep.items())


def _search(
    bench: Bench, keep: Weights, measure: str, uniform: Weights, budget: int, bar: Any
) -> list[Trial]:
    dense = bench.dense(SEARCH)
    start = bench.search(uniform, bar)

    def trial(weights: Weights) -> Trial:
        scores = bench.search(weights, bar)
        kept = retention(scores, dense, measure).dimensions
        gain = difference(scores, start, dense, measure, weights=keep)["total"]
        return Trial(weights, {d: e.value for d, e in kept.items()}, mean_asked(kept, keep), gain)

    return climb(trial, uniform, bench.settings["n"], budget)


class Bench:
    """Prunes copies of one model and scores them on one part of a suite; finished work is kept in the cache."""

    def __init__(
        self, lm: LanguageModel, suite: str | Path, tasks: Sequence[str], settings: dict[str, Any], search_draw: int
    ) -> None:
        self.lm, self.suite, self.tasks, self.settings, self.search_draw = lm, suite, tasks, settings, search_draw
        self.store = Store(cache_dir() / "advise")
        self.windows = functools.cache(self._windows)
        self.statistics = functools.cache(self._statistics)

    def _windows(self, name: str) -> CalibrationSet:
        without = contaminated(name, self.suite)
        return sample(name, self.lm.tokenizer, self.settings["n"], self.settings["seqlen"], self.search_draw, without)

    def _statistics(self, name: str) -> Statistics:
        return collect_statistics(self.lm, self.windows(name), NEEDS[self.settings["method"]] == "gram", progress=False)

    def dense(self, part: tuple[int, int]) -> Scores:
        """Scores of the dense model."""
        return self._once({}, part, lambda: self.lm)

    def search(self, weights: Weights, bar: Any) -> Scores:
        """Scores of a mix, pruned from stored statistics, on the items of the search."""
        bar.set_postfix_str("search")
        spec = {"weights": weights, "windows": [self.windows(name).sha256 for name in weights]}

        def pruned() -> LanguageModel:
            found = {name: self.statistics(name) for name in weights}
            return self._pruned(None, statistics=combine(found, weights))

        return self._counted(spec, SEARCH, pruned, bar)

    def confirm(self, weights: Weights, draw: int, bar: Any) -> Scores:
        """Scores of a mix, pruned in block order, on the items of the confirmation."""
        bar.set_postfix_str("confirm")
        without = {name: contaminated(name, self.suite) for name in weights}
        calibration = mix(weights, self.lm.tokenizer, self.settings["n"], self.settings["seqlen"], draw, without)
        return self._counted({"calibration": calibration.sha256}, CONFIRM, lambda: self._pruned(calibration), bar)

    def _pruned(self, calibration: CalibrationSet | None, **options: Any) -> LanguageModel:
        settings = {key: value for key, value in self.settings.items() if key not in ("n", "seqlen")}
        lm = copy.copy(self.lm)
        lm.model = copy.deepcopy(self.lm.model)
        prune(lm, calibration, **settings, **options, progress=False)
        return lm

    def _counted(self, spec: dict[str, Any], part: tuple[int, int], make: Callable[[], Any], bar: Any) -> Scores:
        scores = self._once({**spec, **self.settings}, part, make)
        bar.update()
        return scores

    def _once(self, spec: dict[str, Any], part: tuple[int, int], make: Callable[[], LanguageModel]) -> Scores:
        spec = {**spec, "suite": suite_sha256(self.suite), "tasks": list(self.tasks), "part": list(part),
                "model": self.lm.fingerprint, "device": self.lm.device.type, "dtype": str(self.lm.dtype),
                "versions": {"text": text.VERSION, "pruning": pruning.VERSION, "scoring": scoring.VERSION}}
        record = self.store.get(spec)
        if record is None:
            scores = evaluate(make(), self.suite, self.tasks, progress=False, part=part)
            self.store.put(Record(spec, {"scores": scores.to_dict()}, provenance()))
            record = self.store.get(spec)  # as it will be read from now on
        return Scores.from_dict(record.metrics["scores"])  # type: ignore[union-attr]


def picture(advice: Advice) -> Any:
    """Left: retention of each dimension against the share of its own sources. Right: the asked mean against the rest.

    Small points are the mixes of the search (dense order) with the interval of their gain over the uniform mix; the two
    large ones are the confirmation (block order), each with its own interval.
    """
    import matplotlib.pyplot as plt

    from igsp.figures import markers, palette, use_style

    use_style()
    colours, shapes = palette(), markers()
    fig, (left, right) = plt.subplots(1, 2, figsize=(8.5, 4.6))
    for dimension in advice.trials[0].retention:
        own = [sum(w for s, w in t.weights.items() if source(s).dimension == dimension) for t in advice.trials]
        kept = [t.retention[dimension] for t in advice.trials]
        style = {"color": colours.get(dimension), "marker": shapes.get(dimension)}
        left.scatter([100 * share for share in own], kept, s=28, label=dimension.capitalize(), **style)
    left.set(xlabel="share of the dimension's own sources (%)", ylabel="retention (%)", title="What a share buys")
    left.legend(loc="upper center", ncol=4, frameon=False, fontsize=8.5, columnspacing=0.6, handletextpad=0.1)
    left.margins(y=0.15)
    others = [d for d in advice.trials[0].retention if d not in advice.keep]
    x = np.array([t.asked for t in advice.trials])
    y = np.array([_rest(t.retention, others) for t in advice.trials])
    gains = [t.gain for t in advice.trials]
    paired = np.maximum([[g.value - g.low for g in gains], [g.high - g.value for g in gains]], 0)
    right.errorbar(x, y, xerr=paired, fmt="o", ms=5, color="#777777", elinewidth=0.8, label="mixes of the search")
    front = sorted((x[i], y[i]) for i in range(len(x)) if not ((x > x[i]) & (y > y[i])).any())
    right.plot(*zip(*front, strict=True), color="#777777", lw=1, label="frontier")
    for (name, found), shape in zip(advice.compared.items(), "so", strict=True):
        values = {d: e.value for d, e in found.items()}
        low, high = (sum(getattr(found[d], end) * w for d, w in advice.keep.items()) for end in ("low", "high"))
        centre = mean_asked(found, advice.keep)
        right.errorbar(centre, _rest(values, others), xerr=[[max(centre - low, 0)], [max(high - centre, 0)]],
                       fmt=shape, ms=8, capsize=3, label=f"{name} (block order, other items)")
    right.set(xlabel="asked dimensions, weighted mean (%)", title="The price",
              ylabel="mean of the other dimensions (%)" if others else "smallest dimension (%)")
    fig.legend(*right.get_legend_handles_labels(), loc="lower center", ncol=2, frameon=False)
    fig.suptitle(textwrap.fill(advice.verdict, 95), fontsize=9.5)
    fig.tight_layout(rect=(0, 0.12, 1, 1))
    return fig


def _rest(kept: Mapping[str, float], others: Sequence[str]) -> float:
    return float(np.mean([kept[d] for d in others])) if others else min(kept.values())
