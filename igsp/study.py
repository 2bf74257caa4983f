"""A study: which strategies to prune with, computed once per cell and kept as records.

A *strategy* names a way to choose calibration text (a source, a mixture, a protocol). A *cell* is one
strategy and one draw: sample, prune, score. Cells are content-addressed, so every notebook that asks for one
shares it, and several processes that ask at the same time divide the missing ones among themselves.
"""

from __future__ import annotations

import copy
import functools
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from tqdm import tqdm

from igsp import protocols
from igsp.assets import cache_dir, catalog
from igsp.calibration import CalibrationSet, mix, sample
from igsp.errors import UnknownName, UsageError
from igsp.evaluation import Scores, evaluate, heldout_texts, suite_sha256
from igsp.information import profile as oit_profile
from igsp.information import reference_counts
from igsp.models import LanguageModel, load_model
from igsp.protocols import CandidatePool, Selection
from igsp.pruning.driver import prune
from igsp.pruning.solvers import SOLVERS
from igsp.retention import Retention, retention
from igsp.sources import catalogue
from igsp.store import Record, Stopwatch, Store, key_of, now, package_sha256, provenance, repository_root, versions

PROTOCOLS: dict[str, Callable[..., CalibrationSet]] = {
    "self-cal": protocols.self_cal,
    "sgs": protocols.sgs,
    "igsp": protocols.igsp,
}
# Rules that choose n windows from one pool of candidates: (pool, model, n, seed, **options) -> Selection.
RULES: dict[str, Callable[..., Selection]] = {
    "igsp": lambda pool, lm, n, seed, **options: protocols.select(pool, n, seed=seed, progress=False, **options),
    "random": lambda pool, lm, n, seed: protocols.random_choice(pool, n, seed),
    "lowest-perplexity": lambda pool, lm, n, seed: protocols.lowest_perplexity(pool, n),
    "lexical-diversity": lambda pool, lm, n, seed: protocols.lexical_diversity(pool, lm, n),
    "activation-k-means": lambda pool, lm, n, seed: protocols.activation_kmeans(pool, lm, n, seed, progress=False),
}


@dataclass(frozen=True)
class Settings:
    """Everything a study depends on. One YAML per profile (`catalog/profiles/`), any field overridable."""

    profile: str
    model: str
    method: str
    sparsity: float
    pattern: str | None
    order: str
    n: int
    seqlen: int
    draws: int
    seed: int
    suite: str
    device: str
    dtype: str
    stale: str
    sources: tuple[str, ...]
    uniform: dict[str, float]
    web: str
    protocols: dict[str, dict[str, Any]] = field(default_factory=dict)
    pool: dict[str, Any] = field(default_factory=dict)
    selections: dict[str, dict[str, Any]] = field(default_factory=dict)


def profiles() -> list[str]:
    """Names of the profiles that ship with the package."""
    folder = resources.files("igsp") / "catalog" / "profiles"
    return sorted(p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name.endswith(".yaml"))


def settings(profile: str = "quick", **overrides: Any) -> Settings:
    """Settings of a profile; overrides that are None leave the profile's value.

    Raises:
        UnknownName: no such profile, setting, method or source.
        UsageError: a value out of range, naming file and key.
    """
    if profile not in profiles():
        raise UnknownName("profile", profile, profiles())
    name = f"catalog/profiles/{profile}.yaml"
    values = yaml.safe_load((resources.files("igsp") / name).read_text(encoding="utf8"))
    values |= {key: value for key, value in overrides.items() if value is not None}
    known = {f.name for f in fields(Settings)} - {"profile"}
    for key in values:
        if key not in known:
            raise UnknownName(f"setting ({name})", key, known)
    missing = known - set(values) - {"protocols", "pool", "selections"}
    if missing:
        raise UsageError(f"{name}: missing {', '.join(sorted(missing))}")
    checked = Settings(profile=profile, **(values | {"sources": tuple(values["sources"])}))
    _check(checked, name)
    return checked


def _check(s: Settings, name: str) -> None:
    def need(key: str, good: bool, rule: str) -> None:
        if not good:
            raise UsageError(f"{name}: {key} must be {rule}, got {getattr(s, key)!r}")

    def whole(value: object) -> bool:
        return isinstance(value, int) and not isinstance(value, bool)

    if s.method not in SOLVERS:
        raise UnknownName("method", s.method, SOLVERS)
    need("sparsity", isinstance(s.sparsity, (int, float)) and 0 <= s.sparsity < 1, "in [0, 1)")
    for key in ("n", "seqlen", "draws"):
        need(key, whole(getattr(s, key)) and getattr(s, key) >= 1, "a whole number of at least 1")
    need("seed", whole(s.seed) and s.seed >= 0, "a whole number of at least 0")
    need("stale", s.stale in ("recompute", "accept"), "'recompute' or 'accept'")
    for source in {*s.sources, *s.uniform, s.web}:
        if source not in catalogue():
            raise UnknownName("source", source, catalogue(), f"({name})")
    for protocol in s.protocols:
        if protocol not in PROTOCOLS:
            raise UnknownName("protocol", protocol, PROTOCOLS, f"({name})")
    for options in s.selections.values():
        if options.get("rule") not in RULES:
            raise UnknownName("selection rule", str(options.get("rule")), RULES, f"({name})")


@dataclass(frozen=True)
class Strategy:
    """A way to choose calibration text: `kind` is source, mix, protocol or selection (from the pool)."""

    name: str
    kind: str
    detail: dict[str, Any]


@dataclass(frozen=True)
class Result:
    """A finished cell."""

    strategy: str
    draw: int
    scores: Scores
    record: Record


class Study:
    """The cells of one profile with its overrides, computed on demand.

    Args:
        profile: `quick`, ...
        store: where records are kept; default `book/results/<profile>/` of the checkout.
        overrides: any field of `Settings`; None means the profile's value.
    """

    def __init__(self, profile: str = "quick", store: str | Path | None = None, **overrides: Any) -> None:
        self.settings = settings(profile, **overrides)
        self.store = Store(store or repository_root() / "book" / "results" / profile)
        self._calibrations: dict[tuple[str, int], CalibrationSet] = {}
        self._pools: dict[int, CandidatePool] = {}

    @functools.cached_property
    def lm(self) -> LanguageModel:
        """The dense model, loaded once."""
        return load_model(self.settings.model, self.settings.device, self.settings.dtype)

    @functools.cached_property
    def strategies(self) -> dict[str, Strategy]:
        """Every strategy of the profile by name: the sources, `uniform`, `all-sources`, the protocols."""
        s = self.settings
        every = [Strategy(source, "source", {"source": source}) for source in s.sources]
        every += [Strategy("uniform", "mix", {"weights": dict(s.uniform)})]
        every += [Strategy("all-sources", "mix", {"weights": {source: 1 for source in s.sources}})]
        every += [Strategy(name, "protocol", {"protocol": name, **options}) for name, options in s.protocols.items()]
        every += [Strategy(name, "selection", dict(options)) for name, options in s.selections.items()]
        return {strategy.name: strategy for strategy in every}

    def calibration(self, name: str, draw: int = 0) -> CalibrationSet:
        """The calibration set of a strategy and draw. What a model wrote is kept in the cache."""
        if (name, draw) not in self._calibrations:
            self._calibrations[name, draw] = self._make_calibration(self._strategy(name), draw)
        return self._calibrations[name, draw]

    def _strategy(self, name: str) -> Strategy:
        if name not in self.strategies:
            raise UnknownName("strategy", name, self.strategies)
        return self.strategies[name]

    def _make_calibration(self, strategy: Strategy, draw: int) -> CalibrationSet:
        s = self.settings
        stream = s.seed + draw
        if strategy.kind == "source":
            return sample(strategy.detail["source"], self.lm.tokenizer, s.n, s.seqlen, stream)
        if strategy.kind == "mix":
            return mix(strategy.detail["weights"], self.lm.tokenizer, s.n, s.seqlen, stream)
        if strategy.kind == "selection":
            return self.selection(strategy.name, draw).calibration
        options = {k: v for k, v in strategy.detail.items() if k != "protocol"}
        make = PROTOCOLS[strategy.detail["protocol"]]
        folder = self._written(
            {"protocol": strategy.detail["protocol"], **options},
            stream,
            lambda texts: make(
                self.lm, n=s.n, seqlen=s.seqlen, seed=stream, progress=False, resume=texts, **options
            ),
        )
        return CalibrationSet.load(folder)

    def pool(self, draw: int = 0) -> CandidatePool:
        """The candidates that the model wrote for a draw, screened; shared by every selection rule."""
        if draw not in self._pools:
            s, stream = self.settings, self.settings.seed + draw
            folder = self._written(
                {"pool": s.pool},
                stream,
                lambda texts: protocols.candidate_pool(
                    self.lm, s.n, s.seqlen, stream, progress=False, resume=texts, **s.pool
                ),
            )
            limits = {name: catalog("protocols")["igsp"][name]["value"] for name in ("drop_share", "loop_limit")}
            self._pools[draw] = protocols.screen(CandidatePool.load(folder), **limits)
        return self._pools[draw]

    def selection(self, name: str, draw: int = 0) -> Selection:
        """What a selection rule took from the pool, with its trace where it has one."""
        options = dict(self._strategy(name).detail)
        rule = RULES[options.pop("rule")]
        return rule(self.pool(draw), self.lm, self.settings.n, self.settings.seed + draw, **options)

    def _written(self, what: dict[str, Any], stream: int, write: Callable[[Path], Any]) -> Path:
        """Cache folder of text that the model wrote; made once, by one process, and kept whole.

        `write` keeps finished texts in the file it is given, so that a killed run goes on from them. The key holds
        the package's hash: other code may write other text.
        """
        s = self.settings
        key = key_of(
            {**what, "n": s.n, "seqlen": s.seqlen, "seed": stream, "package": package_sha256(), **self._numbers()}
        )
        folder = cache_dir() / "written" / key
        with Store(folder.parent).claim(key, wait=True):
            if not folder.exists():
                texts = folder.with_suffix(".jsonl")
                with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
                    write(texts).save(Path(scratch) / "made")
                    (Path(scratch) / "made").rename(folder)
                texts.unlink(missing_ok=True)
        return folder

    def _numbers(self) -> dict[str, Any]:
        """The part of every specification that is not the cell's own: model, suite, arithmetic, versions."""
        return {
            "model": self.lm.fingerprint,
            "device": self.lm.device.type,
            "dtype": str(self.lm.dtype).removeprefix("torch."),
            "versions": versions(),
        }

    def spec(self, name: str, draw: int = 0) -> dict[str, Any]:
        """Specification of a cell; its hash names the record."""
        s = self.settings
        return {
            "stage": "cell",
            "method": s.method,
            "sparsity": s.sparsity,
            "pattern": s.pattern,
            "order": s.order,
            "calibration": self.calibration(name, draw).sha256,
            "suite": suite_sha256(s.suite),
            **self._numbers(),
        }

    def dense(self) -> Scores:
        """Scores of the dense model on the suite."""
        spec = {"stage": "dense", "suite": suite_sha256(self.settings.suite), **self._numbers()}
        return Scores.from_dict(self._once(spec, self._score_dense, wait=True).metrics["scores"])  # type: ignore[union-attr]

    def _score_dense(self) -> dict[str, Any]:
        watch = Stopwatch()
        with watch("evaluate"):
            scores = evaluate(self.lm, self.settings.suite, progress=False)
        return {"scores": scores.to_dict(), "seconds": watch.seconds, "labels": {"strategy": "dense"}}

    def run(self, names: Iterable[str], draws: Sequence[int] | None = None, progress: bool = True) -> list[Result]:
        """Results of strategies, in the order asked for; missing cells are computed and recorded.

        A cell that another process is computing is left to it and read when it is there.
        """
        wanted = [(name, draw) for name in names for draw in draws or range(self.settings.draws)]
        done: dict[tuple[str, int], Record] = {}
        with tqdm(total=len(wanted), desc="cells", disable=not progress or _silent()) as bar:
            while len(done) < len(wanted):
                before = len(done)
                for cell in wanted:
                    if cell in done:
                        continue
                    bar.set_postfix_str(cell[0])
                    record = self._once(self.spec(*cell), functools.partial(self._compute, *cell))
                    if record is not None:
                        done[cell] = record
                        bar.update()
                if len(done) == before:
                    time.sleep(1.0)
        return [Result(*cell, Scores.from_dict(done[cell].metrics["scores"]), done[cell]) for cell in wanted]

    def _once(self, spec: dict[str, Any], compute: Callable[[], dict[str, Any]], wait: bool = False) -> Record | None:
        """The record of `spec`, computed if it is missing; None if another process holds it and `wait` is off."""
        record = self.store.get(spec)
        if self._usable(record):
            return record
        with self.store.claim(key_of(spec), wait) as mine:
            if not mine:
                return None
            record = self.store.get(spec)
            if not self._usable(record):
                started = now()
                record = Record(spec, compute(), {**provenance(), "started": started, "finished": now()})
                self.store.put(record)
        return record

    def _usable(self, record: Record | None) -> bool:
        return record is not None and (self.settings.stale == "accept" or not record.stale)

    def _compute(self, name: str, draw: int) -> dict[str, Any]:
        s, watch = self.settings, Stopwatch()
        calibration = self.calibration(name, draw)
        amount: dict[str, Any] = {"pattern": s.pattern} if s.pattern else {"sparsity": s.sparsity}
        pruned = copy.copy(self.lm)
        pruned.model = copy.deepcopy(self.lm.model)
        with watch("prune"):
            report = prune(
                pruned,
                calibration,
                method=s.method,
                order=s.order,
                progress=False,
                **amount,
            )
        with watch("evaluate"):
            scores = evaluate(pruned, s.suite, progress=False)
        return {
            "scores": scores.to_dict(),
            "prune": report.totals(),
            "seconds": watch.seconds,
            "labels": {"strategy": name, "draw": draw, "seed": s.seed, "calibration": calibration.spec},
        }

    def information(self, names: Iterable[str], draw: int = 0, progress: bool = True) -> pd.DataFrame:
        """OIT metrics, one row per strategy."""
        rows = {}
        for name in tqdm(list(names), desc="profiles", disable=not progress or _silent()):
            calibration = self.calibration(name, draw)
            spec = {
                "stage": "profile",
                "calibration": calibration.sha256,
                "suite": suite_sha256(self.settings.suite),
                "scope": [len(w.documents) for w in calibration.windows],
                **self._numbers(),
            }
            compute = functools.partial(self._profile, name, draw, calibration)
            record = self._once(spec, compute, wait=True)
            rows[name] = record.metrics["information"]  # type: ignore[union-attr]
        return pd.DataFrame(rows).T

    def _profile(self, name: str, draw: int, calibration: CalibrationSet) -> dict[str, Any]:
        values = oit_profile(calibration, self.lm, self._reference)
        return {"information": values, "labels": {"strategy": name, "draw": draw}}

    @functools.cached_property
    def _reference(self) -> Mapping[str, Any]:
        return reference_counts(heldout_texts(self.settings.suite), self.lm)

    def retentions(self, results: Sequence[Result], measure: str = "likelihood") -> dict[str, Retention]:
        """Retention per strategy, over its draws."""
        dense = self.dense()
        grouped: dict[str, list[Scores]] = {}
        for result in results:
            grouped.setdefault(result.strategy, []).append(result.scores)
        return {name: retention(scores, dense, measure) for name, scores in grouped.items()}

    def describe(self) -> pd.DataFrame:
        """The settings as a two-column table."""
        shown = {k: v for k, v in asdict(self.settings).items() if not isinstance(v, (dict, list, tuple))}
        shown |= {"sources": len(self.settings.sources), "uniform": " + ".join(self.settings.uniform)}
        return pd.DataFrame({"setting": list(shown), "value": [str(v) for v in shown.values()]})


def _silent() -> bool:
    """`TQDM_DISABLE=1` silences bars: the runner sets it, so that executed notebooks hold results alone."""
    return os.environ.get("TQDM_DISABLE", "") not in ("", "0")


def frame(retentions: Mapping[str, Retention]) -> pd.DataFrame:
    """Point values: one row per strategy, columns the dimensions, `total` and `minimum`."""
    return pd.DataFrame(
        {
            name: {
                **{d: e.value for d, e in kept.dimensions.items()},
                "total": kept.total.value,
                "minimum": kept.minimum.value,
            }
            for name, kept in retentions.items()
        }
    ).T
