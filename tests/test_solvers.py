"""The pruning methods against float64 oracles written from the papers, exact counts, patterns and ties."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from igsp.errors import NumericalError, UnknownName, UsageError
from igsp.pruning import kernels
from igsp.pruning.hessian import factor_of_inverse
from igsp.pruning.kernels import add_gram, mirror
from igsp.pruning.selection import BLOCK, smallest, smallest_of_rows
from igsp.pruning.solvers import (
    InputStatistics,
    Pattern,
    check_sparsity,
    exact_count,
    inverse_factor,
    magnitude,
    parse_pattern,
    solver,
    sparsegpt,
    wanda,
)


def problem(rows: int, columns: int, tokens: int = 1024, seed: int = 0, dead: tuple[int, ...] = ()):
    """A weight and the statistics of correlated inputs `[tokens, columns]`."""
    torch.manual_seed(seed)
    inputs = torch.randn(tokens, columns) @ (torch.randn(columns, columns) * 0.3 + torch.eye(columns))
    inputs[:, list(dead)] = 0
    weight = torch.randn(rows, columns)
    return weight, InputStatistics(tokens, 8, inputs.square().sum(0), inputs.T @ inputs), inputs


def oracle(weight, gram, sparsity, pattern=None, parts=None, damping=0.01, reference=False, windows=8):
    """SparseGPT from its equations in float64, one column at a time, inverting H anew for every column.

    Deleting weight p of a row whose columns >= p are still free costs `w_p^2 / [H_F^-1]_pp` and moves the free
    weights by `-w_p / [H_F^-1]_pp * H_F^-1[:, p]`, with H_F the Hessian of the free columns (eqs. 3 and 5).
    """
    W, H = weight.double().numpy().copy(), gram.double().numpy().copy() * (2 / windows if reference else 1)
    rows, columns = W.shape
    dead = np.diag(H) == 0
    H[dead, dead] = 1 if reference else np.diag(H)[~dead].mean()
    H += damping * np.diag(H).mean() * np.eye(columns)
    inverse = [np.linalg.inv(H[p:, p:]) for p in range(columns)]
    cost = np.array([inverse[p][0, 0] for p in range(columns)])
    mask = np.zeros((rows, columns), bool)
    if reference:
        W[:, dead] = 0
    size = BLOCK // pattern[1] * pattern[1] if pattern else BLOCK
    for p in range(columns):
        if pattern is None and p % size == 0:
            stop = min(p + size, columns)
            score = np.where(dead[p:stop], 0, W[:, p:stop] ** 2 / cost[p:stop])
            top = 0
            for part in parts or [rows]:
                entries = score[top : top + part].T.ravel()
                if reference:
                    threshold = np.sort(entries)[int(entries.size * sparsity)]
                    chosen = entries <= threshold
                else:
                    count = exact_count(stop * part, sparsity) - exact_count(p * part, sparsity)
                    chosen = np.zeros(entries.size, bool)
                    chosen[np.argsort(entries, kind="stable")[:count]] = True
                mask[top : top + part, p:stop] = chosen.reshape(stop - p, part).T
                top += part
        if pattern is not None and p % pattern[1] == 0:
            score = np.where(dead[p : p + pattern[1]], 0, W[:, p : p + pattern[1]] ** 2 / cost[p : p + pattern[1]])
            order = np.argsort(score, axis=1, kind="stable")[:, : pattern[1] - pattern[0]]
            np.put_along_axis(mask[:, p : p + pattern[1]], order, True, axis=1)
        error = np.where(mask[:, p], W[:, p], 0) / cost[p]
        W[:, p:] -= np.outer(error, inverse[p][0])
        W[mask[:, p], p] = 0
    return W, mask


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("reference", [False, True])
def test_sparsegpt_equals_the_oracle(sparsity, reference):
    weight, statistics, _ = problem(24, 200)
    result = sparsegpt(weight, statistics, sparsity, parts=[16, 8], reference=reference)
    expected, mask = oracle(weight, statistics.gram, sparsity, parts=[16, 8], reference=reference)
    assert (result.mask.numpy() == mask).all()
    assert np.abs(result.weight.numpy() - expected).max() < 1e-3 * np.abs(expected).max()


@pytest.mark.parametrize("pattern", ["2:4", "4:8", "1:4", "3:5"])
def test_sparsegpt_patterns_equal_the_oracle(pattern):
    parsed = parse_pattern(pattern)
    weight, statistics, _ = problem(12, 40 * 5)
    result = sparsegpt(weight, statistics, parsed.sparsity, parsed)
    expected, mask = oracle(weight, statistics.gram, 0, parsed)
    assert (result.mask.numpy() == mask).all()
    assert np.abs(result.weight.numpy() - expected).max() < 1e-3 * np.abs(expected).max()
    assert (result.mask.view(12, -1, parsed.group).sum(2) == parsed.group - parsed.keep).all()


@pytest.mark.parametrize("reference", [False, True])
def test_dead_inputs_go_first_and_cost_nothing(reference):
    weight, statistics, inputs = problem(16, 96, dead=(3, 50, 51))
    result = sparsegpt(weight, statistics, 0.5, reference=reference)
    _, mask = oracle(weight, statistics.gram, 0.5, reference=reference)
    assert (result.mask.numpy() == mask).all()
    assert result.mask[:, [3, 50, 51]].all()
    change = (result.weight - weight).double() @ inputs.double().T
    assert torch.allclose(result.loss.double(), change.square().sum(1), rtol=1e-4)


@pytest.mark.parametrize("pattern", [None, Pattern(2, 4)])
def test_loss_is_the_squared_output_error(pattern):
    weight, statistics, inputs = problem(16, 160)
    result = sparsegpt(weight, statistics, 0.5, pattern)
    change = (result.weight - weight).double() @ inputs.double().T
    assert torch.allclose(result.loss.double(), change.square().sum(1), rtol=1e-4)


def test_stacked_parts_equal_separate_solves():
    weight, statistics, _ = problem(40, 200)
    together = sparsegpt(weight, statistics, 0.6, parts=[24, 16])
    apart = [sparsegpt(part, statistics, 0.6) for part in weight.split([24, 16])]
    assert torch.equal(together.mask, torch.cat([a.mask for a in apart]))
    assert torch.allclose(together.weight, torch.cat([a.weight for a in apart]), atol=1e-4)


def test_compensation_beats_masking_alone():
    weight, statistics, inputs = problem(32, 256)
    output = weight @ inputs.T

    def error(result):
        return float((result.weight @ inputs.T - output).square().sum())

    best = error(sparsegpt(weight, statistics, 0.6))
    assert best < 0.8 * error(wanda(weight, statistics, 0.6))
    assert best < 0.8 * error(magnitude(weight, None, 0.6))


def test_wanda_is_its_formula():
    weight, statistics, inputs = problem(10, 50)
    score = weight.abs() * inputs.norm(dim=0)
    drop = score.argsort(dim=1, stable=True)[:, :30]
    expected = weight.scatter(1, drop, 0.0)
    assert torch.equal(wanda(weight, statistics, 0.6).weight, expected)


def test_magnitude_prunes_each_part_by_itself():
    weight = torch.cat([torch.randn(8, 20), 100 * torch.randn(8, 20)])
    mask = magnitude(weight, None, 0.25, parts=[8, 8]).mask
    assert mask[:8].sum() == mask[8:].sum() == 40


@given(rows=st.integers(1, 9), columns=st.integers(1, 40), percent=st.integers(0, 99), ties=st.booleans())
@settings(max_examples=60, deadline=None)
def test_counts_are_exact_even_with_ties(rows, columns, percent, ties):
    sparsity = percent / 100
    weight = torch.randint(-1, 2, (rows, columns)).float() if ties else torch.randn(rows, columns)
    statistics = InputStatistics(64, 1, torch.ones(columns), 64 * torch.eye(columns))
    assert magnitude(weight, None, sparsity).mask.sum() == exact_count(rows * columns, sparsity)
    assert (wanda(weight, statistics, sparsity).mask.sum(1) == exact_count(columns, sparsity)).all()
    assert sparsegpt(weight, statistics, sparsity).mask.sum() == exact_count(rows * columns, sparsity)


def test_exact_count_is_decimal():
    assert exact_count(100, 0.29) == 29 and int(100 * 0.29) == 28


def test_reference_rule_prunes_one_more_per_block():
    weight, statistics, _ = problem(16, 256)
    assert sparsegpt(weight, statistics, 0.5, reference=True).mask.sum() == 16 * 256 // 2 + 2
    assert magnitude(weight, None, 0.5, reference=True).mask.sum() == 16 * 256 // 2 + 1


def test_ties_go_to_the_earlier_position():
    score = torch.tensor([[2.0, 1, 1], [1, 0, 1]])
    assert smallest(score, 3).tolist() == [[False, True, True], [False, True, False]]
    assert smallest_of_rows(score, 1).tolist() == [[False, True, False], [False, True, False]]


@pytest.mark.parametrize("columns", [7, 192, 193, 700])
def test_inverse_factor(columns):
    _, statistics, _ = problem(1, columns, tokens=2 * columns)
    factor = inverse_factor(statistics.gram, 0.01)
    damped = statistics.gram.double() + factor.added * torch.eye(columns)
    assert torch.equal(factor.upper, factor.upper.triu())
    product = factor.upper.double() @ damped @ factor.upper.double().T
    assert (product - torch.eye(columns)).abs().max() < 1e-4


def test_damping_is_raised_in_steps_and_then_refused():
    indefinite = torch.diag(torch.tensor([1.0, 1.0, 1.0, -0.3]))
    assert not factor_of_inverse(indefinite, torch.zeros(4, 4))
    assert inverse_factor(indefinite, 0.01).damping == pytest.approx(1.0)
    indefinite[3, 3] = -2.9
    with pytest.raises(NumericalError, match=r"rank 4 of 4.*damping 1"):
        inverse_factor(indefinite, 0.01)
    with pytest.raises(NumericalError, match="not finite"):
        inverse_factor(torch.full((3, 3), torch.nan), 0.01)


def test_fewer_tokens_than_columns_still_solves():
    weight, statistics, _ = problem(8, 300, tokens=40)
    result = sparsegpt(weight, statistics, 0.6)
    assert torch.isfinite(result.weight).all() and result.mask.sum() == exact_count(2400, 0.6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("columns", [33, 193, 1300])
def test_gram_is_accumulated_in_float32(dtype, columns):
    torch.manual_seed(0)
    x = (torch.randn(5000, columns) * 3 + 1).to(dtype)
    gram = torch.zeros(columns, columns)
    add_gram(gram, x[:3000])
    add_gram(gram, x[3000:])
    mirror(gram)
    assert torch.equal(gram, gram.t())
    exact = x.double().T @ x.double()
    assert (gram - exact).abs().max() < 3e-6 * exact.abs().max()


def test_gram_leaves_the_matmul_precision_alone(monkeypatch):
    monkeypatch.setattr(kernels, "cpu_has_bf16", lambda: True)
    before = torch.get_float32_matmul_precision()
    add_gram(torch.zeros(4, 4), torch.ones(2, 4, dtype=torch.bfloat16))
    assert torch.get_float32_matmul_precision() == before


FUSED = """
import sys, torch
from igsp.pruning.fused import solve_block_fused
from igsp.pruning.kernels import solve_block_plain

device = sys.argv[1]
for pattern, columns in [(None, 128), (None, 37), ((2, 4), 128), ((4, 8), 128), ((3, 5), 125)]:
    torch.manual_seed(0)
    upper = (0.1 * torch.randn(200, 200).triu(1) + 1.5 * torch.eye(200)).to(device)[10:, 10:][:columns, :columns]
    block = torch.randn(columns, 21, device=device)
    mask = (torch.rand(columns, 21, device=device) < 0.6) & (pattern is None)
    plain, plain_mask, fused, fused_mask = block.clone(), mask.clone(), block.clone(), mask.clone()
    expected = solve_block_plain(plain, upper, plain_mask, pattern)
    errors = solve_block_fused(fused, upper, fused_mask, pattern)
    assert torch.equal(plain_mask, fused_mask), (pattern, columns)
    assert torch.allclose(plain, fused, atol=1e-5) and torch.allclose(expected, errors, atol=1e-5), (pattern, columns)
    print("equal", pattern, columns)
"""


def test_fused_kernel_equals_the_plain_loop():
    """On a GPU where there is one, else in the interpreter (which must be asked for before Triton is imported)."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed (pip install triton, Linux only)")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    environment = os.environ | ({"TRITON_INTERPRET": "1"} if device == "cpu" else {})
    run = subprocess.run([sys.executable, "-c", FUSED, device], capture_output=True, text=True, env=environment)
    assert run.stdout.count("equal") == 5, run.stderr[-2000:]


def test_bad_input_is_refused():
    for bad in (-0.1, 1.0, 1.5, float("nan"), "0.6"):
        with pytest.raises(UsageError, match=r"outside \[0, 1\)"):
            check_sparsity(bad)
    for bad in ("4:2", "2", "0:4", "a:b", "2:4:8", "1:500"):
        with pytest.raises(UsageError, match="N:M"):
            parse_pattern(bad)
    with pytest.raises(UnknownName, match="sparsegpt"):
        solver("sparse-gpt")
    _, statistics, _ = problem(2, 8)
    statistics.gram = None
    with pytest.raises(UsageError, match="gram=True"):
        sparsegpt(torch.ones(2, 8), statistics, 0.5)
