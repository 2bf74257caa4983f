"""The Triton kernel, compiled ahead of time for devices that are not here: registers, spills and shared memory."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from igsp.pruning.fused import ROWS, WARPS, _eliminate  # noqa: E402

POINTERS = {"block": "*fp32", "upper": "*fp32", "mask": "*i8", "errors": "*fp32"}
NUMBERS = dict.fromkeys(("columns", "rows", "block_stride", "upper_stride", "mask_stride"), "i32")
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@pytest.mark.parametrize(("keep", "group"), [(0, 0), (2, 4), (4, 8)])
@pytest.mark.parametrize("capability", [80, 90])
def test_the_kernel_keeps_its_block_in_registers(capability, keep, group, tmp_path):
    """No local memory; few enough registers for two programs of 256 threads on one multiprocessor of 65,536."""
    constants = {"SIZE": 128, "TILE": ROWS, "KEEP": keep, "GROUP": group}
    source = ASTSource(_eliminate, POINTERS | NUMBERS | dict.fromkeys(constants, "constexpr"), constexprs=constants)
    kernel = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": WARPS})
    assert kernel.metadata.shared <= 2048
    assert f".target sm_{capability}" in kernel.asm["ptx"] and "ld.local" not in kernel.asm["ptx"]
    if not (TOOLS / "cuobjdump").exists():
        pytest.skip("this Triton brings no cuobjdump: registers are not known")
    (tmp_path / "kernel.cubin").write_bytes(kernel.asm["cubin"])
    command = [TOOLS / "cuobjdump", "-res-usage", tmp_path / "kernel.cubin"]
    told = subprocess.run(command, capture_output=True, text=True)
    registers, stack, local = (int(re.search(rf"{kind}:(\d+)", told.stdout)[1]) for kind in ("REG", "STACK", "LOCAL"))
    assert registers <= 128 and stack == local == 0
