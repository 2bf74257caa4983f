"""What a reader can rely on about scores: they are what the model's logits say, on items that are well formed."""

from __future__ import annotations

import gzip
import json
import math
import os
import sys

import datasets
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import FAMILIES, tiny_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from igsp.errors import AssetError, NumericalError, UnknownName, UsageError
from igsp.models import LanguageModel, tokenizer_fingerprint
from igsp.scoring import items
from igsp.scoring import published as sets
from igsp.scoring.evaluation import (
    Scores,
    evaluate,
    heldout_texts,
    ratio_with_stderr,
    suite_items,
    suite_sha256,
)
from igsp.scoring.suites import SuiteTask, load_suite, read_task_file, task_folders, tasks_for
from igsp.text.catalogue import DIMENSIONS, catalogue, documents

SHAPE = dict(vocab_size=257, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=2048)
QUICK, SMALL, PAPER = load_suite("quick"), load_suite("small"), load_suite("paper")
CHOICES = [task.task for task in QUICK.tasks if task.metric == "acc"]
TEXTS = [task.task for task in QUICK.tasks if task.metric == "bits_per_byte"]


needs_mirror = pytest.mark.skipif(not os.environ.get("IGSP_DATA"), reason="IGSP_DATA names no mirror of public data")


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, and a BOS token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(["<s>", *alphabet])}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="<s>")


def tiny(kind: str = "llama") -> LanguageModel:
    torch.manual_seed(0)
    if kind == "llama":
        model = LlamaForCausalLM(LlamaConfig(**SHAPE))
    else:  # caps its logits: the head alone does not give them
        model = Gemma2ForCausalLM(Gemma2Config(**SHAPE, head_dim=8, final_logit_softcapping=0.1))
    with torch.no_grad():  # a random model of the usual scale is nearly uniform: make it opinionated
        model.get_output_embeddings().weight.mul_(20)
    return LanguageModel(model.eval(), byte_tokenizer(), kind, "0" * 64)


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return tiny()


@pytest.fixture
def own_suite(tmp_path):
    """A suite outside the package: its own task file and data beside it."""
    answers = [[str(2 * a), str(a), "many things"] for a in range(7)]
    rows = [{"query": f"{a} plus {a} is", "choices": answers[a], "gold": a % 3} for a in range(7)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "sums.yaml").write_text(
        "task: sums\ndataset_path: json\ndataset_kwargs: {data_files: {test: rows.jsonl}}\ntest_split: test\n"
        "output_type: multiple_choice\ndoc_to_text: query\ndoc_to_choice: choices\ndoc_to_target: gold\n"
        "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
    )
    path = tmp_path / "mine.yaml"
    path.write_text("tasks:\n- {task: sums, dimension: math, metric: acc, chance: 0.33}\n"
                    "- {task: text_math, dimension: math, metric: bits_per_byte, limit: 3}\n")
    return path, rows


def log_likelihood(lm: LanguageModel, context: str, text: str) -> float:
    """Log-probability (nats) of `text` after `context` (BOS if empty), straight from the logits."""
    before = lm.tokenizer.encode(context) if context else [lm.tokenizer.bos_token_id]
    ids = torch.tensor([before + lm.tokenizer.encode(text)])
    with torch.no_grad():
        logp = lm.model(ids).logits.double().log_softmax(-1)[0, :-1]
    return logp.gather(1, ids[0, 1:, None])[len(before) - 1 :].sum().item()


def test_bits_per_byte_is_that_of_the_logits(lm, own_suite):
    score = evaluate(lm, own_suite[0], progress=False)["text_math"]
    texts = heldout_texts(own_suite[0])["math"]
    assert score.n == len(texts) == 3
    for (bits, size), text in zip(score.items, texts, strict=True):
        assert size == len(text.encode())
        assert bits == pytest.approx(-log_likelihood(lm, "", text) / math.log(2), rel=1e-5)
    assert score.value == pytest.approx(sum(b for b, _ in score.items) / sum(s for _, s in score.items))
    assert not score.higher_is_better and score.chance is None


def test_accuracy_is_that_of_the_likeliest_choice(lm, own_suite):
    path, rows = own_suite
    score = evaluate(lm, path, tasks=["sums"], progress=False)["sums"]
    picked = []
    for row in rows:
        likelihoods = [log_likelihood(lm, row["query"], f" {choice}") for choice in row["choices"]]
        picked.append(float(likelihoods.index(max(likelihoods)) == row["gold"]))
    assert [value for (value,) in score.items] == picked
    assert score.value == pytest.approx(sum(picked) / 7)
    assert score.stderr == pytest.approx(torch.tensor(picked).std().item() / math.sqrt(7), rel=1e-5)


SHARE = {"llama", "gpt2", "gpt_neox", "olmo2", "opt", "phi3", "qwen3"}  # choices of an item may stand in one row


@pytest.mark.parametrize("kind", ["capped", *FAMILIES])
def test_scorer_gives_the_numbers_of_lm_evals_own_model(kind):
    """In float32, one text at a time or many, whatever else is in the batch."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from igsp.scoring.scorer import Scorer

    longest = {"max_position_embeddings": 256} if "max_position_embeddings" in FAMILIES.get(kind, {}) else {}
    longest = {"n_positions": 256} if kind == "gpt2" else longest
    model = tiny("gemma2") if kind == "capped" else tiny_model(kind, vocab_size=257, **longest)
    model = LanguageModel(model.model, byte_tokenizer(), kind, "0" * 64)
    pairs = [("a b", " c"), ("a b", " d"), ("", "start"), ("one two", " four five"), ("x" * 90, " y"),
             ("a b", " cc"), ("one two", " six"), ("x" * 90, " zz zz"), ("a", "b"), ("a", "c")]
    requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    rolling = [Instance("loglikelihood_rolling", {}, (text,), i) for i, text in enumerate(["some text", "é" * 50])]
    stock = HFLM(pretrained=model.model, tokenizer=model.tokenizer, batch_size=1, add_bos_token=False)
    expected = stock.loglikelihood(requests), stock.loglikelihood_rolling(rolling)
    for batch_size, tokens in ((None, 4096), (1, 4096), (None, 10), (3, 200)):
        scorer = Scorer(model, batch_size, tokens, progress=False)
        assert scorer._shares == (kind in SHARE)
        found = scorer.loglikelihood(requests)
        assert [total for total, _ in found] == pytest.approx([total for total, _ in expected[0]], abs=1e-4)
        assert [greedy for _, greedy in found] == [greedy for _, greedy in expected[0]]
        assert scorer.loglikelihood_rolling(rolling) == pytest.approx(expected[1], abs=1e-3)


def test_quick_suite_has_both_measures_of_every_dimension(lm):
    assert [task.dimension for task in QUICK.tasks if task.metric == "bits_per_byte"] == list(DIMENSIONS)
    assert {task.dimension for task in QUICK.tasks if task.metric == "acc"} == set(DIMENSIONS)
    scores = evaluate(lm, "quick", limit=2, progress=False)
    assert [s.task for s in scores] == [task.task for task in QUICK.tasks]
    assert all(s.n == 2 and math.isfinite(s.value) and math.isfinite(s.stderr) for s in scores)
    assert scores.settings["add_bos_token"] is False


def test_a_smaller_limit_scores_the_first_items_of_a_larger_one(lm):
    few, more = (evaluate(lm, tasks=["arithmetic", "text_code"], limit=n, progress=False) for n in (2, 5))
    for score in few:
        assert torch.allclose(torch.tensor(score.items), torch.tensor(more[score.task].items[:2]), rtol=1e-5)


def test_evaluation_leaves_model_and_tokenizer_as_they_were(lm):
    before, weights = tokenizer_fingerprint(lm.tokenizer), {k: v.clone() for k, v in lm.model.state_dict().items()}
    evaluate(lm, tasks=["arithmetic"], limit=1, progress=False)
    assert lm.tokenizer.pad_token is None and tokenizer_fingerprint(lm.tokenizer) == before
    assert all(torch.equal(v, weights[k]) for k, v in lm.model.state_dict().items())


def test_scores_survive_json(lm):
    scores = evaluate(lm, tasks=["arithmetic", "text_code"], limit=3, progress=False)
    assert Scores.from_dict(json.loads(json.dumps(scores.to_dict()))) == scores


def test_ratio_is_of_totals_and_its_error_shrinks_with_more_rows():
    torch.manual_seed(0)
    rows = torch.rand(400, 2).double().numpy() + 0.5
    value, stderr = ratio_with_stderr(rows)
    assert value == pytest.approx(rows[:, 0].sum() / rows[:, 1].sum())
    # delta method: the residuals b - R s over root n and the mean size
    residuals = rows[:, 0] - value * rows[:, 1]
    assert stderr == pytest.approx(residuals.std(ddof=1) / rows[:, 1].mean() / 20, rel=0.15)
    assert math.isnan(ratio_with_stderr(rows[:1])[1])


def test_weights_that_are_not_finite_are_reported():
    model = tiny()
    with torch.no_grad():
        model.model.get_decoder().layers[0].mlp.down_proj.weight[0, 0] = math.nan
    with pytest.raises(NumericalError, match="not finite"):
        evaluate(model, tasks=["arithmetic"], limit=1, progress=False)


def test_unknown_names_name_the_nearest(lm):
    with pytest.raises(UnknownName, match="quick"):
        evaluate(lm, "quik")
    with pytest.raises(UnknownName, match="arithmetic"):
        evaluate(lm, tasks=["arithmetics"])
    with pytest.raises(UsageError, match="limit"):
        evaluate(lm, limit=0)
    with pytest.raises(UnknownName, match="arithmetic"):
        items.rows("arithmetics")
    with pytest.raises(UnknownName, match="math"):
        Scores("m", "s", ())["math"]


@pytest.mark.parametrize(
    ("text", "message"),
    [("tasks: [{task: a, dimension: math, metrik: acc}]", "metrik"), ("tasks: [{task: a, metric: acc}]", "dimension"),
     ("tasks: [{task: a, dimension: maths, metric: acc}]", "math"), ("tsks: []", "tasks"), ("tasks: [a]", "tasks.0"),
     ("tasks: [{task: a, dimension: math, metric: acc, limit: 0}]", "limit"),
     ("tasks: [{task: a, dimension: math, metric: acc, chance: 25}]", "chance"),
     ("tasks: [{task: a, dimension: math, metric: acc, shots: -1}]", "shots"),
     ("tasks: [{task: a, dimension: math, metric: acc}]\nabout: x\nname: y", "name"),
     ("tasks: [{task: a, dimension: math, metric: acc}, {task: a, dimension: math, metric: acc}]", "twice"),
     ("tasks: [", "cannot be read")],
)
def test_a_wrong_suite_file_names_file_and_field(tmp_path, text, message):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message) as error:
        load_suite(path)
    assert "broken.yaml" in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "mapping"), ("- a", "mapping"), ("tasks: 3", "tasks"), ("tasks: []", "tasks"), ("3", "mapping"),
     (b"tasks: [\xff]", "cannot be read"), ("tasks: !!python/object/apply:os.getcwd []", "python/object"),
     ("[" * 5000, "cannot be read"), ("tasks: [{task: a, dimension: math, metric: acc, limit: true}]", "limit"),
     ("tasks: [{task: a, dimension: math, metric: acc, limit: 1.5}]", "limit"),
     ("tasks: [{task: a, dimension: math, metric: acc, chance: .nan}]", "chance"),
     ("tasks: [{task: a, dimension: math, metric: acc, runs_code: 'yes'}]", "runs_code"),
     ("tasks: [{task: 5, dimension: math, metric: acc}]", "task"),
     ("tasks: [{task: ../a, dimension: math, metric: acc}]", "lies beside the suite file"),
     ("tasks: [{task: /etc/a.yaml, dimension: math, metric: acc}]", "lies beside the suite file"),
     ("tasks: [{task: a, dimension: math, metric: acc, only_for: []}]", "nothing asks"),
     ("tasks: [{task: a, dimension: math, metric: acc, only_for: [dense]}]", "nothing asks"),
     ("output_type: multiple_choice\ndoc_to_text: a", "is a task file")],
)
def test_no_suite_file_enters_unchecked(tmp_path, text, message):
    path = tmp_path / "broken.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UsageError, match=message) as error:
        load_suite(path)
    assert "broken.yaml" in str(error.value)


def test_a_folder_is_no_suite_and_a_task_may_be_named_by_its_file(own_suite):
    path, _ = own_suite
    with pytest.raises(UsageError, match=r"is a folder.*mine\.yaml, sums\.yaml"):
        load_suite(path.parent)
    path.write_text("tasks: [{task: ./sums.yaml, dimension: math, metric: acc}]")
    assert [task.task for task in load_suite(path).tasks] == ["sums"]


RUNS = "__import__('pathlib').Path('ran').touch()"
ESCAPES = {
    "function": "process_docs: !function code.process\n",
    "python tag": "description: !!python/object/apply:os.system ['touch ran']\n",
    "template": "doc_to_text: \"{{ cycler.__init__.__globals__.os.system('touch ran') }}\"\n",
    "template over the row": "doc_to_text: \"{{ query.__class__.__mro__[1].__subclasses__() }}\"\n",
    "choices": "doc_to_choice: \"{{ [lipsum.__globals__['os'].popen('touch ran').read(), 'b'] }}\"\n",
    "metric of the hub": "metric_list: [{metric: someone/else}]\n",
    "metric by evaluate": "metric_list: [{metric: acc, hf_evaluate: true}]\n",
    "generation": "generation_kwargs: {custom_generate: someone/else, trust_remote_code: true}\n",
    "prompt": "use_prompt: 'promptsource:x'\n",
    "class": "class: !function code.Task\n",
    "included": "include: other.yaml\n",
    "data file": "dataset_kwargs: {data_files: {test: ../../etc/passwd}}\n",
    "data file of the root": "dataset_kwargs: {data_files: {test: /etc/passwd}}\n",
    "data set": "dataset_path: ../../etc\n",
    "included from elsewhere": "include: ../mine.yaml\n",
}


@pytest.mark.parametrize("name", ESCAPES)
@pytest.mark.parametrize("use", [suite_sha256, suite_items, evaluate], ids=lambda use: use.__name__)
def test_a_suite_is_data_and_runs_nothing(lm, own_suite, monkeypatch, name, use):
    path, _ = own_suite
    monkeypatch.chdir(path.parent)
    (path.parent / "code.py").write_text(f"{RUNS}\nprocess = Task = None\n")
    (path.parent / "other.yaml").write_text("process_docs: !function code.process\n")
    task = path.parent / "sums.yaml"
    key = ESCAPES[name].split(":")[0]
    kept = [line for line in task.read_text().splitlines(keepends=True) if not line.startswith(key)]
    task.write_text("".join(kept) + ESCAPES[name])
    try:
        use(lm, path, progress=False) if use is evaluate else use(path)
    except UsageError as error:
        assert "sums" in str(error) or "other" in str(error)
    else:
        assert use is suite_sha256 and name in {"template", "template over the row", "choices", "metric of the hub"}
    assert not (path.parent / "ran").exists()


def test_functions_of_a_task_file_run_only_when_asked_for(lm, own_suite):
    path, _ = own_suite
    (path.parent / "code.py").write_text("def process(rows):\n    return rows.select(range(3))\n")
    task = path.parent / "sums.yaml"
    task.write_text(task.read_text() + "process_docs: !function code.process\n")
    with pytest.raises(UsageError, match=r"sums\.yaml.*!function.*run_code=True"):
        evaluate(lm, path, tasks=["sums"], progress=False)
    assert evaluate(lm, path, tasks=["sums"], progress=False, run_code=True)["sums"].n == 3


@pytest.mark.parametrize(
    ("line", "message"),
    [("dataset_kwargs: {data_files: {test: 5}}", "data_files"),
     ("dataset_kwargs: {data_files: rows.jsonl}", "data_files"),
     ("metadata: {based_on: no_such_task}", "no_such_task"), ("metadata: {based_on: sums}", "sums"),
     ("metadata: {piece_bytes: 0}", "piece_bytes"), ("doc_to_text: qery", "columns there: query"),
     ("output_type: multiple_choise", "multiple_choice"), ("test_splt: test", "test_split"),
     ("num_fewshot: true", "num_fewshot"), ("metric_list: []", "metric_list"),
     ("metric_list: [{metric: acc_norn}]", "acc_norm"), ("include: sums.yaml", "itself"),
     ("doc_to_text: '{{ query'", "sums"), ("doc_to_text: '{% if gold == 2 %}{{ qery }}{% endif %}a'", "qery")],
)
def test_a_wrong_task_file_names_file_and_field(lm, own_suite, line, message, monkeypatch):
    from igsp.scoring import tasks

    monkeypatch.setattr(tasks, "_lm_eval_index", lambda name: {})  # to read all of it takes a while
    path, _ = own_suite
    task = path.parent / "sums.yaml"
    key = line.split(":")[0]
    kept = [kept for kept in task.read_text().splitlines(keepends=True) if not kept.startswith(key)]
    task.write_text("".join(kept) + line + "\n")
    with pytest.raises(UsageError, match=message) as error:
        evaluate(lm, path, tasks=["sums"], progress=False)
    assert "sums" in str(error.value)


def test_a_suite_says_which_strategies_a_task_is_scored_for(own_suite):
    path, _ = own_suite
    digest = suite_sha256(path)
    path.write_text(path.read_text().replace("chance: 0.33", "chance: 0.33, only_for: [c4, uniform]"))
    assert tasks_for(path, "dense") == tasks_for(path, "uniform") == ["sums", "text_math"]
    assert tasks_for(path, "gsm8k") == ["text_math"]
    assert suite_sha256(path) == digest  # what a score means does not change with whom it is asked of


WORDS = st.sampled_from([*SuiteTask.model_fields, "tasks", "about", "dimensions", "math", "acc", "../x", "x", ""])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 3) | st.floats() | WORDS | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS | st.integers(), inner, max_size=5),
    max_leaves=12,
)
LINES = st.fixed_dictionaries({"task": WORDS, "dimension": WORDS, "metric": WORDS}) | st.dictionaries(WORDS, VALUES)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(VALUES | st.fixed_dictionaries({"tasks": st.lists(LINES, max_size=3)}), st.booleans())
def test_any_yaml_is_a_suite_or_a_typed_error(tmp_path, content, as_task):
    path = tmp_path / "any.yaml"
    path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf8")
    try:
        found = read_task_file(path) if as_task else load_suite(path)
    except UsageError as error:
        assert "any.yaml" in str(error)
    else:
        assert as_task or all(task.limit is None or task.limit > 0 for task in found.tasks)


def test_a_metric_that_a_task_lacks_and_a_missing_data_file_are_named(lm, own_suite):
    path, _ = own_suite
    path.write_text("tasks: [{task: sums, dimension: math, metric: acc_norms}]")
    with pytest.raises(UnknownName, match="acc_norms"):
        evaluate(lm, path, progress=False)
    (path.parent / "rows.jsonl").unlink()
    with pytest.raises(UsageError, match="no data file"):
        evaluate(lm, path, progress=False)


def test_data_files_are_found_in_a_mirror(lm, own_suite, tmp_path, monkeypatch):
    path, _ = own_suite
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    (path.parent / "rows.jsonl").rename(mirror / "rows.jsonl")
    monkeypatch.setenv("IGSP_DATA", str(mirror))
    assert evaluate(lm, path, tasks=["sums"], progress=False)["sums"].n == 7


def test_suite_hash_follows_items_and_lines(own_suite):
    path, rows = own_suite
    first = suite_sha256(path)
    assert suite_sha256(path) == first
    (path.parent / "rows.jsonl").write_text("\n".join(map(json.dumps, rows[:-1])))
    changed = suite_sha256(path)
    assert changed != first
    path.write_text(path.read_text().replace("limit: 3", "limit: 4"))
    assert suite_sha256(path) not in {first, changed}


@pytest.mark.parametrize("name", CHOICES)
def test_choices_are_well_formed(name):
    rows = items.rows(name)
    number = len(rows[0]["choices"])
    assert len(rows) >= 100
    for row in rows:
        assert row["query"].strip() and len({c.strip().lower() for c in row["choices"]} - {""}) == number
    counts = [sum(row["gold"] == position for row in rows) for position in range(number)]
    assert max(counts) - min(counts) <= 1
    assert len({(row["query"], row["choices"][row["gold"]]) for row in rows}) > 0.9 * len(rows)


@pytest.mark.parametrize(
    ("name", "source"),
    [("wiki_definition", "wiki_leads"), ("story_next", "parables"), ("next_line", "codeio stdlib")],
)
def test_every_choice_comes_from_the_heldout_side(name, source):
    texts = [d.text for s in source.split() for d in documents(s, "heldout")]
    held = "\n".join(" ".join(text.split()) for text in texts)
    assert all(" ".join(choice.split()) in held for row in items.rows(name) for choice in row["choices"])


def test_arithmetic_is_right():
    for row in items.rows("arithmetic"):
        a, sign, b, _ = row["query"].splitlines()[-1].split()
        results = {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}
        assert int(row["choices"][row["gold"]]) == results[sign]


@pytest.mark.parametrize("name", TEXTS)
def test_texts_have_the_stated_size_and_alternate_between_their_sets(name):
    rows = items.rows(name)
    origins = list(dict.fromkeys(row["origin"] for row in rows))
    assert len(rows) >= 24 and len(origins) >= 2
    assert [row["origin"] for row in rows] == [origins[i % len(origins)] for i in range(len(rows))]
    assert all(sets.PIECE_BYTES // 2 <= len(row["text"].encode()) <= sets.PIECE_BYTES for row in rows)


def test_no_calibration_source_contains_a_scored_text():
    sources = [name for name, entry in catalogue().items() if not entry.slow and entry.origin != "hub"]
    known = "\n".join(document.text for name in sources for document in documents(name, "all"))
    for texts in heldout_texts("quick").values():
        for text in texts:
            middle = max(text.splitlines(), key=len).strip()[:60]
            assert middle not in known


def test_a_damaged_item_file_is_built_again(tmp_path, monkeypatch):
    monkeypatch.setattr(items, "cache_dir", lambda: tmp_path)
    first = items.rows("arithmetic")
    (path,) = (tmp_path / "items").iterdir()
    whole = path.read_text()
    path.write_text(whole[: len(whole) // 2])
    assert items.rows("arithmetic") == first
    assert path.read_text() == whole


def test_importing_the_module_does_not_import_lm_eval():
    import subprocess

    code = "import sys, igsp.scoring.evaluation, igsp.scoring.items; assert 'lm_eval' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_trivial_solvers_beat_what_they_are_made_for_and_nothing_else():
    from igsp.scoring import trivial as baselines

    rows = [
        {"query": "the cat sat", "choices": ["cat", "a dog there"], "gold": 1},
        {"query": "b c", "choices": ["b", "ddd"], "gold": 0},
    ]
    assert baselines.accuracy(baselines._longest, rows) == 0.5
    assert baselines.accuracy(baselines._overlap, rows) == 0.5
    model = baselines.Trigram(["a b c . a b d . a b c"], 1000)
    likelihood = {word: model.log_probability("a b", word) for word in "abcd."}
    assert likelihood["c"] > likelihood["d"] > likelihood["a"]
    # five words and one share of the unknown ones: all probability is accounted for
    unknown = model.log_probability("a b", "zzz")
    assert sum(map(math.exp, [*likelihood.values(), unknown])) == pytest.approx(1)


@pytest.mark.model
def test_dense_model_beats_every_trivial_solver_on_every_choice_task():
    from igsp import load_model
    from igsp.scoring import trivial as baselines

    dense = evaluate(load_model("smollm2-135m"), "quick", progress=False)
    for row in baselines.baselines("quick"):
        score = dense[row["task"]]
        assert score.value - row["best"] >= 3 * score.stderr, row


# --- published benchmarks -------------------------------------------------------------------------------------

ROWS = [{"q": f"{a} and {b} make", "a": str(a + b), "kind": "a category that all rows share"}
        for a in range(7) for b in range(7)]
SHARED = ("dataset_path: org/sums\ntest_split: test\ntraining_split: train\ndoc_to_text: q\n")
WRITTEN = SHARED + ("output_type: generate_until\ndoc_to_target: a\ngeneration_kwargs: {until: [x], max_gen_toks: 5}\n"
                    "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n")


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A suite on a made-up hub data set that a mirror holds."""
    monkeypatch.setenv("IGSP_DATA", str(tmp_path))
    (tmp_path / "org/sums").mkdir(parents=True)
    for split in ("test", "train"):
        (tmp_path / f"org/sums/{split}.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, ROWS)).encode()))
    (tmp_path / "written.yaml").write_text(WRITTEN)
    (tmp_path / "text.yaml").write_text(
        "dataset_path: org/sums\ntest_split: test\noutput_type: loglikelihood_rolling\ndoc_to_text: ''\n"
        "doc_to_target: 'The sum: {{q}} {{a}}.'\nmetadata: {piece_bytes: 90}\n"
        "metric_list: [{metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}]\n"
    )
    path = tmp_path / "suite.yaml"
    path.write_text("tasks:\n- {task: written, dimension: math, metric: exact_match, chance: 0, shots: 2, limit: 6}\n"
                    "- {task: text, dimension: math, metric: bits_per_byte}\n")
    return path


def asked(lm, path, monkeypatch):
    """Contexts that the first task of a suite asks the model to go on from, with what it writes."""
    from igsp.scoring.scorer import Scorer

    seen = []
    generate = Scorer.generate_until

    def watched(self, requests, disable_tqdm=False):
        texts = generate(self, requests, disable_tqdm)
        seen.extend(zip((request.args[0] for request in requests), texts, strict=True))
        return texts

    with monkeypatch.context() as patch:
        patch.setattr(Scorer, "generate_until", watched)
        evaluate(lm, path, tasks=["written"], progress=False)
    return seen


def test_written_answers_are_those_of_greedy_decoding_after_the_worked_examples(lm, published, monkeypatch):
    seen = asked(lm, published, monkeypatch)
    assert len(seen) == 6
    for context, written in seen:
        assert context.count(" make") == 3 and not context.endswith(tuple("0123456789"))
        ids = lm.tokenizer.encode(context)
        for _ in range(5):
            with torch.no_grad():
                ids.append(int(lm.model(torch.tensor([ids])).logits[0, -1].argmax()))
        assert written == lm.tokenizer.decode(ids[len(lm.tokenizer.encode(context)) :]).split("x")[0]


def test_hub_and_mirror_give_the_same_items_whatever_their_order(lm, published, monkeypatch):
    from_mirror, digest = asked(lm, published, monkeypatch), suite_sha256(published)
    monkeypatch.setenv("IGSP_DATA", "")
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, split, **__: ROWS[::-1] if split == "test" else ROWS)
    assert asked(lm, published, monkeypatch) == from_mirror
    assert suite_sha256(published) == digest
    assert [row[0] for row in from_mirror] != sorted(row[0] for row in from_mirror)


def test_pieces_join_whole_texts_up_to_their_size(lm, published):
    score = evaluate(lm, published, tasks=["text"], progress=False)["text"]
    assert all(45 <= size <= 90 for _, size in score.items)
    pieces = heldout_texts(published)["math"]
    texts = [f"The sum: {row['q']} {row['a']}." for row in ROWS]
    assert {part for piece in pieces for part in piece.split("\n\n")} <= set(texts)


def test_suite_items_are_what_no_calibration_document_may_contain(published):
    found = suite_items(published)
    assert found["written"] == []  # questions under 25 characters say nothing, and all rows share the category
    assert sorted(found["text"]) == sorted(f"The sum: {row['q']} {row['a']}." for row in ROWS)


def test_data_sets_that_are_nowhere_are_all_named_at_once(lm, published, monkeypatch):
    calls = []

    def unreachable(path, *_, **__):
        calls.append(path)
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    (published.parent / "other.yaml").write_text(WRITTEN.replace("org/sums", "org/other"))
    (published.parent / "third.yaml").write_text(WRITTEN.replace("org/sums", "org/third"))
    published.write_text("tasks:\n" + "".join(
        f"- {{task: {name}, dimension: math, metric: exact_match}}\n" for name in ("written", "other", "third")))
    with pytest.raises(AssetError, match="IGSP_DATA") as error:
        evaluate(lm, published, progress=False)
    assert "org/other (default, test): ConnectionError: no route" in str(error.value)
    assert "org/third (default, test)" in str(error.value) and "org/sums" not in str(error.value)
    assert calls == ["org/other"]  # a hub that does not answer is asked once


def test_a_renamed_column_names_task_data_set_and_columns(lm, published):
    path = published.parent / "written.yaml"
    path.write_text(WRITTEN.replace("doc_to_text: q", "doc_to_text: '{{question}}'"))
    with pytest.raises(UsageError, match=r"'written'.*'org/sums'.*question.*columns there: q, a, kind"):
        evaluate(lm, published, tasks=["written"], progress=False)


@pytest.mark.parametrize(
    ("found", "message"),
    [([], r"org/sums \(default, test\) has no rows"),
     (FileNotFoundError("'org/sums' is a gated dataset"), r"org/sums \(default, test\).*gated.*HF_TOKEN"),
     (FileNotFoundError("Revision 'abc' is gone"),
      "Revision 'abc' is gone; its place: .IGSP_DATA/org/sums/default/test")],
)
def test_an_empty_split_and_what_the_hub_refuses_are_named(lm, published, monkeypatch, found, message):
    def hub(*_, **__):
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.delenv("IGSP_DATA")
    monkeypatch.setattr(datasets, "load_dataset", hub)
    with pytest.raises(AssetError, match=message):
        evaluate(lm, published, tasks=["text"], progress=False)


def test_a_damaged_file_of_the_mirror_is_named(lm, published):
    (published.parent / "org/sums/test.jsonl.gz").write_bytes(gzip.compress(b'{"q": "1'))
    with pytest.raises(AssetError, match=r"test\.jsonl\.gz"):
        evaluate(lm, published, tasks=["text"], progress=False)


def test_a_task_that_runs_programs_is_refused_unless_asked_for(lm, published):
    with pytest.raises(UsageError, match=r"humaneval, mbpp .*run_code=True.*--run-code"):
        evaluate(lm, "paper", progress=False)
    published.write_text("tasks: [{task: humaneval, dimension: code, metric: pass@1}]")  # not marked as such
    with pytest.raises(UsageError, match="runs_code: true"):
        evaluate(lm, published, progress=False)


def test_a_filter_must_be_chosen_where_there_are_several(lm, published):
    filters = ('filter_list: [{name: first, filter: [{function: take_first}]}, '
               '{name: digits, filter: [{function: regex, regex_pattern: "[0-9]+"}, {function: take_first}]}]\n')
    (published.parent / "written.yaml").write_text(WRITTEN + filters)
    with pytest.raises(UnknownName, match=r"filter of task 'written'.*digits, first"):
        evaluate(lm, published, tasks=["written"], progress=False)
    published.write_text("tasks: [{task: written, dimension: math, metric: exact_match, filter: digits}]")
    assert evaluate(lm, published, limit=3, progress=False)["written"].n == 3


def test_no_text_of_the_small_suite_comes_from_a_calibration_source_of_that_profile():
    from igsp.scoring.tasks import load_yaml
    from igsp.study.study import settings as profile

    texts = [task for task in SMALL.tasks if task.metric == "bits_per_byte"]
    assert [sum(task.dimension == name for task in texts) for name in DIMENSIONS] == [2] * len(DIMENSIONS)
    paths = [load_yaml(task_folders(SMALL)[1] / f"{task.task}.yaml")["dataset_path"] for task in texts]
    assert len(set(paths)) == len(paths)
    assert not set(paths) & {catalogue()[name].hub for name in profile("small").sources}


@needs_mirror
@pytest.mark.model
def test_dense_model_beats_every_trivial_solver_on_the_choices_of_the_small_suite():
    from igsp import load_model
    from igsp.scoring import trivial as baselines
    from igsp.study.study import settings as profile

    trivial = baselines.baselines("small", profile("small").sources)
    assert {row["task"] for row in trivial} == {task.task for task in SMALL.tasks if task.chance}
    dense = evaluate(load_model("smollm2-135m"), "small", tasks=[row["task"] for row in trivial], progress=False)
    for row in trivial:
        score = dense[row["task"]]
        assert score.value - row["best"] >= 3 * score.stderr, row


@needs_mirror
@pytest.mark.parametrize("name", ["code_line", "math_line"])
def test_choices_from_published_sets_are_well_formed(name):
    rows = items.rows(name)
    assert len(rows) >= 60
    for row in rows:
        assert len({choice.strip().lower() for choice in row["choices"]} - {""}) == 4
        assert row["choices"][row["gold"]] not in row["query"]
    assert max(c := [sum(row["gold"] == i for row in rows) for i in range(4)]) - min(c) <= 1


@needs_mirror
@pytest.mark.parametrize("suite", [SMALL, PAPER], ids=lambda suite: suite.name)
def test_every_task_that_the_mirror_holds_can_be_scored(lm, suite, monkeypatch):
    from igsp.scoring import sandbox
    from igsp.scoring.scorer import Scorer

    def few_tokens(self, context, max_length, **options):
        return generate(self, context, max_length=context.shape[1] + 4, **options)

    generate = Scorer._model_generate
    monkeypatch.setattr(Scorer, "_model_generate", few_tokens)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(sandbox, "run_programs", lambda programs, **_: [sandbox.Outcome(True) for _ in programs])
    skipped = []
    for task in suite.tasks:
        n = 58 if task.task == "mmlu" else 1
        try:
            scores = evaluate(lm, suite.name, tasks=[task.task], limit=n, progress=False, run_code=True)
        except (AssetError, UsageError) as error:
            assert isinstance(error, AssetError) or "not installed" in str(error)
            skipped.append(task.task)
        else:
            assert scores[task.task].n == len(scores[task.task].items) == n
            assert scores[task.task].value >= 0
            assert scores.settings["num_fewshot"] == ({task.task: task.shots} if task.shots else 0)
    assert set(skipped) <= {"rte", "arc_challenge", "minerva_math500"}


@needs_mirror
def test_a_group_is_scored_by_items_and_its_members_give_in_proportion_to_their_size():
    from igsp.scoring.tasks import load_tasks, shares

    tasks = load_tasks("mmlu", task_folders(PAPER), shots=0)
    sizes, some = shares(tasks, None), shares(tasks, 1000)
    total = sum(sizes.values())
    assert len(tasks) == 57 and sum(some.values()) == 1000
    assert all(abs(some[name] - 1000 * sizes[name] / total) < 1 for name in tasks)


@needs_mirror
@pytest.mark.parametrize(("task", "solution"), [("humaneval", "canonical_solution"), ("mbpp", "code")])
def test_reference_solutions_pass_and_broken_ones_do_not(task, solution):
    from igsp.scoring import sandbox, tasks

    if not sandbox.available():
        pytest.skip("nothing isolates programs here")
    built = tasks.load_task(task, task_folders(PAPER), shots=0, programs=True)
    rows = list(built.eval_docs)[:3]
    right = [row.get("prompt", "") + row[solution] for row in rows]
    answers = [[text] if task == "humaneval" else text for text in [*right, "def f(:"]]
    results = [{"filtered_resps": [text], "target": built.doc_to_target(row)}
               for text, row in zip(answers, [*rows, rows[0]], strict=True)]
    tasks._run_programs(results, progress=False)
    assert [item["pass@1"] for item in results] == [1, 1, 1, 0]
