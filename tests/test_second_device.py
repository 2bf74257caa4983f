"""The GPU path on a pretended device: the CPU's results, few waits, counted work, memory as the plan says."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest
import torch
from second_device import WrongDevice, second_device
from test_evaluation import tiny
from test_prune import contents, stored
from tiny import FAMILIES, tiny_calibration, tiny_model

from igsp.errors import IgspError, NumericalError
from igsp.models import load_model
from igsp.pruning.driver import METHODS, collect_statistics, prune
from igsp.pruning.solvers import NEEDS
from igsp.pruning.streaming import prune_folder
from igsp.scoring.evaluation import evaluate
from igsp.text.likelihood import window_losses
from igsp.writing.generation import generate
from igsp.writing.self_cal import self_cal

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))
from roofline import counted

BLOCKS, WINDOWS, BATCH = 3, 8, 4
# Waits of the host for the device, a block and once: whatever the columns, windows or layers.
SYNCS = {"magnitude": 15, "wanda": 10, "ria": 10, "sparsegpt": 18, "admm": 18}
# Launches a block of a tiny model (64 wide, 2 micro-batches).
LAUNCHES = {"magnitude": 260, "wanda": 440, "ria": 540, "sparsegpt": 660, "admm": 2250}


def masks(report):
    return {module.name: report.mask(module.name) for module in report.modules}


def on_both(family="llama", dtype=torch.float32, resident=True, differing=0.0, **options):
    """Prunes on the CPU and on the pretended device; the masks must be equal. Returns what the device did.

    `differing`: share of a mask that may not be: Gram matrices are added up in another order here and there, and a
    weight at the threshold may fall on the other side of it, in the blocks behind it more.
    """
    lm = tiny_model(family, dtype=dtype)
    calibration = tiny_calibration(lm, n=WINDOWS)
    expected = prune(lm, calibration, batch_size=BATCH, progress=False, **options)
    other = tiny_model(family, dtype=dtype)
    with second_device() as device:
        if resident:
            other.model.to("cuda")
        device.reset()
        found = prune(other, calibration, batch_size=BATCH, device="cuda", progress=False, **options)
        did = copy.deepcopy(device)
        other.model.to("cpu")
    ours, theirs = masks(found), masks(expected)
    first, *_ = theirs
    assert torch.equal(ours[first], theirs[first])
    assert max(float((ours[name] != theirs[name]).float().mean()) for name in theirs) <= differing
    for (name, a), b in () if differing else zip(other.model.named_parameters(), lm.model.parameters(), strict=True):
        assert torch.allclose(a.float(), b.float(), rtol=1e-4, atol=1e-5), name
    assert found.device.startswith("cuda") and found.peak_memory == did.peak > 0
    return did


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_pruned_as_on_the_cpu(family):
    on_both(family, differing=0.01 if family == "gpt2" else 0.0)


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", [m for m in METHODS if NEEDS[m] != "gram" or m == "sparsegpt"])
def test_methods_orders_and_patterns(method, dtype, resident):
    for order in ("block", "true-sequential", "dense"):
        for pattern in (None, "2:4"):
            on_both(method=method, dtype=dtype, resident=resident, order=order, pattern=pattern)


@pytest.mark.parametrize("method", sorted(SYNCS))
def test_the_host_seldom_waits(method):
    """Twice the windows, columns or blocks: as many waits a block; launches within the budget."""
    device = on_both(method=method)
    outside = sum(n for place, n in device.syncs.items() if "first_inputs" in place or "_record_calls" in place)
    waits = sum(device.syncs.values()) - outside
    assert waits <= BLOCKS * SYNCS[method] + 2, device.syncs.most_common()
    assert sum(device.launches.values()) <= BLOCKS * LAUNCHES[method], device.launches.most_common(12)
    assert not [place for place in device.syncs if "selection" in place or "_choose" in place]


def test_what_travels_is_counted():
    """A resident model: ids in; masks and four numbers a Linear out. A visiting one: its blocks to and fro besides."""
    lm = tiny_model()
    weights = sum(p.nbytes for p in lm.model.model.layers.parameters())
    bits = sum(p.numel() // 8 for p in lm.model.model.layers.parameters() if p.ndim == 2)
    resident, visiting = on_both(), on_both(resident=False)
    assert resident.copied["to device"] == WINDOWS * 32 * 8
    assert bits < resident.copied["to host"] < bits + 21 * 4 * 8 + 100
    assert weights <= visiting.copied["to device"] < 1.5 * weights
    assert visiting.copied["to host"] < 1.2 * weights


def test_hidden_states_that_do_not_fit_stay_in_locked_memory():
    with second_device(memory=1_600_000) as device:
        lm = tiny_model()
        prune(lm, tiny_calibration(lm, n=64), device="cuda", batch_size=8, progress=False)
        assert device.copied["to host"] > 2 * 64 * 32 * 64 * 4  # the hidden states went home after each block
    assert not [place for place in device.syncs if "_keep" in place or "advance" in place]
    expected = tiny_model()
    prune(expected, tiny_calibration(lm, n=64), batch_size=8, progress=False)
    for a, b in zip(lm.model.parameters(), expected.model.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("way", ["block", "dense"])
def test_non_finite_inputs_are_named_without_waiting_for_each(way):
    lm = tiny_model()
    lm.model.get_input_embeddings().weight[77] = float("inf")
    calibration = tiny_calibration(lm)
    calibration.input_ids[calibration.input_ids == 77] = 78
    calibration.input_ids[5, 3] = 77
    with second_device(), pytest.raises(NumericalError, match=r"layers\.0\.self_attn\.q_proj in .* window 4 to 5"):
        lm.model.to("cuda")
        prune(lm, calibration, order=way, batch_size=2, progress=False)


def test_streaming_and_statistics(tmp_path):
    folder = stored("llama", tmp_path / "dense")
    calibration = tiny_calibration(tiny_model())
    run = {"dtype": "float32", "batch_size": BATCH, "progress": False}
    prune_folder(folder, tmp_path / "cpu", calibration, device="cpu", **run)
    lm = tiny_model()
    expected = collect_statistics(lm, calibration, batch_size=BATCH, progress=False)
    with second_device():
        prune_folder(folder, tmp_path / "cuda", calibration, device="cuda", **run)
        found = collect_statistics(lm, calibration, batch_size=BATCH, device="cuda", progress=False)
        by_statistics = prune(tiny_model(), statistics=found, device="cuda", progress=False)
    ours, theirs = contents(tmp_path / "cuda"), contents(tmp_path / "cpu")
    assert all(torch.equal(ours[n] == 0, theirs[n] == 0) for n in theirs)
    for name, item in expected.inputs.items():
        assert found.inputs[name].gram.device.type == "cpu"
        assert torch.allclose(found.inputs[name].gram, item.gram, rtol=1e-5, atol=1e-3)
    whole = prune(tiny_model(), statistics=expected, progress=False)
    assert all(torch.equal(mask, masks(whole)[name]) for name, mask in masks(by_statistics).items())


def test_likelihood():
    lm = tiny_model()
    ids = tiny_calibration(lm).input_ids
    expected = window_losses(lm, ids, progress=False)
    with second_device():
        lm.model.to("cuda")
        found = window_losses(lm, ids, progress=False)
    assert found.device.type == "cpu" and torch.allclose(found, expected, rtol=1e-5)


def test_a_model_loads_onto_the_device(tmp_path):
    folder = stored("llama", tmp_path / "dense")
    with second_device():
        lm = load_model(folder, "auto", "auto")
        assert lm.device.type == "cuda" and lm.dtype == torch.bfloat16
        with pytest.raises(WrongDevice, match="operands on cuda:0 and on the CPU"):
            lm.model(torch.zeros(1, 4, dtype=torch.int64))
        with pytest.raises(TypeError, match="numpy"):
            lm.model.lm_head.weight.numpy()


def test_too_little_memory_is_retried_smaller_and_then_says_what_to_lower():
    lm, calibration = tiny_model(), None
    calibration = tiny_calibration(lm, n=64)
    with second_device() as device:
        lm.model.to("cuda")
        before = device.used
        prune(tiny_model(), calibration, device="cuda", batch_size=8, progress=False)
        small = device.peak
    lm = tiny_model()
    with second_device(memory=int(1.05 * small)), pytest.warns(UserWarning, match="trying again with batch_size"):
        report = prune(lm, calibration, device="cuda", batch_size=64, progress=False)
    assert report.batch_size < 64
    lm = tiny_model()
    with second_device(memory=before // 2), pytest.raises(IgspError, match="batch_size=1: use a shorter seqlen"):
        prune(lm, calibration, device="cuda", batch_size=1, progress=False)


@pytest.mark.parametrize("method", ["sparsegpt", "wanda"])
def test_memory_of_an_8b_run_is_what_the_dry_run_says(method):
    """Shapes alone go through, of 2 of the 32 blocks: without the weights of the others the rest shows all the more."""
    run = counted(method, blocks=2, n=128)
    assert abs(run.peak / run.planned - 1) < 0.1, (run.peak / 1e9, run.planned / 1e9)


def byte_model():
    """A tiny model that reads bytes, with a BOS token: what a suite and a protocol ask for."""
    return tiny()


def test_generation_and_a_protocol():
    """In float32 the texts are the CPU's; the host asks for tokens once a step, whatever the number of texts."""
    lm = byte_model()
    prompts, seeds = [[1, 2, 3], [4, 5], [6]], [0, 1, 2]
    expected = generate(lm, prompts, 12, seeds, progress=False)
    protocol = self_cal(lm, n=2, seqlen=16, progress=False)
    with second_device() as device:
        lm.model.to("cuda")
        device.reset()
        assert generate(lm, prompts, 12, seeds, progress=False) == expected
        assert self_cal(lm, n=2, seqlen=16, progress=False).sha256 == protocol.sha256


def test_evaluate_scores_as_on_the_cpu():
    lm = byte_model()
    options = {"tasks": ["arithmetic", "text_code"], "limit": 2, "progress": False}
    expected = evaluate(lm, **options)
    with second_device():
        lm.model.to("cuda")
        found = evaluate(lm, **options)
    for a, b in zip(found.tasks, expected.tasks, strict=True):
        assert a.task == b.task and a.n == b.n and a.value == pytest.approx(b.value, rel=1e-5)
