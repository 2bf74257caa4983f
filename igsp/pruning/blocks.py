"""The only file that knows the insides of transformers: find a decoder's blocks, capture their arguments, replay.

Nothing is listed per model family. A block is replayed with exactly the arguments the model itself passed to
that block (masks and rotary embeddings differ from layer to layer in many families).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from igsp.errors import UsageError

PROBE = 16  # tokens of the forward pass that shows what a block returns
MIN_COVERAGE = 0.9  # of the matrix weights of the blocks; below it the pruned model would be mostly dense


@dataclass(frozen=True)
class Block:
    """One decoder block: position, name in the model, module, and its Linear layers by name inside the block."""

    index: int
    name: str
    module: nn.Module
    linears: dict[str, nn.Module]


def weight_of(linear: nn.Module) -> Tensor:
    """The weight as the model holds it, sharing memory."""
    assert isinstance(linear.weight, Tensor)
    return linear.weight.detach()


def weight_matrix(linear: nn.Module) -> Tensor:
    """The weight as `[rows = outputs, columns = inputs]`, sharing memory (GPT-2's Conv1D stores the transpose)."""
    weight = weight_of(linear)
    return weight.t() if isinstance(linear, Conv1D) else weight


def find_blocks(model: PreTrainedModel) -> list[Block]:
    """The decoder blocks: the outermost ModuleList that holds the most parameters.

    Raises:
        UsageError: no such list, no Linear in any block, or too small a share of the weights in Linear layers.
    """
    lists: dict[str, nn.ModuleList] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) and not any(name.startswith(f"{o}.") for o in lists):
            lists[name] = module
    if not lists:
        raise UsageError(f"{type(model).__name__} has no list of decoder blocks that could be pruned")
    prefix = max(lists, key=lambda name: sum(p.numel() for p in lists[name].parameters()))
    blocks = []
    for index, module in enumerate(lists[prefix]):
        linears: dict[str, nn.Module] = {
            name: child for name, child in module.named_modules() if isinstance(child, nn.Linear | Conv1D)
        }
        blocks.append(Block(index, f"{prefix}.{index}", module, linears))
    _check_coverage(model, blocks)
    return blocks


def coverage(blocks: Sequence[Block]) -> float:
    """Share of the blocks' matrix weights (parameters of 2 or more dimensions) that lies in Linear layers."""
    inside = sum(weight_matrix(linear).numel() for block in blocks for linear in block.linears.values())
    total = sum(p.numel() for block in blocks for p in block.module.parameters() if p.ndim >= 2)
    return inside / total if total else 0.0


def _check_coverage(model: PreTrainedModel, blocks: Sequence[Block]) -> None:
    share = coverage(blocks)
    if share >= MIN_COVERAGE:
        return
    others = {f"{n} {list(p.shape)}" for n, p in blocks[-1].module.named_parameters() if p.ndim >= 3}
    raise UsageError(
        f"{type(model).__name__}: only {100 * share:.1f} % of the weights of its decoder blocks lie in Linear layers"
        + (f" (the rest in fused parameters such as {', '.join(sorted(others)[:2])})" if others else "")
        + ": mixture-of-experts models with fused experts are not supported, choose a dense decoder"
    )


@dataclass(frozen=True)
class Call:
    """What a model passes to one block beside the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def to(self, device: torch.device, moved: dict[int, Tensor]) -> Call:
        """On that device; `moved` holds what is there already, by identity (blocks share their masks)."""
        return Call(_move(self.args, device, moved), _move(self.kwargs, device, moved))


def replay(block: Block, hidden: Tensor, call: Call) -> Tensor:
    """The block's output hidden states `[batch, seqlen, width]` for the inputs `hidden` of the same shape."""
    output = block.module(hidden, *call.args, **call.kwargs)
    return output[0] if isinstance(output, tuple) else output


class _Stop(Exception):
    """Leaves a forward pass from inside a hook, once all that is needed was seen."""


def first_inputs(model: PreTrainedModel, blocks: Sequence[Block], ids: Tensor) -> Tensor:
    """Hidden states `[batch, seqlen, width]` that enter the first block for token ids `[batch, seqlen]`."""
    seen: list[Tensor] = []

    def catch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(args[0] if args else kwargs["hidden_states"])
        raise _Stop

    handle = blocks[0].module.register_forward_pre_hook(catch, with_kwargs=True)
    try:
        model.base_model(input_ids=ids, use_cache=False)
    except _Stop:
        pass
    finally:
        handle.remove()
    return seen[0]


def capture_calls(model: PreTrainedModel, blocks: Sequence[Block], ids: Tensor) -> list[Call]:
    """The arguments of every block for a batch shaped like `ids` `[batch, seqlen]`.

    The model's own forward runs with every block answering at once, so this costs hardly more than the embedding.
    What a block's answer looks like (a tensor or a tuple) is seen by running the first one on a few tokens.

    Raises:
        UsageError: the arguments depend on the tokens, so that they cannot be replayed for other windows.
    """
    probe = ids[:1, :PROBE]
    outputs: list[Any] = []
    handle = blocks[0].module.register_forward_hook(lambda module, args, output: outputs.append(output))
    try:
        with _answering(blocks[1:], [_give_up] * (len(blocks) - 1)):
            model.base_model(input_ids=probe, use_cache=False)
    except _Stop:
        pass
    finally:
        handle.remove()
    rest = outputs[0][1:] if isinstance(outputs[0], tuple) else None
    ours, other = (_record_calls(model, blocks, tokens, rest) for tokens in (probe, probe.flip(1)))
    pairs: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}  # blocks share most of their arguments
    same = all(_alike((a.args, a.kwargs), (b.args, b.kwargs), pairs) for a, b in zip(ours, other, strict=True))
    if not same or (pairs and not torch.stack([(x == y).all() for x, y in pairs.values()]).all()):
        raise UsageError(
            f"{type(model).__name__} passes its blocks arguments that depend on the text: "
            "such decoders cannot be replayed block by block and are not supported"
        )
    return _record_calls(model, blocks, ids, rest)


def _give_up(*args: Any, **kwargs: Any) -> Any:
    raise _Stop


def _record_calls(
    model: PreTrainedModel, blocks: Sequence[Block], ids: Tensor, rest: tuple[Any, ...] | None
) -> list[Call]:
    """Arguments of every block, each of which returns its input (followed by `rest`, if it returns a tuple)."""
    calls: list[Call] = []

    def record(*args: Any, **kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs.pop("hidden_states")
        calls.append(Call(_without_cache(args[1:]), _without_cache(kwargs)))
        return hidden if rest is None else (hidden, *rest)

    with _answering(blocks, [record] * len(blocks)):
        model.base_model(input_ids=ids, use_cache=False)
    return calls


@contextmanager
def _answering(blocks: Sequence[Block], answers: Sequence[Any]) -> Iterator[None]:
    """Lets each block's forward be answered by a function for a while (attributes of the blocks stay readable)."""
    before = [block.module.__dict__.get("forward") for block in blocks]
    try:
        for block, answer in zip(blocks, answers, strict=True):
            block.module.forward = answer
        yield
    finally:
        for block, forward in zip(blocks, before, strict=True):
            if forward is None:
                block.module.__dict__.pop("forward", None)
            else:
                block.module.forward = forward


def watch(block: Block, hidden: Tensor, call: Call, see: Any, names: Sequence[str] | None = None,
          stop: bool = False) -> Tensor | None:
    """Replays a block and calls `see(name, x)` with the input `x` of each Linear just before it runs.

    Args:
        names: the Linear layers to watch; all by default.
        stop: leave the forward pass as soon as all of them were seen (then nothing is returned).
    """
    waiting = set(names if names is not None else block.linears)
    handles = []

    def hook(name: str) -> Any:
        def before(module: nn.Module, args: tuple[Any, ...]) -> None:
            see(name, args[0])
            waiting.discard(name)
            if stop and not waiting:
                raise _Stop

        return before

    try:
        for name in sorted(waiting):
            handles.append(block.linears[name].register_forward_pre_hook(hook(name)))
        return replay(block, hidden, call)
    except _Stop:
        return None
    finally:
        for handle in handles:
            handle.remove()


def shared_inputs(block: Block, hidden: Tensor, call: Call) -> list[list[str]]:
    """Groups of Linear layers that read the same tensor (q/k/v, gate/up), in the order they run."""
    groups: list[list[str]] = []
    last: list[Tensor] = []

    def see(name: str, x: Tensor) -> None:
        if last and x is last[-1]:
            groups[-1].append(name)
        else:
            groups.append([name])
        last[:] = [x]

    watch(block, hidden, call, see, stop=True)
    return groups


def _without_cache(value: Any) -> Any:
    if isinstance(value, Cache):
        return None
    if isinstance(value, dict):
        return {key: _without_cache(item) for key, item in value.items()}
    return tuple(_without_cache(item) for item in value) if type(value) is tuple else value


def _move(value: Any, device: torch.device, moved: dict[int, Tensor]) -> Any:
    if isinstance(value, Tensor):
        return moved[id(value)] if id(value) in moved else moved.setdefault(id(value), value.to(device))
    if isinstance(value, dict):
        return {key: _move(item, device, moved) for key, item in value.items()}
    return type(value)(_move(item, device, moved) for item in value) if type(value) in (tuple, list) else value


def _alike(a: Any, b: Any, pairs: dict[tuple[int, int], tuple[Tensor, Tensor]]) -> bool:
    """Whether two values are built alike; the tensors in them, still to be compared, go to `pairs`."""
    if isinstance(a, Tensor):
        pairs[id(a), id(b)] = (a, b)
        return isinstance(b, Tensor) and a.shape == b.shape
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_alike(a[key], b[key], pairs) for key in a)
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(_alike(x, y, pairs) for x, y in zip(a, b, strict=True))
    return True
