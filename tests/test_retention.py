"""Retention: its formulas, its intervals, and that differences are paired."""

import numpy as np
import pandas as pd
import pytest

from igsp.errors import UsageError
from igsp.scoring.evaluation import Scores, TaskScore
from igsp.scoring.retention import Luck, difference, interval, paired_luck, pooled_luck, retention


def bpb(dimension, bits, size=100.0):
    items = tuple((float(b), size) for b in bits)
    value = sum(bits) / (size * len(bits))
    return TaskScore(f"{dimension}_text", dimension, "bits_per_byte", value, len(bits), 0.01, None, False, items)


def acc(dimension, right, chance=0.25):
    items = tuple((float(r),) for r in right)
    return TaskScore(
        f"{dimension}_choice", dimension, "acc", float(np.mean(right)), len(right), 0.01, chance, True, items
    )


def scores(*tasks):
    return Scores("toy", "toy", tasks)


DENSE = scores(
    bpb("general", [80.0, 120.0]), bpb("code", [50.0, 50.0]), acc("general", [1, 1, 1, 0]), acc("code", [1, 1, 0, 0])
)


def test_likelihood_retention_is_dense_over_pruned_bits():
    pruned = scores(bpb("general", [160.0, 240.0]), bpb("code", [100.0, 150.0]))
    kept = retention(pruned, DENSE)
    assert kept.dimensions["general"].value == pytest.approx(50.0)
    assert kept.dimensions["code"].value == pytest.approx(40.0)
    assert kept.total.value == pytest.approx(45.0)
    assert kept.minimum.value == pytest.approx(40.0)


def test_accuracy_retention_and_its_chance_corrected_variant():
    pruned = scores(acc("general", [1, 1, 0, 0]), acc("code", [1, 0, 0, 0]))
    kept = retention(pruned, DENSE, "accuracy")
    assert kept.dimensions["general"].value == pytest.approx(100 * 0.5 / 0.75)
    assert kept.corrected["general"] == pytest.approx(100 * (0.5 - 0.25) / (0.75 - 0.25))
    assert kept.corrected["code"] == pytest.approx(0.0)


def test_the_dense_model_keeps_everything_with_no_width():
    kept = retention(DENSE, DENSE)
    for estimate in kept.estimates().values():
        assert (estimate.value, estimate.low, estimate.high) == pytest.approx((100, 100, 100))


def test_mean_over_draws_and_wider_interval_from_their_spread():
    rng = np.random.default_rng(0)
    base = rng.uniform(50, 100, 40)
    dense = scores(bpb("general", base))
    same = [scores(bpb("general", base * 2)) for _ in range(3)]
    apart = [scores(bpb("general", base * f)) for f in (1.6, 2.0, 2.6)]
    narrow, wide = retention(same, dense).total, retention(apart, dense).total
    assert narrow.value == pytest.approx(50)
    assert wide.value == pytest.approx(100 / 3 * (1 / 1.6 + 1 / 2.0 + 1 / 2.6))
    assert wide.high - wide.low > narrow.high - narrow.low + 1


def test_differences_are_paired_over_items():
    """Two prunings that differ by a constant factor on noisy items: the paired interval is far narrower."""
    rng = np.random.default_rng(0)
    base, damage = rng.uniform(20, 200, 60), rng.uniform(1.2, 3.0, 60)
    dense = scores(bpb("general", base))
    a, b = scores(bpb("general", base * damage)), scores(bpb("general", base * damage * 1.05))
    gap = difference(a, b, dense)["total"]
    alone = retention(a, dense).total
    assert gap.value == pytest.approx(alone.value - retention(b, dense).total.value)
    assert gap.low > 0 and (gap.high - gap.low) < 0.2 * (alone.high - alone.low)


def test_interval_has_about_the_width_that_theory_gives():
    rng = np.random.default_rng(0)
    right = rng.random(400) < 0.6
    dense = scores(acc("general", np.ones(400)))
    estimate = retention(scores(acc("general", right)), dense, "accuracy").total
    expected = 100 * 2 * 1.96 * np.sqrt(right.mean() * (1 - right.mean()) / 400)
    assert estimate.high - estimate.low == pytest.approx(expected, rel=0.15)


def test_bad_input():
    with pytest.raises(UsageError, match="share no task"):
        retention(scores(acc("general", [1, 0])), scores(bpb("general", [1.0, 2.0])), "accuracy")
    with pytest.raises(UsageError, match="items"):
        retention(scores(bpb("general", [1.0])), DENSE)
    with pytest.raises(UsageError, match="measure"):
        retention(DENSE, DENSE, "speed")
    with pytest.raises(UsageError, match="as many draws"):
        difference([DENSE, DENSE], [DENSE], DENSE)


def test_interval_of_three_draws_covers_the_true_difference():
    """Simulated: 3 draws of 20 strategies with a known spread; their pooled spread, or the three draws alone, cover."""
    rng = np.random.default_rng(0)
    pooled, alone, percentile = [], [], []
    for _ in range(2000):
        made = pd.DataFrame({"total": rng.normal(0, 0.33, 60)}, index=pd.MultiIndex.from_product([range(20), range(3)]))
        gaps = made.total[0].to_numpy() - made.total[1].to_numpy()  # truth: 0
        value, items = gaps.mean() + rng.normal(0, 0.13), 0.13
        luck = pooled_luck(made)["total"]
        one = interval(value, items, 3, luck.twice())
        own = interval(value, items, 3, Luck(gaps.std(ddof=1), 2))
        pooled.append(one.low <= 0 <= one.high)
        alone.append(own.low <= 0 <= own.high)
        picks = rng.choice(gaps, (200, 3)).mean(1) + value - gaps.mean()
        percentile.append(np.percentile(picks, 2.5) <= 0 <= np.percentile(picks, 97.5))
    assert np.mean(pooled) > 0.93 and np.mean(alone) > 0.92
    assert np.mean(percentile) < 0.8, "what a bootstrap over three draws would cover"


def test_choices_from_one_pool_have_the_narrower_paired_spread():
    rng = np.random.default_rng(0)
    shared = rng.normal(0, 2, 400)  # the luck of the pool, by draw
    rows = {(name, d): {"total": shared[d] + rng.normal(0, 0.5)} for name in "abc" for d in range(400)}
    table = pd.DataFrame(rows).T
    assert paired_luck(table)["total"].sd == pytest.approx(2**0.5 * 0.5, rel=0.05)
    assert pooled_luck(table)["total"].sd == pytest.approx((4 + 0.25) ** 0.5, rel=0.06)
    assert paired_luck(table.loc[["a"]]) == {}, "one strategy has no difference"
    assert pooled_luck(table.xs(0, level=1, drop_level=False)) == {}, "one draw has no spread"


def test_knowledge_and_excess_by_hand():
    pruned, floor = scores(bpb("general", [160.0, 240.0])), scores(bpb("general", [300.0, 300.0]))
    kept = retention(pruned, DENSE, "knowledge", floor=floor).total
    assert kept.value == pytest.approx(100 * (600 - 400) / (600 - 200))
    assert retention(pruned, DENSE, "excess").total.value == pytest.approx((400 - 200) / 200)
    with pytest.raises(UsageError, match="floor"):
        retention(pruned, DENSE, "knowledge")
