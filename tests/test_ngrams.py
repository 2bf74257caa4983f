"""N-gram counts are exact, whatever the size of the vocabulary."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from igsp.errors import UsageError
from igsp.text.ngrams import Coverage, aggregation, distinct_and_total, gram_keys, window_aggregation


def brute(ids, order):
    return [[tuple(row[i : i + order]) for i in range(len(row) - order + 1)] for row in np.asarray(ids).tolist()]


windows = st.tuples(st.integers(1, 6), st.integers(1, 12)).flatmap(
    lambda shape: st.tuples(
        st.sampled_from([2, 3, 49152, 262144, 1 << 40]), st.lists(
            st.lists(st.integers(0, 7), min_size=shape[1], max_size=shape[1]), min_size=shape[0], max_size=shape[0]
        )
    )
)


@settings(deadline=None, max_examples=150)
@given(windows, st.integers(1, 6))
def test_counts_are_those_of_a_set_of_tuples(case, order):
    stride, rows = case
    ids = torch.tensor(rows) * (stride // 8 if stride > 8 else 1) % stride
    grams = list(itertools.chain.from_iterable(brute(ids, order)))
    assert distinct_and_total(ids, order) == (len(set(grams)), len(grams))


@settings(deadline=None, max_examples=60)
@given(windows, st.integers(1, 6))
def test_equal_keys_are_equal_grams(case, order):
    stride, rows = case
    ids = np.array(rows) * (stride - 1)  # large ids: packing does not fit into 64 bits
    keys, grams = gram_keys(ids, order).ravel().tolist(), list(itertools.chain.from_iterable(brute(ids, order)))
    assert len(keys) == len(grams)
    assert len(set(zip(keys, grams, strict=True))) == len(set(keys)) == len(set(grams))


def test_no_gram_crosses_a_window():
    assert distinct_and_total(np.array([[1, 2], [3, 4]]), 2) == (2, 2)
    assert distinct_and_total(np.array([[1, 2], [3, 4]]), 3) == (0, 0)


def test_aggregation_of_a_loop_and_of_fresh_text():
    loop, fresh = [5] * 11, list(range(11))
    assert aggregation(np.array([loop]), 4) == 1 - 1 / 8
    assert aggregation(np.array([fresh]), 4) == 0
    assert window_aggregation(np.array([loop, fresh]), 4).tolist() == [7 / 8, 0]


@settings(deadline=None, max_examples=60)
@given(windows, st.integers(1, 4), st.randoms(use_true_random=False))
def test_coverage_counts_what_sets_count(case, order, random):
    _, rows = case
    coverage = Coverage.of_ngrams(np.array(rows), order)
    sets = [set(grams) for grams in brute(rows, order)]
    order_of_adding = random.sample(range(len(rows)), len(rows))
    covered: set = set()
    for row in order_of_adding:
        assert [coverage.gain(r) for r in range(len(rows)) if r == row] == [len(sets[row] - covered)]
        covered |= sets[row]
        assert coverage.add(row) == len(covered)
    assert coverage.count(order_of_adding[:2]) == len(set().union(*(sets[r] for r in order_of_adding[:2])))
    assert coverage.size.tolist() == [len(grams) for grams in sets]


@pytest.mark.parametrize("ids", [np.zeros((2, 3)), np.array([[-1, 2]]), np.array([1, 2, 3])])
def test_refuses_what_is_no_matrix_of_ids(ids):
    with pytest.raises(UsageError, match="token ids"):
        distinct_and_total(ids, 2)


def test_refuses_impossible_orders():
    with pytest.raises(UsageError, match="order 0"):
        distinct_and_total(np.array([[1, 2]]), 0)
    with pytest.raises(UsageError, match="hold no 4-gram"):
        aggregation(np.array([[1, 2]]), 4)
