"""The commands of an engineer: what they write, what a dry run promises, and how bad input is refused."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch
import typer
from tiny import tiny_model
from transformers import AutoModelForCausalLM, BertConfig, BertModel

from igsp import cli
from igsp.cli.common import Model
from igsp.pruning import cost as plan
from igsp.pruning.report import load_masks
from igsp.scoring.evaluation import suite_texts
from igsp.text.windows import CalibrationSet

TEXT = ["--n", "4", "--seqlen", "32"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """A folder with a tiny model."""
    folder = tmp_path_factory.mktemp("model")
    lm = tiny_model()
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def run(capsys):
    """Runs the command; returns exit code, output and error text."""

    def call(*arguments: object) -> tuple[int, str, str]:
        code = cli.main([str(a) for a in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_calibrate_then_prune_then_prune_again_from_each_format(run, model, tmp_path):
    """One calibration set, three ways of writing it, one and the same pruned model; streamed or not."""
    masks = []
    for form in ("igsp", "datasets", "jsonl"):
        path = tmp_path / f"{form}.jsonl"
        code, out, _ = run("calibrate", "--model", model, "--mix", "stdlib=1,pydoc_topics=1", *TEXT, "--out", path,
                           "--format", form, "--json", "--quiet")
        assert code == 0 and json.loads(out)["n"] == 4
        code, out, _ = run("prune", "--model", model, "--calibration", path, "--out", tmp_path / f"out-{form}",
                           "--quiet", *(["--stream"] if form == "jsonl" else []))
        assert code == 0 and "60.0% of" in out
        masks.append(load_masks(tmp_path / f"out-{form}"))
    assert CalibrationSet.load(tmp_path / "igsp.jsonl").n == 4
    for other in masks[1:]:
        assert all(torch.equal(other[name], mask) for name, mask in masks[0].items())


def test_prune_needs_nothing_but_a_mix(run, model, tmp_path):
    code, out, err = run("prune", "--model", model, "--mix", "stdlib=1,pydoc_topics=3", "--sparsity", "0.5", "--n", 4,
                         "--out", tmp_path / "out", "--json")
    assert code == 0 and "of memory" in err
    totals = json.loads(out)
    assert totals["reached"] == 0.5 and totals["calibration"]["seqlen"] == 64  # what the model takes
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    weight = loaded.model.layers[0].mlp.up_proj.weight
    assert (weight == 0).float().mean() == pytest.approx(0.5)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["calibration"]["sources"]["pydoc_topics"]["windows"] == 3
    assert (tmp_path / "out" / "README.md").exists()


def test_a_mix_file_is_a_mix(run, model, tmp_path):
    (tmp_path / "mix.yaml").write_text("weights: {stdlib: 0.75, pydoc_topics: 0.25}\n")
    run("calibrate", "--model", model, "--mix", tmp_path / "mix.yaml", *TEXT, "--out", tmp_path / "a")
    run("calibrate", "--model", model, "--mix", "stdlib=3,pydoc_topics=1", *TEXT, "--out", tmp_path / "b")
    assert CalibrationSet.load(tmp_path / "a").sha256 == CalibrationSet.load(tmp_path / "b").sha256


def test_documents_of_ones_own_are_a_source(run, model, tmp_path, monkeypatch):
    rows = [{"head": f"w{i}", "body": " ".join(f"w{(i * j) % 128}" for j in range(40))} for i in range(3, 60)]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "own.yaml").write_text(
        "contracts: {dimension: law, about: ours, licence: secret, origin: file, files: [mine.jsonl], "
        "template: '{head} {body}'}\n"
    )
    monkeypatch.setenv("IGSP_SOURCES", str(tmp_path / "own.yaml"))
    code, _, err = run("prune", "--model", model, "--mix", "contracts=3,stdlib=1", *TEXT, "--out", tmp_path / "out")
    assert code == 0, err
    about = json.loads((tmp_path / "out" / "manifest.json").read_text())["calibration"]["sources"]["contracts"]
    assert about["windows"] == 3 and about["licence"] == "secret" and about["origin"] == "file"
    assert "| contracts | 3 | secret |" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    "command",
    [["prune", "--mix", "stdlib=1,pydoc_topics=1"], ["prune", "--method", "magnitude", "--stream"],
     ["calibrate", "--source", "stdlib"], ["calibrate", "--protocol", "igsp"],
     ["advise", "--keep", "code=2,math=1", "--sources", "stdlib,pydoc_topics"]],
)
def test_a_dry_run_says_what_it_would_do_and_does_nothing(run, model, tmp_path, monkeypatch, command):
    monkeypatch.setattr(Model, "load", None)
    before = sorted(tmp_path.rglob("*"))
    code, out, _ = run(*command, "--model", model, *TEXT, "--out", tmp_path / "out", "--dry-run", "--json")
    steps = json.loads(out)
    assert code == 0 and sorted(tmp_path.rglob("*")) == before
    assert steps[0] == {"step": "reads", "what": f"model {model}"} and steps[-1]["step"] == "writes"
    if "stdlib" in " ".join(command):
        assert any("source stdlib" in step["what"] and "at hand: installed" in step["what"] for step in steps)
    if command[0] != "calibrate":
        assert {"memory", "time"} <= {step["step"] for step in steps}


def test_a_dry_run_of_what_only_reads_counts_its_tokens(run, model, tmp_path, monkeypatch):
    monkeypatch.setattr(Model, "load", None)
    (tmp_path / "one.yaml").write_text("tasks: [{task: text_math, dimension: math, metric: bits_per_byte, limit: 2}]\n")
    code, out, _ = run("evaluate", "--model", model, "--suite", tmp_path / "one.yaml", "--dry-run", "--json")
    steps = json.loads(out)
    assert code == 0 and [s["step"] for s in steps] == ["reads", "reads", "computes", "memory", "time", "writes"]
    assert "1 tasks, " in steps[1]["what"] and "forward passes" in steps[2]["what"]
    found = suite_texts(tmp_path / "one.yaml")["text_math"]
    assert len([text for text in found if text]) == 2
    code, _, err = run("evaluate", "--model", model, "--suite", "nowhere.yaml", "--dry-run")
    assert code == 2 and "unknown suite" in err


def test_a_dry_run_of_a_study_is_its_plan(run, tmp_path):
    for words in (["plan"], ["run", "--dry-run"]):
        code, out, _ = run("study", *words, "--profile", "quick", "--store", tmp_path / "none", "--json")
        assert code == 0 and {"task", "count", "done"} <= set(json.loads(out)[0])
    assert not list(tmp_path.rglob("*.json"))


def test_the_plan_counts_what_the_model_holds(model):
    found = plan.plan(model, n=4, seqlen=32, dtype="float32", device="cpu")
    lm = tiny_model()
    parameters = sum(p.numel() for p in lm.model.parameters())
    assert found.parameters == parameters and found.weights == 4 * parameters and found.linears == 21
    assert found.activations == 4 * 32 * 64 * 4 and found.floor > 0
    assert found.gram == 3 * 4 * (64**2 + 64**2 + 96**2)  # three blocks; attention, gate and up, down
    assert plan.plan(model, 4, 32, stream=True).memory < plan.plan(model, 4, 32).memory
    assert plan.plan(model, 4, 32, method="wanda").working < found.working


def bad_model(kind: str, folder: Path, model: str) -> str:
    if kind == "encoder":
        BertModel(BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
                             vocab_size=64)).save_pretrained(folder)
    elif kind == "unknown":
        (folder / "config.json").write_text('{"model_type": "of-our-own"}')
    elif kind == "quantised":
        shutil.copytree(model, folder, dirs_exist_ok=True)
        config = json.loads((folder / "config.json").read_text())
        config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
        (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
@pytest.mark.parametrize(
    ("kind", "match"), [("empty", "is no model: it has no config.json"), ("encoder", "has no language-model head"),
                        ("quantised", "model.dequantize()"), ("unknown", "no configuration that transformers knows")],
)
def test_what_is_no_prunable_model_is_refused(run, model, tmp_path, kind, match, dry):
    (tmp_path / "model").mkdir()
    folder = bad_model(kind, tmp_path / "model", model)
    code, _, err = run("prune", "--model", folder, "--mix", "stdlib=1", "--out", tmp_path / "out", *dry)
    assert code == 2 and match in err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["prune", "--mix", "stdlibs=1"], "unknown source 'stdlibs': did you mean stdlib"),
        (["prune", "--mix", "stdlib=0,pydoc_topics=0"], "not all zero"),
        (["prune", "--mix", "stdlib=-1"], "not negative"),
        (["prune", "--mix", "stdlib:2", "--n", "4"], "the mix counts 2 windows, --n 4 were asked for"),
        (["prune", "--mix", "stdlib=much"], "got 'stdlib=much'"),
        (["prune", "--mix", "nowhere.yaml"], "'nowhere.yaml' cannot be read"),
        (["prune", "--mix", "uniform", "--profile", "quik"], "did you mean quick"),
        (["prune"], "needs calibration text: say --mix uniform"),
        (["prune", "--source", "stdlib", "--method", "sparsegtp"], "did you mean sparsegpt"),
        (["prune", "--source", "stdlib", "--order", "blok"], "did you mean block"),
        (["prune", "--source", "stdlib", "--seqlen", "65"], "over the 64 positions"),
        (["prune", "--calibration", "nowhere"], "holds no calibration set"),
        (["prune", "--protocol", "ipsg"], "unknown protocol 'ipsg': did you mean"),
        (["prune", "--protocol", "igsp", "--stream"], "calibrate --protocol"),
        (["calibrate", "--source", "stdlib", "--seqlen", "65"], "over the 64 positions"),
        (["advise", "--keep", "cod=1"], "suite 'quick': 'cod': did you mean code"),
        (["advise", "--keep", "code=1", "--sources", "stdlib,nix"], "unknown source 'nix'"),
        (["advise", "--keep", "code=1", "--suite", "nowhere.yaml"], "unknown suite 'nowhere.yaml'"),
    ],
)
def test_bad_input_is_named_and_refused(run, model, tmp_path, monkeypatch, arguments, match):
    monkeypatch.setattr(Model, "load", lambda self: tiny_model() if arguments[0] == "calibrate" else 1 / 0)
    code, _, err = run(*arguments, "--model", model, "--out", tmp_path / "out")
    assert code == 2 and match in err, err
    assert not list(tmp_path.iterdir())


def test_an_existing_output_is_refused(run, model, tmp_path):
    (tmp_path / "kept").write_text("mine", encoding="utf8")
    for command in (["prune", "--source", "stdlib"], ["calibrate", "--source", "stdlib"], ["advise", "--keep", "code"]):
        code, _, err = run(*command, "--model", model, "--out", tmp_path)
        assert code == 2 and "exists" in err
    assert (tmp_path / "kept").read_text() == "mine"


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_too_little_memory_or_disk_is_said_before_starting(run, model, tmp_path, monkeypatch, dry):
    monkeypatch.setattr(Model, "load", None)
    command = ["prune", "--model", model, "--source", "stdlib", "--device", "cpu", "--out", tmp_path / "out", *dry]
    with monkeypatch.context() as patch:
        patch.setattr(plan, "free_memory", lambda: 1000)
        code, _, err = run(*command)
        assert code == 2 and "of memory" in err and "--stream" in err
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: namedtuple("Usage", "total used free")(1, 1, 1000))
        code, _, err = run(*command)
        assert code == 2 and "the checkpoint takes" in err and str(tmp_path) in err
    assert not list(tmp_path.iterdir())


def test_a_task_that_lm_eval_does_not_know_is_named(run, model, tmp_path):
    (tmp_path / "own.yaml").write_text("tasks: [{task: helaswag, dimension: commonsense, metric: acc}]\n")
    code, _, err = run("evaluate", "--model", model, "--suite", tmp_path / "own.yaml")
    assert code == 2 and "unknown task 'helaswag'" in err and "hellaswag" in err


def test_a_failing_disk_is_a_failure_and_not_a_traceback(run, model, tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device", str(tmp_path))

    monkeypatch.setattr("igsp.text.exchange.export", full)
    code, _, err = run("calibrate", "--model", model, "--source", "stdlib", *TEXT, "--out", tmp_path / "x")
    assert code == 1 and "No space left" in err


LEAVES = dict(cli.leaves())


@pytest.mark.parametrize("path", LEAVES)
def test_every_command_explains_itself_and_names_the_nearest(run, path):
    name = path.split()[1:]
    code, said, _ = run(*name, "--help")
    examples = said.split("examples:\n", 1)[1].splitlines()
    assert code == 0 and all(path in line or "igsp prune" in line for line in examples if line)
    for line in filter(str.strip, examples):  # each example is a command that the parser takes
        words = shlex.split(line.replace('eval "$(', "").replace(')"', "").partition("|")[0])
        words = cli._pairs_joined(words[words.index("igsp") + 1:])
        group = typer.main.get_command(cli.application())
        while words and words[0] in getattr(group, "commands", ()):
            group = group.commands[words.pop(0)]
        group.make_context("igsp", words)
    assert "--quiet" in said and "-h, --help" in said
    code, _, said = run(*name[:-1], name[-1][:-1] + "q")
    assert code == 2 and f"Did you mean '{name[-1]}'" in said
    code, _, said = run(*name, "--quieet")
    assert code == 2 and "No such option: --quieet" in said and "--quiet" in said.partition("Possible options")[2]


def test_help_comes_at_once():
    """What `igsp --help` imports, since a time depends on the machine."""
    line = ("import sys; from igsp.cli import main; main(['--help']); "
            "sys.exit(len({'torch', 'sphinx', 'pandas'} & set(sys.modules)))")
    assert subprocess.run([sys.executable, "-c", line], capture_output=True).returncode == 0


def test_the_commands_of_the_book_say_what_they_need(run, monkeypatch):
    monkeypatch.setattr(cli, "find_spec", lambda name: None)
    code, _, err = run("course", "list")
    assert code == 2 and "igsp_book is not installed" in err
    code, out, _ = run("--help")
    assert code == 0 and "notebooks" in out


@pytest.mark.parametrize("arguments", [["--n", "0"], ["--seqlen", "-3"], ["--n", "many"]])
def test_a_count_that_is_none_is_refused(run, arguments):
    code, _, err = run("prune", "--out", "x", *arguments)
    assert code == 2 and f"Invalid value for '{arguments[0]}'" in err


@pytest.mark.parametrize("command", [["prune", "--source", "stdlib"], ["advise", "--keep", "code"]])
@pytest.mark.parametrize(
    ("arguments", "match"),
    [(["--sparsity", "nan"], "sparsity nan is outside"), (["--sparsity", "-0.1"], "outside [0, 1)"),
     (["--sparsity", "2"], "outside [0, 1)"), (["--pattern", "٢:٤"], "no N:M pattern"),
     (["--pattern", "²:4"], "no N:M pattern"), (["--method", "wand"], "did you mean wanda")],
)
def test_pruning_options_are_refused_before_a_model_is_loaded(run, model, tmp_path, monkeypatch, command, arguments,
                                                               match):
    monkeypatch.setattr(Model, "load", None)
    for dry in ([], ["--dry-run"]):
        code, _, err = run(*command, *arguments, "--model", model, "--out", tmp_path / "out", *dry)
        assert code == 2 and match in err and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "match"),
    [(["calibrate", "--source", "stdlib", "--format", "jsn"], "unknown format 'jsn'"),
     (["calibrate", "--source", "stdlib", "--avoid", "quik"], "unknown suite 'quik'"),
     (["prune", "--source", "stdlib", "--avoid", "quik"], "unknown suite 'quik'"),
     (["calibrate"], "say which text"),
     (["calibrate", "--source", "stdlib", "--mix", "uniform"], "exclude each other"),
     (["prune", "--source", "stdlib", "--protocol", "igsp"], "exclude each other")],
)
def test_what_a_text_is_made_of_is_checked_first(run, model, tmp_path, monkeypatch, arguments, match):
    monkeypatch.setattr(Model, "load", None)
    for dry in ([], ["--dry-run"]):
        code, _, err = run(*arguments, "--model", model, "--out", tmp_path / "out", *dry)
        assert code == 2 and match in err, err


@pytest.mark.parametrize("command", [["prune", "--source", "stdlib"], ["calibrate", "--source", "stdlib"],
                                     ["advise", "--keep", "code"], ["evaluate"]], ids=lambda words: words[0])
@pytest.mark.parametrize(
    ("out", "match"),
    [("file/out", "Not a directory"), ("file/under/out", "Not a directory"), ("dangling", "a link to nothing"),
     ("x" * 256, "File name too long"), ("x" * 250, "File name too long"), ("dangling/out", "a link to nothing"),
     ("loop/out", "symbolic links"), ("closed/out", "no permission"), ("full", "exists")],
)
def test_an_output_that_cannot_be_written_is_refused_first(run, model, tmp_path, monkeypatch, command, out, match):
    monkeypatch.setattr(Model, "load", None)
    (tmp_path / "file").write_text("mine", encoding="utf8")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "closed").mkdir()
    (tmp_path / "full" / "inner").mkdir(parents=True)
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, how: "closed" not in str(path) and allowed(path, how))  # for root
    before = sorted(tmp_path.rglob("*"))
    for dry in ([], ["--dry-run"]):
        code, _, err = run(*command, "--model", model, "--out", tmp_path / out, *dry)
        assert code == 2 and match in err and len(err.splitlines()) == 1, err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("value", ["nan", "-1", "inf"])
def test_a_tolerance_is_a_number_of_at_least_0(run, tmp_path, value):
    for option in ("--tolerance", "--relative"):
        code, _, err = run("diff", tmp_path, tmp_path, option, value)
        assert code == 2 and f"{option} must be a number of at least 0" in err


@pytest.mark.parametrize("error", [OSError(28, "No space left"), RecursionError(), "é".encode("latin1")])
def test_the_unexpected_is_one_line(run, monkeypatch, error):
    def fail(name):
        raise error if isinstance(error, Exception) else UnicodeDecodeError("utf8", error, 0, 1, "invalid")

    monkeypatch.setattr("igsp.study.records.Store", fail)
    code, _, err = run("diff", "a", "b")
    assert code == 1 and err.startswith("igsp: ") and len(err.splitlines()) == 1


@pytest.mark.parametrize("stop", ["SIGTERM", "SIGINT"])
def test_a_stop_is_one_line(stop):
    line = (f"import os, signal, sys; from igsp import cli; import igsp.text.catalogue as c; "
            f"c.catalogue = lambda: os.kill(os.getpid(), signal.{stop}); sys.exit(cli.main(['sources']))")
    done = subprocess.run([sys.executable, "-c", line], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("igsp: stopped") and len(done.stderr.splitlines()) == 1


@pytest.mark.skipif(not shutil.which("bash"), reason="there is no bash")
@pytest.mark.parametrize(
    ("words", "expected"),
    [("igsp pru", "prune"), ("igsp prune --spa", "--sparsity"), ("igsp study r", "run"),
     ("igsp advise --kee", "--keep"), ("igsp course st", "start")],
)
def test_bash_completes_commands_and_options(run, tmp_path, words, expected):
    (tmp_path / "igsp").write_text(f'#!/bin/sh\nexec {sys.executable} -m igsp.cli "$@"\n', encoding="utf8")
    (tmp_path / "igsp").chmod(0o755)
    line = (f"{run('completion', 'bash')[1]}\nCOMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); "
            '_igsp_completion igsp; echo "${COMPREPLY[@]}"')
    path = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=path)
    assert done.returncode == 0 and done.stdout.split() == [expected], done.stderr


def test_completion_for_other_shells(run):
    for shell in ("zsh", "fish"):
        code, out, _ = run("completion", shell)
        assert code == 0 and "_IGSP_COMPLETE" in out
    assert run("completion", "cmd")[0] == 2
