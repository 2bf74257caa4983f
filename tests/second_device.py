"""A CUDA device that is not there: real numbers by a CPU-only torch, the rules of a device, and a count of what it did.

    with second_device(memory=2 << 30) as device:
        prune(lm, calibration, device="cuda")
    device.launches, device.syncs, device.copied, device.flops, device.traffic, device.peak

A tensor is on the device when its storage carries a mark, which views, parameters and in-place results share. One mode
answers what Python asks by name (`.device`, `.to`, `device=`), the other sees every operator: it refuses operands of
two devices, marks and measures what comes out, and counts. With `shapes=True` the device computes nothing: tensors on
it are `meta`, so that a model of any size runs through in seconds and leaves its launches, bytes and peak memory.
Not pretended: streams, graphs, the allocator's rounding, workspaces of libraries.
"""

from __future__ import annotations

import sys
import threading
import types
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
GETTERS = {getattr(torch.Tensor, name).__get__: name for name in ("device", "is_cuda", "is_cpu", "is_meta")}
# Operators that hand a number or a size to the host, which then waits for the device.
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "unique", "_unique2", "unique_dim", "bincount"}
# Operators that only describe memory: no kernel runs.
FREE = {"view", "_unsafe_view", "as_strided", "t", "transpose", "permute", "slice", "select", "split", "unsqueeze",
        "squeeze", "expand", "detach", "alias", "diagonal", "unbind", "split_with_sizes", "_reshape_alias", "unfold",
        "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "lift_fresh", "chunk", "reshape"}
PRODUCTS = {"mm": (0, 1), "addmm": (1, 2), "bmm": (0, 1), "baddbmm": (1, 2)}  # which operands are multiplied


class WrongDevice(RuntimeError):
    """What torch would refuse on a machine with a device."""


class Device:
    """What the pretended device holds and did. Times are not known, counts are."""

    def __init__(self, memory: int, shapes: bool) -> None:
        self.memory, self.shapes, self.used, self.peak = memory, shapes, 0, 0
        self.launches: Counter[str] = Counter()
        self.syncs: Counter[str] = Counter()
        self.copied: Counter[str] = Counter()  # bytes "to device", "to host"
        self.flops: Counter[tuple[str, str]] = Counter()  # of matrix products, by function and type of the operands
        self.traffic: Counter[str] = Counter()  # bytes read and written by everything else, by function
        self.highest: dict[str, int] = {}  # most bytes held while a function was at work

    def take(self, x: Tensor) -> Tensor:
        """Puts the storage of a tensor on the device."""
        storage = x.untyped_storage()
        if not hasattr(storage, "pretended"):
            size = storage.nbytes()
            if self.used + size > self.memory:
                raise torch.OutOfMemoryError(f"CUDA out of memory: {self.used:,} + {size:,} of {self.memory:,} bytes")
            storage.pretended = True
            self.used += size
            self.peak = max(self.peak, self.used)
            place = caller().partition(":")[0]
            self.highest[place] = max(self.highest.get(place, 0), self.used)
            weakref.finalize(storage, self._give_back, size)
        return x

    def _give_back(self, size: int) -> None:
        self.used -= size

    def reset(self) -> None:
        """Starts counting anew."""
        for counter in (self.launches, self.syncs, self.copied, self.flops, self.traffic, self.highest):
            counter.clear()
        self.peak = self.used

    def moved(self, x: Tensor, to_device: bool, dtype: torch.dtype | None = None) -> Tensor:
        """A copy of `x` on the other side. From the device to ordinary memory the host waits."""
        with _disable_current_modes():
            if to_device and self.shapes:
                copy = torch.empty(x.shape, dtype=dtype or x.dtype, device="meta")
            elif self.shapes:
                copy = torch.zeros(x.shape, dtype=dtype or x.dtype)
            else:
                copy = x.detach().to(dtype or x.dtype, copy=True)
        self.copied["to device" if to_device else "to host"] += x.nbytes
        if not to_device:
            self.syncs[f"copy to host {caller()}"] += 1
        return self.take(copy) if to_device else copy


def caller() -> str:
    """Function of this package that is at work."""
    frame = sys._getframe(1)
    while frame is not None and "/igsp/" not in frame.f_code.co_filename:
        frame = frame.f_back  # type: ignore[assignment]
    return f"{frame.f_code.co_qualname}:{frame.f_lineno}" if frame is not None else "elsewhere"


def there(x: object) -> bool:
    """Whether a tensor is on the pretended device."""
    return isinstance(x, Tensor) and hasattr(x.untyped_storage(), "pretended")


class Operators(TorchDispatchMode):
    """What runs on the device, operator by operator."""

    def __init__(self, device: Device) -> None:
        super().__init__()
        self.of = device

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        ours = [x for x in tensors if there(x)]
        if not ours:
            return func(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::")
        plain = name.rstrip("_")
        if name == "copy_" and there(args[0]) != there(args[1]):
            return self._copy(*args[:2])
        self._refuse_mixtures(func, plain, args, [x for x in tensors if not there(x)])
        if "mkldnn" in name or ("_for_cpu" in name and self.of.shapes):
            raise WrongDevice(f"{name} runs on a CPU only ({caller()})")
        if self._waits(plain, args):
            self.of.syncs[f"{plain} {caller()}"] += 1
            if self.of.shapes and plain == "_local_scalar_dense":
                return args[0].dtype.is_floating_point or 1  # every check passes, every sum is one
        if plain in ("mm", "addmm") and "dtype" in func._overloadname:
            result = self._widening(plain, args, kwargs)
        else:
            result = func(*args, **kwargs)
        outputs = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        self._count(plain, args, tensors, outputs)
        for x in outputs:
            self.of.take(x)
        return result

    def _copy(self, target: Tensor, source: Tensor) -> Tensor:
        self.of.copied["to device" if there(target) else "to host"] += source.nbytes
        if not there(target) and not getattr(target.untyped_storage(), "pinned", False):
            self.of.syncs[f"copy to host {caller()}"] += 1
        with _disable_current_modes():
            return target if self.of.shapes else target.copy_(source)

    def _refuse_mixtures(self, func, plain, args, others: list[Tensor]) -> None:
        """Numbers of the host may take part in arithmetic, and its tensors may be indices; nothing else may."""
        scalars = plain not in ("cat", "stack", *PRODUCTS, "index_select", "gather", "scatter", "embedding")
        indices = tree_leaves(args[1]) if plain in ("index", "index_put") and there(args[0]) else []
        wrong = [x for x in others if not (scalars and x.ndim == 0) and not any(x is i for i in indices)]
        if wrong and plain != "_to_copy":
            raise WrongDevice(f"{func}: operands on cuda:0 and on the CPU {[tuple(x.shape) for x in wrong]}")

    def _waits(self, plain: str, args) -> bool:
        by_mask = plain in ("index", "index_put") and any(
            isinstance(i, Tensor) and i.dtype == torch.bool for i in tree_leaves(args[1])
        )
        return plain in WAITING or by_mask

    def _widening(self, plain: str, args, kwargs) -> Tensor:
        """Products of half precision with a float32 result, which only a real device has."""
        *first, a, b, dtype = args
        if first and first[0].dtype != dtype:
            raise WrongDevice(f"addmm to {dtype} needs {dtype} to add to, got {first[0].dtype}")
        a, b = a.to(dtype), b.to(dtype)
        value = torch.addmm(first[0], a, b) if first else torch.mm(a, b)
        return value if kwargs.get("out") is None else kwargs["out"].copy_(value)

    def _count(self, plain: str, args, tensors: list[Tensor], outputs: list[Tensor]) -> None:
        if plain in FREE:
            return
        self.of.launches[f"{plain} {caller()}"] += 1
        place = caller().partition(":")[0]
        if plain in PRODUCTS:
            a, b = (args[i] for i in PRODUCTS[plain])
            self.of.flops[place, str(a.dtype).removeprefix("torch.")] += 2 * a.numel() * b.shape[-1]
        passes = 8 if plain == "sort" else 1  # a radix sort of 32 bits goes over keys and indices four times
        self.of.traffic[place] += passes * sum(x.nbytes for x in {id(x): x for x in (*tensors, *outputs)}.values())


class Names(TorchFunctionMode):
    """What Python says of devices by name."""

    def __init__(self, device: Device) -> None:
        super().__init__()
        self.of = device

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func in GETTERS:
            on = there(args[0])
            answers = {"device": CUDA, "is_cuda": True, "is_cpu": False, "is_meta": False}
            return answers[GETTERS[func]] if on else func(*args)
        if func in (torch.Tensor.numpy, torch.Tensor.__array__) and there(args[0]):
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        if func is torch.Tensor.tolist and there(args[0]):
            return self.of.moved(args[0], False).tolist()
        if func is torch.Tensor.pin_memory:
            args[0].untyped_storage().pinned = True
            return args[0]
        if func in (torch.Tensor.to, torch.Tensor.cpu, torch.Tensor.cuda):
            return self._to(func, args[0], list(args[1:]), kwargs)
        if self.of.shapes and func is torch.nn.functional.scaled_dot_product_attention and there(args[0]):
            return self._attention(*args[:3])
        asked = kwargs.get("device")
        if asked is not None and torch.device(asked).type == "cuda":
            result = func(*args, **kwargs | {"device": "meta" if self.of.shapes else "cpu"})
            return tree_map_only(Tensor, self.of.take, result)
        return func(*args, **kwargs)

    def _to(self, func, x: Tensor, rest: list, options: dict):
        place, dtype = options.get("device"), options.get("dtype")
        for item in rest:
            if isinstance(item, Tensor):
                place, dtype = item.device, item.dtype
            elif isinstance(item, torch.dtype):
                dtype = item
            elif isinstance(item, str | torch.device):
                place = item
        place = {torch.Tensor.cpu: CPU, torch.Tensor.cuda: CUDA}.get(func, place)
        wanted = None if place is None else torch.device(place).type
        if wanted in ("cpu", "cuda") and (wanted == "cuda") != there(x):
            return self.of.moved(x, wanted == "cuda", dtype)
        if wanted == "meta":
            return torch.Tensor.to(x, "meta", dtype=dtype)
        return x if dtype is None else torch.Tensor.to(x, dtype, copy=options.get("copy", False))

    def _attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """A fused causal attention: two products, half of each masked out, no matrix of scores in memory."""
        self.of.launches["attention"] += 1
        self.of.flops["replay", str(q.dtype).removeprefix("torch.")] += 2 * q.numel() * k.shape[-2]
        self.of.traffic["replay"] += 2 * q.nbytes + k.nbytes + v.nbytes
        return self.of.take(torch.empty(q.shape, dtype=q.dtype, device="meta"))


def _fused(device: Device) -> types.ModuleType:
    """In place of the Triton kernel: its plain twin, counted as the one launch that the kernel is."""
    from igsp.pruning.kernels import solve_block_plain

    def solve_block_fused(block: Tensor, upper: Tensor, mask: Tensor, pattern: tuple[int, int] | None) -> Tensor:
        device.launches["fused columns"] += 1
        device.traffic["solve_block"] += 3 * block.nbytes + 2 * mask.nbytes
        with _disable_current_modes():
            errors = torch.empty_like(block) if device.shapes else solve_block_plain(block, upper, mask, pattern)
        return device.take(errors)

    module = types.ModuleType("igsp.pruning.fused")
    module.solve_block_fused = solve_block_fused  # type: ignore[attr-defined]
    return module


@contextmanager
def second_device(memory: int = 80 << 30, shapes: bool = False) -> Iterator[Device]:
    """Inside, `cuda` is there; yields what it holds and did."""
    device, run = Device(memory, shapes), threading.Thread.run

    def run_with_device(thread: threading.Thread) -> None:  # modes belong to a thread
        with Operators(device), Names(device):
            run(thread)

    answers = {
        "is_available": lambda: True, "device_count": lambda: 1, "current_device": lambda: 0,
        "is_initialized": lambda: True, "_lazy_init": lambda: None, "synchronize": lambda *_: None,
        "empty_cache": lambda: None, "get_device_name": lambda *_: "a pretended device",
        "get_device_capability": lambda *_: (9, 0), "is_bf16_supported": lambda *_, **__: True,
        "mem_get_info": lambda *_: (device.memory - device.used, device.memory),
        "memory_allocated": lambda *_: device.used, "max_memory_allocated": lambda *_: device.peak,
        "reset_peak_memory_stats": lambda *_: setattr(device, "peak", device.used),
    }
    with ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(patch.object(torch.cuda, name, answer))
        stack.enter_context(patch.object(threading.Thread, "run", run_with_device))
        stack.enter_context(patch.dict(sys.modules, {"igsp.pruning.fused": _fused(device)}))
        stack.enter_context(patch("igsp.pruning.kernels.has_triton", lambda: True))
        stack.enter_context(Operators(device))
        stack.enter_context(Names(device))
        yield device
