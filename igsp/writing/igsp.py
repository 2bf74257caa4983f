"""IGSP, information-guided self-calibration: the model writes candidates, two measures choose among them.

The paper names the goal (minimise 4-gram aggregation, balance perplexity across dimensions, no
capability-aligned corpora); its steps were not found. Everything below is our definition:

1. Pools. The model writes candidate windows from BOS alone and from short generic stems for each dimension.
2. Screen. Inside each pool the fifth with the highest perplexity is dropped, then windows that are loops.
3. Choice. Greedy, one window at a time, the next one always for the dimension furthest below its quota. It takes
   the candidate c with the smallest

       A(S + c) / sigma_A  +  lam * D(S + c) / sigma_D

   where A = 1 - distinct / total n-grams of the windows chosen, D the standard deviation over dimensions of the
   mean log-perplexity of the windows chosen there (dimensions that have one), and the sigmas are the standard
   deviations of A and D over random choices of n windows under the same quotas.

A second reading of "balance" (`balance="thirds"`) takes equal counts from the low-, middle- and high-perplexity
third of each dimension's candidates and then minimises A alone.

At equal window length minimising A means covering the most distinct n-grams, a submodular function: for one
dimension and lam = 0 the choice covers at least 1 - 1/e of the best possible (Nemhauser, Wolsey, Fisher 1978),
under quotas at least half of it (Fisher, Nemhauser, Wolsey 1978). Gains only shrink, so old ones are upper bounds
and few are computed again (lazy greedy; Minoux 1978): the choice is that of the plain greedy rule, exactly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from igsp.assets import catalog
from igsp.errors import UnknownName, UsageError
from igsp.models import LanguageModel, tokenizer_fingerprint
from igsp.text.likelihood import window_losses
from igsp.text.ngrams import Coverage
from igsp.text.windows import CalibrationSet, largest_remainder
from igsp.writing.common import changed, check_size, sampling, start_token, started, stem_prompts, text_seed, window
from igsp.writing.generation import Request, write_texts
from igsp.writing.pool import DIMENSIONS, CandidatePool, NotEnoughCandidates, quotas, screen

Balance = Literal["mean", "thirds"]
BALANCES: tuple[Balance, ...] = ("mean", "thirds")
CHANGEABLE = {"bos_sampling", "stem_sampling", "drop_share", "loop_limit", "reference_subsets"}


@dataclass(frozen=True)
class Step:
    """One step of a selection.

    Attributes:
        candidate: row of the pool that was taken. score: what it minimised, in standard deviations.
        aggregation: A_n of the windows chosen so far. spread: D of these, in nats.
        log_perplexity: of the candidate, nats per token.
    """

    candidate: int
    score: float
    aggregation: float
    spread: float
    log_perplexity: float


@dataclass(frozen=True)
class Selection:
    """Windows chosen from a pool: `indices` into it in the order of choice, and the trace (empty for the baselines)."""

    pool: CandidatePool
    indices: tuple[int, ...]
    trace: tuple[Step, ...]
    spec: dict[str, Any]

    @property
    def calibration(self) -> CalibrationSet:
        """The chosen windows as a calibration set."""
        return self.pool.calibration(self.indices, self.spec)


def igsp(
    lm: LanguageModel, n: int = 128, seqlen: int = 2048, seed: int = 0, balance: Balance = "mean",
    oversample: float | None = None, lam: float | None = None, order: int | None = None,
    pools: Sequence[str] | None = None, progress: bool = True, resume: str | Path | None = None,
    **changes: Any,
) -> CalibrationSet:
    """The calibration set that `igsp_selection` chooses; same arguments, same errors."""
    return igsp_selection(
        lm, n, seqlen, seed, balance, oversample, lam, order, pools, progress, resume, **changes
    ).calibration


def igsp_selection(
    lm: LanguageModel, n: int = 128, seqlen: int = 2048, seed: int = 0, balance: Balance = "mean",
    oversample: float | None = None, lam: float | None = None, order: int | None = None,
    pools: Sequence[str] | None = None, progress: bool = True, resume: str | Path | None = None,
    **changes: Any,
) -> Selection:
    """Writes, screens and chooses windows (see the head of this module).

    Args:
        balance: reading of "balance perplexity": `mean` or `thirds`.
        oversample: candidates per chosen window that pass the perplexity screen.
        lam: weight of the spread against aggregation; 0 leaves balance out, `math.inf` leaves aggregation out.
        order: n of the n-grams.
        pools: names of the candidate pools of `catalog/protocols.yaml` to use, such as `["self:bos"]`; None: all.
        resume: JSONL file of the texts, written as they end.
        changes: other values for the hyper-parameters of `CHANGEABLE`. None above also means the catalogue's value.

    Raises:
        UnknownName: an unknown pool, balance or hyper-parameter. UsageError: no BOS token, bad sizes or weights.
        NotEnoughCandidates: the screens leave too few (says which removed how many).
        GenerationError: the model ends its texts at once.
    """
    settings = changed("igsp", changes, CHANGEABLE)
    _check_choice(balance, settings["lam"] if lam is None else lam)
    pool = candidate_pool(lm, n, seqlen, seed, oversample, pools, progress, resume, **changes)
    kept = screen(pool, settings["drop_share"], settings["loop_limit"])
    try:
        return select(kept, n, balance, lam, order, seed, settings["reference_subsets"], progress)
    except NotEnoughCandidates as error:
        dropped = next(ids for ids, name in zip(pool.input_ids, pool.names, strict=True) if name not in kept.names)
        raise NotEnoughCandidates(f"{error}. A dropped one begins {lm.tokenizer.decode(dropped[:24])!r}") from None


def candidate_pool(
    lm: LanguageModel, n: int = 128, seqlen: int = 2048, seed: int = 0, oversample: float | None = None,
    pools: Sequence[str] | None = None, progress: bool = True, resume: str | Path | None = None,
    **changes: Any,
) -> CandidatePool:
    """The candidates of IGSP before any screen: enough that `oversample * n` pass the perplexity screen.

    Arguments and errors as `igsp_selection`.
    """
    settings = changed("igsp", changes, CHANGEABLE)
    oversample = settings["oversample"] if oversample is None else oversample
    check_size(n, seqlen)
    if not (math.isfinite(oversample) and oversample >= 1):
        raise UsageError(f"oversample must be at least 1, got {oversample}")
    counts = _pool_sizes(settings, pools, n, oversample)
    labels, requests = [], []
    for name, count in counts.items():
        made = _requests(lm, name, settings, count, seqlen, seed)
        requests += made
        labels += [(name, settings["pools"][name]["dimension"], f"{name}/{seed}/{i}") for i in range(len(made))]
    texts = write_texts(lm, requests, seqlen, "restart", progress=progress, resume=resume)
    ids = torch.tensor([window(lm, text, seqlen) for text in texts])
    spec = {
        "kind": "candidates", "n": n, "seqlen": seqlen, "seed": seed, "model": lm.fingerprint, **settings,
        "oversample": oversample, "pools": {name: settings["pools"][name] for name in counts},
        **(started(lm) if "self:bos" in counts else {}),
    }
    names, dimensions, windows = (tuple(column) for column in zip(*labels, strict=True))
    return CandidatePool(
        ids, names, dimensions, windows, window_losses(lm, ids, progress=progress),
        tokenizer_fingerprint(lm.tokenizer), spec,
    )


def _pool_sizes(settings: dict[str, Any], pools: Sequence[str] | None, n: int, oversample: float) -> dict[str, int]:
    """Candidates to write per pool."""
    known = settings["pools"]
    chosen = list(known) if pools is None else list(pools)
    for name in chosen:
        if name not in known:
            raise UnknownName("candidate pool", name, known)
    members = {d: [p for p in chosen if known[p]["dimension"] == d] for d in DIMENSIONS}
    present = {d: names for d, names in members.items() if names}
    if not present:
        raise UsageError("IGSP needs at least one candidate pool")
    sizes: dict[str, int] = {}
    for dimension, quota in largest_remainder(dict.fromkeys(present, 1.0), n).items():
        if quota:
            count = math.ceil(quota * oversample / (1 - settings["drop_share"]) - 1e-9)
            sizes |= largest_remainder({p: known[p]["share"] for p in present[dimension]}, count)
    return sizes


def _requests(
    lm: LanguageModel, name: str, settings: dict[str, Any], count: int, seqlen: int, seed: int
) -> list[Request]:
    """The texts of one pool: stems in random order, all in turn, and all of them to start again with."""
    stems = settings["pools"][name]["stems"]
    seeds = [text_seed("igsp", name, seed, i) for i in range(count)]
    if stems is None:
        how = sampling(settings["bos_sampling"])
        return [Request(s, (start_token(lm),), how) for s in seeds]
    how = sampling(settings["stem_sampling"])
    prompts = [tuple(p) for p in stem_prompts(lm, catalog("stems")[stems], seqlen)]
    order = np.random.default_rng(text_seed("igsp stems", name, seed)).permutation(len(prompts))
    return [Request(s, prompts[order[i % len(order)]], how, tuple(prompts)) for i, s in enumerate(seeds)]


def select(
    pool: CandidatePool, n: int, balance: Balance = "mean", lam: float | None = None, order: int | None = None,
    seed: int = 0, reference_subsets: int | None = None, progress: bool = True, aggregation: bool = True,
    pools: Sequence[str] | None = None, oversample: float | None = None,
) -> Selection:
    """Chooses `n` windows of a screened pool by the rule at the head of this module.

    Args:
        aggregation: False leaves that term out, as `lam=math.inf` does; `lam=0` leaves balance out.
        pools, oversample: choose among a part of the candidates (`CandidatePool.part`).
        seed: of the random choices that set the scale of the two terms; the rest is deterministic, ties go to the
            first candidate.

    Raises:
        UnknownName, UsageError: bad arguments. NotEnoughCandidates: a dimension has fewer candidates than its quota.
    """
    lam = changed("igsp", {}, set())["lam"] if lam is None else lam
    order = changed("igsp", {}, set())["order"] if order is None else order
    subsets = changed("igsp", {}, set())["reference_subsets"] if reference_subsets is None else reference_subsets
    lam = lam if aggregation else math.inf
    _check_choice(balance, lam)
    if balance == "thirds" and not aggregation:
        raise UsageError("balance 'thirds' chooses by aggregation alone: leave aggregation on, or use rule 'random'")
    pool = pool.part(n, pools, oversample)
    if pool.seqlen < order:
        raise UsageError(f"windows of {pool.seqlen} tokens hold no {order}-gram: use a lower order")
    groups, wanted = _cells(pool, n, balance)
    coverage = Coverage.of_ngrams(pool.input_ids, order)
    losses = pool.log_perplexity.double().numpy()
    dimensions = np.unique(np.array(pool.dimensions), return_inverse=True)[1]
    objective = _Objective(losses, dimensions, pool.seqlen - order + 1)
    objective.scale(coverage, [groups[c] for c in wanted], list(wanted.values()), subsets, seed)
    objective.weights(0.0 if balance == "thirds" else lam)
    indices, trace = _lazy_greedy(objective, coverage, groups, wanted, progress)
    spec = {
        "kind": "protocol", "protocol": "igsp", **pool.spec, "n": n, "balance": balance,
        "lam": lam if math.isfinite(lam) else "inf", "order": order, "selection_seed": seed,
    }
    return Selection(pool, tuple(indices), tuple(trace), spec)


def _check_choice(balance: str, lam: float) -> None:
    if balance not in BALANCES:
        raise UnknownName("balance", balance, BALANCES)
    if math.isnan(lam) or lam < 0:
        raise UsageError(f"lam must be at least 0 (math.inf leaves aggregation out), got {lam}")


def _cells(pool: CandidatePool, n: int, balance: Balance) -> tuple[dict[str, NDArray[np.int64]], dict[str, int]]:
    """Candidates and wanted windows of each cell: a dimension, or a third by perplexity of a dimension."""
    labels = np.array(pool.dimensions)
    groups: dict[str, NDArray[np.int64]] = {}
    wanted: dict[str, int] = {}
    for dimension, quota in quotas(pool, n).items():
        members = np.flatnonzero(labels == dimension)
        if balance == "mean":
            groups[dimension], wanted[dimension] = members, quota
            continue
        ranked = members[np.argsort(pool.log_perplexity.numpy()[members], kind="stable")]
        shares = largest_remainder({"low": 1.0, "middle": 1.0, "high": 1.0}, quota)
        for (third, share), part in zip(shares.items(), np.array_split(ranked, 3), strict=True):
            if share:
                groups[f"{dimension}, {third}"], wanted[f"{dimension}, {third}"] = np.sort(part), share
    return groups, wanted


class _Objective:
    """A(S) / sigma_A + lam * D(S) / sigma_D of a growing choice S, for all candidates of a cell at once."""

    def __init__(self, losses: NDArray[np.float64], dimensions: NDArray[np.int64], grams: int) -> None:
        self.losses, self.dimensions, self.grams = losses, dimensions, grams
        self.sigmas = (1.0, 1.0)
        self.weight_a, self.weight_d = 1.0, 1.0
        self.reset()

    def reset(self) -> None:
        self.sums = np.zeros(self.dimensions.max() + 1)
        self.counts = np.zeros(self.dimensions.max() + 1)

    def scale(
        self, coverage: Coverage, groups: list[NDArray[np.int64]], wanted: list[int], subsets: int, seed: int
    ) -> None:
        """Sets the sigmas from random choices under the quotas; a term that does not vary keeps sigma 1."""
        stream = np.random.default_rng(text_seed("igsp scale", seed))
        terms = []
        for _ in range(subsets):
            rows = np.concatenate([stream.choice(g, w, replace=False) for g, w in zip(groups, wanted, strict=True)])
            means = [self.losses[rows[self.dimensions[rows] == d]].mean() for d in np.unique(self.dimensions[rows])]
            terms.append((1 - coverage.count(rows) / (len(rows) * self.grams), np.std(means)))
        sigma_a, sigma_d = np.std(terms, axis=0) if terms else (0.0, 0.0)
        self.sigmas = (float(sigma_a) if sigma_a > 1e-12 else 1.0, float(sigma_d) if sigma_d > 1e-12 else 1.0)

    def weights(self, lam: float) -> None:
        """`lam` infinite: the spread alone."""
        sigma_a, sigma_d = self.sigmas
        self.weight_a, self.weight_d = (1 / sigma_a, lam / sigma_d) if math.isfinite(lam) else (0.0, 1 / sigma_d)

    def aggregation(self, distinct: NDArray[np.int64] | int) -> Any:
        """A_n after one more window, for numbers of distinct n-grams then."""
        return 1 - distinct / ((self.counts.sum() + 1) * self.grams)

    def spread(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """D after adding each of `rows`, which are all of one dimension."""
        own = self.dimensions[rows[0]]
        others = np.flatnonzero((self.counts > 0) & (np.arange(len(self.counts)) != own))
        means = np.empty((len(rows), len(others) + 1))
        means[:, :-1] = self.sums[others] / self.counts[others]
        means[:, -1] = (self.sums[own] + self.losses[rows]) / (self.counts[own] + 1)
        return means.std(axis=1)

    def score(self, aggregation: Any, spread: Any) -> Any:
        return self.weight_a * aggregation + self.weight_d * spread

    def add(self, row: int) -> None:
        self.sums[self.dimensions[row]] += self.losses[row]
        self.counts[self.dimensions[row]] += 1


def _lazy_greedy(
    objective: _Objective, coverage: Coverage, groups: dict[str, NDArray[np.int64]], wanted: dict[str, int],
    progress: bool,
) -> tuple[list[int], list[Step]]:
    bounds = coverage.size.astype(np.int64)  # upper bounds of the gains
    left = {cell: rows.copy() for cell, rows in groups.items()}
    taken = dict.fromkeys(wanted, 0)
    indices: list[int] = []
    trace: list[Step] = []
    for _ in tqdm(range(sum(wanted.values())), desc="select", unit="window", disable=not progress):
        cell = min((c for c in wanted if taken[c] < wanted[c]), key=lambda c: taken[c] / wanted[c])
        rows = left[cell]
        spread = objective.spread(rows)
        scores = objective.score(objective.aggregation(coverage.total + bounds[rows]), spread)
        fresh = np.zeros(len(rows), dtype=bool)
        while not fresh[best := int(scores.argmin())]:
            fresh[best] = True
            bounds[rows[best]] = coverage.gain(rows[best])
            scores[best] = objective.score(objective.aggregation(coverage.total + bounds[rows[best]]), spread[best])
        row = int(rows[best])
        aggregation = objective.aggregation(coverage.add(row))
        values = (scores[best], aggregation, spread[best], objective.losses[row])
        trace.append(Step(row, *(float(value) for value in values)))
        objective.add(row)
        indices.append(row)
        taken[cell] += 1
        left[cell] = np.delete(rows, best)
    return indices, trace
