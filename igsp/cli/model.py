"""Commands about a model: prune it, score it, find the mix that keeps what matters."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from igsp.assets import output_path, whole_or_nothing
from igsp.cli import common as c
from igsp.cli.text import Text
from igsp.errors import UsageError

app = typer.Typer()


@c.command(app, "igsp prune --model smollm2-135m --mix uniform --sparsity 0.6 --out pruned --dry-run",
         "igsp prune --model ./my-model --calibration set --method wanda --pattern 2:4 --out pruned",
         "igsp prune --model ./my-model --mix advice/mix.yaml --stream --out pruned")
def prune(
    model: c.Model, text: Text, pruning: c.Pruning, out: c.Out,
    order: Annotated[str, Option(help="block, true-sequential or dense")] = "block",
    stream: Annotated[bool, Option(
        "--stream", help="one block in memory at a time, from file to file: for a model larger than memory; a killed "
                         "run is resumed by the same command")] = False,
    *, how: c.How,
) -> None:
    """prune a model; writes a plain checkpoint"""
    from igsp.provenance import duration, gigabytes
    from igsp.pruning.cost import SLOWDOWN, plan
    from igsp.pruning.driver import prune, save
    from igsp.pruning.solvers import NEEDS
    from igsp.pruning.streaming import prune_folder

    output_path(out)
    reads = text.reads()
    if not reads and NEEDS[pruning.method] != "nothing":
        raise UsageError(f"method '{pruning.method}' needs calibration text: say --mix uniform, or --calibration")
    if stream and text.protocol:
        raise UsageError("--stream keeps no model that could write: run `igsp calibrate --protocol` first")
    planned = plan(model.model, *text.size(model), pruning.method, order, model.device, model.dtype, stream)
    written = f"{out}: checkpoint, masks, manifest and model card, {gigabytes(planned.disk)}"
    if c.dry(how, model.model, reads, planned, out, written):
        return
    if not how.quiet:
        low, high = (duration(planned.floor * factor) for factor in SLOWDOWN)
        print(f"about {gigabytes(planned.memory)} of memory, {low} to {high}", file=sys.stderr)
    settings = {**vars(pruning), "order": order, "progress": not how.quiet}
    if stream:
        calibration = text.make(model.tokenizer(), planned.seqlen)
        report = prune_folder(model.model, out, calibration, model.device, model.dtype, **settings)
    else:
        lm = model.load()
        calibration = text.make(lm.tokenizer, planned.seqlen, lm)
        report = prune(lm, calibration, **settings)
        save(lm, out, report, calibration)
    if how.json:
        print(json.dumps(report.totals(), indent=1))
    else:
        print(f"{report.reached:.1%} of {report.weights:,} weights are zero, mean layer error {report.error:.3f}, "
              f"{duration(report.seconds)}, peak memory {gigabytes(report.peak_memory)}: {out}")


@c.command(app, "igsp advise --keep code=2,math=1 --n 8 --seqlen 256 --out advice",
         "igsp prune --mix advice/mix.yaml --out pruned")
def advise(
    keep: Annotated[str, Option(help="weights by dimension, as code=2,math=1; others count nothing")],
    model: c.Model, pruning: c.Pruning, out: c.Out,
    sources: Annotated[str | None, Option(help="sources to mix, as a,b,c (default: the profile's uniform mix)")] = None,
    suite: Annotated[str | None, Option(help="name or YAML file (default: the profile's)")] = None,
    n: c.Windows = None, seqlen: c.Seqlen = None, draw: c.Draw = 0, profile: c.Profile = "quick",
    trials: Annotated[int, Option(min=1, help="most mixes to search")] = 20,
    draws: Annotated[int, Option(min=1, help="calibration sets to confirm with")] = 3,
    *, how: c.How,
) -> None:
    """search the mix of sources that keeps what matters (windows as in the profile), check it against uniform"""
    from igsp.advise import advise, asked
    from igsp.pruning.cost import plan
    from igsp.study.study import settings
    from igsp.text.catalogue import source

    output_path(out, empty_folder=True)
    chosen = settings(profile)
    names = sources.split(",") if sources else list(chosen.uniform)
    suite, weights = suite or chosen.suite, c.pairs(keep, "--keep")
    asked(weights, suite)
    reads = [f"source {name} (at hand: {source(name).at_hand()})" for name in names]
    n, seqlen = n or chosen.n, seqlen or chosen.seqlen
    planned = plan(model.model, n, seqlen, pruning.method, "block", model.device, model.dtype)
    planned = planned.repeated(trials + 2 * draws, len(names))
    prunings = f"{trials} prunings to search, {2 * draws} to confirm, each scored"
    written = f"{out}: mix.yaml, advice.json, advice.png; finished prunings in the cache"
    if c.dry(how, model.model, [*reads, f"suite {suite}"], planned, out, written, prunings):
        return
    found = advise(
        model.load(), weights, names, suite, pruning.method, pruning.sparsity, pruning.pattern, n, planned.seqlen,
        draws, trials, draw, progress=not how.quiet,
    )
    found.save(out)
    if how.json:
        print(found.to_json())
        return
    c.table(found.rows(), False)
    print(f"{found.verdict}\n{out / 'mix.yaml'}")


@c.command(app, "igsp evaluate --model pruned --suite quick --out pruned.json")
def evaluate(
    model: c.Model, suite: c.Suite = "quick",
    run_code: Annotated[bool, Option("--run-code", help="allow tasks that run programs the model writes")] = False,
    out: Annotated[Path | None, Option(help="file to write the scores to, with those of each item")] = None,
    *, how: c.How,
) -> None:
    """scores of a model on a suite of tasks"""
    from igsp.pruning.cost import reading
    from igsp.scoring.evaluation import evaluate, suite_texts
    from igsp.scoring.suites import load_suite

    load_suite(suite)
    if out:
        output_path(out, file=True)
    if how.dry_run:
        found, tokenizer = suite_texts(suite), model.tokenizer()
        tokens = sum(len(tokenizer.encode(text, verbose=False)) for texts in found.values() for text in texts)
        plan = reading(model.model, tokens, model.device, model.dtype)
        reads = [f"suite {suite}: {len(found)} tasks, {tokens:,} tokens of text, at hand"]
        c.dry(how, model.model, reads, plan, out, str(out or "the terminal"))
        return
    scores = evaluate(model.load(), suite, progress=not how.quiet, run_code=run_code)
    if out:
        with whole_or_nothing(out) as temporary:
            temporary.write_text(json.dumps(scores.to_dict(), indent=1), encoding="utf8")
    columns = ("task", "dimension", "metric", "value", "stderr", "n", "chance")
    c.table([{k: getattr(task, k) for k in columns} for task in scores.tasks], how.json)
