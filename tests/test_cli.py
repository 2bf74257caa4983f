"""The commands of an engineer: what they write, what a dry run promises, and how bad input is refused."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from igsp_book.reference import commands
from tiny import tiny_model
from transformers import AutoModelForCausalLM, BertConfig, BertModel

from igsp import cli
from igsp.completion import script
from igsp.pruning import cost as plan
from igsp.pruning.report import load_masks
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
    monkeypatch.setattr(cli, "_load", None)
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
    monkeypatch.setattr(cli, "_load", None)
    (tmp_path / "one.yaml").write_text("tasks: [{task: text_math, dimension: math, metric: bits_per_byte, limit: 2}]\n")
    code, out, _ = run("evaluate", "--model", model, "--suite", tmp_path / "one.yaml", "--dry-run", "--json")
    steps = json.loads(out)
    assert code == 0 and [s["step"] for s in steps] == ["reads", "reads", "computes", "memory", "time", "writes"]
    assert "1 tasks, " in steps[1]["what"] and "forward passes" in steps[2]["what"]
    found = plan.suite_texts(tmp_path / "one.yaml")["text_math"]
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
        (["prune", "--mix", "stdlib=much"], "name=weight pairs, got 'stdlib=much'"),
        (["prune", "--mix", "nowhere.yaml"], "'nowhere.yaml' holds no mix"),
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
    monkeypatch.setattr(cli, "_load", lambda options: tiny_model() if options.command is cli._calibrate else 1 / 0)
    code, _, err = run(*arguments, "--model", model, "--out", tmp_path / "out")
    assert code == 2 and match in err, err
    assert not list(tmp_path.iterdir())


def test_an_existing_output_is_refused(run, model, tmp_path):
    (tmp_path / "kept").write_text("mine")
    for command in (["prune", "--source", "stdlib"], ["calibrate", "--source", "stdlib"], ["advise", "--keep", "code"]):
        code, _, err = run(*command, "--model", model, "--out", tmp_path)
        assert code == 2 and "exists" in err
    assert (tmp_path / "kept").read_text() == "mine"


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_too_little_memory_or_disk_is_said_before_starting(run, model, tmp_path, monkeypatch, dry):
    monkeypatch.setattr(cli, "_load", None)
    command = ["prune", "--model", model, "--source", "stdlib", "--device", "cpu", "--out", tmp_path / "out", *dry]
    with monkeypatch.context() as patch:
        patch.setattr(plan, "_free_memory", lambda: 1000)
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


LEAVES = [name.split() for name, _ in commands(cli._parser())]


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_every_command_explains_itself_and_names_the_nearest(path, capsys):
    def refused(*arguments):
        with pytest.raises(SystemExit) as end:
            cli.main(arguments)
        return end.value.code, capsys.readouterr()

    name = path[1:]
    code, said = refused(*name, "--help")
    examples = said.out.split("examples:\n", 1)[1].splitlines()
    assert code == 0 and all(f"igsp {' '.join(name)}" in line or "igsp prune" in line for line in examples if line)
    for line in examples:  # each example is a command that the parser takes
        words = shlex.split(line.replace('eval "$(', "").replace(')"', "").partition("|")[0])
        if words:
            cli._parser().parse_args(words[words.index("igsp") + 1:])
    assert "--quiet" in said.out and "-h, --help" in said.out
    code, said = refused(*name[:-1], name[-1][:-1] + "q")
    assert code == 2 and f"did you mean {name[-1]}" in said.err
    code, said = refused(*name, "--quieet")
    assert code == 2 and "unknown option '--quieet': did you mean --quiet" in said.err


@pytest.mark.parametrize("arguments", [["--n", "0"], ["--seqlen", "-3"], ["--n", "many"]])
def test_a_count_that_is_none_is_refused(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["prune", "--out", "x", *arguments])
    assert end.value.code == 2 and "a whole number of at least 1" in capsys.readouterr().err


@pytest.mark.skipif(not shutil.which("bash"), reason="there is no bash")
@pytest.mark.parametrize(
    ("words", "expected"),
    [("igsp pru", "prune"), ("igsp prune --spa", "--sparsity"), ("igsp study r", "run"),
     ("igsp advise --kee", "--keep")],
)
def test_bash_completes_commands_and_options(words, expected):
    line = (f"{script('bash', cli._parser())}\nCOMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _igsp; "
            'echo "${COMPREPLY[@]}"')
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.split() == [expected], done.stderr


def test_completion_for_other_shells(run):
    for shell in ("zsh", "fish"):
        code, out, _ = run("completion", shell)
        assert code == 0 and "advise" in out and "sparsity" in out
    assert run("completion", "cmd")[0] == 2
