"""Advice on mixes: what the search does, when a gain counts, and that search and confirmation share nothing."""

from __future__ import annotations

import dataclasses
import importlib
import json

import pytest
import torch
import yaml
from tiny import tiny_model

from igsp import advise as advise_function
from igsp.errors import UnknownName, UsageError
from igsp.models import tokenizer_fingerprint
from igsp.provenance import repository_root
from igsp.scoring.retention import Estimate
from igsp.text.windows import CalibrationSet, Window, concatenate, largest_remainder

advise = importlib.import_module("igsp.advise")
Trial = advise.Trial


def trial_of(value):
    return lambda weights: Trial(weights, {}, value(weights), Estimate(0, 0, 0))


def test_the_search_climbs_in_whole_windows_within_its_budget():
    start = {"a": 0.25, "b": 0.25, "c": 0.25, "d": 0.25}
    found = advise.climb(trial_of(lambda w: -((w["a"] - 0.6) ** 2) - (w["b"] - 0.2) ** 2), start, 16, 40)
    assert found[0].weights == start and len(found) <= 40
    best = max(found, key=lambda t: t.asked).weights
    assert best["a"] == pytest.approx(0.6, abs=0.07) and best["b"] == pytest.approx(0.2, abs=0.07)
    for trial in found:
        assert sum(trial.weights.values()) == pytest.approx(1)
        assert all(float(16 * w).is_integer() for w in trial.weights.values())
    assert len({tuple(t.weights.values()) for t in found}) == len(found)


def test_the_search_spans_the_simplex_before_it_climbs():
    """All, each single source, each pair: what a quadratic in the shares needs for its coefficients."""
    start = dict.fromkeys("abcd", 0.25)
    found = advise.climb(trial_of(lambda w: w["a"]), start, 32, 24)
    shares = [tuple(t.weights.values()) for t in found]
    assert len(found) <= 24 and shares[0] == (0.25,) * 4 and shares[1] == (1, 0, 0, 0)
    assert {s.count(0) for s in shares[1:5]} == {3} and sorted(shares[5])[2:] == [0.5, 0.5]
    assert sum(max(s) == 1 for s in shares) == 4 and sum(s.count(0.5) == 2 for s in shares) == 6
    few = advise.climb(trial_of(lambda w: w["0"]), dict.fromkeys(map(str, range(15)), 1 / 15), 32, 12)
    assert len(few) == 12 and sum(max(t.weights.values()) == 1 for t in few) >= 7


def test_the_search_stays_at_the_uniform_mix_where_nothing_is_better():
    found = advise.climb(trial_of(lambda w: -max(w.values())), {"a": 0.5, "b": 0.5}, 64, 50)
    assert max(found, key=lambda t: t.asked) is found[0] and len(found) < 50


@pytest.mark.parametrize(
    ("gain", "floor", "draws", "counts"),
    [((2, 1, 3), 0.5, 3, True), ((1.5, 1, 3), 1.0, 3, False), ((1.7, 1, 3), 1.0, 3, True), ((2, 1, 3), 2.5, 3, False),
     ((2, -0.1, 4), 0.5, 3, False), ((2, 1, 3), 0.5, 2, False),
     ((-2, -3, -1), 0.5, 3, False), ((2, 1, 3), None, 3, False)],
)
def test_a_gain_counts_only_beyond_interval_noise_and_three_draws(gain, floor, draws, counts):
    assert advise.beats(Estimate(*gain), floor, draws) is counts


@pytest.fixture
def bench(monkeypatch, tmp_path):
    """A tiny model, two sources of different words, and a suite with two dimensions of its own."""
    monkeypatch.setenv("IGSP_CACHE", str(tmp_path / "cache"))
    lm = tiny_model()
    lm.tokenizer.bos_token, lm.tokenizer.eos_token = "w1", "w2"
    seen = {"windows": [], "parts": []}

    def sample(source, tokenizer, n, seqlen, draw, without=frozenset()):
        assert without <= {"leaked"}
        first = {"low": 3, "high": 64}[source]
        ids = torch.randint(first, first + 60, (n, seqlen), generator=torch.Generator().manual_seed(100 * draw + first))
        seen["windows"].append((draw, ids))
        return CalibrationSet(ids, (Window(source, (), draw),) * n, tokenizer_fingerprint(tokenizer), {})

    def mix(weights, tokenizer, n, seqlen, draw, without):
        assert without == dict.fromkeys(weights, frozenset({"leaked"}))
        counts = largest_remainder(weights, n)
        return concatenate([sample(s, tokenizer, k, seqlen, draw) for s, k in counts.items() if k], {})

    class Entry:
        def __init__(self, name):
            self.dimension = {"low": "lows", "high": "highs"}[name]

    def evaluate(*arguments, part, **options):
        seen["parts"].append(part)
        return scored(*arguments, part=part, **options)

    scored = advise.evaluate
    made = {"sample": sample, "mix": mix, "source": Entry, "evaluate": evaluate,
            "contaminated": lambda source, suite: frozenset({"leaked"})}
    for name, value in made.items():
        monkeypatch.setattr(advise, name, value)
    lines = ["dimensions: [lows, highs]", "tasks:"]
    for dimension, first in (("lows", 3), ("highs", 64)):
        words = torch.randint(first, first + 60, (8, 20), generator=torch.Generator().manual_seed(first)).tolist()
        rows = [{"text": " ".join(f"w{i}" for i in row)} for row in words]
        (tmp_path / f"{dimension}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        (tmp_path / f"text_{dimension}.yaml").write_text(
            f"task: text_{dimension}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {dimension}.jsonl}}}}\n"
            "test_split: test\noutput_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: text\n"
            "metric_list: [{metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}]\n"
        )
        lines.append(f"- {{task: text_{dimension}, dimension: {dimension}, metric: bits_per_byte}}")
    (tmp_path / "own.yaml").write_text("\n".join(lines))
    options = {"suite": tmp_path / "own.yaml", "sparsity": 0.5, "n": 8, "seqlen": 32, "trials": 4, "progress": False}
    return lm, options, seen


def test_the_verdict_says_what_the_mix_costs_asked_dimensions_first():
    told = (repository_root() / "book" / "results" / "advice" / "smollm2-135m.json").read_text(encoding="utf8")
    found = advise.Advice.from_json(told)
    lost = [name for name, gain in found.gain.items() if gain.high < 0]
    assert "math" in found.keep and "math" in lost, "the record to test with"
    assert found.verdict.index("math (asked) -1.6") < found.verdict.index("general (not asked) -5.0")
    free = dataclasses.replace(found, gain={"code": Estimate(1, 0.5, 2), "total": Estimate(1, 0.5, 2)})
    assert "No dimension pays" in free.verdict


def test_advice_on_dimensions_of_ones_own(bench, tmp_path, monkeypatch):
    lm, options, seen = bench
    dense = {name: weight.clone() for name, weight in lm.model.state_dict().items()}
    found = advise_function(lm, {"lows": 3, "highs": 1}, ["low", "high"], **options)
    assert all(torch.equal(weight, dense[name]) for name, weight in lm.model.state_dict().items())
    assert found.keep == {"lows": 0.75, "highs": 0.25} and found.trials[0].weights == {"low": 0.5, "high": 0.5}
    assert found.weights == (found.best if found.confirmed else found.trials[0].weights)
    assert found.trials[0].gain.value == 0 and set(found.gain) == {"lows", "highs", "total"}
    expected = 0.75 * found.gain["lows"].value + 0.25 * found.gain["highs"].value
    assert found.gain["total"].value == pytest.approx(expected)
    searched = {ids.numpy().tobytes() for draw, ids in seen["windows"] if draw == 3}
    confirmed = {ids.numpy().tobytes() for draw, ids in seen["windows"] if draw < 3}
    assert searched and confirmed and {draw for draw, _ in seen["windows"]} == {0, 1, 2, 3}
    assert seen["parts"].count((0, 2)) == len(found.trials) + 1 and seen["parts"].count((1, 2)) in (4, 7)

    folder = found.save(tmp_path / "advice")
    written = yaml.safe_load((folder / "mix.yaml").read_text())
    assert written["weights"] == pytest.approx(found.weights)
    stored = json.loads((folder / "advice.json").read_text())
    assert stored["verdict"] == found.verdict and len(stored["trials"]) == len(found.trials)
    assert advise.Advice.from_json((folder / "advice.json").read_text()) == found
    for bad in ("[]", "{}", '{"verdict": 1, "gain": 2}', "no JSON"):
        with pytest.raises(UsageError, match="no advice"):
            advise.Advice.from_json(bad)
    with pytest.raises(UsageError, match="not empty"):
        found.save(folder)

    monkeypatch.setattr(advise, "prune", None)  # everything is in the cache
    assert advise_function(lm, {"lows": 3, "highs": 1}, ["low", "high"], **options) == found


def test_the_two_halves_of_a_suite_have_no_item_in_common(bench):
    lm, options, _ = bench
    whole, even, odd = (
        advise.evaluate(lm, options["suite"], progress=False, part=part)["text_lows"].items
        for part in ((0, 1), (0, 2), (1, 2))
    )
    assert even == whole[::2] and odd == whole[1::2]


@pytest.mark.parametrize(
    ("keep", "sources", "changes", "error", "match"),
    [
        ({"code": 1}, ["low", "high"], {}, UnknownName, "dimension of suite"),
        ({"lows": 0}, ["low", "high"], {}, UsageError, "not all zero"),
        ({"lows": -1, "highs": 2}, ["low", "high"], {}, UsageError, "not negative"),
        ({}, ["low", "high"], {}, UsageError, "not all zero"),
        ({"lows": 1}, ["low"], {}, UsageError, "at least two different sources"),
        ({"lows": 1}, ["low", "low"], {}, UsageError, "at least two different sources"),
        ({"lows": 1}, ["low", "high"], {"method": "magnitude"}, UsageError, "uses no calibration data"),
        ({"lows": 1}, ["low", "high"], {"method": "sparsegtp"}, UnknownName, "sparsegpt"),
        ({"lows": 1}, ["low", "high"], {"n": 1}, UsageError, "at least as many windows"),
        ({"lows": 1}, ["low", "high"], {"trials": 0}, UsageError, "at least 1"),
    ],
)
def test_bad_questions_are_refused(bench, keep, sources, changes, error, match):
    lm, options, seen = bench
    with pytest.raises(error, match=match):
        advise_function(lm, keep, sources, **(options | changes))
    assert not seen["parts"]


def test_an_unknown_source_is_named():
    with pytest.raises(UnknownName, match="unknown source 'stdlibs': did you mean stdlib"):
        advise_function(tiny_model(), {"code": 1}, ["stdlibs", "wiki_leads"])


def test_dimensions_without_a_common_measure_are_refused(tmp_path):
    path = tmp_path / "mixed.yaml"
    path.write_text("tasks:\n- {task: text_math, dimension: math, metric: bits_per_byte}\n"
                    "- {task: next_line, dimension: code, metric: acc, chance: 0.25}\n")
    with pytest.raises(UsageError, match="bits per byte"):
        advise.asked({"math": 1, "code": 1}, path)
    assert advise.asked({"code": 2}, path) == ({"code": 1.0}, "accuracy", ["next_line"])
