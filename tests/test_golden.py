"""The numbers of every stage on tiny fixed models and fixed text. They guard its VERSION.

A record counts as long as the VERSION of its stages stands. So whoever changes what a stage computes has to raise it;
whoever changes a comment, a name or a plot has not. Tolerances leave room for another processor, not for another rule.
"""

import json
from types import SimpleNamespace

import pytest
from test_evaluation import tiny
from test_protocols import make_pool
from toy import ToyStudy

from igsp import figures, writing
from igsp.pruning.driver import prune
from igsp.pruning.solvers import SOLVERS
from igsp.scoring.evaluation import evaluate
from igsp.study.study import Cell, Task
from igsp.text import metrics, windows
from igsp.text.likelihood import window_losses
from igsp.writing.generation import Request, write_texts
from igsp.writing.sampling import Sampling

ROOMS = {"text": "igsp/text/__init__.py", "writing": "igsp/writing/__init__.py", "pruning": "igsp/pruning/__init__.py",
         "scoring": "igsp/scoring/__init__.py", "metrics": "igsp/text/metrics.py"}


def unchanged(stage, found, pinned, rel=1e-4):
    """Fails with the way out if numbers of a stage are no longer what they were."""
    if found != {key: pytest.approx(value, rel=rel) if isinstance(value, float) else value
                 for key, value in pinned.items()}:
        other = {key: (pinned.get(key), found.get(key)) for key in pinned | found if found.get(key) != pinned.get(key)}
        raise AssertionError(f"these numbers changed: raise VERSION of {stage} ({ROOMS[stage]}) and record again, or "
                             f"undo. What was, what is: {other}")


@pytest.fixture
def words(make_model, monkeypatch):
    """A tiny model of 128 words, and two sources of fixed documents."""
    texts = {name: [" ".join(f"w{(7 * i * i + step * j) % 120 + 3}" for j in range(9 + 5 * i)) for i in range(24)]
             for name, step in (("one", 3), ("two", 11))}
    found = {name: [SimpleNamespace(id=str(i), text=text) for i, text in enumerate(rows)]
             for name, rows in texts.items()}
    monkeypatch.setattr(windows, "documents", lambda source, split: found[source])
    monkeypatch.setattr(windows, "source_entry", lambda source: SimpleNamespace(id=source))
    return make_model()


def test_windows_of_text(words):
    one = windows.sample("one", words.tokenizer, 6, 32, 0, frozenset({"3"}))
    both = windows.mix({"one": 1, "two": 2}, words.tokenizer, 6, 32, 1)
    unchanged("text", {"sample": one.sha256[:16], "mix": both.sha256[:16], "start": one.input_ids[0, :5].tolist()}, {
        "sample": "f049c361d6b3549f", "mix": "18a4335e57ee0329", "start": [45, 48, 51, 54, 57]})


def test_what_a_model_writes_and_what_is_chosen(make_model):
    lm = make_model()
    requests = [Request(seed, (1, 5 + seed), Sampling(1.2, 0.8, 50, 0.95)) for seed in range(3)]
    texts = [text.ids for text in write_texts(lm, requests, 12, "ignore", progress=False)]
    pool = make_pool(60)
    chosen = {rule: sorted(getattr(writing, rule)(pool, 6).indices) for rule in ("lowest_perplexity", "random_choice")}
    chosen |= {f"select {b}": sorted(writing.select(pool, 6, b, progress=False).indices) for b in ("mean", "thirds")}
    unchanged("writing", {"texts": texts, **chosen}, {
        "texts": [[119, 79, 6, 79, 96, 63, 123, 19, 99, 126, 33, 11],
                  [40, 100, 63, 122, 117, 119, 33, 29, 59, 28, 94, 99],
                  [35, 115, 33, 22, 117, 45, 87, 121, 30, 51, 85, 81]],
        "lowest_perplexity": [9, 12, 17, 40, 51, 54], "random_choice": [17, 20, 27, 28, 46, 53],
        "select mean": [9, 11, 12, 29, 32, 54], "select thirds": [12, 13, 25, 27, 28, 54]})


# Mean loss on fixed windows, and the sum of all weights' sizes, after pruning by 60 % and to 2:4.
PRUNED = {
    "magnitude": ((5.589360, 7742.548), (5.624447, 8208.830)), "wanda": ((5.585731, 7474.841), (5.667488, 7988.538)),
    "ria": ((5.601480, 7630.484), (5.659858, 8129.415)), "sparsegpt": ((5.537979, 7609.876), (5.641177, 8441.426)),
    "admm": ((5.641959, 7913.256), (5.668087, 8356.841)), "sparseswaps": ((5.685004, 7468.886), (5.662315, 7930.239)),
    "sparseswaps-refit": ((5.614633, 7798.696), (5.592984, 8277.542)),
}


def numbers_of(method, make_model, make_calibration):
    found, pinned = {}, {}
    for amount, expected in zip(({"sparsity": 0.6}, {"pattern": "2:4"}), PRUNED[method], strict=True):
        lm = make_model()
        given = make_calibration(lm)
        prune(lm, given, method, progress=False, **amount)
        weights = [p for p in lm.model.model.layers.parameters() if p.ndim == 2]
        size = float(sum(p.double().abs().sum() for p in weights))
        for what, value, was in zip(("loss", "weights"), (loss(lm, given), size), expected, strict=True):
            found[f"{method} {amount}: {what}"], pinned[f"{method} {amount}: {what}"] = value, was
    return found, pinned


def loss(lm, given):
    return float(window_losses(lm, given.input_ids, progress=False).mean())


@pytest.mark.parametrize("method", SOLVERS)
def test_masks_and_weights_of_pruned_models(method, make_model, make_calibration):
    unchanged("pruning", *numbers_of(method, make_model, make_calibration))


def test_a_changed_constant_in_a_solver_is_caught(monkeypatch, make_model, make_calibration):
    plain = SOLVERS["sparsegpt"]
    monkeypatch.setitem(SOLVERS, "sparsegpt", lambda W, s, sparsity, pattern, damping, **more:
                        plain(W, s, sparsity, pattern, damping=1.1 * damping, **more))
    with pytest.raises(AssertionError, match=r"raise VERSION of pruning .* and record again, or undo"):
        unchanged("pruning", *numbers_of("sparsegpt", make_model, make_calibration))


def test_a_changed_comment_docstring_or_plot_is_not(monkeypatch, make_model, make_calibration, tmp_path):
    before = {str(task): spec_of(tmp_path, task) for task in TASKS}
    monkeypatch.setattr(SOLVERS["sparsegpt"], "__doc__", "Other words.")
    monkeypatch.setattr(figures, "palette", dict)
    assert {str(task): spec_of(tmp_path, task) for task in TASKS} == before
    unchanged("pruning", *numbers_of("sparsegpt", make_model, make_calibration))


TASKS = [Task("dense"), Task("pool"), *(Task(stage, "igsp") for stage in ("calibration", "metrics")),
         Task("cell", "igsp", 0, Cell("igsp", 0, "sparsegpt", 0.6))]


def spec_of(root, task):
    return ToyStudy("quick", store=root).specification(task)


def test_scores(tmp_path):
    rows = [{"query": f"{a} plus {a} is", "choices": [str(2 * a), str(a), "many"], "gold": a % 3} for a in range(7)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf8")
    (tmp_path / "sums.yaml").write_text(
        "task: sums\ndataset_path: json\ndataset_kwargs: {data_files: {test: rows.jsonl}}\ntest_split: test\n"
        "output_type: multiple_choice\ndoc_to_text: query\ndoc_to_choice: choices\ndoc_to_target: gold\n"
        "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n", encoding="utf8")
    (tmp_path / "mine.yaml").write_text(
        "tasks:\n- {task: sums, dimension: math, metric: acc, chance: 0.33}\n"
        "- {task: text_math, dimension: math, metric: bits_per_byte, limit: 3}\n", encoding="utf8")
    accuracy, text = evaluate(tiny(), tmp_path / "mine.yaml", progress=False)
    found = {"accuracy": accuracy.value, "stderr": accuracy.stderr, "bits per byte": text.value}
    found |= {f"bits {i}": bits for i, (bits, _) in enumerate(text.items)}
    found |= {f"bytes {i}": size for i, (_, size) in enumerate(text.items)}
    unchanged("scoring", found, {
        "accuracy": 0.428571, "stderr": 0.202031, "bits per byte": 11.62584, "bits 0": 10099.90, "bits 1": 5893.058,
        "bits 2": 6212.386, "bytes 0": 849.0, "bytes 1": 479.0, "bytes 2": 582.0})


def test_metrics_of_a_set(words):
    calibration = windows.sample("one", words.tokenizer, 6, 32)
    counts = metrics.reference_counts({"math": ["w3 w5 w7 w9"], "code": ["w4 w4 w60"]}, words)
    unchanged("metrics", metrics.profile(calibration, words, counts), {
        "calibration_perplexity": 296.4321, "aggregation_1": 0.625, "aggregation_2": 0.602151,
        "aggregation_3": 0.577778, "aggregation_4": 0.551724, "variety": 72.0, "entropy": 6.134650,
        "scope": 7.0, "coverage": 0.875,
        "mismatch": 0.929325, "mismatch_math": 0.945535, "mismatch_code": 0.971765, "granularity": 21.333333,
        "volume": 192.0})
