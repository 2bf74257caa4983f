"""A study: which strategies to prune with, computed once per cell and kept as records.

A *strategy* names a way to choose calibration text (a source, a mixture, a protocol). A *cell* is one
strategy and one draw: sample, prune, score. Cells are content-addressed, so every notebook that asks for one
shares it, and several processes that ask at the same time divide the missing ones among themselves.

What cells share (calibration sets, the pool of candidates, the dense scores, the metrics of a set) are *tasks* of
their own beside them, each with its record; `igsp.study.engine` runs the tasks of a study on many workers.
"""

from __future__ import annotations

import copy
import functools
import os
import platform
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml
from tqdm import tqdm

from igsp import writing
from igsp.assets import cache_dir, catalog
from igsp.errors import IgspError, UnknownName, UsageError
from igsp.models import (
    LanguageModel,
    folder_fingerprint,
    load_model,
    resolve_device,
    resolve_dtype,
    resolve_folder,
)
from igsp.provenance import Stopwatch, key_of, now, provenance, repository_root, versions
from igsp.pruning.driver import STEPS, prune
from igsp.pruning.masks import mask_sample
from igsp.pruning.solvers import SOLVERS, parse_pattern
from igsp.scoring.contamination import contaminated
from igsp.scoring.evaluation import Scores, evaluate, heldout_texts, suite_sha256
from igsp.scoring.retention import MEASURES, Retention, retention
from igsp.scoring.trivial import baselines
from igsp.study.records import Record, Store
from igsp.text.catalogue import catalogue
from igsp.text.likelihood import window_losses
from igsp.text.metrics import profile as oit_profile
from igsp.text.metrics import reference_counts
from igsp.text.windows import CalibrationSet, mix, sample
from igsp.writing import CandidatePool, Selection
from igsp.writing.generation import write_texts
from igsp.writing.sgs import _requests as sgs_requests

PROTOCOLS: dict[str, Callable[..., CalibrationSet]] = {
    "self-cal": writing.self_cal,
    "sgs": writing.sgs,
    "igsp": writing.igsp,
}
# Rules that choose n windows from one pool of candidates: (pool, model, n, seed, **options) -> Selection.
RULES: dict[str, Callable[..., Selection]] = {
    "igsp": lambda pool, lm, n, seed, **options: writing.select(pool, n, seed=seed, progress=False, **options),
    "random": lambda pool, lm, n, seed: writing.random_choice(pool, n, seed),
    "lowest-perplexity": lambda pool, lm, n, seed: writing.lowest_perplexity(pool, n),
    "lexical-diversity": lambda pool, lm, n, seed: writing.lexical_diversity(pool, lm, n),
    "activation-k-means": lambda pool, lm, n, seed: writing.activation_kmeans(pool, lm, n, seed, progress=False),
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
    sources: tuple[str, ...]
    uniform: dict[str, float]
    web: str
    protocols: dict[str, dict[str, Any]] = field(default_factory=dict)
    pool: dict[str, Any] = field(default_factory=dict)
    selections: dict[str, dict[str, Any]] = field(default_factory=dict)
    grid: tuple[dict[str, Any], ...] = ({},)
    measure: str = "likelihood"
    run_code: bool = False


# Groups of strategies that a part of the grid may name, and the kind of strategy that each holds.
GROUPS = {"sources": "source", "mixes": "mix", "protocols": "protocol", "selections": "selection"}
GRID_FIELDS = ("strategies", "methods", "sparsities", "draws")
SHAPES = {**dict.fromkeys(("sources", "grid"), (list, tuple)),
          **dict.fromkeys(("uniform", "protocols", "pool", "selections"), (dict,))}


def profiles() -> list[str]:
    """Names of the profiles that ship with the package."""
    folder = resources.files("igsp") / "catalog" / "profiles"
    return sorted(p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name.endswith(".yaml"))


def settings(profile: str = "quick", **overrides: Any) -> Settings:
    """Settings of a profile, by name or as a YAML file of one's own; overrides that are None leave its values.

    Raises:
        UnknownName: no such profile, setting, method or source.
        UsageError: no YAML mapping, or a value out of range, naming file and key.
    """
    name, text = _profile_text(profile)
    profile = Path(profile).stem
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"{name} is no YAML: {error}") from None
    if not isinstance(values, dict):
        raise UsageError(f"{name} must be a mapping of settings")
    values |= {key: value for key, value in overrides.items() if value is not None}
    known = {f.name for f in fields(Settings)} - {"profile"}
    for key in values:
        if key not in known:
            raise UnknownName(f"setting ({name})", key, known)
    needed = {f.name for f in fields(Settings) if f.default is MISSING and f.default_factory is MISSING}
    missing = needed - {"profile"} - set(values)
    if missing:
        raise UsageError(f"{name}: missing {', '.join(sorted(missing))}")
    for key in SHAPES.keys() & values.keys():
        if not isinstance(values[key], SHAPES[key]):
            kind = "list" if list in SHAPES[key] else "mapping"
            raise UsageError(f"{name}: {key} must be a {kind}, got {values[key]!r}")
    lists = {key: tuple(values[key]) for key in ("sources", "grid") if key in values}
    checked = Settings(profile=profile, **(values | lists))
    _check(checked, name)
    return checked


def _profile_text(profile: str) -> tuple[str, str]:
    """Name and content of a profile's file."""
    if profile.endswith((".yaml", ".yml")):
        try:
            return profile, Path(profile).read_text(encoding="utf8")
        except OSError as error:
            raise UsageError(f"cannot read the profile '{profile}': {error.strerror}") from None
    if profile not in profiles():
        raise UnknownName("profile", profile, profiles(), "(or give a file, NAME.yaml)")
    name = f"catalog/profiles/{profile}.yaml"
    return name, (resources.files("igsp") / name).read_text(encoding="utf8")


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
    need("measure", s.measure in MEASURES, " or ".join(map(repr, MEASURES)))
    need("run_code", isinstance(s.run_code, bool), "true or false")
    for source in {*s.sources, *s.uniform, s.web}:
        if source not in catalogue():
            raise UnknownName("source", source, catalogue(), f"({name})")
    for strategy, options in s.protocols.items():
        if (protocol := options.get("protocol", strategy)) not in PROTOCOLS:
            raise UnknownName("protocol", protocol, PROTOCOLS, f"({name})")
    for options in s.selections.values():
        if options.get("rule") not in RULES:
            raise UnknownName("selection rule", str(options.get("rule")), RULES, f"({name})")
    if s.order not in STEPS:
        raise UnknownName("order", s.order, STEPS, f"({name})")
    parse_pattern(s.pattern)
    try:
        torch.device("cpu" if s.device == "auto" else s.device)
    except RuntimeError:
        need("device", False, "auto, cpu, cuda or cuda:N")
    need("grid", bool(s.grid), "a list of one part at least")
    for number, part in enumerate(s.grid, 1):
        _check_part(s, part, f"{name}: part {number} of the grid")


def _check_part(s: Settings, part: Any, where: str) -> None:
    if not isinstance(part, dict):
        raise UsageError(f"{where} must be a mapping of {', '.join(GRID_FIELDS)}, got {part!r}")
    known = {"strategies": {*GROUPS, *strategies(s)}, "methods": set(SOLVERS)}
    for key, values in part.items():
        if key not in GRID_FIELDS:
            raise UnknownName("field", key, GRID_FIELDS, f"({where})")
        if key == "draws":
            if not isinstance(values, int) or isinstance(values, bool) or values < 1:
                raise UsageError(f"{where}: draws must be a whole number of at least 1, got {values!r}")
            continue
        if not isinstance(values, list) or not values:
            raise UsageError(f"{where}: {key} must be a list, got {values!r}")
        for value in values:
            if key == "sparsities" and not (isinstance(value, (int, float)) and 0 <= value < 1):
                raise UsageError(f"{where}: sparsities must be in [0, 1), got {value!r}")
            if key in known and value not in known[key]:
                raise UnknownName(f"entry of {key}", str(value), known[key], f"({where})")


@dataclass(frozen=True)
class Strategy:
    """A way to choose calibration text: `kind` is source, mix, protocol or selection (from the pool)."""

    name: str
    kind: str
    detail: dict[str, Any]


def strategies(s: Settings) -> dict[str, Strategy]:
    """Every strategy of the settings by name: the sources, `uniform`, `all-sources`, the protocols, the selections."""
    every = [Strategy(source, "source", {"source": source}) for source in s.sources]
    every += [Strategy("uniform", "mix", {"weights": dict(s.uniform)})]
    every += [Strategy("all-sources", "mix", {"weights": {source: 1 for source in s.sources}})]
    every += [Strategy(name, "protocol", {"protocol": name, **options}) for name, options in s.protocols.items()]
    every += [Strategy(name, "selection", dict(options)) for name, options in s.selections.items()]
    return {strategy.name: strategy for strategy in every}


@dataclass(frozen=True)
class Cell:
    """One pruned model to score: calibration strategy and draw, pruning method and sparsity."""

    strategy: str
    draw: int
    method: str
    sparsity: float


def cells(s: Settings) -> list[Cell]:
    """The grid of the settings, part by part, draw by draw, each cell once.

    A part names `strategies` (or groups of them: sources, mixes, protocols, selections), `methods`, `sparsities` and
    `draws`; what it leaves out is every strategy, and the method, sparsity and draws of the profile.
    """
    known = strategies(s)
    found: dict[Cell, None] = {}
    for part in s.grid:
        asked = part.get("strategies", GROUPS)
        names = [n for n, v in known.items() if n in asked or v.kind in {GROUPS[a] for a in asked if a in GROUPS}]
        for draw in range(part.get("draws", s.draws)):
            for sparsity in part.get("sparsities", [s.sparsity]):
                for name in names:
                    for method in part.get("methods", [s.method]):
                        found[Cell(name, draw, method, sparsity)] = None
    return list(found)


@dataclass(frozen=True)
class Task:
    """What is computed once and recorded. `stage` is dense, pool, calibration, profile or cell.

    Attributes:
        form: of a calibration set the kind of its strategy.
    """

    stage: str
    strategy: str = ""
    draw: int = 0
    cell: Cell | None = None
    form: str = field(default="", compare=False)

    @property
    def kind(self) -> str:
        """Tasks of one kind take about the same time: the stage, a cell's pruning method, the form of a set."""
        return f"{self.stage} {self.cell.method if self.cell else self.form}".rstrip()

    def __str__(self) -> str:
        if self.stage == "dense":
            return self.stage
        end = f" {self.cell.method} {self.cell.sparsity:g}" if self.cell else ""
        return " ".join(filter(None, (self.stage, self.strategy, str(self.draw)))) + end


@dataclass(frozen=True)
class Result:
    """A finished cell."""

    cell: Cell
    scores: Scores
    record: Record

    @property
    def strategy(self) -> str:
        return self.cell.strategy

    @property
    def draw(self) -> int:
        return self.cell.draw


class Study:
    """The cells of one profile with its overrides, computed on demand.

    Args:
        profile: `quick`, ..., or a YAML file.
        store: where records are kept, a folder or an address; default `book/results/<profile>/` of the checkout.
        overrides: any field of `Settings`; None means the profile's value.
    """

    def __init__(self, profile: str = "quick", store: str | Path | None = None, **overrides: Any) -> None:
        self.settings = settings(profile, **overrides)
        self.store = Store(store or repository_root() / "book" / "results" / self.settings.profile)
        self._calibrations: dict[tuple[str, int], CalibrationSet] = {}
        self._pools: dict[int, CandidatePool] = {}
        self._sets: dict[tuple[str, int], dict[str, Any]] = {}

    @functools.cached_property
    def lm(self) -> LanguageModel:
        """The dense model, loaded once."""
        return load_model(self.settings.model, self.settings.device, self.settings.dtype)

    @functools.cached_property
    def strategies(self) -> dict[str, Strategy]:
        """Every strategy of the profile by name."""
        return strategies(self.settings)

    def cells(self) -> list[Cell]:
        """The grid of the profile."""
        return cells(self.settings)

    def calibration(self, name: str, draw: int = 0) -> CalibrationSet:
        """The calibration set of a strategy and draw. What a model wrote is kept in the cache.

        Raises:
            IgspError: it is not the set that the records of this study were made with.
        """
        if (name, draw) not in self._calibrations:
            made = self._make_calibration(self._strategy(name), draw)
            recorded = self._sets.get((name, draw), {}).get("sha256", made.sha256)
            if made.sha256 != recorded:
                raise IgspError(
                    f"the calibration set '{name}', draw {draw}, cannot be made again as it was recorded (sha256 "
                    f"{recorded[:12]}, now {made.sha256[:12]}): text or code has changed. Way out: give another store, "
                    "or restore what made it; mixing both would compare unlike cells"
                )
            self._calibrations[name, draw] = made
        return self._calibrations[name, draw]

    def recorded_set(self, name: str, draw: int) -> dict[str, Any]:
        """What is on record about a calibration set: `sha256` and `scope` (documents per window), or nothing."""
        if (name, draw) not in self._sets:
            record = self.store.get(self._set_spec("calibration", name, draw))
            if record is not None and self._usable(record):
                self._sets[name, draw] = {key: record.metrics[key] for key in ("sha256", "scope")}
            elif (name, draw) in self._labelled:
                self._sets[name, draw] = self._labelled[name, draw]
        return self._sets.get((name, draw), {})

    @functools.cached_property
    def _labelled(self) -> dict[tuple[str, int], dict[str, Any]]:
        """Calibration sets as the labels of stored cells tell, for stores that hold no records of the sets."""
        found, scopes = {}, {}
        for record in self.store.records():
            labels, spec = record.metrics.get("labels", {}), record.spec
            if spec["stage"] == "profile":
                scopes[spec["calibration"]] = spec["scope"]
            strategy = self.strategies.get(labels.get("strategy"))
            wanted = {"model": self.numbers["model"], "n": self.settings.n, "seqlen": self.settings.seqlen}
            if strategy and strategy.kind in ("source", "mix"):
                wanted |= strategy.detail
            known = {**labels.get("calibration", {}), "model": spec["model"]}
            ours = spec["stage"] == "cell" and spec["suite"] == self._suite
            if strategy and ours and labels.get("seed") == self.settings.seed and wanted.items() <= known.items():
                found[strategy.name, labels["draw"]] = {"sha256": spec["calibration"]}
        return {key: {**entry, "scope": scopes.get(entry["sha256"])} for key, entry in found.items()}

    def _set_spec(self, stage: str, name: str, draw: int) -> dict[str, Any]:
        """Specification of a calibration set or pool by what it is made from; its content is known once it is made."""
        s = self.settings
        what: dict[str, Any] = {} if stage == "pool" else asdict(self._strategy(name))
        what.pop("name", None)
        if stage == "pool" or what["kind"] == "selection":
            what["pool"] = s.pool
        elif found := {source: ids for source, ids in self._without(self._strategy(name)).items() if ids}:
            what["without"] = {source: key_of({"ids": sorted(ids)}) for source, ids in found.items()}
        stream = s.seed + draw
        text = {"python": platform.python_version()}  # whose library is a source
        return {"stage": stage, **what, "n": s.n, "seqlen": s.seqlen, "seed": stream, **text, **self.numbers}

    def _sha256(self, name: str, draw: int) -> str:
        """Hash of a calibration set: as recorded, else it is made and recorded now."""
        if "sha256" not in self.recorded_set(name, draw):
            task = Task("calibration", name, draw)
            self.learn(task, self._once(self.specification(task), functools.partial(self.compute, task), wait=True))
        return str(self._sets[name, draw]["sha256"])

    def _strategy(self, name: str) -> Strategy:
        if name not in self.strategies:
            raise UnknownName("strategy", name, self.strategies)
        return self.strategies[name]

    def _without(self, strategy: Strategy) -> dict[str, frozenset[str]]:
        """Documents that a source or mix passes over, by source: those that contain an item of the suite."""
        sources: Iterable[str] = [strategy.name] if strategy.kind == "source" else strategy.detail.get("weights", ())
        return {source: contaminated(source, self.settings.suite) for source in sources}

    def _make_calibration(self, strategy: Strategy, draw: int) -> CalibrationSet:
        s, without = self.settings, self._without(strategy)
        stream = s.seed + draw
        if strategy.kind == "source":
            source = strategy.detail["source"]
            return sample(source, self.lm.tokenizer, s.n, s.seqlen, stream, without[source])
        if strategy.kind == "mix":
            return mix(strategy.detail["weights"], self.lm.tokenizer, s.n, s.seqlen, stream, without)
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
                lambda texts: writing.candidate_pool(
                    self.lm, s.n, s.seqlen, stream, progress=False, resume=texts, **s.pool
                ),
            )
            limits = {name: catalog("protocols")["igsp"][name]["value"] for name in ("drop_share", "loop_limit")}
            self._pools[draw] = writing.screen(CandidatePool.load(folder), **limits)
        return self._pools[draw]

    def selection(self, name: str, draw: int = 0) -> Selection:
        """What a selection rule took from the pool, with its trace where it has one."""
        options = dict(self._strategy(name).detail)
        rule = RULES[options.pop("rule")]
        return rule(self.pool(draw), self.lm, self.settings.n, self.settings.seed + draw, **options)

    def writing(self, draw: int = 0, tokens: int = 32) -> list[dict[str, Any]]:
        """Samples of what the model writes, recorded: of every protocol and pool the window of median perplexity.

        Its first `tokens` tokens; of SGS, whose texts begin with words of a corpus, the first that the model wrote.
        The record also keeps the trace of every choice by IGSP's rule.
        """
        about = {"stage": "writing", "protocols": self.settings.protocols, "tokens": tokens}
        compute = functools.partial(self._samples, draw, tokens)
        record = self._once(self._set_spec("pool", "", draw) | about, compute, wait=True)
        return list(record.metrics["samples"])  # type: ignore[union-attr]

    def _samples(self, draw: int, tokens: int) -> dict[str, Any]:
        made = {name: self.calibration(name, draw) for name in self.settings.protocols}
        pool, groups = self.pool(draw), []
        for name, windows in made.items():
            losses = window_losses(self.lm, windows.input_ids, progress=False)
            groups.append((name, "", windows.input_ids, losses))
        for name in dict.fromkeys(pool.pools):
            part = pool.subset([i for i, other in enumerate(pool.pools) if other == name])
            groups.append((name, part.dimensions[0], part.input_ids, part.log_perplexity))
        rows = []
        for name, dimension, ids, losses in groups:
            row = int(losses.argsort()[len(losses) // 2])
            start = ids[row, :tokens].tolist()
            if name in made and made[name].spec["protocol"] == "sgs":
                start = _continuation(self.lm, made[name], row, tokens)
            rows.append({"written by": name, "dimension": dimension, "windows": len(losses),
                         "perplexity": float(losses[row].exp()), "text": str(self.lm.tokenizer.decode(start))})
        chosen = [name for name, options in self.settings.selections.items() if options["rule"] == "igsp"]
        traces = {name: [asdict(step) for step in self.selection(name, draw).trace] for name in chosen}
        return {"samples": rows, "traces": traces, "labels": {"draw": draw, "seed": self.settings.seed}}

    def _written(self, what: dict[str, Any], stream: int, write: Callable[[Path], Any]) -> Path:
        """Cache folder of text that the model wrote; made once, by one process, and kept whole.

        `write` keeps finished texts in the file it is given, so that a killed run goes on from them. The key holds
        the version of writing: another one may write other text.
        """
        s = self.settings
        key = key_of(
            {**what, "n": s.n, "seqlen": s.seqlen, "seed": stream, "writing": writing.VERSION, **self.numbers}
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
        """The part of every specification that is not the cell's own: model, arithmetic, versions.

        The model is not loaded for it, and a device given by name need not be here: the one who plans may be a
        machine without it.
        """
        s = self.settings
        device = resolve_device(s.device) if s.device in ("auto", "cpu") else torch.device(s.device)
        return {
            "model": folder_fingerprint(resolve_folder(s.model)),
            "device": device.type,
            "dtype": str(resolve_dtype(s.dtype, device)).removeprefix("torch."),
            "versions": versions(),
        }

    @functools.cached_property
    def numbers(self) -> dict[str, Any]:
        """Model, device, dtype and versions: what all specifications of this study share."""
        return self._numbers()

    @functools.cached_property
    def _suite(self) -> str:
        return suite_sha256(self.settings.suite)

    def cell(self, name: str, draw: int = 0) -> Cell:
        """The cell of a strategy and draw at the profile's method and sparsity."""
        return Cell(name, draw, self.settings.method, self.settings.sparsity)

    def spec(self, cell: Cell) -> dict[str, Any]:
        """Specification of a cell; its hash names the record."""
        s = self.settings
        return {
            "stage": "cell",
            "method": cell.method,
            "sparsity": cell.sparsity,
            "pattern": s.pattern,
            "order": s.order,
            "calibration": self._sha256(cell.strategy, cell.draw),
            "suite": self._suite,
            **self.numbers,
        }

    def tasks(self, cells: Sequence[Cell] | None = None) -> dict[Task, tuple[Task, ...]]:
        """The tasks behind cells (default: the grid), each with the tasks that it has to wait for.

        In a good order: long texts that a model writes first, everything after what it waits for, and the short tasks
        that nothing waits for last, where they fill the time in which the other workers end their last cells.
        """
        first: dict[Task, tuple[Task, ...]] = {Task("dense", ""): ()}
        then: dict[Task, tuple[Task, ...]] = {}
        last: dict[Task, tuple[Task, ...]] = {}
        for cell in self.cells() if cells is None else cells:
            kind = self._strategy(cell.strategy).kind
            made = Task("calibration", cell.strategy, cell.draw, form=kind)
            pool = (Task("pool", "", cell.draw),) if kind == "selection" else ()
            (then if kind in ("source", "mix") else first).update({**dict.fromkeys(pool, ()), made: pool})
            last[Task("profile", cell.strategy, cell.draw)] = (made,)
            then[Task("cell", cell.strategy, cell.draw, cell)] = (made,)
        return first | then | last

    def select(self, only: Sequence[str] = (), methods: Sequence[str] = ()) -> list[Cell]:
        """Cells of the grid that a filter lets through.

        Args:
            only: `key=value` conditions joined by commas; a cell has to meet all those of one of them. Keys: strategy,
                source, kind, draw, method, sparsity.
            methods: pruning methods; default all.

        Raises:
            UnknownName: a key that cells do not have, or a value that no cell of the grid has.
        """
        def facts(cell: Cell) -> dict[str, str]:
            kind = self.strategies[cell.strategy].kind
            source = {"source": cell.strategy} if kind == "source" else {}
            return {key: str(value) for key, value in {**asdict(cell), "kind": kind, **source}.items()}

        known = [facts(cell) for cell in self.cells()]
        wanted = [dict(part.partition("=")[::2] for part in text.split(",")) for text in only]
        for key, value in [*(item for one in wanted for item in one.items()), *(("method", m) for m in methods)]:
            values = {one[key] for one in known if key in one}
            if not values:
                raise UnknownName("key of --only", key, {*known[0], "source"}, "(write key=value,key=value)")
            if value not in values:
                raise UnknownName(f"{key} in the grid of this profile", value, values)
        return [
            cell for cell, one in zip(self.cells(), known, strict=True)
            if (not methods or cell.method in methods) and (not wanted or any(w.items() <= one.items() for w in wanted))
        ]

    def specification(self, task: Task) -> dict[str, Any]:
        """Specification of a task. Of a cell or a profile: raises KeyError as long as its set is not on record."""
        if task.stage in ("pool", "calibration"):
            return self._set_spec(task.stage, task.strategy, task.draw)
        if task.stage == "dense":
            return {"stage": "dense", "suite": self._suite, **self.numbers}
        known = self.recorded_set(task.strategy, task.draw)
        sha256, scope = known["sha256"], known["scope"]
        if task.cell:
            return self.spec(task.cell)
        if scope is None:
            raise KeyError("scope")
        return {"stage": "profile", "calibration": sha256, "suite": self._suite, "scope": scope, **self.numbers}

    def done(self, task: Task) -> bool:
        """Whether a task is on record, so that nothing has to be computed for it."""
        if task.stage == "calibration":
            return self.recorded_set(task.strategy, task.draw).get("scope") is not None
        try:
            return self._usable(self.store.get(self.specification(task)))
        except KeyError:
            return False

    def learn(self, task: Task, record: Record | None) -> None:
        """Takes note of a calibration set that was made."""
        if task.stage == "calibration" and record is not None:
            self._sets[task.strategy, task.draw] = {key: record.metrics[key] for key in ("sha256", "scope")}

    def compute(self, task: Task) -> dict[str, Any]:
        """Metrics of a task."""
        if task.cell:
            return self._compute(task.cell)
        if task.stage == "dense":
            return self._score_dense()
        if task.stage == "profile":
            return self._profile(task.strategy, task.draw, self.calibration(task.strategy, task.draw))
        labels = {"strategy": task.strategy, "draw": task.draw, "seed": self.settings.seed}
        if task.stage == "pool":
            return {"windows": self.pool(task.draw).n, "labels": labels}
        made = self.calibration(task.strategy, task.draw)
        scope = [len(window.documents) for window in made.windows]
        return {"sha256": made.sha256, "scope": scope, "labels": {**labels, "calibration": made.spec}}

    def perform(self, task: Task, spec: dict[str, Any], sets: Collection[Any] = ()) -> tuple[Record, Any]:
        """Computes a task on a worker: its record (not stored), and the set or pool that others need of it.

        Args:
            sets: calibration sets and pools that other workers made, as `(name or "", draw, set or pool)`.
        """
        for name, draw, made in sets:
            if name:
                self._calibrations[name, draw] = made
            else:
                self._pools[draw] = made
        if "calibration" in spec:
            self._sets.setdefault((task.strategy, task.draw), {"scope": None})["sha256"] = spec["calibration"]
        record = _record(spec, functools.partial(self.compute, task))
        product = self._pools[task.draw] if task.stage == "pool" else None
        return record, self.calibration(task.strategy, task.draw) if task.stage == "calibration" else product

    def dense(self) -> Scores:
        """Scores of the dense model on the suite."""
        spec = self.specification(Task("dense"))
        return Scores.from_dict(self._once(spec, self._score_dense, wait=True).metrics["scores"])  # type: ignore[union-attr]

    def _score_dense(self) -> dict[str, Any]:
        watch = Stopwatch()
        with watch("evaluate"):
            scores = evaluate(self.lm, self.settings.suite, progress=False, run_code=self.settings.run_code)
        return {"scores": scores.to_dict(), "seconds": watch.seconds, "labels": {"strategy": "dense"}}

    def trivial(self) -> pd.DataFrame:
        """Scores of solvers that know nothing on the suite's choices, beside the dense model's (`baselines`).

        `z` is the dense model's lead over the best of them in its standard errors.
        """
        s = self.settings
        spec = {"stage": "trivial", "suite": self._suite, "sources": list(s.sources), **self.numbers}
        record = self._once(spec, lambda: {"rows": baselines(s.suite, s.sources)}, wait=True)
        return against_trivial(record.metrics["rows"], self.dense())  # type: ignore[union-attr]

    def run(self, names: Iterable[str], draws: Sequence[int] | None = None, progress: bool = True) -> list[Result]:
        """Results of strategies at the profile's method and sparsity, in the order asked for."""
        return self.complete([self.cell(n, d) for n in names for d in draws or range(self.settings.draws)], progress)

    def complete(self, wanted: Sequence[Cell], progress: bool = True) -> list[Result]:
        """Results of cells, in the order asked for; missing ones are computed and recorded.

        A cell that another process is computing is left to it and read when it is there.
        """
        done: dict[Cell, Record] = {}
        with tqdm(total=len(wanted), desc="cells", disable=not progress or _silent()) as bar:
            while len(done) < len(set(wanted)):
                before = len(done)
                for cell in wanted:
                    if cell in done:
                        continue
                    bar.set_postfix_str(f"{cell.strategy} {cell.draw}")
                    record = self._once(self.spec(cell), functools.partial(self._compute, cell))
                    if record is not None:
                        done[cell] = record
                        bar.update()
                if len(done) == before:
                    time.sleep(1.0)
        return [Result(cell, Scores.from_dict(done[cell].metrics["scores"]), done[cell]) for cell in wanted]

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
                record = _record(spec, compute)
                self.store.put(record)
        return record

    def _usable(self, record: Record | None) -> bool:
        return record is not None

    def _compute(self, cell: Cell) -> dict[str, Any]:
        s, watch = self.settings, Stopwatch()
        calibration = self.calibration(cell.strategy, cell.draw)
        amount: dict[str, Any] = {"pattern": s.pattern} if s.pattern else {"sparsity": cell.sparsity}
        pruned = copy.copy(self.lm)
        pruned.model = copy.deepcopy(self.lm.model)
        with watch("prune"):
            report = prune(pruned, calibration, method=cell.method, order=s.order, progress=False, **amount)
        with watch("evaluate"):
            scores = evaluate(pruned, s.suite, progress=False, run_code=s.run_code)
        return {
            "scores": scores.to_dict(),
            "prune": report.totals(),
            "mask": mask_sample(report),
            "seconds": watch.seconds,
            "labels": {**asdict(cell), "seed": s.seed, "calibration": calibration.spec},
        }

    def information(self, names: Iterable[str], draw: int = 0, progress: bool = True) -> pd.DataFrame:
        """OIT metrics, one row per strategy."""
        rows = {}
        for name in tqdm(list(names), desc="profiles", disable=not progress or _silent()):
            calibration = self.calibration(name, draw)
            spec = {
                "stage": "profile",
                "calibration": calibration.sha256,
                "suite": self._suite,
                "scope": [len(w.documents) for w in calibration.windows],
                **self.numbers,
            }
            compute = functools.partial(self._profile, name, draw, calibration)
            record = self._once(spec, compute, wait=True)
            rows[name] = record.metrics["information"]  # type: ignore[union-attr]
        return pd.DataFrame(rows).T

    def _profile(self, name: str, draw: int, calibration: CalibrationSet) -> dict[str, Any]:
        values = oit_profile(calibration, self.lm, self._reference)
        return {"information": values, "labels": {"strategy": name, "draw": draw, "calibration": calibration.spec}}

    @functools.cached_property
    def _reference(self) -> Mapping[str, Any]:
        return reference_counts(heldout_texts(self.settings.suite), self.lm)

    def retentions(self, results: Sequence[Result], measure: str | None = None) -> dict[str, Retention]:
        """Retention per strategy, over its draws; by the profile's measure unless another is asked for."""
        dense = self.dense()
        grouped: dict[str, list[Scores]] = {}
        for result in results:
            grouped.setdefault(result.strategy, []).append(result.scores)
        return {name: retention(scores, dense, measure or self.settings.measure) for name, scores in grouped.items()}


def _record(spec: dict[str, Any], compute: Callable[[], dict[str, Any]]) -> Record:
    started, clock = now(), time.perf_counter()
    metrics = compute()
    seconds = round(time.perf_counter() - clock, 3)
    return Record(spec, metrics, {**provenance(), "started": started, "finished": now(), "seconds": seconds})


def _continuation(lm: LanguageModel, made: CalibrationSet, row: int, tokens: int) -> list[int]:
    """What the model wrote after the prefix of the first text that begins in a window of SGS, written again."""
    name = made.windows[row].documents[:2][-1]
    requests = sgs_requests(lm, made.spec, made.spec["seed"])
    request = next(r for r in requests if f"sgs/{r.seed:016x}" == name)
    return write_texts(lm, [request], tokens, "stop", progress=False)[0].ids


def _silent() -> bool:
    """`TQDM_DISABLE=1` silences bars: the runner sets it, so that executed notebooks hold results alone."""
    return os.environ.get("TQDM_DISABLE", "") not in ("", "0")


def against_trivial(rows: Sequence[Mapping[str, Any]], dense: Scores) -> pd.DataFrame:
    """Rows of `baselines` with the dense model's score and its lead over the best solver in standard errors."""
    table = pd.DataFrame(rows)
    table["dense"] = [dense[task].value for task in table.task]
    table["z"] = [(dense[t].value - best) / dense[t].stderr for t, best in zip(table.task, table.best, strict=True)]
    return table[["task", "n", "chance", "longest", "overlap", "trigram", "dense", "z"]]


def score_table(scores: Scores) -> pd.DataFrame:
    """Scores as a table, one row per task."""
    names = {"task": "task", "dimension": "dimension", "metric": "metric", "value": "value", "stderr": "standard error",
             "n": "items", "chance": "chance"}
    return pd.DataFrame([{title: getattr(task, name) for name, title in names.items()} for task in scores])


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
