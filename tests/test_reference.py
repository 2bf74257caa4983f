"""What the records say: noise floor apart from source effects, agreement of masks, no foreign records."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from toy import toy_scores

from igsp.errors import AssetError, UsageError
from igsp.pruning.masks import mask_sample, overlap
from igsp.pruning.report import ModuleReport, PruneReport, pack_mask
from igsp.scoring.retention import Luck
from igsp.study import claims as ledger
from igsp.study.analysis import agreement, headline, margins, noise_floor
from igsp.study.recorded import reference, verification, verify
from igsp.study.records import Record, Store
from igsp.study.study import settings
from igsp.study.values import Value
from igsp.text.metrics import CORRELATED

SIZE = {"n": settings("small").n, "seqlen": settings("small").seqlen}


def put(store, name, draw, factor, model="m", method="sparsegpt", sparsity=0.6, size=SIZE):
    about = {"strategy": name, "draw": draw, **size, "calibration": f"{name}{draw}", "model": model, "suite": "s",
             "device": "cpu", "dtype": "bfloat16"}
    spec = {"stage": "cell", **about, "method": method, "sparsity": sparsity}
    store.put(Record(spec, {"scores": toy_scores(factor).to_dict(), "seconds": {}, "mask": "/w=="}, {}))
    if method == "sparsegpt":
        values = {metric: factor + i for i, metric in enumerate(CORRELATED)}
        store.put(Record({"stage": "metrics", **about}, {"information": values}, {}))


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path)
    dense = {"stage": "dense", "model": "m", "suite": "s", "device": "cpu", "dtype": "bfloat16"}
    store.put(Record(dense, {"scores": toy_scores(1.0).to_dict()}, {}))
    for place, name in enumerate(settings("small").sources):
        for draw in range(3):
            put(store, name, draw, 1.5 + 0.1 * place + 0.01 * draw)
    for sparsity, factor in ((0.3, 1.2), (0.6, 1.4)):
        for draw in range(3):
            put(store, "uniform", draw, factor, sparsity=sparsity)
    return store


def test_records_of_a_profile_become_retentions(store):
    run = reference("small", store.root)
    kept = run.retentions(names=["c4", "uniform"])
    assert kept["uniform"].total.value == pytest.approx(100 / 1.4)
    assert kept["c4"].draws == 3
    assert run.by_draw().loc[("wikipedia", 2), "math"] == pytest.approx(100 / 1.62)


def test_correlations_use_every_source_once(store):
    table = reference("small", store.root).correlations()
    row = table[(table.metric == "calibration_perplexity") & (table.dimension == "math")].iloc[0]
    assert row.n == 15 and row.rho == -1.0


def test_margins_exist_only_where_both_strategies_do(store):
    for draw in range(3):
        put(store, "c4", draw, 1.3, sparsity=0.3)
    found = margins(reference("small", store.root), "uniform", "c4")
    assert list(found) == [0.3, 0.6]
    gap, draws = found[0.3]
    assert gap["total"].value == pytest.approx(100 / 1.2 - 100 / 1.3) and draws == 3


def test_a_draw_that_some_source_lacks_is_left_out_of_every_comparison(store):
    for place, name in enumerate(settings("small").sources):
        for draw in range(2 if name == "arxiv" else 3):
            put(store, name, draw, 1.5 + 0.1 * place, method="wanda")
    run = reference("small", store.root)
    assert run.methods == ["sparsegpt", "wanda"] and run.complete_draws("wanda") == [0, 1]
    assert headline(run, "wanda")["best-single/total"]["draws"] == 2
    assert {r.draw for r in run.at("wanda")} == {0, 1}
    assert agreement(run, run, "sparsegpt", "wanda")["total"] == pytest.approx(1)


def test_a_method_without_a_complete_draw_is_not_shown(store):
    put(store, "c4", 0, 1.3, method="wanda")
    assert reference("small", store.root).methods == ["sparsegpt"]


def test_one_draw_has_a_range_and_no_noise_floor(tmp_path):
    whole = Store(tmp_path)
    whole.put(Record({"stage": "dense", "model": "m", "suite": "s", "device": "cpu", "dtype": "bfloat16"},
                     {"scores": toy_scores(1.0).to_dict()}, {}))
    for place, name in enumerate([*settings("small").sources, "uniform"]):
        put(whole, name, 0, 1.5 + 0.1 * place)
    found = headline(reference("small", tmp_path))
    assert found["spread/total"]["value"] == pytest.approx(100 / 1.5 - 100 / 2.9) and "noise/total" not in found
    assert found["uniform-minus-web"]["draws"] == 1 and found["uniform-minus-web"]["value"] < 0
    assert found["spearman/calibration_perplexity/math"]["value"] == -1.0


def test_a_sample_of_the_cells_is_computed_again_and_compared(store, monkeypatch):
    class Again:
        """Stands in for a study: what it computes is one part in a thousand off."""

        asked: list = []  # noqa: RUF012

        def __init__(self, profile, store):
            self.store = Store(store)

        def complete(self, cells):
            Again.asked = cells
            for old in [r for r in reference("small", store.root).results if r.cell in cells]:
                scores = old.scores.to_dict()
                for task in scores["tasks"]:
                    task["value"] *= 1.001
                    task["items"] = [[1.001 * bits, size] for bits, size in task["items"]]
                self.store.put(Record(old.record.spec, old.record.metrics | {"scores": scores}, {}))

    monkeypatch.setattr("igsp.study.recorded.Study", Again)
    assert reference("small", store.root).note() == ""
    assert verification("small", store.root) is None
    first = verify("small", store.root, sample=2)
    assert len(first) == 2 and first["same set"].eq("yes").all()
    assert first["bits per byte"].to_numpy() == pytest.approx(0.001)
    two, run = set(Again.asked), reference("small", store.root)
    assert not run.verified(), "two cells are too few"
    found = verify("small", store.root, sample=4)
    assert len(found) == 4 and two < set(Again.asked), "a larger sample holds the smaller"
    run = reference("small", store.root)
    worst = found.total.abs().max()
    assert run.note() == (
        f"4 cells computed again: 4 on the same kind of processor as the record, within {worst:.1g} points")
    assert worst == pytest.approx(max(run.retentions(names=[c.strategy])[c.strategy].total.value for c in Again.asked)
                                  / 1001, rel=0.02)
    assert run.verified()
    monkeypatch.setattr("igsp.study.recorded.pooled_luck", lambda _: {"total": Luck(worst, 30)})
    assert not run.verified(), "no better than another draw"
    told = verification("small", store.root)
    assert (told["cells"], told["same sets"], told["total"]) == (4, True, pytest.approx(worst))
    with pytest.raises(UsageError, match="at least 1"):
        verify("small", store.root, sample=0)


def test_other_sizes_and_other_models_stay_out(store):
    put(store, "c4", 7, 9.0, size={"n": 1, "seqlen": 8})
    put(store, "c4", 8, 9.0, model="other")
    assert {r.draw for r in reference("small", store.root).at(names=["c4"])} == {0, 1, 2}


def test_an_empty_store_names_the_command(tmp_path):
    with pytest.raises(AssetError, match="igsp study run --profile small"):
        reference("small", tmp_path)


def test_noise_floor_recovers_known_variances():
    rng = np.random.default_rng(0)
    effect = rng.normal(0, 4, 400)
    rows = {(f"s{i}", d): {"total": effect[i] + rng.normal(0, 1)} for i in range(400) for d in range(3)}
    floor = noise_floor(pd.DataFrame(rows).T.astype(float)).loc["total"]
    assert floor["within"] == pytest.approx(1, rel=0.05)
    assert floor["between"] == pytest.approx(effect.std(ddof=1), rel=0.05)
    assert floor["share"] == pytest.approx(16 / 17, abs=0.02)


def test_noise_floor_of_equal_sources_is_no_effect():
    rng = np.random.default_rng(1)
    rows = {(f"s{i}", d): {"total": rng.normal()} for i in range(15) for d in range(3)}
    table = pd.DataFrame(rows).T
    floor = noise_floor(table).loc["total"]
    groups = [g.total.to_numpy() for _, g in table.groupby(level=0)]
    assert floor["p"] == pytest.approx(stats.f_oneway(*groups).pvalue)
    assert floor["share"] < 0.5


def report(masks):
    modules = [
        ModuleReport(0, name, *m.shape, int(m.sum()), int(m.sum()), 0.5, 0.0, None, 1, 0.0) for name, m in masks.items()
    ]
    about = ["sparsegpt", 0.5, None, "block", False, 0.01, "m", "f", None, "cpu", "bfloat16", 1, None, "gram"]
    return PruneReport(*about, modules=modules, masks={name: pack_mask(m) for name, m in masks.items()})


def test_a_mask_agrees_with_itself_and_not_with_its_complement():
    mask = torch.rand(64, 96, generator=torch.Generator().manual_seed(0)) < 0.6
    one, other = mask_sample(report({"a": mask})), mask_sample(report({"a": ~mask}))
    assert overlap(one, one) == 1.0 and overlap(one, other) == 0.0


def test_sampled_overlap_is_near_the_exact_one():
    make = torch.Generator().manual_seed(1)
    shapes = {"a": (300, 200), "b": (50, 80)}
    masks = [{k: torch.rand(*shape, generator=make) < 0.6 for k, shape in shapes.items()} for _ in range(2)]
    shared = {k: masks[0][k] & masks[1][k] for k in shapes}
    both, one = (sum(int(m[k].sum()) for k in shapes) for m in (shared, masks[0]))
    exact = both / one
    assert overlap(*(mask_sample(report(m)) for m in masks)) == pytest.approx(exact, abs=0.015)


def test_samples_of_different_models_are_refused():
    a = mask_sample(report({"a": torch.ones(64, 64, dtype=torch.bool)}), positions=800)
    with pytest.raises(UsageError, match="different models"):
        overlap(a, mask_sample(report({"a": torch.ones(64, 64, dtype=torch.bool)}), positions=80))


def test_records_are_plain_json(store):
    for path in store.root.rglob("*.json"):
        assert json.loads(path.read_text())["spec"]


def test_makers_count_every_cell_once(store):
    run = reference("small", store.root)
    table = run.makers()
    assert table.cells.sum() == len(run.results) and set(table.commit) == {"None"}


def test_a_claim_is_judged_under_every_method_that_measured_it():
    def value(low, high):
        return Value((low + high) / 2, low, high, draws=3, n=15)

    key = "spearman/calibration_perplexity/general"
    values = {f"small/{key}": value(0.2, 0.8), f"small/wanda/{key}": value(-0.1, 0.5),
              "small/uniform-minus-web": value(1, 2)}
    runs = ledger.judge_runs(ledger.claim("perplexity-general"), values)
    assert {name: row.verdict.status for name, row in runs.items()} == {
        "SparseGPT": ledger.HOLDS, "Wanda": ledger.UNTESTABLE}
    assert list(runs["Wanda"].values) == [f"small/wanda/{key}"]
    assert list(ledger.judge_runs(ledger.claim("uniform-over-web"), values)) == ["SparseGPT"]
    rows = ledger.side_by_side({"a": {key: value(0.2, 0.8)}, "b": {}})
    assert [row["claim"] for row in rows] == ["Perplexity and General"]
    assert rows[0]["a"].endswith("holds") and rows[0]["b"] == "not measured"
