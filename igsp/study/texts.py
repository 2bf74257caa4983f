"""The calibration text of a study: sets, pools and choices, each made once; what a model writes lies in the cache."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from igsp import writing
from igsp.assets import cache_dir, catalog
from igsp.errors import UnknownName
from igsp.models import LanguageModel, folder_fingerprint, load_model, resolve_folder
from igsp.provenance import key_of
from igsp.scoring.contamination import contaminated
from igsp.study.grid import Strategy, strategies
from igsp.study.records import Store
from igsp.study.settings import CHOICES, PROTOCOLS, Settings, arithmetic
from igsp.text.likelihood import window_losses
from igsp.text.windows import CalibrationSet, mix, sample
from igsp.writing import CandidatePool, Selection
from igsp.writing.generation import write_texts
from igsp.writing.sgs import _requests as sgs_requests


class Texts:
    """Makes the calibration text of the settings and keeps it in memory."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.strategies = settings, strategies(settings)
        self._made: dict[tuple[str, int], Any] = {}  # by strategy (of a pool "") and draw

    @functools.cached_property
    def lm(self) -> LanguageModel:
        """The dense model, loaded once."""
        return load_model(self.settings.model, self.settings.device, self.settings.dtype)

    @functools.cached_property
    def numbers(self) -> dict[str, str]:
        """Model (its fingerprint), device and number format; the model is not loaded for it."""
        return {"model": folder_fingerprint(resolve_folder(self.settings.model)), **arithmetic(self.settings)}

    def strategy(self, name: str) -> Strategy:
        if name not in self.strategies:
            raise UnknownName("strategy", name, self.strategies)
        return self.strategies[name]

    def take(self, sets: Iterable[tuple[str, int, Any]]) -> None:
        """Takes over sets and pools that another process made: strategy (of a pool ""), draw, set."""
        self._made |= {(name, draw): made for name, draw, made in sets}

    def calibration(self, name: str, draw: int = 0) -> CalibrationSet:
        """The calibration set of a strategy and draw."""
        return self._once(name, draw, lambda: self._set(self.strategy(name), draw))

    def pool(self, draw: int = 0) -> CandidatePool:
        """The candidates that the model wrote for a draw, screened; every choice is made among them."""
        return self._once("", draw, lambda: self._pool(draw))

    def selection(self, name: str, draw: int = 0) -> Selection:
        """What a rule took from the pool, with its trace where it has one."""
        s, options = self.settings, dict(self.strategy(name).detail)
        chosen, pool, seed = CHOICES[rule := options.pop("rule")], self.pool(draw), self.settings.seed + draw
        if rule == "igsp":
            return chosen(pool, s.n, seed=seed, progress=False, **options)
        if rule == "random":
            return chosen(pool, s.n, seed)
        if rule == "lowest-perplexity":
            return chosen(pool, s.n)
        return chosen(pool, self.lm, s.n) if rule == "lexical-diversity" else chosen(pool, self.lm, s.n, seed, False)

    def _once(self, name: str, draw: int, make: Callable[[], Any]) -> Any:
        if (name, draw) not in self._made:
            self._made[name, draw] = make()
        return self._made[name, draw]

    def _set(self, strategy: Strategy, draw: int) -> CalibrationSet:
        s, stream, detail = self.settings, self.settings.seed + draw, dict(strategy.detail)
        if strategy.kind == "source":
            name = detail["source"]
            return sample(name, self.lm.tokenizer, s.n, s.seqlen, stream, contaminated(name, s.suite))
        if strategy.kind == "mix":
            without = {name: contaminated(name, s.suite) for name in detail["weights"]}
            return mix(detail["weights"], self.lm.tokenizer, s.n, s.seqlen, stream, without)
        if strategy.kind == "selection":
            return self.selection(strategy.name, draw).calibration
        protocol = PROTOCOLS[detail.pop("protocol")]
        size = {"n": s.n, "seqlen": s.seqlen, "seed": stream, "progress": False}
        folder = self._written(
            strategy.detail, stream, lambda texts: protocol(self.lm, **size, resume=texts, **detail)
        )
        return CalibrationSet.load(folder)

    def _pool(self, draw: int) -> CandidatePool:
        s, stream = self.settings, self.settings.seed + draw
        folder = self._written({"pool": s.pool}, stream, lambda texts: writing.candidate_pool(
            self.lm, s.n, s.seqlen, stream, progress=False, resume=texts, **s.pool
        ))
        limits = {name: catalog("protocols")["igsp"][name]["value"] for name in ("drop_share", "loop_limit")}
        return writing.screen(CandidatePool.load(folder), **limits)

    def _written(self, what: dict[str, Any], stream: int, write: Callable[[Path], Any]) -> Path:
        """Cache folder of text that the model wrote; made once, by one process, and kept whole.

        `write` keeps finished texts in the file it is given, so that a killed run goes on from them.
        """
        s = self.settings
        about = {**what, "n": s.n, "seqlen": s.seqlen, "seed": stream, "writing": writing.VERSION, **self.numbers}
        folder = cache_dir() / "written" / key_of(about)
        with Store(folder.parent).claim(folder.name, wait=True):
            if not folder.exists():
                texts = folder.with_suffix(".jsonl")
                with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
                    write(texts).save(Path(scratch) / "made")
                    (Path(scratch) / "made").rename(folder)
                texts.unlink(missing_ok=True)
        return folder

    def samples(self, draw: int, tokens: int) -> dict[str, Any]:
        """Of every protocol and pool the first tokens of the window of median perplexity; traces of IGSP's choices.

        Of SGS, whose texts begin with words of a corpus, the first tokens that the model wrote.
        """
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
        return {"samples": rows, "traces": traces}


def _continuation(lm: LanguageModel, made: CalibrationSet, row: int, tokens: int) -> list[int]:
    """What the model wrote after the prefix of the first text that begins in a window of SGS, written again."""
    name = made.windows[row].documents[:2][-1]
    requests = sgs_requests(lm, made.spec, made.spec["seed"])
    request = next(r for r in requests if f"sgs/{r.seed:016x}" == name)
    return write_texts(lm, [request], tokens, "stop", progress=False)[0].ids
