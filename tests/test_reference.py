"""What the records say: noise floor apart from source effects, agreement of masks, no foreign records."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from toy import toy_scores

from igsp.errors import AssetError, UsageError
from igsp.information import CORRELATED
from igsp.masks import mask_sample, overlap
from igsp.pruning.report import ModuleReport, PruneReport, pack_mask
from igsp.reference import noise_floor, reference
from igsp.store import Record, Store
from igsp.study import settings

SIZE = {"n": settings("small").n, "seqlen": settings("small").seqlen}


def put(store, name, draw, factor, model="m", method="sparsegpt", sparsity=0.6, size=SIZE):
    spec = {
        "stage": "cell", "method": method, "sparsity": sparsity, "model": model, "suite": "s", "device": "cpu",
        "dtype": "bfloat16", "calibration": f"{name}{draw}",
    }
    labels = {"strategy": name, "draw": draw, "calibration": size}
    store.put(Record(spec, {"scores": toy_scores(factor).to_dict(), "labels": labels, "seconds": {}}, {}))
    if method == "sparsegpt":
        values = {metric: factor + i for i, metric in enumerate(CORRELATED)}
        about = {**spec, "stage": "profile"}
        store.put(Record(about, {"information": values, "labels": labels}, {}))


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
    margins = reference("small", store.root).margins("uniform", "c4")
    assert list(margins) == [0.3, 0.6]
    assert margins[0.3]["total"].value == pytest.approx(100 / 1.2 - 100 / 1.3)


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
    for path in (store.root / "cells").glob("*.json"):
        assert json.loads(path.read_text())["spec"]


def test_makers_count_every_cell_once(store):
    run = reference("small", store.root)
    table = run.makers()
    assert table.cells.sum() == len(run.results) and set(table["this code"]) == {"no"}
