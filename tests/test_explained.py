"""What the records explain: on made data with known answers, and on the committed reference run."""

import json
from itertools import permutations, product

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from igsp.scoring.retention import Luck
from igsp.study.analysis import headline
from igsp.study.claims import HOLDS, UNTESTABLE, for_machines
from igsp.study.explained import (
    by_measure,
    detectable,
    equivalence,
    family_table,
    noise_shares,
    r_squared,
    spread_table,
    within,
)
from igsp.study.recorded import reference
from igsp.study.values import Value


@pytest.fixture(scope="module")
def run():
    return reference("small")


def test_within_families_is_the_exact_permutation_test():
    rng = np.random.default_rng(0)
    names = list("abcdefg")
    groups = pd.Series(["u", "u", "u", "v", "v", "v", "v"], index=names)
    x, y = (pd.Series(rng.normal(size=7), index=names) for _ in range(2))
    y += 10 * (groups == "v")
    rho, p = within(x, y, groups)
    a, b = ((v.rank() - v.rank().groupby(groups).transform("mean")).to_numpy() for v in (x, y))
    assert rho == pytest.approx(np.corrcoef(a, b)[0, 1])
    every = [abs(a[:3] @ b[list(u)] + a[3:] @ b[list(v)])
             for u, v in product(permutations(range(3)), permutations(range(3, 7)))]
    assert p == pytest.approx(np.mean(np.array(every) >= abs(a @ b) - 1e-9))


def test_shares_of_variance_are_those_of_linear_models():
    rng = np.random.default_rng(1)
    x = pd.Series(rng.normal(size=40))
    kind = pd.Series(list("abcd") * 10)
    y = 2 * x + rng.normal(size=40)
    assert r_squared(y, x) == pytest.approx(stats.pearsonr(x, y).statistic ** 2)
    means = y.groupby(kind).transform("mean")
    assert r_squared(y, kind) == pytest.approx(((means - y.mean()) ** 2).sum() / ((y - y.mean()) ** 2).sum())
    assert r_squared(y, kind, x) >= max(r_squared(y, x), r_squared(y, kind))


def test_a_detectable_difference_is_found_as_often_as_it_says():
    rng = np.random.default_rng(2)
    luck, draws = Luck(0.5, 30), 5
    true = detectable(luck, 0.0, draws)
    gaps = rng.normal(true, 0.5 / draws**0.5, 4000)
    sd = 0.5 * np.sqrt(rng.chisquare(30, 4000) / 30)
    found = np.abs(gaps) > stats.t.ppf(0.975, 30) * sd / draws**0.5
    assert found.mean() == pytest.approx(0.8, abs=0.03)
    assert detectable(luck, 0.2, 20) > detectable(luck, 0.0, 20), "items do not get fewer with draws"


def test_the_trade_off_is_mostly_the_family(run):
    table = family_table(run)
    assert (table.family > table.perplexity).all() and (table.both - table.family < 0.12).all()
    assert (table.p > 0.05).all(), "inside the families perplexity decides nothing"
    assert table.loc["general", "family"] == pytest.approx(0.91, abs=0.005)
    assert table.loc["math", "rho within"] == pytest.approx(-0.49, abs=0.005)
    assert (table["rho mismatch"] < -0.8).all()


def test_the_order_of_spreads_depends_on_the_measure(run):
    table = spread_table(run)
    assert table.likelihood["commonsense"].high < table.likelihood["code"].low
    assert table.likelihood["commonsense"].low > table.likelihood["math"].high, "the second widest"
    known = table.knowledge
    assert known["commonsense"].high > known["code"].low, "no order is left where the floor is taken off"


def test_the_margin_grows_with_sparsity_by_knowledge_and_stalls_by_likelihood(run):
    table = by_measure(run, [("uniform", "c4", x) for x in (0.3, 0.4, 0.5, 0.6)])
    assert table.knowledge.map(lambda e: e.value).is_monotonic_increasing and (table.agree == "yes").all()
    assert not table.likelihood.map(lambda e: e.value).is_monotonic_increasing


def test_equivalence_needs_the_whole_interval_inside_the_margin(run):
    found, same = equivalence(run, "uniform", "all-sources", 1.0)
    assert same and found.low > -1 and found.high < 1
    found, same = equivalence(run, "uniform", "c4", 1.0)
    assert not same and found.low > 1


def test_shares_of_noise_are_shares(run):
    table = noise_shares(run)
    assert table.share.sum() == pytest.approx(1) and table.share["task"] > 0.5


def test_the_ledger_for_machines_names_records_cost_and_command(run):
    values = {f"small/{key}": Value(**{"digits": 1, **entry}) for key, entry in headline(run).items()}
    entries = {entry["id"]: entry for entry in json.loads(json.dumps(for_machines(values)))}
    spread = entries["spread-code-commonsense"]
    assert spread["verdict"] == UNTESTABLE and "depends on the measure" in spread["reason"]
    margin = entries["uniform-over-web"]
    assert margin["verdict"] == HOLDS and len(margin["records"]) == 6 and margin["worker_seconds"] > 100
    assert {name.split("/")[1].split("-")[0] for name in margin["records"]} == {"uniform", "c4"}
    assert margin["scale"]["tokens"] < margin["scale"]["tokens_of_paper_profile"] and "small" in margin["command"]
    assert len(entries["perplexity-math"]["records"]) == 45, "all sources, not the source of that name"
