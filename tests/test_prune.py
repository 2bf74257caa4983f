"""The driver: orders, additive statistics, resuming, saving, reports and bad input, on tiny random models."""

from __future__ import annotations

import copy
import errno
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import FAMILIES, tiny_calibration, tiny_model
from transformers import AutoModelForCausalLM

from igsp.errors import IgspError, NumericalError, TokenizerMismatch, UnknownName, UsageError
from igsp.models import load_model
from igsp.pruning import checkpoint as checkpoints
from igsp.pruning import driver
from igsp.pruning.blocks import capture_calls, find_blocks, first_inputs, replay, weight_matrix
from igsp.pruning.driver import METHODS, Statistics, collect_statistics, combine, prune, save
from igsp.pruning.report import load_masks, pack_mask, unpack_mask
from igsp.pruning.solvers import InputStatistics, exact_count, sparsegpt
from igsp.pruning.streaming import prune_folder


def pruned(family="llama", n=8, **arguments):
    lm = tiny_model(family)
    report = prune(lm, tiny_calibration(lm, n=n), progress=False, **arguments)
    return lm, report


def weights(lm):
    return {f"{b.name}.{n}": weight_matrix(m) for b in find_blocks(lm.model) for n, m in b.linears.items()}


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(weights(a).values(), weights(b).values(), strict=True))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_every_family_reaches_exact_counts(family, method):
    lm, report = pruned(family, method=method, sparsity=0.6)
    found = weights(lm)
    assert {m.name for m in report.modules} == set(found)
    for module in report.modules:
        matrix, mask = found[module.name], report.mask(module.name)
        rows, columns = matrix.shape
        by_row = method in ("wanda", "sparseswaps", "sparseswaps-refit")
        count = rows * exact_count(columns, 0.6) if by_row else exact_count(rows * columns, 0.6)
        assert int(mask.sum()) == module.pruned == count
        assert (matrix[mask] == 0).all() and module.zeros >= count
        assert 0 < module.error < 1
    assert report.coverage == 1.0 and report.pruned == sum(m.pruned for m in report.modules)


@pytest.mark.parametrize("order", ["block", "true-sequential", "dense"])
@pytest.mark.parametrize("pattern", ["2:4", "4:8"])
def test_patterns_hold_in_every_order(order, pattern):
    lm, report = pruned(order=order, pattern=pattern)
    keep, group = map(int, pattern.split(":"))
    assert report.reached == report.sparsity == 0.5
    for matrix in weights(lm).values():
        assert ((matrix.reshape(-1, group) != 0).sum(1) == keep).all()


def by_hand(lm, calibration, order):
    """Prunes with SparseGPT in the stated order, written out plainly: all windows at once, one Linear at a time."""
    model, blocks = lm.model, find_blocks(lm.model)
    dense = copy.deepcopy(model)
    hidden = first_inputs(model, blocks, calibration.input_ids)
    calls = capture_calls(model, blocks, calibration.input_ids)

    def gram(of, block, name):
        seen = []
        handle = find_blocks(of)[block.index].linears[name].register_forward_pre_hook(lambda m, a: seen.append(a[0]))
        replay(find_blocks(of)[block.index], hidden, calls[block.index])
        handle.remove()
        x = seen[0].reshape(-1, seen[0].shape[-1])
        return InputStatistics(len(x), calibration.n, x.square().sum(0), x.T @ x)

    for block in blocks:
        unpruned = copy.deepcopy(model)
        for name in ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj",
                     "mlp.up_proj", "mlp.down_proj"]:
            matrix = weight_matrix(block.linears[name])
            statistics = gram(model if order == "true-sequential" else unpruned, block, name)
            matrix.copy_(sparsegpt(matrix, statistics, 0.6).weight)
        hidden = replay(find_blocks(dense)[block.index] if order == "dense" else block, hidden, calls[block.index])


@pytest.mark.parametrize("order", ["block", "true-sequential", "dense"])
@pytest.mark.parametrize("batch_size", [8, 3])
def test_orders_are_what_they_say(order, batch_size):
    expected = tiny_model()
    by_hand(expected, tiny_calibration(expected), order)
    lm, _ = pruned(order=order, batch_size=batch_size)
    for a, b in zip(weights(lm).values(), weights(expected).values(), strict=True):
        assert ((a == 0) != (b == 0)).float().mean() < 0.01
        assert torch.allclose(a, b, atol=2e-2) or ((a - b).abs() > 2e-2).float().mean() < 0.01


def test_orders_differ():
    masks = [pruned(order=order)[1].mask("model.layers.2.mlp.down_proj") for order in driver.STEPS]
    assert not torch.equal(masks[0], masks[1]) and not torch.equal(masks[1], masks[2])


def test_statistics_of_parts_add_up_to_those_of_the_whole():
    lm = tiny_model()
    whole = tiny_calibration(lm, n=8)
    halves = [replace(whole, input_ids=ids, windows=whole.windows[:4]) for ids in whole.input_ids.split(4)]
    together = collect_statistics(lm, whole, progress=False)
    parts = {str(i): collect_statistics(lm, half, progress=False) for i, half in enumerate(halves)}
    added = combine(parts, {"0": 1, "1": 1})
    for name, item in together.inputs.items():
        assert torch.allclose(item.gram, added.inputs[name].gram, rtol=1e-4, atol=1e-3)
        assert item.tokens == added.inputs[name].tokens == 256
    heavy = combine(parts, {"0": 3, "1": 1})
    name = next(iter(together.inputs))
    expected = 1.5 * parts["0"].inputs[name].gram + 0.5 * parts["1"].inputs[name].gram
    assert torch.allclose(heavy.inputs[name].gram, expected, rtol=1e-5)


def test_stored_statistics_prune_as_the_dense_order_does(tmp_path):
    direct, _ = pruned(order="dense")
    lm = tiny_model()
    path = collect_statistics(lm, tiny_calibration(lm), progress=False).save(tmp_path / "statistics.safetensors")
    report = prune(lm, statistics=Statistics.load(path), progress=False)
    assert same(lm, direct) and report.order == "dense"
    norms = collect_statistics(tiny_model(), tiny_calibration(lm), gram=False, progress=False)
    wanda = tiny_model()
    prune(wanda, statistics=norms, method="wanda", progress=False)
    assert same(wanda, pruned(order="dense", method="wanda")[0])


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[3])
import torch
from tiny import tiny_calibration, tiny_model
from igsp.pruning.checkpoint import Checkpoint
from igsp.pruning.driver import prune
written = Checkpoint.save
def save(self, block, masks, modules):
    if block.index == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    written(self, block, masks, modules)
Checkpoint.save = save
lm = tiny_model(dtype=torch.bfloat16)
prune(lm, tiny_calibration(lm), order=sys.argv[1], checkpoint=sys.argv[2], batch_size=8, progress=False)
"""


@pytest.mark.parametrize("order", ["block", "true-sequential", "dense"])
def test_a_killed_run_resumes_to_the_same_bits(order, tmp_path):
    folder = tmp_path / "checkpoint"
    command = [sys.executable, "-c", KILLED, order, str(folder), str(Path(__file__).parent)]
    assert subprocess.run(command, capture_output=True).returncode == -9
    assert sorted(p.name for p in folder.iterdir()) == [
        "block-0000.safetensors", "block-0001.safetensors", "run.json"
    ]
    resumed, unbroken = tiny_model(dtype=torch.bfloat16), tiny_model(dtype=torch.bfloat16)
    calibration = tiny_calibration(resumed)
    report = prune(resumed, calibration, order=order, checkpoint=folder, progress=False)
    whole = prune(unbroken, calibration, order=order, batch_size=8, progress=False)
    assert report.resumed_blocks == 2 and report.batch_size == 8
    assert same(resumed, unbroken)
    assert report.masks.keys() == whole.masks.keys()
    assert all(torch.equal(report.masks[name], whole.masks[name]) for name in whole.masks)
    assert [m.error for m in report.modules] == [m.error for m in whole.modules]


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    pruned(checkpoint=tmp_path)
    with pytest.raises(UsageError, match=r"another run .*sparsity"):
        pruned(checkpoint=tmp_path, sparsity=0.5)


def test_a_full_disk_is_named_and_the_run_resumes(tmp_path, monkeypatch):
    whole, _ = pruned()

    def full(*arguments, **options):
        if list(tmp_path.glob("block-*")):
            raise OSError(errno.ENOSPC, "No space left on device")
        return written(*arguments, **options)

    written = checkpoints.save_file
    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(IgspError, match="disk is full"):
        pruned(checkpoint=tmp_path)
    monkeypatch.undo()
    lm, report = pruned(checkpoint=tmp_path)
    assert report.resumed_blocks == 1 and same(lm, whole)


def stored(family, folder, **changes):
    """A tiny model saved as a checkpoint folder, as a hub model would lie there."""
    lm = tiny_model(family, dtype=torch.bfloat16, **changes)
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    return str(folder)


def contents(folder):
    tensors = {}
    for path in folder.glob("model*.safetensors"):
        tensors |= load_file(path)
    return tensors


@pytest.mark.parametrize("order", ["block", "true-sequential", "dense"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text", "opt", "gpt_neox"])
def test_streaming_gives_the_bits_of_the_loaded_model(family, order, tmp_path):
    folder = stored(family, tmp_path / "dense")
    lm = load_model(folder, device="cpu", dtype="bfloat16")
    calibration = tiny_calibration(lm)
    report = prune(lm, calibration, order=order, batch_size=4, progress=False)
    save(lm, tmp_path / "loaded", report, calibration)
    options = {"order": order, "batch_size": 4, "progress": False, "device": "cpu", "dtype": "bfloat16"}
    streamed = prune_folder(folder, tmp_path / "streamed", calibration, **options)
    loaded, found = contents(tmp_path / "loaded"), contents(tmp_path / "streamed")
    assert found.keys() == loaded.keys() and all(torch.equal(found[name], loaded[name]) for name in loaded)
    assert [m.error for m in streamed.modules] == [m.error for m in report.modules] and streamed.peak_memory > 0
    assert {p.name for p in (tmp_path / "streamed").iterdir()} >= {"config.json", "masks", "manifest.json"}
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "streamed", dtype=torch.bfloat16)
    assert torch.equal(model(calibration.input_ids[:2]).logits, lm.model(calibration.input_ids[:2]).logits)
    assert not list(tmp_path.glob(".streamed*"))


STREAMED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from tiny import tiny_calibration
from igsp.models import load_model
from igsp.pruning.streaming import Stream, prune_folder
written = Stream.save
def save(self, block, masks, modules):
    if block.index == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    written(self, block, masks, modules)
Stream.save = save
lm = load_model(sys.argv[2], "cpu", "bfloat16")
prune_folder(sys.argv[2], sys.argv[3], tiny_calibration(lm), "cpu", "bfloat16", batch_size=8, progress=False)
"""


def test_a_killed_streaming_run_resumes_to_the_same_bits(tmp_path):
    folder = stored("llama", tmp_path / "dense")
    calibration = tiny_calibration(tiny_model())
    command = [sys.executable, "-c", STREAMED, str(Path(__file__).parent), folder, str(tmp_path / "out")]
    assert subprocess.run(command, capture_output=True).returncode == -9
    assert not (tmp_path / "out").exists()
    run = {"device": "cpu", "dtype": "bfloat16", "progress": False}
    with pytest.raises(UsageError, match=r"another run .*sparsity"):
        prune_folder(folder, tmp_path / "out", calibration, sparsity=0.5, **run)
    report = prune_folder(folder, tmp_path / "out", calibration, **run)
    prune_folder(folder, tmp_path / "whole", calibration, batch_size=8, **run)
    resumed, whole = contents(tmp_path / "out"), contents(tmp_path / "whole")
    assert report.resumed_blocks == 2 and all(torch.equal(resumed[name], whole[name]) for name in whole)
    with pytest.raises(UsageError, match="not empty"):
        prune_folder(folder, tmp_path / "out", calibration, **run)


WIDE = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
from tiny import tiny_calibration
from igsp.models import load_model
from igsp.pruning.driver import prune
from igsp.pruning.report import peak_memory
from igsp.pruning.streaming import prune_folder
way, wide, small, out = sys.argv[2:]
calibration = tiny_calibration(load_model(small, "cpu", "bfloat16"))
run = {"method": "wanda", "progress": False}
peaks = []
for model in small, wide:  # the first brings in whatever is imported or set up late
    with peak_memory(torch.device("cpu")) as peak:
        if way == "whole":
            prune(load_model(model, "cpu", "bfloat16"), calibration, **run)
        else:
            prune_folder(model, out + "-" + model.rsplit("/", 1)[1], calibration, device="cpu", dtype="bfloat16", **run)
    peaks += peak
print(peaks[1] - peaks[0])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_a_model_larger_than_memory_is_pruned(tmp_path):
    """Memory grows by some blocks' worth, whatever their number: far less than by loading the model whole."""
    wide = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 48}
    folders = [stored("llama", tmp_path / "wide", **wide), stored("llama", tmp_path / "small")]
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}  # every thread that allocates keeps a heap of its own
    grown = {}
    for way in ("stream", "whole"):
        command = [sys.executable, "-c", WIDE, str(Path(__file__).parent), way, *folders, str(tmp_path / "out")]
        run = subprocess.run(command, capture_output=True, text=True, env=alone)
        assert run.stdout, run.stderr[-2000:]
        grown[way] = int(run.stdout)
    assert 0 < grown["stream"] < 0.7 * grown["whole"], grown
    assert len(list(tmp_path.glob("out-wide/model-000*"))) == 49


def test_streaming_needs_files_that_name_tensors_as_the_model_does(tmp_path):
    """transformers also reads the names of the bare model; they would have to be renamed on the way out."""
    folder = stored("gpt2", tmp_path / "dense")
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in contents(tmp_path / "dense").items()}
    save_file(tensors, tmp_path / "dense" / "model.safetensors", {"format": "pt"})
    load_model(folder, "cpu")
    with pytest.raises(UsageError, match=r"no 'transformer\.h\.0\..*save_pretrained"):
        prune_folder(folder, tmp_path / "out", method="magnitude", progress=False)


def test_saved_models_load_with_zeros_and_masks(tmp_path):
    lm = tiny_model(dtype=torch.bfloat16)
    calibration = tiny_calibration(lm)
    report = prune(lm, calibration, progress=False)
    folder = save(lm, tmp_path / "out", report, calibration)
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    masks = load_masks(folder)
    for block in find_blocks(loaded):
        for name, linear in block.linears.items():
            full = f"{block.name}.{name}"
            assert torch.equal(weight_matrix(linear), weights(lm)[full])
            assert torch.equal(masks[full], report.mask(full))
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["report"]["pruned"] == report.pruned and manifest["calibration"]["sha256"] == calibration.sha256
    with pytest.raises(UsageError, match="not empty"):
        save(lm, folder, report)


def test_a_failed_save_leaves_nothing(tmp_path, monkeypatch):
    lm, report = pruned(method="magnitude")
    monkeypatch.setattr(lm.tokenizer, "save_pretrained", lambda folder: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save(lm, tmp_path / "out", report)
    assert not list(tmp_path.iterdir())


def test_masks_are_packed_in_bits():
    mask = torch.rand(5, 13) < 0.5
    assert pack_mask(mask).numel() == 9 and torch.equal(unpack_mask(pack_mask(mask), 5, 13), mask)


def test_only_the_linears_of_the_blocks_change():
    before, (after, _) = tiny_model("gpt2"), pruned("gpt2")
    changed = {n for (n, a), b in zip(before.model.named_parameters(), after.model.parameters(), strict=True)
               if not torch.equal(a, b)}
    assert changed == {f"{b.name}.{n}.weight" for b in find_blocks(before.model) for n in b.linears}


def test_magnitude_needs_no_calibration_and_zero_sparsity_changes_nothing():
    lm = tiny_model()
    prune(lm, method="magnitude", sparsity=0.0, progress=False)
    assert same(lm, tiny_model())
    assert same(pruned(sparsity=0.0)[0], tiny_model())


def test_report_is_json_and_remembers_what_was_asked():
    _, report = pruned(sparsity=0.5)
    plain = json.loads(json.dumps(report.to_dict()))
    assert plain["sparsity"] == 0.5 and plain["order"] == "block" and plain["calibration"]["n"] == 8
    assert plain["reached"] == report.pruned / report.weights and plain["peak_memory"] > 0 and plain["seconds"] > 0
    assert {m["damping"] for m in plain["modules"]} == {0.01}
    with pytest.raises(UsageError, match="no Linear named"):
        report.mask("lm_head")


class Passing(torch.nn.Module):
    """A block that has nothing to prune."""

    def forward(self, hidden_states, **kwargs):
        return hidden_states


@pytest.mark.parametrize("order", driver.STEPS)
def test_a_block_without_linears_is_passed_through(order):
    lm = tiny_model()
    lm.model.model.layers[1] = Passing()
    report = prune(lm, tiny_calibration(lm), order=order, progress=False)
    assert {m.layer for m in report.modules} == {0, 2} and report.reached > 0.59


def test_few_tokens_are_warned_about_and_recorded():
    lm = tiny_model()
    with pytest.warns(UserWarning, match="32 calibration tokens for up to 96 columns"):
        report = prune(lm, tiny_calibration(lm, n=1), progress=False)
    assert "singular" in report.warnings[0] and all(m.damping >= 0.01 for m in report.modules)


@pytest.mark.parametrize("error", [
    torch.OutOfMemoryError("no memory"), MemoryError(),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
])
def test_out_of_memory_is_retried_with_smaller_batches(error, monkeypatch, tmp_path):
    collect = driver.Activations.collect
    sizes = []

    def limited(self, *arguments, **options):
        sizes.append(len(self.batches[0]))
        if sizes[-1] > 2:
            raise error
        return collect(self, *arguments, **options)

    monkeypatch.setattr(driver.Activations, "collect", limited)
    with pytest.warns(UserWarning, match="trying again with batch_size"):
        _, report = pruned(batch_size=8)
    assert report.batch_size == 2 and sizes[:3] == [8, 4, 2] and report.reached > 0.59
    folder = stored("llama", tmp_path / "dense")
    run = {"batch_size": 8, "device": "cpu", "progress": False}
    with pytest.warns(UserWarning, match="trying again with batch_size"):
        assert prune_folder(folder, tmp_path / "out", tiny_calibration(tiny_model()), **run).batch_size == 2


def test_other_errors_are_not_taken_for_a_lack_of_memory(monkeypatch):
    monkeypatch.setattr(driver.Activations, "collect", lambda *a, **k: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError, match="size"):
        pruned(batch_size=8)


@pytest.mark.parametrize(
    ("batch_size", "failing", "way_out"), [(1, 0, "use a shorter seqlen"), (4, 1, "lower batch_size")]
)
def test_out_of_memory_says_what_to_lower(batch_size, failing, way_out, monkeypatch):
    """With one window there is nothing to halve; once a block was pruned, starting again would prune it twice."""
    collect = driver.Activations.collect

    def limited(self, block, *arguments, **options):
        if block.index == failing:
            raise torch.OutOfMemoryError("no memory")
        return collect(self, block, *arguments, **options)

    monkeypatch.setattr(driver.Activations, "collect", limited)
    with pytest.raises(IgspError, match=f"out of memory with batch_size={batch_size}: .*{way_out}"):
        pruned(batch_size=batch_size)


def test_non_finite_activations_name_layer_and_window():
    lm = tiny_model()
    lm.model.get_input_embeddings().weight[77] = float("inf")
    calibration = tiny_calibration(lm)
    calibration.input_ids[calibration.input_ids == 77] = 78
    calibration.input_ids[5, 3] = 77
    for method in ("sparsegpt", "wanda"):
        with pytest.raises(NumericalError, match=r"layers\.0\.self_attn\.q_proj in calibration window 5"):
            prune(lm, calibration, method=method, batch_size=2, progress=False)


def test_non_finite_weights_are_named():
    lm = tiny_model()
    lm.model.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(NumericalError, match=r"layers\.1\.mlp\.up_proj"):
        prune(lm, method="magnitude", progress=False)


def test_bad_input_is_refused_before_anything_changes():
    lm = tiny_model()
    calibration = tiny_calibration(lm)
    other = replace(calibration, tokenizer="another")
    foreign = collect_statistics(tiny_model("qwen3"), tiny_calibration(tiny_model("qwen3")), progress=False)
    for error, match, arguments in [
        (UnknownName, "sparsegpt", {"method": "sparsegtp"}),
        (UnknownName, "true-sequential", {"order": "sequential"}),
        (UsageError, r"outside \[0, 1\)", {"sparsity": 1.0}),
        (UsageError, "N:M", {"pattern": "4:2"}),
        (UsageError, "not 0.7", {"pattern": "2:4", "sparsity": 0.7}),
        (UsageError, "columns of .* no multiple of 5", {"pattern": "2:5"}),
        (UsageError, "must be positive", {"damping": 0.0}),
        (UsageError, "needs a calibration set", {"calibration": None}),
        (TokenizerMismatch, "another tokenizer", {"calibration": other}),
        (UsageError, "another model", {"statistics": foreign}),
    ]:
        with pytest.raises(error, match=match):
            prune(lm, **({"calibration": calibration, "progress": False} | arguments))
    assert same(lm, tiny_model())


def test_damaged_statistics_are_refused(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    with pytest.raises(UsageError, match="no pruning statistics"):
        Statistics.load(tmp_path / "x.safetensors")
    lm = tiny_model()
    one = collect_statistics(lm, tiny_calibration(lm), progress=False)
    for bad in ({"b": 1.0}, {"a": -1.0}, {"a": 0.0}):
        with pytest.raises(UsageError, match="mixture weights"):
            combine({"a": one}, bad)
