"""Self-Cal, SGS and IGSP: what they write, screen and choose."""

from __future__ import annotations

import itertools
import json
import math
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from tiny import VOCABULARY, tiny_model

from igsp import protocols
from igsp.assets import catalog
from igsp.errors import NotEnoughText, UnknownName, UsageError
from igsp.models import tokenizer_fingerprint
from igsp.text.catalogue import Document
from igsp.text.likelihood import window_losses
from igsp.text.ngrams import aggregation
from igsp.text.windows import CalibrationSet
from igsp.writing import CandidatePool, NotEnoughCandidates
from igsp.writing.generation import GenerationError

DIMENSIONS = ("general", "commonsense", "code", "math")
BASELINES = {
    "random": lambda pool, lm, n: protocols.random_choice(pool, n),
    "lowest_perplexity": lambda pool, lm, n: protocols.lowest_perplexity(pool, n),
    "lexical_diversity": lambda pool, lm, n: protocols.lexical_diversity(pool, lm, n),
    "activation_kmeans": lambda pool, lm, n: protocols.activation_kmeans(pool, lm, n, progress=False),
}


@pytest.fixture(scope="module")
def lm():
    model = tiny_model("llama")
    model.tokenizer.add_special_tokens({"bos_token": "w1", "eos_token": "w2"})
    return model


def make_pool(n, seqlen=12, dimensions=DIMENSIONS, vocabulary=3, seed=0, tokenizer="t"):
    """Random windows of few words, so that n-grams repeat, with random log-perplexities that differ by dimension."""
    stream = np.random.default_rng(seed)
    labels = tuple(dimensions[i % len(dimensions)] for i in range(n))
    losses = stream.normal([2 + dimensions.index(d) / 2 for d in labels], 0.4)
    return CandidatePool(
        torch.tensor(stream.integers(3, 3 + vocabulary, (n, seqlen))), tuple(f"self:{d}" for d in labels), labels,
        tuple(map(str, range(n))), torch.tensor(losses, dtype=torch.float32), tokenizer, {"seed": 0},
    )


def grams(pool, order):
    rows = pool.input_ids.tolist()
    return [{tuple(row[i : i + order]) for i in range(len(row) - order + 1)} for row in rows]


def spread_of(pool, rows):
    means = [
        np.mean([float(pool.log_perplexity[r]) for r in rows if pool.dimensions[r] == d])
        for d in dict.fromkeys(pool.dimensions[r] for r in rows)
    ]
    return float(np.std(means))


# -- selection -------------------------------------------------------------------------------------------------------


def plain_greedy(pool, n, order, lam, sigma_a, sigma_d):
    """The rule of the module's docstring, computed from sets, every candidate at every step."""
    sets, chosen = grams(pool, order), []
    per_row = pool.seqlen - order + 1
    quota = {d: n // 4 for d in DIMENSIONS}
    for _ in range(n):
        counts = Counter(pool.dimensions[r] for r in chosen)
        dimension = min((d for d in DIMENSIONS if counts[d] < quota[d]), key=lambda d: counts[d] / quota[d])

        def score(row, chosen=chosen):
            rows = [*chosen, row]
            a = 1 - len(set().union(*(sets[r] for r in rows))) / (len(rows) * per_row)
            return a / sigma_a + lam * spread_of(pool, rows) / sigma_d

        candidates = [r for r in range(pool.n) if pool.dimensions[r] == dimension and r not in chosen]
        chosen = [*chosen, min(candidates, key=score)]
    return chosen


@pytest.mark.parametrize("lam", [0, 0.5, 1, 2])
@pytest.mark.parametrize("order", [2, 4])
@pytest.mark.parametrize("seed", range(3))
def test_lazy_choice_is_that_of_plain_greedy(lam, order, seed):
    pool = make_pool(40, seed=seed)
    selection = protocols.select(pool, 12, lam=lam, order=order, progress=False)
    sigma_a, sigma_d = scales(pool, 12, order)
    expected = plain_greedy(pool, 12, order, lam, sigma_a, sigma_d)
    assert list(selection.indices) == expected


def scales(pool, n, order):
    """The sigmas that a selection used, from two runs of the objective."""
    from igsp.text.ngrams import Coverage
    from igsp.writing.igsp import _cells, _Objective

    groups, wanted = _cells(pool, n, "mean")
    dimensions = np.unique(np.array(pool.dimensions), return_inverse=True)[1]
    objective = _Objective(pool.log_perplexity.double().numpy(), dimensions, pool.seqlen - order + 1)
    objective.scale(
        Coverage.of_ngrams(pool.input_ids, order), [groups[c] for c in wanted], list(wanted.values()), 256, 0
    )
    return objective.sigmas


def test_scales_are_the_deviations_over_random_choices():
    pool = make_pool(24)
    stream = np.random.default_rng(5)
    groups = [[r for r in range(24) if pool.dimensions[r] == d] for d in DIMENSIONS]
    sets, terms = grams(pool, 4), []
    for _ in range(1500):
        rows = [int(r) for g in groups for r in stream.choice(g, 2, replace=False)]
        terms.append((1 - len(set().union(*(sets[r] for r in rows))) / (8 * 9), spread_of(pool, rows)))
    assert np.allclose(scales(pool, 8, 4), np.std(terms, axis=0), rtol=0.2)


@pytest.mark.parametrize("seed", range(6))
def test_coverage_reaches_its_bound(seed):
    """One dimension, lam 0: at least 1 - 1/e of the best of all choices."""
    pool = make_pool(11, seqlen=8, dimensions=("general",), seed=seed)
    sets = grams(pool, 3)
    covered = lambda rows: len(set().union(*(sets[r] for r in rows)))  # noqa: E731
    best = max(map(covered, itertools.combinations(range(11), 4)))
    found = covered(protocols.select(pool, 4, lam=0, order=3, progress=False).indices)
    assert (1 - 1 / math.e) * best <= found <= best


@pytest.mark.parametrize("seed", range(6))
def test_coverage_under_quotas_reaches_half_of_the_best(seed):
    pool = make_pool(12, seqlen=8, dimensions=("general", "code"), seed=seed)
    sets = grams(pool, 3)
    covered = lambda rows: len(set().union(*(sets[r] for r in rows)))  # noqa: E731
    halves = [itertools.combinations([r for r in range(12) if pool.dimensions[r] == d], 2) for d in ("general", "code")]
    best = max(covered((*a, *b)) for a, b in itertools.product(*map(list, halves)))
    assert best / 2 <= covered(protocols.select(pool, 4, lam=0, order=3, progress=False).indices) <= best


@pytest.mark.parametrize("balance", ["mean", "thirds"])
def test_quotas_hold_and_no_window_is_taken_twice(balance):
    pool = make_pool(61)
    selection = protocols.select(pool, 30, balance, progress=False)
    assert len(set(selection.indices)) == 30
    counts = Counter(pool.dimensions[i] for i in selection.indices)
    assert [counts[d] for d in DIMENSIONS] == [8, 8, 7, 7]  # largest remainder


def test_thirds_are_taken_in_equal_counts():
    pool = make_pool(120)
    selection = protocols.select(pool, 24, "thirds", progress=False)
    for dimension in DIMENSIONS:
        members = [i for i in range(120) if pool.dimensions[i] == dimension]
        rank = {i: r for r, i in enumerate(sorted(members, key=lambda i: float(pool.log_perplexity[i])))}
        thirds = Counter(rank[i] // 10 for i in selection.indices if pool.dimensions[i] == dimension)
        assert thirds == {0: 2, 1: 2, 2: 2}


def test_thirds_leave_lambda_without_effect():
    pool = make_pool(60)
    assert len({protocols.select(pool, 12, "thirds", lam=lam, progress=False).indices for lam in (0, 1, 5)}) == 1


def test_each_term_does_what_it_is_for():
    pool = make_pool(200, seqlen=24, vocabulary=6)
    value = lambda selection: (  # noqa: E731
        aggregation(selection.calibration.input_ids, 4), spread_of(pool, selection.indices)
    )
    diverse = value(protocols.select(pool, 20, lam=0, progress=False))
    balanced = value(protocols.select(pool, 20, lam=math.inf, progress=False))
    both = value(protocols.select(pool, 20, lam=1, progress=False))
    random = np.mean([value(protocols.random_choice(pool, 20, seed)) for seed in range(20)], axis=0)
    assert diverse[0] < both[0] < random[0] and balanced[1] < random[1] and both[1] < random[1]
    assert balanced[1] < diverse[1]


def test_the_trace_ends_at_the_values_of_the_chosen_set():
    pool = make_pool(60)
    selection = protocols.select(pool, 12, progress=False)
    assert [step.candidate for step in selection.trace] == list(selection.indices)
    assert math.isclose(selection.trace[-1].aggregation, aggregation(selection.calibration.input_ids, 4), abs_tol=1e-12)
    assert math.isclose(selection.trace[-1].spread, spread_of(pool, selection.indices), abs_tol=1e-9)
    losses = pool.log_perplexity.tolist()
    assert [step.log_perplexity for step in selection.trace] == [losses[i] for i in selection.indices]


def test_leaving_a_term_out_is_the_weight_at_its_end():
    pool = make_pool(60)
    without = protocols.select(pool, 12, aggregation=False, progress=False)
    assert without.indices == protocols.select(pool, 12, lam=math.inf, progress=False).indices
    assert without.spec["lam"] == "inf" and json.dumps(without.spec)
    with pytest.raises(UsageError, match="thirds"):
        protocols.select(pool, 12, "thirds", aggregation=False, progress=False)


def test_a_part_of_the_pool_is_what_was_written_first():
    pool = make_pool(48)
    few = protocols.select(pool, 12, oversample=2, progress=False)
    assert few.pool.names == tuple(map(str, range(24))) and few.spec["oversample"] == 2
    assert sorted(protocols.select(pool, 12, oversample=1, progress=False).calibration.windows, key=str) == sorted(
        pool.subset(range(12)).calibration(range(12), {}).windows, key=str
    )
    two = protocols.select(pool, 12, pools=["self:code", "self:math"], progress=False)
    assert {w.source for w in two.calibration.windows} == {"self:code", "self:math"}
    with pytest.raises(UnknownName, match="self:math"):
        pool.part(12, ["self:maths"])
    for factor in (0.5, math.nan):
        with pytest.raises(UsageError, match="oversample must lie"):
            pool.part(12, None, factor)


def test_pools_of_a_dimension_share_a_part():
    pool = make_pool(20, dimensions=("general",))
    mixed = CandidatePool(
        pool.input_ids, ("self:bos",) * 10 + ("self:general",) * 10, pool.dimensions, pool.names,
        pool.log_perplexity, "t", {"oversample": 4},
    )
    assert Counter(mixed.part(5, None, 2).pools) == {"self:bos": 5, "self:general": 5}
    with pytest.raises(UsageError, match="between 1 and the 4"):
        mixed.part(5, None, 5)


def test_the_ablations_ask_for_what_the_selection_takes():
    """Every selection of the profile runs on a pool like the one that it is meant for."""
    from igsp.study.study import settings

    s = settings("small-ablation")
    stream, names = np.random.default_rng(0), []
    for name, dimension, count in (("bos", "general", 3), ("general", "general", 3), ("commonsense", "commonsense", 6),
                                   ("code", "code", 6), ("math", "math", 6)):
        names += [(f"self:{name}", dimension)] * count * 3
    pool = CandidatePool(
        torch.tensor(stream.integers(3, 9, (len(names), 16))), tuple(p for p, _ in names), tuple(d for _, d in names),
        tuple(map(str, range(len(names)))), torch.rand(len(names)), "t", {"oversample": s.pool["oversample"]},
    )
    chosen = {}
    for name, options in s.selections.items():
        how = {key: value for key, value in options.items() if key != "rule"}
        chosen[name] = protocols.select(pool, 8, progress=False, **how).calibration.sha256
    assert len(set(chosen.values())) > len(chosen) / 2


def test_a_pool_without_choice_is_taken_whole():
    pool = make_pool(8)
    assert sorted(protocols.select(pool, 8, progress=False).indices) == list(range(8))


def test_selection_refuses_bad_input():
    pool = make_pool(24)
    with pytest.raises(UnknownName, match="mean"):
        protocols.select(pool, 8, "means", progress=False)
    for lam in (-1, math.nan):
        with pytest.raises(UsageError, match="lam"):
            protocols.select(pool, 8, lam=lam, progress=False)
    with pytest.raises(UsageError, match="no 13-gram"):
        protocols.select(pool, 8, order=13, progress=False)
    with pytest.raises(UsageError, match="n must be"):
        protocols.select(pool, 0, progress=False)
    with pytest.raises(NotEnoughCandidates, match="'general' has 6 candidates left, 7 are wanted"):
        protocols.select(pool, 28, progress=False)


# -- screening and pools ---------------------------------------------------------------------------------------------


def test_the_screen_drops_a_fifth_of_each_pool_and_the_loops():
    pool = make_pool(40, seqlen=24, vocabulary=100)
    pool.input_ids[8] = 7  # a loop, in `general`
    pool.log_perplexity[8] = 0.1
    kept = protocols.screen(pool, 0.2, 0.5)
    assert kept.n == 31 and "8" not in kept.names
    for dimension in DIMENSIONS:
        losses = {n: float(v) for n, d, v in zip(pool.names, pool.dimensions, pool.log_perplexity, strict=True)
                  if d == dimension}
        dropped = set(losses) - set(kept.names) - {"8"}
        assert len(dropped) == 2 and dropped == set(sorted(losses, key=losses.__getitem__)[-2:])
    assert kept.spec["removed"] == {
        "candidates": dict.fromkeys(DIMENSIONS, 10), "perplexity": dict.fromkeys(DIMENSIONS, 2), "loops": {"general": 1}
    }


def test_too_few_candidates_say_which_screen_removed_how_many():
    pool = make_pool(40, seqlen=24, vocabulary=100)
    pool.input_ids[0:40:4] = 7
    message = r"'general' has 0 .* of 10 \(2 dropped for high perplexity, 8 for repeating"
    with pytest.raises(NotEnoughCandidates, match=message):
        protocols.select(protocols.screen(pool, 0.2, 0.5), 8, progress=False)


def test_an_empty_pool_is_named():
    with pytest.raises(NotEnoughCandidates, match="pool is empty"):
        protocols.select(make_pool(8).subset([]), 4, progress=False)


@pytest.mark.parametrize("shares", [(1.0, 0.5), (-0.1, 0.5), (0.2, 1.5)])
def test_screens_refuse_impossible_shares(shares):
    with pytest.raises(UsageError, match="drop_share"):
        protocols.screen(make_pool(8), *shares)


def test_a_pool_is_saved_and_loaded(tmp_path):
    pool = make_pool(12)
    loaded = CandidatePool.load(pool.save(tmp_path / "pool"))
    assert torch.equal(loaded.input_ids, pool.input_ids) and torch.equal(loaded.log_perplexity, pool.log_perplexity)
    assert (loaded.pools, loaded.dimensions, loaded.names, loaded.spec) == (
        pool.pools, pool.dimensions, pool.names, pool.spec)
    with pytest.raises(UsageError, match="holds no candidate pool"):
        CandidatePool.load(tmp_path / "nothing")


@pytest.mark.parametrize("rule", BASELINES)
def test_baselines_keep_the_quotas_on_the_same_pool(lm, rule):
    pool = make_pool(48, seqlen=16, vocabulary=60, tokenizer=tokenizer_fingerprint(lm.tokenizer))
    selection = BASELINES[rule](pool, lm, 12)
    assert len(set(selection.indices)) == 12 and selection.spec["protocol"] == f"pool:{rule}"
    assert Counter(pool.dimensions[i] for i in selection.indices) == dict.fromkeys(DIMENSIONS, 3)
    assert BASELINES[rule](pool, lm, 12).indices == selection.indices
    assert selection.calibration.n == 12


def test_lowest_perplexity_and_lexical_diversity_do_what_they_say(lm):
    pool = make_pool(48, seqlen=16, vocabulary=100, tokenizer=tokenizer_fingerprint(lm.tokenizer))
    rivals = [protocols.random_choice(pool, 12, seed) for seed in range(10)]
    mean = lambda s: float(pool.log_perplexity[list(s.indices)].mean())  # noqa: E731
    words = lambda s: len(pool.input_ids[list(s.indices)].unique())  # noqa: E731
    assert mean(protocols.lowest_perplexity(pool, 12)) < min(map(mean, rivals))
    assert words(protocols.lexical_diversity(pool, lm, 12)) > max(map(words, rivals))


def test_kmeans_takes_one_window_of_each_cluster(lm):
    """Four kinds of window, far apart: a choice of four takes one of each."""
    pool = make_pool(24, seqlen=16, dimensions=("general",), tokenizer=tokenizer_fingerprint(lm.tokenizer))
    pool.input_ids[:] = torch.tensor([[10 + 20 * (i % 4)] * 15 + [3 + i] for i in range(24)])
    choices = [protocols.activation_kmeans(pool, lm, 4, seed, progress=False).indices for seed in range(5)]
    found = [{i % 4 for i in indices} for indices in choices]
    assert sum(kinds == {0, 1, 2, 3} for kinds in found) >= 4


def test_a_pool_of_another_tokenizer_is_refused(lm):
    for rule in ("lexical_diversity", "activation_kmeans"):
        with pytest.raises(UsageError, match="another tokenizer"):
            BASELINES[rule](make_pool(8), lm, 4)


# -- the protocols, on a tiny model ----------------------------------------------------------------------------------


def test_igsp_end_to_end(lm, tmp_path):
    journal = tmp_path / "texts.jsonl"
    how = {"oversample": 2, "loop_limit": 1.0, "progress": False}
    selection = protocols.igsp_selection(lm, 8, 32, seed=3, resume=journal, **how)
    chosen = selection.calibration
    chosen.check(lm)
    assert (chosen.n, chosen.seqlen) == (8, 32)
    assert Counter(selection.pool.dimensions[i] for i in selection.indices) == dict.fromkeys(DIMENSIONS, 2)
    assert {w.source for w in chosen.windows} <= {"self:bos", *(f"self:{d}" for d in DIMENSIONS)}
    assert len({w.documents for w in chosen.windows}) == 8
    assert {"oversample", "lam", "order", "balance", "stem_sampling", "bos_sampling", "drop_share", "loop_limit",
            "seed", "model", "removed", "pools"} <= set(chosen.spec)
    CalibrationSet.load(chosen.save(tmp_path / "set"))
    again = protocols.igsp(lm, 8, 32, seed=3, resume=journal, **how)
    assert again.sha256 == chosen.sha256 and json.dumps(again.spec) == json.dumps(chosen.spec)
    assert protocols.igsp(lm, 8, 32, seed=4, **how).sha256 != chosen.sha256


def test_candidates_know_their_own_likelihood_and_are_enough(lm):
    pool = protocols.candidate_pool(lm, 8, 32, oversample=4, progress=False)
    torch.testing.assert_close(pool.log_perplexity, window_losses(lm, pool.input_ids, progress=False))
    counts = Counter(protocols.screen(pool, 0.2, 1.0).dimensions)
    assert all(counts[d] >= 8 for d in DIMENSIONS)
    assert Counter(pool.pools)["self:bos"] == Counter(pool.pools)["self:general"] == 5
    assert len(set(pool.names)) == pool.n


def test_one_pool_alone(lm):
    chosen = protocols.igsp(lm, 4, 32, pools=["self:bos"], oversample=2, progress=False, loop_limit=1.0)
    assert {w.source for w in chosen.windows} == {"self:bos"} and list(chosen.spec["pools"]) == ["self:bos"]


def test_self_cal_is_full_windows_without_special_tokens(lm):
    chosen = protocols.self_cal(lm, 5, 32, seed=1, progress=False)
    assert (chosen.n, chosen.seqlen) == (5, 32) and {w.source for w in chosen.windows} == {"self:bos"}
    assert not (set(chosen.input_ids.flatten().tolist()) & {1, 2})
    larger = protocols.self_cal(lm, 7, 32, seed=1, progress=False)
    assert torch.equal(larger.input_ids[:5], chosen.input_ids)
    assert chosen.spec["temperature"] == {"initial": 2.0, "final": 1.0, "steps": 10}
    cold = protocols.self_cal(lm, 5, 32, seed=1, temperature=0.5, progress=False)
    assert cold.sha256 != chosen.sha256 and cold.spec["temperature"] == 0.5


@pytest.fixture
def encyclopaedia(monkeypatch):
    documents = [Document(str(i), " ".join(f"w{3 + (7 * i + j) % 120}" for j in range(9))) for i in range(60)]
    monkeypatch.setattr(sys.modules["igsp.writing.sgs"], "documents", lambda source, split: documents)
    return documents


def test_sgs_continues_prefixes_of_the_source(lm, encyclopaedia):
    chosen = protocols.sgs(lm, 6, 24, seed=2, source="wiki_leads", progress=False)
    assert (chosen.n, chosen.seqlen) == (6, 24) and chosen.spec["prefix_tokens"] == 4
    starts = {tuple(lm.tokenizer.encode(d.text)[:4]) for d in encyclopaedia}
    found = sum(tuple(row[i : i + 4]) in starts for row in chosen.input_ids.tolist() for i in range(21))
    assert found >= 3
    assert protocols.sgs(lm, 6, 24, seed=2, source="wiki_leads", progress=False).sha256 == chosen.sha256


def test_sgs_drops_the_unlikely_fifth(lm, encyclopaedia, monkeypatch):
    module, seen = sys.modules["igsp.writing.sgs"], {}
    join = module._join
    monkeypatch.setattr(module, "_join", lambda m, texts, sep: seen.update(kept=texts) or join(m, texts, sep))
    protocols.sgs(lm, 2, 24, texts=20, progress=False)
    assert len(seen["kept"]) == 16


def test_sgs_with_too_little_text_says_so(lm, encyclopaedia):
    with pytest.raises(NotEnoughText, match="yields"):
        protocols.sgs(lm, 50, 32, texts=5, progress=False)


def test_without_bos_the_models_own_separator_begins_a_text_and_is_recorded():
    bare = tiny_model("qwen2", bos_token_id=7)
    assert bare.tokenizer.bos_token_id is None
    made = protocols.self_cal(bare, 4, 32, progress=False)
    assert made.spec["start_token"] == 7 and (made.input_ids == 7).any()


def test_protocols_refuse_bad_input(lm):
    bare = tiny_model("llama")
    bare.model.config.bos_token_id = None
    for protocol in (protocols.self_cal, protocols.igsp):
        with pytest.raises(UsageError, match="neither a BOS nor an end-of-text token"):
            protocol(bare, 4, 32, progress=False)
        with pytest.raises(UsageError, match="positions"):
            protocol(lm, 4, 64, progress=False)
        with pytest.raises(UsageError, match="n must be at least 1"):
            protocol(lm, 0, 32, progress=False)
    with pytest.raises(UnknownName, match="temperature"):
        protocols.self_cal(lm, 4, 32, temprature=1.0, progress=False)
    with pytest.raises(UnknownName, match="self:math"):
        protocols.igsp(lm, 4, 32, pools=["self:maths"], progress=False)
    with pytest.raises(UsageError, match="oversample"):
        protocols.igsp(lm, 4, 32, oversample=0.5, progress=False)
    with pytest.raises(UsageError, match=r"a stem of .* tokens leaves no room in a window of 8"):
        protocols.igsp(lm, 4, 8, progress=False)


def test_a_model_that_only_repeats_itself_is_named(lm):
    """Its windows all fail the screen for loops, and the error says so."""
    parrot = tiny_model("llama")
    parrot.tokenizer.add_special_tokens({"bos_token": "w1", "eos_token": "w2"})
    parrot.model.lm_head.weight.zero_()
    parrot.model.get_output_embeddings().bias = torch.nn.Parameter(50.0 * torch.eye(VOCABULARY)[9])
    with pytest.raises(NotEnoughCandidates, match=r"for repeating themselves.* begins '.*w9 w9 w9"):
        protocols.igsp(parrot, 4, 32, oversample=2, progress=False)


def test_a_model_that_ends_at_once_is_named(lm):
    mute = tiny_model("llama")
    mute.tokenizer.add_special_tokens({"bos_token": "w1", "eos_token": "w2"})
    mute.model.generation_config.eos_token_id = list(range(VOCABULARY))
    with pytest.raises(GenerationError, match="ends its texts at once"):
        protocols.self_cal(mute, 2, 32, progress=False)


# -- the catalogue ---------------------------------------------------------------------------------------------------


def test_every_hyper_parameter_says_where_it_comes_from():
    for protocol, entries in catalog("protocols").items():
        for name, entry in entries.items():
            assert entry["status"] in ("published", "released", "ours"), (protocol, name)
            assert "value" in entry and (entry["status"] == "ours" or entry["source"]), (protocol, name)


def test_stems_are_many_and_varied():
    stems = catalog("stems")
    assert set(stems) == set(DIMENSIONS)
    for dimension, texts in stems.items():
        assert len(set(texts)) == len(texts) >= 24, dimension
        assert len({tuple(text.split()[:2]) for text in texts}) >= 20, dimension
