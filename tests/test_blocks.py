"""Decoders are discovered, not listed: in every family the replayed blocks equal the model's own forward."""

from __future__ import annotations

import pytest
import torch
from tiny import FAMILIES, VOCABULARY
from torch import nn

from igsp.errors import UsageError
from igsp.pruning.blocks import (
    capture_calls,
    coverage,
    find_blocks,
    first_inputs,
    replay,
    shared_inputs,
    watch,
    weight_matrix,
)


def own_outputs(model, blocks, ids):
    """Output of every block in the model's own forward."""
    seen = []
    hooks = [
        block.module.register_forward_hook(lambda m, a, o: seen.append(o[0] if isinstance(o, tuple) else o))
        for block in blocks
    ]
    model(ids, use_cache=False)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("family", FAMILIES)
def test_replay_equals_the_models_own_forward(family, make_model):
    model = make_model(family).model
    ids = torch.randint(3, VOCABULARY, (3, 32))
    blocks = find_blocks(model)
    expected = own_outputs(model, blocks, ids)
    hidden = first_inputs(model, blocks, ids)
    calls = capture_calls(model, blocks, torch.randint(3, VOCABULARY, (3, 32)))  # of other text than is replayed
    for block, call, own in zip(blocks, calls, expected, strict=True):
        hidden = replay(block, hidden, call)
        assert torch.equal(hidden, own)
    assert len(blocks) == 3 and coverage(blocks) == 1.0


@pytest.mark.parametrize("family", FAMILIES)
def test_capture_leaves_the_model_as_it_was(family, make_model):
    model = make_model(family).model
    ids = torch.randint(3, VOCABULARY, (2, 16))
    before = model(ids).logits
    blocks = find_blocks(model)
    capture_calls(model, blocks, ids)
    first_inputs(model, blocks, ids)
    assert torch.equal(model(ids).logits, before)
    assert not any("forward" in m.__dict__ or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize(
    ("family", "sizes"),
    [("llama", [3, 1, 2, 1]), ("phi3", [1, 1, 1, 1]), ("gpt2", [1, 1, 1, 1]), ("opt", [3, 1, 1, 1]),
     ("gpt_neox", [1, 1, 1, 1])],
)
def test_linears_of_one_input_are_grouped(family, sizes, make_model):
    model = make_model(family).model
    ids = torch.randint(3, VOCABULARY, (2, 16))
    blocks = find_blocks(model)
    groups = shared_inputs(blocks[0], first_inputs(model, blocks, ids), capture_calls(model, blocks, ids)[0])
    assert [len(group) for group in groups] == sizes
    assert sorted(name for group in groups for name in group) == sorted(blocks[0].linears)


def test_layers_of_different_kinds_get_their_own_arguments(make_model):
    """Gemma 3 alternates sliding and full attention: the first layer's arguments are wrong for the second."""
    model = make_model("gemma3_text").model
    ids = torch.randint(3, VOCABULARY, (2, 32))
    blocks = find_blocks(model)
    calls = capture_calls(model, blocks, ids)
    hidden = first_inputs(model, blocks, ids)
    assert not torch.allclose(replay(blocks[1], hidden, calls[1]), replay(blocks[1], hidden, calls[0]), rtol=1e-3)


def test_conv1d_is_seen_as_rows_by_columns(make_model):
    block = find_blocks(make_model("gpt2").model)[0]
    assert weight_matrix(block.linears["mlp.c_fc"]).shape == (256, 64)
    assert weight_matrix(block.linears["mlp.c_fc"]).data_ptr() == block.linears["mlp.c_fc"].weight.data_ptr()


def test_a_watched_pass_stops_when_all_was_seen(make_model):
    model = make_model("llama").model
    ids = torch.randint(3, VOCABULARY, (2, 16))
    blocks = find_blocks(model)
    hidden, call = first_inputs(model, blocks, ids), capture_calls(model, blocks, ids)[0]
    seen = []
    assert watch(blocks[0], hidden, call, lambda name, x: seen.append(name), ["self_attn.o_proj"], stop=True) is None
    assert seen == ["self_attn.o_proj"]
    output = watch(blocks[0], hidden, call, lambda name, x: seen.append(name))
    assert torch.equal(output, replay(blocks[0], hidden, call)) and len(seen) == 8


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_fused_experts_are_refused_with_the_covered_share(family, make_model):
    moe = {"num_experts": 8, "num_local_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    model = make_model(family, **moe).model
    with pytest.raises(UsageError, match=r"only \d+\.\d % of the weights.*experts"):
        find_blocks(model)


def test_arguments_that_depend_on_the_text_are_refused(make_model):
    model = make_model("llama").model
    blocks = find_blocks(model)
    model.base_model.register_forward_pre_hook(lambda m, a, k: setattr(m, "ids", k["input_ids"]), with_kwargs=True)
    forward = blocks[0].module.forward
    for block in blocks:
        block.module.register_forward_pre_hook(
            lambda m, a, k: (a, k | {"extra": model.base_model.ids}), with_kwargs=True
        )
    blocks[0].module.forward = lambda *args, extra=None, **kwargs: forward(*args, **kwargs)
    with pytest.raises(UsageError, match="depend on the text"):
        capture_calls(model, blocks, torch.randint(3, VOCABULARY, (2, 16)))


def test_a_model_without_blocks_is_refused():
    with pytest.raises(UsageError, match="no list of decoder blocks"):
        find_blocks(nn.Sequential(nn.Linear(4, 4)))
    with pytest.raises(UsageError, match="Linear"):
        find_blocks(nn.ModuleDict({"layers": nn.ModuleList([nn.Bilinear(4, 4, 4)])}))
